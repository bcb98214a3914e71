"""docs/interop.md says which versions were run and what three witnesses answer: the same as the tests there."""

from __future__ import annotations

import re
from pathlib import Path

from tests.interop.test_witnesses_side_by_side import STEPS
from tests.machine import GO_MODULES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "interop.md").read_text(encoding="utf-8")


def test_the_answers_of_three_witnesses_are_those_of_the_test():
    rows = re.findall(r"^\| ([a-z0-9][^|]+) \| (\d+) \| (\d+) \| (\d+) \|$", PAGE, re.MULTILINE)
    assert [(what, tuple(map(int, statuses))) for what, *statuses in rows] == [
        (what, statuses if isinstance(statuses, tuple) else (statuses,) * 3) for what, _, statuses in STEPS
    ]


def test_the_versions_are_those_that_are_pinned():
    pinned = {}
    for module in GO_MODULES:
        direct = (module / "go.mod").read_text().replace("require ", "\t")
        pinned |= dict(re.findall(r"^\t(\S+) (v\S+)$", direct, re.MULTILINE))
    names = {"Tessera": "tessera", "witness": "witness", "formats": "formats", "torchwood": "torchwood"}
    said = dict(re.findall(r"^\| \[(\w+)\][^|]* \| (v\S+) \|", PAGE, re.MULTILINE))
    assert said.keys() == names.keys()
    for name, version in said.items():
        (found,) = {one for path, one in pinned.items() if path.rpartition("/")[2] == names[name]}
        assert version == found
