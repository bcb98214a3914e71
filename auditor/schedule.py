"""When to look again. Pure: no clock, no chance of its own; seconds of any steady clock.

Each log has a beat of its own, so that logs are not all asked in the same second, and no beat drifts because a look
took long. A beat that was missed is not made up for. Each look is moved by up to a tenth, so that a log cannot tell
when the next one comes, and two watches that began together do not stay together.
"""

from __future__ import annotations

from dataclasses import dataclass

JITTER = 0.1


@dataclass(frozen=True)
class Beat:
    """Looks every *every* seconds, from *start* on."""

    start: float
    every: float

    def next(self, now: float, draw: float) -> float:
        """When to look next, after *now*.

        Args:
            draw: from [0, 1), by chance.
        """
        done = int(max(0.0, now - self.start) // self.every)
        moved = self.every * JITTER * (2 * draw - 1)
        due = self.start + (done + 1) * self.every + moved
        # Moved to before now, or so near that the last look has hardly ended: then the beat after it.
        return due if due > now + self.every * JITTER else due + self.every


def beat_of(number: int, count: int, started: float, every: float) -> Beat:
    """The beat of log *number* of *count*: first looks are spread over a tenth of the period, at most five seconds."""
    spread = min(every * JITTER, 5.0)
    return Beat(started + spread * number / max(1, count), every)
