"""What ``KTLOG_TESTS_NEED`` demands is no skip: programs that are missing, and packages that could not be fetched."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests import debian, machine


def outcome(monkeypatch: pytest.MonkeyPatch, demanded: str, wanted) -> tuple[str, str]:
    monkeypatch.setenv(machine.NEEDED, demanded)
    with pytest.raises((pytest.skip.Exception, pytest.fail.Exception)) as caught:
        wanted()
    return "skipped" if isinstance(caught.value, pytest.skip.Exception) else "failed", str(caught.value)


def test_what_is_missing_is_a_failure_where_it_is_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(machine.CHECKS, "a-thing", lambda: "no such thing")
    for demanded, ended in (("", "skipped"), ("other", "skipped"), ("other a-thing", "failed")):
        assert outcome(monkeypatch, demanded, lambda: machine.need("a-thing"))[0] == ended


@pytest.mark.parametrize(("demanded", "ended"), [("debootstrap nginx", "skipped"), ("nginx downloads", "failed")])
def test_so_is_a_download_that_failed(monkeypatch: pytest.MonkeyPatch, demanded: str, ended: str) -> None:
    """As debootstrap says it, and pip in an empty Debian."""
    from tests.e2e import test_smoke

    said = "E: Failed getting release file http://deb.debian.org/debian/dists/bookworm/Release"
    monkeypatch.setattr(debian, "need", lambda *words: None)
    monkeypatch.setattr(debian.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1, said))
    monkeypatch.setattr(debian, "program", lambda name: name)
    was, line = outcome(monkeypatch, demanded, lambda: debian.empty_debian().__enter__())
    assert (was, "cannot be fetched" in line, said in line) == (ended, True, ended == "failed")

    class Unreached:
        root = Path("/nonexistent")

        def put(self, place: str) -> None:
            """Nothing is put anywhere."""

        def run(self, script: str, *, network: bool) -> subprocess.CompletedProcess[str]:
            return subprocess.CompletedProcess([], 1, "ERROR: Could not find a version that satisfies the requirement click")

    for test in (test_smoke.test_a_stranger_gets_a_proven_answer, test_smoke.test_what_the_containerfile_does):
        assert outcome(monkeypatch, demanded, lambda test=test: test(Unreached()))[0] == ended


def test_ci_keeps_the_word_that_it_cannot_find(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(machine, "CHECKS", {"here": lambda: None, "there": lambda: "it is not"})
    machine._missing.cache_clear()
    for demanded, found in (("", "here\n"), ("there", "here\n"), ("downloads", "here downloads\n")):
        monkeypatch.setenv(machine.NEEDED, demanded)
        assert machine.main([]) == 0
        assert capsys.readouterr().out == found
    machine._missing.cache_clear()
