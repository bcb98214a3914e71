"""Subtree proofs against the definitions, written down naively, and against every other proof they must not pass for."""

from __future__ import annotations

from hashlib import sha256

import pytest

from ktlog.errors import Invalid, UsageError
from ktlog.tlog.subtree import is_subtree, prove_subtree, verify_subtree
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_consistency, prove_inclusion

MOST = 20
LEAVES = [hash_leaf(bytes([number])) for number in range(70)]
READ = leaf_reader(LEAVES)
WRONG = bytes(32)


def naive_hash(leaves):
    if len(leaves) == 1:
        return leaves[0]
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    return sha256(b"\x01" + naive_hash(leaves[:middle]) + naive_hash(leaves[middle:])).digest()


def naive_proof(start, end, leaves, known):
    """As the draft defines it: SUBTREE_SUBPROOF."""
    if (start, end) == (0, len(leaves)):
        return [] if known else [naive_hash(leaves)]
    middle = 1
    while middle * 2 < len(leaves):
        middle *= 2
    left, right = leaves[:middle], leaves[middle:]
    if end <= middle:
        return [*naive_proof(start, end, left, known), naive_hash(right)]
    if middle <= start:
        return [*naive_proof(start - middle, end - middle, right, known), naive_hash(left)]
    return [*naive_proof(0, end - middle, right, False), naive_hash(left)]


def naive_is_subtree(start, end):
    power = 1
    while power < end - start:
        power *= 2
    return start < end and start % power == 0


def cases(size):
    return [
        (start, end) for start in range(size) for end in range(start + 1, size + 1) if naive_is_subtree(start, end)
    ]


def test_what_a_subtree_is():
    for start in range(40):
        for end in range(40):
            assert is_subtree(start, end) == naive_is_subtree(start, end), (start, end)
    assert not is_subtree(-1, 1) and not is_subtree(0, 2**63) and is_subtree(0, 2**63 - 1)


@pytest.mark.parametrize("size", [*range(1, MOST + 1), 33])
def test_every_subtree_of_every_tree(size):
    for start, end in cases(size):
        check(start, end, size)


def check(start, end, size):
    proof = prove_subtree(start, end, size, READ)
    assert proof == naive_proof(start, end, LEAVES[:size], True)
    subtree, root = naive_hash(LEAVES[start:end]), naive_hash(LEAVES[:size])
    verify_subtree(start, end, size, proof, subtree, root)
    for wrong in (
        (start, end, size, proof, WRONG, root),
        (start, end, size, proof, subtree, WRONG),
        (start, end, size, [*proof, root], subtree, root),
        *((start, end, size, [*proof[:at], WRONG, *proof[at + 1 :]], subtree, root) for at in range(len(proof))),
        *([(start, end, size, proof[:-1], subtree, root)] if proof else []),
        *([(start, end, size, proof[::-1], subtree, root)] if proof != proof[::-1] else []),
        *([(start, end, size, [*proof[:-1], proof[-1][:31]], subtree, root)] if proof else []),
    ):
        with pytest.raises(Invalid, match="BadSubtreeProof"):
            verify_subtree(*wrong)


def test_it_is_the_consistency_proof_and_the_inclusion_proof_where_these_are_asked_for():
    for size in range(1, 40):
        for one in range(1, size + 1):
            assert prove_subtree(0, one, size, READ) == prove_consistency(one, size, READ)
            assert prove_subtree(one - 1, one, size, READ) == prove_inclusion(one - 1, size, READ)


@pytest.mark.parametrize("case", [(1, 3, 5), (0, 6, 5), (2, 2, 5), (4, 3, 5), (0, 1, 2**63)])
def test_what_is_no_subtree_of_the_tree_is_refused(case):
    with pytest.raises(UsageError, match="OutOfRange"):
        prove_subtree(*case, READ)
    with pytest.raises(UsageError, match="OutOfRange"):
        verify_subtree(*case, [], bytes(32), bytes(32))


def test_a_proof_for_the_greatest_tree_is_short():
    size = 2**63 - 1
    asked = []

    def read(nodes):
        asked.extend(nodes)
        return [bytes(32)] * len(nodes)

    assert len(prove_subtree(2**62, 2**62 + 1, size, read)) == 63
