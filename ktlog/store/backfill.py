"""What a migration works out from a log's own entries, because older code did not write it down."""

from __future__ import annotations

import sqlite3

from ktlog.errors import KtlogError, StoreError
from ktlog.pkd.actors import Role
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.erasure import CarriedMove
from ktlog.pkd.messages import message_from_plain
from ktlog.pkd.replay import Directory
from ktlog.store import rows
from ktlog.store.erasure_rows import history_before, write_history, write_move, write_operator


def fill_moves_and_operators(db: sqlite3.Connection) -> None:
    """Fill ``directory_operated`` and ``directory_moves`` for the entries there are.

    What a move carried follows from everything before it, so the log is replayed up to the last one.

    Raises:
        StoreError: "Corrupt", the entries do not follow from each other.
    """
    meta = db.execute("SELECT origin, dialect FROM log_meta WHERE id = 1").fetchone()
    if meta is None:
        return  # a log that is just being made
    actions = dict(db.execute("SELECT action, max(leaf_index) FROM records GROUP BY action"))
    end = max(actions.get("MoveIdentity", -1), actions.get("BurnDown", -1)) + 1
    for move in _moves(db, *meta, actions.get("MoveIdentity", -1) + 1):
        write_move(db, move)
    for leaf_index in range(end):
        (record,) = rows.read_records(db, leaf_index, leaf_index + 1)
        write_operator(db, record)


def fill_histories_of_moves(db: sqlite3.Connection) -> None:
    """Fill in, for each move in ``directory_moves``, what the old actor's history was before it.

    Raises:
        StoreError: "OldErasures", an old actor was erased: neither its history nor its record can be had any more.
    """
    for (leaf_index,) in db.execute("SELECT leaf_index FROM directory_moves ORDER BY leaf_index").fetchall():
        old = db.execute(
            "SELECT a.actor_id FROM directory_history h JOIN directory_actors a USING (actor_number)"
            " WHERE h.leaf_index = ? AND h.role = ?", (leaf_index, int(Role.MOVED_OUT)),
        ).fetchone()
        if old is None:
            raise StoreError(
                "OldErasures", f"whoever moved at entry {leaf_index} was erased by code that kept too little of it",
                hint="No release of ktlog made such a file. A mirror can be made anew; begin a log of your own anew.",
            )
        write_history(db, leaf_index, history_before(db, old[0], leaf_index))


def _moves(db: sqlite3.Connection, origin: str, dialect: str, end: int) -> list[CarriedMove]:
    directory = Directory(origin)
    for leaf_index in range(end):
        (record,) = rows.read_records(db, leaf_index, leaf_index + 1)
        try:
            wire, message = message_from_plain(
                DIALECTS[dialect], record.preimage, record.plain, commitments=False
            )
            if message is None:
                raise StoreError("Corrupt", f"entry {leaf_index} lacks an attribute")
            directory.replay(wire, message, record.entry)
        except KtlogError as error:
            raise StoreError("Corrupt", f"entry {leaf_index} does not follow: {error}") from error
    return list(directory.moves.values())
