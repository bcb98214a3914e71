"""A real nginx on loopback, with deploy/nginx.conf as it stands but for names, ports and paths."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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


def fill_in(changes: Mapping[str, str]) -> str:
    """deploy/nginx.conf with *changes* made, each of which has a place in it."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"deploy/nginx.conf has no {old!r} any more"
        text = text.replace(old, new)
    return text


@contextmanager
def nginx(name: str, tiles: Path, upstream: int, certificate: Path, key: Path) -> Iterator[int]:
    """Run it for the log called *name* that listens on port *upstream*; gives the port of nginx."""
    need("nginx")
    port, plain = _free_ports(2)
    base = Path(tempfile.mkdtemp(prefix="nginx-"))
    servers = fill_in({
        "listen 443 ssl": f"listen 127.0.0.1:{port} ssl", "listen 80;": f"listen 127.0.0.1:{plain};",
        "keys.example.com;": f"{name};", "/etc/ssl/keys.example.com/fullchain.pem": str(certificate),
        "/etc/ssl/keys.example.com/privkey.pem": str(key), "root /srv/ktlog;": f"root {tiles};",
        "127.0.0.1:8080": f"127.0.0.1:{upstream}",
    })
    user = "user root;" if os.geteuid() == 0 else ""
    (base / "nginx.conf").write_text(AROUND.format(base=base, user=user, servers=servers))
    process = subprocess.Popen(
        [program("nginx"), "-e", str(base / "error.log"), "-p", str(base), "-c", str(base / "nginx.conf")],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )
    try:
        _wait(process, port)
        yield port
        said = (base / "error.log").read_text()
        assert not re.search(r"\[(crit|alert|emerg)\]", said), said
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)
        shutil.rmtree(base)


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


def _free_ports(count: int) -> list[int]:
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in listeners]
    for listener in listeners:
        listener.close()
    return ports
