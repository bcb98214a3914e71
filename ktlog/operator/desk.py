"""Where requests wait for the one sequencing thread, whichever door they came through.

Any number of threads hand requests in; one works them off in batches. The queue is bounded, and what
does not fit is refused at once: a sender who is told to come back costs nothing.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ktlog.errors import EncodingError, MessageRejected
from ktlog.operator.link import (
    KEYS_DIFFER,
    SHRED_SECONDS,
    Receipt,
    Submission,
    decode_fetched,
    decode_refused,
    decode_refused_rows,
    decode_submission,
    encode_receipt,
    encode_refusal,
)
from ktlog.operator.numbers import Refusals
from ktlog.operator.refusalbook import RefusalBook, RefusalKey
from ktlog.operator.sequencer import BATCH_LIMIT, Sequencer
from ktlog.operator.tasks import Task
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.wire.actor_id import parse_host
from ktlog.wire.prometheus import Histogram
from ktlog.words import count_entries

# Below the time for which a front end waits (ktlog.operator.roles.open_link), so that the sender hears of it.
ANSWER_TIMEOUT_SECONDS = 20.0

WAIT_SECONDS = 10.0
"""No message is queued that would have to wait for longer than about this."""

GATHER_SECONDS = 0.1
"""So far apart begin batches while more messages are about to come: they share what a batch costs however small it is.
At some forty messages a second, as two cores of Argon2id let in, they cost the sequencer two thirds of its time so."""

_NEWEST = 0.2  # how much the newest batch counts in the mean

Plan = Callable[[Any, Mapping[str, Any]], Task | None]
"""Reads a request: the task that it asks for, or None for a message."""


@dataclass
class Ticket:
    """A request that was handed in, and what became of it once it is done."""

    work: Submission | Task | None
    since: float = 0.0
    seconds: float = ANSWER_TIMEOUT_SECONDS
    done: threading.Event = field(default_factory=threading.Event)
    result: Receipt | MessageRejected | bytes | None = None

    def finish(self, result: Receipt | MessageRejected | bytes) -> None:
        self.result = result
        self.done.set()

    def answer(self) -> bytes:
        """Wait for the result; gives the answer's bytes."""
        if not self.done.wait(self.seconds) or self.result is None:
            return encode_refusal("overloaded", "sequencing takes too long; the message may still be accepted")
        if isinstance(self.result, Receipt):
            return encode_receipt(self.result)
        if isinstance(self.result, bytes):
            return self.result
        return encode_refusal(self.result.code, self.result.message)


