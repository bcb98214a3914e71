"""What a mirror must never forget, in one SQLite file. The entries themselves are in files beside it.

As of the witness's record: a checkpoint is recorded by compare-and-set on its revision, durably before the call
returns; sizes never fall; a size keeps its root; nothing is deleted that was promised; after a write whose outcome is
unknown there is no further one; a missing database is refused; and a mark outside tells an older copy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

from ktlog import durable, sqlitefile
from ktlog.errors import Conflict, StoreError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import Vkey
from witness.decide import Cosigned
from witness.guarded import Guarded
from witness.mark import Mark, open_mark
from witness.mirrorwire import Mirrored, Pending
from witness.reading import hash_origin

PENDING_COMMITTED = "mirror.pending_committed"
BEFORE_COMMIT = "mirror.before_commit"
AFTER_COMMIT = "mirror.after_commit"

SCHEMA_VERSION = 1
PAGE_SIZE = 4096
#: Pending checkpoints of a log that an upload may still be for without a ticket.
REMEMBERED = 16

_SET_MARK = (
    "Put it back. If you know that mirror.db is no copy of an earlier time, make it anew:"
    " ktlog-witness set-mirror-mark --dir DIR --record-is-the-newest, and --mark too if serve-mirror has it."
)
_MARK_HINTS = {
    "MarkMissing": _SET_MARK, "MarkDamaged": _SET_MARK,
    "RecordRolledBack": "Put back the newest mirror.db, with mirror.db-wal if there is one. If it is lost for good,"
                        " this name and these keys must never sign again: make a new mirror.",
}

_GROWING = """
CREATE TABLE {table} (
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    revision INTEGER NOT NULL CHECK (revision > 0),
    size INTEGER NOT NULL CHECK (size >= 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    time INTEGER NOT NULL CHECK (time > 0),
    note BLOB NOT NULL
) STRICT
""", """
CREATE TRIGGER {table}_only_grow BEFORE UPDATE ON {table}
WHEN NEW.origin IS NOT OLD.origin
    OR NEW.revision IS NOT OLD.revision + 1
    OR NEW.size < OLD.size
    OR (NEW.size = OLD.size AND NEW.root IS NOT OLD.root)
    OR NEW.time < OLD.time
BEGIN SELECT RAISE(ABORT, 'a checkpoint never rolls back'); END
"""

_TABLES = (
    """
    CREATE TABLE mirror (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        schema_version INTEGER NOT NULL,
        oldest_reader INTEGER NOT NULL,  -- the oldest schema_version whose code may open this file
        name TEXT NOT NULL,
        created INTEGER NOT NULL
    ) STRICT
    """,
    "CREATE TABLE mirror_keys (vkey TEXT PRIMARY KEY) STRICT",
    """
    CREATE TABLE logs (
        origin TEXT PRIMARY KEY,
        origin_hash TEXT NOT NULL UNIQUE,
        added INTEGER NOT NULL,
        max_bytes INTEGER NOT NULL CHECK (max_bytes > 0)
    ) STRICT
    """,
    *(statement.format(table=table) for table in ("pending", "checkpoints") for statement in _GROWING),
    """
    CREATE TABLE earlier (  -- pending checkpoints of late, the newest among them
        origin TEXT NOT NULL REFERENCES logs (origin),
        size INTEGER NOT NULL,
        root BLOB NOT NULL CHECK (length(root) = 32),
        note BLOB NOT NULL,
        PRIMARY KEY (origin, size)
    ) STRICT, WITHOUT ROWID
    """,
    """
    CREATE TABLE held (  -- entries that are on the disk, all below next_entry
        origin TEXT PRIMARY KEY REFERENCES logs (origin),
        next_entry INTEGER NOT NULL CHECK (next_entry >= 0),
        bytes INTEGER NOT NULL
    ) STRICT
    """,
    """
    CREATE TRIGGER held_only_grows BEFORE UPDATE ON held
    WHEN NEW.origin IS NOT OLD.origin OR NEW.next_entry < OLD.next_entry
    BEGIN SELECT RAISE(ABORT, 'what is held stays held'); END
    """,
    """
    CREATE TRIGGER logs_stay BEFORE UPDATE ON logs
    WHEN NEW.origin IS NOT OLD.origin OR NEW.origin_hash IS NOT OLD.origin_hash OR NEW.added IS NOT OLD.added
    BEGIN SELECT RAISE(ABORT, 'a log that is mirrored stays so'); END
    """,
    *(
        f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in ("mirror", "mirror_keys", "logs", "pending", "checkpoints", "held")
    ),
    *(
        f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        for table in ("mirror", "mirror_keys")
    ),
)


class MirrorStore(Guarded):
    """One connection under one lock; safe to use from many threads, not across a fork."""

    def __init__(self, path: Path, connection: sqlite3.Connection, reach: Callable[[str], None]) -> None:
        """Use ``create`` or ``open``."""
        super().__init__(path, connection)
        self._reach = reach
        self._mark: Mark | None = None
        with self.reading() as database:
            row = database.execute("SELECT name, oldest_reader FROM mirror").fetchone()
            keys = database.execute("SELECT vkey FROM mirror_keys ORDER BY rowid").fetchall()
        if row is None:
            raise StoreError("BrokenDatabase", f"{path} has no mirror in it")
        if row[1] > SCHEMA_VERSION:
            raise StoreError("NewerSchema", f"{path} needs code of schema {row[1]}; this is {SCHEMA_VERSION}",
                             hint="Run the newer release that wrote it.")
        self.name: str = row[0]
        self.vkeys: tuple[str, ...] = tuple(vkey for (vkey,) in keys)

    @staticmethod
    def create(path: Path, name: str, vkeys: Sequence[Vkey], now: int) -> None:
        """Make the database of a new mirror, in one transaction.

        Raises:
            StoreError: "StoreExists", or it cannot be written.
        """
        with sqlitefile.new_database(path, page_size=PAGE_SIZE) as database:
            for statement in _TABLES:
                database.execute(statement)
            database.execute("INSERT INTO mirror VALUES (1, ?, ?, ?, ?)", (SCHEMA_VERSION, SCHEMA_VERSION, name, now))
            database.executemany("INSERT INTO mirror_keys VALUES (?)", [(str(vkey),) for vkey in vkeys])

    @classmethod
    def open(
        cls, path: Path, *, read_only: bool = False, beside_daemon: bool = False,
        reach: Callable[[str], None] = durable.reach,
    ) -> MirrorStore:
        """Open the database that ``create`` made. beside_daemon: as of WitnessStore.open.

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
            if self._mark is not None:
                self._mark.close()

    def keep_mark(self, path: Path) -> None:
        """Hold the record against the high-water mark at *path*, and count every checkpoint there from now on.

        Raises:
            StoreError: see open_mark.
        """
        try:
            self._mark = open_mark(path, self.vkeys, self.count_writes(), self._reach)
        except StoreError as error:
            hint = _MARK_HINTS.get(error.name, error.hint)
            raise StoreError(error.name, error.message.replace("witness.db", "mirror.db"), hint=hint) from error

    # --- reading

    def log(self, origin: str) -> Mirrored | None:
        """The log of that origin, read in one piece; None when it is not mirrored."""
        with self.reading() as database:
            return self._one(database, "origin", origin)

    def log_by_hash(self, origin_hash: str) -> Mirrored | None:
        """As :meth:`log`, by the hex SHA-256 of the origin."""
        with self.reading() as database:
            return self._one(database, "origin_hash", origin_hash)

    def logs(self) -> tuple[Mirrored, ...]:
        """Every log, by origin."""
        with self.reading() as database:
            origins = [origin for (origin,) in database.execute("SELECT origin FROM logs ORDER BY origin")]
            return tuple(log for log in (self._one(database, "origin", origin) for origin in origins) if log)

    def earlier(self, origin: str, size: int) -> Pending | None:
        """The pending checkpoint of that size, while it is one of the last sixteen."""
        with self.reading() as database:
            row = database.execute(
                "SELECT root, note FROM earlier WHERE origin = ? AND size = ?", (origin, size)
            ).fetchone()
        return None if row is None else Pending(Checkpoint(origin, size, row[0]), row[1])

    def count_writes(self) -> int:
        """Everything that may never be taken back: what the high-water mark counts."""
        with self.reading() as database:
            return int(database.execute(
                "SELECT (SELECT coalesce(sum(revision), 0) FROM checkpoints)"
                " + (SELECT coalesce(sum(revision), 0) FROM pending)"
            ).fetchone()[0])

    # --- writing

    def add_log(self, origin: str, max_bytes: int, now: int) -> bool:
        """Mirror *origin*, within *max_bytes*; True when it is new. There is no way to stop."""
        with self.writing() as database:
            is_new = database.execute(
                "INSERT OR IGNORE INTO logs VALUES (?, ?, ?, ?)", (origin, hash_origin(origin), now, max_bytes)
            ).rowcount == 1
            database.execute("INSERT OR IGNORE INTO held VALUES (?, 0, 0)", (origin,))
            database.execute("UPDATE logs SET max_bytes = ? WHERE origin = ?", (max_bytes, origin))
        return is_new

    def record_pending(self, pending: Cosigned) -> None:
        """Make *pending* the checkpoint that is to be mirrored, durably, if the one before it still is.

        Raises:
            Conflict: another came first.
        """
        with self.writing() as database:
            self._put(database, "pending", pending)
            checkpoint = pending.checkpoint
            database.execute(
                "INSERT OR REPLACE INTO earlier VALUES (?, ?, ?, ?)",
                (checkpoint.origin, checkpoint.size, checkpoint.root, pending.note),
            )
            database.execute(
                "DELETE FROM earlier WHERE origin = ?1 AND size NOT IN"
                " (SELECT size FROM earlier WHERE origin = ?1 ORDER BY size DESC LIMIT ?2)",
                (checkpoint.origin, REMEMBERED),
            )
        self._count()
        self._reach(PENDING_COMMITTED)

    def record_held(self, origin: str, next_entry: int, written: int) -> None:
        """All entries below *next_entry* are on the disk; *written* bytes more are in use (or fewer)."""
        with self.writing() as database:
            database.execute(
                "UPDATE held SET next_entry = max(next_entry, ?), bytes = max(bytes + ?, 0) WHERE origin = ?",
                (next_entry, written, origin),
            )

    def record_checkpoint(self, cosigned: Cosigned, written: int) -> None:
        """Make *cosigned* the mirror checkpoint, durably, if the one before it still is, and all of it is held.

        *written* bytes more are in use.

        Raises:
            Conflict: another came first.
        """
        with self.writing() as database:
            held = database.execute(
                "SELECT next_entry FROM held WHERE origin = ?", (cosigned.checkpoint.origin,)
            ).fetchone()
            if held is None or held[0] < cosigned.checkpoint.size:
                raise StoreError("NotHeld", "a mirror cosigns no entry that it does not hold")
            self._put(database, "checkpoints", cosigned)
            database.execute(
                "UPDATE held SET bytes = bytes + ? WHERE origin = ?", (written, cosigned.checkpoint.origin)
            )
            self._reach(BEFORE_COMMIT)
        self._count()
        self._reach(AFTER_COMMIT)

    def poison(self, error: BaseException) -> StoreError:
        """Write no more: a file of entries may or may not be on the disk."""
        with self._lock:
            return self._poisoned(error)

    # --- inside

    def _count(self) -> None:
        if self._mark is not None:
            try:
                self._mark.advance(1)
            except BaseException as error:
                raise self._poisoned(error) from error

    @staticmethod
    def _put(database: sqlite3.Connection, table: str, item: Cosigned) -> None:
        checkpoint = item.checkpoint
        values = (item.revision, checkpoint.size, checkpoint.root, item.time, item.note, checkpoint.origin)
        if item.revision == 1:
            statement = f"INSERT INTO {table} (revision, size, root, time, note, origin) VALUES (?, ?, ?, ?, ?, ?)" \
                        " ON CONFLICT (origin) DO NOTHING"  # noqa: S608  (one of two names)
        else:
            statement = f"UPDATE {table} SET revision = ?1, size = ?2, root = ?3, time = ?4, note = ?5" \
                        " WHERE origin = ?6 AND revision = ?1 - 1"  # noqa: S608
        if database.execute(statement, values).rowcount != 1:
            raise Conflict("CheckpointMoved", f"{checkpoint.origin} moved on")

    @staticmethod
    def _one(database: sqlite3.Connection, column: str, value: str) -> Mirrored | None:
        row = database.execute(
            f"SELECT origin, max_bytes, bytes, next_entry FROM logs JOIN held USING (origin) WHERE {column} = ?",  # noqa: S608
            (value,),
        ).fetchone()
        if row is None:
            return None
        origin, max_bytes, stored, next_entry = row
        pending, latest = (_cosigned(database, table, origin) for table in ("pending", "checkpoints"))
        return Mirrored(origin, max_bytes, stored, pending, next_entry, latest)


def _cosigned(database: sqlite3.Connection, table: str, origin: str) -> Cosigned | None:
    row = database.execute(
        f"SELECT revision, size, root, time, note FROM {table} WHERE origin = ?", (origin,)  # noqa: S608  (as above)
    ).fetchone()
    if row is None:
        return None
    revision, size, root, time, note = row
    return Cosigned(revision, Checkpoint(origin, size, root), time, note)
