"""Every answer leaves signed, whatever it says: what a log answered to which request can be shown to others.

An ML-DSA-44 signature takes a millisecond and more, so one that was made a moment ago for the same answer to the
same request is sent again. Nothing in it is older than a verifier accepts.

What was asked in a body is named by the request's ``Content-Digest``, if it has one and the view has read the body. An
answer that was made before that (429, 413, 405, an address where nothing is) answers no body, and does not say so.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence

from flask import Flask, Response, g, request

from ktlog.errors import EncodingError, MessageRejected
from ktlog.operator.request import Request
from ktlog.wire.actor_id import parse_host
from ktlog.wire.httpd import raw_target
from ktlog.wire.httpsig import PrivateKey, check_digest, target_uri
from ktlog.wire.httpsig_response import Exchange, sign_response

REUSE_SECONDS = 60
REUSE_LIMIT = 1_024  # some 5 kB each

_Key = tuple[str, str | None, str | None, int, str | None, bytes]


class AnswerSigner:
    """Signs with the log's HTTP keys. Safe to use from many threads."""

    def __init__(self, keys: Sequence[tuple[str, PrivateKey]], now: Callable[[], int]) -> None:
        self._keys = tuple(keys)
        self._now = now
        self._lock = threading.Lock()
        self._made: OrderedDict[_Key, tuple[int, Mapping[str, str]]] = OrderedDict()

    def headers(self, exchange: Exchange) -> Mapping[str, str]:
        """The headers that sign *exchange*, made now or at most REUSE_SECONDS ago."""
        digest = hashlib.sha256(exchange.body).digest()
        key = (
            exchange.method, exchange.url, exchange.request_digest, exchange.status,
            exchange.headers.get("content-type"), digest,
        )
        now = self._now()
        with self._lock:
            created, made = self._made.get(key, (0, None))
            if made is not None and 0 <= now - created < REUSE_SECONDS:
                self._made.move_to_end(key)
                return made
        made = sign_response(exchange, self._keys, now)
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
        for name, value in signer.headers(exchange).items():
            response.headers[name] = value
        return response


def right_digest(asked: Request | None) -> str | None:
    """The one ``Content-Digest`` of a request whose body was read, if it is right. Claims are not signed."""
    if asked is None:
        return None
    values = [value for name, value in asked.headers if name.lower() == "content-digest"]
    if len(values) != 1:
        return None
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
