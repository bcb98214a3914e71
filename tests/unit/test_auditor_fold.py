"""The auditor's own tree against the operator's: same root, same tiles, same proofs, other code."""

from __future__ import annotations

from hashlib import sha256

import pytest

from auditor.fold import TreeFold, nodes_for_consistency
from ktlog.tlog.tiles import TILE_WIDTH, tile_nodes, tiles_between
from ktlog.tlog.tree import EMPTY_ROOT, Frontier, leaf_reader, prove_consistency, root_hash, verify_consistency


def leaves(count: int) -> list[bytes]:
    return [sha256(b"leaf %d" % index).digest() for index in range(count)]


def fold_of(hashes: list[bytes], wanted=()) -> TreeFold:
    fold = TreeFold(wanted)
    for leaf_hash in hashes:
        fold.append(leaf_hash)
    return fold


@pytest.mark.parametrize("size", [*range(70), 255, 256, 257, 511, 512, 513, 1000])
def test_the_root_is_that_of_the_reader(size: int) -> None:
    hashes = leaves(size)
    fold = fold_of(hashes)
    assert fold.size == size
    assert fold.root() == root_hash(size, leaf_reader(hashes))


def test_the_empty_tree() -> None:
    assert TreeFold().root() == EMPTY_ROOT
    assert TreeFold().full_tiles() == TreeFold().partial_tiles() == []


@pytest.mark.parametrize("size", [1, 255, 256, 257, 600, 256 * 256, 256 * 257 + 3])
def test_every_tile_of_every_level(size: int) -> None:
    hashes = leaves(size)
    fold = TreeFold()
    found = {}
    for number, leaf_hash in enumerate(hashes, 1):
        fold.append(leaf_hash)
        if number % TILE_WIDTH == 0:
            found.update({(level, index): data for level, index, data in fold.full_tiles()})
    found.update({(level, index): data for level, index, data in fold.partial_tiles()})
    read = leaf_reader(hashes)
    expected = {(tile.level, tile.number): b"".join(read(tile_nodes(tile))) for tile in tiles_between(0, size)}
    assert found == expected
    assert fold.root() == Frontier().extend(hashes).root()


@pytest.mark.parametrize("size", [2, 3, 8, 13, 64])
def test_the_kept_nodes_make_every_consistency_proof(size: int) -> None:
    hashes = leaves(size)
    for old_size in range(1, size):
        fold = fold_of(hashes, nodes_for_consistency(old_size, size))
        old_root = root_hash(old_size, fold.read)
        assert old_root == root_hash(old_size, leaf_reader(hashes))
        verify_consistency(old_size, size, prove_consistency(old_size, size, fold.read), old_root, fold.root())
        # Only what a proof needs is kept.
        assert len(fold.nodes) <= 2 * size.bit_length()


def test_memory_does_not_grow_with_the_tree() -> None:
    fold = TreeFold()
    for number, leaf_hash in enumerate(leaves(5000), 1):
        fold.append(leaf_hash)
        if number % TILE_WIDTH == 0:
            fold.full_tiles()
            assert sum(len(data) for _, _, data in fold.partial_tiles()) < 2 * TILE_WIDTH * 32
