"""The witness's record: compare-and-set, what triggers forbid, and what a failed write does."""

from __future__ import annotations

import sqlite3
from dataclasses import replace
from functools import cache

import pytest

from ktlog.errors import Conflict, StoreError, UsageError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.evidence import parse_evidence, two_roots, verify_evidence
from ktlog.tlog.note import parse_vkey
from tests.witness_log import NOW, Log
from witness.decide import Cosigned
from witness.keys import derive_signers
from witness.store import AFTER_COMMIT, BEFORE_COMMIT, WitnessStore, hash_origin

LOG = Log()
VKEYS = [signer.vkey for signer in derive_signers(bytes(32), "example.com/w1")]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "witness.db"
    store = WitnessStore.create(path, "example.com/w1", VKEYS, NOW)
    store.add_log(LOG.origin, LOG.vkeys, NOW)
    store.close()
    return path


@pytest.fixture
def store(path):
    store = WitnessStore.open(path)
    yield store
    store.close()


@cache  # ML-DSA signatures are randomised: signed again, a note differs
def note(size: int) -> bytes:
    return LOG.note(size)


def cosigned(revision: int, size: int, **changes) -> Cosigned:
    checkpoint = Checkpoint(LOG.origin, size, LOG.root(size))
    return replace(Cosigned(revision, checkpoint, NOW, note(size)), **changes)


# --- opening


def test_what_init_wrote_is_read_back(store):
    assert store.name == "example.com/w1"
    assert store.vkeys == tuple(str(vkey) for vkey in VKEYS)


def test_a_missing_database_is_refused_and_not_made(tmp_path):
    with pytest.raises(StoreError) as caught:
        WitnessStore.open(tmp_path / "witness.db")
    assert caught.value.name == "MissingStore"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_database_is_not_made_again(path):
    with pytest.raises(StoreError):
        WitnessStore.create(path, "other", VKEYS, NOW)
    assert WitnessStore.open(path).name == "example.com/w1"


def test_an_empty_a_foreign_and_a_newer_file_are_refused(tmp_path, path):
    empty = tmp_path / "empty.db"
    empty.write_bytes(b"")
    text = tmp_path / "text.db"
    text.write_bytes(b"not a database " * 100)
    for file in (empty, text):
        with pytest.raises(StoreError):
            WitnessStore.open(file)
    raw = sqlite3.connect(path)
    raw.execute("DROP TRIGGER witness_no_update")
    raw.execute("UPDATE witness SET oldest_reader = 99")
    raw.commit()
    raw.close()
    with pytest.raises(StoreError) as caught:
        WitnessStore.open(path)
    assert caught.value.name == "NewerSchema"


def test_commits_reach_the_disk(store):
    """WAL and synchronous=FULL (2): the log is synced before COMMIT returns."""
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)


# --- logs and keys


def test_adding_a_log_again_changes_nothing_and_a_further_key_is_added(store):
    assert store.add_log(LOG.origin, LOG.vkeys, NOW + 1) == ()
    further = Log(seed=9).vkeys[0]
    assert store.add_log(LOG.origin, [further], NOW + 2) == (further,)
    assert store.log(LOG.origin).vkeys == (*LOG.vkeys, further)
    assert store.log("other.example") is None
    assert [log.origin for log in store.logs()] == [LOG.origin]
    assert store.count_logs() == 1


def test_two_keys_of_one_key_id_are_refused(store):
    """Key ids have 32 bits: these two keys were found to share one."""
    first = parse_vkey("example.com/log+4ee8b7fc+AdrILJIo9zFTfiq9aj1e0P8Xw8nvyRoRPi/dKz7G/o+Q")
    second = parse_vkey("example.com/log+4ee8b7fc+ASDtg+UeT9160ZRh12EYfNoQPkCYMifP8J5yPw60Dq+C")
    store.add_log(LOG.origin, [first], NOW)
    with pytest.raises(UsageError) as caught:
        store.add_log(LOG.origin, [Log(seed=9).vkeys[0], second], NOW)
    assert caught.value.name == "KeyCollision"
    assert store.log(LOG.origin).vkeys == (*LOG.vkeys, first)  # all or nothing
    store.record_checkpoint(cosigned(1, 3))  # a refusal is no failed write


# --- compare-and-set


def test_a_recorded_checkpoint_is_the_latest_also_after_opening_again(path, store):
    store.record_checkpoint(cosigned(1, 3))
    store.record_checkpoint(cosigned(2, 5))
    assert store.log(LOG.origin).latest == cosigned(2, 5)
    assert WitnessStore.open(path).log(LOG.origin).latest == cosigned(2, 5)
    assert store.cosigned_note(hash_origin(LOG.origin)) == note(5)


def test_nothing_is_cosigned_before_the_first(store):
    assert store.log(LOG.origin).latest is None
    assert store.cosigned_note(hash_origin(LOG.origin)) is None


@pytest.mark.parametrize("revision", [1, 2, 4])
def test_a_record_that_moved_on_is_a_conflict_and_says_what_it_is_now(store, revision):
    store.record_checkpoint(cosigned(1, 3))
    store.record_checkpoint(cosigned(2, 5))
    with pytest.raises(Conflict) as caught:
        store.record_checkpoint(cosigned(revision, 7))
    assert caught.value.stored == cosigned(2, 5)
    assert store.log(LOG.origin).latest == cosigned(2, 5)
    store.record_checkpoint(cosigned(3, 7))  # a conflict does not poison


