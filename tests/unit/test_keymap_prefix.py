"""The prefix tree against its own definition, and proofs that lie."""

from __future__ import annotations

import random
from dataclasses import replace

import naive_map
import pytest

from ktlog.errors import EncodingError, Invalid
from ktlog.keymap.prefix import (
    MISSING,
    Kind,
    PrefixLeaf,
    PrefixProof,
    Search,
    encode_prefix_proof,
    hash_parent,
    parse_prefix_proof,
    prove,
    prove_below,
    subtree_hash,
    verify,
)


def leaves_of(pairs: dict[bytes, bytes]) -> list[PrefixLeaf]:
    return sorted(PrefixLeaf(index, commitment) for index, commitment in pairs.items())


def some_index(rng: random.Random, known: list[bytes]) -> bytes:
    """A random index, or one that shares up to 254 bits with a known one."""
    if not known or rng.random() < 0.5:
        return rng.randbytes(32)
    shared = rng.choice([1, 7, 8, 63, 128, 250, 253, 254])
    number = int.from_bytes(rng.choice(known), "big") ^ (1 << (255 - shared))
    return number.to_bytes(32, "big")


def tree(rng: random.Random, size: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while len(found) < size:
        found[some_index(rng, list(found))] = rng.randbytes(32)
    return found


@pytest.mark.parametrize("size", [*range(13), 25])
def test_roots_and_single_searches_are_those_of_the_definition(size):
    rng = random.Random(size)
    pairs = tree(rng, size)
    leaves = leaves_of(pairs)
    root = naive_map.root(pairs)
    assert subtree_hash(leaves) == root
    for index in [*pairs, *(some_index(rng, list(pairs)) for _ in range(6))]:
        kind, depth, leaf, hashes = naive_map.search(pairs, index)
        if depth > 255:
            continue
        proof = prove(leaves, [index])
        assert proof.searches[0].kind == kind and proof.searches[0].depth == depth
        assert list(proof.hashes) == hashes
        end, left, right = prove_below(leaves, 0, index)
        assert (end, [*left, *right]) == (proof.searches[0], hashes)
        found = verify(proof, [index], root)[0]
        assert found == (PrefixLeaf(index, pairs[index]) if index in pairs else None)
        parsed = parse_prefix_proof(encode_prefix_proof(proof))
        assert verify(parsed, [index], root, [pairs.get(index)])[0] == found


def test_an_empty_tree():
    assert subtree_hash([]) == MISSING
    proof = prove([], [b"\x07" * 32])
    assert proof == PrefixProof((Search(Kind.NOTHING, 0),), ())
    assert verify(proof, [b"\x07" * 32], MISSING) == [None]


def test_indexes_that_share_254_bits():
    one, other = bytes(32), (2).to_bytes(32, "big")
    pairs = {one: b"\x01" * 32, other: b"\x02" * 32}
    proof = prove(leaves_of(pairs), [other])
    assert proof.searches[0].depth == 255 and len(encode_prefix_proof(proof)) == 3 + 2 + 32 * 255
    assert verify(proof, [other], naive_map.root(pairs)) == [PrefixLeaf(other, b"\x02" * 32)]


def test_forged_absence_proofs_are_refused():
    rng = random.Random(7)
    pairs = tree(rng, 30)
    leaves, root = leaves_of(pairs), naive_map.root(pairs)
    proofs = {index: prove(leaves, [index]) for index in pairs}
    for index, proof in proofs.items():
        inclusion = proof.searches[0]
        elsewhere = rng.choice([leaf for leaf in leaves if leaf.index != index])
        forged = [
            replace(proof, searches=(Search(Kind.NOTHING, inclusion.depth),)),
            replace(proof, searches=(Search(Kind.OTHER_LEAF, inclusion.depth, inclusion.leaf),)),
            replace(proof, searches=(Search(Kind.OTHER_LEAF, inclusion.depth, elsewhere),)),
            replace(proof, searches=(Search(Kind.INCLUSION, inclusion.depth, elsewhere),)),
            # Another actor's true proof, offered as the place where this search ends.
            replace(proofs[elsewhere.index], searches=(
                Search(Kind.OTHER_LEAF, proofs[elsewhere.index].searches[0].depth, elsewhere),
            )),
            replace(proof, hashes=proof.hashes[:-1]),
            replace(proof, hashes=(*proof.hashes, MISSING)),
            replace(proof, searches=(replace(inclusion, depth=inclusion.depth + 1),)),
            replace(proof, searches=(Search(Kind.NOTHING, 300),)),
            replace(proof, searches=()),
        ]
        for lie in forged:
            with pytest.raises(Invalid) as refusal:
                verify(lie, [index], root)
            assert refusal.value.name == "BadMapProof"


def test_a_leaf_that_a_malformed_tree_has_on_both_sides_is_at_home_on_one():
    leaf = PrefixLeaf(bytes(32), b"c" * 32)
    root = hash_parent(leaf.hash, leaf.hash)
    proof = PrefixProof((Search(Kind.OTHER_LEAF, 1, leaf),), (leaf.hash,))
    assert verify(proof, [b"\x40" + bytes(31)], root) == [None]
    with pytest.raises(Invalid, match="BadMapProof"):
        verify(proof, [b"\x80" + bytes(31)], root)


def test_every_flipped_bit_of_a_proof_is_noticed():
    rng = random.Random(3)
    pairs = {rng.randbytes(32): rng.randbytes(32) for _ in range(9)}
    absent = rng.randbytes(32)
    for index in (min(pairs), absent):
        data = encode_prefix_proof(prove(leaves_of(pairs), [index]))
        for position in range(len(data) * 8):
            flipped = bytearray(data)
            flipped[position // 8] ^= 1 << position % 8
            with pytest.raises((Invalid, EncodingError)) as refusal:
                verify(parse_prefix_proof(bytes(flipped)), [index], naive_map.root(pairs), [pairs.get(index)])
            assert refusal.value.name == "BadMapProof"


def test_searches_of_one_proof_must_agree():
    pairs = {b"\x00" * 32: b"\x01" * 32, b"\x80" + bytes(31): b"\x02" * 32}
    root = naive_map.root(pairs)
    indexes = [b"\x01" * 32, b"\x02" * 32]
    proof = prove(leaves_of(pairs), indexes)
    assert verify(proof, indexes, root) == [None, None]
    other = Search(Kind.OTHER_LEAF, 1, PrefixLeaf(b"\x03" * 32, b"\x01" * 32))
    deeper = Search(Kind.NOTHING, 2)
    for second in (other, deeper, Search(Kind.NOTHING, 1)):
        with pytest.raises(Invalid):
            verify(replace(proof, searches=(proof.searches[0], second)), indexes, root)


@pytest.mark.parametrize("data", [
    b"", b"\x02", b"\x02\x01\x00", b"\x02\x01\x00\x00", b"\x02\x04\x00\x00\x00", b"\x03\x01\x00\x00\x00\x00",
    b"\x02\x01\x01\x00\x00", b"\x02\x01\x00\x00\x00\x00", b"\x42\x02" + bytes(64), b"\x02\x01\x01\x00\x21" + bytes(33),
])
def test_malformed_encodings(data):
    with pytest.raises(EncodingError) as refusal:
        parse_prefix_proof(data)
    assert refusal.value.name == "BadMapProof"
