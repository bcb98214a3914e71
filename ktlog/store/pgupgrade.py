"""What stands between a log in PostgreSQL and this code's schema, and the copies that are kept of what steps change.

    found = look(url)              # which schema, which steps, which tables they change
    migrate(db, where, stored)     # copies and steps, in the one transaction of the writer that opens the log

PostgreSQL undoes changes of tables as it undoes those of rows, so a step that fails leaves what was. What a step that
does not fail changes for good is copied before: the tables that it names in ``changes``, into a schema
``ktlog_before_1_20261122t203104z``. Such a copy holds what an erasure takes away, so that ``drop_copies`` is part of
every scrub.
"""

from __future__ import annotations

import logging
from contextlib import closing

import psycopg
from psycopg import errors, sql

from ktlog.errors import StoreError
from ktlog.store import pgschema
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgrows import ask, ask_one
from ktlog.store.upgrade import KEEP, DatabaseUpgrade

ALWAYS = ("log_meta", "log_state", "migrations")
"""Copied with whatever is: they say of which log a copy is, and of what size it was."""

log = logging.getLogger("ktlog.store")

_COPIES = (
    "SELECT nspname FROM pg_catalog.pg_namespace WHERE nspname ~ '^ktlog_before_[0-9]+_[0-9]{8}t[0-9]{6}z$'"
    " AND pg_has_role(nspowner, 'USAGE') ORDER BY split_part(nspname, '_', 4), nspname"
)


def look(url: str) -> DatabaseUpgrade:
    """What the log in the database *url* is from and would become; changes nothing.

    Raises:
        StoreError: ``NotALog``, ``NewerSchema``; those of ``PgConnections``.
    """

    def work(db: psycopg.Connection) -> DatabaseUpgrade:
        if not ask_one(db, "SELECT to_regclass(%s) IS NOT NULL", (f"{pgschema.SCHEMA}.log_meta",))[0]:  # type: ignore[index]
            raise StoreError("NotALog", f"{connections.where}: a database, but it has no log")
        row = ask_one(
            db, "SELECT schema_version, oldest_code, size, pg_database_size(current_database())"
            " FROM log_meta CROSS JOIN log_state",
        )
        if row is None:
            raise StoreError("NotALog", f"{connections.where}: it does not say which log it holds")
        stored, oldest_code, entries, size = row
        check_newer(connections.where, stored, oldest_code)
        tables = _changed(db, stored)
        (copy_bytes,) = ask_one(
            db, "SELECT coalesce(sum(pg_table_size(to_regclass(name))), 0)::bigint FROM unnest(%s::text[]) name",
            ([f"{pgschema.SCHEMA}.{table}" for table in tables],),
        ) or (0,)
        return DatabaseUpgrade(
            stored, max(stored, pgschema.SCHEMA_VERSION), entries, size,
            tuple((step.name, step.about) for step in pgschema.STEPS[stored:]), tables, copy_bytes,
            tuple(copies(db)), "" if is_transactional(_server(db)) else _server(db),
        )

    with closing(PgConnections(url, read_only=True, readers=1)) as connections:
        return connections.read(work)


def check_newer(where: str, schema_version: int, oldest_code: int) -> None:
    """Refuse a database that this code cannot follow.

    Raises:
        StoreError: "NewerSchema".
    """
    if oldest_code > pgschema.SCHEMA_VERSION:
        raise StoreError(
            "NewerSchema",
            f"{where}: has schema {schema_version}, and code for {pgschema.SCHEMA_VERSION} must not use it",
            hint=f"Install a release of ktlog with schema {oldest_code} or newer.",
        )


