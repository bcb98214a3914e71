"""The supervisor: what died is started again, each at its own pace, and the courier takes nobody along."""

from __future__ import annotations

import sys

import pytest

from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator import supervisor
from ktlog.operator.supervisor import HOPELESS, LONGEST_PAUSE_SECONDS, _Child


def child(code: str, **options: object) -> _Child:
    return _Child("child", [sys.executable, "-c", code], {}, **options)


def ended(code: int, **options: object) -> _Child:
    made = child(f"raise SystemExit({code})", **options)
    made.start()
    made.process.wait(30)
    return made


def test_one_that_runs_is_left_alone():
    made = child("import time; time.sleep(60)")
    made.start()
    try:
        assert made.look() is None
        assert not made.is_due()
    finally:
        made.stop()
    assert made.process.poll() is not None


def test_a_full_disk_does_not_take_it_along(tmp_path, monkeypatch, capsys):
    def full(path: object, data: bytes) -> None:
        raise StoreError("DiskFull", str(path))
    monkeypatch.setattr(supervisor, "write_atomic", full)
    supervisor._record(Settings(tmp_path, "keys.example.com", "spec"), [])
    assert "DiskFull" in capsys.readouterr().err


@pytest.mark.parametrize("code", HOPELESS)
def test_one_that_refuses_to_start_ends_the_log(code):
    assert ended(code).look() == code


@pytest.mark.parametrize("code", [*HOPELESS, 0, 1])
def test_unless_the_log_can_do_without_it(code, capsys):
    made = ended(code, vital=False)
    assert made.look() is None
    assert made.again is not None
    assert f"child ended ({code})" in capsys.readouterr().err


def test_it_waits_longer_each_time_and_is_told_of_once(monkeypatch, capsys):
    now = [100.0]
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    made = ended(1)
    pauses = []
    for _ in range(8):
        for _ in range(3):
            assert made.look() is None
        assert not made.is_due()
        pauses.append(made.again - now[0])
        now[0] = made.again
        assert made.is_due()
        made.start()
        made.process.wait(30)
    assert pauses == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert max(pauses) == LONGEST_PAUSE_SECONDS
    assert capsys.readouterr().err.count("started again") == 8
    now[0] += 61  # it ran well for a while, and begins with a short pause again
    made.look()
    assert made.again - now[0] == 0.25
