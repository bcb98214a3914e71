"""Published files in a directory: their layout, what is synced, and that no path leads out.

What they have in common with an object store is in tests/contract/test_tile_contract.py.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from ktlog import durable
from ktlog.errors import EncodingError, StoreError
from ktlog.store.tilefiles import TileFiles
from tests.tile_samples import make_note

TILES = {
    "tile/0/000": b"full tile",
    "tile/0/001.p/5": b"partial tile",
    "tile/0/x001/x234/067": b"far tile",
    "tile/63/000.p/255": b"high tile",
    "tile/entries/000": b"full bundle",
    "tile/entries/001.p/5": b"partial bundle",
}

BAD_PATHS = [
    "", "/", "checkpoint", "tile", "tile/0", "/tile/0/000", "tile/0/000/", "tile//000", "tile/0/../000",
    "tile/../../etc/passwd", "tile/0/x../000", "tile/0/000.p/../000", "tile/0/000.p/0", "tile/0/000.p/256",
    "tile/0/000.p/05", "tile/0/0000", "tile/0/00", "tile/64/000", "tile/00/000", "tile/0/x000/000", "tile/0/001/000",
    "tile/0/000\x00", "tile/0/000\n", "tile/0/٠٠٠", "tile/entries/000.p/", ".000.00.tmp", "tile/0/.000.00.tmp",
    "TILE/0/000", "tile\\0\\000", "tile/0/%30%30%30", "tile/0/000?x", "tile/-1/000",
]


@pytest.fixture
def files(tmp_path: Path) -> TileFiles:
    return TileFiles.create(tmp_path / "tiles")


def everything(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_layout_is_that_of_the_urls(files: TileFiles, tmp_path: Path) -> None:
    files.write_tiles(TILES)
    assert everything(tmp_path / "tiles") == TILES
    for path, data in TILES.items():
        assert files.read(path) == data
        assert stat.S_IMODE((tmp_path / "tiles" / path).stat().st_mode) == 0o444
    assert files.read("tile/0/001") is None
    assert files.read("tile/5/000") is None


def test_a_directory_must_exist(tmp_path: Path) -> None:
    for root in (tmp_path / "none", tmp_path / "none" / "none"):
        with pytest.raises(StoreError, match="MissingStore"):
            TileFiles(root)
    with pytest.raises(StoreError, match="MissingStore"):
        TileFiles.create(tmp_path / "none" / "none")
    assert os.listdir(tmp_path) == []
    TileFiles.create(tmp_path / "tiles").write_tiles({"tile/0/000": b"x"})
    assert TileFiles.create(tmp_path / "tiles").read("tile/0/000") == b"x"


@pytest.mark.parametrize("path", BAD_PATHS)
def test_nothing_but_the_path_of_a_tile_reaches_a_file(
    files: TileFiles, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    files.publish_checkpoint(make_note(1))
    before = everything(files.root)

    def refuse(*_arguments: object, **_options: object) -> None:
        raise AssertionError("a file was touched")

    monkeypatch.setattr(durable, "read_file", refuse)
    monkeypatch.setattr(durable, "write_once_all", refuse)
    with pytest.raises(EncodingError):
        files.read(path)
    with pytest.raises(EncodingError):
        files.write_tiles({"tile/0/000": b"x", path: b"x"})
    assert everything(files.root) == before


def test_a_batch_syncs_each_file_and_each_directory_once(files: TileFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.write_tiles({"tile/0/000.p/1": b"a", "tile/entries/000.p/1": b"b"})
    synced: list[bool] = []
    fsync = os.fsync

    def spy(handle: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    files.write_tiles({"tile/0/000.p/2": b"a", "tile/0/000.p/3": b"b", "tile/entries/000.p/2": b"c"})
    assert synced == [False] * 3 + [True] * 2


def test_directories_are_synced_up_to_the_root_when_first_used(
    files: TileFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write_tiles({"tile/0/x001/000": b"a"})
    again = TileFiles(files.root)  # after a restart: the process before may have died before its fsync
    synced: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.readlink(f"/proc/self/fd/{handle}")))
    again.write_tiles({"tile/0/x001/000": b"a"})
    root = str(files.root)
    assert synced == [root, f"{root}/tile", f"{root}/tile/0", f"{root}/tile/0/x001"]
    synced.clear()
    again.write_tiles({"tile/0/x001/000.p/5": b"b"})  # what this process made durable stays so
    assert synced[0] == f"{root}/tile/0/x001" and synced[2:] == [f"{root}/tile/0/x001/000.p"]
    again.write_tiles({"tile/0/x001/000": b"a"})
    assert again.remove_partials("tile/0/x001/000") == 1
    synced.clear()
    again.write_tiles({"tile/0/x001/000.p/6": b"b"})
    assert synced[0] == f"{root}/tile/0/x001"  # the name is a new one


WRITE = """
import sys
from ktlog.store.tilefiles import TileFiles
files = TileFiles(sys.argv[1])
files.write_tiles({"tile/0/000": b"zero", "tile/1/000": b"one", "tile/entries/000": b"entries"})
files.publish_checkpoint(bytes.fromhex(sys.argv[2]))
print("published")
"""


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("hook", durable.HOOKS)
def test_a_kill_between_any_two_files_can_be_repaired_by_writing_again(
    files: TileFiles, hook: str, number: int
) -> None:
    files.publish_checkpoint(make_note(1))
    command = [sys.executable, "-c", WRITE, str(files.root), make_note(256).hex()]
    environment = dict(os.environ)
    environment[durable.KILL_VARIABLE] = f"{hook}:{number}"
    killed = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=False, env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert (killed.returncode, killed.stdout) == (-signal.SIGKILL, "")
    whole = {"tile/0/000": b"zero", "tile/1/000": b"one", "tile/entries/000": b"entries"}
    for path, data in whole.items():
        assert files.read(path) in (None, data)
    published = files.checkpoint()
    assert published == (make_note(256) if (hook, number) == ("durable.named", 4) else make_note(1))
    if published == make_note(256):
        assert all(files.read(path) == data for path, data in whole.items())
    del environment[durable.KILL_VARIABLE]
    repaired = subprocess.run(
        command, capture_output=True, text=True, timeout=60, check=True, env=environment,
        cwd=Path(__file__).parents[2],
    )
    assert repaired.stdout == "published\n"
    found = {path: data for path, data in everything(files.root).items() if "/" in path}
    assert found == whole
    assert files.checkpoint() == make_note(256)


def test_a_checkpoint_advances(files: TileFiles) -> None:
    assert files.checkpoint() is None
    for note in (make_note(0), make_note(5), make_note(5, cosigned=2), make_note(5), make_note(900)):
        files.publish_checkpoint(note)
        assert files.checkpoint() == note
        assert stat.S_IMODE((files.root / "checkpoint").stat().st_mode) == 0o644


def test_a_damaged_checkpoint_is_not_papered_over(files: TileFiles) -> None:
    (files.root / "checkpoint").write_bytes(b"damaged")
    with pytest.raises(StoreError) as caught:
        files.publish_checkpoint(make_note(5))
    assert caught.value.name == "Corrupt"
    assert files.checkpoint() == b"damaged"


def test_a_failed_write_keeps_the_published_checkpoint(files: TileFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    files.publish_checkpoint(make_note(5))

    def fail(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        for write in (lambda: files.publish_checkpoint(make_note(6)), lambda: files.write_tiles(TILES)):
            with pytest.raises(StoreError, match="DiskFull"):
                write()
    assert files.checkpoint() == make_note(5)
    files.write_tiles(TILES)
    files.publish_checkpoint(make_note(6))
    assert everything(files.root) == TILES | {"checkpoint": make_note(6)}
