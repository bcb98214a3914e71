"""``ktlog serve``: keeps the sequencer, the web workers and their helpers running, and ends them in order.

``DIR/pids.json`` names the processes, for operators and for tests.

A process that dies is started again after a pause that doubles from a quarter second. One that
refuses to start (exit codes 2, 6 and 8: the configuration, the policy or the store is wrong) is not: it would
refuse again, and its message should be the last thing on the screen. The helpers, which
deliver replies and mirror other logs, are no reason to stop a log.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ktlog.config import Settings
from ktlog.durable import FileLock, write_atomic
from ktlog.errors import StoreError

STOP_SECONDS = 20.0
LOOK_SECONDS = 0.1
FIRST_PAUSE_SECONDS = 0.25
STEADY_SECONDS = 60.0
LONGEST_PAUSE_SECONDS = 8.0
HOPELESS = (2, 6, 8)


@dataclass
class _Child:
    """One process to keep alive. vital: without it there is no log, so if it refuses to start, nothing runs."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    pass_fds: tuple[int, ...] = ()
    vital: bool = True
    process: subprocess.Popen | None = None
    pause_seconds: float = FIRST_PAUSE_SECONDS
    started: float = field(default=0.0)
    again: float | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command, pass_fds=self.pass_fds, stdin=subprocess.DEVNULL, env={**os.environ, **self.environment}
        )
        self.started = time.monotonic()
        self.again = None

    def look(self) -> int | None:
        """See whether it still runs, and plan its next start if not. Gives the exit code that ends everything."""
        ended = self.process.poll() if self.process else None
        if ended is None or self.again is not None:
            return None
        if ended in HOPELESS and self.vital:
            return ended
        print(f"ktlog: {self.name} ended ({ended}); it is started again", file=sys.stderr, flush=True)
        now = time.monotonic()
        if now - self.started > STEADY_SECONDS:
            self.pause_seconds = FIRST_PAUSE_SECONDS
        self.again = now + self.pause_seconds
        self.pause_seconds = min(2 * self.pause_seconds, LONGEST_PAUSE_SECONDS)
        return None

    def is_due(self) -> bool:
        return self.again is not None and time.monotonic() >= self.again

    def stop(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def supervise(settings: Settings) -> int:
    """Run the log in *settings* until SIGTERM or SIGINT; returns the exit code.

    Raises:
        StoreError: ``Locked``, when another supervisor runs it already.
    """
    with FileLock(settings.directory / "serve.lock"):
        return _supervise(settings)


def _supervise(settings: Settings) -> int:
    directory = str(settings.directory)
    listen_fds = (int(settings.listen[5:]),) if settings.listen.startswith("fd://") else ()
    # What a flag of `serve` set must reach the children too.
    environment = {"KTLOG_WORKERS": str(settings.workers)}
    sequencer = _Child("sequencer", [sys.executable, "-m", "ktlog.operator.service", "--dir", directory], environment)
    web = _Child(
        "web", [sys.executable, "-m", "ktlog.web.service", "--dir", directory, "--listen", settings.listen],
        environment, listen_fds,
    )
    replies = _Child(
        "replies", [sys.executable, "-m", "ktlog.operator.replies", "--dir", directory], environment, vital=False
    )
    mirrors = _Child(
        "replicas", [sys.executable, "-m", "ktlog.operator.replica", "--dir", directory], environment, vital=False
    )
    helpers = (replies, mirrors) if settings.replicas.split() else (replies,)
    # A list, not an Event: its lock could be held by the very code that a signal interrupts.
    told_to_stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _frame: told_to_stop.append(number))
    children = (sequencer, web, *helpers)
    for child in children:
        child.start()
    _record(settings, children)
    code = 0
    while not told_to_stop and not code:
        time.sleep(LOOK_SECONDS)
        for child in children:
            # One that waits for its next start does not keep the others waiting.
            code = child.look() or code
            if child.is_due() and not told_to_stop and not code:
                child.start()
                _record(settings, children)
    # The web workers go first: what they have accepted, the sequencer still has to commit.
    for child in (web, *helpers, sequencer):
        child.stop()
    return code


def _record(settings: Settings, children: Sequence[_Child]) -> None:
    pids = {"supervisor": os.getpid()} | {c.name: c.process.pid for c in children if c.process}
    try:
        write_atomic(settings.directory / "pids.json", json.dumps(pids).encode() + b"\n")
    except StoreError as error:  # a full disk, perhaps: no reason to take down what can still answer
        print(f"ktlog: {error.diagnostics()}", file=sys.stderr, flush=True)
