"""What only a file can do wrong: the rest of the promise is in tests/contract."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlog import sqlitefile
from ktlog.errors import StoreError
from ktlog.store import schema
from ktlog.store.sqlite import SqliteStore
from tests.store_samples import (
    ALICE,
    BOB,
    ORIGIN,
    Draft,
    append,
    dump,
    enrol,
    make_key,
    plan_to_erase,
)


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


# Opening


def test_a_log_is_begun_on_purpose_and_once(path: Path, tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(StoreError) as caught:
            SqliteStore.open(path, read_only=read_only)
        assert caught.value.name == "MissingStore"
    assert os.listdir(tmp_path) == []
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        append(store, Draft("one"))
    with pytest.raises(StoreError, match="StoreExists"):
        SqliteStore.create(path, ORIGIN, "spec")
    assert os.listdir(tmp_path) == ["log.sqlite"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with SqliteStore.open(path, origin=ORIGIN) as store:
        assert (store.state().size, store.origin, store.dialect) == (1, ORIGIN, "spec")


def test_a_log_cannot_begin_in_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="MissingStore"):
        SqliteStore.create(tmp_path / "none" / "log.sqlite", ORIGIN, "spec")


def test_a_log_that_could_not_be_begun_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, path: Path, tmp_path: Path
) -> None:
    def fail(_connection: sqlite3.Connection) -> None:
        raise sqlite3.OperationalError("no")

    monkeypatch.setattr("ktlog.store.rows.insert_first_state", fail)
    with pytest.raises(StoreError, match="DatabaseError"):
        SqliteStore.create(path, ORIGIN, "spec")
    assert os.listdir(tmp_path) == []


def test_another_log_is_refused(store: SqliteStore, path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(StoreError, match="WrongOrigin"):
            SqliteStore.open(path, read_only=read_only, origin="other.example.com")


def test_what_is_no_log_is_refused(path: Path) -> None:
    sqlitefile.open_database(path, create=True).close()
    with pytest.raises(StoreError, match="NotALog"):
        SqliteStore.open(path)


def test_old_code_refuses_what_it_would_misread(store: SqliteStore, path: Path, stranger: sqlite3.Connection) -> None:
    stranger.execute("UPDATE log_meta SET schema_version = 9, oldest_code = 1")
    SqliteStore.open(path, read_only=True).close()  # newer, but made so that this code may read it
    stranger.execute("UPDATE log_meta SET oldest_code = ?", (schema.SCHEMA_VERSION + 1,))
    for read_only in (False, True):
        with pytest.raises(StoreError) as caught:
            SqliteStore.open(path, read_only=read_only)
        assert caught.value.name == "NewerSchema"
        assert "release" in caught.value.hint


@pytest.fixture
def one_more_step(monkeypatch: pytest.MonkeyPatch) -> None:
    step = schema.Step("0003_test", ("CREATE TABLE added (x INTEGER) STRICT", "INSERT INTO added VALUES (1)"))
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)


@pytest.mark.usefixtures("one_more_step")
def test_the_writer_migrates_and_a_reader_waits_for_it(path: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schema, "STEPS", schema.STEPS[:-1])
        patch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION - 1)
        with SqliteStore.create(path, ORIGIN, "spec") as store:
            append(store, Draft("one"))
            before = dump(store)
    with pytest.raises(StoreError) as caught:
        SqliteStore.open(path, read_only=True)
    assert caught.value.name == "OlderSchema"
    results: list[object] = []
    start = threading.Barrier(4)

    def migrate() -> None:
        start.wait()
        try:
            with SqliteStore.open(path) as writer:
                results.append(dump(writer))
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=migrate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [before] * 4
    connection = sqlitefile.open_database(path, read_only=True)
    assert connection.execute("SELECT x FROM added").fetchall() == [(1,)]
    assert connection.execute("SELECT schema_version FROM log_meta").fetchone() == (schema.SCHEMA_VERSION,)
    connection.close()


def test_a_failing_migration_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, store: SqliteStore, path: Path, stranger: sqlite3.Connection
) -> None:
    tables = stranger.execute("SELECT name FROM sqlite_schema").fetchall()
    step = schema.Step("0003_broken", ("CREATE TABLE added (x INTEGER) STRICT", "CREATE TABLE nonsense"))
    monkeypatch.setattr(schema, "STEPS", (*schema.STEPS, step))
    monkeypatch.setattr(schema, "SCHEMA_VERSION", schema.SCHEMA_VERSION + 1)
    with pytest.raises(StoreError, match="DatabaseError"):
        SqliteStore.open(path)
    assert stranger.execute("SELECT name FROM sqlite_schema").fetchall() == tables
    assert stranger.execute("SELECT schema_version FROM log_meta").fetchone() == (schema.SCHEMA_VERSION - 1,)


def test_every_table_is_strict_and_the_file_is_as_designed(store: SqliteStore, stranger: sqlite3.Connection) -> None:
    tables = stranger.execute("SELECT name, strict FROM pragma_table_list WHERE schema = 'main'").fetchall()
    ours = {name: strict for name, strict in tables if not name.startswith(("sqlite_", "_sqlite_"))}
    assert len(ours) == 22
    assert set(ours.values()) == {1}
    assert stranger.execute("PRAGMA page_size").fetchone() == (16384,)
    assert stranger.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert stranger.execute("PRAGMA integrity_check").fetchone() == ("ok",)


# Append-only


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE entries SET entry = x'00' WHERE leaf_index = 0",
        "UPDATE entries SET leaf_index = leaf_index + 10",
        "DELETE FROM entries",
        "DELETE FROM entries WHERE leaf_index = 1",
        "REPLACE INTO entries SELECT 1, leaf_hash, unique_hash, x'00' FROM entries WHERE leaf_index = 1",
        "REPLACE INTO entries SELECT 2, leaf_hash, unique_hash, x'00' FROM entries WHERE leaf_index = 1",
        "INSERT INTO entries SELECT 1, leaf_hash, unique_hash, entry FROM entries WHERE leaf_index = 1"
        " ON CONFLICT DO UPDATE SET entry = x'00'",
        "INSERT INTO entries SELECT 9, leaf_hash, randomblob(32), entry FROM entries WHERE leaf_index = 1",
        "INSERT INTO entries (leaf_hash, unique_hash, entry) SELECT leaf_hash, unique_hash, entry FROM entries",
        "UPDATE leaf_roots SET root = zeroblob(32)",
        "DELETE FROM leaf_roots",
        "REPLACE INTO leaf_roots VALUES (2, zeroblob(32))",
        "INSERT INTO leaf_roots VALUES (4, zeroblob(32))",
        "UPDATE records SET preimage = x'00'",
        "UPDATE records SET created = 1",
        "DELETE FROM records",
        "DELETE FROM erasures",
        "UPDATE erasures SET input_size = 9",
        "REPLACE INTO erasures SELECT number, input_size, x'00' FROM erasures",
        "INSERT INTO erasures SELECT number + 1, input_size - 1, record FROM erasures",
        "INSERT INTO erasures SELECT number + 2, input_size, record FROM erasures",
        "DELETE FROM log_state",
        "REPLACE INTO log_state SELECT 1, 1, root, frontier, epoch, greatest_time FROM log_state",
        "UPDATE log_state SET size = size - 1",
        "UPDATE log_state SET root = zeroblob(32)",
        "UPDATE log_state SET epoch = epoch - 1",
        "UPDATE log_state SET greatest_time = greatest_time - 1",
        "UPDATE log_meta SET origin = 'other.example.com'",
        "UPDATE log_meta SET dialect = 'php'",
    ],
)
@pytest.mark.parametrize("ours", [False, True])
def test_the_log_refuses_to_be_changed_from_below(
    store: SqliteStore, path: Path, stranger: sqlite3.Connection, statement: str, ours: bool
) -> None:
    store.claim_epoch()
    store.erase(plan_to_erase(store, BOB), store.state())
    before = dump(store)
    connection = sqlitefile.open_database(path) if ours else stranger
    with pytest.raises(sqlite3.IntegrityError):
        connection.execute(statement)
    if ours:
        connection.close()
    assert dump(store) == before
    with SqliteStore.open(path, origin=ORIGIN) as again:
        assert dump(again) == before


# Reading


def test_readers_share_a_pool_and_give_their_connections_back(store: SqliteStore, path: Path) -> None:
    with SqliteStore.open(path, read_only=True) as reader:
        inside = threading.Barrier(4)

        def read() -> None:
            with reader.snapshot():
                inside.wait()
                reader.state()

        for _ in range(3):
            threads = [threading.Thread(target=read) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(reader._connections._idle) == 4
    assert reader._connections._idle == []


def test_a_connection_in_use_is_closed_when_it_is_given_back(store: SqliteStore, path: Path) -> None:
    reader = SqliteStore.open(path, read_only=True)
    with reader._connections.reading() as connection:
        reader.close()
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")


def test_a_reader_does_not_wait_for_a_writer(store: SqliteStore, path: Path) -> None:
    with SqliteStore.open(path, read_only=True) as reader:
        writer = sqlitefile.open_database(path)
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("UPDATE log_state SET epoch = epoch + 1")
        assert reader.state().epoch == 0
        writer.execute("COMMIT")
        assert reader.state().epoch == 1
        writer.close()


def test_every_look_up_uses_an_index(store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    statements: list[str] = []
    with SqliteStore.open(path, read_only=True) as reader:
        (connection,) = reader._connections._idle
        connection.set_trace_callback(statements.append)
        dump(reader)
        reader.token_revoked(bytes(32))
        reader.size_of_root(bytes(32))
        connection.set_trace_callback(None)
        plans = {
            statement: str(connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall())
            for statement in statements if statement.startswith("SELECT")
        }
    assert len(plans) > 15
    assert not [statement for statement, plan in plans.items() if "SCAN" in plan and "SCAN CONSTANT" not in plan]
    for table in ("entry_places", "root_places"):
        (plan,) = {plan for statement, plan in plans.items() if f"FROM {table} WHERE" in statement}
        assert f"SEARCH {table} USING PRIMARY KEY (bucket=? AND prefix=?)" in plan
