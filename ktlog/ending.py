"""To be told to end: signals, handed on where a lock may be taken.

A handler runs between two instructions of the main thread, which may just then hold the lock that the handler wants: an
Event that the main thread waits for must not be set there. And the main thread must not wait without end, in ``accept``
least of all: a signal that comes just before it, or to another thread, does not interrupt it, and its handler runs only
when the main thread goes on.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue

ENDING = (signal.SIGTERM, signal.SIGINT)

LOOK_SECONDS = 0.5
"""How long the main thread may wait at a time."""


def call_when_told(act: Callable[[], object], numbers: Sequence[int] = ENDING) -> None:
    """From here on each of the signals *numbers* has *act* called, in a thread. In the main thread.

    A signal that this process was told to ignore, by ``nohup`` say, is still handled: daemons end by their signals.
    """
    came: SimpleQueue[int] = SimpleQueue()  # its put is safe in a handler, by its documentation

    def hand_on() -> None:
        while True:
            came.get()
            act()

    threading.Thread(target=hand_on, daemon=True, name="ending").start()
    for number in numbers:
        signal.signal(number, lambda number, _frame: came.put(number))
