"""Python's cycle collector in a process that serves: it looks at what requests left, not at the program each time."""

from __future__ import annotations

import gc

COLLECT_AFTER = 20_000
"""Objects made between two looks of the collector: a request leaves it little or nothing to find."""


def look_rarely() -> None:
    """What is here by now stays, and the collector looks at it no more; at what comes, once in many requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER)
