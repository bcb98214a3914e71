"""Every tree up to 64 leaves against a second, naive implementation, and every bit of every proof.

The reference below is the text of RFC 9162 §2.1 turned into slices and recursion. It shares no
code with the product, not even the hashing of nodes.
"""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlog.errors import Invalid, KtlogError
from ktlog.tlog import tree

LARGEST = 64
ENTRIES = [b"entry %d" % number for number in range(LARGEST)]


def split(entries):
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return entries[:k], entries[k:]


def mth(entries):
    if not entries:
        return sha256().digest()
    if len(entries) == 1:
        return sha256(bytes([0]) + entries[0]).digest()
    left, right = split(entries)
    return sha256(bytes([1]) + mth(left) + mth(right)).digest()


def path(index, entries):
    if len(entries) == 1:
        return []
    left, right = split(entries)
    if index < len(left):
        return [*path(index, left), mth(right)]
    return [*path(index - len(left), right), mth(left)]


def subproof(size, entries, known):
    if size == len(entries):
        return [] if known else [mth(entries)]
    left, right = split(entries)
    if size <= len(left):
        return [*subproof(size, left, known), mth(right)]
    return [*subproof(size - len(left), right, False), mth(left)]


ROOTS = [mth(ENTRIES[:size]) for size in range(LARGEST + 1)]
LEAVES = [tree.hash_leaf(entry) for entry in ENTRIES]
READ = tree.leaf_reader(LEAVES)


MASKS = [1 << bit for bit in range(256)]


def flips(item, bits):
    value = int.from_bytes(item, "big")
    for bit in bits:
        yield (value ^ MASKS[bit]).to_bytes(32, "big")


def test_every_root():
    frontier = tree.Frontier()
    for size in range(LARGEST + 1):
        assert tree.root_hash(size, READ) == ROOTS[size]
        assert frontier.root() == ROOTS[size]
        assert tree.Frontier.decode(frontier.encode()) == frontier
        assert tree.Frontier().extend(LEAVES[:size]) == frontier
        if size < LARGEST:
            frontier = frontier.append(LEAVES[size])


def test_every_inclusion_proof():
    for size in range(1, LARGEST + 1):
        for index in range(size):
            proof = tree.prove_inclusion(index, size, READ)
            assert proof == path(index, ENTRIES[:size])
            tree.verify_inclusion(LEAVES[index], index, size, proof, ROOTS[size])


def test_every_consistency_proof():
    for size in range(LARGEST + 1):
        for old in range(size + 1):
            proof = tree.prove_consistency(old, size, READ)
            assert proof == (subproof(old, ENTRIES[:size], True) if old else [])
            tree.verify_consistency(old, size, proof, ROOTS[old], ROOTS[size])
            if old:
                assert tree.consistency_roots(old, size, proof, ROOTS[old]) == (ROOTS[old], ROOTS[size])


def bits_at_once(size, salt):
    """All 256 bits for small trees; for larger ones every eighth, at an offset that wanders."""
    return range(256) if size <= 20 else range(salt % 8, 256, 8)


def bits_left_over(size, salt):
    """What bits_at_once leaves out."""
    return [bit for bit in range(256) if bit not in bits_at_once(size, salt)]


def mutations(proof, size, salt, choose):
    for place, item in enumerate(proof):
        mutated = list(proof)
        for mutated[place] in flips(item, choose(size, salt + place)):
            yield mutated


