"""The ways to be hurt that need nothing from the machine: calls that fail, power cuts, full disks, other writers.

Each kind draws a case from a random generator and plays it on a run. What a case finds is an :class:`Outcome`.
"""

from __future__ import annotations

import random
import re
import shutil
import signal
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ktlog.errors import KtlogError, MessageRejected
from ktlog.store.sqlite import SqliteStore
from tests.faults.check import findings
from tests.faults.judge import judge
from tests.faults.plan import Fault
from tests.faults.site import SECONDS, Base, Run, Stuck
from tests.operator_world import ORIGIN

RESULTS = ("recovered", "refused", "healed", "named", "missed", "VIOLATED")


@dataclass
class Outcome:
    """result: one of RESULTS; "missed" when the fault was not reached. codes: the coded errors that were seen."""

    kind: str
    what: str
    result: str
    why: list[str] = field(default_factory=list)
    codes: list[str] = field(default_factory=list)


@dataclass
class World:
    """What every case draws on. bases: by name. counts: of the calls of a run without a fault, by base.

    prepare: sabotage of the product, for tests of the harness.
    """

    bases: dict[str, Base]
    counts: dict[str, dict[str, int]]
    prepare: Callable[[], None] | None = None


_CODE = re.compile(r"\b([A-Z][a-z]+(?:[A-Z][a-z]+)+|Corrupt|Locked|Refused|Fenced): ")


def codes(run: Run) -> list[str]:
    """The names of the coded errors in what the processes said."""
    return sorted(set(_CODE.findall(run.words())) - {"StoreError"})


def uncoded(run: Run) -> list[str]:
    """Errors that escaped without a code: what ended a traceback and is none of the log's own."""
    found = []
    for part in re.split(r"^(?:INFO|WARNING|ERROR|CRITICAL|ktlog:) ", run.words(), flags=re.MULTILINE):
        if "Traceback" in part:
            last = [line for line in part.splitlines() if re.match(r"[A-Za-z_.]+(:|$)", line)][-1:]
            places = "; ".join(f"{file}:{line}" for file, line in re.findall(r'/(ktlog/\S+)", line (\d+)', part)[-3:])
            found += [f"an error without a code: {line} {places}" for line in last if not line.startswith("ktlog.errors.")]
    return found


class Violated(Exception):
    """A promise was broken before anybody judged."""


# What most cases do


def feed(run: Run, child: object, draw: random.Random, rounds: int) -> None:
    """Send messages, one at a time and in crowds, until they are published, or until the process is dead."""
    for _ in range(rounds):
        crowd = [next(run.bank) for _ in range(draw.choice((1, 1, 3)))]
        run.send(child, *crowd)
        if child.poll() is not None or not run.settle(child, run.size):
            return


def recover(run: Run, world: World) -> None:
    """Start again as the supervisor does; send again what had no answer, and one more; publish; stop in good order.

    Raises:
        Violated: it does not come back by itself, or answers otherwise than before.
    """
    deadline, tries = time.monotonic() + SECONDS, 3
    while tries and time.monotonic() < deadline:
        child, told = run.start(prepare=world.prepare, watch=False), len(run.words())
        if run.pump(child, lambda told=told: run.listens() or "NotCompared" in run.words()[told:]):
            break
        run.wait(child)
        tries -= "Locked" not in run.words()[told:]  # the killed one's signer ends by itself, on a busy machine late
    else:
        raise Violated(f"it does not start again: {codes(run)}")
    if not run.listens():
        raise Violated(f"it has lost what the witness saw: {codes(run)}")
    pending, run.unanswered = run.unanswered, []
    for message in pending:
        if run.send(child, message)[0] is None:
            raise Violated("it does not answer after the fault")
    for ack in run.acks[run.base.size :]:
        again = next((one for one in run.base.bank if one.preimage == ack.preimage), None)
        found = None if again is None else run.send(child, again)[0]
        if again is not None and (found is None or isinstance(found, MessageRejected) or not found.duplicate):
            raise Violated(f"entry {ack.leaf_index} is not known again")
    newest = run.send(child, next(run.bank))[0]
    if newest is None or isinstance(newest, MessageRejected) or newest.duplicate:
        raise Violated(f"no new entry after the fault: {newest}")
    if not run.settle(child, run.size):
        raise Violated(f"it does not publish after the fault: {codes(run)}")
    if run.stop(child) != 0:
        raise Violated("it does not stop in good order")


def closing(run: Run, world: World, outcome: Outcome) -> Outcome:
    """Recover and judge: nothing may be broken, and nothing damaged."""
    try:
        recover(run, world)
        verdict = judge(run)
        outcome.why += verdict.broken + verdict.damage + findings(run)
    except (Violated, Stuck) as error:
        outcome.why.append(str(error))
    outcome.codes = codes(run)
    outcome.why += uncoded(run)
    if outcome.why:
        outcome.result = "VIOLATED"
    return outcome


