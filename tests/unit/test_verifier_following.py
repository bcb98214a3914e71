"""A verifier at work: what it signs, what it knows after a restart, erasures, and who comes late."""

from __future__ import annotations

import sqlite3
from collections import Counter

import pytest

from ktlog.pkd import attributes
from ktlog.pkd.messages import AddKey, BurnDown, MoveIdentity
from tests.pkd_samples import NOW, public, quick_argon2  # noqa: F401
from tests.verifier_world import MAP, NAME, ORIGIN, Clock, Daemon, PublishedLog, person, quick_follower, run, vkeys_of
from witness.config import WitnessDir
from witness.replays import ReplayStore
from witness.store import AFTER_COMMIT, BEFORE_COMMIT, WitnessStore


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def log(clock):
    return PublishedLog(clock).enrol("ann", "p").enrol("ben", "q").grow()


@pytest.fixture
def site(tmp_path, monkeypatch, log, clock):
    quick_follower(monkeypatch)
    daemon = Daemon(tmp_path / "v", log, clock)
    yield daemon
    daemon.stop()


@pytest.fixture
def count_argon2(monkeypatch):
    """How often each commitment was computed."""
    counts: Counter = Counter()
    quick = attributes.argon2id

    def counting(password: bytes, salt: bytes) -> bytes:
        counts[password] += 1
        return quick(password, salt)

    monkeypatch.setattr(attributes, "argon2id", counting)
    return counts


def signs(site: Daemon, **options) -> None:
    reply = site.submit(**options)
    assert reply.status == 200, reply


# --- the happy path


def test_every_leaf_of_a_log_that_tells_the_truth(site):
    signs(site)
    for number, letter in enumerate("rstu"):
        site.log.enrol(f"eve{number}", letter).grow()
        signs(site)
    site.clock.now += 600
    site.log.add_leaf()
    signs(site)
    found = site.status()
    assert (found["leaves-checked"], found["timely-from"], found["derived-from"]) == (7, 1, 1)
    assert (found["entries-shown"], found["entries-derived"], found["violations"], found["taken"]) == (6, 6, 0, 0)
    assert found["wrong"] is found["waiting-for"] is None and found["origin"] == ORIGIN


def test_a_leaf_about_nothing(tmp_path, clock, monkeypatch):
    quick_follower(monkeypatch)
    site = Daemon(tmp_path / "v", PublishedLog(clock).grow(), clock)
    signs(site)
    site.stop()


def test_several_leaves_at_once(site):
    for number, letter in enumerate("rst"):
        site.log.enrol(f"eve{number}", letter).grow()
    signs(site)
    assert site.size == 5


def test_the_rules_are_the_verifier_s_and_an_entry_that_breaks_one_changes_nothing(site):
    assert not site.log.log(AddKey(person("ann"), public("p"), NOW), "p")
    site.log.grow()
    signs(site)
    assert site.status()["violations"] == 1


def test_entries_are_checked_before_a_leaf_covers_them(site, count_argon2):
    signs(site)
    site.log.enrol("cleo", "r").publish()
    follower = site.verifier.follower(MAP)
    seen = follower.wait(lambda now: now.input_size == 3, 60)
    follower.wait(lambda now: now.round > seen.round, 60)
    site.log.add_leaf()
    counted = dict(count_argon2)
    signs(site)
    assert counted and dict(count_argon2) == counted


def test_what_the_log_publishes_itself_is_followed_unasked(site):
    note = site.log.map_note()
    site.log.lies["/map/checkpoint"] = note
    progress = site.verifier.follower(MAP).wait(lambda now: now.checked is not None, 60)
    assert progress.checked.head.size == 2 and site.size == 0


# --- time


def test_a_leaf_that_was_late_is_signed_and_told(site):
    """As after an hour without witnesses: the log offers the very leaf that it had."""
    signs(site)
    site.log.enrol("cleo", "r").grow()
    site.clock.now += 3000
    site.log.publish()
    signs(site)
    assert site.status()["timely-from"] == 3
    site.log.add_leaf()
    signs(site)
    assert site.status()["timely-from"] == 3, "the leaf after it was in time"


# --- restarts


def test_a_restart_computes_no_commitment_again(site, count_argon2):
    signs(site)
    before = sum(count_argon2.values())
    assert before == 4
    site.restart()
    site.log.enrol("cleo", "r").grow()
    signs(site)
    assert sum(count_argon2.values()) == before + 4, "two by the log when it built the entry, and two here"
    assert site.status()["derived-from"] == site.status()["timely-from"] == 1


def test_after_a_restart_other_text_for_old_entries_is_not_believed(site):
    signs(site)
    site.stop()
    site.log.enrol("cleo", "r").grow()
    site.log.lies["/records/000.p/3"] = b"".join(
        site.log.line(index, **({"actor": person("eve")} if index == 0 else {})) + b"\n" for index in range(3)
    )
    site.start()
    reply = site.submit()
    assert (reply.status, reply.reason) == (503, "NotChecked PlaintextMismatch")


def test_nothing_that_people_wrote_is_kept_on_the_disk(site):
    signs(site)
    site.stop()
    files = b"".join(path.read_bytes() for path in site.directory.path.rglob("*") if path.is_file())
    assert person("ann").encode() not in files and public("p") not in files and b"users/" not in files
    site.start()


def test_at_a_restart_the_checkpoint_signed_last_is_signed_again_at_once(site):
    signs(site)
    site.restart()
    site.log.lies["/checkpoint"] = b"down\n"
    assert site.post(site.log.submission(2, 2)).status == 200


