"""``python -m tests.faults --count 500 --seed 1``: draw faults, play them, and tell what became of the log."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.faults import kinds, sabotage
from tests.faults.catalogue import KINDS, Kind
from tests.faults.judge import derive
from tests.faults.kinds import Outcome, World
from tests.faults.site import Run, make_base, make_commitments_quick

BASES = {"narrow": 5, "wide": 253, "lived": 12}
"""People in the prepared logs: with the second, a run goes past the first whole tile; in the third they did more."""

_world: World | None = None
_directory = Path()


def prepare(directory: Path, names: tuple[str, ...], sabotaged: str = "") -> World:
    """Make the logs that every run is copied from, and count the calls of a run in which nothing happens."""
    world = World({}, {}, sabotage.SABOTAGES[sabotaged] if sabotaged else None)
    for name in names:
        base = make_base(directory / name, BASES[name], lived=name == "lived")
        derive(base)
        world.bases[name] = base
        run = Run(base, directory / f"count-{name}")
        child = run.start(count=True, after=run.directory / "after")  # of the product as it is
        kinds.feed(run, child, random.Random(0), 3)
        if run.stop(child) != 0:
            raise SystemExit(f"the log does not run without a fault:\n{run.words()}")
        world.counts[name] = run.counts
        run.close()
    return world


@dataclass(frozen=True)
class Job:
    """One run. base: its name, drawn from the seed where it is empty. case: which, of a kind whose cases are counted."""

    number: int
    kind: str
    seed: str
    base: str = ""
    case: Any = None


def play(job: Job) -> Outcome:
    draw = random.Random(job.seed)
    base = job.base or draw.choice(sorted(_world.bases))
    kind, directory = KINDS[job.kind], _directory / f"r{job.number}"
    shutil.rmtree(directory, ignore_errors=True)  # of a process that died playing it
    try:
        outcome = kind.play(_world, base, directory, draw) if job.case is None else kind.one(
            _world, base, directory, draw, job.case
        )
    except Exception:
        outcome = Outcome(job.kind, "", "VIOLATED", [f"the harness fails: {traceback.format_exc()[-1200:]}"])
    outcome.kind, outcome.what = job.kind, f"{base}: {outcome.what}"
    return outcome


def choose(wanted: list[str]) -> dict[str, Kind]:
    """The kinds to be drawn from; those that cannot be here are said, and left out."""
    found = {}
    for name, kind in KINDS.items():
        if wanted and name not in wanted:
            continue
        missing = kind.missing()
        if missing is None:
            found[name] = kind
        elif name in wanted or not kind.heavy:
            print(f"# {name} is skipped: {missing}", flush=True)
    return found


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", default="", help=f"of {', '.join(KINDS)}; all by default")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--only", type=int, default=None, help="the number of one run, to repeat it")
    parser.add_argument("--bases", default="narrow,wide,lived")
    parser.add_argument("--sabotage", default="", choices=["", *sabotage.SABOTAGES])
    parser.add_argument("--each", action="store_true", help="each case once, of the kinds whose cases can be counted")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--stop", action="store_true", help="at the first violation")
    options = parser.parse_args(arguments)
    wanted = [name for name in options.kinds.split(",") if name]
    if set(wanted) - KINDS.keys():
        parser.error(f"no such kind: {', '.join(set(wanted) - KINDS.keys())}")
    found = choose(wanted)
    # Where nothing rests on what the file system does, memory is quicker.
    room = "/dev/shm" if Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK) else None
    directory = Path(tempfile.mkdtemp(prefix="ktf", dir=room))
    began = time.monotonic()
    try:
        global _world, _directory
        make_commitments_quick()
        _world, _directory = prepare(directory, tuple(options.bases.split(",")), options.sabotage), directory
        outcomes = run_all(options, found)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    return tell(options, outcomes, time.monotonic() - began)


def plan(options: argparse.Namespace, found: dict[str, Kind]) -> list[Job]:
    """What to do, all of it from the seed."""
    draw = random.Random(options.seed)
    if options.each:
        cases = [
            (name, base, case) for name, kind in found.items() if kind.every is not None
            for base in sorted(_world.bases) for case in kind.every(_world, base, _directory / "every")
        ]
        if options.count < len(cases):
            cases = draw.sample(cases, options.count)
        jobs = [
            Job(number, name, f"{options.seed}:{number}", base, case) for number, (name, base, case) in enumerate(cases)
        ]
    else:
        names = [name for name, kind in found.items() for _ in range(kind.weight)]
        jobs = [
            Job(number, draw.choice(names), f"{options.seed}:{number}") for number in range(options.count if names else 0)
        ]
    return jobs if options.only is None else [jobs[options.only]]


def run_all(options: argparse.Namespace, found: dict[str, Kind]) -> list[tuple[int, Outcome]]:
    outcomes: list[tuple[int, Outcome]] = []
    for job, outcome in played(plan(options, found), options.jobs):
        outcomes.append((job.number, outcome))
        if outcome.result == "VIOLATED":
            lines = "\n    ".join(outcome.why[:6])
            print(f"! run {job.number}: {outcome.kind}: {outcome.what}\n    {lines}", file=sys.stderr, flush=True)
            if options.stop:
                break
    return outcomes


def played(jobs: Sequence[Job], processes: int) -> Iterator[tuple[Job, Outcome]]:
    """Each job with its outcome. When a process dies, what it left is played again, one by one and each in its own."""
    left = list(jobs)
    with ProcessPoolExecutor(processes, mp_context=get_context("fork")) as pool:
        futures = [pool.submit(play, job) for job in jobs]
        try:
            for job, future in zip(jobs, futures, strict=True):
                yield job, future.result()
                left.pop(0)
        except BrokenProcessPool:
            print(f"# a process died at run {left[0].number} or near it; what is left runs one by one", file=sys.stderr)
        else:
            return
        finally:
            pool.shutdown(cancel_futures=True)
    for job in left:
        yield job, _alone(job)


def _alone(job: Job) -> Outcome:
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool:
        try:
            return pool.submit(play, job).result()
        except BrokenProcessPool:
            return Outcome(job.kind, "", "VIOLATED", ["the harness's own process died"])


def tell(options: argparse.Namespace, outcomes: list[tuple[int, Outcome]], seconds: float) -> int:
    table: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    codes: dict[str, Counter[str]] = {name: Counter() for name in KINDS}
    for _number, outcome in outcomes:
        table[outcome.kind][outcome.result] += 1
        codes[outcome.kind].update(outcome.codes)
    violations = [(number, outcome) for number, outcome in outcomes if outcome.result == "VIOLATED"]
    if options.json:
        print(json.dumps({
            "seed": options.seed, "seconds": round(seconds, 1), "table": table, "codes": codes,
            "violations": [[number, outcome.kind, outcome.what, outcome.why] for number, outcome in violations],
        }))
    else:
        print_table(table, options.markdown)
        print(f"{len(outcomes)} runs with seed {options.seed} in {seconds:.0f} s, {len(violations)} violations")
    for number, outcome in violations:
        print(
            f"repeat run {number}: python -m tests.faults --seed {options.seed} --count {options.count}"
            f" --kinds '{options.kinds}' --bases {options.bases}{' --each' if options.each else ''} --only {number}",
            file=sys.stderr,
        )
    return 1 if violations else 0


def print_table(table: dict[str, Counter[str]], markdown: bool) -> None:
    head = ("kind", "what is done", "injected", "recovered", "refused", "healed", "named", "not reached", "violated")
    rows = [
        (
            name, KINDS[name].words, str(counts.total() - counts["missed"]), *(
                str(counts[result]) for result in ("recovered", "refused", "healed", "named", "missed", "VIOLATED")
            ),
        )
        for name, counts in table.items() if counts
    ]
    if markdown:
        print("| " + " | ".join(head) + " |\n|" + " --- |" * len(head))
        for row in rows:
            print("| " + " | ".join(row) + " |")
        return
    rows = [(row[0], *row[2:]) for row in [head, *rows]]
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
