"""Between values and SQLite rows: erasures, and what they need to know. See ``ktlog.store.rows``."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping

from ktlog.errors import EncodingError, StoreError
from ktlog.pkd.actors import Actor, Change
from ktlog.pkd.erasure import (
    CarriedMove,
    ErasurePlan,
    ErasureRecord,
    Mention,
    carried_by,
    encode_erasure_record,
    erased_actor,
    parse_erasure_record,
)
from ktlog.pkd.history import Before, extend_history
from ktlog.store import rows
from ktlog.store.contracts import Record
from ktlog.store.erasing import names_actor, without
from ktlog.tlog.tree import Frontier

# What a commit writes down, so that an erasure can find everything later


def insert_traces(
    db: sqlite3.Connection, record: Record, change: Change, told: Callable[[], Mapping[int, Before]]
) -> None:
    """Note whom *record* names without touching, and what it carried. Its actors must exist.

    told: :func:`told_histories`, needed by a mirror only.
    """
    write_operator(db, record)
    at = record.leaf_index

    def before(old: str | None) -> Before:
        if old is not None:
            return history_before(db, old, at)
        if at not in told():
            raise StoreError("BadBatch", f"refused: no erasure tells with what history entry {at} moved somebody")
        return told()[at]

    move = carried_by(at, change, before)
    if move is not None:
        write_move(db, move)
        write_history(db, at, move.before)


def write_operator(db: sqlite3.Connection, record: Record) -> None:
    operator = record.plain.get("operator")
    if operator is not None:
        db.execute(
            "INSERT INTO directory_operated (actor_number, leaf_index)"
            " SELECT actor_number, ? FROM directory_actors WHERE actor_id = ?",
            (record.leaf_index, operator),
        )


def write_move(db: sqlite3.Connection, move: CarriedMove) -> None:
    """All of a move but the history, for which :func:`write_history` has columns of a later schema."""
    db.execute(
        "INSERT INTO directory_moves (leaf_index, fireproof, leaves) VALUES (?, ?, ?)",
        (move.move_leaf, int(move.fireproof), json.dumps(move.leaves)),
    )


def write_history(db: sqlite3.Connection, move_leaf: int, before: Before) -> None:
    db.execute(
        "UPDATE directory_moves SET history_size = ?, history_root = ? WHERE leaf_index = ?", (*before, move_leaf)
    )


def history_before(db: sqlite3.Connection, actor_id: str, leaf_index: int) -> Before:
    """Size and root of an actor's history as it was before that entry."""
    found = [row for row in rows.read_history(db, actor_id) if row[0] < leaf_index]
    tree = extend_history(Frontier(), found, lambda at: _known_move(db, at).before)
    return tree.size, tree.root()


def told_histories(db: sqlite3.Connection) -> dict[int, Before]:
    """The same by MoveIdentity, of actors erased since, whom a mirror never saw: what the erasure records say.

    Who mirrors has checked that there is one for each such move.
    """
    records = read_erasures(db, 0, read_erasure_count(db, None))
    return {move.move_leaf: move.before for record in records for move in record.carried}


# Reading


def read_mentions(db: sqlite3.Connection, actor_id: str) -> tuple[Mention, ...]:
    roles: dict[int, int | None] = dict(db.execute(
        "SELECT o.leaf_index, NULL FROM directory_operated o JOIN directory_actors a USING (actor_number)"
        " WHERE a.actor_id = ?",
        (actor_id,),
    ))
    roles |= dict(rows.read_history(db, actor_id))
    mentions = []
    for leaf_index in sorted(roles):
        (record,) = rows.read_records(db, leaf_index, leaf_index + 1)
        if names_actor(record.plain, actor_id):
            move = read_move(db, leaf_index)
            mentions.append(Mention(leaf_index, record.action, roles[leaf_index], record.plain, move))
    return tuple(mentions)


def _known_move(db: sqlite3.Connection, leaf_index: int) -> CarriedMove:
    move = read_move(db, leaf_index)
    if move is None:
        raise StoreError("Corrupt", f"what entry {leaf_index} moved is not stored")
    return move


def read_move(db: sqlite3.Connection, leaf_index: int) -> CarriedMove | None:
    row = db.execute(
        "SELECT fireproof, leaves, history_size, history_root FROM directory_moves WHERE leaf_index = ?", (leaf_index,)
    ).fetchone()
    if row is None:
        return None
    try:
        leaves = json.loads(row[1])
    except ValueError as error:
        raise StoreError("Corrupt", f"what entry {leaf_index} moved: {error}") from error
    if not isinstance(leaves, list) or not all(type(leaf) is int for leaf in leaves):
        raise StoreError("Corrupt", f"what entry {leaf_index} moved is no list of leaf indexes")
    if row[2] is None or row[3] is None:
        raise StoreError("Corrupt", f"with which history entry {leaf_index} moved is not stored")
    return CarriedMove(leaf_index, bool(row[0]), tuple(leaves), row[2], row[3])


