"""The audit of a map's log: an honest one under everything that happens to it, and each lie under its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from auditor.mapposition import parse_map_position
from ktlog.errors import EncodingError
from ktlog.keymap.evidence import parse_map_evidence, verify_map_evidence
from ktlog.keymap.output import format_leaf, parse_leaf
from ktlog.keymap.updates import KEPT_SECONDS, format_update, parse_update, update_path
from ktlog.operator.keys import load_map_signers
from ktlog.pkd.messages import AddKey, BurnDown, Fireproof, MoveIdentity, RevokeKey
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import sign_checkpoint
from ktlog.tlog.tiles import format_bundle
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.map_audit import Auditor, names
from tests.map_world import MAP, MapPress
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2  # noqa: F401


@pytest.fixture
def press(tmp_path):
    """One that goes on."""
    made = MapPress(tmp_path / "log")
    story(made)
    yield made
    made.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory, quick_argon2):  # noqa: F811
    """One that nobody changes; what is served of it, an auditor's ``lies`` do."""
    made = MapPress(tmp_path_factory.mktemp("told") / "log")
    story(made)
    yield made
    made.close()


@pytest.fixture
def auditor(told, tmp_path):
    return Auditor(told, tmp_path)


@pytest.fixture
def follower(press, tmp_path):
    return Auditor(press, tmp_path)


def story(press: MapPress) -> None:
    """Five leaves: nothing, enrolments, a rotation and Fireproof, a heartbeat, a move and a burn-down."""
    press.cycle()
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle()
    press.desk.send(AddKey(ALICE, public("c"), NOW))
    press.desk.send(RevokeKey(ALICE, public("a"), NOW), "c")
    press.desk.send(Fireproof(ALICE, NOW), "c")
    press.cycle()
    press.cycle(press.settings.heartbeat_seconds)
    press.desk.send(MoveIdentity(ALICE, CAROL, NOW), "c")
    press.desk.send(AddKey(ALICE, public("t"), NOW), "t")
    press.desk.send(BurnDown(ALICE, BOB, NOW), "b")
    press.cycle()


def clean(auditor: Auditor, **finish: object):
    report = auditor.audit(**finish)
    assert [finding.what for finding in report.findings] == []
    return auditor.run.summary


def test_an_honest_map_is_followed_and_derived(told, auditor):
    summary = clean(auditor, ordered=True, seen=(told.desk.size, NOW))
    assert (summary.leaves, summary.followed, summary.derived, summary.unchecked) == (5, 5, 5, 0)
    auditor.semantic, auditor.saved = False, b""
    summary = clean(auditor, ordered=True)
    assert (summary.followed, summary.derived, summary.unchecked) == (5, 0, 0)


def test_it_goes_on_where_it_was_with_what_is_not_mapped_yet(press, follower):
    """Entries that were audited before the leaf that covers them came; a saved position brings them back."""
    press.desk.send(AddKey(BOB, public("q"), NOW), "b")
    clean(follower)
    assert parse_map_position(follower.saved).size == 6 and len(parse_map_position(follower.saved).unsettled) == 32
    assert clean(follower).leaves == 0
    press.desk.send(AddKey(CAROL, public("r"), NOW), "c")
    press.cycle()
    assert clean(follower, ordered=True).derived == 1
    position = parse_map_position(follower.saved)
    assert (position.size, position.unsettled) == (7, b"") and parse_map_position(position.encode()) == position
    for wrong in (b"", follower.saved[:-1], follower.saved + b"\0"):
        with pytest.raises(EncodingError, match="BadPosition"):
            parse_map_position(wrong)


def test_erasures_and_who_comes_late(press, follower):
    clean(follower)
    press.clock.now += 10
    press.erase(BOB)
    press.cycle()
    press.desk.send(AddKey(BOB, public("q"), NOW), "q")
    press.cycle()
    late = Auditor(press, follower.evidence_to)
    summary = clean(late, ordered=True)
    assert (summary.leaves, summary.followed, summary.derived) == (7, 7, 7)
    # Without updates, what was before the erasure cannot be derived; what came after can.
    late = Auditor(press, follower.evidence_to, lies={update_path(k): None for k in range(1, 8)})
    late.now = press.clock() + KEPT_SECONDS
    report = late.audit()
    assert names(report) == ["OldCosignatures", "StaleMap"]
    assert (late.run.summary.derived, late.run.summary.unchecked) == (2, 5)
    assert any("5 of 7 leaves" in text for text in report.not_checked)


