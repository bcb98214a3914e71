"""The thread that carries requests to the queue in a database: it lives as long as its process."""

from __future__ import annotations

import os
import resource
import socket
import time
from contextlib import ExitStack, contextmanager

import pytest

pytest.importorskip("psycopg")

from ktlog.operator import courier as courier_module  # noqa: E402 - psycopg may be missing
from ktlog.operator.courier import Courier  # noqa: E402

BEYOND_SELECT = 1024
"""The first descriptor that select() does not take."""
SECONDS = 10.0


class Database:
    """Of a connection what is waited for: its descriptor, and that there is nothing to be told."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def notifies(self, timeout: float) -> tuple[()]:
        return ()


class Connections:
    where = "the database"

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @contextmanager
    def connect(self):
        yield Database(self._end)

    def close(self) -> None:
        pass


class Queue:
    """The tables: what was asked is answered at once. error: raised by the first question."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.answers: list[tuple[int, bytes]] = []

    def channel_of(self, front: str) -> str:
        return front

    def listen(self, db: Database, channel: str) -> bool:
        return True

    def ask(self, db: Database, front: str, parcels: list[tuple[int, bytes]], *, hint: bool) -> None:
        error, self.error = self.error, None
        if error is not None:
            raise error
        self.answers += [(ticket, b"answer to " + frame) for ticket, frame in parcels]

    def fetch(self, db: Database, front: str) -> list[tuple[int, bytes]]:
        answers, self.answers = self.answers, []
        return answers


@pytest.fixture
def start(monkeypatch):
    """Start a courier over a queue, in a process that has *open_files* open already."""
    with ExitStack() as stack:

        def start(queue: Queue, open_files: int = 0) -> Courier:
            ends = [stack.enter_context(end) for end in socket.socketpair()]
            for _ in range(open_files):
                stack.callback(os.close, os.open(os.devnull, os.O_RDONLY))
            monkeypatch.setattr(courier_module, "pgqueue", queue)
            monkeypatch.setattr(courier_module, "PgConnections", lambda url, read_only: Connections(ends[0]))
            courier = Courier("postgresql://nowhere.example/log")
            stack.callback(time.sleep, 0.1)  # the thread closes its pipe
            stack.callback(courier.close)
            return courier

        yield start


@pytest.fixture
def many_files():
    """Room for more open files than select() knows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2 * BEYOND_SELECT:
        pytest.skip("this machine allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * BEYOND_SELECT), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_strangers_who_hold_a_thousand_connections_do_not_end_the_thread(start, many_files):
    courier = start(Queue(), open_files=BEYOND_SELECT)
    for number in range(3):
        parcel = courier.send(b"%d" % number)
        assert parcel.done.wait(SECONDS), "nobody carries this process's requests any more"
        assert parcel.answer == b"answer to %d" % number
        time.sleep(0.05)  # the thread rests


def test_a_bug_does_not_end_the_thread_and_nothing_is_lost(start, caplog):
    courier = start(Queue(ValueError("a bug")))
    parcel = courier.send(b"message")
    assert parcel.done.wait(SECONDS)
    assert parcel.answer == b"answer to message"
    assert "the queue of requests is not worked" in caplog.text
