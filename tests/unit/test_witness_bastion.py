"""The client of https-bastions, against a bastion on loopback that passes requests on, or does worse."""

from __future__ import annotations

import logging
import ssl
import threading
import time

import pytest
from h2.errors import ErrorCodes

from ktlog.errors import UsageError
from tests.bastion_server import HOST, BastionServer
from tests.unit.test_witness_cli import run, run_json
from witness import h2server
from witness.bastion import (
    Backoff,
    Bastion,
    BastionOptions,
    Bastions,
    list_urls,
    make_certificate,
    parse_bastion,
    path_prefix,
)
from witness.h2request import BadRequest, make_environ
from witness.h2server import _PREFACE, Ended, FrameReader, Limits, _Budget
from witness.web import open_witness

SEED = bytes(31) + b"\x07"
CERTIFICATE = make_certificate(SEED)
SECONDS = 20


def eventually(true) -> None:
    end = time.monotonic() + SECONDS
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


class App:
    """Says what it was asked; /hang waits for ``go``, /large answers much, /fail fails."""

    def __init__(self) -> None:
        self.go, self.hanging = threading.Event(), threading.Semaphore(0)
        self.environs: list[dict] = []

    def __call__(self, environ, start_response):
        self.environs.append(environ)
        path, body = environ["PATH_INFO"], environ["wsgi.input"].read()
        if path == "/hang":
            self.hanging.release()
            self.go.wait(SECONDS)
        if path == "/fail":
            raise ValueError("a stranger's words")
        answer = b"x" * 1_000_000 if path == "/large" else b"%s %s %d" % (
            environ["REQUEST_METHOD"].encode(), path.encode("latin-1"), len(body),
        )
        start_response("200 OK", [("Content-Type", "text/plain"), ("Connection", "close")])
        return [answer]


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return tmp_path_factory.mktemp("pki")


@pytest.fixture
def site(pki, monkeypatch):
    """Makes bastions, and the one client that dials them all."""
    monkeypatch.setattr(h2server, "CLOSE_SECONDS", 0.05)  # no bastion here says goodbye
    servers, clients = [], []

    class Site:
        app = App()

        def server(self, change=lambda server: None) -> BastionServer:
            server = BastionServer(pki, CERTIFICATE)
            change(server)
            server.start()
            servers.append(server)
            return server

        def dial(self, *to: BastionServer, seed=SEED, ca_file=None, threads=8, backoff=None, **limits) -> Bastions:
            options = BastionOptions(
                tuple(Bastion(HOST, one.port) for one in to), seed, ca_file or to[0].ca_file,
            )
            client = Bastions(
                self.app, options, limits=Limits(**limits), threads=threads, backoff=backoff or Backoff(0.01, 0.05),
            )
            clients.append(client)
            client.start()
            return client

        def connect(self, **options):
            server = self.server()
            client = self.dial(server, **options)
            return client, server, server.backend()

    yield Site()
    Site.app.go.set()
    for server in servers:  # first, so that no client waits for its farewell
        server.stop()
    for client in clients:
        client.close()


# --- serving


def test_requests_reach_the_application_and_answers_come_back(site):
    _, server, backend = site.connect()
    assert backend.key_hash == path_prefix(SEED)
    assert server.versions == ["TLSv1.3"]
    reply = backend.ask("/a%20b?c=%20d", b"12345", extra=[("content-type", "text/x"), ("x_y", "z"), ("proxy", "p")])
    assert (reply.status, reply.body, reply.headers) == (200, b"POST /a b 5", {"content-type": "text/plain"})
    environ = site.app.environs[-1]
    assert environ["QUERY_STRING"] == "c=%20d" and environ["CONTENT_TYPE"] == "text/x"
    assert environ["REMOTE_ADDR"] in ("127.0.0.1", "::1")
    # What a bastion says of its clients counts for nothing here, and is not even handed on.
    assert not [name for name in environ if "FORWARD" in name or name in ("HTTP_X_Y", "HTTP_PROXY")]
    assert backend.wait(backend.open("/h", "HEAD")).body == b""
    # More than every window.
    assert len(backend.ask("/large").body) == 1_000_000
    assert backend.ask("/", b"y" * 131072).body == b"POST / 131072"
    assert backend.ask("/fail").status == 500


