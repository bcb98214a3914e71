"""Start, watch and end the demo's processes. Only processes started here are ever ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktlog.errors import Invalid, Unreachable

START_SECONDS = 30.0
STOP_SECONDS = 10.0
COMMAND_SECONDS = 120.0


@dataclass(frozen=True)
class Running:
    """One process: its name in the story, its id, the loopback port it answers on (0: none)."""

    name: str
    pid: int
    port: int

    def as_dict(self) -> dict[str, object]:
        return {"name": self.name, "pid": self.pid, "port": self.port}


class Processes:
    """The demo's processes, in the order in which they were started."""

    def __init__(self, logs: Path, environment: Mapping[str, str]) -> None:
        self._logs = logs
        self._environment = {**os.environ, **environment}
        self._started: list[tuple[Running, subprocess.Popen]] = []
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, arguments: Sequence[str], listener: socket.socket) -> Running:
        """Start ``python -m module`` with ``--listen fd://N`` on *listener*, which is handed over.

        The socket listens before the process does, so nobody has to wait for a port to open, and
        a process that dies refuses connections at once, because no other copy is kept.
        """
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", module, *arguments, "--listen", f"fd://{listener.fileno()}"]
        with open(self._logs / f"{name}.log", "ab") as output:
            process = subprocess.Popen(
                command, pass_fds=(listener.fileno(),), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=self._environment, start_new_session=True,
            )
        listener.close()
        running = Running(name, process.pid, port)
        self._started.append((running, process))
        return running

    def running(self) -> list[Running]:
        return [running for running, _ in self._started]

    def ended(self) -> list[str]:
        """Names of processes that ended by themselves, with how."""
        return [
            f"{running.name} ({process.poll()})" for running, process in self._started if process.poll() is not None
        ]

    def stop(self, name: str) -> None:
        """End one process and forget it."""
        for item in self._started:
            if item[0].name == name:
                _end([item[1]])
                self._started.remove(item)
                return

    def stop_all(self) -> None:
        _end([process for _, process in reversed(self._started)])
        self._started.clear()

    def output_of(self, name: str) -> str:
        """The end of what a process wrote, for an error message."""
        try:
            return (self._logs / f"{name}.log").read_text(encoding="utf-8", errors="replace")[-2000:]
        except OSError:
            return ""


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """SIGTERM to all, a moment, then SIGKILL to the sessions that are left, children included."""
    for process in processes:
        if process.poll() is None:
            process.terminate()
    deadline = time.monotonic() + STOP_SECONDS
    for process in processes:
        try:
            process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        try:
            # Each was started in a session of its own, so this reaches its orphans and nobody else.
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def listen_on_loopback() -> socket.socket:
    """A listening TCP socket on a free loopback port, inheritable."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    listener.set_inheritable(True)
    return listener


def wait_until(what: str, ready, seconds: float = START_SECONDS, ended=list) -> None:
    """Wait until ``ready()`` is true.

    Raises:
        Unreachable: time ran out, or a process ended meanwhile.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        gone = ended()
        if gone:
            raise Unreachable("ProcessEnded", f"while waiting for {what}: {', '.join(gone)} ended")
        if time.monotonic() > deadline:
            raise Unreachable("NotReady", f"{what}: not within {seconds:.0f} s")
        time.sleep(0.05)


def run_command(module: str, *arguments: str, environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Run ``python -m module arguments`` to its end and parse the JSON object that it prints.

    Its exit code is in the result as ``exit_code``; what a command prints on failure is JSON too.

    Raises:
        Invalid: it printed no JSON object.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, stdin=subprocess.DEVNULL,
        env={**os.environ, **(environment or {})}, timeout=COMMAND_SECONDS, check=False,
    )
    try:
        found = json.loads(done.stdout)
        return {**found, "exit_code": done.returncode}
    except (ValueError, TypeError):
        words = done.stderr.decode("utf-8", "replace")[-1000:]
        raise Invalid("CommandFailed", f"{module} {arguments[0]} ended with {done.returncode}: {words}") from None
