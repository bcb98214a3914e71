"""``python -m tests.faults.witnessed``: every call with which a witness changes a file, made to go wrong in every way.

Two stories are told to a witness in a process of its own: what it does all day (it cosigns, keeps evidence, retires a
key), and the migration of an older database. They are told once to count the calls; then again for each call and each
way in which it can go wrong: it fails, it is done and said to have failed, half of it is done, the process dies before
it, the power does, and whatever was not synced is lost. Then the witness is started again on what is left, and a log
that forked tries to have the other branch cosigned. Judged is by what was answered alone:

* no two cosignatures contradict each other, before and after;
* what was cosigned, convicted or retired, and answered for, is on record after the restart;
* after a write whose outcome is unknown the process answers nothing but 503;
* nothing fails without a code, and the honest branch, if it is the one on record, goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ktlog.errors import KtlogError, StoreError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from tests.faults import vfs
from tests.faults.calls import Calls
from tests.faults.plan import WRITES, Fault
from tests.witness_log import NOW, Log
from tests.witness_site import NAME
from witness.config import WitnessDir
from witness.keys import derive_signers, write_keys
from witness.store import WitnessStore, hash_origin
from witness.witness import Witness

ROOT = Path(__file__).resolve().parents[2]
FORKED = b"\x2a" * 32
LOG, SECOND = Log(algorithms=(1,)), Log("second.example", seed=3, algorithms=(1,))
NEXT = Log(seed=2, algorithms=(1,))


class Branch(Log):
    """As LOG up to five leaves, and another after that."""

    def _reader(self, tree_size: int):
        from ktlog.tlog.tree import hash_leaf, leaf_reader

        return leaf_reader([
            hash_leaf((self.prefix if index < 5 else b"branch") + b" %d" % index) for index in range(tree_size)
        ])


BRANCH = Branch(algorithms=(1,))
BRANCH_BY_BOTH = Branch(algorithms=(1,))
BRANCH_BY_BOTH.signers = (*LOG.signers, *NEXT.signers)


@dataclass(frozen=True)
class Step:
    """name: for the report. body: of a submission; empty for something else that *do* does to the witness."""

    name: str
    body: bytes = b""
    do: Callable[[Witness], object] | None = None
    trees: tuple[str, int, bytes] | None = None
    """Origin, size and root of what is cosigned if the answer is 200."""


def submit(name: str, log: Log, old: int, new: int, **more: object) -> Step:
    return Step(name, log.submission(old, new, **more), trees=(log.origin, new, more.get("root") or log.root(new)))


def retire(witness: Witness) -> object:
    return witness.store.retire_keys([(LOG.origin, LOG.vkeys[0])], NOW, "")


DAILY = (
    submit("growth", LOG, 5, 7), submit("the same again", LOG, 7, 7), submit("first contact", SECOND, 0, 2),
    submit("fork", SECOND, 2, 2, root=FORKED), Step("retire", do=retire), submit("under the new key", NEXT, 7, 9),
    submit("more", NEXT, 9, 11),
)
MIGRATION = (submit("growth", LOG, 5, 7), submit("more", LOG, 7, 9))


@dataclass
class Story:
    """A prepared directory, and what is then done in it."""

    name: str
    directory: Path
    steps: tuple[Step, ...]
    attack: tuple[Step, ...] = ()
    counts: Counter[str] = field(default_factory=Counter)
    """How often the story calls what on which kind of file."""


def make_daily(path: Path) -> Story:
    directory = _empty(path)
    WitnessStore.create(directory.database, NAME, [one.vkey for one in derive_signers(bytes(32), NAME)], NOW).close()
    witness = open_witness(directory)
    for log in (LOG, SECOND):
        witness.store.add_log(log.origin, log.vkeys, NOW)
    witness.store.add_log(NEXT.origin, NEXT.vkeys, NOW)
    if witness.add_checkpoint(LOG.submission(0, 5)).status != 200:
        raise SystemExit("the witness does not cosign")
    witness.store.close()
    return Story("daily", path, DAILY, (submit("the other branch", BRANCH_BY_BOTH, 5, 8),))


def make_migration(path: Path) -> Story:
    directory = _empty(path)
    database = sqlite3.connect(directory.database)
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript((ROOT / "tests/witness_schemas/2.sql").read_text())
    database.close()
    store = WitnessStore.open(directory.database, read_only=True)
    from witness.mark import write_mark

    write_mark(directory.mark, store.vkeys, store.count_writes())
    store.close()
    return Story("migration", path, MIGRATION, (submit("the other branch", BRANCH, 5, 8),))


def _empty(path: Path) -> WitnessDir:
    directory = WitnessDir(path)
    directory.make()
    write_keys(directory, bytes(32), NAME)
    return directory


def open_witness(directory: WitnessDir) -> Witness:
    store = WitnessStore.open(directory.database)
    try:
        store.keep_mark(directory.mark)
    except BaseException:
        store.close()
        raise
    return Witness(store, derive_signers(bytes(32), NAME), clock=lambda: NOW)


# --- one process

@dataclass
class Told:
    """What a process said before it ended: answers by step, in order; the fault; the exit code."""

    answers: list[dict] = field(default_factory=list)
    started: str = ""
    fault: bool = False
    cut: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    code: int | None = None


def run(directory: Path, steps: Sequence[Step], faults: Sequence[Fault] = (), after: Path | None = None, *, count=False) -> Told:
    """Fork a witness on *directory*, tell it *steps*, and listen until it is gone."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            os.close(read)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            _child(directory, steps, faults, after, write, count)
            code = 0
        except BaseException:
            _say(write, {"traceback": traceback.format_exc()})
        finally:
            os._exit(code)
    os.close(write)
    told = Told()
    with os.fdopen(read, "rb") as said:
        for line in said:
            one = json.loads(line)
            told.fault |= "fault" in one
            told.cut |= "cut" in one
            if "counts" in one:
                told.counts = Counter(one["counts"])
            elif "started" in one:
                told.started = one["started"]
            elif "step" in one or "traceback" in one:
                told.answers.append(one)
    told.code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return told


