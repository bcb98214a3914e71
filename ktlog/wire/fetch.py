"""HTTPS requests to servers that strangers name.

Everything the network may do to a program that follows other people's URLs is decided here, once:
https only, named hosts on port 443 only, every address of the name checked and exactly the checked address
dialled, certificates verified for the URL's host, redirects followed within one origin only, a byte cap, one
deadline for the whole request, no proxy from the environment, no compression. Callers see ``Unreachable``
with a stable name: ``Timeout``, ``Refused``, ``TlsFailed``, ``BadAddress``, ``TooLarge``, ``BadRedirect``,
``BadStatus``, ``BadContent`` or ``Broken``.

    fetcher = Fetcher.from_environment()
    response = fetcher.get("https://keys.example.social/checkpoint", max_bytes=65536)

One Fetcher keeps connections open and may be used from many threads.
"""

from __future__ import annotations

import http.client
import os
import re
import socket
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Self
from urllib.parse import urljoin

from urllib3.connection import HTTPSConnection
from urllib3.exceptions import HTTPError

from ktlog import __version__
from ktlog.errors import EncodingError, Unreachable
from ktlog.pkd.canonical import parse_json
from ktlog.wire.actor_id import HttpsUrl, parse_https_url
from ktlog.wire.dial import DIAL_VARIABLE, Address, Dial, addresses_of, load_dial
from ktlog.wire.head import StrictResponse, joined_fields
from ktlog.wire.media import media_type

__all__ = ["Dial", "Fetcher", "Response", "load_dial"]

DEFAULT_TIMEOUT_SECONDS = 10.0
DEFAULT_MAX_BYTES = 1 << 20
MAX_REDIRECTS = 2
# Below the keep-alive time of our own server, so that a connection is not used just as it is closed.
MAX_IDLE_SECONDS = 5.0
MAX_IDLE_PER_HOST = 8
MAX_HOSTS = 64

_CHUNK_BYTES = 65536
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_USER_AGENT = f"ktlog/{__version__}"
# How it looks when the other side has closed the connection. RemoteDisconnected is a ConnectionError.
_HUNG_UP = (ConnectionError, ssl.SSLEOFError, ssl.SSLZeroReturnError)
_DIGITS = re.compile(r"[0-9]{1,18}")


