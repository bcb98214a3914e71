"""A zoo of lying logs: each lie is one mutation, and each is seen under the name of the check it fails."""

from __future__ import annotations

import json
import random
from collections.abc import Callable

import pytest
from auditor_world import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    NOW,
    ORIGIN,
    Answer,
    World,
    checkpoint_message,
    honest_world,
    log_signers,
    log_under_audit,
    person,
    policy,
    public,
)

from auditor.audit import AuditRequest, Selection, audit, parse_selection
from auditor.fetch import LogReader
from auditor.heads import KnownHead, open_given_head
from auditor.report import Report
from ktlog.client.verify import Log
from ktlog.errors import Unreachable, UsageError
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
from ktlog.pkd.token import RevocationToken, make_token, parse_token
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.tiles import format_bundle

Mutation = Callable[[World], object]
NONE = Selection("none", 0)


def run(world: World, *known: bytes, **options) -> Report:
    """Audit *world*, knowing the signed heads *known*; evidence lands in ``report.saved``."""
    saved: list[bytes] = []

    def save(evidence: bytes, kind: str) -> str:
        saved.append(evidence)
        return f"evidence/{kind}-{len(saved)}.json"

    request = AuditRequest(
        **{
            "log": log_under_audit(), "policy": policy(), "commitments": NONE,
            "known": tuple(open_given_head(note, log_under_audit(), f"head {i}") for i, note in enumerate(known)),
            **options,
        }
    )
    reader = LogReader(world, f"https://{ORIGIN}", pause=lambda seconds: None)
    report = audit(request, reader, NOW, save, chance=random.Random(1))
    report.saved = saved
    return report


def names(report: Report) -> set[str]:
    return {finding.name for finding in report.findings}


