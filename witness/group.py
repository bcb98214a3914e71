"""Group commit: what many threads want recorded at the same time becomes one transaction.

Whoever finds nobody at it commits for all that wait, himself included, and then names the next to do so. A single
caller commits at once; where more have said that they are coming, he waits for them a moment. For callers who do not
wait a thread does it, and then calls them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

from ktlog.errors import KtlogError, StoreError
from ktlog.wire.logs import lines_at_once

Item = TypeVar("Item")

_LOG = logging.getLogger("ktlog.witness")

#: How long a transaction waits, at the longest, for those that are coming. They are busy signing, for which they need
#: the processor that the transaction would use; so there is more to gain than to lose.
PATIENCE_SECONDS = 0.1
#: With so many it waits for no more: what each costs hardly falls beyond, and the others can sign meanwhile.
ENOUGH = 64


class Ticket(Generic[Item]):
    """One caller's item. error: why it was not recorded. leads: it is this caller's turn to commit.

    tell: called in the end, for one who does not wait.
    """

    __slots__ = ("called", "error", "item", "leads", "tell")

    def __init__(self, item: Item, tell: Callable[[KtlogError | None], None] | None = None) -> None:
        self.item, self.tell = item, tell
        self.leads = False
        self.error: KtlogError | None = None
        self.called = threading.Lock()  # which is let go when it is done, or when it leads
        self.called.acquire()


class _Mine(threading.local):
    """Whether this thread is counted as coming."""

    coming = False


class Group(Generic[Item]):
    """Args:
        commit: records the items of all tickets, durably; sets the error of those that it refuses, and raises what
            concerns all.
    """

    def __init__(self, commit: Callable[[Sequence[Ticket[Item]]], None]) -> None:
        self._commit = commit
        self._waiting: list[Ticket[Item]] = []
        self._led = False  # somebody commits, or was told to
        self._coming = 0
        self._mine = _Mine()
        self._turns: threading.Semaphore | None = None  # of the thread, once there is one
        self._changed = threading.Condition(threading.Lock())  # only the one who commits waits for it

    @contextmanager
    def coming(self) -> Iterator[None]:
        """Say that this thread will very likely record something soon, within the block."""
        with self._changed:
            self._coming += 1
            self._mine.coming = True
        try:
            yield
        finally:
            if self._mine.coming:
                with self._changed:
                    self._arrive()

    def record(self, item: Item) -> None:
        """Record one item, with whatever else waits.

        Raises:
            KtlogError: its ticket's error.
        """
        ticket = Ticket(item)
        with self._changed:
            self._waiting.append(ticket)
            self._arrive()
            ticket.leads, self._led = not self._led, True
        if not ticket.leads:
            ticket.called.acquire()
        if ticket.leads:
            self._lead()
        if ticket.error is not None:
            raise ticket.error

    def record_later(self, items: Sequence[tuple[Item, Callable[[KtlogError | None], None]]]) -> None:
        """As ``record`` for each, without waiting: what comes with it is called with the ticket's error or None, by
        some other thread."""
        with self._changed:
            if self._turns is None:
                turns = threading.Semaphore(0)
                threading.Thread(target=self._lead_again, args=(turns,), name="record", daemon=True).start()
                self._turns = turns
            self._waiting += [Ticket(item, tell) for item, tell in items]
            self._arrive()
            if not self._led:
                self._led = True
                self._turns.release()

    def _lead_again(self, turns: threading.Semaphore) -> None:
        while True:
            turns.acquire()
            try:
                self._lead()
            except Exception:
                _LOG.exception("a transaction failed")  # and all were told

    def _arrive(self) -> None:
        """This thread is not coming any more: it is here, or will not come."""
        if self._mine.coming:
            self._mine.coming = False
            self._coming -= 1
        if self._enough():
            self._changed.notify()

    def _enough(self) -> bool:
        return not self._coming or len(self._waiting) >= ENOUGH

    def _lead(self) -> None:
        with self._changed:
            self._changed.wait_for(self._enough, PATIENCE_SECONDS)
            tickets, self._waiting = self._waiting, []
        try:
            self._commit(tickets)
        except BaseException as error:
            known = error if isinstance(error, StoreError) else StoreError("NotRecorded", f"{type(error).__name__}")
            for ticket in tickets:
                # Each its own: one exception raised in many threads would grow a traceback of them all.
                ticket.error = StoreError(known.name, known.message, hint=known.hint)
                ticket.error.__cause__ = error
            if known is not error:
                raise
        finally:
            for ticket in tickets:
                ticket.leads = False
                ticket.called.release()
            self._hand_on()
            with lines_at_once():
                for ticket in tickets:
                    if ticket.tell is not None:
                        try:
                            ticket.tell(ticket.error)
                        except Exception:
                            _LOG.exception("an answer could not be given")

    def _hand_on(self) -> None:
        """Nobody commits now; let one of those who wait do it."""
        with self._changed:
            self._led = bool(self._waiting)
            if not self._led:
                return
            first = next((ticket for ticket in self._waiting if ticket.tell is None), None)
            if first is not None:
                first.leads = True
                first.called.release()
            elif self._turns is not None:
                self._turns.release()
