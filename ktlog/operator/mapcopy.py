"""A mirror's copy of the source's output log, ``ORIGIN/map``: its leaves and the newest checkpoint, byte for byte.

Without it an operator who lost a disk could have the log's entries back from a mirror, and not its map: what a leaf
says of its time cannot be derived from anything. The copy makes up the root that its checkpoint states; whose
signatures are on that, whoever recovers from it checks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ktlog.client.publicfiles import PublicFiles
from ktlog.durable import make_directories
from ktlog.errors import EncodingError, Invalid
from ktlog.keymap.output import map_origin
from ktlog.operator.fscktree import Grown, TileStream
from ktlog.operator.sources import Source
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.tiles import (
    TILE_WIDTH,
    Tile,
    bundles_between,
    entry_bundle_path,
    format_bundle,
    parse_bundle,
    tile_path,
    tiles_between,
)
from ktlog.tlog.tree import Frontier, hash_leaf

MAX_LEAVES = 1 << 26


@dataclass(frozen=True)
class _Tree:
    """The tree so far, and its tiles."""

    frontier: Frontier
    stream: TileStream

    @property
    def size(self) -> int:
        return self.frontier.size

    def extend(self, leaves: Sequence[bytes]) -> tuple[_Tree, list[Grown]]:
        """The tree after *leaves*, and the tiles that became full."""
        hashes, stream = [hash_leaf(leaf) for leaf in leaves], self.stream.copy()
        full = [tile for leaf_hash in hashes for tile in stream.append(leaf_hash)]
        return _Tree(self.frontier.extend(hashes), stream), full


class MapCopy:
    """The copy that belongs to *source*. One thread at a time."""

    def __init__(self, source: Source, files: PublicFiles) -> None:
        self._source = source
        self._files = files
        make_directories(source.directory, source.map_tiles)
        self._tiles = TileFiles.create(source.map_tiles)
        self._full: _Tree | None = None
        """Of the full bundles that are here."""

    def follow(self) -> None:
        """Copy what is new.

        Raises:
            Unreachable: also ``NoCheckpoint``: the source has no map.
            Invalid: what it shows does not hold together. Conflict: it shows less than before.
        """
        note = self._files.checkpoint()
        wanted, have = self._parse(note), self._stored()
        if have is not None and have == wanted:
            return
        if wanted.size > MAX_LEAVES:
            raise Invalid("TooLarge", "the map's log is said to have more leaves than it can have")
        tree = self._full = self._full or self._read_full(have)
        hashes = self._files.hashes(wanted.size, wanted.root)
        for number in range(tree.size // TILE_WIDTH, -(-wanted.size // TILE_WIDTH)):
            width = min(TILE_WIDTH, wanted.size - number * TILE_WIDTH)
            leaves = self._files.entries(number, width)
            # Before it is kept: a file that is here is never replaced.
            if hashes([(0, number * TILE_WIDTH + at) for at in range(width)]) != [hash_leaf(leaf) for leaf in leaves]:
                raise Invalid("BadEntryProof", f"bundle {number} of the map's log is not of its tree")
            tree, full = tree.extend(leaves)
            files = {tile_path(*tile[:2]): b"".join(tile[2]) for tile in full}
            self._tiles.write_tiles({entry_bundle_path(number, width): format_bundle(leaves)} | files)
            self._full = tree if width == TILE_WIDTH else self._full
        if tree.frontier.root() != wanted.root:
            raise Invalid("TreeMismatch", "the leaves of the map's log do not make up its root")
        self._tiles.write_tiles({
            tile_path(level, number, len(row)): b"".join(row) for level, number, row in tree.stream.partial()
        })
        self._tiles.publish_checkpoint(note)
        self._drop_partial(have)

    def _parse(self, note: bytes) -> Checkpoint:
        try:
            checkpoint = parse_signed_checkpoint(note)[1]
        except EncodingError as error:
            raise Invalid("MalformedCheckpoint", f"of the map's log: {error.message}") from None
        if checkpoint.origin != map_origin(self._source.log.origin):
            raise Invalid("WrongLog", f"the checkpoint of the map's log is of {checkpoint.origin!a}")
        return checkpoint

    def _stored(self) -> Checkpoint | None:
        note = self._tiles.checkpoint()
        return None if note is None else self._parse(note)

    def _read_full(self, have: Checkpoint | None) -> _Tree:
        tree = _Tree(Frontier(), TileStream())
        for number in range(0 if have is None else have.size // TILE_WIDTH):
            data = self._tiles.read(entry_bundle_path(number))
            if data is None:
                break
            tree, _full = tree.extend(parse_bundle(data, TILE_WIDTH))
        return tree

    def _drop_partial(self, have: Checkpoint | None) -> None:
        """What is superseded is of no use here."""
        now = self._stored()
        if have is None or now is None:
            return
        kept = {tile.path for tile in _edge(now.size)}
        for tile in _edge(have.size):
            if tile.path not in kept:
                (self._source.map_tiles / tile.path).unlink(missing_ok=True)


def _edge(size: int) -> list[Tile]:
    """The partial tiles and the partial bundle of a tree."""
    first = size - size % TILE_WIDTH
    tiles = [*tiles_between(max(0, first - 1), size), *bundles_between(first, size)]
    return [tile for tile in tiles if tile.width < TILE_WIDTH]