def _say(handle: int, what: dict) -> None:
    from tests.faults.calls import real

    real["write"](handle, json.dumps(what).encode() + b"\n")


def _child(
    directory: Path, steps: Sequence[Step], faults: Sequence[Fault], after: Path | None, report: int, count: bool
) -> None:
    import logging

    logging.disable(logging.CRITICAL)
    calls = Calls(directory, faults, report, after)
    if faults or count:
        calls.install()
        vfs.install(calls)
    try:
        witness = open_witness(WitnessDir(directory))
    except KtlogError as error:
        _say(report, {"started": error.name})
        return
    _say(report, {"started": "yes"})
    for number, step in enumerate(steps):
        if step.do is not None:
            try:
                step.do(witness)
                status, reason = 200, ""
            except KtlogError as error:
                status, reason = 503, error.name
        else:
            answer = witness.add_checkpoint(step.body)
            status, reason = answer.status, answer.reason
        _say(report, {"step": number, "status": status, "reason": reason})
    if count:
        calls.tell_counts()
    witness.store.close()


# --- judging

def judge(story: Story, directory: Path, first: Told, second: Told | None) -> list[str]:
    """What is wrong, in sentences. second: the process that was started on what the fault left."""
    wrong = [one["traceback"] for told in (first, second) if told for one in told.answers if "traceback" in one]
    if second is None:
        return wrong
    if second.started != "yes":
        return [*wrong, f"does not start again: {second.started}"]
    cosigned: dict[str, set[tuple[int, bytes]]] = defaultdict(set)
    poisoned = False
    answered: set[str] = set()
    for told, steps in ((first, story.steps), (second, (*story.attack, *_going_on(story)))):
        for one in told.answers:
            if "step" not in one:
                continue
            step = steps[one["step"]]
            if told is first and poisoned and one["status"] not in (503,):
                wrong.append(f"answered {one['status']} to {step.name!r} after a write whose outcome is unknown")
            if told is first:
                poisoned |= one["reason"] == "Poisoned"
                answered |= {step.name} if one["status"] in (200, 422) else set()
            if one["status"] == 200 and step.trees is not None:
                cosigned[step.trees[0]].add(step.trees[1:])
            elif one["status"] not in (200, 403, 409, 422) and told is second:
                wrong.append(f"answers {one['status']} {one['reason']} to {step.name!r} after the restart")
    wrong += _two_histories(cosigned)
    return [*wrong, *_off_record(story, directory, first, answered)]


def _two_histories(cosigned: dict[str, set[tuple[int, bytes]]]) -> Iterator[str]:
    for origin, trees in cosigned.items():
        branches = [LOG, BRANCH] if origin == LOG.origin else [SECOND]
        if not any(all(branch.root(size) == root for size, root in trees) for branch in branches):
            yield f"two histories of {origin}: sizes {sorted(size for size, _ in trees)}"


def _off_record(story: Story, directory: Path, first: Told, answered: set[str]) -> Iterator[str]:
    store = WitnessStore.open(WitnessDir(directory).database, read_only=True)
    try:
        for one in first.answers:
            step = story.steps[one["step"]] if "step" in one else None
            if step is None or one["status"] != 200 or step.trees is None:
                continue
            note = store.cosigned_note(hash_origin(step.trees[0]))
            size = -1 if note is None else parse_signed_checkpoint(note)[1].size
            if size < step.trees[1]:
                yield f"{step.name!r} was answered, and {size} is on record"
        if "fork" in answered and store.count_evidence() != 1:
            yield "evidence was answered for, and is not on record"
        if "retire" in answered and store.log(LOG.origin).retired != LOG.vkeys:
            yield "a key was said to be retired, and is trusted"
        if not any("step" in one for one in first.answers) and store.log(LOG.origin).latest.checkpoint.size < 5:
            yield "what was there before is not on record"
    finally:
        store.close()


