"""Lies told by the head alone: signatures, cosigners, and heads known from before."""

from __future__ import annotations

import pytest
from auditor_runs import Mutation, names, other_tree, run
from auditor_world import NOW, ORIGIN, World, honest_world, log_signers

from auditor.heads import KnownHead, open_given_head
from ktlog.client.verify import Log
from ktlog.errors import Unreachable
from ktlog.tlog.evidence import parse_evidence, verify_evidence


def _cut_checkpoint(world: World) -> None:
    world.serve["checkpoint"] = world.serve["checkpoint"][:-7]


def _flip_in_line(world: World, name: str) -> None:
    """Change the signature, not its form, of the last line by *name*."""
    data = world.serve["checkpoint"]
    world.serve["checkpoint"] = _other_letter(data, data.rindex(f"— {name} ".encode()) + len(f"— {name} ".encode()) + 40)


def _other_letter(data: bytes, at: int) -> bytes:
    """Another letter of base64, in the middle of a signature, at *at*."""
    return data[:at] + (b"B" if data[at : at + 1] == b"A" else b"A") + data[at + 1 :]


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
    data = world.serve["checkpoint"]
    world.serve["checkpoint"] = _other_letter(data, data.index(f"— {ORIGIN} ".encode()) + 60)
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
