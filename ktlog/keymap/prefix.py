"""The prefix tree: one leaf for every index, at its shortest unique prefix, and proofs of searches in it.

A node's hash does not depend on its depth: a subtree with a single leaf *is* that leaf, so an absent neighbour
costs nothing, and a root over a million leaves is reached in about twenty hashes. Searches for several indexes
share one proof, whose hashes come in left-to-right order.

>>> leaf = PrefixLeaf(bytes(32), b"\\x01" * 32)
>>> proof = prove([leaf], [bytes(32)])
>>> verify(proof, [bytes(32)], subtree_hash([leaf])) == [leaf]
True

Spec: KEYTRANS (draft-ietf-keytrans-protocol) "Prefix Tree" of both "Cryptographic Computations" and "Tree
Proofs"; directory map v1 §1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import NamedTuple

from ktlog.errors import EncodingError, Invalid

HASH_BYTES = 32
MISSING = bytes(HASH_BYTES)
"""Stands for a child that is not there, and is the root of the empty tree."""
MAX_DEPTH = 255
"""Two different indexes differ in one of 256 bits, so no leaf lies deeper than 255 and one more bit."""


class PrefixLeaf(NamedTuple):
    """index: where it lies, 32 bytes. commitment: what it says, 32 bytes; a tombstone's hash once erased."""

    index: bytes
    commitment: bytes

    @property
    def hash(self) -> bytes:
        return sha256(b"\x02" + self.index + self.commitment).digest()


class Kind(IntEnum):
    """How a search ended."""

    INCLUSION = 1
    OTHER_LEAF = 2
    """At the leaf of another index: nonInclusionLeaf."""
    NOTHING = 3
    """At a child that is not there: nonInclusionParent."""


@dataclass(frozen=True, slots=True)
class Search:
    """Where the search for one index ended.

    depth: of that place, 0 for the root. leaf: there for INCLUSION (whose commitment the verifier knows from
    elsewhere, so it is not encoded) and for OTHER_LEAF.
    """

    kind: Kind
    depth: int
    leaf: PrefixLeaf | None = None


@dataclass(frozen=True, slots=True)
class PrefixProof:
    """One search result for each index, in the order asked for, and the hashes that lead to the root."""

    searches: tuple[Search, ...]
    hashes: tuple[bytes, ...]


# -- the tree


def bit(index: bytes, depth: int) -> int:
    """Bit *depth* of *index*, from the most significant one: 0 goes left, 1 goes right."""
    return index[depth >> 3] >> (7 - (depth & 7)) & 1


