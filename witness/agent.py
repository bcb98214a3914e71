"""A strict client of an ssh-agent: which Ed25519 keys it holds, and signatures by one of them. Nothing else is asked.

The agent keeps the key, in memory, in a token or on another machine, and hands out signatures. One connection is kept
and made anew when it broke: an Ed25519 signature is the same however often it is asked for. What comes back is
verified before it is used.

Spec: draft-ietf-sshm-ssh-agent (messages 11 to 14); RFC 8709 for Ed25519 keys and signatures.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ktlog.errors import EncodingError, Invalid, StoreError
from ktlog.tlog.ed25519 import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, verify_ed25519

SOCKET_VARIABLE = "SSH_AUTH_SOCK"

#: What OpenSSH's agent sends and takes at most.
MAX_MESSAGE_BYTES = 256 * 1024
MAX_KEYS = 1024
#: For one question; an agent that asks a person takes longer, and is not for a daemon.
ANSWER_SECONDS = 5.0

_FAILURE = 5
_REQUEST_IDENTITIES, _IDENTITIES_ANSWER = 11, 12
_SIGN_REQUEST, _SIGN_RESPONSE = 13, 14
_ED25519 = b"ssh-ed25519"

_Found = TypeVar("_Found")


@dataclass(frozen=True)
class AgentKey:
    """An Ed25519 key that an agent holds. public_key: 32 bytes. comment: as the agent tells it."""

    public_key: bytes
    comment: str

    @property
    def fingerprint(self) -> str:
        """As ``ssh-add -l`` shows it: SHA256: and base64 without padding."""
        digest = hashlib.sha256(_key_blob(self.public_key)).digest()
        return "SHA256:" + base64.b64encode(digest).decode("ascii").rstrip("=")


class Agent:
    """One agent, by its socket. Safe to use from many threads; connects when it is first asked.

    Every error is a StoreError: ``AgentUnreachable``, ``AgentRefused`` (it is locked, or has no such key), or
    ``AgentBroken`` (it answers what an agent must not).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._connection: socket.socket | None = None

    @classmethod
    def from_environment(cls) -> Agent:
        """The agent of $SSH_AUTH_SOCK.

        Raises:
            StoreError: ``AgentUnreachable``: the variable is not set.
        """
        path = os.environ.get(SOCKET_VARIABLE)
        if not path:
            raise StoreError(
                "AgentUnreachable", f"{SOCKET_VARIABLE} is not set",
                hint=f"Start an ssh-agent for this witness alone, and set {SOCKET_VARIABLE} to its socket.",
            )
        return cls(Path(path))

    def list_keys(self) -> tuple[AgentKey, ...]:
        """The Ed25519 keys, in the agent's order. Keys of other kinds are passed over."""
        return self._told(parse_identities, self._ask(bytes((_REQUEST_IDENTITIES,)), _IDENTITIES_ANSWER))

    def sign(self, public_key: bytes, data: bytes) -> bytes:
        """The 64-byte signature of *data* by the key *public_key*, verified."""
        message = bytes((_SIGN_REQUEST,)) + _string(_key_blob(public_key)) + _string(data) + bytes(4)
        signature = self._told(parse_signature, self._ask(message, _SIGN_RESPONSE))
        try:
            verify_ed25519(public_key, signature, data)
        except Invalid:
            raise StoreError("AgentBroken", f"the agent at {self.path} returned a signature that is wrong") from None
        return signature

    def close(self) -> None:
        with self._lock:
            self._hang_up()

    def _told(self, parse: Callable[[bytes], _Found], answer: bytes) -> _Found:
        try:
            return parse(answer)
        except EncodingError as error:
            raise StoreError("AgentBroken", f"the agent at {self.path}: {error.message}") from None

    def _ask(self, message: bytes, expected: int) -> bytes:
        """The body of the agent's answer to *message*, which must be of the kind *expected*."""
        if len(message) > MAX_MESSAGE_BYTES:
            raise StoreError("AgentRefused", "an agent does not sign that much at once")
        with self._lock:
            try:
                answer = self._exchange(message)
            except StoreError:
                self._hang_up()
                raise
        if answer[:1] == bytes((_FAILURE,)):
            raise StoreError(
                "AgentRefused", f"the agent at {self.path} refuses",
                hint="It is locked, or the key is not in it (ssh-add -l shows them), or must be confirmed by a person.",
            )
        if answer[:1] != bytes((expected,)):
            raise StoreError("AgentBroken", f"the agent at {self.path} answers something else than was asked")
        return answer[1:]

    def _exchange(self, message: bytes) -> bytes:
        if self._connection is not None:
            try:
                return self._send(self._connection, message)
            except ConnectionError:  # it was started anew since
                self._hang_up()
            except OSError as error:
                raise self._unreachable(error) from error
        try:
            self._connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._connection.settimeout(ANSWER_SECONDS)
            self._connection.connect(str(self.path))
            return self._send(self._connection, message)
        except OSError as error:
            raise self._unreachable(error) from error

    def _send(self, connection: socket.socket, message: bytes) -> bytes:
        connection.sendall(_string(message))
        size = int.from_bytes(_receive(connection, 4), "big")
        if not 1 <= size <= MAX_MESSAGE_BYTES:
            raise StoreError("AgentBroken", f"the agent at {self.path} announces an answer of {size} bytes")
        return _receive(connection, size)

    def _unreachable(self, error: OSError) -> StoreError:
        return StoreError(
            "AgentUnreachable", f"the agent at {self.path}: {error.strerror or error}",
            hint=f"It must run before the witness does, and {SOCKET_VARIABLE} must name its socket.",
        )

    def _hang_up(self) -> None:
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None


