"""Who signs for a log: a process of its own that holds the keys, and how the sequencer's process talks to it.

Frames of :mod:`ktlog.operator.link` over a Unix socket. A request is canonical JSON with an ``op``; the answer is
``{"ok": …}`` or ``{"error": …}``. ``entries`` is followed by that many frames with preimages, and so is its answer, by
the entries. One request at a time on a connection.

The sequencer's process starts the signer (``python -m ktlog.operator.signer``) with two connections that nobody else
can open, and both end together. Where ``ktlog.toml`` says ``signer = "PATH"``, it is reached there instead, and whoever
runs the machine started it, with a user id of its own.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from ktlog.children import child_environment
from ktlog.config import Settings
from ktlog.errors import EncodingError, StoreError
from ktlog.operator.head import HeadSigner, LocalHeads, SignedHead
from ktlog.operator.keys import (
    LeafKey,
    PublicKeys,
    load_checkpoint_signers,
    load_leaf_key,
    load_map_signers,
    old_checkpoint_signers,
    old_map_signers,
)
from ktlog.operator.leaves import SignEntries, local_signer
from ktlog.operator.link import receive_frame
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.keys import decode_public_key, encode_public_key
from ktlog.store.documents import FileDocument
from ktlog.tlog.encoding import decode_base64, encode_base64, parse_decimal
from ktlog.tlog.note import SignatureLine, Vkey, format_signature_line, parse_signature_lines, parse_vkey

LOG, MAP = "log", "map"
MOST_ENTRIES = 4096
ANSWER_SECONDS = 60.0
END_SECONDS = 10.0


@dataclass(frozen=True)
class Custody:
    """What signs for a log. ``public`` tells with which keys; ``close`` ends what has to end with it."""

    sign_entries: SignEntries
    log_heads: HeadSigner
    map_heads: HeadSigner
    public: PublicKeys
    close: Callable[[], None] = lambda: None


def local_custody(settings: Settings, now: Callable[[], int]) -> Custody:
    """The keys in this process. A log that is served has them in the signer's, which calls this.

    Raises:
        StoreError: "MissingSecret", "UnsafeSecret", "BadSecret", "BadSignedHead".
    """
    directory, origin = settings.keys, settings.origin
    leaf_key: LeafKey = load_leaf_key(directory)
    signers, map_signers = load_checkpoint_signers(directory, origin), load_map_signers(directory, origin)
    return Custody(
        local_signer(DIALECTS[settings.dialect], leaf_key),
        LocalHeads(FileDocument(settings.signed_head), signers, now, old_checkpoint_signers(directory, origin)),
        LocalHeads(FileDocument(settings.map_signed_head), map_signers, now, old_map_signers(directory, origin)),
        PublicKeys(
            tuple(str(signer.vkey) for signer in signers), (leaf_key.public,),
            tuple(str(signer.vkey) for signer in map_signers),
        ),
    )


# What goes over the socket


def encode_head_request(kind: str, text: bytes, proof: Sequence[bytes]) -> bytes:
    return canonical({
        "op": "head", "kind": kind, "text": encode_base64(text), "proof": [encode_base64(node) for node in proof],
    })


def decode_head_request(request: Mapping[str, Any]) -> tuple[bytes, tuple[bytes, ...]]:
    try:
        return decode_base64(request["text"]), tuple(decode_base64(node, 32) for node in request["proof"])
    except (KeyError, TypeError, AttributeError):
        raise EncodingError("BadRequest", "no checkpoint and proof") from None


def encode_lines(lines: Sequence[SignatureLine]) -> bytes:
    return canonical({"ok": {"lines": b"".join(format_signature_line(line) for line in lines).decode("utf-8")}})


def encode_head(head: SignedHead | None, vkeys: Sequence[Vkey]) -> bytes:
    """A last head, and the keys in use."""
    found = {} if head is None else {
        "size": str(head.size), "root": encode_base64(head.root), "time": str(head.time)
    }
    return canonical({"ok": {"head": found, "vkeys": [str(vkey) for vkey in vkeys]}})


def encode_public(public: PublicKeys) -> bytes:
    return canonical({"ok": {
        "vkeys": list(public.vkeys), "map-vkeys": list(public.map_vkeys),
        "leaf-keys": [encode_public_key(key) for key in public.leaf_keys],
    }})


def encode_error(error: StoreError) -> bytes:
    return canonical({"error": {"code": error.name, "message": error.message, "hint": error.hint}})


# The sequencer's side


class Channel:
    """One connection to the signer. Safe to use from many threads, one request at a time.

    After a failure it is closed for good: what was signed is not known, so whoever asked must end.
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(ANSWER_SECONDS)
        self._connection = connection
        self._lock = threading.Lock()

    def close(self) -> None:
        self._connection.close()

    def ask(self, request: bytes, more: Sequence[bytes] = (), answers: int = 0) -> tuple[dict[str, Any], list[bytes]]:
        """Send a request and the frames that belong to it; return what went well, and the frames of the answer.

        Raises:
            StoreError: what the signer said; ``SignerLost``, when it said nothing that can be understood.
        """
        with self._lock:
            try:
                self._connection.sendall(b"".join(len(one).to_bytes(4, "big") + one for one in (request, *more)))
                answer = parse_json(self._receive())
                if "error" in answer:
                    error = answer["error"]
                    raise StoreError(str(error["code"]), str(error["message"]), hint=str(error.get("hint", "")))
                return answer["ok"], [self._receive() for _ in range(answers)]
            except (OSError, EncodingError, KeyError, TypeError, AttributeError) as error:
                self.close()
                raise StoreError(
                    "SignerLost", f"the signer's process does not answer: {error}",
                    hint="It may have ended because of its disk; what it said last is above.",
                ) from None

    def _receive(self) -> bytes:
        frame = receive_frame(self._connection)
        if frame is None:
            raise EncodingError("BrokenFrame", "it closed the connection")
        return frame


