"""The SQLite store under fire: two writers, death at each kill point, full disks, damaged files."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ktlog import durable, sqlitefile
from ktlog.errors import Conflict, StoreError
from ktlog.store import connections
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.sqlite import HOOKS, SqliteStore
from tests.store_samples import ALICE, BOB, ORIGIN, Draft, append, dump, enrol, make_batch, make_key


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.sqlite"


@pytest.fixture
def store(path: Path) -> Iterator[SqliteStore]:
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        append(store, enrol(ALICE, make_key("alice's")), enrol(BOB, make_key("bob's")))
        yield store


@pytest.fixture
def stranger(store: SqliteStore, path: Path) -> Iterator[sqlite3.Connection]:
    """A connection with SQLite's own defaults, as a shell would have: no settings of ours."""
    connection = sqlite3.connect(path, isolation_level=None)
    yield connection
    connection.close()


# Writers


def test_a_process_that_lost_its_epoch_cannot_commit(store: SqliteStore, path: Path) -> None:
    store.claim_epoch()
    mine = store.state()
    code = "import sys; from ktlog.store.sqlite import SqliteStore; print(SqliteStore(sys.argv[1]).claim_epoch())"
    other = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert other.stdout == "2\n"
    with pytest.raises(Conflict, match="Fenced"):
        store.commit(make_batch(mine, Draft("late")))
    assert store.state().size == 2


def test_two_writing_handles_cannot_both_extend_one_state(store: SqliteStore, path: Path) -> None:
    with SqliteStore.open(path) as other:
        expected = store.state()
        other.commit(make_batch(expected, Draft("the other's")))
        with pytest.raises(Conflict, match="StateMoved"):
            store.commit(make_batch(expected, Draft("mine")))
        assert dump(store) == dump(other)
        append(store, Draft("mine"))


def test_waiting_for_another_writer_ends(monkeypatch: pytest.MonkeyPatch, store: SqliteStore, path: Path) -> None:
    monkeypatch.setattr(sqlitefile, "BUSY_TIMEOUT_SECONDS", 0.05)
    with SqliteStore.open(path) as other:
        connection = sqlitefile.open_database(path)
        connection.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreError) as caught:
            append(other, Draft("one"))
        assert caught.value.name == "Locked"
        connection.execute("ROLLBACK")
        connection.close()
        append(other, Draft("one"))


def test_a_handle_stays_in_its_process(store: SqliteStore) -> None:
    child = os.fork()
    if child == 0:
        try:
            store.state()
        except StoreError as error:
            os._exit(7 if error.name == "WrongProcess" else 1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert store.state().size == 2


# Death and failure

COMMIT = """
import sys
from ktlog.store.sqlite import SqliteStore
from tests.store_samples import *
with SqliteStore(sys.argv[1]) as store:
    append(store, enrol("https://example.com/users/carol", make_key("carol's")), Draft("and another"))
    print("committed")
"""


@pytest.mark.parametrize("hook", HOOKS)
def test_a_kill_leaves_all_of_a_batch_or_none(store: SqliteStore, path: Path, hook: str) -> None:
    before = dump(store)
    store.close()
    result = subprocess.run(
        [sys.executable, "-c", COMMIT, str(path)], capture_output=True, text=True, timeout=60, check=False,
        cwd=Path(__file__).parents[2], env=os.environ | {durable.KILL_VARIABLE: hook},
    )
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, "")
    with SqliteStore.open(path) as again:
        if hook == "store.written":
            assert dump(again) == before
            append(again, enrol("https://example.com/users/carol", make_key("carol's")), Draft("and another"))
        assert again.state().size == 4
        assert again.actor("https://example.com/users/carol") is not None
        assert again.seen(again.records(3, 4)[0].unique_hash) == 3


def test_a_full_disk_refuses_the_batch_and_nothing_else(store: SqliteStore) -> None:
    before = dump(store)
    big = Draft("x" * 200_000)
    (connection,) = store._connections._idle
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError) as caught:
        append(store, big)
    assert caught.value.name == "DiskFull"
    assert dump(store) == before
    connection.execute("PRAGMA max_page_count=1000000")
    append(store, big)
    assert store.state().size == 3


class FailingCommit:
    """A connection whose next COMMIT reports *code*, having committed before it does or not."""

    def __init__(self, connection: sqlite3.Connection, code: int, persist: bool) -> None:
        self.connection, self.code, self.persist = connection, code, persist

    def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
        if statement != "COMMIT":
            return self.connection.execute(statement, *arguments)
        if self.persist:
            self.connection.execute(statement)
        error = sqlite3.OperationalError("injected")
        error.sqlite_errorcode = self.code
        raise error

    def __getattr__(self, name: str) -> object:
        return getattr(self.connection, name)


