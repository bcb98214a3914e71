"""Alarms on their way to the sinks: durable before the watch goes on, delivered at least once.

In ``DIR/watch.db``, beside the findings of the watch (auditor/findings_store.py)::

    subscriptions   who wants to hear of whom, and where
    alarms          what was raised, as JSON
    alarm_subjects  which actors an alarm is about, by map index: to forget them when they are erased
    deliveries      one row for each alarm and sink: waiting, or delivered
    live_checks     whose live document is compared when (auditor/live.py)

An alarm is put before the position that it belongs to is saved, under an id that its cause alone decides: a watch that
is killed between the two puts it again, and nothing happens. It is marked as delivered after its sink said so, and a
process killed between these two delivers it twice; receivers drop duplicates by the id.

A sink that fails is tried again after 30 s, then after twice that, up to ten minutes, for as long as it takes; the
others do not wait for it. An alarm that a sink refuses while it answers is tried again by itself, up to once an hour.
Findings go before events, and logs, and the actors of a log, take turns.

Of each log so many alarms may wait for a sink: MAX_WAITING, and MAX_FINDINGS_WAITING findings beside them; a finding
that convicts a log always fits. Beyond that :meth:`Outbox.put` keeps the alarm for the sinks that have room, and raises
``OutboxFull``: who calls does not advance, and puts it again. So the one log stands still, which is seen, and others
go on. It is better to be late than to lose an alarm.
"""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from auditor.alarm import Alarm, redact
from auditor.events import ERASED_PREFIX, index_of
from auditor.findings_store import DATABASE, actors_in_findings, redact_findings
from auditor.outbox_room import MAX_FINDINGS_WAITING, Room
from auditor.outbox_schema import DUE, open_owners_database
from ktlog.durable import reach
from ktlog.errors import KtlogError, StoreError
from ktlog.sqlitefile import database_errors, transaction
from ktlog.wire.prometheus import Page

HOOKS = ("outbox.put", "outbox.sent")
"""Kill points: the alarm is durable; a sink has taken it and nobody has written that down."""

MAX_WAITING = 5000
"""Alarms of one log that may wait for one sink: some 250 MB, at 50 kB with a proof of six ML-DSA cosignatures."""
MAX_ALARM_BYTES = 1 << 20
KEPT_SECONDS, KEPT_ALARMS = 90 * 86400, 10_000
"""How long an alarm stays after every sink has it, and how many do."""
FIRST_PAUSE_SECONDS, LONGEST_SINK_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 30, 600, 3600
AT_ONCE, TURN_SECONDS = 100, 30.0
"""Deliveries to one sink in one turn, and how long it may last: nobody waits longer than that for a slow one."""
REFUSED_AT_ONCE = 10
"""Alarms that a sink may refuse in one turn, each for its own sake."""
TOO_LARGE, ALARM_REFUSED = "TooLarge", "AlarmRefused"
"""Names of errors of a sink that answers, and will not have this one alarm: for its size, or for whatever it is."""


class Sink(Protocol):
    """Where alarms go. ``send`` returns when the alarm is safe with the receiver, and raises KtlogError if it is not:
    TOO_LARGE or ALARM_REFUSED where the answer is about this alarm alone.

    ``findings``: whether what the watch finds wrong with a log goes there too.
    ``rewrites``: it keeps all that it was given in one place, and is told again what was redacted.
    """

    name: str
    findings: bool
    rewrites: bool

    def send(
        self, document: Mapping[str, Any], reasons: Sequence[str], recent: Callable[[int], list[Delivered]]
    ) -> None: ...


@dataclass(frozen=True)
class Delivered:
    """An alarm as a sink was given it."""

    document: Mapping[str, Any]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Round:
    """What one call of :meth:`Outbox.deliver` did."""

    delivered: int
    failed: int
    waiting: int


