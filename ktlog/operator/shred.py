"""Crypto-shredding: an operator's act that makes an actor unreadable, in one transaction.

What goes: the plaintext, symmetric keys and salts of every attribute that names the actor, of the keys and
auxiliary data in its messages, and everything that the directory kept about it. What stays: every entry and
every message as it was signed, so that the log verifies; an erasure record, under the actor's map index.

Nothing goes before it was public for the notice period: otherwise a log could enrol somebody, let nobody
see it, and erase the trace.

The order: the queue of replies, which may be lost; the transaction; what came into the queue meanwhile; the
journal; the bytes that the store's files still have. A process that dies in between goes on with the journal
when it starts (:func:`resume`).

Spec: directory map §5; PKD "Message Attribute Shreddability".
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from ktlog.config import Settings
from ktlog.durable import FileLock, reach
from ktlog.errors import MessageRejected, StoreError, UsageError
from ktlog.operator.journal import journal_erasures, read_journal
from ktlog.operator.link import ShredReport
from ktlog.operator.replyqueue import ReplyQueue
from ktlog.operator.stores import open_log
from ktlog.pkd.actions import TOKEN_ACTION
from ktlog.pkd.actors import Actor, Status
from ktlog.pkd.erasure import ErasurePlan, map_index, plan_erasure
from ktlog.sqlitefile import database_errors, open_database
from ktlog.store.contracts import AMBIGUOUS, LogState, LogStore
from ktlog.store.mapcontract import MapStore
from ktlog.tlog.encoding import encode_base64

HOOKS = ("shred.erased", "shred.journaled", "shred.scrubbed")
"""Kill points: the transaction is durable; the journal has it; no file of the store has its bytes."""

IDS_AT_A_TIME = 1000
LOCK_LOOKS, LOCK_PAUSE_SECONDS = 50, 0.2

log = logging.getLogger("ktlog.shred")


@dataclass(frozen=True)
class Shredder:
    """What an erasure works with. Used on the sequencing thread, between two batches.

    now: Unix seconds. notice_seconds: how long an attribute must have been public.
    """

    store: LogStore
    journal: Path
    replies: Path
    notice_seconds: int
    now: Callable[[], int]

    def shred(self, actor_id: str, expected: LogState, *, preview: bool) -> ShredReport:
        """Erase the actor from a log at *expected*, or with *preview* only say what that would do.

        Raises:
            MessageRejected: ``nothing_to_erase``; ``erasure_too_large``; and unless it is a preview
                ``notice_period``, with the time when it may be; ``journal_unusable``. Nothing was changed.
            StoreError: the process must end; whether it was erased, the store tells.
        """
        number = self.store.erasure_count()
        actor = self._actor(actor_id)
        plan = self._plan(actor)
        due = self._due(plan)
        if not preview:
            self._check_notice(due)
        tokens = self._tokens(actor_id)
        scrubbed = False
        if not preview:
            self._check_journal()
            self._forget_replies(actor_id)
            self.store.erase(plan, expected)
            reach("shred.erased")
            self._forget_replies(actor_id)  # again: until the transaction a worker could still write to them
            journal_erasures(self.journal, self.store, self.now)
            reach("shred.journaled")
            scrubbed = try_scrub(self.store)
            reach("shred.scrubbed")
        record = plan.record
        return ShredReport(
            number=number, map_index=encode_base64(record.index), input_size=record.input_size,
            withheld=record.newly_withheld, entries=len(plan.withhold),
            carried=tuple(sorted({leaf for move in record.carried for leaf in move.leaves})),
            tokens=tokens, done=not preview, scrubbed=scrubbed, due=due,
        )

    def _actor(self, actor_id: str) -> Actor:
        actor = self.store.actor(actor_id)
        if actor is None:
            raise MessageRejected("nothing_to_erase", "this log never enrolled that actor")
        if actor.status == Status.ERASED:
            raise MessageRejected("nothing_to_erase", "that actor is erased already, and did not enrol again")
        return actor

    def _plan(self, actor: Actor) -> ErasurePlan:
        try:
            return plan_for(self.store, actor)
        except UsageError as error:
            code = "erasure_too_large" if error.name == "ErasureTooLarge" else "nothing_to_erase"
            raise MessageRejected(code, error.message) from None

    def _due(self, plan: ErasurePlan) -> int | None:
        """When all of it will have been public for long enough; None while some of it is not known to be public."""
        public = [self.store.public_since(leaf_index) for leaf_index in plan.withhold]
        known = [time for time in public if time is not None]
        return None if len(known) < len(public) else max(known) + self.notice_seconds

    def _check_notice(self, due: int | None) -> None:
        if due is None:
            raise MessageRejected(
                "notice_period", "an entry of that actor is not published yet, or not known to be for long"
                f" enough; try again {self.notice_seconds} seconds after the next checkpoint",
            )
        if self.now() < due:
            when = datetime.fromtimestamp(due, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
            raise MessageRejected(
                "notice_period", f"an entry of that actor was not public for {self.notice_seconds} seconds yet;"
                f" it may be erased from {when} on",
            )

    def _tokens(self, actor_id: str) -> tuple[int, ...]:
        leaves = [leaf for leaf, _role in self.store.history(actor_id)]
        return tuple(leaf for leaf in leaves if self.store.records(leaf, leaf + 1)[0].action == TOKEN_ACTION)

    def _check_journal(self) -> None:
        """Refuse before anything is erased what could not be journaled after it, when the log would have to end."""
        try:
            journal_erasures(self.journal, self.store, self.now)
        except StoreError as error:
            raise MessageRejected("journal_unusable", error.message) from None

    def _forget_replies(self, actor_id: str) -> None:
        """Take the actor's undelivered replies out of their queue. They may be lost, so that this may fail."""
        if not self.replies.exists():
            return
        try:
            queue = ReplyQueue(self.replies)
            try:
                queue.forget(actor_id)
            finally:
                queue.close()
            connection = open_database(self.replies, journal_mode="DELETE")
            try:
                with database_errors(self.replies):
                    connection.execute("VACUUM")
            finally:
                connection.close()
        except StoreError as error:
            log.error(
                "replies to the erased actor may be left in the queue, for a day at most: %s", error.diagnostics()
            )


