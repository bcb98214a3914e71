"""The life of one process that serves a mirror: what it counts and logs, as a witness does (running.py, metrics.py)."""

from __future__ import annotations

import logging
import platform
import signal
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ktlog import __version__
from ktlog.errors import StoreError
from ktlog.wire.logs import RequestIds, fields, toggle_debug
from ktlog.wire.prometheus import MetricsServer, Page
from witness.metrics import ORIGINS_LIMIT, LevelCounter, Tally
from witness.mirror import UPLOADS_AT_ONCE, Mirror
from witness.mirrorwire import Mirrored
from witness.running import begin_request, log_request

_LIFE = logging.getLogger("ktlog.witness.mirror")


@dataclass(frozen=True)
class MirrorOperating:
    """What the operator wants of a mirror's process. metrics: a socket that listens for who reads them; None: nobody.

    addresses: of those who ask, in the log: one of running.ADDRESSES. level: of the log, to which SIGUSR1 returns.
    """

    metrics: socket.socket | None = None
    addresses: str = "none"
    level: str = "info"


class MirrorRunning:
    """Counts requests and logs a line for each; ``start`` only where it is a process of its own."""

    def __init__(self, mirror: Mirror, operating: MirrorOperating | None = None) -> None:
        self._mirror = mirror
        self._operating = MirrorOperating() if operating is None else operating
        self._tally, self._ids, self._logged = Tally(), RequestIds(), LevelCounter()

    def start(self) -> None:
        """In the main thread, when the mirror can be asked."""
        logging.getLogger().addHandler(self._logged)
        if self._operating.metrics is not None:
            address, port = MetricsServer(self._operating.metrics, self.metrics, self.unready).address
            _LIFE.info("metrics are served", extra=fields(address=address, port=port))
        signal.signal(signal.SIGUSR1, lambda *_: toggle_debug(self._operating.level))
        signal.siginterrupt(signal.SIGUSR1, False)

    def begin(self, environ: Mapping[str, Any]) -> tuple[float, str]:
        """A request has come; ``end`` must follow, with what this returns."""
        return begin_request(self._tally, self._ids, environ)

    def end(
        self, began: tuple[float, str], environ: Mapping[str, Any], endpoint: str, status: int, reason: str
    ) -> None:
        """It was answered. endpoint, reason: names of ours."""
        log_request(self._tally, self._operating.addresses, began, environ, endpoint, status, reason)

    def unready(self) -> str | None:
        """Why no upload would be taken, by its name; None when it would."""
        try:
            self._mirror.store.refuse_poisoned()
            self._mirror.store.count_writes()
        except StoreError as error:
            return error.name
        return None

    def metrics(self) -> bytes:
        """For Prometheus. Raises StoreError."""
        counted, unready, logs = self._tally.counted(), self.unready(), self._mirror.store.logs()
        page = Page("ktlog_mirror_")
        name = {"version": __version__, "python": platform.python_version(), "name": self._mirror.store.name}
        page.add("build_info", "gauge", "Which program this is, and whose.", [(name, 1)])
        page.add("ready", "gauge", "1 if /readyz says ok.", unready is None)
        page.add("logged_total", "counter", "Lines logged as warnings or errors.",
                 [({"level": level}, self._logged.counts[level]) for level in ("warning", "error", "critical")])
        page.add("requests_total", "counter", "Requests answered, and with what.", [
            ({"endpoint": endpoint, "status": str(status), "reason": reason}, count)
            for (endpoint, status, reason), count in sorted(counted.answers.items())
        ])
        page.add("requests_in_progress", "gauge", "Requests that wait for their answer.", counted.in_progress)
        page.add_histograms("request_seconds", "Time from a request's head to its answer.",
                            [({"endpoint": one}, latency) for one, latency in sorted(counted.latencies.items())])
        page.add("uploads", "gauge", f"Uploads under way, of {UPLOADS_AT_ONCE} at one time.",
                 self._mirror.uploads.count())
        page.add("uploads_hung_up_total", "counter", "Uploads that were too slow while others waited for their place.",
                 self._mirror.uploads.hung_up)
        page.add("logs", "gauge", "Logs mirrored.", len(logs))
        by_log: tuple[tuple[str, str, Callable[[Mirrored], int]], ...] = (
            ("log_size", "Size of the checkpoint cosigned last.",
             lambda one: 0 if one.latest is None else one.latest.checkpoint.size),
            ("log_cosigned_timestamp_seconds", "When that was, in Unix seconds; 0: never.",
             lambda one: 0 if one.latest is None else one.latest.time),
            ("log_entries_held", "Entries that are on the disk.", lambda one: one.next_entry),
            ("log_bytes", "What they take.", lambda one: one.stored_bytes),
            ("log_bytes_limit", "What they may take.", lambda one: one.max_bytes),
        )
        for metric, text, value in by_log:
            page.add(metric, "gauge", text, [({"origin": one.origin}, value(one)) for one in logs[:ORIGINS_LIMIT]])
        page.add_process()
        return page.encode()
