"""The rows that tell which entries touched an actor, read in parts: no answer costs a whole history."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ktlog.errors import StoreError
from ktlog.store.contracts import Touch
from ktlog.store.growth import bisect_sizes

_GREATEST = 2**63 - 1

_OF_ACTOR = "FROM directory_history h JOIN directory_actors a USING (actor_number)"


def read_span(db: sqlite3.Connection, actor_id: str) -> tuple[int, int] | None:
    """First and last leaf index. Two look-ups in the primary key: SQLite scans for min() and max() at once."""
    row = db.execute(
        "SELECT (SELECT h.leaf_index FROM directory_history h WHERE h.actor_number = a.actor_number"
        " ORDER BY h.leaf_index LIMIT 1), (SELECT h.leaf_index FROM directory_history h"
        " WHERE h.actor_number = a.actor_number ORDER BY h.leaf_index DESC LIMIT 1)"
        " FROM directory_actors a WHERE a.actor_id = ?",
        (actor_id,),
    ).fetchone()
    return None if row is None or row[0] is None else row


def read_touches(db: sqlite3.Connection, actor_id: str, after: int, limit: int | None) -> tuple[Touch, ...]:
    rows = db.execute(
        f"SELECT h.leaf_index, h.role, r.action {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = ? AND h.leaf_index > ? ORDER BY h.leaf_index, h.role LIMIT ?",
        (actor_id, max(-1, min(after, _GREATEST)), -1 if limit is None else limit),
    )
    return tuple(Touch(*row) for row in rows)


def read_newest_touches(db: sqlite3.Connection, actor_id: str, before: int | None, limit: int) -> tuple[Touch, ...]:
    rows = db.execute(
        f"SELECT h.leaf_index, h.role, r.action {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = ? AND h.leaf_index < ? ORDER BY h.leaf_index DESC, h.role DESC LIMIT ?",
        (actor_id, _GREATEST if before is None else max(0, min(before, _GREATEST)), limit),
    )
    return tuple(Touch(*row) for row in rows)


def read_sizes_at(db: sqlite3.Connection, times: Sequence[int], size: int) -> tuple[int, ...]:
    def accepted(leaf_index: int) -> int:
        row = db.execute("SELECT accepted FROM records WHERE leaf_index = ?", (leaf_index,)).fetchone()
        if row is None:
            raise StoreError("Corrupt", f"the record of entry {leaf_index} is gone")
        return row[0]

    return bisect_sizes(times, size, accepted)


def read_owners(db: sqlite3.Connection, item_id: str, limit: int) -> tuple[str, ...]:
    rows = db.execute(
        "SELECT actor_id FROM directory_actors WHERE actor_number IN ("
        "SELECT actor_number FROM directory_keys WHERE key_id = ?1"
        " UNION SELECT actor_number FROM (SELECT actor_number FROM directory_aux WHERE aux_id = ?1 LIMIT ?2)) LIMIT ?2",
        (item_id, limit),
    )
    return tuple(sorted(actor_id for (actor_id,) in rows))


def read_accepted_times(db: sqlite3.Connection, actor_id: str, limit: int) -> tuple[int, ...]:
    rows = db.execute(
        f"SELECT r.accepted {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = ? ORDER BY h.leaf_index DESC, h.role DESC LIMIT ?",
        (actor_id, limit),
    )
    return tuple(accepted for (accepted,) in rows)
