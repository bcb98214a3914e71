"""``python -m tests.liars --count 500 --seed 1``: honest runs; ``--only N`` plays one again, step by step."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from unittest.mock import patch

from ktlog.pkd import attributes
from tests.liars import zoo
from tests.liars.weather import Outcome, play


def quick(password: bytes, salt: bytes) -> bytes:
    """In Argon2id's place. One function for all runs: the logs that they begin with are kept by it."""
    return sha256(salt + password).digest()


def played(seed: int) -> Outcome:
    """A run, with a quick hash; what fails in it is a fault, too."""
    with patch.object(attributes, "argon2id", quick):
        try:
            return play(seed)
        except Exception:
            return Outcome(seed, [f"the run fails: {traceback.format_exc()[-1500:]}"])


def all_of(seeds: Iterable[int], jobs: int) -> Iterable[Outcome]:
    seeds = list(seeds)
    if jobs == 1:
        yield from map(played, seeds)
        return
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(played, seeds, chunksize=5)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.liars", description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1, help="of the first run; the others count on")
    parser.add_argument("--only", type=int, help="the seed of one run, to play it again")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--table", action="store_true", help="print the zoo for docs/reliability.md")
    options = parser.parse_args(arguments)
    if options.table:
        print(zoo.table(), end="")
        return 0
    seeds = range(options.seed, options.seed + options.count) if options.only is None else [options.only]
    counts: Counter[str] = Counter()
    failed = 0
    for outcome in all_of(seeds, 1 if options.only is not None else options.jobs):
        counts += outcome.counts
        if options.only is not None:
            print("\n".join(outcome.steps))
        if outcome.faults:
            failed += 1
            print(f"FALSE ALARM with seed {outcome.seed}: python -m tests.liars --only {outcome.seed}")
            print("".join(f"    {fault}\n" for fault in outcome.faults[:5]), end="", flush=True)
    print(f"{len(seeds)} honest runs, {failed} with a false alarm or conviction")
    print(", ".join(f"{name.strip('_')} {count}" for name, count in sorted(counts.items())))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
