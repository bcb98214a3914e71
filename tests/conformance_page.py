"""docs/conformance.md, read: one Requirement for each row of its tables.

Shared by the test of the page and by the mutation run, which breaks what the page says is tested.
"""

from __future__ import annotations

import ast
import functools
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "conformance.md"
HEADER = ("no.", "strength", "binds", "what it asks", "shown by")
COUNTS = "Rows in each section"
COUNTS_HEADER = ("prefix", "section", "keywords", "rows")
KEYWORDS = frozenset({"MUST", "MUST NOT", "SHALL", "SHALL NOT", "SHOULD", "SHOULD NOT", "REQUIRED", "RECOMMENDED"})
STRENGTHS = KEYWORDS | {"step", "field", "rule", "row", "text"}
BOUND = frozenset({"directory", "client", "instance", "mirror", "witness", "auditor", "everybody", "reader"})
_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")
_REASON = re.compile(r"(against|client|not ours|open): (.*)", re.DOTALL)


@dataclass(frozen=True)
class Requirement:
    """One row. tests: (file, function). reason: the word before the colon if there are no tests."""

    number: str
    section: str
    strength: str
    binds: str
    text: str
    shown: str
    tests: tuple[tuple[str, str], ...]
    reason: str

    @property
    def is_open(self) -> bool:
        return self.reason == "open"


@dataclass(frozen=True)
class Count:
    """What the page says of one section."""

    prefix: str
    section: str
    keywords: int
    rows: int


def _cells(line: str) -> tuple[str, ...]:
    return tuple(cell.strip() for cell in line.strip().strip("|").split("|"))


def _requirement(section: str, cells: tuple[str, ...]) -> Requirement:
    number, strength, binds, text, shown = cells
    tests = tuple(_TEST.findall(shown))
    rest = _TEST.sub("", shown).strip()
    found = _REASON.fullmatch(shown)
    if found:
        return Requirement(number, section, strength, binds, text, shown, (), found[1])
    if rest or not tests:
        raise AssertionError(f"{number}: neither tests alone nor a reason: {shown!r}")
    return Requirement(number, section, strength, binds, text, shown, tests, "")


@functools.cache
def read_page() -> tuple[tuple[Requirement, ...], tuple[Count, ...]]:
    """Every row of the page and its own count of them. A line that fits no table is a mistake of the page."""
    requirements: list[Requirement] = []
    counts: list[Count] = []
    section, header = "", None
    for line in PAGE.read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            section, header = line[3:].strip(), None
        elif line.startswith("|"):
            cells = _cells(line)
            if set("".join(cells)) <= {"-", ":"}:
                continue
            if header is None:
                header = cells
            elif section == COUNTS:
                assert header == COUNTS_HEADER, header
                counts.append(Count(cells[0], cells[1], int(cells[2]), int(cells[3])))
            else:
                assert header == HEADER and len(cells) == len(HEADER), f"{section}: {line}"
                requirements.append(_requirement(section, cells))
    return tuple(requirements), tuple(counts)


@functools.cache
def functions_of(file: str) -> frozenset[str]:
    """The test functions of a file, without importing it; empty if there is no such file."""
    path = ROOT / file
    if not path.is_file():
        return frozenset()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
