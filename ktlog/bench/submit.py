"""AddKey as an instance sends it, over HTTP, until its entry is durable: how many a second, and at what cost.

In the same run, before and after, Argon2id is computed by the server's own function in as many processes and threads as
the server has. Two of them belong to every AddKey, so half of that rate is the limit that the log is held against.
"""

from __future__ import annotations

import math
import os
import secrets
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from ktlog.bench.acks import check_acks, refusals
from ktlog.bench.calibrate import EACH, argon2_alone, argon2_rate
from ktlog.bench.load import Answer, Plan
from ktlog.bench.messages import AHEAD_SECONDS, Prepared, prepare, sign_all
from ktlog.bench.row import GENERATOR, Row, cpu_rows, percentile
from ktlog.bench.stage import WORKERS, Loaded, Stage, stage
from ktlog.bench.usage import counting_syncs
from ktlog.config import Settings
from ktlog.errors import Unreachable
from ktlog.operator.gate import Gate

IDLE = 20
"""Messages that are sent one by one to an idle log."""
SYNCS = 48
"""Messages of the short run in which syncs are counted."""
TRIES = 12
"""Signatures made for each message that may have to be sent again."""
OVERLOAD = 10
OVERLOAD_CONNECTIONS = 400
PUBLISHED_SECONDS = 60.0
ARGON2_GOAL, WITHOUT_GOAL, IDLE_GOAL_MS = 0.80, 350.0, 60.0
OVERLOAD_P99_MS, OVERLOAD_GROWTH, RECOVERY_SECONDS = 5_000.0, 1.25, 5.0
"""Under ten times the load: how long the accepted wait at most, how much larger a process may be after it, and
when a message is taken again."""
SWITCH = "KTLOG_BENCH_WITHOUT_ARGON2"


@dataclass(frozen=True)
class Options:
    """messages: that are timed. argon2: whether commitments are checked. overload: seconds of ten times the load, or 0.

    clients: connections at once; of each worker's 16 threads 12 take messages. calibration: seconds, twice.
    """

    messages: int
    clients: int = 48
    argon2: bool = True
    overload: float = 0.0
    calibration: float = 10.0


@dataclass
class Submitted:
    """rate: messages a second. limit: what Argon2id allows; None where it was left out. numbers: more, for JSON."""

    rate: float
    limit: float | None
    rows: list[Row] = field(default_factory=list)
    numbers: dict[str, object] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return None if self.limit is None else self.rate / self.limit


class _Run:
    """The messages of a run, and what came back."""

    def __init__(self, on: Stage, settings: Settings, groups: Sequence[Sequence[Prepared]]) -> None:
        self.on = on
        self.settings = settings
        self.first = [group[0] for group in groups]
        longest = max(map(len, groups))
        self._rest = [group[turn] for turn in range(1, longest) for group in groups if turn < len(group)]
        self.acks: list[tuple[Answer, bytes]] = []
        self._clock = int(time.time())

    def warm(self) -> None:
        """Enrol every actor, and let each worker look at each actor's document."""
        plan = Plan(self.on.port, 2 * WORKERS, workers=self.on.workers(), pinned=True, again=True)
        loaded = self.send(self.first, plan, tries=2 * TRIES)
        enrolled = {answer.number for answer in loaded.answers if answer.status == 202}
        if len(enrolled) < len(self.first):
            raise Unreachable("NotEnrolled", f"warming up: {dict(refusals(loaded.answers))}")

    def take(self, count: int) -> list[Prepared]:
        taken, self._rest = self._rest[:count], self._rest[count:]
        return taken

    def left(self) -> int:
        return len(self._rest)

    def send(self, messages: Sequence[Prepared], plan: Plan, *, tries: int = 1) -> Loaded:
        created = [int(time.time()) + AHEAD_SECONDS - turn for turn in range(tries)]
        loaded = self.on.load(plan, sign_all(messages, created))
        self.acks += [(answer, messages[answer.number].digest) for answer in loaded.answers]
        return loaded

    def one_by_one(self, count: int) -> Loaded:
        return self.send(self.take(count), Plan(self.on.port, 1))


