"""What a witness counts, and how Prometheus reads it.

Counting is a few additions under one lock, for each request; everything else is worked out when somebody looks. Logs
are counted one by one only if they are followed, and only the first ORIGINS_LIMIT of them that are heard of: what
strangers send makes no new line. Whatever an operator may want to be woken by is in docs/witness.md, "Metrics".
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ktlog import __version__
from ktlog.errors import StoreError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import COSIGNATURE_ED25519, COSIGNATURE_MLDSA44
from ktlog.wire.prometheus import Histogram, Page
from witness.pulling import PullState
from witness.reading import Reader
from witness.witness import Witness

if TYPE_CHECKING:  # h2 need not be installed where no bastion is dialled
    from witness.bastion import BastionState

ORIGINS_LIMIT = 1_000
OTHERS = "(others)"
"""The origin under which the rest of the logs is counted; no origin line of a log that is followed is read as one."""

REASONS_LIMIT = 256

#: Of a submission's refusal: the proof that came with it does not hold, or the roots differ.
FAILED_PROOF = 422
_ALGORITHMS = {COSIGNATURE_ED25519: "ed25519", COSIGNATURE_MLDSA44: "mldsa44"}
_UNKNOWN = "UnknownOrigin"


@dataclass(frozen=True)
class Counted:
    """A copy of what was counted so far.

    answers: by (endpoint, status, reason). origins: submissions by (origin, status). newest: size, and Unix seconds of
    the latest cosignature, by origin. latencies: by endpoint. in_progress: requests.
    """

    answers: dict[tuple[str, int, str], int]
    origins: dict[tuple[str, int], int]
    newest: dict[str, tuple[int, int]]
    newest_of_all: int
    latencies: dict[str, Histogram]
    in_progress: int


class Tally:
    """Counts requests. Safe to use from many threads."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._answers: dict[tuple[str, int, str], int] = {}
        self._origins: dict[str, dict[int, int]] = {}
        self._newest: dict[str, tuple[int, int]] = {}
        self._newest_of_all = 0
        self._latencies: dict[str, Histogram] = {}
        self._in_progress = 0

    def seed(self, origin: str, size: int, cosigned: int) -> None:
        """What was cosigned before this process began."""
        with self._lock:
            self._newest_of_all = max(self._newest_of_all, cosigned)
            if len(self._newest) < ORIGINS_LIMIT:
                self._newest[origin] = (size, cosigned)

    def begin(self) -> None:
        """A request has come; ``end`` must follow."""
        with self._lock:
            self._in_progress += 1

    def end(self, endpoint: str, status: int, reason: str, seconds: float, about: Checkpoint | None = None) -> None:
        """It was answered.

        Args:
            endpoint, reason: names of ours, never a stranger's text. about: of a submission, once it parsed.
        """
        now = 0
        if status == 200 and about is not None and endpoint == "add-checkpoint":
            now = int(self._clock())
        with self._lock:
            self._in_progress -= 1
            answer = (endpoint, status, reason)
            count = self._answers.get(answer)
            if count is None and len(self._answers) >= REASONS_LIMIT:
                answer = (endpoint, status, "Other")
                count = self._answers.get(answer)
            self._answers[answer] = (count or 0) + 1
            latency = self._latencies.get(endpoint)
            if latency is None:
                latency = self._latencies[endpoint] = Histogram()
            latency.observe(seconds)
            if about is not None and reason != _UNKNOWN and endpoint == "add-checkpoint":
                self._count_origin(about, status, now)

    def _count_origin(self, about: Checkpoint, status: int, now: int) -> None:
        origin = about.origin
        statuses = self._origins.get(origin)
        if statuses is None:
            if len(self._origins) >= ORIGINS_LIMIT:
                origin = OTHERS
            statuses = self._origins.setdefault(origin, {})
        statuses[status] = statuses.get(status, 0) + 1
        if now:
            self._newest_of_all = now
            if origin is not OTHERS and (origin in self._newest or len(self._newest) < ORIGINS_LIMIT):
                self._newest[origin] = (about.size, now)

    @property
    def newest(self) -> int:
        """When something was cosigned last, in Unix seconds; 0: never."""
        return self._newest_of_all

    def counted(self) -> Counted:
        with self._lock:
            return Counted(
                dict(self._answers),
                {(origin, status): count for origin, by in self._origins.items() for status, count in by.items()},
                dict(self._newest), self._newest_of_all,
                {endpoint: latency.copy() for endpoint, latency in self._latencies.items()}, self._in_progress,
            )


