"""Runs ``ktlog demo`` as somebody at a shell does, stops it before a check, and finds what it leaves behind."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SECONDS = 300
"""For a whole story, on a machine that does other things too."""

PROCESSES = (
    "front", "witness-w1", "witness-w2", "witness-w3", "verifier-v1", "instance-alpha", "instance-beta",
    "log-alpha", "sequencer-alpha", "web-alpha", "replies-alpha",
    "log-beta", "sequencer-beta", "web-beta", "replies-beta",
)
"""Every process that stays for the whole story. ``log-*`` supervises the three of its log."""


@cache
def _environment() -> dict[str, str]:
    """This one's, with a place for compiled modules: a demo starts two dozen interpreters that need the same."""
    compiled = tempfile.mkdtemp(prefix="kd-pyc-")
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)
    return {**os.environ, "PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": compiled}


def wait_for(what: str, ready: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value of ``ready()``."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return found


@dataclass(frozen=True)
class Paused:
    """A demo that waits: where everything is, and its processes by name, each (pid, port)."""

    directory: Path
    processes: dict[str, tuple[int, int]]


class DemoRun:
    """One ``ktlog demo`` under way. Its temporary directories are all in ``temporary``, which begins empty."""

    def __init__(self, *options: str, environment: dict[str, str] | None = None) -> None:
        # A short path: a Unix socket's name is in there.
        self._home = Path(tempfile.mkdtemp(prefix="kd-")).resolve()
        self.temporary = self._home / "t"
        self.temporary.mkdir()
        self._stdout, self._stderr = self._home / "stdout", self._home / "stderr"
        with open(self._stdout, "wb") as stdout, open(self._stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "ktlog", "demo", *options], stdin=subprocess.PIPE, stdout=stdout,
                stderr=stderr, env={**_environment(), "TMPDIR": str(self.temporary), **(environment or {})},
                # A test runner may ignore Ctrl-C; what it starts would inherit that.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )

    @property
    def stdout(self) -> str:
        return self._stdout.read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return self._stderr.read_text(encoding="utf-8")

    def paused(self) -> Paused:
        """Wait until the demo waits before the check that ``--pause-before`` named."""
        def told() -> bool:
            assert self.process.poll() is None, f"ended early: {self.stdout}{self.stderr}"
            return '"paused"' in self.stdout and self.stdout.endswith("\n")

        wait_for("the demo to pause", told, SECONDS)
        line = next(line for line in self.stdout.splitlines() if '"paused"' in line)
        found = json.loads(line)
        processes = {one["name"]: (one["pid"], one["port"]) for one in found["processes"]}
        return Paused(Path(found["dir"]), processes)

    def proceed(self) -> None:
        self.process.stdin.write(b"\n")
        self.process.stdin.flush()

    def wait_for_words(self, words: str) -> None:
        def said() -> bool:
            assert self.process.poll() is None or words in self.stdout, f"ended early: {self.stdout}{self.stderr}"
            return words in self.stdout

        wait_for(f"the demo to say {words!r}", said, SECONDS)

    def wait(self) -> int:
        return self.process.wait(SECONDS)

    def report(self) -> dict[str, Any]:
        """What ``--json`` printed last."""
        return json.loads(self.stdout.splitlines()[-1])

    def left_running(self) -> list[str]:
        """Every living process that this demo started, however far down, by pid and command. Linux only."""
        marker = f"TMPDIR={self.temporary}\0".encode()
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if marker in (process / "environ").read_bytes() and int(process.name) != self.process.pid:
                    found.append(f"{process.name} {(process / 'cmdline').read_bytes().decode()!r}")
            except OSError:
                continue  # it has ended, or it is somebody else's
        return found

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(SECONDS)
        for line in self.left_running():
            os.kill(int(line.split()[0]), signal.SIGKILL)
        self.process.stdin.close()
        shutil.rmtree(self._home, ignore_errors=True)


@contextmanager
def demo(*options: str, environment: dict[str, str] | None = None):
    run = DemoRun(*options, environment=environment)
    try:
        yield run
    finally:
        run.close()
