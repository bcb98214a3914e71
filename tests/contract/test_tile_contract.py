"""What every store of published files promises, whatever it is made of: one suite for all of them.

S3 is moto's server here, and a real Ceph Object Gateway in the slow run.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from ktlog.errors import Conflict, EncodingError, StoreError
from ktlog.store.contracts import TileStore
from ktlog.store.place import parse_place
from ktlog.store.s3 import S3Tiles
from ktlog.store.s3bucket import Bucket
from ktlog.store.s3probe import probe
from ktlog.store.tilefiles import TileFiles
from tests.ceph_cluster import ceph
from tests.object_stores import credentials, moto
from tests.objects_server import BUCKET
from tests.tile_samples import make_note

TILES = {
    "tile/0/000": bytes(8192), "tile/0/001.p/3": b"\x01" * 96, "tile/1/000.p/1": b"\x02" * 32,
    "tile/entries/000": b"\x00\x01x" * 256, "tile/entries/001.p/3": b"\x00\x01y" * 3,
    "tile/0/x001/x234/067": b"\x04" * 8192,
}
BAD_PATHS = ["", "checkpoint", "../keys", "tile/0/../../x", "tile/0/000.p/256", "tile/0/000.p/0", "/tile/0/000", "tile/64/000"]
_numbers = itertools.count()


@dataclass(frozen=True)
class Published:
    """open: another handle on the same files, as another process would have one."""

    tiles: TileStore
    open: Callable[[], TileStore]


@pytest.fixture(scope="module")
def moto_endpoint() -> Iterator[str]:
    with credentials(), moto() as endpoint:
        yield endpoint


@pytest.fixture(scope="module")
def ceph_store() -> Iterator[tuple[str, dict[str, str]]]:
    with ceph() as found:
        yield found


@functools.cache
def spelling(endpoint: str) -> Callable[[str], str]:
    return probe(Bucket(parse_place(f"s3://{BUCKET}", endpoint, "us-east-1")))


def objects(endpoint: str) -> Published:
    place = parse_place(f"s3://{BUCKET}/{next(_numbers)}", endpoint, "us-east-1")
    spell = spelling(endpoint)
    return Published(S3Tiles(Bucket(place), spell=spell), lambda: S3Tiles(Bucket(place), spell=spell))


@pytest.fixture(params=["files", "moto", pytest.param("ceph", marks=pytest.mark.slow)])
def published(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Published]:
    if request.param == "files":
        yield Published(TileFiles.create(tmp_path / "tiles"), lambda: TileFiles(tmp_path / "tiles"))
    elif request.param == "moto":
        yield objects(request.getfixturevalue("moto_endpoint"))
    else:
        endpoint, found = request.getfixturevalue("ceph_store")
        with credentials(found):
            yield objects(endpoint)


def test_what_is_written_is_read_by_every_handle(published: Published) -> None:
    assert published.tiles.read("tile/0/000") is None
    published.tiles.write_tiles(TILES)
    for handle in (published.tiles, published.open()):
        assert {path: handle.read(path) for path in TILES} == TILES
        assert handle.read("tile/0/001") is None
        assert handle.read("tile/0/000.p/3") is None
    published.tiles.write_tiles({})


def test_writing_the_same_again_changes_nothing(published: Published) -> None:
    published.tiles.write_tiles(TILES)
    published.open().write_tiles(TILES | {"tile/2/000.p/1": b"\x05" * 32})
    assert published.tiles.read("tile/2/000.p/1") == b"\x05" * 32


@pytest.mark.parametrize("other", [b"\x09" * 96, b"\x01" * 95, b"\x01" * 97, b""])
def test_a_tile_never_changes(published: Published, other: bytes) -> None:
    published.tiles.write_tiles(TILES)
    for handle in (published.tiles, published.open()):
        with pytest.raises(StoreError) as caught:
            handle.write_tiles({"tile/0/001.p/3": other})
        assert caught.value.name == "ImmutableChanged"
        assert handle.read("tile/0/001.p/3") == TILES["tile/0/001.p/3"]


def test_writers_of_one_tile_at_the_same_moment_agree_or_one_is_refused(published: Published) -> None:
    def write(number: int) -> str:
        try:
            published.tiles.write_tiles({"tile/0/000.p/1": bytes([number % 2]) * 32})
        except StoreError as error:
            return error.name
        return "written"

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(write, range(4)))
    kept = published.tiles.read("tile/0/000.p/1")
    assert [result == "written" for result in results] == [bytes([number % 2]) * 32 == kept for number in range(4)]
    assert set(results) == {"written", "ImmutableChanged"}


@pytest.mark.parametrize("path", BAD_PATHS)
def test_only_the_path_of_a_tile_is_taken(published: Published, path: str) -> None:
    for call in (published.tiles.read, published.tiles.remove_partials, lambda path: published.tiles.write_tiles({
        "tile/0/000.p/1": b"x" * 32, path: b"x",
    })):
        with pytest.raises(EncodingError):
            call(path)
    assert published.tiles.read("tile/0/000.p/1") is None


# The checkpoint


def test_a_checkpoint_advances(published: Published) -> None:
    assert published.tiles.checkpoint() is None
    for note in (make_note(0), make_note(5), make_note(5, cosigned=2), make_note(5), make_note(5), make_note(900)):
        published.tiles.publish_checkpoint(note)
        assert published.tiles.checkpoint() == published.open().checkpoint() == note


@pytest.mark.parametrize(
    ("note", "name"),
    [
        (make_note(4), "CheckpointWithdrawn"),
        (make_note(0), "CheckpointWithdrawn"),
        (make_note(5, bytes(32)), "CheckpointChanged"),
        (make_note(6, origin="other.example.com"), "WrongOrigin"),
    ],
)
def test_a_checkpoint_is_never_taken_back(published: Published, note: bytes, name: str) -> None:
    published.tiles.publish_checkpoint(make_note(5))
    for handle in (published.tiles, published.open()):
        with pytest.raises(Conflict) as caught:
            handle.publish_checkpoint(note)
        assert (caught.value.name, caught.value.stored) == (name, make_note(5))
    assert published.tiles.checkpoint() == make_note(5)


@pytest.mark.parametrize("note", [b"", b"\n", b"keys.example.com\n5\nAAAA\n\n", make_note(7)[:-2], b"\xff"])
def test_what_is_no_checkpoint_is_not_published(published: Published, note: bytes) -> None:
    published.tiles.publish_checkpoint(make_note(5))
    with pytest.raises(EncodingError):
        published.tiles.publish_checkpoint(note)
    assert published.tiles.checkpoint() == make_note(5)


# Partial tiles


def test_partial_tiles_go_when_the_full_one_is_there(published: Published) -> None:
    partials = {f"tile/{level}/001.p/{width}": b"z" * 32 * width for level in (0, "entries") for width in (1, 7, 255)}
    beside = {"tile/0/000.p/9": b"b" * 288, "tile/0/002.p/9": b"b" * 288, "tile/1/001.p/9": b"b" * 288}
    published.tiles.write_tiles(partials | beside)
    with pytest.raises(StoreError) as caught:
        published.tiles.remove_partials("tile/0/001")
    assert caught.value.name == "NotFull"
    assert published.tiles.read("tile/0/001.p/7") is not None
    full = {"tile/0/001": b"f" * 8192, "tile/entries/001": b"\x00\x01f" * 256}
    published.tiles.write_tiles(full)
    assert [published.tiles.remove_partials(path) for path in full] == [3, 3]
    assert [published.tiles.remove_partials(path) for path in full] == [0, 0]
    left = full | beside
    for handle in (published.tiles, published.open()):
        assert {path: handle.read(path) for path in (*partials, *left)} == dict.fromkeys(partials) | left
    published.tiles.write_tiles({"tile/0/001.p/7": b"z" * 224})  # as a log does that writes everything anew
    assert published.tiles.read("tile/0/001.p/7") == b"z" * 224


def test_the_parts_of_a_partial_tile_are_not_asked_for(published: Published) -> None:
    published.tiles.write_tiles({"tile/0/000.p/1": b"z" * 32})
    with pytest.raises(StoreError) as caught:
        published.tiles.remove_partials("tile/0/000.p/1")
    assert caught.value.name == "NotFull"
    assert published.tiles.remove_partials("tile/0/005") == 0
    assert published.tiles.read("tile/0/000.p/1") == b"z" * 32


# Updates of the map


def test_updates_never_change_and_go_one_day(published: Published) -> None:
    files = {"updates/001": b"one", "updates/002": b"", "updates/x001/000": b"u" * 100_000}
    published.tiles.write_tiles(files | {"tile/0/000.p/1": bytes(32)})
    published.open().write_tiles(files)
    assert {path: published.open().read(path) for path in files} == files
    with pytest.raises(StoreError) as caught:
        published.tiles.write_tiles({"updates/001": b"two"})
    assert caught.value.name == "ImmutableChanged"
    for path in ("updates/x001/000", "updates/001", "updates/001"):
        published.tiles.remove_update(path)
        assert published.open().read(path) is None
    assert published.tiles.read("updates/002") == b""
    published.tiles.write_tiles({"updates/x001/000": b"again", "updates/x001/001": b"new"})
    assert published.tiles.read("updates/x001/000") == b"again"
    for path in ("tile/0/000.p/1", "updates/000", "updates/../001", "updates/001.p/1", "checkpoint"):
        with pytest.raises(EncodingError):
            published.tiles.remove_update(path)
        if path.startswith("updates"):
            with pytest.raises(EncodingError):
                published.tiles.read(path)
    assert published.tiles.read("tile/0/000.p/1") == bytes(32)
