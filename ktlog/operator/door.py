"""The desk's door for processes of the same machine: a Unix socket, a thread or two for each connection."""

from __future__ import annotations

import logging
import queue
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from ktlog.config import Settings, socket_path
from ktlog.durable import file_errors, reach, write_atomic
from ktlog.errors import EncodingError
from ktlog.operator.link import TOGETHER, Frames, framed, receive_frame, send_frame
from ktlog.pkd.canonical import canonical

log = logging.getLogger("ktlog.sequencer")


UNSENT = 4096
"""Answers of one connection, at most, that are to be sent: whoever does not read them is not read either."""


class Handed(Protocol):
    """A request that was handed in, such as ``ktlog.operator.desk.Ticket``."""

    @property
    def done(self) -> threading.Event: ...

    def answer(self) -> bytes: ...


class Door:
    """Listens from its making on; :meth:`open` begins to let requests in.

    Args:
        hand_in: begins with a request, without waiting for its end. Called in many threads.
        stop: once it is set, a listener that fails is not tried again.
    """

    def __init__(self, settings: Settings, hand_in: Callable[[bytes], Handed], stop: threading.Event) -> None:
        self._hand_in = hand_in
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
                try:
                    threading.Thread(target=self._serve, args=(connection,), daemon=True, name="link").start()
                except RuntimeError:
                    connection.close()
                    raise
            except (OSError, RuntimeError) as error:
                if self._stop.is_set():
                    return
                # Such as too many open files, or no more threads: deaf for a moment, not for ever.
                log.error("no link accepted: %s", error)
                self._stop.wait(0.1)

    def _serve(self, connection: socket.socket) -> None:
        """Answer one process, or one of its threads, until it closes."""
        with connection:
            try:
                while (request := receive_frame(connection)) is not None:
                    if request == TOGETHER:
                        self._serve_together(connection)
                        return
                    self._send(connection, [framed(self._hand_in(request).answer())])
            except (OSError, EncodingError) as error:
                log.warning("a link closed: %s", error)

    def _serve_together(self, connection: socket.socket) -> None:
        """Read on, while another thread answers in the same order."""
        send_frame(connection, canonical({"ok": {}}))
        handed: queue.Queue[Handed | None] = queue.Queue(UNSENT)
        answering = threading.Thread(target=self._answer_all, args=(connection, handed), daemon=True, name="answers")
        answering.start()
        frames = Frames(connection)
        try:
            while (request := frames.receive()) is not None:
                handed.put(self._hand_in(request))
        finally:
            handed.put(None)
            answering.join()

    def _answer_all(self, connection: socket.socket, handed: queue.Queue[Handed | None]) -> None:
        """Until None comes. Whoever takes no answers any more is not read any more."""
        try:
            self._answer_until_none(connection, handed)
        except Exception:
            log.exception("a link closes")
            self._hang_up(connection)
            while handed.get() is not None:
                pass

    def _answer_until_none(self, connection: socket.socket, handed: queue.Queue[Handed | None]) -> None:
        over = False
        while not over:
            batch = [handed.get()]
            while not handed.empty():
                batch.append(handed.get())
            answers: list[bytes] = []
            for one in batch:
                if one is None:
                    over = True
                    break
                if answers and not one.done.is_set():  # of a later batch of the sequencer's
                    self._send(connection, answers)
                answers.append(framed(one.answer()))
            self._send(connection, answers)

    def _send(self, connection: socket.socket, answers: list[bytes]) -> None:
        if not answers:
            return
        try:
            connection.sendall(b"".join(answers))
            reach("sequencer.answered")
        except OSError:
            self._hang_up(connection)
        answers.clear()

    @staticmethod
    def _hang_up(connection: socket.socket) -> None:
        """Nothing more is read from it."""
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
