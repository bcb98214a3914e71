"""Numbers with what they count: nobody is told of "1 entries"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ktlog.words import count_entries, some

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = [
    *ROOT.glob("ktlog/commands/*.py"), *ROOT.glob("auditor/commands/*.py"), *ROOT.glob("witness/*cli.py"),
    ROOT / "witness" / "upkeep.py",
]
COUNTED = "attempts|entries|erasures|files|findings|instances|leaves|logs|rows|times"


@pytest.mark.parametrize(("count", "tiles", "entries"), [
    (0, "0 tiles", "0 entries"), (1, "1 tile", "1 entry"), (2, "2 tiles", "2 entries"),
    (1234, "1,234 tiles", "1,234 entries"),
])
def test_some(count: int, tiles: str, entries: str) -> None:
    assert (some(count, "tile"), count_entries(count)) == (tiles, entries)


def test_no_command_says_the_plural_whatever_the_number() -> None:
    """But of names of constants, which are not one, and after "N of"."""
    said = [
        f"{path.relative_to(ROOT)}: {found[0]}"
        for path in COMMANDS for line in path.read_text(encoding="utf-8").splitlines()
        for found in re.finditer(rf"(?<! of )\{{(?![A-Z_]+\}})[^{{}}]+\}} ({COUNTED})\b", line)
    ]
    assert not said
