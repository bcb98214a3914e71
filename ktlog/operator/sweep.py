"""Removes partial tiles and bundles when nobody needs them: the full one is published, and was for a while.

A slow log publishes up to 255 versions of each bundle, and 100 times what its entries weigh. Of the published
checkpoint nothing is touched, nor of those shortly before it: somebody may just be reading them. Who comes later takes
the full tile, as the specification says.

Spec: c2sp.org/tlog-tiles, "Partial Tiles".
"""

from __future__ import annotations

import logging
from collections import deque

from ktlog.errors import EncodingError, KtlogError
from ktlog.store.contracts import TileStore
from ktlog.store.documents import Document
from ktlog.tlog.encoding import parse_decimal
from ktlog.tlog.tiles import TILE_WIDTH, bundles_between, tiles_between

STEP_TILES = 64
"""Bundles whose partial versions are removed at one time: a long way is gone over many checkpoints."""

log = logging.getLogger("ktlog.sweep")


class Sweep:
    """Follows one tree. One thread.

    Args:
        tiles: where its files are. mark: where it is kept how far this came; if lost, all is gone over again.
        kept: published checkpoints for which partial tiles stay after their full tile.
    """

    def __init__(self, tiles: TileStore, mark: Document, kept: int) -> None:
        self._tiles = tiles
        self._mark = mark
        self._sizes: deque[int] = deque(maxlen=kept + 1)
        self._swept: int | None = None
        self._complained = False

    def published(self, size: int) -> None:
        """After a checkpoint of *size* was published. An error is only logged: nothing rests on this."""
        self._sizes.append(size)
        if len(self._sizes) < (self._sizes.maxlen or 0):
            return
        try:
            self._sweep(self._sizes[0])
            self._complained = False
        except KtlogError as error:
            if not self._complained:
                log.warning("partial tiles are not removed: %s", error.diagnostics())
            self._complained = True

    def _sweep(self, size: int) -> None:
        """Go on towards *size*, of a checkpoint that is old enough."""
        if self._swept is None:
            self._swept = self._read_mark()
        start = self._swept
        end = min(size - size % TILE_WIDTH, start + STEP_TILES * TILE_WIDTH)
        if end <= start:
            return
        for tile in (*bundles_between(start, end), *tiles_between(start, end)):
            if tile.width == TILE_WIDTH:
                self._tiles.remove_partials(tile.path)
        self._mark.write(b"%d\n" % end)
        self._swept = end

    def _read_mark(self) -> int:
        found = self._mark.read()
        try:
            size = 0 if found is None else parse_decimal(found.decode("ascii").removesuffix("\n"))
        except (UnicodeDecodeError, EncodingError):
            return 0
        return size - size % TILE_WIDTH
