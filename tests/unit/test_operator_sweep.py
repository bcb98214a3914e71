"""Partial tiles go when nobody needs them, and never before."""

from __future__ import annotations

import logging
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

from ktlog.errors import NotLogged, StoreError
from ktlog.operator.nodes import write_tree
from ktlog.operator.sweep import STEP_TILES, Sweep
from ktlog.store.documents import FileDocument
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.tiles import TileHashReader, bundles_between, parse_tile_path, tiles_between
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash

SIZES = (1, 2, 7, 200, 255, 256, 257, 300, 511, 513, 513, 600, 767, 769, 770)
KEPT = 3


@cache
def entries() -> tuple[bytes, ...]:
    return tuple(b"entry %d" % index for index in range(SIZES[-1]))


@cache
def hashes() -> tuple[bytes, ...]:
    return tuple(map(hash_leaf, entries()))


def root(size: int) -> bytes:
    return root_hash(size, leaf_reader(list(hashes()[:size])))


class Log:
    """Published in *directory*, size by size."""

    def __init__(self, directory: Path) -> None:
        self.tiles = TileFiles.create(directory / "tiles")
        self.mark = FileDocument(directory / "swept")
        self.published: list[int] = []
        self.restart()

    def restart(self) -> None:
        self.sweep = Sweep(self.tiles, self.mark, KEPT)

    def publish(self, size: int) -> None:
        start = self.published[-1] if self.published else 0
        leaves = SimpleNamespace(
            state=lambda: SimpleNamespace(size=size), leaf_hashes=lambda first, end: hashes()[first:end]
        )
        write_tree(self.tiles, leaves, lambda first, end: entries()[first:end], start, size, root(size))
        self.published.append(size)
        self.sweep.published(size)

    def files(self) -> set[str]:
        top = self.tiles.root
        return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}

    def partials(self) -> set[tuple[object, int, int]]:
        found = map(parse_tile_path, self.files())
        return {(tile.level, tile.number, tile.width) for tile in found if tile.width != 256}

    def fetch(self, path: str) -> bytes:
        found = self.tiles.read(path)
        if found is None:
            raise NotLogged("Missing", path)
        return found


@pytest.fixture
def log(tmp_path: Path) -> Log:
    return Log(tmp_path)


def needed(size: int) -> set[str]:
    """What a reader of exactly this checkpoint asks for first."""
    return {tile.path for tile in (*tiles_between(0, size), *bundles_between(0, size))}


def test_every_checkpoint_stays_readable_and_the_newest_keep_their_partial_tiles(log: Log) -> None:
    for number, size in enumerate(SIZES, 1):
        log.publish(size)
        for recent in SIZES[max(0, number - KEPT - 1) : number]:
            assert needed(recent) <= log.files(), f"at {size}, what {recent} needs"
        for old in SIZES[:number]:  # by the full tile, where the partial one is gone
            reader = TileHashReader(log.fetch, old, root(old))
            assert prove_inclusion(old - 1, old, reader) == prove_inclusion(old - 1, old, leaf_reader(list(hashes()[:old])))
    # 256 entries are in a checkpoint that is old enough, and 512.
    assert {number for level, number, _width in log.partials() if level != 1} == {2, 3}
    assert {width for level, _number, width in log.partials() if level == 1} == {1, 2, 3}, "level 1 is not full"
    assert log.mark.read() == b"512\n"


def test_nothing_goes_while_checkpoints_are_few(log: Log) -> None:
    for size in (10, 300, 600):
        log.publish(size)
    before = log.files()
    log.restart()  # which forgets what was published when
    for _ in range(KEPT):
        log.sweep.published(600)
    assert log.files() == before and log.mark.read() is None
    log.sweep.published(600)
    assert {number for level, number, _width in log.partials() if level != 1} == {2}


def test_it_goes_on_where_the_process_before_ended_and_begins_anew_without_its_mark(log: Log, tmp_path: Path) -> None:
    for size in (10, 300, 300, 300, 300):
        log.publish(size)
    assert log.mark.read() == b"256\n"
    log.tiles.write_tiles({"tile/0/000.p/9": b"".join(hashes()[:9])})  # as if it had not come that far
    log.restart()
    for _ in range(KEPT + 1):
        log.sweep.published(300)
    assert (0, 0, 9) in log.partials(), "the mark says that this was done"
    for broken in (None, b"", b"\xff", b"-1\n", b"x"):
        if broken is None:
            log.mark.remove()
        else:
            log.mark.write(broken)
        log.restart()
        for _ in range(KEPT + 1):
            log.sweep.published(300)
        assert (0, 0, 9) not in log.partials()
        assert log.mark.read() == b"256\n"
        log.tiles.write_tiles({"tile/0/000.p/9": b"".join(hashes()[:9])})


class Recorder:
    """A store that only notes what it is asked to remove."""

    def __init__(self) -> None:
        self.removed: list[str] = []
        self.error: StoreError | None = None

    def remove_partials(self, path: str) -> int:
        if self.error is not None:
            raise self.error
        self.removed.append(path)
        return 0


def test_a_long_way_is_gone_in_steps_and_every_level_is_visited(tmp_path: Path) -> None:
    recorder, size = Recorder(), 256 * 256 * 2 + 5
    sweep = Sweep(recorder, FileDocument(tmp_path / "swept"), 1)
    sweep.published(size)
    steps = 0
    while len(recorder.removed) < 512 * 2 + 2:
        before = len(recorder.removed)
        sweep.published(size)
        assert 0 < len(recorder.removed) - before <= 2 * STEP_TILES + 1
        steps += 1
    sweep.published(size)
    full = [tile.path for tile in (*tiles_between(0, size), *bundles_between(0, size)) if tile.width == 256]
    assert sorted(recorder.removed) == sorted(full) and len(full) == 512 * 2 + 2
    assert steps == 512 // STEP_TILES


def test_an_error_is_said_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recorder = Recorder()
    sweep = Sweep(recorder, FileDocument(tmp_path / "swept"), 1)
    recorder.error = StoreError("ObjectsForbidden", "s3:DeleteObject is missing")
    with caplog.at_level(logging.WARNING):
        for _ in range(4):
            sweep.published(600)
    assert [record.message for record in caplog.records] == [
        "partial tiles are not removed: ObjectsForbidden: s3:DeleteObject is missing"
    ]
    recorder.error = None
    sweep.published(600)
    assert "tile/0/001" in recorder.removed
