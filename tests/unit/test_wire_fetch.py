import gzip
import json
import os
import socket
import sys
import threading
import time

import pytest
from tls_server import HOST, OTHER, TlsServer, answer

from ktlog.errors import EncodingError, Unreachable, UsageError
from ktlog.wire.fetch import Dial, Fetcher

URL = f"https://{HOST}/checkpoint"


def refused(name, call, *arguments, **options):
    with pytest.raises(Unreachable) as caught:
        call(*arguments, **options)
    assert caught.value.name == name, caught.value
    return caught.value


# -- what a request looks like


def test_get(server, fetcher):
    server.behave = lambda request: answer(b"body", 418, "text/plain; charset=utf-8", X_Two="1")
    response = fetcher.get(URL + "?a=%2F", accept="text/plain", headers={"X-Mine": "yes"})
    assert (response.status, response.body, response.url) == (418, b"body", URL + "?a=%2F")
    assert response.headers["x-two"] == "1"
    assert response.content_type == "text/plain"
    (request,) = server.requests
    assert (request.method, request.target, request.body) == ("GET", "/checkpoint?a=%2F", b"")
    assert request.header("accept") == "text/plain"
    assert request.header("accept-encoding") == "identity"
    assert request.header("x-mine") == "yes"
    assert request.header("user-agent").startswith("ktlog/")


def test_host_header_and_server_name_are_the_urls(server, fetcher):
    fetcher.get(URL)
    fetcher.get(f"https://{HOST}:443/checkpoint")
    assert [request.header("host") for request in server.requests] == [HOST, HOST]
    assert [request.server_name for request in server.requests] == [HOST, HOST]


def test_the_callers_cannot_set_the_host(fetcher):
    with pytest.raises(AssertionError):
        fetcher.get(URL, headers={"host": OTHER})


def test_who_asks_for_another_host_does_so_of_the_urls_server(server):
    """Each time, and the server's name in TLS stays the URL's."""
    with Fetcher(server.dial(HOST), odd={"Host": OTHER}) as fetcher:
        fetcher.get(URL)
        fetcher.post(URL, b"x")
    assert [(one.header("host"), one.server_name) for one in server.requests] == [(OTHER, HOST), (OTHER, HOST)]


def test_post(server, fetcher):
    response = fetcher.post(URL, b"\x00\xff", {"Content-Type": "text/plain"})
    assert response.status == 200
    (request,) = server.requests
    assert (request.method, request.body) == ("POST", b"\x00\xff")
    assert request.header("content-length") == "2"


def test_header_injection_is_refused(server, fetcher):
    refused("Broken", fetcher.get, URL, headers={"X-A": "b\r\nX-C: d"})
    assert server.requests == []


def test_proxies_of_the_environment_are_not_used(server, fetcher, monkeypatch):
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert fetcher.get(URL).status == 200


# -- connections


def test_a_connection_is_used_again(server, fetcher):
    for _ in range(5):
        fetcher.get(URL)
        fetcher.post(URL, b"x")
    assert (server.connections, len(server.requests)) == (1, 10)


def test_threads_share_a_fetcher(server, fetcher):
    server.behave = lambda request: answer(request.target.encode())
    failures = []

    def work(number):
        for turn in range(10):
            target = f"/{number}/{turn}"
            if fetcher.get(f"https://{HOST}{target}").body != target.encode():
                failures.append(target)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(server.requests) == 120
    assert server.connections < 60


def test_a_get_survives_a_kept_connection_that_died(server, fetcher):
    # The second request on a connection finds it cut, without an answer.
    seen = []
    server.behave = lambda request: [None] if _second_on_its_connection(server, seen) else answer()
    assert fetcher.get(URL).status == 200
    assert fetcher.get(URL).status == 200
    assert server.connections == 2


def test_a_post_is_never_sent_twice(server, fetcher):
    seen = []
    server.behave = lambda request: [None] if _second_on_its_connection(server, seen) else answer()
    assert fetcher.post(URL, b"1").status == 200
    refused("Broken", fetcher.post, URL, b"2")
    assert [request.body for request in server.requests] == [b"1", b"2"]


def test_a_kept_connection_that_was_closed_is_noticed(server, fetcher):
    server.behave = lambda request: [*answer(), None]
    for turn in range(3):
        assert fetcher.post(URL, b"x").status == 200
        time.sleep(0.1)
    assert server.connections == 3