@pytest.mark.parametrize(("hook", "size"), [(BEFORE_COMMIT, 0), (AFTER_COMMIT, 2)])
def test_dying_between_the_record_and_the_answer(site, hook, size):
    def die(name: str) -> None:
        if name == hook:
            raise RuntimeError(f"killed at {name}")

    site.reach = die
    assert site.submit().status in (500, 503)
    site.reach = lambda name: None
    site.restart()
    assert site.size == size
    reply = site.post(site.log.submission(0))
    assert (reply.status, reply.body) == (409, b"2\n") if size else reply.status == 200
    signs(site)
    site.log.enrol("cleo", "r").grow()
    signs(site)


# --- erasures


def test_an_erasure_is_followed_and_forgotten(site):
    signs(site)
    assert digests(site) == {0, 1}
    site.log.erase(person("ann"))
    site.log.add_leaf()
    signs(site)
    assert digests(site) == {1}
    site.log.enrol("ann", "r").grow()
    signs(site)
    found = site.status()
    assert (found["erasures"], found["derived-from"], found["taken"]) == (1, 1, 0)


def digests(site: Daemon) -> set[int]:
    with sqlite3.connect(site.directory.database) as database:
        return {row[0] for row in database.execute("SELECT leaf_index FROM digests")}


def test_an_erasure_while_nobody_looked(site):
    """The restarted verifier is a late joiner: what it can derive begins with the leaf of the erasure."""
    signs(site)
    site.stop()
    site.log.enrol("cleo", "r").grow()
    site.log.erase(person("ann"))
    site.log.add_leaf()
    site.start()
    signs(site)
    assert site.status()["derived-from"] == 3
    site.log.enrol("dan", "s").grow()
    signs(site)
    assert site.status()["derived-from"] == 3


def test_an_entry_that_was_erased_while_the_verifier_was_cut_off(site):
    """Long enough away, it did not see the entry when it was new, and takes it on the word of those who did."""
    signs(site)
    site.log.lies["/checkpoint"] = b"cut off\n"
    site.log.enrol("cleo", "r").grow()
    site.log.erase(person("cleo"))
    site.log.add_leaf()
    site.clock.now += 10_000
    site.log.grow()
    site.log.lies.clear()
    signs(site)
    found = site.status()
    assert (found["erasures"], found["derived-from"]) == (1, 3)


def test_a_leaf_of_before_an_erasure_that_was_not_seen(site):
    """Nobody can derive its map any more. The leaf of the erasure follows, and it can be derived."""
    signs(site)
    site.stop()
    site.log.enrol("cleo", "r").grow()
    site.log.erase(person("ann"))
    site.start()
    reply = site.submit()
    assert (reply.status, reply.reason) == (503, "NotChecked MapNotDerivable")
    site.log.add_leaf()
    signs(site)
    assert site.status()["derived-from"] == 3


def test_a_heartbeat_of_before_an_erasure_that_was_not_seen(site):
    """It says of the map what the leaf before it said, and that was derived."""
    signs(site)
    site.stop()
    site.log.add_leaf()
    site.log.erase(person("ann"))
    site.start()
    signs(site)
    assert site.status()["derived-from"] == 1


def test_a_late_joiner_of_a_log_with_a_past(tmp_path, monkeypatch, log, clock):
    quick_follower(monkeypatch)
    log.enrol("ops", "t").grow()
    log.say(MoveIdentity(person("ben"), person("benno"), NOW), "q").grow()
    log.say(BurnDown(person("ann"), person("ops"), NOW), "t").grow()
    log.erase(person("ann"))
    log.add_leaf()
    log.enrol("ann", "r").grow()
    log.erase(person("ops"))
    log.add_leaf()
    clock.now += 10_000
    log.enrol("cleo", "s").grow()
    site = Daemon(tmp_path / "v", log, clock)
    signs(site)
    found = site.status()
    assert (found["derived-from"], found["timely-from"], found["erasures"]) == (7, 8, 2)
    site.stop()


def test_text_that_went_without_an_erasure(tmp_path, monkeypatch, log, clock):
    """Who never saw the text of an entry that is not erased does not sign."""
    quick_follower(monkeypatch)
    log.erase(person("ann"))
    log.add_leaf()
    log.plains[1]["actor"] = None
    site = Daemon(tmp_path / "v", log, clock)
    reply = site.submit()
    assert (reply.status, reply.reason) == (503, "NotChecked RecordWithheld"), reply
    site.stop()


def test_erased_text_that_is_still_shown(tmp_path, monkeypatch, log, clock):
    quick_follower(monkeypatch)
    plain = dict(log.plains[0])
    log.erase(person("ann"))
    log.add_leaf()
    log.plains[0] = plain
    site = Daemon(tmp_path / "v", log, clock)
    reply = site.submit()
    assert (reply.status, reply.reason) == (503, "NotChecked NotErased"), reply
    site.stop()


# --- the directory


def test_a_replay_is_read_where_it_was_added_last(tmp_path, log):
    run("init", tmp_path / "v", "--name", NAME)
    for url in ("https://old.example.com/", "https://keys.example.com/log"):
        run("add-log", tmp_path / "v", "--replay", url, *map(str, vkeys_of(log)))
    store = WitnessStore.open(WitnessDir(tmp_path / "v").database)
    (replay,) = ReplayStore(store).replays()
    store.close()
    assert replay.url == "https://keys.example.com/log"
    assert {*replay.vkeys, *replay.map_vkeys} == set(vkeys_of(log))
