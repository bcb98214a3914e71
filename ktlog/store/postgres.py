"""A log store in a PostgreSQL database, for those who outgrow one machine.

One handle writes at a time, fenced by the epoch; any number of others read and write beside it, from any machine,
and a loser is told so. Every handle may be used from several threads, and only in the process that opened it.

What keeps two writers from forking the log is one statement: the first of every commit changes the row
``log_state`` if it still has the size, the root and the epoch that the batch expects. No lock outlives its
transaction, and nothing rests on a clock.

A missing log is refused, never made; ``PostgresStore.create`` is the only way to begin one.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import psycopg
from psycopg import errors, sql

from ktlog.errors import StoreError
from ktlog.pkd.erasure import CarriedMove, ErasurePlan, ErasureRecord, Mention, map_index
from ktlog.pkd.state import Actor
from ktlog.store import pgdirectory, pgerasure, pgrows, pgschema, pgupgrade
from ktlog.store.batch import (
    check_batch,
    check_limit,
    check_order,
    check_range,
    duplicate,
    is_text,
    last_actors,
    lost,
    standing_of,
)
from ktlog.store.contracts import Batch, Cosignature, LogState, Record, Standing, TotpSecret, Touch
from ktlog.store.erasing import check_erasure
from ktlog.store.instances import check_cosignature, check_totp, totp_moved
from ktlog.store.pgconnections import HOOKS, PgConnections

__all__ = ["HOOKS", "PostgresStore", "begin_tables", "refuse_existing"]

T = TypeVar("T")

SCRUB_LOCK_SECONDS = 1.0
"""How long a scrub waits for readers of a table, who wait for it in turn."""


class PostgresStore:
    """``LogStore`` over the schema ``ktlog`` of the database *url*.

    Opening checks the server, and that state, entries, records and roots agree about where the log ends. That costs
    the same for every size; reading all entries again is another tool's work. A handle that writes waits besides
    until whatever another one is committing just now is decided.

    Args:
        url: ``postgresql://...``; it must name the database.
        read_only: nothing can be written through this handle, whatever happens.
        origin: refuse the log of any other origin.

    Raises:
        UsageError: "BadStore".
        StoreError: "NotALog"; "WrongOrigin"; "NewerSchema", written by code that this code cannot follow;
            "OlderSchema", only with read_only: the writer has to migrate it first; "OtherServer", it cannot;
            "Corrupt", the database contradicts itself; or any name of ``PgConnections`` and ``ktlog.store.pgerrors``.
    """

    def __init__(self, url: str, *, read_only: bool = False, origin: str | None = None) -> None:
        self.read_only = read_only
        self._connections = PgConnections(url, read_only=read_only)
        try:
            do = self._connections.read if read_only else self._connections.write
            self.origin, self.dialect = do(lambda db: _check_meta(db, self.where, read_only, origin))
            wrong = do(lambda db: _contradiction(db, read_only))
            if wrong is not None:
                raise StoreError(
                    "Corrupt", f"{self.where}: {wrong}",
                    hint="Do not write to it and sign nothing. Compare it with the published log.",
                )
        except BaseException:
            self.close()
            raise

    @classmethod
    def open(cls, url: str, *, read_only: bool = False, origin: str | None = None) -> PostgresStore:
        """The same as the constructor."""
        return cls(url, read_only=read_only, origin=origin)

    @classmethod
    def create(cls, url: str, origin: str, dialect: str) -> PostgresStore:
        """Begin the log *origin* in the database, and open it for writing.

        Everything of it appears in one transaction, or nothing.

        Raises:
            StoreError: "StoreExists", there is a schema ``ktlog`` with something in it.
        """
        connections = PgConnections(url, read_only=False)
        try:
            connections.write(lambda db: begin_log(db, connections.where, origin, dialect))
        finally:
            connections.close()
        return cls(url, origin=origin)

    @property
    def where(self) -> str:
        """The database, without its password."""
        return self._connections.where

    def close(self) -> None:
        self._connections.close()

    def __enter__(self) -> PostgresStore:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    # Writing

    def claim_epoch(self) -> int:
        return self._connections.write(pgrows.raise_epoch)

    def commit(self, batch: Batch) -> None:
        check_batch(batch)

        def work(db: psycopg.Connection) -> None:
            insert_batch(db, batch)
            for use in batch.totp_uses:
                if not pgerasure.use_totp(db, use):
                    raise totp_moved(use.domain, pgerasure.read_totp(db, use.domain))

        self._connections.write(work)

    def erase(self, plan: ErasurePlan, expected: LogState) -> None:
        def work(db: psycopg.Connection) -> None:
            stored = pgrows.begin_write(db)
            if (stored.size, stored.root, stored.epoch) != (expected.size, expected.root, expected.epoch):
                raise lost(stored, expected)
            actor_id = plan.erased.actor_id
            check_erasure(
                plan, self.origin, stored, pgdirectory.read_actor(db, actor_id), pgerasure.read_mentions(db, actor_id),
                lambda leaf_index: pgrows.read_records(db, leaf_index, leaf_index + 1)[0].plain,
            )
            pgerasure.erase(db, plan)

        self._connections.write(work)

    def scrub(self) -> bool:
        # What was deleted or replaced stays in its page until VACUUM makes room there, and its bytes until the room
        # is used. VACUUM FULL writes what is left to a new file and removes the old one.
        tables = self._connections.read(_plain_tables)
        with self._connections.maintaining(SCRUB_LOCK_SECONDS) as db:
            # A copy from before an upgrade has what was erased.
            if not pgupgrade.drop_copies(db) or not all(_rewrite(db, table) for table in tables):
                return False

        def work(db: psycopg.Connection) -> None:
            pgrows.begin_write(db)
            pgerasure.set_scrub_due(db, False)

        self._connections.write(work)
        return True

    def note_published(self, size: int, time: int) -> None:
        def work(db: psycopg.Connection) -> None:
            check_range(0, size, pgrows.begin_write(db).size)
            pgerasure.write_publication(db, size, time)

        self._connections.write(work)

    def set_totp(
        self, domain: str, secret: bytes | None, used_window: int, expected_serial: int | None
    ) -> TotpSecret | None:
        check_totp(domain, secret, used_window)

        def work(db: psycopg.Connection) -> TotpSecret | None:
            pgrows.begin_write(db)
            stored = pgerasure.read_totp(db, domain)
            if (stored.serial if stored else None) != expected_serial:
                raise totp_moved(domain, stored)
            if secret is not None or stored is not None:
                pgerasure.write_totp(db, domain, secret, used_window)
            return pgerasure.read_totp(db, domain)

        return self._connections.write(work)

    def add_cosignature(self, cosignature: Cosignature) -> bool:
        def work(db: psycopg.Connection) -> bool:
            check_cosignature(cosignature, pgrows.begin_write(db).size)
            return pgerasure.insert_cosignature(db, cosignature)

        return self._connections.write(work)

    # Reading

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self._connections.snapshot():
            yield

    def version(self) -> int:
        return self._read_one(pgrows.read_writes)

    def state(self) -> LogState:
        return self._read_one(pgrows.read_state)

    def entries(self, start: int, end: int) -> tuple[bytes, ...]:
        return self._read_range(start, end, lambda db: pgrows.read_column(db, "entry", start, end))

    def leaf_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        return self._read_range(start, end, lambda db: pgrows.read_column(db, "leaf_hash", start, end))

    def records(self, start: int, end: int) -> tuple[Record, ...]:
        return self._read_range(start, end, lambda db: pgrows.read_records(db, start, end))

    def root_after(self, size: int) -> bytes:
        return self._read_range(0, size, lambda db: pgrows.read_root(db, size))

    def size_of_root(self, root: bytes) -> int | None:
        return self._read_one(lambda db: pgrows.read_size_of_root(db, root))

    def sizes_at(self, times: Sequence[int]) -> tuple[int, ...]:
        return self._read(lambda db: pgerasure.read_sizes_at(db, times))

    def owners(self, item_id: str, limit: int) -> tuple[str, ...]:
        return self._read_one(lambda db: pgerasure.read_owners(db, item_id, limit)) if is_text(item_id) else ()

    def seen(self, unique_hash: bytes) -> int | None:
        return self._read_one(lambda db: pgrows.read_seen(db, (unique_hash,)).get(unique_hash))

    def actor(self, actor_id: str) -> Actor | None:
        if not is_text(actor_id):
            return None
        return self._read(lambda db: pgdirectory.read_actor(db, actor_id) or self._tombstone(db, actor_id))

    def erased(self, actor_id: str) -> Actor | None:
        if not is_text(actor_id):
            return None
        return self._read_one(lambda db: self._tombstone(db, actor_id))

    def _tombstone(self, db: psycopg.Connection, actor_id: str) -> Actor | None:
        return pgerasure.read_tombstone(db, map_index(self.origin, actor_id), actor_id)

    def mentions(self, actor_id: str) -> tuple[Mention, ...]:
        if not is_text(actor_id):
            return ()
        return self._read(lambda db: pgerasure.read_mentions(db, actor_id))

    def erasure_count(self, size: int | None = None) -> int:
        return self._read_one(lambda db: pgerasure.read_erasure_count(db, size))

    def erasures(self, start: int, end: int) -> tuple[ErasureRecord, ...]:
        def work(db: psycopg.Connection) -> tuple[ErasureRecord, ...]:
            check_range(start, end, pgerasure.read_erasure_count(db, None), "erasures")
            return pgerasure.read_erasures(db, start, end)

        return self._read(work)

    def scrub_due(self) -> bool:
        return self._read_one(pgerasure.read_scrub_due)

    def public_since(self, leaf_index: int) -> int | None:
        return self._read_range(leaf_index, leaf_index, lambda db: pgerasure.read_public_since(db, leaf_index))

    def totp(self, domain: str) -> TotpSecret | None:
        if not is_text(domain):
            return None
        return self._read_one(lambda db: pgerasure.read_totp(db, domain))

    def cosignatures(self, tree_size: int) -> tuple[Cosignature, ...]:
        return self._read_range(tree_size, tree_size, lambda db: pgerasure.read_cosignatures(db, tree_size))

    def holders(self, key_hash: bytes) -> tuple[str, ...]:
        return self._read_one(lambda db: pgdirectory.read_holders(db, key_hash))

    def token_revoked(self, key_hash: bytes) -> bool:
        return self._read_one(lambda db: pgdirectory.read_token_revoked(db, key_hash))

    def history(self, actor_id: str) -> tuple[tuple[int, int], ...]:
        if not is_text(actor_id):
            return ()
        return self._read_one(lambda db: pgerasure.read_history(db, actor_id))

    def history_span(self, actor_id: str) -> tuple[int, int] | None:
        if not is_text(actor_id):
            return None
        return self._read_one(lambda db: pgerasure.read_span(db, actor_id))

    def standing(self, actor_id: str) -> Standing | None:
        with self.snapshot():
            return standing_of(self.history_span(actor_id), self.actor(actor_id))

    def touches(self, actor_id: str, after: int = -1, limit: int | None = None) -> tuple[Touch, ...]:
        if not is_text(actor_id):
            return ()
        return self._read_one(lambda db: pgerasure.read_touches(db, actor_id, after, limit))

    def newest_touches(self, actor_id: str, before: int | None, limit: int) -> tuple[Touch, ...]:
        if not is_text(actor_id):
            return ()
        return self._read_one(lambda db: pgerasure.read_newest_touches(db, actor_id, before, limit))

    def accepted_times(self, actor_id: str, limit: int) -> tuple[int, ...]:
        if not is_text(actor_id):
            return ()
        return self._read_one(lambda db: pgerasure.read_accepted_times(db, actor_id, limit))

    def carried(self, leaf_index: int) -> CarriedMove | None:
        return self._read_one(lambda db: pgerasure.read_move(db, leaf_index))

    def touched(self, start: int, end: int) -> tuple[tuple[int, str, int], ...]:
        return self._read_range(start, end, lambda db: pgdirectory.read_touched(db, start, end))

    def salt(self, actor_id: str) -> bytes | None:
        if not is_text(actor_id):
            return None
        return self._read_one(lambda db: pgdirectory.read_salt(db, actor_id))

    def actor_ids(self, after: str, limit: int) -> tuple[str, ...]:
        check_limit(limit)
        if not is_text(after):
            raise StoreError("OutOfRange", "text without a UTF-8 form has no place in the order")
        return check_order(after, self._read_one(lambda db: pgdirectory.read_actor_ids(db, after, limit)))

    def _read(self, work: Callable[[psycopg.Connection], T]) -> T:
        return self._connections.read(work)

    def _read_one(self, work: Callable[[psycopg.Connection], T]) -> T:
        """*work* is one statement."""
        return self._connections.read(work, single=True)

    def _read_range(self, start: int, end: int, work: Callable[[psycopg.Connection], T]) -> T:
        """*work* is one statement about that part of the log. A log only grows, so it may see a newer commit."""
        def checked(db: psycopg.Connection) -> T:
            check_range(start, end, pgrows.read_size(db))
            return work(db)

        return self._connections.read(checked, single=True)


def begin_log(db: psycopg.Connection, where: str, origin: str, dialect: str) -> None:
    """Make an empty log, in the caller's transaction.

    Raises:
        StoreError: "StoreExists".
    """
    begin_tables(db, where)
    db.execute(
        "INSERT INTO log_meta (id, origin, dialect, schema_version, oldest_code) VALUES (1, %s, %s, %s, %s)",
        (origin, dialect, pgschema.SCHEMA_VERSION, pgschema.OLDEST_CODE),
    )
    pgrows.insert_first_state(db)


def begin_tables(db: psycopg.Connection, where: str) -> None:
    """Make the tables of a log, without what says which log it is.

    Raises:
        StoreError: "StoreExists".
    """
    refuse_existing(db, where)
    _refuse_foreign(db, where)
    db.execute(sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(sql.Identifier(pgschema.SCHEMA)))
    pgschema.apply_steps(db)


def refuse_existing(db: psycopg.Connection, where: str) -> None:
    """Raises StoreError("StoreExists") if there is anything in the schema already."""
    if db.execute("SELECT 1 FROM pg_catalog.pg_tables WHERE schemaname = %s", (pgschema.SCHEMA,)).fetchone():
        raise StoreError(
            "StoreExists", f"{where}: it has a log already, and that is not replaced",
            hint="Every log has a database of its own.",
        )


def _refuse_foreign(db: psycopg.Connection, where: str) -> None:
    """A schema's owner can drop every table in it, and define functions that stand before others."""
    row = db.execute(
        "SELECT pg_get_userbyid(nspowner) FROM pg_catalog.pg_namespace"
        " WHERE nspname = %s AND NOT pg_has_role(nspowner, 'USAGE')", (pgschema.SCHEMA,),
    ).fetchone()
    if row is not None:
        raise StoreError(
            "Denied", f"{where}: the schema {pgschema.SCHEMA} is there already, and belongs to {row[0]}",
            hint="Give the log a database of its own, that belongs to its role; or drop the schema.",
        )