def test_without_updates_every_leaf_is_derived_from_all(told, auditor):
    auditor.lies = {update_path(k): None for k in range(1, 6)}
    assert names(auditor.audit()) == ["MissingMapUpdate"]
    auditor.now = told.clock() + KEPT_SECONDS
    assert names(auditor.audit()) == ["OldCosignatures", "StaleMap"]
    assert (auditor.run.summary.derived, auditor.run.summary.unchecked) == (5, 0)
    auditor.semantic = False
    assert names(auditor.audit()) == ["OldCosignatures", "StaleMap"]
    assert auditor.run.summary.unchecked == 5


# --- lies in updates


def edited(press: MapPress, k: int, **changes) -> bytes:
    return format_update(replace(parse_update(press.map_tiles.read(update_path(k))), **changes))


def test_updates_that_do_not_hold(told, auditor):
    honest = told.map_tiles.read(update_path(3))
    update = parse_update(honest)
    lies = [
        honest[:-1], honest + b"\0", b"", told.map_tiles.read(update_path(2)),
        edited(told, 3, changes=update.changes[1:]), edited(told, 3, hashes=update.hashes + (bytes(32),)),
        edited(told, 3, changes=(update.changes[0]._replace(commitment=b"x" * 32), *update.changes[1:])),
    ]
    for lie in lies:
        auditor.lies = {update_path(3): lie}
        report = auditor.audit()
        assert names(report) == ["BadMapUpdate"], lie
        assert not report.ok and not auditor.saved


# --- lies in leaves, under real signatures


def publish(press: MapPress, auditor: Auditor, leaves: list[bytes]) -> None:
    """What a lying operator shows: these leaves, signed and cosigned, at every size."""
    hashes = [hash_leaf(leaf) for leaf in leaves]
    signers = (*load_map_signers(press.settings.keys, ORIGIN), *(s for w in press.witnesses for s in w.signers))
    for size in range(1, len(leaves) + 1):
        root = root_hash(size, leaf_reader(hashes[:size]))
        auditor.lies[f"checkpoint/{size}"] = sign_checkpoint(Checkpoint(MAP, size, root), signers, press.clock())
    size = len(leaves)
    auditor.lies |= {
        "checkpoint": auditor.lies[f"checkpoint/{size}"], f"tile/0/000.p/{size}": b"".join(hashes),
        f"tile/entries/000.p/{size}": format_bundle(leaves),
    }


def shown(press: MapPress) -> list[bytes]:
    return list(press.map.output_leaves(0, press.map.state().output.size))


def change(leaves: list[bytes], k: int, **changes) -> list[bytes]:
    return [*leaves[:k], format_leaf(replace(parse_leaf(leaves[k]), **changes)), *leaves[k + 1 :]]


def test_a_published_copy_is_the_honest_log(told, auditor):
    """That the lies below are found for what they say, and not for how they are told."""
    publish(told, auditor, shown(told))
    clean(auditor, ordered=True)


CONTRADICTIONS = [
    (3, {"time": NOW - 1000}), (5, {"input_size": 4}), (4, {"map_root": b"m" * 32}), (4, {"input_root": b"m" * 32}),
    (4, {"erasures_root": b"m" * 32}),
]


@pytest.mark.parametrize(("k", "changes"), CONTRADICTIONS, ids=str)
def test_leaves_that_contradict_convict(told, auditor, k, changes):
    publish(told, auditor, change(shown(told), k, **changes))
    report = auditor.audit()
    assert "MapContradiction" in names(report) and report.findings.exit_code == 7
    evidence = parse_map_evidence((auditor.evidence_to / "map-contradiction.json").read_bytes())
    verify_map_evidence(evidence, report.convicted)
    assert report.evidence == [str(auditor.evidence_to / "map-contradiction.json")]
    # Any leaf under a signed head is the log's word: it takes no older heads.
    auditor.lies[f"checkpoint/{k}"] = None
    report = auditor.audit()
    assert "MapContradiction" in names(report) and report.findings.exit_code == 7 and report.evidence


@pytest.mark.parametrize(("leaf", "name"), [
    (b"ktlog-map/v1\n", "BadOutputLeaf"), (b"", "BadOutputLeaf"), ("config", "WrongConfig"),
])
def test_leaves_that_are_none(told, auditor, leaf, name):
    leaves = shown(told)
    leaves = change(leaves, 2, config=bytes(32)) if leaf == "config" else [*leaves[:2], leaf, *leaves[3:]]
    publish(told, auditor, leaves)
    assert names(auditor.audit()) == [name]


