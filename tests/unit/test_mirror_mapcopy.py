"""A mirror keeps the leaves of the source's map log, byte for byte, and nothing that is not in its tree."""

from __future__ import annotations

import pytest

from ktlog.client.publicfiles import PublicFiles
from ktlog.client.verify import Log
from ktlog.durable import make_directories
from ktlog.errors import Conflict, Invalid
from ktlog.operator.mapcopy import MapCopy
from ktlog.operator.sources import Source
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Note, format_note
from ktlog.tlog.policy import Policy
from ktlog.tlog.tiles import (
    ENTRIES,
    bundles_between,
    format_bundle,
    parse_bundle,
    parse_tile_path,
    tile_nodes,
    tiles_between,
)
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from ktlog.wire.fetch import Response
from tests.operator_world import ORIGIN, log_signers


class MapFiles:
    """The published files of a map's log of *count* leaves; ``damage`` changes what is brought."""

    def __init__(self, count: int) -> None:
        self.leaves = [b"leaf %d" % number for number in range(count)]
        self.damage: dict[str, bytes] = {}

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        path = url.partition("/map/")[2]
        if path in self.damage:
            return Response(200, {}, self.damage[path], url)
        read = leaf_reader(map(hash_leaf, self.leaves))
        if path == "checkpoint":
            text = format_checkpoint(Checkpoint(f"{ORIGIN}/map", len(self.leaves), root_hash(len(self.leaves), read)))
            return Response(200, {}, format_note(Note(text, (log_signers()[0].sign(text, 1),))), url)
        tile = parse_tile_path(path)
        if tile.level == ENTRIES:
            first = tile.number * 256
            return Response(200, {}, format_bundle(self.leaves[first : first + tile.width]), url)
        return Response(200, {}, b"".join(read(tile_nodes(tile))), url)


@pytest.fixture
def map_copy(tmp_path):
    source = Source(Log(ORIGIN, (), f"https://{ORIGIN}"), Policy(), tmp_path / "replicas" / ORIGIN)
    make_directories(tmp_path, source.directory)

    def follow(files: MapFiles) -> list[bytes]:
        MapCopy(source, PublicFiles(files, "https://keys.example.com/map")).follow()
        kept = TileFiles(source.map_tiles)
        size = parse_signed_checkpoint(kept.checkpoint())[1].size
        found = []
        for bundle in bundles_between(0, size):
            found += parse_bundle(kept.read(bundle.path), bundle.width)
        for tile in tiles_between(0, size):
            assert len(kept.read(tile.path)) == 32 * tile.width
        assert len([path for path in source.map_tiles.rglob("*.p/*") if path.parent.parent.name == "entries"]) <= 1
        return found

    return follow


def test_the_leaves_of_the_map_are_kept_as_they_come(map_copy):
    files = MapFiles(3)
    for count in (3, 255, 256, 257, 600):
        files.leaves = [b"leaf %d" % number for number in range(count)]
        assert map_copy(files) == files.leaves


@pytest.mark.parametrize("path", ["tile/entries/001.p/44", "tile/entries/000", "tile/0/000", "tile/0/001.p/44"])
def test_leaves_that_are_not_in_the_tree_are_not_kept(map_copy, path):
    files = MapFiles(300)
    good = files.get(f"https://keys.example.com/map/{path}").body
    files.damage[path] = good[:-1] + bytes([good[-1] ^ 1])
    with pytest.raises(Invalid):
        map_copy(files)
    files.damage.clear()
    assert map_copy(files) == files.leaves


def test_a_map_that_shrinks_or_is_anothers_is_not_followed(map_copy):
    map_copy(MapFiles(5))
    with pytest.raises(Conflict, match="CheckpointWithdrawn"):
        map_copy(MapFiles(4))
    files = MapFiles(6)
    files.damage["checkpoint"] = files.get("https://keys.example.com/map/checkpoint").body.replace(b"/map\n", b"/mad\n")
    with pytest.raises(Invalid, match="WrongLog"):
        map_copy(files)
