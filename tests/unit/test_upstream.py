"""docs/upstream.md: every reproduction runs, every test it names exists, every entry is complete."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance_page import ROOT, functions_of

PAGE = ROOT / "docs" / "upstream.md"


def entries() -> dict[str, str]:
    """The text of every entry by its number."""
    parts = re.split(r"^### ((?:up|ref)-\d\d) ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


ENTRIES = entries()
SNIPPETS = {
    number: code for number, text in ENTRIES.items()
    if (code := "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)))
}


def test_the_entries_are_numbered_in_order() -> None:
    numbers = list(ENTRIES)
    spec = [number for number in numbers if number.startswith("up-")]
    servers = [number for number in numbers if number.startswith("ref-")]
    assert numbers == spec + servers
    assert spec == [f"up-{n:02}" for n in range(1, len(spec) + 1)] and len(spec) >= 25
    assert servers == [f"ref-{n:02}" for n in range(1, len(servers) + 1)]


@pytest.mark.parametrize("number", [number for number in ENTRIES if number.startswith("up-")])
def test_every_entry_is_ready_to_send(number: str) -> None:
    """What is wrong, what we do, what to change; and something that shows it."""
    text = ENTRIES[number]
    assert "**ktlog:**" in text and "**Change:**" in text
    assert number in SNIPPETS or re.search(r"`tests/[\w/]+\.py::\w+`", text), "neither a snippet nor a test"


def test_every_named_test_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 15
    for file, function in named:
        assert function in functions_of(file), f"{file}::{function}"


@pytest.mark.parametrize("number", SNIPPETS)
def test_every_reproduction_runs(number: str) -> None:
    """As a reader would run it: alone in a module's namespace."""
    exec(compile(SNIPPETS[number], f"upstream.md {number}", "exec"), {"__name__": "reproduction"})


def test_a_reproduction_can_fail() -> None:
    """Each asserts something: with its assertions turned round it fails."""
    for number, code in SNIPPETS.items():
        assert re.search(r"^\s*(assert|raise AssertionError)\b", code, re.MULTILINE), number
    with pytest.raises(AssertionError):
        exec(compile(SNIPPETS["up-04"].replace("795", "398"), "turned round", "exec"), {})


def test_the_snippets_stand_alone(tmp_path: Path) -> None:
    """The first, by another process in another directory: nothing of this test's own is needed."""
    (tmp_path / "snippet.py").write_text(SNIPPETS["up-01"], encoding="utf-8")
    done = subprocess.run([sys.executable, "snippet.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
