"""The fault harness (tests/faults): what it draws, what it needs, and that it notices products broken on purpose."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.disk import Disk
from tests.faults.plan import kind_of_file
from tests.faults.sabotage import CAUGHT, SABOTAGES
from tests.machine import need

ROOT = Path(__file__).parents[2]



def faults(*options: str) -> tuple[int, dict]:
    """Run it in a process of its own: it forks, which a test runner with threads should not."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--json", *options], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.stdout.strip(), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def held(*options: str) -> dict:
    """Of a run in which nothing may be violated: how often what came of each kind."""
    code, told = faults(*options)
    assert told["violations"] == []
    assert code == 0
    return told["table"]


def test_a_few_of_every_kind() -> None:
    table = held("--count", "12", "--seed", "7", "--kinds", "call,pair,cut,restored,flipped,writers", "--bases", "narrow")
    assert sum(sum(counts.values()) for counts in table.values()) == 12
    assert sum(counts.get("missed", 0) for counts in table.values()) < 8


@pytest.mark.slow
def test_five_hundred_drawn_faults() -> None:
    table = held("--count", "500", "--seed", "2026")
    injected = {name: sum(counts.values()) - counts.get("missed", 0) for name, counts in table.items()}
    for name in ("call", "pair", "broken", "full", "cut", "restored", "flipped", "bad write", "writers", "twins"):
        assert injected[name] > 0, name


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["restored", "flipped"])
def test_each_part_and_each_object(kind: str) -> None:
    """Every part of a log taken from an older copy, and every kind of stored object with one bit changed."""
    held("--each", "--count", "1000", "--kinds", kind, "--bases", "wide,lived")


@pytest.mark.slow
def test_each_system_call_of_an_append() -> None:
    """strace counts them first: a name that no list has is an error, so that a new one cannot slip by."""
    need("strace")
    table = held("--each", "--count", "100", "--kinds", "syscall", "--bases", "narrow")
    assert sum(table["syscall"].values()) == 100


@pytest.mark.slow
def test_power_cuts_and_full_disks_on_ext4() -> None:
    need("loop")
    table = held("--count", "12", "--kinds", "power,room", "--bases", "narrow")
    assert table["power"].get("recovered", 0) > 0
    assert table["room"].get("recovered", 0) > 0


@pytest.mark.slow
@pytest.mark.parametrize(("sabotage", "kind"), CAUGHT.items(), ids=CAUGHT)
def test_a_product_broken_on_purpose_is_noticed(sabotage: str, kind: str) -> None:
    code, told = faults(
        "--count", "150", "--seed", "2", "--kinds", kind, "--bases", "narrow", "--sabotage", sabotage, "--stop"
    )
    assert code == 1
    assert told["violations"]
    assert not any("harness" in why for _number, _kind, _what, whys in told["violations"] for why in whys)


def test_every_sabotage_is_one_that_is_caught() -> None:
    assert CAUGHT.keys() == SABOTAGES.keys()


def test_what_cannot_be_drawn_is_said() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--kinds", "lightning"], cwd=ROOT, capture_output=True, text=True,
        check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 2
    assert "no such kind: lightning" in done.stderr


# The model of the disk


def file(disk: Disk, path: Path, data: bytes) -> None:
    path.write_bytes(data)
    disk.made(str(path))
    disk.wrote(str(path), 0, data)


def possible(disk: Disk, target: Path, name: str) -> set[bytes | None]:
    """What may be at *name* after a cut."""
    found = set()
    target.mkdir()
    for seed in range(60):
        after = target / str(seed)
        disk.cut(after, seed)
        found.add((after / name).read_bytes() if (after / name).exists() else None)
    return found


def test_only_what_was_synced_is_sure(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "old").write_bytes(b"old")
    disk = Disk(root)
    file(disk, root / "new", b"new bytes")
    assert {None, b"", b"new bytes"} <= possible(disk, tmp_path / "a", "new")
    disk.synced(str(root / "new"))
    assert possible(disk, tmp_path / "b", "new") == {None, b"new bytes"}  # its name is not safe yet
    disk.synced(str(root))
    assert possible(disk, tmp_path / "c", "new") == {b"new bytes"}
    assert possible(disk, tmp_path / "d", "old") == {b"old"}


def test_a_rename_is_there_or_not_and_the_old_bytes_come_back(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "head").write_bytes(b"one")
    disk = Disk(root)
    file(disk, root / "temporary", b"two")
    disk.synced(str(root / "temporary"))
    disk.keep(str(root / "head"))
    os.rename(root / "temporary", root / "head")
    disk.renamed(str(root / "temporary"), str(root / "head"))
    assert possible(disk, tmp_path / "a", "head") == {b"one", b"two"}
    disk.synced(str(root))
    assert possible(disk, tmp_path / "b", "head") == {b"two"}


def test_files_are_told_apart_by_what_they_are() -> None:
    assert kind_of_file("tiles/tile/0/000.p/.5.0123456789abcdef.tmp") == "tiles/tile/0/*.tmp"
    assert kind_of_file("tiles/map/tile/entries/000.p/5") == "tiles/map/tile/entries/*"
    assert kind_of_file(".signed-head.json.0123456789abcdef.tmp") == ".signed-head.json.tmp"
    assert kind_of_file("") == "."
