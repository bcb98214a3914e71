"""The client of https-bastions: dials them, and serves HTTP/2 on the connections that it dialled.

A bastion has a public address, and this machine needs none. Whoever asks ``https://BASTION/<hash of our bastion
key>/add-checkpoint`` is answered from here. The bastion can withhold, read and change what passes, as any reverse proxy
can; what a witness signs is checked by its vkeys, so all that this costs is being there.

One thread runs all connections, each bastion's by itself: dialled again when it ends, after 100 ms at first and
60 s at last. Requests run in a pool of threads.

Spec: C2SP https-bastion.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import random
import re
import signal
import socket
import ssl
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ktlog.errors import EncodingError, StoreError, UsageError
from ktlog.tlog.encoding import parse_decimal
from witness.config import THREADS
from witness.h2request import WsgiApp
from witness.h2server import Connection, Counters, Limits

ALPN = "bastion/0"
DIAL_SECONDS = 15.0
#: Below what gunicorn leaves a worker for its end.
DRAIN_SECONDS = 8.0

_ADDRESS = re.compile(r"(?:([A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?)|\[([0-9A-Fa-f:]+)\])(?::([0-9]+))?")

_LOG = logging.getLogger("ktlog.witness.bastion")


@dataclass(frozen=True)
class Bastion:
    """Where a bastion takes backends."""

    host: str
    port: int = 443

    @property
    def host_in_url(self) -> str:
        """Where the bastion's own clients go, if it is at the usual port for them."""
        return f"[{self.host}]" if ":" in self.host else self.host

    def __str__(self) -> str:
        return self.host_in_url if self.port == 443 else f"{self.host_in_url}:{self.port}"


@dataclass(frozen=True)
class Backoff:
    """Seconds between two attempts: *first*, then twice as many each time, *last* at most.

    A connection that lasted for *last* begins anew; one that a bastion takes and drops at once does not.
    """

    first: float = 0.1
    last: float = 60.0


@dataclass(frozen=True)
class BastionOptions:
    """What ``serve`` is told. ca_file: all that TLS trusts, instead of the system's; seed: of the bastion key."""

    bastions: tuple[Bastion, ...]
    seed: bytes
    ca_file: str | None = None


@dataclass
class BastionState:
    """How one bastion does, for metrics. error: why it is not connected, or was not before."""

    bastion: Bastion
    connected: bool = False
    connections: int = 0
    counters: Counters = field(default_factory=Counters)
    error: str = ""


def parse_bastion(text: str) -> Bastion:
    """``HOST``, ``HOST:PORT`` or ``[::1]:PORT``.

    Raises:
        UsageError: ``BadBastion``.
    """
    match = _ADDRESS.fullmatch(text)
    try:
        if match is not None:
            return Bastion((match[1] or match[2]).lower(), 443 if match[3] is None else parse_decimal(match[3], 65535))
    except EncodingError:
        pass
    raise UsageError("BadBastion", f"{text!a} is not HOST or HOST:PORT", hint="Give its name without https:// or path.")


def public_key(seed: bytes) -> bytes:
    """The 32 bytes by which bastions know a backend."""
    return Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw()


def path_prefix(seed: bytes) -> str:
    """The first segment of the path at every bastion: lowercase hex SHA-256 of the public key."""
    return hashlib.sha256(public_key(seed)).hexdigest()


def make_certificate(seed: bytes) -> bytes:
    """A self-signed client certificate, in PEM. Only its key says anything, so it is the same every time and for ever.

    Spec: RFC 5280 §4.1.2.5 for the end that is none; RFC 8410.
    """
    key = Ed25519PrivateKey.from_private_bytes(seed)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "bastion backend")])
    usage = dict.fromkeys((
        "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
        "encipher_only", "decipher_only",
    ), False)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(datetime(2000, 1, 1)).not_valid_after(datetime(9999, 12, 31, 23, 59, 59))
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False)
        .sign(key, None)
    )
    return certificate.public_bytes(Encoding.PEM)


