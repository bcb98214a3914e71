"""Which entries rest on text that an erasure took away while the log was read.

Such text leaves an entry without effect in the replay, and whoever it was about is not any more what the log knows of
them. What they, and whoever they touch, do later may then seem to break a rule in entries whose own text is all there.
That accuses nobody, so far as it rests on somebody who was erased: :meth:`Resting.shaken` tells.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from ktlog.pkd.erasure import map_index

MOST_ROWS = 100_000
"""Entries that are remembered: some bytes each, and no more however much a log hides."""


@dataclass(frozen=True)
class _Row:
    leaf_index: int
    names: tuple[str, ...]
    failed: bool
    hidden: bool
    by_anybody: bool


class Resting:
    """Entries that failed, and those of more than one actor after text was first found missing; in their order."""

    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self._missing = False
        self.hidden: set[int] = set()
        """Entries at fault whose text was withheld, or some of it."""

    def note(
        self, leaf_index: int, names: Iterable[str], *, failed: bool, hidden: bool, by_anybody: bool = False
    ) -> None:
        """An entry was judged.

        Args:
            names: the actors that it is about, as far as they can be read.
            hidden: whether text of it was missing. by_anybody: it names no actor, and is about whoever has a key.
        """
        self._missing = self._missing or hidden
        if failed and hidden:
            self.hidden.add(leaf_index)
        who = tuple(names)
        if (failed or (self._missing and len(who) > 1)) and len(self._rows) < MOST_ROWS:
            self._rows.append(_Row(leaf_index, who, failed, hidden, by_anybody))

    def shaken(self, origin: str, erased: Collection[bytes]) -> tuple[frozenset[int], frozenset[bytes]]:
        """Entries at fault that rest on somebody *erased*, and map indexes of everybody who does."""
        entries, actors = set(self.hidden), set(erased)
        for row in self._rows:
            indexes = {map_index(origin, name) for name in row.names}
            if row.hidden or not actors.isdisjoint(indexes) or (row.by_anybody and self._missing):
                actors |= indexes
                if row.failed:
                    entries.add(row.leaf_index)
        return frozenset(entries), frozenset(actors)