def test_streams_do_not_wait_for_each_other(site):
    _, _, backend = site.connect()
    hung, slow = backend.open("/hang"), backend.open("/slow", "POST", end=False)
    backend.send(slow, b"a", end=False)
    assert [backend.ask("/").status for _ in range(3)] == [200] * 3
    site.app.go.set()
    backend.send(slow, b"b")
    assert backend.wait(hung).body == b"GET /hang 0" and backend.wait(slow).body == b"POST /slow 2"


def test_a_body_that_does_not_come_holds_no_thread_and_ends(site):
    _, _, backend = site.connect(threads=1, request_seconds=0.3)
    slow = [backend.open("/slow", "POST", end=False) for _ in range(20)]
    assert backend.ask("/").status == 200
    assert {backend.wait(one).status for one in slow} == {408}
    assert backend.ask("/").status == 200


def test_a_body_has_a_cap(site):
    _, _, backend = site.connect(body_bytes=1000)
    announced = backend.open("/", "POST", end=False, extra=[("content-length", "1001")])
    assert backend.wait(announced).status == 413
    assert backend.ask("/", b"x" * 1001).status == 413
    assert backend.ask("/", b"x" * 1000).status == 200


def test_a_request_that_hangs_is_given_up_and_still_counts(site):
    client, _, backend = site.connect(request_seconds=0.3, streams=3)
    hung = [backend.open("/hang") for _ in range(3)]
    assert {backend.wait(one).reset for one in hung} == {ErrorCodes.CANCEL}
    # Their threads are still taken, so nothing more is begun, and the bastion is told that it was not.
    assert backend.ask("/").reset == ErrorCodes.REFUSED_STREAM
    assert client.states[0].counters.refused == 1
    site.app.go.set()
    eventually(lambda: backend.ask("/").status == 200)


def test_one_that_was_reset_by_the_bastion_is_forgotten_before_it_begins(site):
    _, _, backend = site.connect(threads=1)
    hung = backend.open("/hang")
    site.app.hanging.acquire()
    queued = backend.open("/never")
    backend.sync()
    backend.h2.reset_stream(queued)
    backend.flush()
    backend.sync()
    site.app.go.set()
    backend.wait(hung)
    assert backend.ask("/last").status == 200
    assert "/never" not in [environ["PATH_INFO"] for environ in site.app.environs]


@pytest.mark.parametrize(("pseudo", "extra"), [
    ([(":method", "GET"), (":scheme", "https")], ()),
    ([(":method", "GET"), (":path", "/")], ()),
    ([(":method", "get"), (":scheme", "https"), (":path", "/")], ()),
    ([(":method", "CONNECT"), (":authority", "w")], ()),
    ([(":method", "GET"), (":scheme", "https"), (":path", "*")], ()),
    ([(":method", "GET"), (":scheme", "https"), (":path", "http://x/")], ()),
    ([(":method", "GET"), (":scheme", "https"), (":path", "/a b")], ()),
    ([(":method", "GET"), (":scheme", "https"), (":path", "/"), (":path", "/")], ()),
    ([(":method", "GET"), (":scheme", "https"), (":path", "/"), (":protocol", "x")], ()),
    ([("a", "b"), (":method", "GET"), (":scheme", "https"), (":path", "/")], ()),
    (None, [("transfer-encoding", "chunked")]),
    (None, [("te", "gzip")]),
    (None, [("a", "b\r\nc: d")]),
    (None, [("content-type", "a"), ("content-type", "b")]),
    (None, [(f"x{number}", "") for number in range(64)]),
])
def test_a_bad_request_ends_its_stream_alone(site, pseudo, extra):
    _, _, backend = site.connect()
    reply = backend.ask("/", pseudo=pseudo, extra=extra)
    assert reply.status == 431 if len(extra) == 64 else reply.status == 400
    assert backend.ask("/").status == 200
    assert len(site.app.environs) >= 1 and all(environ["PATH_INFO"] == "/" for environ in site.app.environs)