def test_an_update_before_any_insert_is_a_conflict(store):
    with pytest.raises(Conflict) as caught:
        store.record_checkpoint(cosigned(2, 3))
    assert caught.value.stored is None


# --- what no caller can do


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint": Checkpoint(LOG.origin, 4, LOG.root(4))},
        {"checkpoint": Checkpoint(LOG.origin, 5, b"\x01" * 32)},
        {"time": NOW - 1},
    ],
    ids=["smaller", "other-root", "earlier"],
)
def test_the_database_itself_refuses_to_roll_back(path, store, change):
    store.record_checkpoint(cosigned(1, 5))
    with pytest.raises(StoreError) as caught:
        store.record_checkpoint(cosigned(2, 5, **change))
    assert caught.value.name == "Poisoned"
    assert WitnessStore.open(path).log(LOG.origin).latest == cosigned(1, 5)


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM checkpoints", "DELETE FROM logs", "DELETE FROM log_keys", "DELETE FROM witness",
        "DELETE FROM witness_keys", "DELETE FROM evidence",
        "UPDATE logs SET origin = 'x'", "UPDATE log_keys SET vkey = 'x'", "UPDATE witness SET name = 'x'",
        "UPDATE witness_keys SET vkey = 'x'", "UPDATE evidence SET document = x'00'",
        "UPDATE checkpoints SET origin = 'x', revision = revision + 1",
        "INSERT OR REPLACE INTO checkpoints SELECT origin, 9, 0, root, time, note FROM checkpoints",
    ],
)
def test_nothing_is_ever_deleted_or_rewritten(store, statement):
    store.record_checkpoint(cosigned(1, 5))
    store.record_evidence(two_roots(LOG.vkeys[0], LOG.note(5), LOG.note(5, root=bytes(32))), 5, NOW)
    with pytest.raises(sqlite3.IntegrityError):
        store._connection.execute(statement)
    assert store.log(LOG.origin).latest == cosigned(1, 5)


# --- evidence


def test_one_piece_of_evidence_a_size_is_kept_and_it_convicts(store):
    evidence = [two_roots(LOG.vkeys[1], LOG.note(5), LOG.note(5, root=bytes([n]) * 32)) for n in (1, 2)]
    assert store.record_evidence(evidence[0], 5, NOW) is True
    assert store.record_evidence(evidence[1], 5, NOW) is False
    (document,) = store.evidence()
    verify_evidence(parse_evidence(document), LOG.vkeys[1])


def test_a_log_cannot_fill_the_disk_with_evidence(store, monkeypatch):
    monkeypatch.setattr("witness.store.MAX_EVIDENCE", 3)
    evidence = two_roots(LOG.vkeys[1], LOG.note(5), LOG.note(5, root=bytes(32)))
    recorded = [store.record_evidence(evidence, size, NOW) for size in range(6)]
    assert recorded == [True] * 3 + [False] * 3


# --- failed writes


class Flaky:
    """A connection whose next COMMIT fails, before or after it took effect."""

    def __init__(self, connection: sqlite3.Connection, persist: bool) -> None:
        self.connection, self.persist, self.armed = connection, persist, True

    def execute(self, statement: str, *parameters):
        if statement == "COMMIT" and self.armed:
            self.armed = False
            if self.persist:
                self.connection.execute(statement)
            raise sqlite3.OperationalError("disk I/O error")
        return self.connection.execute(statement, *parameters)

    def close(self) -> None:
        self.connection.close()


@pytest.mark.parametrize("persist", [False, True], ids=["and not persist", "but persist"])
def test_a_failed_commit_poisons_the_process_and_not_the_record(path, store, persist):
    store.record_checkpoint(cosigned(1, 3))
    store._connection = Flaky(store._connection, persist)
    with pytest.raises(StoreError) as caught:
        store.record_checkpoint(cosigned(2, 5))
    assert caught.value.name == "Poisoned"
    for write in (
        lambda: store.record_checkpoint(cosigned(2, 5)),
        lambda: store.record_checkpoint(cosigned(3, 7)),
        lambda: store.add_log("other.example", Log("other.example").vkeys, NOW),
        store.check,
    ):
        with pytest.raises(StoreError) as caught:
            write()
        assert caught.value.name == "Poisoned"
    on_disk = WitnessStore.open(path).log(LOG.origin).latest
    assert on_disk == (cosigned(2, 5) if persist else cosigned(1, 3))
    assert store.log(LOG.origin).latest == on_disk  # reading still tells the truth


def test_a_write_that_dies_before_commit_leaves_nothing_and_one_after_leaves_all(path):
    class Died(Exception):
        pass

    def die_at(hook):
        def reach(name):
            if name == hook:
                raise Died(name)
        return reach

    store = WitnessStore.open(path, reach=die_at(BEFORE_COMMIT))
    with pytest.raises(StoreError):
        store.record_checkpoint(cosigned(1, 3))
    assert WitnessStore.open(path).log(LOG.origin).latest is None
    store = WitnessStore.open(path, reach=die_at(AFTER_COMMIT))
    with pytest.raises(Died):
        store.record_checkpoint(cosigned(1, 3))
    assert WitnessStore.open(path).log(LOG.origin).latest == cosigned(1, 3)


def test_a_database_that_another_process_is_writing_to_is_busy_and_not_poisoned(path, store):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    store._connection.execute("PRAGMA busy_timeout=10")
    with pytest.raises(StoreError) as caught:
        store.record_checkpoint(cosigned(1, 3))
    assert caught.value.name == "Locked"
    other.execute("ROLLBACK")
    other.close()
    store.record_checkpoint(cosigned(1, 3))
    store.check()
