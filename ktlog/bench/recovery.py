"""What a crash costs: every process of a log under load gets SIGKILL, and the log is started again.

Two moments count from the command on: the first answer to a read, and the first message that is durable. Whatever was
acknowledged before and after must be in the log.
"""

from __future__ import annotations

import http.client
import secrets
import socket
import time
from contextlib import closing
from urllib.parse import quote

from ktlog.bench.acks import check_acks
from ktlog.bench.load import Answer, Plan, read_answer
from ktlog.bench.messages import AHEAD_SECONDS, Prepared, prepare, request_of, sign_all
from ktlog.bench.names import actor_name
from ktlog.bench.row import Row, percentile
from ktlog.bench.stage import WORKERS, Stage, stage
from ktlog.config import Settings
from ktlog.errors import Unreachable
from ktlog.operator.stores import open_log

GOAL = 5.0
CLIENTS = 12
LOOK_SECONDS = 0.01
LATEST_SECONDS = 120.0


def measure_recover(settings: Settings, messages: int) -> tuple[float, list[Row]]:
    """Seconds until the next durable append, and every row, for a log that ``ktlog.bench.mapped.build`` made.

    Args:
        messages: that are sent before the crash, which comes when about half of them are answered.

    Raises:
        Unreachable: the log does not come back. StoreError: ``AckLost``, and those of the stores.
    """
    count = messages + 1
    groups = prepare(settings, count + count // 15 + 2, secrets.token_hex(4), int(time.time()))
    firsts = [group[0] for group in groups]
    later = [group[turn] for turn in range(1, max(map(len, groups))) for group in groups if turn < len(group)]
    with stage(settings) as on:
        enrolled = _enrol(on, firsts)
        acks = _crash(on, later[:messages])
        started = time.perf_counter()
        on.start()
        read = _first_read(on, started)
        append, answer = _first_append(on, later[messages], started)
        usage, peak = on.server.usage(), max(on.server.peaks())
        checked = check_acks(settings, [*enrolled, *acks, answer])
    accepted = [answer for answer, _ in acks if answer.status == 202]
    if not accepted:
        raise Unreachable("NothingAccepted", "no message was accepted before the crash")
    times = [answer.seconds * 1000 for answer in accepted]
    begin, end = min(one.start for one in accepted), max(one.start + one.seconds for one in accepted)
    return append, [
        Row("acknowledged under load before the crash", len(accepted), "", None),
        Row("the same, a second", len(accepted) / (end - begin), "/s", None),
        Row("answer before the crash, p50", percentile(times, 0.5), "ms", None),
        Row("answer before the crash, p99", percentile(times, 0.99), "ms", None),
        Row("restart until a lookup is answered", read, "s", None),
        Row("restart until the next message is durable", append, "s", GOAL),
        Row("CPU from the restart until then", usage.seconds, "s", None),
        Row("bytes written from the restart until then", usage.written / 2**20, "MiB", None),
        Row("memory of the largest process afterwards", peak / 2**20, "MiB", None),
        Row("acknowledged entries read back and compared", checked, "", None),
    ]


def _enrol(on: Stage, messages: list[Prepared]) -> list[tuple[Answer, bytes]]:
    now = int(time.time())
    plan = Plan(on.port, 2 * WORKERS, workers=on.workers(), pinned=True, again=True)
    loaded = on.load(plan, sign_all(messages, [now + AHEAD_SECONDS - turn for turn in range(24)]))
    return [(answer, messages[answer.number].digest) for answer in loaded.answers]


def _crash(on: Stage, messages: list[Prepared]) -> list[tuple[Answer, bytes]]:
    """Send, and kill the log when about half of it is done; gives what was answered until then."""
    requests = sign_all(messages, [int(time.time()) + AHEAD_SECONDS])

    def kill() -> None:
        # The generator's answers are its own secret until it ends: a moment that the log's work tells is as good.
        late = time.monotonic() + LATEST_SECONDS
        while time.monotonic() < late and _size(on.settings) < target:
            time.sleep(LOOK_SECONDS)
        on.kill()

    target = _size(on.settings) + max(1, len(messages) // 2)
    loaded = on.load(Plan(on.port, CLIENTS), requests, kill)
    return [(answer, messages[answer.number].digest) for answer in loaded.answers]


def _size(settings: Settings) -> int:
    with closing(open_log(settings, read_only=True)) as store:
        return store.state().size


def _first_read(on: Stage, started: float) -> float:
    """Seconds from *started* until a lookup is answered."""
    target = f"/api/actor/{quote(actor_name(0), safe='')}/keys"
    while on.ask(target) != 200:
        if time.perf_counter() - started > LATEST_SECONDS:
            raise Unreachable("NotReady", "no lookup is answered after the restart")
        time.sleep(LOOK_SECONDS)
    return time.perf_counter() - started


def _first_append(on: Stage, message: Prepared, started: float) -> tuple[float, tuple[Answer, bytes]]:
    """Seconds from *started* until *message* is durable, and the answer that says so. Refusals are tried again."""
    created = int(time.time()) + AHEAD_SECONDS
    while True:
        request = request_of(message, created, "2001:db8:ffff::1")
        created -= 1
        begin = time.perf_counter()
        status, body = _exchange(on.port, request)
        if status == 202:
            ended = time.perf_counter()
            return ended - started, (read_answer(0, begin - started, ended - begin, status, body), message.digest)
        if time.perf_counter() - started > LATEST_SECONDS:
            raise Unreachable("NotReady", f"no message is taken after the restart: {status} {body[:200]!r}")
        time.sleep(LOOK_SECONDS)


def _exchange(port: int, request: bytes) -> tuple[int, bytes]:
    """Status and body of the answer to *request*; status 0 without one."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=LATEST_SECONDS) as connection:
            connection.sendall(request)
            response = http.client.HTTPResponse(connection)
            response.begin()
            return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
