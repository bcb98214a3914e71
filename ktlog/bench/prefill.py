"""A log with many actors, made for measuring and for nothing else.

Everything that reading touches is as in a real log: the store is written through its contract, the
tree and its tiles are computed, the checkpoint is signed. What costs a real log most is left out.
Public keys and message signatures are arbitrary bytes, plaintext commitments are none, and the leaf
signatures are a few real ones used over and over. No audit would pass, so the log is called
``bench.invalid``, a name that nobody can own (RFC 2606), and no witness is asked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from ktlog.config import Settings
from ktlog.operator.create import create_log
from ktlog.operator.keys import LeafKey, load_checkpoint_signers, load_leaf_key
from ktlog.operator.publisher import Publisher
from ktlog.pkd.actions import PKD_CONTEXT, AddKey
from ktlog.pkd.actors import Actor, Cause, Change, HistoryLeaf, Key, Role, Status
from ktlog.pkd.attributes import HEADER_BYTES
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import LogEntry, encode_entry, leaf_key_hash, preimage
from ktlog.pkd.keys import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    ZERO_ROOT,
    derive_key_id,
    encode_public_key,
    sign_mldsa44,
)
from ktlog.store.contracts import Batch, LogState, LogStore, Record
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.encoding import encode_base64url
from ktlog.tlog.policy import Policy
from ktlog.tlog.tree import hash_leaf
from ktlog.wire.fetch import Fetcher

ORIGIN = "bench.invalid"
POOL = 16
"""How many leaf signatures there are. Any number would do; reading never looks at them."""
BATCH = 1_000
PUBLISH_EVERY = 10_000
"""Entries that the publisher reads back at once."""


def actor_name(number: int) -> str:
    return f"https://{ORIGIN}/users/u{number:07}"


def prefill(directory: Path, actors: int, told: Callable[[int], None] = lambda done: None) -> Settings:
    """Make a log in *directory* in which *actors* actors have one key each, and publish it.

    Args:
        directory: empty or absent.
        told: is called with the number of actors so far.

    Raises:
        StoreError: ``DirectoryInUse`` and others of ``create_log``, of the store and of the tiles.
    """
    settings = create_log(directory, ORIGIN, SPEC.name, None)
    now = int(time.time())
    leaf_key = load_leaf_key(settings.keys)
    pool = [sign_mldsa44(leaf_key.private, bytes_of(f"pool {number}")) for number in range(POOL)]
    with SqliteStore.open(settings.database, origin=ORIGIN) as store:
        store.claim_epoch()
        publisher = Publisher(
            settings=settings, store=store, tiles=TileFiles(settings.tiles),
            signers=load_checkpoint_signers(settings.keys, ORIGIN), policy=Policy(),
            fetcher=Fetcher.from_environment(), now=lambda: now,
        )
        for start in range(0, actors, BATCH):
            end = min(start + BATCH, actors)
            _append(store, range(start, end), leaf_key, pool, now)
            if end % PUBLISH_EVERY == 0 or end == actors:
                publisher.publish(end)
            told(end)
    return settings


def bytes_of(name: str, size: int = 32) -> bytes:
    """Arbitrary bytes, the same for the same name."""
    return hashlib.shake_256(name.encode("ascii")).digest(size)


def _append(store: LogStore, numbers: range, leaf_key: LeafKey, pool: list[bytes], now: int) -> None:
    expected = store.state()
    made = list(_entries(expected, numbers, leaf_key, pool, now))
    state = made[-1][2]
    store.commit(Batch(expected, tuple(record for record, _, _ in made), state, tuple(c for _, c, _ in made)))


def _entries(
    state: LogState, numbers: range, leaf_key: LeafKey, pool: list[bytes], now: int
) -> Iterator[tuple[Record, Change, LogState]]:
    leaf_hash_of_key = leaf_key_hash(leaf_key.public)
    for number in numbers:
        actor_id, public_key = actor_name(number), bytes_of(f"key {number}", PUBLIC_KEY_BYTES)
        plain = {"actor": actor_id, "public-key": encode_public_key(public_key)}
        text = preimage(SPEC, {
            "!pkd-context": PKD_CONTEXT,
            "action": AddKey.action,
            "message": {name: _sealed(number, name, value) for name, value in plain.items()} | {"time": str(now)},
            "recent-merkle-root": ZERO_ROOT,
            "signature": encode_base64url(bytes_of(f"signature {number}", SIGNATURE_BYTES)),
        })
        entry = encode_entry(
            SPEC, LogEntry(hashlib.sha256(text).digest(), pool[number % len(pool)], leaf_hash_of_key)
        )
        leaf_hash = hash_leaf(entry)
        frontier = state.frontier.append(leaf_hash)
        index = state.size
        state = replace(state, size=index + 1, root=frontier.root(), frontier=frontier, greatest_time=now)
        record = Record(
            leaf_index=index, entry=entry, leaf_hash=leaf_hash, root=state.root, preimage=text, plain=plain,
            keys={name: bytes_of(f"symmetric {name} {number}") for name in plain},
            salts={"actor": bytes_of(f"salt {number}")}, unique_hash=bytes_of(f"unique {number}"),
            action=AddKey.action, created=now, accepted=now,
        )
        yield record, _enrolment(actor_id, Key(public_key, derive_key_id(ORIGIN, index), index, now)), state


def _enrolment(actor_id: str, key: Key) -> Change:
    actor = Actor(
        actor_id=actor_id, keys=(key,), aux=(), fireproof=False, version=1, generation=1, erasures=0,
        cause=Cause.FIRST, generation_leaf=key.leaf_index, status=Status.ACTIVE, status_leaf=key.leaf_index,
        revoked=frozenset(),
    )
    return Change((actor,), (HistoryLeaf(actor_id, Role.SUBJECT),), needs_salt=(actor_id,))


def _sealed(number: int, name: str, text: str) -> str:
    """As long as the attribute would be, and like it not to be told from random bytes."""
    return encode_base64url(b"\x01" + bytes_of(f"sealed {name} {number}", HEADER_BYTES - 1 + len(text)))
