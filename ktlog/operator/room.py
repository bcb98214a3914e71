"""How much room a log's disk has left. A log stops accepting before its disk is full, not when a write fails."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LOOK_SECONDS = 1.0

RECOUNT_SECONDS = 600.0
IDLE_TIMES = 100
"""A count that takes a second is not made again for a hundred."""

MIB = 1 << 20

log = logging.getLogger("ktlog.sequencer")


class Room:
    """Free space beside *directory*, looked at once a second at most.

    Args:
        floor: bytes; with less, nothing more is accepted.
        clock: seconds, from anywhere.
    """

    def __init__(self, directory: Path, floor: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._floor = floor
        self._clock = clock
        self._next = clock()
        self._free = self._look()

    def free(self) -> int:
        """Bytes that this process may still write, as of a second ago at most; 0 if that cannot be said."""
        now = self._clock()
        if now >= self._next:
            self._next = now + LOOK_SECONDS
            enough = self._free >= self._floor
            self._free = self._look()
            if enough and self._free < self._floor:
                log.error("%s: nothing is accepted until the disk has room again", self.shortage())
            elif not enough and self._free >= self._floor:
                log.warning("the disk has room again: messages are accepted")
        return self._free

    def shortage(self) -> str | None:
        """What is wrong, if there is too little room; else None."""
        free = self.free()
        if free >= self._floor:
            return None
        return f"the log's disk has {free // MIB} MiB left, and it keeps {self._floor // MIB} free"

    def _look(self) -> int:
        try:
            found = os.statvfs(self._directory)
        except OSError as error:
            log.error("%s: %s", self._directory, error.strerror)
            return 0  # what nobody knows is not there
        return found.f_bavail * found.f_frsize


class Weight:
    """How many bytes the files below *directory* have. Counted seldom: a large log has a file for 256 entries.

    Safe to use from many threads.
    """

    def __init__(self, directory: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._directory = directory
        self._clock = clock
        self._lock = threading.Lock()
        self._next = clock()
        self._bytes = 0

    def bytes(self) -> int:
        """As of some minutes ago at most."""
        with self._lock:
            began = self._clock()
            if began >= self._next:
                self._bytes = _weigh(os.fspath(self._directory))
                took = self._clock() - began
                self._next = began + max(RECOUNT_SECONDS, IDLE_TIMES * took)
            return self._bytes


def _weigh(directory: str) -> int:
    total, left = 0, [directory]
    while left:
        with suppress(OSError), os.scandir(left.pop()) as found:  # partial tiles go when they are superseded
            for entry in found:
                with suppress(OSError):
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
    return total
