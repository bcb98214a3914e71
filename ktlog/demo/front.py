"""The demo's TLS front: one port, many host names, each led to its own backend on loopback.

It stands in for the reverse proxy of a real installation. After the TLS handshake it relays bytes and does
not look at them. Which backend a name leads to is in ``routes.json``; replacing that file, atomically,
repoints a name while the front runs, and connections that lead to the old backend are closed.

    python -m ktlog.demo.front --dir D --listen 127.0.0.1:4433

D holds ``server.pem``, ``server.key`` (ktlog.demo.pki) and ``routes.json``: ``{"host": "127.0.0.1:8001"}``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import socket
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktlog.demo.pki import pki_in
from ktlog.durable import write_atomic
from ktlog.errors import EncodingError, KtlogError, UsageError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.wire.actor_id import parse_host
from ktlog.wire.dial import parse_loopback
from ktlog.wire.httpd import open_listener

ROUTES_FILE = "routes.json"
MAX_CONNECTIONS = 512
CHUNK_BYTES = 65536
HANDSHAKE_SECONDS = 10
IDLE_SECONDS = 120
LINGER_SECONDS = 2
ROUTE_CHECK_SECONDS = 0.05

Backend = tuple[str, int]


def write_routes(directory: Path, routes: Mapping[str, str]) -> None:
    """Replace the routes (host to ``ADDRESS:PORT``) that a front in *directory* follows.

    Raises:
        UsageError: ``BadRoutes``, ``BadDial``, ``UnsafeDial``.
    """
    data = canonical(dict(routes))
    parse_routes(data)
    write_atomic(directory / ROUTES_FILE, data)


def parse_routes(data: bytes) -> dict[str, Backend]:
    """Host to backend. Raises UsageError: ``BadRoutes``, ``BadDial``, ``UnsafeDial`` (off loopback)."""
    try:
        table = parse_json(data)
        if not isinstance(table, dict) or not all(isinstance(target, str) for target in table.values()):
            raise UsageError("BadRoutes", "routes are an object of strings")
        return {parse_host(host): parse_loopback(target) for host, target in table.items()}
    except EncodingError as error:
        raise UsageError("BadRoutes", f"the routes do not parse: {error}") from None


class Routes:
    """The routes in a file, read again whenever the file is another one."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._routes: dict[str, Backend] = {}

    def find(self, host: str) -> Backend | None:
        """The backend of *host*, by the newest routes that parse."""
        try:
            found = os.stat(self._path)
            stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
            if stamp != self._stamp:
                self._routes = parse_routes(self._path.read_bytes())
                self._stamp = stamp
        except (OSError, KtlogError) as error:
            _complain(f"keeping the old routes: {error}")
        return self._routes.get(host)


def tls_context(directory: Path, routes: Routes) -> ssl.SSLContext:
    """Serve the certificate in *directory* to clients that name a routed host, and to no others.

    Raises:
        UsageError: ``BadCertificate``.
    """
    pki = pki_in(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(pki.certificate_file, pki.key_file)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError("BadCertificate", f"no certificate in {directory}: {error}") from None

    def choose(connection: ssl.SSLObject, host: str | None, _context: ssl.SSLContext) -> int | None:
        if host is None or routes.find(host) is None:
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        connection.ktlog_host = host  # type: ignore[attr-defined]
        return None

    context.sni_callback = choose
    return context


@dataclass(eq=False)
class _Relay:
    """One connection. stale: its host leads elsewhere by now."""

    host: str
    backend: Backend
    stale: asyncio.Event = field(default_factory=asyncio.Event)


class Front:
    """Relays the connections of one listening socket."""

    def __init__(self, routes: Routes) -> None:
        self._routes = routes
        self._relays: set[_Relay] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, listener: socket.socket, context: ssl.SSLContext) -> None:
        """Serve until cancelled."""
        server = await asyncio.start_server(
            self._accept, sock=listener, ssl=context, ssl_handshake_timeout=HANDSHAKE_SECONDS,
            ssl_shutdown_timeout=LINGER_SECONDS, limit=CHUNK_BYTES,
        )
        try:
            while True:
                await asyncio.sleep(ROUTE_CHECK_SECONDS)
                for relay in self._relays:
                    if self._routes.find(relay.host) != relay.backend:
                        relay.stale.set()
        finally:
            server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._handle(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client connection, after its handshake."""
        host = writer.get_extra_info("ssl_object").ktlog_host
        backend = self._routes.find(host)
        try:
            if backend is not None and len(self._relays) < MAX_CONNECTIONS:
                await self._relay(host, backend, reader, writer)
        except OSError:
            pass  # a side has left, or the backend is down: the client sees its connection end
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            await _close(writer)

    async def _relay(
        self, host: str, backend: Backend, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        relay = _Relay(host, backend)
        self._relays.add(relay)
        tasks: list[asyncio.Task[Any]] = []
        try:
            answer, to_backend = await asyncio.open_connection(*backend, limit=CHUNK_BYTES)
            try:
                tasks = [
                    asyncio.create_task(self._ask(reader, to_backend, relay)),
                    asyncio.create_task(_copy(answer, writer)),
                    asyncio.create_task(relay.stale.wait()),
                ]
                await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for task in tasks:
                    await _stop(task)
                await _close(to_backend)
        finally:
            self._relays.discard(relay)

    async def _ask(self, reader: asyncio.StreamReader, to_backend: asyncio.StreamWriter, relay: _Relay) -> None:
        while chunk := await asyncio.wait_for(reader.read(CHUNK_BYTES), IDLE_SECONDS):
            if self._routes.find(relay.host) != relay.backend:
                return
            to_backend.write(chunk)
            await to_backend.drain()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    while chunk := await asyncio.wait_for(source.read(CHUNK_BYTES), IDLE_SECONDS):
        target.write(chunk)
        await target.drain()


async def _stop(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _close(writer: asyncio.StreamWriter) -> None:
    """Say good-bye. For TLS, asyncio takes what the peer still sends off the wire meanwhile: with unread bytes
    on a closed connection, the peer's kernel would throw away the answer that is on the way."""
    writer.close()
    with contextlib.suppress(OSError):
        await asyncio.wait_for(writer.wait_closed(), LINGER_SECONDS)


def _complain(text: str) -> None:
    print(f"ktlog front: {text}", file=sys.stderr, flush=True)


async def _main(directory: Path, listen: str) -> None:
    routes = Routes(directory / ROUTES_FILE)
    context = tls_context(directory, routes)
    listener = open_listener(listen)
    listener.setblocking(False)
    serving = asyncio.create_task(Front(routes).run(listener, context))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await serving


def main(arguments: list[str] | None = None) -> int:
    """Run a front until SIGTERM or SIGINT. The exit code is the error's."""
    parser = argparse.ArgumentParser(prog="ktlog.demo.front", description="The demo's TLS front.")
    parser.add_argument("--dir", required=True, type=Path, help="server.pem, server.key and routes.json")
    parser.add_argument("--listen", required=True, help="ADDRESS:PORT or fd://N")
    options = parser.parse_args(arguments)
    try:
        asyncio.run(_main(options.dir, options.listen))
    except KtlogError as error:
        _complain(error.diagnostics())
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
