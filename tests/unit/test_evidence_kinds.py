"""Evidence of every kind: what is genuine convicts; what is changed, another's, or innocent, convicts nobody."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import islice
from typing import Any

import pytest
from client_log import NOW, ORIGIN, key
from client_world import remembering_argon2id
from map_log import ALICE, BOB, MapLog, say

from auditor.commands.verify_evidence import _known
from auditor.convict import conviction, format_conviction, format_refusal, parse_any
from auditor.evidence import build
from auditor.evidence.claims import FORMAT, KINDS, Claim, Logged, format_claim, parse_claim
from auditor.evidence.judge import Known, judge_claim
from auditor.evidence.limits import MAX_MARKS
from auditor.evidence.source import CopiedFiles, Source
from ktlog.client.build import (
    add_aux_data,
    add_key,
    burn_down,
    enrol,
    fireproof,
    move_identity,
    revoke_by_token,
    revoke_key,
    undo_fireproof,
)
from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import EncodingError, Invalid, KtlogError
from ktlog.pkd import attributes
from ktlog.pkd.keychanges import format_change, parse_changes
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.evidence import format_evidence, two_roots
from ktlog.tlog.note import COSIGNATURE_ED25519, ED25519, Vkey, parse_vkey, sign_checkpoint, signer_from_seed
from ktlog.tlog.proof import TlogProof, format_proof, parse_proof
from ktlog.tlog.tree import hash_leaf, prove_consistency, prove_inclusion
from ktlog.wire.fetch import Response
from tests import evidence_world as lies

EVERY = sorted(lies.MAKERS)
AGE = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"


@pytest.fixture(autouse=True)
def _remember(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)


def example(kind: str) -> bytes:
    return (lies.VECTORS / f"{kind}.json").read_bytes()


CLAIMS = [kind for kind in EVERY if FORMAT.encode() in example(kind)[:64]]
KEYS: tuple[Vkey, ...] = tuple(parse_vkey(text) for text in json.loads(example("known"))["vkeys"])


class Served:
    """The files of a log of a few entries. changed: texts that it publishes in place of the true ones."""

    def __init__(self, entries: list[Logged], **changed: str | None) -> None:
        rows = [
            {"leaf-index": index, "message": one.message.decode(), "plain": dict(one.plain) | changed, "salts": {},
             "withheld": None in changed.values()}
            for index, one in enumerate(entries)
        ]
        size = len(entries)
        # The one that the examples' log signed for three entries; else one that nobody did.
        signed = parse_proof(parse_claim(example("wrong-record"))["statement"]).checkpoint_bytes
        strange = f"{ORIGIN}\n{size}\n{encode_base64(bytes(32))}\n\n— x AAAAAAAA\n".encode()
        self.files = {
            "/checkpoint": signed if size == 3 else strange,
            f"/records/000.p/{size}": "".join(json.dumps(row) + "\n" for row in rows).encode(),
            f"/tile/entries/000.p/{size}": b"".join(len(one.entry).to_bytes(2, "big") + one.entry for one in entries),
        }

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        found = self.files.get(url.removeprefix(f"https://{ORIGIN}"))
        return Response(404 if found is None else 200, {}, found or b"", url)

    def source(self, *, genuine: bool = True) -> Source:
        return Source(PublicFiles(self, f"https://{ORIGIN}"), genuine)


def entries_of_examples() -> list[Logged]:
    """The honest entries below all the examples: they were written in one go."""
    return list(parse_claim(example("broken-rule"))["entries"][:3])


def knowing(kind: str, vkeys: tuple[Vkey, ...] = KEYS) -> Known:
    lying = Served(entries_of_examples(), **{"public-key": key(9).public_text}).source()
    return Known(vkeys, (), lying if kind == "wrong-record" else None, NOW + 5)


def refused(data: bytes | Claim, known: Known) -> KtlogError:
    with pytest.raises(KtlogError) as error:
        conviction(data if isinstance(data, bytes) else format_claim(data), known)
    assert error.value.exit_code != 0 and error.value.hint
    return error.value


# -- what is genuine


@pytest.mark.parametrize("kind", EVERY)
def test_the_example_convicts(kind: str) -> None:
    """docs/vectors/evidence, written once by ``python -m tests.evidence_world``."""
    verdict = conviction(example(kind), knowing(kind))
    assert verdict["convicts"] and verdict["kind"] == kind and verdict["log_key_known"]
    assert (verdict["rests_on"] is None) == (kind not in ("wrong-record", "broken-promise"))
    if kind != "broken-promise":
        assert not conviction(example(kind), knowing(kind, ()))["log_key_known"]


@pytest.mark.parametrize("kind", EVERY)
def test_what_is_made_today_convicts_too(kind: str) -> None:
    known = replace(knowing(kind), vkeys=(*lies.vkeys(lies.honest()), *lies.map_vkeys(lies.honest())))
    if kind == "wrong-record":
        known = replace(known, source=Served(lies.logged(lies.honest()), **{"public-key": key(9).public_text}).source())
    assert conviction(lies.evidence(kind), known)["kind"] == kind


def test_every_kind_has_an_example() -> None:
    assert set(CLAIMS) == set(KINDS)


# -- what is another's


@pytest.mark.parametrize("kind", EVERY)
def test_another_log_is_not_convicted(kind: str) -> None:
    strangers = tuple(
        vkey for log in (MapLog("keys.beta.example", 3), MapLog(ORIGIN, 5)) for vkey in
        (*lies.vkeys(log), *lies.map_vkeys(log))
    )
    assert refused(example(kind), knowing(kind, strangers)).name == "WrongLog"
    document = json.loads(example(kind))
    for vkey in (strangers[1], strangers[3], strangers[5], strangers[7]):
        renamed = document | {"vkey": str(vkey), "origin": vkey.name}
        refused(_text(renamed), knowing(kind, ()))


def _text(document: Any) -> bytes:
    return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode()


# -- what is changed


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a document has a text, a number or nothing."""
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list):
        for at, item in enumerate(value):
            yield from places(item, (*path, at))
    else:
        yield path


