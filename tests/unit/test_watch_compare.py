"""What a look says of a log, its witnesses, its mirrors and its other addresses; and when that becomes a finding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ktlog.errors import StoreError
from ktlog.tlog.evidence import format_evidence, parse_evidence, two_roots, verify_evidence
from tests.auditor_world import World, checkpoint_message, log_signers
from tests.watch_world import MIRROR_HOST, ORIGIN, OTHER_HOST, WITNESS_HOST, WatchedWorld, cheap_world

ALL = {
    "witnesses": (f"https://{WITNESS_HOST}",), "mirrors": (f"https://{MIRROR_HOST}",),
    "addresses": (f"https://{OTHER_HOST}",),
}


@pytest.fixture
def world(tmp_path):
    with WatchedWorld(tmp_path, **ALL) as made:
        everybody_shows(made, made.net.world)
        yield made


def everybody_shows(made: WatchedWorld, log: World) -> None:
    log.cosigned_at = made.now
    log.serve["checkpoint"] = log.checkpoint()
    made.net.world = log
    made.net.witness_shows(log.serve["checkpoint"])
    made.net.mirror_shows(log)
    made.net.other_shows(log)


def grown(log: World, count: int = 3) -> World:
    twin = log.clone()
    for _ in range(count):
        twin.say(checkpoint_message(twin), "beta")
    return twin.publish()


def forged(size: int) -> bytes:
    """A head of *size* entries that the log signed with its real keys, of another tree."""
    return cheap_world().checkpoint(size, bytes([size]) * 32, witnesses=0)


def test_an_honest_log_that_grows_has_no_finding(world):
    for _ in range(3):
        assert [one.complete for one in world.look(2)] == [True, True]
        everybody_shows(world, grown(world.net.world))
    assert world.store.all() == [] and world.told.rows == []


@pytest.mark.parametrize("host", [WITNESS_HOST, MIRROR_HOST, OTHER_HOST])
def test_two_roots_of_one_size_convict_at_once_whoever_shows_the_other(world, host):
    path = "checkpoint" if host == OTHER_HOST else next(iter(world.net.files[WITNESS_HOST]))
    world.net.files[host][path] = forged(10)
    (done,) = world.look()
    (row,) = done.opened
    assert (row.name, row.kind, row.key) == ("TwoRoots", "Forked", "10")
    verify_evidence(parse_evidence(Path(row.evidence).read_bytes()), log_signers()[1].vkey)
    assert Path(row.evidence).parent == world.directory / "evidence"
    world.look(3)
    assert world.names() >= {"TwoRoots"} and world.told.rows.count(("TwoRoots", "10", True)) == 1


def test_a_split_view_is_seen_though_the_two_heads_come_a_week_apart(world):
    world.look()
    world.restart()
    world.now += 7 * 86_400
    world.net.world.serve["checkpoint"] = forged(10)
    assert [row.name for row in world.look()[0].opened] == ["TwoRoots"]


def test_what_convicted_never_closes_and_is_one_file_and_one_row(world):
    world.net.witness_shows(forged(10))
    world.look(2)
    everybody_shows(world, world.net.world)
    world.look(5)
    assert [(row.name, row.is_open) for row in world.store.all() if row.kind == "Forked"] == [("TwoRoots", True)]
    assert len(list((world.directory / "evidence").iterdir())) == 1


def test_a_smaller_head_of_another_tree_is_not_in_the_log_and_convicts(world):
    world.net.witness_shows(forged(7))
    (done,) = world.look()
    assert [(row.name, row.key, row.kind) for row in done.opened] == [("Inconsistent", "7-10", "Forked")]


def test_a_log_that_does_not_extend_what_it_showed_convicts_itself(world):
    world.look()
    other = World()
    for _ in range(12):
        other.say(checkpoint_message(other), "beta")
    everybody_shows(world, other.publish())
    (done,) = world.look()
    assert {row.name for row in done.opened} == {"Inconsistent"}


@pytest.mark.parametrize("host", [WITNESS_HOST, OTHER_HOST, ORIGIN])
def test_a_smaller_head_of_another_past_convicts_after_the_honest_one(world, host):
    world.look()
    if host == ORIGIN:
        world.net.world.serve = {"checkpoint": forged(6)}  # none of the tiles that it went back from
    else:
        path = next(path for path in world.net.files[host] if path.endswith("checkpoint"))
        world.net.files[host][path] = forged(6)
    (done,) = world.look()
    assert [(row.name, row.key, row.kind) for row in done.opened] == [("Inconsistent", "6-10", "Forked")]


def test_evidence_that_a_witness_keeps_is_taken_over_if_it_convicts(world):
    real = world.net.world.checkpoint()
    evidence = format_evidence(two_roots(log_signers()[1].vkey, real, forged(10)))
    document = {"origin": ORIGIN, "frozen": True, "evidence": ["rubbish", evidence.decode()]}
    world.net.witness_shows(real, json.dumps(document).encode())
    (done,) = world.look()
    assert [(row.name, row.key) for row in done.opened] == [("TwoRoots", "10")]
    assert Path(done.opened[0].evidence).read_bytes() == evidence


def test_a_strangers_head_of_the_same_size_says_nothing_about_the_log(world):
    strange = world.net.world.checkpoint(root=bytes(32), signers=log_signers(seed=9))
    world.net.witness_shows(strange)
    world.look()
    assert world.names() == set()  # BadView, and only after a grace
    world.look(6)
    assert [(row.name, row.kind, row.key) for row in world.store.open()] == [
        ("BadView", "Invalid", f"witness {WITNESS_HOST}")
    ]


def test_a_log_that_is_rolled_back_has_five_minutes_and_no_more(world):
    world.look()
    world.net.world.serve["checkpoint"] = world.net.world.checkpoint(6)
    world.look(4)
    assert world.names() == set()
    world.look(2)
    assert "RolledBack" in world.names()
    everybody_shows(world, world.net.world)
    assert "RolledBack" in {row.name for row in world.look()[0].closed}


def test_a_cache_that_is_behind_every_other_time_is_no_roll_back(world):
    new = world.net.world
    for number in range(14):
        if number % 2:
            new = grown(new, 1)
        everybody_shows(world, new)
        if number % 2 == 0:
            new.serve["checkpoint"] = new.checkpoint(new.size - 1)
        world.look()
    assert world.store.all() == []


def test_a_log_frozen_for_us_while_its_witness_goes_on(world):
    world.look()
    world.net.witness_shows(grown(world.net.world).serve["checkpoint"])
    world.look(5)
    assert world.names() == set()
    world.look(2)
    assert world.names() == {"FrozenLog"}


def test_a_busy_log_that_is_always_one_head_behind_its_witness_is_not_frozen(world):
    shown = world.net.world
    for _ in range(12):
        after = grown(shown, 1)
        everybody_shows(world, shown)
        world.net.witness_shows(after.checkpoint())
        world.look()
        shown = after
    assert world.store.all() == []


def test_witness_and_mirror_that_stay_behind(world):
    world.look()
    old = world.net.world
    everybody_shows(world, grown(old))
    world.net.witness_shows(old.checkpoint())
    world.net.mirror_shows(old)
    world.look(5, every=600)
    assert world.names() == set()
    world.net.world.cosigned_at = world.now
    world.net.world.serve["checkpoint"] = world.net.world.checkpoint()
    world.net.other_shows(world.net.world)
    world.look(2, every=600)
    assert world.names() == {"WitnessBehind", "ViewBehind"}


def test_a_missing_cosignature_is_told_per_witness_after_an_hour(world):
    world.net.world.serve["checkpoint"] = world.net.world.checkpoint(witnesses=2)
    world.look(5, every=600)
    assert world.names() == set()
    world.net.world.cosigned_at = world.now
    world.net.world.serve["checkpoint"] = world.net.world.checkpoint(witnesses=2)
    world.look(2, every=600)
    assert [(row.name, row.key) for row in world.store.open()] == [("MissingCosignature", "w3.witness.example")]
    assert "Ed25519, ML-DSA-44" in world.store.open()[0].what


def test_too_few_witnesses_and_old_cosignatures(world):
    world.look()
    world.net.world.serve["checkpoint"] = world.net.world.checkpoint(witnesses=1)
    world.look(7)
    assert world.names() == {"TooFewWitnesses"}
    everybody_shows(world, world.net.world)
    world.look()
    assert world.names() == set()
    world.look(6, every=600)
    assert world.names() == set()
    world.look(2, every=600)
    assert world.names() == {"OldCosignatures"}


@pytest.mark.parametrize("skew", [-500, 500])
def test_a_clock_that_is_minutes_off_raises_nothing(world, skew):
    for _ in range(12):
        world.net.world.cosigned_at = world.now
        everybody_shows(world, world.net.world)
        world.net.world.cosigned_at += skew
        world.net.world.serve["checkpoint"] = world.net.world.checkpoint()
        world.look()
    assert world.store.all() == []


def test_a_restart_of_the_log_is_no_finding_and_a_dead_log_is_one(world):
    world.look(3)
    world.net.down.add(ORIGIN)
    assert world.look()[0].blind == ["the log"]
    world.look(3)
    world.net.down.clear()
    world.look(2)
    assert world.store.all() == []
    world.net.down.add(ORIGIN)
    world.look(7)
    assert world.names() == {"Unreachable"}
    world.net.down.clear()
    world.look()
    assert world.names() == {"Unreachable"}  # calm for two looks
    world.look()
    assert world.names() == set()
    assert world.told.rows == [("Unreachable", "", True), ("Unreachable", "", False)]


def test_what_could_not_be_looked_at_neither_closes_nor_opens(world):
    world.look()
    old = world.net.world
    everybody_shows(world, grown(old))
    world.net.witness_shows(old.checkpoint())
    world.look(8, every=600)
    assert "WitnessBehind" in world.names()
    world.net.down.add(WITNESS_HOST)
    world.look(3)
    assert "WitnessBehind" in world.names()


def test_pruned_partial_tiles_are_read_from_the_full_one(world):
    world.look()
    long = world.net.world.clone()
    for _ in range(300):
        long.say(checkpoint_message(long), "beta")
    long.publish()
    old = long.first(250)
    everybody_shows(world, long)
    world.net.witness_shows(old.checkpoint())
    for path in [path for path in long.serve if ".p/" in path and "/000.p/" in path and "tile/0" in path]:
        del long.serve[path]
    world.look(2)
    assert world.store.all() == []


def test_a_tile_that_is_not_of_the_signed_tree_is_invalid(world):
    world.look()
    longer = grown(world.net.world)
    everybody_shows(world, longer)
    path = f"tile/0/000.p/{longer.size}"
    longer.serve[path] = bytes(len(longer.serve[path]))
    world.look()
    assert "BadConsistencyProof" in world.names()


def test_an_alarm_that_could_not_be_put_is_put_later(world):
    world.net.witness_shows(forged(10))
    world.told.fail = StoreError("OutboxFull")
    with pytest.raises(StoreError):
        world.look()
    assert world.told.rows == []
    world.restart()
    world.told.fail = None
    world.log.announce()
    assert world.told.rows == [("TwoRoots", "10", True)]


def test_no_more_evidence_is_kept_than_anybody_needs(world, monkeypatch):
    monkeypatch.setattr("auditor.logwatch.MAX_EVIDENCE", 2)
    for size in (3, 4, 5, 6):
        world.net.witness_shows(forged(size))
        world.look()
    assert len(list((world.directory / "evidence").iterdir())) == 2
    assert {row.key for row in world.store.open() if row.kind == "Forked"} == {"3-10", "4-10", "(more)"}
