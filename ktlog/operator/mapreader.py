"""Answers from the published map: the lookup bundle for one actor, proven by the newest output leaf.

What is shown comes from one snapshot of the map's store, so leaf, proof, value and checkpoint belong together. The raw
keys, texts and entries come from the log's store, which may be ahead: nothing of it is shown that the value does not
list, but for the pending entries, which say what they are. Every answer is bounded: a long history comes in pages, and
of many pending entries revocations come first.

Spec: directory map §8; :mod:`ktlog.keymap.pages`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.keymap.bundle import (
    MAX_HISTORY,
    MAX_PENDING,
    MAX_PENDING_BYTES,
    Bundle,
    HistoryItem,
    NoLeaf,
    Page,
    PendingItem,
    Presented,
    Tombstone,
    encode_pending,
)
from ktlog.keymap.output import map_origin, parse_leaf
from ktlog.keymap.pages import cut
from ktlog.keymap.prefix import Kind, PrefixProof
from ktlog.keymap.value import Value, parse_history_leaf, parse_value
from ktlog.operator.nodes import LogNodes
from ktlog.operator.proofs import Proofs
from ktlog.pkd.actions import RevokeKey, RevokeKeyThirdParty
from ktlog.pkd.actors import Actor
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import decode_public_key
from ktlog.pkd.keys import key_hash as hash_of
from ktlog.store.contracts import LogStore, Record
from ktlog.store.mapcontract import MapState, MapStore
from ktlog.tlog.tree import Frontier, hash_leaf, prove_inclusion

PAGE_ITEMS = 64
PAGE_BYTES = 1 << 20
"""Of the messages in one page of a history; the one that exceeds it still belongs to the page."""
PAGE_LEAVES = 8192
"""Items of one page without messages."""
PENDING_SCAN = 1024
"""Of more entries that wait for the next map only the first are looked at."""
_REVOKING = (RevokeKey.action, RevokeKeyThirdParty.action)


@dataclass(frozen=True)
class Wanted:
    """What an answer is to have beside the proof.

    aux: the texts of auxiliary data. full: every entry behind the value. leaves: their places alone; not with *full*.
    start: the item that a page of either begins with. checkpoint: the signed checkpoint itself.
    """

    aux: bool = False
    full: bool = False
    leaves: bool = False
    start: int = 0
    checkpoint: bool = False

    @property
    def history(self) -> bool:
        return self.full or self.leaves


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

    def version(self) -> Hashable:
        """Another value after every change of the map."""
        return self._map.version()

    def checkpoint(self, size: int | None = None) -> bytes | None:
        """The published checkpoint of the output log at *size*, or the newest; None if there is none."""
        return self._map.checkpoint(size)

    def bundle(self, actor_id: str, wanted: Wanted, *, published_size: int) -> Bundle:
        """What the newest published map says of *actor_id*, who may be anybody, and what of them is pending.

        Args:
            published_size: of the log; how far its tiles reach.

        Raises:
            MessageRejected: ``not_published``; ``unavailable`` for an actor who is being erased this moment;
                ``bad_request`` for a page that there is not.
        """
        try:
            return self._bundle(actor_id, wanted, published_size)
        except EncodingError as error:
            raise StoreError("Corrupt", f"the stored map: {error}") from error

    def _bundle(self, actor_id: str, wanted: Wanted, published_size: int) -> Bundle:
        index = map_index(self._store.origin, actor_id)
        with self._map.snapshot():
            state = self._map.state()
            size = state.output.size
            if size < 2:
                raise MessageRejected("not_published", "this log has not published its map yet")
            path, leaf = self._newest_leaf(state)
            proof = self._map.prove(index)
            found = self._map.presented(index)
            outcome: NoLeaf | Presented | Tombstone = NoLeaf()
            if found is not None:
                outcome = Presented(*found)
            elif (dead := self._map.dead(index)) is not None:
                outcome = Tombstone(dead.version, dead.generation, dead.erasure_number)
            lists = self._histories(index) if wanted.history and found is not None else [()]
            note = self._map.checkpoint(size) if wanted.checkpoint else None
        bundle = Bundle(
            map_origin(self._store.origin), size, leaf, path, _bare(proof), outcome, checkpoint=note,
        )
        with self._store.snapshot():
            if isinstance(outcome, Presented):
                bundle = self._with_contents(bundle, parse_value(outcome.value), wanted.aux)
            if wanted.history:
                bundle = self._with_history(bundle, lists, wanted, max(published_size, state.input_size))
            return bundle if wanted.start else replace(bundle, pending=self._pending(actor_id, state.input_size))

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

    def _histories(self, index: bytes) -> list[tuple[bytes, ...]]:
        """The leaves of the history at *index*, then for each MOVED_IN among them those of the old name, if kept."""
        own = self._map.history(index, MAX_HISTORY + 1)
        lists, total = [own], len(own)
        for leaf in own:
            _role, leaf_index, moved_from = parse_history_leaf(leaf)
            if moved_from is not None and total <= MAX_HISTORY:
                lists.append(self._old_history(leaf_index, *moved_from))
                total += len(lists[-1])
        if total > MAX_HISTORY:
            raise MessageRejected("too_large", f"more than {MAX_HISTORY} messages are behind this answer")
        return lists

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
        self, bundle: Bundle, lists: Sequence[Sequence[bytes]], wanted: Wanted, published_size: int
    ) -> Bundle:
        """*bundle* with the page of *lists*, the leaves of its own and of old histories, that is wanted."""
        total = sum(map(len, lists))
        if wanted.start and wanted.start >= total:
            raise MessageRejected("bad_request", f"this history has {total} messages")
        parts = cut(list(map(len, lists)), wanted.start, PAGE_ITEMS if wanted.full else PAGE_LEAVES)
        input_size, left = parse_leaf(bundle.output_leaf).input_size, PAGE_BYTES
        items: list[tuple[HistoryItem, ...]] = []
        for leaves, part in zip(lists, parts, strict=True):
            taken: list[HistoryItem] = []
            for leaf in leaves[part.start : part.stop]:
                if left <= 0:
                    break
                taken.append(self._item(leaf, wanted.full, input_size, published_size))
                left -= _weight(taken[-1])
            items.append(tuple(taken))
        count = sum(map(len, items))
        page = None if count == total else Page(wanted.start, total)
        return replace(bundle, history=items[0], old_histories=tuple(items[1:]), page=page)

    def _item(self, leaf: bytes, full: bool, size: int, published_size: int) -> HistoryItem:
        if not full:
            return HistoryItem(leaf, b"", b"", {}, ())
        leaf_index = parse_history_leaf(leaf)[1]
        record, path = self._record(leaf_index), self._proofs.inclusion(leaf_index, size, published_size)
        return HistoryItem(leaf, record.entry, record.preimage, dict(record.plain), tuple(path))

    def _pending(self, actor_id: str, input_size: int) -> tuple[PendingItem, ...]:
        """What waits for the next map. A revocation is never crowded out by anything else: it protects somebody."""
        touches = self._store.touches(actor_id, input_size - 1, PENDING_SCAN)
        taken: dict[int, PendingItem] = {}
        left = MAX_PENDING_BYTES
        for leaf_index in _urgent_first((touch.leaf_index, touch.action) for touch in touches):
            record = self._record(leaf_index)
            item = PendingItem(leaf_index, record.entry, record.preimage, dict(record.plain))
            size = len(encode_pending(item))
            if size <= left and len(taken) < MAX_PENDING:
                taken[leaf_index] = item
                left -= size
        return tuple(taken[leaf_index] for leaf_index in sorted(taken))


class _Output:
    """The output log's leaves, for LogNodes."""

    def __init__(self, map_store: MapStore, size: int) -> None:
        self._map = map_store
        self.size = size

    def state(self) -> _Output:
        return self

    def leaf_hashes(self, start: int, end: int) -> Sequence[bytes]:
        return self._map.output_hashes(start, end)


def _urgent_first(touches: Iterable[tuple[int, str]]) -> list[int]:
    """Leaf indexes, each once: those of revocations, then the others, each in the order of the log."""
    found = dict(touches)
    return sorted(found, key=lambda leaf_index: (found[leaf_index] not in _REVOKING, leaf_index))


def _weight(item: HistoryItem) -> int:
    return len(item.entry) + len(item.preimage) + sum(len(text or "") for text in item.plain.values())


def _bare(proof: PrefixProof) -> PrefixProof:
    """As it is after its encoding was read: an inclusion's leaf is what the asker computes."""
    (search,) = proof.searches
    return replace(proof, searches=(replace(search, leaf=None),)) if search.kind == Kind.INCLUSION else proof