def changed_at(document: Any, path: tuple[Any, ...]) -> Iterator[Any]:
    """The document with one member made another, still well-formed wherever it can be."""
    *way, last = path
    holder = twin = json.loads(json.dumps(document))
    for step in way:
        holder = holder[step]
    value = holder[last]
    for other in _others(value):
        holder[last] = other
        yield twin


def _others(value: Any) -> Iterator[Any]:
    if isinstance(value, int):
        yield value + 1
    elif value is None:
        yield "x"
    else:
        try:
            data = decode_base64(value)
        except EncodingError:
            middle = len(value) // 2
            yield value[:middle] + ("a" if value[middle] != "a" else "b") + value[middle + 1 :]
            yield value[:-1]
            return
        if data:
            yield encode_base64(data[:-1] + bytes([data[-1] ^ 1]))
            yield encode_base64(bytes([data[0] ^ 1]) + data[1:])
            yield encode_base64(data[:-1])


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=pytest.mark.slow if kind in ("broken-rule", "wrong-value") else ()) for kind in EVERY
])
def test_any_member_changed_convicts_nobody(kind: str) -> None:
    document = json.loads(example(kind))
    for path in places(document):
        # A text of an entry costs an Argon2id: one change of each is enough there.
        for other in islice(changed_at(document, path), 1 if path[0] == "entries" else None):
            refused(_text(other), knowing(kind))


@pytest.mark.parametrize("kind", EVERY)
def test_the_file_has_one_form(kind: str) -> None:
    data = example(kind)
    document = json.loads(data)
    again = data.replace(b'{\n  "format"', b'{\n  "format": "x",\n  "format"', 1)
    swapped = {name: document[name] for name in reversed(document)}
    for other in (again, data[:-1], data + b"\n", data.replace(b"  ", b"\t", 1), _text(swapped), _text([document]),
                  _text(document | {"more": 1}), _text({**document, "kind": "other"}), b"\xff" + data, b"", b"[" * 9999):
        with pytest.raises(EncodingError, match="BadEvidence"):
            parse_any(other)


