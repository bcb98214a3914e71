"""A small HTTPS server on loopback that answers exactly what a test tells it to."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ktlog.demo.pki import create_pki, pki_in
from ktlog.wire.fetch import Dial

HOST = "keys.alpha.example"
OTHER = "keys.beta.example"

#: Bytes to send, seconds to wait, or None to cut the connection.
Step = bytes | float | None


@dataclass(frozen=True)
class Request:
    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    server_name: str | None

    def header(self, name: str) -> str | None:
        values = [value for key, value in self.headers if key.lower() == name]
        assert len(values) <= 1
        return values[0] if values else None


def answer(
    body: bytes = b"ok", status: int = 200, content_type: str | None = "text/plain", **headers: str
) -> list[Step]:
    """A whole response. Underscores in header names become hyphens."""
    fields = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
    if content_type is not None:
        fields["Content-Type"] = content_type
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in fields.items()) + "\r\n"
    return [head.encode("latin-1") + body]


@dataclass
class TlsServer:
    """Has a certificate for HOST, kept in *directory*. connections: how many came. requests: in their order."""

    directory: Path
    behave: Callable[[Request], Sequence[Step]] = lambda request: answer()
    connections: int = 0
    requests: list[Request] = field(default_factory=list)

    def start(self) -> None:
        pki = pki_in(self.directory)
        if not pki.ca_file.exists():
            create_pki(self.directory, [HOST])
        self.ca_file = str(pki.ca_file)
        self._names: dict[int, str | None] = {}
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pki.certificate_file, pki.key_file)
        self._context.sni_callback = lambda sock, name, _: self._names.__setitem__(id(sock), name)
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        self._listener.close()
        for connection in list(self._open):
            with contextlib.suppress(OSError):
                connection.close()

    def dial(self, *hosts: str) -> Dial:
        """Leads *hosts* (HOST when none is named) here."""
        return Dial(dict.fromkeys(hosts or (HOST,), ("127.0.0.1", self.port)), self.ca_file)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as connection:
            self._open.add(connection)
            try:
                for request in _requests(connection, self._names.get(id(connection))):
                    self.requests.append(request)
                    for step in self.behave(request):
                        if step is None:
                            return
                        if isinstance(step, float):
                            time.sleep(step)
                        else:
                            connection.sendall(step)
            finally:
                self._open.discard(connection)


def _requests(connection: ssl.SSLSocket, server_name: str | None) -> Iterator[Request]:
    stream = connection.makefile("rb")
    while line := stream.readline():
        method, target, _ = line.decode("latin-1").split()
        headers = []
        while (line := stream.readline()) not in (b"\r\n", b""):
            name, _, value = line.decode("latin-1").partition(":")
            headers.append((name, value.strip()))
        size = next((int(value) for name, value in headers if name.lower() == "content-length"), 0)
        yield Request(method, target, tuple(headers), stream.read(size), server_name)
