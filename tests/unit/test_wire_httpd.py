import contextlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ktlog.errors import MessageRejected, UsageError
from ktlog.wire.environ import header_lines, raw_target
from ktlog.wire.httpd import RefusalCounter, format_address, open_listener, parse_listen

APP = """
import json, os, sys, time
from ktlog.errors import MessageRejected
from ktlog.wire.environ import header_lines, raw_target
from ktlog.wire.httpd import serve

MASTER = os.getpid()

def app(environ, start_response):
    if environ["PATH_INFO"] == "/slow":
        print("slow", flush=True)
        time.sleep(1)
    if environ["PATH_INFO"] == "/die":
        os._exit(9)
    body = environ["wsgi.input"].read()
    try:
        target = raw_target(environ)
    except MessageRejected as error:
        target = error.code
    facts = {
        "target": target, "lines": header_lines(environ), "scheme": environ["wsgi.url_scheme"],
        "script": environ["SCRIPT_NAME"], "pid": os.getpid(), "master": MASTER, "body": len(body),
    }
    data = json.dumps(facts).encode()
    start_response("200 OK", [("Content-Length", str(len(data)))])
    return [data]

def factory():
    print("factory in worker", os.getpid() != MASTER, flush=True)
    return app
"""


class Server:
    def __init__(self, tail: str, listener: socket.socket | None = None) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", APP + tail], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            pass_fds=(listener.fileno(),) if listener else (),
        )
        self.port = listener.getsockname()[1] if listener else 0

    def expect(self, text: str) -> str:
        for line in self.process.stdout:
            if text in line:
                return line
        pytest.fail(f"never said {text!r}: {self.process.stderr.read()}")

    def finish(self, timeout: float = 20) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=timeout)
        return self.process.returncode, out, err

    def ask(self, raw: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=10) as connection:
            connection.sendall(raw)
            return _read_all(connection)

    def facts(self, raw: bytes) -> dict:
        head, _, body = self.ask(raw).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        return json.loads(body)


def _read_all(connection: socket.socket) -> bytes:
    parts = []
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@contextlib.contextmanager
def serving(options: str = "", after: str = ""):
    listener = socket.create_server(("127.0.0.1", 0))
    listener.set_inheritable(True)
    server = Server(f"\nserve(factory, 'fd://{listener.fileno()}'{options})\n{after}", listener)
    listener.close()
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
        server.process.communicate()


