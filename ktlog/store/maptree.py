"""The map's prefix tree in rows of SQLite.

It is kept in two shapes. Its upper ``depth`` levels are node pages: a page holds a node and the three levels below it,
so a search reads depth / 3 small rows. Below lie buckets, a handful of leaves each, sorted. An update rewrites its
bucket and the pages above it; a proof reads them and hashes what lies in the bucket.

Both are on the path of every lookup and of every update a thousand times over. So rows are read many at a time, and
leaves and nodes stay slices of their rows.
"""

from __future__ import annotations

import json
import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from hashlib import sha256

from ktlog.keymap.prefix import MISSING, PrefixLeaf, PrefixProof, prove_below

LEVELS = 3
"""Of the tree in one node page."""
BUCKET_LEAVES = 8
"""Average leaves of a bucket at which the upper part grows by one page."""
LEAF_BYTES = 64
MAX_DEPTH = 36
_WIDTH = 1 << LEVELS
_MANY = 2
_EMPTY_PAGE = bytes(2 * _WIDTH) + MISSING * 2 * _WIDTH
"""For each node how many leaves lie below (0, 1, 2 for more), then their hashes.

Pages in the tree and nodes in a page are numbered alike: 1 for the top, and below n come 2n and 2n + 1.
"""


def prove(connection: sqlite3.Connection, bottom: int, index: bytes) -> PrefixProof:
    """Proof of the search for *index* in a tree whose buckets lie at depth *bottom*."""
    path = prefix(index, bottom)
    numbers = [1 << depth | path >> (bottom - depth) for depth in range(0, bottom, LEVELS)]
    pages = _read_pages(connection, numbers)
    hashes_left: list[bytes] = []
    hashes_right: list[bytes] = []
    for number in numbers:
        page, node = pages.get(number, _EMPTY_PAGE), 1
        for depth in range(number.bit_length() - 1, number.bit_length() - 1 + LEVELS):
            if page[node] < _MANY:
                # Everything below is one leaf or none: the search ends here, wherever its row lies.
                search, _, _ = prove_below(_leaves_below(connection, bottom, index, depth), depth, index)
                return PrefixProof((search,), (*hashes_left, *reversed(hashes_right)))
            node = 2 * node + (path >> (bottom - depth - 1) & 1)
            (hashes_left if node & 1 else hashes_right).append(_hash_of(page, node ^ 1))
    search, left, right = prove_below(read_bucket(connection, path), bottom, index)
    return PrefixProof((search,), (*hashes_left, *left, *right, *reversed(hashes_right)))


def prefix(index: bytes, depth: int) -> int:
    return int.from_bytes(index[:8], "big") >> (64 - depth)


def split_bucket(blob: bytes) -> list[PrefixLeaf]:
    return [
        PrefixLeaf(blob[i : i + 32], blob[i + 32 : i + LEAF_BYTES]) for i in range(0, len(blob), LEAF_BYTES)
    ]


def read_bucket(connection: sqlite3.Connection, number: int) -> list[PrefixLeaf]:
    row = connection.execute("SELECT leaves FROM map_buckets WHERE number = ?", (number,)).fetchone()
    return [] if row is None else split_bucket(row[0])


def _leaves_below(connection: sqlite3.Connection, bottom: int, index: bytes, depth: int) -> list[PrefixLeaf]:
    """The leaves under the node of *index* at *depth*, which are one or none."""
    first = prefix(index, depth) << (bottom - depth)
    row = connection.execute(
        "SELECT leaves FROM map_buckets WHERE number >= ? AND number < ? LIMIT 1",
        (first, first + (1 << (bottom - depth))),
    ).fetchone()
    return [] if row is None else split_bucket(row[0])


def _read_pages(connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, bytes]:
    return dict(connection.execute(
        "SELECT page, nodes FROM map_nodes WHERE page IN (SELECT value FROM json_each(?))", (json.dumps(list(numbers)),)
    ))


def _read_buckets(connection: sqlite3.Connection, numbers: Iterable[int]) -> dict[int, bytes]:
    return dict(connection.execute(
        "SELECT number, leaves FROM map_buckets WHERE number IN (SELECT value FROM json_each(?))",
        (json.dumps(list(numbers)),),
    ))


def _hash_of(page: bytes, node: int) -> bytes:
    return page[2 * _WIDTH + 32 * node : 2 * _WIDTH + 32 * node + 32]


def _set_node(page: bytearray, node: int, count: int, digest: bytes) -> None:
    page[node] = count
    page[2 * _WIDTH + 32 * node : 2 * _WIDTH + 32 * node + 32] = digest


def _hash_up(page: bytearray, changed: Iterable[int]) -> None:
    """Compute the nodes above those of the lowest level that *changed*."""
    nodes = set(changed)
    for _ in range(LEVELS):
        nodes = {node >> 1 for node in nodes}
        for node in nodes:
            left, right = page[2 * node], page[2 * node + 1]
            if left + right < _MANY:
                _set_node(page, node, left + right, _hash_of(page, 2 * node if left else 2 * node + 1))
            else:
                at = 2 * _WIDTH + 64 * node  # the two lie side by side
                _set_node(page, node, _MANY, sha256(b"\x03" + page[at : at + 64]).digest())


