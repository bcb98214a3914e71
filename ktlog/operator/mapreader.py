"""Answers from the published map: the lookup bundle for one actor, proven by the newest output leaf.

What is shown comes from one snapshot of the map's store, so leaf, proof, value and checkpoint belong together. The raw
keys, texts and entries come from the log's store, which may be ahead: nothing of it is shown that the value does not
list, but for the pending entries, which say what they are.

Spec: directory map §8.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.keymap.bundle import Bundle, HistoryItem, NoLeaf, Presented, Tombstone
from ktlog.keymap.output import map_origin, parse_leaf
from ktlog.keymap.prefix import Kind, PrefixProof
from ktlog.keymap.value import Value, parse_history_leaf, parse_value
from ktlog.operator.nodes import LogNodes
from ktlog.operator.proofs import Proofs
from ktlog.pkd.actors import Actor
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import decode_public_key
from ktlog.pkd.keys import key_hash as hash_of
from ktlog.store.contracts import LogStore, Record
from ktlog.store.mapdb import MapState, MapStore
from ktlog.tlog.tree import Frontier, hash_leaf, prove_inclusion

PENDING_ENTRIES = 64
"""At most, in one bundle; the next map has the others."""


class MapReader:
    """Reads one log's map. Give it readers' stores. Safe to use from many threads.

    read_tile, read_map_tile: a published tile's bytes by its path, or None; of the log and of the output log.
    """

    def __init__(
        self, store: LogStore, map_store: MapStore, read_tile: Callable[[str], bytes | None],
        read_map_tile: Callable[[str], bytes | None],
    ) -> None:
        self._store = store
        self._map = map_store
        self._proofs = Proofs(store, read_tile)
        self._read_map_tile = read_map_tile
        self._lock = threading.Lock()
        self._path: tuple[int, tuple[bytes, ...], bytes] | None = None

    def checkpoint(self, size: int | None = None) -> bytes | None:
        """The published checkpoint of the output log at *size*, or the newest; None if there is none."""
        return self._map.checkpoint(size)

    def bundle(self, actor_id: str, *, aux: bool, full: bool, checkpoint: bool, published_size: int) -> Bundle:
        """What the newest published map says of *actor_id*, who may be anybody.

        Args:
            aux: with the texts of auxiliary data. full: with every entry behind the value, and what is pending.
            checkpoint: with the signed checkpoint itself. published_size: of the log; how far its tiles reach.

        Raises:
            MessageRejected: ``not_published``; ``unavailable`` for an actor who is being erased this moment.
        """
        try:
            return self._bundle(actor_id, aux, full, checkpoint, published_size)
        except EncodingError as error:
            raise StoreError("Corrupt", f"the stored map: {error}") from error

    def _bundle(self, actor_id: str, aux: bool, full: bool, checkpoint: bool, published_size: int) -> Bundle:
        index = map_index(self._store.origin, actor_id)
        with self._map.snapshot():
            state = self._map.state()
            size = state.output.size
            if size < 2:
                raise MessageRejected("not_published", "this log has not published its map yet")
            path, leaf = self._newest_leaf(state)
            proof = self._map.prove(index)
            found = self._map.live(index)
            outcome: NoLeaf | Presented | Tombstone = NoLeaf()
            if found is not None:
                outcome = Presented(found.value, found.opening)
            elif (dead := self._map.dead(index)) is not None:
                outcome = Tombstone(dead.version, dead.generation, dead.erasure_number)
            history = self._histories(index) if full and found is not None else None
            note = self._map.checkpoint(size) if checkpoint else None
        bundle = Bundle(
            map_origin(self._store.origin), size, leaf, path, _bare(proof), outcome, checkpoint=note,
        )
        with self._store.snapshot():
            if isinstance(outcome, Presented):
                bundle = self._with_contents(bundle, parse_value(outcome.value), aux)
            if full:
                bundle = self._with_history(bundle, actor_id, history, max(published_size, state.input_size))
        return bundle

    def _newest_leaf(self, state: MapState) -> tuple[tuple[bytes, ...], bytes]:
        """Its inclusion proof and the leaf itself, the same for everybody until the next one."""
        size = state.output.size
        with self._lock:
            if self._path is not None and self._path[0] == size:
                return self._path[1], self._path[2]
        nodes = LogNodes(_Output(self._map, size), self._read_map_tile, size)
        path = tuple(prove_inclusion(size - 1, size, nodes))
        (leaf,) = self._map.output_leaves(size - 1, size)
        with self._lock:
            self._path = size, path, leaf
        return path, leaf

    def _histories(self, index: bytes) -> tuple[tuple[bytes, ...], list[tuple[bytes, ...]]]:
        """The leaves of the history at *index*, and for each MOVED_IN among them those of the old name, if kept."""
        own = self._map.history(index, 1 << 62)
        old = []
        for leaf in own:
            _role, leaf_index, moved_from = parse_history_leaf(leaf)
            if moved_from is not None:
                old.append(self._old_history(leaf_index, *moved_from))
        return own, old

    def _old_history(self, leaf_index: int, size: int, root: bytes) -> tuple[bytes, ...]:
        name = self._store.records(leaf_index, leaf_index + 1)[0].plain.get("old-actor")
        if name is None:
            return ()
        leaves = self._map.history(map_index(self._store.origin, name), size)
        # Whoever was erased and came back has another history now.
        return leaves if Frontier().extend(map(hash_leaf, leaves)).root() == root else ()

    def _with_contents(self, bundle: Bundle, value: Value, aux: bool) -> Bundle:
        actor = self._store.actor(value.actor_id)
        held = {key.leaf_index: key.public_key for key in actor.keys} if actor else {}
        keys = [held.get(key.leaf_index) or self._logged_key(key.leaf_index) for key in value.keys]
        if any(hash_of(key) != listed.key_hash for key, listed in zip(keys, value.keys, strict=True)):
            raise StoreError("Corrupt", "the map lists another key than the log has")
        texts = tuple(self._text(actor, item.leaf_index) for item in value.aux) if aux else None
        return replace(bundle, keys=tuple(keys), aux=texts)

    def _logged_key(self, leaf_index: int) -> bytes:
        """A key that is active in the map, and not any more in the store, which is ahead."""
        text = self._record(leaf_index).plain.get("public-key")
        if text is None:
            raise MessageRejected("unavailable", "this actor is being erased; ask again in a moment")
        return decode_public_key(text)

    def _text(self, actor: Actor | None, leaf_index: int) -> str | None:
        for item in actor.aux if actor else ():
            if item.leaf_index == leaf_index:
                return item.aux_data
        return self._record(leaf_index).plain.get("aux-data")

    def _record(self, leaf_index: int) -> Record:
        return self._store.records(leaf_index, leaf_index + 1)[0]

    def _with_history(
        self, bundle: Bundle, actor_id: str, history: tuple[tuple[bytes, ...], list[tuple[bytes, ...]]] | None,
        published_size: int,
    ) -> Bundle:
        input_size = parse_leaf(bundle.output_leaf).input_size
        own, old = history or ((), [])
        rows = self._store.history(actor_id)
        pending = tuple(
            _item(b"", self._record(leaf_index), ())
            for leaf_index, _role in rows if input_size <= leaf_index
        )[:PENDING_ENTRIES]
        return replace(
            bundle, history=self._items(own, input_size, published_size),
            old_histories=tuple(self._items(leaves, input_size, published_size) for leaves in old), pending=pending,
        )

    def _items(self, leaves: Sequence[bytes], size: int, published_size: int) -> tuple[HistoryItem, ...]:
        items = []
        for leaf in leaves:
            leaf_index = parse_history_leaf(leaf)[1]
            path = self._proofs.inclusion(leaf_index, size, published_size)
            items.append(_item(leaf, self._record(leaf_index), tuple(path)))
        return tuple(items)


class _Output:
    """The output log's leaves, for LogNodes."""

    def __init__(self, map_store: MapStore, size: int) -> None:
        self._map = map_store
        self.size = size

    def state(self) -> _Output:
        return self

    def leaf_hashes(self, start: int, end: int) -> Sequence[bytes]:
        return self._map.output_hashes(start, end)


def _item(leaf: bytes, record: Record, path: tuple[bytes, ...]) -> HistoryItem:
    return HistoryItem(leaf, record.entry, record.preimage, dict(record.plain), path)


def _bare(proof: PrefixProof) -> PrefixProof:
    """As it is after its encoding was read: an inclusion's leaf is what the asker computes."""
    (search,) = proof.searches
    return replace(proof, searches=(replace(search, leaf=None),)) if search.kind == Kind.INCLUSION else proof
