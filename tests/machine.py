"""What a test needs from the machine: it is skipped with a line that names what is missing, or fails.

``need("postgres")`` as the first statement of a test, a fixture or a module. Where the environment's
``KTLOG_TESTS_NEED`` lists the word ("postgres strace loop"), a missing thing is a failure instead: so a run
that is meant to cover it cannot pass without.

One word no look at the machine can find: ``downloads``, that packages can be fetched over the network. A test that could
not fetch its own is skipped, unless the word is there: ``KTLOG_TESTS_NEED=downloads .ci/run`` keeps it beside what it finds.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

NEEDED = "KTLOG_TESTS_NEED"
DOWNLOADS = "downloads"
GO_MODULES = tuple(sorted((Path(__file__).parent / "interop" / "go" / name) for name in ("tessera", "torchwood")))
"""Programs of ours that call other implementations' libraries."""
GO_OFFLINE = {"GOPROXY": "off", "GOFLAGS": "-mod=readonly", "GOWORK": "off", "GOTOOLCHAIN": "local"}
"""A test uses what is on the machine."""
_SBIN = os.pathsep.join(("/usr/local/sbin", "/usr/sbin", "/sbin"))


def need(*words: str) -> None:
    """Skip, or fail, unless the machine has all of *words*, which are keys of :data:`CHECKS`."""
    import pytest  # here, so that .ci/run can ask this module before anything is installed

    for word in words:
        missing = _missing(word) or _missing_packages(word)
        if missing is None:
            continue
        line = f"needs {word}: {missing}"
        if _is_demanded(word):
            pytest.fail(f"{line} ({NEEDED} names it)", pytrace=False)
        pytest.skip(line, allow_module_level=True)


def not_fetched(what: str, said: str) -> NoReturn:
    """End a test that could not fetch *what*: skip it, or fail where ``downloads`` is demanded. said: by who tried."""
    import pytest

    line = f"needs {DOWNLOADS}: {what} cannot be fetched from here"
    if _is_demanded(DOWNLOADS):
        pytest.fail(f"{line} ({NEEDED} names it):\n{said[-2000:]}", pytrace=False)
    pytest.skip(line)


def _is_demanded(word: str) -> bool:
    return word in os.environ.get(NEEDED, "").split()


def program(name: str) -> str | None:
    """Where the program *name* is; looked for in the administrator's directories too."""
    return shutil.which(name) or shutil.which(name, path=_SBIN)


