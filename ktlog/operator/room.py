"""How much room a log's disk has left. A log stops accepting before its disk is full, not when a write fails."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

LOOK_SECONDS = 1.0

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
