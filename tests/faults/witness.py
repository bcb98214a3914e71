"""A witness that the log under test cannot hurt: the real judgement, and everything that it was ever shown.

It lives in the harness's process and remembers in memory. The log's process reaches it over a socket pair instead of
HTTPS: ``Line`` stands where the fetcher would.
"""

from __future__ import annotations

import pickle
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    Note,
    Vkey,
    format_note,
    format_signature_line,
    signer_from_seed,
)
from ktlog.tlog.policy import Group, Policy, format_policy
from ktlog.tlog.policy import Witness as PolicyWitness
from ktlog.wire.fetch import Response
from witness.decide import Cosigned, Refuse, decide, parse_request

NAME = "w1.witness.example"
URL = f"https://{NAME}"
SIGNERS = (
    signer_from_seed(NAME, COSIGNATURE_ED25519, bytes([31]) * 32),
    signer_from_seed(NAME, COSIGNATURE_MLDSA44, bytes([32]) * 32),
)


def policy_text() -> bytes:
    lines = {f"w-{signer.vkey.algorithm}": PolicyWitness(f"w-{signer.vkey.algorithm}", signer.vkey, URL) for signer in SIGNERS}
    return format_policy(Policy((), lines, {"w": Group("w", 2, tuple(lines))}, "w"))


@dataclass
class Memory:
    """What it cosigned last, by origin; every signed note it was shown, in order; and why it refused what."""

    latest: dict[str, Cosigned] = field(default_factory=dict)
    notes: list[bytes] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)

    def copy(self) -> Memory:
        return Memory(dict(self.latest), list(self.notes), [])


class FaultWitness:
    """vkeys: the log's, by origin. awake: whether it answers at all."""

    def __init__(self, vkeys: Mapping[str, tuple[Vkey, ...]], memory: Memory) -> None:
        self.vkeys = vkeys
        self.memory = memory
        self.awake = True

    def answer(self, method: str, url: str, body: bytes) -> Response:
        if not self.awake:
            return _respond(503, b"asleep\n", "text/plain", url)
        if method == "GET":
            for origin, latest in self.memory.latest.items():
                if sha256(origin.encode()).hexdigest() in url:
                    return _respond(200, latest.note, "text/plain", url)
            return _respond(404, b"", "text/plain", url)
        # Kept before it is judged: whatever left the process was signed, whatever became of it.
        self.memory.notes.append(body.partition(b"\n\n")[2])
        request = parse_request(body)
        origin = request.checkpoint.origin
        judged = decide(request, self.memory.latest.get(origin), self.vkeys.get(origin, ()), int(time.time()))
        if isinstance(judged, Refuse):
            self.memory.refusals.append(f"{origin} {request.checkpoint.size}: {judged.reason}")
            return _respond(judged.status, judged.body, judged.content_type, url)
        lines = tuple(signer.sign(judged.text, judged.time) for signer in SIGNERS)
        own = tuple(verified.line for verified in judged.log_signatures)
        note = format_note(Note(judged.text, own + lines))
        self.memory.latest[origin] = Cosigned(judged.expected_revision + 1, judged.checkpoint, judged.time, note)
        return _respond(200, b"".join(map(format_signature_line, lines)), "text/plain", url)


def _respond(status: int, body: bytes, content_type: str, url: str) -> Response:
    return Response(status, {"content-type": content_type}, body, url)


def origins_of(note: bytes) -> str:
    return parse_signed_checkpoint(note)[1].origin


# Between the two processes


def send(connection: socket.socket, what: Any) -> None:
    data = pickle.dumps(what)
    connection.sendall(len(data).to_bytes(4, "big") + data)


def receive(connection: socket.socket) -> Any:
    """What the other side sent; None when it is gone."""
    head = _exactly(connection, 4)
    data = None if head is None else _exactly(connection, int.from_bytes(head, "big"))
    return None if data is None else pickle.loads(data)


def _exactly(connection: socket.socket, count: int) -> bytes | None:
    parts = b""
    while len(parts) < count:
        try:
            more = connection.recv(count - len(parts))
        except OSError:
            return None
        if not more:
            return None
        parts += more
    return parts


class Line:
    """A ``Fetcher`` for the log's process: every request goes through one socket, in turn."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()

    def post(self, url: str, body: bytes, headers: Mapping[str, str] | None = None, **_more: Any) -> Response:
        return self._ask("POST", url, body)

    def get(self, url: str, *_arguments: Any, **_more: Any) -> Response:
        return self._ask("GET", url, b"")

    def close(self) -> None:
        pass

    def _ask(self, method: str, url: str, body: bytes) -> Response:
        with self._lock:
            send(self._connection, (method, url, body))
            found = receive(self._connection)
        if found is None:
            raise OSError("the harness is gone")
        return found