def flip(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# Honest


def test_an_honest_log_raises_no_alarm_and_every_count_is_right() -> None:
    report = run(honest_world().clone(), commitments=Selection("all"))
    assert names(report) == set()
    assert report.ok
    assert report.exit_code == 0
    assert (report.tree_size, report.root) == (10, honest_world().root())
    assert (report.entries_audited, report.leaf_signatures, report.message_signatures) == (10, 10, 9)
    assert (report.commitments.checked, report.commitments.total) == (15, 15)
    assert (report.actors, report.answers.checked, report.answers.total, report.tiles) == (4, 4, 4, 1)
    assert report.cosigners == ("w1.witness.example", "w2.witness.example", "w3.witness.example")
    assert report.signed_head == honest_world().serve["checkpoint"]


def test_an_empty_log_is_honest() -> None:
    report = run(World().publish())
    assert report.ok
    assert (report.tree_size, report.entries_audited, report.tiles) == (0, 0, 0)


@pytest.fixture(scope="module")
def long_world() -> World:
    """600 entries on three pages: tiles of two levels, full and partial."""
    world = World()
    for _ in range(600):
        world.say(checkpoint_message(world), "beta")
    return world.publish()


def test_a_log_of_several_pages_is_read_whole(long_world: World) -> None:
    world = long_world.clone()
    done: list[tuple[str, int, int]] = []
    request = AuditRequest(log_under_audit(), policy())
    reader = LogReader(world, f"https://{ORIGIN}")
    report = audit(request, reader, NOW, lambda *_: "", progress=lambda *step: done.append(step))
    assert report.ok
    assert (report.entries_audited, report.leaf_signatures, report.message_signatures) == (600, 600, 600)
    assert report.tiles == 4
    assert {path for path in world.requests if path.startswith("tile/")} == {
        "tile/entries/000", "tile/entries/001", "tile/entries/002.p/88",
        "tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2",
    }
    assert done == sorted(done)
    assert done[-1] == ("entries", 600, 600)


@pytest.mark.parametrize("path", ["tile/0/000", "tile/0/001", "tile/0/002.p/88", "tile/1/000.p/2"])
def test_every_tile_of_every_level_is_compared(long_world: World, path: str) -> None:
    world = long_world.clone()
    world.serve[path] = flip(world.serve[path], 40)
    report = run(world)
    assert names(report) == {"TileMismatch"}
    assert path in next(iter(report.findings)).what
    assert report.tiles == 3


def test_partial_tiles_dropped_after_growth_are_taken_from_the_full_one(long_world: World) -> None:
    """C2SP tlog-tiles allows a log to delete a partial tile once the full one exists."""
    world = long_world.clone()
    bigger = long_world.clone()
    while bigger.size < 768:
        bigger.say(checkpoint_message(bigger), "beta")
    bigger.publish()
    for full in ("tile/0/002", "tile/entries/002", "records/002"):
        del world.serve[f"{full}.p/88"]
        world.serve[full] = bigger.serve[full]
    assert run(world).ok


# The head


def _cut_checkpoint(world: World) -> None:
    world.serve["checkpoint"] = world.serve["checkpoint"][:-7]


def _flip_in_line(world: World, name: str) -> None:
    """Change the signature, not its form, of the last line by *name*."""
    head, _, line = world.serve["checkpoint"].rpartition(f"— {name} ".encode())
    swapped = b"A" if line[200:201] != b"A" else b"B"
    world.serve["checkpoint"] = head + f"— {name} ".encode() + line[:40] + swapped + line[41:]


HEAD_LIES: list[tuple[str, str, Mutation]] = [
    ("garbage", "MalformedCheckpoint", lambda w: w.serve.update(checkpoint=b"\xff\xfe garbage\n")),
    ("empty", "MalformedCheckpoint", lambda w: w.serve.update(checkpoint=b"")),
    ("cut", "MalformedCheckpoint", _cut_checkpoint),
    ("sized +10", "MalformedCheckpoint",
     lambda w: w.serve.update(checkpoint=w.serve["checkpoint"].replace(b"\n10\n", b"\n+10\n", 1))),
    ("of another origin", "WrongLog", lambda w: w.publish(origin="keys.evil.example")),
    ("of an unknown key", "BadLogSignature", lambda w: w.publish(signers=log_signers(90))),
    ("of the Ed25519 key only", "BadLogSignature", lambda w: w.publish(signers=log_signers()[:1])),
    ("with a bad log line", "BadLogSignature", lambda w: _flip_in_line(w, ORIGIN)),
    ("with another text", "BadLogSignature",
     lambda w: w.serve.update(checkpoint=w.serve["checkpoint"].replace(b"\n10\n", b"\n11\n", 1))),
    ("empty tree of another root", "MalformedCheckpoint", lambda w: w.publish(size=0, root=bytes(32))),
]


@pytest.mark.parametrize(("lie", "name", "mutate"), HEAD_LIES, ids=[lie for lie, _, _ in HEAD_LIES])
def test_a_head_that_is_not_the_logs_ends_the_audit(lie: str, name: str, mutate: Mutation) -> None:
    world = honest_world().clone()
    mutate(world)
    report = run(world)
    assert names(report) == {name}, lie
    assert report.exit_code == 5
    assert report.entries_audited == 0
    assert world.requests == ["checkpoint"]


def test_every_line_of_every_named_key_of_the_log_must_verify() -> None:
    """With both keys named, one bad line spoils the note."""
    world = honest_world().clone()
    first = world.serve["checkpoint"].index("— ".encode()) + len(f"— {ORIGIN} ") + 60
    world.serve["checkpoint"] = world.serve["checkpoint"][:first] + (
        b"A" if world.serve["checkpoint"][first : first + 1] != b"A" else b"B"
    ) + world.serve["checkpoint"][first + 1 :]
    assert run(world).ok
    both = Log(ORIGIN, tuple(signer.vkey for signer in log_signers()), f"https://{ORIGIN}")
    assert names(run(world, log=both, policy=None)) == {"BadLogSignature"}


def test_a_bad_cosignature_is_a_finding_of_its_own() -> None:
    world = honest_world().clone()
    _flip_in_line(world, "w3.witness.example")
    report = run(world)
    assert names(report) == {"BadCosignature"}
    assert report.exit_code == 5


def test_too_few_cosigners_are_an_unmet_policy() -> None:
    report = run(honest_world().clone().publish(witnesses=1))
    assert names(report) == {"TooFewWitnesses"}
    assert report.exit_code == 6
    # The rest is audited all the same.
    assert report.entries_audited == 10
    assert "1 of the 2" in next(iter(report.findings)).what


@pytest.mark.parametrize(("seconds", "name", "code"), [(-3601, "OldCosignatures", 9), (301, "TooFewWitnesses", 6)])
def test_cosignatures_too_old_or_from_the_future_do_not_count(seconds: int, name: str, code: int) -> None:
    world = honest_world().clone()
    world.cosigned_at = NOW + seconds
    report = run(world.publish())
    assert names(report) == {name}
    assert report.exit_code == code


def test_without_a_policy_cosignatures_are_reported_as_not_checked() -> None:
    report = run(honest_world().clone().publish(witnesses=0), policy=None)
    assert report.ok
    assert any(sentence.startswith("Cosignatures:") for sentence in report.not_checked)


# Earlier heads


def other_tree(size: int) -> bytes:
    """A head of *size* entries that the log signed with its real keys, of another tree."""
    return honest_world().checkpoint(size, bytes([size]) * 32, witnesses=0)


@pytest.mark.parametrize("size", range(1, 11))
def test_two_histories_convict_at_every_size(size: int) -> None:
    """One mutation: an older head has another root. Sizes that are powers of two need another proof."""
    report = run(honest_world().clone(), other_tree(size))
    name = "TwoRoots" if size == 10 else "Inconsistent"
    assert names(report) == {name}
    assert report.exit_code == 7
    assert len(report.saved) == len(report.evidence) == 1
    evidence = parse_evidence(report.saved[0])
    verify_evidence(evidence, log_signers()[1].vkey)
    assert evidence.kind == ("two-roots" if size == 10 else "inconsistent")


@pytest.mark.parametrize("size", range(11))
def test_true_earlier_heads_raise_no_alarm(size: int) -> None:
    report = run(honest_world().clone(), honest_world().checkpoint(size))
    assert report.ok
    assert report.saved == []


def test_a_fork_convicts_even_if_no_witness_signed_and_no_entry_is_served() -> None:
    world = World()
    world.serve["checkpoint"] = other_tree(10)
    report = run(world, honest_world().serve["checkpoint"])
    assert names(report) == {"TwoRoots", "TooFewWitnesses"}
    assert report.exit_code == 7
    assert len(report.saved) == 1
    assert world.requests == ["checkpoint"]


def test_two_known_heads_convict_even_if_the_log_is_down() -> None:
    world = World()
    world.serve["checkpoint"] = Unreachable("Refused", "nobody listens")
    report = run(world, honest_world().serve["checkpoint"], other_tree(10))
    assert names(report) == {"TwoRoots", "Refused"}
    assert report.exit_code == 7
    assert len(report.saved) == 1


def test_a_smaller_tree_is_a_finding_and_never_evidence() -> None:
    world = honest_world().clone().publish(size=7)
    report = run(world, honest_world().serve["checkpoint"])
    assert names(report) == {"RolledBack"}
    assert report.exit_code == 9
    assert report.saved == report.evidence == []
    assert world.requests == ["checkpoint"]


def test_two_roots_under_two_keys_convince_nobody_else() -> None:
    """Each head is signed by another key of the log: a contradiction, but no evidence under one key."""
    ed25519, mldsa44 = log_signers()
    both = Log(ORIGIN, (ed25519.vkey, mldsa44.vkey), f"https://{ORIGIN}")
    world = honest_world().clone().publish(signers=(mldsa44,))
    note = honest_world().checkpoint(10, bytes(32), signers=(ed25519,), witnesses=0)
    known = KnownHead(open_given_head(note, both, "a friend").head, "a friend")
    report = run(world, log=both, known=(known,))
    assert names(report) == {"TwoRoots"}
    assert report.exit_code == 5
    assert report.saved == []


def test_a_tree_that_is_not_the_signed_one_is_not_compared_with_earlier_heads() -> None:
    """The entries served are not those of the head, so a difference to an old head shows nothing."""
    world = honest_world().clone()
    world.serve["checkpoint"] = world.checkpoint(10, bytes(32))
    report = run(world, other_tree(6))
    assert "TreeMismatch" in names(report)
    assert report.exit_code == 5
    assert report.saved == []
    assert any("Consistency with earlier heads" in sentence for sentence in report.not_checked)


# Tree


def _other_entry(world: World) -> None:
    """The last entry signed again: valid in itself, another leaf."""
    again = make_entry(SPEC, world.records[-1]["message"].encode(), world.leaf_key, world.leaf_public)
    world.serve[world.bundle_path] = format_bundle([*world.entries[:-1], again])


def test_entries_that_are_not_the_signed_ones() -> None:
    world = honest_world().clone()
    _other_entry(world)
    report = run(world, answers=NONE)
    assert names(report) == {"TreeMismatch", "TileMismatch"}
    assert report.exit_code == 5


BUNDLE_LIES: list[tuple[str, Mutation]] = [
    ("garbage", lambda w: w.serve.update({w.bundle_path: b"\x00\x05abc"})),
    ("empty", lambda w: w.serve.update({w.bundle_path: b""})),
    ("truncated", lambda w: w.serve.update({w.bundle_path: w.serve[w.bundle_path][:-1]})),
    ("one entry less", lambda w: w.serve.update({w.bundle_path: format_bundle(w.entries[:-1])})),
    ("one entry more", lambda w: w.serve.update({w.bundle_path: format_bundle([*w.entries, w.entries[0]])})),
]


@pytest.mark.parametrize(("lie", "mutate"), BUNDLE_LIES, ids=[lie for lie, _ in BUNDLE_LIES])
def test_a_bundle_that_is_not_one(lie: str, mutate: Mutation) -> None:
    world = honest_world().clone()
    mutate(world)
    report = run(world)
    assert names(report) == {"BadEntryBundle"}, lie
    assert report.exit_code == 5
    assert report.entries_audited == 0
    assert any("the entries could not be read" in sentence for sentence in report.not_checked)


def test_a_tile_of_the_wrong_length() -> None:
    world = honest_world().clone()
    world.serve["tile/0/000.p/10"] += bytes(32)
    assert names(run(world)) == {"TileMismatch"}


def test_an_audit_stops_where_the_entries_stop(long_world: World) -> None:
    world = long_world.clone()
    world.serve["tile/entries/001"] = b""
    report = run(world)
    assert names(report) == {"BadEntryBundle"}
    assert report.entries_audited == 256
    assert next(iter(report.findings)).leaf_index == 256


def test_a_checkpoint_of_absurd_size_costs_nothing() -> None:
    world = honest_world().clone()
    world.serve["checkpoint"] = world.checkpoint(2**62, bytes(32))
    world.serve["tile/entries/000"] = b"garbage"
    report = run(world, commitments=Selection("sample:5", 5))
    assert names(report) == {"BadEntryBundle"}
    assert len(world.requests) < 20


# Entries and records


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
    ("withheld", "RecordWithheld", lambda w: _record(w, 4, withheld=True)),
    ("without plaintext", "RecordWithheld", lambda w: _record(w, 4, plain={"actor": None})),
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
    assert [(f.name, f.leaf_index) for f in report.findings] == [("BadRecord", 9)]
    world = honest_world().clone()
    _lines(world, lambda lines: [*lines, lines[-1]])
    assert names(run(world)) == {"BadRecords"}


@pytest.mark.parametrize("body", [b"", b"{}", b"\n" * 1000, b"\xff" * 100])
def test_records_that_are_no_page(body: bytes) -> None:
    world = honest_world().clone()
    world.serve[world.records_path] = body
    report = run(world)
    assert names(report) <= {"BadRecords"}
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


def test_a_stale_root_is_found_where_the_window_ends(long_world: World) -> None:
    world = long_world.clone()
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


# Leaf keys


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


# Answers


def about(actor_id: str, change: Mutation) -> Callable[[dict], None]:
    def edit(answer: dict) -> None:
        if answer["actor-id"] == actor_id:
            change(answer)

    return edit


MALLORY = encode_public_key(public("mallory"))

ANSWER_LIES: list[tuple[str, str, str, Callable[[dict], object]]] = [
    ("swapped key", "AnswerContradictsLog", "swapped", lambda a: a["public-keys"][0].update({"public-key": MALLORY})),
    ("omitted key", "AnswerContradictsLog", "omits the key", lambda a: a["public-keys"].pop()),
    ("no key at all", "AnswerContradictsLog", "omits the key", lambda a: a["public-keys"].clear()),
    ("extra key", "AnswerContradictsLog", "do not give them",
     lambda a: a["public-keys"].append({**a["public-keys"][0], "public-key": MALLORY, "leaf-index": 5})),
    ("a key twice", "AnswerContradictsLog", "do not give them",
     lambda a: a["public-keys"].append(a["public-keys"][0])),
    ("a revoked key", "AnswerContradictsLog", "do not give them",
     lambda a: a["public-keys"].append(
         {**a["public-keys"][0], "public-key": encode_public_key(public("alice-1")), "leaf-index": 0})),
    ("other key-id", "AnswerContradictsLog", "key-id", lambda a: a["public-keys"][0].update({"key-id": "A" * 43})),
    ("other created", "AnswerContradictsLog", "created", lambda a: a["public-keys"][0].update({"created": "5"})),
    ("history cut", "AnswerContradictsLog", "omits this message", lambda a: a["history"].pop()),
    ("history swapped", "AnswerContradictsLog", "did not touch", lambda a: a["history"][0].update({"leaf-index": 1})),
    ("other role", "AnswerContradictsLog", "role", lambda a: a["history"][0].update({"role": 2})),
    ("other message", "AnswerContradictsLog", "another message",
     lambda a: a["history"][0].update({"encrypted-message": a["history"][1]["encrypted-message"]})),
    ("other actor", "AnswerContradictsLog", "answered about", lambda a: a.update({"actor-id": BOB})),
    ("bad entry", "BadAnswerProof", "inclusion proof",
     lambda a: a["history"][0].update({"merkle-leaf": a["history"][1]["merkle-leaf"]})),
    ("no proof", "BadAnswerProof", "there is none", lambda a: a["history"][0].update({"inclusion-proof": None})),
    ("short proof", "BadAnswerProof", "inclusion proof", lambda a: a["history"][0]["inclusion-proof"].pop()),
    ("bad key proof", "BadAnswerProof", "of a key",
     lambda a: a["public-keys"][0]["inclusion-proof"].__setitem__(0, encode_base64url(bytes(32)))),
    ("key proof of numbers", "BadAnswerProof", "list of strings",
     lambda a: a["public-keys"][0].update({"inclusion-proof": [1]})),
    ("key proof of another tree", "BadAnswerProof", "another tree",
     lambda a: a["public-keys"][0].update({"tree-size": 9})),
    ("other root", "BadAnswerProof", "merkle-root", lambda a: a.update({"merkle-root": ZERO_ROOT})),
    ("other size", "MalformedAnswer", "tree size", lambda a: a.update({"tree-size": 9})),
    ("keys not a list", "MalformedAnswer", "public-keys", lambda a: a.update({"public-keys": {}})),
    ("no history", "MalformedAnswer", "history", lambda a: a.pop("history")),
    ("created a number", "MalformedAnswer", "created", lambda a: a["public-keys"][0].update({"created": 5})),
]


@pytest.mark.parametrize(
    ("lie", "name", "word", "change"), ANSWER_LIES, ids=[lie for lie, _, _, _ in ANSWER_LIES]
)
def test_an_answer_that_is_not_what_the_entries_say(
    lie: str, name: str, word: str, change: Callable[[dict], object]
) -> None:
    world = honest_world().clone()
    world.edit_answer = about(ALICE, change)
    report = run(world)
    assert names(report) == {name}, lie
    assert any(word in finding.what for finding in report.findings)
    assert report.exit_code == 5
    assert report.saved == []


def test_denying_an_actor_contradicts_the_log() -> None:
    world = honest_world().clone()
    world.serve["api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys"] = Answer(404, b"{}")
    assert names(run(world)) == {"AnswerContradictsLog"}


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"\xff", b"{" * 5000, b'{"!pkd-context":1}'])
def test_an_answer_that_does_not_parse(body: bytes) -> None:
    world = honest_world().clone()
    world.serve["api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys"] = body
    assert names(run(world)) == {"MalformedAnswer"}


