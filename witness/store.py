"""What a witness must never forget, in one SQLite file.

The promises, each of which a test tries to break:

* A checkpoint is recorded by compare-and-set on its revision, in one transaction that is on
  the disk (WAL, synchronous=FULL) before ``record_checkpoint`` returns.
* Sizes never fall, a size never changes its root, cosigning times never fall, and neither logs,
  keys, checkpoints nor evidence are ever deleted: triggers refuse it, whatever the caller does.
* After a write whose outcome is unknown the store refuses every further write. What is on
  the disk is true; what this process believes may not be.
* A missing database is refused; only ``create`` makes one.
"""

from __future__ import annotations

import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ktlog import durable, sqlitefile
from ktlog.errors import Conflict, StoreError, UsageError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.evidence import Evidence, format_evidence
from ktlog.tlog.note import Vkey, parse_vkey
from witness.decide import Cosigned
from witness.schema import SCHEMA_VERSION, schema_statements

#: The kill points of one accepted request, in their order. "checked" (see web.py) lies between
#: the judgement and the transaction; the other two lie on both sides of COMMIT.
BEFORE_COMMIT = "witness.before_commit"
AFTER_COMMIT = "witness.after_commit"

#: Per origin. One piece of evidence convicts a log for good; a log that keeps forking must
#: not be able to fill our disk.
MAX_EVIDENCE = 100


@dataclass(frozen=True)
class Log:
    """A log that this witness follows, and the last checkpoint that it cosigned for it."""

    origin: str
    vkeys: tuple[Vkey, ...]
    latest: Cosigned | None

    @property
    def origin_hash(self) -> str:
        return hash_origin(self.origin)


def hash_origin(origin: str) -> str:
    """Lowercase hex SHA-256 of the origin, as on the monitoring path."""
    return hashlib.sha256(origin.encode("utf-8")).hexdigest()


