"""Numbers for Prometheus: its text format, a histogram, and the listener of its own that they are read from.

The text format is some forty lines, and so needs no library. The same listener answers ``/livez`` and ``/readyz``, so
that what watches a daemon needs no way to where strangers come in.

Spec: Prometheus text exposition format 0.0.4.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import resource
import socket
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from ktlog.errors import StoreError, UsageError
from ktlog.wire.httpd import open_listener, parse_listen

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
REQUEST_SECONDS = 5.0

#: Upper bounds in seconds, of what takes some milliseconds and must not take seconds.
LATENCY_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

_LOG = logging.getLogger("ktlog.metrics")
_STARTED = time.time()
_ESCAPED = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})

Sample = tuple[Mapping[str, str], float]


class Histogram:
    """How often something took how long. Not locked: whoever observes from many threads has a lock anyway."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float] = LATENCY_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total += seconds

    def merge(self, counts: Sequence[int], total: float) -> None:
        """What another one with the same bounds observed."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, counts, strict=True)]
        self.total += total

    def copy(self) -> Histogram:
        other = Histogram(self.bounds)
        other.counts, other.total = list(self.counts), self.total
        return other


class Page:
    """What one look at the numbers says, metric by metric.

    Args:
        prefix: of every metric's name, but for those of ``add_process``.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lines: list[str] = []

    def add(self, name: str, kind: str, text: str, samples: Iterable[Sample] | float) -> None:
        """One metric. kind: counter or gauge. samples: (labels, value) each, or a single value without labels."""
        if isinstance(samples, int | float):
            samples = [({}, samples)]
        full = f"{self._prefix}{name}"
        self._head(full, kind, text)
        self._lines.extend(f"{full}{_labels(labels)} {_number(value)}" for labels, value in samples)

    def add_histograms(self, name: str, text: str, samples: Iterable[tuple[Mapping[str, str], Histogram]]) -> None:
        full = f"{self._prefix}{name}"
        self._head(full, "histogram", text)
        for labels, histogram in samples:
            reached = 0
            for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
                reached += count
                self._lines.append(f"{full}_bucket{_labels({**labels, 'le': str(bound)})} {reached}")
            self._lines.append(f"{full}_sum{_labels(labels)} {_number(histogram.total)}")
            self._lines.append(f"{full}_count{_labels(labels)} {reached}")

    def add_process(self) -> None:
        """Processor, memory and descriptors of this process, under the names that everybody uses."""
        spent = resource.getrusage(resource.RUSAGE_SELF)
        mine, self._prefix = self._prefix, "process_"
        self.add("cpu_seconds_total", "counter", "Processor time spent.", spent.ru_utime + spent.ru_stime)
        self.add("start_time_seconds", "gauge", "When the process started, in Unix seconds.", round(_STARTED, 3))
        self.add("max_fds", "gauge", "Descriptors that it may have.", resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        try:
            pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
            descriptors = len(os.listdir("/proc/self/fd"))
        except OSError:
            pass  # a system without /proc
        else:
            self.add("resident_memory_bytes", "gauge", "Memory in use.", pages * resource.getpagesize())
            self.add("open_fds", "gauge", "Descriptors in use.", descriptors)
        self._prefix = mine

    def _head(self, full: str, kind: str, text: str) -> None:
        self._lines.extend([f"# HELP {full} {text}", f"# TYPE {full} {kind}"])

    def encode(self) -> bytes:
        return ("\n".join(self._lines) + "\n").encode("utf-8")


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{value.translate(_ESCAPED)}"' for name, value in labels.items()) + "}"


def _number(value: float) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def parse_metrics_listen(text: str) -> str:
    """Where metrics are served: ``ADDRESS:PORT`` of this machine alone, or of any with `` public`` behind it.

    Raises:
        UsageError: ``BadListen``.
    """
    listen, _, word = text.partition(" ")
    where = parse_listen(listen)
    if word not in ("", "public") or isinstance(where, int):
        raise UsageError("BadListen", f"metrics_listen is {text!a}, not ADDRESS:PORT, nor that and the word public")
    if not word and not _is_loopback(where[0]):
        raise UsageError("BadListen", f"metrics_listen is {text!a}: others could read it; if they may, add public")
    return listen


def _is_loopback(text: str) -> bool:
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


class MetricsServer:
    """Answers ``GET /metrics``, ``/livez`` and ``/readyz`` in threads of its own, from its making until it is closed.

    Args:
        where: as ``parse_metrics_listen`` takes it; or a socket that listens, which it then owns.
        look: the text of ``/metrics``.
        unready: why the daemon would not do its work, in a line; None when it would. Without it there is no
            ``/readyz``, and no ``/livez`` either.
    """

    def __init__(
        self, where: str | socket.socket, look: Callable[[], bytes], unready: Callable[[], str | None] | None = None
    ) -> None:
        listener = open_listener(parse_metrics_listen(where)) if isinstance(where, str) else where
        self.address = listener.getsockname()[:2]

        class Handler(BaseHTTPRequestHandler):
            timeout = REQUEST_SECONDS

            def do_GET(self) -> None:
                status, content_type, body = _answer(self.path, look, unready)
                self.send_response(status)
                self.send_header("Content-Type", content_type)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Nothing: who reads metrics reads them every few seconds."""

        self._server = _Server(self.address, Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = listener
        threading.Thread(target=self._server.serve_forever, daemon=True, name="metrics").start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _answer(
    path: str, look: Callable[[], bytes], unready: Callable[[], str | None] | None
) -> tuple[int, str, bytes]:
    """Status, type and body."""
    if path == "/metrics":
        try:
            return 200, CONTENT_TYPE, look()
        except StoreError as error:
            _LOG.error("no metrics: %s", error)
            return 503, "text/plain", f"{error.name}\n".encode()
    if path == "/livez" and unready is not None:
        return 200, "text/plain", b"ok\n"
    if path == "/readyz" and unready is not None:
        why = unready()
        return (200, "text/plain", b"ok\n") if why is None else (503, "text/plain", f"{why}\n".encode())
    return 404, "text/plain", b"not found\n"


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        """Whoever went away without the answer is not worth a traceback."""