def play(world: World, base: Base, directory: Path, act: Callable[[Run], Outcome]) -> Outcome:
    """One case on its own copy of *base*."""
    run = Run(base, directory)
    try:
        return act(run)
    except Stuck as error:
        return Outcome("", "", "VIOLATED", [str(error), run.words()[-800:]], codes(run))
    except Exception:
        return Outcome("", "", "VIOLATED", [f"the harness fails: {traceback.format_exc()[-1200:]}"], codes(run))
    finally:
        run.close()


# Calls that fail


def draw_fault(draw: random.Random, counts: dict[str, int], modes: Sequence[str], **more: object) -> Fault:
    """Every file and call is as likely as every other, however often it is called."""
    key = draw.choice(sorted(key for key in counts if key != "* *"))
    call, _, file = key.partition(" ")
    return Fault(
        call, file, draw.randrange(counts[key]) + 1, draw.choice(modes), draw.choice(("EIO", "ENOSPC")), **more
    )


SIGNERS = ("inside", "process", "process")
"""Where the keys are; see ``child.start``."""

MODES = ("fail", "fail", "done", "done", "short", "torn", "kill")


def call_case(world: World, base: str, directory: Path, draw: random.Random, *, name: str, **more: object) -> Outcome:
    fault = draw_fault(draw, world.counts[base], MODES, **more)
    return call_with(world, base, directory, draw, name, fault)


def call_with(
    world: World, base: str, directory: Path, draw: random.Random, name: str, *faults: Fault,
    again: Sequence[Fault] = (),
) -> Outcome:
    """*faults* in one process, *again* in the next one, and then none."""
    what = "; ".join(str(fault) for fault in (*faults, *again))

    signer = draw.choice(SIGNERS)

    def act(run: Run) -> Outcome:
        child = run.start(faults, prepare=world.prepare, signer=signer)
        feed(run, child, draw, 3)
        run.stop(child, draw.choice((signal.SIGTERM, signal.SIGTERM, signal.SIGKILL)))
        if again:
            child = run.start(again, prepare=world.prepare, signer=signer)
            feed(run, child, draw, 1)
            run.stop(child, signal.SIGKILL)
        return closing(run, world, Outcome(name, what, "recovered" if run.faults else "missed"))

    return play(world, world.bases[base], directory, act)


