"""One line of a table of measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """What was measured, and what it is held against.

    goal: at most so much; at least, where *at_least*; None: told for its own sake. It is about *ratio* where there is
    one. peer: the same unit as *measured*, the least that it could be on this machine just then. cpu_ms: CPU time.
    """

    work: str
    measured: float
    unit: str
    goal: float | None
    cpu_ms: float | None = None
    peer: float | None = None
    ratio: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.goal is None:
            return None
        value = self.measured if self.ratio is None else self.ratio
        return value >= self.goal if self.at_least else value <= self.goal

    def as_dict(self) -> dict[str, object]:
        numbers = {"measured": self.measured, "cpu-ms": self.cpu_ms, "peer": self.peer, "ratio": self.ratio}
        return {
            "work": self.work, "unit": self.unit, **{name: _short(value) for name, value in numbers.items()},
            "goal": self.goal, "at-least": self.at_least, "met": self.met,
        }

    def as_line(self) -> str:
        sign = ">=" if self.at_least else "<="
        goal = "" if self.goal is None else f"{sign} {self.goal:g}" + (" x" if self.ratio is not None else "")
        cpu = "" if self.cpu_ms is None else f"{_short(self.cpu_ms):g}"
        peer = "" if self.peer is None else f"{_short(self.peer):g}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}"
        met = {True: "met", False: "not met", None: ""}[self.met]
        measured = f"{_short(self.measured):g} {self.unit}".rstrip()
        return f"{self.work:<60} {measured:>14} {cpu:>8} {peer:>8} {ratio:>6} {goal:>9} {met}".rstrip()


GENERATOR = "load generator"
HEADING = f"{'work':<60} {'measured':>14} {'CPU ms':>8} {'limit':>8} {'ratio':>6} {'goal':>9}"


def cpu_rows(work: str, seconds: Mapping[str, float], count: int) -> list[Row]:
    """CPU seconds for a thousand of *count*, by kind of process: of the load generator, and of kinds that had a share
    worth telling."""
    told = sum(seconds.values()) / 200
    return [
        Row(f"{work}: CPU for 1,000, {kind}", used / count * 1000, "s", None)
        for kind, used in sorted(seconds.items()) if used > told or kind == GENERATOR
    ]


def percentile(times: Sequence[float], share: float) -> float:
    """The smallest of *times* that a *share* of them (0 < share <= 1) does not exceed.

    >>> percentile([5, 1, 3], 0.5), percentile(range(1, 101), 0.99)
    (3, 99)

    """
    ordered = sorted(times)
    return ordered[math.ceil(share * len(ordered)) - 1]


def _short(value: float | None) -> float | None:
    """Three digits are more than a repetition shows again."""
    return None if value is None else float(f"{value:.3g}")