def _second_on_its_connection(server, seen):
    seen.append(server.connections)
    return seen.count(server.connections) == 2


def test_idle_connections_are_not_trusted_for_long(server):
    now = [1000.0]
    fetcher = Fetcher(server.dial(), now=lambda: now[0])
    fetcher.get(URL)
    now[0] += 60
    fetcher.get(URL)
    assert server.connections == 2


def test_a_forked_child_does_not_use_its_parents_connections(server, fetcher):
    fetcher.get(URL)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if fetcher.get(URL).status == 200 else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert server.connections == 2
    assert fetcher.get(URL).status == 200
    assert server.connections == 2


# -- whom it may ask


@pytest.mark.parametrize("url", [
    f"http://{HOST}/", f"HTTPS://{HOST}/", f"https://user@{HOST}/", f"https://{HOST}:8443/", f"https://{HOST}:80/",
    f"https://{HOST}/#f", f"https://{HOST}", "https://127.0.0.1/", "https://0x7f.1/", "https://127.1/",
    "https://2130706433/", "https://0177.0.0.1/", "https://[::1]/", "https://[::ffff:7f00:1]/", "https://localhost/",
    "file:///etc/passwd", "gopher://127.0.0.1/", "//keys.alpha.example/", "",
])
def test_urls_that_are_not_followed(server, loopback_guard, monkeypatch, url):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("resolved a name"))
    refused("BadAddress", Fetcher(server.dial()).get, url)
    refused("BadAddress", Fetcher(server.dial()).post, url, b"")
    assert server.connections == 0


def resolving(monkeypatch, *answers):
    """Let getaddrinfo give these addresses, one tuple a call; returns the list of calls."""
    calls = []

    def getaddrinfo(host, port, *_, **__):
        calls.append(host)
        found = answers[min(len(calls), len(answers)) - 1]
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)) if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in found
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return calls


@pytest.mark.parametrize("addresses", [
    ("10.0.0.1",), ("127.0.0.1",), ("::1",), ("::ffff:127.0.0.1",), ("93.184.216.34", "10.0.0.1"),
    ("10.0.0.1", "93.184.216.34"), ("2606:4700:4700::1111", "fe80::1"),
])
def test_every_address_of_a_name_must_be_public(monkeypatch, loopback_guard, addresses):
    calls = resolving(monkeypatch, addresses)
    refused("BadAddress", Fetcher().get, "https://rebound.example/")
    assert calls == ["rebound.example"]
    assert loopback_guard.refused == []


def test_rebinding_gets_one_chance_to_answer(monkeypatch, loopback_guard):
    # The second look-up, after the check, would give the machine itself. It never happens: the address
    # that was checked is the one that is dialled.
    calls = resolving(monkeypatch, ("93.184.216.34",), ("127.0.0.1",))
    with pytest.raises(loopback_guard.LoopbackOnly):
        Fetcher().get("https://rebound.example/")
    assert calls == ["rebound.example"]
    assert loopback_guard.refused == [("socket.connect", "93.184.216.34")]


def test_a_dial_table_is_for_its_hosts_only(server, monkeypatch, loopback_guard):
    calls = resolving(monkeypatch, ("127.0.0.1",))
    refused("BadAddress", Fetcher(server.dial()).get, f"https://{OTHER}/")
    assert (calls, server.connections) == ([OTHER], 0)


def test_a_name_that_does_not_resolve(monkeypatch):
    def fail(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    refused("Refused", Fetcher().get, "https://nowhere.example/")
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [])
    refused("Refused", Fetcher().get, "https://nowhere.example/")


def test_a_resolver_that_hangs_does_not_hang_us(monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(20))
    begin = time.monotonic()
    refused("Timeout", Fetcher(timeout=0.2).get, "https://slow.example/")
    assert time.monotonic() - begin < 5


def test_resolvers_that_hang_are_few(monkeypatch):
    calls, release = [], threading.Event()
    monkeypatch.setattr("ktlog.wire.dial._lookups", threading.BoundedSemaphore(2))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: calls.append(1) or release.wait(20))
    try:
        for _ in range(4):
            refused("Timeout", Fetcher(timeout=1.0).get, "https://slow.example/")
        assert len(calls) == 2
    finally:
        release.set()


# -- TLS


def test_the_certificate_must_name_the_urls_host(server):
    refused("TlsFailed", Fetcher(server.dial(OTHER)).get, f"https://{OTHER}/")
    assert server.requests == []


