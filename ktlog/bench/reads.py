"""What reading from logs costs, over real HTTP, and how it grows with the log.

Each log's web worker runs as a process of its own, as in production, and is asked over one
connection. The logs are asked in turn, one request each, so that whatever else the machine does
meanwhile falls on all of them alike: their ratio means more than their times.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from ktlog.bench.row import percentile
from ktlog.config import Settings, load_settings
from ktlog.errors import Unreachable, UsageError
from ktlog.store.sqlite import SqliteStore

WARM_UP = 50
"""Requests to each log before the first one that counts."""
START_SECONDS = 60.0
_PAGE = 10_000
_READY = "listens on http://"


@dataclass(frozen=True)
class Reads:
    """What one log's answers took, in microseconds."""

    directory: Path
    actors: int
    requests: int
    p50_us: float
    p99_us: float

    def as_dict(self) -> dict[str, object]:
        return {
            "dir": str(self.directory), "actors": self.actors, "requests": self.requests,
            "p50-us": round(self.p50_us), "p99-us": round(self.p99_us),
        }


def measure(directories: Sequence[Path], requests: int, seed: int = 1) -> list[Reads]:
    """Ask each log for the keys of *requests* of its actors, chosen at random.

    Raises:
        UsageError: ``NoActors``: a log without any.
        Unreachable: ``NoWorker``, a web worker did not start; ``BadStatus``, an answer was not 200.
        StoreError: a directory that holds no log.
    """
    chance = random.Random(seed)  # noqa: S311 - a choice of whom to ask, to be repeatable
    with contextlib.ExitStack() as stack:
        targets = []
        for directory in directories:
            settings = load_settings(directory)
            names = actor_names(settings)
            if not names:
                raise UsageError("NoActors", f"nobody is enrolled in the log in {directory}")
            targets.append((stack.enter_context(web_worker(settings)), settings.origin, names))
        taken: list[list[float]] = [[] for _ in targets]
        for number in range(WARM_UP + requests):
            for (connection, host, names), times in zip(targets, taken, strict=True):
                elapsed = _ask(connection, host, chance.choice(names))
                if number >= WARM_UP:
                    times.append(elapsed)
    return [
        Reads(directory, len(names), requests, percentile(times, 0.5), percentile(times, 0.99))
        for directory, (_, _, names), times in zip(directories, targets, taken, strict=True)
    ]


def actor_names(settings: Settings) -> list[str]:
    """Every actor of a log."""
    names: list[str] = []
    with SqliteStore.open(settings.database, origin=settings.origin, read_only=True) as store:
        while page := store.actor_ids(names[-1] if names else "", _PAGE):
            names += page
    return names


def _ask(connection: http.client.HTTPConnection, host: str, actor_id: str) -> float:
    """Microseconds for one answer."""
    target = f"/api/actor/{quote(actor_id, safe='')}/keys"
    try:
        started = time.perf_counter_ns()
        connection.request("GET", target, headers={"Host": host})
        response = connection.getresponse()
        body = response.read()
        elapsed = time.perf_counter_ns() - started
    except (OSError, http.client.HTTPException) as error:
        raise Unreachable("NoWorker", f"the web worker of {host} does not answer: {error}") from None
    if response.status != 200:
        raise Unreachable("BadStatus", f"{target}: status {response.status}: {body[:200]!r}")
    return elapsed / 1000


@contextlib.contextmanager
def web_worker(settings: Settings) -> Iterator[http.client.HTTPConnection]:
    """A connection to a web worker over the log in *settings*; the worker ends with the context."""
    words = [sys.executable, "-m", "ktlog.web.service", "--dir", str(settings.directory), "--listen", "127.0.0.1:0"]
    environment = os.environ | {"KTLOG_WORKERS": "1"}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            address = _address(process)
            connection = http.client.HTTPConnection(address, timeout=START_SECONDS)
            with contextlib.closing(connection):
                yield connection
        finally:
            process.terminate()


def _address(process: subprocess.Popen[str]) -> str:
    """Where the worker listens, as it says itself; what else it writes is passed on."""
    if process.stderr is None:
        raise AssertionError("the worker was started without a pipe")
    late = threading.Timer(START_SECONDS, process.kill)
    late.start()
    try:
        for line in process.stderr:
            if _READY in line:
                # Nobody reads on otherwise, and a full pipe would stop the worker.
                threading.Thread(target=_pass_on, args=(process,), daemon=True).start()
                return line.partition(_READY)[2].strip()
            sys.stderr.write(line)
    finally:
        late.cancel()
    raise Unreachable("NoWorker", "a web worker did not start; its reason is above")


def _pass_on(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ValueError):  # closed at the end
        for line in process.stderr or ():
            sys.stderr.write(line)
