"""What the pages do to a machine (users, units, credentials) is done to a view of this one that nobody else sees.

The view is an overlay in a mount namespace: it begins as this machine's own root is, has no network, and is gone with its
last process.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs_commands import DOCUMENTS, ELSEWHERE, NOT_HERE, ROOT, find, install_tools, read_commands
from tests.machine import need, program

pytestmark = pytest.mark.slow

HERE = "tests/e2e/test_docs_machine.py::test_what_is_done_to_a_machine"
NO_OVERLAY = 77
SECONDS = 120.0

VIEW = """
set -e
mount -t tmpfs tmpfs {scratch}
mkdir {scratch}/up {scratch}/work {root}
mount -t overlay overlay -o lowerdir=/,upperdir={scratch}/up,workdir={scratch}/work {root} || exit {no_overlay}
mount -t proc proc {root}/proc
mount --rbind /dev {root}/dev
for needed in {needed}; do
    mkdir -p "{root}$needed" && mount --bind "$needed" "{root}$needed" && mount -o remount,bind,ro "{root}$needed"
    above=$(dirname "$needed")
    while [ "$above" != / ]; do chmod a+x "{root}$above"; above=$(dirname "$above"); done
done
mkdir -p {root}/opt/ktlog && cp -rP {tools} {root}/opt/ktlog/bin
chroot {root} env -C {source} PYTHONDONTWRITEBYTECODE=1 bash -euxo pipefail -c {script}
"""

LOOK = {
    "operating.md": [
        "systemctl is-enabled ktlog.service ktlog-backup.timer",
        "test \"$(stat -c '%a %U' /var/lib/ktlog/keys)\" = '700 ktlog'",
        "test \"$(stat -c '%a %U' /var/backups/ktlog)\" = '700 ktlog'",
        "grep -q 'Please cosign the log keys.example.com' /root/letter && grep -q 'server_name keys.example.com;' /etc/nginx/conf.d/ktlog.conf",
        "runuser -u ktlog -- /opt/ktlog/bin/ktlog keys list --dir /var/lib/ktlog",
        "test \"$(ls /var/lib/ktlog/keys)\" = fetch-rsa.pem",
        # As the service manager hands them over; the log could start with them, and without them could not.
        "install -d -m 700 -o ktlog /run/handed; umask 077; for key in $(ls /etc/ktlog/keys); do systemd-creds decrypt --name=$key /etc/ktlog/keys/$key"
        " /run/handed/$key; done; chown ktlog /run/handed/*",
        "runuser -u ktlog -- env CREDENTIALS_DIRECTORY=/run/handed /opt/ktlog/bin/ktlog config check --dir /var/lib/ktlog",
        "if runuser -u ktlog -- /opt/ktlog/bin/ktlog config check --dir /var/lib/ktlog; then exit 1; fi",
    ],
    "witness.md": [
        "systemctl is-enabled ktlog-witness.service",
        "test ! -e /var/lib/ktlog-witness/ed25519.key && test ! -e /var/lib/ktlog-witness/mldsa44.key",
        "test $(systemd-creds decrypt --name=w1.mldsa44 /etc/credstore.encrypted/w1.mldsa44 - | wc -c) = 32",
        "runuser -u ktlog-witness -- /opt/ktlog/bin/ktlog-witness vkeys --dir /var/lib/ktlog-witness",
    ],
}


BEFORE = {
    "operating.md": [
        *(
            f"/opt/ktlog/bin/ktlog-witness init --dir /tmp/{name} --name {name}.example.net > /dev/null"
            f" && /opt/ktlog/bin/ktlog-witness vkeys --dir /tmp/{name} > /root/{name}" for name in ("w1", "w2", "w3", "v1")
        ),
        "mkdir -p /etc/nginx/conf.d",
    ],
}
"""What others did before, or is there already."""


def commands(page: str) -> list[str]:
    """Those of the page that are run here, in their order; units are not started (``--now``) where no systemd runs."""
    return [
        command.text.replace("systemctl enable --now", "systemctl enable") for command in read_commands(ROOT / "docs" / page)
        if (key := find(ELSEWHERE[page], command)) is not None and ELSEWHERE[page][key] == HERE
        and find(NOT_HERE.get(page, {}), command) is None
    ]


def run_in_a_view(directory: Path, lines: list[str]) -> str:
    """Run *lines* as root, with our commands in /opt/ktlog/bin; gives what they said. What they do is seen by nobody else."""
    need("root", "systemd")
    units = sorted(os.listdir("/etc/systemd/system"))
    tools, scratch = directory / "tools", directory / "view"
    tools.mkdir()
    scratch.mkdir()
    install_tools(tools)
    (tools / "python").symlink_to(sys.executable)
    view = VIEW.format(
        scratch=scratch, root=scratch / "root", tools=tools, source=ROOT, no_overlay=NO_OVERLAY,
        needed=" ".join(sorted({shlex.quote(str(place)) for place in (ROOT, sys.prefix, sys.base_prefix)})),
        script=shlex.quote("\n".join(lines)),
    )
    done = subprocess.run(
        [program("unshare"), "-m", "-p", "-f", "--kill-child", "-n", "bash", "-c", view], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=SECONDS, check=False,
    )
    if done.returncode == NO_OVERLAY or done.stdout.startswith(("unshare:", "mount:")):
        pytest.skip(f"no view of this machine can be made: {done.stdout}")
    assert done.returncode == 0, done.stdout[-4000:]
    assert sorted(os.listdir("/etc/systemd/system")) == units
    return done.stdout


@pytest.mark.parametrize("page", sorted(LOOK))
def test_what_is_done_to_a_machine(page: str, tmp_path: Path) -> None:
    assert len(commands(page)) >= 5
    run_in_a_view(tmp_path, [*BEFORE.get(page, ()), *commands(page), *LOOK[page]])


def test_units_on_the_pages_are_units(tmp_path: Path) -> None:
    """Each block that names the file it is to be in; what is started is there, and systemd has no word about it."""
    texts = [page.read_text(encoding="utf-8") for page in DOCUMENTS]
    units = [found for text in texts for found in re.findall(r"^```\w*\n# (/etc/systemd/system/\S+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)]
    assert len(units) >= 2
    lines = [f"printf %s {shlex.quote(unit)} > {path}" for path, unit in units]
    said = run_in_a_view(tmp_path, [*lines, "set +x", *(f"systemd-analyze verify --recursive-errors=no {path}" for path, _ in units)])
    assert said.partition("+ set +x\n")[1:] == ("+ set +x\n", "")
