"""A watch over a real log with a real witness: honest for a while, read as it grows, and then gone."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog.operator.create import load_public_keys
from ktlog.tlog.note import parse_vkey
from ktlog.tlog.policy import LogKey, format_policy
from tests.running_log import ORIGIN, WITNESS, running_log

pytestmark = pytest.mark.slow
PAGE = Path(__file__).resolve().parents[2] / "docs" / "watching.md"


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    with running_log(tmp_path_factory.mktemp("watched")) as running:
        assert running.enrol("a01").status == 202
        running.wait_published(1)
        running.wait("the map", lambda: running.get("/map/checkpoint").status == 200)
        yield running


@pytest.fixture
def place(log, tmp_path):
    """A working directory with the policy and a watch.toml for the log."""
    public = load_public_keys(log.settings)
    keys = tuple(LogKey(parse_vkey(text), f"https://{ORIGIN}") for text in public.vkeys)
    maps = tuple(LogKey(parse_vkey(text), f"https://{ORIGIN}/map") for text in public.map_vkeys)
    (tmp_path / "audit.policy").write_bytes(format_policy(replace(log.policy, logs=keys + maps)))
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "watch.toml").write_text(
        f'every = 5\nlag = 0\n[[log]]\nlog = "{ORIGIN}"\npolicy = "../audit.policy"\nmirrors = ["https://{WITNESS}"]\n'
    )
    return tmp_path


def run(log, place, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "KTLOG_DIAL": str(log.directory / "dial.json")}
    return subprocess.run(
        [sys.executable, "-m", "auditor", *words], cwd=place, env=environment, capture_output=True, text=True, timeout=90,
        check=False,
    )


def test_the_quick_start_of_the_page(log, place):
    block = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    lines = [shlex.split(line.replace("keys.example.com", ORIGIN), comments=True) for line in block.splitlines()]
    assert [words[0] for words in lines] == ["ktlog", "ktlog-auditor", "ktlog-auditor"]
    watch, findings = (run(log, place, *words[1:]) for words in lines[1:])
    assert watch.returncode == 0, watch.stdout + watch.stderr
    assert "1 entry, map at " in watch.stdout and "judged up to 1" in watch.stdout
    assert (findings.returncode, findings.stdout) == (0, "Nothing was ever found.\n")


def test_a_day_of_a_daemon(log, place):
    environment = {**os.environ, "KTLOG_DIAL": str(log.directory / "dial.json")}
    watch = subprocess.Popen(
        [sys.executable, "-m", "auditor", "watch", "--dir", "watch", "--json", "--metrics-listen", "127.0.0.1:0",
         "--log-format", "json"],
        cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    try:
        address = next(found for line in watch.stderr if "port" in (found := json.loads(line)))
        events = (json.loads(line) for line in watch.stdout)
        assert next(one for one in events if one["event"] == "reading")["entries"] == 1
        assert log.enrol("a02").status == 202
        assert next(one for one in events if one.get("entries") == 2)["complete"]
        with urllib.request.urlopen(f"http://127.0.0.1:{address['port']}/metrics", timeout=20) as answer:
            assert f'ktlog_auditor_log_entries_judged{{origin="{ORIGIN}"}} 2' in answer.read().decode()
        assert run(log, place, "findings", "--dir", "watch", "--nagios").returncode == 0
        os.kill(watch.pid, signal.SIGTERM)
        assert watch.wait(40) == 0
    finally:
        watch.kill()
        watch.communicate()


def test_a_log_that_is_gone(log, place):
    down = json.loads((log.directory / "dial.json").read_text())
    closed = down["hosts"]["gone.example"]
    down |= {"ca_file": str(log.directory / "front" / "ca.pem"), "hosts": {**down["hosts"], ORIGIN: closed}}
    (place / "down.json").write_text(json.dumps(down))
    codes = [run(log, place, "watch", "--dir", "watch", "--once", "--dial", "down.json").returncode for _ in range(3)]
    assert codes == [0, 0, 3]
    listed = run(log, place, "findings", "--dir", "watch", "--json", "--open")
    assert [json.loads(line)["name"] for line in listed.stdout.splitlines()] == ["Unreachable"]
