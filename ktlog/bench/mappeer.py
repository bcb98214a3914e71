"""The map's prefix tree in memory alone: what hashing a batch costs where nothing is stored.

The benchmark's peer. It keeps a whole map in Python objects, some 400 bytes for each actor, and loses it at the end.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256

from ktlog.keymap.prefix import MISSING, PrefixLeaf, split_at

_Leaf = tuple[bytes, PrefixLeaf]
_Node = list  # of a hash and two children
_Tree = _Leaf | _Node | None


class MemoryMap:
    """One leaf for every index; :meth:`put` replaces and adds many at once."""

    def __init__(self, leaves: Sequence[PrefixLeaf]) -> None:
        self._top: _Tree = _put(None, leaves, 0, len(leaves), 0)

    @property
    def root(self) -> bytes:
        return _hash(self._top)

    def put(self, leaves: Sequence[PrefixLeaf]) -> bytes:
        """The root after *leaves*, which are sorted and of distinct indexes."""
        self._top = _put(self._top, leaves, 0, len(leaves), 0)
        return self.root


def _hash(tree: _Tree) -> bytes:
    return MISSING if tree is None else tree[0]


def _put(tree: _Tree, leaves: Sequence[PrefixLeaf], start: int, end: int, depth: int) -> _Tree:
    """*tree*, whose top lies at *depth*, with leaves[start:end]."""
    if start == end:
        return tree
    if type(tree) is tuple:
        if end - start == 1 and leaves[start].index == tree[1].index:
            tree = None
        else:
            # Two leaves part somewhere below.
            right = tree[1].index[depth >> 3] >> (7 - (depth & 7)) & 1
            tree = [b"", None, tree] if right else [b"", tree, None]
    if tree is None:
        if end - start == 1:
            return leaves[start].hash, leaves[start]
        tree = [b"", None, None]
    middle = split_at(leaves, start, end, depth)
    left, right = tree[1:]
    tree[1] = left = _put(left, leaves, start, middle, depth + 1)
    tree[2] = right = _put(right, leaves, middle, end, depth + 1)
    tree[0] = sha256(b"\x03" + _hash(left) + _hash(right)).digest()
    return tree
