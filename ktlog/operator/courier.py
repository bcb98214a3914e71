"""A front end's way to a sequencer on another machine: frames into the queue in the database, answers out of it.

One thread of the process carries everything: what many threads ask at once goes in one statement, and the answers
come in one. It lives for as long as the process, and outlasts a server that is started again.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import select
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from psycopg import Connection

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.operator.link import (
    Link,
    Receipt,
    Submission,
    Told,
    check_length,
    decode_receipt,
    encode_submission,
    no_answer,
)
from ktlog.pkd.canonical import parse_json
from ktlog.store import pgqueue
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgerrors import database_errors

LOOK_SECONDS = 0.05
"""How long an answer lies at most that nobody gave a hint of."""
IDLE_SECONDS = 30.0
"""How often a connection that nobody uses is looked after."""
PAUSE_SECONDS = 0.25
AT_ONCE = 64
"""Frames in one statement."""
LIMIT = 256
"""Requests of one process that wait for their answers."""

log = logging.getLogger("ktlog.link")


@dataclass
class Parcel:
    """A request under way. answer: set before *done* is; None when *until*, on the monotonic clock, nobody answered.

    told: called then. None of whoever waits for *done*, and gives up by themselves.
    """

    ticket: int
    frame: bytes
    done: threading.Event = field(default_factory=threading.Event)
    answer: bytes | None = None
    told: Callable[[Parcel], None] | None = None
    until: float = math.inf

    def end(self) -> None:
        self.done.set()
        if self.told is not None:
            try:
                self.told(self)
            except Exception:
                log.exception("an answer of the sequencer's reaches nobody")  # others' do


class Courier:
    """Carries requests of this process to the queue in the database *url*, from the first one on.

    Args:
        limit: requests at a time; more are refused at once.
    """

    def __init__(self, url: str, limit: int = LIMIT) -> None:
        self._url = url
        self._limit = limit
        self._lock = threading.Lock()
        self._front = ""
        self._tickets = 0
        self._unsent: deque[Parcel] = deque()
        self._waiting: dict[int, Parcel] = {}
        self._given_up: list[int] = []
        self._process: int | None = None
        self._wake = (-1, -1)
        self._closed = False

    def send(
        self, frame: bytes, told: Callable[[Parcel], None] | None = None, until: float = math.inf
    ) -> Parcel:
        """Begin to ask. Its ``done`` is set once the answer is there; else :meth:`give_up`. See Parcel for the others.

        Raises:
            MessageRejected: ``overloaded``.
            StoreError: ``WrongProcess``, ``ClosedStore``.
        """
        with self._lock:
            self._start()
            if len(self._waiting) >= self._limit:
                raise MessageRejected("overloaded", "too many requests wait for the sequencer; try again in a second")
            self._tickets += 1
            parcel = Parcel(self._tickets, frame, told=told, until=until)
            self._waiting[parcel.ticket] = parcel
            self._unsent.append(parcel)
            self._ring()
        return parcel

    def give_up(self, parcel: Parcel) -> None:
        """Nobody waits for the answer any more."""
        with self._lock:
            if self._waiting.pop(parcel.ticket, None) is not None:
                self._given_up.append(parcel.ticket)

    def close(self) -> None:
        with self._lock:
            if not self._closed and self._process is not None:
                self._ring()
            self._closed = True

    def _start(self) -> None:
        if self._closed:
            raise StoreError("ClosedStore", "the way to the sequencer was closed")
        if self._process is None:
            self._process = os.getpid()
            # Drawn now, and not before a fork: two processes of one name would fetch each other's answers.
            self._front = secrets.token_hex(16)
            self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
            threading.Thread(target=self._run, daemon=True, name="courier").start()
        if self._process != os.getpid():
            raise StoreError("WrongProcess", "the way to the sequencer was opened before a fork; open it after")

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it was rung already, often enough
            os.write(self._wake[1], b"\0")

    # The thread

    def _run(self) -> None:
        connections: PgConnections | None = None
        while not self._closed:
            try:
                connections = connections or PgConnections(self._url, read_only=True)
                with database_errors(connections.where), connections.connect() as db:
                    self._carry(db)
            except StoreError as error:
                log.error("the queue of requests cannot be reached: %s", error.diagnostics())
                self._give_up_late()
                time.sleep(PAUSE_SECONDS)
            except Exception:
                # A bug must not end the thread: nobody would ever be answered in this process again.
                log.exception("the queue of requests is not worked")
                self._give_up_late()
                time.sleep(PAUSE_SECONDS)
        with self._lock:  # whoever rings has it
            for end in self._wake:
                os.close(end)
        if connections is not None:
            connections.close()

    def _carry(self, db: Connection) -> None:
        hint = pgqueue.listen(db, pgqueue.channel_of(self._front))
        while not self._closed:
            with self._lock:
                parcels = [self._unsent[at] for at in range(min(AT_ONCE, len(self._unsent)))]
                given_up, waiting = list(self._given_up), bool(self._waiting)
            if parcels:
                # Only then taken out: what an error leaves open is sent again, and is in the log once.
                pgqueue.ask(db, self._front, [(one.ticket, one.frame) for one in parcels], hint=hint)
                with self._lock:
                    for _ in parcels:
                        self._unsent.popleft()
            if given_up:
                pgqueue.withdraw(db, self._front, given_up)
                with self._lock:
                    del self._given_up[: len(given_up)]
            if waiting:
                self._deliver(pgqueue.fetch(db, self._front))
                self._give_up_late()
            with self._lock:
                more, waiting = bool(self._unsent), bool(self._waiting)
            if not more:
                self._rest(db, LOOK_SECONDS if waiting else IDLE_SECONDS)

    def _deliver(self, answers: list[tuple[int, bytes]]) -> None:
        with self._lock:
            found = [(self._waiting.pop(ticket, None), answer) for ticket, answer in answers]
        for parcel, answer in found:
            if parcel is not None:
                parcel.answer = answer
                parcel.end()

    def _give_up_late(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [parcel for parcel in self._waiting.values() if parcel.until <= now]
        for parcel in late:
            self.give_up(parcel)
            parcel.end()

    def _rest(self, db: Connection, seconds: float) -> None:
        """Until somebody asks, or an answer is said to be there, or until it is time to look anyway."""
        # Not select(), which takes no descriptor from 1024 on: strangers' connections may have used up the others.
        waiting = select.poll()
        for end in (self._wake[0], db.fileno()):
            waiting.register(end, select.POLLIN)
        readable = [end for end, _ in waiting.poll(seconds * 1000)]
        if self._wake[0] in readable:
            os.read(self._wake[0], 4096)
        if db.fileno() in readable or not readable:
            for _ in db.notifies(timeout=0):
                pass


class QueueLink(Link):
    """``Link`` over the queue in the database *url*. One courier for all threads."""

    def __init__(self, url: str, timeout_seconds: float = 25.0) -> None:
        self._courier = Courier(url)
        self._timeout_seconds = timeout_seconds

    def close(self) -> None:
        self._courier.close()

    def append_later(self, submission: Submission, told: Told) -> None:
        def tell(parcel: Parcel) -> None:
            result: Receipt | MessageRejected | StoreError
            try:
                result = decode_receipt(self._read(parcel))
            except (MessageRejected, StoreError) as error:
                result = error
            except EncodingError as error:
                result = no_answer(error)
            told(result)

        payload = encode_submission(submission)
        try:
            check_length(payload)
            self._courier.send(payload, tell, time.monotonic() + self._timeout_seconds)
        except (MessageRejected, StoreError) as error:
            told(error)

    def _ask(self, payload: bytes) -> Any:
        parcel = self._courier.send(payload)
        if not parcel.done.wait(self._timeout_seconds):
            self._courier.give_up(parcel)
        return self._read(parcel)

    def _read(self, parcel: Parcel) -> Any:
        """The answer's JSON; EncodingError, if it is none."""
        if parcel.answer is None:
            raise StoreError(
                "SequencerUnreachable",
                f"no sequencer answered within {self._timeout_seconds:g} s; whether it accepted is not known",
                hint="Another one takes over by itself, where one runs (ktlog serve); ask again in a moment.",
            )
        return parse_json(parcel.answer)
