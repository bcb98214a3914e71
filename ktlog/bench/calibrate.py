"""How fast this machine computes Argon2id just now, with the server's own function in as many processes and threads.

Every AddKey needs two of them, so half of this rate is what no log on this machine can exceed.
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier

from ktlog.pkd import attributes

EACH = 2
"""Commitments that admission checks of an AddKey: of the actor and of the key."""
ALONE = 12
_SALT = bytes(16)
_START_SECONDS = 60.0
_barrier: Barrier | None = None


def argon2_rate(processes: int, slots: int, seconds: float) -> float:
    """Computations a second of *processes* with *slots* threads each, all at once."""
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_join, initargs=(barrier,)) as pool:
        return sum(pool.map(_one_process, [slots] * processes, [seconds] * processes))


def _join(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 - what a process is given at its start, and by no other way
    _barrier = barrier


def _one_process(slots: int, seconds: float) -> float:
    attributes.argon2id(b"warm", _SALT)
    if _barrier is not None:
        _barrier.wait(_START_SECONDS)
    begin, counts = time.perf_counter(), [0] * slots

    def work(slot: int) -> None:
        while time.perf_counter() - begin < seconds:
            attributes.argon2id(b"password of a message" + slot.to_bytes(8, "big"), _SALT)
            counts[slot] += 1

    threads = [threading.Thread(target=work, args=(slot,)) for slot in range(slots)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.perf_counter() - begin)


def argon2_alone() -> float:
    """Seconds for the commitments of one message on an idle machine, all at once as admission computes them."""
    taken = []
    with ThreadPoolExecutor(min(EACH, os.cpu_count() or 1)) as pool:
        for _ in range(ALONE):
            started = time.perf_counter()
            list(pool.map(attributes.argon2id, [b"alone"] * EACH, [_SALT] * EACH))
            taken.append(time.perf_counter() - started)
    return statistics.median(taken)
