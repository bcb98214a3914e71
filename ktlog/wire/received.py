"""One HTTP request, read from a connection bit by bit; and the answer to it. No socket in here.

The parser is httptools, which is llhttp: the one of Node.js. What it does not bound is bounded here.
"""

from __future__ import annotations

import io
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from email.utils import formatdate
from functools import lru_cache
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import httptools

from ktlog.wire.environ import LINES

HEADER_LINES = 64
HEAD_BYTES = 16 * 1024
#: What chunks may cost above the body that they carry.
FRAMING_BYTES = 64 * 1024

#: In the environ of a server that lets an app answer when it likes.
LATER = "ktlog.later"

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"

_SCHEME_AND_HOST = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
#: By which a parser knows how long a body is.
_FRAMING = (b"content-length", b"transfer-encoding")


class Reader:
    """Reads the requests of one connection; one at a time, and no other before that one is answered.

    Attributes:
        complete: all of it is.
        refused: the HTTP status of a request that is not read on, or 0.
        held: bytes taken for it.
        pipelined: something follows it, which is not read: the connection ends with the answer.
        expects: the sender waits to be told to go on.
    """

    __slots__ = (
        "_chunks", "_fields", "_head_done", "_keeps_alive", "_limit", "_method", "_parser", "_size", "_target",
        "_upgrades", "_version", "complete", "expects", "held", "pipelined", "refused",
    )

    def __init__(self, limit: int) -> None:
        """limit: bytes of a body."""
        self._limit = limit
        self._parser = httptools.HttpRequestParser(self)
        self.pipelined = self._upgrades = False
        self.reset()

    def reset(self) -> None:
        """For the next request."""
        self._target = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._chunks: list[bytes] = []
        self._size = self.held = self.refused = 0
        self._head_done = self._keeps_alive = self.complete = self.expects = False
        self._method, self._version = b"", ""

    def end(self) -> None:
        """No more of them. The parser knows us as we know it; so neither needs the collector to go."""
        self._parser = None

    def feed(self, data: bytes) -> None:
        """Take what came. After it, see ``complete`` and ``refused``."""
        self.held += len(data)
        try:
            self._parse(data)
        except httptools.HttpParserError:
            # After a whole request it is what follows that is wrong; that is not looked at.
            if self.complete:
                self.pipelined = True
            else:
                self._refuse(400)
        if self.complete or self.refused:
            return
        if not self._head_done and self.held > HEAD_BYTES:
            self._refuse(431)
        elif self.held > HEAD_BYTES + self._limit + FRAMING_BYTES:
            self._refuse(400)

    def _parse(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as asked:
            # It may ask for another protocol; it gets an answer in this one. The parser takes the head alone, and
            # another one, told how long the body is, what follows it.
            framing = [b"%s: %s\r\n" % field for field in self._fields if field[0].lower() in _FRAMING]
            if self._upgrades or not framing or self.pipelined or self.refused or self._method == b"CONNECT":
                self.pipelined = True
                if not self.complete:
                    self._refuse(400)
                return
            self.complete, self._upgrades = False, True
            self._parser = httptools.HttpRequestParser(self)
            self._parser.feed_data(b"POST / HTTP/1.1\r\n%s\r\n" % b"".join(framing))
            self._parse(data[asked.args[0]:])

    def environ(self, server: tuple[str, int], peer: str) -> dict[str, Any]:
        """Of a complete request, for a WSGI app; see ktlog.wire.environ as well. Of the header lines some are left out:
        a name with an underscore could pass for another."""
        target = self._target
        if not target.startswith(b"/") and (absolute := _SCHEME_AND_HOST.match(target)):  # as proxies are asked
            target = target[absolute.end():]
            target = target if target.startswith(b"/") else b"/" + target
        path, _, query = target.partition(b"?")
        body = b"".join(self._chunks)
        self._chunks.clear()
        environ: dict[str, Any] = {
            "REQUEST_METHOD": self._method.decode("latin-1"),
            "SCRIPT_NAME": "",
            "PATH_INFO": (unquote_to_bytes(path) if b"%" in path else path).decode("latin-1"),
            "QUERY_STRING": query.decode("latin-1"),
            "RAW_URI": self._target.decode("latin-1"),
            "SERVER_PROTOCOL": f"HTTP/{self._version}",
            "SERVER_NAME": server[0],
            "SERVER_PORT": str(server[1]),
            "REMOTE_ADDR": peer,
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(body),
            "wsgi.input_terminated": True,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
        }
        environ[LINES] = lines = [
            (name.decode("latin-1"), value.decode("latin-1")) for name, value in self._fields if b"_" not in name
        ]
        for name, value in lines:
            key = name.upper().replace("-", "_")
            if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = f"HTTP_{key}"
            environ[key] = f"{environ[key]},{value}" if key in environ else value
        # It is whole, however it came.
        if environ.pop("HTTP_TRANSFER_ENCODING", None) is not None:
            environ["CONTENT_LENGTH"] = str(len(body))
        return environ

    @property
    def keeps_alive(self) -> bool:
        """Whether the sender would have the connection go on after the answer."""
        return self._keeps_alive and not self._upgrades and not self.pipelined and not self.refused

    def _refuse(self, status: int) -> None:
        self.refused = self.refused or status
        self._chunks.clear()

    # What the parser calls.

    def on_message_begin(self) -> None:
        if self.complete:
            self.pipelined = True

    def on_url(self, part: bytes) -> None:
        if not self.pipelined and not self._head_done:
            self._target += part

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.pipelined or self._head_done:
            return  # what comes behind a body is no header, which a proxy would have looked at
        self._fields.append((name, value.rstrip(b" \t")))
        if len(self._fields) > HEADER_LINES:
            self._refuse(431)

    def on_headers_complete(self) -> None:
        if self.pipelined or self._head_done:
            return
        self._head_done = True
        # Now: later the parser may be at what follows.
        self._method, self._version = self._parser.get_method(), self._parser.get_http_version()
        if sum(len(name) + len(value) for name, value in self._fields) + len(self._target) > HEAD_BYTES:
            self._refuse(431)
        is_new, hosts = self._version == "1.1", 0
        if not is_new and self._version != "1.0":
            self._refuse(505)
        for name, value in self._fields:
            lower = name.lower()
            if lower == b"content-length" and (not value.isdigit() or len(value) > 19 or int(value) > self._limit):
                self._refuse(413)
            elif lower == b"transfer-encoding" and not (is_new and value.lower() == b"chunked"):
                self._refuse(501)
            elif lower == b"expect":
                self.expects = is_new and value.lower() == b"100-continue"
            elif lower == b"host":
                hosts += 1
        if is_new and hosts != 1:
            self._refuse(400)

    def on_body(self, part: bytes) -> None:
        if self.pipelined or self.refused:
            return
        self._size += len(part)
        if self._size > self._limit:
            self._refuse(413)
        else:
            self._chunks.append(part)

    def on_message_complete(self) -> None:
        if not self.complete:
            self._keeps_alive = self._parser.should_keep_alive()
        self.complete = True


class Later(Protocol):
    """An app that returns this from its call gives the answer by ``finish``, once, from any thread; or by ``answer``,
    when it has called ``start_response``.
    """

    head: Sequence[Any]
    """What it called that with: status and header lines."""

    def __iter__(self) -> Iterator[bytes]: ...

    def finish(self, status: str, headers: Iterable[tuple[str, str]], body: bytes, /) -> None: ...

    def answer(self, body: bytes, /) -> None: ...

    def run(self, work: Callable[[], None], /) -> None:
        """Have *work* done in a thread that may wait."""


def run_app(
    app: Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]], environ: dict[str, Any], *,
    keep_alive: Callable[[], bool],
) -> bytes | None:
    """The whole answer of a WSGI app that answers whole. None: it gave back what it has found under LATER.

    Args:
        keep_alive: whether the connection is kept; asked when the app has answered, which may be when we end.
    """
    head: list[Any] = []
    if LATER in environ:
        environ[LATER].head = head

    def start_response(status: str, headers: Sequence[tuple[str, str]], _exc_info: Any = None) -> None:
        head[:] = status, headers

    found = app(environ, start_response)
    if found is environ.get(LATER):
        return None
    body = read_whole(found)
    status, headers = head
    return format_answer(
        status, headers, body, keep_alive=keep_alive(), bare=environ["REQUEST_METHOD"] == "HEAD",
    )


