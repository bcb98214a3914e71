"""Opening SQLite files so that a commit is durable and a deletion deletes.

Apart from ``ktlog.durable`` because the ``sqlite3`` module is imported only where a database is used.
Nothing here leaves ``sqlite3.Error`` behind; it becomes ``StoreError``.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ktlog.durable import file_errors, sync_directory
from ktlog.errors import StoreError

PAGE_SIZE = 16384
BUSY_TIMEOUT_SECONDS = 5.0


def open_database(
    path: Path | str, *, read_only: bool = False, create: bool = False, journal_mode: str = "WAL",
    page_size: int = PAGE_SIZE,
) -> sqlite3.Connection:
    """Open a SQLite file so that a commit is durable and a deletion deletes.

    The connection is in autocommit mode (``isolation_level=None``): say BEGIN IMMEDIATE and COMMIT
    yourself. It may be used from any thread, but by one at a time: lock around it.

    Args:
        read_only: the file must exist; nothing can be written through the connection, and it never
            checkpoints the write-ahead log (before 3.51.3 SQLite can corrupt a file whose log two
            connections checkpoint, so only the one writer does).
        create: make a new file, mode 0600. Without it a missing file is an error, so that a mistyped
            path does not begin an empty database.
        page_size: of a new file, in bytes. What a write changes at random costs a whole page each time.
        journal_mode: "WAL"; or "DELETE", or "TRUNCATE", for a small file that may be lost.

    Raises:
        StoreError: "MissingStore", "StoreExists", or what ``database_errors`` says.
    """
    path = Path(path).absolute()
    if create:
        if read_only:
            raise AssertionError("a new database cannot be read only")
        with file_errors(path):
            try:
                os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            except FileExistsError:
                raise StoreError("StoreExists", f"{path}: exists, and is not replaced") from None
        sync_directory(path.parent)
    elif not path.is_file():
        raise StoreError(
            "MissingStore", f"{path}: no such database",
            hint="Check the directory; a new database is made by init only.",
        )
    mode = "ro" if read_only else "rw"
    with database_errors(path):
        connection = sqlite3.connect(
            f"{path.as_uri()}?mode={mode}", uri=True, timeout=BUSY_TIMEOUT_SECONDS,
            isolation_level=None, check_same_thread=False,
        )
        try:
            _configure(connection, path, read_only, journal_mode, page_size)
        except BaseException:
            connection.close()
            raise
    return connection


def _configure(
    connection: sqlite3.Connection, path: Path, read_only: bool, journal_mode: str, page_size: int
) -> None:
    def setting(statement: str) -> object:
        row = connection.execute(f"PRAGMA {statement}").fetchone()
        return None if row is None else row[0]

    if read_only:
        setting("query_only=ON")
    else:
        setting(f"page_size={page_size}")  # counts only while the file is empty, before it becomes WAL
        if str(setting(f"journal_mode={journal_mode}")).upper() != journal_mode:
            raise StoreError(
                "UnsafeStore", f"{path}: SQLite cannot use journal mode {journal_mode} here",
                hint="Keep it on a local file system.",
            )
        setting("synchronous=FULL")
        setting("fullfsync=ON")
        setting("checkpoint_fullfsync=ON")
        setting("secure_delete=ON")
        if setting("synchronous") != 2 or setting("secure_delete") != 1:
            raise StoreError("UnsafeStore", f"{path}: SQLite refuses synchronous=FULL or secure_delete=ON")
    setting("foreign_keys=ON")
    setting("recursive_triggers=ON")  # or REPLACE deletes rows without asking the triggers
    setting("trusted_schema=OFF")
    setting("cell_size_check=ON")
    setting("temp_store=MEMORY")  # no plaintext in temporary files
    connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()  # reads the file: is it a database?


@contextmanager
def new_database(path: Path, *, page_size: int = PAGE_SIZE) -> Iterator[sqlite3.Connection]:
    """One transaction in a new database, which appears at *path* when the block ends: whole, or not at all.

    Raises:
        StoreError: "StoreExists", or what ``open_database`` says.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        connection = open_database(unfinished, create=True, page_size=page_size)
        try:
            with database_errors(path), transaction(connection):
                yield connection
        finally:
            connection.close()  # moves everything from the write-ahead log into the file, and syncs it
        with file_errors(path):
            try:
                os.link(unfinished, path)
            except FileExistsError:
                raise StoreError("StoreExists", f"{path}: exists, and is not replaced") from None
    finally:
        for suffix in ("", "-wal", "-shm"):
            with suppress(OSError):
                os.unlink(f"{unfinished}{suffix}")
    sync_directory(path.parent)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does; roll all of it back after an error."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        if connection.in_transaction:  # some errors of SQLite have ended it
            connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


@contextmanager
def database_errors(path: Path | str) -> Iterator[None]:
    """Turn ``sqlite3.Error`` about *path* into a coded ``StoreError``.

    Names: "DiskFull", "Corrupt", "Locked", "ReadOnly", "InputOutput", "CannotOpen", "Refused" (a type, a
    constraint or a trigger), and "DatabaseError" for anything else.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise database_error(path, error) from error
    except UnicodeDecodeError as error:  # sqlite3's own, for an error message made of damaged bytes
        raise StoreError("Corrupt", f"{path}: {error}") from error


def database_error(path: Path | str, error: sqlite3.Error) -> StoreError:
    """The coded form of *error*; see ``database_errors``."""
    names = {
        sqlite3.SQLITE_FULL: "DiskFull", sqlite3.SQLITE_CORRUPT: "Corrupt", sqlite3.SQLITE_NOTADB: "Corrupt",
        sqlite3.SQLITE_BUSY: "Locked", sqlite3.SQLITE_LOCKED: "Locked", sqlite3.SQLITE_READONLY: "ReadOnly",
        sqlite3.SQLITE_IOERR: "InputOutput", sqlite3.SQLITE_CANTOPEN: "CannotOpen",
        sqlite3.SQLITE_CONSTRAINT: "Refused", sqlite3.SQLITE_MISMATCH: "Refused",
    }
    primary_code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    return StoreError(names.get(primary_code, "DatabaseError"), f"{path}: {error}")
