"""Tell the sequencer what this worker refused, and whose it was, and what it fetched: for the whole log's numbers."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ktlog.errors import KtlogError
from ktlog.operator.link import Fetched, RefusedRow
from ktlog.wire.prometheus import Histogram

REPORT_SECONDS = 1.0
ROWS_LIMIT = 200
"""Instances of which one report speaks. The others' refusals are counted by their codes alone."""


class Report(Protocol):
    """Takes the counts since the last report, by code, and whose they were; a KtlogError keeps them for the next."""

    def __call__(
        self, counts: Mapping[str, int], rows: Sequence[RefusedRow], fetched: Fetched | None, /
    ) -> None: ...


class RefusalReport:
    """Counts by code and instance, and reports with a refusal or a fetch, at most once a second.

    Safe to use from many threads.
    """

    def __init__(self, report: Report, clock: Callable[[], float] = time.monotonic) -> None:
        self._report = report
        self._clock = clock
        self._lock = threading.Lock()
        self._reporting = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._rows: Counter[tuple[str, str, bool]] = Counter()
        self._fetches, self._blocked = Histogram(), 0
        self._next = 0.0

    def count(self, code: str, instance: str = "", verified: bool = False) -> None:
        """One more. instance: its host name; *verified*: proven by a signature, not only claimed."""
        with self._lock:
            self._counts[code] += 1
            row = code, instance, verified
            if row in self._rows or len(self._rows) < ROWS_LIMIT:
                self._rows[row] += 1
        self._report_in_turn()

    def fetched(self, seconds: float, blocked: bool) -> None:
        """One more document was fetched, or failed to be. blocked: without a connection, for its address is none."""
        with self._lock:
            self._fetches.observe(seconds)
            self._blocked += blocked
        self._report_in_turn()

    def _report_in_turn(self) -> None:
        if self._clock() < self._next:
            return
        # One thread at a time: should the sequencer not answer, no other waits for it.
        if self._reporting.acquire(blocking=False):
            try:
                self._send()
            finally:
                self._reporting.release()

    def _send(self) -> None:
        with self._lock:
            counts, self._counts = self._counts, Counter()
            rows, self._rows = self._rows, Counter()
            fetches, self._fetches = self._fetches, Histogram()
            blocked, self._blocked = self._blocked, 0
            self._next = self._clock() + REPORT_SECONDS
        fetched = Fetched(tuple(fetches.counts), round(fetches.total * 1e6), blocked) if any(fetches.counts) else None
        try:
            self._report(counts, [(*row, count) for row, count in rows.items()], fetched)
        except KtlogError:
            with self._lock:
                self._counts += counts
                self._fetches.merge(fetches.counts, fetches.total)
                self._blocked += blocked
                self._rows = Counter(dict((self._rows + rows).most_common(ROWS_LIMIT)))
