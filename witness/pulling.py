"""Reading lists of logs again and again, beside the daemon's work: ``serve --pull-logs URL --every 1h``.

What a list can do is in pull.py: logs are added. Whatever goes wrong here is logged and counted, and never ends the
daemon; the next time comes soon enough.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ktlog.errors import KtlogError, UsageError
from ktlog.wire.fetch import Fetcher
from ktlog.wire.logs import fields
from witness.config import WitnessDir
from witness.loglist import parse_log_list
from witness.pull import FETCH_SECONDS, Pulled, pull, read_list
from witness.replays import ReplayStore
from witness.store import WitnessStore

SHORTEST_SECONDS = 60
LONGEST_SECONDS = 7 * 86_400
"""The witness network wants a list read once a week at least."""

RETRY_SECONDS = 300.0
"""After a failure; or sooner, where lists are read more often than that."""

SPREAD = 0.1
"""By how much of the interval each pause is shorter or longer, so that not all witnesses come at once."""

_LOG = logging.getLogger("ktlog.witness.lists")
_INTERVAL = re.compile(r"([1-9][0-9]{0,6})([smhd])")
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


@dataclass(frozen=True)
class PullState:
    """How one list does. done, failed: counts. last: Unix seconds of the last success, and what it found."""

    source: str
    done: int = 0
    failed: int = 0
    last: int = 0
    listed: int = 0
    warnings: tuple[str, ...] = ()


def parse_interval(text: str) -> int:
    """Seconds of ``90s``, ``15m``, ``1h`` or ``1d``.

    Raises:
        UsageError: ``BadInterval``: not that, shorter than a minute or longer than a week.
    """
    match = _INTERVAL.fullmatch(text)
    seconds = 0 if match is None else int(match[1]) * _UNITS[match[2]]
    if not SHORTEST_SECONDS <= seconds <= LONGEST_SECONDS:
        raise UsageError(
            "BadInterval", f"{text!a} is no time between a minute and a week, written like 90s, 15m, 1h or 1d",
        )
    return seconds


def format_interval(seconds: int) -> str:
    for unit in ("d", "h", "m"):
        if seconds % _UNITS[unit] == 0:
            return f"{seconds // _UNITS[unit]}{unit}"
    return f"{seconds}s"


def pull_from(directory: Path, source: str, now: int) -> Pulled:
    """Follow the logs of the list at *source*, with a connection of its own: a daemon beside it goes on working.

    Raises:
        KtlogError: see read_list, parse_log_list and pull; UsageError ``VerifierDirectory``.
    """
    paths = WitnessDir(directory)
    paths.check()
    store = WitnessStore.open(paths.database, beside_daemon=True)
    try:
        if ReplayStore(store).replays():
            raise UsageError("VerifierDirectory", "this directory holds a verifier, which follows no lists")
        with Fetcher.from_environment(timeout=FETCH_SECONDS) as fetcher:
            listed = parse_log_list(read_list(source, fetcher))
        return pull(store, listed, source, now)
    finally:
        store.close()


class Puller:
    """Reads each list at once, and then in turn; see ``start``.

    Args:
        every: seconds between two readings of one list.
    """

    def __init__(self, directory: Path, sources: Sequence[str], every: float) -> None:
        self._directory = directory
        self._every = every
        self._states = {source: PullState(source) for source in dict.fromkeys(sources)}

    def start(self) -> None:
        for source in self._states:
            threading.Thread(target=self._follow, args=(source,), daemon=True, name="pull-logs").start()

    def states(self) -> tuple[PullState, ...]:
        return tuple(self._states.values())

    def _follow(self, source: str) -> None:
        while True:
            taken = self.pull_once(source)
            pause = self._every if taken else min(self._every, RETRY_SECONDS)
            time.sleep(pause * random.SystemRandom().uniform(1 - SPREAD, 1 + SPREAD))

    def pull_once(self, source: str) -> bool:
        """Whether the list was taken. What it warns of is logged when it is new."""
        state = self._states[source]
        now = int(time.time())
        try:
            done = pull_from(self._directory, source, now)
        except Exception as error:
            self._states[source] = replace(state, failed=state.failed + 1)
            if isinstance(error, KtlogError):
                _LOG.error("a list of logs was not taken: %s", error, extra=fields(list=source, reason=error.name))
            else:
                _LOG.exception("a list of logs was not taken", extra=fields(list=source))
            return False
        for warning in done.warnings:
            if warning not in state.warnings:
                _LOG.warning("%s", warning, extra=fields(list=source))
        if done.added or not state.done:
            _LOG.info("a list of logs was taken", extra=fields(list=source, logs=done.listed, added=len(done.added)))
        self._states[source] = replace(
            state, done=state.done + 1, last=now, listed=done.listed, warnings=done.warnings
        )
        return True
