"""How a log grew: its size at given times, by bisection, so that no answer reads all entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence


def bisect_sizes(times: Sequence[int], size: int, accepted: Callable[[int], int]) -> tuple[int, ...]:
    """For each of the ascending *times* how many of *size* entries were accepted before it.

    accepted: when the entry with this leaf index was. It grows with the index, but where a clock was set back, and
    there the answer is some number between.
    """
    found: list[int] = []
    known: dict[int, int] = {}

    def at(leaf_index: int) -> int:
        if leaf_index not in known:
            known[leaf_index] = accepted(leaf_index)
        return known[leaf_index]

    for time in times:
        low, high = found[-1] if found else 0, size
        while low < high:
            middle = (low + high) // 2
            if at(middle) < time:
                low = middle + 1
            else:
                high = middle
        found.append(low)
    return tuple(found)
