"""A log with many actors and the directory map of them, made in minutes to be measured.

What a light lookup reads is as in a real log: every actor with a key, the map written by its own store batch by batch,
its output log, its checkpoints under the signatures of three witnesses and a verifier. What such a lookup does not read
is small: entries and messages are a few arbitrary bytes, and only the roots that are published are real. No audit would
pass. Keys with their proofs are answered from it too, and messages are appended to it, as from and to any other log.
"""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from ktlog import sqlitefile
from ktlog.bench.names import ORIGIN, actor_name, bytes_of
from ktlog.config import Settings
from ktlog.durable import write_atomic
from ktlog.keymap.output import OutputLeaf, format_config, format_leaf, hash_config, map_origin
from ktlog.keymap.value import commit_value, derive_opening, encode_value, value_of
from ktlog.operator.create import create_log, load_public_keys
from ktlog.operator.head import SignedHead, record_signed_head
from ktlog.operator.keys import load_checkpoint_signers, load_map_signers
from ktlog.operator.mapping import MapCycle
from ktlog.operator.publisher import Publisher
from ktlog.operator.stores import map_config, map_signed_head
from ktlog.pkd.actions import AddKey
from ktlog.pkd.actors import Actor, Cause, Key, Role, Status
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.erasure import map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.keys import PUBLIC_KEY_BYTES, derive_key_id, key_hash
from ktlog.store import rows
from ktlog.store.contracts import LogState, Record
from ktlog.store.mapcontract import Live, MapState
from ktlog.store.mapdb import SqliteMapStore
from ktlog.store.rowsums import actor_sum
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    Note,
    Signer,
    format_note,
    parse_vkey,
    signer_from_seed,
)
from ktlog.tlog.policy import VERIFIERS, WITNESSES, Group, LogKey, Policy, Witness, format_policy
from ktlog.tlog.tree import EMPTY_ROOT, Frontier, hash_leaf
from ktlog.wire.fetch import Fetcher

BATCH = 50_000
_CACHE_KIB = 262_144
"""Of the loading connection: rows go to random places of three indexes."""
COSIGNERS = ("w1", "w2", "w3", "v1")


@cache
def cosigners() -> tuple[tuple[Signer, ...], ...]:
    """Three witnesses and a verifier, each with both its keys."""
    return tuple(
        tuple(signer_from_seed(f"{name}.{ORIGIN}", algorithm, bytes_of(f"{name} {algorithm}"))
              for algorithm in (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44))
        for name in COSIGNERS
    )


def trust_policy(settings: Settings) -> Policy:
    """Two of the three witnesses, and the verifier: what a client trusts, and what the log publishes under."""
    witnesses, groups = {}, {}
    for name, signers in zip(COSIGNERS, cosigners(), strict=True):
        keys = [f"{name}-{number}" for number in range(len(signers))]
        for key, signer in zip(keys, signers, strict=True):
            witnesses[key] = Witness(key, signer.vkey, f"https://{name}.{ORIGIN}")
        groups[name] = Group(name, len(keys), tuple(keys))
    groups[WITNESSES] = Group(WITNESSES, 2, COSIGNERS[:3])
    groups[VERIFIERS] = Group(VERIFIERS, 1, COSIGNERS[3:])
    groups["both"] = Group("both", 2, (WITNESSES, VERIFIERS))
    vkeys = map(parse_vkey, load_public_keys(settings).map_vkeys)
    logs = tuple(LogKey(vkey, f"{settings.url}/map") for vkey in vkeys)
    return Policy(logs, witnesses, groups, "both")


def build(directory: Path, actors: int, told: Callable[[int], None] = lambda done: None) -> Settings:
    """Make the log in *directory*, which is empty or absent, with *actors* actors, and publish it with its map.

    Raises:
        StoreError: those of ``create_log``, of the stores and of the tiles.
    """
    settings = create_log(directory, ORIGIN, SPEC.name, None)
    policy = replace(trust_policy(settings), logs=())
    write_atomic(settings.publish_policy, format_policy(policy))
    now = int(time.time())
    config = format_config(map_config(settings))
    map_store = SqliteMapStore.open(settings.map_database, origin=ORIGIN, config=config)
    signers = load_map_signers(settings.keys, ORIGIN)

    def seal(after: MapState, leaf: bytes) -> bytes:
        text = format_checkpoint(Checkpoint(map_origin(ORIGIN), after.output.size, after.output.root()))
        everybody = [*signers, *(signer for pair in cosigners() for signer in pair)]
        return format_note(Note(text, tuple(signer.sign(text, now) for signer in everybody)))

    with SqliteStore.open(settings.database, origin=ORIGIN) as store:
        published = {"settings": settings, "store": store, "policy": Policy(), "fetcher": Fetcher.from_environment(),
                     "now": lambda: now}
        publisher = Publisher(
            tiles=TileFiles(settings.tiles), signers=load_checkpoint_signers(settings.keys, ORIGIN), **published
        )
        state, log = map_store.state(), store.state()
        for start in range(0, actors, BATCH):
            made = [enrolled(number, now) for number in range(start, min(start + BATCH, actors))]
            log = _load(settings.database, log, made, now)
            publisher.publish(log.size)
            leaf = OutputLeaf(hash_config(map_config(settings)), now, log.size, log.root, 0, EMPTY_ROOT, b"")
            state = map_store.update(
                sorted((live_value(one.actor, one.salt, (one.number,)) for one in made), key=lambda live: live.index),
                expected=state, input_size=log.size, erasures=0,
                make_leaf=lambda root, leaf=leaf: format_leaf(replace(leaf, map_root=root)), seal=seal,
            )
            map_store.settle()
            told(log.size)
        map_store.close()
        record_signed_head(map_signed_head(settings), SignedHead(state.output.size, state.output.root(), now))
        MapCycle(signers=signers, **published).close()  # writes the output log's tiles
    return settings


