"""HTTP/2, served on one connection that we dialled ourselves: each request is handed to a WSGI application.

The peer is a bastion, which passes on what strangers send and is itself trusted with nothing but being there. So

* a request is collected whole before it takes a thread: a slow body holds memory up to its cap, and nothing else;
* each request has one deadline, from its first byte to its answer's last;
* at most so many are in hand, those counted that were given up by the peer and still run here: what is more is
  refused, in the way that says that it was not begun;
* bytes are read only as fast as answers are taken, and frames that bring nothing are counted (_Budget);
* a bad request ends its stream alone, because others' requests come over the same connection; what breaks the
  protocol ends the connection.

The h2 library keeps the protocol's state. It forgets all streams at a GOAWAY in either direction, while both are
meant for leaving in peace: theirs is kept from it here, and ours is written without it.

Spec: RFC 9113; WSGI is PEP 3333.
"""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from h2 import events as h2events
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hyperframe.frame import GoAwayFrame

from witness.config import MAX_BODY_BYTES
from witness.h2request import Answer, BadRequest, WsgiApp, call, format_headers, make_environ, plain

MAX_HEADER_BYTES = 32 * 1024
MAX_FRAME_BYTES = 16384
CONNECTION_WINDOW_BYTES = 1 << 20
#: Pieces of one body that bring next to nothing. A bastion passes on what strangers send, and is not left for that.
CRUMBS = 100
#: For the last bytes, and for the peer to say goodbye.
CLOSE_SECONDS = 1.0
_READ_BYTES = 1 << 16
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _RST_STREAM, _GOAWAY = 1, 3, 7

_LOG = logging.getLogger("ktlog.witness")


@dataclass(frozen=True)
class Limits:
    """What one connection may take. request_seconds: for a whole request, body and answer included.

    ping_seconds: after so long without a byte from the peer we ask whether it is there, and wait as long again.
    write_seconds: how long the peer may take none of ours.
    """

    streams: int = 100
    body_bytes: int = MAX_BODY_BYTES
    request_seconds: float = 30.0
    ping_seconds: float = 15.0
    write_seconds: float = 30.0


