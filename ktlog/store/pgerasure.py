"""Between values and PostgreSQL rows: erasures, histories, passwords, cosignatures. See ``ktlog.store.pgrows``."""

from __future__ import annotations

import json
from collections.abc import Sequence

import psycopg

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
from ktlog.store import pgdirectory
from ktlog.store import pgrows as rows
from ktlog.store.contracts import Cosignature, Record, TotpSecret, TotpUse, Touch
from ktlog.store.erasing import names_actor, without
from ktlog.store.growth import bisect_sizes
from ktlog.store.pgrows import ask, ask_one, to_bytes, to_text, write_many
from ktlog.tlog.tree import Frontier

_GREATEST = 2**63 - 1

_OF_ACTOR = "FROM directory_history h JOIN directory_actors a USING (actor_number)"

# What a commit writes down, so that an erasure can find everything later


def insert_traces(db: psycopg.Connection, records: Sequence[Record], changes: Sequence[Change]) -> None:
    """Note whom *records* name without touching, and what they carried. Their histories must be written."""
    write_many(
        db,
        "INSERT INTO directory_operated (actor_number, leaf_index)"
        " SELECT actor_number, %s FROM directory_actors WHERE actor_id = %s",
        [
            (record.leaf_index, to_bytes(operator)) for record in records
            if (operator := record.plain.get("operator")) is not None
        ],
    )
    for record, change in zip(records, changes, strict=True):
        at = record.leaf_index

        def before(old: str | None, at: int = at) -> Before:
            if old is None:
                raise StoreError("BadBatch", f"refused: entry {at} moves somebody whose name it withholds")
            return _history_before(db, old, at)

        move = carried_by(at, change, before)
        if move is not None:
            db.execute(
                "INSERT INTO directory_moves (leaf_index, fireproof, leaves, history_size, history_root)"
                " VALUES (%s, %s, %s, %s, %s)",
                (at, move.fireproof, json.dumps(move.leaves), move.history_size, move.history_root),
            )


def _history_before(db: psycopg.Connection, actor_id: str, leaf_index: int) -> Before:
    """Size and root of an actor's history as it was before that entry."""
    found = [row for row in read_history(db, actor_id) if row[0] < leaf_index]

    def moved(at: int) -> Before:
        move = read_move(db, at)
        if move is None:
            raise StoreError("Corrupt", f"what entry {at} moved is not stored")
        return move.before

    tree = extend_history(Frontier(), found, moved)
    return tree.size, tree.root()


# Histories


def read_history(db: psycopg.Connection, actor_id: str) -> tuple[tuple[int, int], ...]:
    return tuple(ask(
        db, f"SELECT h.leaf_index, h.role {_OF_ACTOR} WHERE a.actor_id = %s ORDER BY h.leaf_index, h.role",  # noqa: S608
        (to_bytes(actor_id),),
    ))


def read_span(db: psycopg.Connection, actor_id: str) -> tuple[int, int] | None:
    first, last = (
        f"(SELECT h.leaf_index {_OF_ACTOR} WHERE a.actor_id = %s ORDER BY h.leaf_index {order} LIMIT 1)"  # noqa: S608
        for order in ("ASC", "DESC")
    )
    row = ask_one(db, f"SELECT {first}, {last}", (to_bytes(actor_id), to_bytes(actor_id)))  # noqa: S608
    return None if row is None or row[0] is None else row


def read_touches(db: psycopg.Connection, actor_id: str, after: int, limit: int | None) -> tuple[Touch, ...]:
    found = ask(
        db,
        f"SELECT h.leaf_index, h.role, r.action {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = %s AND h.leaf_index > %s ORDER BY h.leaf_index, h.role LIMIT %s",
        (to_bytes(actor_id), max(-1, min(after, _GREATEST)), limit),
    )
    return tuple(Touch(leaf_index, role, to_text(action)) for leaf_index, role, action in found)


def read_newest_touches(db: psycopg.Connection, actor_id: str, before: int | None, limit: int) -> tuple[Touch, ...]:
    found = ask(
        db,
        f"SELECT h.leaf_index, h.role, r.action {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = %s AND h.leaf_index < %s ORDER BY h.leaf_index DESC, h.role DESC LIMIT %s",
        (to_bytes(actor_id), _GREATEST if before is None else max(0, min(before, _GREATEST)), limit),
    )
    return tuple(Touch(leaf_index, role, to_text(action)) for leaf_index, role, action in found)