def test_sizes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    claim = parse_claim(example("broken-rule"))
    monkeypatch.setattr("auditor.evidence.claims.MAX_BLOB_BYTES", 10_000)
    for members in (
        {"entries": (Logged(b"", b""),) * 1025}, {"proof": (bytes(32),) * 129}, {"leaf-index": 1 << 63},
        {"entries": (replace(claim["entries"][0], plain={str(n).zfill(2): None for n in range(17)}),)},
        {"entries": (replace(claim["entries"][0], message=bytes(10_001)),)},
    ):
        with pytest.raises(EncodingError, match="BadEvidence"):
            parse_claim(format_claim(replace(claim, members={**claim.members, **members})))
    with pytest.raises(EncodingError, match="BadEvidence"):
        parse_claim(b" " * (32 << 20) + b"{")


# -- what an honest log may do


def honest() -> MapLog:
    return lies.honest().fork()


def grown() -> MapLog:
    return _grown().fork()


@cache
def _grown() -> MapLog:
    log = honest()
    say(log, add_key, ALICE, key(3).public_key, key(2))
    return log.publish_map().publish()


def test_a_log_that_grew_keeps_its_leaves() -> None:
    log, later = honest(), grown()
    for index in range(3):
        assert build.evidence_for_two_leaves(
            lies.vkeys(log), index, (log.checkpoint, log.reader()), (later.checkpoint, later.reader())
        ) is None


def test_what_a_log_signed_for_another_log_is_not_about_its_own() -> None:
    """A log may be a witness of others with the same key: two trees of two logs are no fork."""
    one, other = lies.twin()
    known = Known(lies.vkeys(one))
    own = parse_claim(lies.evidence("two-leaves"))
    elsewhere = build.signed_by(lies.vkeys(one)[1], other.sign(origin="other.example"))
    here = build.signed_by(lies.vkeys(one)[1], one.checkpoint)
    there = build.signed_by(lies.vkeys(one)[1], one.sign(origin="other.example"))
    for origin, heads in ((ORIGIN, (here, elsewhere)), ("other.example", (there, elsewhere))):
        statements = tuple(
            format_proof(TlogProof(3, tuple(prove_inclusion(3, log.size, log.reader())), head))
            for log, head in zip((one, other), heads, strict=True)
        )
        hashes = tuple(hash_leaf(log.entries[3]) for log in (one, other))
        members = {**own.members, "statements": statements, "leaf-hashes": hashes}
        assert refused(replace(own, origin=origin, members=members), known).name == "WrongLog"


def test_a_cosigners_key_named_like_a_log_accuses_nobody() -> None:
    signer = signer_from_seed(ORIGIN, COSIGNATURE_ED25519, bytes(32))
    one, other = lies.twin()
    heads = [build.signed_by(signer.vkey, log.sign(signers=(signer,), witnesses=0)) for log in (one, other)]
    statements = tuple(
        format_proof(TlogProof(3, tuple(prove_inclusion(3, log.size, log.reader())), head))
        for log, head in zip((one, other), heads, strict=True)
    )
    claim = replace(parse_claim(example("two-leaves")), vkey=signer.vkey, members={
        "leaf-index": 3, "leaf-hashes": tuple(hash_leaf(log.entries[3]) for log in (one, other)),
        "statements": statements,
    })
    assert refused(claim, Known()).name == "NotEvidence"


def test_two_keys_of_one_log_convict_no_single_key() -> None:
    one, other = lies.twin()
    notes = one.sign(signers=one.signers[:1]), other.sign(signers=other.signers[1:])
    assert build.evidence_for_two_leaves(
        lies.vkeys(one), 3, (notes[0], one.reader()), (notes[1], other.reader())
    ) is None


