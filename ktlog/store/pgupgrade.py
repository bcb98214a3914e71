"""What stands between a log in PostgreSQL and this code's schema; see ``ktlog.store.upgrade``."""

from __future__ import annotations

from contextlib import closing

import psycopg

from ktlog.errors import StoreError
from ktlog.store import pgschema
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgrows import ask_one
from ktlog.store.postgres import check_newer


def look(url: str) -> tuple[int, int, int, tuple[str, ...]]:
    """Schema, entries, bytes of the database, and the names of the steps that would run; changes nothing.

    Raises:
        StoreError: ``NotALog``, ``NewerSchema``; those of ``PgConnections``.
    """

    def work(db: psycopg.Connection) -> tuple[int, int, int, tuple[str, ...]]:
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
        return stored, entries, size, tuple(step.name for step in pgschema.STEPS[stored:])

    with closing(PgConnections(url, read_only=True, readers=1)) as connections:
        return connections.read(work)