def measure_submit(settings: Settings, options: Options) -> Submitted:
    """Every row of the table, for a log that ``ktlog.bench.mapped.build`` made. It has more entries afterwards.

    Raises:
        Unreachable: the log does not run, or refuses what it should take. StoreError: ``AckLost`` and the stores'.
    """
    argon2_limit = argon2_rate(WORKERS, slots(), min(2.0, options.calibration)) / EACH if options.overload else 0.0
    extra = int(argon2_limit * options.overload * 1.5)
    now = int(time.time())
    count = IDLE + SYNCS + options.messages + extra + 8
    groups = prepare(settings, count + count // 15, secrets.token_hex(4), now, argon2=options.argon2)
    with stage(settings, {} if options.argon2 else {SWITCH: "true"}) as on:
        run = _Run(on, settings, groups)
        run.warm()
        idle = run.one_by_one(IDLE)
        before = _calibrate(options)
        loaded = run.send(run.take(options.messages), Plan(on.port, options.clients, workers=on.workers()))
        after = _calibrate(options)
        done = _submitted(options, loaded, before, after)
        done.rows += _idle_rows(idle, options)
        done.rows += _cost_rows(loaded) + [_syncs(run, options), _memory(on, "memory of the largest process, at most")]
        if options.overload:
            done.rows += _overload(run, options, max(done.rate, 1.0), done.numbers)
        checked = check_acks(settings, run.acks)
    done.rows.append(Row("acknowledged entries read back and compared", checked, "", None))
    done.numbers["acknowledged"] = checked
    return done


def slots() -> int:
    """Argon2id computations that one web worker does at once: asked of what bounds them there."""
    return Gate.for_threads(Settings.threads, os.cpu_count() or 1).slots


def _calibrate(options: Options) -> float:
    return argon2_rate(WORKERS, slots(), options.calibration) if options.argon2 else 0.0


def _submitted(options: Options, loaded: Loaded, before: float, after: float) -> Submitted:
    refused = refusals(loaded.answers)
    if not loaded.accepted:
        raise Unreachable("NothingAccepted", f"no message was accepted: {dict(refused)}")
    rate = len(loaded.accepted) / loaded.seconds
    limit = (before + after) / 2 / EACH if options.argon2 else None
    done = Submitted(rate, limit, numbers={"refused": refused, "seconds": round(loaded.seconds, 2)})
    if limit is not None:
        processes = f"{WORKERS} processes of {slots()}"
        done.rows += [
            Row(f"Argon2id in {processes}, before", before, "/s", None),
            Row(f"Argon2id in {processes}, after", after, "/s", None),
            Row("AddKey over HTTP, durable", rate, "/s", ARGON2_GOAL, peer=limit, ratio=rate / limit, at_least=True),
        ]
    else:
        done.rows.append(Row("AddKey over HTTP, durable, no Argon2id", rate, "/s", WITHOUT_GOAL, at_least=True))
    times = [answer.seconds * 1000 for answer in loaded.accepted]
    done.rows += [
        Row(f"answer with {options.clients} clients, p50", percentile(times, 0.5), "ms", None),
        Row(f"answer with {options.clients} clients, p99", percentile(times, 0.99), "ms", None),
        Row("refused", sum(refused.values()), "", None),
    ]
    return done


def _idle_rows(idle: Loaded, options: Options) -> list[Row]:
    own = argon2_alone() * 1000 if options.argon2 else 0.0
    took = statistics.median(answer.seconds * 1000 for answer in idle.accepted)
    rows = [Row("answer of an idle log, p50", took, "ms", None)]
    if options.argon2:
        rows.append(Row("Argon2id's own time for it", own, "ms", None))
        rows.append(Row("answer of an idle log beyond Argon2id", took - own, "ms", IDLE_GOAL_MS))
    return rows


def _cost_rows(loaded: Loaded) -> list[Row]:
    count = len(loaded.accepted)
    return [
        *cpu_rows("AddKey", {**loaded.usage.cpu, GENERATOR: loaded.cpu}, count),
        Row("bytes written for an entry, map and all", loaded.usage.written / count / 1024, "KiB", None),
    ]


def _syncs(run: _Run, options: Options) -> Row:
    """Of a short run of its own, since strace slows what it looks at."""
    messages = run.take(SYNCS)
    requests_plan = Plan(run.on.port, options.clients, workers=run.on.workers())
    with counting_syncs(run.on.server.pids()) as syncs:
        loaded = run.send(messages, requests_plan)
    if syncs.value is None:
        return Row("syncs for an entry: not counted without strace", 0, "", None)
    each = syncs.value / max(len(loaded.accepted), 1)
    return Row("syncs for an entry, by strace in a run of its own", each, "", None)


def _memory(on: Stage, work: str) -> Row:
    return Row(work, max(on.server.peaks()) / 2**20, "MiB", None)


def _overload(run: _Run, options: Options, rate: float, numbers: dict[str, object]) -> list[Row]:
    """Ten times what the log takes, at its own pace: requests come whether earlier ones were answered or not."""
    on = run.on
    resident = on.server.resident()
    plan = Plan(
        on.port, OVERLOAD_CONNECTIONS, rate=OVERLOAD * rate, seconds=options.overload, workers=on.workers(), again=True
    )
    loaded = run.send(run.take(max(run.left() - 8, 1)), plan, tries=TRIES)
    afterwards = run.one_by_one(8)
    grown = on.server.resident()
    times = [answer.seconds * 1000 for answer in loaded.accepted]
    drained = max(0.0, loaded.seconds - options.overload)
    first = next((answer.start + answer.seconds for answer in afterwards.accepted), float("inf"))
    numbers["overload-refused"] = refusals(loaded.answers)
    numbers["overload-unsent"] = loaded.unsent
    what = f"{OVERLOAD} times the load"
    return [
        Row(f"{what}: requests a second", len(loaded.answers) / loaded.seconds, "/s", None),
        Row(f"{what}: accepted", len(loaded.accepted) / loaded.seconds, "/s", None),
        Row(f"{what}: p99 of the accepted", percentile(times or [math.inf], 0.99), "ms", OVERLOAD_P99_MS),
        Row(f"{what}: p99 of the refused", percentile(_refused_times(loaded.answers), 0.99), "ms", None),
        *(Row(f"{what}: {name}", number, "", None) for name, number in refusals(loaded.answers).items()),
        Row("largest process before it", resident / 2**20, "MiB", None),
        Row(
            "largest process after it", grown / 2**20, "MiB", OVERLOAD_GROWTH, peer=resident / 2**20,
            ratio=grown / resident,
        ),
        Row("from its end until a message is taken again", drained + first, "s", RECOVERY_SECONDS),
    ]


def _refused_times(answers: Iterable[Answer]) -> list[float]:
    return [answer.seconds * 1000 for answer in answers if answer.status != 202] or [0.0]
