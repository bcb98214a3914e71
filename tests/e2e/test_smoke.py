"""The README's twelve commands in an empty Debian; and there, too, what the Containerfile does, for want of an engine."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian import Debian, empty_debian
from tests.machine import not_fetched

pytestmark = pytest.mark.slow

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
SMOKE = (DEPLOY / "smoke.sh").read_text(encoding="utf-8")
CONTAINERFILE = (DEPLOY / "container" / "Containerfile").read_text(encoding="utf-8")
LIMIT_SECONDS = 15 * 60
UNFETCHED = re.compile("Could not find a version|Failed to fetch|Could not resolve")


@pytest.fixture(scope="module")
def debian() -> Iterator[Debian]:
    with empty_debian() as found:
        yield found


def test_a_stranger_gets_a_proven_answer(debian: Debian) -> None:
    """Line for line. Packages come over the network; from the third command on there is no network but loopback."""
    head, _, block = SMOKE.partition("\n# 1:")
    cut = block.index("\n# 3:")
    debian.put("/root/ktlog")
    began = time.monotonic()
    installed = debian.run(f"cd /root/ktlog\nset -eu\n# 1:{block[:cut]}\n", network=True)
    if installed.returncode != 0 and UNFETCHED.search(installed.stdout):
        not_fetched("Debian's or Python's packages", installed.stdout)
    assert installed.returncode == 0, installed.stdout[-3000:]
    done = debian.run(f"{head}\ncd /root/ktlog\nexport PATH=/opt/ktlog/bin:$PATH\n{block[cut:]}", network=False)
    said = (debian.root / "srv" / "try" / "output").read_text(errors="replace") if done.returncode else ""
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{said[-4000:]}"
    assert "1 active key, and no other" in done.stdout
    assert "witnesses w1.example.net, w2.example.net; verifiers v1.example.net" in done.stdout
    assert time.monotonic() - began < LIMIT_SECONDS


def steps(instruction: str) -> list[str]:
    joined = CONTAINERFILE.replace("\\\n", " ")
    return re.findall(rf"^{instruction} (.*)$", joined, re.MULTILINE)


def test_what_the_containerfile_does(debian: Debian) -> None:
    """Its RUN lines, its user and its health check, in Debian's Python 3.11 in place of the image's 3.13: no engine built it."""
    debian.put("/src")
    environment = " ".join(word for line in steps("ENV") for word in line.split())
    script = [
        "set -eu", "apt-get update -qq && apt-get install -qq -y --no-install-recommends python3-venv",
        "ln -sf python3 /usr/bin/python", "rm -rf /opt/ktlog", *steps("RUN"),
    ]
    built = debian.run("\n".join(script), network=True)
    if built.returncode != 0 and UNFETCHED.search(built.stdout):
        not_fetched("Debian's or Python's packages", built.stdout)
    assert built.returncode == 0, built.stdout[-3000:]

    (user,), (volume,), (entry,) = steps("USER"), steps("VOLUME"), steps("ENTRYPOINT")
    health = re.search(r"HEALTHCHECK.* CMD (\[.*\])", CONTAINERFILE)[1]
    words = shlex.join([str(word) for word in eval(health)])  # noqa: S307  a list of strings of ours
    tool = shlex.join(eval(entry))  # noqa: S307
    # As the image runs it: that user, a root that cannot be written to, one volume, and /tmp.
    inside = f"""
set -eu; export {environment}
{tool} init --dir {volume}/log --origin keys.example.com > {volume}/vkeys
ktlog-witness init --dir {volume}/w --name w.example > /dev/null
{tool} policy make --dir {volume}/log --witness "$(ktlog-witness vkeys --dir {volume}/w)"
{tool} serve --dir {volume}/log --listen 127.0.0.1:8080 & running=$!
for _ in $(seq 60); do {words} && break; sleep 0.5; done
{words} && echo HEALTHY
! touch /opt/ktlog/written && ! touch /etc/written && echo CLOSED
kill $running; wait $running || true
! {words} 2>/dev/null && echo SICK
"""
    (debian.root / "root" / "inside").write_text(inside)
    done = debian.run(
        "mount -o remount,bind,ro / && mount -t tmpfs tmp /tmp && chmod 1777 /tmp && mount --bind /data /data 2>/dev/null;"
        f" mount -o remount,bind,rw /data; exec setpriv --reuid={user} --regid={user} --clear-groups --bounding-set=-all"
        " bash < /root/inside", network=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert [word for word in ("HEALTHY", "CLOSED", "SICK") if word in done.stdout.split()] == ["HEALTHY", "CLOSED", "SICK"], done.stdout
