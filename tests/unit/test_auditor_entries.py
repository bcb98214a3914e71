"""Lies told by entries and records: each is one mutation, seen under the name of the check it fails."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from auditor_runs import NONE, Mutation, long_world, names, run
from auditor_world import ALICE, BOB, CAROL, DAVE, World, checkpoint_message, honest_world, person, public

from auditor.audit import Selection, parse_selection
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import PHP, SPEC
from ktlog.pkd.entry import LogEntry, encode_entry, make_entry, parse_entry
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key, pkd_root, private_key_from_seed
from ktlog.pkd.messages import (
    AddKey,
    Fireproof,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.token import make_token, parse_token


def _record(world: World, index: int, **members: object) -> None:
    world.records[index].update(members)
    world.serve[world.records_path] = world.record_lines(0, world.size)


def _drop_member(world: World, index: int, name: str) -> None:
    del world.records[index][name]
    _record(world, index)


def _lines(world: World, change: Callable[[list[bytes]], list[bytes]]) -> None:
    lines = world.serve[world.records_path].splitlines(keepends=True)
    world.serve[world.records_path] = b"".join(change(lines))


RECORD_LIES: list[tuple[str, str, Mutation]] = [
    ("withheld", "RecordWithheld", lambda w: _record(w, 4, withheld=True, plain={"actor": None})),
    ("withheld in name only", "BadRecord", lambda w: _record(w, 4, withheld=True)),
    ("without plaintext", "BadRecord", lambda w: _record(w, 4, plain={"actor": None})),
    ("of another index", "BadRecord", lambda w: _record(w, 4, **{"leaf-index": 5})),
    ("with a boolean index", "BadRecord", lambda w: _record(w, 1, **{"leaf-index": True})),
    ("with a number as message", "BadRecord", lambda w: _record(w, 4, message=5)),
    ("with a list as plaintext", "BadRecord", lambda w: _record(w, 4, plain=[])),
    ("with a number as plaintext", "BadRecord", lambda w: _record(w, 4, plain={"actor": 5})),
    ("with a bad salt", "BadRecord", lambda w: _record(w, 4, salts={"actor": "AAAA"})),
    ("with a number as salt", "BadRecord", lambda w: _record(w, 4, salts={"actor": 1})),
    ("with a member more", "BadRecord", lambda w: _record(w, 4, extra=1)),
    ("with a member less", "BadRecord", lambda w: _drop_member(w, 4, "withheld")),
    ("that is no JSON", "BadRecord", lambda w: _lines(w, lambda lines: [*lines[:4], b"{\n", *lines[5:]])),
    ("with one key twice", "BadRecord",
     lambda w: _lines(w, lambda lines: [*lines[:4], lines[4].replace(b"{", b'{"withheld":false,', 1), *lines[5:]])),
    ("that is a list", "BadRecord", lambda w: _lines(w, lambda lines: [*lines[:4], b"[]\n", *lines[5:]])),
    ("nested deep", "BadRecord",
     lambda w: _lines(w, lambda lines: [*lines[:4], b"[" * 100_000 + b"\n", *lines[5:]])),
    ("about another message", "PreimageMismatch", lambda w: _record(w, 4, message=w.records[5]["message"])),
    ("with other text of one meaning", "PreimageMismatch",
     lambda w: _record(w, 4, message=w.records[4]["message"] + " ")),
    ("with an attribute more", "PlaintextMismatch", lambda w: _record(w, 4, plain={"actor": BOB, "operator": BOB})),
    ("with an attribute less", "PlaintextMismatch", lambda w: _record(w, 4, plain={})),
    ("with a plaintext that is no actor", "BadMessage", lambda w: _record(w, 4, plain={"actor": "bob"})),
]


@pytest.mark.parametrize(("lie", "name", "mutate"), RECORD_LIES, ids=[lie for lie, _, _ in RECORD_LIES])
def test_a_record_that_does_not_fit_its_entry(lie: str, name: str, mutate: Mutation) -> None:
    world = honest_world().clone()
    mutate(world)
    report = run(world, answers=NONE)
    found = [(finding.name, finding.leaf_index) for finding in report.findings]
    assert found[0] == (name, 1 if "boolean" in lie else 4)
    # Bob's Fireproof has no effect then, which nothing later in the log depends on; the AddKey of entry 1 has.
    assert {name for name, _ in found} <= {name, "BadTransition"}
    assert report.exit_code == 5


def test_a_missing_record_and_one_too_many() -> None:
    world = honest_world().clone()
    _lines(world, lambda lines: lines[:-1])
    report = run(world, answers=NONE)
    assert names(report) == {"BadRecords"}
    world = honest_world().clone()
    _lines(world, lambda lines: [*lines, lines[-1]])
    assert names(run(world)) == {"BadRecords"}


@pytest.mark.parametrize("body", [b"", b"{}", b"\n" * 1000, b"\xff" * 100])
def test_records_that_are_no_page(body: bytes) -> None:
    world = honest_world().clone()
    world.serve[world.records_path] = body
    report = run(world)
    assert names(report) == {"BadRecords"}
    assert report.exit_code == 5
    # The tree does not need the records.
    assert report.tiles == 1
    assert report.leaf_signatures == 10
    assert any("records could not be read" in sentence for sentence in report.not_checked)


def test_a_changed_plaintext_is_caught_by_its_commitment_alone() -> None:
    """Same length, valid in itself: without Argon2id only the later entries look wrong."""
    world = honest_world().clone()
    _record(world, 4, plain={"actor": "https://alpha.example/users/bxb"})
    report = run(world, commitments=Selection("all"), answers=NONE)
    assert ("PlaintextMismatch", 4) in [(f.name, f.leaf_index) for f in report.findings]
    world = honest_world().clone()
    swapped = encode_public_key(public("mallory"))
    _record(world, 9, plain={"actor": ALICE, "public-key": swapped})
    assert names(run(world, commitments=Selection("all"), answers=NONE)) == {"PlaintextMismatch"}
    blind = run(world, answers=NONE)
    assert blind.ok
    assert any("15 of 15 plaintext commitments" in sentence for sentence in blind.not_checked)


def test_a_sample_of_commitments_says_what_it_left_out() -> None:
    report = run(honest_world().clone(), commitments=parse_selection("sample:3"))
    assert report.ok
    assert 0 < report.commitments.checked < report.commitments.total == 15
    left = report.commitments.total - report.commitments.checked
    assert any(sentence.startswith(f"{left} of 15 plaintext commitments") for sentence in report.not_checked)


def _forged_leaf(world: World) -> None:
    """An entry signed by a key that is not the log's, though it claims the log's."""
    mallory = private_key_from_seed(b"\x66" * 32)
    wire = parse_wire(SPEC, canonical(world.build(Fireproof(ALICE, world.next_time()), "alice-2")))
    _, entry = parse_entry(make_entry(SPEC, wire.preimage, mallory, mallory.public_key().public_bytes_raw()))
    _, honest = parse_entry(world.entries[0])
    forged = encode_entry(SPEC, LogEntry(entry.message_hash, entry.signature, honest.key_hash))
    message = Fireproof(ALICE, world.time)
    world.directory.accept(world.size, wire, message, public("alice-2"), forged)
    world._keep(forged, wire.preimage, plain_attributes(wire, message))


def _strange_leaf_key(world: World) -> None:
    """A good signature, by a leaf key that the log does not own up to."""
    mine, stranger = (world.leaf_key, world.leaf_public), World(leaf_seed=b"\x66" * 32)
    world.leaf_key, world.leaf_public = stranger.leaf_key, stranger.leaf_public
    world.say(Fireproof(ALICE, world.next_time()), "alice-2")
    world.leaf_key, world.leaf_public = mine


def _not_canonical(world: World) -> None:
    wire = parse_wire(SPEC, canonical(world.build(Fireproof(ALICE, world.next_time()), "alice-2")))
    world.append(wire.preimage.replace(b":", b": ", 1), {"actor": ALICE})


def _replayed(world: World) -> None:
    world.append(world.records[9]["message"].encode(), world.records[9]["plain"])


def _token_twice(world: World) -> None:
    world.force(RevokeKeyThirdParty(parse_token(make_token(person("carol"), public("carol")))))


def _bad_token(world: World) -> None:
    good = make_token(person("alice-2"), public("alice-2"))
    text = good[:-8] + ("A" if good[-8] != "A" else "B") + good[-7:]
    preimage = canonical({"action": "RevokeKeyThirdParty", "revocation-token": text})
    world.append(preimage, {})


ENTRY_LIES: list[tuple[str, str, Mutation]] = [
    ("of no known length", "BadEntry", lambda w: w.append(b"{}", {}, entry=b"x" * 100)),
    ("that is empty", "BadEntry", lambda w: w.append(b"{}", {}, entry=b"\x00")),
    ("in another dialect", "BadEntry",
     lambda w: w.append(b"{}", {}, entry=make_entry(PHP, b"{}", w.leaf_key, w.leaf_public))),
    ("with a forged leaf signature", "BadLeafSignature", _forged_leaf),
    ("of an unpublished leaf key", "BadLeafSignature", _strange_leaf_key),
    ("of a message not canonical", "NotCanonical", _not_canonical),
    ("of no message", "BadMessage", lambda w: w.append(b'{"action":"Dance"}', {})),
    ("of no JSON", "BadMessage", lambda w: w.append(b"dance", {})),
    ("signed by nobody enrolled", "BadMessageSignature",
     lambda w: w.force(AddKey(ALICE, public("mallory"), w.next_time()), "mallory-2")),
    ("of a key that is revoked", "BadMessageSignature",
     lambda w: w.force(Fireproof(ALICE, w.next_time()), "alice-1")),
    ("with a token of nobody", "BadMessageSignature", _bad_token),
    ("logged before", "DuplicateMessage", _replayed),
    ("with a token logged before", "DuplicateMessage", _token_twice),
    ("on the empty tree's root", "StaleRoot",
     lambda w: w.force(UndoFireproof(DAVE, w.next_time()), "bob", recent_root=ZERO_ROOT)),
    ("on a root that never was", "StaleRoot",
     lambda w: w.force(UndoFireproof(DAVE, w.next_time()), "bob", recent_root=pkd_root(1, bytes([9]) * 32))),
    ("revoking the last key", "BadTransition",
     lambda w: w.force(RevokeKey(DAVE, public("bob"), w.next_time()), "bob")),
    ("fireproof twice", "BadTransition", lambda w: w.force(Fireproof(DAVE, w.next_time()), "bob")),
    ("by an actor without keys", "BadTransition", lambda w: w.force(Fireproof(CAROL, w.next_time()), "carol")),
    ("returning a revoked key", "BadTransition",
     lambda w: w.force(AddKey(ALICE, public("alice-1"), w.next_time()), "alice-2")),
    ("self-signed beside a key", "BadTransition",
     lambda w: w.force(AddKey(ALICE, public("mallory"), w.next_time()), "mallory")),
]


@pytest.mark.parametrize(("lie", "name", "mutate"), ENTRY_LIES, ids=[lie for lie, _, _ in ENTRY_LIES])
def test_an_entry_that_breaks_a_rule_is_named_and_has_no_effect(lie: str, name: str, mutate: Mutation) -> None:
    world = honest_world().clone()
    mutate(world)
    world.say(UndoFireproof(DAVE, world.next_time()), "bob")
    report = run(world.publish())
    # The last entry and the API's answers stay right: what broke a rule changed nothing.
    assert [(finding.name, finding.leaf_index) for finding in report.findings] == [(name, 10)], lie
    assert report.exit_code == 5
    assert report.entries_audited == 12


def test_a_stale_root_is_found_where_the_window_ends() -> None:
    world = long_world().clone()
    world.force(checkpoint_message(world), "beta", recent_root=pkd_root(300, world.root(300)))
    world.force(checkpoint_message(world), "beta", recent_root=pkd_root(300, world.root(300)))
    report = run(world.publish())
    # 600 entries later the window is 300; one entry more and the same root is still inside 601 // 2.
    assert [(f.name, f.leaf_index) for f in report.findings] == [("StaleRoot", 601)]


def test_findings_beyond_the_first_are_counted_not_kept() -> None:
    world = World()
    for _ in range(120):
        world.append(b"{}", {}, entry=b"x")
    report = run(world.publish())
    assert len(report.findings) == 120
    assert len(list(report.findings)) == 50
    assert report.as_dict()["findings_omitted"] == {"BadEntry": 70}


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{}", b'{"leaf-keys":"x"}', b'{"leaf-keys":[1]}', b'{"leaf-keys":["mldsa44:AAAA"]}', b"\xff",
    b"[" * 9999,
])
def test_leaf_keys_that_do_not_parse(body: bytes) -> None:
    world = honest_world().clone()
    world.serve["leaf-keys"] = body
    report = run(world)
    assert names(report) == {"BadLeafKeys"}
    assert report.leaf_signatures == 0
    assert any(sentence.startswith("Leaf signatures") for sentence in report.not_checked)


def test_no_leaf_keys_at_all_convict_every_entry() -> None:
    world = honest_world().clone()
    world.serve["leaf-keys"] = b'{"leaf-keys":[]}'
    report = run(world)
    assert names(report) == {"BadLeafSignature"}
    assert len(report.findings) == 10
    assert report.leaf_signatures == 0
