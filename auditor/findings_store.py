"""What a watch found, one row a finding, in ``DIR/watch.db``; it outlives the watch, and other commands read it.

A finding is the same one as long as its log, its name and its key are the same. The key says what it is about: a
witness, an address, an entry. It opens once, counts how often it was seen again, closes when it holds no longer, and
opens again, in the same row, when it comes back. What convicts a log (class ``Forked``) never closes.

::

    watch_meta   the version of the schema, and the oldest code that may open it
    findings     one row a finding
    conditions   what holds, but not for long enough to be one (see auditor/debounce.py)
    heads        the newest head of each source; sizes: when which size was seen first (auditor/memory.py)
    kept_receipts  those that need not be looked at again (auditor/kept.py)
    peers        how far the logs of peers were read; peer_roots: what they say and we do not know (auditor/peers.py)

Other modules keep tables of their own in the same file, by migrations of their own: see :func:`open_watch_database`.

The file is small, and several processes write to it (the watch, and commands beside it). So its journal is SQLite's
rollback journal: before 3.51.3 a write-ahead log that two connections check-point can corrupt the file. Every commit is
synced. Mode 0600: what people watch is nobody's business.
"""

from __future__ import annotations

import os
import re
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from auditor.alarm import redact
from auditor.report import Finding
from ktlog.durable import file_errors
from ktlog.errors import StoreError
from ktlog.sqlitefile import database_errors, open_database, transaction

if TYPE_CHECKING:
    from sqlite_utils import Database

DATABASE = "watch.db"
SCHEMA_VERSION = 1
OLDEST_CODE = 1
"""Oldest SCHEMA_VERSION whose code may open a file of this version."""

MAX_KEYS_PER_NAME = 1000
"""Rows of one name about one log. A log that breaks every entry must not fill the disk: the rest is one row more."""
MORE_KEY = "(more)"
_LONGEST_WHAT = 2000
_LONGEST_KEY = 300

_FINDINGS = (
    """CREATE TABLE watch_meta (
        id INTEGER PRIMARY KEY CHECK (id = 1), schema_version INTEGER NOT NULL, oldest_code INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE findings (
        id INTEGER PRIMARY KEY,
        origin TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL,
        class TEXT NOT NULL, what TEXT NOT NULL, leaf_index INTEGER,
        first_seen INTEGER NOT NULL, opened_at INTEGER NOT NULL, last_seen INTEGER NOT NULL,
        count INTEGER NOT NULL, openings INTEGER NOT NULL,
        evidence TEXT, closed_at INTEGER,
        changes INTEGER NOT NULL, told INTEGER NOT NULL,
        UNIQUE (origin, name, key)
    ) STRICT""",
    "CREATE INDEX findings_open ON findings (origin, name) WHERE closed_at IS NULL",
    "CREATE INDEX findings_untold ON findings (id) WHERE told < changes",
    """CREATE TABLE conditions (
        origin TEXT NOT NULL, name TEXT NOT NULL, key TEXT NOT NULL,
        since INTEGER NOT NULL, last_seen INTEGER NOT NULL, rounds INTEGER NOT NULL, calm INTEGER NOT NULL,
        PRIMARY KEY (origin, name, key)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE heads (
        origin TEXT NOT NULL, source TEXT NOT NULL,
        size INTEGER NOT NULL, root BLOB NOT NULL, note BLOB NOT NULL, tied INTEGER NOT NULL,
        first_seen INTEGER NOT NULL,
        PRIMARY KEY (origin, source)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE sizes (
        origin TEXT NOT NULL, side TEXT NOT NULL, size INTEGER NOT NULL, first_seen INTEGER NOT NULL,
        PRIMARY KEY (origin, side, size)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE peers (
        origin TEXT NOT NULL, peer TEXT NOT NULL, size INTEGER NOT NULL, PRIMARY KEY (origin, peer)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE kept_receipts (
        origin TEXT NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (origin, digest)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE peer_roots (
        origin TEXT NOT NULL, peer TEXT NOT NULL, root BLOB NOT NULL, leaf_index INTEGER NOT NULL,
        first_seen INTEGER NOT NULL,
        PRIMARY KEY (origin, peer, root)
    ) STRICT, WITHOUT ROWID""",
)


@dataclass(frozen=True)
class Row:
    """One finding as it stands. Times are Unix seconds.

    kind: its class, as in auditor/report.py. key: what it is about, "" for the log itself. opened_at: when it opened
    last; openings: how often. count: in how many looks it was there. evidence: the path of its file.
    """

    id: int
    origin: str
    name: str
    key: str
    kind: str
    what: str
    leaf_index: int | None
    first_seen: int
    opened_at: int
    last_seen: int
    count: int
    openings: int
    evidence: str | None
    closed_at: int | None

    @property
    def is_open(self) -> bool:
        return self.closed_at is None

    @property
    def finding(self) -> Finding:
        return Finding(self.name, self.kind, self.what, self.leaf_index)

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id, "origin": self.origin, "name": self.name, "class": self.kind, "key": self.key,
            "what": self.what, "leaf_index": self.leaf_index, "first_seen": self.first_seen,
            "opened_at": self.opened_at, "last_seen": self.last_seen, "closed_at": self.closed_at,
            "count": self.count, "openings": self.openings, "evidence": self.evidence, "open": self.is_open,
        }


