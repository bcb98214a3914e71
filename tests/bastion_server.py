"""A bastion on loopback, by h2's client side: it takes backends, and a test asks through them, or misbehaves."""

from __future__ import annotations

import hashlib
import queue
import socket
import ssl
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from h2 import events
from h2.config import H2Configuration
from h2.connection import H2Connection

from ktlog.demo.pki import create_pki, pki_in

HOST = "localhost"
SECONDS = 10


class Gone(Exception):
    """The backend ended the connection; *code* is that of its GOAWAY, None without one."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class Reply:
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    done: bool = False
    reset: int | None = None


class Backend:
    """One connection of a backend, which a test drives step by step; nothing is read but while something is waited for."""

    def __init__(self, connection: ssl.SSLSocket) -> None:
        self.socket = connection
        connection.settimeout(SECONDS)
        certificate = x509.load_der_x509_certificate(connection.getpeercert(binary_form=True))
        raw = certificate.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.key_hash = hashlib.sha256(raw).hexdigest()
        self.h2 = H2Connection(H2Configuration(
            client_side=True, header_encoding="utf-8", validate_outbound_headers=False, normalize_outbound_headers=False,
        ))
        self.h2.initiate_connection()
        self.replies: dict[int, Reply] = {}
        self.pongs = self.pings = 0
        self.flush()

    def flush(self) -> None:
        self.raw(self.h2.data_to_send())

    def raw(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            raise Gone from None

    def open(self, path: str, method: str = "GET", *, end: bool = True, extra=(), pseudo=None) -> int:
        number = self.h2.get_next_available_stream_id()
        # Torchwood's bastion puts the hash of the backend's key there, which is too long for a host name's label.
        lines = pseudo or [(":method", method), (":scheme", "https"), (":authority", "a" * 64), (":path", path)]
        self.h2.send_headers(number, [*lines, ("x-forwarded-for", "192.0.2.1"), *extra], end_stream=end)
        self.replies[number] = Reply()
        self.flush()
        return number

    def send(self, number: int, body: bytes, *, end: bool = True) -> None:
        """As the windows allow it, up to the reply."""
        while body and not self.replies[number].done:
            size = min(len(body), self.h2.local_flow_control_window(number), self.h2.max_outbound_frame_size)
            if not size:
                self.step()
                continue
            self.h2.send_data(number, body[:size], end_stream=end and size == len(body))
            body = body[size:]
            self.flush()

    def step(self) -> None:
        """Take in what comes next."""
        try:
            data = self.socket.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            raise Gone
        for event in self.h2.receive_data(data):
            reply = self.replies.get(getattr(event, "stream_id", 0))
            if isinstance(event, events.ResponseReceived):
                reply.status = int(dict(event.headers)[":status"])
                reply.headers = {name: value for name, value in event.headers if name != ":status"}
            elif isinstance(event, events.DataReceived):
                reply.body += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, events.StreamEnded):
                reply.done = True
            elif isinstance(event, events.StreamReset):
                reply.done, reply.reset = True, int(event.error_code)
            elif isinstance(event, events.PingAckReceived):
                self.pongs += 1
            elif isinstance(event, events.PingReceived):
                self.pings += 1
            elif isinstance(event, events.ConnectionTerminated):
                raise Gone(int(event.error_code))
        self.flush()

    def wait(self, number: int) -> Reply:
        while not self.replies[number].done:
            self.step()
        return self.replies[number]

    def ask(self, path: str, body: bytes | None = None, **options) -> Reply:
        number = self.open(path, "GET" if body is None else "POST", end=body is None, **options)
        if body is not None:
            self.send(number, body)
        return self.wait(number)

    def sync(self) -> None:
        """Wait until the backend has read all that was sent so far."""
        pongs = self.pongs
        self.h2.ping(b"bastion!")
        self.flush()
        while self.pongs == pongs:
            self.step()

    def until_gone(self) -> int | None:
        try:
            while True:
                self.step()
        except Gone as gone:
            return gone.code

    def close(self) -> None:
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class BastionServer:
    """Takes the backend whose certificate it is given. context: change it before ``start``."""

    def __init__(self, directory: Path, certificate: bytes) -> None:
        pki = pki_in(directory)
        if not pki.ca_file.exists():
            create_pki(directory, [HOST])
        self.ca_file = str(pki.ca_file)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(pki.certificate_file, pki.key_file)
        self.context.verify_mode = ssl.CERT_REQUIRED
        self.context.load_verify_locations(cadata=certificate.decode("ascii"))
        self.context.set_alpn_protocols(["bastion/0"])
        self.versions: list[str] = []
        self.failures: queue.Queue[str] = queue.Queue()
        self._backends: queue.Queue[Backend] = queue.Queue()
        self._all: list[Backend] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def start(self) -> None:
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for backend in self._all:
            backend.close()

    def backend(self) -> Backend:
        """The next that connects."""
        return self._backends.get(timeout=SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:
                return
            try:
                plain.settimeout(SECONDS)
                connection = self.context.wrap_socket(plain, server_side=True)
                self.versions.append(connection.version())
                self._all.append(Backend(connection))
                self._backends.put(self._all[-1])
            except (OSError, Gone) as error:
                plain.close()
                self.failures.put(str(error))