def test_an_entry_by_a_leaf_key_that_was_replaced_is_signed_all_the_same() -> None:
    log = grown()
    keys = {log.entries[3][-32:]: log.leaf_public}
    assert build.evidence_for_leaf_signature(
        lies.vkeys(log), log.checkpoint, log.reader(), 3, log.entries[3], keys
    ) is None
    newer = {bytes(32): key(5).public_key}
    assert build.evidence_for_leaf_signature(
        lies.vkeys(log), log.checkpoint, log.reader(), 3, log.entries[3], newer
    ) is None
    claim = parse_claim(example("bad-leaf-signature"))
    refused(replace(claim, members={**claim.members, "leaf-key": key(5).public_key}), knowing("bad-leaf-signature"))


def test_honest_messages_are_messages_and_none_is_there_twice() -> None:
    log = grown()
    items = lies.logged(log)
    for index, one in enumerate(items):
        assert build.evidence_for_message(
            lies.vkeys(log), log.checkpoint, log.reader(), index, one.entry, one.message
        ) is None
    for first, second in ((2, 3), (2, 2), (3, 2)):
        assert build.evidence_for_duplicate(
            lies.vkeys(log), log.checkpoint, log.reader(), (first, items[first]), (second, items[second])
        ) is None


def test_a_message_of_a_later_version_is_not_judged() -> None:
    log = honest()
    message = log.rows[2]["encrypted-message"]
    for newer in (message.replace("v1", "v2"), message.replace("AddKey", "AddKeyring")):
        assert newer != message
        fork = honest()
        fork.append(newer.encode(), {}, {})
        fork.publish()
        assert build.evidence_for_message(
            lies.vkeys(log), fork.checkpoint, fork.reader(), 3, fork.entries[3], newer.encode()
        ) is None


def test_a_log_that_is_no_directory_is_not_judged_by_its_rules() -> None:
    """Leaves of the output log, or of any other log, are no entries."""
    log = grown()
    claim = parse_claim(example("bad-message"))
    at = len(log.output) - 1
    statement = build.statement(
        lies.map_vkeys(log)[1], log.sign_map(), at + 1, at, log.map_reader(), log.output[at]
    )
    members = {"statement": statement, "message": b"x"}
    other = Claim("bad-message", log.map_origin, lies.map_vkeys(log)[1], members)
    assert refused(other, Known(lies.map_vkeys(log))).name == "NotEvidence"
    assert claim.origin == ORIGIN


# Receipts


def of_receipt(log: MapLog, receipt: bytes, *, http: int = 0, changes: bytes = b"") -> bytes | None:
    return build.evidence_for_receipt(
        lies.vkeys(log), log.checkpoint, log.reader(), receipt, lies.HTTP_PUBLIC[http], NOW, changes
    )


def test_a_receipt_that_was_kept_convicts_nobody() -> None:
    for index in range(4):
        assert of_receipt(grown(), lies.receipt(grown(), index)) is None
        assert of_receipt(honest(), lies.receipt(honest(), min(index, 2))) is None


def test_a_tree_that_does_not_reach_so_far_is_only_late() -> None:
    one, _ = lies.twin()
    assert of_receipt(honest(), lies.receipt(one, 3)) is None
    claim = parse_claim(example("broken-promise"))
    late = replace(claim, members={**claim.members, "checkpoint": build.signed_by(KEYS[1], honest().checkpoint)})
    assert "late" in refused(late, knowing("broken-promise")).message


def test_a_receipt_for_a_root_that_never_was() -> None:
    """The entry is there, and the tree before it is another."""
    for index in (1, 2):
        log = honest()
        before = honest()
        before.entries[0] = before.entries[1]
        wrong = lies.receipt(log, index, **{"merkle-root": "pkd-mr-v1:" + lies.base64url(before.root(index + 1))})
        for tree in (honest(), grown()):
            data = of_receipt(tree, wrong)
            assert data is not None
            assert conviction(data, Known(lies.vkeys(tree), lies.HTTP_PUBLIC[:1], now=NOW))["kind"] == "broken-promise"
            refused(data, Known(lies.vkeys(tree), (), now=NOW))


