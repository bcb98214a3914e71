"""``ktlog-auditor watch``: follows any number of logs, each in threads of its own.

A log that is slow, or hostile, costs its own threads their time and nobody else's: a look has LOOK_SECONDS, a reading
``read_seconds``, and a reading that was cut off stands in line with its like from then on. At most READERS of either
kind read at once, so that memory does not grow with the number of logs.

On SIGTERM nothing is begun any more; what is under way stops at its next request, and what it had not judged by then
is judged next time.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Any, Protocol

from auditor.findings_store import FindingStore, Row
from auditor.logwatch import LOOKING, Announcer, LogDirectory, LogWatch, Round, Settings
from auditor.report import EXIT_CODES
from auditor.schedule import beat_of
from auditor.state import AuditDirectory, origin_filename
from auditor.watchfile import WatchConfig
from ktlog.client.publicfiles import FileGetter
from ktlog.errors import StoreError
from ktlog.wire.logs import fields
from ktlog.wire.prometheus import Histogram, Page

READERS = 2
DRAIN_SECONDS = 20.0
AGAIN_SECONDS = 600.0
"""After a reading that found something, and so has to begin at the same place, not before."""

_LOG = logging.getLogger("ktlog.watch")


class Reporter(Protocol):
    """Is told of each round when it is over, from any thread."""

    def __call__(self, done: Round) -> object: ...


class Clock(Protocol):
    def __call__(self) -> int: ...


@dataclass
class _State:
    """Of one log, for metrics. Times: Unix seconds, 0 for never."""

    looked: int = 0
    read: int = 0
    size: int = 0
    entries: int = 0
    rounds: dict[str, int] = field(default_factory=dict)
    incomplete: dict[str, int] = field(default_factory=dict)
    failure: str = ""
    seconds: Histogram = field(default_factory=lambda: Histogram((0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 60.0)))


class Watch:
    """All logs of one configuration, in one directory. A context manager: it holds the directory's lock.

    Args:
        announcer: makes whom to tell, once the directory is ours.
        fetchers: makes the two fetchers, for looks and for readings.
        clock: Unix seconds.
    """

    def __init__(
        self, directory: Path, config: WatchConfig, announcer: Callable[[], Announcer],
        fetchers: Callable[[], tuple[FileGetter, FileGetter]], clock: Clock, reporter: Reporter,
        settings: Settings | None = None,
    ) -> None:
        self.directory = directory
        self.config = config
        self.stop = threading.Event()
        self.error: StoreError | None = None
        """Why the watch cannot do its work; None when it can."""
        base = settings or Settings()
        self._settings = Settings(
            config.skew, config.graces, base.look_seconds, base.read_seconds, base.workers, base.steady,
            self.stop.is_set, lambda seconds: bool(self.stop.wait(seconds)) and None,
        )
        self._make_announcer = announcer
        self._fetchers = fetchers
        self._clock = clock
        self._reporter = reporter
        self._chance = SystemRandom()
        self._stack = ExitStack()
        self._threads: list[threading.Thread] = []
        self._lanes = threading.BoundedSemaphore(READERS), threading.BoundedSemaphore(READERS)
        self._lock = threading.Lock()
        self._states: dict[str, _State] = {}
        self.logs: list[LogWatch] = []

    def __enter__(self) -> Watch:
        with ExitStack() as stack:
            main = stack.enter_context(AuditDirectory(self.directory))
            self.store = stack.enter_context(FindingStore(self.directory))
            announcer = self._make_announcer()
            fetcher, reading = self._fetchers()
            for watched in self.config.logs:
                path = self.directory / "logs" / origin_filename(watched.log.origin)
                state = stack.enter_context(LogDirectory(path, main))
                self.logs.append(LogWatch(
                    watched, self.store, main, state, fetcher, reading, self._settings, announcer
                ))
                self._states[watched.log.origin] = _State()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        # A thread that did not end in time may still use what would be closed: then the end of the process closes it.
        if not any(thread.is_alive() for thread in self._threads):
            self._stack.close()

    # Once

    def once(self) -> list[Round]:
        """One look at each log and one reading, all logs at once; for cron."""
        self._announce(self.logs[0])
        done: list[Round] = []

        def run(log: LogWatch) -> None:
            done.extend(one for one in (self._look(log), self._read(log)) if one is not None)

        threads = [threading.Thread(target=run, args=(log,), name=f"once-{log.origin}") for log in self.logs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return done

    # For ever

    def run(self, deliver: Callable[[int], object] = lambda now: None) -> None:
        """Until ``stop`` is set. *deliver* is called every second, in a thread of its own: receivers may be slow."""
        self._announce(self.logs[0])
        threads = [
            threading.Thread(target=self._keep_looking, args=(log, number), name=f"look-{log.origin}", daemon=True)
            for number, log in enumerate(self.logs)
        ]
        threads.append(threading.Thread(target=self._keep_delivering, args=(deliver,), name="deliver", daemon=True))
        self._threads += threads
        for thread in threads:
            thread.start()
        # In turns: a signal that does not interrupt system calls is handled between two of them.
        while not self.stop.wait(0.5):
            pass
        until = self._settings.steady() + DRAIN_SECONDS
        for thread in threads:
            thread.join(max(0.0, until - self._settings.steady()))

    def _keep_delivering(self, deliver: Callable[[int], object]) -> None:
        while not self.stop.wait(1.0):
            try:
                deliver(self._clock())
            except StoreError as error:
                self._fail(error, "alarms")
            except Exception:  # noqa: BLE001 - a receiver's trouble must not end the watch
                _LOG.exception("alarms could not be delivered")

    def _keep_looking(self, log: LogWatch, number: int) -> None:
        steady = self._settings.steady
        beat = beat_of(number, len(self.logs), steady(), self.config.every)
        self.stop.wait(max(0.0, beat.start - steady()))
        kick = threading.Event()
        reader = threading.Thread(
            target=self._keep_reading, args=(log, kick), name=f"read-{log.origin}", daemon=True
        )
        if log.reads:
            self._threads.append(reader)
            reader.start()
        while not self.stop.is_set():
            self._look(log)
            kick.set()
            due = beat.next(steady(), self._chance.random())
            self.stop.wait(max(0.0, due - steady()))
        kick.set()
        if log.reads:
            reader.join(DRAIN_SECONDS)

    def _keep_reading(self, log: LogWatch, kick: threading.Event) -> None:
        while True:
            kick.wait()
            kick.clear()
            if self.stop.is_set():
                return
            lane = self._lanes[log.overran]
            while not lane.acquire(timeout=1.0):
                if self.stop.is_set():
                    return
            try:
                done = self._read(log)
            finally:
                lane.release()
            if done is None or (done.complete and done.first == done.entries and self._has_findings(log)):
                self.stop.wait(AGAIN_SECONDS)

    @staticmethod
    def _has_findings(log: LogWatch) -> bool:
        return any(row.name not in LOOKING for row in log.open())

    # One round

    def _look(self, log: LogWatch) -> Round | None:
        return self._round(log, "look", log.look)

    def _read(self, log: LogWatch) -> Round | None:
        return self._round(log, "reading", log.read) if log.reads else None

    def _round(self, log: LogWatch, kind: str, work: Callable[[int], Round]) -> Round | None:
        state = self._states[log.origin]
        try:
            done = work(self._clock())
            if self.stop.is_set() and not done.complete:
                return done
            self._reporter(done)
            log.announce()
        except StoreError as error:
            self._fail(error, log.origin)
            with self._lock:
                state.failure = error.name
            return None
        except Exception as error:  # noqa: BLE001 - one log's trouble must not end the watch of the others
            _LOG.exception("a %s of %s failed", kind, log.origin)
            with self._lock:
                state.failure = type(error).__name__
            return None
        with self._lock:
            self.error = None
            if kind == "reading" or not log.reads or state.failure != "OutboxFull":  # a look says nothing of a reading
                state.failure = ""
            state.rounds[kind] = state.rounds.get(kind, 0) + 1
            state.incomplete[kind] = state.incomplete.get(kind, 0) + (not done.complete)
            if kind == "look":
                state.looked, state.size = done.began, done.size or state.size
                state.seconds.observe(done.seconds)
            else:
                state.read, state.entries = done.began, done.entries or state.entries
        return done

    def _announce(self, log: LogWatch) -> None:
        """What an earlier run did not come to tell."""
        try:
            log.announce()
        except StoreError as error:
            self._fail(error, "alarms")

    def _fail(self, error: StoreError, about: str) -> None:
        if self.error is None or self.error.name != error.name:
            _LOG.error("the watch stands still: %s", error, extra=fields(about=about))
        self.error = error

    # Numbers

    def unready(self) -> str | None:
        """Why a look would not be taken, or not be kept; None when all is well."""
        if self.stop.is_set():
            return "Draining"
        if self.error is not None:
            return self.error.name
        with self._lock:  # one log may stand still, while others go on
            return "OutboxFull" if any(one.failure == "OutboxFull" for one in self._states.values()) else None

    def add_metrics(self, page: Page) -> None:
        """Raises StoreError."""
        rows = self.store.open()
        counts: dict[tuple[str, str, str], int] = {}
        for row in rows:
            at = row.origin, row.name, row.kind
            counts[at] = counts.get(at, 0) + 1
        page.add("findings_open", "gauge", "Findings that hold now.",
                 [({"origin": origin, "name": name, "class": kind}, count)
                  for (origin, name, kind), count in sorted(counts.items())])
        page.add("logs", "gauge", "Logs watched.", len(self.logs))
        page.add("ready", "gauge", "1 if /readyz says ok.", self.unready() is None)
        with self._lock:
            states = sorted(self._states.items())
            for name, kind, text, value in (
                ("log_size", "gauge", "Size of the head that the log shows.", lambda one: one.size),
                ("log_entries_judged", "gauge", "Entries up to which all was read and judged.",
                 lambda one: one.entries),
                ("looked_timestamp_seconds", "gauge", "When the last look began; 0: never.", lambda one: one.looked),
                ("read_timestamp_seconds", "gauge", "When the last reading began; 0: never.", lambda one: one.read),
                ("log_failed", "gauge", "1 if the last round could not be kept.", lambda one: bool(one.failure)),
            ):
                page.add(name, kind, text, [({"origin": origin}, value(one)) for origin, one in states])
            for name, text, attribute in (
                ("rounds_total", "Looks and readings.", "rounds"),
                ("rounds_incomplete_total", "Of those, not complete: somebody was silent, or time was over.",
                 "incomplete"),
            ):
                page.add(name, "counter", text, [
                    ({"origin": origin, "kind": kind}, count)
                    for origin, one in states for kind, count in sorted(getattr(one, attribute).items())
                ])
            page.add_histograms("look_seconds", "How long looks took.",
                                [({"origin": origin}, one.seconds.copy()) for origin, one in states])


def gravest(rows: Sequence[Row]) -> int:
    """The exit code of the gravest open finding; 0 without any."""
    kinds = {row.kind for row in rows if row.is_open}
    return next((code for kind, code in EXIT_CODES.items() if kind in kinds), 0)


def format_change(row: Row, *, opened: bool) -> dict[str, Any]:
    """A finding that opened or closed, as one line of JSON."""
    return {"event": "opened" if opened else "closed", **row.as_dict()}