class Outbox:
    """The alarms of one directory. Safe to use from many threads.

    Args:
        directory: the watch's.
        max_waiting: alarms of one log that may wait for one sink. steady: a monotonic clock in seconds.
    """

    def __init__(
        self, directory: Path | str, *, max_waiting: int = MAX_WAITING, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._steady = steady
        self._path = Path(directory) / DATABASE
        self._max_waiting = max_waiting
        self._lock = threading.RLock()
        self._database = open_owners_database(directory)

    def close(self) -> None:
        self._database.close()

    def __enter__(self) -> Outbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One transaction in the file. For those in this process whose tables are here too."""
        with self._lock, database_errors(self._path), transaction(self._database):
            yield self._database

    def read(self, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """All rows of one query, under the lock."""
        with self._lock, database_errors(self._path):
            return self._database.execute(statement, values).fetchall()

    def put(self, alarm: Alarm, sinks: Mapping[str, Sequence[str]], now: int | None = None) -> bool:
        """Keep *alarm* for *sinks* (name: why it goes there); durable on return.

        Returns:
            False when it was there already, for every one of them.

        Raises:
            StoreError: ``OutboxFull``: not kept for every sink, and whoever calls must not go on. Also ``DiskFull`` and
                the like.
        """
        return self.put_all([(alarm, sinks)], now) > 0

    def put_all(
        self, alarms: Iterable[tuple[Alarm, Mapping[str, Sequence[str]]]], now: int | None = None
    ) -> int:
        """:meth:`put` for many: each for the sinks that have room for it. Returns how many were new to a sink."""
        new, full, room = 0, set(), Room(self._database, self._max_waiting)
        with self.transaction():
            for alarm, sinks in alarms:
                fitting = {sink: why for sink, why in sinks.items() if room.take(alarm, sink)}
                full |= {(sink, alarm.origin) for sink in sinks.keys() - fitting.keys()}
                new += bool(fitting) and self._put(alarm, fitting, alarm.time if now is None else now)
        reach("outbox.put")
        if full:
            raise StoreError(
                "OutboxFull", "no more alarms are taken "
                + "; ".join(f"of {origin} for the sink {sink}" for sink, origin in sorted(full)),
                hint="The watch of that log stands still rather than lose one. Mend the sink; or give up what waits"
                     " for it with ktlog-auditor alarms --give-up SINK.",
            )
        return new

    def _put(self, alarm: Alarm, sinks: Mapping[str, Sequence[str]], now: int) -> bool:
        body = _shorten(alarm)
        added = self._database.execute(
            "INSERT INTO alarms VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (alarm.alarm_id, alarm.time, alarm.origin, alarm.kind, alarm.name, body),
        ).rowcount
        if added:
            self._database.execute(
                "INSERT INTO alarm_counts VALUES (?, ?, ?, 1)"
                " ON CONFLICT DO UPDATE SET count = count + 1", (alarm.origin, alarm.kind, alarm.name),
            )
            self._database.executemany(
                "INSERT INTO alarm_subjects VALUES (?, ?) ON CONFLICT DO NOTHING",
                [(index_of(alarm.origin, subject), alarm.alarm_id) for subject in alarm.subjects],
            )
        before = self._database.total_changes
        self._database.executemany(
            "INSERT INTO deliveries (alarm_id, sink, reasons, next_try) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [(alarm.alarm_id, sink, json.dumps(list(reasons)), now) for sink, reasons in sinks.items()],
        )
        return self._database.total_changes > before

    # Delivering

    def deliver(
        self, sinks: Mapping[str, Sink], now: int, *, chance: Callable[[], float] = lambda: 1.0,
    ) -> Round:
        """Offer each sink what is due, all at once. One that fails twice in a row ends its turn.

        Args:
            sinks: by name. What waits for one that is not among them keeps waiting.
            chance: in [0, 1): spreads the pauses, so that many auditors do not knock at once.

        Raises:
            StoreError: of the database only.
        """
        due = [(name, sink) for name, sink in sinks.items() if self._is_due(name, now)]
        with ExitStack() as stack:
            run = map if len(due) < 2 else stack.enter_context(ThreadPoolExecutor(len(due), "sink")).map
            turns = list(run(lambda one: self._offer(*one, now, chance), due))
        delivered, failed = sum(taken for taken, _ in turns), sum(refused for _, refused in turns)
        if delivered:
            self._forget_old(now)
        return Round(delivered, failed, self.waiting())

    def _is_due(self, sink: str, now: int) -> bool:
        return not self.read("SELECT 1 FROM sinks WHERE name = ? AND next_try > ?", (sink, now)) and bool(self.read(
            "SELECT 1 FROM deliveries WHERE sink = ? AND delivered_at IS NULL AND next_try <= ? LIMIT 1", (sink, now)
        ))

    def _offer(self, name: str, sink: Sink, now: int, chance: Callable[[], float]) -> tuple[int, int]:
        """One turn of one sink: how many alarms it took, and how many it did not."""
        taken = in_a_row = alone = 0
        refused: list[tuple[str, int, str, bool]] = []
        # Where it took nothing last time one look is enough; else a second alarm tells whether the first was to blame.
        patience = 1 if self.read("SELECT 1 FROM sinks WHERE name = ?", (name,)) else 2
        until = self._steady() + TURN_SECONDS
        for alarm_id, document, reasons, attempts in self._due(name, now):
            try:
                self._send(name, sink, document, reasons)
            except KtlogError as error:
                own = error.name in (TOO_LARGE, ALARM_REFUSED)
                alone, in_a_row = alone + own, in_a_row + (not own)
                refused.append((alarm_id, attempts, str(error)[:500], own))
            else:
                reach("outbox.sent")
                taken, in_a_row = taken + 1, 0
                self._change(
                    "UPDATE deliveries SET delivered_at = ?, attempts = attempts + 1, last_error = NULL"
                    " WHERE alarm_id = ? AND sink = ?", (now, alarm_id, name),
                )
            if in_a_row >= patience or alone >= REFUSED_AT_ONCE or self._steady() > until:
                break
        self._note_turn(name, taken, refused, now, chance)
        return taken, len(refused)

    def _send(self, name: str, sink: Sink, document: dict[str, Any], reasons: list[str]) -> None:
        """Raises KtlogError. What is too large goes once more, without what makes it large."""
        try:
            sink.send(document, reasons, lambda count: self.recent(name, count))
        except KtlogError as error:
            if error.name != TOO_LARGE or not (document.get("record") or document.get("tlog_proof")):
                raise
            sink.send(document | _LEFT_OUT, reasons, lambda count: self.recent(name, count))

    def _note_turn(
        self, name: str, taken: int, refused: Sequence[tuple[str, int, str, bool]], now: int,
        chance: Callable[[], float],
    ) -> None:
        for alarm_id, attempts, why, own in refused:
            # Where the sink took others, or says so, this one alone has to wait; else the sink as a whole has.
            pause = _pause(attempts, LONGEST_PAUSE_SECONDS, chance) if taken or own else 0
            self._change(
                "UPDATE deliveries SET attempts = ?, next_try = ?, last_error = ? WHERE alarm_id = ? AND sink = ?",
                (attempts + 1, now + pause, why, alarm_id, name),
            )
        silent = [why for _, _, why, own in refused if not own]
        if silent and not taken:
            self._rest(name, now, chance, silent[-1])
        elif taken or refused:
            self._change("DELETE FROM sinks WHERE name = ?", (name,))

    def _rest(self, name: str, now: int, chance: Callable[[], float], why: str) -> None:
        """A sink took nothing in its turn: leave it alone for a while."""
        with self.transaction():
            row = self._database.execute("SELECT failures FROM sinks WHERE name = ?", (name,)).fetchone()
            failures = row[0] if row else 0
            self._database.execute(
                "INSERT OR REPLACE INTO sinks VALUES (?, ?, ?, ?)",
                (name, failures + 1, now + _pause(failures, LONGEST_SINK_PAUSE_SECONDS, chance), why),
            )

    def _due(self, sink: str, now: int) -> list[tuple[str, dict[str, Any], list[str], int]]:
        rows = self.read(DUE, (sink, now, AT_ONCE))
        return [(alarm_id, json.loads(body), json.loads(why), attempts) for alarm_id, body, why, attempts in rows]

    def _change(self, statement: str, values: Sequence[object]) -> int:
        with self.transaction():
            return self._database.execute(statement, values).rowcount

    def _forget_old(self, now: int) -> None:
        self._change(
            "DELETE FROM alarms WHERE (time < ? OR rowid <= (SELECT max(rowid) FROM alarms) - ?) AND NOT EXISTS"
            " (SELECT 1 FROM deliveries d WHERE d.alarm_id = alarms.id AND d.delivered_at IS NULL)"
            # A log that stands still puts what it could not put again: what is known then goes nowhere twice.
            " AND origin NOT IN (SELECT a.origin FROM deliveries d JOIN alarms a ON a.id = d.alarm_id"
            " WHERE d.delivered_at IS NULL GROUP BY d.sink, a.origin, a.kind = 'finding'"
            " HAVING count(*) >= CASE WHEN a.kind = 'finding' THEN ? ELSE ? END)",
            (now - KEPT_SECONDS, KEPT_ALARMS, MAX_FINDINGS_WAITING, self._max_waiting),
        )

    def recent(self, sink: str, count: int) -> list[Delivered]:
        """The newest *count* alarms of a sink, newest first, whether it has them yet or not."""
        rows = self.read(
            "SELECT a.body, d.reasons FROM deliveries d JOIN alarms a ON a.id = d.alarm_id WHERE d.sink = ?"
            " ORDER BY a.time DESC, a.rowid DESC LIMIT ?", (sink, count),
        )
        return [Delivered(json.loads(body), tuple(json.loads(why))) for body, why in rows]

    def waiting(self, sink: str | None = None) -> int:
        """How many deliveries are not made yet."""
        return int(self.read(
            "SELECT count(*) FROM deliveries WHERE delivered_at IS NULL AND (?1 IS NULL OR sink = ?1)", (sink,)
        )[0][0])

    def give_up(self, sink: str) -> int:
        """Drop what waits for *sink*, on its owner's word. Returns how many."""
        return self._change("DELETE FROM deliveries WHERE sink = ? AND delivered_at IS NULL", (sink,))

    def rows(self, count: int = 100) -> list[dict[str, Any]]:
        """The newest deliveries, for ``ktlog-auditor alarms``."""
        rows = self.read(
            "SELECT a.body, d.sink, d.attempts, d.delivered_at, d.next_try, d.last_error"
            " FROM deliveries d JOIN alarms a ON a.id = d.alarm_id ORDER BY a.time DESC, a.rowid DESC LIMIT ?",
            (count,),
        )
        return [
            {"alarm": json.loads(body), "sink": sink, "attempts": attempts, "delivered_at": delivered,
             "next_try": None if delivered is not None else again, "last_error": error}
            for body, sink, attempts, delivered, again, error in rows
        ]

    # Forgetting

    def forget_actor(self, origin: str, index: bytes, rewriting: Sequence[str] = ()) -> int:
        """An erasure took the actor with this map index: take its id and plaintext out of all that is kept here.

        Its subscriptions stay, by index alone: a new enrolment under the name is still seen.

        Args:
            rewriting: sinks that keep what they were given in one place, to be given the redacted alarms again.

        Returns:
            How many alarms were redacted.
        """
        with self.transaction():
            names = self.names_of(origin, index)
            self._database.execute("DELETE FROM live_checks WHERE origin = ? AND digest = ?", (origin, index))
            self._database.execute(
                "UPDATE subscriptions SET subject = NULL WHERE origin = ? AND kind = 'actor' AND digest = ?",
                (origin, index),
            )
            if not names:
                return 0
            redact_findings(self._database, origin, names)
            found: dict[str, str] = {}
            for name in names:
                found |= dict(self._database.execute(
                    "SELECT id, body FROM alarms WHERE origin = ? AND instr(body, ?)", (origin, name)
                ).fetchall())
            return sum(self._redact(key, body, origin, names, rewriting) for key, body in found.items())

    def _redact(
        self, alarm_id: str, body: str, origin: str, names: Sequence[str], rewriting: Sequence[str]
    ) -> bool:
        document = json.loads(body)
        cleaned = redact(document, origin, names)
        if cleaned == document:  # somebody else, whose name goes on where this one ends
            return False
        self._database.execute(
            "UPDATE alarms SET body = ? WHERE id = ?", (json.dumps(cleaned, ensure_ascii=False), alarm_id)
        )
        self._database.executemany(
            "UPDATE deliveries SET delivered_at = NULL, next_try = 0 WHERE alarm_id = ? AND sink = ?",
            [(alarm_id, sink) for sink in rewriting],
        )
        return True

    def names_of(self, origin: str, index: bytes) -> list[str]:
        """The id that an actor has in what is kept here, if it has one."""
        named = self.read(
            "SELECT subject FROM subscriptions WHERE origin = ?1 AND kind = 'actor' AND digest = ?2"
            " AND subject IS NOT NULL UNION SELECT actor_id FROM live_checks WHERE origin = ?1 AND digest = ?2",
            (origin, index),
        )
        subjects = [name for (name,) in named]
        with self._lock, database_errors(self._path):
            subjects += actors_in_findings(self._database, origin)
        for (body,) in self.read("SELECT body FROM alarms JOIN alarm_subjects ON id = alarm_id WHERE digest = ?",
                                 (index,)):
            subjects += json.loads(body)["subjects"]
        return sorted({
            name for name in subjects if not name.startswith(ERASED_PREFIX) and index_of(origin, name) == index
        })

    # Numbers

    def add_metrics(self, page: Page, now: int) -> None:
        """Counters of alarms by kind and name, and gauges of what waits, for the watch's ``/metrics``."""
        counts = self.read("SELECT origin, kind, name, count FROM alarm_counts")
        queues = self.read(
            "SELECT sink, count(*), min(a.time) FROM deliveries d JOIN alarms a ON a.id = alarm_id"
            " WHERE delivered_at IS NULL GROUP BY sink"
        )
        failing = self.read("SELECT name, failures FROM sinks")
        page.add("alarms_total", "counter", "Alarms raised.", [
            ({"origin": origin, "kind": kind, "name": name}, count) for origin, kind, name, count in counts
        ])
        page.add("alarms_waiting", "gauge", "Alarms that a sink has not taken yet.",
                 [({"sink": sink}, count) for sink, count, _ in queues])
        page.add("alarms_oldest_waiting_seconds", "gauge", "Age of the oldest of them.",
                 [({"sink": sink}, max(0, now - oldest)) for sink, _, oldest in queues])
        page.add("sink_failures", "gauge", "Turns in a row in which a sink took nothing.",
                 [({"sink": sink}, failures) for sink, failures in failing])


_LEFT_OUT = {
    "record": None, "tlog_proof": None,
    "proof_missing": "left out, the receiver takes nothing so large: ktlog-auditor alarms --json has it, and the log",
}


def _pause(failures: int, longest: int, chance: Callable[[], float]) -> int:
    return max(1, int(min(FIRST_PAUSE_SECONDS * 2 ** min(failures, 20), longest) * (0.5 + chance() / 2)))


def _shorten(alarm: Alarm) -> str:
    """The alarm as JSON; without its record where a log published one beyond all measure."""
    document = alarm.as_dict()
    body = json.dumps(document, ensure_ascii=False)
    if len(body.encode("utf-8", "surrogatepass")) > MAX_ALARM_BYTES:
        document |= {"record": None, "proof_missing": "the record is too large to be sent along; ask the log for it"}
        body = json.dumps(document, ensure_ascii=False)
    try:
        body.encode("utf-8")
    except UnicodeEncodeError:
        body = json.dumps(document)
    return body