@dataclass(frozen=True)
class Enrolled:
    """One actor, enrolled by entry *number*."""

    number: int
    actor: Actor
    salt: bytes


def enrolled(number: int, now: int) -> Enrolled:
    public_key = bytes_of(f"key {number}") * (PUBLIC_KEY_BYTES // 32)
    key = Key(public_key, derive_key_id(ORIGIN, number), number, now)
    actor = Actor(
        actor_id=actor_name(number), keys=(key,), aux=(), fireproof=False, version=1, generation=1, erasures=0,
        cause=Cause.FIRST, generation_leaf=number, status=Status.ACTIVE, status_leaf=number, revoked=frozenset(),
    )
    return Enrolled(number, actor, bytes_of(f"salt {number}"))


def live_value(actor: Actor, salt: bytes, entries: Sequence[int]) -> Live:
    """What the map holds of *actor*, whom *entries* made; the last of them is news."""
    leaves = tuple(history_leaf(Role.SUBJECT, number) for number in entries)
    tree = Frontier().extend(map(hash_leaf, leaves))
    value, opening = encode_value(value_of(actor, tree.size, tree.root())), derive_opening(salt, actor.version)
    index = map_index(ORIGIN, actor.actor_id)
    return Live(index, commit_value(index, actor.version, value, opening), value, opening, tree.encode(), leaves[-1:])


def _load(database: Path, state: LogState, made: Sequence[Enrolled], now: int) -> LogState:
    """Write *made* into the tables behind the log's store; returns the state after it."""
    records, frontier = [], state.frontier
    for one in made:
        entry = bytes_of(f"entry {one.number}")
        leaf_hash = hash_leaf(entry)
        frontier = frontier.append(leaf_hash)
        root = frontier.root() if one is made[-1] else leaf_hash
        records.append(Record(
            leaf_index=one.number, entry=entry, leaf_hash=leaf_hash, root=root, preimage=entry, plain={}, keys={},
            salts={}, unique_hash=hashlib.sha256(entry).digest(), action=AddKey.action, created=now, accepted=now,
        ))
    after = replace(state, size=frontier.size, root=frontier.root(), frontier=frontier, greatest_time=now)
    connection = sqlitefile.open_database(database)
    try:
        connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        with sqlitefile.database_errors(database), sqlitefile.transaction(connection):
            rows.swap_state(connection, state, after)
            rows.insert_records(connection, records)
            _insert_actors(connection, made)
    finally:
        connection.close()
    return after


def _insert_actors(connection: sqlite3.Connection, made: Sequence[Enrolled]) -> None:
    """As ``rows.write_actor`` does one by one."""
    connection.executemany(
        "INSERT INTO directory_actors (actor_number, actor_id, fireproof, version, generation, erasures, cause,"
        " generation_leaf, status, status_leaf, salt, row_sum) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((one.number + 1, one.actor.actor_id, 0, 1, 1, 0, one.actor.cause, one.number, one.actor.status, one.number,
          one.salt, actor_sum(one.actor)) for one in made),
    )
    connection.executemany(
        "INSERT INTO directory_keys (actor_number, position, public_key, key_hash, key_id, leaf_index, created)"
        " VALUES (?, 0, ?, ?, ?, ?, ?)",
        ((one.number + 1, key.public_key, key_hash(key.public_key), key.key_id, key.leaf_index, key.created)
         for one in made for key in one.actor.keys),
    )
    connection.executemany(
        "INSERT INTO directory_history (actor_number, leaf_index, role) VALUES (?, ?, ?)",
        ((one.number + 1, one.number, Role.SUBJECT) for one in made),
    )
