"""What a witness has on record, read; also of a database that an older release made. Nothing in here writes."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ktlog.errors import StoreError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import Vkey, parse_vkey
from witness.decide import Cosigned
from witness.guarded import Guarded
from witness.schema import SCHEMA_VERSION

#: What a limit set by hand has for a source; it goes before those of lists.
BY_HAND = ""

_known_vkey = lru_cache(16_384)(parse_vkey)


@dataclass(frozen=True)
class Log:
    """A log that this witness follows, and the last checkpoint that it cosigned for it.

    vkeys: the keys that it is trusted under, which may be none. retired: those that it was trusted under before.
    """

    origin: str
    vkeys: tuple[Vkey, ...]
    latest: Cosigned | None
    frozen: int | None = None
    """Since when nothing is signed for it, because it was convicted; Unix seconds."""
    per_day: int | None = None
    """How many submissions it may have signed a day; None: as many as it likes."""
    retired: tuple[Vkey, ...] = ()
    key_changes: int = 0
    """How often a key of it was added, retired, or trusted again: what a judgement by these keys rests on."""

    @property
    def origin_hash(self) -> str:
        return hash_origin(self.origin)


@dataclass(frozen=True)
class Conviction:
    """Evidence on record. size: of the forked tree. recorded: Unix seconds. freezes: the log, to this day.

    retired_key: the id, in hex, of the key that it convicts, if that was retired already when it was shown.
    """

    origin: str
    size: int
    recorded: int
    freezes: bool
    document: bytes
    retired_key: str = ""


def hash_origin(origin: str) -> str:
    """Lowercase hex SHA-256 of the origin, as on the monitoring path."""
    return hashlib.sha256(origin.encode("utf-8")).hexdigest()


def is_retired(database: sqlite3.Connection, origin: str, vkey: Vkey) -> bool:
    """Whether that key of the log was retired, and is to this day."""
    return database.execute(
        "SELECT 1 FROM retirements WHERE origin = ? AND name = ? AND key_id = ? AND restored IS NULL",
        (origin, vkey.name, vkey.key_id),
    ).fetchone() is not None


class Reader(Guarded):
    """The record, read. One moment is read in one transaction."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        super().__init__(path, connection)
        with self.reading() as database:
            row = database.execute("SELECT name, oldest_reader, schema_version FROM witness").fetchone()
            keys = database.execute("SELECT vkey FROM witness_keys ORDER BY rowid").fetchall()
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        self._tables = frozenset(tables)
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
            return sum(self._count(database, table) for table in ("evidence", "retired_evidence"))

    def count_writes(self) -> int:
        """Everything that may never be taken back: what the high-water mark counts."""
        with self.reading() as database:
            return self._count_writes(database)

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
            rows = database.execute("SELECT document FROM evidence ORDER BY id").fetchall()
            if "retired_evidence" in self._tables:
                rows += database.execute("SELECT document FROM retired_evidence ORDER BY id").fetchall()
        return tuple(document for (document,) in rows)

    def convictions(self, origin_hash: str | None = None) -> tuple[Conviction, ...]:
        """All evidence, or that about the log of this hash, oldest first; that under retired keys comes last."""
        under_retired = []
        with self.reading() as database:
            rows = database.execute(
                "SELECT origin, size, recorded, document FROM evidence JOIN logs USING (origin)"
                " WHERE ?1 IS NULL OR origin_hash = ?1 ORDER BY id",
                (origin_hash,),
            ).fetchall()
            if "retired_evidence" in self._tables:
                under_retired = database.execute(
                    "SELECT origin, size, recorded, document, key_id FROM retired_evidence JOIN logs USING (origin)"
                    " WHERE ?1 IS NULL OR origin_hash = ?1 ORDER BY id",
                    (origin_hash,),
                ).fetchall()
            frozen = self._freezes(database)
        return tuple(
            Conviction(origin, size, recorded, (origin, size) in frozen, document)
            for origin, size, recorded, document in rows
        ) + tuple(
            Conviction(origin, size, recorded, False, document, key_id.hex())
            for origin, size, recorded, document, key_id in under_retired
        )

    def check(self) -> None:
        """Raise StoreError unless reads work and writes are still allowed."""
        self.refuse_poisoned()
        with self.reading() as database:
            database.execute("SELECT count(*) FROM witness").fetchone()

    def _log(self, database: sqlite3.Connection, origin: str) -> Log | None:
        vkeys, retired, key_changes = self._keys(database, origin)
        if not (vkeys or retired):
            return None
        frozen, per_day = None, None
        if {"freezes", "log_limits"} <= self._tables:
            frozen, per_day = database.execute(
                "SELECT (SELECT min(frozen) FROM freezes WHERE origin = ?1 AND lifted IS NULL), (SELECT per_day FROM"
                " log_limits WHERE origin = ?1 ORDER BY source = ?2 DESC, per_day DESC LIMIT 1)", (origin, BY_HAND)
            ).fetchone()
        return Log(origin, vkeys, self._latest(database, origin), frozen, per_day, retired, key_changes)

    def _keys(self, database: sqlite3.Connection, origin: str) -> tuple[tuple[Vkey, ...], tuple[Vkey, ...], int]:
        """Those that the log is trusted under, those that it was trusted under, and how often that changed."""
        rows = database.execute(
            "SELECT vkey, name, key_id FROM log_keys WHERE origin = ? ORDER BY rowid", (origin,)
        ).fetchall()
        retirements = [] if "retirements" not in self._tables else database.execute(
            "SELECT name, key_id, restored IS NULL FROM retirements WHERE origin = ?", (origin,)
        ).fetchall()
        over = {(name, key_id) for name, key_id, holds in retirements if holds}
        vkeys = tuple(_known_vkey(vkey) for vkey, *key in rows if tuple(key) not in over)
        retired = tuple(_known_vkey(vkey) for vkey, *key in rows if tuple(key) in over)
        restored = len(retirements) - len(over)
        return vkeys, retired, len(rows) + len(retirements) + restored

    def _count(self, database: sqlite3.Connection, table: str) -> int:
        if table not in self._tables:
            return 0
        return int(database.execute(f"SELECT count(*) FROM {table}").fetchone()[0])  # noqa: S608  (a name of ours)

    def _count_writes(self, database: sqlite3.Connection) -> int:
        revisions = int(database.execute("SELECT coalesce(sum(revision), 0) FROM checkpoints").fetchone()[0])
        return revisions + sum(
            self._count(database, table) for table in ("evidence", "retired_evidence", "retirements")
        )

    def _freezes(self, database: sqlite3.Connection) -> dict[tuple[str, int], int]:
        """Since when, by origin and size, each freeze holds that was not lifted. There are few, or none."""
        if "freezes" not in self._tables:
            return {}
        rows = database.execute("SELECT origin, size, frozen FROM freezes WHERE lifted IS NULL")
        return {(origin, size): frozen for origin, size, frozen in rows}

    @staticmethod
    def _latest(database: sqlite3.Connection, origin: str) -> Cosigned | None:
        row = database.execute(
            "SELECT revision, size, root, time, note FROM checkpoints WHERE origin = ?", (origin,)
        ).fetchone()
        if row is None:
            return None
        revision, size, root, time, note = row
        return Cosigned(revision, Checkpoint(origin, size, root), time, note)
