"""Messages a client builds, as a log reads them; envelopes; receipts."""

from __future__ import annotations

import json

import pytest
from client_log import NOW, Network, TinyLog, actor, key

from ktlog.client import build
from ktlog.client.terms import fetch_terms
from ktlog.errors import EncodingError, Invalid, MessageRejected, Unreachable, UsageError
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC
from ktlog.pkd.hpke import open_message
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.pkd.messages import MoveIdentity, open_message_attributes, parse_wire
from ktlog.tlog.encoding import decode_base64url, encode_base64url

ALICE, ALICIA, ROOT = actor("alice"), actor("alicia"), actor("root")
WHEN = {"recent_root": ZERO_ROOT, "now": NOW}

BUILT = {
    "AddKey": lambda: build.enrol(ALICE, key(1), **WHEN),
    "RevokeKey": lambda: build.revoke_key(ALICE, key(2).public_key, key(1), **WHEN),
    "Fireproof": lambda: build.fireproof(ALICE, key(1), **WHEN),
    "UndoFireproof": lambda: build.undo_fireproof(ALICE, key(1), **WHEN),
    "AddAuxData": lambda: build.add_aux_data(ALICE, "age-v1", "age1…", key(1), **WHEN),
    "RevokeAuxData": lambda: build.revoke_aux_data(ALICE, "age-v1", "A" * 43, key(1), **WHEN),
    "MoveIdentity": lambda: build.move_identity(ALICE, ALICIA, key(1), **WHEN),
    "BurnDown": lambda: build.burn_down(ALICE, ROOT, key(1), **WHEN),
    "RevokeKeyThirdParty": lambda: build.revoke_by_token(key(1).revocation_token()),
}


@pytest.mark.parametrize("action", BUILT)
def test_a_log_reads_what_was_meant(action):
    built = BUILT[action]()
    wire = parse_wire(SPEC, json.dumps(built.wire))
    assert wire.action == action
    assert open_message_attributes(SPEC, wire, commitments=True) == built.message
    assert wire.preimage == built.preimage


@pytest.mark.parametrize(("action", "sender"), [
    ("AddKey", ALICE), ("MoveIdentity", ALICIA), ("BurnDown", ROOT), ("RevokeKeyThirdParty", None),
])
def test_who_must_deliver(action, sender):
    assert BUILT[action]().sender == sender


def test_keys_and_nonces_are_never_used_twice():
    first, second = BUILT["AddKey"](), BUILT["AddKey"]()
    secrets = [text for built in (first, second) for text in built.wire["symmetric-keys"].values()]
    assert len(set(secrets)) == 4
    nonces = {decode_base64url(built.wire["message"][name])[1:33] for built in (first, second)
              for name in ("actor", "public-key")}
    assert len(nonces) == 4


def test_randomness_comes_from_the_argument():
    calls = []

    def random(size):
        calls.append(size)
        return bytes([len(calls)]) * size

    built = build.enrol(ALICE, key(1), random=random, **WHEN)
    assert calls == [32] * 4
    assert built.wire["symmetric-keys"]["actor"] == encode_base64url(bytes([1]) * 32)


def test_a_rotation_is_accepted_in_its_order():
    log = TinyLog()
    log.accept(build.enrol(ALICE, key(1), recent_root=log.recent(), now=NOW))
    add, revoke = build.rotate(ALICE, key(1), key(2), recent_root=log.recent(), now=NOW)
    with pytest.raises(MessageRejected):
        log.fork().accept(revoke)
    log.accept(add)
    log.accept(revoke)
    assert [held.public_key for held in log.actors[ALICE].keys] == [key(2).public_key]


def test_mistakes_are_named():
    with pytest.raises(UsageError, match="SelfRevocation"):
        build.revoke_key(ALICE, key(1).public_key, key(1), **WHEN)
    with pytest.raises(UsageError, match="NoSigner"):
        build.build_message(MoveIdentity(ALICE, ALICIA, NOW), None, ZERO_ROOT)
    with pytest.raises(EncodingError, match="BadMerkleRoot"):
        build.enrol(ALICE, key(1), recent_root="pkd-mr-v1:AA", now=NOW)
    with pytest.raises(EncodingError, match="BadToken"):
        build.revoke_by_token("AAAA")
    with pytest.raises(Invalid, match="BadTokenSignature"):
        build.revoke_by_token(key(1).revocation_token()[:-4] + "AAAA")


