"""The readers' load: asks for prepared targets over kept connections as fast as they are answered.

    python -m ktlog.bench.getter ORDER

ORDER is a file of :func:`order`. It says ``ready``, begins at the first line on its standard input and prints a JSON
object at its end. Every so many answers one is kept, for whoever wants to verify it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktlog.bench.row import percentile
from ktlog.bench.usage import Server, Usage
from ktlog.errors import Unreachable

KEEP_EVERY = 100
KEEP_MOST = 200


@dataclass(frozen=True)
class Kept:
    """One answer whole. head: status line and header lines."""

    target: str
    head: str
    body: bytes


@dataclass(frozen=True)
class Got:
    """What came of the load. cpu: of the getter. size: bytes of all bodies. usage: of the server meanwhile."""

    count: int
    seconds: float
    cpu: float
    size: int
    p50_ms: float
    p99_ms: float
    usage: Usage
    kept: tuple[Kept, ...]


def get(
    server: Server, port: int, host: str, targets: Sequence[str], seconds: float, scratch: Path, *,
    connections: int = 8, in_flight: int = 1, headers: Sequence[str] = (),
) -> Got:
    """Ask the server at *port* for *targets*, over and over, for some *seconds*.

    Args:
        in_flight: requests that a connection sends ahead. headers: lines of each, beside Host.

    Raises:
        Unreachable: ``BadStatus``, an answer was not 200; ``NoGenerator``.
    """
    path = scratch / "order"
    path.write_text(json.dumps({
        "port": port, "host": host, "targets": list(targets), "seconds": seconds, "connections": connections,
        "in_flight": in_flight, "headers": list(headers),
    }), encoding="utf-8")
    words = [sys.executable, "-m", "ktlog.bench.getter", str(path)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        if process.stdin is None or process.stdout is None or process.stdout.readline() != "ready\n":
            process.kill()
            raise Unreachable("NoGenerator", "the getter did not start; its reason is above")
        before = server.usage()
        process.stdin.write("\n")
        process.stdin.flush()
        line = process.stdout.readline()
        usage = server.usage() - before
    if not line:
        raise Unreachable("NoGenerator", "the getter ended too early; its reason is above")
    found = json.loads(line)
    if found["bad"]:
        raise Unreachable("BadStatus", f"the server answered {found['bad']!r}")
    kept = tuple(Kept(target, head, body.encode("latin-1")) for target, head, body in found["kept"])
    return Got(
        found["count"], found["seconds"], found["cpu"], found["size"], found["p50"], found["p99"], usage, kept
    )


class _Connection(asyncio.Protocol):
    """One connection that always has *in_flight* requests under way."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._buffer = bytearray()
        self._sent: list[tuple[str, float]] = []
        self._body_at = self._end = 0
        self._write: Callable[[bytes], None]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._write = transport.write  # type: ignore[attr-defined]

    def begin(self) -> None:
        for _ in range(self._run.in_flight):
            self._ask()

    def _ask(self) -> None:
        target, request = next(self._run.requests)
        self._sent.append((target, time.perf_counter()))
        self._write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while self._sent and self._whole():
            target, since = self._sent.pop(0)
            self._run.took(target, since, self._buffer, self._body_at, self._end)
            del self._buffer[: self._end]
            self._end = 0
            if not self._run.over.done():
                self._ask()

    def _whole(self) -> bool:
        """Whether the next answer is there to its end."""
        if not self._end:
            at = self._buffer.find(b"\r\n\r\n")
            if at < 0:
                return False
            head = bytes(self._buffer[:at]).lower()
            size = head.partition(b"content-length:")[2].partition(b"\r\n")[0]
            self._body_at = at + 4
            self._end = self._body_at + int(size or b"0")
        return len(self._buffer) >= self._end

    def connection_lost(self, error: Exception | None) -> None:
        if not self._run.over.done():
            self._run.end("the connection was closed")


class _Run:
    def __init__(self, order: dict[str, object]) -> None:
        self.order = order
        self.in_flight = int(order["in_flight"])  # type: ignore[call-overload]
        lines = "\r\n".join([f"Host: {order['host']}", *order["headers"]])  # type: ignore[misc]
        self.requests = itertools.cycle([
            (target, f"GET {target} HTTP/1.1\r\n{lines}\r\n\r\n".encode("latin-1"))
            for target in order["targets"]  # type: ignore[attr-defined]
        ])
        self.times: list[float] = []
        self.kept: list[tuple[str, str, str]] = []
        self.size = 0
        self.bad = ""
        self.over: asyncio.Future[None]

    def took(self, target: str, since: float, buffer: bytearray, body_at: int, end: int) -> None:
        self.times.append(time.perf_counter() - since)
        self.size += end - body_at
        if buffer[9:12] != b"200":
            self.end(bytes(buffer[: min(end, 200)]).decode("latin-1"))
        elif len(self.times) % KEEP_EVERY == 1 and len(self.kept) < KEEP_MOST:
            head, body = bytes(buffer[: body_at - 4]), bytes(buffer[body_at:end])
            self.kept.append((target, head.decode("latin-1"), body.decode("latin-1")))

    def end(self, why: str = "") -> None:
        self.bad = self.bad or why
        if not self.over.done():
            self.over.set_result(None)

    async def run(self) -> dict[str, object]:
        loop = asyncio.get_running_loop()
        self.over = loop.create_future()
        opened = [
            (await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self.order["port"]))[1]
            for _ in range(self.order["connections"])  # type: ignore[call-overload]
        ]
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        begin, used = time.perf_counter(), time.process_time()
        loop.call_later(self.order["seconds"], self.end)  # type: ignore[arg-type]
        for connection in opened:
            connection.begin()
        await self.over
        seconds, cpu, times = time.perf_counter() - begin, time.process_time() - used, self.times or [0.0]
        return {
            "count": len(self.times), "seconds": seconds, "cpu": cpu, "size": self.size, "bad": self.bad,
            "p50": percentile(times, 0.5) * 1000, "p99": percentile(times, 0.99) * 1000, "kept": self.kept,
        }


def main(arguments: list[str]) -> int:
    run = _Run(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    print(json.dumps(asyncio.run(run.run())), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
