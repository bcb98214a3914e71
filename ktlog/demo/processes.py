"""Start, watch and end the demo's processes. Only processes started here are ever ended."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktlog.children import child_environment
from ktlog.errors import Invalid, Unreachable

START_SECONDS = 60.0
STOP_SECONDS = 10.0
COMMAND_SECONDS = 120.0
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""The signals that end the demo, and with it everything that it started."""

_QUOTED_CHARACTERS = 300
_QUOTED_LINES = 12


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
        self._environment = child_environment(environment)
        self._started: list[tuple[Running, subprocess.Popen]] = []
        self._read: dict[Path, int] = {}
        self._commands: set[subprocess.Popen] = set()
        self._stopped = False
        self._lock = threading.Lock()
        logs.mkdir(parents=True, exist_ok=True)

    def start(self, name: str, module: str, arguments: Sequence[str], listener: socket.socket) -> Running:
        """Start ``python -m module`` with ``--listen fd://N`` on *listener*, which is handed over.

        The socket listens before the process does, so nobody has to wait for a port to open, and
        a process that dies refuses connections at once, because no other copy is kept.
        """
        port = listener.getsockname()[1]
        command = [sys.executable, "-m", module, *arguments, "--listen", f"fd://{listener.fileno()}"]
        with open(self._logs / f"{name}.log", "ab") as output, signals_held_back():
            process = subprocess.Popen(
                command, pass_fds=(listener.fileno(),), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env=self._environment, start_new_session=True,
            )
            running = Running(name, process.pid, port)
            self._started.append((running, process))
        listener.close()
        return running

    def run(self, module: str, *arguments: str) -> dict[str, Any]:
        """Run ``python -m module arguments`` to its end and parse the JSON object that it prints.

        Its exit code is in the result as ``exit_code``; what a command prints on failure is JSON too.

        Raises:
            Invalid: ``CommandFailed``: it printed no JSON object, or did not end.
        """
        command = [sys.executable, "-m", module, *arguments]
        with signals_held_back(), self._lock:
            if self._stopped:
                raise Unreachable("Stopped", "the demo is ending")
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=self._environment,
            )
            self._commands.add(process)
        try:
            output, words = process.communicate(timeout=COMMAND_SECONDS)
            return {**json.loads(output), "exit_code": process.returncode}
        except subprocess.TimeoutExpired:
            what = f"did not end within {COMMAND_SECONDS:.0f} s"
        except (ValueError, TypeError):
            what = f"ended with {process.returncode}: {words.decode('utf-8', 'replace')[-1000:]}"
        finally:
            with self._lock:
                self._commands.discard(process)
            if process.poll() is None:
                process.kill()
                process.wait()
        raise Invalid("CommandFailed", f"{module} {arguments[0]} {what}")

    def running(self) -> list[Running]:
        return [running for running, _ in self._started]

    def ended(self, *names: str) -> list[str]:
        """Which processes, of *names* or of all, ended by themselves, and how: ``front (-9)`` was killed."""
        found = ((running.name, _exit_code(process)) for running, process in self._started)
        return [f"{name} ({code})" for name, code in found if code is not None and (not names or name in names)]

    def stop(self, name: str) -> None:
        """End one process and forget it."""
        for item in self._started:
            if item[0].name == name:
                _end([item[1]])
                self._started.remove(item)
                return

    def stop_all(self) -> None:
        """End everything, the commands in other threads included; nothing can be started any more."""
        with self._lock:
            self._stopped = True
            commands = tuple(self._commands)
        for command in commands:
            command.kill()
            command.wait()
        _end([process for _, process in reversed(self._started)])
        self._started.clear()

    def note(self, name: str, text: str) -> None:
        """Put *text* with the output of the processes."""
        with open(self._logs / f"{name}.log", "a", encoding="utf-8") as output:
            output.write(text)

    def last_words(self) -> list[str]:
        """The last lines that each process wrote since this was asked before: why a check failed."""
        said: list[str] = []
        for path in sorted(self._logs.glob("*.log")):
            text = path.read_bytes()
            new = text[self._read.get(path, 0):].decode("utf-8", "replace").split("\n")
            self._read[path] = len(text)
            # What is tried again and again fails in the same words each time.
            lines = dict.fromkeys(
                line.strip() for line in new
                if any(map(str.isalnum, line)) and " INFO " not in line and not line.startswith("Traceback (")
            )
            said += [f"{path.stem} wrote: {line[:_QUOTED_CHARACTERS]}" for line in list(lines)[-_QUOTED_LINES:]]
        return said


def _exit_code(process: subprocess.Popen) -> int | None:
    """As ``poll()``, but a process that ended is not reaped: until then nobody else can get its id."""
    if process.returncode is not None or not hasattr(os, "waitid"):
        return process.poll()
    ended = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def _end(processes: Sequence[subprocess.Popen]) -> None:
    """SIGTERM to all, a moment, then SIGKILL to the sessions that are left, children included."""
    for process in processes:
        if _exit_code(process) is None:
            os.kill(process.pid, signal.SIGTERM)
            os.killpg(process.pid, signal.SIGCONT)  # or a stopped one could not end
    deadline = time.monotonic() + STOP_SECONDS
    while time.monotonic() < deadline and any(_exit_code(process) is None for process in processes):
        time.sleep(0.02)
    for process in processes:
        # Each was started in a session of its own, so this reaches its orphans and nobody else.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Let the signals of ENDING wait: a process must be on the list before an interrupt ends those on it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # signals interrupt the main thread only
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for number in came[:1]:
            signal.raise_signal(number)


def is_alive(pid: int) -> bool:
    """Whether *pid* still runs. A killed process whose parent has not noticed yet does not."""
    try:
        os.kill(pid, 0)
        # After the name, which is in parentheses and may hold anything; Linux only.
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except ProcessLookupError:
        return False
    except FileNotFoundError:
        return not Path("/proc/self/stat").exists()
    except OSError:
        return True
    return state not in (b"Z", b"X")


def listen_on_loopback() -> socket.socket:
    """A listening TCP socket on a free loopback port, inheritable."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", 0))
    listener.listen(256)
    listener.set_inheritable(True)
    return listener


def wait_until(
    what: str, ready: Callable[[], bool], ended: Callable[[], Sequence[str]], seconds: float = START_SECONDS
) -> None:
    """Wait for *what*: until ``ready()``, for as long as ``ended()`` names no process that it takes.

    Raises:
        Unreachable: ``ProcessEnded``; ``NotReady`` when time ran out.
    """
    deadline = time.monotonic() + seconds
    while not ready():
        gone = ended()
        if gone:
            raise Unreachable("ProcessEnded", f"waited for {what}, and {', '.join(gone)} ended by itself")
        if time.monotonic() > deadline:
            raise Unreachable("NotReady", f"waited {seconds:.0f} s for {what}, in vain")
        time.sleep(0.05)
