from __future__ import annotations

import pytest

from ktlog.errors import EncodingError, Invalid, NotLogged, Unreachable, UsageError
from ktlog.tlog.tiles import (
    Tile,
    TileHashReader,
    bundles_between,
    entry_bundle_path,
    format_bundle,
    number_path,
    parse_bundle,
    parse_number_path,
    parse_tile_path,
    tile_nodes,
    tile_path,
    tiles_between,
)
from ktlog.tlog.tree import (
    EMPTY_ROOT,
    Frontier,
    hash_leaf,
    leaf_reader,
    prove_consistency,
    prove_inclusion,
    root_hash,
    verify_consistency,
    verify_inclusion,
)

LEAVES = [hash_leaf(number.to_bytes(4, "big")) for number in range(70_000)]
READ = leaf_reader(LEAVES)


class Log:
    """The files of a log that published a checkpoint at each of the sizes given, and who asked for what."""

    def __init__(self, *sizes):
        self.files = {}
        self.asked = []
        old = 0
        for size in sizes:
            for tile in tiles_between(old, size):
                self.files[tile.path] = b"".join(READ(tile_nodes(tile)))
            old = size

    def fetch(self, path):
        self.asked.append(path)
        if path not in self.files:
            raise Unreachable("BadStatus", "404")
        return self.files[path]

    def reader(self, size, **options):
        return TileHashReader(self.fetch, size, root_hash(size, READ), **options)


# -- paths


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 1234, 5), "tile/0/x001/234.p/5"),
        (Tile(63, 1234067, 255), "tile/63/x001/x234/067.p/255"),
        (Tile("entries", 999), "tile/entries/999"),
        (Tile("entries", 1000, 1), "tile/entries/x001/000.p/1"),
        (Tile(0, 2**63 - 1), "tile/0/x009/x223/x372/x036/x854/x775/807"),
    ],
)
def test_paths(tile, path):
    assert tile.path == path
    assert tile_path(tile.level, tile.number, tile.width) == path
    assert parse_tile_path(path) == tile


def test_entry_bundle_path():
    assert entry_bundle_path(1234, 5) == "tile/entries/x001/234.p/5"
    assert entry_bundle_path(0, 256) == "tile/entries/000"
    assert number_path(0) == "000"


@pytest.mark.parametrize(
    "path",
    [
        "", "/tile/0/000", "tile/0/000/", "tile/0/0", "tile/0/00", "tile/0/0000", "tile/00/000", "tile/64/000",
        "tile/-1/000", "tile/0/x000/001", "tile/0/001/002", "tile/0/x001", "tile/0/x001/x002", "tile/0/000.p/0",
        "tile/0/000.p/256", "tile/0/000.p/05", "tile/0/000.p/", "tile/0/000.p", "tile/0/000.p/5 ", "tile/0/000.p/5\n",
        "tile/entry/000", "tile/entries/x1/000", "tile/8/000/..", "tile/0/٠٠٠", "tile/٣/000", "tile/0/000.p/٣",
        "tile/0/x999/x999/x999/x999/x999/x999/999", "tile/0/X001/000", "tile/+1/000", "tile//000", "tile/0/000.P/5",
        "tile/0/" + "x001/" * 50 + "000",
    ],
)
def test_other_paths_are_refused(path):
    with pytest.raises(EncodingError) as caught:
        parse_tile_path(path)
    assert caught.value.name == "BadTilePath"


@pytest.mark.parametrize("text", ["", "0", "x000/000", "000/", "/000", "000\n", "x9", "x001/x002"])
def test_other_numbers_are_refused(text):
    with pytest.raises(EncodingError):
        parse_number_path(text)


def test_tiles_that_cannot_be():
    for tile in ((-1, 0, 1), (64, 0, 1), (0, -1, 1), (0, 2**63, 1), (0, 0, 0), (0, 0, 257), ("x", 0, 1)):
        with pytest.raises(UsageError):
            tile_path(*tile)


# -- bundles


def test_bundles():
    entries = [b"", b"a", b"bc", b"\0" * 65535]
    data = format_bundle(entries)
    assert data[:8] == b"\0\0\0\1a\0\2b"
    assert parse_bundle(data, 4) == entries
    for width in (3, 5, 0, 257, -1):
        with pytest.raises(EncodingError) as caught:
            parse_bundle(data, width)
        assert caught.value.name == "BadBundle"
    for bad in (data[:-1], data + b"\0", b"", b"\0"):
        with pytest.raises(EncodingError):
            parse_bundle(bad, 4)


def test_bundles_that_cannot_be_written():
    for entries in ([], [b""] * 257, [b"\0" * 65536]):
        with pytest.raises(EncodingError):
            format_bundle(entries)
    assert len(parse_bundle(format_bundle([b"x"] * 256), 256)) == 256


