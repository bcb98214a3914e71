"""How the rows of a saved directory are written (:mod:`auditor.ledger`): each pair of functions is inverse.

Reading raises what :class:`auditor.ledger.Rows` takes for a damaged row: EncodingError, ValueError, TypeError and the
like.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from ktlog.pkd.actors import Actor, Aux, Key
from ktlog.pkd.erasure import CarriedMove
from ktlog.pkd.replay import Tombstone
from ktlog.pkd.withheld import Held
from ktlog.tlog.encoding import decode_base64, encode_base64

NUMBER_BYTES = 8


def number(value: int) -> bytes:
    return value.to_bytes(NUMBER_BYTES, "big")


def integer(data: bytes) -> int:
    return int.from_bytes(data, "big")


def name_hash(actor_id: str) -> bytes:
    return sha256(actor_id.encode("utf-8", "surrogatepass")).digest()


def _key_list(key: Key) -> list[Any]:
    return [encode_base64(key.public_key), key.key_id, key.leaf_index, key.created]


def _aux_list(aux: Aux) -> list[Any]:
    return [aux.aux_type, aux.aux_id, aux.aux_data, aux.leaf_index, aux.created]


def _key(item: Sequence[Any]) -> Key:
    return Key(decode_base64(item[0]), *item[1:])


def encode_actor(actor: Actor) -> bytes:
    return json.dumps([
        actor.actor_id, [_key_list(key) for key in actor.keys], [_aux_list(aux) for aux in actor.aux], actor.fireproof,
        actor.version, actor.generation, actor.erasures, actor.cause, actor.generation_leaf, actor.status,
        actor.status_leaf, sorted(encode_base64(hashed) for hashed in actor.revoked),
    ]).encode()


def decode_actor(data: bytes) -> Actor:
    actor_id, keys, aux, *numbers, revoked = json.loads(data)
    return Actor(
        actor_id, tuple(_key(item) for item in keys), tuple(Aux(*item) for item in aux), *numbers,
        frozenset(decode_base64(text) for text in revoked),
    )


def encode_move(move: CarriedMove) -> bytes:
    return json.dumps(
        [move.move_leaf, move.fireproof, move.leaves, move.history_size, encode_base64(move.history_root)]
    ).encode()


def decode_move(data: bytes) -> CarriedMove:
    leaf, fireproof, leaves, size, root = json.loads(data)
    return CarriedMove(leaf, fireproof, tuple(leaves), size, decode_base64(root))


def encode_tomb(tomb: Tombstone) -> bytes:
    return json.dumps([tomb.version, tomb.generation, tomb.erasures]).encode()


def decode_tomb(data: bytes) -> Tombstone:
    return Tombstone(*json.loads(data))


def encode_held(item: Held) -> bytes:
    return json.dumps(["key", *_key_list(item)] if isinstance(item, Key) else ["aux", *_aux_list(item)]).encode()


def decode_held(data: bytes) -> Held:
    kind, *rest = json.loads(data)
    return _key(rest) if kind == "key" else Aux(*rest)
