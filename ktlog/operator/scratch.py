"""A small SQLite file that several processes share and that may be lost.

It need not wait for the disk, so it costs a request next to nothing; a crash of a process loses nothing even so,
and a damaged file is replaced by an empty one. What is deleted is gone from its bytes too.
"""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from ktlog.durable import file_errors
from ktlog.errors import StoreError
from ktlog.sqlitefile import database_errors, open_database, transaction

if TYPE_CHECKING:
    import sqlite3

BUSY_MS = 1_000
_DAMAGED = ("Corrupt", "DatabaseError")  # the latter also where tables are not there, or not ours


class ScratchFile:
    """One process's hold on the file. Safe to use from many threads, which take turns.

    Args:
        schema: statements that make what is not there yet.

    Raises, from every method: StoreError, when the file can neither be used nor replaced.
    """

    def __init__(self, path: Path, schema: Sequence[str]) -> None:
        self._path = path
        self._schema = tuple(schema)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = self._open()
        self._inode = self._current_inode()

    def close(self) -> None:
        with self._lock:
            self._close()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """The connection, for reads. A damaged file is refused once; the next caller meets a new one."""
        with self._lock:
            if self._connection is None or self._inode != self._current_inode():
                # Somebody removed the file or began a new one, which the other processes use.
                self._close()
                self._connection, self._inode = self._open(), self._current_inode()
            try:
                with database_errors(self._path):
                    yield self._connection
            except StoreError as error:
                if error.name in _DAMAGED:
                    self._close()
                raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """The connection, in a transaction that ends with the context, for better or worse."""
        with self.reading() as connection, transaction(connection):
            yield connection

    def _open(self) -> sqlite3.Connection:
        """Open the file, or begin a new one in place of one that is damaged. One process at a time."""
        with _turn(Path(f"{self._path}.lock")):
            try:
                return self._prepare()
            except StoreError as error:
                if error.name not in _DAMAGED:
                    raise
            for path in (self._path, Path(f"{self._path}-journal")):
                with file_errors(path), suppress(FileNotFoundError):
                    path.unlink()
            return self._prepare()

    def _prepare(self) -> sqlite3.Connection:
        connection = open_database(
            self._path, create=not self._path.exists(), journal_mode="TRUNCATE", page_size=4096,
        )
        try:
            with database_errors(self._path):
                connection.execute("PRAGMA synchronous=OFF")
                connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
                for (finding,) in connection.execute("PRAGMA quick_check(1)"):
                    if finding != "ok":
                        raise StoreError("Corrupt", f"{self._path}: {finding}")
                with transaction(connection):
                    for statement in self._schema:
                        connection.execute(statement)
                found = connection.execute("SELECT sql FROM sqlite_schema WHERE name NOT GLOB 'sqlite_*'")
                if {sql for (sql,) in found} != {sql.replace(" IF NOT EXISTS", "", 1) for sql in self._schema}:
                    raise StoreError("Corrupt", f"{self._path}: has other tables, of another version perhaps")
        except BaseException:
            connection.close()
            raise
        return connection

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _current_inode(self) -> int:
        try:
            return self._path.stat().st_ino
        except OSError:
            return -1


@contextmanager
def _turn(path: Path) -> Iterator[None]:
    """Wait until no other process is in here."""
    with file_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        with file_errors(path):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
