"""Bringing the database of an older release up to this one's schema: a copy first, then one transaction."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from ktlog import durable, sqlitefile
from witness.schema import SCHEMA_VERSION, renumber_statements, schema_statements

#: Kill points: the copy is on the disk and nothing is changed yet; everything is changed and not committed.
COPIED, MIGRATED = HOOKS = ("witness.copied", "witness.migrated")

_LOG = logging.getLogger("ktlog.witness")


def copy_path(path: Path, version: int) -> Path:
    """Where the database stays as it was when it still had schema *version*."""
    return path.with_name(f"{path.name}.schema-{version}")


def migrate(path: Path, connection: sqlite3.Connection, reach: Callable[[str], None]) -> None:
    """Give the database at *path*, open as *connection*, this code's schema. Nobody else may be about to write it.

    Raises:
        StoreError: there is no room for the copy, or it cannot be written; then nothing is changed.
    """
    with sqlitefile.database_errors(path):
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("SELECT schema_version FROM witness").fetchone()
            if version < SCHEMA_VERSION:
                copy = copy_path(path, version)
                _copy(path, copy)
                reach(COPIED)
                for statement in (*schema_statements(), *renumber_statements()):
                    connection.execute(statement)
                reach(MIGRATED)
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    if version < SCHEMA_VERSION:
        _LOG.warning("%s had schema %d and has %d now; as it was, it is kept in %s, which must never be served",
                     path, version, SCHEMA_VERSION, copy)


def _copy(path: Path, to: Path) -> None:
    """What is committed at *path*, in a file of its own, durably. One of an attempt that ended here is replaced."""
    unfinished = to.with_name(f".{to.name}.tmp")
    with durable.file_errors(unfinished), suppress(FileNotFoundError):
        unfinished.unlink()
    try:
        target = sqlitefile.open_database(unfinished, create=True, journal_mode="DELETE")
        with closing(target), closing(sqlitefile.open_database(path, read_only=True)) as source:
            source.backup(target)
        with durable.file_errors(unfinished):
            handle = os.open(unfinished, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
            os.replace(unfinished, to)
        durable.sync_directory(to.parent)
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            with suppress(OSError):
                os.unlink(f"{unfinished}{suffix}")
