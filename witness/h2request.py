"""One request of HTTP/2, as WSGI has it, and the answer back. No I/O but the application's.

The fields come from a proxy that we did not choose to trust: they are checked here, as strictly as a server that
stands alone would, and what the proxy says of its clients is not handed on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
Headers = Sequence[tuple[bytes, bytes]]

MAX_HEADER_FIELDS = 64

_NAME = re.compile(rb"[a-z0-9!#$%&'*+.^`|~-]+")  # a token, without the underscore that WSGI takes for a hyphen
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*")
_METHOD = re.compile(rb"[A-Z]{1,16}")
_PATH = re.compile(rb"/[\x21\x22\x24-\x7e]*")
_AUTHORITY = re.compile(rb"[\x21-\x7e]*")
_NOT_IN_HTTP2 = frozenset({b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade"})
#: What only the bastion can have said of a client, and what CGI would take for a proxy of ours. Nobody here asks.
_NOT_PASSED_ON = (b"x-forwarded-", b"x-real-ip", b"forwarded", b"proxy")


class BadRequest(Exception):  # noqa: N818
    """A request that is answered here, with *status* and a reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes


def make_environ(headers: Headers, peer: tuple[str, int]) -> tuple[dict[str, Any], int | None]:
    """The WSGI environ of a request, without its body, and the length that it announces.

    Raises:
        BadRequest: no request that an honest proxy passes on.
    """
    pseudo: dict[bytes, bytes] = {}
    fields: dict[bytes, bytes] = {}
    if len(headers) > MAX_HEADER_FIELDS:
        raise BadRequest(431, f"more than {MAX_HEADER_FIELDS} header fields")
    for name, value in headers:
        if name.startswith(b":"):
            if fields or name in pseudo or name not in (b":method", b":scheme", b":path", b":authority"):
                raise BadRequest(400, "the pseudo-header fields are not those of a request")
            pseudo[name] = value
            continue
        if name in _NOT_IN_HTTP2 or (name == b"te" and value != b"trailers") or _VALUE.fullmatch(value) is None:
            raise BadRequest(400, "a header field is not one of HTTP/2")
        if name in (b"content-length", b"content-type", b"content-encoding", b"host") and name in fields:
            raise BadRequest(400, "a header field that is one comes twice")
        fields[name] = fields[name] + b"," + value if name in fields else value
    method, path = pseudo.get(b":method", b""), pseudo.get(b":path", b"")
    authority = pseudo.get(b":authority", fields.get(b"host", b""))
    if b":scheme" not in pseudo or _METHOD.fullmatch(method) is None or _PATH.fullmatch(path) is None \
            or _AUTHORITY.fullmatch(authority) is None:
        raise BadRequest(400, "the request line is not one for us")
    length = fields.get(b"content-length")
    if length is not None and re.fullmatch(rb"[0-9]{1,12}", length) is None:
        raise BadRequest(400, "the length is no number")
    target, _, query = path.partition(b"?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method.decode("ascii"), "SCRIPT_NAME": "", "RAW_URI": path.decode("ascii"),
        "PATH_INFO": unquote_to_bytes(target).decode("latin-1"), "QUERY_STRING": query.decode("ascii"),
        "SERVER_NAME": "bastion", "SERVER_PORT": "443", "SERVER_PROTOCOL": "HTTP/2",
        "REMOTE_ADDR": peer[0], "REMOTE_PORT": str(peer[1]),
        # Not the authority: torchwood's bastion says the 64 digits of our key's hash, too long a label for a host name.
        "HTTP_HOST": "bastion",
        "wsgi.version": (1, 0), "wsgi.url_scheme": "https", "wsgi.errors": sys.stderr,
        "wsgi.multithread": True, "wsgi.multiprocess": False, "wsgi.run_once": False,
    }
    for name, value in fields.items():
        if name == b"content-type":
            environ["CONTENT_TYPE"] = value.decode("latin-1")
        elif name not in (b"content-length", b"host") and _NAME.fullmatch(name) and not name.startswith(_NOT_PASSED_ON):
            environ["HTTP_" + name.decode("ascii").upper().replace("-", "_")] = value.decode("latin-1")
    return environ, None if length is None else int(length)


def call(application: WsgiApp, environ: dict[str, Any]) -> Answer:
    """Run *application* on a request and collect its answer. What it raises, this raises."""
    started: list[tuple[str, list[tuple[str, str]]]] = []
    parts: list[bytes] = []

    def start_response(status: str, headers: list[tuple[str, str]], _error: Any = None) -> Callable[[bytes], None]:
        started[:] = [(status, headers)]
        return parts.append

    result = application(environ, start_response)
    try:
        parts.extend(result)
    finally:
        close = getattr(result, "close", None)
        if close is not None:
            close()
    status, headers = started[0]
    return Answer(int(status[:3]), headers, b"".join(parts))


def format_headers(answer: Answer) -> list[tuple[str, str]]:
    lines = [(":status", str(answer.status))]
    lines += [
        (name.lower(), value) for name, value in answer.headers if name.lower().encode("latin-1") not in _NOT_IN_HTTP2
    ]
    return lines


def plain(status: int, text: str) -> Answer:
    body = f"{text}\n".encode()
    return Answer(status, [
        ("content-type", "text/plain; charset=utf-8"), ("content-length", str(len(body))),
        ("x-content-type-options", "nosniff"),
    ], body)
