"""nginx on loopback over a log's published files: as ``deploy/nginx.conf`` has it, and as bare as nginx gets."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import ktlog
from ktlog.bench.names import ORIGIN
from ktlog.bench.usage import Server
from ktlog.config import Settings
from ktlog.durable import write_atomic
from ktlog.errors import Unreachable, UsageError

START_SECONDS = 10.0
_SERVER = re.compile(r"^server \{\n    listen 443 ssl http2;\n.*?^\}\n", re.DOTALL | re.MULTILINE)
_CONFIGURED = Path(ktlog.__file__).resolve().parents[1] / "deploy" / "nginx.conf"
_AROUND = """
worker_processes 2;
pid {scratch}/{name}.pid;
events {{ }}
http {{
    access_log off;
    keepalive_requests 1000000;
    client_body_temp_path {scratch}/{name}-body;
    proxy_temp_path {scratch}/{name}-proxy;
    fastcgi_temp_path {scratch}/{name}-fastcgi;
    uwsgi_temp_path {scratch}/{name}-uwsgi;
    scgi_temp_path {scratch}/{name}-scgi;
{server}
}}
"""
_BARE = """    server {{
        listen 127.0.0.1:{port};
        root {root};
        sendfile on;
    }}
"""


@contextlib.contextmanager
def file_servers(settings: Settings, scratch: Path) -> Iterator[tuple[tuple[Server, int], tuple[Server, int]] | None]:
    """The configured one and the bare one, each with its port; None where there is no nginx, or no configuration.

    Raises:
        Unreachable: ``NoNginx``, one of them does not start. UsageError: ``BadNginx``.
    """
    nginx = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin:/bin")
    if nginx is None or not _CONFIGURED.exists():
        yield None
        return
    root = settings.tiles.resolve()
    with contextlib.ExitStack() as stack:
        started = []
        for name, server in (("configured", _configured), ("bare", _bare)):
            port = _free_port()
            path = scratch / f"{name}.conf"
            config = _AROUND.format(scratch=scratch.resolve(), name=name, server=server(root, port))
            write_atomic(path, config.encode())
            started.append((stack.enter_context(_running(nginx, path, port)), port))
        yield started[0], started[1]


def _bare(root: Path, port: int) -> str:
    return _BARE.format(root=root, port=port)


def _configured(root: Path, port: int) -> str:
    """The log's own server of ``deploy/nginx.conf``, on loopback, without TLS.

    Raises:
        UsageError: ``BadNginx``, it has another form than this code looks for.
    """
    found = _SERVER.search(_CONFIGURED.read_text(encoding="utf-8"))
    if found is None:
        raise UsageError("BadNginx", f"{_CONFIGURED} has no server that this could measure")
    text = re.sub(r"^    (?:ssl_|listen |server_name ).*\n", "", found[0], flags=re.MULTILINE)
    text = text.replace("/srv/ktlog", str(root))
    return text.replace("server {", f"server {{\n    listen 127.0.0.1:{port};\n    server_name {ORIGIN};", 1)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@contextlib.contextmanager
def _running(nginx: str, config: Path, port: int) -> Iterator[Server]:
    # As the user who runs this, in the foreground; whoever is root may read the log's directory only so.
    words = [nginx, "-c", str(config), "-e", "stderr", "-g", "daemon off; user root;"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as process:
        try:
            late = time.monotonic() + START_SECONDS
            while not _answers(port):
                if process.poll() is not None or time.monotonic() > late:
                    process.kill()
                    words = (process.stderr.read() if process.stderr else "")[-500:]
                    raise Unreachable("NoNginx", f"nginx does not start: {words}")
                time.sleep(0.02)
            yield Server(process.pid)
        finally:
            process.terminate()
            process.wait()


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False
