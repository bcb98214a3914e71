"""Which of several sequencers is at work: the one that holds the lease in the database. The others stand by.

The holder renews it every few seconds. If it cannot, it ends before anybody else can take the lease, by a clock that
goes on while the machine sleeps. That keeps two from getting in each other's way; it is not what keeps them from
forking the log, since a process may be stopped for any time between two instructions. Whoever takes the lease raises
the log's epoch first of all, and from then on nothing counts that an older writer writes.
"""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from psycopg import Connection

from ktlog.errors import StoreError
from ktlog.store import pglease
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgerrors import database_errors

LEASE_SECONDS = 8.0
RENEW_SECONDS = 2.0
MARGIN_SECONDS = 1.0
"""How long before the end the holder gives up."""
LOOK_SECONDS = 0.5
WATCH_SECONDS = 0.1

_Result = TypeVar("_Result")

log = logging.getLogger("ktlog.sequencer")


def awake_seconds() -> float:
    """A clock that never goes back, and does not stand still while the machine sleeps."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Lease:
    """The lease of the log in the database *url*, as one process sees it.

    Args:
        lost: called once, in a thread of its own, when the lease is somebody else's or could not be renewed in time.
            It ends the process.
        holder: what others are told about who has it.
    """

    def __init__(
        self, url: str, lost: Callable[[], None], *, holder: str = "", ticks: Callable[[], float] = awake_seconds,
        seconds: float = LEASE_SECONDS,
    ) -> None:
        self._connections = PgConnections(url, read_only=True)
        self._lost = lost
        # Random, too: a process that took the number of a dead one is not that one.
        self.holder = holder or f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
        self._ticks = ticks
        self._seconds = seconds
        self._over = threading.Event()
        self._until = float("-inf")
        self._db: Connection | None = None
        self._renewer: threading.Thread | None = None
        self._do(pglease.create_table)

    def wait(self, stop: Callable[[], bool]) -> bool:
        """Stand by until the lease is taken, and keep it from then on; False if *stop* says so before.

        A database that cannot be reached is waited for.
        """
        told: str | None = None
        while not stop():
            started = self._ticks()
            try:
                if self._do(lambda db: pglease.take(db, self.holder, self._seconds)):
                    self._until = started + self._seconds - MARGIN_SECONDS
                    self._start()
                    with suppress(StoreError):  # it will be seen soon enough
                        self._end_stalled()
                    return True
                held = self._do(pglease.look)
                news = f"{held.holder} has the lease" if held is not None and held.seconds_left > 0 else told
            except StoreError as error:
                news = error.diagnostics()
            if news != told:
                log.info("standing by: %s", news)
                told = news
            time.sleep(LOOK_SECONDS)
        return False

    def release(self) -> None:
        """Give the lease back, after the last write: the next sequencer need not wait for its end."""
        self._over.set()
        if self._renewer is not None:
            self._renewer.join()
            with suppress(StoreError):  # then it runs out
                self._do(lambda db: pglease.release(db, self.holder))
        self._drop()
        self._connections.close()

    def _end_stalled(self) -> None:
        with database_errors(self._connections.where), self._connections.connect() as db:
            pglease.end_stalled(db)

    def _start(self) -> None:
        log.info("this sequencer has the lease: %s", self.holder)
        self._renewer = threading.Thread(target=self._renew, daemon=True, name="lease")
        self._renewer.start()
        threading.Thread(target=self._watch, daemon=True, name="lease-watch").start()

    def _renew(self) -> None:
        pause = RENEW_SECONDS
        while not self._over.wait(pause):
            started = self._ticks()
            try:
                if not self._do(lambda db: pglease.renew(db, self.holder, self._seconds)):
                    self._end("another sequencer has taken the lease")
                    return
                self._until = started + self._seconds - MARGIN_SECONDS
                pause = RENEW_SECONDS
            except StoreError as error:
                log.error("the lease is not renewed: %s", error.diagnostics())
                pause = LOOK_SECONDS

    def _watch(self) -> None:
        """Apart from the renewing, which may hang with the network."""
        while not self._over.wait(WATCH_SECONDS):
            if self._ticks() >= self._until:
                self._end("the lease could not be renewed in time")
                return

    def _end(self, why: str) -> None:
        if not self._over.is_set():
            self._over.set()
            log.critical("the sequencer stops: %s", why)
            self._lost()

    def _do(self, work: Callable[[Connection], _Result]) -> _Result:
        """What *work* returns, on the connection that the lease keeps, or on a new one if that is lost."""
        try:
            with database_errors(self._connections.where):
                if self._db is None:
                    self._db = self._connections.connect()
                return work(self._db)
        except StoreError:
            self._drop()
            raise

    def _drop(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            db.close()