def test_another_configuration(told, auditor):
    leaves = shown(told)
    publish(told, auditor, [leaves[0].replace(ORIGIN.encode(), b"keys.example.net"), *leaves[1:]])
    assert names(auditor.audit()) == ["WrongConfig"]
    publish(told, auditor, [b"ktlog-map-config/v2\n", *leaves[1:]])
    assert names(auditor.audit()) == ["BadMapConfig"]


def test_a_map_of_other_entries(told, auditor):
    auditor.root = lambda size, root: b"r" * 32 if size == 5 else root
    assert names(auditor.audit()) == ["InputMismatch"]


def test_erasures_that_are_not_those_of_the_log(press, follower):
    publish(press, follower, change(shown(press), 5, erasures_root=b"e" * 32))
    assert names(follower.audit()) == ["MapContradiction"]
    press.clock.now += 10
    press.erase(BOB)
    press.cycle()
    publish(press, follower, change(shown(press), 6, erasures_root=b"e" * 32))
    assert names(follower.audit()) == ["BadErasure"]


def test_a_map_that_does_not_follow(told, auditor):
    """The operator swaps a leaf with a good update and good signatures: only who derives it notices."""
    update = parse_update(told.map_tiles.read(update_path(5)))
    swapped = replace(update, changes=(update.changes[0]._replace(commitment=b"x" * 32), *update.changes[1:]))
    from ktlog.keymap.updates import update_roots

    publish(told, auditor, change(shown(told), 5, map_root=update_roots(swapped)[1]))
    auditor.lies[update_path(5)] = format_update(swapped)
    report = auditor.audit()
    assert names(report) == ["MapNotDerived"]
    (claim,) = auditor.run.summary.claims
    assert (claim.leaf_index, claim.leaf.input_size) == (5, 8)
    auditor.semantic = False
    clean(auditor)
    # A leaf that nothing touched, and one that was left out.
    fewer = replace(update, changes=update.changes[1:])
    for lie, semantic in ((fewer, True), (fewer, False)):
        auditor.semantic, auditor.saved = semantic, b""
        auditor.lies[update_path(5)] = format_update(lie)
        assert "BadMapUpdate" in names(auditor.audit())


def test_a_map_that_does_not_follow_where_updates_are_gone(told, auditor):
    publish(told, auditor, change(change(shown(told), 3, map_root=b"x" * 32), 4, map_root=b"x" * 32))
    auditor.lies |= {update_path(k): None for k in range(1, 6)}
    auditor.now = told.clock() + KEPT_SECONDS
    assert names(auditor.audit()) == ["MapNotDerived", "OldCosignatures", "StaleMap"]
    assert [claim.leaf_index for claim in auditor.run.summary.claims] == [3, 4]


def test_leaves_from_elsewhere(told, auditor):
    leaves = shown(told)
    auditor.lies["tile/entries/000.p/6"] = format_bundle([*leaves[:4], leaves[5], leaves[4]])
    assert names(auditor.audit()) == ["TreeMismatch"]


# --- late


def test_late_maps(told, auditor):
    at = told.clock()
    clean(auditor, seen=(told.desk.size + 1, at))
    auditor.now = at + 361
    assert names(auditor.audit(seen=(told.desk.size + 1, at))) == ["LateMap"]
    # A leaf that was signed after the time, and still covers less, holds entries back.
    assert names(auditor.audit(seen=(told.desk.size + 1, at - 361))) == ["InputHeldBack"]
    clean(auditor, seen=(told.desk.size, at))
    auditor.now = at + told.settings.heartbeat_seconds + 301
    assert names(auditor.audit()) == ["StaleMap"]


def test_a_map_of_entries_that_nobody_is_shown(told, auditor):
    leaves = shown(told)
    publish(told, auditor, change(leaves, 5, input_size=99))
    assert names(auditor.audit(ordered=True)) == ["MapAhead"]
    assert names(auditor.audit()) == [] and auditor.run.summary.leaves == 4


# --- heads


def test_a_head_that_goes_back_or_forks(told, auditor):
    leaves = shown(told)
    clean(auditor)
    publish(told, auditor, leaves[:-1])
    assert names(auditor.audit()) == ["RolledBack"]
    publish(told, auditor, change(leaves, 5, time=parse_leaf(leaves[5]).time + 1))
    report = auditor.audit()
    assert names(report) == ["TwoRoots"] and report.evidence
    publish(told, auditor, [*change(leaves, 5, time=parse_leaf(leaves[5]).time + 1), leaves[5]])
    report = auditor.audit()
    assert names(report) == ["Inconsistent"] and report.evidence