def test_a_sample_of_answers_says_what_it_left_out() -> None:
    world = honest_world().clone()
    report = run(world, answers=parse_selection("sample:1"))
    assert (report.answers.checked, report.answers.total) == (1, 4)
    assert any("about 3 of 4 actors: --answers was sample:1" in sentence for sentence in report.not_checked)
    world.requests.clear()
    report = run(world, answers=NONE)
    assert report.answers.checked == 0
    assert not any(path.startswith("api/") for path in world.requests)


# A log that does not answer, or too much


SILENT: list[tuple[str, str]] = [
    ("checkpoint", "there is no head"), ("leaf-keys", "Leaf signatures"), ("tile/0/000.p/10", "Tiles:"),
    ("tile/entries/000.p/10", "the entries could not be read"), ("records/000.p/10", "records could not be read"),
    ("api/actor/https%3A%2F%2Falpha.example%2Fusers%2Falice/keys", "the API stopped answering"),
]


@pytest.mark.parametrize(("path", "sentence"), SILENT, ids=[path[:20] for path, _ in SILENT])
def test_a_resource_that_times_out_is_unreachable_not_a_lie(path: str, sentence: str) -> None:
    world = honest_world().clone()
    world.serve[path] = Unreachable("Timeout", "30 seconds without an answer")
    report = run(world)
    assert names(report) == {"Timeout"}
    assert report.exit_code == 3
    assert world.requests.count(path) == 3
    assert any(sentence in text for text in report.not_checked)


