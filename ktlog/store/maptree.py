"""The map's prefix tree in rows of SQLite.

It is kept in two shapes. Its upper ``depth`` levels are node pages: a page holds the eight nodes three levels below its
own, so a search reads depth / 3 small rows. Below lie buckets, a handful of leaves each, sorted. An update rewrites its
bucket and the pages above it; a proof reads them and hashes a few dozen times.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence

from ktlog.keymap.prefix import PrefixLeaf, PrefixProof, bit, hash_parent, prove_below, subtree_hash

LEVELS = 3
"""Of the tree in one node page."""
BUCKET_LEAVES = 8
"""Average leaves of a bucket at which the upper part grows by one page."""
LEAF_BYTES = 64
MAX_DEPTH = 36
_NODE_BYTES = 33
_WIDTH = 1 << LEVELS
_EMPTY_NODE = bytes(_NODE_BYTES)
_MANY = 2


def prove(connection: sqlite3.Connection, bottom: int, index: bytes) -> PrefixProof:
    """Proof of the search for *index* in a tree whose buckets lie at depth *bottom*."""
    hashes_left: list[bytes] = []
    hashes_right: list[bytes] = []
    depth = 0
    while depth < bottom:
        page = _read_page(connection, depth, prefix(index, depth))
        for ends, sibling in _path_in_page(page, index, depth):
            if ends:
                # Everything below is one leaf or none: the search ends here, wherever its row lies.
                leaves = _leaves_below(connection, bottom, index, depth)
                search, _, _ = prove_below(leaves, depth, index)
                return PrefixProof((search,), (*hashes_left, *reversed(hashes_right)))
            (hashes_left if bit(index, depth) else hashes_right).append(sibling)
            depth += 1
    search, left, right = prove_below(read_bucket(connection, prefix(index, bottom)), bottom, index)
    return PrefixProof((search,), (*hashes_left, *left, *right, *reversed(hashes_right)))


def prefix(index: bytes, depth: int) -> int:
    return int.from_bytes(index, "big") >> (256 - depth)


def split_bucket(blob: bytes) -> list[PrefixLeaf]:
    return [
        PrefixLeaf(blob[i : i + 32], blob[i + 32 : i + LEAF_BYTES]) for i in range(0, len(blob), LEAF_BYTES)
    ]


def _join_bucket(leaves: Iterable[PrefixLeaf]) -> bytes:
    return b"".join(leaf.index + leaf.commitment for leaf in leaves)


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


def _read_page(connection: sqlite3.Connection, depth: int, number: int) -> bytes:
    row = connection.execute(
        "SELECT nodes FROM map_nodes WHERE depth = ? AND number = ?", (depth, number)
    ).fetchone()
    return _EMPTY_NODE * _WIDTH if row is None else row[0]


def _node(leaves: Sequence[PrefixLeaf], depth: int) -> bytes:
    """A node as it is stored: how many leaves lie below (0, 1, 2 for more), and its hash."""
    return bytes([min(len(leaves), _MANY)]) + subtree_hash(leaves, depth)


def _combine(left: bytes, right: bytes) -> bytes:
    if left[0] + right[0] < _MANY:
        return left if left[0] else right
    return bytes([_MANY]) + hash_parent(left[1:], right[1:])


def _nodes_of(page: bytes) -> list[bytes]:
    return [page[i : i + _NODE_BYTES] for i in range(0, len(page), _NODE_BYTES)]


def _fold(nodes: Sequence[bytes]) -> bytes:
    """The node above neighbours, of which there are 1, 2, 4 or 8."""
    while len(nodes) > 1:
        nodes = [_combine(nodes[i], nodes[i + 1]) for i in range(0, len(nodes), 2)]
    return nodes[0]


def _path_in_page(page: bytes, index: bytes, depth: int) -> Iterator[tuple[bool, bytes]]:
    """From the page's own node downwards: (whether the search ends here, the hash beside its next step)."""
    nodes = _nodes_of(page)
    position = prefix(index, depth + LEVELS) & (_WIDTH - 1)
    start, width = 0, _WIDTH
    while width > 1:
        ends = sum(node[0] for node in nodes[start : start + width]) < _MANY
        width >>= 1
        right = position & width
        yield ends, b"" if ends else _fold(nodes[start : start + width] if right else
                                           nodes[start + width : start + 2 * width])[1:]
        start += width if right else 0


def write_leaves(
    connection: sqlite3.Connection, leaves: int, depth: int, root: bytes, changes: Sequence[PrefixLeaf]
) -> tuple[int, int, bytes]:
    """Put *changes* into the tree of *leaves* leaves, *depth* and *root*: the same three after it."""
    by_bucket: dict[int, dict[bytes, bytes]] = {}
    for change in changes:
        bucket = by_bucket.setdefault(prefix(change.index, depth), {})
        if change.index in bucket:
            raise AssertionError("a batch changes an index once")
        bucket[change.index] = change.commitment
    added = 0
    nodes: dict[int, bytes] = {}
    rows: list[tuple[int, bytes]] = []
    for number, news in by_bucket.items():
        old = {leaf.index: leaf.commitment for leaf in read_bucket(connection, number)}
        merged = sorted(PrefixLeaf(index, commitment) for index, commitment in (old | news).items())
        added += len(merged) - len(old)
        rows.append((number, _join_bucket(merged)))
        nodes[number] = _node(merged, depth)
    connection.executemany("INSERT OR REPLACE INTO map_buckets VALUES (?, ?)", rows)
    leaves += added
    root = _write_pages(connection, depth, nodes)[1:] if changes else root
    while leaves > BUCKET_LEAVES << depth and depth < MAX_DEPTH:
        _grow(connection, depth)
        depth += LEVELS
    return leaves, depth, root


def _write_pages(connection: sqlite3.Connection, depth: int, nodes: dict[int, bytes]) -> bytes:
    """Store changed *nodes* of level *depth* in the pages above; returns the tree's top node."""
    while depth:
        depth -= LEVELS
        by_page: dict[int, list[int]] = {}
        for number in nodes:
            by_page.setdefault(number >> LEVELS, []).append(number)
        above: dict[int, bytes] = {}
        rows = []
        for page_number, numbers in by_page.items():
            page = bytearray(_read_page(connection, depth, page_number))
            for number in numbers:
                at = (number & (_WIDTH - 1)) * _NODE_BYTES
                page[at : at + _NODE_BYTES] = nodes[number]
            rows.append((depth, page_number, bytes(page)))
            above[page_number] = _fold(_nodes_of(bytes(page)))
        connection.executemany("INSERT OR REPLACE INTO map_nodes VALUES (?, ?, ?)", rows)
        nodes = above
    return nodes[0]


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
            page = []
            split: list[list[PrefixLeaf]] = [[] for _ in range(_WIDTH)]
            for leaf in split_bucket(blob):
                split[prefix(leaf.index, depth + LEVELS) & (_WIDTH - 1)].append(leaf)
            for place, leaves in enumerate(split):
                page.append(_node(leaves, depth + LEVELS))
                if leaves:
                    buckets.append((number << LEVELS | place, _join_bucket(leaves)))
            pages.append((depth, number, b"".join(page)))
        connection.executemany("INSERT INTO map_buckets VALUES (?, ?)", buckets)
        connection.executemany("INSERT OR REPLACE INTO map_nodes VALUES (?, ?, ?)", pages)
