"""What a watch over one log is made of: the log or its map's, and a reader that goes by the budget of each round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from auditor.fetch import ATTEMPTS, LogReader
from auditor.findings_store import FindingStore
from auditor.memory import Memory
from auditor.views import sources_of
from auditor.watchfile import Watched
from ktlog.client.publicfiles import FileGetter
from ktlog.client.verify import Head, Log, open_head
from ktlog.errors import KtlogError


class Side:
    """The log of entries, or the log of its map."""

    def __init__(self, log: Log, policy: Any, store: FindingStore, watched: Watched, suffix: str = "") -> None:
        self.log = log
        self.policy = policy
        self.memory = Memory(store, log)
        self.sources = sources_of(log, watched.addresses, watched.witnesses, watched.mirrors, suffix)


class Gate:
    """The fetcher of the round that is under way."""

    def __init__(self) -> None:
        self._budget: FileGetter | None = None

    def open(self, budget: FileGetter) -> None:
        self._budget = budget

    def get(self, url: str, *, max_bytes: int | None = None) -> Any:
        if self._budget is None:
            raise AssertionError("nothing is read between two rounds")
        return self._budget.get(url, max_bytes=max_bytes)


class Reader(LogReader):
    """Reads for the follower, and remembers the head that it was given: alarms are proven under it."""

    def __init__(self, gate: Gate, log: Log, pause: Callable[[float], None]) -> None:
        super().__init__(gate, log.url, attempts=ATTEMPTS, pause=pause)
        self.gate = gate
        self._log = log
        self.head: Head | None = None

    def checkpoint(self) -> bytes:
        data = super().checkpoint()
        try:
            self.head = open_head(data, self._log)
        except KtlogError:
            self.head = None  # the follower says what is wrong with it
        return data
