"""What to audit, whom to trust, how much to check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from auditor.heads import KnownHead
from auditor.position import SEMANTIC
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS, Log
from ktlog.errors import EncodingError, UsageError
from ktlog.tlog.encoding import parse_decimal
from ktlog.tlog.policy import Policy

MAXIMUM_SAMPLE = 10_000_000
SAVE_SECONDS = 30.0
"""How long an audit goes on before it saves where it is. A kill loses no more, and a page of 256 entries."""

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""


@dataclass(frozen=True)
class Selection:
    """How much of something to check: all of it, none, or *count* chosen at random."""

    mode: str
    count: int | None = None
    """None for all."""


NEW = Selection("new")
"""Of answers: those about actors that an entry touched since the last audit that asked."""


def parse_selection(text: str, also: Selection | None = None) -> Selection:
    """Read ``all``, ``none`` or ``sample:N``; or the mode of *also*.

    Raises:
        UsageError: ``BadSelection``.
    """
    if also is not None and text == also.mode:
        return also
    if text == "all":
        return Selection(text)
    if text == "none":
        return Selection(text, 0)
    kind, colon, number = text.partition(":")
    try:
        if kind == "sample" and colon:
            return Selection(text, parse_decimal(number, MAXIMUM_SAMPLE))
    except EncodingError:
        pass
    allowed = "all, none and sample:N" if also is None else f"{also.mode}, all, none and sample:N"
    raise UsageError("BadSelection", f"{text!r} is none of {allowed}", hint="For example sample:100.")


@dataclass(frozen=True)
class AuditRequest:
    """What to audit, whom to trust, how much to check.

    ``known`` are heads signed before, that of the last clean audit among them. ``workers`` is the
    number of threads, or processes, that verify. ``max_age`` is in seconds. ``tiles`` is the directory
    of a local copy of the log's published files, for the workers; the reader given beside it reads it too.
    ``map_log`` is the log of the map; None: the one whose keys the policy names, if it names any.
    """

    log: Log
    policy: Policy | None = None
    known: tuple[KnownHead, ...] = ()
    commitments: Selection = Selection("all")
    answers: Selection = Selection("all")
    max_age: int = DEFAULT_MAX_AGE_SECONDS
    workers: int = 2
    tier: str = SEMANTIC
    leaf_signatures: bool = True
    tiles: Path | None = None
    save_seconds: float = SAVE_SECONDS
    map_log: Log | None = None
