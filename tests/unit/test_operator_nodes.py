"""Tree nodes from tiles and leaf hashes: the same as from all the leaves, whatever is published."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlog.errors import StoreError
from ktlog.operator import nodes as nodes_module
from ktlog.operator.nodes import LogNodes, write_tree
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.tiles import TILE_WIDTH, bundles_between, parse_bundle, tile_nodes, tile_path, tiles_between
from ktlog.tlog.tree import (
    hash_leaf,
    leaf_reader,
    prove_consistency,
    prove_inclusion,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

LARGEST = 1100
SPECIAL = (0, 1, 2, 3, 255, 256, 257, 511, 512, 513, 767, 768, 769, 1023, 1024, 1025, LARGEST)
SIZES = st.one_of(st.sampled_from(SPECIAL), st.integers(0, LARGEST))


@cache
def leaves(size: int = LARGEST) -> list[bytes]:
    return [hash_leaf(b"entry %d" % index) for index in range(size)]


class Leaves:
    """As much of a store as LogNodes reads; counts how many leaf hashes it gave out."""

    def __init__(self, size: int, hashes: list[bytes] | None = None) -> None:
        self.size = size
        self.hashes = hashes or leaves()
        self.read = 0

    def state(self) -> SimpleNamespace:
        return SimpleNamespace(size=self.size)

    def leaf_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        assert 0 <= start <= end <= self.size, "beyond the log"
        self.read += end - start
        return tuple(self.hashes[start:end])


@cache
def tile_files(published: int, hashes: int = LARGEST) -> dict[str, bytes]:
    """The hash tiles of a tree of that size, each made from all its leaves, and no other file."""
    read = leaf_reader(leaves(hashes)[:published])
    return {
        tile_path(tile.level, tile.number, tile.width): b"".join(read(tile_nodes(tile)))
        for tile in tiles_between(0, published)
    }


def nodes_of(size: int, published: int) -> LogNodes:
    return LogNodes(Leaves(size), tile_files(published).get, published)


@settings(max_examples=200, deadline=None)
@given(sizes=st.tuples(SIZES, SIZES, SIZES), data=st.data())
def test_roots_and_proofs_of_every_size(sizes, data):
    published, tree_size, size = sorted(sizes)
    # The tree asked about may lie on either side of what is published.
    if data.draw(st.booleans()):
        published, tree_size = tree_size, published
    nodes, expected = nodes_of(size, published), leaf_reader(leaves()[:size])
    root = root_hash(tree_size, nodes)
    assert root == root_hash(tree_size, expected)
    if tree_size == 0:
        return
    leaf_index = data.draw(st.integers(0, tree_size - 1))
    proof = prove_inclusion(leaf_index, tree_size, nodes)
    assert proof == prove_inclusion(leaf_index, tree_size, expected)
    verify_inclusion(leaves()[leaf_index], leaf_index, tree_size, proof, root)
    old_size = data.draw(st.integers(1, tree_size))
    proof = prove_consistency(old_size, tree_size, nodes)
    assert proof == prove_consistency(old_size, tree_size, expected)
    verify_consistency(old_size, tree_size, proof, root_hash(old_size, expected), root)


@settings(max_examples=100, deadline=None)
@given(sizes=st.tuples(SIZES, SIZES).map(sorted), level=st.integers(0, 10), data=st.data())
def test_every_complete_node(sizes, level, data):
    published, size = sizes
    if size >> level == 0:
        return
    index = data.draw(st.integers(0, (size >> level) - 1))
    assert nodes_of(size, published)([(level, index)]) == leaf_reader(leaves()[:size])([(level, index)])


def test_a_proof_reads_a_few_tiles_and_not_the_log():
    store = Leaves(1100)
    asked: list[str] = []

    def read(path: str) -> bytes | None:
        asked.append(path)
        return tile_files(1030).get(path)

    nodes = LogNodes(store, read, 1030)
    prove_inclusion(700, 1100, nodes)
    assert asked == ["tile/1/000.p/4"]
    assert store.read <= 2 * TILE_WIDTH
    before = store.read
    prove_inclusion(701, 1100, nodes)  # what was read once is kept
    assert (asked, store.read) == (["tile/1/000.p/4"], before)


@pytest.mark.parametrize("answer", [None, b"", bytes(31), bytes(3 * 32), bytes(5 * 32)])
def test_a_tile_that_is_missing_or_has_another_length(answer):
    nodes = LogNodes(Leaves(1100), lambda path: answer, 1030)
    with pytest.raises(StoreError, match="MissingTile"):
        root_hash(1100, nodes)


@pytest.mark.parametrize("node", [(0, 10), (1, 5), (3, 1), (8, 0), (16, 0)])
def test_what_the_log_does_not_have(node):
    with pytest.raises(StoreError, match="MissingLeaf"):
        nodes_of(10, 0)([node])


def test_three_levels_of_tiles():
    """65,536 leaves fill a tile of the second level; proofs then cross all three."""
    count = 65_536 + 300
    hashes = leaves(count)
    expected = leaf_reader(hashes)
    for published in (count, 65_536, 65_535, 65_537, 600):
        files = tile_files(published, count)
        assert ("tile/2/000.p/1" in files) == (published >= 65_536)
        nodes = LogNodes(Leaves(count, hashes), files.get, published)
        root = root_hash(count, nodes)
        assert root == root_hash(count, expected)
        for leaf_index in (0, 65_535, 65_536, count - 1):
            verify_inclusion(hashes[leaf_index], leaf_index, count, prove_inclusion(leaf_index, count, nodes), root)
        assert prove_consistency(65_535, count, nodes) == prove_consistency(65_535, count, expected)


def test_a_partial_tile_that_was_removed_is_read_from_the_full_one():
    files = tile_files(700) | {"tile/1/000": b"".join(leaf_reader(leaves())([(8, index) for index in range(2)]))}
    files["tile/1/000"] += bytes(254 * 32)  # what a later tree has there
    del files["tile/1/000.p/2"]
    nodes = LogNodes(Leaves(800), files.get, 700)
    assert root_hash(700, nodes) == root_hash(700, leaf_reader(leaves()[:700]))


@pytest.mark.parametrize("start", [0, 1, 256, 300, 768, 1000])
def test_a_long_tree_is_written_in_steps_and_is_the_same(monkeypatch, tmp_path, start):
    """As after a move to another store, where a tree is written that does not fit into memory."""
    monkeypatch.setattr(nodes_module, "STEP_ENTRIES", 256)
    entries = [b"entry %d" % index for index in range(LARGEST)]
    asked: list[int] = []

    def read(first, end):
        asked.append(end - first)
        return entries[first:end]

    tiles = TileFiles.create(tmp_path / "tiles")
    root = root_hash(LARGEST, leaf_reader(leaves()))
    tiles.write_tiles(tile_files(start))
    write_tree(tiles, Leaves(LARGEST), read, start, LARGEST, root)
    assert max(asked) == 256
    for tile in (*tiles_between(0, LARGEST), *bundles_between(start, LARGEST)):
        data = tiles.read(tile.path)
        if tile.level == "entries":
            assert parse_bundle(data, tile.width) == entries[tile.number * 256 :][: tile.width]
        else:
            assert data == tile_files(LARGEST)[tile.path]