def test_no_proof_makes_a_kept_promise_a_broken_one() -> None:
    """Of a tree whose size is a power of two a consistency proof begins with what the accuser writes there."""
    log, made_up = grown(), (bytes([7]) * 32, bytes([8]) * 32, bytes([9]) * 32)
    example_claim = parse_claim(example("broken-promise"))
    for index in range(log.size):
        size = index + 1
        honest_proof = () if size == log.size else tuple(prove_consistency(size, log.size, log.reader()))
        members = {
            **example_claim.members, "receipt": lies.receipt(log, index), "leaf-hash": None,
            "checkpoint": build.signed_by(lies.vkeys(log)[1], log.checkpoint),
        }
        for proof in (honest_proof, (log.root(size), *honest_proof), *(made_up[:count] for count in range(4)),
                      (made_up[0], *honest_proof), (made_up[0], *honest_proof[1:])):
            claim = replace(example_claim, members={**members, "proof": proof})
            refused(claim, Known(lies.vkeys(log), lies.HTTP_PUBLIC, now=NOW))


def test_a_receipt_by_nobodys_key_convicts_nobody() -> None:
    """Anybody can make a key, and sign receipts with it: the key must be known, or told by the log's own key."""
    claim = parse_claim(example("broken-promise"))
    assert claim["key-changes"]
    alone = replace(claim, members={**claim.members, "key-changes": b""})
    assert refused(alone, knowing("broken-promise")).name == "UnboundKey"
    assert refused(alone, replace(knowing("broken-promise"), http_keys=lies.HTTP_PUBLIC[1:])).name == "UnboundKey"
    judge_claim(alone, replace(knowing("broken-promise"), http_keys=lies.HTTP_PUBLIC))


def test_the_history_of_keys_must_be_the_accused_keys_own_word() -> None:
    claim = parse_claim(example("broken-promise"))
    stranger = MapLog(ORIGIN, 7)
    forged = lies.key_changes(stranger).replace(str(lies.vkeys(stranger)[1]).encode(), str(KEYS[1]).encode())
    for changes in (lies.key_changes(stranger), forged):
        other = replace(claim, members={**claim.members, "key-changes": changes})
        assert refused(other, knowing("broken-promise")).exit_code == 5


def test_a_key_that_was_given_up_signs_no_receipts_any_more() -> None:
    one, other = lies.twin()
    changes = lies.key_changes(one, time=NOW - 20, until=NOW - 10)
    assert of_receipt(other, lies.receipt(one, 3, created=NOW - 11), changes=changes)
    assert _unbound(of_receipt(other, lies.receipt(one, 3), changes=changes))
    assert _unbound(of_receipt(other, lies.receipt(one, 3, created=NOW - 30, http=1), http=1, changes=changes))


def _unbound(data: bytes | None) -> bool:
    """The maker knew the key; whoever reads the file does not."""
    return data is not None and refused(data, Known(KEYS, (), now=NOW)).name == "UnboundKey"


def test_a_receipt_of_another_host_or_from_the_future() -> None:
    one, other = lies.twin()
    moved = json.loads(lies.receipt(one, 3))
    moved["url"] = moved["url"].replace("alpha", "beta")
    # Whoever runs both hosts with one key for answers promised it there, and not here.
    foreign = lies.receipt(one, 3, actor=lies.LOG_ACTOR.replace("alpha", "beta"))
    for receipt in (json.dumps(moved).encode(), foreign, lies.receipt(one, 3, created=NOW + 9999), b"{}"):
        with pytest.raises(KtlogError):
            of_receipt(other, receipt)


# What is derived again


