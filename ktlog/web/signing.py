"""Every answer of the API leaves signed, whatever it says: what a log answered to which request can be shown to others.

An ML-DSA-44 signature takes a millisecond and more, so one that was made a moment ago for the same answer to the
same request is sent again. Nothing in it is older than a verifier accepts.

Both of the log's keys sign, unless the request says which algorithms it wants: ``Accept-Signature`` (RFC 9421 §5) with
an ``alg`` in each member. Nothing else of it counts, and nothing that a cache may keep is signed otherwise for it. Who
asks for Ed25519 alone spares the log most of an answer's cost, and has one that a quantum computer could forge. So has
a server that says nothing and signed its own request without ML-DSA-44: the specification wants that where both sides
know it, and stock servers do not. What accepts their message is signed so all the same: the entry's own signature.

What was asked in a body is named by the request's ``Content-Digest``, if it has one and the view has read the body. An
answer that was made before that (429, 413, 405, an address where nothing is) answers no body, and does not say so.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flask import Flask, Response, g, request

from ktlog.errors import EncodingError, MessageRejected
from ktlog.operator.request import Request, Source
from ktlog.wire.actor import ED25519, ML_DSA_44
from ktlog.wire.actor_id import parse_host
from ktlog.wire.environ import raw_target
from ktlog.wire.httpsig import PrivateKey, check_digest, parse_dictionary, target_uri
from ktlog.wire.httpsig_response import BOTH, Exchange, sign_response

NO_STORE = "no-store"
REUSE_SECONDS = 60
REUSE_LIMIT = 1_024  # some 5 kB each

ACCEPT_LIMIT = 512

_Key = tuple[str, str | None, str | None, int, str | None, bytes, tuple[str, ...]]


class AnswerSigner:
    """Signs with the log's HTTP keys. Safe to use from many threads."""

    def __init__(self, keys: Sequence[tuple[str, PrivateKey]], now: Callable[[], int]) -> None:
        self._keys = tuple((ED25519 if isinstance(key, Ed25519PrivateKey) else ML_DSA_44, name, key)
                           for name, key in keys)
        self._now = now
        self._lock = threading.Lock()
        self._made: OrderedDict[_Key, tuple[int, Mapping[str, str]]] = OrderedDict()

    def headers(self, exchange: Exchange, algorithms: tuple[str, ...] = BOTH) -> Mapping[str, str]:
        """The headers that sign *exchange* with each of *algorithms*, made now or at most REUSE_SECONDS ago."""
        digest = hashlib.sha256(exchange.body).digest()
        key = (
            exchange.method, exchange.url, exchange.request_digest, exchange.status,
            exchange.headers.get("content-type"), digest, algorithms,
        )
        now = self._now()
        with self._lock:
            created, made = self._made.get(key, (0, None))
            if made is not None and 0 <= now - created < REUSE_SECONDS:
                self._made.move_to_end(key)
                return made
        keys = [(name, key) for algorithm, name, key in self._keys if algorithm in algorithms]
        made = sign_response(exchange, keys, now)
        with self._lock:
            self._made[key] = (now, made)
            self._made.move_to_end(key)
            while len(self._made) > REUSE_LIMIT:
                self._made.popitem(last=False)
        return made


def register_signing(app: Flask, signer: AnswerSigner, hosts: Collection[str]) -> None:
    """Sign whatever *app* answers. To be called before other hooks are registered: the last word is signed."""

    @app.after_request
    def sign(response: Response) -> Response:
        if g.get("ktlog_unsigned"):  # a page for people; see ktlog.web.explorer.answer
            return response
        response.direct_passthrough = False
        if response.status_code == 204:
            response.headers.pop("Content-Type", None)
        # A HEAD request gets the headers of what it did not get; what is digested is what is sent.
        body = b"" if request.method == "HEAD" else response.get_data()
        content_type = response.headers.get("Content-Type")
        described = {} if content_type is None else {"content-type": content_type}
        exchange = Exchange(
            request.method, _requested_url(hosts), response.status_code, described, body,
            right_digest(g.get("ktlog_request")),
        )
        kept_by_caches = response.headers.get("Cache-Control") != NO_STORE
        sender = getattr(g.get("ktlog_request"), "source", None)
        algorithms = BOTH if kept_by_caches else asked_algorithms(request.headers.get("Accept-Signature"), sender)
        for name, value in signer.headers(exchange, algorithms).items():
            response.headers[name] = value
        return response


def asked_algorithms(accept_signature: str | None, sender: Source | None = None) -> tuple[str, ...]:
    """The algorithms that an answer is signed with, for *sender* and an ``Accept-Signature``, if any."""
    if accept_signature is None:
        signed = sender is not None and sender.algorithms
        return (ED25519,) if signed and ML_DSA_44 not in signed else BOTH
    if len(accept_signature) > ACCEPT_LIMIT:
        return BOTH
    return _named_algorithms(accept_signature)


@lru_cache(maxsize=64)
def _named_algorithms(accept_signature: str) -> tuple[str, ...]:
    try:
        members = parse_dictionary(accept_signature).values()
    except MessageRejected:
        return BOTH
    named = {member[1].get("alg") for member in members}
    return tuple(algorithm for algorithm in BOTH if algorithm in named) if named and named <= set(BOTH) else BOTH


def right_digest(asked: Request | None) -> str | None:
    """The one ``Content-Digest`` of a request whose body was read, if it is right. Claims are not signed."""
    if asked is None:
        return None
    values = [value for name, value in asked.headers if name.lower() == "content-digest"]
    if len(values) != 1:
        return None
    if asked.source.domain is not None:
        return values[0].strip()  # it was checked together with the request's signature
    try:
        check_digest(values[0], asked.body)
    except MessageRejected:
        return None
    return values[0].strip()


def _requested_url(hosts: Collection[str]) -> str | None:
    """The URI that was asked for; for a host that is not ours as well, whose refusal must not look like one of ours."""
    host = request.headers.get("Host", "")
    try:
        return target_uri(host if host in hosts else parse_host(host), raw_target(request.environ))
    except (EncodingError, MessageRejected):
        return None
