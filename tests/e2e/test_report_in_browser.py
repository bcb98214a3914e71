"""The auditor's report page in a real browser: axe-core finds nothing, and no number stands alone, on any width."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from auditor.events import Event
from auditor.history import AuditHistory, load_history
from auditor.page import render
from auditor.report import Coverage, Finding, Report
from auditor.summary import summarise
from tests.machine import need

need("chromium")

from axe_playwright_python.sync_playwright import Axe  # noqa: E402  they need what was just asked for

from tests.browser import chromium  # noqa: E402

pytestmark = pytest.mark.slow

ORIGIN, ALICE, NOW = "keys.example.com", "https://example.social/users/alice", 1_800_000_000
ROWS = """() => [...document.querySelectorAll('.facts')].map(facts => {
    const tops = [...facts.children].map(one => one.offsetTop);
    return tops.filter((top, at) => tops.indexOf(top) === at).map(top => tops.filter(one => one === top).length);
})"""
"""Of each line of numbers, how many stand in each of its rows."""
BEYOND = """() => [document.documentElement, ...document.querySelectorAll('.facts, .facts dd, main > *')]
    .filter(one => one.scrollWidth > one.clientWidth).map(one => one.className || one.tagName)"""


def write_page(directory: Path, *, by_looks: bool) -> Path:
    """A page about a log that has much, with a fault; or about one that was never audited."""
    kept = AuditHistory(directory, ORIGIN)
    if by_looks:
        kept.add_look(None, NOW, None, ["w1"], [], "Nobody read an entry.")
    else:
        kept.take([Event(ORIGIN, 3, "BurnDown", (ALICE,), time=NOW), Event(ORIGIN, 4, "AddKey", (ALICE,), time=NOW + 9)])
        report = Report(
            ORIGIN, Coverage("all"), Coverage("all"), tree_size=1_234_567, root=bytes(32), read_to=1_234_567,
            actors=234_567, map_leaves=12, map_followed=12, map_derived=3,
        )
        report.findings.add(Finding("OldMap", "Stale", "the map is late"))
        kept.add(report, NOW + 86_400)
    path = directory / "report.html"
    path.write_bytes(render(summarise(load_history(directory, ORIGIN)), directory))
    return path


@pytest.fixture(scope="module")
def tab() -> Iterator[Any]:
    with chromium() as browser:
        yield browser.new_page()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("by_looks", [False, True])
def test_axe_finds_nothing_and_no_number_stands_alone(tab: Any, tmp_path: Path, scheme: str, *, by_looks: bool) -> None:
    tab.emulate_media(color_scheme=scheme)
    tab.goto(write_page(tmp_path, by_looks=by_looks).as_uri())
    for width in (1280, 1000, 900, 880, 700, 600, 390, 360):
        tab.set_viewport_size({"width": width, "height": 900})
        found = tab.evaluate(ROWS)
        assert [sum(rows) for rows in found] == ([4] if by_looks else [6, 3])
        assert all(len(set(rows)) == 1 for rows in found), (width, found)
        assert tab.evaluate(BEYOND) == [], width
    axe = Axe().run(tab)
    assert axe.violations_count == 0, axe.generate_report()
    assert len(axe.response["passes"]) > 10, "axe looked at something"
