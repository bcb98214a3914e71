"""The signer's process: the only one that reads the leaf key and the checkpoint keys of a log and of its map.

``python -m ktlog.operator.signer --dir DIR`` and either ``--fd N`` for each connection that it inherits, and then it
ends with them; or ``--listen PATH`` to be reached on a Unix socket, and then it ends by a signal. It needs of DIR only
``ktlog.toml``, ``keys/`` and the two files with the last heads, so it may have a directory and a user id of its own.

It signs any entry, and heads only as :mod:`ktlog.operator.head` allows. When it cannot know what is on disk it ends,
without an answer. (Requirements R2 and R7.)
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import logging
import os
import resource
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from ktlog.collector import look_rarely
from ktlog.config import load_settings
from ktlog.durable import FileLock, file_errors, reach
from ktlog.ending import ENDING, LOOK_SECONDS
from ktlog.errors import EncodingError, KtlogError, StoreError
from ktlog.operator.custody import (
    LOG,
    MAP,
    MOST_ENTRIES,
    Custody,
    decode_head_request,
    encode_error,
    encode_head,
    encode_lines,
    encode_public,
    local_custody,
)
from ktlog.operator.head import LocalHeads
from ktlog.operator.keys import check_key_directory
from ktlog.operator.link import receive_frame, send_frame
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.tlog.encoding import parse_decimal
from ktlog.wire import logs

# A test kills it at each; so too at those of head.py.
HOOKS = ("signer.entries_signed", "signer.answered")

LOCK_SECONDS = 20.0
"""How long a predecessor may take to notice that its sequencer is dead."""

FAILED = 70
_PR_SET_DUMPABLE = 4

log = logging.getLogger("ktlog.signer")


class Signer:
    """Answers requests with the keys of one log. Safe to use from many threads."""

    def __init__(self, custody: Custody) -> None:
        self._custody = custody
        self._heads = {LOG: custody.log_heads, MAP: custody.map_heads}

    def serve(self, connection: socket.socket) -> None:
        """Answer one connection until it closes, or sends what cannot be understood."""
        with connection:
            try:
                while (request := receive_frame(connection)) is not None:
                    connection.sendall(b"".join(
                        len(frame).to_bytes(4, "big") + frame for frame in self._answer(request, connection)
                    ))
                    reach("signer.answered")
            except (OSError, EncodingError) as error:
                log.warning("a connection closed: %s", error)
            except Exception:
                log.exception("the signer stops")
                os._exit(FAILED)

    def _answer(self, raw: bytes, connection: socket.socket) -> Sequence[bytes]:
        request = parse_json(raw)
        if not isinstance(request, dict):
            raise EncodingError("BadRequest", "no request")
        op = request.get("op")
        if op == "entries":
            return self._sign_entries(request, connection)
        if op == "keys":
            return (encode_public(self._custody.public),)
        heads = self._heads.get(request.get("kind")) if isinstance(request.get("kind"), str) else None
        if heads is None or op not in ("last", "head"):
            raise EncodingError("BadRequest", "no such request")
        try:
            if op == "last":
                return (encode_head(heads.last(), heads.vkeys()),)
            return (encode_lines(heads.sign(*decode_head_request(request))),)
        except StoreError as error:
            if isinstance(heads, LocalHeads) and heads.poisoned:
                # The last head is on disk, or it is not: the next process reads it.
                log.critical("the signer stops: %s", error.diagnostics())
                os._exit(FAILED)
            log.error("not signed: %s", error.diagnostics())
            return (encode_error(error),)

    def _sign_entries(self, request: dict[str, Any], connection: socket.socket) -> Sequence[bytes]:
        count = parse_decimal(str(request.get("count")))
        if count > MOST_ENTRIES:
            raise EncodingError("BadRequest", f"{count} entries at once; the limit is {MOST_ENTRIES}")
        preimages = []
        for _ in range(count):
            preimage = receive_frame(connection)
            if preimage is None:
                raise EncodingError("BrokenFrame", "the connection closed before the last preimage")
            preimages.append(preimage)
        entries = self._custody.sign_entries(preimages)
        reach("signer.entries_signed")
        return (canonical({"ok": {"count": str(count)}}), *entries)


def take_lock(path: Path) -> FileLock:
    """The lock of the log's one signer; a predecessor that ends is waited for.

    Raises:
        StoreError: "Locked".
    """
    lock, deadline = FileLock(path), time.monotonic() + LOCK_SECONDS
    while True:
        try:
            lock.acquire()
            return lock
        except StoreError as error:
            if error.name != "Locked" or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def claim_keys(keys: Iterable[bytes]) -> ExitStack:
    """Hold each of *keys* alone on this machine, whatever directory it is in: a copied one signs nothing beside it.

    Each, because a copy may have had some of them replaced. Abstract sockets are Linux's; elsewhere nothing is held.
    Give them up by closing what is returned.

    Raises:
        StoreError: "Locked".
    """
    deadline = time.monotonic() + LOCK_SECONDS
    with ExitStack() as claims:
        for key in dict.fromkeys(keys) if sys.platform == "linux" else ():
            claim = claims.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            _bind(claim, claim_name(key), deadline)
        return claims.pop_all()


def claim_name(key: bytes) -> str:
    return f"\0ktlog-{hashlib.sha256(key).hexdigest()}"


def _bind(claim: socket.socket, name: str, deadline: float) -> None:
    while True:
        try:
            claim.bind(name)
            return claim.listen()  # nobody is let in; whoever comes too late learns who is here
        except OSError:
            if time.monotonic() > deadline:
                raise StoreError(
                    "Locked", f"another process on this machine signs with the same keys: {_holder(name)}",
                    hint="If a copy of this log's directory is running, stop one of the two, for good: they fork the"
                    " log. Or somebody else took the name, which no secret is needed for: look who it is, with"
                    f" ss -xap | grep {name[1:]}",
                ) from None
        time.sleep(0.01)


def _holder(name: str) -> str:
    """Who listens under *name*, by what the kernel says."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as visitor, suppress(OSError):
        visitor.setblocking(False)
        visitor.connect(name)
        pid, uid, _ = struct.unpack("3i", visitor.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return f"process {pid} of user {uid}"
    return "a process that does not answer"


def hide_memory() -> None:
    """No core file, and no other process of the same user may look into this one's memory, where that can be had."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def serve_inherited(signer: Signer, connections: Sequence[socket.socket]) -> None:
    """Until all are closed. A signal that goes to every process is the sequencer's to obey: it closes them last."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)
    threads = [threading.Thread(target=signer.serve, args=(one,), daemon=True) for one in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def serve_path(signer: Signer, path: Path) -> None:
    """Until a signal. Whoever may open *path* may have signed what this process signs: its directory decides."""
    for number in ENDING:
        signal.signal(number, lambda *_: sys.exit(0))
    with file_errors(path), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        path.unlink(missing_ok=True)
        before = os.umask(0o117)
        listener.bind(str(path))
        os.umask(before)
        listener.listen(16)
        listener.settimeout(LOOK_SECONDS)  # a signal just before accept would wait for the next connection
        while True:
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            threading.Thread(target=signer.serve, args=(connection,), daemon=True, name="link").start()


def run(directory: Path, serve: Callable[[Signer], None]) -> None:
    """Check and load the keys, and serve with them.

    Raises:
        StoreError: "UnsafeKeys", "MissingSecret", "UnsafeSecret", "BadSecret", "BadSignedHead", "Locked".
    """
    settings = load_settings(directory)
    logs.configure_daemon(settings.log_format, settings.log_level)
    check_key_directory(settings.keys)
    hide_memory()
    lock = take_lock(settings.directory / "signer.lock")
    try:
        custody = local_custody(settings, lambda: int(time.time()))
        heads = (*custody.log_heads.vkeys(), *custody.map_heads.vkeys())
        with claim_keys((*custody.public.leaf_keys, *(vkey.public_key for vkey in heads))):
            look_rarely()
            serve(Signer(custody))
    finally:
        lock.release()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser("ktlog.operator.signer", description="Hold a log's signing keys, and sign.")
    parser.add_argument("--dir", type=Path, required=True)
    way = parser.add_mutually_exclusive_group(required=True)
    way.add_argument("--fd", type=int, action="append", default=[])
    way.add_argument("--listen", type=Path)
    asked = parser.parse_args(arguments)
    connections = [socket.socket(fileno=number) for number in asked.fd]
    try:
        if connections:
            run(asked.dir, lambda signer: serve_inherited(signer, connections))
        else:
            run(asked.dir, lambda signer: serve_path(signer, asked.listen))
    except KtlogError as error:
        if not connections:
            logs.say_why(error)
        for connection in connections:
            with suppress(OSError):
                send_frame(connection, encode_error(StoreError(error.name, error.message, hint=error.hint)))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
