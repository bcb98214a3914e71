"""Raw appends on PostgreSQL: two front ends, one sequencer, each a process of its own, the queue in the database.

    python -m ktlog.bench.pglog sequencer URL DIR
    python -m ktlog.bench.pglog front URL SIZE IN_FLIGHT

Each says ``ready``. A front end appends as many entries as each line of its input says, and prints what came of them;
both end with their input.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from array import array
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from ktlog.bench.logs import Entries, check_numbers, marks_of, raw_settings
from ktlog.bench.rawlog import Writer
from ktlog.bench.row import Row, cpu_rows, percentile
from ktlog.bench.usage import cpu_seconds, peak
from ktlog.config import Settings
from ktlog.errors import StoreError, Unreachable
from ktlog.operator.sequencer import BATCH_LIMIT
from ktlog.operator.stores import database_url

FRONTS = 2
IN_FLIGHT = 128
"""Entries of a front end that are under way at a time."""
RATE_GOAL = 2_500.0
WINDOW = 20_000
ANSWER_SECONDS = 60.0


@dataclass
class _Ticket:
    frame: bytes
    done: threading.Event = field(default_factory=threading.Event)
    index: int = -1

    def answer(self) -> bytes:
        return b"%d" % self.index


def sequence(settings: Settings) -> None:
    """Be the sequencer until the input ends."""
    from ktlog.operator.pgdoor import PgDoor

    writer, waiting, stop = Writer(settings), queue.SimpleQueue(), threading.Event()

    def hand_in(frame: bytes) -> _Ticket:
        ticket = _Ticket(frame)
        waiting.put(ticket)
        return ticket

    def publish() -> None:
        while not stop.wait(settings.checkpoint_interval_ms / 1000):
            writer.publish()

    door = PgDoor(
        _url(settings), hand_in, in_flight=2 * BATCH_LIMIT, epoch=writer.epoch, failed=lambda: os._exit(70)
    )
    door.open()
    threading.Thread(target=publish, daemon=True).start()
    threading.Thread(target=lambda: (sys.stdin.read(), stop.set()), daemon=True).start()
    print("ready", flush=True)
    while not stop.is_set():
        with contextlib.suppress(queue.Empty):
            batch = [waiting.get(timeout=0.2)]
            while len(batch) < BATCH_LIMIT and not waiting.empty():
                batch.append(waiting.get())
            for ticket, index in zip(batch, writer.commit([ticket.frame for ticket in batch]), strict=True):
                ticket.index = index
                ticket.done.set()
    print(json.dumps({"batches": writer.batches}), flush=True)
    # The door's threads may wait for the server; nothing that was answered is theirs to finish.
    os._exit(0)


def front(url: str, size: int, in_flight: int) -> None:
    """Be a front end until the input ends."""
    from ktlog.operator.courier import Courier

    courier, entry, number = Courier(url, limit=2 * in_flight), Entries(size, os.getpid()), 0
    print("ready", flush=True)
    for line in sys.stdin:
        first, end, under_way = number, number + int(line), deque()
        times, indexes, used = [], [], time.process_time()
        while number < end or under_way:
            while number < end and len(under_way) < in_flight:
                under_way.append((time.perf_counter(), courier.send(entry(number))))
                number += 1
            started, parcel = under_way.popleft()
            if not parcel.done.wait(ANSWER_SECONDS) or parcel.answer is None:
                raise StoreError("NoAnswer", "the sequencer does not answer")
            times.append((time.perf_counter() - started) * 1000)
            indexes.append(int(parcel.answer))
        used = time.process_time() - used
        print(json.dumps({"cpu": used, "times": times, "first": first, "indexes": indexes}), flush=True)
    os._exit(0)


def _url(settings: Settings) -> str:
    url = database_url(settings)
    if url is None:
        raise StoreError("NoDatabase", "these settings name no database")
    return url


# The measurement


def measure_postgres(settings: Settings, entries: int, size: int) -> list[Row]:
    """Every row of the table, for appending *entries* of *size* bytes to an empty log.

    What the database server itself uses is not in the CPU time, and not what it writes.

    Raises:
        StoreError: ``AckLost``; Unreachable: ``NoGenerator``, a process did not start or ended.
    """
    url, rows = _url(settings), []
    numbers: dict[int, int] = {}
    """By index: the number of the entry, and whose it is."""
    with contextlib.ExitStack() as stack:
        sequencer = stack.enter_context(_running("sequencer", settings.store or settings.store_file, settings))
        fronts = [
            stack.enter_context(_running("front", url, None, str(size), str(IN_FLIGHT))) for _ in range(FRONTS)
        ]
        window, done = min(WINDOW, max(FRONTS, entries // 5)), 0
        for mark in marks_of(entries):
            _round(fronts, mark - done, numbers)
            used = cpu_seconds(sequencer.pid)
            started = time.perf_counter()
            answers = _round(fronts, window, numbers)
            seconds = time.perf_counter() - started
            done = mark + window
            times = [spent for answer in answers for spent in answer["times"]]
            at = f"PostgreSQL, at {mark:,}"
            rows += [
                Row(f"appends, {at}", len(times) / seconds, "/s", RATE_GOAL, at_least=True),
                Row(f"an append, {at}, p50", percentile(times, 0.5), "ms", None),
                Row(f"an append, {at}, p99", percentile(times, 0.99), "ms", None),
                *cpu_rows(at, {
                    "sequencer": cpu_seconds(sequencer.pid) - used, "front ends": sum(one["cpu"] for one in answers),
                }, len(times)),
            ]
        rows.append(Row("memory of the sequencer, at most", peak(sequencer.pid) / 2**20, "MiB", None))
        checked = _check(settings, size, numbers, [process.pid for process in fronts])
    return [*rows, Row("acknowledged entries read back and compared", checked, "", None)]


def _round(fronts: list[subprocess.Popen[str]], count: int, numbers: dict[int, int]) -> list[dict[str, Any]]:
    """Have *count* entries appended, by all front ends at once; what they got is added to *numbers*."""
    answers = []
    for place, process in enumerate(fronts):
        _input(process).write(f"{count // FRONTS + (place < count % FRONTS)}\n")
        _input(process).flush()
    for place, process in enumerate(fronts):
        line = process.stdout.readline() if process.stdout else ""
        if not line:
            raise Unreachable("NoGenerator", "a front end ended too early; its reason is above")
        answers.append(json.loads(line))
        for number, index in enumerate(answers[-1]["indexes"], answers[-1]["first"]):
            if index in numbers:
                raise StoreError("AckLost", f"entry {index} was acknowledged twice")
            numbers[index] = number * FRONTS + place
    return answers


def _check(settings: Settings, size: int, numbers: dict[int, int], pids: list[int]) -> int:
    made = [Entries(size, pid) for pid in pids]
    by_index = array("q", [-1]) * (max(numbers) + 1)
    for index, number in numbers.items():
        by_index[index] = number
    return check_numbers(settings, by_index, lambda both: made[both % FRONTS](both // FRONTS), 0)


def _input(process: subprocess.Popen[str]) -> TextIO:
    if process.stdin is None:
        raise Unreachable("NoGenerator", "a process was started without a pipe")
    return process.stdin


@contextlib.contextmanager
def _running(kind: str, url: str, settings: Settings | None, *words: str) -> Iterator[subprocess.Popen[str]]:
    place = [] if settings is None else [str(settings.directory)]
    command = [sys.executable, "-m", "ktlog.bench.pglog", kind, url, *place, *words]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            if process.stdout is None or process.stdout.readline() != "ready\n":
                raise Unreachable("NoGenerator", f"the {kind} did not start; its reason is above")
            yield process
        finally:
            process.kill()


def main(arguments: list[str]) -> int:
    kind, url, *words = arguments
    if kind == "sequencer":
        sequence(raw_settings(Path(words[0]), store=url))
    else:
        front(url, int(words[0]), int(words[1]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
