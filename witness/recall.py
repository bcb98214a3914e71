"""What a witness remembers of its logs, so as not to read each of them for each request."""

from __future__ import annotations

import threading

from witness.decide import Cosigned
from witness.reading import Log

#: Logs kept in memory. With ML-DSA keys each may have 30 kB, most of it the library's.
REMEMBERED = 16_384


class Recall:
    """Logs as they were last seen, by origin, without their notes, which are long and seldom needed."""

    def __init__(self) -> None:
        self._logs: dict[str, Log] = {}
        self._lock = threading.Lock()

    def get(self, origin: str) -> Log | None:
        return self._logs.get(origin)

    def keep(self, log: Log) -> None:
        self._keep(log, log.latest)

    def _keep(self, log: Log, latest: Cosigned | None) -> None:
        short = None if latest is None else Cosigned(latest.revision, latest.checkpoint, latest.time, b"")
        with self._lock:
            self._logs[log.origin] = Log(
                log.origin, log.vkeys, short, log.frozen, log.per_day, log.retired, log.key_changes
            )
            if len(self._logs) > REMEMBERED:
                del self._logs[next(iter(self._logs))]

    def forget(self, origin: str) -> None:
        with self._lock:
            self._logs.pop(origin, None)

    def forget_all(self) -> None:
        with self._lock:
            self._logs.clear()

    def recorded(self, cosigned: Cosigned) -> None:
        """*cosigned* is now the latest of its log."""
        log = self._logs.get(cosigned.checkpoint.origin)
        if log is not None:
            self._keep(log, cosigned)