def rule(log: MapLog, count: int, name: str = "BadTransition", entries: list[Logged] | None = None) -> bytes | None:
    items, at = entries or lies.logged(log), len(log.output) - 1
    return build.evidence_for_rule(
        lies.map_vkeys(log), log.sign_map(), log.map_reader(), at, log.output[at], name, items[:count],
        [hash_leaf(one.entry) for one in items],
    )


def test_no_honest_entry_breaks_a_rule() -> None:
    log = grown()
    for count in range(1, 5):
        for name in ("BadTransition", "BadMessageSignature", "StaleRoot", "DuplicateMessage", "BadMessage", ""):
            assert rule(log, count, name) is None


def test_each_rule_convicts_under_its_name() -> None:
    cases = {
        "BadTransition": lambda log: lies.force(
            log, add_key(ALICE, key(2).public_key, key(1), recent_root=log.recent(), now=NOW)),
        "StaleRoot": lambda log: lies.force(log, fireproof(ALICE, key(2), recent_root=_no_root(), now=NOW)),
        "DuplicateMessage": lambda log: log.append(
            log.rows[2]["encrypted-message"].encode(), log.rows[2]["plain"], {}),
    }
    for name, lie in cases.items():
        log = honest()
        lie(log)
        log.publish_map()
        data = rule(log, 4, name)
        assert data is not None, name
        assert conviction(data, Known(lies.map_vkeys(log)))["kind"] == "broken-rule"
        assert rule(log, 4, "BadMessageSignature") is None
        assert rule(log, 3, name) is None


def _no_root() -> str:
    return "pkd-mr-v1:" + lies.base64url(bytes([7]) * 32)


def test_entries_left_out_or_texts_chosen_by_the_accuser() -> None:
    """Without the entry that enrolled her, or under another name, each honest message would seem to break a rule."""
    log = grown()
    items = lies.logged(log)
    eve = {name: text.replace("alice", "mallo") for name, text in items[1].plain.items()}
    for entries in (
        [items[0], *items[2:]], [items[0], replace(items[1], plain=eve), *items[2:]],
        [items[0], replace(items[1], plain=dict.fromkeys(items[1].plain)), *items[2:]],
        [items[0], replace(items[1], plain={}), *items[2:]],
        [items[0], replace(items[1], message=items[0].message), *items[2:]],
        [items[0], items[0], *items[2:]],
    ):
        for count in range(2, len(entries) + 1):
            for name in ("BadTransition", "BadMessageSignature"):
                assert rule(log, count, name, entries) is None


def test_an_erasure_in_between_is_innocent() -> None:
    """Who kept the erased texts would see a second first key: the output leaf says that there was an erasure."""
    log = honest()
    say(log, revoke_key, ALICE, key(1).public_key, key(2))
    log.erase(ALICE)
    log.publish_map()
    say(log, enrol, ALICE, key(50))
    log.publish_map()
    assert rule(log, 5, "BadTransition") is None
    assert build.evidence_for_value(
        lies.map_vkeys(log), ALICE, lies.statement(log), log.sign_map(), lies.logged(log)
    ) is None
    # And the entries alone, under a leaf from before it, do not reach so far.
    at = len(log.output) - 3
    items = lies.logged(log)
    assert build.evidence_for_rule(
        lies.map_vkeys(log), log.sign_map(), log.map_reader(), at, log.output[at], "BadTransition", items,
        [hash_leaf(one.entry) for one in items],
    ) is None


def test_an_honest_map_convicts_nobody() -> None:
    for log in (honest(), grown()):
        for actor_id in (ALICE, "https://alpha.example/users/nobody"):
            assert build.evidence_for_value(
                lies.map_vkeys(log), actor_id, lies.statement(log, actor_id), log.sign_map(), lies.logged(log)
            ) is None