def read_sizes_at(db: psycopg.Connection, times: Sequence[int]) -> tuple[int, ...]:
    def accepted(leaf_index: int) -> int:
        row = ask_one(db, "SELECT accepted FROM records WHERE leaf_index = %s", (leaf_index,))
        if row is None:
            raise StoreError("Corrupt", f"the record of entry {leaf_index} is gone")
        return row[0]

    return bisect_sizes(times, rows.read_size(db), accepted)


def read_owners(db: psycopg.Connection, item_id: str, limit: int) -> tuple[str, ...]:
    found = ask(
        db,
        "SELECT actor_id FROM directory_actors WHERE actor_number IN ("
        "SELECT actor_number FROM directory_keys WHERE key_id = %s"
        " UNION (SELECT actor_number FROM directory_aux WHERE aux_id = %s LIMIT %s)) LIMIT %s",
        (to_bytes(item_id), to_bytes(item_id), limit, limit),
    )
    return tuple(sorted(to_text(actor_id) for (actor_id,) in found))


def read_accepted_times(db: psycopg.Connection, actor_id: str, limit: int) -> tuple[int, ...]:
    found = ask(
        db,
        f"SELECT r.accepted {_OF_ACTOR} JOIN records r ON r.leaf_index = h.leaf_index"  # noqa: S608
        " WHERE a.actor_id = %s ORDER BY h.leaf_index DESC, h.role DESC LIMIT %s",
        (to_bytes(actor_id), limit),
    )
    return tuple(accepted for (accepted,) in found)


def read_mentions(db: psycopg.Connection, actor_id: str) -> tuple[Mention, ...]:
    roles: dict[int, int | None] = dict.fromkeys((
        leaf_index for (leaf_index,) in ask(
            db,
            "SELECT o.leaf_index FROM directory_operated o JOIN directory_actors a USING (actor_number)"
            " WHERE a.actor_id = %s",
            (to_bytes(actor_id),),
        )
    ), None)
    roles |= dict(read_history(db, actor_id))
    return tuple(
        Mention(record.leaf_index, record.action, roles[record.leaf_index], record.plain,
                read_move(db, record.leaf_index))
        for record in rows.read_records_at(db, list(roles)) if names_actor(record.plain, actor_id)
    )


def read_move(db: psycopg.Connection, leaf_index: int) -> CarriedMove | None:
    row = ask_one(
        db, "SELECT fireproof, leaves, history_size, history_root FROM directory_moves WHERE leaf_index = %s",
        (leaf_index,),
    )
    if row is None:
        return None
    fireproof, text, history_size, history_root = row
    try:
        leaves = json.loads(text)
    except ValueError as error:
        raise StoreError("Corrupt", f"what entry {leaf_index} moved: {error}") from error
    if not isinstance(leaves, list) or not all(type(leaf) is int for leaf in leaves):
        raise StoreError("Corrupt", f"what entry {leaf_index} moved is no list of leaf indexes")
    return CarriedMove(leaf_index, fireproof, tuple(leaves), history_size, history_root)


# Erasures


def read_tombstone(db: psycopg.Connection, index: bytes, actor_id: str) -> Actor | None:
    row = ask_one(db, "SELECT version, generation, erasures FROM tombstones WHERE map_index = %s", (index,))
    return None if row is None else erased_actor(actor_id, *row)


def read_erasure_count(db: psycopg.Connection, size: int | None) -> int:
    if size is None:
        statement, values = "SELECT number FROM erasures ORDER BY number DESC LIMIT 1", ()
    else:
        statement, values = (
            "SELECT number FROM erasures WHERE input_size <= %s ORDER BY input_size DESC, number DESC LIMIT 1", (size,)
        )
    row = ask_one(db, statement, values)
    return 0 if row is None else row[0] + 1


def read_erasures(db: psycopg.Connection, start: int, end: int) -> tuple[ErasureRecord, ...]:
    found = ask(
        db, "SELECT record FROM erasures WHERE number >= %s AND number < %s ORDER BY number", (start, end)
    )
    if len(found) != end - start:
        raise StoreError("Corrupt", f"of the erasures {start} to {end} only {len(found)} are there")
    try:
        return tuple(parse_erasure_record(data) for (data,) in found)
    except EncodingError as error:
        raise StoreError("Corrupt", f"a stored erasure record: {error}") from error


def read_public_since(db: psycopg.Connection, leaf_index: int) -> int | None:
    row = ask_one(
        db, "SELECT time FROM publications WHERE tree_size > %s ORDER BY tree_size LIMIT 1", (leaf_index,)
    )
    return None if row is None else row[0]


