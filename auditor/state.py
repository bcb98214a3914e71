"""What an auditor keeps between runs: positions, the heads of its last clean audits, and the evidence.

::

    DIR/
      audit.db                positions, the directory's rows, and the checkpoint of the last clean audit of each log,
                              exactly as it was signed
      evidence/<kind>-*.json  what convicts a log; never overwritten
      lock                    one audit at a time

A head is only ever replaced by that of a later clean audit; a failed one leaves it alone. Earlier versions kept heads
in ``heads/<origin>.note``: such a file is taken over, and then removed.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from auditor.ledger import Ledger
from ktlog.durable import FileLock, file_errors, read_file, write_once
from ktlog.errors import StoreError
from ktlog.sqlitefile import database_errors, open_database, transaction

SCHEMA_VERSION = 1
OLDEST_CODE = 1
"""Oldest SCHEMA_VERSION whose code may open a database of this one."""

_DATABASE = "audit.db"
_PAGE_SIZE = 4096
_LONGEST_NAME_BYTES = 180


def origin_filename(origin: str) -> str:
    """A file name for *origin*, the same on every machine, that cannot leave its directory."""
    name = quote(origin, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) <= _LONGEST_NAME_BYTES:
        return name
    return hashlib.sha256(origin.encode("utf-8")).hexdigest()


class AuditDirectory:
    """The directory given as ``--dir``. Use as a context manager: it holds the lock.

    Raises:
        StoreError: ``Locked`` when another audit runs in it; ``NewerSchema``; ``NoPermission`` and the like when it
            cannot be made, read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / "lock")
        self._opened: sqlite3.Connection | None = None

    def __enter__(self) -> AuditDirectory:
        with file_errors(self.path / "evidence"):
            (self.path / "evidence").mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        try:
            self._opened = self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._opened is not None:
            self._opened.close()
            self._opened = None
        self._lock.release()

    def _open(self) -> sqlite3.Connection:
        path = self.database
        connection = open_database(path, create=not path.exists(), page_size=_PAGE_SIZE)
        try:
            with database_errors(path), transaction(connection):
                _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
        return connection

    @property
    def database(self) -> Path:
        return self.path / _DATABASE

    @property
    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            raise AssertionError("an AuditDirectory is used inside its with statement")
        return self._opened

    # Heads

    def head_path(self, origin: str) -> Path:
        """Where earlier versions kept the head."""
        return self.path / "heads" / (origin_filename(origin) + ".note")

    def load_head(self, origin: str) -> bytes | None:
        """The signed note of the last clean audit of *origin*, or None before the first."""
        with database_errors(self.database):
            row = self._connection.execute("SELECT note FROM heads WHERE origin = ?", (origin,)).fetchone()
        if row is not None:
            return bytes(row[0])
        note = read_file(self.head_path(origin))
        if note is not None:
            self.save_head(origin, note)
            with suppress(OSError):
                self.head_path(origin).unlink()
        return note

    def save_head(self, origin: str, note: bytes) -> None:
        """Remember *note* in one durable step. Only a clean audit may."""
        from sqlite_utils import Database

        with database_errors(self.database):
            Database(self._connection)["heads"].upsert({"origin": origin, "note": note}, pk="origin")

    def forget_head(self, origin: str) -> None:
        """As if there had been no clean audit."""
        with database_errors(self.database):
            self._connection.execute("DELETE FROM heads WHERE origin = ?", (origin,))

    # Positions

    @contextmanager
    def ledger(self, origin: str, tier: str) -> Iterator[Ledger]:
        """The saved position and rows of one log. One at a time; what no position covers is taken back at the end."""
        ledger = Ledger(self._connection, self.database, origin, tier)
        try:
            yield ledger
        finally:
            ledger.close()

    def save_evidence(self, evidence: bytes, kind: str, origin: str) -> Path:
        """Write *evidence* durably under a name that tells its content; the same twice is one file."""
        digest = hashlib.sha256(evidence).hexdigest()[:16]
        path = self.path / "evidence" / f"{kind}-{origin_filename(origin)[:80]}-{digest}.json"
        write_once(path, evidence)
        return path


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    """Make the tables where there are none; refuse those of newer code."""
    from sqlite_utils import Database

    database = Database(connection)
    if "audit_meta" in database.table_names():
        (oldest,) = connection.execute("SELECT oldest_code FROM audit_meta").fetchone()
        if oldest > SCHEMA_VERSION:
            raise StoreError(
                "NewerSchema", f"{path}: was written by a newer version of ktlog", hint="Run that version."
            )
        return
    database["audit_meta"].insert({"schema_version": SCHEMA_VERSION, "oldest_code": OLDEST_CODE}, strict=True)
    database["heads"].create({"origin": str, "note": bytes}, pk="origin", not_null={"note"}, strict=True)
    database["logs"].create({"id": int, "origin": str, "tier": str, "position": str}, pk="id", strict=True)
    database["logs"].create_index(["origin", "tier"], unique=True)
    # Rows are found by their keys and nothing else.
    connection.execute(
        "CREATE TABLE facts (log INTEGER NOT NULL, kind TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL,"
        " PRIMARY KEY (log, kind, key)) STRICT, WITHOUT ROWID"
    )
