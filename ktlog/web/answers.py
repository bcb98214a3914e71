"""Answers that are given again as they were, signature and all, for as long as nothing was committed since.

A lookup costs some milliseconds, most of them for its signature. Who is asked about often is asked about by many, so an
answer about an actor is kept until the store, the map or the published checkpoint moves. That also ends it with the
actor's erasure: nothing kept is older than the newest commit.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Hashable, Iterable
from dataclasses import dataclass
from typing import Any

from ktlog.web.signing import asked_algorithms

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
KEEP_SECONDS = 60
"""Of an answer. With the age that its signature may have when it is made, less than a verifier accepts."""
KEEP_BYTES = 16 << 20
"""Of a worker's answers together: some thousands of lookups. Their signatures, and the targets, which anybody may make
long, weigh more than most of them say."""
ANSWER_BYTES = 1 << 10
"""What an answer takes beside its text."""
TARGET_LIMIT = 2_048
_PATHS = ("/api/actor/", "/map/bundle/")
_Key = tuple[str, str, tuple[str, ...]]  # Host header, request target, algorithms of the signatures


@dataclass(frozen=True)
class _Answer:
    """made: Unix seconds. weight: bytes of memory, about."""

    made: int
    status: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    weight: int


class KeptAnswers:
    """WSGI middleware around the application *inner*. Safe to use from many threads.

    Args:
        version: changes with everything that an answer could depend on; None when that cannot be told.
        hosts: the Host headers that are answered. now: Unix seconds.
    """

    def __init__(
        self, inner: Wsgi, version: Callable[[], Hashable | None], hosts: Collection[str], now: Callable[[], int],
        limit_bytes: int = KEEP_BYTES,
    ) -> None:
        self._inner = inner
        self._version = version
        self._hosts = hosts
        self._now = now
        self._limit = limit_bytes
        self._lock = threading.Lock()
        self._of: Hashable | None = None
        self._bytes = 0
        self._kept: OrderedDict[_Key, _Answer] = OrderedDict()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        key = self._key(environ)
        # Asked before the answer is made: one that is newer than this is kept under a version that nobody has any more.
        version = None if key is None else self._version()
        if key is None or version is None:
            return self._inner(environ, start_response)
        answer = self._find(key, version)
        if answer is None:
            answer = self._make(environ, key)
            if answer.status.startswith("200 "):
                self._keep(key, version, answer)
        start_response(answer.status, list(answer.headers))
        return (answer.body,)

    def _key(self, environ: dict[str, Any]) -> _Key | None:
        """What the answer depends on beside the version; None for requests whose answers are not kept."""
        target, host = environ.get("RAW_URI"), environ.get("HTTP_HOST")
        if environ["REQUEST_METHOD"] != "GET" or not isinstance(target, str) or not target.startswith(_PATHS):
            return None
        # With a body, or the digest of one, the signature says more than which URL was asked for.
        with_body = environ.get("CONTENT_LENGTH") or "HTTP_TRANSFER_ENCODING" in environ
        if host not in self._hosts or len(target) > TARGET_LIMIT or with_body or "HTTP_CONTENT_DIGEST" in environ:
            return None
        return host, target, asked_algorithms(environ.get("HTTP_ACCEPT_SIGNATURE"))

    def _find(self, key: _Key, version: Hashable) -> _Answer | None:
        with self._lock:
            if version != self._of:
                # What was true before a commit, an erasure perhaps, is not even kept in memory after it.
                self._kept.clear()
                self._bytes, self._of = 0, version
            answer = self._kept.get(key)
            if answer is None or not 0 <= self._now() - answer.made < KEEP_SECONDS:
                return None
            self._kept.move_to_end(key)
            return answer

    def _make(self, environ: dict[str, Any], key: _Key) -> _Answer:
        made = self._now()
        told: list[tuple[str, tuple[tuple[str, str], ...]]] = []

        def start(status: str, headers: Iterable[tuple[str, str]], _error: object = None) -> None:
            told.append((status, tuple(headers)))

        parts = self._inner(environ, start)
        try:
            body = b"".join(parts)
        finally:
            if hasattr(parts, "close"):
                parts.close()
        status, headers = told[-1]
        texts = (*key[:2], *(text for header in headers for text in header), body)
        return _Answer(made, status, headers, body, ANSWER_BYTES + sum(map(len, texts)))

    def _keep(self, key: _Key, version: Hashable, answer: _Answer) -> None:
        with self._lock:
            if version != self._of or answer.weight > self._limit // 8:
                return
            old = self._kept.pop(key, None)
            self._kept[key] = answer
            self._bytes += answer.weight - (old.weight if old else 0)
            while self._bytes > self._limit:
                _, dropped = self._kept.popitem(last=False)
                self._bytes -= dropped.weight