def insert_batch(db: psycopg.Connection, batch: Batch) -> None:
    """Write the rows of a batch that was checked, if the stored state is the one that it expects.

    Raises:
        Conflict: "Fenced", "StateMoved", "Duplicate".
    """
    if not pgrows.swap_state(db, batch.expected, batch.state):
        raise lost(pgrows.read_state(db), batch.expected)
    stored = pgrows.read_seen(db, [record.unique_hash for record in batch.records])
    for record in batch.records:
        if record.unique_hash in stored:
            raise duplicate(record.leaf_index, stored[record.unique_hash])
    pgrows.insert_records(db, batch.records)
    actors = last_actors(batch.changes)
    numbers = pgdirectory.write_actors(db, actors) if actors else {}
    pgdirectory.insert_changes(db, batch.records, batch.changes, numbers)
    pgerasure.insert_traces(db, batch.records, batch.changes)


def _contradiction(db: psycopg.Connection, read_only: bool) -> str | None:
    if not read_only:
        pgrows.begin_write(db)
    return pgrows.contradiction(db)


def _plain_tables(db: psycopg.Connection) -> list[str]:
    """The tables of which a scrub leaves nothing behind; those of the map are scrubbed by the map's store."""
    rows = db.execute("SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = %s", (pgschema.SCHEMA,))
    return sorted(
        name for (name,) in rows if name not in pgschema.LASTING_TABLES and not name.startswith(("map_", "output_"))
    )