def read_whole(found: Iterable[bytes]) -> bytes:
    """The body that a WSGI app gave back."""
    try:
        return b"".join(found)
    finally:
        if hasattr(found, "close"):
            found.close()


def format_answer(
    status: str, headers: Iterable[tuple[str, str]], body: bytes, *, keep_alive: bool, bare: bool = False
) -> bytes:
    """bare: leave the body out, as HEAD wants it."""
    lines = [f"HTTP/1.1 {status}", f"Date: {_date(int(time.time()))}"]
    sized = False
    for name, value in headers:
        sized = sized or name.lower() == "content-length"
        lines.append(f"{name}: {value}")
    if not sized and status[:3] not in ("204", "304"):
        lines.append(f"Content-Length: {len(body)}")
    lines.append("Connection: keep-alive\r\n\r\n" if keep_alive else "Connection: close\r\n\r\n")
    text = "\r\n".join(lines).encode("latin-1")
    return text if bare else text + body


def format_refusal(status: int, said: Mapping[int, tuple[str, bytes]] = MappingProxyType({})) -> bytes:
    """The answer to what is not read, in its own words only. said: content type and body, by status."""
    words = f"{status} {HTTPStatus(status).phrase}"
    kind, body = said.get(status, ("text/plain; charset=utf-8", f"{words}\n".encode()))
    return format_answer(words, (("Content-Type", kind),), body, keep_alive=False)


@lru_cache(1)
def _date(second: int) -> str:
    return formatdate(second, usegmt=True)
