"""The uploads that a mirror takes at one time, and who has to go when there are too many.

An upload is read as it comes, so one that sends nothing holds its place for as long as the server lets a request take.
While there is room that harms nobody. When there is none, the one that has sent least for the time it kept us waiting
is hung up on, if it is below LEAST_BYTES_PER_SECOND; what it has sent and was verified stays. Nobody is hung up on for
the time that we take ourselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

ReadBytes = Callable[[int], bytes]

#: A tenth of the slowest line on which anybody would upload a log.
LEAST_BYTES_PER_SECOND = 4096
#: Which nobody is held to before he kept us waiting for so long, all together.
GRACE_SECONDS = 2.0
#: How long the one who comes waits for the place of the one who goes.
ROOM_SECONDS = 2.0


class Upload:
    """One that has a place."""

    def __init__(self, read: ReadBytes, hang_up: Callable[[], None], now: Callable[[], float]) -> None:
        self._read, self._now, self.hang_up = read, now, hang_up
        self._waited, self._sent = 0.0, 0
        self._since: float | None = None
        self.told = False

    def read(self, count: int) -> bytes:
        """As the function that it was made with."""
        self._since = self._now()
        try:
            data = self._read(count)
        finally:
            self._waited += self._now() - self._since
            self._since = None
        self._sent += len(data)
        return data

    def pace(self) -> float:
        """Bytes sent for each second waited; infinite before the end of the grace, and while nothing is waited for."""
        since = self._since
        if since is None:
            return float("inf")
        waited = self._waited + self._now() - since
        return self._sent / waited if waited >= GRACE_SECONDS else float("inf")


class Uploads:
    """Args:
        most: at one time.
    """

    def __init__(self, most: int, now: Callable[[], float] = time.monotonic) -> None:
        self._most, self._now = most, now
        self._taken: list[Upload] = []
        self._changed = threading.Condition()
        self.hung_up = 0

    def begin(self, read: ReadBytes, hang_up: Callable[[], None]) -> Upload | None:
        """A place, which ``end`` gives back; None where there is none.

        hang_up: has *read* return what there is, soon. Called at most once, by any thread.
        """
        upload = Upload(read, hang_up, self._now)
        with self._changed:
            if len(self._taken) >= self._most and self._make_room():
                self._changed.wait_for(lambda: len(self._taken) < self._most, ROOM_SECONDS)
            if len(self._taken) >= self._most:
                return None
            self._taken.append(upload)
        return upload

    def end(self, upload: Upload) -> None:
        with self._changed:
            self._taken.remove(upload)
            self._changed.notify()

    def count(self) -> int:
        return len(self._taken)

    def _make_room(self) -> bool:
        slowest = min((one for one in self._taken if not one.told), key=Upload.pace, default=None)
        if slowest is None or slowest.pace() >= LEAST_BYTES_PER_SECOND:
            return False
        slowest.told = True
        self.hung_up += 1
        slowest.hang_up()
        return True
