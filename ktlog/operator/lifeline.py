"""End with the process that started us, so that a killed supervisor leaves no orphan behind."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

LOOK_SECONDS = 0.5


def end_with_parent(end: Callable[[], None]) -> None:
    """Call *end* once, from a thread, when the parent process is gone."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(LOOK_SECONDS)
        end()

    threading.Thread(target=watch, daemon=True, name="lifeline").start()
