"""One connection to the sequencer for all the messages of a process, many of them under way on it.

A thread that waits for its message alone is woken alone, here and in the sequencer, and that costs about as much as the
signatures. On a shared connection answers come in the order of their messages, those of a batch together.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.operator.link import (
    TOGETHER,
    Frames,
    Receipt,
    SequencerLink,
    Submission,
    Told,
    check_length,
    decode_ok,
    decode_receipt,
    encode_submission,
    framed,
    unanswered,
)
from ktlog.pkd.canonical import parse_json

LOOK_SECONDS = 0.5
"""How often a receiver looks whether somebody has waited for too long, or something is left to be sent."""
CONNECT_SECONDS = 2.0


@dataclass(slots=True)
class _Parcel:
    """A message under way. sent: it went over a connection once. last: it is not sent once more."""

    payload: bytes
    told: Told
    since: float
    sent: bool = False
    last: bool = False


class _Line:
    """A connection, and whose answers are to come over it, in this order. Guarded by the link's lock, but for taking
    from the left, which only the receiver does. unsent: what the kernel did not take; nobody waits until it does."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.waiting: deque[_Parcel] = deque()
        self.unsent = bytearray()
        self.open = True

    def send(self, data: bytes = b"") -> None:
        """Raises OSError: the connection is over."""
        self.unsent += data
        with suppress(BlockingIOError):
            while self.unsent:
                del self.unsent[: self.connection.send(self.unsent)]


class SharedLink(SequencerLink):
    """A web worker's link: its messages share a connection. Whatever else it asks has one for each thread.

    What was on its way over a connection that breaks is sent once more, over a new one: see SequencerLink.
    """

    def __init__(self, record: Path, timeout_seconds: float = 25.0) -> None:
        super().__init__(record, timeout_seconds)
        self._lock = threading.Lock()
        self._line: _Line | None = None

    def append(self, submission: Submission) -> Receipt:
        come = threading.Event()
        results: list[Receipt | MessageRejected | StoreError] = []

        def told(result: Receipt | MessageRejected | StoreError) -> None:
            results.append(result)
            come.set()

        self.append_later(submission, told)
        come.wait()
        (result,) = results
        if isinstance(result, Receipt):
            return result
        raise result

    def append_later(self, submission: Submission, told: Told) -> None:
        payload = encode_submission(submission)
        try:
            check_length(payload)
        except MessageRejected as error:
            told(error)
            return
        self._send(_Parcel(framed(payload), told, time.monotonic()))

    def _send(self, parcel: _Parcel) -> None:
        if self._late(parcel):
            parcel.told(unanswered(TimeoutError("timed out")))
            return
        with self._lock:
            line = self._line
            try:
                if line is None or not line.open:
                    line = self._line = self._begin()
                    parcel.last = True
            except (OSError, RuntimeError) as error:  # the latter: there can be no more threads
                failure = unanswered(error) if parcel.sent else self.absent(error)
            else:
                line.waiting.append(parcel)  # before it is sent: its answer may be here sooner than we are back
                parcel.sent = True
                try:
                    line.send(parcel.payload)
                except OSError:
                    # The receiver sees the end, and to all who wait.
                    line.open = False
                    with suppress(OSError):
                        line.connection.shutdown(socket.SHUT_RDWR)
                return
        parcel.told(failure)

    def _begin(self) -> _Line:
        connection = self.connect(min(CONNECT_SECONDS, self.timeout_seconds))
        try:
            connection.setblocking(False)
            line = _Line(connection)
            line.send(framed(TOGETHER))
            threading.Thread(target=self._receive, args=(line,), name="receipts", daemon=True).start()
        except (OSError, RuntimeError):
            connection.close()
            raise
        return line

    def _receive(self, line: _Line) -> None:
        """Tell whoever waits, until the connection ends."""
        frames = Frames(line.connection)
        error: Exception = OSError("it could not be read")
        try:
            decode_ok(parse_json(self._next(frames, line)))
            while True:
                answer = self._next(frames, line)
                if not line.waiting:
                    raise EncodingError("BadAnswer", "the sequencer answers what nobody asked")
                result: Receipt | MessageRejected
                try:
                    result = decode_receipt(parse_json(answer))
                except MessageRejected as refusal:
                    result = refusal
                line.waiting.popleft().told(result)
        except (OSError, EncodingError, MessageRejected) as failure:
            error = failure
        finally:
            self._end(line, error)  # whatever happened: nobody waits for ever

    def _next(self, frames: Frames, line: _Line) -> bytes:
        while True:
            try:
                answer = frames.receive()
            except BlockingIOError:
                self._wait(line)
                continue
            if answer is None:
                raise EncodingError("BrokenFrame", "the sequencer closed the connection")
            return answer

    def _wait(self, line: _Line) -> None:
        """Until something comes, or it is time to look.

        Raises:
            TimeoutError: somebody has waited for too long.
        """
        poll = select.poll()
        poll.register(line.connection, select.POLLIN | (select.POLLOUT if line.unsent else 0))
        poll.poll(LOOK_SECONDS * 1000)
        if line.unsent:
            with self._lock:
                line.send()
        if line.waiting and self._late(line.waiting[0]):
            raise TimeoutError("timed out")

    def _late(self, parcel: _Parcel) -> bool:
        return time.monotonic() - parcel.since > self.timeout_seconds

    def _end(self, line: _Line, error: Exception) -> None:
        with self._lock:
            line.open = False  # from here on nobody joins those who wait
            if self._line is line:
                self._line = None
        line.connection.close()
        for parcel in line.waiting:
            if parcel.last or self._late(parcel):
                parcel.told(unanswered(error))
            else:
                parcel.last = True
                self._send(parcel)
