"""Many messages under way on one connection: none is lost, none is told twice, and nobody waits for ever."""

from __future__ import annotations

import queue
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from ktlog.config import socket_path
from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.operator import door as door_module
from ktlog.operator.door import Door
from ktlog.operator.link import (
    FRAME_LIMIT_BYTES,
    TOGETHER,
    Frames,
    Receipt,
    Submission,
    decode_submission,
    encode_receipt,
    encode_refusal,
    framed,
)
from ktlog.operator.sharedlink import SharedLink
from ktlog.pkd.canonical import canonical, parse_json

SECONDS = 20


def message(number: int, size: int = 0) -> Submission:
    return Submission(b"%d" % number, {"actor": "a" * size}, {})


class Ticket:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.done = threading.Event()
        self.said = b""

    def finish(self) -> None:
        """Odd ones are refused."""
        number = int(decode_submission(parse_json(self.raw)).preimage)
        receipt = encode_receipt(Receipt(number, b"entry", "r"))
        self.said = encode_refusal("key_exists", str(number)) if number % 2 else receipt
        self.done.set()

    def answer(self) -> bytes:
        self.done.wait(SECONDS)
        return self.said


class Log:
    """A door, behind which a test decides when what is done."""

    def __init__(self, directory: Path) -> None:
        settings = SimpleNamespace(directory=directory, socket_record=directory / "sequencer.addr", origin="o")
        self.record = settings.socket_record
        self.tickets: queue.Queue[Ticket] = queue.Queue()
        self.stop = threading.Event()
        self.door = Door(settings, self.hand_in, self.stop)
        self.path = socket_path(settings)
        self.door.open()

    def hand_in(self, raw: bytes) -> Ticket:
        ticket = Ticket(raw)
        if parse_json(raw)["op"] == "append":
            self.tickets.put(ticket)
        else:
            ticket.said = canonical({"ok": {}})
            ticket.done.set()
        return ticket

    def take(self, count: int) -> list[Ticket]:
        return [self.tickets.get(timeout=SECONDS) for _ in range(count)]


@pytest.fixture
def log():
    directory = Path(tempfile.mkdtemp(prefix="kt"))  # a socket's path must stay short
    log = Log(directory)
    yield log
    log.stop.set()
    log.door.close()
    shutil.rmtree(directory)
    log.path.unlink(missing_ok=True)


class Told:
    """What became of messages, by number."""

    def __init__(self, link: SharedLink) -> None:
        self.link = link
        self.results: dict[int, list] = {}
        self._come = threading.Condition()

    def send(self, number: int, size: int = 0) -> None:
        def told(result) -> None:
            with self._come:
                self.results.setdefault(number, []).append(result)
                self._come.notify_all()

        self.link.append_later(message(number, size), told)

    def wait(self, count: int) -> dict[int, list]:
        with self._come:
            assert self._come.wait_for(lambda: len(self.results) >= count, SECONDS)
        return self.results


def right(results: dict[int, list]) -> bool:
    """Each was told once, and what became of it and not of another."""
    return all(
        len(said) == 1 and (said[0].message == str(number) if number % 2 else said[0].leaf_index == number)
        for number, said in results.items()
    )


def test_many_are_under_way_at_once_and_each_is_told_its_own(log):
    told = Told(SharedLink(log.record))
    senders = [threading.Thread(target=lambda at=at: [told.send(at * 50 + n, 500) for n in range(50)]) for at in range(8)]
    for sender in senders:
        sender.start()
    tickets = log.take(400)  # none of which is answered yet
    for sender in senders:
        sender.join(SECONDS)
    for ticket in tickets:
        ticket.finish()
    results = told.wait(400)
    assert len(results) == 400 and right(results)


def test_what_is_done_is_told_though_others_are_not_done(log):
    told = Told(SharedLink(log.record))
    for number in range(4):
        told.send(number)
    tickets = log.take(4)
    for ticket in tickets[:2]:
        ticket.finish()
    assert right(told.wait(2)) and set(told.results) == {0, 1}
    tickets[3].finish()  # out of turn: it is told after the one before it
    time.sleep(0.05)
    assert set(told.results) == {0, 1}
    tickets[2].finish()
    assert right(told.wait(4))


def test_a_thread_may_wait_for_its_own(log):
    link = SharedLink(log.record)
    threading.Thread(target=lambda: [ticket.finish() for ticket in log.take(2)], daemon=True).start()
    found: list = []
    waiting = threading.Thread(target=lambda: found.append(link.append(message(0))))
    waiting.start()
    with pytest.raises(MessageRejected, match="key_exists"):
        link.append(message(1))
    waiting.join(SECONDS)
    assert found == [Receipt(0, b"entry", "r")]


def test_other_requests_do_not_wait_behind_messages(log):
    link = SharedLink(log.record)
    told = Told(link)
    told.send(0)
    (ticket,) = log.take(1)
    link.ping()
    ticket.finish()
    assert right(told.wait(1))


def test_what_is_too_large_is_told_and_nothing_is_sent(log):
    told = Told(SharedLink(log.record))
    told.send(0, FRAME_LIMIT_BYTES)
    assert told.wait(1)[0][0].code == "too_large"
    assert log.tickets.empty()