def request(target: str = "/", *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = [f"{method} {target} HTTP/1.1", "Host: h.example", "Connection: close", *headers]
    return "\r\n".join([*head, "", ""]).encode("latin-1") + body


@pytest.mark.parametrize(("text", "expected"), [
    ("fd://0", 0), ("fd://12", 12), ("127.0.0.1:8000", ("127.0.0.1", 8000)), ("0.0.0.0:0", ("0.0.0.0", 0)),
    ("localhost:80", ("localhost", 80)), ("[::1]:65535", ("::1", 65535)),
])
def test_parse_listen(text, expected):
    assert parse_listen(text) == expected


@pytest.mark.parametrize("text", [
    "", "8000", ":8000", "127.0.0.1", "127.0.0.1:", "127.0.0.1:+80", "127.0.0.1:080", "127.0.0.1:65536",
    "127.0.0.1:8_0", "::1:80", "fd://", "fd://-1", "fd://01", "fd://x", "unix:socket", "keys.example:80", "127.0.0.1:80 ",
    "127.0.0.1:\u0668",
])
def test_parse_listen_refuses(text):
    with pytest.raises(UsageError) as caught:
        parse_listen(text)
    assert caught.value.name == "BadListen"


def test_a_port_that_is_taken_is_refused_at_once():
    with open_listener("127.0.0.1:0") as taken:
        begin = time.monotonic()
        with pytest.raises(UsageError) as caught:
            open_listener(format_address(taken))
        assert caught.value.name == "BadListen"
        assert time.monotonic() - begin < 1
    for text in ("999.0.0.1:80", "fd://9999"):
        with pytest.raises(UsageError):
            open_listener(text)


def test_format_address_is_the_inverse_of_parse_listen():
    for text in ("127.0.0.1:0", "[::1]:0"):
        with open_listener(text) as listener:
            assert parse_listen(format_address(listener)) == listener.getsockname()[:2]


@pytest.fixture(scope="module")
def server():
    with serving() as server:
        yield server


def test_apps_see_the_request_as_it_was_sent(server):
    facts = server.facts(request("/api/actor/https%3A%2F%2Fa.example%2Fusers%2Fa?x=%2f&y", "X-Two: a", "x-two: b"))
    assert facts["target"] == "/api/actor/https%3A%2F%2Fa.example%2Fusers%2Fa?x=%2f&y"
    assert [value for name, value in facts["lines"] if name.lower() == "x-two"] == ["a", "b"]
    assert facts["pid"] != facts["master"]
    # An absolute target would put another host into what is signed.
    assert server.facts(request("http://evil.example/inbox"))["target"] == "bad_request"
    assert server.facts(request("/", "Content-Length: 3", method="POST", body=b"abc"))["body"] == 3


def test_what_a_request_says_about_itself_is_not_believed(server):
    facts = server.facts(request(
        "/", "X-Forwarded-Proto: https", "X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl", "Script-Name: /evil",
        "SCRIPT_NAME: /evil", "Path-Info: /evil", "PATH_INFO: /evil",
    ))
    assert (facts["scheme"], facts["script"], facts["target"]) == ("http", "", "/")


@pytest.mark.parametrize("raw", [
    request("/", "Content-Length: 3", "Transfer-Encoding: chunked", method="POST", body=b"0\r\n\r\n"),
    request("/", "Content-Length: 3", "Content-Length: 3", method="POST", body=b"abc"),
    request("/", "X-A: " + "b" * 9000), request("/" + "a" * 9000), request("/", "Host: twice.example"),
    request("/", " folded: header"), b"GET / HTTP/1.1\r\nX\r\n\r\n",
])
def test_requests_that_read_two_ways_are_refused(server, raw):
    assert server.ask(raw).startswith(b"HTTP/1.1 4")


def test_sigterm_finishes_what_was_begun():
    with serving(", threads=2", "print('after', os.getpid() == MASTER, flush=True)") as server:
        answers = []
        thread = threading.Thread(target=lambda: answers.append(server.ask(request("/slow"))))
        thread.start()
        server.expect("slow")
        server.process.send_signal(signal.SIGTERM)
        thread.join()
        assert answers[0].startswith(b"HTTP/1.1 200")
        code, out, err = server.finish()
    # What follows serve() runs once, here, and not in the workers, which are forks of the same frames.
    assert (code, out.count("after"), "after True" in out, err) == (0, 1, True, "")


def test_hooks_and_a_port_of_our_own():
    tail = """
serve(factory, "127.0.0.1:0", workers=2, name="hooked",
      on_starting=lambda: print("starting", os.getpid() == MASTER, flush=True),
      on_ready=lambda address: print("ready", address, flush=True),
      after_fork=lambda: print("forked", os.getpid() == MASTER, flush=True),
      on_exit=lambda: print("exit", os.getpid() == MASTER, flush=True))
"""
    server = Server(tail)
    try:
        assert server.expect("starting").split() == ["starting", "True"]
        server.port = int(server.expect("ready").rpartition(":")[2])
        assert server.facts(request())["target"] == "/"
        server.process.send_signal(signal.SIGINT)
        code, out, _ = server.finish()
    finally:
        server.process.kill()
        server.process.communicate()
    assert code == 0
    assert out.count("forked False") + out.count("factory in worker True") >= 3
    assert "exit True" in out


def test_one_worker_stays_one_whatever_signal_comes():
    """Two at once would each believe to be the only writer."""
    with serving() as server:
        first = server.facts(request())["pid"]
        for name in ("SIGTTIN", "SIGHUP", "SIGTTOU", "SIGUSR2"):
            server.process.send_signal(getattr(signal, name))
            assert f"{name} does nothing here" in server.process.stderr.readline()
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text().split()
        assert children == [str(first)] and server.facts(request())["pid"] == first


def test_a_connection_that_waited_for_the_start_is_as_fast_as_others():
    with serving() as server, socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        stream = connection.makefile("rb")
        spent = []
        for _ in range(10):
            begin = time.monotonic()
            connection.sendall(b"GET / HTTP/1.1\r\nHost: h.example\r\n\r\n")
            size = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length"):
                    size = int(line.partition(b":")[2])
            stream.read(size)
            spent.append(time.monotonic() - begin)
    # Nagle's algorithm against delayed acknowledgements would make nearly all of them 40 ms.
    assert min(spent[5:]) < 0.03


def test_a_worker_that_dies_is_replaced():
    with serving() as server:
        first = server.facts(request())["pid"]
        assert server.ask(request("/die")) == b""
        deadline = time.monotonic() + 10
        second = first
        while second == first and time.monotonic() < deadline:
            second = server.facts(request())["pid"]
        assert second != first


def test_a_connection_is_kept_open(server):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        raw = b"GET / HTTP/1.1\r\nHost: h.example\r\n\r\n"
        stream = connection.makefile("rb")
        for _ in range(3):
            connection.sendall(raw)
            assert stream.readline().startswith(b"HTTP/1.1 200")
            size = 0
            while (line := stream.readline()) != b"\r\n":
                if line.lower().startswith(b"content-length"):
                    size = int(line.partition(b":")[2])
            assert json.loads(stream.read(size))["target"] == "/"


@pytest.mark.parametrize("failure", [
    "raise StoreError('Locked', 'somebody else is there', hint='Wait.')", "raise RuntimeError('a bug')",
])
def test_an_app_that_cannot_be_made_ends_the_server(failure):
    tail = f"""
from ktlog.errors import StoreError
def broken():
    {failure}
serve(broken, "127.0.0.1:0", name="broken")
print("never said")
"""
    server = Server(tail)
    code, out, err = server.finish()
    assert code not in (0, None)
    assert "never said" not in out
    assert "somebody else is there" in err or "a bug" in err


def test_raw_target_outside_our_server():
    assert raw_target({"RAW_URI": "/a%2Fb"}) == "/a%2Fb"
    for target in ("http://evil.example/", "*", "", "evil.example:443", "/a#b"):
        with pytest.raises(MessageRejected) as caught:
            raw_target({"RAW_URI": target})
        assert caught.value.code == "bad_request"
    with pytest.raises(UsageError):
        raw_target({})


def test_header_lines_outside_our_server():
    environ = {"HTTP_CONTENT_DIGEST": "a", "HTTP_HOST": "h", "CONTENT_TYPE": "b", "CONTENT_LENGTH": "", "PATH_INFO": "/"}
    assert sorted(header_lines(environ)) == [("CONTENT-DIGEST", "a"), ("CONTENT-TYPE", "b"), ("HOST", "h")]


def test_a_stray_script_name_in_the_environment(monkeypatch):
    monkeypatch.setitem(os.environ, "SCRIPT_NAME", "/stray")
    with serving() as server:
        assert server.facts(request())["script"] == ""


def test_what_strangers_wrote_in_malformed_requests_is_not_logged():
    """Their text may name an actor. Of five the first, the second and the fourth leave a line."""
    secret = "https%3A%2F%2Falpha.example%2Fusers%2Falice"
    with serving(", workers=1") as server:
        assert server.facts(request("/"))["target"] == "/"
        for line in (
            f"GET /api/actor/{secret}", f"get /{secret} HTTP/1.1", f"GET /{secret} HTTP/7.7",
            f"GET / HTTP/1.1\r\n{secret}", f"GET / HTTP/1.1\r\nHost: h.example\r\nX {secret}: 1",
        ):
            assert b" 400 " in server.ask(f"{line}\r\n\r\n".encode()).partition(b"\r\n")[0]
        server.process.send_signal(signal.SIGTERM)
        code, _, err = server.finish()
    assert code == 0
    assert "alice" not in err and "Invalid request" not in err and "127.0.0.1" not in err, err
    counts = [line.rpartition(" ")[2] for line in err.splitlines() if "malformed requests" in line]
    assert counts == ["1", "2", "4"]


def test_refusals_are_counted_and_other_records_pass():
    counter = RefusalCounter()
    logger = logging.Logger("gunicorn.test")
    logger.addFilter(counter)
    said = []
    logger.addHandler(handler := logging.Handler())
    handler.emit = lambda record: said.append(record.getMessage())
    for number in range(100):
        logger.warning(f"Invalid request from ip=192.0.2.1: Invalid header {number} %s alice")
    assert counter.count == 100
    assert [text.rpartition(" ")[2] for text in said] == ["1", "2", "4", "8", "16", "32", "64"]
    assert not any("alice" in text or "192.0.2" in text for text in said)
    said.clear()
    logger.error("Error handling request %s %s", "GET", "/api/actor/alice")
    logger.warning("Worker (%s) exited", 7)
    assert said == ["Error handling request", "Worker (7) exited"]
