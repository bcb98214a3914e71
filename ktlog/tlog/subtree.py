"""Proofs that a subtree belongs to a tree: what witnesses cosign for parts of a log, and mirrors check uploads by.

A subtree is a range of leaves [start, end) whose start is a multiple of the smallest power of two that is not below its
length: as far as hashes go, a tree of its own inside of every tree that reaches to its end.

Spec: draft-ietf-plants-merkle-tree-certs §4.1 and §4.4; C2SP tlog-witness v1.1 "sign-subtree", tlog-mirror.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from hmac import compare_digest

from ktlog.errors import Invalid
from ktlog.tlog.encoding import MAXIMUM_INTEGER
from ktlog.tlog.tree import HashReader, check_hashes, check_range, hash_node, hash_ranges, split

BAD_PROOF = "BadSubtreeProof"


def is_subtree(start: int, end: int) -> bool:
    """Whether [start, end) is a subtree."""
    return 0 <= start < end <= MAXIMUM_INTEGER and start % (1 << (end - start - 1).bit_length()) == 0


def prove_subtree(start: int, end: int, tree_size: int, read: HashReader) -> list[bytes]:
    """The proof that the subtree [start, end) is part of the tree of *tree_size* leaves.

    For start 0 it is the consistency proof, for a single leaf the inclusion proof.

    Raises:
        UsageError: ``OutOfRange``: no subtree, or not within the tree.
    """
    check_range(is_subtree(start, end) and end <= tree_size <= MAXIMUM_INTEGER)
    ranges = []
    first, last, whole = 0, tree_size, True
    while (start, end) != (first, last):
        middle = first + split(last - first)
        if end <= middle:
            ranges.append((middle, last))
            last = middle
            continue
        ranges.append((first, middle))
        if start < middle:
            # The rest of the subtree reaches to its end, and what the verifier holds is the hash of all of it.
            start, whole = middle, False
        first = middle
    if not whole:
        ranges.append((first, last))
    return hash_ranges(ranges[::-1], read)


def verify_subtree(
    start: int, end: int, tree_size: int, proof: Sequence[bytes], subtree_hash: bytes, root_hash: bytes
) -> None:
    """Check that the leaves [start, end) of a tree of *tree_size* with *root_hash* have *subtree_hash*.

    Raises:
        Invalid: ``BadSubtreeProof``.
        UsageError: ``OutOfRange``: no subtree, or not within the tree.
    """
    check_range(is_subtree(start, end) and end <= tree_size <= MAXIMUM_INTEGER)
    check_hashes(BAD_PROOF, *proof, subtree_hash, root_hash)
    remaining = iter(proof)
    found_subtree, found_root = _fold(start, end, tree_size, subtree_hash, remaining)
    if next(remaining, None) is not None:
        raise Invalid(BAD_PROOF, "the proof has more hashes than it needs")
    if not (compare_digest(found_subtree, subtree_hash) and compare_digest(found_root, root_hash)):
        raise Invalid(BAD_PROOF, "the proof does not lead from the subtree to the root")


def _fold(
    start: int, end: int, count: int, given: bytes | None, proof: Iterator[bytes]
) -> tuple[bytes, bytes]:
    """The hash of [start, end), and of the *count* leaves around it, from a proof read from its beginning.

    given: the hash of exactly [start, end), while that is what it was said to be; None for a part of it.
    """
    if (start, end) == (0, count):
        found = _next(proof) if given is None else given
        return found, found
    middle = split(count)
    if end <= middle:
        subtree, root = _fold(start, end, middle, given, proof)
        return subtree, hash_node(root, _next(proof))
    if start >= middle:
        subtree, root = _fold(start - middle, end - middle, count - middle, given, proof)
        return subtree, hash_node(_next(proof), root)
    subtree, root = _fold(0, end - middle, count - middle, None, proof)
    left = _next(proof)
    return hash_node(left, subtree), hash_node(left, root)


def _next(proof: Iterator[bytes]) -> bytes:
    found = next(proof, None)
    if found is None:
        raise Invalid(BAD_PROOF, "the proof has too few hashes")
    return found
