"""docs/conformance.md keeps its word: every row has tests that exist or a reason, and none is missing."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests.conformance_page import BOUND, KEYWORDS, PAGE, ROOT, STRENGTHS, functions_of, read_page

REQUIREMENTS, COUNTS = read_page()


def test_the_page_is_read_whole() -> None:
    """Every line of a table became a row: the tests below do not pass on nothing."""
    lines = [line for line in PAGE.read_text(encoding="utf-8").splitlines() if re.match(r"\| [A-Z0-9-]+-\d+ \|", line)]
    assert len(lines) == len(REQUIREMENTS) > 400
    assert len(COUNTS) > 90


def test_every_number_is_unique_and_counts_its_section() -> None:
    """Numbers are stable names: tests and letters to the authors use them."""
    numbers = [requirement.number for requirement in REQUIREMENTS]
    assert [number for number, times in Counter(numbers).items() if times > 1] == []
    sections: dict[str, list[str]] = {}
    for requirement in REQUIREMENTS:
        prefix, _, place = requirement.number.rpartition("-")
        sections.setdefault(prefix, []).append(place)
    for prefix, places in sections.items():
        assert len(set(map(int, places))) == len(places), prefix
        assert sorted(map(int, places)) == list(map(int, places)), f"{prefix}: not in the order of the text"


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.number)
def test_every_requirement_has_tests_that_exist_or_a_reason(requirement) -> None:
    assert requirement.strength in STRENGTHS and requirement.binds in BOUND
    assert requirement.text and requirement.text[-1] not in ".;,"
    for file, function in requirement.tests:
        assert function.startswith("test_") and function in functions_of(file), f"no test {file}::{function}"
    assert len(set(requirement.tests)) == len(requirement.tests)
    if not requirement.tests:
        assert requirement.reason in ("against", "client", "not ours", "open")
        assert len(requirement.shown.partition(":")[2].strip()) > 10, "a reason has words"
    if requirement.reason == "against":
        assert requirement.binds != "reader"


def test_the_page_counts_itself_right() -> None:
    """A row that gets lost is missed, and so is a keyword: one row stands for each."""
    rows = Counter(requirement.number.rpartition("-")[0] for requirement in REQUIREMENTS)
    keywords = Counter(
        requirement.number.rpartition("-")[0] for requirement in REQUIREMENTS if requirement.strength in KEYWORDS
    )
    titles = {requirement.number.rpartition("-")[0]: requirement.section for requirement in REQUIREMENTS}
    assert {count.prefix: count.rows for count in COUNTS} == dict(rows)
    assert {count.prefix: count.section for count in COUNTS} == titles
    assert {count.prefix: count.keywords for count in COUNTS} == {prefix: keywords[prefix] for prefix in rows}
    # PKD v0.8.0 has 150 keywords outside the section that defines them.
    assert sum(count.keywords for count in COUNTS) == 150


def test_every_validation_step_is_there() -> None:
    """As many steps as the specification numbers for each action."""
    expected = {
        "ADDKEY-V": 8, "REVOKE-V": 8, "MOVE-V": 8, "FIRE-V": 7, "UNDO-V": 7, "ADDAUX-V": 9, "REVAUX-V": 11, "BURN-V": 11,
        "CHECK-V": 8, "RKTP-V": 4, "COSIGN-V": 7,
    }
    for prefix, steps in expected.items():
        rows = [r for r in REQUIREMENTS if r.number.rpartition("-")[0] == prefix and r.strength == "step"]
        assert [int(row.text.partition(":")[0]) for row in rows] == list(range(1, steps + 1)), prefix


def test_links_lead_to_headings() -> None:
    """upstream.md#up-07 has a heading of that name; a decision is a file."""
    text = PAGE.read_text(encoding="utf-8")
    upstream = (ROOT / "docs" / "upstream.md").read_text(encoding="utf-8")
    anchors = set(re.findall(r"^#+ ((?:up|ref)-\d\d)\b", upstream, re.MULTILINE))
    linked = set(re.findall(r"upstream\.md#([\w-]+)", text))
    assert linked and linked <= anchors, sorted(linked - anchors)
    for target in set(re.findall(r"\]\((decisions/[\w.-]+)\)", text)):
        assert (ROOT / "docs" / target).is_file(), target


def test_no_row_is_open() -> None:
    """A new requirement may wait for its test as ``open:``, and this test waits with it."""
    assert [f"{row.number} {row.shown}" for row in REQUIREMENTS if row.is_open] == []
