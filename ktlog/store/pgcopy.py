"""A log moves from its SQLite file to a PostgreSQL database: the same rows, byte for byte, in one transaction."""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from ktlog import sqlitefile
from ktlog.errors import StoreError
from ktlog.store import pgrows, pgschema
from ktlog.store.pgconnections import PgConnections
from ktlog.store.postgres import begin_tables
from ktlog.store.schema import SCHEMA_VERSION as SQLITE_SCHEMA

PAGE_ROWS = 1000

Progress = Callable[[str, int, int], None]
"""Is told what is being done, how much of it, and of how much."""


@dataclass(frozen=True)
class Table:
    """A table of both. columns: name and kind, those of the primary key first.

    Kinds: "int8", "bytea" and "text" are the same on both sides; "bool" is 0 or 1 in SQLite; "utf8" is text there, and
    its bytes here.
    """

    name: str
    key: tuple[str, ...]
    columns: dict[str, str]
    types: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(
            self, "types", tuple("bytea" if kind == "utf8" else kind for kind in self.columns.values())
        )

    @property
    def select(self) -> str:
        return f"SELECT {', '.join(self.columns)} FROM {self.name} ORDER BY {', '.join(self.key)}"  # noqa: S608

    def convert(self, row: tuple) -> tuple:
        """A row as PostgreSQL has it, from one of SQLite's."""
        return tuple(
            value if value is None or kind in ("int8", "text", "bytea")
            else bool(value) if kind == "bool" else pgrows.to_bytes(value)
            for value, kind in zip(row, self.columns.values(), strict=True)
        )


def _table(name: str, key: str, **columns: str) -> Table:
    return Table(name, tuple(key.split()), columns)


# Actors come before what refers to them.
TABLES = (
    Table("entries", ("leaf_index",), pgrows.ENTRIES),
    Table("leaf_roots", ("tree_size",), pgrows.ROOTS),
    Table("records", ("leaf_index",), pgrows.RECORDS | {"action": "utf8"}),
    Table("record_plain", ("leaf_index",), pgrows.PLAIN),
    _table(
        "directory_actors", "actor_number", actor_number="int8", actor_id="utf8", fireproof="bool", version="int8",
        generation="int8", erasures="int8", cause="int8", generation_leaf="int8", status="int8", status_leaf="int8",
        salt="bytea", row_sum="bytea",
    ),
    _table(
        "directory_keys", "actor_number position", actor_number="int8", position="int8", public_key="bytea",
        key_hash="bytea", key_id="utf8", leaf_index="int8", created="int8",
    ),
    _table(
        "directory_aux", "actor_number position", actor_number="int8", position="int8", aux_type="utf8", aux_id="utf8",
        aux_data="utf8", leaf_index="int8", created="int8",
    ),
    _table("directory_revoked", "actor_number key_hash", actor_number="int8", key_hash="bytea"),
    _table("directory_history", "actor_number leaf_index role", actor_number="int8", leaf_index="int8", role="int8"),
    _table("directory_operated", "actor_number leaf_index", actor_number="int8", leaf_index="int8"),
    _table(
        "directory_moves", "leaf_index", leaf_index="int8", fireproof="bool", leaves="text", history_size="int8",
        history_root="bytea",
    ),
    _table("token_revoked", "key_hash", key_hash="bytea", leaf_index="int8", key_check="bytea"),
    _table("erasures", "number", number="int8", input_size="int8", record="bytea"),
    _table("tombstones", "map_index", map_index="bytea", version="int8", generation="int8", erasures="int8"),
    _table("publications", "tree_size", tree_size="int8", time="int8"),
    _table("totp", "domain", domain="utf8", serial="int8", secret="bytea", last_window="int8"),  # noqa: S106
    _table(
        "cosignatures", "tree_size witness", tree_size="int8", witness="utf8", merkle_root="utf8", cosigned="utf8",
        time="int8",
    ),
)
"""Every table but those of one row, which :func:`copy_log` writes itself."""