def test_nothing_that_happens_in_an_honest_log_convicts_it() -> None:
    """Moves, BurnDowns, tokens, auxiliary data: each leaves a value that the entries give, and breaks no rule."""
    log, new_name, root = honest(), "https://alpha.example/users/alicia", "https://alpha.example/users/root"
    say(log, enrol, root, key(20))
    say(log, fireproof, ALICE, key(2))
    say(log, undo_fireproof, ALICE, key(2))
    say(log, add_aux_data, ALICE, "age-v1", AGE, key(2))
    say(log, move_identity, ALICE, new_name, key(2))
    say(log, burn_down, BOB, root, key(20))
    log.accept(revoke_by_token(key(20).revocation_token()))
    log.publish_map().publish()
    items = lies.logged(log)
    for actor_id in (ALICE, BOB, new_name, root):
        claim = Claim("wrong-value", log.map_origin, lies.map_vkeys(log)[1], {
            "actor-id": actor_id, "bundle": lies.statement(log, actor_id), "entries": tuple(items),
        })
        assert "says what the entries give" in refused(claim, Known(lies.map_vkeys(log))).message
    for count in range(1, log.size + 1):
        assert rule(log, count) is None


def test_a_map_with_somebody_too_many_or_too_few() -> None:
    ghost = "https://alpha.example/users/ghost"
    log = honest()
    log.states[-1] = log.states[-1] | {ghost: replace(log.states[-1][ALICE], actor_id=ghost)}
    log.roles[1] = log.roles[1] | {ghost: 1}
    log.roles[2] = log.roles[2] | {ghost: 1}
    log.publish_map()
    few = honest()
    few.states[-1] = {name: row for name, row in few.states[-1].items() if name != ALICE}
    few.publish_map()
    for lying, actor_id, word in ((log, ghost, "nobody"), (log, ghost, "no entry"), (few, ALICE, "without")):
        data = build.evidence_for_value(
            lies.map_vkeys(lying), actor_id, lies.statement(lying, actor_id), lying.sign_map(), lies.logged(lying)
        )
        assert data is not None
        assert word == "nobody" or word in conviction(data, Known(lies.map_vkeys(lying)))["what"]


def test_leaves_of_the_output_log_in_order_convict_nobody() -> None:
    log = grown()
    log.publish_map(time=NOW + 5)
    for older in range(1, len(log.output)):
        for newer in range(older, len(log.output)):
            assert build.evidence_for_output_leaves(
                lies.map_vkeys(log), (older, log.output[older]), (newer, log.output[newer]), log.sign_map(),
                log.map_reader(),
            ) is None
    # The other way round each of them would contradict the one before.
    assert build.evidence_for_output_leaves(
        lies.map_vkeys(log), (2, log.output[2]), (1, log.output[1]), log.sign_map(), log.map_reader()
    ) is None


# What is read where the file says


def without_entries(kind: str) -> Claim:
    claim = parse_claim(example(kind))
    return replace(claim, members={**claim.members, "entries": ()})


def test_entries_may_be_read_from_a_copy_of_the_log(tmp_path) -> None:
    claim = without_entries("broken-rule")
    assert refused(claim, knowing("broken-rule")).name == "NeedsLog"
    served = Served(list(parse_claim(example("broken-rule"))["entries"]))
    for path, data in served.files.items():
        (tmp_path / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path[1:]).write_bytes(data)
    for source in (
        served.source(genuine=False), Source(PublicFiles(CopiedFiles(tmp_path), "https://copy.invalid"), False),
    ):
        judge_claim(claim, Known(KEYS, source=source))
    lying = Served(list(parse_claim(example("broken-rule"))["entries"]), actor="https://alpha.example/users/eve")
    assert refused(claim, Known(KEYS, source=lying.source())).name == "NotEvidence"


def test_a_copy_reads_nothing_outside_itself(tmp_path) -> None:
    (tmp_path / "copy").mkdir()
    (tmp_path / "secret").write_text("x")
    files = CopiedFiles(tmp_path / "copy")
    assert {files.get(f"https://copy.invalid/{path}").status for path in ("../secret", "%2e%2e/secret", "", "x")} == {404}


