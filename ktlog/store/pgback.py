"""A log in PostgreSQL is copied into SQLite files while it runs: the same rows, of one moment of the database.

    with snapshot(url) as moment:
        moment.map_sizes()
        moment.copy_map(path)
        moment.copy_log(path)

It is the way back of ``ktlog.store.pgcopy`` and ``ktlog.store.mapcopy``, whose tables these are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from itertools import islice
from pathlib import Path

import psycopg

from ktlog.errors import StoreError
from ktlog.sqlitefile import new_database
from ktlog.store import mapdb, places, rows, schema
from ktlog.store.mapcopy import TABLES as MAP_TABLES
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgcopy import PAGE_ROWS, TABLES, Progress, Table
from ktlog.store.pgerrors import database_errors
from ktlog.store.pgmap import read_state as read_map_state
from ktlog.store.pgrows import ask_one, read_state, to_text


@contextmanager
def snapshot(url: str) -> Iterator[Moment]:
    """One moment of the database *url*, for as long as the block lasts; nobody waits for it.

    Raises:
        StoreError: those of ``PgConnections``.
    """
    connections = PgConnections(url, read_only=True, readers=1)
    with closing(connections), database_errors(connections.where), closing(connections.connect()) as db:
        db.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        # A large log takes longer than any other work, and its rows are written to a disk between two reads.
        db.execute("SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0")
        db.execute("SELECT 1")  # the first query chooses the moment
        yield Moment(db, connections.where)


class Moment:
    """What a database holds at one moment."""

    def __init__(self, db: psycopg.Connection, where: str) -> None:
        self._db = db
        self._where = where

    def map_sizes(self) -> tuple[int, int]:
        """How many leaves the map's output log has, and how many entries the newest covers."""
        state = read_map_state(self._db)
        return state.output.size, state.input_size

    def copy_log(self, path: Path, progress: Progress) -> None:
        """Write the log into the new SQLite file *path*, which appears whole or not at all."""
        meta = self._meta("SELECT origin, dialect FROM log_meta WHERE id = 1")
        state, due = read_state(self._db), self._meta("SELECT scrub_due FROM housekeeping WHERE id = 1")[0]
        with new_database(path) as copy:
            schema.migrate(copy)
            copy.execute(
                "INSERT INTO log_meta (id, origin, dialect, schema_version, oldest_code) VALUES (1, ?, ?, ?, ?)",
                (*meta, schema.SCHEMA_VERSION, schema.OLDEST_CODE),
            )
            rows.insert_first_state(copy)
            copy.execute(
                "UPDATE log_state SET size = ?, root = ?, frontier = ?, epoch = ?, greatest_time = ?",
                (state.size, state.root, state.frontier.encode(), state.epoch, state.greatest_time),
            )
            for table in TABLES:
                self._copy(copy, table.name, table.key, tuple(table.columns), table.types, _back(table), progress)
            places.fill(copy)
            copy.execute("UPDATE housekeeping SET scrub_due = ?", (int(due),))

    def copy_map(self, path: Path, progress: Progress) -> None:
        """The same for the map."""
        meta, state = self._meta("SELECT origin, config FROM map_meta WHERE id = 1"), read_map_state(self._db)
        due = self._meta("SELECT scrub_due FROM map_state WHERE id = 1")[0]
        with new_database(path, page_size=mapdb.PAGE_SIZE) as copy:
            for statement in mapdb.SCHEMA:
                copy.execute(statement)
            copy.execute("INSERT INTO log_meta VALUES (1, ?, ?, ?)", (*meta, mapdb.SCHEMA_VERSION))
            copy.execute(
                "INSERT INTO map_state VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
                (state.leaves, state.depth, state.root, state.input_size, state.erasures, state.output.size,
                 state.output.encode()),
            )
            for name, columns in MAP_TABLES:
                names, types = tuple(columns), tuple(columns.values())
                self._copy(copy, name, names[:1], names, types, lambda row: row, progress)
            if due:
                copy.execute("UPDATE housekeeping SET scrub_due = 1")

    def _meta(self, query: str) -> tuple:
        row = ask_one(self._db, query)
        if row is None:
            raise StoreError("Corrupt", f"{self._where}: a row is missing")
        return row

    def _copy(
        self, copy: sqlite3.Connection, name: str, key: Sequence[str], columns: Sequence[str],
        types: Sequence[str], convert: Callable[[tuple], tuple], progress: Progress,
    ) -> None:
        (total,) = self._meta(f"SELECT count(*) FROM {name}")  # noqa: S608 - names of ours
        query = f"SELECT {', '.join(columns)} FROM {name} ORDER BY {', '.join(key)}"  # noqa: S608
        insert = f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(types))})"  # noqa: S608
        done = 0
        with self._db.cursor() as cursor, cursor.copy(f"COPY ({query}) TO STDOUT (FORMAT BINARY)") as found:  # type: ignore[arg-type]
            found.set_types(list(types))
            upcoming = found.rows()
            while page := list(islice(upcoming, PAGE_ROWS)):
                copy.executemany(insert, map(convert, page))
                done += len(page)
                progress(f"copy {name}", done, total)


def _back(table: Table) -> Callable[[tuple], tuple]:
    """From a row as PostgreSQL has it to one of SQLite's."""
    kinds = tuple(table.columns.values())

    def convert(row: tuple) -> tuple:
        return tuple(
            value if value is None else int(value) if kind == "bool" else to_text(value) if kind == "utf8" else value
            for value, kind in zip(row, kinds, strict=True)
        )

    return convert