def test_the_authority_must_be_the_dial_tables(server, tmp_path_factory):
    stranger = TlsServer(tmp_path_factory.mktemp("stranger"))
    stranger.start()
    try:
        dial = Dial(stranger.dial().hosts, server.ca_file)
        refused("TlsFailed", Fetcher(dial).get, URL)
        # Without an authority of its own a dialled host is checked against the public ones.
        refused("TlsFailed", Fetcher(Dial(stranger.dial().hosts)).get, URL)
        assert stranger.requests == []
    finally:
        stranger.stop()


def test_nobody_is_there():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    refused("Refused", Fetcher(Dial({HOST: ("127.0.0.1", port)})).get, URL)


# -- redirects


def redirecting(**targets):
    def behave(request):
        location = targets.get(request.target.strip("/"))
        return answer(b"", 302, None, Location=location) if location else answer(b"there")

    return behave


def test_a_redirect_within_the_origin_is_followed(server, fetcher):
    server.behave = redirecting(a=f"https://{HOST}/b", b="/c?d=e#f")
    response = fetcher.get(f"https://{HOST}/a")
    assert (response.body, response.url) == (b"there", f"https://{HOST}/c?d=e")
    assert [request.target for request in server.requests] == ["/a", "/b", "/c?d=e"]


def test_three_redirects_are_too_many(server, fetcher):
    server.behave = redirecting(a="/b", b="/c", c="/d")
    refused("BadRedirect", fetcher.get, f"https://{HOST}/a")
    assert len(server.requests) == 3


@pytest.mark.parametrize("location", [
    f"https://{OTHER}/", f"http://{HOST}/", "https://127.0.0.1/", "https://[::1]/", f"https://{HOST}:8443/", "//evil.example/",
    f"https://user@{HOST}/", "file:///etc/passwd", "/b c", "https://[/", f"https://{HOST}\\@evil.example/", "",
])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_elsewhere_is_not_followed(server, loopback_guard, location, status):
    server.behave = lambda request: answer(b"", status, None, Location=location)
    fetcher = Fetcher(server.dial(HOST, OTHER))
    if location == "":  # resolves to the very same URL: a loop
        refused("BadRedirect", fetcher.get, URL)
        return
    refused("BadRedirect", fetcher.get, URL)
    assert len(server.requests) == 1
    assert loopback_guard.refused == []


def test_a_post_is_not_redirected(server, fetcher):
    server.behave = lambda request: answer(b"", 307, None, Location="/b")
    refused("BadRedirect", fetcher.post, URL, b"secret")
    assert len(server.requests) == 1


# -- how much and how long


def test_too_large_by_its_own_account(server, fetcher):
    server.behave = lambda request: [b"HTTP/1.1 200 OK\r\nContent-Length: 999999999999\r\n\r\n"]
    refused("TooLarge", fetcher.get, URL)


@pytest.mark.parametrize("head", [b"Transfer-Encoding: chunked", b"Connection: close"])
def test_too_large_without_saying_so(server, fetcher, head):
    def behave(request):
        yield b"HTTP/1.1 200 OK\r\n" + head + b"\r\n\r\n"
        for _ in range(10_000):
            yield b"400\r\n" + b"x" * 1024 + b"\r\n"
        yield None

    server.behave = behave
    refused("TooLarge", fetcher.get, URL, max_bytes=5000)


def test_the_cap_is_exact(server, fetcher):
    server.behave = lambda request: answer(b"x" * 100)
    assert len(fetcher.get(URL, max_bytes=100).body) == 100
    refused("TooLarge", fetcher.get, URL, max_bytes=99)
    server.behave = lambda request: [b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100, None]
    assert len(fetcher.get(URL, max_bytes=100).body) == 100
    refused("TooLarge", fetcher.get, URL, max_bytes=99)


def test_compression_was_not_asked_for(server, fetcher):
    bomb = gzip.compress(b"\0" * 10_000_000)
    server.behave = lambda request: answer(bomb, Content_Encoding="gzip")
    refused("BadContent", fetcher.get, URL)


@pytest.mark.parametrize("head", [
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nab", b"SSH-2.0-OpenSSH\r\n\r\n", b"",
    b"HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello", b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
    b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 300 + b"\r\n", b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n",
])
def test_answers_that_are_none(server, fetcher, head):
    server.behave = lambda request: [head, None]
    refused("Broken", fetcher.get, URL)


