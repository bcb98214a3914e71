"""Databases that are opened to last, and whose errors have names."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from pathlib import Path

import pytest

from ktlog import sqlitefile
from ktlog.errors import StoreError


def test_a_database_is_opened_to_last(tmp_path: Path) -> None:
    path = tmp_path / "a b?#%.db"
    connection = sqlitefile.open_database(path, create=True)
    connection.execute("CREATE TABLE t (x)")
    connection.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    connection = sqlitefile.open_database(path)
    wanted = {
        "page_size": 16384, "journal_mode": "wal", "synchronous": 2, "secure_delete": 1, "foreign_keys": 1,
        "recursive_triggers": 1, "trusted_schema": 0, "busy_timeout": 5000, "temp_store": 2,
    }
    found = {name: connection.execute(f"PRAGMA {name}").fetchone()[0] for name in wanted}
    connection.close()
    assert found == wanted


def test_a_missing_database_is_not_made(tmp_path: Path) -> None:
    for read_only in (False, True):
        with pytest.raises(StoreError) as caught:
            sqlitefile.open_database(tmp_path / "log.db", read_only=read_only)
        assert caught.value.name == "MissingStore"
    with pytest.raises(StoreError, match="MissingStore"):
        sqlitefile.open_database(tmp_path)
    assert os.listdir(tmp_path) == []


def test_an_existing_database_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"anything")
    with pytest.raises(StoreError, match="StoreExists"):
        sqlitefile.open_database(tmp_path / "log.db", create=True)
    assert (tmp_path / "log.db").read_bytes() == b"anything"


def test_a_read_only_connection_cannot_write(tmp_path: Path) -> None:
    writer = sqlitefile.open_database(tmp_path / "log.db", create=True)
    writer.execute("CREATE TABLE t (x)")
    reader = sqlitefile.open_database(tmp_path / "log.db", read_only=True)
    for statement in ("INSERT INTO t VALUES (1)", "CREATE TABLE u (x)", "DROP TABLE t", "PRAGMA user_version=9"):
        with pytest.raises(StoreError, match="ReadOnly"), sqlitefile.database_errors("log.db"):
            reader.execute(statement)
    reader.execute("PRAGMA query_only=OFF")
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        reader.execute("INSERT INTO t VALUES (1)")
    writer.execute("INSERT INTO t VALUES (2)")
    assert reader.execute("SELECT x FROM t").fetchall() == [(2,)]
    writer.close()
    reader.close()


def test_a_file_that_may_be_lost_can_do_without_a_write_ahead_log(tmp_path: Path) -> None:
    connection = sqlitefile.open_database(tmp_path / "guard.db", create=True, journal_mode="DELETE")
    connection.execute("CREATE TABLE t (x)")
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
    connection.close()
    assert os.listdir(tmp_path) == ["guard.db"]


def test_what_is_no_database_is_corrupt(tmp_path: Path) -> None:
    (tmp_path / "log.db").write_bytes(b"not a database" * 2000)
    for read_only in (False, True):
        with pytest.raises(StoreError) as caught:
            sqlitefile.open_database(tmp_path / "log.db", read_only=read_only)
        assert caught.value.name == "Corrupt"


def test_errors_of_the_database_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlitefile, "BUSY_TIMEOUT_SECONDS", 0.05)
    path = tmp_path / "log.db"
    one = sqlitefile.open_database(path, create=True)
    one.execute("CREATE TABLE t (x INTEGER PRIMARY KEY) STRICT")
    other = sqlitefile.open_database(path)
    one.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="Locked"), sqlitefile.database_errors(path):
        other.execute("BEGIN IMMEDIATE")
    one.execute("ROLLBACK")
    with pytest.raises(StoreError, match="Refused"), sqlitefile.database_errors(path):
        other.execute("INSERT INTO t VALUES ('text')")
    with pytest.raises(StoreError, match="DatabaseError"), sqlitefile.database_errors(path):
        other.execute("SELECT nonsense FROM t")
    pages = other.execute("PRAGMA page_count").fetchone()[0]
    other.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(StoreError, match="DiskFull"), sqlitefile.database_errors(path):
        other.execute("CREATE TABLE u (x)")
    one.close()
    other.close()


def test_a_connection_may_change_threads(tmp_path: Path) -> None:
    connection = sqlitefile.open_database(tmp_path / "log.db", create=True)
    errors: list[BaseException] = []

    def work() -> None:
        try:
            connection.execute("CREATE TABLE t (x)")
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    connection.close()
    assert not errors
