"""Merkle trees: hashes, roots, proofs, and their verification. Hashes in, hashes out.

A prover names the complete subtrees it needs and asks for all of them in one call of a
:data:`HashReader`; the same prover so runs over memory, a database or tiles. A :data:`Node`
``(level, index)`` is the complete subtree over the leaves [index·2^level, (index+1)·2^level).
All ranges are half-open. Spec: RFC 9162 §2.1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice

from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.tlog.encoding import MAXIMUM_INTEGER

HASH_BYTES = 32

EMPTY_ROOT = sha256(b"").digest()
"""The root of a tree without leaves."""

Node = tuple[int, int]
"""(level, index): a complete subtree of 2^level leaves."""

HashReader = Callable[[Sequence[Node]], Sequence[bytes]]
"""Returns the hash of every node asked for, in the order asked."""


def hash_leaf(entry: bytes) -> bytes:
    """SHA-256(0x00, entry)."""
    return sha256(b"\x00" + entry).digest()


def hash_node(left: bytes, right: bytes) -> bytes:
    """SHA-256(0x01, left, right)."""
    return sha256(b"\x01" + left + right).digest()


def hash_level(hashes: Sequence[bytes]) -> list[bytes]:
    """The parents of *hashes*, paired from the left; a last one without partner is left out."""
    hasher = sha256
    return [
        hasher(b"\x01" + left + right).digest()
        for left, right in zip(islice(hashes, 0, None, 2), islice(hashes, 1, None, 2), strict=False)
    ]


def fold_right(hashes: Sequence[bytes]) -> bytes:
    """The root over neighbouring complete subtrees, largest first; EMPTY_ROOT over none."""
    if not hashes:
        return EMPTY_ROOT
    result = hashes[-1]
    for left in reversed(hashes[:-1]):
        result = hash_node(left, result)
    return result


def complete_subtrees(start: int, end: int) -> list[Node]:
    """The complete subtrees that make up the leaves [start, end), largest first.

    *start* must be a multiple of the smallest power of two that is not below end - start,
    as it is for every subtree a proof names.
    """
    nodes: list[Node] = []
    while start < end:
        level = (end - start).bit_length() - 1
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def root_hash(tree_size: int, read: HashReader) -> bytes:
    """The root of the first *tree_size* leaves."""
    check_range(0 <= tree_size <= MAXIMUM_INTEGER)
    return hash_ranges([(0, tree_size)], read)[0]


def prove_inclusion(leaf_index: int, tree_size: int, read: HashReader) -> list[bytes]:
    """The inclusion proof of a leaf: sibling hashes, leaf to root. Spec: RFC 9162 §2.1.3.1.

    Raises:
        UsageError: ``OutOfRange`` unless 0 <= leaf_index < tree_size.
    """
    check_range(0 <= leaf_index < tree_size <= MAXIMUM_INTEGER)
    ranges = []
    start, end = 0, tree_size
    while end - start > 1:
        middle = start + split(end - start)
        if leaf_index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return hash_ranges(ranges[::-1], read)


def prove_consistency(old_size: int, tree_size: int, read: HashReader) -> list[bytes]:
    """The proof that the first *old_size* leaves are a prefix. Spec: RFC 9162 §2.1.4.1.

    Empty for an old size of 0 and for equal sizes.

    Raises:
        UsageError: ``OutOfRange`` unless 0 <= old_size <= tree_size.
    """
    check_range(0 <= old_size <= tree_size <= MAXIMUM_INTEGER)
    if old_size in (0, tree_size):
        return []
    ranges = []
    start, end = 0, tree_size
    while old_size < end:
        middle = start + split(end - start)
        if old_size <= middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    # The verifier holds the old root; only when the old tree is not that very subtree does it need its hash.
    if start > 0:
        ranges.append((start, end))
    return hash_ranges(ranges[::-1], read)


def verify_inclusion(
    leaf_hash: bytes, leaf_index: int, tree_size: int, proof: Sequence[bytes], root_hash: bytes
) -> None:
    """Check that a tree of *tree_size* leaves with *root_hash* has *leaf_hash* at *leaf_index*.

    Args:
        leaf_hash: 32 bytes, from hash_leaf(entry); not the entry.
        leaf_index: zero-based, below tree_size.
        proof: 32-byte sibling hashes, leaf to root.
        root_hash: 32 bytes, from a checkpoint already verified.

    Raises:
        Invalid: ``BadInclusionProof`` for a wrong length, tree or position.

    Spec: RFC 9162 §2.1.3.2.

    >>> left, right = hash_leaf(b"a"), hash_leaf(b"b")
    >>> verify_inclusion(left, 0, 2, [right], hash_node(left, right))
    """
    if not 0 <= leaf_index < tree_size <= MAXIMUM_INTEGER:
        raise Invalid("BadInclusionProof", f"the leaf {leaf_index} is not in a tree of {tree_size}")
    check_hashes("BadInclusionProof", leaf_hash, root_hash, *proof)
    inner, border = _path_shape(leaf_index, tree_size)
    if len(proof) != inner + border:
        raise Invalid("BadInclusionProof", f"the proof has {len(proof)} hashes, not {inner + border}")
    result = leaf_hash
    for level in range(inner):
        pair = proof[level] + result if leaf_index >> level & 1 else result + proof[level]
        result = sha256(b"\x01" + pair).digest()
    for sibling in proof[inner:]:
        result = sha256(b"\x01" + sibling + result).digest()
    if result != root_hash:
        raise Invalid("BadInclusionProof", "the proof leads to another root")


def consistency_roots(
    old_size: int, tree_size: int, proof: Sequence[bytes], old_root: bytes
) -> tuple[bytes, bytes]:
    """The roots (old, new) that a consistency proof computes, for 0 < old_size <= tree_size.

    A proof that gives the signed new root but another old root convicts the log of a rewrite.
    Where *old_size* is a power of two (or equals *tree_size*) the proof starts from *old_root*
    itself, which then comes back unchanged; elsewhere *old_root* is not used.

    Raises:
        Invalid: ``BadConsistencyProof`` when the proof's length does not fit the sizes.

    Spec: RFC 9162 §2.1.4.2.
    """
    if not 0 < old_size <= tree_size <= MAXIMUM_INTEGER:
        raise Invalid("BadConsistencyProof", f"no proof leads from {old_size} to {tree_size} leaves")
    check_hashes("BadConsistencyProof", old_root, *proof)
    if old_size == tree_size:
        if proof:
            raise Invalid("BadConsistencyProof", "equal sizes need no proof")
        return old_root, old_root
    # Both roots are reached from the old tree's last complete subtree, of 2^shift leaves.
    shift = (old_size & -old_size).bit_length() - 1
    is_whole = old_size == 1 << shift
    path = [old_root, *proof] if is_whole else proof
    inner, border = _path_shape(old_size - 1 >> shift, (tree_size - 1 >> shift) + 1)
    if len(path) != 1 + inner + border:
        raise Invalid("BadConsistencyProof", f"the proof has {len(proof)} hashes, not the number that fits")
    old = new = path[0]
    for level in range(inner):
        sibling = path[1 + level]
        if old_size - 1 >> shift + level & 1:
            old = sha256(b"\x01" + sibling + old).digest()
            new = sha256(b"\x01" + sibling + new).digest()
        else:
            new = sha256(b"\x01" + new + sibling).digest()
    for sibling in path[1 + inner :]:
        old = sha256(b"\x01" + sibling + old).digest()
        new = sha256(b"\x01" + sibling + new).digest()
    return old, new


def verify_consistency(
    old_size: int, tree_size: int, proof: Sequence[bytes], old_root: bytes, root_hash: bytes
) -> None:
    """Check that the tree (*old_size*, *old_root*) is a prefix of (*tree_size*, *root_hash*).

    An old size of 0 needs an empty proof and EMPTY_ROOT; equal sizes an empty proof and equal roots.

    Raises:
        Invalid: ``BadConsistencyProof``.
    """
    check_hashes("BadConsistencyProof", old_root, root_hash)
    if tree_size == 0 and root_hash != EMPTY_ROOT:
        raise Invalid("BadConsistencyProof", "an empty tree has another root")
    if old_size == 0:
        if proof or tree_size < 0 or old_root != EMPTY_ROOT:
            raise Invalid("BadConsistencyProof", "from the empty tree the proof is empty")
        return
    if consistency_roots(old_size, tree_size, proof, old_root) != (old_root, root_hash):
        raise Invalid("BadConsistencyProof", "the proof leads to other roots")


@dataclass(frozen=True)
class Frontier:
    """The complete subtrees of a tree's right edge: all that appending needs to know.

    ``hashes`` holds one hash for each set bit of ``size``, largest subtree first.

    >>> Frontier().append(hash_leaf(b"a")).root() == hash_leaf(b"a")
    True
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAXIMUM_INTEGER or len(self.hashes) != self.size.bit_count():
            raise EncodingError("BadFrontier", "a frontier has one hash for each set bit of its size")
        if any(len(item) != HASH_BYTES for item in self.hashes):
            raise EncodingError("BadFrontier", "a hash does not have 32 bytes")

    def append(self, leaf_hash: bytes) -> Frontier:
        """The frontier after one more leaf, of which *leaf_hash* is the hash."""
        return self.extend((leaf_hash,))

    def extend(self, leaf_hashes: Iterable[bytes]) -> Frontier:
        """The frontier after any number of leaves."""
        size, hashes = self.size, list(self.hashes)
        for leaf_hash in leaf_hashes:
            result, remaining = leaf_hash, size
            while remaining & 1:
                result = hash_node(hashes.pop(), result)
                remaining >>= 1
            hashes.append(result)
            size += 1
        return Frontier(size, tuple(hashes))

    def append_each(self, leaf_hashes: Iterable[bytes]) -> tuple[Frontier, list[bytes]]:
        """The frontier after all the leaves, and the root of the tree after each of them."""
        size, hashes, roots = self.size, list(self.hashes), []
        for leaf_hash in leaf_hashes:
            result, remaining = leaf_hash, size
            while remaining & 1:
                result = hash_node(hashes.pop(), result)
                remaining >>= 1
            hashes.append(result)
            size += 1
            roots.append(fold_right(hashes))
        return Frontier(size, tuple(hashes)), roots

    def root(self) -> bytes:
        """The root of the whole tree."""
        return fold_right(self.hashes)

    def encode(self) -> bytes:
        """u64 size, then the hashes."""
        return self.size.to_bytes(8, "big") + b"".join(self.hashes)

    @classmethod
    def decode(cls, data: bytes) -> Frontier:
        """Inverse of :meth:`encode`. Raises EncodingError ``BadFrontier``."""
        if len(data) < 8 or (len(data) - 8) % HASH_BYTES:
            raise EncodingError("BadFrontier", f"a frontier does not have {len(data)} bytes")
        hashes = tuple(data[at : at + HASH_BYTES] for at in range(8, len(data), HASH_BYTES))
        return cls(int.from_bytes(data[:8], "big"), hashes)


