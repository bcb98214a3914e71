"""nginx before the demo's own logs, in place of its front: what `ktlog proxy-config` prints for each, witnesses and all."""

from __future__ import annotations

import http.client
import json
import re
import socket
import ssl
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest
from click.testing import CliRunner

from ktlog.client import Present
from ktlog.commands.proxy_config import command as proxy_config
from ktlog.config import load_settings
from ktlog.demo.people import Person
from ktlog.demo.pki import pki_in
from ktlog.demo.processes import Processes, wait_until
from ktlog.demo.scene import Result, Scene
from ktlog.demo.teller import Teller
from ktlog.demo.topology import Topology, build, plan, start
from ktlog.durable import write_atomic
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.tiles import entry_bundle_path, tile_path
from ktlog.wire.dial import DIAL_VARIABLE
from ktlog.wire.httpsig import ED25519, ML_DSA_44
from ktlog.wire.httpsig_response import Exchange, verify_response
from tests.e2e.test_log_nginx import IMMUTABLE, trusted_keys
from tests.machine import need
from tests.nginx_server import Ports, run_nginx
from tests.running_log import SECONDS, Answer

pytestmark = pytest.mark.slow

DEFAULT = re.compile(r"^# Who asks under no name of ours.*?^\}\n", re.DOTALL | re.MULTILINE)


@dataclass
class Site:
    """The demo, everybody enrolled, and nginx before its logs. webroot: what it has for /.well-known/acme-challenge/."""

    topology: Topology
    processes: Processes
    scene: Scene
    ports: Ports
    webroot: Path

    def get(self, target: str, host: str, *, name: str | None = None, address: str = "127.0.0.1") -> Answer:
        """GET *target*, letter for letter, of *host*; *name* is what the TLS handshake asks for."""
        context = ssl.create_default_context(cafile=str(pki_in(self.topology.front_directory).ca_file))
        with (
            socket.create_connection((address, self.ports.tls), timeout=SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=name or host) as connection,
        ):
            return _ask(connection, target, host)

    def get_plain(self, target: str, host: str) -> Answer:
        with socket.create_connection(("127.0.0.1", self.ports.plain), timeout=SECONDS) as connection:
            return _ask(connection, target, host)


