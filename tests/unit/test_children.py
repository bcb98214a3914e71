"""What is planted in the directory where somebody types ``ktlog serve`` runs in none of its processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ktlog
from ktlog.children import child_environment

PLANTED = "import pathlib; pathlib.Path(__file__).with_name('ran').touch()"


def run(environment: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.strip()


def test_a_planted_package_is_not_imported(tmp_path, monkeypatch):
    (tmp_path / "ktlog").mkdir()
    (tmp_path / "ktlog" / "__init__.py").write_text(PLANTED)
    (tmp_path / "ktlog" / "__main__.py").write_text(PLANTED)
    (tmp_path / "json.py").write_text(PLANTED)
    monkeypatch.chdir(tmp_path)
    assert run(child_environment(), "-m", "ktlog", "--version")
    assert not (tmp_path / "ran").exists() and not (tmp_path / "ktlog" / "ran").exists()
    run(dict(os.environ), "-m", "ktlog")  # without it, it would be
    assert (tmp_path / "ktlog" / "ran").exists()


def test_a_child_imports_what_we_import(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", ["", *sys.path])  # a checkout that is not installed
    there = child_environment({"KTLOG_X": "1"})
    monkeypatch.chdir(tmp_path)
    found = run(there, "-c", "import os, ktlog; print(ktlog.__file__, os.environ['KTLOG_X'])")
    assert found == f"{Path(ktlog.__file__)} 1"