@dataclass(frozen=True)
class Response:
    """An answer, whole. headers: names in lower case, repeated ones joined (those with one meaning never are
    repeated: ktlog.wire.head). url: after redirects."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    url: str

    @property
    def content_type(self) -> str:
        """The media type without parameters, in lower case; empty when there is none."""
        return media_type(self.headers.get("content-type", ""))[0]


class _DeadlineSocket(ssl.SSLSocket):
    """A TLS socket whose reads and writes all end at one moment, however slowly bytes trickle in."""

    remaining: Callable[[], float] | None = None

    def _arm(self) -> None:
        if self.remaining is not None:
            self.settimeout(self.remaining())

    def recv_into(self, *arguments: Any, **options: Any) -> int:
        self._arm()
        return super().recv_into(*arguments, **options)

    def send(self, *arguments: Any, **options: Any) -> int:
        self._arm()
        return super().send(*arguments, **options)


class _Connection(HTTPSConnection):
    """A connection for one host name, made to addresses that were checked before."""

    response_class = StrictResponse

    def __init__(self, url: HttpsUrl, context: ssl.SSLContext) -> None:
        super().__init__(url.host, 443, ssl_context=context)
        self.addresses: tuple[Address, ...] = ()
        self.remaining: Callable[[], float] = lambda: 0.0
        self.idle_since = 0.0

    def _new_conn(self) -> socket.socket:
        failure: OSError | None = None
        for address in self.addresses:
            connection = socket.socket(address.family, socket.SOCK_STREAM)
            try:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                connection.settimeout(self.remaining())
                connection.connect(address.sockaddr)
                connection.settimeout(self.remaining())
                return connection
            except OSError as error:
                connection.close()
                failure = error
            except BaseException:
                connection.close()
                raise
        raise failure or AssertionError("a connection without addresses")

    def arm(self, remaining: Callable[[], float]) -> None:
        """Let everything on this connection end when *remaining* has run out."""
        self.remaining = remaining
        if isinstance(self.sock, _DeadlineSocket):
            self.sock.remaining = remaining


class Fetcher:
    """Makes requests, keeping connections. See the module's text for the rules.

    Args:
        dial: addresses for named hosts, instead of name resolution.
        timeout: seconds for a whole request, redirects and body included.
        max_bytes: the longest body accepted unless a call says otherwise.
        now: a monotonic clock in seconds.
        sign_get: headers that sign a GET of a URL; asked again after each redirect. POSTs are their callers' to sign.
        odd: headers of every request, in place of the fetcher's own too, to see how a server takes them.
    """

    def __init__(
        self, dial: Dial | None = None, *, timeout: float = DEFAULT_TIMEOUT_SECONDS,
        max_bytes: int = DEFAULT_MAX_BYTES, now: Callable[[], float] = time.monotonic,
        sign_get: Callable[[HttpsUrl], Mapping[str, str]] | None = None, odd: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self._dial = dial
        self._timeout = timeout
        self._max_bytes = max_bytes
        self._now = now
        self._sign_get = sign_get
        self._odd = odd
        self._contexts: dict[bool, ssl.SSLContext] = {}
        self._forget()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, **options: Any) -> Self:
        """A Fetcher with the dial table that the variable KTLOG_DIAL names, if it is set.

        Raises:
            UsageError: ``BadDial``, ``UnsafeDial``.
        """
        path = (os.environ if environ is None else environ).get(DIAL_VARIABLE)
        return cls(load_dial(path) if path else None, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the idle connections. The Fetcher stays usable."""
        with self._lock:
            idle = [connection for connections in self._idle.values() for connection in connections]
            self._idle.clear()
        for connection in idle:
            connection.close()

    def get(
        self, url: str, *, accept: str = "*/*", headers: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> Response:
        """GET *url*, following at most two redirects within its origin. Any status comes back.

        Raises:
            Unreachable: see the module's text.
        """
        remaining = self._start_clock()
        here = _parse(url)
        fields = {"Accept": accept, **(headers or {})}
        for _ in range(MAX_REDIRECTS + 1):
            signed = fields if self._sign_get is None else {**fields, **self._sign_get(here)}
            response = self._send("GET", here, signed, None, max_bytes, remaining)
            if response.status not in _REDIRECTS:
                return response
            here = _redirected(here, response)
        raise Unreachable("BadRedirect", f"{url} redirects more than {MAX_REDIRECTS} times")

    def post(
        self, url: str, body: bytes, headers: Mapping[str, str] | None = None, *, max_bytes: int | None = None
    ) -> Response:
        """POST *body* to *url* once: follows no redirect, sends nothing twice. Any other status comes back.

        Raises:
            Unreachable: see the module's text. Whether the server has acted on the request is then not known.
        """
        response = self._send("POST", _parse(url), dict(headers or {}), body, max_bytes, self._start_clock())
        if response.status in _REDIRECTS:
            raise Unreachable("BadRedirect", f"{url} answers a POST with a redirect")
        return response

    def fetch_json(
        self, url: str, content_types: Collection[str] = ("application/json",), *,
        max_bytes: int | None = None, parse: Callable[[bytes], Any] = parse_json,
    ) -> Any:
        """The JSON value at *url*: status 200, one of *content_types* (in lower case), parsed strictly.

        Raises:
            Unreachable: also ``BadStatus`` and ``BadContent``.
            EncodingError: the body is not strict JSON.
        """
        response = self.get(url, accept=", ".join(content_types), max_bytes=max_bytes)
        if response.status != 200:
            raise Unreachable("BadStatus", f"{url} answers {response.status}")
        if response.content_type not in content_types:
            raise Unreachable("BadContent", f"{url} is {response.content_type or 'of no type'}")
        return parse(response.body)

    # -- one request

    def _start_clock(self) -> Callable[[], float]:
        deadline = self._now() + self._timeout

        def remaining() -> float:
            left = deadline - self._now()
            if left <= 0:
                raise TimeoutError("the time for the whole request is over")
            return left

        return remaining

    def _send(
        self, method: str, url: HttpsUrl, headers: dict[str, str], body: bytes | None,
        max_bytes: int | None, remaining: Callable[[], float],
    ) -> Response:
        if any(name.lower() in ("host", "accept-encoding", "content-length") for name in headers):
            raise AssertionError("Host, Accept-Encoding and Content-Length are the fetcher's")
        headers = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **headers, **self._odd}
        limit = self._max_bytes if max_bytes is None else max_bytes
        try:
            kept = self._take(url)
            if kept is not None:
                try:
                    return self._exchange(kept, method, url, headers, body, limit, remaining)
                except _HUNG_UP:
                    # The server closed a kept connection just then. Only a GET may be sent again.
                    if method != "GET":
                        raise
            return self._exchange(self._connect(url), method, url, headers, body, limit, remaining)
        except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
            raise _unreachable(url, error) from error

    def _exchange(
        self, connection: _Connection, method: str, url: HttpsUrl, headers: Mapping[str, str],
        body: bytes | None, limit: int, remaining: Callable[[], float],
    ) -> Response:
        done = False
        try:
            connection.arm(remaining)
            if connection.sock is None:
                connection.addresses = addresses_of(url.host, self._dial, remaining)
                connection.timeout = remaining()
                _connect(connection, url)
                connection.arm(remaining)
            connection.timeout = remaining()
            try:
                connection.request(
                    method, url.target, body, headers, preload_content=False, decode_content=False
                )
            except _HUNG_UP:
                # A server that refuses a large body answers, and stops reading. The answer may be there.
                if method != "POST":
                    raise
            answer = connection.getresponse()
            fields = joined_fields(answer.headers)
            _check_framing(url, fields, limit)
            data = _read(answer, url, limit)
            # Bytes beyond the answer would be read as the next one: such a connection is not kept.
            done = connection.sock is not None and not connection.sock.pending()
            return Response(answer.status, fields, data, str(url))
        finally:
            if done:
                self._give_back(url, connection)
            else:
                connection.close()

    # -- kept connections

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: OrderedDict[str, list[_Connection]] = OrderedDict()

    def _take(self, url: HttpsUrl) -> _Connection | None:
        if self._pid != os.getpid():
            # After a fork the parent's connections are still the parent's.
            self._forget()
        while True:
            with self._lock:
                connections = self._idle.get(url.host)
                if not connections:
                    return None
                connection = connections.pop()
            if self._now() - connection.idle_since <= MAX_IDLE_SECONDS and connection.is_connected:
                return connection
            connection.close()

    def _give_back(self, url: HttpsUrl, connection: _Connection) -> None:
        connection.idle_since = self._now()
        surplus: list[_Connection] = []
        with self._lock:
            connections = self._idle.setdefault(url.host, [])
            connections.append(connection)
            self._idle.move_to_end(url.host)
            if len(connections) > MAX_IDLE_PER_HOST:
                surplus.append(connections.pop(0))
            if len(self._idle) > MAX_HOSTS:
                surplus.extend(self._idle.popitem(last=False)[1])
        for old in surplus:
            old.close()

    def _connect(self, url: HttpsUrl) -> _Connection:
        dialled = self._dial is not None and url.host in self._dial.hosts
        own_ca = self._dial.ca_file if dialled and self._dial is not None else None
        context = self._contexts.get(own_ca is not None)
        if context is None:
            context = _tls_context(own_ca or _public_roots())
            self._contexts[own_ca is not None] = context
        return _Connection(url, context)