class AgentSigner:
    """A key in an agent, to be used where a private key is."""

    def __init__(self, agent: Agent, public_key: bytes) -> None:
        self._agent, self._public_key = agent, public_key

    def sign(self, data: bytes) -> bytes:
        """Raises StoreError, as Agent does."""
        return self._agent.sign(self._public_key, data)


def parse_identities(body: bytes) -> tuple[AgentKey, ...]:
    """The Ed25519 keys in the body of an identities answer.

    Raises:
        EncodingError: ``BadAgentAnswer``.
    """
    reader = _Reader(body)
    count = int.from_bytes(reader.take(4), "big")
    if count > MAX_KEYS:
        raise EncodingError("BadAgentAnswer", f"it claims to hold {count} keys")
    found = []
    for _ in range(count):
        blob, comment = reader.string(), reader.string()
        key = _Reader(blob)
        if key.string() != _ED25519:
            continue
        public_key = key.string()
        if len(public_key) != PUBLIC_KEY_BYTES:
            raise EncodingError("BadAgentAnswer", f"an Ed25519 key of {len(public_key)} bytes")
        key.finish()
        found.append(AgentKey(public_key, comment.decode("utf-8", "replace")))
    reader.finish()
    return tuple(found)


def parse_signature(body: bytes) -> bytes:
    """The 64 bytes in the body of a sign response.

    Raises:
        EncodingError: ``BadAgentAnswer``.
    """
    reader = _Reader(body)
    inner = _Reader(reader.string())
    reader.finish()
    if inner.string() != _ED25519:
        raise EncodingError("BadAgentAnswer", "a signature of another kind than Ed25519")
    signature = inner.string()
    inner.finish()
    if len(signature) != SIGNATURE_BYTES:
        raise EncodingError("BadAgentAnswer", f"an Ed25519 signature of {len(signature)} bytes")
    return signature


class _Reader:
    """Reads fields off the front of a message."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise EncodingError("BadAgentAnswer", "it ends in the middle of a field")
        self._at += size
        return self._data[self._at - size : self._at]

    def string(self) -> bytes:
        return self.take(int.from_bytes(self.take(4), "big"))

    def finish(self) -> None:
        if self._at != len(self._data):
            raise EncodingError("BadAgentAnswer", "something follows the last field")


def _key_blob(public_key: bytes) -> bytes:
    return _string(_ED25519) + _string(public_key)


def _string(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _receive(connection: socket.socket, size: int) -> bytes:
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(size - len(parts))
        if not part:
            raise ConnectionResetError("it hung up")
        parts += part
    return bytes(parts)