def tls_context(options: BastionOptions) -> ssl.SSLContext:
    """TLS 1.3 and nothing older, which would show our certificate to onlookers; the bastion's is verified by its name.

    Raises:
        StoreError: ``BadCertificates``: the file with the trusted ones cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except OSError as error:
        raise StoreError("BadCertificates", f"{options.ca_file}: {error.strerror or error}") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.hostname_checks_common_name = False
    context.set_alpn_protocols([ALPN])
    key = Ed25519PrivateKey.from_private_bytes(options.seed)
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with _in_file(private + make_certificate(options.seed)) as path:
        context.load_cert_chain(path)
    return context


@contextmanager
def _in_file(data: bytes) -> Iterator[str]:
    """The ssl module takes keys from files only. This one is in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        with os.fdopen(os.memfd_create("bastion", os.MFD_CLOEXEC), "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{file.fileno()}"
    else:
        with tempfile.NamedTemporaryFile() as named:  # 0600
            named.write(data)
            named.flush()
            yield named.name


class Bastions:
    """Serves *application* through every bastion, from a thread of its own. Not across a fork."""

    def __init__(
        self, application: WsgiApp, options: BastionOptions, *, limits: Limits | None = None,
        backoff: Backoff | None = None, threads: int = THREADS,
    ) -> None:
        self.states = tuple(BastionState(bastion) for bastion in options.bastions)
        self._application, self._options = application, options
        self._limits = Limits() if limits is None else limits
        self._backoff = Backoff() if backoff is None else backoff
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="bastion-request")
        self._loop = asyncio.new_event_loop()
        self._open: set[Connection] = set()
        self._leaving = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="bastions", daemon=True)

    def start(self) -> None:
        """Begin to dial."""
        self._thread.start()

    def leave(self) -> None:
        """Take no new request, answer what is in hand, dial no more. Returns at once; a signal handler may call it."""
        with suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(self._begin_to_leave)

    def close(self, seconds: float = DRAIN_SECONDS) -> None:
        """``leave``, and wait until it is done, so long at most."""
        self.leave()
        if self._thread.ident is None:
            self._loop.close()
        else:
            self._thread.join(seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _begin_to_leave(self) -> None:
        self._leaving.set()
        for connection in tuple(self._open):
            connection.leave()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._keep_all())
        finally:
            self._loop.close()

    async def _keep_all(self) -> None:
        await asyncio.gather(*(self._keep(state) for state in self.states))

    async def _keep(self, state: BastionState) -> None:
        """Be connected to one bastion until we leave."""
        wait = self._backoff.first
        while not self._leaving.is_set():
            began = self._loop.time()
            try:
                ended = await self._connect_and_serve(state)
            except (OSError, StoreError) as error:
                ended = _describe(error)
            except Exception as error:
                # Whatever it is, the other bastions and the next attempt are not to suffer from it.
                # Its text may quote what a stranger sent.
                _LOG.debug("the connection to the bastion %s failed", state.bastion, exc_info=True)
                ended = type(error).__name__
            if self._leaving.is_set():
                return
            if self._loop.time() - began >= self._backoff.last:
                wait = self._backoff.first
            _LOG.log(
                logging.DEBUG if ended == state.error else logging.WARNING,
                "not connected to the bastion %s: %s; dialling it again", state.bastion, ended,
            )
            state.error = ended
            with suppress(TimeoutError):
                async with asyncio.timeout(wait * random.SystemRandom().uniform(0.75, 1)):
                    await self._leaving.wait()
            wait = min(2 * wait, self._backoff.last)

    async def _connect_and_serve(self, state: BastionState) -> str:
        """Dial once, and serve until it ends; return why. Raises OSError, StoreError."""
        bastion = state.bastion
        async with asyncio.timeout(DIAL_SECONDS):
            reader, writer = await asyncio.open_connection(
                bastion.host, bastion.port, ssl=tls_context(self._options), server_hostname=bastion.host,
            )
        try:
            if writer.get_extra_info("ssl_object").selected_alpn_protocol() != ALPN:
                return "it is no bastion: it does not take bastion/0"
            connection = Connection(
                reader, writer, self._application, self._pool, self._limits, writer.get_extra_info("peername")[:2],
                state.counters,
            )
            self._open.add(connection)
            state.connected = True
            state.connections += 1
            _LOG.info("connected to the bastion %s", bastion)
            try:
                if self._leaving.is_set():
                    return "leaving"
                return await connection.run()
            finally:
                self._open.discard(connection)
                state.connected = False
        finally:
            writer.close()


def _describe(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or error}"
    if isinstance(error, socket.gaierror):
        return f"its name leads nowhere: {error.strerror}"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno)
    return str(error)


def dial_until_sigterm(application: WsgiApp, options: BastionOptions) -> Bastions:
    """Begin to dial; SIGTERM begins the end of it, before what it does already. In the main thread.

    The caller must ``close`` what is returned, to wait for that end.
    """
    bastions = Bastions(application, options)
    bastions.start()
    previous = signal.getsignal(signal.SIGTERM)

    def end(number: int, frame: Any) -> None:
        bastions.leave()
        if callable(previous):
            previous(number, frame)

    signal.signal(signal.SIGTERM, end)
    signal.siginterrupt(signal.SIGTERM, False)
    return bastions


def list_urls(options: BastionOptions) -> tuple[str, ...]:
    """Where others reach us."""
    return tuple(f"https://{bastion.host_in_url}/{path_prefix(options.seed)}" for bastion in options.bastions)
