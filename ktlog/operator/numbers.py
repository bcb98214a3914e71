"""What a log has done and has left to do, in numbers: for ``ktlog status`` and for Prometheus.

Sequenced are the entries that are durable in the store and have receipts; integrated, those that the published tiles
cover; published, those of the published checkpoint; mapped, those that the published map was derived from.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ktlog import __version__
from ktlog.errors import EncodingError
from ktlog.operator.freshness import Fresh
from ktlog.operator.sources import MirrorStatus
from ktlog.wire.prometheus import Histogram, Page

CODES_LIMIT = 256

FRESH_SECONDS = 3_600
"""A client's policy takes no older cosignature, unless it says otherwise."""
SCOPES = {
    "rate_limited": "sender", "too_many_at_once": "sender_at_once", "too_many_messages": "actor", "overloaded": "log",
}
"""Whose limit a refusal is for: an address or an instance after refusals, the same at one time, an actor, everybody."""
_CODE = re.compile(r"[a-z0-9_]{1,64}")


@dataclass(frozen=True)
class Numbers:
    """One look at a running sequencer.

    sequenced, integrated, published, mapped: entries; see above. waiting: requests in the queue. accepted, batches:
    entries, and commits that brought them, since the start. commit_seconds: spent in these commits; batch_seconds: in
    all that belongs to them, signing too. refused: messages by (who refused, code); "web" counts what the
    sequencer refused a web worker as well. free_bytes: on the disk of the log's directory. now: Unix seconds. log, map:
    when each of the two logs was published. oldest_seconds: what the request that waits longest has waited.
    database_bytes: of the files in which the log and the map are, by their names; none with PostgreSQL. tiles_bytes: of
    what is published, as counted some minutes ago at most; None where it is not in files. messages: since the start, by
    action and result, as ``Sequencer.messages``. fetches: of actors' documents, in all web workers; blocked: of which
    no connection was made, since the address is not one of the public Internet. paused: no messages are taken, because
    the operator said so. backup: when the newest backup was begun, in Unix seconds; None for none. mirrors: how the
    copies of other logs do, by origin.
    """

    sequenced: int
    integrated: int
    published: int
    mapped: int
    waiting: int
    accepted: int
    batches: int
    commit_seconds: float
    batch_seconds: float
    refused: Mapping[tuple[str, str], int]
    free_bytes: int
    now: int
    log: Fresh
    map: Fresh
    oldest_seconds: float
    database_bytes: Mapping[str, int]
    tiles_bytes: int | None = None
    messages: Mapping[tuple[str, str], int] = field(default_factory=dict)
    fetches: Histogram = field(default_factory=Histogram)
    blocked: int = 0
    paused: bool = False
    heartbeat_seconds: int = 600
    backup: int | None = None
    mirrors: Mapping[str, MirrorStatus] = field(default_factory=dict)


class Refusals:
    """Counts refusals by code, of this process and of those that report theirs. Safe to use from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, by: str, code: str, count: int = 1) -> None:
        """Raises EncodingError ``BadCode`` for what can be no code, or one too many."""
        with self._lock:
            known = (by, code) in self._counts
            if not _CODE.fullmatch(code) or not (known or len(self._counts) < CODES_LIMIT):
                raise EncodingError("BadCode", "not a code that is counted")
            self._counts[by, code] += count

    def counts(self) -> dict[tuple[str, str], int]:
        with self._lock:
            return dict(self._counts)


def as_members(numbers: Numbers) -> dict[str, object]:
    """For an answer in JSON; decimal numbers as text, because canonical JSON has no fractions."""
    return {
        "sequenced": str(numbers.sequenced), "integrated": str(numbers.integrated),
        "published": str(numbers.published), "mapped": str(numbers.mapped), "waiting": str(numbers.waiting),
        "accepted": str(numbers.accepted), "batches": str(numbers.batches),
        "free-bytes": str(numbers.free_bytes), "oldest-seconds": f"{numbers.oldest_seconds:.3f}",
        "checkpoint-age": str(numbers.now - numbers.log.published), "map-age": str(numbers.now - numbers.map.published),
        "cosigned-age": {f"{part}/{name}": str(age) for part, name, age in _cosigned_ages(numbers)},
        "database-bytes": {name: str(size) for name, size in sorted(numbers.database_bytes.items())},
        "commit-seconds": f"{numbers.commit_seconds:.6f}", "batch-seconds": f"{numbers.batch_seconds:.6f}",
        "refused": {f"{by}/{code}": str(count) for (by, code), count in sorted(numbers.refused.items())},
    } | ({} if numbers.backup is None else {"backup-age": str(max(0, numbers.now - numbers.backup))})


def _cosigned_ages(numbers: Numbers) -> list[tuple[str, str, int]]:
    """Log or map, the cosigner's name, and how many seconds ago it signed."""
    parts = (("log", numbers.log), ("map", numbers.map))
    return [(part, name, numbers.now - at) for part, fresh in parts for name, at in sorted(fresh.cosigned.items())]