_COLUMNS = (
    "id, origin, name, key, class, what, leaf_index, first_seen, opened_at, last_seen, count, openings, evidence,"
    " closed_at"
)


def open_watch_database(directory: Path | str, *, read_only: bool = False) -> Database:
    """The database of a watch directory, made if it is not there; its schema brought up to date.

    A module with tables of its own applies ``Migrations("its name")`` to what this returns. The connection commits by
    itself; several statements belong between :func:`ktlog.sqlitefile.transaction`. One thread at a time.

    Raises:
        StoreError: ``MissingStore`` when it is to be read and is not there; ``NewerSchema``; what SQLite says.
    """
    from sqlite_utils import Database, Migrations  # late: the import takes 0.2 s

    path = Path(directory) / DATABASE
    if not read_only:
        with file_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        with suppress_exists():
            open_database(path, create=True, journal_mode="DELETE", page_size=4096).close()
    never = StoreError(
        "MissingStore", f"{path}: nothing was ever watched here",
        hint="Run `ktlog-auditor watch` first, with the same --dir.",
    )
    with file_errors(path):
        if read_only and not path.is_file():
            raise never
    connection = open_database(path, read_only=read_only, journal_mode="DELETE")
    try:
        with database_errors(path):
            database = Database(connection, execute_plugins=False)
            if not read_only:
                with transaction(connection):
                    migrations = Migrations("watch")
                    migrations(name="0001_findings")(_run_all)
                    migrations.apply(database)
            elif "watch_meta" not in database.table_names():
                raise never
            oldest = connection.execute("SELECT oldest_code FROM watch_meta").fetchone()[0]
            if oldest > SCHEMA_VERSION:
                raise StoreError(
                    "NewerSchema", f"{path}: was written by a newer version of ktlog", hint="Run that version.",
                )
    except BaseException:
        connection.close()
        raise
    return database


@contextmanager
def suppress_exists() -> Iterator[None]:
    """Another process, or an earlier run, has made the file: that is as well."""
    try:
        yield
    except StoreError as error:
        if error.name != "StoreExists":
            raise


def _run_all(database: Database) -> None:
    for statement in _FINDINGS:
        database.conn.execute(statement)
    database.conn.execute("INSERT INTO watch_meta VALUES (1, ?, ?)", (SCHEMA_VERSION, OLDEST_CODE))


def default_key(finding: Finding) -> str:
    """What a finding is about, where nobody says: the entry."""
    return "" if finding.leaf_index is None else str(finding.leaf_index)


