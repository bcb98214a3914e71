"""How often a log may have something signed, so that no log and no stranger takes what is the others'.

A witness-network list gives each log a number of submissions a day. A log's allowance is a token bucket, refilled
evenly and deep enough for ten minutes' worth. What is counted, and against whom, is the point:

* Only what is about to be signed counts against a log, and the log's signature under it is genuine by then. New sizes
  and old ones have a bucket each, because a log's published checkpoint can be sent again by anybody who reads it,
  while a new one comes from the log alone.
* What fails authentication counts against a bucket that all strangers share. When that is empty, they hear 429
  instead of the reason; a genuine submission is never held up by it.
* A log has only so many submissions in hand at once, however many it sends, so the threads stay there for others; new
  sizes and old ones, again, each for themselves.

* Signatures of subtrees have a bucket of their own for each log, since anybody can ask for them.

The answers 409 and 422 cost little, tell a log what it must know, and may convict it: they are not limited.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable

DAY_SECONDS = 86_400
MINIMUM_BURST = 10
BURSTS_PER_DAY = 144

#: Of one log's subtrees: anybody who reads a checkpoint that we cosigned can ask for them.
SUBTREES_PER_SECOND = 10.0
SUBTREES_BURST = 200.0

UNKNOWN_PER_SECOND = 50.0
UNKNOWN_BURST = 1_000.0

#: Submissions of one log that are being signed or recorded at once: half of the threads.
IN_HAND = 4
#: The same of sizes that were signed before, which anybody can send; beside those.
REPEATED_IN_HAND = 2


class Bucket:
    """Tokens that come at a steady rate, up to *burst*; full at first."""

    __slots__ = ("at", "burst", "rate", "tokens")

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self.rate, self.burst, self.tokens, self.at = rate, burst, burst, now

    def take(self, now: float) -> float:
        """Take a token: 0; or the seconds until there is one."""
        self.tokens = min(self.burst, self.tokens + max(0.0, now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return (1 - self.tokens) / self.rate
        self.tokens -= 1
        return 0.0


class Limits:
    """All buckets of one witness. Safe to use from many threads; forgotten with the process.

    Args:
        now: a monotonic clock in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._buckets: dict[tuple[str, bool], Bucket] = {}  # at most two for each log followed
        self._subtrees: dict[str, Bucket] = {}  # one for each log followed at most
        self._unknown = Bucket(UNKNOWN_PER_SECOND, UNKNOWN_BURST, now())
        self._in_hand: Counter[tuple[str, bool]] = Counter()

    def take(self, origin: str, per_day: int | None, *, growth: bool) -> int:
        """Count one thing to be signed for *origin*: 0 when it may be, else the whole seconds to wait."""
        if per_day is None:
            return 0
        rate = per_day / DAY_SECONDS
        burst = max(MINIMUM_BURST, per_day / BURSTS_PER_DAY)
        with self._lock:
            now = self._now()
            bucket = self._buckets.get((origin, growth))
            if bucket is None:
                bucket = self._buckets[(origin, growth)] = Bucket(rate, burst, now)
            bucket.rate, bucket.burst = rate, burst  # the list may have changed
            return math.ceil(bucket.take(now))

    def take_subtree(self, origin: str) -> int:
        """Count one subtree to be signed for *origin*, a log that is followed: 0, or the whole seconds to wait."""
        with self._lock:
            now = self._now()
            bucket = self._subtrees.get(origin)
            if bucket is None:
                bucket = self._subtrees[origin] = Bucket(SUBTREES_PER_SECOND, SUBTREES_BURST, now)
            return math.ceil(bucket.take(now))

    def take_unknown(self) -> int:
        """Count one request that failed authentication: 0, or the whole seconds to wait."""
        with self._lock:
            return math.ceil(self._unknown.take(self._now()))

    def admit(self, origin: str, *, growth: bool) -> bool:
        """Whether one more submission of *origin* may be worked on; if so it counts until ``release``."""
        one, most = (origin, growth), IN_HAND if growth else REPEATED_IN_HAND
        with self._lock:
            admitted = self._in_hand[one] < most
            self._in_hand[one] += admitted
        return admitted

    def release(self, origin: str, *, growth: bool) -> None:
        """It is not worked on any more."""
        one = (origin, growth)
        with self._lock:
            self._in_hand[one] -= 1
            if not self._in_hand[one]:
                del self._in_hand[one]
