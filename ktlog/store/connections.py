"""The SQLite connections of one handle: who may use which, and what a failure means.

A writing handle has one connection, and its threads take turns. A reading handle has a pool; each
thread borrows a connection for as long as one read, or one snapshot, lasts. Both belong to the
process that opened them: SQLite's locks do not survive a fork.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from ktlog import durable, sqlitefile
from ktlog.errors import StoreError
from ktlog.store.contracts import AMBIGUOUS

HOOKS = ("store.written", "store.committed")
"""Kill points of every write: all of it is in an open transaction; the transaction is durable."""

REWRITE_HOOKS = ("store.rewritten", "store.emptied")
"""Kill points of ``Connections.rewrite``: the new pages are in the write-ahead log; and it is empty."""

# At COMMIT these two say for certain that nothing was committed: the lock was never given, or the
# frame that ends the transaction found no room in the write-ahead log.
_NOT_COMMITTED = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL)


class Connections:
    """Connections to *path*, of which *first* is open already.

    Raises, from every method: StoreError "WrongProcess" after a fork, "ClosedStore" after ``close``.
    """

    def __init__(self, path: Path, first: sqlite3.Connection, *, read_only: bool) -> None:
        self._path = path
        self._read_only = read_only
        self._process = os.getpid()
        self._turn = nullcontext() if read_only else threading.Lock()
        self._pool_lock = threading.Lock()
        self._idle = [first]
        self._local = threading.local()  # .snapshot: the connection of this thread's snapshot
        self._closed = False
        self._needs_reopen = False
        self._watch_lock = threading.Lock()
        self._watcher: sqlite3.Connection | None = None

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it is given back."""
        with self._pool_lock:
            self._closed = True
            idle, self._idle = self._idle, []
        with self._watch_lock:
            if self._watcher is not None:
                idle, self._watcher = [*idle, self._watcher], None
        for connection in idle:
            with sqlitefile.database_errors(self._path):
                connection.close()

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """A connection for one read: it sees one commit, the snapshot's if the thread is in one."""
        outer: sqlite3.Connection | None = getattr(self._local, "snapshot", None)
        return self._one_read() if outer is None else _Within(outer, self._path)

    def glance(self) -> AbstractContextManager[sqlite3.Connection]:
        """As :meth:`reading`, for one statement of which all rows are fetched: that is a transaction by itself."""
        outer: sqlite3.Connection | None = getattr(self._local, "snapshot", None)
        return self._one_statement() if outer is None else _Within(outer, self._path)

    @contextmanager
    def _one_statement(self) -> Iterator[sqlite3.Connection]:
        with self._borrowed() as connection, sqlitefile.database_errors(self._path):
            yield connection

    @contextmanager
    def _one_read(self) -> Iterator[sqlite3.Connection]:
        with self._transaction(chosen=False) as connection, sqlitefile.database_errors(self._path):
            yield connection

    def snapshot(self) -> AbstractContextManager[sqlite3.Connection]:
        """One commit for all reads of this thread inside; the outermost context counts."""
        return self._transaction(chosen=True)

    @contextmanager
    def _transaction(self, *, chosen: bool) -> Iterator[sqlite3.Connection]:
        """chosen: the commit to be seen is that of the beginning; else of the first read inside."""
        outer: sqlite3.Connection | None = getattr(self._local, "snapshot", None)
        if outer is not None:
            yield outer
            return
        with self._borrowed() as connection:
            try:
                with sqlitefile.database_errors(self._path):
                    connection.execute("BEGIN")
                    if chosen:
                        # BEGIN alone does not choose it; the first read does.
                        connection.execute("SELECT id FROM log_meta WHERE id = 1").fetchone()
                self._local.snapshot = connection
                yield connection
            finally:
                self._local.snapshot = None
                _roll_back(connection)

    def version(self) -> int:
        """A number that another one has followed as soon as anybody committed anything to the file."""
        if self._process != os.getpid():
            raise StoreError("WrongProcess", f"{self._path}: opened before a fork; open it after")
        with self._watch_lock, sqlitefile.database_errors(self._path):
            if self._closed:
                raise StoreError("ClosedStore", f"{self._path}: the store was closed")
            if self._watcher is None:
                # One of its own: what it counts are the commits of all others.
                self._watcher = sqlitefile.open_database(self._path, read_only=True)
            return self._watcher.execute("PRAGMA data_version").fetchone()[0]

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """The connection inside an IMMEDIATE transaction, committed at the end.

        Raises:
            StoreError: "ReadOnly"; "NeedsReopen"; ``AMBIGUOUS`` when COMMIT failed in a way that
                leaves open what is on disk. Otherwise an error means that nothing was written.
        """
        if self._read_only:
            raise StoreError("ReadOnly", f"{self._path}: opened for reading only")
        if getattr(self._local, "snapshot", None) is not None:
            raise AssertionError("a write inside a snapshot of the same thread")
        with self._borrowed() as connection:
            self._refuse_after_ambiguity()
            try:
                with sqlitefile.database_errors(self._path):
                    connection.execute("BEGIN IMMEDIATE")
                    yield connection
            except BaseException:
                _roll_back(connection)
                raise
            durable.reach("store.written")
            self._commit(connection)
            durable.reach("store.committed")

    def rewrite(self) -> bool:
        """Write every page of the file anew, and empty the write-ahead log behind it.

        It takes memory and free space for one more copy of the database while it lasts.

        Returns:
            Whether the log is empty: a reader's snapshot that lasts too long keeps it from that.
        """
        if self._read_only:
            raise StoreError("ReadOnly", f"{self._path}: opened for reading only")
        with self._borrowed() as connection, sqlitefile.database_errors(self._path):
            self._refuse_after_ambiguity()
            connection.execute("VACUUM")
            durable.reach("store.rewritten")
            busy, _frames, _moved = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if not busy:
                durable.reach("store.emptied")
            return not busy

    def defer_checkpoints(self, pages: int) -> None:
        """Let no commit move the write-ahead log into the file before it has *pages*: :meth:`checkpoint` does."""
        with self._borrowed() as connection, sqlitefile.database_errors(self._path):
            connection.execute(f"PRAGMA wal_autocheckpoint={pages}").fetchone()

    def checkpoint(self) -> None:
        """Move what is in the write-ahead log into the file, as far as readers let it."""
        with self._borrowed() as connection, sqlitefile.database_errors(self._path):
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

    def _refuse_after_ambiguity(self) -> None:
        if self._needs_reopen:
            raise StoreError(
                "NeedsReopen", f"{self._path}: an earlier write may or may not have been stored",
                hint="Close the store, open it again, and read its state before anything else.",
            )

    def _commit(self, connection: sqlite3.Connection) -> None:
        try:
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            _roll_back(connection)
            if (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF in _NOT_COMMITTED:
                raise sqlitefile.database_error(self._path, error) from error
            self._needs_reopen = True
            raise StoreError(
                AMBIGUOUS, f"{self._path}: {error}; what was being written may be stored or not",
                hint="Discard what is in memory, open the store again and read its state.",
            ) from error
        except BaseException:
            self._needs_reopen = True
            _roll_back(connection)
            raise

    @contextmanager
    def _borrowed(self) -> Iterator[sqlite3.Connection]:
        if self._process != os.getpid():
            raise StoreError("WrongProcess", f"{self._path}: opened before a fork; open it after")
        with self._turn:
            connection = self._take()
            try:
                yield connection
            finally:
                self._give_back(connection)

    def _take(self) -> sqlite3.Connection:
        with self._pool_lock:
            if self._closed:
                raise StoreError("ClosedStore", f"{self._path}: the store was closed")
            if self._idle:
                return self._idle.pop()
        if not self._read_only:
            raise StoreError("NeedsReopen", f"{self._path}: the one write connection was lost")
        return sqlitefile.open_database(self._path, read_only=True)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._pool_lock:
            if not self._closed and not connection.in_transaction:
                self._idle.append(connection)
                return
        with suppress(sqlite3.Error):
            connection.close()


class _Within:
    """One of many reads in a snapshot, which holds the connection: ``sqlitefile.database_errors`` and no more.

    Written out, because a message does some twenty of them, and a generator costs more than what it reads.
    """

    __slots__ = ("_connection", "_path")

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._connection = connection
        self._path = path

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, sqlite3.Error | UnicodeDecodeError):
            with sqlitefile.database_errors(self._path):
                raise error


def _roll_back(connection: sqlite3.Connection) -> None:
    """End the transaction without a trace. If even that fails, the connection is thrown away later."""
    with suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")
