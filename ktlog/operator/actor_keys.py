"""The HTTP signing keys of actors, from their own documents, cached for a while.

A key counts only when the document of the very actor that the message names lists it: a key id on
another host, or one the actor does not list, never verifies anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from ktlog.errors import KtlogError, MessageRejected, Unreachable
from ktlog.wire.actor import ActorDocument, Multikey, fetch_actor
from ktlog.wire.fetch import Fetcher

CACHE_SECONDS = 300
REFRESH_SECONDS = 10
REFUSE_SECONDS = 15
CACHE_LIMIT = 1_000
FETCH_SLOTS = 4


@dataclass(frozen=True)
class _Cached:
    document: ActorDocument
    fetched: int


class ActorKeys:
    """Finds the key that a request says it was signed with. Safe to use from many threads."""

    def __init__(self, fetcher: Fetcher, now: Callable[[], int], fetch_slots: int = FETCH_SLOTS) -> None:
        self._fetcher = fetcher
        self._now = now
        self._lock = threading.Lock()
        self._cache: dict[str, _Cached] = {}
        self._refused: dict[str, tuple[MessageRejected, int]] = {}
        # Anybody can name an actor on a server that never answers. Fewer threads than the web worker has
        # may wait for strangers, so that the rest can go on reading and writing.
        self._slots = threading.BoundedSemaphore(fetch_slots)

    def find(self, key_id: str, actor_id: str, *, refresh: bool = False) -> Multikey:
        """The key *key_id* as the document of *actor_id* lists it.

        Raises:
            MessageRejected: ``unknown_http_key``, ``actor_unreachable``, or ``overloaded`` while too many
                other documents are being fetched.
        """
        if key_id.partition("#")[0] != actor_id:
            raise MessageRejected("unknown_http_key", f"key {key_id} does not belong to {actor_id}")
        document = self._document(actor_id, refresh)
        for key in document.assertion_method:
            if key.id == key_id and key.controller == actor_id:
                return key
        raise MessageRejected("unknown_http_key", f"{actor_id} lists no key {key_id}")

    def may_refresh(self, actor_id: str) -> bool:
        """Whether the cached document is old enough for a forced look; a forger gets no free fetches."""
        with self._lock:
            cached = self._cache.get(actor_id)
        return cached is not None and self._now() - cached.fetched >= REFRESH_SECONDS

    def _document(self, actor_id: str, refresh: bool) -> ActorDocument:
        with self._lock:
            cached = self._cache.get(actor_id)
        if cached is not None and not refresh and self._now() - cached.fetched < CACHE_SECONDS:
            return cached.document
        self._check_refused(actor_id)
        if not self._slots.acquire(blocking=False):
            raise MessageRejected("overloaded", "too many actors are being looked up; try again in a second")
        try:
            document = fetch_actor(self._fetcher, actor_id)
        except Unreachable as error:
            raise self._refuse(actor_id, "actor_unreachable", f"{actor_id} cannot be fetched: {error}") from None
        except KtlogError as error:
            raise self._refuse(actor_id, "unknown_http_key", f"{actor_id} has no usable document: {error}") from None
        finally:
            self._slots.release()
        with self._lock:
            if len(self._cache) >= CACHE_LIMIT:
                self._cache.clear()
            self._cache[actor_id] = _Cached(document, self._now())
        return document

    def _check_refused(self, actor_id: str) -> None:
        with self._lock:
            refusal, since = self._refused.get(actor_id, (None, 0))
        if refusal is not None and self._now() - since < REFUSE_SECONDS:
            raise MessageRejected(refusal.code, refusal.message)

    def _refuse(self, actor_id: str, code: str, message: str) -> MessageRejected:
        """Remember for a moment that *actor_id* has no document, so that asking again costs nothing."""
        refusal = MessageRejected(code, message)
        with self._lock:
            if len(self._refused) >= CACHE_LIMIT:
                self._refused.clear()
            self._refused[actor_id] = (refusal, self._now())
        return refusal