def hash_parent(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x03" + left + right).digest()


def split_at(leaves: Sequence[PrefixLeaf], start: int, end: int, depth: int) -> int:
    """The first of leaves[start:end] whose bit *depth* is 1. They are sorted and agree on the bits before."""
    while start < end:
        middle = (start + end) // 2
        if bit(leaves[middle].index, depth):
            end = middle
        else:
            start = middle + 1
    return start


def subtree_hash(leaves: Sequence[PrefixLeaf], depth: int = 0) -> bytes:
    """The hash of the subtree at *depth* that holds exactly *leaves*, sorted by distinct indexes.

    At depth 0 it is the root of the map.
    """
    return _hash_range(leaves, 0, len(leaves), depth)


def _hash_range(leaves: Sequence[PrefixLeaf], start: int, end: int, depth: int) -> bytes:
    if end - start == 0:
        return MISSING
    if end - start == 1:
        return leaves[start].hash
    middle = split_at(leaves, start, end, depth)
    return hash_parent(
        _hash_range(leaves, start, middle, depth + 1), _hash_range(leaves, middle, end, depth + 1)
    )


# -- proofs


def prove(leaves: Sequence[PrefixLeaf], indexes: Sequence[bytes]) -> PrefixProof:
    """Search the tree of *leaves* (sorted, all of them in memory) for *indexes*, sorted and distinct."""
    found: list[Search] = []
    hashes: list[bytes] = []
    prove_all_below(leaves, 0, indexes, found, hashes)
    return PrefixProof(tuple(found), tuple(hashes))


def prove_all_below(
    leaves: Sequence[PrefixLeaf], depth: int, indexes: Sequence[bytes], found: list[Search], hashes: list[bytes]
) -> None:
    """Search the subtree at *depth* that holds *leaves* for *indexes*, all of which lie in it.

    Ends and hashes are appended, as a store needs them that comes from the left through the levels above.
    """
    _prove(leaves, 0, len(leaves), depth, indexes, 0, len(indexes), found, hashes)


def prove_below(
    leaves: Sequence[PrefixLeaf], depth: int, index: bytes
) -> tuple[Search, list[bytes], list[bytes]]:
    """One search in the subtree at *depth* that holds *leaves*: its end, and the hashes to its left and right.

    A store that keeps the hashes of the upper levels adds those outside, left ones before and right ones after.
    """
    start, end = 0, len(leaves)
    left: list[bytes] = []
    right: list[bytes] = []
    while end - start > 1:
        middle = split_at(leaves, start, end, depth)
        if bit(index, depth):
            left.append(_hash_range(leaves, start, middle, depth + 1))
            start = middle
        else:
            right.insert(0, _hash_range(leaves, middle, end, depth + 1))
            end = middle
        depth += 1
    return _end(leaves[start] if start < end else None, index, depth), left, right


def _end(leaf: PrefixLeaf | None, index: bytes, depth: int) -> Search:
    if leaf is None:
        return Search(Kind.NOTHING, depth)
    return Search(Kind.INCLUSION if leaf.index == index else Kind.OTHER_LEAF, depth, leaf)


def _prove(
    leaves: Sequence[PrefixLeaf], start: int, end: int, depth: int,
    indexes: Sequence[bytes], first: int, last: int, found: list[Search], hashes: list[bytes],
) -> None:
    if first == last:
        hashes.append(_hash_range(leaves, start, end, depth))
    elif end - start <= 1:
        leaf = leaves[start] if start < end else None
        found.extend(_end(leaf, index, depth) for index in indexes[first:last])
    else:
        middle = split_at(leaves, start, end, depth)
        border = _border(indexes, first, last, depth)
        _prove(leaves, start, middle, depth + 1, indexes, first, border, found, hashes)
        _prove(leaves, middle, end, depth + 1, indexes, border, last, found, hashes)


def _border(indexes: Sequence[bytes], first: int, last: int, depth: int) -> int:
    while first < last:
        middle = (first + last) // 2
        if bit(indexes[middle], depth):
            last = middle
        else:
            first = middle + 1
    return first


def verify(
    proof: PrefixProof, indexes: Sequence[bytes], root: bytes, commitments: Sequence[bytes | None] | None = None
) -> list[PrefixLeaf | None]:
    """Check a proof of searches for *indexes* (sorted, distinct, 32 bytes each) against *root*.

    Args:
        commitments: for each index the commitment that an INCLUSION is to be checked with, in place of the one in
            the proof (a parsed proof has none); None where no inclusion is expected.

    Returns:
        For each index its leaf, or None: the tree has no leaf for it.

    Raises:
        Invalid: ``BadMapProof``.
    """
    searches = _with_leaves(proof, indexes, commitments)
    if _climb(searches, indexes, proof.hashes) != root:
        raise _bad("it leads to another root")
    return [search.leaf if search.kind == Kind.INCLUSION else None for search in searches]


def _with_leaves(
    proof: PrefixProof, indexes: Sequence[bytes], commitments: Sequence[bytes | None] | None
) -> list[Search]:
    """The proof's searches, each checked by itself and with the leaf that it ended at."""
    if len(proof.searches) != len(indexes) or (commitments is not None and len(commitments) != len(indexes)):
        raise _bad(f"{len(proof.searches)} results for {len(indexes)} searches")
    searches = []
    for position, (search, index) in enumerate(zip(proof.searches, indexes, strict=True)):
        if len(index) != HASH_BYTES or (position and indexes[position - 1] >= index):
            raise AssertionError("indexes are 32 bytes each, sorted and distinct")
        if not 0 <= search.depth <= MAX_DEPTH + 1:
            raise _bad("a depth is out of range")
        if search.kind == Kind.INCLUSION and commitments is not None:
            if commitments[position] is None:
                raise _bad("it finds a leaf where none was said to be")
            search = Search(search.kind, search.depth, PrefixLeaf(index, commitments[position]))
        searches.append(search)
        _check_end(search, index)
    return searches


def _check_end(search: Search, index: bytes) -> None:
    leaf = search.leaf
    if search.kind == Kind.NOTHING:
        if leaf is not None:
            raise _bad("nothing was found, and a leaf is named")
        return
    if leaf is None or len(leaf.index) != HASH_BYTES or len(leaf.commitment) != HASH_BYTES:
        raise _bad("a leaf is missing or malformed")
    if (leaf.index == index) != (search.kind == Kind.INCLUSION):
        raise _bad("the leaf is not the one of this kind of result")
    # A leaf from elsewhere in the tree would otherwise stand for the absence of any index.
    if not same_prefix(leaf.index, index, search.depth):
        raise _bad("the other leaf does not lie where the search went")


def same_prefix(one: bytes, other: bytes, depth: int) -> bool:
    """Whether the first *depth* bits of two indexes are the same."""
    different = int.from_bytes(one, "big") ^ int.from_bytes(other, "big")
    return different >> (8 * HASH_BYTES - depth) == 0 if depth else True


def _climb(searches: Sequence[Search], indexes: Sequence[bytes], hashes: Sequence[bytes]) -> bytes:
    """Hash from the ends of the searches to the root."""
    supply = iter(hashes)
    root = _climb_from(searches, indexes, 0, len(searches), 0, supply)
    if next(supply, None) is not None:
        raise _bad("it holds more hashes than the searches need")
    return root


def _climb_from(
    searches: Sequence[Search], indexes: Sequence[bytes], start: int, end: int, depth: int,
    supply: Iterator[bytes],
) -> bytes:
    if start == end:
        value = next(supply, None)
        if value is None:
            raise _bad("it holds fewer hashes than the searches need")
        if len(value) != HASH_BYTES:
            raise _bad("a hash is not 32 bytes")
        return value
    depths = {search.depth for search in searches[start:end]}
    if depth in depths:
        if len(depths) > 1:
            raise _bad("a search ends where another goes on")
        return _terminal(searches, start, end)
    if min(depths) < depth or depth > MAX_DEPTH:
        raise _bad("a depth does not fit its neighbours'")
    border = _border(indexes, start, end, depth)
    left = _climb_from(searches, indexes, start, border, depth + 1, supply)
    return hash_parent(left, _climb_from(searches, indexes, border, end, depth + 1, supply))


def _terminal(searches: Sequence[Search], start: int, end: int) -> bytes:
    """All that end at one place found the same leaf there, or nothing."""
    leaf = searches[start].leaf
    if any(search.leaf != leaf for search in searches[start:end]):
        raise _bad("searches that end together found different leaves")
    return MISSING if leaf is None else leaf.hash


def _bad(what: str) -> Invalid:
    return Invalid("BadMapProof", f"the proof from the map does not hold: {what}")


# -- encoding, one result


def encode_prefix_proof(proof: PrefixProof) -> bytes:
    """A proof of one search, in KEYTRANS's encoding. Inverse of :func:`parse_prefix_proof`."""
    (search,) = proof.searches
    if search.depth > MAX_DEPTH:
        raise AssertionError("a search that ends at depth 256 means two equal indexes but for the last bit")
    other = search.leaf if search.kind == Kind.OTHER_LEAF else None
    leaf = b"" if other is None else other.index + other.commitment
    result = bytes([search.kind]) + leaf + bytes([search.depth])
    hashes = b"".join(proof.hashes)
    return bytes([len(result)]) + result + len(hashes).to_bytes(2, "big") + hashes


def parse_prefix_proof(data: bytes) -> PrefixProof:
    """Read a proof of one search. An INCLUSION's leaf is left out: give its commitment to :func:`verify`.

    Raises:
        EncodingError: ``BadMapProof``.
    """
    if len(data) < 3 or len(data) < 1 + data[0] + 2:
        raise EncodingError("BadMapProof", "the map's proof is cut short")
    result, rest = data[1 : 1 + data[0]], data[1 + data[0] :]
    count, left_over = divmod(int.from_bytes(rest[:2], "big"), HASH_BYTES)
    if left_over or len(rest) != 2 + count * HASH_BYTES or not result or result[0] not in list(Kind):
        raise EncodingError("BadMapProof", "the map's proof is malformed")
    kind, leaf = Kind(result[0]), None
    if len(result) != (66 if kind == Kind.OTHER_LEAF else 2):
        raise EncodingError("BadMapProof", "the map's proof has a result of another length than its kind's")
    if kind == Kind.OTHER_LEAF:
        leaf = PrefixLeaf(result[1:33], result[33:65])
    depth = result[-1]
    if depth != count:
        raise EncodingError("BadMapProof", "the map's proof has not one hash for every level")
    hashes = tuple(rest[2 + i * HASH_BYTES : 2 + (i + 1) * HASH_BYTES] for i in range(count))
    return PrefixProof((Search(kind, depth, leaf),), hashes)
