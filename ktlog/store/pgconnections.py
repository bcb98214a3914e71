"""The PostgreSQL connections of one handle: who may use which, and what a failure means.

A writing handle has one connection that writes, and its threads take turns. Every handle has a pool of others that
only read; a thread borrows one for as long as one read, or one snapshot, lasts, and never waits for a write. All of
them belong to the process that opened them.

What a server does not promise is found out whenever a connection is opened: one that answers COMMIT before
the transaction is on disk is refused.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

import psycopg
import psycopg_pool
from psycopg.pq import TransactionStatus

from ktlog import durable
from ktlog.errors import StoreError
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.pgerrors import AGAIN, database_error, database_errors, describe, is_undone, parse_url

T = TypeVar("T")

HOOKS = ("store.written", "store.committed")
"""Kill points of every write: all of it is in an open transaction; the transaction is durable."""

READERS = 8
"""Reading connections of a handle, at most."""

TRIES = 6
"""How often a write is tried that the server undid because of another one."""

CONNECT_SECONDS = 5
STATEMENT_SECONDS = 30
LOCK_SECONDS = 5

_DEFAULTS = {
    "application_name": "ktlog", "client_encoding": "utf8", "connect_timeout": str(CONNECT_SECONDS),
    # A server that vanished without a word is noticed within half a minute, not in two hours.
    "keepalives_idle": "10", "keepalives_interval": "5", "keepalives_count": "3", "tcp_user_timeout": "25000",
}

# One text, so that it costs one round trip. pg_temp last: nobody's temporary table hides one of ours.
_SESSION = (
    "SET search_path = ktlog, pg_temp; SET TimeZone = 'UTC'; SET client_min_messages = warning;"
    # Where it is off, the driver escapes twice what stands in an array of bytea, and nothing in there is found.
    " SET standard_conforming_strings = on;"
    f" SET statement_timeout = '{STATEMENT_SECONDS}s'; SET lock_timeout = '{LOCK_SECONDS}s';"
    # A process that is stopped in the middle of a write keeps its successor waiting for no longer than this.
    " SET idle_in_transaction_session_timeout = '10s';"
)
_READING = " SET default_transaction_read_only = on; SET idle_in_transaction_session_timeout = '60s';"

# SELECT, because BEGIN alone does not choose the commit to be seen; the first query does.
_BEGIN_SNAPSHOT = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SELECT 1"

_UNSAFE = {"fsync": {"off"}, "full_page_writes": {"off"}, "synchronous_commit": {"off"}}
"""Values of settings under which a commit that was answered may be lost, or half of a page."""


class PgConnections:
    """Connections to the database *url*.

    Raises, from every method: StoreError "WrongProcess" after a fork, "ClosedStore" after ``close``, "CannotOpen"
    when no connection can be had.

    Args:
        read_only: no write is tried through this handle, whatever happens.

    Raises:
        UsageError: "BadStore", *url* is none.
        StoreError: "UnsafeStore", the server's settings can lose what it said to have stored; "Replica", it follows
            another server, and its answers are late; "ReadOnly".
    """

    def __init__(self, url: str, *, read_only: bool, readers: int = READERS) -> None:
        self._parameters = _DEFAULTS | parse_url(url)
        self.where = describe(self._parameters)
        self.read_only = read_only
        self._readers = readers
        self._process = os.getpid()
        self._turn = threading.Lock()
        self._pool_lock = threading.Lock()
        self._pool: psycopg_pool.ConnectionPool | None = None
        self._local = threading.local()  # .snapshot: the connection of this thread's snapshot
        self._closed = False
        self._needs_reopen = False
        self._unfit: StoreError | None = None  # why the newest reading connection was refused
        first = self.connect()
        self._writer: psycopg.Connection | None = None if read_only else first
        if read_only:
            first.close()

    def close(self) -> None:
        """Close what is idle; what is in use is closed when it is given back."""
        with self._pool_lock:
            self._closed = True
            pool, self._pool = self._pool, None
        if self._process != os.getpid():
            return  # whoever says goodbye to the server ends the parent's sessions
        if pool is not None:
            pool.close()
        if self._turn.acquire(blocking=False):
            try:
                self._drop_writer()
            finally:
                self._turn.release()

    # Reading

    def read(self, work: Callable[[psycopg.Connection], T], *, single: bool = False) -> T:
        """What *work* reads, all of it of one commit: the snapshot's, if the thread is in one.

        It is begun again once if the connection turns out to be lost.

        Args:
            single: *work* is one statement, which sees one commit by itself and needs no transaction.
        """
        context = self._borrowed if single else self._snapshot
        for last in (False, True):
            outer: psycopg.Connection | None = getattr(self._local, "snapshot", None)
            try:
                with database_errors(self.where):
                    if outer is not None:
                        return work(outer)
                    with context() as connection:
                        return work(connection)
            except StoreError as error:
                if error.name != "ConnectionLost" or outer is not None or last:
                    raise
                self._check_pool()
        raise AssertionError("the last try returns or raises")

    def peek(self, work: Callable[[psycopg.Connection], T]) -> T:
        """What *work*, one statement, reads of the newest commit, also while the thread is in a snapshot."""
        for last in (False, True):
            try:
                with self._borrowed() as connection, database_errors(self.where):
                    return work(connection)
            except StoreError as error:
                if error.name != "ConnectionLost" or last:
                    raise
                self._check_pool()
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def reading(self) -> Iterator[psycopg.Connection]:
        """A connection for one read: it sees one commit, the snapshot's if the thread is in one."""
        with self.snapshot() as connection, database_errors(self.where):
            yield connection

    @contextmanager
    def snapshot(self) -> Iterator[psycopg.Connection]:
        """One commit for all reads of this thread inside; the outermost context counts."""
        outer: psycopg.Connection | None = getattr(self._local, "snapshot", None)
        if outer is not None:
            yield outer
            return
        with self._snapshot() as connection:
            try:
                self._local.snapshot = connection
                yield connection
            finally:
                self._local.snapshot = None

    @contextmanager
    def _snapshot(self) -> Iterator[psycopg.Connection]:
        with self._borrowed(_BEGIN_SNAPSHOT) as connection:
            try:
                yield connection
            finally:
                _roll_back(connection)

    @contextmanager
    def _borrowed(self, begin: str = "") -> Iterator[psycopg.Connection]:
        """A reading connection. With *begin*, which is said to it first, it is one that still lives."""
        connection, pool = self._take(begin)
        try:
            yield connection
        finally:
            pool.putconn(connection)

    def _take(self, begin: str) -> tuple[psycopg.Connection, psycopg_pool.ConnectionPool]:
        for last in (False, True):
            pool = self._open_pool()
            try:
                connection = pool.getconn()
            except psycopg_pool.PoolClosed as error:
                raise self._closed_error() from error
            except psycopg_pool.PoolTimeout as error:
                if self._unfit is not None:
                    raise self._unfit from error
                raise StoreError(
                    "CannotOpen", f"{self.where}: no connection within {CONNECT_SECONDS} s",
                    hint="Is the server there, and are its connections used up?",
                ) from error
            try:
                if begin:
                    connection.execute(begin)
                return connection, pool
            except psycopg.Error as error:
                pool.putconn(connection)
                if last or not connection.closed:
                    raise database_error(self.where, error) from error
                self._check_pool()
        raise AssertionError("the last try returns or raises")

    def _check_pool(self) -> None:
        """Throw away the idle connections that were lost: a server that was started again has lost all of them."""
        with suppress(psycopg.Error):
            self._open_pool().check()

    def _open_pool(self) -> psycopg_pool.ConnectionPool:
        self._check_usable()
        with self._pool_lock:
            if self._closed:
                raise self._closed_error()
            if self._pool is None:
                self._pool = psycopg_pool.ConnectionPool(
                    kwargs={**self._parameters, "autocommit": True}, min_size=0, max_size=self._readers, open=True,
                    configure=self._configure_reader, timeout=CONNECT_SECONDS, reconnect_timeout=CONNECT_SECONDS,
                    num_workers=1, name="ktlog",
                )
            return self._pool

    def _configure_reader(self, connection: psycopg.Connection) -> None:
        """Of several hosts in the URL each connection may find another one, and that may be a standby."""
        connection.execute(_SESSION)
        self._unfit = None
        try:
            self._check_server(connection)
        except StoreError as error:
            self._unfit = error
            connection.close()
            raise
        connection.execute(_READING)

    # Writing

    def write(self, work: Callable[[psycopg.Connection], T]) -> T:
        """What *work* returns, once all that it wrote is committed.

        Args:
            work: reads and writes through the connection and has no other effect: where the server undoes the
                transaction because of another one (SQLSTATE 40001, 40P01) it is called again, a few times.

        Raises:
            StoreError: as :meth:`writing`; "Locked" after the last try.
        """
        for number in range(TRIES):
            try:
                with self.writing() as connection:
                    return work(connection)
            except StoreError as error:
                if not isinstance(error.__cause__, AGAIN) or number == TRIES - 1:
                    raise
            time.sleep(0.005 * 2**number)
        raise AssertionError("the last try returns or raises")

    @contextmanager
    def writing(self) -> Iterator[psycopg.Connection]:
        """The connection inside a READ COMMITTED transaction, committed at the end.

        Whoever writes begins with an UPDATE of the one row that all writers of its tables begin with: then they take
        turns, and each sees all that those before it did.

        Raises:
            StoreError: "ReadOnly"; "NeedsReopen"; ``AMBIGUOUS`` when the connection was lost after COMMIT was sent,
                so that nobody knows. Otherwise an error means that nothing was written.
        """
        self._refuse_reader()
        with self._turn:
            connection = self._open_writer()
            try:
                with database_errors(self.where):
                    connection.execute("BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE", prepare=False)
                    yield connection
            except BaseException:
                _roll_back(connection)
                self._keep_writer(connection)
                raise
            durable.reach("store.written")
            self._commit(connection)
            self._keep_writer(connection)
            durable.reach("store.committed")

    @contextmanager
    def maintaining(self, lock_seconds: float) -> Iterator[psycopg.Connection]:
        """The writing connection outside of any transaction and without a limit of time, for VACUUM."""
        self._refuse_reader()
        with self._turn:
            connection = self._open_writer()
            try:
                with database_errors(self.where):
                    connection.execute(
                        f"SET statement_timeout = 0; SET lock_timeout = '{int(lock_seconds * 1000)}ms';"
                        " SET client_min_messages = info"
                    )
                    yield connection
            finally:
                with suppress(psycopg.Error):
                    connection.execute(_SESSION)
                self._keep_writer(connection)

    def _refuse_reader(self) -> None:
        self._check_usable()
        if self.read_only:
            raise StoreError("ReadOnly", f"{self.where}: opened for reading only")
        if getattr(self._local, "snapshot", None) is not None:
            raise AssertionError("a write inside a snapshot of the same thread")

    def _open_writer(self) -> psycopg.Connection:
        """The writing connection; another one, if the last was lost before a COMMIT. The caller has the turn."""
        self._check_usable()
        if self._needs_reopen:
            raise StoreError(
                "NeedsReopen", f"{self.where}: an earlier write may or may not have been stored",
                hint="Close the store, open it again, and read its state before anything else.",
            )
        if self._writer is None:
            self._writer = self.connect()
        return self._writer

    def _commit(self, connection: psycopg.Connection) -> None:
        warnings: list[str] = []

        def note(diagnostic: psycopg.errors.Diagnostic) -> None:
            if diagnostic.severity_nonlocalized == "WARNING":
                warnings.append(diagnostic.message_primary or "a warning")

        connection.add_notice_handler(note)
        try:
            tag = connection.execute("COMMIT", prepare=False).statusmessage
            connection.remove_notice_handler(note)
        except psycopg.Error as error:
            if is_undone(connection, error):
                connection.remove_notice_handler(note)
                raise database_error(self.where, error) from error
            raise self._ambiguous(str(error).strip() or type(error).__name__) from error
        except BaseException:
            self._ambiguous("interrupted")
            raise
        # The server commits with a warning if it gave up waiting for its standby.
        if warnings:
            raise self._ambiguous(warnings[0])
        if tag != "COMMIT":
            raise StoreError("Refused", f"{self.where}: an error inside the transaction was passed over")

    def _ambiguous(self, what: str) -> StoreError:
        self._needs_reopen = True
        self._drop_writer()
        return StoreError(
            AMBIGUOUS, f"{self.where}: {what.splitlines()[0]}; what was being written may be stored or not",
            hint="Discard what is in memory, open the store again and read its state.",
        )

    def _keep_writer(self, connection: psycopg.Connection) -> None:
        """Keep the connection for the next write, if it can be used for one."""
        if self._closed or connection.closed or connection.info.transaction_status != TransactionStatus.IDLE:
            self._drop_writer()

    def _drop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(psycopg.Error):
                writer.close()

    # Opening

    def connect(self) -> psycopg.Connection:
        """A new connection to a server that was found good, in autocommit mode. Whoever asks for it closes it."""
        try:
            connection = psycopg.connect(**self._parameters, autocommit=True)
        except psycopg.Error as error:
            raise StoreError(
                "CannotOpen", f"{self.where}: {str(error).strip().splitlines()[0]}",
                hint="Check the URL, and that the server is there and lets this role in.",
            ) from error
        try:
            with database_errors(self.where):
                connection.execute(_SESSION)
                self._check_server(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _check_server(self, connection: psycopg.Connection) -> None:
        *settings, replica, read_only = connection.execute(
            "SELECT current_setting('fsync', true), current_setting('full_page_writes', true),"
            " current_setting('synchronous_commit', true), pg_is_in_recovery(),"
            " current_setting('transaction_read_only')"
        ).fetchone() or ()
        for (name, unsafe), value in zip(_UNSAFE.items(), settings, strict=True):
            if value in unsafe:
                raise StoreError(
                    "UnsafeStore", f"{self.where}: the server has {name} = {value}",
                    hint="A commit that was answered could be lost with the next power failure, and the log would"
                    " fork. Set it to on.",
                )
        if settings[-1] is not None:
            # A session follows the server's configuration when that is loaded anew, unless it has a value of its own.
            connection.execute("SELECT set_config('synchronous_commit', %s, false)", (settings[-1],))
        if replica:
            raise StoreError(
                "Replica", f"{self.where}: this server follows another one, and its answers are late",
                hint="Use the primary server's address, or several with target_session_attrs=primary.",
            )
        if read_only == "on" and not self.read_only:
            raise StoreError("ReadOnly", f"{self.where}: this role, database or server only lets read")

    def _check_usable(self) -> None:
        if self._process != os.getpid():
            raise StoreError("WrongProcess", f"{self.where}: opened before a fork; open it after")
        if self._closed:
            raise self._closed_error()

    def _closed_error(self) -> StoreError:
        return StoreError("ClosedStore", f"{self.where}: the store was closed")


def make_missing(db: psycopg.Connection, table: str, statements: Sequence[str]) -> None:
    """Make *table*, the last of what *statements* make, in one transaction of *db*, which is in autocommit mode.

    IF NOT EXISTS alone is not enough: it looks before it waits, so that of two sessions which both find nothing the
    second fails once the first has committed, with whatever row of the catalogue is there twice.
    """
    for _ in range(TRIES):
        if db.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone() == (True,):
            return
        with suppress(psycopg.errors.UniqueViolation, psycopg.errors.DuplicateTable, *AGAIN), db.transaction():
            for statement in statements:
                db.execute(statement)
            return
    raise StoreError("Locked", f"the table {table} is being made by others, {TRIES} times in a row")


def _roll_back(connection: psycopg.Connection) -> None:
    """End the transaction without a trace. If even that fails, the connection is thrown away later."""
    with suppress(psycopg.Error):
        if not connection.closed and connection.info.transaction_status != TransactionStatus.IDLE:
            connection.execute("ROLLBACK")
