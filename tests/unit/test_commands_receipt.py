"""Receipts that are kept: what a log signed when it took a message, checked without the network."""

from __future__ import annotations

import base64
import json
import time
from dataclasses import replace

import pytest
from client_log import ORIGIN
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from test_client_commands import LOG_ACTOR, LOG_KEYS, desk

from ktlog.commands.receipt import MAXIMUM_BYTES
from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.keychanges import FIRST, KeyChange, Replaced, change_message, format_change, hash_change
from ktlog.pkd.keys import encode_public_key, private_key_from_seed
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Vkey
from ktlog.tlog.tree import hash_leaf
from ktlog.wire.actor import ML_DSA_44, Multikey, actor_key
from ktlog.wire.fetch import Fetcher
from ktlog.wire.httpsig_response import Exchange, content_digest, sign_response
from ktlog.wire.receipts import format_receipt, parse_receipt, verify_receipt

__all__ = ["desk"]
NOW = 1_790_000_000
INBOX = f"{LOG_ACTOR}/inbox"
ENTRY = bytes(range(256)) * 9 + bytes(180)
ROOT = "pkd-mr-v1:" + "A" * 43
ACCEPTED = {
    "!pkd-context": "fedi-e2ee:v1/api/inbox", "leaf-index": 4, "tree-size": 5, "merkle-leaf": encode_base64url(ENTRY),
    "merkle-root": ROOT,
}
BURNED = ACCEPTED | {"!pkd-context": "fedi-e2ee:v1/api/burndown", "status": True, "time": str(NOW)}
PRIVATE = [(name, private) for name, _, private in LOG_KEYS]
SENT = content_digest(b"the message")
PQ_TEXT = encode_public_key(LOG_KEYS[1][2].public_key().public_bytes_raw())
OTHERS = [
    (PRIVATE[0][0], Ed25519PrivateKey.from_private_bytes(bytes(32))),
    (PRIVATE[1][0], MLDSA44PrivateKey.from_seed_bytes(bytes(32))),
]


