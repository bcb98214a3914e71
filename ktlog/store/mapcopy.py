"""A map moves from SQLite to the PostgreSQL database of its log: the same rows, byte for byte, in one transaction."""

from __future__ import annotations

from psycopg import Connection, sql

from ktlog.errors import StoreError
from ktlog.store.mapcontract import MapState
from ktlog.store.mapdb import SqliteMapStore
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgmap import create_tables, guard_tables, read_state

TABLES: tuple[tuple[str, dict[str, str]], ...] = (
    ("map_buckets", {"number": "int8", "leaves": "bytea"}),
    ("map_nodes", {"page": "int8", "nodes": "bytea"}),
    ("map_values", {"leaf": "bytea", "value": "bytea", "opening": "bytea", "history": "bytea", "leaves": "bytea"}),
    ("map_tombstones", {"leaf": "bytea", "version": "int8", "generation": "int8", "erasure_number": "int8"}),
    ("output_leaves", {"leaf_index": "int8", "leaf": "bytea", "leaf_hash": "bytea"}),
    ("output_checkpoints", {"size": "int8", "note": "bytea"}),
)
"""Every table but the state's and the one that says whose map it is, with PostgreSQL's types."""


def copy_map(source: SqliteMapStore, url: str) -> MapState:
    """Copy *source* into the database *url*, which has the log already and no map; returns the state of both.

    Nothing may write to *source* meanwhile. What is erased stays erased, and the copy owes no scrub.

    Raises:
        StoreError: ``StoreExists``, there is a map in the database; those of both stores. Nothing was copied.
    """
    connections = PgConnections(url, read_only=False)
    try:
        with source.snapshot():
            state = source.state()
            connections.write(lambda db: _copy(db, connections.where, source, state))
            if connections.read(read_state) != state:
                raise StoreError("Corrupt", f"{connections.where}: the copy of the map has another state")
            return state
    finally:
        connections.close()


def _copy(db: Connection, where: str, source: SqliteMapStore, state: MapState) -> None:
    create_tables(db, where, *source.meta(), state)
    for table, columns in TABLES:
        statement = sql.SQL("COPY {} ({}) FROM STDIN (FORMAT BINARY)").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, columns))
        )
        with db.cursor() as cursor, cursor.copy(statement) as copy:
            copy.set_types(list(columns.values()))
            for row in source.rows(table, tuple(columns)):
                copy.write_row(row)
    guard_tables(db)
