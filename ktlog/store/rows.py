"""Between values and SQLite rows: every statement of the hot path, one small function each.

The functions take an open connection *db* inside a transaction. They raise ``StoreError("Corrupt")`` for a
row that this code cannot have written; ``sqlite3.Error`` is the caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from ktlog.errors import EncodingError, StoreError
from ktlog.pkd.keys import key_hash
from ktlog.pkd.state import Actor, Aux, Change, Key
from ktlog.store import places
from ktlog.store.contracts import LogState, Record, Standing
from ktlog.store.plain import common_prefix, dump_bytes, dump_plain, load_bytes, load_plain
from ktlog.store.rowsums import actor_sum, check_actor, check_token, token_check
from ktlog.tlog.tree import EMPTY_ROOT, Frontier

# State


def insert_first_state(db: sqlite3.Connection) -> None:
    """Write the state of the empty log."""
    db.execute(
        "INSERT INTO log_state (id, size, root, frontier, epoch, greatest_time) VALUES (1, 0, ?, ?, 0, 0)",
        (EMPTY_ROOT, Frontier().encode()),
    )


def read_state(db: sqlite3.Connection) -> LogState:
    row = db.execute(
        "SELECT size, root, frontier, epoch, greatest_time FROM log_state WHERE id = 1"
    ).fetchone()
    if row is None:
        raise StoreError("Corrupt", "the log has no state")
    if [type(value) for value in row] != [int, bytes, bytes, int, int]:
        raise StoreError("Corrupt", "the stored state has values of the wrong type")
    size, root, frontier, epoch, greatest_time = row
    try:
        return LogState(size, root, Frontier.decode(frontier), epoch, greatest_time)
    except EncodingError as error:
        raise StoreError("Corrupt", f"the stored frontier: {error}") from error


def read_size(db: sqlite3.Connection) -> int:
    return db.execute("SELECT size FROM log_state WHERE id = 1").fetchone()[0]


def swap_state(db: sqlite3.Connection, expected: LogState, state: LogState) -> bool:
    """Replace the state if it is *expected*; otherwise change nothing and return False."""
    cursor = db.execute(
        "UPDATE log_state SET size = ?, root = ?, frontier = ?, greatest_time = ?"
        " WHERE id = 1 AND size = ? AND root = ? AND epoch = ?",
        (
            state.size, state.root, state.frontier.encode(), state.greatest_time,
            expected.size, expected.root, expected.epoch,
        ),
    )
    return cursor.rowcount == 1


def raise_epoch(db: sqlite3.Connection) -> int:
    rows = db.execute("UPDATE log_state SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch").fetchall()
    if len(rows) != 1:
        raise StoreError("Corrupt", "the log has no state")
    return rows[0][0]


def contradiction(db: sqlite3.Connection) -> str | None:
    """What the state and the last rows disagree about, or None. Costs the same at every size."""
    state = read_state(db)
    last_entry, last_record = db.execute(
        "SELECT (SELECT max(leaf_index) FROM entries), (SELECT max(leaf_index) FROM records)"
    ).fetchone()
    last_size = db.execute("SELECT max(tree_size) FROM leaf_roots").fetchone()[0] or 0
    last_root = read_root(db, state.size)
    for found, what in (
        (0 if last_entry is None else last_entry + 1, "entries"),
        (0 if last_record is None else last_record + 1, "records"),
        (last_size, "roots"),
        (state.frontier.size, "entries in the frontier"),
    ):
        if found != state.size:
            return f"the state says {state.size} entries, there are {found} {what}"
    if state.frontier.root() != state.root:
        return "the frontier has another root than the state"
    if last_root != state.root:
        return "the last root is not that of the state"
    return None


# Entries and roots


def insert_records(db: sqlite3.Connection, records: Sequence[Record]) -> None:
    db.executemany(
        "INSERT INTO entries (leaf_index, leaf_hash, unique_hash, entry) VALUES (?, ?, ?, ?)",
        [(record.leaf_index, record.leaf_hash, record.unique_hash, record.entry) for record in records],
    )
    db.executemany(
        "INSERT INTO leaf_roots (tree_size, root) VALUES (?, ?)",
        [(record.leaf_index + 1, record.root) for record in records],
    )
    first = records[0].leaf_index
    places.insert(db, places.ENTRY_PLACES, [record.unique_hash for record in records], first)
    places.insert(db, places.ROOT_PLACES, [record.root for record in records], first + 1)
    db.executemany(
        "INSERT INTO records (leaf_index, preimage, action, created, accepted) VALUES (?, ?, ?, ?, ?)",
        [
            (record.leaf_index, record.preimage, record.action, record.created, record.accepted)
            for record in records
        ],
    )
    db.executemany(
        "INSERT INTO record_plain (leaf_index, plain, keys, salts) VALUES (?, ?, ?, ?)",
        [
            (
                record.leaf_index, dump_plain(record.plain) if record.plain else "{}",
                dump_bytes(record.keys) if record.keys else "{}", dump_bytes(record.salts) if record.salts else "{}",
            )
            for record in records
        ],
    )


def replace_plain(db: sqlite3.Connection, record: Record) -> None:
    """Write what a record has left after an erasure."""
    db.execute(
        "UPDATE record_plain SET plain = ?, keys = ?, salts = ? WHERE leaf_index = ?",
        (dump_plain(record.plain), dump_bytes(record.keys), dump_bytes(record.salts), record.leaf_index),
    )
    db.execute("UPDATE records SET withheld = ? WHERE leaf_index = ?", (int(record.withheld), record.leaf_index))


def read_column(db: sqlite3.Connection, column: str, start: int, end: int) -> tuple[bytes, ...]:
    """One column of the entries *start* up to *end*, which the caller knows to be in the log."""
    if column not in ("entry", "leaf_hash"):
        raise AssertionError(f"no such column: {column}")
    rows = db.execute(
        f"SELECT {column} FROM entries WHERE leaf_index >= ? AND leaf_index < ? ORDER BY leaf_index",  # noqa: S608
        (start, end),
    ).fetchall()
    _check_complete(rows, start, end)
    return tuple(row[0] for row in rows)


def read_records(db: sqlite3.Connection, start: int, end: int) -> tuple[Record, ...]:
    rows = db.execute(
        "SELECT e.leaf_index, e.entry, e.leaf_hash, r.root, c.preimage, p.plain, p.keys, p.salts,"
        " e.unique_hash, c.action, c.created, c.accepted, c.withheld"
        " FROM entries e JOIN leaf_roots r ON r.tree_size = e.leaf_index + 1"
        " JOIN records c ON c.leaf_index = e.leaf_index"
        " LEFT JOIN record_plain p ON p.leaf_index = e.leaf_index"
        " WHERE e.leaf_index >= ? AND e.leaf_index < ? ORDER BY e.leaf_index",
        (start, end),
    ).fetchall()
    _check_complete(rows, start, end)
    return tuple(
        Record(
            leaf_index, entry, leaf_hash, root, preimage, load_plain(plain), load_bytes(keys), load_bytes(salts),
            unique_hash, action, created, accepted, bool(withheld),
        )
        for (leaf_index, entry, leaf_hash, root, preimage, plain, keys, salts, unique_hash, action, created,
             accepted, withheld) in rows
    )


def read_root(db: sqlite3.Connection, size: int) -> bytes:
    """Root of the first *size* entries, which the caller knows to be in the log."""
    if size == 0:
        return EMPTY_ROOT
    row = db.execute("SELECT root FROM leaf_roots WHERE tree_size = ?", (size,)).fetchone()
    if row is None:
        raise StoreError("Corrupt", f"the root after {size} entries is gone")
    return row[0]


def read_size_of_root(db: sqlite3.Connection, root: bytes) -> int | None:
    for size in reversed(places.find(db, places.ROOT_PLACES, [root], read_size(db))):
        if db.execute("SELECT root FROM leaf_roots WHERE tree_size = ?", (size,)).fetchone() == (root,):
            return size
    return 0 if root == EMPTY_ROOT else None


def read_seen(db: sqlite3.Connection, unique_hash: bytes) -> int | None:
    for leaf_index in places.find(db, places.ENTRY_PLACES, [unique_hash], read_size(db)):
        if _read_unique_hash(db, leaf_index) == unique_hash:
            return leaf_index
    return None


def read_first_seen(db: sqlite3.Connection, records: Sequence[Record]) -> tuple[int, int] | None:
    """The first of *records*, which are new, whose unique hash the log has already: its index, and that in the log."""
    wanted = {record.unique_hash: record.leaf_index for record in reversed(records)}
    candidates = places.find(db, places.ENTRY_PLACES, wanted, records[0].leaf_index)
    seen = {_read_unique_hash(db, leaf_index): leaf_index for leaf_index in candidates}
    return min(((wanted[item], at) for item, at in seen.items() if item in wanted), default=None)


def _read_unique_hash(db: sqlite3.Connection, leaf_index: int) -> bytes:
    row = db.execute("SELECT unique_hash FROM entries WHERE leaf_index = ?", (leaf_index,)).fetchone()
    if row is None:
        raise StoreError("Corrupt", f"entry {leaf_index} is gone")
    return row[0]


def _check_complete(rows: Sequence[Any], start: int, end: int) -> None:
    if len(rows) != end - start:
        raise StoreError("Corrupt", f"of the entries {start} to {end} only {len(rows)} are there")


# Directory


def insert_changes(db: sqlite3.Connection, leaf_index: int, change: Change) -> None:
    """Write the history and the revoked token of one change; its actors must exist."""
    db.executemany(
        "INSERT INTO directory_history (actor_number, leaf_index, role)"
        " SELECT actor_number, ?, ? FROM directory_actors WHERE actor_id = ?",
        [(leaf_index, leaf.role, leaf.actor_id) for leaf in change.history],
    )
    if change.token_revoked is not None:
        db.execute(
            "INSERT INTO token_revoked (key_hash, leaf_index, key_check) VALUES (?, ?, ?)"
            " ON CONFLICT (key_hash) DO NOTHING",
            (change.token_revoked, leaf_index, token_check(change.token_revoked)),
        )


def write_actor(db: sqlite3.Connection, actor: Actor) -> None:
    """Make the stored actor equal to *actor*, rewriting only what differs. The salt stays."""
    db.execute(
        "INSERT INTO directory_actors (actor_id, fireproof, version, generation, erasures, cause,"
        " generation_leaf, status, status_leaf, row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
        " ON CONFLICT (actor_id) DO UPDATE SET fireproof = excluded.fireproof, version = excluded.version,"
        " generation = excluded.generation, erasures = excluded.erasures, cause = excluded.cause,"
        " generation_leaf = excluded.generation_leaf, status = excluded.status,"
        " status_leaf = excluded.status_leaf, row_sum = excluded.row_sum",
        (
            actor.actor_id, int(actor.fireproof), actor.version, actor.generation, actor.erasures,
            actor.cause, actor.generation_leaf, actor.status, actor.status_leaf, actor_sum(actor),
        ),
    )
    number = _actor_number(db, actor.actor_id)
    if number is None:
        raise AssertionError("an actor just written is not there")
    _write_keys(db, number, actor.keys)
    _write_aux(db, number, actor.aux)
    _write_revoked(db, number, actor.revoked)


def write_salt(db: sqlite3.Connection, actor_id: str, salt: bytes) -> None:
    db.execute("UPDATE directory_actors SET salt = ? WHERE actor_id = ?", (salt, actor_id))


def read_actor(db: sqlite3.Connection, actor_id: str) -> Actor | None:
    """One query for nearly every actor: each message asks, in its web worker and in the sequencer.

    Raises:
        StoreError: "Corrupt", it is not what was written.
    """
    found = _read_actor(db, actor_id)
    return None if found is None else check_actor(*found)


def fill_sums(db: sqlite3.Connection) -> None:
    """Write the sums of rows that older code wrote, as they are: what is wrong with them, fsck still finds."""
    (last,) = db.execute("SELECT coalesce(max(actor_number), 0) FROM directory_actors").fetchone()
    for first in range(0, last + 1, 1000):
        named = db.execute(
            "SELECT actor_number, actor_id FROM directory_actors WHERE actor_number >= ? AND actor_number < ?",
            (first, first + 1000),
        ).fetchall()
        found = [(number, _read_actor(db, actor_id, checked=False)) for number, actor_id in named]
        db.executemany(
            "UPDATE directory_actors SET row_sum = ? WHERE actor_number = ?",
            [(actor_sum(one[0]), number) for number, one in found if one is not None],
        )
    tokens = _first_column(db.execute("SELECT key_hash FROM token_revoked"))
    db.executemany(
        "UPDATE token_revoked SET key_check = ? WHERE key_hash = ?", [(token_check(token), token) for token in tokens]
    )


def _read_actor(
    db: sqlite3.Connection, actor_id: str, *, checked: bool = True
) -> tuple[Actor, bytes | None] | None:
    """The actor, and the stored sum."""
    rows = db.execute(
        "SELECT a.actor_number, a.fireproof, a.version, a.generation, a.erasures, a.cause, a.generation_leaf, a.status,"
        " a.status_leaf, EXISTS (SELECT 1 FROM directory_aux x WHERE x.actor_number = a.actor_number),"
        " EXISTS (SELECT 1 FROM directory_revoked r WHERE r.actor_number = a.actor_number), a.row_sum,"
        " k.public_key, k.key_id, k.leaf_index, k.created, k.key_hash"
        " FROM directory_actors a LEFT JOIN directory_keys k USING (actor_number) WHERE a.actor_id = ?"
        " ORDER BY k.position",
        (actor_id,),
    ).fetchall()
    if not rows:
        return None
    (number, fireproof, version, generation, erasures, cause, generation_leaf, status, status_leaf, has_aux,
     has_revoked, row_sum) = rows[0][:12]
    actor = Actor(
        actor_id=actor_id, keys=_keys([row[12:] for row in rows if row[12] is not None], checked=checked),
        aux=_read_aux(db, number) if has_aux else (),
        fireproof=bool(fireproof), version=version, generation=generation, erasures=erasures, cause=cause,
        generation_leaf=generation_leaf, status=status, status_leaf=status_leaf,
        revoked=_read_revoked(db, number) if has_revoked else frozenset(),
    )
    return actor, row_sum


def read_standing(db: sqlite3.Connection, actor_id: str) -> Standing | None:
    """One query for nearly every actor: it is on the path of every answer about one."""
    rows = db.execute(
        "SELECT a.actor_number, (SELECT leaf_index FROM directory_history h WHERE h.actor_number = a.actor_number"
        " ORDER BY leaf_index LIMIT 1), (SELECT leaf_index FROM directory_history h"
        " WHERE h.actor_number = a.actor_number ORDER BY leaf_index DESC LIMIT 1),"
        " EXISTS (SELECT 1 FROM directory_aux x WHERE x.actor_number = a.actor_number),"
        " k.public_key, k.key_id, k.leaf_index, k.created, k.key_hash"
        " FROM directory_actors a LEFT JOIN directory_keys k USING (actor_number) WHERE a.actor_id = ?"
        " ORDER BY k.position",
        (actor_id,),
    ).fetchall()
    if not rows or rows[0][1] is None:
        return None
    number, first, last, has_aux = rows[0][:4]
    keys = _keys([row[4:] for row in rows if row[4] is not None])
    return Standing(first, last, keys, _read_aux(db, number) if has_aux else ())


def read_holders(db: sqlite3.Connection, hash_of_key: bytes) -> tuple[str, ...]:
    return _first_column(db.execute(
        "SELECT DISTINCT a.actor_id FROM directory_keys k JOIN directory_actors a USING (actor_number)"
        " WHERE k.key_hash = ? ORDER BY a.actor_id",
        (hash_of_key,),
    ))


def read_token_revoked(db: sqlite3.Connection, hash_of_key: bytes) -> bool:
    # Two look-ups, each answered by its own tree: OR would look in the table for what the index has found.
    return check_token(hash_of_key, db.execute(
        "SELECT key_hash, key_check FROM token_revoked WHERE key_hash = ?"
        " UNION ALL SELECT key_hash, key_check FROM token_revoked WHERE key_check = ?",
        (hash_of_key, token_check(hash_of_key)),
    ).fetchall())


def read_history(db: sqlite3.Connection, actor_id: str) -> tuple[tuple[int, int], ...]:
    rows = db.execute(
        "SELECT h.leaf_index, h.role FROM directory_history h JOIN directory_actors a USING (actor_number)"
        " WHERE a.actor_id = ? ORDER BY h.leaf_index, h.role",
        (actor_id,),
    )
    return tuple((leaf_index, role) for leaf_index, role in rows)


def read_touched(db: sqlite3.Connection, start: int, end: int) -> tuple[tuple[int, str, int], ...]:
    rows = db.execute(
        "SELECT h.leaf_index, a.actor_id, h.role FROM directory_history h JOIN directory_actors a USING (actor_number)"
        " WHERE h.leaf_index >= ? AND h.leaf_index < ? ORDER BY h.leaf_index, a.actor_id, h.role",
        (start, end),
    )
    return tuple((leaf_index, actor_id, role) for leaf_index, actor_id, role in rows)


def read_salt(db: sqlite3.Connection, actor_id: str) -> bytes | None:
    row = db.execute("SELECT salt FROM directory_actors WHERE actor_id = ?", (actor_id,)).fetchone()
    return None if row is None else row[0]


def read_actor_ids(db: sqlite3.Connection, after: str, limit: int) -> tuple[str, ...]:
    return _first_column(db.execute(
        "SELECT actor_id FROM directory_actors WHERE actor_id > ? ORDER BY actor_id LIMIT ?", (after, limit)
    ))


def _actor_number(db: sqlite3.Connection, actor_id: str) -> int | None:
    row = db.execute(
        "SELECT actor_number FROM directory_actors WHERE actor_id = ?", (actor_id,)
    ).fetchone()
    return None if row is None else row[0]


def _read_keys(db: sqlite3.Connection, number: int, *, checked: bool = True) -> tuple[Key, ...]:
    rows = db.execute(
        "SELECT public_key, key_id, leaf_index, created, key_hash FROM directory_keys WHERE actor_number = ?"
        " ORDER BY position",
        (number,),
    ).fetchall()
    return _keys(rows, checked=checked)


def _keys(rows: Sequence[tuple[Any, ...]], *, checked: bool = True) -> tuple[Key, ...]:
    """Of rows of a public key, its id, its leaf index, its time and its hash."""
    if checked and any(key_hash(row[0]) != row[4] for row in rows):
        # A bit that flipped here would be signed with the map before anybody but a verifier saw it.
        raise StoreError("Corrupt", "a stored key is not the one that its hash is of")
    return tuple(
        Key(public_key=public_key, key_id=key_id, leaf_index=leaf_index, created=created)
        for public_key, key_id, leaf_index, created, _hash in rows
    )


def _read_aux(db: sqlite3.Connection, number: int) -> tuple[Aux, ...]:
    rows = db.execute(
        "SELECT aux_type, aux_id, aux_data, leaf_index, created FROM directory_aux WHERE actor_number = ?"
        " ORDER BY position",
        (number,),
    )
    return tuple(
        Aux(aux_type=aux_type, aux_id=aux_id, aux_data=aux_data, leaf_index=leaf_index, created=created)
        for aux_type, aux_id, aux_data, leaf_index, created in rows
    )


def _read_revoked(db: sqlite3.Connection, number: int) -> frozenset[bytes]:
    return frozenset(_first_column(
        db.execute("SELECT key_hash FROM directory_revoked WHERE actor_number = ?", (number,))
    ))


def _write_keys(db: sqlite3.Connection, number: int, keys: tuple[Key, ...]) -> None:
    # Only compared with what was checked when it was read: one that differs is written anew.
    kept = common_prefix(_read_keys(db, number, checked=False), keys)
    db.execute("DELETE FROM directory_keys WHERE actor_number = ? AND position >= ?", (number, kept))
    db.executemany(
        "INSERT INTO directory_keys"
        " (actor_number, position, public_key, key_hash, key_id, leaf_index, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (number, position, key.public_key, key_hash(key.public_key), key.key_id, key.leaf_index,
             key.created)
            for position, key in enumerate(keys) if position >= kept
        ],
    )


def _write_aux(db: sqlite3.Connection, number: int, items: tuple[Aux, ...]) -> None:
    kept = common_prefix(_read_aux(db, number), items)
    db.execute("DELETE FROM directory_aux WHERE actor_number = ? AND position >= ?", (number, kept))
    db.executemany(
        "INSERT INTO directory_aux (actor_number, position, aux_type, aux_id, aux_data, leaf_index, created)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        [
            (number, position, aux.aux_type, aux.aux_id, aux.aux_data, aux.leaf_index, aux.created)
            for position, aux in enumerate(items) if position >= kept
        ],
    )


def _write_revoked(db: sqlite3.Connection, number: int, revoked: frozenset[bytes]) -> None:
    stored = _read_revoked(db, number)
    for statement, key_hashes in (
        ("DELETE FROM directory_revoked WHERE actor_number = ? AND key_hash = ?", stored - revoked),
        ("INSERT INTO directory_revoked (actor_number, key_hash) VALUES (?, ?)", revoked - stored),
    ):
        db.executemany(statement, [(number, item) for item in key_hashes])


def _first_column(rows: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(row[0] for row in rows)
