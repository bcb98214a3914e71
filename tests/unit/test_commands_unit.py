"""`ktlog unit`, from a checkout and from what an install puts beside the packages."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ktlog.cli import ktlog
from ktlog.errors import StoreError, UsageError
from ktlog.operator import units

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
NAMES = sorted(path.name for path in UNITS.iterdir())


def run(*words: str) -> Result:
    return CliRunner().invoke(ktlog, ["unit", *words])


def check_all() -> None:
    assert run("--list").stdout.split() == NAMES and len(NAMES) >= 9
    for name in NAMES:
        result = run(name)
        assert (result.exit_code, result.stdout) == (0, (UNITS / name).read_text(encoding="utf-8"))
    assert run("ktlog").stdout == run("ktlog.service").stdout != ""


def test_each_is_printed_as_it_is_and_found_by_its_name() -> None:
    check_all()
    for name in ("nobody", "../systemd/ktlog", "/etc/passwd", "ktlog.service.service"):
        error = run(name).exception
        assert isinstance(error, UsageError) and error.name == "NoUnit" and "ktlog-backup.timer" in error.hint
    for words in ((), ("ktlog", "--list")):
        assert run(*words).exit_code == 2


def test_an_install_has_them_without_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What setup.cfg names is put below the prefix, and found there by the install's own list of files."""
    pytest.importorskip("setuptools")
    monkeypatch.setattr(units, "CHECKOUT", tmp_path / "none")
    monkeypatch.setattr(units, "files", lambda _name: [])
    assert isinstance(run("ktlog").exception, StoreError)
    subprocess.run(
        [sys.executable, "-c", "from setuptools import setup; setup()", "-q", "install_data", "--install-dir", str(tmp_path)],
        cwd=UNITS.parents[1], stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )
    packages = tmp_path / "lib" / "python" / "site-packages"
    (info := packages / "ktlog-1.dist-info").mkdir(parents=True)
    put = [path for path in (tmp_path / "share").rglob("*") if path.is_file()]
    (info / "RECORD").write_text("".join(f"../../../{path.relative_to(tmp_path)},,\n" for path in put) + "ktlog/cli.py,,\n")
    found = importlib.metadata.Distribution.at(info).files
    monkeypatch.setattr(units, "files", lambda name: found if name == "ktlog" else None)
    check_all()


def test_it_says_so_where_the_unit_would_find_no_program(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = run("ktlog").stderr
    assert "/opt/ktlog/bin/ktlog" in missing and "ExecStart" in missing
    monkeypatch.setattr(Path, "exists", lambda self: True)
    assert run("ktlog").stderr == "" == run("ktlog.sysusers").stderr
