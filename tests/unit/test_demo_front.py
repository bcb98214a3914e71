import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time

import pytest

from ktlog.demo.front import parse_routes, write_routes
from ktlog.demo.pki import create_pki
from ktlog.errors import StoreError, Unreachable, UsageError
from ktlog.wire.fetch import Dial, Fetcher

ONE, TWO = "one.example", "two.example"


class Backend:
    """A plain HTTP server that answers with its name. targets: what it was asked, in order."""

    def __init__(self, name: str, *, close: bool = False, greedy: bool = True) -> None:
        self.name = name.encode()
        self.targets = []
        self._close, self._greedy = close, greedy
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.connections = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        # Wakes the thread in accept, which closing alone does not.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection, connection.makefile("rb") as stream:
            while line := stream.readline():
                self.targets.append(line.split()[1].decode())
                size = 0
                while (line := stream.readline()) != b"\r\n":
                    if line.lower().startswith(b"content-length:"):
                        size = int(line.split(b":")[1])
                if self._greedy:
                    while size > 0 and (part := stream.read(min(size, 65536))):
                        size -= len(part)
                head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s\r\n" % (
                    len(self.name), b"Connection: close\r\n" if self._close or not self._greedy else b""
                )
                connection.sendall(head + self.name)
                if not self._greedy:
                    # As gunicorn does: say that nothing more will come, and let the other side finish.
                    connection.shutdown(socket.SHUT_WR)
                    connection.settimeout(2)
                    while connection.recv(65536):
                        pass
                if self._close or not self._greedy:
                    return


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    return create_pki(tmp_path_factory.mktemp("front-pki"), [ONE, TWO, "unrouted.example"])


class Front:
    def __init__(self, directory, pki, routes) -> None:
        self.directory = directory
        for path in (pki.ca_file, pki.certificate_file, pki.key_file):
            (directory / path.name).write_bytes(path.read_bytes())
        if routes:
            write_routes(directory, routes)
        listener = socket.create_server(("127.0.0.1", 0))
        listener.set_inheritable(True)
        self.address = listener.getsockname()[:2]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "ktlog.demo.front", "--dir", str(directory), "--listen", f"fd://{listener.fileno()}"],
            pass_fds=(listener.fileno(),), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        listener.close()
        self.ca_file = str(pki.ca_file)

    def fetcher(self, **options) -> Fetcher:
        hosts = dict.fromkeys((ONE, TWO, "unrouted.example"), self.address)
        return Fetcher(Dial(hosts, self.ca_file), **{"timeout": 5, **options})

    def stop(self) -> tuple[int, str, str]:
        self.process.send_signal(signal.SIGTERM)
        out, err = self.process.communicate(timeout=20)
        return self.process.returncode, out, err


@pytest.fixture
def backends():
    made = []

    def make(name, **options):
        made.append(Backend(name, **options))
        return made[-1]

    yield make
    for backend in made:
        backend.stop()


@pytest.fixture
def start(tmp_path, pki):
    fronts = []

    def start(routes):
        fronts.append(Front(tmp_path, pki, routes))
        return fronts[-1]

    yield start
    for front in fronts:
        if front.process.poll() is None:
            front.process.kill()
        front.process.communicate()


def test_each_name_has_its_backend(start, backends):
    one, two = backends("one"), backends("two")
    front = start({ONE: one.address, TWO: two.address})
    fetcher = front.fetcher()
    for _ in range(3):
        assert fetcher.get(f"https://{ONE}/a").body == b"one"
        assert fetcher.get(f"https://{TWO}/b?c").body == b"two"
    assert (one.targets, two.targets) == (["/a"] * 3, ["/b?c"] * 3)
    assert (one.connections, two.connections) == (1, 1)
    assert front.stop() == (0, "", "")


def test_bytes_pass_unchanged_and_in_any_amount(start, backends):
    one = backends("x" * 3_000_000)
    fetcher = start({ONE: one.address}).fetcher(max_bytes=4_000_000)
    assert fetcher.get(f"https://{ONE}/%2F%00?%ff").body == one.name
    assert fetcher.post(f"https://{ONE}/p", os.urandom(3_000_000)).body == one.name
    assert one.targets == ["/%2F%00?%ff", "/p"]


def test_a_name_without_a_route_is_refused_in_the_handshake(start, backends):
    front = start({ONE: backends("one").address})
    with pytest.raises(Unreachable) as caught:
        front.fetcher().get("https://unrouted.example/")
    assert caught.value.name == "TlsFailed"


def test_a_client_that_names_nobody_is_refused(start, backends):
    one = backends("one")
    front = start({ONE: one.address})
    context = ssl.create_default_context(cafile=front.ca_file)
    context.check_hostname = False
    with socket.create_connection(front.address, timeout=5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain)
    assert one.connections == 0


def test_old_versions_of_tls_are_refused(start, backends):
    front = start({ONE: backends("one").address})
    context = ssl.create_default_context(cafile=front.ca_file)
    with socket.create_connection(front.address, timeout=5) as plain:
        assert context.wrap_socket(plain, server_hostname=ONE).version() == "TLSv1.3"
    with pytest.warns(DeprecationWarning):
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with socket.create_connection(front.address, timeout=5) as plain, pytest.raises(ssl.SSLError):
        context.wrap_socket(plain, server_hostname=ONE)