def write_leaves(
    connection: sqlite3.Connection, leaves: int, depth: int, root: bytes, changes: Sequence[PrefixLeaf]
) -> tuple[int, int, bytes]:
    """Put *changes* into the tree of *leaves* leaves, *depth* and *root*: the same three after it."""
    if len({change.index for change in changes}) != len(changes):
        raise AssertionError("a batch changes an index once")
    by_bucket: dict[int, list[PrefixLeaf]] = {}
    for change in sorted(changes):
        by_bucket.setdefault(prefix(change.index, depth), []).append(change)
    stored = _read_buckets(connection, by_bucket)
    nodes: dict[int, tuple[int, bytes]] = {}
    rows: list[tuple[int, bytes]] = []
    for number, news in by_bucket.items():
        old = stored.get(number, b"")
        merged = _merge(old, news)
        leaves += len(merged) - len(old) // LEAF_BYTES
        rows.append((number, b"".join(merged)))
        nodes[1 << depth | number] = min(len(merged), _MANY), _hash_leaves(merged, depth)
    connection.executemany("INSERT OR REPLACE INTO map_buckets VALUES (?, ?)", rows)
    if changes:
        root = _write_pages(connection, depth, nodes)
    while leaves > BUCKET_LEAVES << depth and depth < MAX_DEPTH:
        _grow(connection, depth)
        depth += LEVELS
    return leaves, depth, root


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
    if len(leaves) == 1:
        return sha256(b"\x02" + leaves[0]).digest()
    if not leaves:
        return MISSING
    byte, mask = depth >> 3, 128 >> (depth & 7)
    middle = next((place for place, leaf in enumerate(leaves) if leaf[byte] & mask), len(leaves))
    depth += 1
    return sha256(b"\x03" + _hash_leaves(leaves[:middle], depth) + _hash_leaves(leaves[middle:], depth)).digest()


def _write_pages(connection: sqlite3.Connection, depth: int, nodes: dict[int, tuple[int, bytes]]) -> bytes:
    """Store changed *nodes* of level *depth* in the pages above, all numbered as pages are; returns the root."""
    numbers: set[int] = set()
    above = nodes.keys()
    for _ in range(0, depth, LEVELS):
        above = {number >> LEVELS for number in above}
        numbers |= above
    pages = _read_pages(connection, numbers)
    for _ in range(0, depth, LEVELS):
        by_page: dict[int, list[int]] = {}
        for number in nodes:
            by_page.setdefault(number >> LEVELS, []).append(number)
        above_nodes: dict[int, tuple[int, bytes]] = {}
        for page_number, members in by_page.items():
            page = bytearray(pages.get(page_number, _EMPTY_PAGE))
            for number in members:
                _set_node(page, _lowest(number), *nodes[number])
            _hash_up(page, map(_lowest, members))
            pages[page_number] = bytes(page)
            above_nodes[page_number] = page[1], bytes(_hash_of(page, 1))
        nodes = above_nodes
    connection.executemany("INSERT OR REPLACE INTO map_nodes VALUES (?, ?)", sorted(pages.items()))
    return nodes[1][1]


def _lowest(number: int) -> int:
    """Where the node of that number in the tree lies among the lowest of its page."""
    return _WIDTH | number & (_WIDTH - 1)


def _grow(connection: sqlite3.Connection, depth: int) -> None:
    """Keep LEVELS more levels as pages: every bucket becomes a page and up to eight buckets.

    The pages above stay as they are, for a node's hash does not depend on how what lies below it is stored.
    """
    # From the last to the first: bucket n makes way for 8n to 8n + 7, which are n itself or read already.
    last = 1 << depth
    while rows := connection.execute(
        "SELECT number, leaves FROM map_buckets WHERE number < ? ORDER BY number DESC LIMIT 512", (last,)
    ).fetchall():
        last = rows[-1][0]
        connection.executemany("DELETE FROM map_buckets WHERE number = ?", ((number,) for number, _ in rows))
        buckets, pages = [], []
        for number, blob in rows:
            split: list[list[bytes]] = [[] for _ in range(_WIDTH)]
            for leaf in _merge(blob, ()):
                split[prefix(leaf, depth + LEVELS) & (_WIDTH - 1)].append(leaf)
            buckets += [(number << LEVELS | place, b"".join(leaves)) for place, leaves in enumerate(split) if leaves]
            page = bytearray(_EMPTY_PAGE)
            for place, leaves in enumerate(split):
                _set_node(page, _WIDTH | place, min(len(leaves), _MANY), _hash_leaves(leaves, depth + LEVELS))
            _hash_up(page, range(_WIDTH, 2 * _WIDTH))
            pages.append((1 << depth | number, bytes(page)))
        connection.executemany("INSERT INTO map_buckets VALUES (?, ?)", buckets)
        connection.executemany("INSERT OR REPLACE INTO map_nodes VALUES (?, ?)", pages)
