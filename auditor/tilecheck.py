"""Compares the tiles a log serves with those recomputed from its entries."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Executor, Future

from auditor.fetch import LogReader
from auditor.report import Finding, Report, finding_from
from auditor.structural import tile_mismatch
from ktlog.errors import KtlogError

FETCHERS = 4
"""Requests under way at once: enough to hide a round trip, too few to hurt a small log."""


class TileCheck:
    """Compares tiles as they are made; after the first that cannot be had for want of an answer it stops asking."""

    def __init__(self, reader: LogReader, network: Executor, report: Report) -> None:
        self._reader = reader
        self._network = network
        self._report = report
        self._pending: deque[Future[Finding | None]] = deque()
        self._stopped = False

    def check(self, tiles: Sequence[tuple[int, int, bytes]]) -> None:
        """Begin to compare (level, number, expected bytes)."""
        for level, number, expected in tiles:
            if not self._stopped:
                self._pending.append(self._network.submit(self._compare, level, number, expected))
        while len(self._pending) > 2 * FETCHERS:
            self._settle()

    def settle(self) -> None:
        """Wait for every comparison under way."""
        while self._pending:
            self._settle()

    def finish(self) -> None:
        """The same, and say what was not compared."""
        self.settle()
        if self._stopped:
            self._report.skip("Tiles: the log stopped answering for them.")

    def _settle(self) -> None:
        finding = self._pending.popleft().result()
        if finding is None:
            self._report.tiles += 1
        elif not (self._stopped and finding.kind == "Unreachable"):
            self._report.findings.add(finding)
            self._stopped = self._stopped or finding.kind == "Unreachable"

    def _compare(self, level: int, number: int, expected: bytes) -> Finding | None:
        width = len(expected) // 32
        try:
            served = self._reader.tile(level, number, width)
        except KtlogError as error:
            return finding_from(error)
        return None if served == expected else tile_mismatch(level, number, width)