def _ask(connection: socket.socket, target: str, host: str) -> Answer:
    connection.sendall(f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
    response = http.client.HTTPResponse(connection)
    response.begin()
    return Answer(response.status, {name.lower(): value for name, value in response.getheaders()}, response.read())


def configuration(topology: Topology, processes: Processes, webroot: Path) -> str:
    """Both logs' own, in one nginx; of two blocks for everybody else the second is taken out, as the text says."""
    pki = pki_in(topology.front_directory)
    texts = []
    for instance in topology.instances:
        directory = topology.log_directory(instance)
        port = next(found.port for found in processes.running() if found.name == directory.name)
        words = [
            "nginx", "--dir", directory, "--upstream", f"127.0.0.1:{port}", "--tiles", load_settings(directory).tiles,
            "--certificate", pki.certificate_file, "--key", pki.key_file,
        ]
        printed = CliRunner().invoke(proxy_config, [str(word) for word in words], catch_exceptions=False).stdout
        assert len(DEFAULT.findall(printed)) == 1 and "/var/www/html;" in printed
        texts.append(DEFAULT.sub("", printed) if texts else printed)
    return "\n".join(texts).replace("/var/www/html;", f"{webroot};")


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    need("nginx")
    with tempfile.TemporaryDirectory(prefix="kn-") as home:  # short: a Unix socket's name is in there
        topology = plan(Path(home).resolve() / "demo", 4)
        processes = Processes(topology.directory / "logs", {DIAL_VARIABLE: str(topology.dial_file)})
        try:
            build(topology, processes)
            start(topology, processes)
            webroot = topology.directory / "webroot"
            webroot.mkdir()
            with run_nginx(configuration(topology, processes, webroot)) as ports:
                # From here on whoever asks for a log's name comes to nginx.
                table = json.loads(topology.dial_file.read_bytes())
                table["hosts"] |= {instance.origin: f"127.0.0.1:{ports.tls}" for instance in topology.instances}
                write_atomic(topology.dial_file, json.dumps(table).encode())
                scene = Scene(topology, processes, Teller(), Result(), "nginx")
                enrol(scene)
                yield Site(topology, processes, scene, ports, webroot)
        finally:
            processes.stop_all()


def enrol(scene: Scene) -> None:
    for host in scene.topology.hosts():
        wait_until(host, lambda host=host: scene.is_ready(host), scene.processes.ended, SECONDS)
    scene.people = {
        instance: [Person(scene.fetcher, scene.topology, instance, user) for user in instance.users]
        for instance in scene.topology.instances
    }
    for person in scene.everybody:
        person.enrol()
    for instance, people in scene.people.items():
        scene.wait_published(instance, len(people))


def test_a_client_gets_proven_answers_through_it(site: Site) -> None:
    """Enrolled and published through nginx; and the light answer and the full one hold, under the demo's own policy."""
    site.scene.start_clients()
    for person in site.scene.everybody:
        assert isinstance(site.scene.find(person, full=True), Present)


def test_an_answer_is_signed_for_the_path_that_was_sent(site: Site) -> None:
    """An actor's URL stands in the path, and the log's signature is over it: one %2F decoded on its way, and it fails."""
    for instance in site.topology.instances:
        trusted = trusted_keys(load_settings(site.topology.log_directory(instance)), f"{instance.log_url}/users/pubkeydir")
        actor = quote(instance.actor_id(instance.users[0]), safe="")
        assert "%3A%2F%2F" in actor
        for target, status in (
            (f"/api/actor/{actor}?include-proofs=true", 200), (f"/map/bundle/{actor}?full=true", 200),
            (f"/api/actor/{actor}%2F%2Fx", 404), ("/api/nothing//there", 404),
        ):
            answer = site.get(target, instance.origin)
            assert answer.status == status
            assert sum(len(value) for name, value in answer.headers.items() if name.startswith("signature")) > 3000
            exchange = Exchange("GET", f"{instance.log_url}{target}", answer.status, answer.headers, answer.body, None)
            assert set(verify_response(exchange, trusted.__getitem__, int(time.time())).algorithms) == {ED25519, ML_DSA_44}


def test_each_name_has_its_own_log_and_others_none(site: Site) -> None:
    first, second = site.topology.instances
    for instance in (first, second):
        assert json.loads(site.get("/api/info", instance.origin).body)["actor"].endswith(f"@{instance.origin}")
    for host in ("other.example.com", "127.0.0.1", first.domain):
        answer = site.get("/api/info", host, name=first.origin)
        assert (answer.status, "signature" in answer.headers) == (421, False)
    # One log's name in the handshake and the other's in the request: the request decides.
    answer = site.get("/api/info", second.origin, name=first.origin)
    assert json.loads(answer.body)["actor"].endswith(f"@{second.origin}")


def test_it_answers_by_ipv6(site: Site) -> None:
    if not site.ports.v6:
        pytest.skip("this machine has no ::1")
    origin = site.topology.instances[0].origin
    assert site.get("/readyz", origin, address="::1").status == 200
    assert site.get("/readyz", "other.example.com", name=origin, address="::1").status == 421


def test_port_80_leads_on_and_lets_certificates_be_renewed(site: Site) -> None:
    challenge = site.webroot / ".well-known" / "acme-challenge"
    challenge.mkdir(parents=True)
    (challenge / "token").write_bytes(b"token.thumbprint")
    for instance in site.topology.instances:
        found = site.get_plain("/.well-known/acme-challenge/token", instance.origin)
        assert (found.status, found.body) == (200, b"token.thumbprint")
        led = site.get_plain("/api/actor/https%3A%2F%2Fa?x=%2F", instance.origin)
        assert (led.status, led.headers["location"]) == (301, f"{instance.log_url}/api/actor/https%3A%2F%2Fa?x=%2F")
        assert site.get_plain("/.well-known/webfinger", instance.origin).status == 301


def test_published_files_are_nginxs_own_even_when_the_log_is_gone(site: Site) -> None:
    """The last test here: it ends the first log."""
    first = site.topology.instances[0]
    tiles = load_settings(site.topology.log_directory(first)).tiles
    site.processes.stop(f"log-{first.name}")
    wait_until("the log to be gone", lambda: site.get("/api/info", first.origin).status == 502, list, SECONDS)
    sizes = [parse_signed_checkpoint(site.get(f"{prefix}/checkpoint", first.origin).body)[1].size for prefix in ("", "/map")]
    assert sizes[0] == len(first.users) and sizes[1] >= 1
    for prefix, size in zip(("", "map/"), sizes, strict=True):
        for path in (tile_path(0, 0, size), entry_bundle_path(0, size)):
            answer = site.get(f"/{prefix}{path}", first.origin)
            assert (answer.status, answer.body) == (200, (tiles / f"{prefix}{path}").read_bytes())
            assert (answer.headers["server"], answer.headers["cache-control"]) == ("nginx", IMMUTABLE)
            assert "signature" not in answer.headers
    assert site.get("/checkpoint", first.origin).body == (tiles / "checkpoint").read_bytes()
