"""Raw durable appends: how many a second, and whether one costs the same in a large log as in a small one.

A machine's clock varies more within such a run than the costs do. So a large log is not compared with itself as it was
minutes before, but with a small one beside it, slice by slice in turn.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

from ktlog.bench.names import ORIGIN, bytes_of
from ktlog.bench.rawlog import RawLog
from ktlog.bench.row import Row, percentile
from ktlog.bench.usage import counting_syncs, peak, written_bytes
from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator.stores import create_stores, open_log
from ktlog.pkd.dialects import SPEC

RATE_GOAL = 5_000.0
GROWTH_GOAL = 1.10
MARKS = (10_000, 100_000, 1_000_000, 10_000_000)
WINDOW = 40_960
"""Entries whose cost is taken. The write-ahead log is moved every four thousand or so, and that should even out."""
SLICES = 5
SYNC_ENTRIES = 20_480
_BLOBS = 64
_PAGE = 1_000


@dataclass(frozen=True)
class Cost:
    """What appending some entries cost. cpu, seconds: of all. times: of each, in milliseconds. syncs: for one entry."""

    entries: int
    seconds: float
    cpu: float
    written: int
    batches: int
    times: tuple[float, ...]
    syncs: float | None

    def __add__(self, other: Cost) -> Cost:
        entries = self.entries + other.entries
        syncs = None
        if self.syncs is not None and other.syncs is not None:
            syncs = (self.syncs * self.entries + other.syncs * other.entries) / entries
        return Cost(
            entries, self.seconds + other.seconds, self.cpu + other.cpu, self.written + other.written,
            self.batches + other.batches, self.times + other.times, syncs,
        )


@dataclass(frozen=True)
class Window:
    """What appends cost a log of *size*, and what they cost the smallest one, in turn with them."""

    size: int
    cost: Cost
    small: Cost


class Entries:
    """As many different entries of *size* bytes as are wanted, cheaply: a number, and bytes that mean nothing.

    run: another number gives other entries.
    """

    def __init__(self, size: int, run: int = 0) -> None:
        self._size = max(size, 16)
        self._run = run.to_bytes(8, "big")
        self._blobs = [bytes_of(f"blob {run} {number}", self._size - 16) for number in range(_BLOBS)]

    def __call__(self, number: int) -> bytes:
        return (number.to_bytes(8, "big") + self._run + self._blobs[number % _BLOBS])[: self._size]


def raw_settings(directory: Path, **values: object) -> Settings:
    """Settings of a log of raw entries in *directory*, whose stores are made if they are not there.

    Raises:
        StoreError: those of the stores.
    """
    settings = Settings(directory, ORIGIN, SPEC.name, **values)
    if not (directory / "raw").exists():
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        create_stores(settings)
        (directory / "raw").touch()
    return settings


def marks_of(entries: int) -> list[int]:
    """The sizes at which a run up to *entries* is looked at."""
    marks = [mark for mark in MARKS if mark < entries]
    return [*(marks or [entries // 10]), entries]


def measure_log(
    settings: Settings, entries: int, size: int, producers: int, told: Callable[[int], None] = lambda done: None
) -> list[Row]:
    """Every row of the table, for appending *entries* of *size* bytes to an empty log.

    Raises:
        StoreError: ``AckLost``: an entry is not at the index that was promised; those of the stores.
    """
    return asyncio.run(_measure(settings, entries, size, producers, told))


async def _measure(
    settings: Settings, entries: int, size: int, producers: int, told: Callable[[int], None]
) -> list[Row]:
    log = _Driver(settings, size, producers)
    marks = marks_of(entries)
    window = min(WINDOW, max(SLICES, entries // 5))
    windows, checked = [], 0
    started, cpu = time.perf_counter(), time.process_time()
    for mark in marks:
        await log.grow(mark)
        with tempfile.TemporaryDirectory(dir=settings.directory, prefix="small-") as beside:
            small = _Driver(raw_settings(Path(beside)), size, producers)
            await small.grow(marks[0])
            slices = [
                await driver.slice(window // SLICES, min(SYNC_ENTRIES, window) // SLICES)
                for _ in range(SLICES) for driver in (log, small)
            ]
            checked += await small.close()
        windows.append(Window(mark, reduce(add, slices[::2]), reduce(add, slices[1::2])))
        told(mark)
    count = log.count + checked
    whole = time.perf_counter() - started, time.process_time() - cpu
    checked += await log.close()
    return [
        *_rows(windows),
        Row("of the whole run, syncs counted", count / whole[0], "/s", None, cpu_ms=whole[1] / count * 1000),
        Row("memory of the process, at most", peak() / 2**20, "MiB", None),
        Row("acknowledged entries read back and compared", checked, "", None),
    ]


class _Driver:
    """One log, who appends to it, and what it promised."""

    def __init__(self, settings: Settings, size: int, producers: int) -> None:
        self._settings = settings
        self._producers = producers
        self._entry = Entries(size, int.from_bytes(os.urandom(7), "big"))
        self._next = 0
        self._times: list[float] = []
        self._log = RawLog(settings)
        self._begin = self._log.writer.state.size
        self._numbers = array("q", [-1] * self._begin)

    @property
    def count(self) -> int:
        """Entries that were appended here."""
        return self._log.writer.state.size - self._begin

    async def close(self) -> int:
        """End it, and read back what was promised; gives how many entries that were. Raises StoreError."""
        await self._log.close()
        return check_numbers(self._settings, self._numbers, self._entry, self._begin)

    async def grow(self, count: int) -> None:
        """Append until *count* entries were, and publish them: what comes then has the cost of its own alone."""
        await self._append(count - self.count)
        await self._log.settled()

    async def slice(self, count: int, traced: int) -> Cost:
        """Append *count* entries for their cost, then *traced* more for their syncs, with those of one publication.

        How many publications there are is else a matter of time, and strace takes its own.
        """
        batches, written = self._log.writer.batches, written_bytes()
        self._times = []
        started, cpu = time.perf_counter(), time.process_time()
        await self._append(count)
        seconds = time.perf_counter() - started
        await self._log.settled()
        cpu = time.process_time() - cpu
        written, batches, times = written_bytes() - written, self._log.writer.batches - batches, tuple(self._times)
        with counting_syncs([os.getpid()]) as syncs:
            self._log.held = True
            await self._append(traced)
            self._log.held = False
            await self._log.settled()
        return Cost(count, seconds, cpu, written, batches, times, None if syncs.value is None else syncs.value / traced)

    async def _append(self, count: int) -> None:
        """*count* entries more, each producer's next one after its last is durable."""
        end = self._next + count

        async def produce() -> None:
            while self._next < end:
                number, self._next = self._next, self._next + 1
                started = time.perf_counter()
                index = await self._log.append(self._entry(number))
                self._times.append((time.perf_counter() - started) * 1000)
                self._keep(index, number)

        everybody = asyncio.gather(*(produce() for _ in range(min(self._producers, max(count, 0)))))
        await asyncio.wait([everybody, self._log.failed], return_when=asyncio.FIRST_COMPLETED)
        if self._log.failed.done():
            everybody.cancel()
            await asyncio.wait([everybody])
            await self._log.failed
        await everybody

    def _keep(self, index: int, number: int) -> None:
        if index >= len(self._numbers):
            self._numbers.extend([-1] * (index + 1 - len(self._numbers)))
        if self._numbers[index] >= 0:
            raise StoreError("AckLost", f"entry {index} was acknowledged twice")
        self._numbers[index] = number


