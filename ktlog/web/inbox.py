"""Protocol messages that come to the inbox, and a short way to take them: without the framework around the views.

Request and response objects, routing and what is looked up through them take as long as the message's signatures. What
is answered here is what the view would say. Every refusal is the view's to say, and so is whatever is not the
plainest request.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from typing import Any

from werkzeug.exceptions import ClientDisconnected, HTTPException

from ktlog.errors import EncodingError, MessageRejected, RateLimited, StoreError
from ktlog.operator.federation import is_noise, is_noise_value, read_question, reply
from ktlog.operator.guard import Wait
from ktlog.operator.link import Receipt, Submission
from ktlog.operator.replyqueue import Letter
from ktlog.operator.request import UNREAD, Request, Source
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.messages import parse_wire
from ktlog.tlog.encoding import encode_base64url, parse_decimal
from ktlog.web.answers import Wsgi
from ktlog.web.api import CONTENT_TYPE, json_body
from ktlog.web.asked import note_source
from ktlog.web.context import Context
from ktlog.web.guarding import blame, claimed_domain, client_address, repetition, wait_headers
from ktlog.web.signing import NO_STORE, asked_algorithms, right_digest
from ktlog.wire.actor_id import actor_domain
from ktlog.wire.environ import header_lines
from ktlog.wire.httpsig import target_uri
from ktlog.wire.httpsig_response import Exchange
from ktlog.wire.received import LATER, Later, read_whole

USER = "pubkeydir"
PATHS = (f"/users/{USER}/inbox", "/inbox")
Result = Receipt | MessageRejected | StoreError
"""What becomes of a submission."""
_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# An activity that is longer than this is not what a server tells everybody.
NOISE_LIMIT_BYTES = 65_536
REFUSED = "ktlog.refused"
"""Where a WSGI environment says what the short way found wrong: a :class:`Refused`."""


@dataclass
class Refused:
    """Why a message was not taken, for the view to say. request: None if its body counts as unread."""

    source: Source
    error: Exception | None = None
    wait: Wait | RateLimited | None = None
    request: Request | None = None


def read_noise(body: bytes) -> tuple[bool, Any]:
    """Whether *body* is noise, and what it says, if it is JSON as we take it."""
    try:
        value = parse_json(body)
    except EncodingError:
        return is_noise(body), UNREAD
    return is_noise_value(value), value


def take(ctx: Context, asked: Request) -> tuple[bytes, Receipt]:
    """Have a message accepted, and its sender told once more in a direct message; the answer's body.

    Raises:
        MessageRejected, EncodingError, StoreError.
    """
    submission = ctx.admission.admit(asked)
    receipt = ctx.append(submission, asked.source.domain)
    return tell(ctx, asked, submission, receipt), receipt


def tell(ctx: Context, asked: Request, submission: Submission, receipt: Receipt) -> bytes:
    """The body of the answer to a message that was accepted; its sender gets it in a direct message too."""
    members: dict[str, object] = {
        "leaf-index": receipt.leaf_index,
        "tree-size": receipt.leaf_index + 1,
        "merkle-leaf": encode_base64url(receipt.entry),
        "merkle-root": receipt.root,
        "status-url": status_url(ctx, submission),
    }
    if receipt.duplicate:
        members["already-processed"] = True
    body = json_body("inbox", members, ctx.view)
    if not receipt.duplicate:
        queue_reply(ctx, asked, body.decode(), accepted=True)
    return body


def status_url(ctx: Context, submission: Submission) -> str:
    """Where the sender of an accepted message can see what became of it."""
    unique_hash = submission.unique_hash or parse_wire(ctx.dialect, submission.preimage).unique_hash
    return f"{ctx.settings.url}/api/status/{encode_base64url(unique_hash)}"


def queue_reply(ctx: Context, asked: Request, answer: str, *, accepted: bool) -> None:
    """Let the courier tell the sender what *answer* says, if they signed their message and it gets an answer.

    The sender has the answer: that it may not be told a second time costs nobody the first.
    """
    with contextlib.suppress(EncodingError):
        question = read_question(asked.parsed(), ctx.settings.actor_id, opened=accepted)
        if question is None or asked.source.domain != actor_domain(question.actor):
            return
        if asked.source.domain in _hosts(tuple(ctx.settings.directory_urls())):
            return  # another directory, whose inbox takes protocol messages only
        activity = reply(ctx.settings.actor_id, question, answer, ctx.now(), os.urandom)
        body = _JSON.encode(activity).encode("utf-8")
        ctx.outbox.send(Letter(question.actor, asked.source.domain, body, ctx.actor_keys.inbox_of(question.actor)))


@lru_cache(maxsize=4)
def _hosts(urls: tuple[str, ...]) -> frozenset[str]:
    return frozenset(url.removeprefix("https://").partition("/")[0] for url in urls)


@dataclass(frozen=True, slots=True)
class _Arrived:
    """A message that has a place at the gate."""

    environ: dict[str, Any]
    start_response: Callable[..., Any]
    headers: Any
    length: int
    found: Refused
    place: ExitStack


class QuickInbox:
    """WSGI middleware in front of the application *inner*. Safe to use from many threads.

    Args:
        hosts: the Host headers that are answered.
    """

    def __init__(self, inner: Wsgi, context: Context, hosts: Collection[str]) -> None:
        self._inner = inner
        self._context = context
        self._hosts = hosts
        self._limit = min(NOISE_LIMIT_BYTES, context.settings.body_limit_bytes)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        length = self._length(environ)
        if length is None:
            return self._inner(environ, start_response)
        headers = header_lines(environ)
        address = client_address(environ.get("REMOTE_ADDR") or "", headers, self._context.trusted_proxies)
        source = note_source(environ, Source(address, claimed=claimed_domain(headers)))
        later: Later | None = environ.get(LATER)
        ctx, found, place = self._context, Refused(source), ExitStack()
        try:
            place.enter_context(
                ctx.gate.enter(source, exempt=ctx.guard.is_exempt(source.ip), waits=later is not None)
            )
        except RateLimited as error:
            found.wait = blame(ctx, source, error)
            return self._refuse(environ, start_response, found, error)
        arrived = _Arrived(environ, start_response, headers, length, found, place)
        if later is None:
            return self._take(arrived)
        if ctx.gate.hold(source, lambda: later.run(lambda: self._take_later(arrived, later))):
            self._take_later(arrived, later)
        return later

    def _take_later(self, arrived: _Arrived, later: Later) -> None:
        """As far as it goes without the sequencer: no thread waits for that one."""
        try:
            said = self._take(arrived, later)
        finally:
            self._context.gate.let_go(arrived.found.source)
        if said is not later:
            later.answer(read_whole(said))

    def _take(self, arrived: _Arrived, later: Later | None = None) -> Iterable[bytes]:
        """The answer; *later*, if that gives it."""
        try:
            asked, submission = self._admit(arrived)
            if submission is not None:
                end = partial(self._end, arrived, asked, submission)
                if later is None:
                    return end(self._appended(asked, submission))
                self._context.append_later(
                    submission, asked.source.domain,
                    lambda result: later.run(lambda: later.answer(read_whole(end(result)))),
                )
                return later
        except Exception as error:  # noqa: BLE001 - see _refuse
            arrived.place.close()
            return self._refuse(arrived.environ, arrived.start_response, arrived.found, error)
        arrived.place.close()  # the view says what noise is told
        return self._inner(arrived.environ | {"wsgi.input": BytesIO(asked.body)}, arrived.start_response)

    def _appended(self, asked: Request, submission: Submission) -> Result:
        try:
            return self._context.append(submission, asked.source.domain)
        except (MessageRejected, StoreError) as error:
            return error

    def _end(self, arrived: _Arrived, asked: Request, submission: Submission, result: Result) -> Iterable[bytes]:
        """Say what became of a message."""
        ctx, found = self._context, arrived.found
        try:
            with arrived.place, _blaming(ctx, found):
                if not isinstance(result, Receipt):
                    raise result
                answer = tell(ctx, asked, submission, result)
            found.wait = repetition(ctx, found.source, result)
            signed = ctx.signer.headers(
                Exchange("POST", asked.target_url, 202, {"content-type": CONTENT_TYPE}, answer, right_digest(asked)),
                asked_algorithms(arrived.environ.get("HTTP_ACCEPT_SIGNATURE"), found.source),
            )
        except Exception as error:  # noqa: BLE001 - see _refuse
            return self._refuse(arrived.environ, arrived.start_response, found, error)
        arrived.start_response("202 ACCEPTED", [
            ("Content-Type", CONTENT_TYPE), ("Content-Length", str(len(answer))), ("Cache-Control", NO_STORE),
            *wait_headers(found.wait), *signed.items(),
        ])
        return (answer,)

    def _refuse(
        self, environ: dict[str, Any], start_response: Callable[..., Any], found: Refused, error: Exception
    ) -> Iterable[bytes]:
        """The view raises *error* again, for those who turn it into an answer."""
        found.error = error
        return self._inner(environ | {REFUSED: found}, start_response)

    def _length(self, environ: dict[str, Any]) -> int | None:
        """Of the body; None for what the view is to answer."""
        if environ["REQUEST_METHOD"] != "POST" or environ.get("RAW_URI") not in PATHS:
            return None
        if environ.get("HTTP_HOST") not in self._hosts or "HTTP_TRANSFER_ENCODING" in environ:
            return None
        try:
            return parse_decimal(environ.get("CONTENT_LENGTH") or "0", self._limit) or None
        except EncodingError:
            return None

    def _admit(self, arrived: _Arrived) -> tuple[Request, Submission | None]:
        """The request and what it brings: None if that is noise."""
        ctx, found, environ = self._context, arrived.found, arrived.environ
        body = _read(environ["wsgi.input"], arrived.length)
        noise, value = read_noise(body)
        target = target_uri(environ["HTTP_HOST"], environ["RAW_URI"])
        asked = Request("POST", target, arrived.headers, body, found.source, value)
        if noise:
            return asked, None
        with _blaming(ctx, found):
            ctx.guard.check(found.source, found.source.claimed)
            found.request = asked
            return asked, ctx.admission.admit(asked)


@contextlib.contextmanager
def _blaming(ctx: Context, found: Refused) -> Iterator[None]:
    """Count a refusal against its sender."""
    try:
        yield
    except (MessageRejected, EncodingError, HTTPException) as error:
        found.wait = blame(ctx, found.source, error)
        raise


def _read(stream: Any, length: int) -> bytes:
    """Raises ClientDisconnected: the sender went away before the end."""
    parts: list[bytes] = []
    while length:
        try:
            part = stream.read(length)
        except (OSError, ValueError):
            raise ClientDisconnected from None
        if not part:
            raise ClientDisconnected
        parts.append(part)
        length -= len(part)
    return b"".join(parts)
