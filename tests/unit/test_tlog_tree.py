"""Known answers. Every tree up to 64 leaves is in tests/property/test_tlog_trees.py."""

from __future__ import annotations

import pytest

from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.tlog.tree import (
    EMPTY_ROOT,
    Frontier,
    complete_subtrees,
    consistency_roots,
    hash_leaf,
    hash_level,
    hash_node,
    leaf_reader,
    prove_consistency,
    prove_inclusion,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

# The eight leaves, and the roots over the first n of them, that the Certificate Transparency projects test with.
CT_LEAVES = ("", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f")
CT_ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
HASHES = [hash_leaf(bytes.fromhex(leaf)) for leaf in CT_LEAVES]
ROOTS = [bytes.fromhex(root) for root in CT_ROOTS]
READ = leaf_reader(HASHES)


def test_certificate_transparency_roots():
    assert ROOTS[0] == EMPTY_ROOT
    frontier = Frontier()
    for size, root in enumerate(ROOTS):
        assert root_hash(size, READ) == root
        assert Frontier().extend(HASHES[:size]).root() == root
        assert frontier.root() == root
        if size < 8:
            frontier = frontier.append(HASHES[size])


def test_a_proof_by_hand():
    a, b, c = HASHES[:3]
    assert prove_inclusion(2, 3, READ) == [hash_node(a, b)]
    assert prove_inclusion(0, 3, READ) == [b, c]
    assert prove_consistency(1, 3, READ) == [b, c]
    assert prove_consistency(2, 3, READ) == [c]
    assert prove_consistency(3, 4, READ) == [c, HASHES[3], hash_node(a, b)]


def test_a_prover_asks_once_and_only_for_complete_subtrees():
    calls = []

    def read(nodes):
        calls.append(list(nodes))
        return READ(nodes)

    prove_inclusion(4, 7, read)
    prove_consistency(3, 7, read)
    root_hash(7, read)
    assert len(calls) == 3
    assert all((index + 1) << level <= 7 for nodes in calls for level, index in nodes)
    assert calls[2] == [(2, 0), (1, 2), (0, 6)] == complete_subtrees(0, 7)


def test_nothing_is_read_where_there_is_nothing_to_prove():
    def read(nodes):
        raise AssertionError("read")

    assert prove_inclusion(0, 1, read) == []
    assert prove_consistency(0, 9, read) == []
    assert prove_consistency(9, 9, read) == []
    assert root_hash(0, read) == EMPTY_ROOT


def test_a_reader_that_miscounts_is_a_bug():
    with pytest.raises(AssertionError):
        root_hash(7, lambda nodes: HASHES[:2])


@pytest.mark.parametrize(
    "call",
    [
        lambda: prove_inclusion(8, 8, READ), lambda: prove_inclusion(-1, 8, READ), lambda: prove_inclusion(0, 0, READ),
        lambda: prove_consistency(9, 8, READ), lambda: prove_consistency(-1, 8, READ),
        lambda: root_hash(-1, READ), lambda: root_hash(9, READ), lambda: READ([(0, 8)]), lambda: READ([(4, 0)]),
    ],
)
def test_questions_outside_the_tree(call):
    with pytest.raises(UsageError) as caught:
        call()
    assert caught.value.name == "OutOfRange"


def test_the_empty_tree_and_equal_sizes():
    verify_consistency(0, 0, [], EMPTY_ROOT, EMPTY_ROOT)
    verify_consistency(0, 8, [], EMPTY_ROOT, ROOTS[8])
    verify_consistency(5, 5, [], ROOTS[5], ROOTS[5])
    for arguments in (
        (0, 8, [], ROOTS[1], ROOTS[8]),
        (0, 8, [ROOTS[1]], EMPTY_ROOT, ROOTS[8]),
        (0, 0, [], EMPTY_ROOT, ROOTS[1]),
        (0, 0, [], ROOTS[1], ROOTS[1]),
        (0, 0, [EMPTY_ROOT], EMPTY_ROOT, EMPTY_ROOT),
        (0, -1, [], EMPTY_ROOT, EMPTY_ROOT),
        (5, 5, [], ROOTS[4], ROOTS[5]),
        (5, 5, [ROOTS[5]], ROOTS[5], ROOTS[5]),
        (6, 5, [], ROOTS[6], ROOTS[5]),
        (4, 8, [], ROOTS[4], ROOTS[8]),
        (3, 8, [], ROOTS[3], ROOTS[8]),
    ):
        with pytest.raises(Invalid) as caught:
            verify_consistency(*arguments)
        assert caught.value.name == "BadConsistencyProof"


def test_consistency_roots_start_above_zero():
    with pytest.raises(Invalid):
        consistency_roots(0, 8, [], EMPTY_ROOT)
    assert consistency_roots(8, 8, [], ROOTS[8]) == (ROOTS[8], ROOTS[8])


def test_consistency_roots_tell_a_rewrite_from_nonsense():
    proof = prove_consistency(6, 8, READ)
    assert consistency_roots(6, 8, proof, bytes(32)) == (ROOTS[6], ROOTS[8])
    # From a power of two the proof starts at the old root itself, and shows nothing about it.
    old, new = consistency_roots(4, 8, prove_consistency(4, 8, READ), bytes(32))
    assert old == bytes(32)
    assert new != ROOTS[8]


def test_hashes_of_another_size_are_refused():
    proof = prove_inclusion(3, 8, READ)
    short = [proof[0][:-1], *proof[1:]]
    for arguments in (
        (HASHES[3][:-1], 3, 8, proof, ROOTS[8]), (HASHES[3], 3, 8, short, ROOTS[8]), (HASHES[3], 3, 8, proof, b""),
    ):
        with pytest.raises(Invalid) as caught:
            verify_inclusion(*arguments)
        assert caught.value.name == "BadInclusionProof"
    with pytest.raises(Invalid):
        verify_inclusion(b"", 0, 1, [], b"")
    with pytest.raises(Invalid):
        verify_consistency(1, 1, [], b"", b"")


def test_sizes_beyond_63_bits_are_refused():
    with pytest.raises(Invalid):
        verify_inclusion(HASHES[0], 0, 2**63, [HASHES[1]] * 63, ROOTS[1])
    with pytest.raises(Invalid):
        verify_consistency(1, 2**63, [HASHES[1]] * 63, ROOTS[1], ROOTS[2])


def test_hash_level_leaves_out_the_odd_one():
    assert hash_level(HASHES[:3]) == [hash_node(*HASHES[:2])]
    assert hash_level(HASHES[:1]) == hash_level([]) == []


def test_a_frontier_is_a_value():
    frontier = Frontier().extend(HASHES[:7])
    assert (frontier.size, len(frontier.hashes)) == (7, 3)
    assert frontier.encode() == (7).to_bytes(8, "big") + b"".join(frontier.hashes)
    assert Frontier.decode(frontier.encode()) == frontier
    assert Frontier.decode(bytes(8)) == Frontier()
    assert frontier.append(HASHES[7]).root() == ROOTS[8]
    assert frontier.size == 7


@pytest.mark.parametrize(
    "data", [b"", bytes(7), bytes(40), bytes(7) + b"\1", bytes(7) + b"\3" + bytes(32), b"\xff" + bytes(7) + bytes(256)]
)
def test_what_is_no_frontier(data):
    with pytest.raises(EncodingError) as caught:
        Frontier.decode(data)
    assert caught.value.name == "BadFrontier"


def test_frontiers_that_cannot_be():
    for size, hashes in ((-1, ()), (1, ()), (3, (bytes(32),)), (1, (bytes(31),))):
        with pytest.raises(EncodingError):
            Frontier(size, hashes)
    with pytest.raises(EncodingError):
        Frontier().append(b"short")
