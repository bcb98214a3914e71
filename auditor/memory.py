"""What a watch remembers between looks: the newest head that each source showed, and when which size was seen first.

In ``DIR/watch.db``, whose schema auditor/findings_store.py has. It stays small: one head a source, and of the sizes the
newest KEPT_SIZES on each side. Heads are kept as they were signed: two roots for one size convict whenever they come
together, be it a week later.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

from auditor.findings_store import FindingStore
from ktlog.client.verify import Head, Log, open_head
from ktlog.errors import Invalid

LOG, OTHERS = "log", "others"
"""The two sides: what the log itself shows, and what it is known by others to have signed."""

KEPT_SIZES = 512


@dataclass(frozen=True)
class Remembered:
    """A head that a source showed. tied: the log's own lineage is known to begin with it."""

    head: Head
    tied: bool
    first_seen: int


class Memory:
    """Of one log, or of the log of its map. One thread uses it; nothing waits for the disk before :meth:`flush`."""

    def __init__(self, store: FindingStore, log: Log) -> None:
        self._store = store
        self.origin = log.origin
        self.heads: dict[str, Remembered] = {}
        """By source."""
        self._sizes: dict[str, list[tuple[int, int]]] = {LOG: [], OTHERS: []}
        self._new_heads: set[str] = set()
        self._new_sizes: list[tuple[str, int, int]] = []
        for source, note, tied, first_seen in store.execute(
            "SELECT source, note, tied, first_seen FROM heads WHERE origin = ?", (self.origin,)
        ):
            try:
                self.heads[source] = Remembered(open_head(note, log), bool(tied), first_seen)
            except Invalid:
                continue  # under a key that is trusted no more, it says nothing any longer
        for side, size, first_seen in store.execute(
            "SELECT side, size, first_seen FROM sizes WHERE origin = ? ORDER BY size", (self.origin,)
        ):
            self._sizes[side].append((size, first_seen))

    def keep(self, source: str, head: Head, *, tied: bool, now: int) -> None:
        """The newest head of *source*, in place of the one before."""
        before = self.heads.get(source)
        same = before is not None and (before.head.size, before.head.root) == (head.size, head.root)
        if before is not None and same and before.tied == tied:
            return
        self.heads[source] = Remembered(head, tied, before.first_seen if before is not None and same else now)
        self._new_heads.add(source)

    def saw_size(self, side: str, size: int, now: int) -> None:
        """*side* has shown a tree of *size*, at the latest now."""
        sizes = self._sizes[side]
        if not sizes or sizes[-1][0] < size:
            sizes.append((size, now))
            self._new_sizes.append((side, size, now))
            del sizes[:-KEPT_SIZES]

    def first_beyond(self, side: str, size: int) -> tuple[int, int] | None:
        """The smallest size above *size* that *side* has shown, and since when; None when it showed none."""
        sizes = self._sizes[side]
        at = bisect_right(sizes, size, key=lambda one: one[0])
        return sizes[at] if at < len(sizes) else None

    def largest(self, side: str) -> int:
        """The largest size that *side* has shown; 0 for none."""
        sizes = self._sizes[side]
        return sizes[-1][0] if sizes else 0

    def flush(self) -> None:
        """Make it durable, in a transaction of the store's."""
        with self._store.transaction():
            for source in self._new_heads:
                kept = self.heads[source]
                self._store.execute(
                    "INSERT OR REPLACE INTO heads VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (self.origin, source, kept.head.size, kept.head.root, kept.head.note, kept.tied, kept.first_seen),
                )
            for side, size, first_seen in self._new_sizes:
                self._store.execute(
                    "INSERT OR IGNORE INTO sizes VALUES (?, ?, ?, ?)", (self.origin, side, size, first_seen)
                )
            for side in {side for side, _, _ in self._new_sizes}:
                self._store.execute(
                    "DELETE FROM sizes WHERE origin = ? AND side = ? AND size < ?",
                    (self.origin, side, self._sizes[side][0][0]),
                )
        self._new_heads.clear()
        self._new_sizes.clear()
