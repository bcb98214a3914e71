"""What every request that can change something goes through first.

    @blueprint.post("/path")
    @guarded
    def view() -> Response:
        request = current_request()

The source is known and has not to wait before the body is read, and there is room for one more request under way; a
refusal that is the sender's fault is counted against it. Signatures are the view's to check: it knows whose they
are to be.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import wraps
from http import HTTPStatus
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from ktlog.errors import EncodingError, MessageRejected, RateLimited
from ktlog.operator.guard import Network, Wait, parse_address
from ktlog.operator.link import Receipt
from ktlog.operator.request import UNREAD, Request, Source
from ktlog.web.asked import note_source
from ktlog.web.context import Context, context
from ktlog.web.errors import TABLE
from ktlog.wire.actor_id import parse_host
from ktlog.wire.environ import header_lines, raw_target
from ktlog.wire.httpsig import target_uri

# A wrong one-time password by the right instance is a guess. PKD: "aggressive rate-limiting".
PENALTY_WEIGHTS = {"bad_otp": 8}

_CLAIM = re.compile(r'keyid="https://([A-Za-z0-9.-]{1,253})[:/?#]')


def guarded(view: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a view: the guard is asked first, and told of refusals."""

    @wraps(view)
    def inner(*arguments: Any, **options: Any) -> Any:
        ctx = context()
        headers = header_lines(request.environ)
        address = client_address(request.remote_addr or "", headers, ctx.trusted_proxies)
        source = note_source(request.environ, Source(address, claimed=claimed_domain(headers)))
        try:
            ctx.guard.check(source, source.claimed)
            with ctx.gate.enter(source, exempt=ctx.guard.is_exempt(source.ip)):
                g.ktlog_request = Request(
                    request.method, target_uri(request.headers["Host"], raw_target(request.environ)), headers,
                    read_body(ctx.settings.body_limit_bytes), source, g.get("ktlog_value", UNREAD),
                )
                return view(*arguments, **options)
        except (MessageRejected, EncodingError, HTTPException) as error:
            g.ktlog_wait = blame(ctx, source, error)
            raise

    return inner


def blame(ctx: Context, source: Source, error: Exception) -> Wait | RateLimited | None:
    """Count a refusal; gives how long its sender has to wait, if they have to."""
    ctx.refusals.count(refusal_code(error), source.domain or source.claimed or "", source.domain is not None)
    if isinstance(error, RateLimited):
        return error
    weight = penalty_weight(error)
    return ctx.guard.penalize(source, weight) if weight else None


def register_waits(app: Flask) -> None:
    """Say on every answer to a sender that must wait how long. Source: PKD, "Rate Limiting Headers"."""

    @app.after_request
    def add_headers(response: Response) -> Response:
        for name, value in wait_headers(g.get("ktlog_wait")):
            response.headers[name] = value
        return response


def wait_headers(wait: Wait | RateLimited | None) -> tuple[tuple[str, str], ...]:
    """What an answer to a sender that must wait says of it."""
    if wait is None:
        return ()
    return (
        ("Retry-After", str(max(1, -(-wait.retry_after_ms // 1000)))), ("X-RateLimit-Limit", str(wait.limit)),
        ("X-RateLimit-Reset", str(wait.reset)),
    )


def current_request() -> Request:
    """The request in hand, in a view that is guarded."""
    return g.ktlog_request


def penalize_sender(weight: int = 1) -> None:
    """Count a refusal that the view does not report as one."""
    g.ktlog_wait = context().guard.penalize(current_request().source, weight)


def charge_repetition(receipt: Receipt) -> None:
    """Count a message that was in the log already against its address, if somebody's document was fetched for it.

    It changes nothing and is refused for nothing, so that a stranger could send it for ever new actors, whose
    documents cost us threads. Whom we knew, or needed not to, is asked for nothing.
    """
    g.ktlog_wait = repetition(context(), current_request().source, receipt)


def repetition(ctx: Context, source: Source, receipt: Receipt) -> Wait | None:
    """:func:`charge_repetition`; gives how long the address has to wait now."""
    return ctx.guard.penalize(Source(source.ip)) if receipt.duplicate and source.lookups else None


def refusal_code(error: Exception) -> str:
    """Under which code a refusal is counted."""
    return error.code if isinstance(error, MessageRejected) else "bad_request"


def penalty_weight(error: Exception) -> int:
    """How many refusals *error* counts for; none when it is not the sender's doing."""
    if isinstance(error, MessageRejected):
        status = TABLE.get(error.code, ("", HTTPStatus.BAD_REQUEST))[1]
        if status == HTTPStatus.TOO_MANY_REQUESTS or status >= 500:
            return 0
        return PENALTY_WEIGHTS.get(error.code, 1) if error.weight is None else error.weight
    if isinstance(error, HTTPException):
        return 1 if 400 <= (error.code or 500) < 500 else 0
    return 1


def client_address(peer: str, headers: Sequence[tuple[str, str]], trusted: Sequence[Network]) -> str:
    """The address a request came from: the rightmost one that no trusted proxy vouches for itself.

    X-Forwarded-For is believed as far as trusted proxies wrote it, from the right: what stands left of the
    first other address may be anybody's invention. What is not an address ends the search.
    """
    address = peer
    chain = [part.strip() for name, value in headers if name.lower() == "x-forwarded-for" for part in value.split(",")]
    while chain and _is_in(address, trusted):
        nearer = parse_address(chain.pop())
        if nearer is None:
            break
        address = str(nearer)
    return address


def _is_in(text: str, networks: Sequence[Network]) -> bool:
    address = parse_address(text)
    return address is not None and any(address in network for network in networks)


def claimed_domain(headers: Sequence[tuple[str, str]]) -> str | None:
    """The server that a request says it was signed by. Nothing is verified."""
    for name, value in headers:
        if name.lower() == "signature-input" and (found := _CLAIM.search(value)):
            try:
                return parse_host(found[1])
            except EncodingError:
                return None
    return None


def read_early() -> bytes:
    """The body of a request that nothing is known of yet, kept for whoever reads it again.

    A sender can be slow. So reading takes a place like a message, and not every thread waits for bodies.

    Raises:
        RateLimited: as of a message.
    """
    ctx = context()
    source = Source(client_address(request.remote_addr or "", header_lines(request.environ), ctx.trusted_proxies))
    try:
        with ctx.gate.enter(source, exempt=ctx.guard.is_exempt(source.ip)):
            return request.get_data()
    except RateLimited as error:
        ctx.refusals.count(error.code)
        g.ktlog_wait = error
        raise


def read_body(limit_bytes: int) -> bytes:
    """The whole body of the request, or none of it.

    Raises:
        MessageRejected: ``too_large``. (RequestEntityTooLarge, when the Content-Length says so already.)
    """
    body = request.get_data(cache=False)
    if len(body) > limit_bytes:
        raise MessageRejected("too_large", f"a request body has at most {limit_bytes} bytes")
    return body