def single(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    return call_case(world, base, directory, draw, name="call")


def every_call(world: World, base: str, _directory: Path) -> list[Fault]:
    """Each call of a run once, failed and failed but done, or killed."""
    return [
        Fault(*key.split(" "), number, mode)
        for key, count in sorted(world.counts[base].items()) if key != "* *"
        for number in range(1, count + 1) for mode in ("fail", "done", "kill")
    ]


def every_pair(world: World, base: str, _directory: Path) -> list[Fault]:
    """Each call of a run with the one after it: each of the two failed, or failed but done."""
    return [
        replace(fault, also=also) for fault in every_call(world, base, _directory) if fault.mode != "kill"
        for also in ("fail", "done")
    ]


def one_pair(world: World, base: str, directory: Path, draw: random.Random, fault: Fault) -> Outcome:
    return call_with(world, base, directory, draw, "pair", fault)


def one_call(world: World, base: str, directory: Path, draw: random.Random, fault: Fault) -> Outcome:
    return call_with(world, base, directory, draw, "call", fault)


def pair(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """Requirement R3: the next call fails too, or one of the next process's start does."""
    if draw.random() < 0.6:
        return call_case(world, base, directory, draw, name="pair", also=draw.choice(("fail", "done", "torn", "kill")))
    counts = world.counts[base]
    first, second = draw_fault(draw, counts, MODES), draw_fault(draw, counts, MODES)
    return call_with(world, base, directory, draw, "pair", first, again=(second,))


def broken(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """The disk breaks and stays so until the next process."""
    fault = draw_fault(draw, world.counts[base], ("fail",), lasting=True)
    return call_with(world, base, directory, draw, "broken", fault)


def full(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """Requirement R4: no space from some call on; the next process finds none either; then there is some."""
    number = draw.randrange(world.counts[base]["* *"]) + 1

    def act(run: Run) -> Outcome:
        with open_reader(run) as store:
            child = run.start([Fault("*", "*", number, "fail", "ENOSPC", lasting=True)], prepare=world.prepare)
            feed(run, child, draw, 3)
            why = unreadable(run, store)
            run.stop(child)
            child = run.start([Fault("*", "*", 1, "fail", "ENOSPC", lasting=True)], prepare=world.prepare)
            run.pump(child, lambda: False, seconds=SHORT) if child.poll() is None else None
            why += unreadable(run, store)
        if not run.faults:
            return closing(run, world, Outcome("full", f"from call {number}", "missed"))
        return closing(run, world, Outcome("full", f"from call {number}", "recovered", why))

    return play(world, world.bases[base], directory, act)


SHORT = 0.5


def open_reader(run: Run) -> SqliteStore:
    """As a web worker has one: opened while the log is well. (A new one would need room for SQLite's index of its WAL.)"""
    store = SqliteStore.open(run.settings.database, origin=ORIGIN, read_only=True)
    store.state()
    return store


def unreadable(run: Run, store: SqliteStore) -> list[str]:
    """What of the published log cannot be read now: reads stay up, whatever becomes of writes."""
    try:
        store.records(0, store.state().size)
        store.actor("https://example.com/users/u0")
        for tiles in (run.settings.tiles, run.settings.map_tiles):
            (tiles / "checkpoint").read_bytes()
    except (KtlogError, OSError) as error:
        return [f"reads failed too: {error}"]
    return []


# Power


def cut(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """Requirement R9: the power goes at some call, perhaps after a sync that failed, and what was not synced is lost."""
    total = world.counts[base]["* *"]
    faults = [Fault("*", "*", draw.randrange(total * 4 // 5) + 1, "cut", drop=draw.randrange(1 << 30))]
    if draw.random() < 0.3:
        syncs = {key: count for key, count in world.counts[base].items() if "sync " in key}
        faults.insert(0, draw_fault(draw, syncs, ("fail",)))
    what = "; ".join(map(str, faults))

    def act(run: Run) -> Outcome:
        child = run.start(faults, after=run.directory / "after", prepare=world.prepare)
        feed(run, child, draw, 3)
        run.stop(child, signal.SIGKILL)
        if run.cut:
            run.after_cut()
        return closing(run, world, Outcome("cut", what, "recovered" if run.cut else "missed"))

    return play(world, world.bases[base], directory, act)


# Another writer


def intruder(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """Two sequencers on one store, the lock taken away: the epoch lets one of them go on, and never both."""

    def act(run: Run) -> Outcome:
        first = run.start(prepare=world.prepare)
        if draw.random() < 0.7:
            feed(run, first, draw, 1)
        old = run.connect(first)
        (run.log / "sequencer.lock").unlink()
        second = run.start(prepare=world.prepare)
        for _ in range(3):
            message = next(run.bank)
            if old is not None and first.poll() is None and draw.random() < 0.5:
                ask(run, first, old, message)
                old = None
            elif second.poll() is None:
                run.send(second, message)
            run.pump(second, lambda: True)
        alive = [one for one in (first, second) if one.poll() is None]
        if draw.random() < 0.5 and len(alive) == 2:
            run.pump(second, lambda: run.shown(run.settings.tiles) >= run.size)
        if old is not None:
            old.close()
        for one in (first, second):
            run.stop(one, draw.choice((signal.SIGTERM, signal.SIGKILL)))
        return closing(run, world, Outcome("two writers", "the lock was removed", "recovered"))

    return play(world, world.bases[base], directory, act)


def ask(run: Run, child: object, connection: object, message: object) -> None:
    """Send over a connection that is open already."""
    from ktlog.operator.link import encode_submission

    data = encode_submission(message)
    try:
        connection.sendall(len(data).to_bytes(4, "big") + data)
    except OSError:
        run.unanswered.append(message)
        return
    run._answer(child, message, connection)


def twins(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """A copied directory runs beside the first: one of them may go on, and nothing of the other is ever signed too."""

    signer = draw.choice(SIGNERS)

    def act(run: Run) -> Outcome:
        copy = Run(run.base, directory.with_name(directory.name + "-copy"))
        copy.witness = run.witness
        try:
            at_once = draw.random() < 0.5
            first = run.start(prepare=world.prepare, signer=signer)
            run.pump(first, run.listens)
            if at_once:
                second = copy.start(prepare=world.prepare, signer=signer)
                run.guests.append(second)
                copy.guests.append(first)
                probe = copy.connect(second)
                if probe is not None:
                    probe.close()
            feed(run, first, draw, 2)
            if not at_once:
                second = copy.start(prepare=world.prepare, signer=signer)
                run.guests.append(second)
                copy.guests.append(first)
            copy.pump(second, lambda: copy.listens() or "NotCompared" in copy.words())
            if copy.listens():
                copy.send(second, next(copy.bank), next(copy.bank))
                with_code = lambda: bool({"WitnessAhead", "NotCompared"} & set(codes(copy)))  # noqa: E731
                copy.pump(second, with_code, seconds=20)
            said = codes(copy)
            copy.stop(second)
            run.stop(first)
            outcome = closing(run, world, Outcome("copied", "at once" if at_once else "later", "refused"))
            outcome.codes = sorted({*outcome.codes, *said})
            return outcome
        finally:
            copy.close()

    return play(world, world.bases[base], directory, act)


def drop_tree(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
