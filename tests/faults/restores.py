"""Parts of a log put back from an older copy, or taken away: requirement R2, and what a backup alone must not do.

The log runs, is copied, runs on and publishes; then something of the copy is put in place. It must refuse to sign, with
a code, or mend itself from what is newer; never sign on as if nothing had been. Then the right files are put back,
and everything must be there.
"""

from __future__ import annotations

import random
import shutil
import signal
from pathlib import Path

from tests.faults.judge import Truth, judge, read_truth
from tests.faults.kinds import Outcome, World, closing, codes, drop_tree, feed, play
from tests.faults.site import Run, Stuck

LOG, MAP_DB = ("log.db", "log.db-wal", "log.db-shm"), ("map.db", "map.db-wal", "map.db-shm")
HEADS = ("signed-head.json", "map-signed-head.json")

REFUSED, EITHER = "refused", "either"

OLDER = {
    "old log.db": (LOG, REFUSED),
    "old map.db": (MAP_DB, REFUSED),
    "old log.db and map.db": ((*LOG, *MAP_DB), REFUSED),
    "old signed-head.json": (HEADS[:1], REFUSED),
    "old map-signed-head.json": (HEADS[1:], REFUSED),
    "old tiles": (("tiles",), EITHER),
    "old log.db and signed-head.json": ((*LOG, *HEADS[:1]), REFUSED),
    "old log.db, map.db and signed heads": ((*LOG, *MAP_DB, *HEADS), REFUSED),
    "all but log.db old": ((*MAP_DB, *HEADS, "tiles"), REFUSED),
    "everything old": ((*LOG, *MAP_DB, *HEADS, "tiles", "map-pending"), REFUSED),
}
"""What is put back from the copy, and what the log must do."""

GONE = {
    "no log.db": (LOG, REFUSED),
    "no map.db": (MAP_DB, REFUSED),
    "no signed-head.json": (HEADS[:1], REFUSED),
    "no map-signed-head.json": (HEADS[1:], REFUSED),
    "no tiles": (("tiles",), EITHER),
    "no checkpoint": (("tiles/checkpoint",), EITHER),
    "no map checkpoint": (("tiles/map/checkpoint",), EITHER),
    "no log.db-wal": (LOG[1:2], EITHER),
    "no public-keys.json": (("public-keys.json",), REFUSED),
    "no leaf key": (("keys/leaf",), REFUSED),
}


def attempt(run: Run, world: World, seconds: float = 20.0) -> str:
    """Start it and ask it for an entry: "refused", if it takes none, or none of it is published; else "accepted".

    Raises:
        Stuck: it does neither, and says nothing.
    """
    child = run.start(prepare=world.prepare)
    told = len(run.words())

    def said() -> bool:
        return "NotCompared" in run.words()[told:] or "not published" in run.words()[told:]

    run.pump(child, lambda: run.listens() or said(), seconds=seconds)
    accepted = False
    if child.poll() is None and run.listens() and not said():
        for message in run.base.forbidden:
            run.send(child, message)  # whether it was refused, the judge sees
        size = run.size
        results = run.send(child, next(run.bank), next(run.bank))
        if child.poll() is None and any(getattr(one, "leaf_index", -1) >= size for one in results):
            # Answered; whether it is published shows whether anything of it is signed.
            run.pump(child, lambda: run.shown(run.settings.tiles) > size or said(), seconds=seconds)
            if run.shown(run.settings.tiles) > size and child.poll() is None:
                try:
                    run.pump(child, lambda: run.mapped() >= run.size or said(), seconds=seconds)
                except Stuck:
                    pass
            accepted = child.poll() is None and not said()
    run.stop(child)
    return "accepted" if accepted else "refused"


def put(source: Path, target: Path, names: tuple[str, ...]) -> None:
    for name in names:
        drop_tree(target / name)
        if (source / name).is_dir():
            shutil.copytree(source / name, target / name)
        elif (source / name).exists():
            shutil.copy2(source / name, target / name)


def restored(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    return one_part(world, base, directory, draw, draw.choice([*OLDER, *OLDER, *GONE]))


def one_part(world: World, base: str, directory: Path, draw: random.Random, name: str) -> Outcome:
    names, must = (OLDER | GONE)[name]
    gone = name in GONE

    def act(run: Run) -> Outcome:
        child = run.start(prepare=world.prepare)
        feed(run, child, draw, 1)
        run.stop(child)
        shutil.copytree(run.log, run.directory / "older", ignore=shutil.ignore_patterns("*.sock", "*.addr"))
        child = run.start(prepare=world.prepare)
        feed(run, child, draw, 2)
        run.stop(child, draw.choice((signal.SIGTERM, signal.SIGKILL)))
        shutil.copytree(run.log, run.directory / "newest", ignore=shutil.ignore_patterns("*.sock", "*.addr"))
        truth, acks = read_truth(run), list(run.acks)
        if gone:
            for one in names:
                drop_tree(run.log / one)
        else:
            put(run.directory / "older", run.log, names)
        return after(run, world, truth, acks, Outcome("restored", name, ""), must, gone=gone)

    return play(world, world.bases[base], directory, act)


def after(
    run: Run, world: World, truth: Truth, acks: list, outcome: Outcome, must: str, *, gone: bool
) -> Outcome:
    """See what the log makes of it; then put everything right, and judge."""
    result = attempt(run, world)
    seen = codes(run)
    if result == "accepted":
        outcome.result = "healed"
        if must == REFUSED:
            outcome.why.append("it signs on")
        verdict = judge(run, truth)
        outcome.why += verdict.broken + verdict.damage
        outcome = closing(run, world, outcome)
    else:
        outcome.result = "refused"
        if not seen:
            outcome.why.append("refused without a code: " + run.words()[-300:])
        # What it answered and never published is in the wrong store; the right one never heard of it.
        lost = [ack for ack in run.acks if ack not in acks]
        if lost and run.shown(run.settings.tiles) > len(truth.entries):
            outcome.why.append(f"{len(lost)} answers on a store that was refused, and published")
        run.acks = acks
        drop_tree(run.log)
        shutil.copytree(run.directory / "newest", run.log)
        outcome = closing(run, world, outcome)
    outcome.codes = sorted({*outcome.codes, *seen})
    return outcome
