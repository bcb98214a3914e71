"""Who signed a request: its RFC 9421 signature, under a key that the actor's own document lists.

A signature counts once. Whoever sends the same message again signs the request anew, so a signature that was
seen before was copied from somewhere, and what it authenticates is not who sends it now.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection

from ktlog.errors import EncodingError, MessageRejected
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.guard import Guard
from ktlog.operator.request import Request
from ktlog.wire.actor_id import actor_domain
from ktlog.wire.compat import RSA
from ktlog.wire.httpsig import MAX_SKEW_SECONDS, VerifiedRequest, verify_request

# A signature is fresh for MAX_SKEW_SECONDS on either side of its time. It is remembered for longer, so that a request
# that took its time between the check of the clock and the look into the cache finds it there.
REMEMBER_SECONDS = 2 * MAX_SKEW_SECONDS


class Authenticator:
    """Verifies requests. Safe to use from many threads.

    origin: this log's host. It sends itself nothing, and to fetch a key from itself could take all its threads.
    compat: what is taken beyond the specification; see ktlog.wire.compat.
    """

    def __init__(
        self, origin: str, actor_keys: ActorKeys, guard: Guard, now: Callable[[], int], compat: Collection[str] = (),
    ) -> None:
        self._compat = frozenset(compat)
        self._origin = origin
        self._actor_keys = actor_keys
        self._guard = guard
        self._now = now

    def authenticate(self, request: Request, actor_id: str, *, at_inbox: bool = False) -> VerifiedRequest:
        """Verify that *actor_id* signed *request*, now and for the first time; set ``domain`` and
        ``algorithms`` of ``request.source``.

        at_inbox: the request came to the ActivityPub inbox, the only door where RSA may count.

        Raises:
            MessageRejected: ``unauthorized``, ``unknown_http_key``, ``actor_unreachable``, ``replayed_request``,
                ``overloaded``, ``bad_actor_id``; RateLimited for a server that must wait.
        """
        try:
            domain = actor_domain(actor_id)
        except EncodingError as error:
            raise MessageRejected("bad_actor_id", error.message) from None
        if domain == self._origin:
            raise MessageRejected("unknown_http_key", f"{domain} is this log, which sends itself nothing")
        try:
            verified = self._verify(request, actor_id, at_inbox, refresh=False)
        except MessageRejected:
            # The actor may have a new key since its document was cached: look once more, then refuse.
            if not self._actor_keys.may_refresh(actor_id):
                raise
            verified = self._verify(request, actor_id, at_inbox, refresh=True)
        # Every signature of the request is remembered: one of two, sent alone, is a copy as well.
        digests = [signature_digest(*one) for one in verified.signatures]
        if not self._guard.take(request.source, domain, digests, verified.created + REMEMBER_SECONDS):
            raise MessageRejected("replayed_request", "this HTTP signature was seen before; sign the request anew")
        request.source.algorithms = verified.algorithms
        return verified

    def _verify(self, request: Request, actor_id: str, at_inbox: bool, *, refresh: bool) -> VerifiedRequest:
        compat = self._compat if at_inbox else self._compat - {RSA}
        source = None if self._guard.is_exempt(request.source.ip) else request.source
        return verify_request(
            request.method, request.target_url, request.headers, request.body,
            lambda key_id: self._actor_keys.find(key_id, actor_id, source=source, refresh=refresh, rsa=RSA in compat),
            self._now(), compat,
        )


def signature_digest(key_id: str, signature: bytes) -> bytes:
    """What names a signature in the replay cache: SHA-256 of its key and its decoded bytes.

    The text of a signature has other spellings; its bytes, under strict verification, do not.
    """
    name = key_id.encode()
    return hashlib.sha256(len(name).to_bytes(4, "big") + name + signature).digest()