class WitnessStore:
    """One connection under one lock; safe to use from many threads, not across a fork."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, reach: Callable[[str], None] = durable.reach
    ) -> None:
        """Use ``create`` or ``open``."""
        self._path = path
        self._connection = connection
        self._lock = threading.Lock()
        self._reach = reach
        self._poison: str | None = None
        with self.reading() as database:
            row = database.execute("SELECT name, oldest_reader, schema_version FROM witness").fetchone()
            keys = database.execute("SELECT vkey FROM witness_keys ORDER BY rowid").fetchall()
        if row is None:
            raise StoreError("BrokenDatabase", f"{path} has no witness in it: init did not finish")
        if row[1] > SCHEMA_VERSION:
            raise StoreError(
                "NewerSchema", f"{path} needs code of schema {row[1]}; this is {SCHEMA_VERSION}",
                hint="Run the newer release that wrote it.",
            )
        self.name: str = row[0]
        self.schema_version: int = row[2]
        self.vkeys: tuple[str, ...] = tuple(vkey for (vkey,) in keys)

    @classmethod
    def create(cls, path: Path, name: str, vkeys: Sequence[Vkey], now: int) -> WitnessStore:
        """Make the database of a new witness, in one transaction. Refuses a file that exists.

        Raises:
            StoreError: "StoreExists", or it cannot be written.
        """
        connection = sqlitefile.open_database(path, create=True)
        with sqlitefile.database_errors(path):
            connection.execute("BEGIN IMMEDIATE")
            for statement in schema_statements():
                connection.execute(statement)
            connection.execute(
                "INSERT INTO witness VALUES (1, ?, ?, ?, ?)", (SCHEMA_VERSION, SCHEMA_VERSION, name, now)
            )
            connection.executemany(
                "INSERT INTO witness_keys (vkey) VALUES (?)", [(str(vkey),) for vkey in vkeys]
            )
            connection.execute("COMMIT")
        return cls(path, connection)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        beside_daemon: bool = False,
        reach: Callable[[str], None] = durable.reach,
    ) -> WitnessStore:
        """Open the database that ``create`` made.

        Args:
            beside_daemon: for a command that writes while ``serve`` may be running: it leaves
                checkpoints of the write-ahead log to the daemon (see sqlitefile.open_database).

        Raises:
            StoreError: missing, damaged, or written by newer code.
        """
        connection = sqlitefile.open_database(path, read_only=read_only)
        try:
            if beside_daemon:
                with sqlitefile.database_errors(path):
                    connection.execute("PRAGMA wal_autocheckpoint=0")
            return cls(path, connection, reach)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    # --- reading

    def log(self, origin: str) -> Log | None:
        """The log of that origin, read in one piece; None when it is unknown."""
        with self.reading() as database:
            return self._log(database, origin)

    def logs(self) -> tuple[Log, ...]:
        """Every log, by origin."""
        with self.reading() as database:
            origins = [origin for (origin,) in database.execute("SELECT origin FROM logs ORDER BY origin")]
            return tuple(log for log in (self._log(database, origin) for origin in origins) if log)

    def count_logs(self) -> int:
        with self.reading() as database:
            return int(database.execute("SELECT count(*) FROM logs").fetchone()[0])

    def count_evidence(self) -> int:
        with self.reading() as database:
            return int(database.execute("SELECT count(*) FROM evidence").fetchone()[0])

    def cosigned_note(self, origin_hash: str) -> bytes | None:
        """The latest cosigned checkpoint by the hex SHA-256 of its origin."""
        with self.reading() as database:
            row = database.execute(
                "SELECT note FROM checkpoints JOIN logs USING (origin) WHERE origin_hash = ?", (origin_hash,)
            ).fetchone()
        return None if row is None else row[0]

    def evidence(self) -> tuple[bytes, ...]:
        """Every evidence document, oldest first."""
        with self.reading() as database:
            return tuple(row[0] for row in database.execute("SELECT document FROM evidence ORDER BY id"))

    def check(self) -> None:
        """Raise StoreError unless reads work and writes are still allowed."""
        self._refuse_poisoned()
        with self.reading() as database:
            database.execute("SELECT count(*) FROM witness").fetchone()

    # --- writing

    def add_log(self, origin: str, vkeys: Sequence[Vkey], now: int) -> tuple[Vkey, ...]:
        """Follow *origin* under each of *vkeys*, beside the keys it has; returns the new keys.

        There is no way to remove a log or a key: one that was removed and added again would
        start without its record, and that is a split view.

        Raises:
            UsageError: "KeyCollision": another key of the origin has that name and key id.
        """
        with self.writing() as database:
            return self.insert_log(database, origin, vkeys, now)

    @staticmethod
    def insert_log(
        database: sqlite3.Connection, origin: str, vkeys: Sequence[Vkey], now: int
    ) -> tuple[Vkey, ...]:
        """``add_log`` inside a transaction."""
        added = []
        database.execute("INSERT OR IGNORE INTO logs VALUES (?, ?, ?)", (origin, hash_origin(origin), now))
        for vkey in vkeys:
            known = database.execute(
                "SELECT vkey FROM log_keys WHERE origin = ? AND name = ? AND key_id = ?",
                (origin, vkey.name, vkey.key_id),
            ).fetchone()
            if known is None:
                database.execute(
                    "INSERT INTO log_keys VALUES (?, ?, ?, ?, ?)",
                    (origin, vkey.name, vkey.key_id, str(vkey), now),
                )
                added.append(vkey)
            elif known[0] != str(vkey):
                raise UsageError("KeyCollision", f"{origin} has another key with the id of {vkey}")
        return tuple(added)

    def record_checkpoint(self, cosigned: Cosigned) -> None:
        """Make *cosigned* the latest of its origin, durably, if the one before it still is.

        Raises:
            Conflict: the record moved on since it was read (``.stored`` is what it is now).
            StoreError: "Locked" (nothing happened), or "Poisoned" (nothing more will).
        """
        checkpoint = cosigned.checkpoint
        values = (cosigned.revision, checkpoint.size, checkpoint.root, cosigned.time, cosigned.note)
        with self.writing() as database:
            if cosigned.revision == 1:
                changed = database.execute(
                    "INSERT INTO checkpoints (revision, size, root, time, note, origin) "
                    "VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (origin) DO NOTHING",
                    (*values, checkpoint.origin),
                )
            else:
                changed = database.execute(
                    "UPDATE checkpoints SET revision = ?, size = ?, root = ?, time = ?, note = ? "
                    "WHERE origin = ? AND revision = ?",
                    (*values, checkpoint.origin, cosigned.revision - 1),
                )
            if changed.rowcount != 1:
                raise Conflict(
                    "CheckpointMoved", f"another request moved {checkpoint.origin} on",
                    stored=self._latest(database, checkpoint.origin),
                )
            self._reach(BEFORE_COMMIT)
        self._reach(AFTER_COMMIT)

    def record_evidence(self, evidence: Evidence, size: int, now: int) -> bool:
        """Keep the first proof of a fork of this origin at this size; True when it is new."""
        with self.writing() as database:
            changed = database.execute(
                "INSERT OR IGNORE INTO evidence (origin, size, recorded, document) SELECT ?, ?, ?, ? "
                "WHERE (SELECT count(*) FROM evidence WHERE origin = ?) < ?",
                (evidence.origin, size, now, format_evidence(evidence), evidence.origin, MAX_EVIDENCE),
            )
            return changed.rowcount == 1

    # --- inside

    def _log(self, database: sqlite3.Connection, origin: str) -> Log | None:
        keys = database.execute("SELECT vkey FROM log_keys WHERE origin = ? ORDER BY rowid", (origin,))
        vkeys = tuple(parse_vkey(vkey) for (vkey,) in keys)
        return Log(origin, vkeys, self._latest(database, origin)) if vkeys else None

    @staticmethod
    def _latest(database: sqlite3.Connection, origin: str) -> Cosigned | None:
        row = database.execute(
            "SELECT revision, size, root, time, note FROM checkpoints WHERE origin = ?", (origin,)
        ).fetchone()
        if row is None:
            return None
        revision, size, root, time, note = row
        return Cosigned(revision, Checkpoint(origin, size, root), time, note)

    def _refuse_poisoned(self) -> None:
        if self._poison is not None:
            raise StoreError(
                "Poisoned", f"a write failed, and its outcome is unknown: {self._poison}",
                hint="Mend the disk and start the witness again; what it has cosigned is on record.",
            )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Reads of one moment: a deferred transaction, so that two SELECTs cannot disagree."""
        with self._lock, sqlitefile.database_errors(self._path):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. An honest refusal inside it rolls back; any other failure poisons."""
        with self._lock:
            self._refuse_poisoned()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                coded = sqlitefile.database_error(self._path, error)
                if coded.name == "Locked":
                    raise coded from error  # nothing was begun, so nothing is in doubt
                raise self._poisoned(error) from error
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except (Conflict, UsageError):
                with sqlitefile.database_errors(self._path):
                    self._connection.execute("ROLLBACK")
                raise
            except BaseException as error:
                failure = self._poisoned(error)
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise failure from error

    def _poisoned(self, error: BaseException) -> StoreError:
        self._poison = f"{type(error).__name__}: {error}"
        return StoreError("Poisoned", f"a write failed, so this process writes no more: {self._poison}")
