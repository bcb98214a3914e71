"""Recent refusals, by reason and instance, for whoever operates the log. In memory, bounded, and without actors.

An instance is what an HTTP signature proved, or else what a request claimed, which is said. Requests that name none are
counted under none.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from ktlog.tlog.encoding import MAXIMUM_INTEGER

ROWS_LIMIT = 1_000
KEEP_SECONDS = 86_400


@dataclass(frozen=True)
class RefusalKey:
    """What is counted as one: refused by whom, under which code, whose. verified: the instance is proven."""

    by: str
    code: str
    instance: str = ""
    verified: bool = False


@dataclass(frozen=True)
class RefusalRow:
    """count: since *first*. Times are Unix seconds."""

    key: RefusalKey
    count: int
    first: int
    last: int


class RefusalBook:
    """Safe to use from many threads. Of more than ``ROWS_LIMIT`` the ones that did not happen for longest are gone.

    Those that nothing is proven of go first: names that somebody makes up push out no instance that signed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: OrderedDict[RefusalKey, RefusalRow] = OrderedDict()

    def add(self, key: RefusalKey, now: int, count: int = 1) -> None:
        with self._lock:
            known = self._rows.pop(key, None)
            if known is not None and now - known.last > KEEP_SECONDS:
                known = None
            first, before = (now, 0) if known is None else (known.first, known.count)
            self._rows[key] = RefusalRow(key, min(before + count, MAXIMUM_INTEGER), first, now)
            if len(self._rows) > ROWS_LIMIT:
                oldest = next(iter(self._rows.values()))
                is_over = now - oldest.last > KEEP_SECONDS
                unproven = None if is_over else next((one for one in self._rows if not one.verified), None)
                del self._rows[unproven or oldest.key]

    def rows(self, now: int) -> list[RefusalRow]:
        """Those of the last day, the newest first."""
        with self._lock:
            return [row for row in reversed(self._rows.values()) if now - row.last <= KEEP_SECONDS]

    def forget(self, instances: Iterable[str]) -> None:
        """Leave no trace of these: somebody's server may be known by who is on it."""
        gone = frozenset(instances)
        with self._lock:
            for key in [key for key in self._rows if key.instance in gone]:
                del self._rows[key]
