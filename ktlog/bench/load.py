"""The load's generator: sends prepared requests over kept connections, and writes down what comes back.

It runs in a process of its own, which does as little as it can, so that what it costs can be told from the log's cost.

    python -m ktlog.bench.load PLAN

PLAN is a file of :func:`write_plan`. It says ``ready`` when it is connected, begins at the first line on its standard
input, and prints a JSON object at its end; the answers are in PLAN.answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from ktlog.bench.usage import holders
from ktlog.tlog.encoding import decode_base64url

ANSWER_SECONDS = 60.0
CONNECT_TRIES = 400
_LENGTH = 4


@dataclass(frozen=True)
class Plan:
    """How to send. rate: requests a second, however long answers take; 0: each connection's next one after its answer.

    seconds: when to stop, at the latest; 0: when all are sent. workers: the server's processes, which the connections
    are spread over evenly. pinned: every request is sent once over a connection to each of them. again: what was
    refused is sent again, signed anew, when its turn comes.
    """

    port: int
    connections: int
    rate: float = 0.0
    seconds: float = 0.0
    workers: tuple[int, ...] = ()
    pinned: bool = False
    again: bool = False


@dataclass(frozen=True)
class Answer:
    """What came of one try. number: which request. start: seconds after the begin, when it was due.

    status: 0 without an answer. code: the refusal's. leaf, root: of an acceptance, with the entry's SHA-256.
    """

    number: int
    start: float
    seconds: float
    status: int
    code: str = ""
    index: int = -1
    entry: str = ""
    root: str = ""


def write_plan(path: Path, plan: Plan, requests: Sequence[Sequence[bytes]]) -> None:
    """Of each request all its variants, which are good for one try each."""
    with path.open("wb") as file:
        for data in (json.dumps(asdict(plan)).encode(), *(part for request in requests for part in _parts(request))):
            file.write(len(data).to_bytes(_LENGTH, "big") + data)


def _parts(request: Sequence[bytes]) -> list[bytes]:
    return [str(len(request)).encode(), *request]


def read_plan(path: Path) -> tuple[Plan, list[deque[bytes]]]:
    data, at, parts = path.read_bytes(), 0, []
    while at < len(data):
        size = int.from_bytes(data[at : at + _LENGTH], "big")
        parts.append(data[at + _LENGTH : at + _LENGTH + size])
        at += _LENGTH + size
    values = json.loads(parts[0])
    plan, rest, found = Plan(**values | {"workers": tuple(values["workers"])}), deque(parts[1:]), []
    while rest:
        found.append(deque(rest.popleft() for _ in range(int(rest.popleft()))))
    return plan, found


class _Connection:
    """One HTTP/1.1 connection; made anew after a failure."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def open(self) -> int:
        """Connect; gives the client's port."""
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        return self._streams[1].get_extra_info("sockname")[1]

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    async def exchange(self, request: bytes) -> tuple[int, bytes]:
        """Status and body; status 0 when there is no answer."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                if self._streams is None:
                    await self.open()
                reader, writer = self._streams
                writer.write(request)
                head = await reader.readuntil(b"\r\n\r\n")
                lower = head.lower()
                size = int(lower.partition(b"content-length:")[2].partition(b"\r\n")[0])
                body = await reader.readexactly(size)
                if b"connection: close" in lower:
                    self.close()
                return int(head[9:12]), body
        except (OSError, TimeoutError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            self.close()
            return 0, b""


class _Run:
    def __init__(self, plan: Plan, requests: list[deque[bytes]]) -> None:
        self.plan = plan
        self.requests = requests
        self.waiting = deque(range(len(requests)))
        self.answers: list[tuple[int, float, float, int, bytes]] = []
        self.unsent = 0
        self.begin = 0.0
        self.connections: list[_Connection] = []

    async def connect(self) -> None:
        """As many connections as are wanted, the same number to each worker."""
        plan = self.plan
        wanted = {worker: plan.connections // len(plan.workers) for worker in plan.workers}
        lots: dict[int, list[_Connection]] = {worker: [] for worker in plan.workers}
        for _ in range(CONNECT_TRIES if wanted else 0):
            missing = sum(wanted.values()) - sum(map(len, lots.values()))
            if not missing:
                break
            opened = [_Connection(plan.port) for _ in range(missing)]
            ports = [await one.open() for one in opened]
            await asyncio.sleep(0.05)  # until they are accepted
            holding = holders(plan.port, plan.workers)
            for one, port in zip(opened, ports, strict=True):
                lot = lots.get(holding.get(port, 0), [])
                if port in holding and len(lot) < wanted[holding[port]]:
                    lot.append(one)
                else:
                    one.close()
        self.connections = [one for lot in lots.values() for one in lot]
        self.connections += [_Connection(plan.port) for _ in range(plan.connections - len(self.connections))]

    def now(self) -> float:
        return time.perf_counter() - self.begin

    def over(self) -> bool:
        return bool(self.plan.seconds) and self.now() >= self.plan.seconds

    async def send(self, connection: _Connection, number: int, due: float) -> None:
        status, body = await connection.exchange(self.requests[number].popleft())
        self.answers.append((number, due, self.now() - due, status, body))
        if status != 202 and self.plan.again and self.requests[number]:
            self.waiting.append(number)

    async def closed(self, connection: _Connection) -> None:
        while self.waiting and not self.over():
            await self.send(connection, self.waiting.popleft(), self.now())

    async def open_loop(self) -> None:
        """At the rate, whatever comes back: a request that finds no free connection is not sent, and counted."""
        free, tasks, count = deque(self.connections), set(), 0

        async def one(connection: _Connection, number: int, due: float) -> None:
            await self.send(connection, number, due)
            free.append(connection)

        while self.waiting and not self.over():
            due = count / self.plan.rate
            count += 1
            if due > self.now():
                await asyncio.sleep(due - self.now())
            if not free:
                self.unsent += 1
                continue
            task = asyncio.create_task(one(free.popleft(), self.waiting.popleft(), due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.wait(tasks)

    async def twice(self) -> None:
        """Each worker gets every request, as long as there is one left: a worker that is being replaced counts too."""
        share = len(self.connections) // len(self.plan.workers)
        lots = [self.connections[at : at + share] for at in range(0, len(self.connections), share)]
        for lot in lots:
            self.waiting = deque(number for number, left in enumerate(self.requests) if left)
            await asyncio.gather(*(self.closed(connection) for connection in lot))

    async def run(self) -> dict[str, object]:
        await self.connect()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        self.begin, used = time.perf_counter(), cpu_seconds_self()
        if self.plan.pinned:
            await self.twice()
        elif self.plan.rate:
            await self.open_loop()
        else:
            await asyncio.gather(*(self.closed(connection) for connection in self.connections))
        ended = self.now()
        return {"seconds": ended, "cpu": cpu_seconds_self() - used, "unsent": self.unsent}


def cpu_seconds_self() -> float:
    return time.process_time()


def read_answer(number: int, start: float, seconds: float, status: int, body: bytes) -> Answer:
    """What an answer of the inbox says."""
    members: dict[str, object] = {}
    with contextlib.suppress(ValueError):
        found = json.loads(body)
        members = found if isinstance(found, dict) else {}
    if status != 202:
        return Answer(number, start, seconds, status, str(members.get("code", "")))
    entry = sha256(decode_base64url(str(members["merkle-leaf"]))).hexdigest()
    code = "repeated" if members.get("already-processed") else ""
    return Answer(number, start, seconds, status, code, int(members["leaf-index"]), entry, str(members["merkle-root"]))


def main(arguments: list[str]) -> int:
    path = Path(arguments[0])
    run = _Run(*read_plan(path))
    found = asyncio.run(run.run())
    with path.with_suffix(".answers").open("w", encoding="utf-8") as file:
        for answer in run.answers:
            file.write(json.dumps(asdict(read_answer(*answer))) + "\n")
    print(json.dumps(found), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
