"""A log store in one SQLite file.

One handle writes, over one connection, and it alone checkpoints the write-ahead log. Any number of
read-only handles, in any process, read beside it and never wait for it. Every handle may be used from
several threads, and only in the process that opened it: open one after a fork, not before.

A missing file is refused, never made; ``SqliteStore.create`` is the only way to begin a log.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path

from ktlog import sqlitefile
from ktlog.errors import StoreError
from ktlog.pkd.erasure import CarriedMove, ErasurePlan, ErasureRecord, Mention, map_index
from ktlog.pkd.state import Actor
from ktlog.store import connections, erasure_rows, history_rows, instance_rows, rows, schema
from ktlog.store.batch import (
    check_batch,
    check_limit,
    check_order,
    check_range,
    duplicate,
    is_text,
    last_actors,
    lost,
    salts_by_actor,
)
from ktlog.store.contracts import Batch, Cosignature, LogState, Record, Standing, TotpSecret, Touch
from ktlog.store.erasing import check_erasure
from ktlog.store.instances import check_cosignature, check_totp, totp_moved

HOOKS = connections.HOOKS

WRITER_CACHE_KIB = 65_536
"""At most. Every new hash is looked for among all there are: the index of three million fits in."""

OLDEST_SQLITE = (3, 37, 0)
"""STRICT tables came with it."""


class SqliteStore:
    """``LogStore`` over the SQLite file *path*.

    Opening checks that state, entries, records and roots agree about where the log ends. That costs
    the same for every size; reading all entries again is another tool's work.

    Args:
        path: the file, made by ``SqliteStore.create``.
        read_only: nothing can be written through this handle, whatever happens.
        origin: refuse the log of any other origin.

    Raises:
        StoreError: "MissingStore"; "NotALog"; "WrongOrigin"; "NewerSchema", written by code that this
            code cannot follow; "OlderSchema", only with read_only: the writer has to migrate it first;
            "Corrupt", the file contradicts itself; "OldSqlite"; or any name of
            ``sqlitefile.database_errors``.
    """

    def __init__(self, path: Path | str, *, read_only: bool = False, origin: str | None = None) -> None:
        _check_sqlite()
        self.path = Path(path).absolute()
        self.read_only = read_only
        connection = sqlitefile.open_database(self.path, read_only=read_only)
        if not read_only:
            connection.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
        self._connections = connections.Connections(self.path, connection, read_only=read_only)
        try:
            with sqlitefile.database_errors(self.path):
                self.origin, self.dialect = _check_meta(connection, self.path, read_only, origin)
            with self._connections.reading() as db:
                wrong = rows.contradiction(db)
            if wrong is not None:
                raise StoreError(
                    "Corrupt", f"{self.path}: {wrong}",
                    hint="Do not write to it and sign nothing. Compare it with the published log.",
                )
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, path: Path | str, *, read_only: bool = False, origin: str | None = None) -> SqliteStore:
        """The same as the constructor."""
        return cls(path, read_only=read_only, origin=origin)

    @classmethod
    def create(cls, path: Path | str, origin: str, dialect: str) -> SqliteStore:
        """Begin the log *origin* in a new file, and open it for writing.

        The file appears with everything in it or not at all. Only its owner can read it.

        Args:
            dialect: name of the PKD dialect of every entry to come.

        Raises:
            StoreError: "StoreExists".
        """
        _check_sqlite()
        path = Path(path).absolute()
        with sqlitefile.new_database(path) as connection:
            schema.migrate(connection)
            connection.execute(
                "INSERT INTO log_meta (id, origin, dialect, schema_version, oldest_code) VALUES (1, ?, ?, ?, ?)",
                (origin, dialect, schema.SCHEMA_VERSION, schema.OLDEST_CODE),
            )
            rows.insert_first_state(connection)
        return cls(path, origin=origin)

    def close(self) -> None:
        self._connections.close()

    def __enter__(self) -> SqliteStore:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # Writing

    def claim_epoch(self) -> int:
        with self._connections.writing() as db:
            return rows.raise_epoch(db)

    def commit(self, batch: Batch) -> None:
        check_batch(batch)
        with self._connections.writing() as db:
            insert_batch(db, batch)
            for use in batch.totp_uses:
                if not instance_rows.use_totp(db, use):
                    raise totp_moved(use.domain, instance_rows.read_totp(db, use.domain))

    def erase(self, plan: ErasurePlan, expected: LogState) -> None:
        with self._connections.writing() as db:
            stored = rows.read_state(db)
            if (stored.size, stored.root, stored.epoch) != (expected.size, expected.root, expected.epoch):
                raise lost(stored, expected)
            actor_id = plan.erased.actor_id
            check_erasure(
                plan, self.origin, stored, rows.read_actor(db, actor_id),
                erasure_rows.read_mentions(db, actor_id),
                lambda leaf_index: rows.read_records(db, leaf_index, leaf_index + 1)[0].plain,
            )
            erasure_rows.erase(db, plan)

    def scrub(self) -> bool:
        # secure_delete overwrites a deleted cell, but not the copies of it that a page keeps between
        # its cells when SQLite fills it anew. A file written from nothing has none.
        if not self._connections.rewrite():
            return False
        with self._connections.writing() as db:
            erasure_rows.set_scrub_due(db, False)
        return True

    def note_published(self, size: int, time: int) -> None:
        with self._connections.writing() as db:
            check_range(0, size, rows.read_size(db))
            erasure_rows.write_publication(db, size, time)

    def set_totp(
        self, domain: str, secret: bytes | None, used_window: int, expected_serial: int | None
    ) -> TotpSecret | None:
        check_totp(domain, secret, used_window)
        with self._connections.writing() as db:
            stored = instance_rows.read_totp(db, domain)
            if (stored.serial if stored else None) != expected_serial:
                raise totp_moved(domain, stored)
            if secret is not None or stored is not None:
                instance_rows.write_totp(db, domain, secret, used_window)
            return instance_rows.read_totp(db, domain)

    def add_cosignature(self, cosignature: Cosignature) -> bool:
        with self._connections.writing() as db:
            check_cosignature(cosignature, rows.read_size(db))
            return instance_rows.insert_cosignature(db, cosignature)

    # Reading

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self._connections.snapshot():
            yield

    def version(self) -> int:
        return self._connections.version()

    def state(self) -> LogState:
        with self._connections.reading() as db:
            return rows.read_state(db)

    def entries(self, start: int, end: int) -> tuple[bytes, ...]:
        with self._connections.reading() as db:
            check_range(start, end, rows.read_size(db))
            return rows.read_column(db, "entry", start, end)

    def leaf_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        with self._connections.reading() as db:
            check_range(start, end, rows.read_size(db))
            return rows.read_column(db, "leaf_hash", start, end)

    def records(self, start: int, end: int) -> tuple[Record, ...]:
        with self._connections.reading() as db:
            check_range(start, end, rows.read_size(db))
            return rows.read_records(db, start, end)

    def root_after(self, size: int) -> bytes:
        with self._connections.reading() as db:
            check_range(0, size, rows.read_size(db))
            return rows.read_root(db, size)

    def size_of_root(self, root: bytes) -> int | None:
        with self._connections.reading() as db:
            return rows.read_size_of_root(db, root)

    def sizes_at(self, times: Sequence[int]) -> tuple[int, ...]:
        with self._connections.reading() as db:
            return history_rows.read_sizes_at(db, times, rows.read_size(db))

    def owners(self, item_id: str, limit: int) -> tuple[str, ...]:
        if not is_text(item_id):
            return ()
        with self._connections.reading() as db:
            return history_rows.read_owners(db, item_id, limit)

    def seen(self, unique_hash: bytes) -> int | None:
        with self._connections.reading() as db:
            return rows.read_seen(db, unique_hash)

    def actor(self, actor_id: str) -> Actor | None:
        if not is_text(actor_id):
            return None
        with self._connections.reading() as db:
            return rows.read_actor(db, actor_id) or self._tombstone(db, actor_id)

    def erased(self, actor_id: str) -> Actor | None:
        if not is_text(actor_id):
            return None
        with self._connections.reading() as db:
            return self._tombstone(db, actor_id)

    def _tombstone(self, db: sqlite3.Connection, actor_id: str) -> Actor | None:
        return erasure_rows.read_tombstone(db, map_index(self.origin, actor_id), actor_id)

    def mentions(self, actor_id: str) -> tuple[Mention, ...]:
        if not is_text(actor_id):
            return ()
        with self._connections.reading() as db:
            return erasure_rows.read_mentions(db, actor_id)

    def erasure_count(self, size: int | None = None) -> int:
        with self._connections.glance() as db:
            return erasure_rows.read_erasure_count(db, size)

    def erasures(self, start: int, end: int) -> tuple[ErasureRecord, ...]:
        with self._connections.reading() as db:
            check_range(start, end, erasure_rows.read_erasure_count(db, None), "erasures")
            return erasure_rows.read_erasures(db, start, end)

    def tombstones(self) -> tuple[tuple[bytes, int, int, int], ...]:
        """(map index, version, generation, erasures) of every tombstone; for checks."""
        with self._connections.reading() as db:
            return erasure_rows.read_tombstones(db)

    def scrub_due(self) -> bool:
        with self._connections.reading() as db:
            return erasure_rows.read_scrub_due(db)

    def public_since(self, leaf_index: int) -> int | None:
        with self._connections.reading() as db:
            check_range(leaf_index, leaf_index, rows.read_size(db))
            return erasure_rows.read_public_since(db, leaf_index)

    def totp(self, domain: str) -> TotpSecret | None:
        if not is_text(domain):
            return None
        with self._connections.reading() as db:
            return instance_rows.read_totp(db, domain)

    def cosignatures(self, tree_size: int) -> tuple[Cosignature, ...]:
        with self._connections.reading() as db:
            check_range(tree_size, tree_size, rows.read_size(db))
            return instance_rows.read_cosignatures(db, tree_size)

    def holders(self, key_hash: bytes) -> tuple[str, ...]:
        with self._connections.reading() as db:
            return rows.read_holders(db, key_hash)

    def token_revoked(self, key_hash: bytes) -> bool:
        with self._connections.reading() as db:
            return rows.read_token_revoked(db, key_hash)

    def history(self, actor_id: str) -> tuple[tuple[int, int], ...]:
        if not is_text(actor_id):
            return ()
        with self._connections.reading() as db:
            return rows.read_history(db, actor_id)

    def history_span(self, actor_id: str) -> tuple[int, int] | None:
        if not is_text(actor_id):
            return None
        with self._connections.reading() as db:
            return history_rows.read_span(db, actor_id)

    def standing(self, actor_id: str) -> Standing | None:
        if not is_text(actor_id):
            return None
        with self._connections.reading() as db:
            return rows.read_standing(db, actor_id)

    def touches(self, actor_id: str, after: int = -1, limit: int | None = None) -> tuple[Touch, ...]:
        if not is_text(actor_id):
            return ()
        with self._connections.reading() as db:
            return history_rows.read_touches(db, actor_id, after, limit)

    def newest_touches(self, actor_id: str, before: int | None, limit: int) -> tuple[Touch, ...]:
        if not is_text(actor_id):
            return ()
        with self._connections.reading() as db:
            return history_rows.read_newest_touches(db, actor_id, before, limit)

    def accepted_times(self, actor_id: str, limit: int) -> tuple[int, ...]:
        if not is_text(actor_id):
            return ()
        with self._connections.reading() as db:
            return history_rows.read_accepted_times(db, actor_id, limit)

    def carried(self, leaf_index: int) -> CarriedMove | None:
        with self._connections.reading() as db:
            return erasure_rows.read_move(db, leaf_index)

    def touched(self, start: int, end: int) -> tuple[tuple[int, str, int], ...]:
        with self._connections.reading() as db:
            check_range(start, end, rows.read_size(db))
            return rows.read_touched(db, start, end)

    def salt(self, actor_id: str) -> bytes | None:
        if not is_text(actor_id):
            return None
        with self._connections.reading() as db:
            return rows.read_salt(db, actor_id)

    def actor_ids(self, after: str, limit: int) -> tuple[str, ...]:
        check_limit(limit)
        if not is_text(after):
            raise StoreError("OutOfRange", "text without a UTF-8 form has no place in the order")
        with self._connections.reading() as db:
            return check_order(after, rows.read_actor_ids(db, after, limit))


def insert_batch(db: sqlite3.Connection, batch: Batch) -> None:
    """Write the rows of a batch that was checked, if the stored state is the one that it expects.

    Raises:
        Conflict: "Fenced", "StateMoved", "Duplicate".
    """
    if not rows.swap_state(db, batch.expected, batch.state):
        raise lost(rows.read_state(db), batch.expected)
    stored = rows.read_first_seen(db, batch.records)
    if stored is not None:
        raise duplicate(*stored)
    rows.insert_records(db, batch.records)
    for actor in last_actors(batch.changes).values():
        rows.write_actor(db, actor)
    told = cache(partial(erasure_rows.told_histories, db))
    for record, change in zip(batch.records, batch.changes, strict=True):
        rows.insert_changes(db, record.leaf_index, change)
        erasure_rows.insert_traces(db, record, change, told)
        for actor_id, salt in salts_by_actor(record).items():
            rows.write_salt(db, actor_id, salt)


def _check_sqlite() -> None:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StoreError("OldSqlite", f"SQLite {sqlite3.sqlite_version} is too old, {oldest} is needed")


def _check_meta(
    db: sqlite3.Connection, path: Path, read_only: bool, wanted_origin: str | None
) -> tuple[str, str]:
    """Refuse a file that is not this log's, or not this code's. A writer migrates an older one."""
    origin, dialect, schema_version = read_meta(db, path)
    if wanted_origin is not None and wanted_origin != origin:
        raise StoreError(
            "WrongOrigin", f"{path}: holds the log {origin}, not {wanted_origin}",
            hint="Check the directory: every log has its own.",
        )
    if schema_version < schema.SCHEMA_VERSION:
        if read_only:
            raise StoreError(
                "OlderSchema", f"{path}: has schema {schema_version}, {schema.SCHEMA_VERSION} is needed",
                hint="Start the log once: its writer migrates the file.",
            )
        db.execute("PRAGMA foreign_keys=OFF")
        with sqlitefile.transaction(db):
            if read_meta(db, path)[2] < schema.SCHEMA_VERSION:  # or another process was faster
                schema.migrate(db)
        db.execute("PRAGMA foreign_keys=ON")
    return origin, dialect


def read_meta(db: sqlite3.Connection, path: Path) -> tuple[str, str, int]:
    """The log's origin and dialect, and the schema that the file has.

    Raises:
        StoreError: "NotALog", "Corrupt"; "NewerSchema" for a file that this code cannot follow.
    """
    if db.execute("SELECT 1 FROM sqlite_schema WHERE name = 'log_meta'").fetchone() is None:
        raise StoreError("NotALog", f"{path}: a database, but not a log's")
    row = db.execute(
        "SELECT origin, dialect, schema_version, oldest_code FROM log_meta WHERE id = 1"
    ).fetchone()
    if row is None:
        raise StoreError("NotALog", f"{path}: it does not say which log it holds")
    if [type(value) for value in row] != [str, str, int, int]:
        raise StoreError("Corrupt", f"{path}: what it says about itself is damaged")
    origin, dialect, schema_version, oldest_code = row
    if oldest_code > schema.SCHEMA_VERSION:
        raise StoreError(
            "NewerSchema",
            f"{path}: has schema {schema_version}, and code for {schema.SCHEMA_VERSION} must not open it",
            hint=f"Install a release of ktlog with schema {oldest_code} or newer.",
        )
    return origin, dialect, schema_version
