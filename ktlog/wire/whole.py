"""gunicorn's supervision, and a worker of our own that reads requests whole.

One loop holds all connections and reads from them; a thread of the pool sees a request when all of it is there, and
the loop sends its answer. So who sends slowly, or nothing, or reads no answer, holds a descriptor and no thread, and
not for long. An app with an attribute ``at_once`` is asked by that first, in the loop, with the environ and what takes
the answer later; it waits for nothing, and says whether it took the request. An attribute ``unread`` has what the app
would say to what is not read: content type and body, by HTTP status. Each state of a connection has an end, counted
from its beginning:

=======  ==========================================  ===========================
WAITING  no byte of a request is here                KEEPALIVE_SECONDS
READING  some of it is                               READ_SECONDS
HAND     all of it, and a thread has it or will      the app's own
WRITING  the answer is not all sent                  WRITE_SECONDS
LINGER   it is, but what is not read still comes in  LINGER_SECONDS
=======  ==========================================  ===========================

When all connections are taken, the one that has waited or read longest makes room for a new one, if it had
EVICT_SECONDS: ten thousand idle ones keep nobody out.
"""

from __future__ import annotations

import contextlib
import os
import queue
import resource
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from gunicorn.workers.base import Worker

from ktlog.wire.received import CONTINUE, LATER, Reader, format_answer, format_refusal, run_app

WAITING, READING, HAND, WRITING, LINGER = range(5)

KEEPALIVE_SECONDS = 20.0  # above the idle time of our own client, so that it is the client who hangs up
READ_SECONDS = 30.0
WRITE_SECONDS = 30.0
LINGER_SECONDS = 2.0
EVICT_SECONDS = 2.0
#: At the end, for those of whose request some is here.
LAST_SECONDS = 1.0
SWEEP_SECONDS = 0.5

RECEIVE_BYTES = 64 * 1024
#: Of requests not yet answered, all together.
HELD_BYTES = 64 * 1024 * 1024
#: Of what still comes in and is not read.
LINGER_BYTES = 1024 * 1024
#: With so many requests that the app took at once and has not answered, the loop waits before it looks again, a tenth
#: of a millisecond for each: whoever computes for them loses the interpreter and the caches to each turn, which may as
#: well find more to do.
BUSY = 8
REST_SECONDS, MOST_REST_SECONDS = 0.0001, 0.005
#: Taken in one turn of the loop, so that those who are here get theirs.
ACCEPTS = 64

CONNECTIONS = 4000
DESCRIPTORS = 2 * CONNECTIONS

_ENDS = {WAITING: KEEPALIVE_SECONDS, READING: READ_SECONDS, WRITING: WRITE_SECONDS, LINGER: LINGER_SECONDS}