def check_numbers(settings: Settings, numbers: array[int], entry: Callable[[int], bytes], begin: int) -> int:
    """Compare the log's entries from *begin* on with those that were acknowledged; gives how many these are."""
    store = open_log(settings, read_only=True)
    try:
        for start in range(begin, len(numbers), _PAGE):
            end = min(start + _PAGE, len(numbers))
            for index, found in enumerate(store.entries(start, end), start):
                if numbers[index] >= 0 and entry(numbers[index]) != found:
                    raise StoreError("AckLost", f"entry {index} is not the one that was acknowledged")
    finally:
        store.close()
    return sum(number >= 0 for number in numbers)


def _rows(windows: list[Window]) -> list[Row]:
    rows = []
    for window in windows:
        cost, small = window.cost, window.small
        at = f"at {window.size:,}"
        rows += [
            Row(f"appends {at}, durable", cost.entries / cost.seconds, "/s", RATE_GOAL, at_least=True),
            Row(f"an append {at}, p50", percentile(cost.times, 0.5), "ms", None),
            Row(f"an append {at}, p99", percentile(cost.times, 0.99), "ms", None),
            Row(f"entries in a batch {at}", cost.entries / max(cost.batches, 1), "", None),
            _growth(
                f"CPU time for 1,000 entries {at}", cost.cpu / cost.entries * 1e3, small.cpu / small.entries * 1e3, "s"
            ),
            _growth(
                f"bytes written for an entry {at}", cost.written / cost.entries / 1024,
                small.written / small.entries / 1024, "KiB",
            ),
            _growth(f"syncs for an entry {at}, by strace", cost.syncs, small.syncs, ""),
        ]
    return rows


def _growth(work: str, value: float | None, first: float | None, unit: str) -> Row:
    """A cost in a larger log against the same in the smallest, in turn with it."""
    if not value or not first:
        return Row(f"{work}: not counted", 0, unit, None)
    return Row(work, value, unit, GROWTH_GOAL, peer=first, ratio=value / first)
