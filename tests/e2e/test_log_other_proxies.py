"""deploy/Caddyfile and deploy/apache.conf before a running log: answers and paths come through as they were sent."""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from ktlog.demo.pki import Pki, pki_in
from tests.e2e.test_log_nginx import WAITING, check_senders, check_signed
from tests.machine import need, program
from tests.running_log import INBOX_PATH, ORIGIN, RunningLog, actor, running_log

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).parents[2] / "deploy"
MODULES = (
    "mpm_event", "authz_core", "authz_host", "ssl", "socache_shmcb", "proxy", "proxy_http", "reqtimeout", "env", "mime", "headers",
    "setenvif",
)


def changed(text: str, *pairs: tuple[str, str]) -> str:
    """What an operator changes, and each only once."""
    for before, after in pairs:
        assert before in text
        text = text.replace(before, after)
    return text


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def caddy(directory: Path, port: int, upstream: int, pki: Pki) -> list[str]:
    text = changed(
        (DEPLOY / "Caddyfile").read_text(encoding="utf-8"),
        ("{\n\tservers {", "{\n\tadmin off\n\tauto_https disable_redirects\n\tservers {"),
        (f"{'keys.example.com'} {{", f"https://{ORIGIN}:{port} {{\n\tbind 127.0.0.1\n\ttls {pki.certificate_file} {pki.key_file}"),
        ("\n:443 {", f"\nhttps://:{port} {{\n\tbind 127.0.0.1\n\ttls {pki.certificate_file} {pki.key_file}"),
        ("127.0.0.1:8080", f"127.0.0.1:{upstream}"),
    )
    (directory / "Caddyfile").write_text(text, encoding="utf-8")
    return [str(program("caddy")), "run", "--adapter", "caddyfile", "--config", str(directory / "Caddyfile")]


def apache(directory: Path, port: int, upstream: int, pki: Pki) -> list[str]:
    host = changed(
        (DEPLOY / "apache.conf").read_text(encoding="utf-8"), ("*:443", f"127.0.0.1:{port}"), ("keys.example.com\n", f"{ORIGIN}\n"),
        ("/etc/ssl/keys.example.com/fullchain.pem", str(pki.certificate_file)),
        ("/etc/ssl/keys.example.com/privkey.pem", str(pki.key_file)), ("127.0.0.1:8080", f"127.0.0.1:{upstream}"),
    )
    modules = "".join(f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so\n" for name in MODULES)
    (directory / "apache.conf").write_text(
        f"ServerRoot {directory}\nPidFile {directory}/pid\nErrorLog {directory}/error.log\nMutex file:{directory}\n"
        f"ServerName {ORIGIN}\n{modules}DefaultRuntimeDir {directory}\nTypesConfig /dev/null\nListen 127.0.0.1:{port}\n"
        f"User nobody\nGroup nogroup\n{host}", encoding="utf-8",
    )
    return [str(program("apache2")), "-X", "-f", str(directory / "apache.conf")]


@contextmanager
def running(command: list[str], directory: Path, port: int) -> Iterator[None]:
    environment = {"HOME": str(directory), "XDG_DATA_HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "PATH": "/usr/bin:/bin"}
    with open(directory / "output", "wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=environment)
    try:
        for _ in range(200):
            assert process.poll() is None, (directory / "output").read_text()
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.05)
        yield
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    with running_log(tmp_path_factory.mktemp("proxies"), **WAITING) as found:
        assert found.enrol("a01").status // 100 == 2
        found.wait_published(1)
        found.wait("the map", lambda: found.get("/map/checkpoint").status == 200)
        yield found


@pytest.fixture(scope="module", params=["caddy", "apache2"])
def log(request: pytest.FixtureRequest, started: RunningLog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    need(request.param)
    directory = tmp_path_factory.mktemp(request.param)
    directory.chmod(0o755)
    upstream = next(found.port for found in started.processes.running() if found.name == "log")
    before, port, pki = started.port, free_port(), pki_in(started.directory / "front")
    make = caddy if request.param == "caddy" else apache
    with running(make(directory, port, upstream, pki), directory, port):
        started.port = port
        yield started
        started.port = before


def test_answers_stay_signed_and_paths_as_they_were(log: RunningLog) -> None:
    for target in (
        f"/api/actor/{quote(actor('a01'), safe='')}?include-proofs=true", "/api/info", "/api/history/latest",
        f"/map/bundle/{quote(actor('a01'), safe='')}?full=true", "/api/actor/https%3A%2F%2Fnobody.example%2Fusers%2Fx%2F%2Fy",
        "/api/nothing//there",
    ):
        check_signed(log, log.get(target, headers={"Accept-Encoding": "gzip"}), "GET", target)
    assert log.get(f"/api/actor/{quote(actor('a01'), safe='')}").status == 200


def test_so_does_the_answer_to_a_message(log: RunningLog) -> None:
    body = b'{"not": "an activity"}'
    headers = log.signed_headers(body)
    answer = log.request("POST", INBOX_PATH, headers, body)
    assert answer.status == 400
    check_signed(log, answer, "POST", INBOX_PATH, next(value for name, value in headers.items() if name.lower() == "content-digest"))


def test_who_is_refused_has_to_wait_and_no_other(log: RunningLog) -> None:
    with closing(sqlite3.connect(log.settings.directory / "guard.db")) as guard, guard:
        guard.execute("DELETE FROM bad_sources")  # they came through another proxy before
    check_senders(log)


def test_limits(log: RunningLog) -> None:
    assert log.get("/api/info", headers={"X-Long": "x" * 8_000}).status in (200, 400, 431)
    assert log.request("POST", INBOX_PATH, {}, bytes(256 * 1024 + 1)).status in (413, 502)  # Caddy 2.6: 502
    assert log.get("/api/info", host="other.example.com").status == 421


def test_what_the_snippets_say_of_each_other() -> None:
    """One body limit and one address for all of them."""
    texts = [(DEPLOY / name).read_text(encoding="utf-8") for name in ("nginx.conf", "Caddyfile", "apache.conf")]
    assert all("127.0.0.1:8080" in text and "keys.example.com" in text for text in texts)
    assert [re.search(pattern, text) is not None for pattern, text in zip(
        ("client_max_body_size 262144", "max_size 262144", "LimitRequestBody 262144"), texts, strict=True,
    )] == [True] * 3
