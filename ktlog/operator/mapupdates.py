"""Publishes what each output leaf changed in the map, and removes it after its time.

An update is worked out from the map before the leaf, which readers see until the leaf is committed. That is done
beside the signing and cosigning of the leaf, which mostly wait for others, and so that the file is durable before
the leaf is committed. Whoever dies in between works out the same bytes again from the same pending leaf.

Spec: directory map §4; docs/protocol.md, section 6; docs/decisions/0010.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from ktlog.errors import EncodingError, KtlogError, StoreError
from ktlog.keymap.output import parse_leaf
from ktlog.keymap.updates import KEPT_SECONDS, MAX_CHANGES, MAX_UPDATE_BYTES, build_update, format_update, update_path
from ktlog.store.contracts import TileStore
from ktlog.store.documents import Document
from ktlog.store.mapcontract import Dead, Live, MapState, MapStore
from ktlog.tlog.encoding import parse_decimal

STEP = 64
"""Updates that are removed at one time, and after which it is noted how far this came."""

log = logging.getLogger("ktlog.map")


class MapUpdates:
    """The updates of one map. One thread, but for its own.

    Args:
        reader: a handle that sees the map as it was published last. tiles: where the files are.
        mark: where it is kept which update goes next; if lost, all is gone over again. now: Unix seconds.
    """

    def __init__(self, reader: MapStore, tiles: TileStore, mark: Document, now: Callable[[], int]) -> None:
        self._reader = reader
        self._tiles = tiles
        self._mark = mark
        self._now = now
        self._pool = ThreadPoolExecutor(1, "map-update")
        self._made: tuple[int, Future[None]] | None = None
        self._next: int | None = None
        self._next_time: int | None = None
        self._complained = False

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, before: MapState, changes: Sequence[Live | Dead]) -> None:
        """Begin to publish that the leaf after *before* makes these *changes*. Until :meth:`finish` none is stored."""
        leaf_index = before.output.size
        if self._made is not None and self._made[0] == leaf_index and not _failed(self._made[1]):
            return
        self._made = leaf_index, self._pool.submit(self._publish, before, changes)

    def finish(self) -> None:
        """Wait until what was begun is published.

        Raises:
            StoreError, Unreachable: it is not: those of the stores.
        """
        if self._made is not None:
            self._made[1].result()

    def _publish(self, before: MapState, changes: Sequence[Live | Dead]) -> None:
        leaf_index = before.output.size
        data = encode_changes(self._reader, before, changes)
        if data is None:
            log.warning("no update of the map is published for leaf %d: it changes too much at once", leaf_index)
        else:
            self._tiles.write_tiles({update_path(leaf_index): data})

    # After its time

    def sweep(self, size: int) -> None:
        """After the leaf at *size* - 1 was published: remove what is old enough. An error is only logged."""
        try:
            self._sweep(size)
            self._complained = False
        except KtlogError as error:
            if not self._complained:
                log.warning("old updates of the map are not removed: %s", error.diagnostics())
            self._complained = True

    def _sweep(self, size: int) -> None:
        if self._next is None:
            self._next = self._read_mark()
        for _ in range(STEP):
            if self._next >= size:
                return
            if self._next_time is None:
                self._next_time = parse_leaf(self._reader.output_leaves(self._next, self._next + 1)[0]).time
            if self._now() - self._next_time <= KEPT_SECONDS:
                return
            self._tiles.remove_update(update_path(self._next))
            self._next, self._next_time = self._next + 1, None
            if self._next % STEP == 0:
                self._mark.write(b"%d\n" % self._next)

    def _read_mark(self) -> int:
        found = self._mark.read()
        try:
            return max(1, parse_decimal((found or b"1\n").decode("ascii").removesuffix("\n")))
        except (UnicodeDecodeError, EncodingError):
            return 1


def _failed(future: Future[None]) -> bool:
    return future.done() and future.exception() is not None


def encode_changes(reader: MapStore, before: MapState, changes: Sequence[Live | Dead]) -> bytes | None:
    """The update from the map *before*, which *reader* sees, by *changes*; None if it would be too large.

    Raises:
        StoreError: ``MapMoved``: the map is another one already; those of the store.
    """
    commitments = {change.index: change.commitment for change in changes}
    if len(commitments) > MAX_CHANGES:
        return None
    with reader.snapshot():
        if reader.state() != before:
            raise StoreError("MapMoved", "the map was changed by another process")
        update = build_update(before.output.size, commitments, reader.prove_all(sorted(commitments)))
        same = [change.index for change in update.changes if change.before == change.commitment]
        if same:  # what does not change is none of its changes
            for index in same:
                del commitments[index]
            update = build_update(before.output.size, commitments, reader.prove_all(sorted(commitments)))
    data = format_update(update)
    return data if len(data) <= MAX_UPDATE_BYTES else None
