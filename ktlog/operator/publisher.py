"""Publish what is sequenced: tiles first, then the head, then cosignatures, the checkpoint last.

The order is the safety argument. Tiles are immutable and derive from durable entries, so a crash
leaves only files that the next run writes again with the same bytes. The head is recorded before
it is signed, by whoever holds the keys (head.py). The checkpoint replaces the old one only when the
log's own publish policy is satisfied, so nobody is ever shown a head that the witnesses did not see.
(Design decision 14.)
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from ktlog.config import Settings
from ktlog.durable import reach
from ktlog.errors import EncodingError, Invalid, KtlogError, PolicyUnmet, StoreError
from ktlog.operator.fence import FencedTiles, epoch_fence, is_replaceable
from ktlog.operator.freshness import Fresh
from ktlog.operator.head import Heads, HeadSigner, SignedHead
from ktlog.operator.mapping import MapCycle
from ktlog.operator.nodes import LogNodes, write_tree
from ktlog.operator.stores import log_sweep, signed_head
from ktlog.operator.witnessing import KnownHeads, check_confirmed, collect_cosignatures, confirm_heads, peers_of
from ktlog.store.contracts import LogStore, TileStore
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Note, Signer, Verified, Vkey, format_note, open_note
from ktlog.tlog.policy import Policy
from ktlog.tlog.tree import prove_consistency
from ktlog.wire.fetch import Fetcher
from ktlog.words import count_entries

# In commit order. A test kills the process at each.
HOOKS = (
    "publisher.tiles_written",
    "publisher.head_offered",
    "publisher.signed",
    "publisher.cosigned",
    "publisher.published",
)

LONGEST_PAUSES = 16

log = logging.getLogger("ktlog.publisher")


class Publisher:
    """Publishes one log. Runs in the sequencer's process, beside the write connection's thread.

    Args:
        signers: who signs its heads, or the keys themselves.
        retired: keys that signed its heads before, and may have signed the one that is published.
        epoch: the log's, as this process claimed it; None for one that nobody else could claim.
    """

    def __init__(
        self, *, settings: Settings, store: LogStore, tiles: TileStore,
        signers: HeadSigner | tuple[Signer, ...], policy: Policy, fetcher: Fetcher, now: Callable[[], int],
        mapping: MapCycle | None = None, retired: tuple[Vkey, ...] = (), epoch: int | None = None,
    ) -> None:
        self._settings = settings
        self._heads = Heads(signers, signed_head(settings, epoch=epoch), now)
        self._vkeys = tuple(dict.fromkeys((*self._heads.vkeys(), *retired)))
        self._store = store
        self._tiles = tiles
        self._keep_shown: Callable[[], None] = lambda: None
        if epoch is not None:
            fenced = FencedTiles(tiles, epoch_fence(store, epoch), replaceable=is_replaceable(settings))
            self._tiles, self._keep_shown = fenced, fenced.keep_shown
        self._sweep = log_sweep(settings, self._tiles)
        self._policy = policy
        self._peers = peers_of(policy)
        self._fetcher = fetcher
        self._now = now
        self._mapping = mapping
        self._pool = ThreadPoolExecutor(max(1, len(self._peers)), "witness")
        self._published_time = 0
        self.fresh = Fresh.beginning([vkey for peer in self._peers for vkey in peer.vkeys], now())
        # Said once at the start, and again when publishing works after it did not.
        self._announce = True
        self._tiles_size = 0
        self._published_note: bytes | None = None
        self.published_size = 0
        self._unseen = False  # whether the witnesses were asked, since the last publication, if they have seen more
        self.compared = threading.Event()
        """Set once the witnesses have confirmed that this store is no older copy of the log."""
        self._load_published()

    @property
    def integrated_size(self) -> int:
        """How many entries the published tiles cover, whether or not a published checkpoint does."""
        return self._tiles_size

    def _load_published(self) -> None:
        """Start from the head and the checkpoint on disk; refuse a store that does not contain them."""
        head = self._heads.last()
        if head is not None:
            self._check_tree("signed head", head.size, head.root)
        raw = self._tiles.checkpoint()
        if raw is None:
            return
        checkpoint = self._open_published(raw)
        if head is None or head.size < checkpoint.size:
            raise StoreError(
                "SignedHeadLost",
                f"a checkpoint of size {checkpoint.size} is published, but {self._heads} does not"
                " know of it",
                hint="The file was lost or restored from an older copy. Restore the newest one before serving.",
            )
        self._check_tree("published checkpoint", checkpoint.size, checkpoint.root)
        self._tiles_size = self.published_size = checkpoint.size

    def compare(self) -> None:
        """Before this process signs anything: ask the witnesses whether they have seen more than it has.

        Raises:
            PolicyUnmet: ``NotCompared``: too few witnesses answered, or they have.
        """
        head = self._heads.last()
        heads = KnownHeads(
            self._settings.origin, self._vkeys, self._published_note,
            self.published_size, 0 if head is None else head.size,
        )
        confirmed = confirm_heads(self._fetcher, self._peers, heads, self._pool)
        check_confirmed(self._policy, confirmed, "witnesses", "the log")
        self._unseen = True
        self.compared.set()

    def _open_published(self, raw: bytes) -> Checkpoint:
        try:
            note, checkpoint = parse_signed_checkpoint(raw)
            known = open_note(note, self._vkeys)
        except (EncodingError, Invalid) as error:
            raise StoreError(
                "BadCheckpoint", f"the published checkpoint is damaged: {error}",
                hint="Put back the file that was published; any witness or mirror has one.",
            ) from None
        if not known or checkpoint.origin != self._settings.origin:
            raise StoreError(
                "BadCheckpoint", f"the published checkpoint of {checkpoint.origin} was not signed by this log's keys",
                hint="Keys and tiles come from two different logs. Signing on would fork one of them.",
            )
        self._published_note = format_note(Note(note.text, tuple(verified.line for verified in known)))
        return checkpoint

    def _check_tree(self, what: str, size: int, root: bytes) -> None:
        have = self._store.state().size
        if have < size or self._store.root_after(size) != root:
            raise StoreError(
                "StoreBehindCheckpoint", f"the {what} has {count_entries(size)}; the store has {have:,}, or other ones",
                hint="The store looks restored from an older copy. Serving it would fork the log.",
            )

    def run(self, stop: threading.Event) -> None:
        """Publish until *stop* is set. Too few witnesses are logged and asked again, ever less often.

        Raises:
            StoreError: the process must end; what is in memory or on disk cannot be trusted.
        """
        interval = self._settings.checkpoint_interval_ms / 1000
        pause = 0.0
        while not stop.wait(pause):
            try:
                self.publish_if_due()
                pause = interval
            except KtlogError as error:
                # A disk that failed may have lost what it said was synced (requirement R12), and a store
                # that contradicts what was signed stays so: only time and the witnesses get better.
                if isinstance(error, StoreError) and error.name != "ClockWentBack":
                    raise
                log.error("not published: %s", error.diagnostics())
                self._announce = True
                pause = min(max(2 * pause, interval), LONGEST_PAUSES * interval)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def publish_if_due(self) -> bool:
        """Publish when there is something new, or when the cosignatures grow old; then the map of it."""
        if not self.compared.is_set():
            self.compare()
        if self._mapping is None:
            return self._publish_due(self._store.state().size)
        # What the map is to say is read before its entries are published, and signed after: no map is ahead of them.
        draft = self._mapping.draft_if_due()
        published = self._publish_due(self._store.state().size if draft is None else draft.input_size)
        self._mapping.tend(draft)
        return published

    def _publish_due(self, size: int) -> bool:
        self._keep_shown()
        fresh = self._now() - self._published_time < self._settings.heartbeat_seconds
        if size == self.published_size and fresh:
            return False
        if size > self.published_size and not self._unseen:
            # A copy of this directory may be running beside it: whoever of the two comes second is to notice before it
            # signs another tree. (What is left is a race of two that ask at once; the witnesses cosign one of them.)
            self.compare()
        self.publish(size)
        self._unseen = False
        return True

    def publish(self, size: int) -> None:
        """Publish the tree of *size* entries.

        Raises:
            PolicyUnmet: too few witnesses cosigned; nothing was published.
            StoreError: the store and what was signed before contradict each other.
        """
        root = self._store.root_after(size)
        self._write_tiles(size, root)
        reach("publisher.tiles_written")
        self._heads.offer(SignedHead(size, root, self._now()), self._store.root_after)
        reach("publisher.head_offered")
        text = format_checkpoint(Checkpoint(self._settings.origin, size, root))
        lines = self._heads.sign(text, size, self._prove)
        reach("publisher.signed")
        cosigned = collect_cosignatures(
            self._fetcher, self._peers, format_note(Note(text, lines)), text, size, self._prove, self._pool, self._now
        )
        for url, failure in cosigned.failures.items():
            log.warning("no cosignature from %s: %s", url, failure)
        reach("publisher.cosigned")
        vkeys = [verified.vkey for verified in cosigned.verified]
        if not self._policy.satisfied(vkeys):
            have, need = self._policy.shortfall(vkeys)
            raise PolicyUnmet(
                "TooFewWitnesses", f"of the cosigners for size {size}, {have} count and the policy needs {need}",
                have=have, need=need,
            )
        self._publish_note(text, lines, cosigned.verified, size)
        self.fresh = self.fresh.after(cosigned.verified, self._published_time)
        self._published_note = format_note(Note(text, lines))

    def _publish_note(
        self, text: bytes, lines: tuple, verified: tuple[Verified, ...], size: int
    ) -> None:
        note = Note(text, lines + tuple(v.line for v in verified))
        self._tiles.publish_checkpoint(format_note(note))
        reach("publisher.published")
        self._sweep.published(size)
        if self._announce:
            names = sorted({v.vkey.name for v in verified})
            log.info("published: %d entries, cosigned by %s", size, ", ".join(names))
            self._announce = False
        self.published_size = size
        self._published_time = self._now()

    def _write_tiles(self, size: int, root: bytes) -> None:
        """Write every tile and bundle that a tree of *size* has beyond the last one written."""
        if size == self._tiles_size:
            return
        write_tree(self._tiles, self._store, self._store.entries, self._tiles_size, size, root)
        self._tiles_size = size

    def _prove(self, old_size: int, size: int) -> list[bytes]:
        return prove_consistency(old_size, size, LogNodes(self._store, self._tiles.read, self._tiles_size))