def raise_descriptors() -> int:
    """Let this process and its children have more descriptors, as far as the system's limit goes; returns how many
    connections that will do for. Half is left for what requests need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return CONNECTIONS
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    if soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return min(CONNECTIONS, soft // 2)


class Connection:
    """peer: its address. state: one of the five. out: what is left of the answer. wanted: what the selector watches.
    taken: the app took the request at once, and has not answered.
    """

    __slots__ = ("keeps", "lingered", "out", "peer", "reader", "socket", "state", "taken", "wanted")

    def __init__(self, connection: socket.socket, peer: str, limit: int) -> None:
        self.socket, self.peer = connection, peer
        self.reader = Reader(limit)
        self.state = WAITING
        self.out = b""
        self.keeps = self.taken = False
        self.wanted = self.lingered = 0


class Later:
    """See ktlog.wire.received.Later."""

    __slots__ = ("_connection", "_worker", "head")

    head: Sequence[Any]

    def __init__(self, worker: WholeWorker, connection: Connection) -> None:
        self._worker, self._connection = worker, connection

    def __iter__(self) -> Iterator[bytes]:
        return iter(())  # for who does not know it

    def finish(self, status: str, headers: Iterable[tuple[str, str]], body: bytes) -> None:
        keep_alive = self._worker.stays(self._connection)
        self._worker.give(self._connection, format_answer(status, headers, body, keep_alive=keep_alive))

    def answer(self, body: bytes) -> None:
        self.finish(*self.head, body)

    def run(self, work: Callable[[], None]) -> None:
        self._worker.hand(self._connection, work)  # type: ignore[arg-type]  # it gives nothing


class WholeWorker(Worker):
    """What ktlog.wire.httpd.serve runs for an app that takes requests whole."""

    #: Bytes of a body; set by ktlog.wire.httpd in a subclass.
    body_limit = 128 * 1024

    def run(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._states: tuple[dict[Connection, float], ...] = ({}, {}, {}, {}, {})
        self._held = self._taken = 0
        self._unread: Mapping[int, tuple[str, bytes]] = getattr(self.wsgi, "unread", {})
        self._at_once: Callable[[dict[str, Any], Later], bool] | None = getattr(self.wsgi, "at_once", None)
        self._hands: queue.SimpleQueue[tuple[Connection, Callable[[], bytes | None]]] = queue.SimpleQueue()
        self._answers: deque[tuple[Connection, bytes]] = deque()
        self._woken = False
        self._deaf = self._told = False
        self._deaf_until = 0.0
        self._swept = 0.0
        self._malformed = 0
        for listener in self.sockets:
            listener.setblocking(False)
        self._server = self.sockets[0].getsockname()
        self._listen(True)
        self._selector.register(self.PIPE[0], selectors.EVENT_READ)
        for number in range(self.cfg.threads):
            threading.Thread(target=self._work, name=f"request-{number}", daemon=True).start()
        if self.cfg.worker_connections < CONNECTIONS:
            self.log.warning(
                "room for %d connections at one time, where %d are meant to be: allow %d open files (LimitNOFILE)",
                self.cfg.worker_connections, CONNECTIONS, DESCRIPTORS,
            )
        while self.alive:
            self._turn(1.0)
            if self.ppid != os.getppid():
                self.log.info("the parent has gone")
                break
        self._finish()

    # The pool.

    def _work(self) -> None:
        while True:
            connection, work = self._hands.get()
            try:
                answer = work()
            except Exception:
                self.log.exception("Error handling request")
                connection.keeps = False
                answer = format_refusal(500)
            if answer is not None:
                self.give(connection, answer)

    def give(self, connection: Connection, answer: bytes) -> None:
        """Have *answer* sent. From any thread."""
        self._answers.append((connection, answer))
        if not self._woken:
            self._woken = True
            self._wake()

    def hand(self, connection: Connection, work: Callable[[], bytes | None]) -> None:
        """Have *work* done by the pool, which sends what it gives."""
        self._hands.put((connection, work))

    def _answered(self, connection: Connection, environ: dict[str, Any]) -> bytes | None:
        return run_app(self.wsgi, environ, keep_alive=partial(self.stays, connection))

    def stays(self, connection: Connection) -> bool:
        return connection.keeps and self.alive

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it is full: the loop has much to wake up for
            os.write(self.PIPE[1], b".")

    # The loop.

    def _turn(self, patience: float) -> None:
        if self._taken >= BUSY and not self._answers:
            time.sleep(min(REST_SECONDS * self._taken, MOST_REST_SECONDS))
        for key, _ in self._selector.select(patience):
            if isinstance(key.data, Connection):
                self._go_on(key.data)
            elif key.data is not None:
                self._accept(key.data)
            else:
                with contextlib.suppress(BlockingIOError):
                    os.read(self.PIPE[0], 4096)
                self._woken = False
        while self._answers:
            connection, answer = self._answers.popleft()
            self._answer(connection, answer)
        now = time.monotonic()
        if now - self._swept > SWEEP_SECONDS:
            self._swept = now
            self.notify()  # gunicorn, that we are alive
            self._sweep(now)
        if self._deaf and self.alive and now >= self._deaf_until and (
                self._count() < self.cfg.worker_connections or self._evict(now)):
            self._listen(True)

    def _count(self) -> int:
        return sum(map(len, self._states))

    def _listen(self, ready: bool) -> None:
        """Take connections, or leave them to wait in the kernel's queue."""
        self._deaf = not ready
        for listener in self.sockets:
            if ready:
                self._selector.register(listener, selectors.EVENT_READ, listener)
            else:
                self._selector.unregister(listener)

    def _accept(self, listener: Any) -> None:
        for _ in range(ACCEPTS):
            if self._deaf:
                return
            if self._count() >= self.cfg.worker_connections and not self._evict(time.monotonic()):
                self._listen(False)
                return
            try:
                accepted, peer = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:  # no descriptors, no memory
                if not self._told:
                    self.log.error("no connection taken for now: %s", error.strerror)
                self._told, self._deaf_until = True, time.monotonic() + SWEEP_SECONDS
                self._listen(False)
                return
            self._told = False
            accepted.setblocking(False)
            connection = Connection(accepted, peer[0] if peer else "", self.body_limit)
            self._states[WAITING][connection] = time.monotonic()
            self._receive(connection)  # mostly the request is here already

    def _evict(self, now: float) -> bool:
        """Make room for a connection."""
        for state in (LINGER, WAITING, READING, WRITING):
            for connection, since in self._states[state].items():
                if now - since >= EVICT_SECONDS:
                    self._drop(connection)
                    return True
                break
        return False

    def _go_on(self, connection: Connection) -> None:
        if not connection.wanted:
            return  # earlier in this turn it made room for another
        if connection.state == WRITING:
            self._send(connection)
        else:
            self._receive(connection)

    def _receive(self, connection: Connection) -> None:
        try:
            data = connection.socket.recv(RECEIVE_BYTES)
        except (BlockingIOError, InterruptedError):
            self._watch(connection, selectors.EVENT_READ)
            return
        except OSError:
            data = b""
        if not data:
            self._drop(connection)
            return
        if connection.state == LINGER:
            connection.lingered += len(data)
            if connection.lingered > LINGER_BYTES:
                self._drop(connection)
            return
        reader = connection.reader
        if connection.state == WAITING:
            self._move(connection, READING)
        reader.feed(data)
        self._held += len(data)
        if reader.refused:
            self._count_malformed(reader.refused)
            self._answer(connection, format_refusal(reader.refused, self._unread))
        elif reader.complete:
            self._hand_over(connection)
        else:
            self._watch(connection, selectors.EVENT_READ)
            if reader.expects:
                reader.expects = False
                with contextlib.suppress(OSError):
                    connection.socket.send(CONTINUE)
            while self._held > HELD_BYTES and self._states[READING]:
                self._drop(next(iter(self._states[READING])))

    def _hand_over(self, connection: Connection) -> None:
        self._watch(connection, 0)
        self._move(connection, HAND)
        connection.keeps = connection.reader.keeps_alive and self.alive
        environ = connection.reader.environ(self._server, connection.peer)
        environ[LATER] = later = Later(self, connection)
        connection.taken = self._taken_at_once(connection, environ, later)
        if connection.taken:
            self._taken += 1
        else:
            self.hand(connection, partial(self._answered, connection, environ))

    def _taken_at_once(self, connection: Connection, environ: dict[str, Any], later: Later) -> bool:
        if self._at_once is None:
            return False
        try:
            return self._at_once(environ, later)
        except Exception:
            self.log.exception("Error handling request")
            connection.keeps = False
            self._answers.append((connection, format_refusal(500)))
            return True  # for it is answered

    def _answer(self, connection: Connection, answer: bytes) -> None:
        if connection.taken:
            connection.taken = False
            self._taken -= 1
        self._move(connection, WRITING)
        connection.out = answer
        self._send(connection)

    def _send(self, connection: Connection) -> None:
        try:
            sent = connection.socket.send(connection.out)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError:
            self._drop(connection)
            return
        connection.out = connection.out[sent:]
        if connection.out:
            self._watch(connection, selectors.EVENT_WRITE)
            return
        reader = connection.reader
        if reader.refused or reader.pipelined:
            # Closed now, with bytes of theirs unread, the kernel would take our answer back.
            with contextlib.suppress(OSError):
                connection.socket.shutdown(socket.SHUT_WR)
            self._move(connection, LINGER)
            self._watch(connection, selectors.EVENT_READ)
        elif connection.keeps and self.alive:
            self._held -= reader.held
            reader.reset()
            self._move(connection, WAITING)
            self._watch(connection, selectors.EVENT_READ)
        else:
            self._drop(connection)

    def _move(self, connection: Connection, state: int) -> None:
        del self._states[connection.state][connection]
        connection.state = state
        self._states[state][connection] = time.monotonic()

    def _watch(self, connection: Connection, wanted: int) -> None:
        had, connection.wanted = connection.wanted, wanted
        if had == wanted:
            return
        if not had:
            self._selector.register(connection.socket, wanted, connection)
        elif wanted:
            self._selector.modify(connection.socket, wanted, connection)
        else:
            self._selector.unregister(connection.socket)

    def _drop(self, connection: Connection) -> None:
        self._watch(connection, 0)
        del self._states[connection.state][connection]
        self._held -= connection.reader.held
        connection.reader.end()
        connection.socket.close()

    def _sweep(self, now: float) -> None:
        for state, seconds in _ENDS.items():
            late = []
            for connection, since in self._states[state].items():  # in the order in which they came
                if now - since < seconds:
                    break
                late.append(connection)
            for connection in late:
                self._drop(connection)

    def _count_malformed(self, status: int) -> None:
        """Told at 1, 2, 4, 8 and so on, without a word of what strangers sent."""
        self._malformed += 1
        if self._malformed & (self._malformed - 1) == 0:
            self.log.warning("requests refused unread by this process so far, the last with %d: %d",
                             status, self._malformed)

    def _finish(self) -> None:
        """Answer what is in hand, and go."""
        self.alive = False  # without a parent it still is
        if not self._deaf:
            self._listen(False)
        for listener in self.sockets:
            listener.close()
        began = time.monotonic()
        for connection in list(self._states[WAITING]):
            self._drop(connection)
        while (passed := time.monotonic() - began) < self.cfg.graceful_timeout:
            late = passed > LAST_SECONDS
            if not (self._states[HAND] or self._answers or self._states[WRITING]
                    or (self._states[READING] and not late)):
                break
            self._turn(0.05)