def migrate(db: psycopg.Connection, where: str, stored: int) -> None:
    """Bring the tables from schema *stored* to this code's. The caller has begun a transaction, and commits it.

    Raises:
        StoreError: "OtherServer", it does not undo changes of tables as a whole. Nothing was changed.
    """
    server = _server(db)
    if not is_transactional(server):
        raise StoreError(
            "OtherServer", f"{where}: {server.partition(' (')[0]} does not promise to undo a migration that fails, and"
            f" the log has schema {stored}, {pgschema.SCHEMA_VERSION} is needed",
            hint="Nothing was changed. The older release goes on with it; move the log to a PostgreSQL server.",
        )
    # However long it takes: given up after half a minute, it would begin anew with each start.
    db.execute("SET LOCAL statement_timeout = 0")
    # The turn among all writers: what is copied is of one commit.
    db.execute("UPDATE log_state SET writes = writes + 1 WHERE id = 1")
    kept = _keep_copies(db, stored)
    pgschema.apply_steps(db)
    db.execute(
        "UPDATE log_meta SET schema_version = %s, oldest_code = %s WHERE id = 1",
        (pgschema.SCHEMA_VERSION, pgschema.OLDEST_CODE),
    )
    log.warning(
        "%s is brought from schema %d to %d; %s", where, stored, pgschema.SCHEMA_VERSION,
        f"what its steps change was copied to the schema {kept}" if kept else "no step changes a row that is there",
    )


def is_transactional(server: str) -> bool:
    """Whether a server with this ``version()`` makes all tables of one transaction, or none.

    CockroachDB goes on changing them after COMMIT was answered; YugabyteDB commits each such statement by itself.
    """
    return server.startswith("PostgreSQL ") and "-YB-" not in server


def copies(db: psycopg.Connection) -> list[str]:
    """The schemas of the copies that were kept, the oldest first."""
    return [name for (name,) in ask(db, _COPIES)]


def drop_copies(db: psycopg.Connection) -> bool:
    """Remove all of them, outside of a transaction; False while somebody reads one."""
    try:
        for name in copies(db):
            _drop(db, name)
    except errors.LockNotAvailable:
        return False
    return True


def _keep_copies(db: psycopg.Connection, stored: int) -> str | None:
    """Copy what the steps change, and drop copies but for the newest ``KEEP``; the name of the copy's schema."""
    tables = _changed(db, stored)
    if not tables:
        return None
    row = ask_one(db, "SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYYMMDD\"t\"HH24MISS\"z\"')")
    name = f"ktlog_before_{stored}_{row[0]}"  # type: ignore[index]
    db.execute(sql.SQL("CREATE SCHEMA {}").format(sql.Identifier(name)))
    for table in tables:
        copy, source = sql.Identifier(name, table), sql.Identifier(pgschema.SCHEMA, table)
        db.execute(sql.SQL("CREATE TABLE {} (LIKE {} INCLUDING STORAGE)").format(copy, source))
        # Else ANALYZE puts samples of what may be erased one day into the catalogue.
        db.execute(sql.SQL("ALTER TABLE {} {}").format(copy, sql.SQL(", ").join(
            sql.SQL("ALTER COLUMN {} SET STATISTICS 0").format(sql.Identifier(column))
            for column in pgschema.column_names(db, table)
        )))
        db.execute(sql.SQL("INSERT INTO {} SELECT * FROM {}").format(copy, source))
    for old in copies(db)[:-KEEP]:
        _drop(db, old)
    return name


def _changed(db: psycopg.Connection, stored: int) -> tuple[str, ...]:
    """The tables to be copied before the steps after *stored*; none if no step changes one that is there."""
    named = {table for step in pgschema.STEPS[stored:] for table in step.changes}
    there = ask(
        db, "SELECT tablename FROM pg_catalog.pg_tables WHERE schemaname = %s AND tablename = ANY(%s::text[])",
        (pgschema.SCHEMA, list(named)),
    )
    return tuple(sorted({*(table for (table,) in there), *ALWAYS})) if there else ()


def _drop(db: psycopg.Connection, name: str) -> None:
    db.execute(sql.SQL("DROP SCHEMA {} CASCADE").format(sql.Identifier(name)))


def _server(db: psycopg.Connection) -> str:
    return ask_one(db, "SELECT version()")[0]  # type: ignore[index]