def _rewrite(db: psycopg.Connection, table: str) -> bool:
    """Write *table* and its indexes anew; whether no old version of a row is left, because somebody still reads it."""
    kept: list[str] = []

    def note(diagnostic: errors.Diagnostic) -> None:
        kept.append(diagnostic.message_detail or "")

    db.add_notice_handler(note)
    try:
        db.execute(sql.SQL("VACUUM (FULL, VERBOSE) {}").format(sql.Identifier(pgschema.SCHEMA, table)))
    except errors.LockNotAvailable:
        return False
    finally:
        db.remove_notice_handler(note)
    # "3 dead row versions cannot be removed yet." In whatever language: the number comes first.
    numbers = [re.match(r"\D{0,40}(\d+)\D", detail) for detail in kept if detail]
    return bool(numbers) and all(found is not None and int(found[1]) == 0 for found in numbers)


def _check_meta(
    db: psycopg.Connection, where: str, read_only: bool, wanted_origin: str | None
) -> tuple[str, str]:
    """Refuse a database that is not this log's, or not this code's. A writer migrates an older one."""
    if not db.execute("SELECT to_regclass(%s) IS NOT NULL", (f"{pgschema.SCHEMA}.log_meta",)).fetchone()[0]:  # type: ignore[index]
        raise StoreError("NotALog", f"{where}: a database, but it has no log", hint="ktlog init --store makes one.")
    # Of two writers that find an older schema, one waits here, and then finds the new one.
    lock = "" if read_only else " FOR UPDATE"
    row = db.execute(
        f"SELECT origin, dialect, schema_version, oldest_code FROM log_meta WHERE id = 1{lock}"  # type: ignore[arg-type]  # noqa: S608
    ).fetchone()
    if row is None:
        raise StoreError("NotALog", f"{where}: it does not say which log it holds")
    origin, dialect, schema_version, oldest_code = row
    pgupgrade.check_newer(where, schema_version, oldest_code)
    if wanted_origin is not None and wanted_origin != origin:
        raise StoreError(
            "WrongOrigin", f"{where}: holds the log {origin}, not {wanted_origin}",
            hint="Check the store's URL: every log has its own database.",
        )
    if schema_version < pgschema.SCHEMA_VERSION:
        if read_only:
            raise StoreError(
                "OlderSchema", f"{where}: has schema {schema_version}, {pgschema.SCHEMA_VERSION} is needed",
                hint="Start the log once: its writer migrates the database.",
            )
        pgupgrade.migrate(db, where, schema_version)
    return origin, dialect
