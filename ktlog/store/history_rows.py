"""The rows that tell which entries touched an actor, read in parts: no answer costs a whole history."""

from __future__ import annotations

import sqlite3

from ktlog.store.contracts import Touch

_GREATEST = 2**63 - 1

_OF_ACTOR = "FROM directory_history h JOIN directory_actors a USING (actor_number)"


def read_span(db: sqlite3.Connection, actor_id: str) -> tuple[int, int] | None:
    """First and last leaf index. Two look-ups in the primary key: SQLite scans for min() and max() at once."""
    first, last = (
        db.execute(
            f"SELECT h.leaf_index {_OF_ACTOR} WHERE a.actor_id = ? ORDER BY h.leaf_index {order} LIMIT 1",  # noqa: S608
            (actor_id,),
        ).fetchone()
        for order in ("ASC", "DESC")
    )
    return None if first is None or last is None else (first[0], last[0])


def read_touches(db: sqlite3.Connection, actor_id: str, after: int, limit: int | None) -> tuple[Touch, ...]:
    rows = db.execute(
        f"SELECT h.leaf_index, h.role, r.action {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = ? AND h.leaf_index > ? ORDER BY h.leaf_index, h.role LIMIT ?",
        (actor_id, max(-1, min(after, _GREATEST)), -1 if limit is None else limit),
    )
    return tuple(Touch(*row) for row in rows)


def read_accepted_times(db: sqlite3.Connection, actor_id: str, limit: int) -> tuple[int, ...]:
    rows = db.execute(
        f"SELECT r.accepted {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = ? ORDER BY h.leaf_index DESC, h.role DESC LIMIT ?",
        (actor_id, limit),
    )
    return tuple(accepted for (accepted,) in rows)