def plan_for(store: LogStore, actor: Actor) -> ErasurePlan:
    """The plan for *actor* as the store is now; raises UsageError as ``plan_erasure`` does."""
    return plan_erasure(
        store.origin, store.state().size, actor, store.mentions(actor.actor_id),
        store.erasures(0, store.erasure_count()),
        lambda leaf_index: store.records(leaf_index, leaf_index + 1)[0].plain,
    )


def finish_erasures(settings: Settings, now: Callable[[], int]) -> None:
    """:func:`resume` for a log that nothing runs yet: no reader may see what a copy brought back.

    It also migrates the store, before readers refuse an older schema.

    Raises:
        StoreError: ``Locked``, it runs; ``ErasureUndone``; those of opening the store.
    """
    # The sequencer of a `ktlog serve` that was killed ends by itself, and may need a moment for it.
    with (
        FileLock(settings.directory / "serve.lock"),
        _patiently(FileLock(settings.directory / "sequencer.lock")),
        open_log(settings) as store,
    ):
        resume(store, settings.journal, now)


def _patiently(lock: FileLock) -> FileLock:
    """*lock*, free to be acquired by now, or after some seconds still not."""
    for _ in range(LOCK_LOOKS):
        try:
            with lock:
                return lock
        except StoreError as error:
            if error.name != "Locked":
                raise
            time.sleep(LOCK_PAUSE_SECONDS)
    return lock


def resume(store: LogStore, journal: Path, now: Callable[[], int]) -> None:
    """At the start, before anything is shown: finish what was begun, and erase again what a copy brought back.

    A store restored from a copy that was made before an erasure is at the size that its record names, or
    smaller. In the first case the actor can be found and the same record made again.

    Raises:
        StoreError: ``ErasureUndone``, the journal has an erasure that cannot be done again here.
    """
    for erasure in read_journal(journal)[store.erasure_count():]:
        actor = _find(store, erasure.record.index)
        if actor is None or store.state().size != erasure.record.input_size:
            break
        try:
            plan = plan_for(store, actor)
        except UsageError:
            break
        if plan.record != erasure.record:
            break
        store.erase(plan, store.state())
        log.warning("erasure %d is done again: the store was restored from an older copy", erasure.number)
    journal_erasures(journal, store, now)
    if store.scrub_due():
        try_scrub(store)


def try_scrub(store: LogStore | MapStore) -> bool:
    """Scrub, and say in the log why that was not possible now: it stays due, and the log goes on meanwhile.

    Raises:
        StoreError: nobody knows what is stored; the process must end.
    """
    try:
        if store.scrub():
            return True
        log.error("erased bytes are left in the store's files, because a reader does not end; tried again later")
    except StoreError as error:
        if error.name in (AMBIGUOUS, "NeedsReopen"):
            raise
        log.error("erased bytes are left in the store's files; tried again later: %s", error.diagnostics())
    return False


def _find(store: LogStore, index: bytes) -> Actor | None:
    """The actor with this map index. Costs one hash for every actor."""
    after = ""
    while actor_ids := store.actor_ids(after, IDS_AT_A_TIME):
        for actor_id in actor_ids:
            if map_index(store.origin, actor_id) == index:
                return store.actor(actor_id)
        after = actor_ids[-1]
    return None
