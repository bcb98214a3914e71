"""A lookup against what the client remembers: forks, roll-backs, convictions, and a damaged memory."""

from __future__ import annotations

import json

import pytest
from client_log import DOMAIN, ORIGIN, Network, TinyLog, actor, key, make_policy
from client_world import ALICE, BOB, World, remembering_argon2id, say, story

from ktlog.client.build import add_key, enrol
from ktlog.errors import (
    Forked,
    Invalid,
    NotLogged,
    PolicyUnmet,
    Stale,
    StoreError,
    Unreachable,
)
from ktlog.pkd import attributes
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import format_evidence, parse_evidence, two_roots, verify_evidence
from ktlog.tlog.tiles import tile_path


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return World(tmp_path)


def test_two_roots_convict_even_without_witnesses(world):
    world.lookup()
    liar = story().fork()
    liar.entries[-1] = liar.entries[0]
    world.serve(liar.publish(witnesses=0))
    error = world.refuses(Forked, "TwoRoots")
    assert error.exit_code == 7
    evidence = parse_evidence(error.evidence)
    verify_evidence(evidence, world.policy.logs[0].vkey)
    assert evidence.kind == "two-roots"


def caught(world) -> Forked:
    """The log is shown with two trees, and serves the good one again."""
    world.lookup(f"@alice@{DOMAIN}")
    good = world.log.checkpoint
    world.log.checkpoint = world.log.sign(root=bytes(32), witnesses=0)
    error = world.refuses(Forked, "TwoRoots")
    world.log.checkpoint = good
    return error


@pytest.mark.parametrize("name", [ALICE, BOB, f"@alice@{DOMAIN}"])
def test_a_log_that_was_caught_stays_convicted(world, name):
    error = caught(world)
    path = world.state / "convicted" / f"{ORIGIN}.json"
    assert path.read_bytes() == error.evidence
    assert path.stat().st_mode & 0o777 == 0o600
    assert str(path) in error.hint
    world.network.requests.clear()
    again = world.refuses(Forked, "Convicted", name)
    assert again.evidence == error.evidence
    assert again.exit_code == 7
    assert str(path) in again.hint
    assert world.network.requests == []
    path.unlink()
    assert world.lookup(name).origin == ORIGIN


def test_another_log_is_not_convicted_with_it(world):
    caught(world)
    other = TinyLog("keys.beta.example", seed=50)
    dora = actor("dora", "beta.example")
    say(other, enrol, dora, key(5))
    world.network.logs[other.publish().origin] = other
    policy = make_policy([world.log, other])
    domains = {DOMAIN: ORIGIN, "beta.example": other.origin}
    assert world.lookup(dora, policy=policy, domains=domains).origin == other.origin
    world.refuses(Forked, "Convicted", policy=policy, domains=domains)


def test_a_conviction_that_cannot_be_stored_is_told_all_the_same(world):
    world.lookup()
    (world.state / "convicted").rmdir()
    directory = world.directory()
    (world.state / "convicted").rmdir()
    world.log.checkpoint = world.log.sign(root=bytes(32), witnesses=0)
    with pytest.raises(Forked, match="TwoRoots") as raised:
        directory.lookup(ALICE)
    assert raised.value.evidence
    assert "could not be remembered" in raised.value.hint


@pytest.mark.parametrize("damage", [b"", b"{}", b"about another log"])
def test_a_damaged_conviction_is_no_acquittal(world, damage):
    error = caught(world)
    path = world.state / "convicted" / f"{ORIGIN}.json"
    if damage == b"about another log":
        other = TinyLog("keys.beta.example", seed=50).publish()
        vkey = make_policy([other]).logs[0].vkey
        damage = format_evidence(two_roots(vkey, other.sign(3, root=bytes(32)), other.sign(3, root=b"x" * 32)))
    path.write_bytes(damage)
    world.refuses(StoreError, "BadState")
    path.write_bytes(error.evidence)
    world.refuses(Forked, "Convicted")


def test_without_a_memory_the_same_lie_lacks_witnesses(world):
    liar = story().fork()
    liar.entries[-1] = liar.entries[0]
    world.serve(liar.publish(witnesses=0))
    world.refuses(PolicyUnmet, "TooFewWitnesses")


def test_a_smaller_tree_is_stale_and_no_evidence(world):
    world.lookup()
    world.log.checkpoint = world.log.sign(4)
    error = world.refuses(Stale, "RolledBack")
    assert error.exit_code == 9
    assert not hasattr(error, "evidence")


