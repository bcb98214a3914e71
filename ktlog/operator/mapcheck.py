"""Does the stored map say what it must? Every leaf against the published root, and values against the log's store.

A bit that flipped in a value would otherwise be noticed by the client who asks for it, as an answer that does not
verify.

Spec: directory map §1, §2, §5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ktlog.config import Settings
from ktlog.errors import EncodingError, Invalid, StoreError
from ktlog.keymap.prefix import MISSING, PrefixLeaf, hash_parent, subtree_hash, verify
from ktlog.keymap.value import (
    Value,
    commit_value,
    derive_opening,
    encode_value,
    parse_history_leaf,
    parse_value,
    tombstone,
    value_of,
)
from ktlog.operator.stores import open_log, open_map
from ktlog.pkd.actors import Status
from ktlog.pkd.erasure import map_index
from ktlog.store.contracts import LogStore
from ktlog.store.mapcontract import Live, MapState, MapStore
from ktlog.tlog.tree import EMPTY_ROOT, Frontier, hash_leaf

SAMPLE = 32
"""Leaves that are looked at where not all are."""

_Node = tuple[int, bytes]
"""How many leaves lie below, and the hash."""


def check_map(map_store: MapStore, store: LogStore, draw: Callable[[int], bytes] | None = None) -> int:
    """Check every leaf of the map and the root from nothing but the leaves; returns how many there are.

    Args:
        draw: gives random bytes: look at a sample only, each leaf proven by the stored nodes. It costs the same at
            every size; all of a million leaves cost minutes.

    Raises:
        StoreError: ``MapCorrupt``, with what is wrong.
    """
    with map_store.snapshot(), store.snapshot():
        state = map_store.state()
        if draw is None:
            return _check_all(map_store, store, state)
        for _ in range(SAMPLE if state.leaves else 0):
            leaf = map_store.leaf_near(draw(32))
            if leaf is None:
                raise _corrupt(f"it has none of its {state.leaves} leaves")
            try:
                verify(map_store.prove(leaf.index), [leaf.index], state.root, [leaf.commitment])
            except Invalid as error:
                raise _corrupt(f"a leaf does not belong to the published root: {error.message}") from None
            _check_leaf(map_store, store, state, leaf)
        return state.leaves


def _check_all(map_store: MapStore, store: LogStore, state: MapState) -> int:
    count = 0

    def looked_at() -> Iterable[PrefixLeaf]:
        nonlocal count
        for leaf in map_store.leaves():
            _check_leaf(map_store, store, state, leaf)
            count += 1
            yield leaf

    root = stream_root(looked_at())
    if count != state.leaves or root != state.root:
        raise _corrupt(f"its {count} leaves do not make up the root of the {state.leaves} that are published")
    return count


def stream_root(leaves: Iterable[PrefixLeaf]) -> bytes:
    """Root over *leaves*, in order; holds one in 256 of them at a time."""
    nodes: list[_Node] = [(0, MISSING)] * 256
    below: list[PrefixLeaf] = []
    for leaf in leaves:
        if below and below[0].index[0] != leaf.index[0]:
            nodes[below[0].index[0]] = len(below), subtree_hash(below, 8)
            below = []
        below.append(leaf)
    if below:
        nodes[below[0].index[0]] = len(below), subtree_hash(below, 8)
    while len(nodes) > 1:
        nodes = [_above(nodes[i], nodes[i + 1]) for i in range(0, len(nodes), 2)]
    return nodes[0][1]


def _above(left: _Node, right: _Node) -> _Node:
    count = left[0] + right[0]
    if count < 2:
        return left if left[0] else right
    return count, hash_parent(left[1], right[1])


def _check_leaf(map_store: MapStore, store: LogStore, state: MapState, leaf: PrefixLeaf) -> None:
    live, dead = map_store.live(leaf.index), map_store.dead(leaf.index)
    if (live is None) == (dead is None):
        raise _corrupt("a leaf has both a value and a tombstone, or neither")
    if dead is not None:
        numbers = (dead.version, dead.generation, dead.erasure_number)
        if tombstone(store.origin, leaf.index, *numbers) != leaf.commitment or numbers[2] >= state.erasures:
            raise _corrupt("a tombstone is not the one in its leaf")
        record = store.erasures(numbers[2], numbers[2] + 1)[0]
        if (record.index, record.version, record.generation) != (leaf.index, *numbers[:2]):
            raise _corrupt("a tombstone is not what its erasure record says")
    if live is not None:
        try:
            _check_value(map_store, store, state, live)
        except EncodingError as error:
            raise _corrupt(f"a value is malformed: {error.message}") from None


def _check_value(map_store: MapStore, store: LogStore, state: MapState, live: Live) -> None:
    value = parse_value(live.value)
    if map_index(store.origin, value.actor_id) != live.index:
        raise _corrupt("a value lies at another actor's place")
    if commit_value(live.index, value.version, live.value, live.opening) != live.commitment:
        raise _corrupt("a value is not the one in its leaf")
    history = map_store.history(live.index, value.history_size + 1)
    tree = Frontier().extend(map(hash_leaf, history))
    if (tree.size, tree.root()) != (value.history_size, value.history_root or EMPTY_ROOT):
        raise _corrupt("a history is not the one in its value")
    if tree.encode() != live.history:
        raise _corrupt("a history does not fit the frontier from which it goes on")
    _compare(store, state, value, live, history)


def _compare(store: LogStore, state: MapState, value: Value, live: Live, history: tuple[bytes, ...]) -> None:
    """With what the log's store says now, where that is not about later entries."""
    actor, salt = store.actor(value.actor_id), store.salt(value.actor_id)
    if actor is None or actor.status == Status.ERASED or salt is None:
        if actor is None or store.erasure_count() == state.erasures:
            raise _corrupt("somebody has a value whom the log does not know")
        return
    if actor.erasures != value.erasures or actor.version > value.version:
        if state.input_size == store.state().size:
            raise _corrupt("a value is older than the entries that the map covers")
        return
    rows = tuple(parse_history_leaf(item)[:2][::-1] for item in history)
    wanted = encode_value(value_of(actor, value.history_size, value.history_root))
    if (wanted, derive_opening(salt, value.version), store.history(value.actor_id)) != (live.value, live.opening, rows):
        raise _corrupt("a value is not the actor's state")


def check_whole_map(settings: Settings) -> int:
    """:func:`check_map` of the log in *settings*, every leaf. Nothing needs to run, and what runs is not disturbed."""
    map_store = open_map(settings, read_only=True)
    try:
        with open_log(settings, read_only=True) as store:
            return check_map(map_store, store)
    finally:
        map_store.close()


def _corrupt(what: str) -> StoreError:
    return StoreError(
        "MapCorrupt", f"the map cannot be served: {what}",
        hint="Restore map.db, and with it map-signed-head.json and map-pending, from the newest copy.",
    )
