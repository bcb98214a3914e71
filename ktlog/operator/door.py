"""The desk's door for processes of the same machine: a Unix socket, one thread for each connection."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from ktlog.config import Settings, socket_path
from ktlog.durable import file_errors, reach, write_atomic
from ktlog.errors import EncodingError
from ktlog.operator.link import receive_frame, send_frame

log = logging.getLogger("ktlog.sequencer")


class Door:
    """Listens from its making on; :meth:`open` begins to let requests in.

    Args:
        answer: what a request's bytes are answered with. Called in many threads.
        stop: once it is set, a listener that fails is not tried again.
    """

    def __init__(self, settings: Settings, answer: Callable[[bytes], bytes], stop: threading.Event) -> None:
        self._answer = answer
        self._stop = stop
        with file_errors(settings.directory):
            path = socket_path(settings)
            path.unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.bind(str(path))
            path.chmod(0o600)
            self._listener.listen(128)
        write_atomic(settings.socket_record, str(path).encode() + b"\n", mode=0o600)
        self.needed: tuple[Path, ...] = (path, settings.socket_record)
        """Files without which nobody finds the way in."""

    def open(self) -> None:
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True, name="accept").start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self, listener: socket.socket) -> None:
        while not self._stop.is_set():
            try:
                connection, _ = listener.accept()
            except OSError as error:
                if self._stop.is_set():
                    return
                # Such as too many open files: deaf for a moment, not for ever.
                log.error("no link accepted: %s", error)
                self._stop.wait(0.1)
                continue
            threading.Thread(target=self._serve, args=(connection,), daemon=True, name="link").start()

    def _serve(self, connection: socket.socket) -> None:
        """Answer one web worker's thread, frame by frame, until it closes."""
        with connection:
            try:
                while (request := receive_frame(connection)) is not None:
                    send_frame(connection, self._answer(request))
                    reach("sequencer.answered")
            except (OSError, EncodingError) as error:
                log.warning("a link closed: %s", error)
