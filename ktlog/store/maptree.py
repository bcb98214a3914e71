"""The map's prefix tree in rows, whatever keeps them.

It is kept in two shapes. Its upper ``depth`` levels are node pages: a page holds a node and the three levels below it,
so a search reads depth / 3 small rows. Below lie buckets, a handful of leaves each, sorted. An update rewrites its
bucket and the pages above it; a proof reads them and hashes what lies in the bucket.

Both are on the path of every lookup and of every update a thousand times over. So rows are read many at a time, and
leaves and nodes stay slices of their rows.

How much of the tree lies in pages is the store's own affair: a node's hash does not depend on how what lies below it is
kept. So the tree may :func:`grow` apart from the update that made it large.

A row ends with its CRC-32. An update takes hashes from rows, and what it makes of them is signed: a bit that flipped on
the disk must not be. (To hash what was there before as well would double the work.) Who only reads needs no sum: a
proof is held against the root. Rows of before there were sums have none until they are written again.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Protocol
from zlib import crc32

from ktlog.errors import StoreError
from ktlog.keymap.prefix import MISSING, PrefixLeaf, PrefixProof, prove_below

LEVELS = 3
"""Of the tree in one node page."""
BUCKET_LEAVES = 8
"""Average leaves of a bucket at which the upper part grows by one page."""
LEAF_BYTES = 64
MAX_DEPTH = 36
GROW_AT_A_TIME = 512
"""Buckets."""
SUM_BYTES = 4
_GRAIN = 16
"""What buckets and pages without their sum are multiples of."""
_WIDTH = 1 << LEVELS
_MANY = 2
_HASHES = 2 * _WIDTH
"""Where they begin in a page."""
_EMPTY_PAGE = bytes(2 * _WIDTH) + MISSING * 2 * _WIDTH
"""For each node how many leaves lie below (0, 1, 2 for more), then their hashes.

