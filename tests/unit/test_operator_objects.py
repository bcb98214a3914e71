"""Publishing into an object store: what an outage costs, and what a move."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlog.config import Settings
from ktlog.errors import StoreError, Unreachable, UsageError
from ktlog.operator.stores import create_tiles, open_map_tiles, open_tiles
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.place import parse_place
from ktlog.store.s3 import PAUSES, S3Tiles
from ktlog.store.s3bucket import Bucket
from ktlog.store.tilefiles import TileFiles
from tests.object_stores import credentials
from tests.objects_server import BUCKET, Habits, ObjectsServer
from tests.operator_world import ORIGIN, Desk, Press
from tests.tile_samples import make_note
from tests.unit.test_operator_publisher import grow


@pytest.fixture(autouse=True, scope="module")
def _credentials() -> Iterator[None]:
    with credentials():
        yield


@pytest.fixture
def server() -> Iterator[ObjectsServer]:
    with ObjectsServer() as running:
        yield running


def bucket_tiles(server: ObjectsServer) -> S3Tiles:
    place = parse_place(f"s3://{BUCKET}/log", server.endpoint, "us-east-1")
    return S3Tiles(Bucket(place), pause=lambda _seconds: None)


def press_into(server: ObjectsServer, directory: Path, entries: int) -> Press:
    press = Press(directory, Desk().store)
    grow(press.store, entries)
    press.tiles = bucket_tiles(server)
    press.restart()
    return press


def below(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def kept(server: ObjectsServer) -> dict[str, bytes]:
    return {key.removeprefix("log/"): found.data for key, found in server.kept.items()}


def test_the_same_files_as_in_a_directory(server: ObjectsServer, tmp_path: Path) -> None:
    press = press_into(server, tmp_path, 300)
    press.publish()
    grow(press.store, 310)
    press.restart()
    press.publish()
    files = kept(server)
    assert press.published().size == 310 and files.pop("checkpoint")
    press.tiles = TileFiles(tmp_path / "tiles")
    press.restart()
    press.publish()
    directory = below(tmp_path / "tiles")
    directory.pop("checkpoint")
    assert set(directory) < set(files) and all(files[path] == data for path, data in directory.items())
    assert {path for path in files if path not in directory} == {"tile/0/001.p/44", "tile/entries/001.p/44"}


def test_a_log_moves_into_a_bucket_and_back_by_a_setting(server: ObjectsServer, tmp_path: Path) -> None:
    press = Press(tmp_path, Desk().store)
    grow(press.store, 300)
    press.publish()
    press.tiles = bucket_tiles(server)
    press.restart()
    press.publish()
    written = below(tmp_path / "tiles")
    assert {path: data for path, data in kept(server).items() if path != "checkpoint"} == {
        path: data for path, data in written.items() if path != "checkpoint"
    }


def test_an_outage_ends_nothing(server: ObjectsServer, tmp_path: Path) -> None:
    """The publisher asks again later, as for witnesses, and entries are accepted meanwhile."""
    press = press_into(server, tmp_path, 5)
    press.publish()
    grow(press.store, 9)
    for _ in range(2):
        server.puts.extend(["503 SlowDown"] * 4 * len(PAUSES))
        with pytest.raises(Unreachable):
            press.publish()
        server.puts.clear()
    assert press.published().size == 5
    press.publish()
    assert press.published().size == 9 and "tile/0/000.p/9" in kept(server)


@pytest.mark.parametrize(
    ("puts", "gets", "published"),
    [(["drop stored"] * 2, [], 5), (["", "", "drop stored"], [""], 9)],
    ids=["of tiles", "of the checkpoint"],
)
def test_a_doubt_ends_the_process_and_the_next_one_finds_what_there_is(
    server: ObjectsServer, tmp_path: Path, puts: list[str], gets: list[str], published: int
) -> None:
    press = press_into(server, tmp_path, 5)
    press.publish()
    grow(press.store, 9)
    server.puts.extend(puts)
    server.gets.extend(gets + ["503"] * 20)
    with pytest.raises(StoreError) as caught:
        press.publish()
    assert caught.value.name == AMBIGUOUS
    server.gets.clear()
    press.restart()
    assert press.published().size == published
    press.publish()
    assert press.published().size == 9


# The settings


def settings(server: ObjectsServer, directory: Path, **others: object) -> Settings:
    return Settings(
        directory, ORIGIN, "spec", objects=f"s3://{BUCKET}/log", objects_endpoint=server.endpoint,
        objects_region="us-east-1", **others,
    )


def test_the_settings_lead_to_the_bucket(server: ObjectsServer, tmp_path: Path) -> None:
    found = settings(server, tmp_path, checkpoint_interval_ms=120_000)
    create_tiles(found)
    log, map_log = open_tiles(found), open_map_tiles(found)
    log.publish_checkpoint(make_note(5))
    map_log.write_tiles({"tile/0/000.p/1": bytes(32)})
    assert set(kept(server)) == {"checkpoint", "map/tile/0/000.p/1"}
    reader = open_tiles(found, read_only=True)
    assert reader.checkpoint() == make_note(5)
    log.publish_checkpoint(make_note(6))
    assert reader.checkpoint() == make_note(5), "a reader may be half an interval behind"
    assert open_tiles(found).checkpoint() == make_note(6)
    assert list(tmp_path.iterdir()) == []


def test_the_store_is_tried_once_by_whoever_writes_and_never_by_readers(server: ObjectsServer, tmp_path: Path) -> None:
    found = settings(server, tmp_path)
    open_tiles(found, read_only=True)
    open_map_tiles(found, read_only=True)
    assert server.requests == []
    open_map_tiles(found)
    asked = len(server.requests)
    assert asked > 20
    open_tiles(found)
    assert len(server.requests) == asked


def test_an_unfit_store_is_not_opened(tmp_path: Path) -> None:
    with ObjectsServer(Habits(ignores=frozenset({"If-None-Match"}))) as server:
        for opened in (open_tiles, open_map_tiles, create_tiles):
            with pytest.raises(StoreError) as caught:
                opened(settings(server, tmp_path))
            assert caught.value.name == "UnfitObjectStore"


def test_without_boto3_it_says_what_to_install(
    server: ObjectsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ktlog.store.s3", None)
    with pytest.raises(StoreError) as caught:
        open_tiles(settings(server, tmp_path))
    assert caught.value.name == "MissingExtra" and "ktlog[s3]" in caught.value.hint


@pytest.mark.parametrize("others", [{"objects_endpoint": "https://s3.example.com"}, {"objects_region": "eu-1"}, {"objects": "x"}])
def test_settings_that_lead_nowhere(tmp_path: Path, others: dict[str, str]) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(tmp_path, ORIGIN, "spec", **others)
    assert caught.value.name == "BadSetting"
