"""A request that never ends does not hold a thread for ever, and too many connections do not end the worker."""

from __future__ import annotations

import errno
import io
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from ktlog.wire import httpd
from ktlog.wire.deadline import DeadlineWorker

SERVER = """
import sys
from ktlog.wire import deadline, httpd
deadline.DeadlineWorker.request_seconds = 1.0

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]

httpd.serve(lambda: app, sys.argv[1], workers=1, threads=2, name="test")
"""


@pytest.fixture
def port():
    listener = socket.create_server(("127.0.0.1", 0))
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, f"fd://{listener.fileno()}"], pass_fds=(listener.fileno(),),
        start_new_session=True,
    )
    port = listener.getsockname()[1]
    listener.close()
    yield port
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ask(port: int) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        return connection.recv(12)


@pytest.mark.parametrize("beginning", [
    b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc", b"POST / HTTP/1.1\r\nHost: ",
])
def test_senders_that_stop_in_the_middle_lose_their_threads(port: int, beginning: bytes) -> None:
    assert ask(port) == b"HTTP/1.1 200"
    stuck = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(6)]
    try:
        for connection in stuck:
            connection.sendall(beginning)
        time.sleep(0.2)
        # Two threads, six that hold them: three rounds of one second, and then it is our turn.
        assert ask(port) == b"HTTP/1.1 200"
    finally:
        for connection in stuck:
            connection.close()


def test_without_descriptors_a_worker_takes_no_connection_and_lives() -> None:
    worker = DeadlineWorker.__new__(DeadlineWorker)
    worker._deaf, said = False, []
    worker.log = SimpleNamespace(error=lambda text, why: said.append(why))

    def fail(code: int) -> SimpleNamespace:
        def accept() -> None:
            raise OSError(code, os.strerror(code))
        return SimpleNamespace(accept=accept)

    for _ in range(3):
        worker.accept(fail(errno.EMFILE))
    assert said == [os.strerror(errno.EMFILE)], "once, and not ten times a second"
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        worker.accept(fail(errno.EBADF))


@pytest.mark.parametrize(("descriptors", "connections"), [(1024, 512), (64, 32), (10, 8), (1 << 20, 1000), (-1, 1000)])
def test_connections_leave_descriptors_for_what_requests_need(monkeypatch, descriptors, connections) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (descriptors, -1))
    assert httpd.connections_limit(8) == connections


def test_a_thread_waits_a_moment_for_the_next_request_if_nobody_else_needs_it() -> None:
    worker = DeadlineWorker.__new__(DeadlineWorker)
    worker._queued, worker.alive = set(), True
    ours, client = socket.socketpair()
    with ours, client:
        ahead = SimpleNamespace(buf=io.BytesIO())
        conn = SimpleNamespace(sock=ours, parser=SimpleNamespace(unreader=ahead))
        assert not worker._asks_on(conn)
        client.sendall(b"GET")
        assert worker._asks_on(conn)
        worker._queued.add("another")
        assert not worker._asks_on(conn)
        worker._queued.clear()
        ours.recv(3)
        ahead.buf.write(b"GET")
        assert worker._asks_on(conn)
        worker.alive = False
        assert not worker._asks_on(conn)
    worker.alive, ahead.buf = True, io.BytesIO()
    assert not worker._asks_on(conn), "closed meanwhile"


def test_who_asks_on_and_on_keeps_nobody_else_waiting(port: int) -> None:
    """Two threads, three connections with a request always under way, and one that wants an answer too."""
    busy = [socket.create_connection(("127.0.0.1", port), timeout=20) for _ in range(3)]
    try:
        for connection in busy:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 200)
        assert ask(port) == b"HTTP/1.1 200"
        for connection in busy:
            found = b""
            while found.count(b"HTTP/1.1 200") < 200:
                found += (got := connection.recv(65536))
                assert got
    finally:
        for connection in busy:
            connection.close()
