"""A Ceph Object Gateway over a cluster of one monitor and one OSD that keeps everything in memory, on loopback."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine import need, program
from tests.object_stores import CREDENTIALS, credentials, make_bucket

SECONDS = 90.0
"""Within which it must answer; it takes some ten."""

CONFIGURATION = """
[global]
fsid = {fsid}
mon host = [v2:127.0.0.1:{monitor}]
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = {base}/keyring
public network = 127.0.0.0/8
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr1 = false
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pgp num = 1
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon max pg per osd = 1000
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 268435456
mon data = {base}/mon
osd data = {base}/osd
rgw data = {base}/rgw
run dir = {base}
admin socket =
log file = {base}/$name.log
pid file =
crash dir = {base}/crash
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw run sync thread = false
"""


@contextmanager
def ceph() -> Iterator[tuple[str, dict[str, str]]]:
    """The gateway's endpoint, with the bucket, and the credentials for it."""
    need("ceph")
    base = Path(tempfile.mkdtemp(prefix="ceph-"))
    started: list[subprocess.Popen] = []
    try:
        endpoint = _start(base, started)
        found = CREDENTIALS | _make_user(base)
        with credentials(found):
            make_bucket(endpoint)
        yield endpoint, found
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGKILL)  # there is nothing to be kept
            process.wait()
        shutil.rmtree(base)


def _start(base: Path, started: list[subprocess.Popen]) -> str:
    monitor, gateway = _free_port(), _free_port()
    fsid = str(uuid.uuid4())
    for name in ("mon", "osd", "rgw", "crash"):
        (base / name).mkdir()
    (base / "ceph.conf").write_text(CONFIGURATION.format(base=base, fsid=fsid, monitor=monitor, gateway=gateway))
    for name, rights in {
        "mon.": ("mon",), "client.admin": ("mon", "osd", "mgr"), "osd.0": ("mon", "osd"),
    }.items():
        caps = [word for right in rights for word in ("--cap", right, "allow *")]
        _run("ceph-authtool", str(base / "keyring"), *(() if name != "mon." else ("-C",)), "-g", "-n", name, *caps)
    _run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", f"[v2:127.0.0.1:{monitor}]", str(base / "monmap"))
    conf = ("-c", str(base / "ceph.conf"))
    _run("ceph-mon", *conf, "-i", "a", "--mkfs", "--monmap", str(base / "monmap"), "--keyring", str(base / "keyring"))
    started.append(_spawn(base, "ceph-mon", *conf, "-i", "a", "-f"))
    osd = str(uuid.uuid4())
    _run("ceph", *conf, "--connect-timeout", "30", "osd", "new", osd)
    _run("ceph-osd", *conf, "-i", "0", "--mkfs", "--osd-uuid", osd)
    started.append(_spawn(base, "ceph-osd", *conf, "-i", "0", "-f"))
    started.append(_spawn(base, "radosgw", *conf, "-n", "client.admin", "-f"))
    endpoint = f"http://127.0.0.1:{gateway}"
    _wait(endpoint, base, started)
    return endpoint


def _make_user(base: Path) -> dict[str, str]:
    text = _run(
        "radosgw-admin", "-c", str(base / "ceph.conf"), "user", "create", "--uid=ktlog", "--display-name=ktlog"
    )
    (key,) = json.loads(text)["keys"]
    return {"AWS_ACCESS_KEY_ID": key["access_key"], "AWS_SECRET_ACCESS_KEY": key["secret_key"]}


def _wait(endpoint: str, base: Path, started: list[subprocess.Popen]) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            urllib.request.urlopen(endpoint, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            said = "".join(path.read_text(errors="replace")[-2000:] for path in sorted(base.glob("*.out")))
            assert all(process.poll() is None for process in started), f"Ceph ended:\n{said}"
            assert time.monotonic() < deadline, f"Ceph does not answer:\n{said}"
            time.sleep(0.1)


def _run(name: str, *arguments: str) -> str:
    done = subprocess.run(
        [program(name), *arguments], capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL, check=False
    )
    assert done.returncode == 0, f"{name} {' '.join(arguments)}:\n{done.stderr[-2000:]}"
    return done.stdout


def _spawn(base: Path, name: str, *arguments: str) -> subprocess.Popen:
    with (base / f"{name}.out").open("wb") as output:
        return subprocess.Popen([program(name), *arguments], stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
