"""What stands beside rows of the directory, so that a flipped byte is seen before anything is signed over it.

An actor's row has the sum of all that it and its rows in other tables say. A revoked token has its key's hash a second
time, in another form: whoever looks for a row that flipped in one of them finds it by the other.
"""

from __future__ import annotations

import json
from hashlib import sha256

from ktlog.errors import StoreError
from ktlog.pkd.actors import Actor


def actor_sum(actor: Actor) -> bytes:
    """32 bytes: SHA-256 over *actor*, whatever of it lies in which table."""
    revoked = sorted(actor.revoked)
    words = [
        actor.actor_id, bool(actor.fireproof), actor.version, actor.generation, actor.erasures, actor.cause,
        actor.generation_leaf, actor.status, actor.status_leaf,
        [(len(key.public_key), key.key_id, key.leaf_index, key.created) for key in actor.keys],
        [(aux.aux_type, aux.aux_id, aux.aux_data, aux.leaf_index, aux.created) for aux in actor.aux], len(revoked),
    ]
    found = sha256(json.dumps(words, separators=(",", ":")).encode("ascii"))
    for key in actor.keys:
        found.update(key.public_key)
    found.update(b"".join(revoked))
    return found.digest()


def check_actor(actor: Actor, stored: bytes | None) -> Actor:
    """*actor*, if *stored* is its sum.

    Raises:
        StoreError: "Corrupt".
    """
    if actor_sum(actor) != stored:
        raise StoreError("Corrupt", f"what is stored of {actor.actor_id!a} is not what was written")
    return actor


def token_check(key_hash: bytes) -> bytes:
    """The second form of a revoked token's key hash, 32 bytes."""
    return sha256(b"revoked token\n" + key_hash).digest()


def check_token(key_hash: bytes, rows: list[tuple[bytes, bytes]]) -> bool:
    """Whether the token of *key_hash* is revoked: *rows* are those with either form of it.

    Raises:
        StoreError: "Corrupt", one of them has only one.
    """
    if any(row != (key_hash, token_check(key_hash)) for row in rows):
        raise StoreError("Corrupt", f"what is stored of the revoked token {key_hash.hex()} is not what was written")
    return bool(rows)
