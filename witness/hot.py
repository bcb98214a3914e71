"""The requests that come all the time, answered before the framework looks at them.

POST /add-checkpoint, POST /sign-subtree, GET /livez: what they need of HTTP is a body, one header and a status. All
else goes to the app behind, and so do these where there is anything special about them. They are counted and logged
as the others are. Submissions that come at one time are worked on together (together.py).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from ktlog.errors import StoreError
from ktlog.wire.received import LATER, Later
from witness.config import MAX_BODY_BYTES
from witness.decide import refuse
from witness.running import Running
from witness.together import Together
from witness.witness import Answer, Witness, answer_of

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_Headers = list[tuple[str, str]]

_SUBMIT = "/add-checkpoint"
_LOG = logging.getLogger("ktlog.witness")
_STATUSES = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}


class Ahead:
    """*app*, with the witness's own requests taken out before it."""

    def __init__(self, app: WsgiApp, witness: Witness, running: Running) -> None:
        self._app, self._running = app, running
        self._takes = {_SUBMIT: witness.add_checkpoint, "/sign-subtree": witness.sign_subtree}
        self._retry_after = "5" if witness.verifier is None else "1"
        self._together: Together[tuple[bytes, _Deferred]] | None = None
        if witness.verifier is None:  # which takes its time for each
            self._together = Together(witness.add_checkpoints)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        later: Later | None = environ.get(LATER)
        if later is not None and self.at_once(environ, later):
            return later
        body = _read(environ) if method == "POST" and path in self._takes else None
        if body is None and (method, path) != ("GET", "/livez"):
            return self._app(environ, start_response)
        began = self._running.begin(environ)
        try:
            answer = Answer(200, b"ok\n") if body is None else _taken(self._takes[path], body, environ)
        except BaseException:
            self.end(began, environ, Answer(500, b""))
            raise
        status, headers = self.end(began, environ, answer)
        if method == "GET":
            headers.append(("Access-Control-Allow-Origin", "*"))  # monitors also live in browsers
        start_response(status, headers)
        return (answer.body,)

    def at_once(self, environ: dict[str, Any], later: Later) -> bool:
        """Take a submission, which is answered by *later*; False for any other request. It waits for nothing."""
        if self._together is None or environ["PATH_INFO"] != _SUBMIT or environ["REQUEST_METHOD"] != "POST":
            return False
        if not _plain(environ) or (body := _read(environ)) is None:
            return False
        deferred = _Deferred(later, self, self._running.begin(environ), environ)
        if self._together.put((body, deferred)):
            later.run(self._together.lead)
        return True

    def end(self, began: tuple[float, str], environ: dict[str, Any], answer: Answer) -> tuple[str, _Headers]:
        """Count and log that a request is answered; returns status and header lines."""
        self._running.end(
            began, environ, environ["PATH_INFO"][1:], answer.status, answer.reason, answer.about
        )
        return _STATUSES[answer.status], _headers(answer, began[1], self._retry_after)


class _Deferred:
    """Hands an answer to the server when it is time."""

    __slots__ = ("_ahead", "_began", "_environ", "_later")

    def __init__(self, later: Later, ahead: Ahead, began: tuple[float, str], environ: dict[str, Any]) -> None:
        self._later, self._ahead, self._began, self._environ = later, ahead, began, environ

    def answer(self, answer: Answer) -> None:
        self._later.finish(*self._ahead.end(self._began, self._environ, answer), answer.body)

    def run(self, work: Callable[[], None]) -> None:
        self._later.run(work)


def _headers(answer: Answer, name: str, retry_after: str) -> _Headers:
    headers = [
        ("Content-Type", answer.content_type), ("Content-Length", str(len(answer.body))),
        ("X-Content-Type-Options", "nosniff"), ("X-Request-Id", name),
    ]
    wait = retry_after if answer.status == 503 else answer.retry_after
    if wait:
        headers.append(("Retry-After", str(wait)))
    return headers


def _read(environ: dict[str, Any]) -> bytes | None:
    """The body; None where it is for the framework to find out how long it is, or too long."""
    length = environ.get("CONTENT_LENGTH") or ""
    if not (length.isascii() and length.isdigit()) or len(length) > 9 or int(length) > MAX_BODY_BYTES:
        return None
    body: bytes = environ["wsgi.input"].read(int(length))
    return body if len(body) == int(length) else None


def _plain(environ: dict[str, Any]) -> bool:
    """Whether the body is what it is."""
    return environ.get("HTTP_CONTENT_ENCODING", "identity").lower() == "identity"


def _taken(take: Callable[[bytes], Answer], body: bytes, environ: dict[str, Any]) -> Answer:
    if not _plain(environ):
        return answer_of(refuse(415, "EncodedBody", "send the body without Content-Encoding"))
    try:
        return take(body)
    except StoreError as error:
        _LOG.error("%s", error)
        return answer_of(refuse(503, error.name, "this witness cannot use its record: try later"))