class LevelCounter(logging.Handler):
    """Counts what was logged as a warning or worse, and says nothing itself."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        self.counts[record.levelname.lower()] += 1


def format_metrics(
    witness: Witness, record: Reader, counted: Counted, *, unready: str | None, draining: bool, logged: Counter[str],
    pulls: Sequence[PullState] = (), bastions: Sequence[BastionState] = (),
) -> bytes:
    """All there is to say about one witness now.

    Args:
        record: to count in. unready: as ``/readyz`` has it.

    Raises:
        StoreError: the record cannot be read.
    """
    page = Page("ktlog_witness_")
    role = "witness" if witness.verifier is None else "verifier"
    page.add("build_info", "gauge", "Which program this is, and whose.", [(
        {"version": __version__, "python": platform.python_version(), "name": witness.store.name, "role": role}, 1,
    )])
    page.add("ready", "gauge", "1 if /readyz says ok.", unready is None)
    page.add("draining", "gauge", "1 from SIGTERM on.", draining)
    page.add("logged_total", "counter", "Lines logged as warnings or errors.",
             [({"level": level}, logged[level]) for level in ("warning", "error", "critical")])
    _add_requests(page, witness, counted)
    _add_logs(page, counted)
    _add_record(page, record, failed=_is_poisoned(witness))
    _add_pulls(page, pulls)
    _add_bastions(page, bastions)
    if witness.verifier is not None:
        _add_replays(page, witness.verifier.status())
    page.add_process()
    return page.encode()


def _add_requests(page: Page, witness: Witness, counted: Counted) -> None:
    answers = sorted(counted.answers.items())
    page.add(
        "requests_total", "counter", "Requests answered, and with what.",
        [({"endpoint": endpoint, "status": str(status), "reason": reason}, count)
         for (endpoint, status, reason), count in answers],
    )
    page.add("requests_in_progress", "gauge", "Requests that wait for their answer.", counted.in_progress)
    page.add_histograms(
        "request_seconds", "Time from a request's head to its answer.",
        [({"endpoint": endpoint}, latency) for endpoint, latency in sorted(counted.latencies.items())],
    )
    signed = {endpoint: sum(count for (of, status, _), count in answers if (of, status) == (endpoint, 200))
              for endpoint in ("add-checkpoint", "sign-subtree")}
    kinds = [_ALGORITHMS.get(signer.vkey.algorithm, "other") for signer in witness.signers]
    page.add("cosignatures_total", "counter", "Cosignatures of checkpoints given out.",
             [({"algorithm": kind}, signed["add-checkpoint"]) for kind in kinds])
    page.add("subtree_signatures_total", "counter", "Signatures of subtrees given out.", signed["sign-subtree"])
    page.add(
        "failed_proofs_total", "counter", "Submissions whose proof did not hold, or whose root was another.",
        sum(count for (of, status, _), count in answers if (of, status) == ("add-checkpoint", FAILED_PROOF)),
    )
    page.add(
        "limited_total", "counter", "Requests refused by a limit, which the reason names.",
        [({"reason": reason}, count) for (endpoint, status, reason), count in answers
         if status == 429 and endpoint == "add-checkpoint"],
    )


def _add_logs(page: Page, counted: Counted) -> None:
    page.add(
        "log_submissions_total", "counter", f"Submissions by log, of those followed; beyond {ORIGINS_LIMIT} together.",
        [({"origin": origin, "status": str(status)}, count)
         for (origin, status), count in sorted(counted.origins.items())],
    )
    newest = sorted(counted.newest.items())
    page.add("log_size", "gauge", "Size of the checkpoint cosigned last.",
             [({"origin": origin}, size) for origin, (size, _) in newest])
    page.add("log_cosigned_timestamp_seconds", "gauge", "When that was, in Unix seconds.",
             [({"origin": origin}, at) for origin, (_, at) in newest])
    page.add("cosigned_timestamp_seconds", "gauge", "When any log was cosigned last; 0: never.", counted.newest_of_all)


def _is_poisoned(witness: Witness) -> bool:
    try:
        witness.store.refuse_poisoned()
    except StoreError:
        return True
    return False


def _add_record(page: Page, record: Reader, *, failed: bool) -> None:
    page.add("logs", "gauge", "Logs followed.", record.count_logs())
    page.add("forks_total", "counter", "Forks on record, with their evidence.", record.count_evidence())
    with record.reading() as database:
        frozen = database.execute("SELECT count(DISTINCT origin) FROM freezes WHERE lifted IS NULL").fetchone()[0]
    page.add("frozen_logs", "gauge", "Logs for which nothing is signed, because they forked.", frozen)
    page.add("record_failed", "gauge", "1 if a write failed, after which nothing is signed until a restart.", failed)


def _add_pulls(page: Page, pulls: Sequence[PullState]) -> None:
    if not pulls:
        return
    for name, kind, text, value in (
        ("list_pulls_total", "counter", "How often a list of logs was read.", lambda one: one.done),
        ("list_failures_total", "counter", "How often it could not be read or taken.", lambda one: one.failed),
        ("list_pulled_timestamp_seconds", "gauge", "When it was taken last; 0: not yet.", lambda one: one.last),
        ("list_logs", "gauge", "Logs in it then.", lambda one: one.listed),
        ("list_warnings", "gauge", "What it says that was not done: changed keys, logs gone.",
         lambda one: len(one.warnings)),
    ):
        page.add(name, kind, text, [({"list": one.source}, value(one)) for one in pulls])


def _add_bastions(page: Page, bastions: Sequence[BastionState]) -> None:
    if not bastions:
        return
    for name, kind, text, value in (
        ("bastion_connected", "gauge", "1 if this bastion has a connection of ours.", lambda one: one.connected),
        ("bastion_connections_total", "counter", "Connections made to it.", lambda one: one.connections),
        ("bastion_requests_total", "counter", "Requests that came over it.", lambda one: one.counters.requests),
        ("bastion_refused_total", "counter", "Of those, not begun: too many were in hand.",
         lambda one: one.counters.refused),
    ):
        page.add(name, kind, text, [({"bastion": str(one.bastion)}, value(one)) for one in bastions])


def _add_replays(page: Page, status: Sequence[dict]) -> None:
    def samples(value: Callable[[dict], float]) -> list[tuple[dict[str, str], float]]:
        return [({"origin": one["origin"]}, value(one)) for one in status]

    page.add("replay_entries_behind", "gauge", "Entries that a log has shown and that were not derived yet.",
             samples(lambda one: max(0, one["entries-shown"] - one["entries-derived"])))
    page.add("replay_entries_derived", "gauge", "Entries that were read and derived.",
             samples(lambda one: one["entries-derived"]))
    page.add("replay_leaves_checked", "gauge", "Leaves of the map's log that were checked.",
             samples(lambda one: one["leaves-checked"]))
    page.add("replay_violations", "gauge", "Entries of the log without effect, because they break its rules.",
             samples(lambda one: one["violations"]))
    page.add("replay_wrong", "gauge", "1 if the log was caught, and is signed for no more.",
             samples(lambda one: one["wrong"] is not None))
    page.add("replay_waiting", "gauge", "1 if something keeps it from being followed, which /replays names.",
             samples(lambda one: one["waiting-for"] is not None))