def test_a_name_can_be_repointed_while_connections_are_open(start, backends):
    honest, liar = backends("honest"), backends("liar")
    front = start({ONE: honest.address, TWO: honest.address})
    fetcher = front.fetcher()
    assert fetcher.get(f"https://{ONE}/").body == b"honest"
    assert fetcher.get(f"https://{TWO}/").body == b"honest"
    write_routes(front.directory, {ONE: liar.address, TWO: honest.address})
    # The very next request, on the connection that was kept, already goes to the new backend.
    assert fetcher.get(f"https://{ONE}/").body == b"liar"
    assert fetcher.get(f"https://{TWO}/").body == b"honest"
    assert honest.connections == 2
    write_routes(front.directory, {ONE: honest.address, TWO: honest.address})
    time.sleep(0.3)
    assert fetcher.post(f"https://{ONE}/", b"x").body == b"honest"
    write_routes(front.directory, {TWO: honest.address})
    with pytest.raises(Unreachable):
        fetcher.get(f"https://{ONE}/")


def test_routes_that_do_not_parse_leave_the_old_ones(start, backends):
    front = start({ONE: backends("one").address})
    assert front.fetcher().get(f"https://{ONE}/").body == b"one"
    (front.directory / "routes.json").write_text('{"one.example": "10.0.0.1:80"}')
    assert front.fetcher().get(f"https://{ONE}/").body == b"one"
    (front.directory / "routes.json").unlink()
    assert front.fetcher().get(f"https://{ONE}/").body == b"one"
    code, out, err = front.stop()
    assert (code, out) == (0, "")
    assert "UnsafeDial" in err


def test_a_backend_that_is_down(start, backends):
    one = backends("one")
    front = start({ONE: one.address})
    fetcher = front.fetcher()
    assert fetcher.get(f"https://{ONE}/").body == b"one"
    one.stop()
    begin = time.monotonic()
    with pytest.raises(Unreachable) as caught:
        front.fetcher().get(f"https://{ONE}/")
    assert caught.value.name in ("Broken", "TlsFailed")
    assert time.monotonic() - begin < 3
    assert front.stop() == (0, "", "")


def test_a_backend_that_hangs_up_ends_the_connection_at_once(start, backends):
    one = backends("one", close=True)
    front = start({ONE: one.address})
    context = ssl.create_default_context(cafile=front.ca_file)
    with context.wrap_socket(socket.create_connection(front.address, timeout=5), server_hostname=ONE) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: one.example\r\n\r\n")
        begin = time.monotonic()
        answer = b""
        while part := connection.recv(65536):
            answer += part
    assert answer.endswith(b"one")
    assert time.monotonic() - begin < 1


def test_an_answer_to_a_body_nobody_reads_arrives(start, backends):
    one = backends("too large", greedy=False)
    fetcher = start({ONE: one.address}).fetcher()
    for _ in range(3):
        assert fetcher.post(f"https://{ONE}/", b"x" * 2_000_000).body == b"too large"


def test_many_at_once(start, backends):
    one = backends("one")
    fetcher = start({ONE: one.address}).fetcher(timeout=20)
    failures = []

    def work():
        for _ in range(5):
            try:
                assert fetcher.get(f"https://{ONE}/").body == b"one"
            except Exception as error:  # noqa: BLE001
                failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(one.targets) == 150


def test_a_front_without_a_certificate_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "ktlog.demo.front", "--dir", str(tmp_path), "--listen", "127.0.0.1:0"],
        capture_output=True, text=True, timeout=30,
    )
    assert done.returncode == 2
    assert "BadCertificate" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("routes", [
    {ONE: "10.0.0.1:80"}, {ONE: "0.0.0.0:80"}, {ONE: "localhost:80"}, {"127.0.0.1": "127.0.0.1:80"}, {ONE: "127.0.0.1"},
])
def test_routes_lead_to_loopback_only(tmp_path, routes):
    with pytest.raises(UsageError):
        write_routes(tmp_path, routes)
    assert not (tmp_path / "routes.json").exists()


@pytest.mark.parametrize("data", [
    b"", b"[]", b'{"one.example":1}', b'{"one.example":"127.0.0.1:1","one.example":"127.0.0.1:2"}',
])
def test_routes_that_are_none(data):
    with pytest.raises(UsageError) as caught:
        parse_routes(data)
    assert caught.value.name == "BadRoutes"


def test_pki(tmp_path):
    from cryptography import x509

    now = 1_790_000_000
    pki = create_pki(tmp_path / "new", [ONE, TWO], now)
    assert pki.key_file.stat().st_mode & 0o777 == 0o600
    certificate = x509.load_pem_x509_certificate(pki.certificate_file.read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [ONE, TWO]
    ca = x509.load_pem_x509_certificate(pki.ca_file.read_bytes())
    certificate.verify_directly_issued_by(ca)
    assert certificate.not_valid_before_utc.timestamp() < now < certificate.not_valid_after_utc.timestamp()
    assert certificate.not_valid_after_utc.timestamp() - now < 8 * 86400
    # Strict verification, which newer Pythons turn on by themselves, accepts the chain.
    current = create_pki(tmp_path / "current", [ONE])
    context = ssl.create_default_context(cafile=str(current.ca_file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(current.certificate_file, current.key_file)
    left, right = socket.socketpair()
    thread = threading.Thread(target=lambda: server.wrap_socket(right, server_side=True).close())
    thread.start()
    context.wrap_socket(left, server_hostname=ONE).close()
    thread.join()
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError):
        create_pki(tmp_path / "file", [ONE])
    assert json.dumps([path.name for path in sorted((tmp_path / "new").iterdir())]) == (
        '["ca.pem", "server.key", "server.pem"]'
    )