def signed(body=ACCEPTED, keys=PRIVATE, method="POST", url=INBOX, status=202, created=NOW, digest=SENT) -> Exchange:
    """A log's answer, signed."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    bare = Exchange(method, url, status, {"content-type": "application/json"}, data, digest)
    made = {name.lower(): value for name, value in sign_response(bare, keys, created).items()}
    return replace(bare, headers={**bare.headers, **made, "server": "x", "date": "today"})


def find(key_id):
    for name, algorithm, private in LOG_KEYS:
        if name == key_id:
            return Multikey(name, LOG_ACTOR, algorithm, private.public_key().public_bytes_raw())
    raise Invalid("UnknownKey", key_id)


def changed(data: bytes, **members) -> bytes:
    return json.dumps(json.loads(data) | members).encode()


# The file


def test_the_file_holds_what_was_signed_and_nothing_else():
    exchange = signed()
    data = format_receipt(exchange)
    found = parse_receipt(data)
    assert (found.method, found.url, found.status, found.body) == ("POST", INBOX, 202, exchange.body)
    assert found.request_digest == SENT
    assert set(found.headers) == {"content-type", "content-digest", "signature", "signature-input"}
    assert format_receipt(found) == data
    assert verify_receipt(found, find, NOW) == verify_receipt(exchange, find, NOW)


@pytest.mark.parametrize("spoil", [
    lambda data: b"", lambda data: b"{}", lambda data: b"[]", lambda data: data[:-20], lambda data: data + b"{}",
    lambda data: changed(data, type="ktlog-receipt-v1"), lambda data: changed(data, more=1),
    lambda data: changed(data, **{"request-digest": None}), lambda data: data.replace(b'"request-digest"', b'"digest"'),
    lambda data: changed(data, status="202"), lambda data: changed(data, status=True), lambda data: changed(data, url=None),
    lambda data: changed(data, headers=[]), lambda data: changed(data, headers={"Signature": "x"}),
    lambda data: changed(data, headers={"signature": 5}), lambda data: changed(data, body="="),
    lambda data: changed(data, body="A"), lambda data: data.replace(b'"method"', b'"url": "x", "method"'),
])
def test_files_that_are_none(spoil):
    with pytest.raises(EncodingError):
        parse_receipt(spoil(format_receipt(signed())))


# What it proves


def test_an_acceptance_of_any_age():
    found = verify_receipt(signed(), find, NOW + 10**9)
    assert (found.log_actor, found.leaf_index, found.entry, found.root) == (LOG_ACTOR, 4, ENTRY, ROOT)
    assert found.leaf_hash == hash_leaf(ENTRY)
    assert (found.created, set(found.algorithms)) == (NOW, {"ed25519", "ml-dsa-44"})
    with pytest.raises(Invalid):
        verify_receipt(signed(), find, NOW - 1000)  # from the future


@pytest.mark.parametrize("exchange", [
    signed(url=f"https://{ORIGIN}/inbox"), signed(BURNED, url=f"https://{ORIGIN}/api/burndown", status=200),
])
def test_every_door_where_messages_are_taken(exchange):
    assert verify_receipt(exchange, find, NOW).leaf_index == 4


@pytest.mark.parametrize("exchange", [
    signed(method="GET"), signed(status=200), signed(status=409), signed(url=f"https://{ORIGIN}/api/revoke"),
    signed(url=f"{INBOX}?x"), signed(url=f"{INBOX}/"), signed(BURNED), signed(BURNED, status=200),
    signed(url=f"https://{ORIGIN}/api/burndown", status=200), signed(BURNED, url=f"https://{ORIGIN}/api/burndown"),
    signed(b"[]"), signed(b"{"), signed(b""), signed(ACCEPTED | {"tree-size": 6}), signed(ACCEPTED | {"leaf-index": -1}),
    signed(ACCEPTED | {"merkle-root": "x"}), signed(ACCEPTED | {"merkle-leaf": encode_base64url(b"short")}),
    signed(ACCEPTED | {"merkle-leaf": None}),
])
def test_what_the_log_signed_and_is_no_acceptance(exchange):
    with pytest.raises(Invalid) as caught:
        verify_receipt(exchange, find, NOW)
    assert caught.value.name == "BadReceipt"


@pytest.mark.parametrize("change", [
    {"body": encode_base64url(json.dumps(ACCEPTED | {"leaf-index": 5, "tree-size": 6}).encode())},
    {"url": f"https://{ORIGIN}/inbox"}, {"url": INBOX.replace(ORIGIN, "keys.beta.example")},
    {"request-digest": content_digest(b"another message")}, {"request-digest": SENT.split(", ")[0]}, {"request-digest": ""},
], ids=["body", "door", "log", "request", "half", "none"])
def test_nothing_of_it_can_be_changed(change):
    exchange = parse_receipt(changed(format_receipt(signed()), **change))
    with pytest.raises(Invalid) as caught:
        verify_receipt(exchange, find, NOW)
    assert caught.value.name == "BadResponseSignature"


def test_an_acceptance_that_names_no_message_is_none():
    with pytest.raises(Invalid) as caught:
        verify_receipt(signed(digest=None), find, NOW)
    assert caught.value.name == "BadResponseSignature"


@pytest.mark.parametrize("keys", [OTHERS, [PRIVATE[0], OTHERS[1]], [OTHERS[0], PRIVATE[1]], PRIVATE[:1], PRIVATE[1:]])
def test_both_signatures_must_hold(keys):
    with pytest.raises(Invalid):
        verify_receipt(signed(keys=keys), find, NOW)


def test_one_algorithm_is_enough_for_whoever_trusts_one_key_only():
    def only_pq(key_id):
        if key_id != PRIVATE[1][0]:
            raise Invalid("UnknownKey", key_id)
        return find(key_id)

    assert verify_receipt(signed(), only_pq, NOW, (ML_DSA_44,)).algorithms == (ML_DSA_44,)
    with pytest.raises(Invalid):
        verify_receipt(signed(keys=[PRIVATE[0], OTHERS[1]]), only_pq, NOW, (ML_DSA_44,))


# The commands


def add_key(desk, capsys, *arguments, number=1):
    return desk.submit(capsys, "add-key", "--key", desk.path(f"{number}.key"), *arguments)


def actor_document(keys):
    listed = [
        actor_key(name, LOG_ACTOR, algorithm, private.public_key().public_bytes_raw())
        for (name, private), algorithm in zip(keys, ("ed25519", ML_DSA_44), strict=True)
    ]
    return json.dumps({"id": LOG_ACTOR, "inbox": INBOX, "assertionMethod": listed}).encode()


def test_from_a_submission_to_a_verdict(desk, capsys, tmp_path, monkeypatch):
    receipt = tmp_path / "alice.receipt"
    code, out, err = add_key(desk, capsys, "--receipt", str(receipt), "--json")
    assert code == 0, err
    answer = json.loads(out)

    def offline(*_, **__):
        pytest.fail("a receipt is checked without the network")

    monkeypatch.setattr(Fetcher, "__init__", offline)
    monkeypatch.setattr(Fetcher, "from_environment", offline)
    (tmp_path / "actor.json").write_bytes(actor_document(PRIVATE))
    for trust in (["--key", PQ_TEXT], ["--actor-document", str(tmp_path / "actor.json")]):
        code, out, err = desk.run(capsys, "receipt", "verify", str(receipt), *trust, "--json")
        assert code == 0, err
        found = json.loads(out)
        assert (found["log"], found["leaf-index"], found["root"]) == (LOG_ACTOR, answer["leaf-index"], answer["merkle-root"])
        entry = base64.urlsafe_b64decode(answer["merkle-leaf"] + "==")
        assert found["leaf-hash"] == encode_base64url(hash_leaf(entry))
        assert found["request-digest"] == content_digest(desk.network.sent).split(", ")[0]
        assert abs(found["time"] - time.time()) < 300
        assert len(found["algorithms"]) == (1 if "--key" in trust else 2)
    code, out, _ = desk.run(capsys, "receipt", "verify", str(receipt), "--key", PQ_TEXT)
    assert code == 0 and f"leaf-index: {answer['leaf-index']}\n" in out and answer["merkle-root"] in out


def test_receipts_that_are_refused(desk, capsys, tmp_path):
    receipt = tmp_path / "alice.receipt"
    receipt.write_bytes(format_receipt(signed()))
    other = encode_public_key(OTHERS[1][1].public_key().public_bytes_raw())
    (tmp_path / "actor.json").write_bytes(actor_document(OTHERS))
    (tmp_path / "long").write_bytes(b" " * (MAXIMUM_BYTES + 1))
    for code, arguments in (
        (5, [receipt, "--key", other]), (5, [receipt, "--actor-document", tmp_path / "actor.json"]),
        (5, [receipt, "--actor-document", receipt]), (5, [tmp_path / "actor.json", "--key", PQ_TEXT]),
        (2, [receipt]), (2, [receipt, "--key", PQ_TEXT, "--actor-document", receipt]),
        (2, [tmp_path / "none", "--key", PQ_TEXT]), (2, [tmp_path / "long", "--key", PQ_TEXT]),
        (5, [receipt, "--key", "mldsa44:AAAA"]), (0, [receipt, "--key", PQ_TEXT]),
    ):
        found, out, err = desk.run(capsys, "receipt", "verify", *map(str, arguments))
        assert found == code, (arguments, out, err)
        assert (out != "") == (code == 0)


def test_a_receipt_is_not_replaced_and_nothing_is_sent(desk, capsys, tmp_path):
    receipt = tmp_path / "alice.receipt"
    receipt.write_text("another")
    code, _, err = add_key(desk, capsys, "--receipt", str(receipt))
    assert code == 2 and "exists" in err and receipt.read_text() == "another"
    assert not hasattr(desk.network, "key_ids"), "nothing was sent"


def test_what_the_log_did_not_sign_is_not_kept(desk, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("test_client_commands.sign_response", lambda answer, keys, now: sign_response(answer, OTHERS, now))
    code, _, _ = add_key(desk, capsys, "--receipt", str(tmp_path / "alice.receipt"))
    assert code == 3 and not (tmp_path / "alice.receipt").exists()


def test_a_lie_that_the_log_signed_is_kept(desk, capsys, tmp_path):
    """That is when it is needed: the leaf signature is bad, and the log signed that it is its entry."""
    def lie(receipt):
        entry = bytearray(base64.urlsafe_b64decode(receipt["merkle-leaf"] + "=="))
        entry[40] ^= 1
        receipt["merkle-leaf"] = encode_base64url(bytes(entry))

    desk.network.change = lie
    receipt = tmp_path / "alice.receipt"
    code, _, _ = add_key(desk, capsys, "--receipt", str(receipt))
    assert code == 5
    assert verify_receipt(parse_receipt(receipt.read_bytes()), find, int(time.time())).log_actor == LOG_ACTOR


def test_without_the_option_nothing_is_written(desk, capsys, tmp_path):
    before = set(tmp_path.iterdir())
    assert add_key(desk, capsys)[0] == 0
    assert set(tmp_path.iterdir()) == before


def test_one_time_passwords_get_no_receipt(desk, capsys, tmp_path):
    code, _, err = desk.submit(
        capsys, "totp-disenroll", "--sign-with", desk.path("1.key"), "--otp", "12345678", "--receipt", str(tmp_path / "r")
    )
    assert code == 2 and "--receipt" in err


# A log that has replaced its key since


def replaced(old, new, time, before=()):
    """A line about ML-DSA-44 keys for answers, as `ktlog keys rotate http` makes it; its checkpoint key is the test's."""
    log = private_key_from_seed(b"c" * 32)
    pairs = [Ed25519PrivateKey.from_private_bytes(bytes([at]) * 32) for at in (len(before) + 1, len(before) + 2)]

    def text(key):
        raw = key.public_key().public_bytes_raw()
        return f"ed25519:{encode_base64url(raw)}" if isinstance(key, Ed25519PrivateKey) else encode_public_key(raw)

    change = KeyChange(
        ORIGIN, len(before), hash_change(before[-1]) if before else FIRST, time, 0, bytes(32), "http", time, "",
        tuple(Replaced(f"http-{kind}", text(a), text(b)) for kind, (a, b) in (("ed25519", pairs), ("mldsa44", (old, new)))),
        str(Vkey(ORIGIN, COSIGNATURE_MLDSA44, log.public_key().public_bytes_raw())),
    )
    message = change_message(change)
    return replace(change, log_signature=log.sign(message), keys=tuple(
        replace(key, old_signature=a.sign(message), new_signature=b.sign(message))
        for key, (a, b) in zip(change.keys, (pairs, (old, new)), strict=True)
    ))


