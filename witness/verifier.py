"""The verifier: a witness of maps that signs only what it has derived itself.

It answers add-checkpoint like any witness (decide.py, web.py), and between the judgement and the signature stands
:meth:`Verifier.review`: every leaf of the checkpoint was checked by the log's follower (follow.py), or nothing is
signed. It signs for O/map, and never for O nor for a log that it does not replay.

====== ================= ===============================================================================
status reason            when
====== ================= ===============================================================================
422    WrongMap          the log was caught; the name says at what. For good
503    NotChecked        this checkpoint is not checked yet, or something keeps it from being checked
503    LargerHeadSeen    the log signed a larger one, which comes first
====== ================= ===============================================================================

Spec: directory map §6.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ktlog import durable
from ktlog.client.publicfiles import FileGetter
from ktlog.client.verify import Head, check_two_roots
from ktlog.errors import Forked, KtlogError, StoreError
from ktlog.tlog.note import Note, format_note
from witness.accuse import accuse_fork
from witness.decide import Accept, Refuse, refuse
from witness.follow import Follower, Progress
from witness.replays import Replay, ReplayStore

WAIT_SECONDS = 5.0
"""How long a submission waits for its check: the map of an entry or two is derived in less."""
SHORT_BACKLOG = 64
"""Entries to be read beyond which no submission waits."""
WAITERS = 4
"""Submissions that wait at once: the rest of the threads answer."""

_LOG = logging.getLogger("ktlog.verifier")


class Verifier:
    """Follows every log that is replayed here, and says what may be signed. Safe to use from many threads.

    Args:
        evidence: directory of the evidence files. wait: seconds, see WAIT_SECONDS.
    """

    def __init__(
        self, store: ReplayStore, fetcher: FileGetter, clock: Callable[[], int], evidence: Path,
        *, wait: float = WAIT_SECONDS, cores: int | None = None,
    ) -> None:
        self._evidence = evidence
        self._wait = wait
        self._waiters = threading.BoundedSemaphore(WAITERS)
        self._pool = ThreadPoolExecutor(cores or os.cpu_count() or 1, "commitments")
        self._followers = {
            replay.map_origin: Follower(replay, store, fetcher, self._pool, clock) for replay in store.replays()
        }
        self._write_evidence()

    def start(self) -> None:
        for follower in self._followers.values():
            follower.start()

    def stop(self) -> None:
        for follower in self._followers.values():
            follower.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def follower(self, map_origin: str) -> Follower | None:
        return self._followers.get(map_origin)

    def signs_for(self, origin: str) -> bool:
        """Whether *origin* is that of a map which is derived here."""
        return origin in self._followers

    def review(self, judgement: Accept, latest_size: int) -> Refuse | None:
        """Why a checkpoint that a witness would sign is not signed, or not yet.

        Args:
            latest_size: of the checkpoint signed last for this origin; the same root is asked for at that size.
        """
        follower = self._followers[judgement.checkpoint.origin]
        checkpoint = judgement.checkpoint
        note = Note(judgement.text, tuple(verified.line for verified in judgement.log_signatures))
        head = Head(
            checkpoint.origin, checkpoint.size, checkpoint.root, format_note(note), note, judgement.log_signatures
        )
        before = follower.progress
        if before.verdict is None and _is_checked(before, head, latest_size):
            return None
        if before.verdict is None and before.target is not None:
            self._compare(follower, before.target, head)
        before = follower.offer(head)
        after = self._wait_for(follower, before, head, latest_size)
        if after.verdict is not None:
            self._write_evidence()
            return refuse(422, "WrongMap", f"{after.verdict.name}: {after.verdict.message}")
        if _is_checked(after, head, latest_size):
            return None
        if after.target is not None and after.target.size > head.size:
            return refuse(503, "LargerHeadSeen", f"this log signed {after.target.size} leaves; submit that checkpoint")
        why = "it is being checked: try again" if after.failure is None else str(after.failure)
        return refuse(503, "NotChecked", why)

    def _wait_for(self, follower: Follower, before: Progress, head: Head, latest_size: int) -> Progress:
        """How things stand once *head* was looked at, or when it is no longer worth waiting for that."""
        if _backlog(before) > SHORT_BACKLOG or not self._waiters.acquire(blocking=False):
            return follower.progress
        try:
            return follower.wait(
                lambda now: now.verdict is not None or _is_checked(now, head, latest_size)
                or (now.tried >= head.size and now.round > before.round),
                self._wait,
            )
        finally:
            self._waiters.release()

    def _compare(self, follower: Follower, known: Head, head: Head) -> None:
        """Two checkpoints of one size and of two trees convict the log, whichever of them was asked about."""
        try:
            check_two_roots(follower.replay.map_log, known, head)
        except Forked as error:
            follower.convict(error.name, error.message, error.evidence or accuse_fork(head.origin, error))

    def caught(self, origin: str, name: str, message: str, document: bytes) -> None:
        """A witness's own judgement convicted the log."""
        self._followers[origin].convict(name, message, document)
        self._write_evidence()

    def _write_evidence(self) -> None:
        """The files are copies of what the database has; one that a crash left out is written again."""
        for follower in self._followers.values():
            verdict = follower.progress.verdict
            if verdict is not None:
                durable.make_directories(self._evidence.parent, self._evidence)
                try:
                    durable.write_once(self._evidence / evidence_name(follower.replay), verdict.document)
                except StoreError as error:
                    if error.name != "ImmutableChanged":
                        raise
                    # Of before the database was restored. One log that lied must not keep the others from being served.
                    _LOG.error("%s", error)

    def status(self) -> list[dict[str, Any]]:
        """What is published about each log: how far it is followed, and since when its leaves were seen in time."""
        return [_describe(follower.replay, follower.progress) for _, follower in sorted(self._followers.items())]


def evidence_name(replay: Replay) -> str:
    """The name of the evidence file about a log: its origin, in which a slash cannot stand."""
    return f"{replay.origin.replace('/', '_')}.json"


def _is_checked(progress: Progress, head: Head, latest_size: int) -> bool:
    """Whether all leaves of *head* were checked, and nothing larger waits for that.

    The head signed last may be signed again when a larger one was checked meanwhile: a log that starts asks about it.
    """
    checked = progress.checked
    if checked is None or progress.verdict is not None:
        return False
    if progress.target is not None and progress.target.size > checked.head.size:
        return False
    same = (checked.head.size, checked.head.root) == (head.size, head.root)
    return same or (head.size == latest_size and head.size < checked.head.size)


def _backlog(progress: Progress) -> int:
    return progress.input_size - progress.derived_size


def _describe(replay: Replay, progress: Progress) -> dict[str, Any]:
    checked, verdict, failure = progress.checked, progress.verdict, progress.failure
    return {
        "origin": replay.origin, "map": replay.map_origin, "url": replay.url,
        "entries-shown": progress.input_size, "entries-derived": progress.derived_size,
        "erasures": progress.erasures, "violations": progress.violations, "taken": progress.taken,
        "leaves-checked": 0 if checked is None else checked.head.size,
        "timely-from": None if checked is None else checked.timely_from,
        "derived-from": None if checked is None else checked.derived_from,
        "waiting-for": _named(failure),
        "wrong": None if verdict is None else {
            "name": verdict.name, "message": verdict.message, "time": verdict.recorded,
        },
    }


def _named(failure: KtlogError | None) -> dict[str, str] | None:
    return None if failure is None else {"name": failure.name, "message": failure.message}