class Ended(Exception):  # noqa: N818
    """The connection cannot go on; the message says why, in words of ours."""

    def __init__(self, message: str, code: ErrorCodes = ErrorCodes.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Counters:
    """Requests that came, and of them those that were refused because too many were in hand."""

    requests: int = 0
    refused: int = 0


@dataclass
class _Stream:
    id: int
    environ: dict[str, Any]
    deadline: asyncio.TimerHandle
    body: bytearray = field(default_factory=bytearray)
    crumbs: int = 0
    task: asyncio.Task[None] | None = None
    future: Future[Answer] | None = None
    window: asyncio.Event = field(default_factory=asyncio.Event)


class Connection:
    """One connection; ``run`` it in an event loop.

    Args:
        pool: where the application runs. It may be shared; this connection takes limits.streams of it at most.
        peer: the bastion's (address, port).
    """

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, application: WsgiApp, pool: Executor,
        limits: Limits, peer: tuple[str, int], counters: Counters | None = None,
    ) -> None:
        self._reader, self._writer = reader, writer
        self._application, self._pool, self._limits, self._peer = application, pool, limits, peer
        self._loop = asyncio.get_running_loop()
        self._h2 = H2Connection(H2Configuration(
            client_side=False, header_encoding=None,
            # Ours is stricter, and ends the stream where that of the library ends the connection.
            validate_inbound_headers=False, normalize_inbound_headers=False,
        ))
        self._h2.local_settings = Settings(client=False, initial_values={
            SettingCodes.MAX_CONCURRENT_STREAMS: limits.streams,
            SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_BYTES,
            SettingCodes.ENABLE_CONNECT_PROTOCOL: 0,
        })
        self._budget = _Budget(self._loop.time)
        self._frames = FrameReader(self._budget)
        self._streams: dict[int, _Stream] = {}
        self._orphans: set[Future[Answer]] = set()
        self._reading: asyncio.Task[None] | None = None
        self._leaving = self._finished = False
        self._counters = Counters() if counters is None else counters

    async def run(self) -> str:
        """Serve until either side ends it; return why. What is in hand then is given up."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES)
        self._flush()
        self._reading = asyncio.ensure_future(self._read())
        try:
            await self._reading
            return "it hung up"
        except asyncio.CancelledError:
            if not self._finished:
                raise
            return "done"
        except Ended as end:
            self._say_goodbye(end.code)
            return str(end)
        except ProtocolError as error:  # the library has its GOAWAY ready
            self._flush()
            return f"it broke the protocol: {type(error).__name__}"
        finally:
            for stream in list(self._streams.values()):
                self._forget(stream)
            self._writer.close()
            try:
                async with asyncio.timeout(CLOSE_SECONDS):
                    await self._writer.wait_closed()
            except (OSError, TimeoutError):
                self._writer.transport.abort()

    def leave(self) -> None:
        """Take nothing new, answer what is in hand, then end."""
        if not self._leaving:
            self._leaving = True
            self._say_goodbye(ErrorCodes.NO_ERROR)
        self._finish_if_idle()

    def _finish_if_idle(self) -> None:
        if self._leaving and not self._streams and self._reading is not None:
            self._finished = True
            self._reading.cancel()

    def _say_goodbye(self, code: ErrorCodes) -> None:
        self._flush()
        if not self._writer.is_closing():
            last = self._h2.highest_inbound_stream_id
            self._writer.write(GoAwayFrame(0, last_stream_id=last, error_code=code).serialize())

    # Reading

    async def _read(self) -> None:
        while data := await self._hear():
            for kind, frame in self._frames.split(data):
                if kind == _GOAWAY:
                    self._leaving = True
                    continue
                for event in self._h2.receive_data(frame):
                    self._handle(event)
            self._flush()
            self._finish_if_idle()
            # Nothing more is read while the peer takes nothing: so what we owe it stays bounded.
            await self._written()

    async def _hear(self) -> bytes:
        for asked in (False, True):
            try:
                async with asyncio.timeout(self._limits.ping_seconds):
                    return await self._reader.read(_READ_BYTES)
            except TimeoutError:
                if not asked:
                    self._h2.ping(bytes(8))
                    self._flush()
        raise Ended("it is silent", ErrorCodes.NO_ERROR)

    def _handle(self, event: h2events.Event) -> None:
        if isinstance(event, h2events.RequestReceived):
            self._begin(event)
        elif isinstance(event, h2events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            self._take(event.stream_id, event.data)
        elif isinstance(event, h2events.TrailersReceived):
            self._refuse(event.stream_id, BadRequest(400, "trailers are not taken"))
        elif isinstance(event, h2events.StreamEnded):
            self._launch(event.stream_id)
        elif isinstance(event, h2events.StreamReset):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                self._forget(stream)
        elif isinstance(event, (h2events.WindowUpdated, h2events.RemoteSettingsChanged)):
            named = getattr(event, "stream_id", 0)
            for stream in self._streams.values() if not named else filter(None, (self._streams.get(named),)):
                stream.window.set()

    def _begin(self, event: h2events.RequestReceived) -> None:
        number = event.stream_id
        self._counters.requests += 1
        self._orphans = {one for one in self._orphans if not one.done()}
        if self._leaving or len(self._streams) + len(self._orphans) >= self._limits.streams:
            self._counters.refused += 1
            self._budget.retract()
            self._h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            return
        try:
            environ, length = make_environ(event.headers, self._peer)
            if length is not None and length > self._limits.body_bytes:
                raise BadRequest(413, f"a body may have {self._limits.body_bytes} bytes")
        except BadRequest as error:
            self._refuse(number, error)
            return
        deadline = self._loop.call_later(self._limits.request_seconds, self._overdue, number)
        self._streams[number] = _Stream(number, environ, deadline)

    def _take(self, number: int, data: bytes) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        if len(data) < _Budget.BYTES_PER_FRAME:
            stream.crumbs += 1
            self._budget.give_back()  # the stream pays
            if stream.crumbs > CRUMBS:
                self._refuse(number, BadRequest(400, "the body comes in too many pieces"))
                return
        stream.body += data
        if len(stream.body) > self._limits.body_bytes:
            self._refuse(number, BadRequest(413, f"a body may have {self._limits.body_bytes} bytes"))

    def _overdue(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        if stream.task is None:
            self._refuse(number, BadRequest(408, "the request did not arrive in time"))
        else:
            self._reset(number)
            self._forget(stream)
        self._flush()

    # Answering

    def _launch(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        stream.environ["CONTENT_LENGTH"] = str(len(stream.body))
        stream.environ["wsgi.input"] = io.BytesIO(bytes(stream.body))
        stream.task = self._loop.create_task(self._answer(stream))

    async def _answer(self, stream: _Stream) -> None:
        try:
            stream.future = self._pool.submit(call, self._application, stream.environ)
            answer = await asyncio.wrap_future(stream.future)
        except Exception as error:
            # Its text may quote what a stranger sent.
            _LOG.error("a request from a bastion failed: %s", type(error).__name__)
            answer = plain(500, "it failed here")
        try:
            await self._send(stream, answer)
        except (ProtocolError, OSError):
            self._reset(stream.id)
        stream.task = None
        self._forget(stream)
        self._flush()

    async def _send(self, stream: _Stream, answer: Answer) -> None:
        bodiless = stream.environ["REQUEST_METHOD"] == "HEAD" or answer.status in (204, 304)
        rest = memoryview(b"" if bodiless else answer.body)
        self._h2.send_headers(stream.id, format_headers(answer), end_stream=not rest)
        while rest:
            size = min(len(rest), self._h2.local_flow_control_window(stream.id), self._h2.max_outbound_frame_size)
            if size <= 0:
                stream.window.clear()
                await stream.window.wait()
                continue
            self._h2.send_data(stream.id, bytes(rest[:size]), end_stream=size == len(rest))
            rest = rest[size:]
            self._flush()
            await self._writer.drain()  # the request's deadline bounds it

    def _refuse(self, number: int, error: BadRequest) -> None:
        """Answer at once, without the application, and do not wait for what is left of the request."""
        answer = plain(error.status, str(error))
        with suppress(ProtocolError):
            fits = self._h2.local_flow_control_window(number) >= len(answer.body)
            self._h2.send_headers(number, format_headers(answer), end_stream=not fits)
            if fits:
                self._h2.send_data(number, answer.body, end_stream=True)
        self._reset(number, ErrorCodes.NO_ERROR)
        if number in self._streams:
            self._forget(self._streams[number])

    def _reset(self, number: int, code: ErrorCodes = ErrorCodes.CANCEL) -> None:
        with suppress(ProtocolError):  # it is closed already
            self._h2.reset_stream(number, code)

    def _forget(self, stream: _Stream) -> None:
        self._streams.pop(stream.id, None)
        stream.deadline.cancel()
        if stream.task is not None:
            stream.task.cancel()
        if stream.future is not None and not stream.future.done() and not stream.future.cancel():
            self._orphans.add(stream.future)
        self._finish_if_idle()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data and not self._writer.is_closing():
            self._writer.write(data)

    async def _written(self) -> None:
        try:
            async with asyncio.timeout(self._limits.write_seconds):
                await self._writer.drain()
        except TimeoutError:
            raise Ended("it takes no answers", ErrorCodes.NO_ERROR) from None


class _Budget:
    """How many frames a peer may send: many for each request and each piece of a body, few for nothing.

    A request that is given up at once costs as much as it brought: a peer that opens streams only to reset them
    would otherwise have us work for nothing.
    """

    SECONDS = 10.0
    FRAMES = 2000
    PER_REQUEST = 50
    BYTES_PER_FRAME = 256

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._since = clock()
        self._left = self.FRAMES

    def spend(self, kind: int, size: int) -> None:
        """Raises Ended: too many."""
        now = self._clock()
        if now - self._since > self.SECONDS:
            self._since, self._left = now, self.FRAMES
        self._left += size // self.BYTES_PER_FRAME - 1
        if kind == _HEADERS:
            self._left += self.PER_REQUEST
        elif kind == _RST_STREAM:
            self.retract()
        if self._left < 0:
            raise Ended("it sends frames that bring nothing", ErrorCodes.ENHANCE_YOUR_CALM)

    def give_back(self) -> None:
        """A frame that somebody else pays for."""
        self._left += 1

    def retract(self) -> None:
        """A request brought nothing, because either side gave it up."""
        self._left -= self.PER_REQUEST


class FrameReader:
    """Cuts what arrives into frames."""

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget
        self._data = bytearray()
        self._begun = False

    def split(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Each whole frame with its type; the preface as one of type -1.

        Raises:
            Ended: no HTTP/2, a frame that is too long, or too many.
        """
        self._data += data
        if not self._begun:
            if not _PREFACE.startswith(self._data[: len(_PREFACE)]):
                raise Ended("it does not speak HTTP/2")
            if len(self._data) < len(_PREFACE):
                return
            self._begun = True
            del self._data[: len(_PREFACE)]
            yield -1, _PREFACE
        while len(self._data) >= 9:
            size = int.from_bytes(self._data[:3], "big")
            if size > MAX_FRAME_BYTES:
                raise Ended("a frame is too long", ErrorCodes.FRAME_SIZE_ERROR)
            if len(self._data) < 9 + size:
                return
            kind, frame = self._data[3], bytes(self._data[: 9 + size])
            del self._data[: 9 + size]
            self._budget.spend(kind, size)
            yield kind, frame
