"""How the web workers talk to the sequencer: framed JSON over a Unix socket.

A frame is a 4-byte big-endian length and that many bytes of JSON. One request, one answer, in
turn, as often as the connection lasts. Only the log's own processes can reach the socket (it
lies in a 0700 directory), yet both sides bound every length.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal

FRAME_LIMIT_BYTES = 1 << 20


@dataclass(frozen=True)
class Submission:
    """A message that passed admission, on its way to a leaf index.

    ``preimage`` is the canonical text that the entry commits to, ``plain`` the text of its
    encrypted attributes and ``keys`` their 32-byte symmetric keys.
    """

    preimage: bytes
    plain: Mapping[str, str]
    keys: Mapping[str, bytes]


@dataclass(frozen=True)
class Receipt:
    """Where an accepted message ended up: durable before anybody sees this."""

    leaf_index: int
    entry: bytes
    root: str
    duplicate: bool = False


def encode_submission(submission: Submission) -> bytes:
    return canonical({
        "op": "append",
        "preimage": encode_base64(submission.preimage),
        "plain": dict(submission.plain),
        "keys": {name: encode_base64(key) for name, key in submission.keys.items()},
    })


def decode_submission(request: Mapping[str, Any]) -> Submission:
    try:
        plain = request["plain"]
        if not isinstance(plain, dict) or not all(isinstance(text, str) for text in plain.values()):
            raise EncodingError("BadRequest", "the attributes are not a table of texts")
        keys = {name: decode_base64(key, 32) for name, key in request["keys"].items()}
        return Submission(decode_base64(request["preimage"]), plain, keys)
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadRequest", "not a submission") from None


def encode_receipt(receipt: Receipt) -> bytes:
    return canonical({
        "ok": {
            "leaf-index": str(receipt.leaf_index),
            "entry": encode_base64(receipt.entry),
            "root": receipt.root,
            "duplicate": "yes" if receipt.duplicate else "no",
        }
    })


def decode_receipt(answer: Any) -> Receipt:
    """Read what encode_receipt or encode_refusal made.

    Raises:
        MessageRejected: it is a refusal.
        EncodingError: it is neither.
    """
    try:
        if "error" in answer:
            raise MessageRejected(answer["error"]["code"], answer["error"]["message"])
        found = answer["ok"]
        duplicate = {"yes": True, "no": False}[found["duplicate"]]
        return Receipt(parse_decimal(found["leaf-index"]), decode_base64(found["entry"]), found["root"], duplicate)
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadAnswer", "the sequencer's answer is neither a receipt nor a refusal") from None


def encode_refusal(code: str, message: str) -> bytes:
    return canonical({"error": {"code": code, "message": message}})


def send_frame(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(len(payload).to_bytes(4, "big") + payload)


def receive_frame(connection: socket.socket) -> bytes | None:
    """The next frame, or None when the other side closed between frames."""
    header = _receive_exactly(connection, 4)
    if header is None:
        return None
    length = int.from_bytes(header, "big")
    if length > FRAME_LIMIT_BYTES:
        raise EncodingError("FrameTooLarge", f"a frame of {length} bytes; the limit is {FRAME_LIMIT_BYTES}")
    payload = _receive_exactly(connection, length)
    if payload is None:
        raise EncodingError("BrokenFrame", "the connection closed inside a frame")
    return payload


def _receive_exactly(connection: socket.socket, count: int) -> bytes | None:
    parts: list[bytes] = []
    missing = count
    while missing:
        part = connection.recv(min(missing, 65_536))
        if not part:
            if parts:
                raise EncodingError("BrokenFrame", "the connection closed inside a frame")
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


class SequencerLink:
    """A web worker's side: one connection per thread, made anew after any failure.

    A connection that an earlier request left open may have died with a restarted sequencer, so
    a failure on one is tried once more on a new one. That is safe even when the sequencer had
    accepted: a message is unique by its hash, and the second try gets the first one's receipt.
    """

    def __init__(self, record: Path, timeout_seconds: float = 25.0) -> None:
        self._record = record
        self._timeout_seconds = timeout_seconds
        self._local = threading.local()

    def append(self, submission: Submission) -> Receipt:
        """Hand a message to the sequencer and wait until it is durable.

        Raises:
            MessageRejected: refused; nothing changed. ``too_large`` never gets as far as the sequencer.
            StoreError: ``SequencerUnreachable`` (whether it was accepted is not known).
        """
        payload = encode_submission(submission)
        if len(payload) > FRAME_LIMIT_BYTES:
            raise MessageRejected("too_large", "the message is longer than this log takes")
        try:
            return decode_receipt(self._ask(payload))
        except EncodingError as error:
            self._drop()
            raise StoreError("SequencerUnreachable", f"the sequencer's answer does not parse: {error}") from None

    def ping(self) -> None:
        """Raise StoreError unless the sequencer answers."""
        self._ask(canonical({"op": "ping"}))

    def _ask(self, payload: bytes) -> Any:
        reused = getattr(self._local, "connection", None) is not None
        try:
            return self._exchange(payload)
        except (OSError, EncodingError) as first:
            self._drop()
            error: Exception = first
        if reused:
            try:
                return self._exchange(payload)
            except (OSError, EncodingError) as second:
                self._drop()
                error = second
        raise StoreError(
            "SequencerUnreachable", f"the sequencer did not answer ({error}); whether it accepted is not known",
            hint="The service restarts it by itself; send the message again in a moment.",
        )

    def _exchange(self, payload: bytes) -> Any:
        connection = self._connection()
        send_frame(connection, payload)
        answer = receive_frame(connection)
        if answer is None:
            raise EncodingError("BrokenFrame", "the sequencer closed the connection")
        return parse_json(answer)

    def _connection(self) -> socket.socket:
        connection = getattr(self._local, "connection", None)
        if connection is None:
            address = self._record.read_text(encoding="utf-8").strip()
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(self._timeout_seconds)
            try:
                connection.connect(address)
            except OSError:
                connection.close()
                raise
            self._local.connection = connection
        return connection

    def _drop(self) -> None:
        connection = getattr(self._local, "connection", None)
        self._local.connection = None
        if connection is not None:
            connection.close()