def format_metrics(numbers: Numbers) -> bytes:
    """The same as Prometheus reads it."""
    page = Page("ktlog_")
    stages = ("sequenced", "integrated", "published", "mapped")
    page.add(
        "entries", "gauge", "Entries of the log, by how far they have come.",
        [({"stage": stage}, getattr(numbers, stage)) for stage in stages],
    )
    parts = (("log", numbers.log), ("map", numbers.map))
    page.add(
        "checkpoint_age_seconds", "gauge", "Since this process published a checkpoint, or else since it began.",
        [({"log": part}, numbers.now - fresh.published) for part, fresh in parts],
    )
    page.add(
        "heartbeat_seconds", "gauge", "How old a checkpoint may grow while nothing comes.",
        [({}, numbers.heartbeat_seconds)],
    )
    ages = _cosigned_ages(numbers)
    page.add(
        "witness_cosign_age_seconds", "gauge", "Since each cosigner signed, or else since this process began.",
        [({"log": part, "witness": name}, age) for part, name, age in ages],
    )
    page.add(
        "witnesses_fresh", "gauge", "Cosigners that signed within the last hour.",
        [({"log": part}, sum(at == part and age < FRESH_SECONDS for at, _, age in ages)) for part, _ in parts],
    )
    page.add("queue_depth", "gauge", "Requests that wait for the sequencer.", numbers.waiting)
    page.add("queue_oldest_seconds", "gauge", "How long the first of them has waited.", numbers.oldest_seconds)
    page.add(
        "database_bytes", "gauge", "Size of the files in which the log and the map are.",
        [({"database": name}, size) for name, size in sorted(numbers.database_bytes.items())],
    )
    if numbers.tiles_bytes is not None:
        page.add("tiles_bytes", "gauge", "Size of what is published, counted now and then.", numbers.tiles_bytes)
    page.add("free_bytes", "gauge", "Left on the disk of the log's directory.", numbers.free_bytes)
    page.add("paused", "gauge", "1 while no messages are taken, because the operator said so.", numbers.paused)
    page.add("accepted_total", "counter", "Entries accepted since the start.", numbers.accepted)
    page.add("batches_total", "counter", "Commits that brought entries.", numbers.batches)
    page.add("commit_seconds_total", "counter", "Time spent in these commits.", numbers.commit_seconds)
    page.add("batch_seconds_total", "counter", "Time spent on batches, signing too.", numbers.batch_seconds)
    page.add(
        "refused_total", "counter", "Messages refused, by whom and under which code.",
        [({"by": by, "code": code}, count) for (by, code), count in sorted(numbers.refused.items())],
    )
    page.add(
        "rate_limited_total", "counter", "Of these, those that came too often or when too much was under way.",
        [({"scope": scope}, sum(count for (_, named), count in numbers.refused.items() if named == code))
         for code, scope in SCOPES.items()],
    )
    page.add(
        "messages_total", "counter", "Messages that reached the sequencer, by action and what became of them.",
        [({"action": action, "result": result}, count) for (action, result), count in sorted(numbers.messages.items())],
    )
    page.add_histograms("fetch_seconds", "How long actors' documents took, or to fail.", [({}, numbers.fetches)])
    page.add(
        "ssrf_blocked_total", "counter", "Fetches without a connection: the address was not a public one.",
        numbers.blocked,
    )
    if numbers.backup is not None:
        page.add("backup_timestamp_seconds", "gauge", "When the newest backup was begun.", numbers.backup)
    if numbers.mirrors:
        _add_mirrors(page, sorted(numbers.mirrors.items()))
    page.add("time_seconds", "gauge", "What the log's clock says, in Unix seconds.", numbers.now)
    page.add("build_info", "gauge", "Which ktlog this is.", [({"version": __version__}, 1)])
    return page.encode()


def _add_mirrors(page: Page, mirrors: Sequence[tuple[str, MirrorStatus]]) -> None:
    def each(value: Callable[[MirrorStatus], int]) -> list[tuple[dict[str, str], int]]:
        return [({"origin": origin}, value(status)) for origin, status in mirrors]

    page.add("mirror_entries", "gauge", "Entries of the copy of another log.", each(lambda one: one.tree_size))
    page.add(
        "mirror_success_timestamp_seconds", "gauge", "When its source last answered and all held; 0 for never.",
        each(lambda one: one.last_success),
    )
    page.add("mirror_failing", "gauge", "1 if that failed since.", each(lambda one: one.error is not None))
    page.add(
        "mirror_stopped", "gauge", "1 if its source signed two histories, and is asked no more.",
        each(lambda one: one.stopped),
    )