@pytest.mark.parametrize("script", ["body", "head", "silence"])
def test_a_slow_answer_meets_the_deadline_of_the_whole_request(server, script):
    def behave(request):
        if script == "silence":
            yield 20.0
        text = b"HTTP/1.1 200 OK\r\nX-Padding: yes, a lot of it\r\n\r\n"
        if script == "body":
            yield text
        # A byte now and then keeps every single read from timing out.
        for byte in text * 20:
            yield 0.05
            yield bytes([byte])

    server.behave = behave
    begin = time.monotonic()
    refused("Timeout", Fetcher(server.dial(), timeout=0.5).get, URL)
    assert 0.4 < time.monotonic() - begin < 5


def test_redirects_share_the_deadline(server):
    server.behave = lambda request: [0.4, *answer(b"", 302, None, Location="/again")]
    begin = time.monotonic()
    refused("Timeout", Fetcher(server.dial(), timeout=0.6).get, URL)
    assert time.monotonic() - begin < 5


def test_a_handshake_that_never_ends():
    with socket.create_server(("127.0.0.1", 0)) as mute:
        dial = Dial({HOST: mute.getsockname()[:2]})
        begin = time.monotonic()
        refused("Timeout", Fetcher(dial, timeout=0.4).get, URL)
        assert time.monotonic() - begin < 5


@pytest.mark.parametrize("polite", [True, False])
def test_an_early_refusal_of_a_large_post_is_read(server, polite):
    response = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        def serve():
            connection, _ = listener.accept()
            with server._context.wrap_socket(connection, server_side=True) as tls:
                tls.recv(100)
                tls.sendall(response)
                time.sleep(0.3)
                # Hanging up with bytes unread resets the connection under the sender.
                while polite and tls.recv(65536):
                    pass

        threading.Thread(target=serve, daemon=True).start()
        dialled = Fetcher(Dial({HOST: listener.getsockname()[:2]}, server.ca_file), timeout=5)
        assert dialled.post(URL, b"x" * 5_000_000).status == 413


# -- JSON


def test_fetch_json(server, fetcher):
    server.behave = lambda request: answer(b'{"a":[1,"b"]}', 200, "Application/JSON; charset=utf-8")
    assert fetcher.fetch_json(URL) == {"a": [1, "b"]}
    assert server.requests[0].header("accept") == "application/json"


@pytest.mark.parametrize(("body", "status", "content_type", "name"), [
    (b"{}", 404, "application/json", "BadStatus"), (b"{}", 204, "application/json", "BadStatus"),
    (b"{}", 200, "text/html", "BadContent"), (b"{}", 200, None, "BadContent"),
    (b"{}", 200, "application/json-patch", "BadContent"), (b"{}", 200, "text/html; x=application/json", "BadContent"),
])
def test_fetch_json_wants_json(server, fetcher, body, status, content_type, name):
    server.behave = lambda request: answer(body if status != 204 else b"", status, content_type)
    refused(name, fetcher.fetch_json, URL)


@pytest.mark.parametrize("body", [b'{"a":1,"a":2}', b'{"a":1.5}', b'{"a":NaN}', b"\xff", b"", b'"\\ud800"'])
def test_fetch_json_is_strict(server, fetcher, body):
    server.behave = lambda request: answer(body, 200, "application/json")
    with pytest.raises(EncodingError):
        fetcher.fetch_json(URL)


# -- how it is made


def test_from_environment(server, tmp_path):
    path = tmp_path / "dial.json"
    path.write_text(json.dumps({"ca_file": server.ca_file, "hosts": {HOST: f"127.0.0.1:{server.port}"}}))
    assert Fetcher.from_environment({"KTLOG_DIAL": str(path)}, timeout=5).get(URL).status == 200
    assert Fetcher.from_environment({})._dial is None
    with pytest.raises(UsageError):
        Fetcher.from_environment({"KTLOG_DIAL": str(tmp_path / "absent.json")})


def test_the_base_install_is_enough():
    """cryptography and requests (with what it brings) are all that the client's side of wire imports."""
    import subprocess

    code = (
        "import sys; sys.modules.update(dict.fromkeys(['flask', 'gunicorn', 'http_message_signatures', 'http_sf',"
        " 'sqlite3', 'sqlite_utils', 'click', 'rich', 'werkzeug']));"
        "import ktlog.wire.fetch, ktlog.wire.webfinger, ktlog.wire.actor, ktlog.wire.httpd"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