def test_a_body_in_crumbs_ends_its_stream_alone(site):
    """An honest bastion passes them on as they come to it, and others' requests are on the same connection."""
    _, _, backend = site.connect()
    for number in [backend.open("/", "POST", end=False) for _ in range(4)]:
        backend.raw((b"\0\0\x01\0\0" + number.to_bytes(4, "big") + b"x") * 600)
        assert backend.wait(number).status == 400
    assert backend.ask("/", b"x" * 50_000).status == 200


def test_trailers_are_refused(site):
    _, _, backend = site.connect()
    number = backend.open("/", "POST", end=False)
    backend.send(number, b"body", end=False)
    backend.h2.send_headers(number, [("trailer", "x")], end_stream=True)
    backend.flush()
    assert backend.wait(number).status == 400
    assert backend.ask("/").status == 200


def test_a_length_is_a_number():
    good = [(b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/"), (b"content-length", b"12")]
    assert make_environ(good, ("127.0.0.1", 1))[1] == 12
    for value in (b"", b"+1", b"1_0", b"-1", b"1,1", b"9" * 13):
        with pytest.raises(BadRequest):
            make_environ([*good[:3], (b"content-length", value)], ("127.0.0.1", 1))


# --- hostile bastions


def test_more_streams_than_allowed_end_the_connection(site):
    _, server, backend = site.connect(streams=5)
    backend.h2.remote_settings.max_concurrent_streams = 1000
    backend.sync()
    backend.h2.remote_settings.max_concurrent_streams = 1000
    frames = [frame_of_request(backend) for _ in range(6)]
    backend.raw(b"".join(frames))
    assert backend.until_gone() == ErrorCodes.PROTOCOL_ERROR
    assert server.backend().ask("/").status == 200


def frame_of_request(backend, *, end: bool = False) -> bytes:
    number = backend.h2.get_next_available_stream_id()
    backend.h2.send_headers(number, [
        (":method", "POST"), (":scheme", "https"), (":path", "/flood"),
    ], end_stream=end)
    return backend.h2.data_to_send()


@pytest.mark.parametrize("flood", ["pings", "resets", "settings", "empty"])
def test_frames_that_bring_nothing_end_the_connection(site, flood):
    _, _, backend = site.connect()
    backend.sync()
    if flood == "pings":
        data = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
    elif flood == "settings":
        data = b"\0\0\0\x04\0\0\0\0\0"
    elif flood == "empty":
        data = b"\0\0\0\0\0" + backend.open("/", "POST", end=False).to_bytes(4, "big")
    if flood == "resets":
        for _ in range(1500):
            frame_of = frame_of_request(backend)
            backend.h2.reset_stream(backend.h2.highest_outbound_stream_id)
            with_reset = frame_of + backend.h2.data_to_send()
            try:
                backend.raw(with_reset)
            except Exception:
                break
    else:
        backend.raw(data * 3000)
    assert backend.until_gone() in (ErrorCodes.ENHANCE_YOUR_CALM, None)
    assert site.app.environs == []


def test_budget_is_for_floods_and_not_for_use():
    now = [0.0]
    budget = _Budget(lambda: now[0])
    for _ in range(5000):  # a request with its windows, pings and pieces
        for kind, size in ((1, 100), (0, 1000), (8, 4), (8, 4), (6, 8)):
            budget.spend(kind, size)
    budget = _Budget(lambda: now[0])
    for _ in range(2):
        for _ in range(_Budget.FRAMES):
            budget.spend(6, 8)
        now[0] += 11
    with pytest.raises(Ended):
        for _ in range(2 * _Budget.FRAMES):
            budget.spend(6, 8)


def test_frames_are_cut_wherever_they_arrive_cut():
    frames = [b"\0\0\0\x04\0\0\0\0\0", b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)]
    reader = FrameReader(_Budget(lambda: 0.0))
    stream = _PREFACE + b"".join(frames)
    found = [one for at in range(len(stream)) for one in reader.split(stream[at : at + 1])]
    assert found == [(-1, _PREFACE), (4, frames[0]), (6, frames[1])]
    for data in (b"GET / HTTP/1.1\r\n", _PREFACE + b"\0\x40\x01\0\0\0\0\0\0"):
        with pytest.raises(Ended):
            list(FrameReader(_Budget(lambda: 0.0)).split(data))


def test_a_bastion_that_is_silent_is_asked_and_then_left(site):
    client, server, backend = site.connect(ping_seconds=0.1)
    while backend.pings < 2:  # it answers twice, and then no more
        backend.step()
    again = server.backend()
    assert client.states[0].error == "it is silent"
    assert again.ask("/").status == 200


def test_one_that_takes_no_answers_is_left(site):
    client, server, backend = site.connect(write_seconds=0.2)
    backend.h2.increment_flow_control_window(2**30)
    backend.flush()
    ping = b"\0\0\x08\x06\0\0\0\0\0" + bytes(8)
    numbers = [backend.open("/large") for _ in range(20)]
    for number in numbers:
        backend.h2.increment_flow_control_window(2**30, number)
    backend.flush()
    with pytest.raises(Exception):  # noqa: PT011, B017
        while True:
            backend.raw(ping)
            time.sleep(0.01)
    server.backend()
    assert client.states[0].error == "it takes no answers"


# --- dialling


@pytest.mark.parametrize("change", ["tls12", "no alpn", "other ca", "other key"])
def test_what_is_not_the_bastion_gets_nothing(site, change, tmp_path, caplog):
    caplog.set_level(logging.WARNING, "ktlog.witness.bastion")

    def wrong(server: BastionServer) -> None:
        if change == "tls12":
            server.context.maximum_version = ssl.TLSVersion.TLSv1_2
        elif change == "no alpn":
            server.context.set_alpn_protocols(["h2"])

    server = site.server(wrong)
    options = {}
    if change == "other ca":
        options["ca_file"] = BastionServer(tmp_path, CERTIFICATE).ca_file
    elif change == "other key":
        options["seed"] = bytes(32)
    client = site.dial(server, **options)
    eventually(lambda: client.states[0].error)
    assert not site.app.environs
    expected = {"tls12": "TLS", "no alpn": "no bastion", "other ca": "not trusted", "other key": ""}[change]
    assert expected in client.states[0].error
    # It goes on trying, and says so once.
    eventually(lambda: server.failures.qsize() + len(server.versions) >= 3)
    assert len({one.message for one in caplog.records if "dialling it again" in one.message}) <= 2


def test_it_dials_again_when_a_connection_is_cut_and_when_nobody_is_there(site):
    client, server, backend = site.connect()
    backend.close()
    backend = server.backend()
    assert backend.ask("/").status == 200
    server.stop()
    eventually(lambda: not client.states[0].connected and client.states[0].connections == 2)
    eventually(lambda: "refused" in client.states[0].error.lower())


def test_the_wait_grows_though_a_bastion_takes_and_drops(site):
    server = site.server()
    began = time.monotonic()
    client = site.dial(server, backoff=Backoff(0.02, 0.64))
    for _ in range(6):
        server.backend().close()
    # 20, 40, 80, 160 and 320 ms, each less a quarter at most.
    assert time.monotonic() - began > 0.46
    eventually(lambda: client.states[0].connections == 6)


def test_several_bastions_at_once_and_one_that_is_down(site):
    one, two, down = site.server(), site.server(), site.server()
    down.stop()
    client = site.dial(one, two, down)
    assert one.backend().ask("/1").body == b"GET /1 0" and two.backend().ask("/2").body == b"GET /2 0"
    assert [state.connected for state in client.states] == [True, True, False]


# --- leaving


def test_when_the_bastion_leaves_what_is_in_hand_is_answered(site):
    _, server, backend = site.connect()
    hung = backend.open("/hang")
    site.app.hanging.acquire()
    goaway = b"\0\0\x08\x07\0\0\0\0\0" + bytes(8)
    backend.raw(goaway)
    backend.sync()
    site.app.go.set()
    assert backend.wait(hung).body == b"GET /hang 0"
    assert backend.until_gone() is None
    assert server.backend().ask("/").status == 200


def test_when_we_leave_what_is_in_hand_is_answered_and_nothing_else(site):
    client, server, backend = site.connect()
    backend.ask("/")
    hung = backend.open("/hang")
    site.app.hanging.acquire()
    backend.sync()
    client.leave()
    seen = []
    # h2 would give up at the GOAWAY, so this side takes it out, as ours does.
    original = backend.h2.receive_data

    def without_goaway(data: bytes):
        at = data.find(b"\0\0\x08\x07\0\0\0\0\0")
        if at >= 0:
            seen.append(data[at + 9 : at + 17])
            data = data[:at] + data[at + 17 :]
        return original(data) if data else []

    backend.h2.receive_data = without_goaway
    while not seen:
        backend.step()
    assert seen == [hung.to_bytes(4, "big") + bytes(4)]
    late = backend.ask("/late")
    assert late.reset == ErrorCodes.REFUSED_STREAM
    site.app.go.set()
    assert backend.wait(hung).body == b"GET /hang 0"
    assert backend.until_gone() is None
    client.close()
    assert not client._thread.is_alive()
    assert server._backends.empty()


def test_leaving_idle_or_never_connected_is_at_once(site):
    client, _, backend = site.connect()
    client.close()
    assert not client._thread.is_alive() and backend.until_gone() == ErrorCodes.NO_ERROR
    server = site.server()
    server.stop()
    nobody = site.dial(server, backoff=Backoff(60, 60))
    eventually(lambda: nobody.states[0].error)
    nobody.close()
    assert not nobody._thread.is_alive()
    Bastions(site.app, nobody._options).close()  # never started


# --- addresses, keys, commands


def test_addresses():
    assert parse_bastion("Bastion.Example") == Bastion("bastion.example", 443)
    assert parse_bastion("b.example:8443") == Bastion("b.example", 8443)
    assert parse_bastion("[::1]:1") == Bastion("::1", 1) and str(Bastion("::1", 1)) == "[::1]:1"
    for text in ("", "https://b.example", "b.example/x", "b.example:", "b.example:x", "b.example:70000", "::1", "a b", "-a"):
        with pytest.raises(UsageError, match="BadBastion"):
            parse_bastion(text)
    urls = list_urls(BastionOptions((Bastion("b.example", 8443),), SEED))
    assert urls == (f"https://b.example/{path_prefix(SEED)}",)


def test_the_bastion_key_is_made_once_and_is_no_cosigning_key(tmp_path, pki):
    directory, server = tmp_path / "w", BastionServer(pki, CERTIFICATE)
    server.stop()
    run_json("init", "--dir", directory, "--name", "example.com/w1")
    serve = ("serve", "--dir", directory, "--no-listen", "--bastion-ca", server.ca_file)
    assert "NoDoor" in run(*serve).stderr
    assert "NoBastionKey" in run(*serve, "--bastion", "b.example").stderr
    first = run_json("bastion-key", "--dir", directory)
    assert (first["made"], len(first["path_prefix"])) == (True, 64)
    assert run("bastion-key", "--dir", directory).stdout == f"{first['path_prefix']}\n"
    assert (directory / "bastion.key").stat().st_mode & 0o777 == 0o600
    (tmp_path / "other").write_text("no certificate")
    assert "BadCertificates" in run(*serve[:-1], tmp_path / "other", "--bastion", "b.example").stderr
    assert "BadBastion" in run(*serve, "--bastion", "https://b.example").stderr
    (directory / "bastion.key").write_bytes((directory / "ed25519.key").read_bytes())
    assert "SharedKey" in run(*serve, "--bastion", "b.example").stderr


def test_through_a_bastion_a_witness_answers_as_it_does_over_http(site, tmp_path):
    from tests.witness_log import Log
    from witness.config import WitnessDir
    from witness.web import create_app

    log, directory = Log(), tmp_path / "w"
    run_json("init", "--dir", directory, "--name", "example.com/w1")
    run_json("add-log", "--dir", directory, *log.vkeys)
    witness = open_witness(WitnessDir(directory))
    site.app = create_app(witness)
    server = site.server()
    site.dial(server)
    backend = server.backend()
    reply = backend.ask("/add-checkpoint", log.submission(0, 3))
    assert (reply.status, reply.headers["content-type"]) == (200, "text/plain; charset=utf-8")
    conflict = backend.ask("/add-checkpoint", log.submission(0, 3))
    assert (conflict.status, conflict.body, conflict.headers["content-type"]) == (409, b"3\n", "text/x.tlog.size")
    witness.store.close()
