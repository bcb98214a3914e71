"""Work that came in the meantime is done together.

A signature drives everything else out of the processor's caches, so a step costs two to five times as much right after
one as it does right after itself. Submissions are therefore taken many at a time through each step: all are judged,
then all signed with the one key, then all with the other.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from witness.config import THREADS
from witness.group import ENOUGH

Item = TypeVar("Item")

#: As many as share a transaction, so that none of them waits for those that are not in it.
MOST = ENOUGH
#: Threads that do so at one time. Nobody computes faster with more of them, and the others are there for the rest.
LEADERS = max(2, min(THREADS // 2, len(os.sched_getaffinity(0))))


class Together(Generic[Item]):
    """Args:
        work: does what is to be done with some items, in the order in which they came; it raises nothing.
    """

    def __init__(self, work: Callable[[Sequence[Item]], None]) -> None:
        self._work = work
        self._waiting: deque[Item] = deque()
        self._leading = 0
        self._lock = threading.Lock()

    def put(self, item: Item) -> bool:
        """Leave it to those who are at it. True: they are too few, and some thread must call ``lead`` now."""
        with self._lock:
            self._waiting.append(item)
            needed = self._leading < LEADERS
            self._leading += needed
        return needed

    def lead(self) -> None:
        """Work until nothing waits. Once for each ``put`` that asked for it."""
        while True:
            with self._lock:
                items = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
                if not items:
                    self._leading -= 1
                    return
            self._work(items)