# -- which tiles there are


def test_the_specifications_example():
    tiles = tiles_between(0, 70_000)
    by_level = {level: [tile for tile in tiles if tile.level == level] for level in range(4)}
    assert [tile.width for tile in by_level[0]] == [256] * 273 + [112]
    assert [tile.width for tile in by_level[1]] == [256, 17]
    assert by_level[2] == [Tile(2, 0, 1)]
    assert by_level[3] == []
    assert tiles_between(0, 256) == [Tile(0, 0), Tile(1, 0, 1)]


def test_growth_writes_what_changed():
    assert tiles_between(5, 5) == []
    assert tiles_between(0, 1) == [Tile(0, 0, 1)]
    assert tiles_between(5, 9) == [Tile(0, 0, 9)]
    assert tiles_between(255, 256) == [Tile(0, 0), Tile(1, 0, 1)]
    assert tiles_between(256, 257) == [Tile(0, 1, 1)]
    assert tiles_between(250, 520) == [Tile(0, 0), Tile(0, 1), Tile(0, 2, 8), Tile(1, 0, 2)]
    assert bundles_between(250, 520) == [Tile("entries", 0), Tile("entries", 1), Tile("entries", 2, 8)]
    assert bundles_between(256, 256) == []
    for old, new in ((5, 4), (-1, 4), (0, 2**63)):
        with pytest.raises(UsageError):
            tiles_between(old, new)
        with pytest.raises(UsageError):
            bundles_between(old, new)


def test_growth_in_steps_leaves_the_tiles_of_growth_at_once():
    sizes = [1, 5, 256, 257, 700, 65535, 65536, 65537, 70_000]
    steps = {}
    for old, new in zip([0, *sizes], sizes, strict=False):
        steps.update((tile.path, tile) for tile in tiles_between(old, new))
    assert {tile.path for tile in tiles_between(0, 70_000)} <= steps.keys()
    for size in sizes:
        # Whatever size was published, its own right edge is there.
        assert all(tile.path in steps for tile in tiles_between(0, size) if tile.width < 256)


def test_tile_nodes():
    assert tile_nodes(Tile(1, 2, 3)) == [(8, 512), (8, 513), (8, 514)]
    with pytest.raises(UsageError):
        tile_nodes(Tile("entries", 0))