def write_publication(db: psycopg.Connection, size: int, time: int) -> None:
    db.execute(
        "INSERT INTO publications (tree_size, time) SELECT %s, %s"
        " WHERE %s > (SELECT coalesce(max(tree_size), 0) FROM publications)",
        (size, time, size),
    )


def erase(db: psycopg.Connection, plan: ErasurePlan) -> None:
    """Take away what a plan that was checked withholds; its actor exists."""
    for record in rows.read_records_at(db, list(plan.withhold)):
        rows.replace_plain(db, without(record, plan.withhold[record.leaf_index]))
    erased = plan.erased
    (number, _actor), = pgdirectory.read_actors(db, (erased.actor_id,)).values()
    for table in ("keys", "aux", "revoked", "history", "operated", "actors"):
        db.execute(f"DELETE FROM directory_{table} WHERE actor_number = %s", (number,))  # type: ignore[arg-type]  # noqa: S608
    db.execute(
        "INSERT INTO tombstones (map_index, version, generation, erasures) VALUES (%s, %s, %s, %s)"
        " ON CONFLICT (map_index) DO UPDATE SET version = excluded.version,"
        " generation = excluded.generation, erasures = excluded.erasures",
        (plan.record.index, erased.version, erased.generation, erased.erasures),
    )
    db.execute(
        "INSERT INTO erasures (number, input_size, record) VALUES (%s, %s, %s)",
        (read_erasure_count(db, None), plan.record.input_size, encode_erasure_record(plan.record)),
    )
    set_scrub_due(db, True)


def set_scrub_due(db: psycopg.Connection, due: bool) -> None:
    db.execute("UPDATE housekeeping SET scrub_due = %s WHERE id = 1", (due,))


def read_scrub_due(db: psycopg.Connection) -> bool:
    row = ask_one(db, "SELECT scrub_due FROM housekeeping WHERE id = 1")
    if row is None:
        raise StoreError("Corrupt", "the store does not say whether it has to be scrubbed")
    return row[0]


# One-time passwords and cosignatures


def read_totp(db: psycopg.Connection, domain: str) -> TotpSecret | None:
    row = ask_one(
        db, "SELECT serial, secret, last_window FROM totp WHERE domain = %s AND secret IS NOT NULL", (to_bytes(domain),)
    )
    return None if row is None else TotpSecret(domain, *row)


def write_totp(db: psycopg.Connection, domain: str, secret: bytes | None, used_window: int) -> None:
    db.execute(
        "INSERT INTO totp (domain, serial, secret, last_window) VALUES (%s, 1, %s, %s)"
        " ON CONFLICT (domain) DO UPDATE SET serial = totp.serial + 1, secret = excluded.secret,"
        " last_window = greatest(totp.last_window, excluded.last_window)",
        (to_bytes(domain), secret, used_window),
    )


def use_totp(db: psycopg.Connection, use: TotpUse) -> bool:
    """Use up a code; False, and nothing changes, when the row is another one by now."""
    cursor = db.execute(
        "UPDATE totp SET serial = serial + 1, last_window = %s"
        " WHERE domain = %s AND serial = %s AND last_window < %s AND secret IS NOT NULL",
        (use.window, to_bytes(use.domain), use.serial, use.window),
    )
    return cursor.rowcount == 1


def insert_cosignature(db: psycopg.Connection, cosignature: Cosignature) -> bool:
    cursor = db.execute(
        "INSERT INTO cosignatures (tree_size, witness, merkle_root, cosigned, time) VALUES (%s, %s, %s, %s, %s)"
        " ON CONFLICT (tree_size, witness) DO NOTHING",
        (
            cosignature.tree_size, to_bytes(cosignature.witness), to_bytes(cosignature.merkle_root),
            to_bytes(cosignature.cosigned), cosignature.time,
        ),
    )
    return cursor.rowcount == 1


def read_cosignatures(db: psycopg.Connection, tree_size: int) -> tuple[Cosignature, ...]:
    found = ask(
        db,
        "SELECT tree_size, merkle_root, witness, cosigned, time FROM cosignatures WHERE tree_size = %s"
        " ORDER BY witness",
        (tree_size,),
    )
    return tuple(
        Cosignature(size, to_text(merkle_root), to_text(witness), to_text(cosigned), time)
        for size, merkle_root, witness, cosigned, time in found
    )