def read_tombstone(db: sqlite3.Connection, index: bytes, actor_id: str) -> Actor | None:
    row = db.execute(
        "SELECT version, generation, erasures FROM tombstones WHERE map_index = ?", (index,)
    ).fetchone()
    return None if row is None else erased_actor(actor_id, *row)


def read_tombstones(db: sqlite3.Connection) -> tuple[tuple[bytes, int, int, int], ...]:
    return tuple(db.execute("SELECT map_index, version, generation, erasures FROM tombstones ORDER BY map_index"))


def read_erasure_count(db: sqlite3.Connection, size: int | None) -> int:
    if size is None:
        (last,) = db.execute("SELECT max(number) FROM erasures").fetchone()
        return 0 if last is None else last + 1
    row = db.execute(
        "SELECT number FROM erasures WHERE input_size <= ? ORDER BY input_size DESC, number DESC LIMIT 1", (size,)
    ).fetchone()
    return 0 if row is None else row[0] + 1


def read_erasures(db: sqlite3.Connection, start: int, end: int) -> tuple[ErasureRecord, ...]:
    found = db.execute(
        "SELECT record FROM erasures WHERE number >= ? AND number < ? ORDER BY number", (start, end)
    ).fetchall()
    if len(found) != end - start:
        raise StoreError("Corrupt", f"of the erasures {start} to {end} only {len(found)} are there")
    try:
        return tuple(parse_erasure_record(data) for (data,) in found)
    except EncodingError as error:
        raise StoreError("Corrupt", f"a stored erasure record: {error}") from error


def read_public_since(db: sqlite3.Connection, leaf_index: int) -> int | None:
    row = db.execute(
        "SELECT time FROM publications WHERE tree_size > ? ORDER BY tree_size LIMIT 1", (leaf_index,)
    ).fetchone()
    return None if row is None else row[0]


def write_publication(db: sqlite3.Connection, size: int, time: int) -> None:
    db.execute(
        "INSERT INTO publications (tree_size, time) SELECT ?, ?"
        " WHERE ? > (SELECT coalesce(max(tree_size), 0) FROM publications)",
        (size, time, size),
    )


# Erasing


def erase(db: sqlite3.Connection, plan: ErasurePlan) -> None:
    """Take away what a plan that was checked withholds; its actor exists."""
    for leaf_index, names in sorted(plan.withhold.items()):
        (record,) = rows.read_records(db, leaf_index, leaf_index + 1)
        rows.replace_plain(db, without(record, names))
    erased = plan.erased
    delete_actor(db, erased.actor_id)
    write_tombstone(db, plan.record.index, erased.version, erased.generation, erased.erasures)
    insert_erasure(db, plan.record)
    set_scrub_due(db, True)


def delete_actor(db: sqlite3.Connection, actor_id: str) -> None:
    """Remove an actor that exists, and all that the directory's tables know about it."""
    (number,) = db.execute("SELECT actor_number FROM directory_actors WHERE actor_id = ?", (actor_id,)).fetchone()
    for table in ("keys", "aux", "revoked", "history", "operated", "actors"):
        db.execute(f"DELETE FROM directory_{table} WHERE actor_number = ?", (number,))  # noqa: S608


def write_tombstone(db: sqlite3.Connection, index: bytes, version: int, generation: int, erasures: int) -> None:
    db.execute(
        "INSERT INTO tombstones (map_index, version, generation, erasures) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (map_index) DO UPDATE SET version = excluded.version,"
        " generation = excluded.generation, erasures = excluded.erasures",
        (index, version, generation, erasures),
    )


def insert_erasure(db: sqlite3.Connection, record: ErasureRecord) -> None:
    db.execute(
        "INSERT INTO erasures (number, input_size, record) VALUES (?, ?, ?)",
        (read_erasure_count(db, None), record.input_size, encode_erasure_record(record)),
    )


def set_scrub_due(db: sqlite3.Connection, due: bool) -> None:
    db.execute("UPDATE housekeeping SET scrub_due = ? WHERE id = 1", (int(due),))


def read_scrub_due(db: sqlite3.Connection) -> bool:
    row = db.execute("SELECT scrub_due FROM housekeeping WHERE id = 1").fetchone()
    if row is None:
        raise StoreError("Corrupt", "the store does not say whether it has to be scrubbed")
    return bool(row[0])
