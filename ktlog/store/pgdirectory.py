"""Between values and PostgreSQL rows: the directory, what the entries make of actors. See ``ktlog.store.pgrows``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg

from ktlog.pkd.keys import key_hash
from ktlog.pkd.state import Actor, Aux, Change, Key
from ktlog.store.batch import salts_by_actor
from ktlog.store.contracts import Record
from ktlog.store.pgrows import ask, to_bytes, to_text, write_many
from ktlog.store.plain import common_prefix
from ktlog.store.rowsums import actor_sum, check_actor, check_token, token_check


def write_actors(db: psycopg.Connection, actors: Mapping[str, Actor]) -> dict[str, int]:
    """Make the stored actors equal to *actors*, by id, rewriting only what differs; their numbers. The salts stay."""
    stored = read_actors(db, actors)
    numbers = {actor_id: number for actor_id, (number, _actor) in stored.items()}
    added = [actor_id for actor_id in actors if actor_id not in numbers]
    if added:
        # Whoever writes has the turn: nobody else takes one of these numbers.
        first = (_first(ask(db, "SELECT max(actor_number) FROM directory_actors")) or 0) + 1
        numbers |= {actor_id: first + place for place, actor_id in enumerate(added)}
    write_many(
        db,
        "INSERT INTO directory_actors (actor_number, actor_id, fireproof, version, generation, erasures, cause,"
        " generation_leaf, status, status_leaf, row_sum) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)"
        " ON CONFLICT (actor_number) DO UPDATE SET fireproof = excluded.fireproof, version = excluded.version,"
        " generation = excluded.generation, erasures = excluded.erasures, cause = excluded.cause,"
        " generation_leaf = excluded.generation_leaf, status = excluded.status, status_leaf = excluded.status_leaf,"
        " row_sum = excluded.row_sum",
        [
            (
                numbers[actor_id], to_bytes(actor_id), actor.fireproof, actor.version, actor.generation, actor.erasures,
                actor.cause, actor.generation_leaf, actor.status, actor.status_leaf, actor_sum(actor),
            )
            for actor_id, actor in actors.items()
        ],
    )
    before = {actor_id: stored[actor_id][1] if actor_id in stored else None for actor_id in actors}
    changed = [(numbers[actor_id], before[actor_id], actor) for actor_id, actor in actors.items()]
    _write_keys(db, changed)
    _write_aux(db, changed)
    _write_revoked(db, changed)
    return numbers


_Changed = Sequence[tuple[int, Actor | None, Actor]]


def _write_keys(db: psycopg.Connection, changed: _Changed) -> None:
    cut, added = [], []
    for number, before, actor in changed:
        stored = before.keys if before else ()
        kept = common_prefix(stored, actor.keys)
        if kept < len(stored):
            cut.append((number, kept))
        added += [
            (number, place, key.public_key, key_hash(key.public_key), to_bytes(key.key_id), key.leaf_index, key.created)
            for place, key in enumerate(actor.keys) if place >= kept
        ]
    write_many(db, "DELETE FROM directory_keys WHERE actor_number = %s AND position >= %s", cut)
    write_many(
        db,
        "INSERT INTO directory_keys (actor_number, position, public_key, key_hash, key_id, leaf_index, created)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        added,
    )


def _write_aux(db: psycopg.Connection, changed: _Changed) -> None:
    cut, added = [], []
    for number, before, actor in changed:
        stored = before.aux if before else ()
        kept = common_prefix(stored, actor.aux)
        if kept < len(stored):
            cut.append((number, kept))
        added += [
            (
                number, place, to_bytes(aux.aux_type), to_bytes(aux.aux_id),
                None if aux.aux_data is None else to_bytes(aux.aux_data), aux.leaf_index, aux.created,
            )
            for place, aux in enumerate(actor.aux) if place >= kept
        ]
    write_many(db, "DELETE FROM directory_aux WHERE actor_number = %s AND position >= %s", cut)
    write_many(
        db,
        "INSERT INTO directory_aux (actor_number, position, aux_type, aux_id, aux_data, leaf_index, created)"
        " VALUES (%s, %s, %s, %s, %s, %s, %s)",
        added,
    )


def _write_revoked(db: psycopg.Connection, changed: _Changed) -> None:
    gone, added = [], []
    for number, before, actor in changed:
        stored = before.revoked if before else frozenset()
        gone += [(number, item) for item in stored - actor.revoked]
        added += [(number, item) for item in actor.revoked - stored]
    write_many(db, "DELETE FROM directory_revoked WHERE actor_number = %s AND key_hash = %s", gone)
    write_many(db, "INSERT INTO directory_revoked (actor_number, key_hash) VALUES (%s, %s)", added)


def insert_changes(
    db: psycopg.Connection, records: Sequence[Record], changes: Sequence[Change], numbers: Mapping[str, int]
) -> None:
    """Write the histories, the revoked tokens and the salts of a batch, whose actors have these *numbers*."""
    pairs = list(zip(records, changes, strict=True))
    write_many(
        db, "INSERT INTO directory_history (actor_number, leaf_index, role) VALUES (%s, %s, %s)",
        [
            (numbers[leaf.actor_id], record.leaf_index, int(leaf.role))
            for record, change in pairs for leaf in change.history
        ],
    )
    write_many(
        db, "INSERT INTO token_revoked (key_hash, leaf_index, key_check) VALUES (%s, %s, %s)"
        " ON CONFLICT (key_hash) DO NOTHING",
        [
            (change.token_revoked, record.leaf_index, token_check(change.token_revoked))
            for record, change in pairs if change.token_revoked is not None
        ],
    )
    salts = {actor_id: salt for record in records for actor_id, salt in salts_by_actor(record).items()}
    write_many(
        db, "UPDATE directory_actors SET salt = %s WHERE actor_number = %s",
        [(salt, numbers[actor_id]) for actor_id, salt in salts.items()],
    )


def read_actor(db: psycopg.Connection, actor_id: str) -> Actor | None:
    found = read_actors(db, (actor_id,)).get(actor_id)
    return None if found is None else found[1]


def read_actors(db: psycopg.Connection, actor_ids: Iterable[str]) -> dict[str, tuple[int, Actor]]:
    """Number and value by id, of the actors that are there.

    Raises:
        StoreError: "Corrupt", one is not what was written.
    """
    found = _read_actors(db, actor_ids)
    return {actor_id: (number, check_actor(actor, row_sum)) for actor_id, (number, actor, row_sum) in found.items()}


def fill_sums(db: psycopg.Connection) -> None:
    """Write the sums of rows that older code wrote, as they are: what is wrong with them, fsck still finds."""
    for first in range(0, (_first(ask(db, "SELECT max(actor_number) FROM directory_actors")) or 0) + 1, 1000):
        named = ask(
            db, "SELECT actor_id FROM directory_actors WHERE actor_number >= %s AND actor_number < %s",
            (first, first + 1000),
        )
        found = _read_actors(db, [to_text(name) for (name,) in named])
        write_many(
            db, "UPDATE directory_actors SET row_sum = %s WHERE actor_number = %s",
            [(actor_sum(actor), number) for number, actor, _row_sum in found.values()],
        )
    write_many(
        db, "UPDATE token_revoked SET key_check = %s WHERE key_hash = %s",
        [(token_check(token), token) for (token,) in ask(db, "SELECT key_hash FROM token_revoked")],
    )


def _read_actors(
    db: psycopg.Connection, actor_ids: Iterable[str]
) -> dict[str, tuple[int, Actor, bytes | None]]:
    """Number, value and stored sum by id."""
    rows = ask(
        db,
        "SELECT actor_number, actor_id, fireproof, version, generation, erasures, cause, generation_leaf, status,"
        " status_leaf, row_sum FROM directory_actors WHERE actor_id = ANY(%s::bytea[])",
        ([to_bytes(actor_id) for actor_id in actor_ids],),
    )
    if not rows:
        return {}
    numbers = [row[0] for row in rows]
    keys, aux, revoked = _read_keys(db, numbers), _read_aux(db, numbers), _read_revoked(db, numbers)
    found = {}
    for (number, name, fireproof, version, generation, erasures, cause, generation_leaf, status, status_leaf,
         row_sum) in rows:
        actor_id = to_text(name)
        found[actor_id] = (number, Actor(
            actor_id=actor_id, keys=tuple(keys.get(number, ())), aux=tuple(aux.get(number, ())), fireproof=fireproof,
            version=version, generation=generation, erasures=erasures, cause=cause, generation_leaf=generation_leaf,
            status=status, status_leaf=status_leaf, revoked=frozenset(revoked.get(number, ())),
        ), row_sum)
    return found


def _read_keys(db: psycopg.Connection, numbers: list[int]) -> dict[int, list[Key]]:
    found: dict[int, list[Key]] = {}
    for number, public_key, key_id, leaf_index, created in ask(
        db,
        "SELECT actor_number, public_key, key_id, leaf_index, created FROM directory_keys"
        " WHERE actor_number = ANY(%s::bigint[]) ORDER BY actor_number, position",
        (numbers,),
    ):
        key = Key(public_key=public_key, key_id=to_text(key_id), leaf_index=leaf_index, created=created)
        found.setdefault(number, []).append(key)
    return found


def _read_aux(db: psycopg.Connection, numbers: list[int]) -> dict[int, list[Aux]]:
    found: dict[int, list[Aux]] = {}
    for number, aux_type, aux_id, aux_data, leaf_index, created in ask(
        db,
        "SELECT actor_number, aux_type, aux_id, aux_data, leaf_index, created FROM directory_aux"
        " WHERE actor_number = ANY(%s::bigint[]) ORDER BY actor_number, position",
        (numbers,),
    ):
        found.setdefault(number, []).append(Aux(
            aux_type=to_text(aux_type), aux_id=to_text(aux_id),
            aux_data=None if aux_data is None else to_text(aux_data), leaf_index=leaf_index, created=created,
        ))
    return found


def _read_revoked(db: psycopg.Connection, numbers: list[int]) -> dict[int, list[bytes]]:
    found: dict[int, list[bytes]] = {}
    for number, item in ask(
        db, "SELECT actor_number, key_hash FROM directory_revoked WHERE actor_number = ANY(%s::bigint[])", (numbers,)
    ):
        found.setdefault(number, []).append(item)
    return found


def read_holders(db: psycopg.Connection, hash_of_key: bytes) -> tuple[str, ...]:
    return tuple(to_text(name) for (name,) in ask(
        db,
        "SELECT DISTINCT a.actor_id FROM directory_keys k JOIN directory_actors a USING (actor_number)"
        " WHERE k.key_hash = %s ORDER BY a.actor_id",
        (hash_of_key,),
    ))


def read_token_revoked(db: psycopg.Connection, hash_of_key: bytes) -> bool:
    return check_token(hash_of_key, ask(
        db,
        "SELECT key_hash, key_check FROM token_revoked WHERE key_hash = %s"
        " UNION ALL SELECT key_hash, key_check FROM token_revoked WHERE key_check = %s",
        (hash_of_key, token_check(hash_of_key)),
    ))


def read_touched(db: psycopg.Connection, start: int, end: int) -> tuple[tuple[int, str, int], ...]:
    rows = ask(
        db,
        "SELECT h.leaf_index, a.actor_id, h.role FROM directory_history h JOIN directory_actors a USING (actor_number)"
        " WHERE h.leaf_index >= %s AND h.leaf_index < %s ORDER BY h.leaf_index, a.actor_id, h.role",
        (start, end),
    )
    return tuple((leaf_index, to_text(actor_id), role) for leaf_index, actor_id, role in rows)


def read_salt(db: psycopg.Connection, actor_id: str) -> bytes | None:
    return _first(ask(db, "SELECT salt FROM directory_actors WHERE actor_id = %s", (to_bytes(actor_id),)))


def read_actor_ids(db: psycopg.Connection, after: str, limit: int) -> tuple[str, ...]:
    rows = ask(
        db, "SELECT actor_id FROM directory_actors WHERE actor_id > %s ORDER BY actor_id LIMIT %s",
        (to_bytes(after), limit),
    )
    return tuple(to_text(actor_id) for (actor_id,) in rows)


def _first(rows: Sequence[tuple[Any, ...]]) -> Any:  # noqa: ANN401 - whatever the one column is
    return rows[0][0] if rows else None