@pytest.mark.parametrize(("times", "code"), [((NOW + 1, NOW + 2), 0), ((NOW, NOW + 2), 0), ((NOW - 1, NOW + 2), 5)],
                         ids=["before", "in that second", "after"])
def test_a_key_that_was_replaced_since(desk, capsys, tmp_path, times, code):
    receipt, history = tmp_path / "alice.receipt", tmp_path / "keys.jsonl"
    receipt.write_bytes(format_receipt(signed()))
    first, second, third = PRIVATE[1][1], private_key_from_seed(b"2" * 32), private_key_from_seed(b"3" * 32)
    changes = [replaced(first, second, times[0])]
    changes.append(replaced(second, third, times[1], changes))
    history.write_bytes(b"".join(format_change(change) + b"\n" for change in changes))
    newest = encode_public_key(third.public_key().public_bytes_raw())
    found, _, err = desk.run(capsys, "receipt", "verify", str(receipt), "--key", newest)
    assert found == 5 and f"https://{ORIGIN}/keys" in err and "--keys FILE" in err
    found, out, err = desk.run(capsys, "receipt", "verify", str(receipt), "--key", newest, "--keys", str(history))
    assert (found, out != "") == (code, code == 0), err
    stranger = encode_public_key(private_key_from_seed(b"4" * 32).public_key().public_bytes_raw())
    assert desk.run(capsys, "receipt", "verify", str(receipt), "--key", stranger, "--keys", str(history))[0] == 5
    history.write_bytes(history.read_bytes().replace(b'"kind":"http"', b'"kind":"leaf"'))
    assert desk.run(capsys, "receipt", "verify", str(receipt), "--key", newest, "--keys", str(history))[0] == 5
