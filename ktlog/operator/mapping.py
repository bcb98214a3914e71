"""The map's cycle: one output leaf at a time, and nothing is shown before its cosigners have seen it.

A leaf goes through these steps, and a process that dies at any of them goes on with the same leaf:

1. a draft, read in one snapshot of the log's store; its entries are then published (publisher.py);
2. inside one open transaction of the map's store, which readers do not see: the new map root, and with it the
   leaf, durable in ``DIR/map-pending`` before it is hashed for anybody;
3. the output log's tiles; its head, recorded before it is signed; the signatures; the cosignatures; and beside all
   that a file of what the leaf changes (mapupdates.py);
4. the quorum: leaf and signed checkpoint are committed together with the map they speak of. Without it the
   transaction is undone, and the same leaf is offered again later.

So what the map's store holds is what was published, or is published by the next process; never two leaves for one
index, and never a value that the cosigned root does not commit to.

Spec: directory map §6; design decisions 7 and 14.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from ktlog.config import Settings
from ktlog.durable import reach
from ktlog.errors import EncodingError, Invalid, KtlogError, StoreError
from ktlog.keymap.output import (
    OutputLeaf,
    format_leaf,
    hash_config,
    map_origin,
    parse_leaf,
)
from ktlog.operator.fence import FencedTiles, epoch_fence, is_replaceable
from ktlog.operator.freshness import Fresh
from ktlog.operator.head import Heads, HeadSigner, SignedHead
from ktlog.operator.mapcheck import check_map
from ktlog.operator.mappending import Pending, load_pending, write_pending
from ktlog.operator.mapper import Draft, Mapper
from ktlog.operator.mapupdates import MapUpdates
from ktlog.operator.nodes import LogNodes, write_tree
from ktlog.operator.shred import try_scrub
from ktlog.operator.stores import (
    map_config,
    map_pending,
    map_signed_head,
    map_sweep,
    map_updates_swept,
    open_map,
    open_map_tiles,
)
from ktlog.operator.witnessing import KnownHeads, check_confirmed, collect_cosignatures, confirm_heads, peers_of
from ktlog.store.contracts import LogStore
from ktlog.store.mapcontract import MapState, MapStore
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Note, Signer, Vkey, format_note, open_note
from ktlog.tlog.policy import Policy
from ktlog.tlog.tree import hash_leaf, prove_consistency, root_hash
from ktlog.wire.fetch import Fetcher
from ktlog.words import count_entries, some

# In commit order. A test kills the process at each.
HOOKS = (
    "mapping.pending",
    "mapping.tiles_written",
    "mapping.head_offered",
    "mapping.signed",
    "mapping.cosigned",
    "mapping.committed",
    "mapping.published",
    "mapping.finished",
)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 16.0
SOON = 60
"""How often in a row the cosigners are asked again after the shortest pause, while one of them says "not yet"."""
SCRUB_PAUSE_SECONDS = 60.0
CHECK_ALL = 256
"""Leaves up to which a start checks each of them, and a sample beyond: it should take no longer for a large map."""

log = logging.getLogger("ktlog.map")


class _OutputTree:
    """The output log as it is stored, and the leaf that the open transaction adds to it."""

    def __init__(self, reader: MapStore, size: int, news: tuple[bytes, ...] = ()) -> None:
        self._reader = reader
        self._stored = size
        self._news = news
        self.size = size + len(news)

    def state(self) -> _OutputTree:
        return self

    def leaf_hashes(self, start: int, end: int) -> Sequence[bytes]:
        stored = self._reader.output_hashes(start, min(end, self._stored)) if start < self._stored else ()
        return (*stored, *(hash_leaf(leaf) for leaf in self._new(start, end)))

    def entries(self, start: int, end: int) -> Sequence[bytes]:
        stored = self._reader.output_leaves(start, min(end, self._stored)) if start < self._stored else ()
        return (*stored, *self._new(start, end))

    def _new(self, start: int, end: int) -> Sequence[bytes]:
        return self._news[max(0, start - self._stored) : max(0, end - self._stored)]


class MapCycle:
    """Keeps the map of one log and publishes its output log. One thread but for what says otherwise.

    Args:
        store: the log's, for reading. signers: who signs heads of the output log, or the keys themselves.
        policy: the whole publish policy. retired: keys that signed its heads before.
        epoch: the log's, as this process claimed it; None for one that nobody else could claim.
        now: Unix seconds. ticks: seconds of a clock that never goes back.

    Raises:
        StoreError: the map, the log and what was signed contradict each other.
    """

    def __init__(
        self, *, settings: Settings, store: LogStore, signers: HeadSigner | tuple[Signer, ...], policy: Policy,
        fetcher: Fetcher, now: Callable[[], int], ticks: Callable[[], float] = time.monotonic,
        retired: tuple[Vkey, ...] = (), epoch: int | None = None,
    ) -> None:
        self._settings = settings
        self._heads = Heads(signers, map_signed_head(settings, epoch=epoch), now)
        self._vkeys = tuple(dict.fromkeys((*self._heads.vkeys(), *retired)))
        self._pending_document = map_pending(settings, epoch=epoch)
        self._store = store
        self._policy = policy
        self._peers = peers_of(policy)
        self._fetcher = fetcher
        self._now = now
        self.fresh = Fresh.beginning([vkey for peer in self._peers for vkey in peer.vkeys], now())
        self._ticks = ticks
        self._pool = ThreadPoolExecutor(max(1, len(self._peers)), "map-cosigner")
        self._origin = map_origin(settings.origin)
        config = map_config(settings)
        self._config = hash_config(config)
        self._map = open_map(settings, epoch=epoch)
        self._reader = open_map(settings, read_only=True)
        self._tiles = open_map_tiles(settings)
        self._keep_shown: Callable[[], None] = lambda: None
        if epoch is not None:
            fenced = FencedTiles(self._tiles, epoch_fence(store, epoch), replaceable=is_replaceable(settings))
            self._tiles, self._keep_shown = fenced, fenced.keep_shown
        self._sweep = map_sweep(settings, self._tiles)
        self._updates = MapUpdates(self._reader, self._tiles, map_updates_swept(settings), now)
        self._mapper = Mapper(store, self._reader)
        self._state = self._map.state()
        self._last: OutputLeaf | None = None
        self._last_tick = float("-inf")
        self._next_try = self._next_scrub = float("-inf")
        self._pause = FIRST_PAUSE_SECONDS
        self._soon = SOON
        self._later = False
        self._compared = False
        self._announce = True
        self._own_note: bytes | None = None
        self._tiles_size = 0
        self._pending: Pending | None = None
        self.hurry = threading.Event()
        """Set by any thread that waits for the next leaf."""
        self._load()

    def close(self) -> None:
        self._updates.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self._map.close()
        self._reader.close()

    # For other threads

    @property
    def input_size(self) -> int:
        """How many entries the published map covers."""
        return self._state.input_size

    @property
    def erasures(self) -> int:
        """How many erasures the published map commits to."""
        return self._state.erasures

    def covers(self, input_size: int, erasures: int) -> bool:
        """Whether the published map is of exactly that many entries and erasures, and no leaf of the same waits.

        Of a leaf that waits while somebody is erased, a verifier that begins then could never derive the map.
        """
        state = self._state
        return (
            self._pending is None and state.output.size > 1
            and (state.input_size, state.erasures) == (input_size, erasures)
        )

    def scrub_due(self) -> bool:
        return self._reader.scrub_due()

    # At the start

    def _load(self) -> None:
        state = self._state
        self._check_head(state)
        self._load_pending(state)
        if state.output.size > 1:
            self._load_published(state)

    def _check_head(self, state: MapState) -> None:
        head = self._heads.last()
        size = state.output.size
        if (head.size if head else 1) < size:
            raise StoreError(
                "SignedHeadLost", f"the map's log has {some(size, 'leaf', 'leaves')}; {self._heads} does not know it",
                hint="The file was lost or restored from an older copy. Restore the newest one before serving.",
            )
        if head is not None and head.size > size + 1:
            was = some(head.size, "leaf", "leaves")
            raise _restored(f"the map's log was signed at {was}; {self._settings.map_database} has {size:,}")
        if head is not None and head.size == size and head.root != state.output.root():
            raise _restored("the map's log has another root than the one that was signed")

    def _load_pending(self, state: MapState) -> None:
        pending = load_pending(self._pending_document)
        head = self._heads.last()
        size = state.output.size
        if pending is not None and pending.leaf_index > size:
            has = some(size, "leaf", "leaves")
            raise _restored(f"a leaf {pending.leaf_index} of the map's log is pending; the map has {has}")
        if pending is not None and pending.leaf_index < size:
            self._pending_document.remove()
            pending = None
        if head is not None and head.size > size and pending is None:
            raise StoreError(
                "PendingLost", f"{self._pending_document} is gone, and its leaf was signed",
                hint="Restore it: another leaf in its place would be a fork.",
            )
        self._pending = pending

    def _load_published(self, state: MapState) -> None:
        """The newest leaf, its checkpoint and the log's store must agree."""
        size = state.output.size
        try:
            leaf = parse_leaf(self._map.output_leaves(size - 1, size)[0])
            note, checkpoint = parse_signed_checkpoint(self._map.checkpoint(size) or b"")
            own = open_note(note, self._vkeys)
        except (EncodingError, Invalid) as error:
            raise StoreError("Corrupt", f"{self._settings.map_database}: its newest leaf: {error}") from None
        if not own or checkpoint != Checkpoint(self._origin, size, state.output.root()):
            raise StoreError("Corrupt", f"{self._settings.map_database}: its newest checkpoint is not of this log")
        if (leaf.input_size, leaf.erasures, leaf.map_root) != (state.input_size, state.erasures, state.root):
            raise StoreError("Corrupt", f"{self._settings.map_database}: it is not what its newest leaf says")
        self._check_log(leaf)
        check_map(self._reader, self._store, os.urandom if state.leaves > CHECK_ALL else None)
        self._last = leaf
        self._own_note = format_note(Note(note.text, tuple(one.line for one in own)))
        published = self._tiles.checkpoint()
        # The file is a copy. A process may have died before it made it.
        self._tiles_size = size if published is not None and published == self._map.checkpoint(size) else 0
        if not self._tiles_size:
            self._write_tiles(_OutputTree(self._reader, size), state.output.root())
            self._tiles.publish_checkpoint(format_note(note))

    def _check_log(self, leaf: OutputLeaf) -> None:
        """The log must still have what the published map is derived from."""
        log_size, erasures = self._store.state().size, self._store.erasure_count()
        if log_size < leaf.input_size or self._store.root_after(leaf.input_size) != leaf.input_root:
            raise _restored(
                f"the published map covers {count_entries(leaf.input_size)}; the log has {log_size:,}, or other ones"
            )
        if erasures < leaf.erasures or self._mapper.erasures_root(leaf.erasures) != leaf.erasures_root:
            raise StoreError(
                "ErasureUndone",
                f"the published map commits to {some(leaf.erasures, 'erasure')}; the store has {erasures:,}",
                hint="The store was restored from a copy made before an erasure. Restore a newer one.",
            )

    # The cycle

    def draft_if_due(self) -> Draft | None:
        """What the next leaf is to say, if it is time for one and none is pending."""
        if self._pending is not None or self._ticks() < self._next_try or not self._is_due():
            return None
        return self._mapper.draft(self._state)

    def _is_due(self) -> bool:
        state = self._state
        if self._last is None or self._store.erasure_count() > state.erasures:
            return True
        heartbeat = self._settings.heartbeat_seconds
        if self._now() - self._last.time >= max(1, heartbeat - min(60, heartbeat // 2)):
            return True
        if self._store.state().size == state.input_size:
            return False
        waited = self._ticks() - self._last_tick
        return self.hurry.is_set() or waited >= self._settings.map_interval_ms / 1000

    def tend(self, draft: Draft | None) -> None:
        """Publish the pending leaf, or one for *draft*, whose entries are published. Too few cosigners: later.

        Raises:
            StoreError: the process must end.
        """
        self._scrub_if_due()
        self._keep_shown()
        if (draft is None and self._pending is None) or self._ticks() < self._next_try:
            return
        try:
            self._compare()
            self._publish(draft)
            self._pause, self._soon = FIRST_PAUSE_SECONDS, SOON
        except KtlogError as error:
            # As in publisher.py: only the witnesses and the clock get better by themselves.
            if isinstance(error, StoreError) and error.name != "ClockWentBack":
                raise
            log.error("the map is not published: %s", error.diagnostics())
            self._announce = True
            if self._later and self._soon:
                self._soon -= 1
                self._pause = FIRST_PAUSE_SECONDS
            self._next_try = self._ticks() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)

    def _compare(self) -> None:
        """Once, before anything is signed: have the cosigners seen more of the output log than this disk knows?"""
        if self._compared:
            return
        head = self._heads.last()
        heads = KnownHeads(
            self._origin, self._vkeys, self._own_note,
            self._state.output.size if self._own_note else 0, 0 if head is None else head.size,
        )
        confirmed = confirm_heads(self._fetcher, self._peers, heads, self._pool)
        check_confirmed(self._policy, confirmed, "cosigners", "the map")
        self._compared = True

    def _publish(self, draft: Draft | None) -> None:
        if self._pending is not None:
            draft = self._pending.draft
        elif draft is not None and draft.erasures < self._store.erasure_count():
            draft = None  # a heartbeat, overtaken by an erasure: the leaf of that comes next
        if draft is None:
            return
        note: list[bytes] = []

        def seal(after: MapState, leaf: bytes) -> bytes:
            self._updates.begin(self._state, draft.changes)
            note.append(self._seal(after, leaf))
            self._updates.finish()
            return note[0]

        after = self._map.update(
            draft.changes, expected=self._state, input_size=draft.input_size, erasures=draft.erasures,
            make_leaf=lambda root: self._make_leaf(draft, root), seal=seal,
        )
        reach("mapping.committed")
        self._tiles.publish_checkpoint(note[0])
        reach("mapping.published")
        self._sweep.published(after.output.size)
        self._updates.sweep(after.output.size)
        self._finish(after)

    def _make_leaf(self, draft: Draft, root: bytes) -> bytes:
        """The leaf for *draft*, made once: a retry finds it pending."""
        if self._pending is None:
            last = 0 if self._last is None else self._last.time
            leaf = format_leaf(OutputLeaf(
                self._config, max(self._now(), last), draft.input_size, draft.input_root, draft.erasures,
                draft.erasures_root, root,
            ))
            pending = Pending(self._state.output.size, leaf, draft)
            write_pending(self._pending_document, pending)
            self._pending = pending
            reach("mapping.pending")
        elif parse_leaf(self._pending.leaf).map_root != root:
            raise StoreError("Corrupt", "the pending changes lead to another map root than the pending leaf says")
        return self._pending.leaf

    def _seal(self, after: MapState, leaf: bytes) -> bytes:
        """The checkpoint that ends with *leaf*, with its quorum.

        Raises:
            PolicyUnmet: ``TooFewWitnesses``, ``TooFewVerifiers``. StoreError: those of signing.
        """
        size, root = after.output.size, after.output.root()
        tree = _OutputTree(self._reader, size - 1, (leaf,))
        self._write_tiles(tree, root)
        reach("mapping.tiles_written")
        nodes = LogNodes(tree, self._tiles.read, size)

        def prove(old: int, new: int) -> list[bytes]:
            return prove_consistency(old, new, nodes)

        self._heads.offer(
            SignedHead(size, root, self._now()),
            lambda earlier: root if earlier == size else root_hash(earlier, nodes),
        )
        reach("mapping.head_offered")
        text = format_checkpoint(Checkpoint(self._origin, size, root))
        lines = self._heads.sign(text, size, prove)
        reach("mapping.signed")
        cosigned = collect_cosignatures(
            self._fetcher, self._peers, format_note(Note(text, lines)), text, size,
            prove, self._pool, self._now,
        )
        self._later = cosigned.later
        for url, failure in cosigned.failures.items():
            log.warning("no cosignature for the map from %s: %s", url, failure)
        reach("mapping.cosigned")
        self._policy.count(cosigned.verified, self._now())
        self.fresh = self.fresh.after(cosigned.verified, self._now())
        if self._announce:
            names = sorted({verified.vkey.name for verified in cosigned.verified})
            log.info("the map is published: %d leaves, cosigned by %s", size, ", ".join(names))
            self._announce = False
        self._own_note = format_note(Note(text, lines))
        return format_note(Note(text, lines + tuple(verified.line for verified in cosigned.verified)))

    def _finish(self, after: MapState) -> None:
        self._pending_document.remove()
        reach("mapping.finished")
        if self._pending is not None:
            self._last = parse_leaf(self._pending.leaf)
        self._pending = None
        self._next_scrub = self._last_tick = self._ticks()
        self._scrub_if_due()
        self._map.settle()
        self.hurry.clear()
        # Last: whoever waits for this may rely on all of the above.
        self._state = after

    def _scrub_if_due(self) -> None:
        if self._ticks() < self._next_scrub or not self._map.scrub_due():
            return
        self._next_scrub = self._ticks() + SCRUB_PAUSE_SECONDS
        try_scrub(self._map)

    def _write_tiles(self, tree: _OutputTree, root: bytes) -> None:
        if tree.size != self._tiles_size:
            write_tree(self._tiles, tree, tree.entries, self._tiles_size, tree.size, root)
            self._tiles_size = tree.size


def _restored(what: str) -> StoreError:
    return StoreError(
        "MapRestored", what,
        hint="A file looks restored from an older copy. Signing on would fork: restore the newest.",
    )
