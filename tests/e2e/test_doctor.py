"""`ktlog doctor` on a log that runs behind TLS: all is well, from inside and outside; and what a proxy of ours does wrong."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlog.demo.pki import pki_in
from tests.machine import need
from tests.nginx_server import run_nginx
from tests.running_log import ORIGIN, RunningLog, running_log

pytestmark = pytest.mark.slow

SERVER = """
server {{
    listen 443 ssl;
    ssl_certificate {certificate};
    ssl_certificate_key {key};
    location / {{
        proxy_pass http://127.0.0.1:{upstream};
        proxy_set_header Host {host};
        {more}
    }}
}}
"""


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLog]:
    with running_log(tmp_path_factory.mktemp("doctor")) as running:
        running.wait("the map", lambda: running.get("/map/checkpoint").status == 200)
        yield running


def examine(log: RunningLog, dial: Path) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the findings by name."""
    environment = {**os.environ, "KTLOG_DIAL": str(dial)}
    command = [sys.executable, "-m", "ktlog", "doctor", "--dir", str(log.settings.directory), "--json"]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    return done.returncode, {one["name"]: one for one in json.loads(done.stdout)["findings"]}


def test_a_healthy_log(log: RunningLog) -> None:
    code, found = examine(log, log.directory / "dial.json")
    assert (code, [one for one in found.values() if one["state"] == "bad"]) == (0, [])
    assert {
        "Running", "Reachable", "Clock", "Checkpoint", "Answers", "Paths", "Host", "Witness", "Quorum", "Cosigned"
    } <= found.keys()
    assert "KTLOG_DIAL" in found["Reachable"]["what"] and "witness" in found["Clock"]["what"]


ROOM = "proxy_buffer_size 16k; proxy_buffers 8 16k;"


@pytest.mark.parametrize(("host", "more", "name", "advice"), [
    ("$host", ROOM, "", ""),  # one that passes any host on is well: the log refuses them
    (ORIGIN, ROOM, "Host", "proxy_set_header Host $host"),
    ("$host", "", "Reachable", "proxy_buffer_size 16k"),
    ("$host", f"{ROOM} gzip on; gzip_types *; gzip_min_length 1; gzip_proxied any;", "Answers", "turn compression"),
])
def test_what_a_proxy_does_wrong_is_named(log: RunningLog, host: str, more: str, name: str, advice: str) -> None:
    need("nginx")
    pki = pki_in(log.directory / "front")
    (upstream,) = [process.port for process in log.processes.running() if process.name == "log"]
    servers = SERVER.format(certificate=pki.certificate_file, key=pki.key_file, upstream=upstream, host=host, more=more)
    with run_nginx(servers) as ports:
        table = json.loads((log.directory / "dial.json").read_text())
        table["hosts"][ORIGIN] = f"127.0.0.1:{ports.tls}"
        (log.directory / "nginx.json").write_text(json.dumps(table))
        code, found = examine(log, log.directory / "nginx.json")
    bad = {one["name"]: one["advice"] for one in found.values() if one["state"] == "bad"}
    assert (list(bad), code) == ([name] if name else [], 5 if name else 0)
    assert advice in bad.get(name, "")