def _connect(connection: _Connection, url: HttpsUrl) -> None:
    try:
        connection.connect()
    except ssl.SSLError as error:
        raise Unreachable("TlsFailed", f"{url.host}: {error}") from error


def _public_roots() -> str:
    from requests.certs import where  # late: it brings in the whole of requests

    return where()


def _tls_context(ca_file: str) -> ssl.SSLContext:
    """Verify the peer's certificate for the name in the URL, trusting *ca_file* alone."""
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.hostname_checks_common_name = False
    context.sslsocket_class = _DeadlineSocket
    return context


def _parse(url: str) -> HttpsUrl:
    try:
        return parse_https_url(url)
    except EncodingError as error:
        raise Unreachable("BadAddress", error.message) from None


def _redirected(here: HttpsUrl, response: Response) -> HttpsUrl:
    location = response.headers.get("location", "")
    try:
        there = parse_https_url(urljoin(str(here), location.partition("#")[0]))
    except (EncodingError, ValueError):
        raise Unreachable("BadRedirect", f"{here} redirects to no URL that may be followed") from None
    if there.host != here.host:
        raise Unreachable("BadRedirect", f"{here} redirects to another origin, {there.host}")
    return there


def _check_framing(url: HttpsUrl, fields: Mapping[str, str], limit: int) -> None:
    if fields.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise Unreachable("BadContent", f"{url} answers in an encoding that was not asked for")
    length = fields.get("content-length")
    if length is not None and not _DIGITS.fullmatch(length):
        raise Unreachable("Broken", f"{url} states no valid length")
    if length is not None and int(length) > limit:
        raise Unreachable("TooLarge", f"{url} is longer than {limit} bytes")


def _read(answer: Any, url: HttpsUrl, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while part := answer.read(min(_CHUNK_BYTES, limit + 1 - size), decode_content=False):
        parts.append(part)
        size += len(part)
        if size > limit:
            raise Unreachable("TooLarge", f"{url} is longer than {limit} bytes")
    return b"".join(parts)


def _unreachable(url: HttpsUrl, error: BaseException) -> Unreachable:
    """Name what went wrong, looking through the wrappers that the HTTP library puts around it."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        inner = [argument for argument in cause.args if isinstance(argument, BaseException)]
        cause = cause.__cause__ or (inner[0] if inner else cause.__context__)
    for name, kinds in (
        ("Timeout", TimeoutError),
        ("Refused", ConnectionRefusedError),
        ("Broken", _HUNG_UP),
        ("TlsFailed", ssl.SSLError),
    ):
        for found in causes:
            if isinstance(found, kinds):
                return Unreachable(name, f"{url.host}: {found}")
    return Unreachable("Broken", f"{url.host}: {error}")