class FindingStore:
    """The findings in ``DIR/watch.db``. Safe to use from many threads.

    Args:
        directory: the watch's. read_only: for a look on; nothing is made.

    Raises (every method):
        StoreError
    """

    def __init__(self, directory: Path | str, *, read_only: bool = False) -> None:
        self.path = Path(directory) / DATABASE
        self.database = open_watch_database(directory, read_only=read_only)
        self._connection = self.database.conn
        self._lock = threading.RLock()
        self.telling = threading.Lock()
        """Held by whoever tells what is untold, so that nothing is told by two at once."""

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> FindingStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """What the block does is durable as one when it ends, or was not done. May be nested."""
        with self._lock, database_errors(self.path):
            if self._connection.in_transaction:
                yield
                return
            with transaction(self._connection):
                yield

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        """One statement, under the lock; all its rows."""
        with self._lock, database_errors(self.path):
            return self._connection.execute(statement, values).fetchall()

    # Findings

    def record(
        self, origin: str, finding: Finding, now: int, evidence: str | os.PathLike[str] | None = None, *,
        key: str | None = None,
    ) -> Row:
        """The finding was seen: a new row, or the same one, counted once more and open (again)."""
        return self.note(origin, finding, now, evidence, key=key)[0]

    def note(
        self, origin: str, finding: Finding, now: int, evidence: str | os.PathLike[str] | None = None, *,
        key: str | None = None,
    ) -> tuple[Row, bool]:
        """:meth:`record`, and whether that opened it."""
        key = (default_key(finding) if key is None else key)[:_LONGEST_KEY]
        what = _storable(finding.what)[:_LONGEST_WHAT]
        with self.transaction():
            key = _storable(key)
            before = self.get(origin, finding.name, key)
            if before is None and self._is_full(origin, finding.name):
                key = MORE_KEY
                before = self.get(origin, finding.name, key)
            self.execute(
                """INSERT INTO findings (origin, name, key, class, what, leaf_index, first_seen, opened_at, last_seen,
                    count, openings, evidence, changes, told)
                VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?7, ?7, 1, 1, ?8, 1, 0)
                ON CONFLICT (origin, name, key) DO UPDATE SET
                    count = count + 1, last_seen = max(last_seen, ?7), what = ?5, leaf_index = ?6,
                    evidence = coalesce(?8, evidence),
                    changes = changes + (closed_at IS NOT NULL OR class <> ?4),
                    openings = openings + (closed_at IS NOT NULL),
                    opened_at = CASE WHEN closed_at IS NULL THEN opened_at ELSE ?7 END,
                    class = ?4, closed_at = NULL""",
                (origin, finding.name, key, finding.kind, what, finding.leaf_index, now,
                 None if evidence is None else str(evidence)),
            )
            row = self.get(origin, finding.name, key)
        if row is None:
            raise AssertionError("a finding that was just recorded is not there")
        return row, before is None or not before.is_open

    def _is_full(self, origin: str, name: str) -> bool:
        (count,), = self.execute("SELECT count(*) FROM findings WHERE origin = ? AND name = ?", (origin, name))
        return count >= MAX_KEYS_PER_NAME

    def close_absent(
        self, origin: str, held: Collection[tuple[str, str]], now: int,
        checked: Callable[[Row], bool] = lambda row: True,
    ) -> list[Row]:
        """Close what is open about *origin* and holds no longer.

        Args:
            held: (name, key) of what holds.
            checked: whether it was looked at: what was not, stays as it is.

        Returns:
            The rows that this closed.
        """
        with self.transaction():
            gone = [
                row for row in self.open(origin)
                if row.kind != "Forked" and (row.name, row.key) not in held and checked(row)
            ]
            for row in gone:
                self.execute("UPDATE findings SET closed_at = ?, changes = changes + 1 WHERE id = ?", (now, row.id))
            return [row for one in gone if (row := self.get(one.origin, one.name, one.key)) is not None]

    def get(self, origin: str, name: str, key: str = "") -> Row | None:
        rows = self._rows("WHERE origin = ? AND name = ? AND key = ?", (origin, name, key))
        return rows[0] if rows else None

    def open(self, origin: str | None = None) -> list[Row]:
        """The open findings, about *origin* or about all logs, oldest first."""
        if origin is None:
            return self._rows("WHERE closed_at IS NULL ORDER BY opened_at, id")
        return self._rows("WHERE closed_at IS NULL AND origin = ? ORDER BY opened_at, id", (origin,))

    def all(self) -> list[Row]:
        """Every finding that there ever was, the open ones first."""
        return self._rows("ORDER BY closed_at IS NOT NULL, opened_at, id")

    def untold(self, most: int = 1000) -> list[Row]:
        """Findings that opened or closed since somebody was told; see :meth:`tell`."""
        return self._rows(
            "WHERE told < changes ORDER BY class <> 'Forked',"
            " row_number() OVER (PARTITION BY class <> 'Forked', origin ORDER BY id), id LIMIT ?", (most,),
        )

    def tell(self, row: Row, put: Callable[[Row], object]) -> None:
        """Have *put* take the news of *row* durably, and remember that it did.

        A crash between the two has it told again: at least once, never not at all.
        """
        (changes,), = self.execute("SELECT changes FROM findings WHERE id = ?", (row.id,))
        put(row)
        self.execute("UPDATE findings SET told = max(told, ?) WHERE id = ?", (changes, row.id))

    def tell_all(self, put: Callable[[Row], object], origins: Collection[str]) -> None:
        """:meth:`tell` all that is untold. What one sink has no room for stays untold, and holds nothing else up.

        Raises:
            StoreError: ``OutboxFull`` when it was a finding about *origins*; what else *put* raises, at once.
        """
        full: StoreError | None = None
        for row in self.untold():
            try:
                self.tell(row, put)
            except StoreError as error:
                if error.name != "OutboxFull":
                    raise
                full = error if row.origin in origins else full
        if full is not None:
            raise full

    def _rows(self, rest: str, values: tuple[Any, ...] = ()) -> list[Row]:
        return [Row(*found) for found in self.execute(f"SELECT {_COLUMNS} FROM findings {rest}", values)]  # noqa: S608 - all ours


_ACTOR_ID = re.compile(r"https://[A-Za-z0-9._~@/%:-]+")


def actors_in_findings(connection: sqlite3.Connection, origin: str) -> list[str]:
    """What may be an actor id in what was found about a log: an erasure has to find it."""
    rows = connection.execute(
        "SELECT what FROM findings WHERE origin = ? AND instr(what, 'https://')", (origin,)
    ).fetchall()
    return sorted({found.rstrip(".:") for (what,) in rows for found in _ACTOR_ID.findall(what)})


def redact_findings(connection: sqlite3.Connection, origin: str, actor_ids: Sequence[str]) -> None:
    """Take erased actors out of what was found. Within a transaction of the caller's."""
    rows = connection.execute("SELECT id, what FROM findings WHERE origin = ?", (origin,)).fetchall()
    connection.executemany("UPDATE findings SET what = ? WHERE id = ?", [
        (cleaned, number) for number, what in rows
        if (cleaned := redact({"what": what}, origin, actor_ids)["what"]) != what
    ])


def _storable(text: str) -> str:
    """*text* as SQLite can hold it: strangers' text may have lone surrogates, or end in the middle of a character."""
    return text.encode("utf-8", "replace").decode("utf-8")
