"""Small logs for the store tests: values of every field, none of it cryptography."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ktlog.pkd.erasure import ErasurePlan, plan_erasure
from ktlog.pkd.keys import key_hash
from ktlog.pkd.state import Actor, Aux, Change, HistoryLeaf, Key
from ktlog.store.contracts import Batch, LogState, LogStore, Record
from ktlog.tlog.tree import hash_leaf

ORIGIN = "keys.example.com"
ALICE = "https://example.com/users/alice"
BOB = "https://example.com/users/bob"


def hash_of(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8")).digest()


def make_key(name: str, leaf_index: int = 0) -> Key:
    public_key = hashlib.shake_256(name.encode("utf-8")).digest(1312)
    return Key(public_key=public_key, key_id=f"id of {name}", leaf_index=leaf_index, created=1_700_000_000)


def make_aux(name: str, text: str | None = "text", leaf_index: int = 0) -> Aux:
    return Aux(aux_type="test", aux_id=name, aux_data=text, leaf_index=leaf_index, created=1_700_000_001)


def make_actor(actor_id: str, keys: Sequence[Key] = (), aux: Sequence[Aux] = (), **fields: Any) -> Actor:
    values: dict[str, Any] = {
        "fireproof": False, "version": 1, "generation": 1, "erasures": 0, "cause": 1, "generation_leaf": 0,
        "status": 1, "status_leaf": 0, "revoked": frozenset(),
    }
    return Actor(actor_id=actor_id, keys=tuple(keys), aux=tuple(aux), **(values | fields))


@dataclass(frozen=True)
class Draft:
    """What a test says about one entry; ``make_batch`` works out the rest."""

    text: str
    change: Change = field(default_factory=Change)
    plain: Mapping[str, str | None] = field(default_factory=dict)
    keys: Mapping[str, bytes] = field(default_factory=dict)
    salts: Mapping[str, bytes] = field(default_factory=dict)
    time: int = 1_700_000_000
    action: str = "AddKey"


def enrol(actor_id: str, *keys: Key) -> Draft:
    """An entry that brings *actor_id* its first keys and its salt."""
    return Draft(
        text=f"enrol {actor_id} with {[key.key_id for key in keys]}",
        change=Change(
            actors=(make_actor(actor_id, keys),), history=(HistoryLeaf(actor_id, 1),), needs_salt=(actor_id,)
        ),
        plain={"actor": actor_id, "public-key": "a public key", "absent": None},
        keys={"actor": hash_of(f"actor {actor_id}"), "public-key": hash_of("public key")},
        salts={"actor": hash_of(f"salt {actor_id}")},
    )


def touch(actor: Actor, text: str, role: int = 1) -> Draft:
    """An entry that gives an enrolled actor the value *actor*."""
    return Draft(
        text=text, change=Change(actors=(actor,), history=(HistoryLeaf(actor.actor_id, role),)),
        plain={"actor": actor.actor_id}, keys={"actor": hash_of("actor key")},
    )


def make_batch(expected: LogState, *drafts: Draft) -> Batch:
    """The batch that appends *drafts* to a log in state *expected*."""
    frontier, records = expected.frontier, []
    for leaf_index, draft in enumerate(drafts, expected.size):
        entry = f"entry: {draft.text}".encode()
        frontier = frontier.append(hash_leaf(entry))
        records.append(Record(
            leaf_index=leaf_index, entry=entry, leaf_hash=hash_leaf(entry), root=frontier.root(),
            preimage=f'{{"text":"{draft.text}"}}'.encode(), plain=draft.plain, keys=draft.keys,
            salts=draft.salts, unique_hash=hash_of(draft.text), action=draft.action, created=draft.time,
            accepted=draft.time + 1,
        ))
    times = [expected.greatest_time, *(draft.time for draft in drafts)]
    state = LogState(frontier.size, frontier.root(), frontier, expected.epoch, max(times))
    return Batch(expected, tuple(records), state, tuple(draft.change for draft in drafts))


def move(old: Actor, new: Actor, text: str) -> Draft:
    """An entry that moves everything from *old*, which becomes emptied, to *new*, enrolled by it."""
    return Draft(
        text=text, action="MoveIdentity",
        change=Change(
            actors=(old, new), history=(HistoryLeaf(old.actor_id, 2), HistoryLeaf(new.actor_id, 3)),
            needs_salt=(new.actor_id,),
        ),
        plain={"old-actor": old.actor_id, "new-actor": new.actor_id},
        keys={"old-actor": hash_of("old"), "new-actor": hash_of("new")},
        salts={"new-actor": hash_of(f"salt {new.actor_id}")},
    )


def plan_to_erase(store: LogStore, actor_id: str) -> ErasurePlan:
    """What the operator would do about *actor_id*."""
    return plan_erasure(
        store.origin, store.state().size, store.actor(actor_id), store.mentions(actor_id),
        store.erasures(0, store.erasure_count()), lambda leaf: store.records(leaf, leaf + 1)[0].plain,
    )


def append(store: LogStore, *drafts: Draft) -> Batch:
    """Commit *drafts* to *store*, whatever its state."""
    batch = make_batch(store.state(), *drafts)
    store.commit(batch)
    return batch


def dump(store: LogStore) -> dict[str, Any]:
    """Everything that a store can be asked, to compare two of them or one before and after."""
    with store.snapshot():
        state = store.state()
        records = store.records(0, state.size)
        actor_ids = store.actor_ids("", 10_000)
        actors = {actor_id: store.actor(actor_id) for actor_id in actor_ids}
        key_hashes = {key_hash(key.public_key) for actor in actors.values() if actor for key in actor.keys}
        roots = [store.root_after(size) for size in range(state.size + 1)]
        return {
            "state": state,
            "records": records,
            "entries": store.entries(0, state.size),
            "leaf_hashes": store.leaf_hashes(0, state.size),
            "roots": roots,
            "sizes": [store.size_of_root(root) for root in roots],
            "seen": [store.seen(record.unique_hash) for record in records],
            "actors": actors,
            "holders": {item: store.holders(item) for item in key_hashes},
            "histories": {actor_id: store.history(actor_id) for actor_id in actor_ids},
            "salts": {actor_id: store.salt(actor_id) for actor_id in actor_ids},
            "mentions": {actor_id: store.mentions(actor_id) for actor_id in actor_ids},
            "erased": {actor_id: store.erased(actor_id) for actor_id in actor_ids},
            "erasures": store.erasures(0, store.erasure_count()),
            "erasure counts": [store.erasure_count(size) for size in range(state.size + 1)],
            "public": [store.public_since(leaf_index) for leaf_index in range(state.size)],
            "cosignatures": [store.cosignatures(size) for size in range(state.size + 1)],
            "totp": store.totp("example.com"),
        }


@dataclass
class Backend:
    """One log: the handle that writes, and a way to open more that read."""

    store: LogStore
    reader: Callable[[], LogStore]