@pytest.mark.parametrize("persist", [False, True])
@pytest.mark.parametrize("write", ["commit", "claim_epoch"])
def test_a_commit_with_unknown_outcome_stops_the_writer(
    store: SqliteStore, path: Path, write: str, persist: bool
) -> None:
    before = dump(store)
    batch = make_batch(store.state(), Draft("one"))
    writing: Callable[[], object] = store.claim_epoch if write == "claim_epoch" else lambda: store.commit(batch)
    (connection,) = store._connections._idle
    store._connections._idle[:] = [FailingCommit(connection, sqlite3.SQLITE_IOERR_FSYNC, persist)]
    with pytest.raises(StoreError) as caught:
        writing()
    assert caught.value.name == AMBIGUOUS
    assert caught.value.hint
    assert (dump(store) != before) is persist
    for again in (lambda: append(store, Draft("two")), store.claim_epoch):
        with pytest.raises(StoreError, match="NeedsReopen"):
            again()
    store.close()
    with SqliteStore.open(path) as reopened:
        assert (dump(reopened) != before) is persist
        append(reopened, Draft("two"))


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_BUSY])
def test_a_commit_that_certainly_failed_can_be_tried_again(store: SqliteStore, code: int) -> None:
    before = dump(store)
    batch = make_batch(store.state(), Draft("one"))
    (connection,) = store._connections._idle
    store._connections._idle[:] = [FailingCommit(connection, code, persist=False)]
    with pytest.raises(StoreError) as caught:
        store.commit(batch)
    assert caught.value.name == {sqlite3.SQLITE_FULL: "DiskFull", sqlite3.SQLITE_BUSY: "Locked"}[code]
    assert dump(store) == before
    store._connections._idle[:] = [connection]
    store.commit(batch)
    assert store.state() == batch.state


def test_an_interrupted_commit_counts_as_unknown(monkeypatch: pytest.MonkeyPatch, store: SqliteStore) -> None:
    class Interrupted(FailingCommit):
        def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
            if statement == "COMMIT":
                raise KeyboardInterrupt
            return self.connection.execute(statement, *arguments)

    (connection,) = store._connections._idle
    store._connections._idle[:] = [Interrupted(connection, 0, persist=False)]
    with pytest.raises(KeyboardInterrupt):
        append(store, Draft("one"))
    with pytest.raises(StoreError, match="NeedsReopen"):
        append(store, Draft("two"))


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE log_state SET size = size + 1",
        "UPDATE log_state SET root = zeroblob(32)",
        "UPDATE log_state SET frontier = x'00'",
        "UPDATE log_state SET frontier = zeroblob(40)",
        "DELETE FROM log_state",
        "DELETE FROM record_plain WHERE leaf_index = 1; DELETE FROM records WHERE leaf_index = 1;"
        "DELETE FROM entries WHERE leaf_index = 1",
        "DELETE FROM record_plain; DELETE FROM records; DELETE FROM entries",
        "DELETE FROM record_plain WHERE leaf_index = 1; DELETE FROM records WHERE leaf_index = 1",
        "DELETE FROM leaf_roots WHERE tree_size = 2",
        "UPDATE leaf_roots SET root = zeroblob(32) WHERE tree_size = 2",
        "INSERT INTO entries SELECT 2, leaf_hash, randomblob(32), entry FROM entries WHERE leaf_index = 1",
        "INSERT INTO leaf_roots VALUES (3, zeroblob(32))",
    ],
)
def test_a_store_that_contradicts_itself_does_not_open(
    store: SqliteStore, path: Path, stranger: sqlite3.Connection, damage: str
) -> None:
    store.close()
    for (trigger,) in stranger.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        stranger.execute(f"DROP TRIGGER {trigger}")
    SqliteStore.open(path).close()
    stranger.executescript(damage)
    for read_only in (False, True):
        with pytest.raises(StoreError) as caught:
            SqliteStore.open(path, read_only=read_only)
        assert caught.value.name == "Corrupt"


@pytest.mark.parametrize(
    "damage",
    ["plain = '{'", "plain = '[]'", """plain = '{"a":1}'""", """keys = '{"a":"AB=="}'""", """salts = '{"a":"*"}'"""],
)
def test_a_damaged_record_is_an_error_with_a_name(
    store: SqliteStore, stranger: sqlite3.Connection, damage: str
) -> None:
    stranger.execute(f"UPDATE record_plain SET {damage} WHERE leaf_index = 1")
    store.records(0, 1)
    with pytest.raises(StoreError, match="Corrupt"):
        store.records(0, 2)


def test_a_hole_in_the_log_is_not_skipped(store: SqliteStore, stranger: sqlite3.Connection) -> None:
    stranger.executescript(
        "DROP TRIGGER entries_no_delete; DROP TRIGGER leaf_roots_no_delete;"
        "DELETE FROM entries WHERE leaf_index = 0; DELETE FROM leaf_roots WHERE tree_size = 1"
    )
    for read in (store.entries, store.leaf_hashes, store.records):
        with pytest.raises(StoreError, match="Corrupt"):
            read(0, 2)
    with pytest.raises(StoreError, match="Corrupt"):
        store.root_after(1)


def test_flipped_bytes_anywhere_never_become_another_kind_of_error(tmp_path: Path) -> None:
    good = tmp_path / "good.sqlite"
    with SqliteStore.create(good, ORIGIN, "spec") as store:
        append(store, enrol(ALICE, make_key("alice's")), enrol(BOB, make_key("bob's")))
    content = good.read_bytes()
    bad = tmp_path / "bad.sqlite"
    noticed = 0
    for at in [at for at, byte in enumerate(content) if byte][::67]:
        bad.write_bytes(content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :])
        try:
            with SqliteStore.open(bad, read_only=True) as store:
                dump(store)
        except StoreError:
            noticed += 1
        for suffix in ("-wal", "-shm"):
            Path(f"{bad}{suffix}").unlink(missing_ok=True)
    assert noticed > 50


def test_kill_points_are_listed() -> None:
    assert HOOKS == connections.HOOKS == ("store.written", "store.committed")