class Source:
    """The SQLite file of a log that nobody writes until this is closed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = sqlitefile.open_database(path)
        try:
            with sqlitefile.database_errors(path):
                self._connection.execute("BEGIN IMMEDIATE")
            row = self.one("SELECT origin, dialect, schema_version FROM log_meta WHERE id = 1")
            self.origin, self.dialect, version = row
            if version != SQLITE_SCHEMA:
                raise StoreError("OlderSchema", f"{path}: has schema {version}, {SQLITE_SCHEMA} is needed")
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with sqlitefile.database_errors(self._path):
            self._connection.close()

    def one(self, statement: str) -> tuple:
        with sqlitefile.database_errors(self._path):
            row = self._connection.execute(statement).fetchone()
        if row is None:
            raise StoreError("Corrupt", f"{self._path}: a row is missing")
        return row

    def count(self, table: Table) -> int:
        return self.one(f"SELECT count(*) FROM {table.name}")[0]  # noqa: S608

    def pages(self, table: Table) -> Iterator[list[tuple]]:
        """The rows in order, as PostgreSQL has them."""
        with sqlitefile.database_errors(self._path):
            cursor: sqlite3.Cursor = self._connection.execute(table.select)
            while rows := cursor.fetchmany(PAGE_ROWS):
                yield [table.convert(row) for row in rows]

    def column(self, statement: str) -> list:
        with sqlitefile.database_errors(self._path):
            return [value for (value,) in self._connection.execute(statement)]


def copy_log(source: Source, url: str, progress: Progress) -> None:
    """Copy *source* into the database *url*, which must be empty. All of it appears at once, or nothing.

    Raises:
        StoreError: "StoreExists"; those of both databases. Nothing was copied.
    """
    connections = PgConnections(url, read_only=False)
    try:
        connections.write(lambda db: _copy(db, connections.where, source, progress))
    finally:
        connections.close()


def _copy(db: psycopg.Connection, where: str, source: Source, progress: Progress) -> None:
    begin_tables(db, where)
    for table in TABLES:
        total, done = source.count(table), 0
        for page in source.pages(table):
            pgrows.copy_rows(db, table.name, dict(zip(table.columns, table.types, strict=True)), page)
            done += len(page)
            progress(f"copy {table.name}", done, total)
    state = source.one("SELECT size, root, frontier, epoch, greatest_time FROM log_state WHERE id = 1")
    db.execute(
        "INSERT INTO log_state (id, size, root, frontier, epoch, greatest_time, writes)"
        " VALUES (1, %s, %s, %s, %s, %s, 0)",
        state,
    )
    due, = source.one("SELECT scrub_due FROM housekeeping WHERE id = 1")
    db.execute("UPDATE housekeeping SET scrub_due = %s WHERE id = 1", (bool(due),))
    db.execute(
        "INSERT INTO log_meta (id, origin, dialect, schema_version, oldest_code) VALUES (1, %s, %s, %s, %s)",
        (source.origin, source.dialect, pgschema.SCHEMA_VERSION, pgschema.OLDEST_CODE),
    )


def compare_rows(source: Source, url: str, progress: Progress) -> int:
    """Compare every row of both; returns how many there are.

    Raises:
        StoreError: "CopyDiffers", with the table.
    """
    connections = PgConnections(url, read_only=True)
    rows = 0
    try:
        with connections.reading() as db:
            for table in TABLES:
                total, done = source.count(table), 0
                cursor = db.cursor(name="copied", binary=True)
                cursor.itersize = PAGE_ROWS
                with cursor:
                    copied = iter(cursor.execute(table.select))  # type: ignore[arg-type]
                    for page in source.pages(table):
                        if list(itertools.islice(copied, len(page))) != page:
                            raise _differs(connections.where, table)
                        done += len(page)
                        progress(f"compare {table.name}", done, total)
                    if next(copied, None) is not None:
                        raise _differs(connections.where, table)
                rows += done
    finally:
        connections.close()
    return rows


def _differs(where: str, table: Table) -> StoreError:
    return StoreError(
        "CopyDiffers", f"{where}: {table.name} has other rows than the SQLite file",
        hint="The log is still where it was. Find out what changes rows in this database; then drop its schema ktlog.",
    )
