"""The engine alone: arbitrary bytes become entries, durably, through the same store, in batches as they form.

Nothing of a public key directory is in them, so that what Argon2id hides of the engine's cost can be seen. As in the
sequencer there is one writer; it takes what has queued up while the last batch was committed, computes the root after
every leaf and commits all in one transaction. Beside it tiles, bundles and a checkpoint of the log's own are published
every second; no witness is asked.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from hashlib import sha256

from ktlog.bench.names import ORIGIN, bytes_of
from ktlog.config import Settings
from ktlog.errors import Conflict, KtlogError, MessageRejected
from ktlog.operator.nodes import write_tree
from ktlog.operator.sequencer import BATCH_LIMIT
from ktlog.operator.stores import open_log, open_tiles
from ktlog.pkd.actors import Change
from ktlog.store.contracts import Batch, LogState, Record
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import ED25519, sign_checkpoint, signer_from_seed
from ktlog.tlog.tree import hash_leaf

ACTION = "Raw"
_NOTHING = Change((), ())
_signer = signer_from_seed(ORIGIN, ED25519, bytes_of("raw log"))
VKEY = str(_signer.vkey)
"""What the checkpoints of such a log are verified with."""

Asked = tuple[bytes, "asyncio.Future[int]"]


class Writer:
    """The one writer of a log of raw entries, and its publisher. Not thread-safe, but for :meth:`publish`.

    Args:
        settings: of stores that exist.

    Raises:
        StoreError: those of the stores.
    """

    def __init__(self, settings: Settings) -> None:
        self._store = open_log(settings)
        self._reader = open_log(settings, read_only=True)
        self.tiles = open_tiles(settings)
        self.batches = 0
        self.epoch = self._store.claim_epoch()
        self.state: LogState = self._store.state()
        raw = self.tiles.checkpoint()
        self.published_size = 0 if raw is None else parse_signed_checkpoint(raw)[1].size

    def close(self) -> None:
        self._store.close()
        self._reader.close()

    def commit(self, entries: Sequence[bytes]) -> list[int]:
        """Make *entries* durable; gives their indexes. The same bytes have one."""
        hashes = [sha256(entry).digest() for entry in entries]
        try:
            return self._commit(entries, hashes, {})
        except Conflict as error:
            if error.name != "Duplicate":
                raise
        known = {unique: index for unique in hashes if (index := self._store.seen(unique)) is not None}
        return self._commit(entries, hashes, known)

    def _commit(self, entries: Sequence[bytes], hashes: Sequence[bytes], known: dict[bytes, int]) -> list[int]:
        now, made, frontier = int(time.time()), [], self.state.frontier
        for entry, unique in zip(entries, hashes, strict=True):
            if unique in known:
                continue
            leaf_hash = hash_leaf(entry)
            index = known[unique] = frontier.size
            frontier = frontier.append(leaf_hash)
            made.append(Record(
                leaf_index=index, entry=entry, leaf_hash=leaf_hash, root=frontier.root(), preimage=b"", plain={},
                keys={}, salts={}, unique_hash=unique, action=ACTION, created=now, accepted=now,
            ))
        if made:
            after = replace(
                self.state, size=frontier.size, root=made[-1].root, frontier=frontier,
                greatest_time=max(self.state.greatest_time, now),
            )
            self._store.commit(Batch(self.state, tuple(made), after, (_NOTHING,) * len(made)))
            self.state = after
            self.batches += 1
        return [known[unique] for unique in hashes]

    def publish(self) -> None:
        """Tiles, bundles and a checkpoint of what is committed by now. Runs in a thread of its own."""
        size = self.state.size
        if size == self.published_size:
            return
        root = self._reader.root_after(size)
        write_tree(self.tiles, self._reader, self._reader.entries, self.published_size, size, root)
        self.tiles.publish_checkpoint(sign_checkpoint(Checkpoint(ORIGIN, size, root), [_signer], int(time.time())))
        self.published_size = size


class RawLog:
    """Takes entries in an event loop's thread; sequences and publishes in threads of its own.

    Args:
        settings: of stores that exist. queue_limit: entries that may wait.

    Raises:
        StoreError: those of the stores.
    """

    def __init__(self, settings: Settings, queue_limit: int = 4 * BATCH_LIMIT) -> None:
        self._loop = asyncio.get_running_loop()
        self.writer = Writer(settings)
        self._interval = settings.checkpoint_interval_ms / 1000
        self._limit = queue_limit
        self._waiting: list[Asked] = []
        self._wake = threading.Condition()
        self._stop = threading.Event()
        self._hurry = threading.Event()
        self.held = False
        """Publishes nothing while this is set."""
        self.failed: asyncio.Future[None] = self._loop.create_future()
        """Gets the error that ended a thread: nothing is taken from then on."""
        self._threads = [
            threading.Thread(target=self._run, args=(work,), name=f"raw-{work.__name__}")
            for work in (self._sequence, self._publish)
        ]
        for thread in self._threads:
            thread.start()

    def append(self, entry: bytes) -> asyncio.Future[int]:
        """The entry's index, once it is durable. The same bytes have one index.

        Raises:
            MessageRejected: ``overloaded``: too many wait already.
        """
        asked = self._loop.create_future()
        with self._wake:
            if len(self._waiting) >= self._limit or self._stop.is_set():
                raise MessageRejected("overloaded", "too many entries wait; try again in a second")
            self._waiting.append((entry, asked))
            self._wake.notify()
        return asked

    async def settled(self) -> None:
        """Publish all that is committed now, and wait for it; while nobody appends, that is the end of all work."""
        while self.writer.published_size < self.writer.state.size and not self.failed.done():
            self._hurry.set()
            await asyncio.sleep(0.005)

    async def close(self) -> None:
        """Commit what waits, publish it all, and close the stores."""
        self._stop.set()
        self._hurry.set()
        with self._wake:
            self._wake.notify()
        for thread in self._threads:
            await asyncio.to_thread(thread.join)
        self.writer.close()
        if self.failed.done():
            await self.failed

    def _run(self, work: Callable[[], None]) -> None:
        try:
            work()
        except KtlogError as error:
            self._stop.set()
            self._loop.call_soon_threadsafe(self._fail, error)

    def _fail(self, error: KtlogError) -> None:
        if not self.failed.done():
            self.failed.set_exception(error)

    def _sequence(self) -> None:
        while True:
            with self._wake:
                while not self._waiting and not self._stop.is_set():
                    self._wake.wait(0.2)
                batch, self._waiting = self._waiting[:BATCH_LIMIT], self._waiting[BATCH_LIMIT:]
            if not batch:
                return
            indexes = self.writer.commit([entry for entry, _ in batch])
            self._loop.call_soon_threadsafe(_answer, [asked for _, asked in batch], indexes)

    def _publish(self) -> None:
        while not self._stop.is_set():
            self._hurry.wait(self._interval)
            self._hurry.clear()
            if not self.held:
                self.writer.publish()
        self._threads[0].join()
        self.writer.publish()


def _answer(asked: Sequence[asyncio.Future[int]], indexes: Sequence[int]) -> None:
    for one, index in zip(asked, indexes, strict=True):
        if not one.done():
            one.set_result(index)
