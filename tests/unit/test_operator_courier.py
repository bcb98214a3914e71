"""The thread that carries requests to the queue in a database: it lives as long as its process."""

from __future__ import annotations

import os
import queue
import resource
import socket
import time
from contextlib import ExitStack, contextmanager

import pytest

pytest.importorskip("psycopg")

from ktlog.errors import StoreError  # noqa: E402
from ktlog.operator import courier as courier_module  # noqa: E402 - psycopg may be missing
from ktlog.operator.courier import Courier, QueueLink  # noqa: E402
from ktlog.operator.link import (  # noqa: E402
    FRAME_LIMIT_BYTES,
    Receipt,
    Submission,
    decode_submission,
    encode_receipt,
    encode_refusal,
)
from ktlog.pkd.canonical import parse_json  # noqa: E402

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
        self.answers += [(ticket, self.answer(frame)) for ticket, frame in parcels]

    def answer(self, frame: bytes) -> bytes:
        return b"answer to " + frame

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


# --- messages for which no thread waits


class Told:
    def __init__(self) -> None:
        self.results: queue.Queue = queue.Queue()

    def __call__(self, result) -> None:
        self.results.put(result)


def link_to(courier: Courier, seconds: float) -> QueueLink:
    link = QueueLink("postgresql://nowhere.example/log", seconds)
    link._courier = courier
    return link


def submission(number: int) -> Submission:
    return Submission(b"%d" % number, {}, {})


class Sequencer(Queue):
    """Odd ones are refused; 4 is answered with nonsense, and 6 not at all."""

    def answer(self, frame: bytes) -> bytes:
        number = int(decode_submission(parse_json(frame)).preimage)
        if number == 4:
            return b"nonsense"
        receipt = encode_receipt(Receipt(number, b"entry", "r"))
        return encode_refusal("key_exists", str(number)) if number % 2 else receipt

    def fetch(self, db, front):
        return [(ticket, answer) for ticket, answer in super().fetch(db, front) if b'"6"' not in answer]

    def withdraw(self, db, front, tickets) -> None:
        """It would answer no more."""


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_each_is_told_what_became_of_it_once(start):
    sequencer = Sequencer()
    link = link_to(start(sequencer), 0.5)
    link.append_later(submission(2), lambda _: 1 // 0)  # whoever fails to be told keeps nobody else waiting
    told = {number: Told() for number in (0, 1, 4, 6)}
    for number, one in told.items():
        link.append_later(submission(number), one)
    results = {number: one.results.get(timeout=SECONDS) for number, one in told.items()}
    assert (results[0], results[1].code) == (Receipt(0, b"entry", "r"), "key_exists")
    assert "does not parse" in results[4].message and "whether it accepted is not known" in results[6].message
    time.sleep(0.1)
    assert all(one.results.empty() for one in told.values())


def test_what_is_not_taken_is_told_too(start):
    courier = start(Sequencer())
    too_long, closed = Told(), Told()
    link_to(courier, SECONDS).append_later(Submission(bytes(FRAME_LIMIT_BYTES), {}, {}), too_long)
    assert too_long.results.get(timeout=SECONDS).code == "too_large"
    courier.close()
    link_to(courier, SECONDS).append_later(submission(0), closed)
    assert closed.results.get(timeout=SECONDS).name == "ClosedStore"


def test_a_database_that_is_gone_keeps_nobody_for_longer_than_the_time_says(start):
    class Gone(Queue):
        def ask(self, db, front, parcels, *, hint) -> None:
            raise StoreError("DatabaseUnreachable", "gone")

    told = Told()
    link_to(start(Gone()), 0.3).append_later(submission(0), told)
    assert isinstance(told.results.get(timeout=SECONDS), StoreError)
