"""Brings a ``map.db`` of an earlier schema to this code's, in the caller's transaction; the caller keeps a copy before.

======  ============================================================================================================
schema  what it changed
======  ============================================================================================================
1       each leaf of a history a row of its own; node pages by depth and number, with their lowest nodes alone
2       a history in the row of its value; node pages by one number, with all their nodes
======  ============================================================================================================

What was published does not change by it: leaves, values and the output log are taken over byte for byte, and the root
over them must come out as the one that was signed. Rows of the tree get no sum before they are written again.
"""

from __future__ import annotations

import sqlite3

from ktlog.errors import StoreError
from ktlog.store.mapcoding import join_history
from ktlog.store.maptree import TreeRows, write_all_pages

OLDEST = 1
"""The oldest schema that can be brought up to date."""

ABOUT = {2: "a history lies with its value, and the tree's nodes are computed anew"}
"""What the step to each schema does, for an operator."""

SECONDS_PER_MILLION_LEAVES = 20.0
"""Of the steps together, about."""

_SECOND = (
    """CREATE TABLE map_values_anew (
        leaf BLOB PRIMARY KEY CHECK (length(leaf) = 32),
        value BLOB NOT NULL,
        opening BLOB NOT NULL CHECK (length(opening) = 16),
        history BLOB NOT NULL,
        leaves BLOB NOT NULL
    ) STRICT, WITHOUT ROWID""",
    "DROP TABLE map_nodes",
    "CREATE TABLE map_nodes (page INTEGER PRIMARY KEY, nodes BLOB NOT NULL) STRICT",
)
UNCHANGED = "Nothing was changed. Restore map.db, map-signed-head.json and map-pending from the newest copy."
_MOVED = ("DROP TABLE map_history", "DROP TABLE map_values", "ALTER TABLE map_values_anew RENAME TO map_values")


def bring_up(connection: sqlite3.Connection, rows: TreeRows) -> None:
    """Make schema 2 of schema 1.

    Raises:
        StoreError: ``Corrupt``: the leaves do not make up the root.
    """
    for statement in _SECOND:
        connection.execute(statement)
    connection.executemany("INSERT INTO map_values_anew VALUES (?, ?, ?, ?, ?)", (
        (*row, join_history(item for (item,) in connection.execute(
            "SELECT item FROM map_history WHERE leaf = ? ORDER BY position", row[:1]
        )))
        for row in connection.execute("SELECT leaf, value, opening, history FROM map_values ORDER BY leaf")
    ))
    for statement in _MOVED:
        connection.execute(statement)
    state = connection.execute("SELECT depth, root FROM map_state").fetchone()
    if state is None:
        raise StoreError("Corrupt", "the map's store does not say what was published", hint=UNCHANGED)
    depth, root = state
    buckets = connection.execute("SELECT number, leaves FROM map_buckets ORDER BY number")
    if write_all_pages(rows, depth, buckets) != root:
        raise StoreError(
            "Corrupt", "the map's store: its leaves do not make up the root that was published",
            hint=UNCHANGED,
        )
    connection.execute("UPDATE log_meta SET schema_version = 2")
