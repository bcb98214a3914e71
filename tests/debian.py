"""An empty Debian in a directory, made by debootstrap, to do in it what a stranger does on a new machine."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.machine import need, not_fetched, program

ROOT = Path(__file__).resolve().parents[1]
RELEASE = "bookworm"
SECONDS = 900
SOURCES = ("README.md", "LICENSE", "setup.cfg", "pyproject.toml", "ktlog", "witness", "auditor", "deploy")

ENTER = """
set -e
mount --bind {root} {root}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
{lo}
exec chroot {root} env -i HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive {more} \\
    bash -c {quoted}
"""


class Debian:
    """A root directory of its own. Mounts are made in a namespace of each command and end with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._more = ""
        certificates = os.environ.get("PIP_CERT", "")
        if certificates and Path(certificates).exists():  # how this machine reaches the package index
            shutil.copy(certificates, root / "root" / "index.pem")
            self._more = "PIP_CERT=/root/index.pem"
        shutil.copy("/etc/resolv.conf", root / "etc" / "resolv.conf")

    def put(self, place: str) -> None:
        """The checkout, at *place*."""
        there = self.root / place.lstrip("/")
        for name in SOURCES:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, there / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                there.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, there / name)

    def run(self, script: str, *, network: bool) -> subprocess.CompletedProcess[str]:
        """*script* in bash, as root. Without network there is nothing but a loopback interface of its own."""
        spaces = ["-m", "-p", "-f", "--kill-child"] if network else ["-m", "-p", "-f", "--kill-child", "-n"]
        (self.root / "root" / "script").write_text(script)
        entry = ENTER.format(
            root=self.root, lo="" if network else f"{program('ip')} link set lo up", more=self._more, quoted="'. /root/script'",
        )
        return subprocess.run(
            [program("unshare"), *spaces, "bash", "-c", entry], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
        )


@contextmanager
def empty_debian() -> Iterator[Debian]:
    """A minimal Debian; the test is skipped where its packages cannot be fetched."""
    need("debootstrap")
    home = Path(tempfile.mkdtemp(prefix="debian-"))
    try:
        done = subprocess.run(
            [program("debootstrap"), "--variant=minbase", RELEASE, str(home / "root"), mirror()], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
        )
        if done.returncode != 0 and re.search(r"(Failed getting|Couldn't download|unable to resolve|Invalid Release)", done.stdout):
            not_fetched("an empty Debian", done.stdout)
        assert done.returncode == 0, done.stdout[-2000:]
        yield Debian(home / "root")
    finally:
        shutil.rmtree(home, ignore_errors=True)


def mirror() -> str:
    """The archive that this machine itself uses."""
    for path in (*Path("/etc/apt/sources.list.d").glob("*"), Path("/etc/apt/sources.list")):
        if path.is_file():
            for url in re.findall(r"^\s*(?:URIs:|deb)\s+(?:\[.*?\]\s*)?(http\S+/debian/?)(?:\s|$)", path.read_text(), re.MULTILINE):
                return url
    return "http://deb.debian.org/debian"
