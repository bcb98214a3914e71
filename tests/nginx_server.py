"""A real nginx on loopback, with deploy/nginx.conf, or what `ktlog proxy-config` prints, as it stands but for addresses."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.machine import need, program

CONFIGURATION = Path(__file__).resolve().parents[1] / "deploy" / "nginx.conf"
SECONDS = 30.0

AROUND = """
daemon off;
{user}
worker_processes 1;
pid {base}/nginx.pid;
error_log {base}/error.log warn;
events {{ worker_connections 256; }}
http {{
    access_log {base}/access.log;
    client_body_temp_path {base}/body;
    proxy_temp_path {base}/proxy;
    fastcgi_temp_path {base}/fastcgi;
    uwsgi_temp_path {base}/uwsgi;
    scgi_temp_path {base}/scgi;
{servers}
}}
"""


@dataclass(frozen=True)
class Ports:
    """Where it listens in place of 443 and 80, at 127.0.0.1 and, where this machine has it, at ::1."""

    tls: int
    plain: int
    v6: bool


def fill_in(text: str, changes: Mapping[str, str]) -> str:
    """A configuration with *changes* made, each of which has a place in it."""
    for old, new in changes.items():
        assert old in text, f"the configuration has no {old!r} any more"
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(name: str, tiles: Path, upstream: int, certificate: Path, key: Path) -> Iterator[int]:
    """deploy/nginx.conf for the log called *name* that listens on port *upstream*; gives the port of nginx."""
    servers = fill_in(CONFIGURATION.read_text(encoding="utf-8"), {
        "keys.example.com;": f"{name};", "/etc/ssl/keys.example.com/fullchain.pem": str(certificate),
        "/etc/ssl/keys.example.com/privkey.pem": str(key), "root /srv/ktlog;": f"root {tiles};",
        "127.0.0.1:8080": f"127.0.0.1:{upstream}",
    })
    with run_nginx(servers) as ports:
        yield ports.tls


@contextmanager
def run_nginx(servers: str) -> Iterator[Ports]:
    """*servers*, which say where to listen as deploy/nginx.conf does, on loopback."""
    need("nginx")
    ports = _find_ports()
    base = Path(tempfile.mkdtemp(prefix="nginx-"))
    user = "user root;" if os.geteuid() == 0 else ""
    (base / "nginx.conf").write_text(AROUND.format(base=base, user=user, servers=_on_loopback(servers, ports)))
    process = subprocess.Popen(
        [program("nginx"), "-e", str(base / "error.log"), "-p", str(base), "-c", str(base / "nginx.conf")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )
    try:
        _wait(process, ports.tls)
        yield ports
        said = (base / "error.log").read_text()
        assert not re.search(r"\[(crit|alert|emerg)\]", said), said
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)
        shutil.rmtree(base)


def ask_nginx(servers: str, base: Path) -> tuple[bool, str]:
    """What ``nginx -t`` says of *servers*, on loopback. base: for its files."""
    need("nginx")
    path = base / "nginx.conf"
    path.write_text(AROUND.format(base=base, user="", servers=_on_loopback(servers, _find_ports())))
    done = subprocess.run(
        [program("nginx"), "-t", "-e", str(base / "error.log"), "-p", str(base), "-c", str(path)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )
    return done.returncode == 0, done.stderr


def _on_loopback(servers: str, ports: Ports) -> str:
    """Each ``listen`` as it stands, but at a loopback address; those for IPv6 only where there is one."""
    if not ports.v6:
        servers = re.sub(r"^ *listen \[::\]:.*\n", "", servers, flags=re.MULTILINE)
    for number, port in (("443", ports.tls), ("80", ports.plain)):
        servers = servers.replace(f"listen {number}", f"listen 127.0.0.1:{port}")
        servers = servers.replace(f"listen [::]:{number}", f"listen [::1]:{port}")
    return servers


def _wait(process: subprocess.Popen, port: int) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if process.poll() is not None:
                raise AssertionError(f"nginx ended:\n{process.stderr.read().decode()}") from None
            assert time.monotonic() < deadline, "nginx does not answer"
            time.sleep(0.02)


def _find_ports() -> Ports:
    """Two that are free at every address."""
    with closing(socket.create_server(("127.0.0.1", 0))) as tls, closing(socket.create_server(("127.0.0.1", 0))) as plain:
        numbers = [listener.getsockname()[1] for listener in (tls, plain)]
    try:
        for number in numbers:
            socket.create_server(("::1", number), family=socket.AF_INET6).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return _find_ports()
        return Ports(*numbers, v6=False)
    return Ports(*numbers, v6=True)