MISSING = {
    "leaf-keys": "MissingLeafKeys", "tile/0/000.p/10": "MissingTile", "tile/entries/000.p/10": "MissingEntries",
    "records/000.p/10": "MissingRecords",
}


@pytest.mark.parametrize("path", MISSING)
def test_a_resource_that_the_head_commits_to_and_that_is_denied_is_a_finding(path: str) -> None:
    world = honest_world().clone()
    world.serve[path] = Answer(404, b"")
    report = run(world)
    assert names(report) == {MISSING[path]}
    assert report.exit_code == 5


def test_a_log_that_published_nothing_has_claimed_nothing() -> None:
    report = run(World())
    assert names(report) == {"NoCheckpoint"}
    assert report.exit_code == 3


@pytest.mark.parametrize("path", [path for path, _ in SILENT])
def test_an_answer_too_large_is_a_finding(path: str) -> None:
    world = honest_world().clone()
    world.serve[path] = Unreachable("TooLarge", "longer than it may be")
    report = run(world)
    assert names(report) == {"TooLarge"}
    assert report.exit_code == 5
    assert world.requests.count(path) == 1


def test_the_gravest_finding_decides() -> None:
    """Fork over invalid over policy over stale over unreachable."""
    world = honest_world().clone()
    world.serve["tile/0/000.p/10"] = Unreachable("Timeout", "")
    assert run(world).exit_code == 3
    world.cosigned_at = NOW - 9999
    world.serve["checkpoint"] = world.checkpoint()
    assert run(world).exit_code == 9
    world.serve["checkpoint"] = world.checkpoint(witnesses=0)
    assert run(world).exit_code == 6
    world.serve["leaf-keys"] = b"{}"
    assert run(world).exit_code == 5
    report = run(world, other_tree(6))
    assert names(report) == {"Timeout", "TooFewWitnesses", "BadLeafKeys", "Inconsistent"}
    assert report.exit_code == 7


