"""The server that hands over whole requests: who sends slowly, too much, nothing or reads nothing keeps nobody waiting."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from ktlog.wire import received, whole
from ktlog.wire.environ import header_lines, raw_target
from ktlog.wire.received import Reader, format_answer, run_app

LIMIT = 10_000
SERVER = f"""
import resource, sys, threading
resource.setrlimit(resource.RLIMIT_NOFILE, (120, 120))
from ktlog.wire import httpd, whole
whole.EVICT_SECONDS = 0.5
held = threading.Event()

def app(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/hold":
        print("holding", flush=True)
        held.wait(20)
    elif path == "/go":
        held.set()
    elif path == "/after":
        start_response("201 Created", [("X-A", "b")])
        later = environ["ktlog.later"]
        threading.Timer(0.01, later.run, (lambda: later.answer(b"after"),)).start()
        return later
    elif path == "/fail":
        raise KeyError("what the stranger sent")
    body = environ["wsgi.input"].read()
    answer = bytes(1 << 23) if path == "/large" else b"%s %s %d" % (
        environ["REQUEST_METHOD"].encode(), path.encode("latin-1"), len(body))
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [answer]

def at_once(environ, later):
    path = environ["PATH_INFO"]
    if path == "/broken":
        raise KeyError("what the stranger sent")
    if path == "/later":
        threading.Timer(0.01, later.finish, ("200 OK", [], b"later")).start()
    return path == "/later"

app.at_once = at_once
app.unread = {{413: ("text/x", b"so large")}}
httpd.serve(lambda: app, sys.argv[1], threads=2, name="test", whole={LIMIT})
"""


class Site:
    """setting: a line of Python, run before the server is."""

    def __init__(self, setting: str = "pass") -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        server = SERVER.replace("whole.EVICT_SECONDS = 0.5\n", f"whole.EVICT_SECONDS = 0.5\n{setting}\n")
        self.process = subprocess.Popen(
            [sys.executable, "-c", server, f"fd://{listener.fileno()}"], pass_fds=(listener.fileno(),),
            start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        self.port = listener.getsockname()[1]
        listener.close()
        self.stack = contextlib.ExitStack()

    def connect(self, sent: bytes = b"") -> socket.socket:
        """One that stays until the test's end."""
        connection = self.stack.enter_context(socket.create_connection(("127.0.0.1", self.port), timeout=20))
        if sent:
            connection.sendall(sent)
        return connection

    def ask(self, raw: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall(raw)
            return read_all(connection)

    def answers(self) -> None:
        """Everybody else is answered."""
        for _ in range(5):
            assert self.ask(request()).endswith(b"\r\n\r\nGET / 0")
            assert self.ask(request("/b", b"x" * 9000)).endswith(b"\r\n\r\nPOST /b 9000")


def read_all(connection: socket.socket) -> bytes:
    parts = []
    while part := connection.recv(1 << 16):
        parts.append(part)
    return b"".join(parts)


def request(path: str = "/", body: bytes | None = None, *headers: str, keep: bool = False) -> bytes:
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.1", "Host: h.example", *headers]
    if not keep:
        lines.append("Connection: close")
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (body or b"")


@contextlib.contextmanager
def serving(setting: str = "pass"):
    site = Site(setting)
    try:
        with site.stack:
            yield site
    finally:
        os.killpg(site.process.pid, signal.SIGKILL)
        site.process.communicate()


@pytest.fixture(scope="module")
def server():
    with serving() as site:
        yield site


@pytest.fixture
def site(server):
    with contextlib.ExitStack() as server.stack:
        yield server


HOSTILE = {
    "slow body": request("/b", b"x" * 5000)[:-4000],
    "slow head": b"POST /b HTTP/1.1\r\nHost: h.exa",
    "slow chunks": b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n100\r\nabc",
    "not reading": request("/large"),
    "idle": b"",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_others_are_answered_beside_those_who_hang(site, kind):
    # Two threads, 60 connections, and more of these than either.
    hanging = [site.connect(HOSTILE[kind]) for _ in range(100 if kind == "idle" else 40)]
    site.answers()
    assert len(hanging) >= 40


def test_beside_all_of_them_at_once_and_more_than_there_is_room_for(site):
    for _ in range(25):
        for sent in HOSTILE.values():
            with contextlib.suppress(ConnectionError):
                site.connect(sent)
    site.answers()


def test_one_who_was_hung_up_on_may_have_sent_something_in_that_very_moment(site):
    idle = [site.connect() for _ in range(59)]
    site.answers()  # so all of these were taken
    time.sleep(0.7)
    os.killpg(site.process.pid, signal.SIGSTOP)
    try:
        newcomers = [site.connect(request("/new")) for _ in range(3)]  # for whom the oldest have to go,
        for one in idle:
            one.sendall(b"G")  # and these are heard of in the same turn of the loop
    finally:
        os.killpg(site.process.pid, signal.SIGCONT)
    assert all(read_all(one).endswith(b"GET /new 0") for one in newcomers)
    idle[-1].sendall(request("/old")[1:])
    assert read_all(idle[-1]).endswith(b"GET /old 0"), "nobody else was hung up on"


def test_a_huge_body_is_refused_before_it_is_read_and_the_refusal_arrives(site):
    declared = b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 400000\r\n\r\n" + bytes(400_000)
    assert site.ask(declared).startswith(b"HTTP/1.1 413 ") and site.ask(declared).endswith(b"so large")
    chunk = b"1000\r\n" + bytes(4096) + b"\r\n"
    chunked = b"POST /b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk * 50
    assert site.ask(chunked).startswith(b"HTTP/1.1 413 ")
    endless = site.connect(b"POST /b HTTP/1.1\r\nHost: h\r\nContent-Length: 999999999\r\n\r\n")
    with pytest.raises(ConnectionError):
        while True:
            endless.sendall(bytes(1 << 16))
    site.answers()


def test_of_pipelined_requests_the_first_is_answered(site):
    answer = site.ask(request("/first", keep=True) * 500)
    assert answer.count(b"HTTP/1.1 200 ") == 1 and answer.endswith(b"GET /first 0")
    site.answers()


def test_what_is_sent_ahead_of_an_answer_does_not_take_that_answer_away(site):
    connection = site.connect()
    connection.sendall(request("/first", keep=True) + bytes(600_000))
    assert read_all(connection).endswith(b"GET /first 0")


def test_a_connection_is_kept_for_one_request_after_the_other(site):
    connection = site.connect()
    for number in range(3):
        connection.sendall(request(f"/{number}", b"abc", keep=True))
        assert connection.recv(1 << 16).endswith(b"POST /%d 3" % number)
    connection.sendall(request("/last"))
    assert read_all(connection).endswith(b"GET /last 0")


def test_a_sender_who_waits_to_be_told_is_told(site):
    raw = request("/b", b"x" * 100, "Expect: 100-continue")
    connection = site.connect(raw[:-100])
    assert connection.recv(100) == received.CONTINUE
    connection.sendall(raw[-100:])
    assert read_all(connection).endswith(b"POST /b 100")


def test_an_app_that_fails_is_a_500_and_not_the_end(site):
    assert site.ask(request("/fail")).startswith(b"HTTP/1.1 500 ")
    site.answers()


def test_an_app_may_answer_when_no_thread_is_in_it_any_more(site):
    answer = site.ask(request("/after"))
    assert answer.startswith(b"HTTP/1.1 201 Created\r\n") and answer.endswith(b"\r\n\r\nafter") and b"X-A: b" in answer


def test_what_the_loop_itself_takes_is_answered_later_and_its_failure_is_a_500(site):
    assert site.ask(request("/later")).endswith(b"\r\n\r\nlater")
    both = request("/later", keep=True)
    connection = site.connect(both)
    assert connection.recv(1 << 16).endswith(b"later")
    connection.sendall(request("/broken", keep=True))
    assert read_all(connection).startswith(b"HTTP/1.1 500 "), "and it ends there"
    site.answers()


def test_nothing_lasts_for_ever_and_who_drips_gains_no_time():
    def ends(connection: socket.socket) -> None:
        with contextlib.suppress(ConnectionError):
            read_all(connection)
        ended.append(time.monotonic() - began)

    with serving("whole._ENDS.update(dict.fromkeys(whole._ENDS, 1.5))") as site:
        kept = site.connect(request(keep=True))
        assert kept.recv(1 << 16).endswith(b"GET / 0")
        deaf, read = site.connect(HOSTILE["not reading"]), 0
        began, ended = time.monotonic(), []
        slow = [site.connect(HOSTILE[kind]) for kind in ("slow head", "slow body", "slow chunks", "slow body")]
        threads = [threading.Thread(target=ends, args=(one,)) for one in (kept, site.connect(), *slow)]
        for thread in threads:
            thread.start()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 10:
                slow[-1].sendall(b"x")
                time.sleep(0.05)
        for thread in threads:
            thread.join()
        assert len(ended) == 6 and min(ended) > 1.2 and max(ended) < 5
        with contextlib.suppress(ConnectionError):
            read = len(read_all(deaf))
        assert read < 1 << 23, "who took nothing of his answer for so long gets no more of it"
        site.answers()


def test_what_all_have_sent_together_is_bounded_and_the_oldest_goes_first():
    half = request("/b", b"x" * 9000)[:-4000]
    with serving("whole.HELD_BYTES = 20_000") as site:
        senders = []
        for _ in range(5):
            senders.append(site.connect(half))
            site.ask(request())  # so that it was taken before the next
        for one in senders[:2]:
            with contextlib.suppress(ConnectionError):
                assert read_all(one) == b""
        for one in senders[2:]:
            one.sendall(b"x" * 4000)
            assert read_all(one).endswith(b"POST /b 9000")


def test_what_is_in_hand_is_answered_before_the_end_and_slow_senders_are_not_waited_for():
    site = Site()
    with site.stack:
        held = site.connect(request("/hold"))
        assert site.process.stdout.readline() == b"holding\n"
        idle, slow = site.connect(), site.connect(HOSTILE["slow body"])
        site.answers()  # so that these two were taken
        begun = site.connect(request("/go", b"x" * 100)[:-1])
        site.answers()
        site.process.send_signal(signal.SIGTERM)
        assert idle.recv(1) == b""
        begun.sendall(b"x")  # a request that was coming in counts
        assert read_all(begun).endswith(b"POST /go 100")
        assert read_all(held).endswith(b"GET /hold 0")
        assert slow.recv(1) == b""
        assert site.process.wait(20) == 0
        site.process.communicate()


# One request, and no socket.


def read(raw: bytes, step: int = 1 << 20) -> Reader:
    reader = Reader(LIMIT)
    for at in range(0, len(raw), step):
        reader.feed(raw[at : at + step])
        if reader.refused:
            break
    return reader


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_however_it_comes_it_is_the_same(step):
    raw = (b"POST /a%20b?c=%20d HTTP/1.1\r\nHost: h\r\nX-A: 1\r\nx_a: 2\r\nX-A: 3\r\nTransfer-Encoding: chunked\r\n\r\n"
           b"3;q=1\r\nabc\r\n2\r\nde\r\n0\r\nTrailer: t\r\n\r\n")
    reader = read(raw, step)
    assert (reader.complete, reader.refused, reader.keeps_alive, reader.held) == (True, 0, True, len(raw))
    environ = reader.environ(("127.0.0.1", 80), "192.0.2.1")
    assert environ["wsgi.input"].read() == b"abcde"
    told = {name: environ[name] for name in (
        "REQUEST_METHOD", "PATH_INFO", "QUERY_STRING", "RAW_URI", "CONTENT_LENGTH", "HTTP_X_A", "SERVER_PROTOCOL")}
    assert told == {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/a b", "QUERY_STRING": "c=%20d", "RAW_URI": "/a%20b?c=%20d",
        "CONTENT_LENGTH": "5", "HTTP_X_A": "1,3", "SERVER_PROTOCOL": "HTTP/1.1",
    }
    assert "HTTP_TRANSFER_ENCODING" not in environ
    assert header_lines(environ) == [
        ("Host", "h"), ("X-A", "1"), ("X-A", "3"), ("Transfer-Encoding", "chunked"),
    ], "a name that could pass for another is in neither"
    assert raw_target(environ) == "/a%20b?c=%20d"


@pytest.mark.parametrize(("raw", "status"), [
    (b"\x16\x03\x01 this is TLS\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: h\r\n bad\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", 400),
    (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (LIMIT + 1), 413),
    (b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % (LIMIT + 1) + bytes(LIMIT + 1), 413),
    (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"A: b\r\n" * 65 + b"\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: h\r\nA: " + b"b" * 17_000, 431),
    (b"GET /" + b"b" * 17_000, 431),
    (b"GET /%s HTTP/1.1\r\nHost: h\r\n\r\n" % (b"b" * 17_000), 431),
    (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1;%s\r\nx\r\n" % (b"e" * 100) * 1000, 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505),
    (b"GET /\r\n\r\n", 505),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", 400),
    (b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", 501),
    (b"POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 501),
])
@pytest.mark.parametrize("step", [1, 1 << 20])
def test_what_is_not_read(raw, status, step):
    if step == 1 and len(raw) > 50_000:
        step = 100
    reader = read(raw, step)
    assert (reader.refused, reader.keeps_alive) == (status, False)


@pytest.mark.parametrize("after", [b"POST /second HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", b"\x00\x01", b"GET"])
def test_what_follows_a_request_changes_nothing_about_it(after):
    reader = read(b"GET /first HTTP/1.1\r\nHost: h\r\n\r\n" + after)
    assert (reader.complete, reader.refused, reader.keeps_alive) == (True, 0, False)
    environ = reader.environ(("127.0.0.1", 80), "")
    assert (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["wsgi.input"].read()) == ("GET", "/first", b"")
    assert "CONTENT_LENGTH" not in environ or environ["CONTENT_LENGTH"] == "0"


def test_what_comes_behind_a_body_is_no_header():
    reader = read(b"POST / HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
                  b"X-Forwarded-For: 198.51.100.6\r\nContent-Encoding: gzip\r\n\r\n")
    environ = reader.environ(("127.0.0.1", 80), "")
    assert environ["HTTP_X_FORWARDED_FOR"] == "192.0.2.1" and "HTTP_CONTENT_ENCODING" not in environ


def test_white_space_around_a_value_is_none_of_it():
    reader = read(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length:  3 \t\r\n\r\nabc")
    assert (reader.complete, reader.refused) == (True, 0)


def test_who_would_change_the_protocol_is_answered_in_this_one():
    reader = read(b"GET / HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    assert (reader.complete, reader.keeps_alive) == (True, False)


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
@pytest.mark.parametrize(("framing", "sent"), [
    (b"Content-Length: 5", b"abcde"), (b"Transfer-Encoding: chunked", b"2;x=y\r\nab\r\n3\r\ncde\r\n0\r\n\r\n"),
])
@pytest.mark.parametrize("after", [
    b"", b"GET /second HTTP/1.1\r\nHost: h\r\n\r\n", b"GET /second HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", b"\0",
])
def test_and_its_body_is_read(step, framing, sent, after):
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AA\r\n"
    assert not read(head + framing + b"\r\n\r\n" + sent[:-1], step).complete
    reader = read(head + framing + b"\r\n\r\n" + sent + after, step)
    assert (reader.complete, reader.refused, reader.keeps_alive) == (True, 0, False)
    environ = reader.environ(("127.0.0.1", 80), "")
    assert (environ["REQUEST_METHOD"], environ["PATH_INFO"], environ["wsgi.input"].read()) == ("POST", "/a", b"abcde")
    assert environ["HTTP_HOST"] == "h"


def test_a_body_after_such_a_head_has_the_same_bounds():
    head = b"POST /a HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"
    assert read(head + b"Content-Length: %d\r\n\r\n" % (LIMIT + 1)).refused == 413
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    assert read(chunked + b"%x\r\n" % (LIMIT + 1) + bytes(LIMIT + 1)).refused == 413
    assert read(chunked + b"xyz\r\n").refused == 400


def test_only_who_speaks_1_1_waits_to_be_told():
    for version, expects in ((b"1.0", False), (b"1.1", True)):
        reader = read(b"POST / HTTP/%s\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n" % version)
        assert (reader.complete, reader.refused, reader.expects) == (False, 0, expects)


@pytest.mark.parametrize(("target", "path", "query"), [
    (b"http://other.example:80/a%20b?c", "/a b", "c"), (b"HTTPS://h", "/", ""), (b"http://h?c=d", "/", "c=d"), (b"*", "*", ""),
    (b"/http://h/a", "/http://h/a", ""),
])
def test_a_target_may_be_a_whole_address(target, path, query):
    environ = read(b"OPTIONS %s HTTP/1.1\r\nHost: h\r\n\r\n" % target).environ(("127.0.0.1", 80), "")
    assert (environ["PATH_INFO"], environ["QUERY_STRING"], environ["RAW_URI"]) == (path, query, target.decode())


def test_an_answer_is_whole():
    answer = format_answer("200 OK", [("A", "b")], b"body", keep_alive=True)
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    assert (lines[0], body) == (b"HTTP/1.1 200 OK", b"body")
    assert lines[1].startswith(b"Date: ") and set(lines[2:]) == {b"A: b", b"Content-Length: 4", b"Connection: keep-alive"}

    def app(environ, start_response):
        start_response("204 No Content", [])
        return []

    assert b"Content-Length" not in run_app(app, {"REQUEST_METHOD": "GET"}, keep_alive=lambda: False)
    head_only = run_app(lambda _, start: (start("200 OK", []), [b"body"])[1], {"REQUEST_METHOD": "HEAD"}, keep_alive=lambda: False)
    assert b"Content-Length: 4" in head_only and not head_only.endswith(b"body")


def test_descriptors_are_asked_for_as_far_as_they_go(monkeypatch):
    asked = []
    monkeypatch.setattr(whole.resource, "setrlimit", lambda _, limits: asked.append(limits))
    for limits, connections in (((1024, 4096), 2048), ((64, 64), 32), ((-1, -1), 4000), ((1024, -1), 4000)):
        monkeypatch.setattr(whole.resource, "getrlimit", lambda _, limits=limits: limits)
        assert whole.raise_descriptors() == connections
    assert asked == [(4096, 4096), (8000, -1)]


def test_a_worker_whose_parent_was_killed_answers_what_it_has_and_ends():
    with serving() as site:
        site.answers()
        slow = site.connect(request("/slow", b"x" * 9000)[:-1])
        time.sleep(0.2)  # it reads
        os.kill(site.process.pid, signal.SIGKILL)
        with pytest.raises(OSError):  # no more is taken
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                site.ask(request())
        slow.sendall(b"x")
        assert read_all(slow).endswith(b"POST /slow 9000")
        assert b"Traceback" not in site.process.stderr.read()  # to its end: the worker's