@pytest.mark.parametrize("old_size", [3, 4, 5, 6])
def test_a_larger_tree_that_is_not_an_extension(world, old_size):
    """With and without the case where the old size is a power of two."""
    world.log.checkpoint = world.log.sign(old_size)
    world.lookup(BOB)
    liar = story().fork()
    liar.entries[1] = liar.entries[0]
    liar.entries += liar.entries
    world.serve(liar.publish())
    error = world.refuses(Forked, "Inconsistent")
    evidence = parse_evidence(error.evidence)
    verify_evidence(evidence, world.policy.logs[0].vkey)
    assert evidence.kind == "inconsistent"


def test_tiles_that_are_not_the_trees_convict_nobody(world):
    world.lookup()
    say(world.log, enrol, actor("dave"), key(30))
    world.log.publish()
    world.network.replace("/" + tile_path(0, 0, 7), bytes(7 * 32))
    world.refuses(Invalid, "BadConsistencyProof")


def test_tiles_that_cannot_be_had(world):
    world.lookup()
    say(world.log, enrol, actor("dave"), key(30))
    world.log.publish()
    world.network.break_("/" + tile_path(0, 0, 7))
    world.network.break_("/" + tile_path(0, 0))
    error = world.refuses(Unreachable, "Timeout")
    assert error.exit_code == 3


@pytest.mark.parametrize(("name", "who"), [("NotLogged", actor("nobody")), ("OmittedKey", ALICE)])
def test_a_good_head_is_remembered_although_the_lookup_failed(world, name, who):
    """Otherwise an older head would be accepted after it, with a key that was revoked since."""
    world.log.checkpoint = world.log.sign(4)
    world.lookup()
    world.log.checkpoint = world.log.sign(6)
    world.network.edit(lambda page: page["public-keys"].pop())
    world.refuses(NotLogged if name == "NotLogged" else Invalid, name, who)
    assert json.loads(world.remembered()[f"heads/{ORIGIN}.json"])["note"] == encode_base64(world.log.checkpoint)
    world.network = Network(world.log)
    world.log.checkpoint = world.log.sign(4)
    world.refuses(Stale, "RolledBack")


@pytest.mark.parametrize("body", [None, b'{"code":"not_found"}'])
def test_an_actor_that_was_shown_before_cannot_be_unknown(world, body):
    world.lookup()
    if body is None:
        world.network.edit(lambda page: page.update({"history": [], "public-keys": []}))
    else:
        world.network.replace(f"/api/actor/https%3A%2F%2F{DOMAIN}%2Fusers%2Falice/keys", body, 404)
    assert world.refuses(Stale, "ActorRolledBack").exit_code == 9


def test_one_entry_is_singular(world):
    log = TinyLog()
    say(log, enrol, ALICE, key(1))
    world.serve(log.publish())
    world.lookup()
    checks = " ".join(world.lookup().checks)
    assert checks.count(" 1 entry ") == 2
    assert "1 entries" not in checks


def test_a_damaged_memory_is_never_an_empty_one(world):
    world.lookup(f"@alice@{DOMAIN}")
    for name in world.remembered():
        path = world.state / name
        good = path.read_bytes()
        for bad in (b"", b"{}", good[:-9], good.replace(b"v1", b"v2"), b"\xff"):
            path.write_bytes(bad)
            world.refuses(StoreError, "BadState", f"@alice@{DOMAIN}")
        path.write_bytes(good)
    world.lookup(f"@alice@{DOMAIN}")


def test_a_remembered_head_of_another_key_is_an_error(world):
    world.lookup()
    world.policy = make_policy([TinyLog(seed=50)])
    world.refuses(StoreError, "HeadOfAnotherKey")


def test_a_state_directory_that_others_may_write_is_refused(world):
    world.lookup()
    world.state.chmod(0o770)
    with pytest.raises(StoreError, match="UnsafeState"):
        world.directory()


def test_a_hidden_message_that_was_shown_before(world):
    world.lookup()
    say(world.log, add_key, ALICE, key(4).public_key, key(2))
    world.log.publish()
    truth = world.lookup()
    old = world.log.page(ALICE, 7)

    def hide_the_newest(page):
        page["history"] = old["history"][:-1]
        page["public-keys"] = [row for row in page["public-keys"] if row["leaf-index"] != 6]

    world.network.edit(hide_the_newest)
    world.refuses(Stale, "ActorRolledBack")
    assert len(truth.keys) == 3


def test_a_message_that_was_hidden_before(world):
    def hide_the_revocation(page):
        page["history"] = [row for row in page["history"] if row["leaf-index"] != 4]
        page["public-keys"].insert(0, world.log.page(ALICE, 4)["public-keys"][0])

    world.network.edit(hide_the_revocation)
    # This is the hole that the directory map closes: today the lie passes, and the answer says so.
    answer = world.lookup()
    assert key(1).public_key in [found.public_key for found in answer.keys]
    assert "revocation" in answer.not_proven[0]
    world.network = Network(world.log)
    world.refuses(Invalid, "HistoryRewritten")