def test_garbage_everywhere_never_raises() -> None:
    """Whatever is served, the audit ends with a report."""
    chance = random.Random(7)
    honest = honest_world()
    for _ in range(150):
        world = honest.clone()
        for path in chance.sample(sorted(honest.serve), chance.randint(1, 3)):
            body = bytearray(honest.serve[path])
            match chance.randrange(4):
                case 0:
                    body = bytearray(chance.randbytes(chance.randrange(300)))
                case 1:
                    del body[chance.randrange(len(body)) :]
                case 2:
                    body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
                case 3:
                    at = chance.randrange(len(body))
                    body[at:at] = body[at // 2 : at]
            world.serve[path] = bytes(body)
        report = run(world)
        json.dumps(report.as_dict())
        assert report.ok == (report.exit_code == 0)


@pytest.mark.parametrize(
    "text", ["", "sample", "sample:", "sample:-1", "sample:+5", "sample:1_0", "some", "ALL", "none:1"]
)
def test_selections_are_read_strictly(text: str) -> None:
    with pytest.raises(UsageError):
        parse_selection(text)


def test_selections() -> None:
    assert parse_selection("all").is_all
    assert parse_selection("none") == Selection("none", 0)
    assert parse_selection("sample:12").count == 12


def test_the_fixture_token_is_real() -> None:
    """If this broke, the tests about bad tokens would prove nothing."""
    assert isinstance(parse_token(make_token(person("carol"), public("carol"))), RevocationToken)
