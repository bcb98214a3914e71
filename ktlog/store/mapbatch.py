"""One proof of many searches in the map's prefix tree, from its rows: what an update is built from.

The same rows as for one search (``ktlog.store.maptree``), read once for all of them. They are held against their sums,
for nobody checks the proof of a batch before it is published.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from hashlib import sha256

from ktlog.keymap.prefix import MISSING, Kind, PrefixLeaf, PrefixProof, Search, prove_all_below
from ktlog.store.maptree import LEAF_BYTES, LEVELS, TreeRows, prefix, split_bucket, unseal

_WIDTH = 1 << LEVELS
_HASHES = 2 * _WIDTH
_EMPTY_PAGE = bytes(2 * _WIDTH) + MISSING * 2 * _WIDTH


def prove_all(rows: TreeRows, bottom: int, indexes: Sequence[bytes]) -> PrefixProof:
    """Proof of the searches for *indexes*, sorted and distinct, in a tree whose buckets lie at depth *bottom*.

    Raises:
        StoreError: ``Corrupt``: a row is not what was written.
    """
    return _Batch(rows, bottom, indexes).prove()


class _Batch:
    def __init__(self, rows: TreeRows, bottom: int, indexes: Sequence[bytes]) -> None:
        self._rows = rows
        self._bottom = bottom
        self._indexes = indexes
        self._paths = paths = [prefix(index, bottom) for index in indexes]
        numbers = {1 << depth | path >> (bottom - depth) for path in paths for depth in range(0, bottom, LEVELS)}
        self._pages = _unseal(rows.pages(numbers))
        self._buckets = _unseal(rows.buckets(set(paths)))
        self._searches: list[Search] = []
        self._hashes: list[bytes] = []

    def prove(self) -> PrefixProof:
        if not self._indexes:
            return PrefixProof((), (self._root(),))
        self._enter(1, 0, 0, len(self._indexes))
        return PrefixProof(tuple(self._searches), tuple(self._hashes))

    def _root(self) -> bytes:
        if self._bottom:
            page = self._rows.pages([1]).get(1)
            return MISSING if page is None else unseal(page)[_HASHES + 32 : _HASHES + 64]
        hashes: list[bytes] = []
        prove_all_below(split_bucket(unseal(self._rows.bucket(0))), 0, (), [], hashes)
        return hashes[0]

    def _enter(self, number: int, depth: int, first: int, last: int) -> None:
        """The subtree at *depth*, where a page or a bucket begins, for the searches [first, last), at least one."""
        if depth < self._bottom:
            self._descend(self._pages.get(number, _EMPTY_PAGE), number, 1, depth, first, last)
            return
        bucket = self._buckets.get(self._paths[first], b"")
        if last - first == 1:  # nearly always, and far quicker
            self._searches.append(_search(bucket, depth, self._indexes[first], self._hashes))
        else:
            indexes = self._indexes[first:last]
            prove_all_below(split_bucket(bucket), depth, indexes, self._searches, self._hashes)

    def _descend(self, page: bytes, number: int, node: int, depth: int, first: int, last: int) -> None:
        """The same, of a *node* in *page*."""
        if page[node] < 2 and depth < self._bottom:
            self._end(page[node], depth, first, last)
            return
        if node >= _WIDTH:
            self._enter(number << LEVELS | node & (_WIDTH - 1), depth, first, last)
            return
        # The searches are sorted: those that go left come before the first path of the right half.
        below = self._bottom - depth - 1
        border = bisect_left(self._paths, (self._paths[first] >> below | 1) << below, first, last)
        for child, start, end in ((2 * node, first, border), (2 * node + 1, border, last)):
            if start < end:
                self._descend(page, number, child, depth + 1, start, end)
            else:
                self._hashes.append(page[_HASHES + 32 * child : _HASHES + 32 * child + 32])

    def _end(self, count: int, depth: int, first: int, last: int) -> None:
        """Below is one leaf or none, wherever its row lies."""
        if not count:
            self._searches += [Search(Kind.NOTHING, depth)] * (last - first)
            return
        below = self._bottom - depth
        start = self._paths[first] >> below << below
        leaves = split_bucket(unseal(self._rows.some_bucket(start, start + (1 << below))))
        prove_all_below(leaves, depth, self._indexes[first:last], self._searches, self._hashes)


def _search(bucket: bytes, depth: int, index: bytes, hashes: list[bytes]) -> Search:
    """The search for *index* in a bucket at *depth*; the hashes beside its way are appended."""
    leaves = [bucket[at : at + LEAF_BYTES] for at in range(0, len(bucket), LEAF_BYTES)]
    right: list[bytes] = []
    while len(leaves) > 1:
        middle = _split(leaves, depth)
        depth += 1
        if index[depth - 1 >> 3] & 128 >> (depth - 1 & 7):
            hashes.append(_hash(leaves[:middle], depth))
            leaves = leaves[middle:]
        else:
            right.append(_hash(leaves[middle:], depth))
            leaves = leaves[:middle]
    hashes += reversed(right)
    if not leaves:
        return Search(Kind.NOTHING, depth)
    leaf = PrefixLeaf(leaves[0][:32], leaves[0][32:])
    return Search(Kind.INCLUSION if leaf.index == index else Kind.OTHER_LEAF, depth, leaf)


def _split(leaves: Sequence[bytes], depth: int) -> int:
    """The first of *leaves*, few and sorted, whose bit *depth* is 1."""
    byte, mask, middle = depth >> 3, 128 >> (depth & 7), 0
    for leaf in leaves:
        if leaf[byte] & mask:
            break
        middle += 1
    return middle


def _hash(leaves: Sequence[bytes], depth: int) -> bytes:
    if len(leaves) < 2:
        return sha256(b"\x02" + leaves[0]).digest() if leaves else MISSING
    middle = _split(leaves, depth)
    # Most halves are one leaf: their hashes are made here, for a call takes as long as one.
    one = sha256(b"\x02" + leaves[0]).digest() if middle == 1 else _hash(leaves[:middle], depth + 1)
    if middle == len(leaves) - 1:
        return sha256(b"\x03" + one + sha256(b"\x02" + leaves[middle]).digest()).digest()
    return sha256(b"\x03" + one + _hash(leaves[middle:], depth + 1)).digest()


def _unseal(stored: Mapping[int, bytes]) -> dict[int, bytes]:
    return {number: unseal(row) for number, row in stored.items()}
