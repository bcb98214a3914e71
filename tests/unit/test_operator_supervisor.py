"""The supervisor: what died is started again, each at its own pace, and the courier takes nobody along."""

from __future__ import annotations

import sys

import pytest

from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator import supervisor
from ktlog.operator.supervisor import HOPELESS, LONGEST_PAUSE_SECONDS, _Child
from ktlog.wire.notify import Notifier


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


def test_only_the_web_workers_may_speak_to_systemd(tmp_path):
    children = supervisor._children(Settings(tmp_path, "keys.example.com", "spec"), {"A": "b"}, "/run/notify")
    assert all(child.environment["A"] == "b" for child in children)
    assert [child.name for child in children if "NOTIFY_SOCKET" in child.environment] == ["web"]
    assert not any("NOTIFY_SOCKET" in child.environment for child in supervisor._children(
        Settings(tmp_path, "keys.example.com", "spec"), {}
    ))


def test_the_watchdog_is_told_twice_in_its_time(monkeypatch, tmp_path):
    now, said = [100.0], []
    notifier = Notifier(str(tmp_path / "socket"), 10.0)
    monkeypatch.setattr(notifier, "send", said.append)
    monkeypatch.setattr(supervisor.time, "monotonic", lambda: now[0])
    watchdog = supervisor._Watchdog(notifier)
    for _ in range(100):
        watchdog.tell()
        now[0] += 0.1
    assert said == ["WATCHDOG=1"] * 2


def test_without_a_watchdog_nothing_is_said(monkeypatch):
    notifier = Notifier("/run/notify")
    monkeypatch.setattr(notifier, "send", pytest.fail)
    supervisor._Watchdog(notifier).tell()


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


@pytest.mark.parametrize(("role", "names"), [
    ("all", ["sequencer", "replicas", "replies", "web"]), ("web", ["replicas", "replies", "web"]),
    ("sequencer", ["sequencer"]),
])
def test_what_a_machine_runs_is_its_role(tmp_path, role, names):
    settings = Settings(
        tmp_path, "keys.example.com", "spec", store="postgresql:///ktlog", role=role, replicas="keys.beta.example",
        listen="fd://7",
    )
    children = supervisor._children(settings, {})
    assert [one.name for one in children] == names
    assert [one.name for one in children if not one.vital] == [n for n in names if n in ("replicas", "replies")]
    assert [one.pass_fds for one in children if one.name == "web"] == [(7,)] * ("web" in names)
