"""Read tree nodes of a running log: from tiles where they are published, else from leaf hashes.

Only the tail between the published size and the newest entry is ever hashed anew, and that tail
is bounded (``unpublished_limit``), so a proof costs a few tile reads whatever the tree's size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from ktlog.errors import StoreError
from ktlog.store.contracts import TileStore
from ktlog.tlog.tiles import (
    TILE_WIDTH,
    bundles_between,
    entry_bundle_path,
    format_bundle,
    tile_nodes,
    tile_path,
    tiles_between,
)
from ktlog.tlog.tree import HASH_BYTES, Node, hash_leaf, hash_level, hash_node, root_hash

TILE_HEIGHT = 8
STEP_ENTRIES = 64 * TILE_WIDTH


class Size(Protocol):
    @property
    def size(self) -> int: ...


class Leaves(Protocol):
    """What of a ``LogStore`` is needed here: how many leaves there are, and their hashes."""

    def state(self) -> Size: ...

    def leaf_hashes(self, start: int, end: int) -> Sequence[bytes]: ...


class LogNodes:
    """A HashReader over one log, as of one published size.

    ``read_tile(path)`` gives a tile's bytes or None; ``published_size`` says which partial tiles
    can be there.
    """

    def __init__(
        self, store: Leaves, read_tile: Callable[[str], bytes | None], published_size: int
    ) -> None:
        self._store = store
        self._read_tile = read_tile
        self._published_size = published_size
        self._log_size = store.state().size
        self._tiles: dict[tuple[int, int], bytes] = {}

    def __call__(self, nodes: Sequence[Node]) -> list[bytes]:
        return [self._node(level, index) for level, index in nodes]

    def _node(self, level: int, index: int) -> bytes:
        tile_level, rise = divmod(level, TILE_HEIGHT)
        first = index << rise
        number, offset = divmod(first, TILE_WIDTH)
        tile = self._tile(tile_level, number)
        end = offset + (1 << rise)
        if len(tile) >= end * HASH_BYTES:
            return _fold([tile[i * HASH_BYTES : (i + 1) * HASH_BYTES] for i in range(offset, end)])
        if level == 0:
            raise StoreError("MissingLeaf", f"leaf {index} is asked for and not in the log")
        # Unpublished, or astride the published size: build it from its two children.
        return hash_node(self._node(level - 1, 2 * index), self._node(level - 1, 2 * index + 1))

    def _tile(self, tile_level: int, number: int) -> bytes:
        key = (tile_level, number)
        if key not in self._tiles:
            self._tiles[key] = self._load(tile_level, number)
        return self._tiles[key]

    def _load(self, tile_level: int, number: int) -> bytes:
        if tile_level == 0:
            start = number * TILE_WIDTH
            end = min(start + TILE_WIDTH, self._log_size)
            return b"".join(self._store.leaf_hashes(start, end)) if start < end else b""
        complete = self._published_size >> (TILE_HEIGHT * tile_level)
        width = min(complete - number * TILE_WIDTH, TILE_WIDTH)
        if width <= 0:
            return b""
        found = self._read_tile(tile_path(tile_level, number, width))
        if found is None and width < TILE_WIDTH:
            # Superseded, and removed since: the full one begins with the same hashes.
            found = (self._read_tile(tile_path(tile_level, number)) or b"")[: width * HASH_BYTES]
        if found is None or len(found) != width * HASH_BYTES:
            raise StoreError(
                "MissingTile", f"{tile_path(tile_level, number, width)} is missing or has the wrong length",
                hint="The tiles can be made again from the entries: stop the log and run it with an empty tiles/.",
            )
        return found


def _fold(hashes: list[bytes]) -> bytes:
    while len(hashes) > 1:
        hashes = hash_level(hashes)
    return hashes[0]


def write_tree(
    tiles: TileStore, leaves: Leaves, entries: Callable[[int, int], Sequence[bytes]], start: int, size: int, root: bytes
) -> None:
    """Write every tile and bundle that a tree of *size* has beyond those of the tree of *start*, which are there.

    Before anything is signed, the entries are read back and hashed again: a bit that flipped
    on its way to disk must stop the log here, not in an auditor's report (requirement R1).

    Raises:
        StoreError: ``CorruptEntry``, ``CorruptTree``, and those of the stores.
    """
    nodes = LogNodes(leaves, tiles.read, start)
    if root_hash(size, nodes) != root:
        raise StoreError("CorruptTree", f"the leaves up to {size} do not hash to the stored root")
    # All of a log at once, as after a move to another store, would not fit into memory.
    for first in range(start - start % TILE_WIDTH, size, STEP_ENTRIES):
        end = min(first + STEP_ENTRIES, size)
        found = entries(first, end)
        if [hash_leaf(entry) for entry in found] != list(leaves.leaf_hashes(first, end)):
            raise StoreError("CorruptEntry", f"an entry in [{first}, {end}) does not hash to its stored leaf")
        begin, files = max(start, first), {}
        for bundle in bundles_between(begin, end):
            at = bundle.number * TILE_WIDTH - first
            files[entry_bundle_path(bundle.number, bundle.width)] = format_bundle(found[at : at + bundle.width])
        grown = [tile for tile in tiles_between(begin, end) if tile.width == TILE_WIDTH]
        if end == size:
            grown += [tile for tile in tiles_between(start, size) if tile.width < TILE_WIDTH]
        for tile in grown:
            files[tile_path(tile.level, tile.number, tile.width)] = b"".join(nodes(tile_nodes(tile)))
        tiles.write_tiles(files)