class Desk:
    """The bounded queue between many doors and one sequencer.

    Args:
        plan: reads what is no message. status: what to say of how the log does.
        unpublished: entries that wait for the witnesses; at *unpublished_limit* no message is taken.
        leaf_key: hash of the present one; a front end that tells everybody of another has to be told first.
        shortage: says when the disk has too little room left to take a message.
        judge: raises MessageRejected for an instance whose messages are not taken, or while none are.
        book: where it is noted who was refused what. now: Unix seconds, for it.
        clock: seconds, from anywhere.
    """

    def __init__(
        self, sequencer: Sequencer, plan: Plan, *, status: Callable[[], Mapping[str, object]],
        unpublished: Callable[[], int], unpublished_limit: int,
        queue_limit: int, leaf_key: bytes | None = None, shortage: Callable[[], str | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic, judge: Callable[[str | None], None] = lambda _sender: None,
        book: RefusalBook | None = None, now: Callable[[], int] = lambda: int(time.time()),
    ) -> None:
        self.sequencer = sequencer
        self.unpublished_limit = unpublished_limit
        self._plan = plan
        self._status = status
        self._unpublished = unpublished
        self._leaf_key = leaf_key
        self._shortage = shortage
        self._clock = clock
        self._began = -GATHER_SECONDS
        self._judge = judge
        self.book = RefusalBook() if book is None else book
        self._now = now
        self._seconds_each = 0.0
        self.queue: queue.Queue[Ticket] = queue.Queue(queue_limit)
        self.refusals = Refusals()
        self._fetched_lock = threading.Lock()
        self._fetches, self._blocked = Histogram(), 0
        self.batches = self.accepted = 0
        self.batch_seconds = 0.0

    def answer(self, raw: bytes) -> bytes:
        """Do what *raw*, a request's JSON, asks for, or say why not. Blocks; safe in any thread."""
        return self.hand_in(raw).answer()

    def hand_in(self, raw: bytes) -> Ticket:
        """Queue a request without waiting for it. What is refused at once, or needs no queue, is done already."""
        try:
            request = parse_json(raw)
            op = request.get("op")
            if op == "ping":
                return _done(canonical({"ok": {"size": str(self.sequencer.state.size)}}))
            if op == "status":
                return _done(canonical({"ok": self._status()}))
            if op == "refused":
                self._count_refused(request)
                return _done(canonical({"ok": {}}))
            ticket = Ticket(self._plan(op, request) or decode_submission(request))
        except (EncodingError, AttributeError) as error:
            return _done(MessageRejected("bad_request", str(error)))
        ticket.seconds = SHRED_SECONDS if op == "shred" else ANSWER_TIMEOUT_SECONDS
        if isinstance(ticket.work, Submission):
            if ticket.work.leaf_key not in (None, self._leaf_key):
                self.refusals.add("sequencer", KEYS_DIFFER)
                return _done(MessageRejected(KEYS_DIFFER, "this server does not know the log's newest leaf key yet"))
            if why := self.why_not_now():
                return self._overloaded(why)
        ticket.since = self._clock()
        try:
            self.queue.put_nowait(ticket)
        except queue.Full:
            return self._overloaded("the queue is full; try again in a second")
        return ticket

    def _count_refused(self, request: Mapping[str, Any]) -> None:
        """What a web worker refused. Raises EncodingError: rows of no instance's name, or of a code without a count."""
        counts, rows, fetched = decode_refused(request), decode_refused_rows(request), decode_fetched(request)
        for code, instance, _, _ in rows:
            if code not in counts:
                raise EncodingError("BadRequest", "a refusal that is not counted")
            if instance:
                parse_host(instance)  # the operator's terminal shows it
        for code, count in counts.items():
            self.refusals.add("web", code, count)
        for code, instance, verified, count in rows:
            self.book.add(RefusalKey("web", code, instance, verified), self._now(), count)
        if fetched is not None:
            with self._fetched_lock:
                self._fetches.merge(fetched.counts, fetched.microseconds / 1e6)
                self._blocked += fetched.blocked

    def fetches(self) -> tuple[Histogram, int]:
        """How long the web workers' fetches took since the start, and how many of them got no connection at all."""
        with self._fetched_lock:
            return self._fetches.copy(), self._blocked

    def oldest_seconds(self) -> float:
        """How long the first in the queue has waited; 0 if nobody waits."""
        with self.queue.mutex:
            first = self.queue.queue[0] if self.queue.queue else None
        return 0.0 if first is None else max(0.0, self._clock() - first.since)

    def why_not_now(self) -> str | None:
        """Why no message would be taken, in words; None when one would. Safe in any thread."""
        waiting = self._unpublished()
        if waiting >= self.unpublished_limit:
            return f"{count_entries(waiting)} not published yet, for want of witnesses; try again later"
        if self.queue.qsize() * self._seconds_each > WAIT_SECONDS:
            return "too many messages wait; try again in a few seconds"
        return self._shortage()

    def _overloaded(self, why: str) -> Ticket:
        self.refusals.add("sequencer", "overloaded")
        return _done(MessageRejected("overloaded", why))

    def work(self, seconds: float) -> None:
        """Work off what has queued up, as one batch, waiting at most *seconds* for the first.

        Raises:
            StoreError: nothing of the batch may be assumed; the process must end, and answers nobody.
        """
        try:
            batch = [self.queue.get(timeout=seconds)]
        except queue.Empty:
            return
        self._gather(batch)
        while len(batch) < BATCH_LIMIT and not self.queue.empty():
            batch.append(self.queue.get_nowait())
        self._do(batch)

    def _gather(self, batch: list[Ticket]) -> None:
        """Let *batch* grow, as long as the newest message says that another is about to come.

        An idle log commits at once, and so does one whose senders all wait for it.
        """
        while len(batch) < BATCH_LIMIT and isinstance(batch[-1].work, Submission) and batch[-1].work.more:
            left = self._began + GATHER_SECONDS - self._clock()
            if not 0 < left <= GATHER_SECONDS:
                break
            try:
                batch.append(self.queue.get(timeout=left))
            except queue.Empty:
                break
        self._began = self._clock()

    def _do(self, batch: Sequence[Ticket]) -> None:
        """Everybody's message in one batch, then the tasks one by one."""
        # In this thread, in which tasks change the rules: what was answered before, holds for all that comes after.
        messages = [ticket for ticket in batch if isinstance(ticket.work, Submission) and self._let_in(ticket)]
        if messages:
            started = self._clock()
            results = self.sequencer.process([ticket.work for ticket in messages])
            self._count(messages, results, self._clock() - started)
            for ticket, result in zip(messages, results, strict=True):
                ticket.finish(result)
        for ticket in batch:
            if not isinstance(ticket.work, Submission):
                try:
                    ticket.finish(ticket.work())
                except MessageRejected as refusal:
                    ticket.finish(refusal)

    def _let_in(self, ticket: Ticket) -> bool:
        try:
            self._judge(ticket.work.sender)
        except MessageRejected as refusal:
            self._note(ticket, refusal)
            ticket.finish(refusal)
            return False
        return True

    def _note(self, ticket: Ticket, refusal: MessageRejected) -> None:
        sender = ticket.work.sender
        self.refusals.add("sequencer", refusal.code)
        self.book.add(RefusalKey("sequencer", refusal.code, sender or "", sender is not None), self._now())

    def _count(
        self, tickets: Sequence[Ticket], results: Sequence[Receipt | MessageRejected], seconds: float
    ) -> None:
        accepted = sum(isinstance(result, Receipt) and not result.duplicate for result in results)
        self.accepted += accepted
        self.batches += accepted > 0
        self.batch_seconds += seconds
        each = seconds / len(results)
        self._seconds_each += (each - self._seconds_each) * (_NEWEST if self._seconds_each else 1)
        for ticket, result in zip(tickets, results, strict=True):
            if isinstance(result, MessageRejected):
                self._note(ticket, result)


def _done(result: MessageRejected | bytes) -> Ticket:
    ticket = Ticket(None)
    ticket.finish(result)
    return ticket
