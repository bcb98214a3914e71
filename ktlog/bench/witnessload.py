"""The logs of ``ktlog bench witness``, and those who mean harm beside them, in a process of their own.

    python -m ktlog.bench.witnessload < PLAN

PLAN is one JSON object (:class:`Plan`); so is what it prints. Each request has a connection of its own, which is how a
proxy in front of a witness hands them on unless it is told otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field

ANSWER_SECONDS = 60.0
IDLE = 500
PIPELINED = 1000
CONNECTS = 200
"""Connections being made at one time: fewer than wait at a listening socket."""


@dataclass(frozen=True)
class Plan:
    """requests: of each log, one after the other's answer. rate: of all together, a second; 0: as fast as they answer.

    empty: requests for nothing instead, so many. hostile: beside them, ten senders each of slow bodies and slow heads,
    IDLE connections of which nothing comes, ten pipelines of which no answer is read, and four that send rubbish.
    """

    port: int
    requests: list[list[str]] = field(default_factory=list)
    rate: float = 0.0
    empty: int = 0
    at_once: int = 1000
    hostile: bool = False


def post(body: bytes, *headers: str) -> bytes:
    """The whole request."""
    lines = ("POST /add-checkpoint HTTP/1.1", "Host: w", "Connection: close", f"Content-Length: {len(body)}", *headers)
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


class Load:
    """Sends, and remembers what came back and when."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._connecting = asyncio.Semaphore(CONNECTS)
        self.statuses: Counter[str] = Counter()
        self.seconds: list[float] = []
        self.hostile: Counter[str] = Counter()

    async def run(self) -> None:
        plan = self._plan
        body = post(b"old 0\n\n" + b"x" * 1000)
        bad = [asyncio.create_task(self._slow("slow body", body[:-1000])) for _ in range(10 * plan.hostile)]
        bad += [asyncio.create_task(self._slow("slow head", body[:60])) for _ in range(10 * plan.hostile)]
        bad += [asyncio.create_task(self._held("idle", b"")) for _ in range(IDLE * plan.hostile)]
        deaf = b"GET / HTTP/1.1\r\nHost: w\r\n\r\n" * PIPELINED
        bad += [asyncio.create_task(self._held("deaf", deaf)) for _ in range(10 * plan.hostile)]
        bad += [asyncio.create_task(self._rubbish()) for _ in range(4 * plan.hostile)]
        if plan.empty:
            shares = [plan.empty // plan.at_once] * plan.at_once
            await asyncio.gather(*(self._in_turn([b"GET /livez HTTP/1.1\r\nHost: w\r\nConnection: close\r\n\r\n"] * n)
                                   for n in shares))
        elif plan.rate:
            await self._paced([post(request.encode()) for log in plan.requests for request in log])
        else:
            await asyncio.gather(*(self._in_turn([post(r.encode()) for r in log]) for log in plan.requests))
        for task in bad:
            task.cancel()
        await asyncio.gather(*bad, return_exceptions=True)

    async def _in_turn(self, requests: list[bytes]) -> None:
        for request in requests:
            await self._timed(request, time.perf_counter())

    async def _paced(self, requests: list[bytes]) -> None:
        """Each when it is due, whether or not those before it are answered; what is late counts as waiting."""
        began, tasks = time.perf_counter(), []
        for number, request in enumerate(requests):
            due = began + number / self._plan.rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(self._timed(request, due)))
        await asyncio.gather(*tasks)

    async def _timed(self, request: bytes, began: float) -> None:
        status = await self._exchange(request)
        self.statuses[status] += 1
        self.seconds.append(time.perf_counter() - began)

    async def _exchange(self, request: bytes) -> str:
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                async with self._connecting:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._plan.port)
                try:
                    writer.write(request)
                    answer = await reader.read()
                finally:
                    writer.close()
        except (OSError, TimeoutError) as error:
            return type(error).__name__
        return answer[9:12].decode("latin-1") or "no answer"

    async def _held(self, kind: str, sent: bytes) -> None:
        """A connection that is held, and made anew when the witness ends it; nothing is read from it."""
        while True:
            with contextlib.suppress(OSError):
                async with self._connecting:
                    reader, writer = await asyncio.open_connection("127.0.0.1", self._plan.port, limit=1)
                self.hostile[kind] += 1
                writer.write(sent)
                await (reader.read() if not sent else asyncio.sleep(ANSWER_SECONDS))
            await asyncio.sleep(0.1)

    async def _slow(self, kind: str, sent: bytes) -> None:
        """After *sent*, a byte comes each tenth of a second."""
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self._plan.port)
                writer.write(sent)
                self.hostile[kind] += 1
                for _ in range(1000):
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.1)

    async def _rubbish(self) -> None:
        """Ten a second from each: a body over the limit, 64 proof lines, a gzip bomb, an unknown log."""
        proof = ("A" * 43 + "=\n") * 64
        bomb = gzip.compress(bytes(100 << 20))
        known = self._plan.requests[0][0].partition("\n\n")[2]
        kinds = (post(b"x" * (4 << 20)), post(f"old 1\n{proof}\n{known}".encode()),
                 post(bomb, "Content-Encoding: gzip"), post(b"old 0\n\nno.such.log\n1\n" + known.encode()[-300:]))
        for request in itertools.cycle(kinds):
            self.hostile[await self._exchange(request)] += 1
            await asyncio.sleep(0.1)


async def _main(plan: Plan) -> dict[str, object]:
    load = Load(plan)
    began = time.perf_counter()
    await load.run()
    return {
        "took": time.perf_counter() - began, "statuses": load.statuses, "seconds": load.seconds,
        "hostile": load.hostile,
    }


def format_plan(plan: Plan) -> bytes:
    return json.dumps(asdict(plan)).encode()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_main(Plan(**json.load(sys.stdin))))))
