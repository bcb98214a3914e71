"""Publish what is sequenced: tiles first, then the head, then cosignatures, the checkpoint last.

The order is the safety argument. Tiles are immutable and derive from durable entries, so a crash
leaves only files that the next run writes again with the same bytes. The head is recorded before
it is signed (head.py). The checkpoint replaces the old one only when the log's own publish policy
is satisfied, so nobody is ever shown a head that the witnesses did not see. (Design decision 14.)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ktlog.config import Settings
from ktlog.durable import reach
from ktlog.errors import KtlogError, StoreError
from ktlog.operator.head import SignedHead, check_successor, load_signed_head, record_signed_head
from ktlog.operator.nodes import LogNodes
from ktlog.operator.witnessing import collect_cosignatures, peers_of
from ktlog.store.contracts import LogStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Note, Signer, Verified, format_note, open_note
from ktlog.tlog.policy import Policy
from ktlog.tlog.tiles import (
    TILE_WIDTH,
    bundles_between,
    entry_bundle_path,
    format_bundle,
    tile_nodes,
    tile_path,
    tiles_between,
)
from ktlog.tlog.tree import hash_leaf, prove_consistency, root_hash
from ktlog.wire.fetch import Fetcher

# In commit order. A test kills the process at each.
HOOKS = (
    "publisher.tiles_written",
    "publisher.head_recorded",
    "publisher.signed",
    "publisher.cosigned",
    "publisher.published",
)

log = logging.getLogger("ktlog.publisher")


class Publisher:
    """Publishes one log. Runs in the sequencer's process, beside the write connection's thread."""

    def __init__(
        self, *, settings: Settings, store: LogStore, tiles: TileFiles, signers: tuple[Signer, ...],
        policy: Policy, fetcher: Fetcher, now: Callable[[], int],
    ) -> None:
        self._settings = settings
        self._store = store
        self._tiles = tiles
        self._signers = signers
        self._policy = policy
        self._peers = peers_of(policy)
        self._fetcher = fetcher
        self._now = now
        self._pool = ThreadPoolExecutor(max(1, len(self._peers)), "witness")
        self._published_time = 0
        self._tiles_size = 0
        self.published_size = 0
        self._load_published()

    def _load_published(self) -> None:
        """Start from the checkpoint on disk; refuse a store that does not contain it."""
        raw = self._tiles.checkpoint()
        if raw is None:
            return
        note, checkpoint = parse_signed_checkpoint(raw)
        open_note(note, [signer.vkey for signer in self._signers])
        head = load_signed_head(self._settings.signed_head)
        if head is None or head.size < checkpoint.size:
            raise StoreError(
                "SignedHeadLost",
                f"a checkpoint of size {checkpoint.size} is published, but {self._settings.signed_head} does not"
                " know of it",
                hint="The file was lost or restored from an older copy. Restore the newest one before serving.",
            )
        self._check_tree(checkpoint.size, checkpoint.root)
        self._tiles_size = self.published_size = checkpoint.size

    def _check_tree(self, size: int, root: bytes) -> None:
        have = self._store.state().size
        if have < size or self._store.root_after(size) != root:
            raise StoreError(
                "StoreBehindCheckpoint",
                f"the published checkpoint has {size} entries; the store has {have}, or other ones",
                hint="The store looks restored from an older copy. Serving it would fork the log.",
            )

    def run(self, stop: threading.Event) -> None:
        """Publish until *stop* is set; what fails is logged and tried again."""
        interval = self._settings.checkpoint_interval_ms / 1000
        while not stop.wait(interval):
            try:
                self.publish_if_due()
            except KtlogError as error:
                # Nothing half-done is visible: the next round starts from durable state.
                log.error("not published: %s", error.diagnostics())
        self._pool.shutdown(wait=False, cancel_futures=True)

    def publish_if_due(self) -> bool:
        """Publish when there is something new, or when the cosignatures grow old."""
        size = self._store.state().size
        fresh = self._now() - self._published_time < self._settings.heartbeat_seconds
        if size == self.published_size and fresh:
            return False
        return self.publish(size)

    def publish(self, size: int) -> bool:
        """Publish the tree of *size* entries; False when too few witnesses cosigned.

        Raises:
            StoreError: the store and what was signed before contradict each other.
        """
        root = self._store.root_after(size)
        self._write_tiles(size, root)
        reach("publisher.tiles_written")
        now = self._now()
        head = SignedHead(size, root, now)
        check_successor(load_signed_head(self._settings.signed_head), head, self._store.root_after)
        record_signed_head(self._settings.signed_head, head)
        reach("publisher.head_recorded")
        text = format_checkpoint(Checkpoint(self._settings.origin, size, root))
        lines = tuple(signer.sign(text, now) for signer in self._signers)
        reach("publisher.signed")
        cosigned = collect_cosignatures(
            self._fetcher, self._peers, format_note(Note(text, lines)), text, size, self._prove, self._pool
        )
        for url, failure in cosigned.failures.items():
            log.warning("no cosignature from %s: %s", url, failure)
        reach("publisher.cosigned")
        if not self._policy.satisfied([v.vkey for v in cosigned.verified]):
            have, need = self._policy.shortfall([v.vkey for v in cosigned.verified])
            log.error("checkpoint of size %d not published: %d cosigners, the policy needs %d", size, have, need)
            return False
        self._publish_note(text, lines, cosigned.verified, size)
        return True

    def _publish_note(
        self, text: bytes, lines: tuple, verified: tuple[Verified, ...], size: int
    ) -> None:
        note = Note(text, lines + tuple(v.line for v in verified))
        self._tiles.publish_checkpoint(format_note(note))
        reach("publisher.published")
        self.published_size = size
        self._published_time = self._now()

    def _write_tiles(self, size: int, root: bytes) -> None:
        """Write every tile and bundle that a tree of *size* has beyond the last one written.

        Before anything is signed, the entries are read back and hashed again: a bit that flipped
        on its way to disk must stop the log here, not in an auditor's report (requirement R1).
        """
        if size == self._tiles_size:
            return
        start = self._tiles_size
        entries = self._store.entries(start - start % TILE_WIDTH, size)
        first = start - start % TILE_WIDTH
        if [hash_leaf(entry) for entry in entries] != list(self._store.leaf_hashes(first, size)):
            raise StoreError("CorruptEntry", f"an entry in [{first}, {size}) does not hash to its stored leaf")
        nodes = LogNodes(self._store, self._tiles.read, self._tiles_size)
        if root_hash(size, nodes) != root:
            raise StoreError("CorruptTree", f"the leaves up to {size} do not hash to the stored root")
        files: dict[str, bytes] = {}
        for bundle in bundles_between(start, size):
            at = bundle.number * TILE_WIDTH - first
            files[entry_bundle_path(bundle.number, bundle.width)] = format_bundle(entries[at : at + bundle.width])
        for tile in tiles_between(start, size):
            files[tile_path(tile.level, tile.number, tile.width)] = b"".join(nodes(tile_nodes(tile)))
        self._tiles.write_tiles(files)
        self._tiles_size = size

    def _prove(self, old_size: int, size: int) -> list[bytes]:
        return prove_consistency(old_size, size, LogNodes(self._store, self._tiles.read, self._tiles_size))