def test_the_envelope_opens_to_the_message_padded():
    log = TinyLog()
    built = BUILT["AddKey"]()
    envelope = json.loads(build.build_envelope(ALICE, build.seal(built, log.hpke.encapsulation_key)))
    assert set(envelope) == {"!pkd-context", "actor", "encrypted-message"}
    assert (envelope["!pkd-context"], envelope["actor"]) == ("fedi-e2ee:v1-encrypted-message", ALICE)
    text = open_message(log.hpke, envelope["encrypted-message"])
    assert len(text) % 1024 == 0
    assert parse_wire(SPEC, text).preimage == built.preimage


def test_a_burn_down_is_never_encrypted():
    with pytest.raises(UsageError, match="NotEncrypted"):
        build.seal(BUILT["BurnDown"](), TinyLog().hpke.encapsulation_key)


# What a log asks for


def test_terms():
    log = TinyLog()
    log.accept(build.enrol(ALICE, key(1), recent_root=log.recent(), now=NOW))
    terms = fetch_terms(Network(log), log.url)
    assert (terms.dialect, terms.recent_root) == (SPEC, log.recent())
    assert terms.encapsulation_key == log.hpke.encapsulation_key
    assert list(terms.leaf_keys.values()) == [log.leaf_public]


@pytest.mark.parametrize(("path", "body", "name"), [
    ("/api/info", b'{"dialect":"latin"}', "UnknownDialect"),
    ("/api/info", b"{}", "MalformedAnswer"),
    ("/api/history", b'{"merkle-root":"pkd-mr-v1:AA","tree-size":1}', "MalformedAnswer"),
    ("/api/history", b'{"tree-size":1}', "MalformedAnswer"),
    ("/api/server-public-key", b'{"hpke-public-key":"AAAA"}', "MalformedAnswer"),
    ("/leaf-keys", b'{"leaf-keys":["mldsa44:AA"]}', "MalformedAnswer"),
])
def test_terms_out_of_form(path, body, name):
    log = TinyLog()
    network = Network(log)
    network.replace(path, body)
    with pytest.raises(Invalid, match=name):
        fetch_terms(network, log.url)
    network.replace(path, body, 503)
    with pytest.raises(Unreachable, match="BadStatus"):
        fetch_terms(network, log.url)


# Receipts


def other_first(text):
    return ("B" if text.startswith("A") else "A") + text[1:]


@pytest.mark.parametrize("name", DIALECTS)
def test_a_receipt_holds_in_every_dialect(name):
    log = TinyLog(dialect=DIALECTS[name])
    built = build.enrol(ALICE, key(1), recent_root=log.recent(), now=NOW, dialect=log.dialect)
    terms = fetch_terms(Network(log), log.url)
    receipt = build.check_receipt(log.accept(built), built.preimage, built.dialect, terms.leaf_keys)
    assert (receipt.leaf_index, receipt.tree_size, receipt.root) == (0, 1, log.recent())
    assert receipt.entry == log.entries[0]


@pytest.mark.parametrize(("change", "name"), [
    (lambda receipt: receipt.pop("leaf-index"), "BadReceipt"),
    (lambda receipt: receipt.update({"leaf-index": True, "tree-size": 2}), "BadReceipt"),
    (lambda receipt: receipt.update({"tree-size": 3}), "BadReceipt"),
    (lambda receipt: receipt.update({"merkle-root": "pkd-mr-v1:"}), "BadReceipt"),
    (lambda receipt: receipt.update({"merkle-leaf": receipt["merkle-leaf"] + "="}), "BadReceipt"),
    (lambda receipt: receipt.update({"merkle-leaf": 7}), "BadReceipt"),
    (lambda receipt: receipt.update({"merkle-leaf": other_first(receipt["merkle-leaf"])}), "BadEntry"),
    (lambda receipt: receipt.update({"merkle-leaf": receipt["merkle-leaf"][:-4] + "AAAA"}), "BadLeafSignature"),
])
def test_a_false_receipt(change, name):
    log = TinyLog()
    built = BUILT["AddKey"]()
    receipt = log.append(built.preimage, {}, {})
    terms = fetch_terms(Network(log), log.url)
    build.check_receipt(receipt, built.preimage, SPEC, terms.leaf_keys)
    with pytest.raises(Invalid, match="BadReceipt"):
        build.check_receipt(receipt, built.preimage, PHP, terms.leaf_keys)
    change(receipt)
    with pytest.raises(Invalid) as caught:
        build.check_receipt(receipt, built.preimage, SPEC, terms.leaf_keys)
    assert caught.value.name == name