Pages in the tree and nodes in a page are numbered alike: 1 for the top, and below n come 2n and 2n + 1.
"""


def _above(changed: int) -> tuple[int, ...]:
    """The nodes of a page above those of its lowest level that *changed*, a bit for each; from below."""
    lowest = [_WIDTH | place for place in range(_WIDTH) if changed >> place & 1]
    return tuple(node for up in range(1, LEVELS + 1) for node in sorted({node >> up for node in lowest}))


def _place(node: int, nodes: int = 1) -> slice:
    """Where the hashes of *nodes* nodes from *node* on lie in a page."""
    return slice(_HASHES + 32 * node, _HASHES + 32 * (node + nodes))


_PLACES = tuple(map(_place, range(2 * _WIDTH)))
_TOP = _PLACES[1]
_ABOVE = tuple(
    tuple((node, _place(node), _place(2 * node, 2)) for node in _above(changed)) for changed in range(1 << _WIDTH)
)
"""Of each node above those that changed: its number, its place, and that of the two below, which lie side by side."""

_Node = tuple[int, int, bytes]
"""Its number, leaves below as a page counts them, and hash."""


class TreeRows(Protocol):
    """Access to the rows, inside one transaction or snapshot. A bucket or page without a row is empty, b""."""

    def bucket(self, number: int) -> bytes:
        """The bucket of that number."""

    def some_bucket(self, start: int, end: int) -> bytes:
        """Any bucket numbered *start* up to *end*."""

    def last_buckets(self, end: int, limit: int) -> Sequence[tuple[int, bytes]]:
        """The *limit* buckets before *end*, by falling number."""

    def buckets(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """Those of *numbers* that there are."""

    def pages(self, numbers: Iterable[int]) -> dict[int, bytes]:
        """The same for node pages."""

    def write_buckets(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Store buckets, new ones or in the place of old ones."""

    def write_pages(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """The same for node pages."""

    def delete_buckets(self, numbers: Iterable[int]) -> None:
        """Remove buckets."""


def prove(rows: TreeRows, bottom: int, index: bytes) -> PrefixProof:
    """Proof of the search for *index* in a tree whose buckets lie at depth *bottom*."""
    path = prefix(index, bottom)
    numbers = [1 << depth | path >> (bottom - depth) for depth in range(0, bottom, LEVELS)]
    pages = rows.pages(numbers)
    hashes_left: list[bytes] = []
    hashes_right: list[bytes] = []
    for number in numbers:
        page, node = pages.get(number, _EMPTY_PAGE), 1
        for depth in range(number.bit_length() - 1, number.bit_length() - 1 + LEVELS):
            if page[node] < _MANY:
                # Everything below is one leaf or none: the search ends here, wherever its row lies.
                search, _, _ = prove_below(_leaves_below(rows, bottom, index, depth), depth, index)
                return PrefixProof((search,), (*hashes_left, *reversed(hashes_right)))
            node = 2 * node + (path >> (bottom - depth - 1) & 1)
            (hashes_left if node & 1 else hashes_right).append(_hash_of(page, node ^ 1))
    search, left, right = prove_below(split_bucket(rows.bucket(path)), bottom, index)
    return PrefixProof((search,), (*hashes_left, *left, *right, *reversed(hashes_right)))


def prefix(index: bytes, depth: int) -> int:
    return int.from_bytes(index[:8], "big") >> (64 - depth)


def split_bucket(blob: bytes) -> list[PrefixLeaf]:
    """The leaves in a bucket's row."""
    end = len(blob) - len(blob) % LEAF_BYTES
    return [PrefixLeaf(blob[i : i + 32], blob[i + 32 : i + LEAF_BYTES]) for i in range(0, end, LEAF_BYTES)]


def seal(blob: bytes | bytearray) -> bytes:
    """A row as it is kept: what it holds, and the sum of that."""
    return bytes(blob) + crc32(blob).to_bytes(SUM_BYTES, "big")


def unseal(row: bytes) -> bytes:
    """What a row holds.

    Raises:
        StoreError: ``Corrupt``: it is not what was written.
    """
    if len(row) % _GRAIN == 0:
        return row  # of before there were sums
    blob = row[:-SUM_BYTES]
    if len(row) % _GRAIN != SUM_BYTES or row[-SUM_BYTES:] != crc32(blob).to_bytes(SUM_BYTES, "big"):
        raise StoreError(
            "Corrupt", "the map's store: a row of the tree is not what was written",
            hint="Nothing was signed with it. Say `ktlog fsck`, which names what is damaged.",
        )
    return blob


def damaged(table: str, rows: Iterable[tuple[int, bytes]]) -> Iterator[str]:
    """Those *rows* of *table*, by their names, that are not what was written."""
    for number, row in rows:
        try:
            unseal(row)
        except StoreError:
            yield f"{table} {number}"


def _leaves_below(rows: TreeRows, bottom: int, index: bytes, depth: int) -> list[PrefixLeaf]:
    """The leaves under the node of *index* at *depth*, which are one or none."""
    first = prefix(index, depth) << (bottom - depth)
    return split_bucket(rows.some_bucket(first, first + (1 << (bottom - depth))))


def _hash_of(page: bytes, node: int) -> bytes:
    return page[_HASHES + 32 * node : _HASHES + 32 * node + 32]


def _set_node(page: bytearray, node: int, count: int, digest: bytes) -> None:
    page[node] = count
    page[_PLACES[node]] = digest


def _hash_up(page: bytearray, changed: int) -> None:
    """Compute the nodes above those of the lowest level that *changed*, a bit for each."""
    for node, place, below in _ABOVE[changed]:
        left, right = page[2 * node], page[2 * node + 1]
        if left + right < _MANY:
            _set_node(page, node, left + right, _hash_of(page, 2 * node if left else 2 * node + 1))
        else:
            page[node] = _MANY
            page[place] = sha256(b"\x03" + page[below]).digest()


def write_leaves(
    rows: TreeRows, leaves: int, depth: int, root: bytes, changes: Sequence[PrefixLeaf]
) -> tuple[int, bytes]:
    """Put *changes* into the tree of *leaves* leaves, *depth* and *root*; returns leaves and root after it."""
    if len({change.index for change in changes}) != len(changes):
        raise AssertionError("a batch changes an index once")
    by_bucket: dict[int, list[PrefixLeaf]] = {}
    for change in sorted(changes):
        by_bucket.setdefault(prefix(change.index, depth), []).append(change)
    stored = rows.buckets(by_bucket)
    nodes: list[_Node] = []
    written: list[tuple[int, bytes]] = []
    for number, news in by_bucket.items():
        old = unseal(stored[number]) if number in stored else b""
        merged = _merge(old, news)
        leaves += len(merged) - len(old) // LEAF_BYTES
        written.append((number, seal(b"".join(merged))))
        nodes.append((1 << depth | number, min(len(merged), _MANY), _hash_leaves(merged, depth)))
    if changes:
        rows.write_buckets(written)
        root = _write_pages(rows, depth, nodes)
    return leaves, root


def write_all_pages(rows: TreeRows, depth: int, buckets: Iterable[tuple[int, bytes]]) -> bytes:
    """Compute every page above *buckets*, in order, which lie at *depth*, where there is none yet; returns the root.

    Raises:
        StoreError: ``Corrupt``: a bucket is none.
    """
    nodes: list[_Node] = []
    for number, row in buckets:
        leaves = _merge(unseal(row), ())
        indexes = [leaf[:32] for leaf in leaves]
        whole = bool(leaves) and len(leaves[-1]) >= LEAF_BYTES and indexes == sorted({*indexes})
        if not whole or prefix(indexes[0], depth) != number:
            raise StoreError(
                "Corrupt", f"the map's store: map_buckets {number} is not what was written",
                hint="Restore map.db, map-signed-head.json and map-pending from the newest copy.",
            )
        nodes.append((1 << depth | number, min(len(leaves), _MANY), _hash_leaves(leaves, depth)))
    return _write_pages(rows, depth, nodes) if nodes else MISSING


def grown_depth(leaves: int, depth: int) -> int:
    """The depth at which the buckets of a tree of so many leaves belong, which now lie at *depth*."""
    while leaves > BUCKET_LEAVES << depth and depth < MAX_DEPTH:
        depth += LEVELS
    return depth


def grow(rows: TreeRows, depth: int, wanted: int) -> None:
    """Move the buckets from *depth* down to the depth *wanted*."""
    for level in range(depth, wanted, LEVELS):
        _grow(rows, level)


def _merge(blob: bytes, news: Sequence[PrefixLeaf]) -> list[bytes]:
    """The leaves in *blob* and *news*, which replace those of the same index: each as 64 bytes, in order."""
    merged = [blob[i : i + LEAF_BYTES] for i in range(0, len(blob), LEAF_BYTES)]
    for index, commitment in news:
        at = bisect_left(merged, index)
        same = at < len(merged) and merged[at].startswith(index)
        merged[at : at + same] = [index + commitment]
    return merged


def _hash_leaves(leaves: Sequence[bytes], depth: int) -> bytes:
    """As ``subtree_hash``, of leaves of 64 bytes each."""
    if not leaves:
        return MISSING
    hashes = [sha256(b"\x02" + leaf).digest() for leaf in leaves]
    if len(leaves) == 1:
        return hashes[0]
    return _hash_between(leaves, hashes, 0, len(leaves), depth)


def _hash_between(leaves: Sequence[bytes], hashes: Sequence[bytes], start: int, end: int, depth: int) -> bytes:
    """Of the node at *depth* above leaves[start:end], at least two, whose *hashes* are given."""
    byte, mask, middle = depth >> 3, 128 >> (depth & 7), start
    while middle < end and not leaves[middle][byte] & mask:
        middle += 1
    # Most parts are one leaf, and a call takes as long as a hash.
    if middle == start + 1:
        left = hashes[start]
    else:
        left = _hash_between(leaves, hashes, start, middle, depth + 1) if middle > start else MISSING
    if middle == end - 1:
        right = hashes[middle]
    else:
        right = _hash_between(leaves, hashes, middle, end, depth + 1) if middle < end else MISSING
    return sha256(b"\x03" + left + right).digest()


def _write_pages(rows: TreeRows, depth: int, nodes: list[_Node]) -> bytes:
    """Store changed *nodes* of level *depth*, in order, in the pages above; returns the root."""
    numbers: list[int] = []
    above: Iterable[int] = [number for number, _, _ in nodes]
    for _ in range(0, depth, LEVELS):
        above = dict.fromkeys([number >> LEVELS for number in above])
        numbers += above
    stored = rows.pages(numbers)
    written: list[list[tuple[int, bytes]]] = []
    for _ in range(0, depth, LEVELS):
        level, nodes = _write_level(stored, nodes)
        written.append(level)
    rows.write_pages([row for level in reversed(written) for row in level])
    return nodes[0][2]


def _write_level(stored: Mapping[int, bytes], nodes: Sequence[_Node]) -> tuple[list[tuple[int, bytes]], list[_Node]]:
    """Put changed *nodes*, in order, into the pages right above; returns these, and their topmost nodes."""
    written: list[tuple[int, bytes]] = []
    tops: list[_Node] = []
    page, changed, at = bytearray(), 0, 0
    for number, count, digest in [*nodes, (0, 0, b"")]:
        if number >> LEVELS != at:
            if at:
                _hash_up(page, changed)
                whole = seal(page)
                written.append((at, whole))
                tops.append((at, whole[1], whole[_TOP]))
            at, changed = number >> LEVELS, 0
            page = bytearray(unseal(stored[at]) if at in stored else _EMPTY_PAGE)
        place = number & (_WIDTH - 1)
        changed |= 1 << place
        page[_WIDTH | place] = count
        page[_PLACES[_WIDTH | place]] = digest
    return written, tops


def _grow(rows: TreeRows, depth: int) -> None:
    """Keep LEVELS more levels as pages: every bucket becomes a page and up to eight buckets.

    The pages above stay as they are.
    """
    # From the last to the first: bucket n makes way for 8n to 8n + 7, which are n itself or read already.
    last = 1 << depth
    while moved := rows.last_buckets(last, GROW_AT_A_TIME):
        if moved[-1][0] >= last:
            raise StoreError("Corrupt", "the map's buckets are not in order")
        last = moved[-1][0]
        rows.delete_buckets([number for number, _ in moved])
        buckets, pages = [], []
        for number, blob in moved:
            split: list[list[bytes]] = [[] for _ in range(_WIDTH)]
            for leaf in _merge(unseal(blob), ()):
                split[prefix(leaf, depth + LEVELS) & (_WIDTH - 1)].append(leaf)
            buckets += [
                (number << LEVELS | place, seal(b"".join(leaves))) for place, leaves in enumerate(split) if leaves
            ]
            page = bytearray(_EMPTY_PAGE)
            for place, leaves in enumerate(split):
                _set_node(page, _WIDTH | place, min(len(leaves), _MANY), _hash_leaves(leaves, depth + LEVELS))
            _hash_up(page, (1 << _WIDTH) - 1)
            pages.append((1 << depth | number, seal(page)))
        rows.write_buckets(buckets)
        rows.write_pages(pages)
