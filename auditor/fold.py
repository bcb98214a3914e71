"""The auditor's own derivation of tree and tiles from leaf hashes, in one pass.

It shares the two hash functions with the operator's side and nothing else: no frontier, no
hash reader. Memory is one partial tile per level, whatever the size of the log.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ktlog.tlog.tiles import TILE_HEIGHT, TILE_WIDTH
from ktlog.tlog.tree import EMPTY_ROOT, Node, hash_node, prove_consistency, root_hash


class TreeFold:
    """Takes leaf hashes in order; gives the root, the tiles, and chosen inner nodes.

    Args:
        wanted: inner nodes (level, index) to keep as they become complete, for a proof
            that will be asked for after the pass.
    """

    def __init__(self, wanted: Collection[Node] = ()) -> None:
        self._wanted = frozenset(wanted)
        # One entry per one-bit of the size: the complete subtrees, largest first.
        self._peaks: list[bytes] = []
        self._tiles: list[bytearray] = []
        self._done: list[int] = []
        self.size = 0
        self.nodes: dict[Node, bytes] = {}

    def append(self, leaf_hash: bytes) -> None:
        """Add one 32-byte leaf hash."""
        node, index, level = leaf_hash, self.size, 0
        self._complete(0, index, node)
        while index & 1:
            node = hash_node(self._peaks.pop(), node)
            index >>= 1
            level += 1
            self._complete(level, index, node)
        self._peaks.append(node)
        self.size += 1

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
        while len(self._tiles) <= tile_level:
            self._tiles.append(bytearray())
            self._done.append(0)
        self._tiles[tile_level] += node

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


def nodes_for_consistency(old_size: int, tree_size: int) -> frozenset[Node]:
    """The nodes that the root of the first *old_size* leaves, and the proof from there, are made of."""
    asked: set[Node] = set()

    def note(nodes: Sequence[Node]) -> list[bytes]:
        asked.update(nodes)
        return [bytes(32)] * len(nodes)

    root_hash(old_size, note)
    prove_consistency(old_size, tree_size, note)
    return frozenset(asked)
