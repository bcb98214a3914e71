"""gunicorn's threaded worker, with an end to every request and none of its own when descriptors run out.

gunicorn bounds how long it waits for the first byte of a request and for the next request of a kept
connection, but not how long a request may take once it has begun. A few senders that stop in the middle of a header
or a body would hold every thread for ever. Here each gets a total time, and then its connection is shut down.

Between two requests of a connection gunicorn goes back to its main loop, which costs about as much as the rest of its
work. A client that asks on usually does so at once; its thread waits for that a moment, if no other request waits for
a thread.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket
import time
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker

REQUEST_SECONDS = 30.0
DEAF_SECONDS = 0.1
STAY_MS = 5
"""How long a thread waits for the next request of its connection. Who comes new then waits for a thread as long."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class DeadlineWorker(ThreadWorker):
    """The worker that ktlog.wire.httpd.serve runs."""

    request_seconds = REQUEST_SECONDS

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadlines: dict[TConn, float] = {}
        self._queued: set[TConn] = set()  # connections that wait for a thread
        self._deaf = False

    def accept(self, *listener: Any) -> None:
        """Take a connection. Without means to it waits a moment; gunicorn's own worker would end, requests and all."""
        try:
            super().accept(*listener)
            self._deaf = False
        except OSError as error:
            if error.errno not in _EXHAUSTED:
                raise
            if not self._deaf:
                self.log.error("no connection taken for now: %s", error.strerror)
            self._deaf = True
            time.sleep(DEAF_SECONDS)

    def enqueue_req(self, conn: TConn) -> None:
        """Runs in the main loop: *conn* is to be handled as soon as a thread is free."""
        self._queued.add(conn)
        super().enqueue_req(conn)

    def handle(self, conn: TConn) -> Any:
        """Runs in a thread of the pool: one request, from its first byte to the answer's last, and those at its heels.

        True: the connection is kept.
        """
        self._queued.discard(conn)
        while True:
            self._deadlines[conn] = time.monotonic() + self.request_seconds
            try:
                result = super().handle(conn)
            finally:
                self._deadlines.pop(conn, None)
            if result is not True or not self._asks_on(conn):
                return result

    def _asks_on(self, conn: TConn) -> bool:
        """Whether the next request on *conn* is there, or comes at once, and nobody else wants this thread."""
        if self._queued or not self.alive:
            return False
        if conn.parser.unreader.buf.getvalue():
            return True
        with contextlib.suppress(OSError, ValueError):  # closed meanwhile: the main loop finds out as well
            soon = select.poll()
            soon.register(conn.sock, select.POLLIN)
            return bool(soon.poll(STAY_MS))
        return False

    def murder_pending(self) -> None:
        """Runs in the main loop, once a second at least; also ends the requests that are overdue.

        Shutting the socket down wakes the thread that reads from it or writes to it; that thread
        closes it, so no other can have got its file descriptor.
        """
        super().murder_pending()
        now = time.monotonic()
        for conn, deadline in list(self._deadlines.items()):
            if now > deadline:
                self._deadlines.pop(conn, None)
                with contextlib.suppress(OSError):
                    conn.sock.shutdown(socket.SHUT_RDWR)
