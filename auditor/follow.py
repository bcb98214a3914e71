"""Follows one log: each advance reads and judges what is new since the saved position, and saves the next one.

``ktlog-auditor audit`` is one advance; ``watch`` makes one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from auditor.audit import NEW, AuditRequest, Progress, Selection, audit
from auditor.events import Event
from auditor.fetch import LogReader
from auditor.heads import KnownHead, open_saved_head
from auditor.position import SEMANTIC
from auditor.report import Report
from auditor.request import SAVE_SECONDS
from auditor.state import AuditDirectory
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS, Head, Log, open_head
from ktlog.tlog.policy import Policy


@dataclass(frozen=True)
class Advance:
    """What one advance found.

    Attributes:
        first: where it began to read: the size of the position before it.
        size: up to where all is judged now: the size of the position after it; *first* when nothing could be saved.
        head: the log's signed head that was read; None when there was none to be had, or it was not signed.
        events: what the new entries did, in their order; only of entries that held. Empty where the follower was
            given ``on_events``.
    """

    report: Report
    first: int
    size: int
    head: Head | None
    events: list[Event] = field(default_factory=list)


class Follower:
    """One log, followed from a position saved in *state*.

    Args:
        state: open (its lock is held), and used by this thread alone while advancing.
        tier: "semantic" or "structural".
        given: heads known from elsewhere, to compare with.
        save_seconds: how long a first, long audit goes on before it saves where it is.
        map_log: the log of the map; None: the one whose keys *policy* names, if any.
        collect: whether to give the events back where there is no on_events.
        on_events: must store events durably before it returns: it is called before the position beyond them is saved,
            so none is ever lost. After a crash, and as long as findings keep the position where it is, it is given
            the same ones again.
        from_start: read all entries again; the saved position is replaced by the first clean one.
        leaf_signatures: whether to verify them.
        tiles: the directory of a local copy of the log's published files, for the workers. *reader* is to read it too
            (:class:`auditor.fetch.LocalCopy`).
    """

    def __init__(
        self, log: Log, reader: LogReader, state: AuditDirectory, *, policy: Policy | None = None,
        tier: str = SEMANTIC, commitments: Selection = Selection("all"), answers: Selection = NEW,
        given: Sequence[KnownHead] = (), max_age: int = DEFAULT_MAX_AGE_SECONDS, workers: int = 2,
        progress: Progress = lambda stage, done, total: None,
        on_events: Callable[[Sequence[Event]], None] | None = None, from_start: bool = False,
        leaf_signatures: bool = True, tiles: Path | None = None, collect: bool = True,
        save_seconds: float = SAVE_SECONDS, map_log: Log | None = None,
    ) -> None:
        self._state = state
        self._reader = reader
        self._progress = progress
        self._given = tuple(given)
        self._on_events = on_events
        self._collect = collect
        self._from_start = from_start
        self._request = AuditRequest(
            log, policy, (), commitments, answers, max_age, workers, tier, leaf_signatures, tiles,
            save_seconds, map_log,
        )

    def advance(self, now: int) -> Advance:
        """Read what is new, judge it, and save the position when nothing was found.

        Args:
            now: Unix seconds.

        Raises:
            StoreError: the directory cannot be read or written; ``HeadOfAnotherKey``.
            Whatever *on_events* raises. Whatever the log does is in the report.
        """
        log, state = self._request.log, self._state
        events: list[Event] = []
        saved = state.load_head(log.origin)
        known = () if saved is None else (open_saved_head(saved, log, state.database),)
        with state.ledger(log.origin, self._request.tier) as ledger:
            report = audit(
                replace(self._request, known=known + self._given), self._reader, now,
                lambda evidence, kind: state.save_evidence(evidence, kind, log.origin), progress=self._progress,
                ledger=ledger, from_start=self._from_start,
                on_events=self._on_events or (events.extend if self._collect else None),
            )
            ledger.forget()
            if report.ok and report.signed_head is not None:
                state.save_head(log.origin, report.signed_head)
            position = ledger.position()
            ledger.keep()
        # What was begun from entry 0 goes on from where it is.
        self._from_start = self._from_start and not report.ok
        head = None
        if report.tree_size is not None and report.signed_head is not None:
            head = open_head(report.signed_head, log)
        size = report.first if position is None else max(report.first, position.size)
        return Advance(report, report.first, size, head, events)