def leaf_reader(leaf_hashes: Iterable[bytes]) -> HashReader:
    """A reader over leaves held in memory. Each level is computed once, when first asked for."""
    levels = [list(leaf_hashes)]

    def read(nodes: Sequence[Node]) -> list[bytes]:
        hashes = []
        for level, index in nodes:
            while len(levels) <= level:
                levels.append(hash_level(levels[-1]))
            check_range(0 <= index < len(levels[level]))
            hashes.append(levels[level][index])
        return hashes

    return read


def split(count: int) -> int:
    """The largest power of two below *count* (count > 1)."""
    return 1 << ((count - 1).bit_length() - 1)


def hash_ranges(ranges: Sequence[tuple[int, int]], read: HashReader) -> list[bytes]:
    """The hash of each range of leaves, from one batch of nodes."""
    pieces = [complete_subtrees(start, end) for start, end in ranges]
    nodes = [node for piece in pieces for node in piece]
    hashes = read(nodes) if nodes else ()
    if len(hashes) != len(nodes):
        raise AssertionError("a hash reader returned another number of hashes than it was asked for")
    remaining = iter(hashes)
    return [fold_right(list(islice(remaining, len(piece)))) for piece in pieces]


def _path_shape(index: int, count: int) -> tuple[int, int]:
    """How the path from node *index* of *count* to the root goes: (inner, border) numbers of siblings.

    Up to where it meets the tree's right edge there is a sibling at each level; above that only
    where the path is a right child, for on the edge a left child may have no sibling.
    """
    inner = (index ^ count - 1).bit_length()
    return inner, (index >> inner).bit_count()


def check_range(fits: bool) -> None:
    if not fits:
        raise UsageError("OutOfRange", "a leaf, node or size lies outside the tree")


def check_hashes(name: str, *hashes: bytes) -> None:
    for item in hashes:
        if len(item) != HASH_BYTES:
            raise Invalid(name, "a hash does not have 32 bytes")