# -- the reader


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 700, 65_536, 65_793, 70_000])
def test_proofs_from_tiles(size):
    log = Log(size)
    read = log.reader(size)
    root = root_hash(size, READ)
    assert root_hash(size, read) == root == Frontier().extend(LEAVES[:size]).root()
    for index in {0, 1, size // 3, size // 2, size - 1} & set(range(size)):
        verify_inclusion(LEAVES[index], index, size, prove_inclusion(index, size, read), root)
    for old in {0, 1, 255, 256, 257, size // 2, size - 1, size} & set(range(size + 1)):
        proof = prove_consistency(old, size, read)
        verify_consistency(old, size, proof, root_hash(old, READ), root)
    assert len(log.asked) == len(set(log.asked)), "a tile was fetched twice"
    exists = {tile.path for tile in tiles_between(0, size)}
    assert set(log.asked) <= exists, "a tile was asked for that this size does not require"


def test_an_inclusion_proof_needs_one_tile_for_each_level():
    log = Log(70_000)
    prove_inclusion(1000, 70_000, log.reader(70_000))
    edge = ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1"]
    assert sorted(log.asked) == sorted([*edge, "tile/1/000", "tile/0/003"])


def test_the_full_tile_replaces_a_partial_one_that_is_gone():
    log = Log(300, 70_000)
    del log.files["tile/0/001.p/44"]
    read = log.reader(300)
    assert root_hash(300, read) == root_hash(300, READ)
    assert log.asked == ["tile/0/001.p/44", "tile/0/001", "tile/1/000.p/1"]
    verify_inclusion(LEAVES[280], 280, 300, prove_inclusion(280, 300, read), root_hash(300, READ))


def test_a_tile_that_is_nowhere():
    log = Log(300)
    del log.files["tile/0/001.p/44"]
    with pytest.raises(Unreachable):
        log.reader(300)([(0, 0)])
    assert log.asked[:2] == ["tile/0/001.p/44", "tile/0/001"]

    def fetch(path):
        raise NotLogged("NoTile", path)

    with pytest.raises(NotLogged) as caught:
        TileHashReader(fetch, 300, EMPTY_ROOT)([(0, 0)])
    assert caught.value.message == "tile/0/001.p/44"


def test_every_tile_is_checked():
    """Change one hash in any tile that a proof needs, even one the proof does not use: no proof."""
    size = 70_000
    log = Log(size)
    needed = ["tile/0/273.p/112", "tile/1/001.p/17", "tile/2/000.p/1", "tile/1/000", "tile/0/003"]
    for path in needed:
        honest = log.files[path]
        for place in {0, len(honest) // 64 * 32, len(honest) - 1}:
            changed = bytearray(honest)
            changed[place] ^= 1
            log.files[path] = bytes(changed)
            with pytest.raises(Invalid) as caught:
                prove_inclusion(1000, size, log.reader(size))
            assert caught.value.name == "BadTile"
        for wrong in (b"", honest[:-1], honest + honest[:32], honest[32:] + honest[:32]):
            if wrong != honest:
                log.files[path] = wrong
                with pytest.raises(Invalid):
                    prove_inclusion(1000, size, log.reader(size))
        log.files[path] = honest
    prove_inclusion(1000, size, log.reader(size))


def test_a_full_tile_fetched_in_place_of_a_partial_one_is_checked_too():
    log = Log(300, 70_000)
    del log.files["tile/0/001.p/44"]
    log.files["tile/0/001"] = bytes(32) + log.files["tile/0/001"][32:]
    with pytest.raises(Invalid):
        log.reader(300)([(0, 0)])


def test_a_failed_reader_does_not_remember_what_failed():
    log = Log(70_000)
    honest = log.files["tile/0/003"]
    log.files["tile/0/003"] = bytes(8192)
    read = log.reader(70_000)
    for _ in range(2):
        with pytest.raises(Invalid):
            read([(0, 1000)])
    log.files["tile/0/003"] = honest
    assert read([(0, 1000)]) == [LEAVES[1000]]


def test_another_root_is_refused():
    log = Log(700)
    with pytest.raises(Invalid):
        TileHashReader(log.fetch, 700, root_hash(699, READ))([(0, 0)])
    with pytest.raises(Invalid):
        TileHashReader(Log(699).fetch, 699, root_hash(700, READ))([(0, 0)])


def test_nodes_outside_the_tree_are_refused_before_anything_is_fetched():
    log = Log(700)
    read = log.reader(700)
    for node in ((0, 700), (9, 1), (10, 0), (-1, 0), (0, -1)):
        with pytest.raises(UsageError):
            read([(0, 0), node])
    assert log.asked == []


def test_the_empty_tree():
    log = Log()
    assert log.reader(0)([]) == []
    with pytest.raises(Invalid):
        TileHashReader(log.fetch, 0, bytes(32))([])
    assert log.asked == []


def test_the_cache_is_bounded():
    log = Log(70_000)
    read = log.reader(70_000, cache_tiles=2)
    for _ in range(2):
        for index in (0, 300, 600, 900):
            assert read([(0, index)]) == [LEAVES[index]]
    assert len(log.asked) > len(set(log.asked))
    assert log.reader(70_000, cache_tiles=0)([(0, 0), (0, 300)]) == [LEAVES[0], LEAVES[300]]


def test_what_is_kept_of_a_tile_vouches_for_what_is_read_of_it_again():
    """Each hash of a tile that was dropped and fetched again is checked, without the rest of it."""
    log = Log(70_000)
    read = log.reader(70_000, cache_tiles=1)
    assert read([(0, 5), (0, 300)]) == [LEAVES[5], LEAVES[300]]
    path = tile_path(0, 0)
    whole = log.files[path]
    log.files[path] = bytes([whole[0] ^ 1]) + whole[1:]
    assert read([(0, 8), (2, 2)]) == [LEAVES[8], *READ([(2, 2)])]
    for node in ((0, 0), (0, 7), (1, 3), (2, 0)):
        with pytest.raises(Invalid, match="BadTile"):
            read([node])
    log.files[path] = whole[:-1]
    with pytest.raises(Invalid, match="BadTile"):
        read([(0, 255)])
    log.files[path] = whole
    everything = [(level, index) for level in range(9) for index in range(256 >> level)]
    assert read(everything) == READ(everything)


def test_a_grown_tree_takes_what_is_kept_if_its_root_vouches_for_it():
    log = Log(69_000, 70_000)
    read = log.reader(69_000)
    assert read([(0, 5)]) == [LEAVES[5]]
    read.advance(70_000, root_hash(70_000, READ))
    del log.asked[:]
    assert read([(0, 5), (0, 69_500)]) == [LEAVES[5], LEAVES[69_500]]
    assert tile_path(0, 0) not in log.asked
    forked = Log(70_000)
    others = leaf_reader([hash_leaf(b"other"), *LEAVES[1:]])
    for tile in tiles_between(0, 70_000):
        forked.files[tile.path] = b"".join(others(tile_nodes(tile)))
    log.files = forked.files
    read.advance(70_000, root_hash(70_000, others))
    with pytest.raises(Invalid, match="BadTile"):
        read([(0, 5)])