CHOICES = [
    pytest.param(bits_at_once, id="at-once"),
    pytest.param(bits_left_over, id="left-over", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("choose", CHOICES)
def test_flipped_bits_of_every_inclusion_proof_are_refused(choose):
    for size in range(1, LARGEST + 1):
        for index in range(size):
            proof = tree.prove_inclusion(index, size, READ)
            accepted = 0
            for mutated in mutations(proof, size, index, choose):
                try:
                    tree.verify_inclusion(LEAVES[index], index, size, mutated, ROOTS[size])
                    accepted += 1
                except Invalid:
                    pass
            assert not accepted, (index, size)


@pytest.mark.parametrize("choose", CHOICES)
def test_flipped_bits_of_every_consistency_proof_are_refused(choose):
    for size in range(1, LARGEST + 1):
        for old in range(1, size):
            proof = tree.prove_consistency(old, size, READ)
            accepted = 0
            for mutated in mutations(proof, size, old, choose):
                try:
                    tree.verify_consistency(old, size, mutated, ROOTS[old], ROOTS[size])
                    accepted += 1
                except Invalid:
                    pass
            assert not accepted, (old, size)


def test_flipped_bits_of_the_leaf_and_of_the_roots_are_refused():
    for size in range(1, LARGEST + 1):
        index = (size * 7 + 3) % size
        proof = tree.prove_inclusion(index, size, READ)
        for bad in flips(LEAVES[index], range(256)):
            with pytest.raises(Invalid):
                tree.verify_inclusion(bad, index, size, proof, ROOTS[size])
        for bad in flips(ROOTS[size], range(256)):
            with pytest.raises(Invalid):
                tree.verify_inclusion(LEAVES[index], index, size, proof, bad)
        for old in {1, size // 2, size - 1, size} - {0}:
            proof = tree.prove_consistency(old, size, READ)
            for bad in flips(ROOTS[old], range(0, 256, 5)):
                with pytest.raises(Invalid):
                    tree.verify_consistency(old, size, proof, bad, ROOTS[size])
            for bad in flips(ROOTS[size], range(0, 256, 5)):
                with pytest.raises(Invalid):
                    tree.verify_consistency(old, size, proof, ROOTS[old], bad)


def test_every_wrong_position_and_length_is_refused():
    for size in range(1, 33):
        for index in range(size):
            proof = tree.prove_inclusion(index, size, READ)
            for wrong in range(size + 1):
                if wrong != index:
                    with pytest.raises(Invalid):
                        tree.verify_inclusion(LEAVES[index], wrong, size, proof, ROOTS[size])
            for mutated in ([*proof, LEAVES[0]], [LEAVES[0], *proof], proof[:-1], proof[1:]):
                if mutated != proof:
                    with pytest.raises(Invalid):
                        tree.verify_inclusion(LEAVES[index], index, size, mutated, ROOTS[size])
        for old in range(size + 1):
            proof = tree.prove_consistency(old, size, READ)
            for mutated in ([*proof, LEAVES[0]], [LEAVES[0], *proof], proof[:-1], proof[1:]):
                if mutated != proof:
                    with pytest.raises(Invalid):
                        tree.verify_consistency(old, size, mutated, ROOTS[old], ROOTS[size])


def test_every_rewritten_prefix_gives_the_right_new_root_and_another_old_one():
    """What evidence of a fork rests on, wherever the old size is no power of two."""
    forked = [b"other", *ENTRIES[1:]]
    for size in range(2, 33):
        for old in range(1, size):
            proof = tree.prove_consistency(old, size, READ)
            old_root, root = tree.consistency_roots(old, size, proof, mth(forked[:old]))
            if old & (old - 1):
                assert (old_root, root) == (ROOTS[old], ROOTS[size])
            else:
                assert old_root == mth(forked[:old])
                assert root != ROOTS[size]


@given(st.integers(1, 600), st.data())
def test_larger_trees(size, data):
    leaves = [tree.hash_leaf(number.to_bytes(2, "big")) for number in range(size)]
    read = tree.leaf_reader(leaves)
    root = tree.Frontier().extend(leaves).root()
    assert tree.root_hash(size, read) == root
    index = data.draw(st.integers(0, size - 1))
    tree.verify_inclusion(leaves[index], index, size, tree.prove_inclusion(index, size, read), root)
    old = data.draw(st.integers(0, size))
    old_root = tree.Frontier().extend(leaves[:old]).root()
    tree.verify_consistency(old, size, tree.prove_consistency(old, size, read), old_root, root)


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.lists(st.binary(max_size=33), max_size=70))
def test_no_size_or_proof_makes_verification_raise_anything_else(small, large, proof):
    for verify in (tree.verify_inclusion, None):
        with pytest.raises(Invalid):
            if verify:
                verify(LEAVES[0], small, large, proof, ROOTS[1])
            else:
                tree.verify_consistency(small, large, proof, ROOTS[1], ROOTS[2])


@given(st.binary(max_size=200))
def test_a_frontier_from_garbage(data):
    try:
        frontier = tree.Frontier.decode(data)
    except KtlogError:
        return
    assert frontier.encode() == data
