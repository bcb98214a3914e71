"""The auditor's own derivation of tree and tiles from leaf hashes, in one pass.

It shares the two hash functions with the operator's side and nothing else: no frontier, no
hash reader. Memory is one partial tile per level, whatever the size of the log.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from hashlib import sha256

from ktlog.errors import EncodingError
from ktlog.tlog.tiles import TILE_HEIGHT, TILE_WIDTH
from ktlog.tlog.tree import EMPTY_ROOT, HASH_BYTES, Frontier, Node, hash_node, prove_consistency, root_hash


class TreeFold:
    """Takes leaf hashes in order; gives the root, the tiles, and chosen inner nodes.

    Args:
        wanted: inner nodes (level, index) to keep as they become complete, for a proof
            that will be asked for after the pass.
    """

    def __init__(self, wanted: Collection[Node] = ()) -> None:
        self._wanted = frozenset(wanted)
        self._wanted_tiles = {index >> TILE_HEIGHT - level for level, index in self._wanted if level < TILE_HEIGHT}
        # One entry per one-bit of the size: the complete subtrees, largest first.
        self._peaks: list[bytes] = []
        self._tiles: list[bytearray] = []
        self._done: list[int] = []
        self.size = 0
        self.nodes: dict[Node, bytes] = {}

    def append(self, leaf_hash: bytes) -> None:
        """Add one 32-byte leaf hash."""
        self._add(leaf_hash, 0)

    def append_tile(self, tile_hash: bytes, leaf_hashes: bytes = b"") -> None:
        """Add 256 leaves, the next full tile, by the root of their subtree; see :func:`hash_tile`.

        Args:
            leaf_hashes: of all 256, one after the other, where :meth:`full_tiles` is to give this tile too. Nodes
                below the tile's root are never among :attr:`nodes`.
        """
        if self.size % TILE_WIDTH:
            raise AssertionError("a whole tile begins at a multiple of its width")
        self._room_for(0)
        if leaf_hashes:
            self._tiles[0] += leaf_hashes
        else:
            self._done[0] += 1
        self._add(tile_hash, TILE_HEIGHT)

    def wants(self, number: int) -> bool:
        """Whether a node below the root of full tile *number* of level 0 is to be kept."""
        return number in self._wanted_tiles

    def _add(self, node: bytes, level: int) -> None:
        index, size = self.size >> level, 1 << level
        self._complete(level, index, node)
        while index & 1:
            node = hash_node(self._peaks.pop(), node)
            index >>= 1
            level += 1
            self._complete(level, index, node)
        self._peaks.append(node)
        self.size += size

    def read(self, nodes: Sequence[Node]) -> list[bytes]:
        """A HashReader over the wanted nodes."""
        return [self.nodes[node] for node in nodes]

    def root(self) -> bytes:
        """The RFC 9162 root over every leaf so far; SHA-256 of nothing for none."""
        if not self._peaks:
            return EMPTY_ROOT
        node = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            node = hash_node(peak, node)
        return node

    def _complete(self, level: int, index: int, node: bytes) -> None:
        if (level, index) in self._wanted:
            self.nodes[(level, index)] = node
        tile_level, rest = divmod(level, TILE_HEIGHT)
        if rest:
            return
        self._room_for(tile_level)
        self._tiles[tile_level] += node

    def _room_for(self, tile_level: int) -> None:
        while len(self._tiles) <= tile_level:
            self._tiles.append(bytearray())
            self._done.append(0)

    def full_tiles(self) -> list[tuple[int, int, bytes]]:
        """The tiles that became full since the last call: (level, number, 8192 bytes).

        Call it at least once every 256 leaves, or memory grows.
        """
        full_bytes = TILE_WIDTH * 32
        out = []
        for level, data in enumerate(self._tiles):
            while len(data) >= full_bytes:
                out.append((level, self._done[level], bytes(data[:full_bytes])))
                del data[:full_bytes]
                self._done[level] += 1
        return out

    def partial_tiles(self) -> list[tuple[int, int, bytes]]:
        """The rightmost tile of every level that is not full: (level, number, bytes).

        A partial tile of width zero does not exist. Spec: C2SP tlog-tiles.
        """
        return [
            (level, self._done[level], bytes(data)) for level, data in enumerate(self._tiles) if data
        ]

    @property
    def last_leaves(self) -> bytes:
        """The leaf hashes of the rightmost tile, where it is partial; one after the other."""
        return bytes(self._tiles[0]) if self._tiles and self.size % TILE_WIDTH else b""

    def right_edge(self) -> dict[Node, bytes]:
        """The complete subtrees, and every node within the rightmost tile where that is partial.

        It is all that a proof about one of that tile's leaves is made of.
        """
        nodes, start = {}, 0
        for peak, level in zip(self._peaks, _one_bits(self.size), strict=True):
            nodes[level, start >> level] = peak
            start += 1 << level
        row = [self.last_leaves[at : at + HASH_BYTES] for at in range(0, len(self.last_leaves), HASH_BYTES)]
        first = self.size - len(row)
        for level in range(TILE_HEIGHT):
            nodes |= {(level, (first >> level) + place): node for place, node in enumerate(row)}
            row = [hash_node(left, right) for left, right in zip(row[::2], row[1::2], strict=False)]
        return nodes

    @property
    def frontier(self) -> Frontier:
        """The complete subtrees on the right edge, as others write them."""
        return Frontier(self.size, tuple(self._peaks))

    def encode(self) -> bytes:
        """All that going on needs: the right edge, and what is read of the rightmost tiles.

        Call it when there are no full tiles to be taken.
        """
        parts = [self.size.to_bytes(8, "big"), *self._peaks]
        for data, done in zip(self._tiles, self._done, strict=True):
            parts += [done.to_bytes(8, "big"), len(data).to_bytes(4, "big"), data]
        return b"".join(parts)

    @classmethod
    def decode(cls, data: bytes, wanted: Collection[Node] = ()) -> TreeFold:
        """A fold that goes on where the encoded one was. Of nodes *wanted*, those on the right edge are kept too.

        Raises:
            EncodingError: ``BadFold``.
        """
        fold = cls(wanted)
        size, at = int.from_bytes(data[:8], "big"), 8
        for level in _one_bits(size):
            node = data[at : at + HASH_BYTES]
            at += HASH_BYTES
            fold._peaks.append(node)
            place = (level, (size >> level) - 1)
            if place in fold._wanted:
                fold.nodes[place] = node
        while at < len(data):
            width = int.from_bytes(data[at + 8 : at + 12], "big")
            fold._done.append(int.from_bytes(data[at : at + 8], "big"))
            fold._tiles.append(bytearray(data[at + 12 : at + 12 + width]))
            at += 12 + width
        if at != len(data) or len(data) < 8:
            raise EncodingError("BadFold", "a saved fold does not parse")
        fold.size = size
        return fold


def _one_bits(size: int) -> list[int]:
    """Levels of the complete subtrees of that many leaves, largest first."""
    return [level for level in reversed(range(size.bit_length())) if size >> level & 1]


def hash_tile(leaf_hashes: Sequence[bytes]) -> bytes:
    """The root of the subtree over 256 leaves."""
    nodes = list(leaf_hashes)
    if len(nodes) != TILE_WIDTH:
        raise AssertionError("a full tile has 256 leaves")
    while len(nodes) > 1:
        # hash_node, written out: there are 255 of them, and of leaves no more.
        nodes = [sha256(b"\x01" + left + right).digest() for left, right in zip(nodes[::2], nodes[1::2], strict=True)]
    return nodes[0]


def nodes_for_consistency(old_size: int, tree_size: int) -> frozenset[Node]:
    """The nodes that the root of the first *old_size* leaves, and the proof from there, are made of."""
    asked: set[Node] = set()

    def note(nodes: Sequence[Node]) -> list[bytes]:
        asked.update(nodes)
        return [bytes(32)] * len(nodes)

    root_hash(old_size, note)
    prove_consistency(old_size, tree_size, note)
    return frozenset(asked)
