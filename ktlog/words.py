"""Numbers with what they count, for people to read."""

from __future__ import annotations


def some(count: int, noun: str, plural: str = "") -> str:
    """``1 tile``, ``2,000 tiles``. plural: where it is not *noun* with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def count_entries(count: int) -> str:
    """``1 entry``, ``2,000 entries``."""
    return some(count, "entry", "entries")
