"""The HTTP signing keys of actors, from their own documents, cached for a while.

A key counts only when the document of the very actor that the message names lists it: a key id on
another host, or one the actor does not list, never verifies anything.

Anybody can make us fetch, by naming an actor in a request that they need not have signed. So nothing is asked
twice at a time, an answer of no is remembered too, a server is asked so often and no more, and fewer
threads than a worker has may wait for strangers, of whom none may hold them all: neither whoever owns the names
that are asked for, nor the address that asks. Why a fetch failed is nobody's to know: it tells of our network.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from ktlog.errors import KtlogError, MessageRejected, Unreachable
from ktlog.operator.guard import address_name
from ktlog.operator.request import Source
from ktlog.wire.actor import GONE, ActorDocument, Multikey, fetch_actor
from ktlog.wire.actor_id import actor_domain, site_of
from ktlog.wire.dial import BLOCKED
from ktlog.wire.fetch import Fetcher
from ktlog.wire.logs import fields

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

log = logging.getLogger("ktlog.actors")


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
    """One fetch, and all who wait for it. blocked: no connection was made, for the address is none that may be."""

    done: threading.Event = field(default_factory=threading.Event)
    document: ActorDocument | None = None
    refusal: MessageRejected | None = None
    seconds: float = 0.0
    blocked: bool = False


class ActorKeys:
    """Finds the key that a request says it was signed with. Safe to use from many threads.

    Args:
        now: Unix seconds.
        fetch_slots: how many threads may wait for strangers. Three quarters of them for any one owner of
            names (``site_of``), and one for any one address that asks (an IPv6 one by its network).
        generation: when what it gives changes, all that is remembered is forgotten: an actor was erased.
        erased: whether an actor is erased now, of whom nothing is remembered.
        observe: told after each fetch how many seconds it took, and whether it got no connection for its address.
        compat: what is read of documents beyond the standards; see ktlog.wire.compat.
    """

    def __init__(
        self, fetcher: Fetcher, now: Callable[[], int], fetch_slots: int = FETCH_SLOTS,
        generation: Callable[[], int] = lambda: 0, compat: Collection[str] = (),
        erased: Callable[[str], bool] = lambda actor_id: False,
        observe: Callable[[float, bool], None] = lambda seconds, blocked: None,
    ) -> None:
        self._observe = observe
        self._fetcher = fetcher
        self._compat = frozenset(compat)
        self._now = now
        self._generation = generation
        self._erased = erased
        self._seen_generation: int | None = None
        self._lock = threading.Lock()
        self._cache: dict[str, _Cached] = {}
        self._refused: dict[str, tuple[MessageRejected, int]] = {}
        self._hosts: dict[str, _Host] = {}
        self._waiting: Counter[str] = Counter()
        self._flights: dict[str, _Flight] = {}
        self._slots = threading.BoundedSemaphore(fetch_slots)
        self._host_slots = max(1, fetch_slots * 3 // 4)

    def find(
        self, key_id: str, actor_id: str, *, source: Source | None = None, refresh: bool = False, rsa: bool = False,
    ) -> Multikey:
        """The key *key_id* as the document of *actor_id* lists it.

        source: who asks, and is told how often that took a fetch; None for somebody without a limit.
        rsa: the one in ``publicKey`` counts too, if this was made for such keys.

        Raises:
            MessageRejected: ``unknown_http_key``, ``actor_unreachable``, ``actor_gone``, or ``overloaded``
                while too many other documents are being fetched, or too many of that server's were, or
                another one for the same address.
        """
        if key_id.partition("#")[0] != actor_id:
            raise MessageRejected("unknown_http_key", f"key {key_id} does not belong to {actor_id}")
        self._forget_the_erased()
        document = self._document(actor_id, refresh, source)
        for key in document.assertion_method:
            if key.id == key_id and key.controller == actor_id:
                return key
        if rsa and document.public_key is not None and document.public_key.id == key_id:
            return document.public_key
        raise MessageRejected("unknown_http_key", f"{actor_id} lists no key {key_id}")

    def document(self, actor_id: str, *, source: Source | None = None) -> ActorDocument:
        """The whole document of *actor_id*, a few minutes old at most. Raises as ``find``."""
        self._forget_the_erased()
        return self._document(actor_id, False, source)

    def may_refresh(self, actor_id: str) -> bool:
        """Whether the cached document is old enough for a forced look; a forger gets no free fetches."""
        with self._lock:
            cached = self._cache.get(actor_id)
        return cached is not None and self._now() - cached.fetched >= REFRESH_SECONDS

    def inbox_of(self, actor_id: str) -> str | None:
        """Where the actor's document says that their inbox is, if it was looked at lately. Asks nobody."""
        with self._lock:
            cached = self._cache.get(actor_id)
        fresh = cached is not None and self._now() - cached.fetched < CACHE_SECONDS
        return cached.document.inbox if cached is not None and fresh else None

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

    def _document(self, actor_id: str, refresh: bool, source: Source | None) -> ActorDocument:
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
        flight = self._wait(actor_id, host, source)
        if flight.refusal is not None:
            raise MessageRejected(flight.refusal.code, flight.refusal.message)
        if flight.document is None:
            raise MessageRejected("overloaded", f"{actor_id} was not looked up; try again")
        return flight.document

    def _wait(self, actor_id: str, host: str, source: Source | None) -> _Flight:
        """The fetch of *actor_id*, made now or by somebody else, once it is over."""
        if not self._slots.acquire(blocking=False):
            raise MessageRejected("overloaded", "too many actors are being looked up; try again in a second")
        try:
            flight, first = self._join(actor_id, host, source)
            try:
                if source is not None:
                    source.lookups += 1
                if first:
                    self._fetch(actor_id, flight)
                elif not flight.done.wait(WAIT_SECONDS):
                    raise MessageRejected("overloaded", f"{actor_id} is being looked up; try again in a second")
            finally:
                self._leave(actor_id, host, source, first)
        finally:
            self._slots.release()
        if first:
            self._observe(flight.seconds, flight.blocked)
        return flight

    def _join(self, actor_id: str, host: str, source: Source | None) -> tuple[_Flight, bool]:
        """The fetch of *actor_id* that is under way, or a new one (then True) if its server may be asked now."""
        site = site_of(host)
        with self._lock:
            if source is not None and self._waiting[address_name(source.ip)]:
                raise MessageRejected("overloaded", "another actor is being looked up for you; try again in a second")
            if self._waiting[site] >= self._host_slots:
                raise MessageRejected("overloaded", f"others wait for {site}; try again in a second")
            asked = self._hosts.get(host)
            if asked is None:
                self._forget_hosts()
                asked = self._hosts[host] = _Host(HOST_BURST, self._now())
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
            self._waiting.update(_holders(host, source))
            return flight, first

    def _leave(self, actor_id: str, host: str, source: Source | None, first: bool) -> None:
        with self._lock:
            self._hosts[host].waiting -= 1
            self._waiting -= Counter(_holders(host, source))  # those at zero leave it
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
        forget = self._erased(actor_id)
        began = time.monotonic()
        try:
            document = fetch_actor(self._fetcher, actor_id, self._compat)
        except KtlogError as error:
            flight.blocked = error.name == BLOCKED
            # The answer says which of these it was and no more: what a fetch found out is for the operator alone. And
            # whose document it was, for nobody: a line outlasts the actor's erasure.
            log.debug("no document of an actor", extra=fields(host=actor_domain(actor_id), error=error.name))
            flight.refusal = _refusal(actor_id, error)
            if not forget:
                self._remember(actor_id, flight.refusal)
        else:
            with self._lock:
                if len(self._cache) >= CACHE_LIMIT:
                    self._cache.clear()
                # Else an actor was erased, or one was meanwhile, perhaps this one.
                if not forget and generation == self._seen_generation:
                    self._cache[actor_id] = _Cached(document, self._now())
            flight.document = document
        flight.seconds = time.monotonic() - began

    def _remembered_refusal(self, actor_id: str) -> tuple[MessageRejected | None, int, int]:
        """A refusal, when it was made, and for how many seconds it counts."""
        refusal, since = self._refused.get(actor_id, (None, 0))
        gone = refusal is not None and refusal.code == "actor_gone"
        return refusal, since, GONE_SECONDS if gone else REFUSE_SECONDS

    def _remember(self, actor_id: str, refusal: MessageRejected) -> None:
        """Remember for a while that *actor_id* has no document, so that asking again costs nothing."""
        with self._lock:
            if refusal.code == "actor_gone":
                # A 404 may pass, and what is cached counts until its time is over. Gone is gone, keys and all.
                self._cache.pop(actor_id, None)
            if len(self._refused) >= CACHE_LIMIT:
                self._refused.clear()
            self._refused[actor_id] = (refusal, self._now())


def _holders(host: str, source: Source | None) -> list[str]:
    """Whose a slot is while somebody waits: the owner's of the server that is asked, and the asking address's."""
    return [site_of(host)] + ([] if source is None else [address_name(source.ip)])


def _refusal(actor_id: str, error: KtlogError) -> MessageRejected:
    if isinstance(error, Unreachable):
        return MessageRejected("actor_unreachable", f"{actor_id} cannot be fetched")
    code = "actor_gone" if error.name == GONE else "unknown_http_key"
    return MessageRejected(code, f"{actor_id} has no usable document")