def test_what_was_under_way_when_a_connection_broke_is_sent_once_more(log):
    link = SharedLink(log.record)
    told = Told(link)
    told.send(0)
    (first,) = log.take(1)
    first.finish()
    told.wait(1)
    for number in (2, 4):
        told.send(number)
    log.take(2)
    link._line.connection.shutdown(socket.SHUT_RDWR)
    again = log.take(2)
    link._line.connection.shutdown(socket.SHUT_RDWR)  # a second time is too much: nobody knows any more
    results = told.wait(3)
    assert [decode_submission(parse_json(one.raw)).preimage for one in again] == [b"2", b"4"]
    assert all(isinstance(results[number][0], StoreError) and len(results[number]) == 1 for number in (2, 4))
    assert "whether it accepted is not known" in results[2][0].message
    told.send(6)
    log.take(1)[0].finish()
    assert right({6: told.wait(4)[6]})


class Liar:
    """Listens, and answers the first connection's frames with what a test says."""

    def __init__(self, directory: Path, says) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(directory / "s"))
        self.listener.listen(4)
        (directory / "addr").write_text(str(directory / "s"))
        threading.Thread(target=self._serve, args=(says,), daemon=True).start()

    def _serve(self, says) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=says, args=(connection,), daemon=True).start()


@pytest.fixture
def lied():
    directory = Path(tempfile.mkdtemp(prefix="kt"))
    liars = []

    def lie(says, seconds: float = SECONDS) -> Told:
        liars.append(Liar(directory, says))
        return Told(SharedLink(directory / "addr", seconds))

    yield lie
    for liar in liars:
        liar.listener.close()
    shutil.rmtree(directory)


@pytest.mark.parametrize("after", [
    framed(encode_receipt(Receipt(2, b"", "r"))), framed(b"no JSON"), framed(b"[]"), b"\xff\xff\xff\xff", b"\0\0", b"",
], ids=["one too many", "no JSON", "no answer", "too long", "half a frame", "nothing"])
def test_answers_that_nobody_asked_for_end_the_connection_and_take_nothing_back(lied, after):
    def says(connection: socket.socket) -> None:
        frames = Frames(connection)
        assert frames.receive() == TOGETHER and frames.receive() is not None
        connection.sendall(framed(canonical({"ok": {}})) + framed(encode_receipt(Receipt(0, b"entry", "r"))) + after)
        frames.receive()
        connection.close()

    told = lied(says)
    for number in (0, 2):
        told.send(number)
        assert right({number: told.wait(1)[0]}) if number == 0 else isinstance(told.wait(2)[2][0], Receipt | StoreError)
    assert [len(said) for said in told.results.values()] == [1, 1]


def test_a_sequencer_that_hangs_keeps_nobody_for_longer_than_the_time_says(lied):
    hanging = threading.Event()

    def says(connection: socket.socket) -> None:
        hanging.wait(SECONDS)
        connection.close()

    told = lied(says, 2.0)
    began = time.monotonic()
    for number in range(40):
        told.send(number, 45_000)  # more than the kernel takes
    assert time.monotonic() - began < 2, "nobody waits to send"
    results = told.wait(40)
    assert time.monotonic() - began < 2 * 2 + 1
    assert all(isinstance(said[0], StoreError) and len(said) == 1 for said in results.values())
    hanging.set()


def test_a_program_that_fails_to_be_told_keeps_nobody_else_waiting(log, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    link = SharedLink(log.record)
    told = Told(link)
    link.append_later(message(0), lambda _: 1 // 0)
    told.send(2)
    for ticket in log.take(2):
        ticket.finish()
    for ticket in log.take(1):  # sent once more
        ticket.finish()
    assert right(told.wait(1))


def test_without_threads_it_says_so(log, monkeypatch):
    told = Told(SharedLink(log.record))

    def start(_thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as without:
        without.setattr(threading.Thread, "start", start)
        told.send(0)
    assert isinstance(told.wait(1)[0][0], StoreError)


# --- the door


def line_to(log: Log) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(SECONDS)
    connection.connect(str(log.path))
    connection.sendall(framed(TOGETHER))
    return connection


def test_who_takes_no_answers_is_not_read_on_and_others_are(log, monkeypatch):
    monkeypatch.setattr(door_module, "UNSENT", 8)
    deaf = line_to(log)
    deaf.settimeout(1)
    ping = framed(canonical({"op": "ping"})) * 1000
    with pytest.raises(TimeoutError):
        while True:
            deaf.sendall(ping)
    told = Told(SharedLink(log.record))
    told.send(0)
    log.take(1)[0].finish()
    assert right(told.wait(1))
    deaf.close()


def test_who_is_gone_before_the_answer_harms_nobody(log):
    with line_to(log) as gone:
        gone.sendall(b"".join(framed(_append(number)) for number in range(3)))
        tickets = log.take(3)
    for ticket in tickets:
        ticket.finish()
    told = Told(SharedLink(log.record))
    told.send(0)
    log.take(1)[0].finish()
    assert right(told.wait(1))


def test_frames_that_come_in_pieces_or_many_at_a_time():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.settimeout(0.05)
        frames = Frames(theirs)
        raw = b"".join(framed(payload) for payload in (b"", b"x", bytes(70_000), b"last"))
        ours.sendall(raw[:3])
        with pytest.raises(TimeoutError):
            frames.receive()
        threading.Thread(target=ours.sendall, args=(raw[3:],)).start()
        theirs.settimeout(SECONDS)
        assert [frames.receive() for _ in range(4)] == [b"", b"x", bytes(70_000), b"last"]
        ours.sendall(b"\0\0\0\5ab")
        ours.shutdown(socket.SHUT_WR)
        with pytest.raises(EncodingError, match="BrokenFrame"):
            frames.receive()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((FRAME_LIMIT_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(EncodingError, match="FrameTooLarge"):
            Frames(theirs).receive()


def _append(number: int) -> bytes:
    return canonical({"op": "append", "preimage": "MA==", "plain": {}, "keys": {}, "n": str(number)})