class RemoteHeads:
    """``HeadSigner`` in the signer's process."""

    def __init__(self, channel: Channel, kind: str) -> None:
        self._channel = channel
        self._kind = kind

    def vkeys(self) -> tuple[Vkey, ...]:
        return self._last()[1]

    def last(self) -> SignedHead | None:
        return self._last()[0]

    def _last(self) -> tuple[SignedHead | None, tuple[Vkey, ...]]:
        found, _ = self._channel.ask(canonical({"op": "last", "kind": self._kind}))
        try:
            head, vkeys = found["head"], tuple(parse_vkey(text) for text in found["vkeys"])
            if not head:
                return None, vkeys
            size, time = parse_decimal(head["size"]), parse_decimal(head["time"])
            return SignedHead(size, decode_base64(head["root"], 32), time), vkeys
        except (EncodingError, KeyError, TypeError, AttributeError):
            raise _nonsense() from None

    def sign(self, text: bytes, proof: Sequence[bytes]) -> tuple[SignatureLine, ...]:
        found, _ = self._channel.ask(encode_head_request(self._kind, text, proof))
        try:
            return tuple(parse_signature_lines(found["lines"].encode()))
        except (EncodingError, KeyError, TypeError, AttributeError):
            raise _nonsense() from None


def _nonsense() -> StoreError:
    return StoreError("SignerLost", "the signer's answer cannot be understood")


def remote_custody(entries: Channel, heads: Channel, close: Callable[[], None]) -> Custody:
    """The keys in the signer's process. Heads have a connection of their own: they do not wait for a batch.

    Raises:
        StoreError: whatever keeps the signer from starting.
    """
    found, _ = heads.ask(canonical({"op": "keys"}))
    try:
        public = PublicKeys(
            tuple(found["vkeys"]), tuple(decode_public_key(text) for text in found["leaf-keys"]),
            tuple(found["map-vkeys"]),
        )
    except (EncodingError, KeyError, TypeError):
        raise _nonsense() from None

    def sign_entries(preimages: Sequence[bytes]) -> list[bytes]:
        made: list[bytes] = []
        for start in range(0, len(preimages), MOST_ENTRIES):
            some = preimages[start : start + MOST_ENTRIES]
            request = canonical({"op": "entries", "count": str(len(some))})
            made += entries.ask(request, some, len(some))[1]
        return made

    return Custody(sign_entries, RemoteHeads(heads, LOG), RemoteHeads(heads, MAP), public, close)


def open_custody(settings: Settings, on_end: Callable[[], None]) -> Custody:
    """Start the log's signer, or find the one that ``signer`` names.

    Args:
        on_end: called from a thread when the signer that was started here ends without being told to.

    Raises:
        StoreError: as :func:`remote_custody`; ``SignerLost``.
    """
    if settings.signer:
        channels = [Channel(_connect(settings.signer)) for _ in range(2)]

        def hang_up() -> None:
            for channel in channels:
                channel.close()

        return remote_custody(*channels, hang_up)
    process, connections = start_signer(settings)
    channels = [Channel(connection) for connection in connections]
    closing = threading.Event()

    def close() -> None:
        closing.set()
        for channel in channels:
            channel.close()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_SECONDS)

    def watch() -> None:
        process.wait()
        if not closing.is_set():
            on_end()

    try:
        custody = remote_custody(*channels, close)
    except BaseException:
        close()
        raise
    threading.Thread(target=watch, daemon=True, name="signer").start()
    return custody


def start_signer(settings: Settings, connections: int = 2) -> tuple[subprocess.Popen, list[socket.socket]]:
    """Start the signer's process; gives this side of the connections to it. It ends when all are closed."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM) for _ in range(connections)]
    theirs = [pair[1] for pair in pairs]
    command = [sys.executable, "-m", "ktlog.operator.signer", "--dir", str(settings.directory)]
    try:
        process = subprocess.Popen(
            command + [text for end in theirs for text in ("--fd", str(end.fileno()))],
            pass_fds=[end.fileno() for end in theirs], stdin=subprocess.DEVNULL, env=child_environment(),
        )
    except OSError as error:
        raise StoreError("SignerLost", f"the signer cannot be started: {error}") from None
    finally:
        for end in theirs:
            end.close()
    return process, [pair[0] for pair in pairs]


def _connect(path: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.connect(path)
    except OSError as error:
        connection.close()
        raise StoreError(
            "SignerLost", f"no signer answers at {path}: {error.strerror}",
            hint="Start it first: python -m ktlog.operator.signer --dir DIR --listen PATH",
        ) from None
    return connection

