"""A log under ``ktlog serve`` on loopback with everybody it needs, and load from a process beside it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktlog.bench import neighbours
from ktlog.bench.load import Answer, Plan, write_plan
from ktlog.bench.usage import Server, Usage, stat_of
from ktlog.config import Settings
from ktlog.demo.processes import Processes, listen_on_loopback, wait_until
from ktlog.errors import Unreachable

WORKERS = 2
START_SECONDS = 120.0
ASK_SECONDS = 5.0


@dataclass(frozen=True)
class Loaded:
    """What a load did. seconds: from its begin to its last answer. cpu: of the generator. unsent: found no connection.

    usage: of the log's processes meanwhile.
    """

    answers: tuple[Answer, ...]
    seconds: float
    cpu: float
    unsent: int
    usage: Usage

    @property
    def accepted(self) -> list[Answer]:
        return [answer for answer in self.answers if answer.status == 202 and not answer.code]


class Stage:
    """The log in *settings* with its neighbours; nothing of it runs before ``start``."""

    def __init__(self, settings: Settings, scratch: Path, environment: Mapping[str, str]) -> None:
        self.settings = settings
        self.scratch = scratch
        self.port = 0
        self._loads = 0
        directory = scratch / "neighbours"
        self.processes = Processes(scratch / "logs", {
            "KTLOG_DIAL": str(directory / "dial.json"), "KTLOG_WORKERS": str(WORKERS), **environment,
        })
        neighbours.start(self.processes, directory)
        self._server = Server(0)

    def start(self) -> None:
        """Start the log, without waiting for it."""
        listener = listen_on_loopback()
        self.port = listener.getsockname()[1]
        started = self.processes.start("log", "ktlog", ["serve", "--dir", str(self.settings.directory)], listener)
        self._server = Server(started.pid)

    def wait_ready(self) -> None:
        """Until it takes messages. Raises Unreachable: ``ProcessEnded``, ``NotReady``."""
        try:
            wait_until("the log", lambda: self.ask("/readyz") == 200, self.processes.ended, START_SECONDS)
        except Unreachable as error:
            raise Unreachable(error.name, f"{error.message}: {'; '.join(self.processes.last_words())}") from None

    def ask(self, target: str) -> int:
        """The status of a GET; 0 without an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=ASK_SECONDS)
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("GET", target, headers={"Host": self.settings.origin})
            response = connection.getresponse()
            response.read()
            return response.status
        return 0

    @property
    def server(self) -> Server:
        return self._server

    def workers(self) -> tuple[int, ...]:
        """The web workers that answer: children of the process that the supervisor calls web."""
        master = json.loads((self.settings.directory / "pids.json").read_bytes())["web"]
        return tuple(pid for pid in self._server.pids() if pid != master and int(stat_of(pid)[1]) == master)

    def kill(self) -> None:
        """SIGKILL to every process of the log, as near to at once as can be."""
        for pid in self._server.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.processes.stop("log")

    def load(
        self, plan: Plan, requests: Sequence[Sequence[bytes]], meanwhile: Callable[[], object] | None = None
    ) -> Loaded:
        """Send *requests* as *plan* says, its port aside; *meanwhile* is called once it has begun.

        Raises:
            Unreachable: ``NoGenerator``.
        """
        self._loads += 1
        path = self.scratch / f"load{self._loads}"
        write_plan(path, plan, requests)
        words = [sys.executable, "-m", "ktlog.bench.load", str(path)]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            if process.stdout is None or process.stdin is None or process.stdout.readline() != "ready\n":
                process.kill()
                raise Unreachable("NoGenerator", "the load generator did not start; its reason is above")
            before = self._server.usage()
            process.stdin.write("\n")
            process.stdin.flush()
            if meanwhile is not None:
                meanwhile()
            line = process.stdout.readline()
            after = self._server.usage()
        path.unlink()
        if process.returncode or not line:
            raise Unreachable("NoGenerator", "the load generator ended too early; its reason is above")
        done = json.loads(line)
        lines = path.with_suffix(".answers").read_text(encoding="utf-8").splitlines()
        answers = tuple(Answer(**json.loads(text)) for text in lines)
        return Loaded(answers, done["seconds"], done["cpu"], done["unsent"], after - before)


@contextlib.contextmanager
def stage(settings: Settings, environment: Mapping[str, str] | None = None) -> Iterator[Stage]:
    """A stage whose log runs and takes messages."""
    with tempfile.TemporaryDirectory(prefix="ktlog-bench-") as scratch:
        built = Stage(settings, Path(scratch), environment or {})
        try:
            built.start()
            built.wait_ready()
            yield built
        finally:
            built.processes.stop_all()
