"""Numbers with what they count, for people to read."""

from __future__ import annotations


def some(count: int, noun: str, plural: str = "") -> str:
    """``1 tile``, ``2,000 tiles``. plural: where it is not *noun* with an s."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def count_entries(count: int) -> str:
    """``1 entry``, ``2,000 entries``."""
    return some(count, "entry", "entries")


def span(seconds: int) -> str:
    """``90 s``, ``5 min``, ``3 h``: how long, roughly."""
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7_200 else f"{seconds // 3600} h"


def size(count: float) -> str:
    """``12 B``, ``3.4 MiB``: of so many bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
