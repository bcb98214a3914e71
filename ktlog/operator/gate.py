"""How many messages one process has under way at a time, and whose: the rest is refused before it costs anything.

A message holds a thread until it is on its way to the sequencer, and up to two of the machine's cores for Argon2id. So
fewer of them hold one than there are threads, that lookups find one. More wait for their turn, or for the sequencer,
and hold none. No address and no instance has all the places, that others find one; and nobody is let in to wait for
longer than a sender would. Who is refused hears at once when to come again.

An instance is what its HTTP signature proved, and counted from then on: what a request claims would let anybody use up
another's part. Until then its address counts.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ktlog.errors import RateLimited
from ktlog.operator.guard import address_name
from ktlog.operator.request import Place, Source
from ktlog.wire.actor_id import site_of

WAIT_SECONDS = 5.0
"""Nobody is let in to wait for longer than about this for Argon2id."""

SHUT_SECONDS = 1.0
"""How long nobody is let in after the sequencer refused a message because it had too much to do."""

PLACES = 4
"""Messages under way, for each that may hold a thread."""

_NEWEST = 0.2  # how much the newest duration counts in the mean

FULL = "this server has as many messages under way as it can; try again later"
SHARE = "too many messages of this instance are under way; send fewer at a time"


class Gate:
    """Safe to use from many threads.

    Args:
        limit: messages that hold a thread at a time. share: of these, of one address or instance.
        slots: Argon2id hashes at a time.
        clock: seconds, from anywhere. now: Unix seconds.
        places: messages under way at a time, with those that wait and hold no thread; of these each has the same share.
    """

    def __init__(
        self, limit: int, share: int, slots: int, clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time, places: int | None = None,
    ) -> None:
        self.slots = slots
        self._places = limit if places is None else places
        self._holding = self._turns = 0  # threads; of these, those of messages that waited for them
        self._held: Counter[str] = Counter()  # the same, by address
        self._waiting: deque[tuple[str, Callable[[], None]]] = deque()
        self._limit = limit
        self._share = share
        self._clock = clock
        self._now = now
        self._lock = threading.Lock()
        self._argon2 = threading.Semaphore(slots)
        self._under_way = 0
        self._of: Counter[str] = Counter()
        self._hashes = 0
        self._mean_seconds = 0.0
        self._shut_until = 0.0

    @classmethod
    def for_threads(cls, threads: int, cores: int) -> Gate:
        """The gate of a process that answers with so many threads: a quarter of them is left for lookups."""
        limit = max(1, threads * 3 // 4)
        return cls(limit, max(1, limit * 2 // 3), cores, places=PLACES * limit)

    # Whole requests

    @contextmanager
    def enter(self, source: Source, *, exempt: bool = False, waits: bool = False) -> Iterator[None]:
        """Let a request in for as long as the context lasts.

        Args:
            exempt: its address and instance have no share.
            waits: it holds no thread but between :meth:`hold` and :meth:`let_go`; else it does all the time.

        Raises:
            RateLimited: ``overloaded``, ``too_many_at_once``. Nothing was done yet.
        """
        place = Place(self._share * self._places // self._limit if waits else self._share)
        with self._lock:
            shut = self._shut_until - self._clock()
            if shut > 0 or self._under_way >= self._places or (self._holding >= self._limit and not waits):
                raise self._refusal("overloaded", FULL, self._places if waits else self._limit, shut)
            if not exempt:
                self._count(place, address_name(source.ip))
            self._under_way += 1
            self._holding += not waits
        source.place = None if exempt else place
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                for name in place.names:
                    self._of[name] -= 1
                    if not self._of[name]:
                        del self._of[name]
            if not waits:
                self._release()

    def hold(self, source: Source, turn: Callable[[], None]) -> bool:
        """Whether one that waits may have a thread now. If not, *turn* is called when it may: once, in any thread.

        They come in the order of their calls, but no address has more threads than its share, and one thread is left
        for those that hold one all the time, where there are two.
        """
        name = "" if source.place is None else address_name(source.ip)
        with self._lock:
            if self._may_hold(name):
                self._hold(name)
                return True
            self._waiting.append((name, turn))
            return False

    def let_go(self, source: Source) -> None:
        """Give back a thread that ``hold`` gave: it is the next one's, if any waits."""
        name = "" if source.place is None else address_name(source.ip)
        with self._lock:
            self._turns -= 1
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]
        self._release()

    def _release(self) -> None:
        with self._lock:
            self._holding -= 1
            found = next((one for one in self._waiting if self._may_hold(one[0])), None)
            if found is not None:
                self._waiting.remove(found)
                self._hold(found[0])
        if found is not None:
            found[1]()

    def _may_hold(self, name: str) -> bool:
        """name: "" has no share."""
        if self._holding >= self._limit or self._turns >= max(1, self._limit - 1):
            return False
        return not name or self._held[name] < self._share

    def _hold(self, name: str) -> None:
        self._holding += 1
        self._turns += 1
        self._held[name] += 1

    def claim(self, source: Source) -> None:
        """Count a request that was let in for the instance that signed it, too. Once, when that is known.

        Raises:
            RateLimited: ``too_many_at_once``.
        """
        if source.place is not None and source.domain is not None:
            with self._lock:
                self._count(source.place, f"site {site_of(source.domain)}")

    def shut(self) -> None:
        """Let nobody in for a while: the sequencer has too much to do, and what is let in would cost in vain."""
        with self._lock:
            self._shut_until = self._clock() + SHUT_SECONDS

    def _count(self, place: Place, name: str) -> None:
        if self._of[name] >= place.share:
            raise self._refusal("too_many_at_once", SHARE, place.share)
        self._of[name] += 1
        place.names.append(name)

    # Argon2id

    @contextmanager
    def hashing(self, count: int) -> Iterator[None]:
        """For a message that needs *count* hashes, each made within :meth:`slot`.

        Raises:
            RateLimited: ``overloaded``: those who came before need too long.
        """
        with self._lock:
            wait = self._wait_seconds()
            if wait > WAIT_SECONDS:
                raise self._refusal("overloaded", FULL, self._places, wait)
            self._hashes += count
        try:
            yield
        finally:
            with self._lock:
                self._hashes -= count

    def is_hashing(self) -> bool:
        """Whether hashes of some message are being made, or wait for it: it is likely to be ready in a moment."""
        with self._lock:
            return self._hashes > 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One of the machine's cores, for one hash."""
        with self._argon2:
            started = self._clock()
            yield
            took = self._clock() - started
        with self._lock:
            self._mean_seconds += (took - self._mean_seconds) * (_NEWEST if self._mean_seconds else 1)

    def _wait_seconds(self) -> float:
        return self._hashes * self._mean_seconds / self.slots

    def _refusal(self, code: str, message: str, limit: int, seconds: float = 0.0) -> RateLimited:
        wait = max(1.0, seconds, self._wait_seconds())
        return RateLimited(
            message, retry_after_ms=int(wait * 1000), limit=limit, reset=int(self._now() + wait + 1), code=code
        )