def postgres_programs() -> Path | None:
    """The directory of the newest PostgreSQL server's programs, which Debian keeps out of PATH."""
    found = sorted(
        (path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/initdb")),
        key=lambda path: [int(part) for part in path.parent.name.split(".") if part.isdecimal()],
    )
    if found:
        return found[-1]
    initdb = program("initdb")
    return None if initdb is None or program("postgres") is None else Path(initdb).parent


@cache
def _missing(word: str) -> str | None:
    return CHECKS[word]()


def _missing_packages(word: str) -> str | None:
    lacking = [name for name in PACKAGES.get(word, ()) if importlib.util.find_spec(name) is None]
    return f"{' and '.join(lacking)} cannot be imported (pip install '.[test]')" if lacking else None


def _postgres() -> str | None:
    if postgres_programs() is None:
        return "no PostgreSQL server is installed (Debian: postgresql)"
    if os.geteuid() == 0:
        if _fails("getent", "passwd", "postgres"):
            return "it does not run as root, and there is no user postgres"
        if program("setpriv") is None:
            return "it does not run as root, and there is no setpriv (Debian: util-linux)"
    return None


def _strace() -> str | None:
    if program("strace") is None:
        return "strace is not installed (Debian: strace)"
    if _fails("strace", "-o", os.devnull, "true"):
        return "strace may not trace a process here"
    return None


def _promtool() -> str | None:
    return None if program("promtool") else "Prometheus's promtool is not installed (Debian: prometheus)"


def _root() -> str | None:
    return None if os.geteuid() == 0 else "this is not root"


def _loop() -> str | None:
    missing = _root()
    if missing is not None:
        return missing
    for name, package in (("losetup", "mount"), ("mount", "mount"), ("mkfs.ext4", "e2fsprogs")):
        if program(name) is None:
            return f"{name} is not installed (Debian: {package})"
    with tempfile.TemporaryDirectory(prefix="ktlog-loop-") as scratch:
        image, point = Path(scratch) / "image", Path(scratch) / "point"
        point.mkdir()
        image.write_bytes(bytes(1 << 20))
        if _fails("mkfs.ext4", "-q", "-F", str(image)) or _fails("mount", "-o", "loop", str(image), str(point)):
            return "an image in a file cannot be mounted here"
        _fails("umount", str(point))
    return None


def _ceph() -> str | None:
    for name, package in (
        ("ceph-mon", "ceph-mon"), ("ceph-osd", "ceph-osd"), ("radosgw", "radosgw"), ("ceph", "ceph-common"),
    ):
        if program(name) is None:
            return f"{name} is not installed (Debian: {package})"
    return None


def _nginx() -> str | None:
    return "nginx is not installed (Debian: nginx-light)" if program("nginx") is None else None


def _debootstrap() -> str | None:
    missing = _root()
    if missing is not None:
        return missing
    for name, package in (("debootstrap", "debootstrap"), ("unshare", "util-linux"), ("ip", "iproute2")):
        if program(name) is None:
            return f"{name} is not installed (Debian: {package})"
    return "no namespace of one's own can be made here" if _fails("unshare", "-m", "-n", "true") else None


def _mkdocs() -> str | None:
    return None


def _systemd() -> str | None:
    return "systemd-analyze is not installed (Debian: systemd)" if program("systemd-analyze") is None else None


def _caddy() -> str | None:
    return "Caddy is not installed (Debian: caddy)" if program("caddy") is None else None


def _apache2() -> str | None:
    return "Apache is not installed (Debian: apache2)" if program("apache2") is None else None


def _chromium() -> str | None:
    return "Chromium is not installed (Debian: chromium)" if program("chromium") is None else None


def _ssh_agent() -> str | None:
    return "OpenSSH's agent is not installed (Debian: openssh-client)" if program("ssh-agent") is None else None


def _shells() -> str | None:
    missing = [name for name in ("zsh", "fish") if program(name) is None]
    return f"{' and '.join(missing)} is not installed (Debian: zsh fish)" if missing else None


def _go() -> str | None:
    go = program("go")
    if go is None:
        return "Go is not installed"
    for module in GO_MODULES:
        done = subprocess.run(
            [go, "list", "-deps", ".", "tool"], cwd=module, env={**os.environ, **GO_OFFLINE}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False,
        )
        if done.returncode != 0:
            words = (done.stderr.strip().splitlines() or ["go list failed"])[-1].strip()
            return f"the Go modules of {module.name} are not all on this machine ('make interop' gets them): {words}"
    return None


def _fails(*command: str) -> bool:
    found = program(command[0])
    if found is None:
        return True
    done = subprocess.run([found, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return done.returncode != 0


CHECKS: dict[str, Callable[[], str | None]] = {
    "postgres": _postgres, "strace": _strace, "root": _root, "loop": _loop, "ceph": _ceph, "nginx": _nginx,
    "ssh-agent": _ssh_agent, "systemd": _systemd, "chromium": _chromium, "caddy": _caddy,
    "apache2": _apache2, "go": _go, "debootstrap": _debootstrap, "mkdocs": _mkdocs,
    "shells": _shells, "promtool": _promtool,
}
"""By word: None, or what is missing of the machine."""

PACKAGES = {
    "postgres": ("psycopg", "psycopg_pool"), "ceph": ("boto3",), "chromium": ("playwright", "axe_playwright_python"),
    "mkdocs": ("mkdocs", "material"),
}
"""By word: what Python must be able to import besides."""


def main(words: Sequence[str]) -> int:
    """``python3 -m tests.machine [WORD...]``: print those that are there, and say of the others what is missing."""
    there = []
    for word in words or tuple(CHECKS):
        missing = _missing(word)
        if missing is None:
            there.append(word)
        else:
            print(f"{word} is not tested here: {missing}", file=sys.stderr)
    print(" ".join([*there, DOWNLOADS] if _is_demanded(DOWNLOADS) else there))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
