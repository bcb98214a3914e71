"""The desk's door for front ends on other machines: requests from the queue in the database, answers back into it.

One thread takes requests and hands them in, so many at a time as the desk may hold; another puts the answers back as
they come, which is after the batch that they belong to is durable. Neither waits for the other, nor for the desk.

A process that dies in between leaves its requests in the queue. The next sequencer takes all of them; what the dead one
had committed is in the log already, and is answered with its receipt.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from psycopg import Connection

from ktlog.durable import reach
from ktlog.errors import Conflict, StoreError
from ktlog.store import pgqueue
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgerrors import database_errors
from ktlog.store.pgqueue import Request

LOOK_SECONDS = 0.05
"""How long a request waits at most that nobody gave a hint of."""

FLOOR_SECONDS = pgqueue.OLD_SECONDS + 5.0
"""A row's number is drawn before the row can be seen; whose sender took longer has given up."""

CLEAN_SECONDS = 10.0
VACUUM_ROWS = 4_000
"""Answers after which the room of what went is given back at once, and not when the server gets around to it."""
PAUSE_SECONDS = 0.25

log = logging.getLogger("ktlog.sequencer")


class Handed(Protocol):
    """A request that was handed in, such as ``ktlog.operator.desk.Ticket``."""

    done: threading.Event

    def answer(self) -> bytes:
        """The answer's bytes, at once where it is done."""


class PgDoor:
    """Serves the queue in the database *url* from :meth:`open` to :meth:`close`.

    Args:
        hand_in: begins with a request, without waiting for its end. Called in one thread.
        in_flight: requests at a time that are handed in and not done.
        epoch: the one that this process claimed; None leaves it to others to fence.
        failed: called, in one of the door's threads, when another process has claimed the log: it ends this one.
    """

    def __init__(
        self, url: str, hand_in: Callable[[bytes], Handed], *, in_flight: int, epoch: int | None,
        failed: Callable[[], None],
    ) -> None:
        self._connections = PgConnections(url, read_only=True)
        self._hand_in = hand_in
        self._in_flight = in_flight
        self._epoch = epoch
        self._failed = failed
        self.needed: tuple[Path, ...] = ()
        self._stop = threading.Event()
        self._busy: dict[int, tuple[Request, Handed]] = {}
        self._busy_lock = threading.Lock()
        self._room, self._work = threading.Event(), threading.Event()
        self._threads = [
            threading.Thread(target=self._keep, args=(part,), daemon=True, name=f"queue-{part.__name__}")
            for part in (self._take, self._answer)
        ]
        with database_errors(self._connections.where), self._connections.connect() as db:
            pgqueue.create_tables(db)

    def open(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Take nothing more; answer what is done."""
        self._stop.set()
        self._room.set()
        self._work.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()
        self._connections.close()

    def _keep(self, part: Callable[[Connection], None]) -> None:
        """Do *part* with a connection of its own, and with another one whenever that is lost."""
        while True:
            try:
                with database_errors(self._connections.where), self._connections.connect() as db:
                    part(db)
                return
            except Conflict as error:
                log.critical("the door closes: %s", error.diagnostics())
                self._failed()
                return
            except StoreError as error:
                log.error("the queue of requests cannot be reached: %s", error.diagnostics())
            except Exception:
                # A sequencer that nobody reaches would look alive.
                log.exception("the door closes")
                self._failed()
                return
            if self._stop.wait(PAUSE_SECONDS):
                return

    # Requests

    def _take(self, db: Connection) -> None:
        hint = pgqueue.listen(db, pgqueue.DOOR)
        floor, seen = 0, deque[tuple[float, int]]()
        while not self._stop.is_set():
            with self._busy_lock:
                busy = list(self._busy)
                self._room.clear()
            room = self._in_flight - len(busy)
            if room <= 0:
                self._room.wait(LOOK_SECONDS)
                continue
            requests = pgqueue.take(db, floor, busy, room)
            for request in requests:
                handed = self._hand_in(request.frame)
                with self._busy_lock:
                    self._busy[request.row] = request, handed
                self._work.set()
            if requests:
                seen.append((time.monotonic(), requests[-1].row))
            while seen and seen[0][0] < time.monotonic() - FLOOR_SECONDS:
                floor = max(floor, seen.popleft()[1])
            if len(requests) < room:
                self._rest(db, hint)

    def _rest(self, db: Connection, hint: bool) -> None:
        """Until somebody says that there is a request, or until it is time to look anyway."""
        if hint:
            for _ in db.notifies(timeout=LOOK_SECONDS, stop_after=1):
                pass
        else:
            self._stop.wait(LOOK_SECONDS)

    # Answers

    def _answer(self, db: Connection) -> None:
        hint = pgqueue.has_hints(db)
        clean_next, answered = time.monotonic() + CLEAN_SECONDS, 0
        while True:
            done = self._done()
            if done:
                pgqueue.answer(
                    db, [(request, handed.answer()) for request, handed in done], epoch=self._epoch, hint=hint
                )
                reach("sequencer.answered")
                self._forget(done)
                answered += len(done)
            elif self._stop.is_set():
                return
            if time.monotonic() >= clean_next:
                pgqueue.clean(db, vacuum=answered > VACUUM_ROWS)
                clean_next, answered = time.monotonic() + CLEAN_SECONDS, 0

    def _done(self) -> list[tuple[Request, Handed]]:
        """What is done, after a short wait for the oldest: they are done in turn, but for what is refused at once."""
        with self._busy_lock:
            oldest = next(iter(self._busy.values()), None)
            self._work.clear()
        if oldest is None:
            self._work.wait(LOOK_SECONDS)
        else:
            oldest[1].done.wait(LOOK_SECONDS)
        with self._busy_lock:
            return [one for one in self._busy.values() if one[1].done.is_set()]

    def _forget(self, done: list[tuple[Request, Handed]]) -> None:
        with self._busy_lock:
            for request, _ in done:
                del self._busy[request.row]
            self._room.set()
