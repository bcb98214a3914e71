"""``ktlog serve``: keeps the sequencer, the web workers and their helpers running, and ends them in order.

Which of them a machine runs is what the setting ``role`` says.

``DIR/pids.json`` names the processes, for operators and for tests. systemd is told when the web workers answer, that
the supervisor is alive, and when it stops (:mod:`ktlog.wire.notify`).

A process that dies is started again after a pause that doubles from a quarter second. One that
refuses to start (exit codes 2, 6 and 8: the configuration, the policy or the store is wrong) is not: it would
refuse again, and its message should be the last thing on the screen. The helpers, which
deliver replies and mirror other logs, are no reason to stop a log.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ktlog.children import child_environment
from ktlog.config import ALL, SEQUENCER, WEB, Settings
from ktlog.durable import FileLock, write_atomic
from ktlog.ending import ENDING
from ktlog.errors import StoreError
from ktlog.wire import logs
from ktlog.wire.notify import Notifier

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
            self.command, pass_fds=self.pass_fds, stdin=subprocess.DEVNULL, env=child_environment(self.environment)
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
        logs.say(f"{self.name} ended ({ended}); it is started again", logging.WARNING)
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


class _Watchdog:
    """Tells systemd that the supervisor is alive, which looks after the others."""

    def __init__(self, notifier: Notifier) -> None:
        self._notifier = notifier
        self._next = 0.0

    def tell(self) -> None:
        """Called at every look; speaks at twice the pace that is asked for."""
        now = time.monotonic()
        if self._notifier.watchdog_seconds is not None and now >= self._next:
            self._next = now + self._notifier.watchdog_seconds / 2
            self._notifier.send("WATCHDOG=1")


def supervise(
    settings: Settings, environment: Mapping[str, str] | None = None, notifier: Notifier | None = None
) -> int:
    """Run the log in *settings* until SIGTERM or SIGINT; returns the exit code.

    Args:
        environment: what the processes get besides ours: the settings that are not in the log's configuration.
        notifier: whom to tell; else whom the environment names.

    Raises:
        StoreError: ``Locked``, when another supervisor runs it already.
    """
    with FileLock(settings.directory / "serve.lock"):
        told = notifier or Notifier.from_environment()
        return _supervise(settings, _children(settings, environment or {}, told.address), told)


def _supervise(settings: Settings, children: Sequence[_Child], notifier: Notifier) -> int:
    watchdog = _Watchdog(notifier)
    # A list, not an Event: its lock could be held by the very code that a signal interrupts.
    told_to_stop: list[int] = []
    for number in ENDING:
        signal.signal(number, lambda number, _frame: told_to_stop.append(number))
    for child in children:
        child.start()
    _record(settings, children)
    if settings.role == SEQUENCER:  # else it is ready when the web workers are, who say so themselves
        notifier.send("READY=1")
    code = 0
    while not told_to_stop and not code:
        time.sleep(LOOK_SECONDS)
        watchdog.tell()
        for child in children:
            # One that waits for its next start does not keep the others waiting.
            code = child.look() or code
            if child.is_due() and not told_to_stop and not code:
                child.start()
                _record(settings, children)
    notifier.send("STOPPING=1")
    # The web workers go first: what they have accepted, the sequencer still has to commit.
    for child in reversed(children):
        child.stop()
    return code


def _children(settings: Settings, environment: Mapping[str, str], notify_socket: str = "") -> list[_Child]:
    """What this machine runs of the log, in the order of starting. The web workers alone may speak to systemd."""
    def child(name: str, module: str, *arguments: str, speaks: bool = False, **how: Any) -> _Child:
        command = [sys.executable, "-m", f"ktlog.{module}", "--dir", str(settings.directory), *arguments]
        more = {"NOTIFY_SOCKET": notify_socket} if speaks and notify_socket else {}
        return _Child(name, command, {**environment, **more}, **how)

    children = []
    if settings.role in (ALL, SEQUENCER):
        children.append(child("sequencer", "operator.service"))
    if settings.role in (ALL, WEB):
        if settings.replicas.split():
            children.append(child("replicas", "operator.replica", vital=False))
        children.append(child("replies", "operator.replies", vital=False))
        listen_fds = (int(settings.listen[5:]),) if settings.listen.startswith("fd://") else ()
        children.append(child("web", "web.service", "--listen", settings.listen, pass_fds=listen_fds, speaks=True))
    return children


def _record(settings: Settings, children: Sequence[_Child]) -> None:
    pids = {"supervisor": os.getpid()} | {c.name: c.process.pid for c in children if c.process}
    try:
        write_atomic(settings.directory / "pids.json", json.dumps(pids).encode() + b"\n")
    except StoreError as error:  # a full disk, perhaps: no reason to take down what can still answer
        logs.say(error.diagnostics(), logging.ERROR)
