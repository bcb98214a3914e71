"""Raw appends over HTTP, as load generators for tlogs expect them: ``POST /add`` answers with the decimal index.

Full, it answers 503 with Retry-After. It also serves the checkpoint and the tiles. Nothing here is for production: it
takes what anybody sends.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from ktlog.bench.rawlog import RawLog
from ktlog.config import Settings
from ktlog.errors import EncodingError, MessageRejected
from ktlog.store.contracts import TileStore
from ktlog.wire.httpd import format_address, open_listener

MAX_ENTRY_BYTES = 65_535
"""Of an entry in a tlog-tiles bundle."""
MAX_HEAD_BYTES = 16_384
RETRY_SECONDS = 1
_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 413: "Content Too Large", 503: "Service Unavailable"}


class Connection(asyncio.Protocol):
    """One HTTP/1.1 connection, one request at a time."""

    def __init__(self, log: RawLog) -> None:
        self._log = log
        self._buffer = bytearray()
        self._busy = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if not self._busy:
            self._next()

    def _next(self) -> None:
        """Begin with the next request, if it is there whole."""
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                self._answer(400, b"the head is too long\n", last=True)
            return
        try:
            method, target, size = parse_head(bytes(self._buffer[:end]))
        except EncodingError as error:
            self._answer(400, error.message.encode() + b"\n", last=True)
            return
        if size > MAX_ENTRY_BYTES:
            self._answer(413, b"an entry has at most 65535 bytes\n", last=True)
            return
        if len(self._buffer) < end + 4 + size:
            return
        body = bytes(self._buffer[end + 4 : end + 4 + size])
        del self._buffer[: end + 4 + size]
        self._busy = True
        self._do(method, target, body)

    def _do(self, method: str, target: str, body: bytes) -> None:
        if (method, target) == ("POST", "/add"):
            try:
                self._log.append(body).add_done_callback(self._added)
            except MessageRejected as refusal:
                self._answer(503, refusal.message.encode() + b"\n")
        elif method == "GET":
            self._answer(*read_file(self._log.writer.tiles, target))
        else:
            self._answer(404, b"POST /add, GET /checkpoint, GET /tile/...\n")

    def _added(self, done: asyncio.Future[int]) -> None:
        self._answer(200, str(done.result()).encode())

    def _answer(self, status: int, body: bytes, *, last: bool = False) -> None:
        head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Length: {len(body)}\r\n"
        head += f"Retry-After: {RETRY_SECONDS}\r\n" if status == 503 else ""
        head += "Connection: close\r\n" if last else ""
        self._transport.write(f"{head}\r\n".encode("latin-1") + body)
        self._busy = False
        if last:
            self._transport.close()
        elif self._buffer:
            self._next()


def parse_head(head: bytes) -> tuple[str, str, int]:
    """Method, target and body length of a request.

    Raises:
        EncodingError: ``BadRequest``, among them a body in chunks.
    """
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    fields = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = fields.get("content-length", "0")
    if len(words) != 3 or "transfer-encoding" in fields or not (length.isascii() and length.isdigit()):
        raise EncodingError("BadRequest", "a request has a method, a target and a Content-Length")
    return words[0], words[1], int(length[:9])


def read_file(tiles: TileStore, target: str) -> tuple[int, bytes]:
    """Status and content of the checkpoint or a tile."""
    try:
        data = tiles.checkpoint() if target == "/checkpoint" else tiles.read(target.removeprefix("/"))
    except EncodingError:
        data = None
    return (404, b"no such file\n") if data is None else (200, data)


def serve_raw(settings: Settings, listen: str, told: Callable[[str], None]) -> int:
    """Answer until SIGTERM or SIGINT; gives the log's size. *told* gets the address that is listened on.

    Raises:
        UsageError: ``BadListen``. StoreError: the log could not be written any more.
    """
    return asyncio.run(_serve(settings, listen, told))


async def _serve(settings: Settings, listen: str, told: Callable[[str], None]) -> int:
    listener = open_listener(listen)
    loop, log = asyncio.get_running_loop(), RawLog(settings)
    try:
        server = await loop.create_server(lambda: Connection(log), sock=listener)
        over = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, lambda: over.done() or over.set_result(None))
        told(format_address(listener))
        await asyncio.wait([over, log.failed], return_when=asyncio.FIRST_COMPLETED)
        server.close()
    finally:
        await log.close()
    return log.writer.state.size
