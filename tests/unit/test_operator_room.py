"""A log stops accepting before its disk is full, goes on reading, and takes messages again when there is room."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from ktlog.operator import room as room_module
from ktlog.operator.room import MIB, RECOUNT_SECONDS, Room, Weight


class Disk:
    """A disk and a clock under the test's hand."""

    def __init__(self) -> None:
        self.now, self.blocks, self.looks = 100.0, 1000, 0

    def statvfs(self, _path: object) -> SimpleNamespace:
        self.looks += 1
        if self.blocks < 0:
            raise OSError(5, "Input/output error")
        return SimpleNamespace(f_bavail=self.blocks, f_bfree=10**9, f_frsize=4096)


@pytest.fixture
def disk(monkeypatch) -> Disk:
    disk = Disk()
    monkeypatch.setattr(room_module.os, "statvfs", disk.statvfs)
    return disk


def test_the_floor_is_a_floor(tmp_path, disk):
    room = Room(tmp_path, MIB, lambda: disk.now)
    assert (room.free(), room.shortage()) == (1000 * 4096, None)
    disk.blocks = 255
    assert room.shortage() is None  # it was looked at in this second
    disk.now += 1
    assert room.shortage() == "the log's disk has 0 MiB left, and it keeps 1 free"
    disk.blocks, disk.now = 256, disk.now + 1
    assert room.shortage() is None


def test_it_is_looked_at_once_a_second_and_said_once(tmp_path, disk, caplog):
    room = Room(tmp_path, MIB, lambda: disk.now)
    disk.blocks = 1
    before = disk.looks
    for _ in range(30):
        disk.now += 0.125
        room.shortage()
    assert disk.looks - before == 4
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_disk_that_cannot_be_asked_has_no_room(tmp_path, disk):
    room = Room(tmp_path, MIB, lambda: disk.now)
    disk.blocks, disk.now = -1, disk.now + 1
    assert (room.free(), room.shortage() is None) == (0, False)


def test_a_real_disk(tmp_path):
    found = os.statvfs(tmp_path)
    assert Room(tmp_path, MIB).free() <= found.f_blocks * found.f_frsize
    assert "MiB left" in Room(tmp_path, found.f_blocks * found.f_frsize + MIB).shortage()


def test_what_is_published_is_weighed_seldom(tmp_path):
    clock = [0.0]
    weight = Weight(tmp_path, lambda: clock[0])
    (tmp_path / "tile" / "0").mkdir(parents=True)
    for path in ("checkpoint", "tile/0/000"):
        (tmp_path / path).write_bytes(bytes(100))
    assert weight.bytes() == 200
    (tmp_path / "tile" / "0" / "001").write_bytes(bytes(5))
    (tmp_path / "linked").symlink_to("/usr")
    clock[0] += RECOUNT_SECONDS - 1
    assert weight.bytes() == 200
    clock[0] += 1
    assert 205 < weight.bytes() < 300, "the link itself, and not what it leads to"
    assert Weight(tmp_path / "nowhere").bytes() == 0


def test_a_count_that_takes_long_is_not_soon_made_again(tmp_path, monkeypatch):
    clock = [0.0]

    def slow(_directory: str) -> int:
        clock[0] += 30
        return int(clock[0])

    monkeypatch.setattr("ktlog.operator.room._weigh", slow)
    weight = Weight(tmp_path, lambda: clock[0])
    assert weight.bytes() == 30
    clock[0] = 2_999
    assert weight.bytes() == 30
    clock[0] = 3_000
    assert weight.bytes() == 3_030
