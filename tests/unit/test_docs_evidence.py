"""docs/evidence.md says what the code reads, and links to an example of each kind."""

from __future__ import annotations

import re
from pathlib import Path

import auditor.evidence.limits as limits
import ktlog.keymap.evidence
import ktlog.tlog.evidence
from auditor.convict import parse_any
from auditor.evidence.claims import FORMAT, KINDS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "evidence.md").read_text(encoding="utf-8")


def test_every_kind_is_listed_with_an_example_of_it() -> None:
    linked = dict(re.findall(r"^\| \[([a-z-]+)\]\((vectors/evidence/[a-z-]+\.json)\)", PAGE, re.MULTILINE))
    assert set(linked) == {*KINDS, *ktlog.keymap.evidence.KINDS, *ktlog.tlog.evidence.KINDS}
    for kind, path in linked.items():
        assert parse_any((Path(__file__).resolve().parents[2] / "docs" / path).read_bytes()).kind == kind


def test_the_members_are_those_that_are_read() -> None:
    table = PAGE.partition(f"- `{FORMAT}`")[2].partition("\n\n")[2].partition("\n\n")[0]
    told = {
        row.split("|")[1].strip(): re.findall(r"`([a-z-]+)`", row.split("|")[2]) for row in table.splitlines()[2:]
    }
    assert told == {kind: list(members) for kind, members in KINDS.items()}


def test_the_bounds_are_those_that_are_kept() -> None:
    assert (limits.MAX_CLAIM_BYTES, limits.MAX_BLOB_BYTES) == (32 << 20, 4 << 20)
    told = (
        f"At most 32 MiB, {limits.MAX_MARKS:,} commas and opening brackets, {limits.MAX_ENTRIES:,} entries,"
        f" {limits.MAX_HASHES} hashes, 4 MiB a member, 16 texts an entry."
    )
    assert told in PAGE and limits.MAX_ATTRIBUTES == 16