def _going_on(story: Story) -> tuple[Step, ...]:
    """After the attack: the honest branch, from wherever it is."""
    by = LOG if story.name == "migration" else NEXT
    both = Log(algorithms=(1,))
    both.signers = LOG.signers + (NEXT.signers if by is NEXT else ())
    return tuple(submit(f"on from {old}", both, old, 12) for old in (5, 7, 9, 11))


# --- what goes wrong

def faults_of(story: Story) -> Iterator[tuple[str, Fault]]:
    """The name of the row, and the fault."""
    for key, count in sorted(story.counts.items()):
        call, _, kind = key.partition(" ")
        if call == "*":
            continue
        for number in range(1, count + 1):
            ways = ["fail", "done", *(("short", "torn") if call in WRITES else ())]
            if call == "db.write":
                ways.remove("short")  # to SQLite it is a torn one
            for mode in ways:
                yield "a call fails", Fault(call, kind, number, mode)
            yield "every call fails from one on", Fault(call, kind, number, "fail", "EIO", lasting=True)
            yield "no space from one call on", Fault(call, kind, number, "fail", "ENOSPC", lasting=True)
            yield "a call fails and the next one too", Fault(call, kind, number, "fail", also="done")
            yield "kill -9 before a call", Fault(call, kind, number, "kill")
            for drop in range(2):
                yield "power cut before a call", Fault(call, kind, number, "cut", drop=drop)


def play(story: Story, fault: Fault, place: Path) -> tuple[str, list[str]]:
    """What came of it: "recovered", "missed"; and what is wrong."""
    directory, after = place / "w", place / "after"
    shutil.copytree(story.directory, directory)
    cutting = fault.mode == "cut"
    first = run(directory, story.steps, [fault], after if cutting else None)
    if not first.fault:
        return "missed", judge(story, directory, first, None)
    left = after if first.cut else directory
    second = run(left, (*story.attack, *_going_on(story)))
    return "recovered", judge(story, left, first, second)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="tests.faults.witnessed")
    parser.add_argument("--share", type=int, default=1, help="play one fault in so many, drawn by the seed")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="of the rows, those whose name has this in it; stop at a violation")
    parser.add_argument("--sabotage", choices=sorted(SABOTAGES), help="break the product first; the harness must notice")
    options = parser.parse_args(arguments)
    if options.sabotage:
        SABOTAGES[options.sabotage]()
    draw = random.Random(options.seed)
    table: dict[str, Counter[str]] = defaultdict(Counter)
    violations: list[str] = []
    # Syncing costs nothing there, and what was synced is the model's to know.
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(prefix="ktlog-witnessed-", dir=memory) as scratch:
        for make in (make_daily, make_migration):
            story = make(Path(scratch) / make.__name__)
            counted = Path(scratch) / "counted"
            shutil.copytree(story.directory, counted)
            told = run(counted, story.steps, count=True)
            shutil.rmtree(counted)
            if told.code or any(one.get("status") not in (200, 422) for one in told.answers):
                print(told, file=sys.stderr)
                return 2
            story.counts = told.counts
            for row, fault in faults_of(story):
                if draw.randrange(options.share) or options.only not in row or (options.only and violations):
                    continue
                place = Path(tempfile.mkdtemp(dir=scratch))
                result, wrong = play(story, fault, place)
                shutil.rmtree(place, ignore_errors=True)
                table[f"{row}"]["VIOLATED" if wrong else result] += 1
                violations += [f"{story.name}: {fault}: {one}" for one in wrong]
    for one in violations[:20]:
        print(one, file=sys.stderr)
    print(json.dumps({"table": table, "violations": violations}))
    return 1 if violations else 0


# --- that the harness notices

def _answers_anyway() -> None:
    """Also when the commit failed."""
    record = WitnessStore.record_checkpoint

    def careless(self: WitnessStore, cosigned, key_changes=None) -> None:
        with suppress(StoreError):
            record(self, cosigned, key_changes)

    WitnessStore.record_checkpoint = careless


def _no_sync() -> None:
    from ktlog import sqlitefile

    real = sqlitefile.open_database

    def unsynced(*arguments, **options):
        connection = real(*arguments, **options)
        connection.execute("PRAGMA synchronous=OFF")
        return connection

    sqlitefile.open_database = unsynced


def _not_poisoned() -> None:
    WitnessStore.refuse_poisoned = lambda self: None


SABOTAGES: dict[str, Callable[[], None]] = {
    "answers although the commit failed": _answers_anyway, "no fsync of commits": _no_sync, "goes on after a failed commit": _not_poisoned,
}


if __name__ == "__main__":
    sys.exit(main())