def test_records_are_judged_by_what_the_log_itself_shows_now() -> None:
    data, entries = example("wrong-record"), entries_of_examples()
    lying = Served(entries, **{"public-key": key(9).public_text})
    assert "which nobody signs" in conviction(data, Known(KEYS, source=lying.source()))["rests_on"]
    for source in (None, lying.source(genuine=False)):
        assert refused(data, Known(KEYS, source=source)).name == "NeedsLog"
    for innocent in (Served(entries), Served(entries, **{"public-key": None})):
        assert refused(data, Known(KEYS, source=innocent.source())).name == "NotEvidence"
    another = Served(entries, **{"public-key": key(9).public_text})  # a log with its name, and not with its key
    another.files["/checkpoint"] = f"{ORIGIN}\n3\n{encode_base64(bytes(32))}\n\n— x AAAAAAAA\n".encode()
    assert refused(data, Known(KEYS, source=another.source())).name == "NotEvidence"
    other_entry = Served(entries, **{"public-key": key(9).public_text})
    bundle = other_entry.files["/tile/entries/000.p/3"]
    other_entry.files["/tile/entries/000.p/3"] = bundle[:-1] + bytes([bundle[-1] ^ 1])
    assert refused(data, Known(KEYS, source=other_entry.source())).name == "NotEvidence"
    gone = Served(entries)
    gone.files.clear()
    refused(data, Known(KEYS, source=gone.source()))


def test_no_file_takes_another_kinds_name() -> None:
    """A claim of one kind, read as another, is malformed: no judge sees what it does not expect."""
    for kind in CLAIMS:
        document = json.loads(example(kind))
        for other in KINDS:
            if other != kind:
                with pytest.raises((EncodingError, Invalid)):
                    conviction(_text(document | {"kind": other}), knowing(other))


def test_a_key_convicts_no_log_but_the_one_it_is_named_after_or_bound_to() -> None:
    ours, evil = (signer_from_seed(name, ED25519, bytes([9]) * 32) for name in ("innocent.example", "evil.example"))
    heads = [sign_checkpoint(Checkpoint("innocent.example", 5, bytes([n]) * 32), [evil], 0) for n in (1, 2)]
    data = format_evidence(two_roots(evil.vkey, *heads, origin="innocent.example"))
    for known in (Known((ours.vkey, evil.vkey)), Known(bound=(("other.example", evil.vkey),)), Known()):
        assert refused(data, known).name == "WrongLog"
    verdict = conviction(data, Known(bound=(("innocent.example", evil.vkey),)))
    assert "evil.example" in format_conviction(verdict) and verdict["log_key_known"]
    text = f"innocent.example={evil.vkey}"
    assert _known([text, str(ours.vkey)]) == ([ours.vkey], (("innocent.example", evil.vkey),))


def test_a_stolen_key_that_was_given_up_dates_its_receipts_back_in_vain() -> None:
    one, other = lies.twin()
    changes = lies.key_changes(other, time=NOW - 2000, until=NOW - 1000)
    assert _unbound(of_receipt(other, lies.receipt(one, 3, created=NOW - 1500), changes=changes))
    claim = parse_claim(example("broken-promise"))
    line = parse_changes(claim["key-changes"])[0]
    for changed in (replace(line, number=1), replace(line, previous=bytes(31) + b"x")):
        spoilt = replace(claim, members={**claim.members, "key-changes": format_change(changed) + b"\n"})
        assert refused(spoilt, knowing("broken-promise")).name == "BadKeyChange"


def test_a_file_of_many_values_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "loads", lambda _: pytest.fail("it was parsed"))
    refused(b'{"format": "ktlog-claim/v1","a":[' + b"{}," * MAX_MARKS + b"0]}", Known())


def test_what_a_refusal_advises_moves_no_cursor() -> None:
    shown = format_refusal("x.json", Invalid("NeedsLog", "x", hint="https://a\x1b[2J\u202e\u200b.example"))
    assert "\\u001b[2J\\u202e\\u200b" in shown and shown.isascii()
