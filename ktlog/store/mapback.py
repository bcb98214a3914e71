"""Puts leaves of the output log back into a map's store that lags behind what was published: for restores alone.

An update appends one leaf, for a map that it derives. Of the leaves between, nobody needs the maps any more; they only
have to be in the tree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from ktlog.errors import StoreError
from ktlog.sqlitefile import database_errors, open_database, transaction
from ktlog.tlog.tree import Frontier, hash_leaf


def append_output_leaves(path: Path, tree: Frontier, leaves: Sequence[bytes], notes: Mapping[int, bytes]) -> Frontier:
    """Append *leaves* to the output log, whose stored tree is *tree*; returns the tree after them.

    Args:
        notes: signed checkpoints by size, as far as they are known.

    Raises:
        StoreError: ``MapMoved``: the stored tree is another; those of writing.
    """
    connection = open_database(path)
    try:
        with database_errors(path), transaction(connection):
            stored = connection.execute("SELECT output_frontier FROM map_state").fetchone()
            if stored is None or stored[0] != tree.encode():
                raise StoreError("MapMoved", f"{path}: its output log is not what was read")
            after = tree
            for leaf in leaves:
                connection.execute("INSERT INTO output_leaves VALUES (?, ?, ?)", (after.size, leaf, hash_leaf(leaf)))
                after = after.append(hash_leaf(leaf))
                if after.size in notes:
                    connection.execute("INSERT INTO output_checkpoints VALUES (?, ?)", (after.size, notes[after.size]))
            connection.execute(
                "UPDATE map_state SET output_size = ?, output_frontier = ?", (after.size, after.encode())
            )
            return after
    finally:
        connection.close()
