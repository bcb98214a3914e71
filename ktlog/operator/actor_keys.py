"""The HTTP signing keys of actors, from their own documents, cached for a while.

A key counts only when the document of the very actor that the message names lists it: a key id on
another host, or one the actor does not list, never verifies anything.

Anybody can make us fetch, by naming an actor in a request that they need not have signed. So nothing is asked
twice at a time, an answer of no is remembered too, a server is asked so often and no more, and fewer
threads than a worker has may wait for strangers, of whom none may hold them all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ktlog.errors import KtlogError, MessageRejected, Unreachable
from ktlog.wire.actor import GONE, ActorDocument, Multikey, fetch_actor
from ktlog.wire.actor_id import actor_domain
from ktlog.wire.fetch import Fetcher

CACHE_SECONDS = 300
REFRESH_SECONDS = 10
REFUSE_SECONDS = 15
GONE_SECONDS = 300
CACHE_LIMIT = 1_000
FETCH_SLOTS = 4
WAIT_SECONDS = 15.0
# What one server is asked for, by whoever names its actors: so many at once, and then so many a second.
HOST_BURST = 200
HOST_PER_SECOND = 10


@dataclass(frozen=True)
class _Cached:
    document: ActorDocument
    fetched: int


@dataclass
class _Host:
    """What one server is asked just now. left: fetches that it may still be asked for, as of *since*."""

    left: float
    since: int
    waiting: int = 0


@dataclass
class _Flight:
    """One fetch, and all who wait for it."""

    done: threading.Event = field(default_factory=threading.Event)
    document: ActorDocument | None = None
    refusal: MessageRejected | None = None


class ActorKeys:
    """Finds the key that a request says it was signed with. Safe to use from many threads.

    Args:
        now: Unix seconds.
        fetch_slots: how many threads may wait for strangers. Three quarters of them for any one server.
        generation: when what it gives changes, all that is remembered is forgotten: an actor was erased.
        compat: what is read of documents beyond the standards; see ktlog.wire.compat.
    """

    def __init__(
        self, fetcher: Fetcher, now: Callable[[], int], fetch_slots: int = FETCH_SLOTS,
        generation: Callable[[], int] = lambda: 0, compat: Collection[str] = (),
    ) -> None:
        self._fetcher = fetcher
        self._compat = frozenset(compat)
        self._now = now
        self._generation = generation
        self._seen_generation: int | None = None
        self._lock = threading.Lock()
        self._cache: dict[str, _Cached] = {}
        self._refused: dict[str, tuple[MessageRejected, int]] = {}
        self._hosts: dict[str, _Host] = {}
        self._flights: dict[str, _Flight] = {}
        self._slots = threading.BoundedSemaphore(fetch_slots)
        self._host_slots = max(1, fetch_slots * 3 // 4)

    def find(self, key_id: str, actor_id: str, *, refresh: bool = False, rsa: bool = False) -> Multikey:
        """The key *key_id* as the document of *actor_id* lists it.

        rsa: the one in ``publicKey`` counts too, if this was made for such keys.

        Raises:
            MessageRejected: ``unknown_http_key``, ``actor_unreachable``, ``actor_gone``, or ``overloaded``
                while too many other documents are being fetched, or too many of that server's were.
        """
        if key_id.partition("#")[0] != actor_id:
            raise MessageRejected("unknown_http_key", f"key {key_id} does not belong to {actor_id}")
        self._forget_the_erased()
        document = self._document(actor_id, refresh)
        for key in document.assertion_method:
            if key.id == key_id and key.controller == actor_id:
                return key
        if rsa and document.public_key is not None and document.public_key.id == key_id:
            return document.public_key
        raise MessageRejected("unknown_http_key", f"{actor_id} lists no key {key_id}")

    def may_refresh(self, actor_id: str) -> bool:
        """Whether the cached document is old enough for a forced look; a forger gets no free fetches."""
        with self._lock:
            cached = self._cache.get(actor_id)
        return cached is not None and self._now() - cached.fetched >= REFRESH_SECONDS

    def clear(self) -> None:
        """Forget every actor."""
        with self._lock:
            self._cache.clear()
            self._refused.clear()

    def _forget_the_erased(self) -> None:
        generation = self._generation()
        if generation != self._seen_generation:
            self.clear()
            self._seen_generation = generation

    def _document(self, actor_id: str, refresh: bool) -> ActorDocument:
        with self._lock:
            cached = self._cache.get(actor_id)
            refusal, since, seconds = self._remembered_refusal(actor_id)
        if cached is not None and not refresh and self._now() - cached.fetched < CACHE_SECONDS:
            return cached.document
        if refusal is not None and self._now() - since < seconds:
            raise MessageRejected(refusal.code, refusal.message)
        try:
            host = actor_domain(actor_id)
        except KtlogError as error:
            raise MessageRejected("unknown_http_key", f"{actor_id} can have no document: {error}") from None
        if not self._slots.acquire(blocking=False):
            raise MessageRejected("overloaded", "too many actors are being looked up; try again in a second")
        try:
            flight, first = self._join(actor_id, host)
            try:
                if first:
                    self._fetch(actor_id, flight)
                elif not flight.done.wait(WAIT_SECONDS):
                    raise MessageRejected("overloaded", f"{actor_id} is being looked up; try again in a second")
            finally:
                self._leave(actor_id, host, first)
        finally:
            self._slots.release()
        if flight.refusal is not None:
            raise MessageRejected(flight.refusal.code, flight.refusal.message)
        if flight.document is None:
            raise MessageRejected("overloaded", f"{actor_id} was not looked up; try again")
        return flight.document

    def _join(self, actor_id: str, host: str) -> tuple[_Flight, bool]:
        """The fetch of *actor_id* that is under way, or a new one (then True) if its server may be asked now."""
        with self._lock:
            asked = self._hosts.get(host)
            if asked is None:
                self._forget_hosts()
                asked = self._hosts[host] = _Host(HOST_BURST, self._now())
            if asked.waiting >= self._host_slots:
                raise MessageRejected("overloaded", f"others wait for {host}; try again in a second")
            flight = self._flights.get(actor_id)
            first = flight is None
            if flight is None:
                now = self._now()
                asked.left = min(HOST_BURST, asked.left + max(0, now - asked.since) * HOST_PER_SECOND)
                asked.since = now
                if asked.left < 1:
                    raise MessageRejected("overloaded", f"{host} was asked for too many actors; try again later")
                asked.left -= 1
                flight = self._flights[actor_id] = _Flight()
            asked.waiting += 1
            return flight, first

    def _leave(self, actor_id: str, host: str, first: bool) -> None:
        with self._lock:
            self._hosts[host].waiting -= 1
            if first:
                self._flights.pop(actor_id).done.set()

    def _forget_hosts(self) -> None:
        """Make room for one more: those with their whole budget first, and never who is waited for."""
        if len(self._hosts) < CACHE_LIMIT:
            return
        recent = self._now() - HOST_BURST // HOST_PER_SECOND
        self._hosts = {name: asked for name, asked in self._hosts.items() if asked.waiting or asked.since > recent}
        idle = [name for name, asked in self._hosts.items() if not asked.waiting]
        for name in idle[: max(0, len(self._hosts) - CACHE_LIMIT + 1)]:
            del self._hosts[name]

    def _fetch(self, actor_id: str, flight: _Flight) -> None:
        generation = self._seen_generation
        try:
            document = fetch_actor(self._fetcher, actor_id, self._compat)
        except Unreachable as error:
            flight.refusal = self._refuse(actor_id, "actor_unreachable", f"{actor_id} cannot be fetched: {error}")
        except KtlogError as error:
            code = "actor_gone" if error.name == GONE else "unknown_http_key"
            flight.refusal = self._refuse(actor_id, code, f"{actor_id} has no usable document: {error}")
        else:
            with self._lock:
                if len(self._cache) >= CACHE_LIMIT:
                    self._cache.clear()
                if generation == self._seen_generation:  # else an actor was erased meanwhile, perhaps this one
                    self._cache[actor_id] = _Cached(document, self._now())
            flight.document = document

    def _remembered_refusal(self, actor_id: str) -> tuple[MessageRejected | None, int, int]:
        """A refusal, when it was made, and for how many seconds it counts."""
        refusal, since = self._refused.get(actor_id, (None, 0))
        gone = refusal is not None and refusal.code == "actor_gone"
        return refusal, since, GONE_SECONDS if gone else REFUSE_SECONDS

    def _refuse(self, actor_id: str, code: str, message: str) -> MessageRejected:
        """Remember for a while that *actor_id* has no document, so that asking again costs nothing."""
        refusal = MessageRejected(code, message)
        with self._lock:
            if code == "actor_gone":
                # A 404 may pass, and what is cached counts until its time is over. Gone is gone, keys and all.
                self._cache.pop(actor_id, None)
            if len(self._refused) >= CACHE_LIMIT:
                self._refused.clear()
            self._refused[actor_id] = (refusal, self._now())
        return refusal
