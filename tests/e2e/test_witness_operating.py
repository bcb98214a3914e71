"""A witness as its operator sees it: metrics, logs, a supervisor's socket, and an end that loses nobody's answer."""

from __future__ import annotations

import http.client
import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.durable import KILL_VARIABLE, STOP_VARIABLE
from ktlog.wire.httpd import GRACEFUL_SECONDS
from tests.witness_log import Log
from witness import cli
from witness.store import hash_origin
from witness.witness import CHECKED

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30


class Served:
    """``ktlog-witness serve`` with a log in JSON, and the socket that systemd would have."""

    def __init__(self, path: Path, *options: str, **environment: str) -> None:
        self.supervisor = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.supervisor.bind(str(path / "notify"))
        self.supervisor.settimeout(SECONDS)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "witness", "serve", "--dir", str(path / "w1"), "--listen", "127.0.0.1:0",
             "--log-format", "json", "--metrics-listen", "127.0.0.1:0", *options],
            cwd=ROOT, env={**os.environ, "NOTIFY_SOCKET": str(path / "notify"), **environment}, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1,
        )
        os.set_blocking(self.process.stderr.fileno(), True)
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        assert ready
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        self.metrics_port = self.line(lambda line: line["msg"] == "metrics are served")["port"]

    def line(self, wanted) -> dict:
        """The next line of the log that is *wanted*."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            line = json.loads(self.process.stderr.readline())
            if wanted(line):
                return line
        raise AssertionError("no such line")

    def told(self) -> list[str]:
        return self.supervisor.recv(4096).decode().splitlines()

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)

    def ask(self, method: str, path: str, body: bytes | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = self.connect()
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        response.body = response.read()
        connection.close()
        return response

    def watch(self, path: str) -> tuple[int, str]:
        """Status and body on the metrics listener."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics_port}{path}", timeout=SECONDS) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def close(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(SECONDS)
        self.process.stdout.close()
        self.process.stderr.close()
        self.supervisor.close()


def hold_record(path: Path) -> sqlite3.Connection:
    """Until this is closed nobody can write: a submission waits for it."""
    held = sqlite3.connect(path / "w1" / "witness.db", isolation_level=None)
    held.execute("BEGIN IMMEDIATE")
    return held


def wait_until_in_hand(served: Served) -> None:
    deadline = time.monotonic() + SECONDS
    while "requests_in_progress 1\n" not in served.watch("/metrics")[1]:
        assert time.monotonic() < deadline


@pytest.fixture
def log():
    return Log("example.com/log")


@pytest.fixture
def start(tmp_path, log):
    running = []

    def run(*arguments: str) -> None:
        result = CliRunner().invoke(cli.main, [arguments[0], "--dir", str(tmp_path / "w1"), *arguments[1:]])
        assert result.exit_code == 0, result.output

    def served(*options: str, **environment: str) -> Served:
        running.append(Served(tmp_path, *options, **environment))
        return running[-1]

    run("init", "--name", "example.com/w1")
    run("add-log", *map(str, log.vkeys))
    yield served
    for one in running:
        one.close()


def test_it_is_seen_and_it_ends_well(start, log, tmp_path):
    other = Log("example.org/listed")
    (tmp_path / "list").write_text(f"logs/v0\nvkey {other.vkeys[0]}\nqpd 86400\ncontact somebody\n")
    w1 = start("--pull-logs", str(tmp_path / "list"), WATCHDOG_USEC="1000000")
    # The supervisor hears of it when it can be asked, and again and again that it lives.
    told = w1.told() + w1.told()
    assert {"READY=1", "WATCHDOG=1"} <= set(told)
    assert w1.watch("/livez") == w1.watch("/readyz") == (200, "ok\n")

    # A request has one line, with what it was about, and none with an address or a body.
    answer = w1.ask("POST", "/add-checkpoint", log.submission(0, 3))
    assert answer.status == 200
    line = w1.line(lambda line: line["msg"] == "request")
    assert (line["endpoint"], line["status"], line["origin"], line["size"]) == ("add-checkpoint", 200, log.origin, 3)
    assert line["id"] == answer.headers["X-Request-Id"] and 0 < line["seconds"] < SECONDS
    assert "127.0.0.1" not in json.dumps(line)
    w1.ask("POST", "/add-checkpoint", b"hello", **{"X-Request-Id": "from-the-proxy"})
    line = w1.line(lambda line: line["msg"] == "request")
    assert (line["id"], line["status"], line["reason"]) == ("from-the-proxy", 400, "BadRequest")

    # The list was read by itself.
    deadline = time.monotonic() + SECONDS
    while w1.ask("POST", "/add-checkpoint", other.submission(0, 1)).status != 200:
        assert time.monotonic() < deadline

    # It is counted, elsewhere than where strangers ask.
    status, text = w1.watch("/metrics")
    assert status == 200
    assert 'ktlog_witness_requests_total{endpoint="add-checkpoint",status="400",reason="BadRequest"} 1\n' in text
    assert f'ktlog_witness_log_size{{origin="{log.origin}"}} 3\n' in text
    assert "ktlog_witness_logs 2\n" in text and "ktlog_witness_ready 1\n" in text
    assert f'ktlog_witness_list_pulls_total{{list="{tmp_path / "list"}"}} 1\n' in text
    assert w1.ask("GET", "/metrics").status == 404

    # At debug it logs what supervisors ask, too.
    os.kill(w1.process.pid, signal.SIGUSR1)
    deadline = time.monotonic() + SECONDS
    while w1.ask("GET", "/livez", **{"X-Request-Id": "0-marked"}).status == 200:
        w1.ask("GET", "/nothing")
        lines = [w1.line(lambda line: line["msg"] == "request")]
        if lines[-1]["endpoint"] == "livez":
            break
        assert time.monotonic() < deadline

    # While a submission waits for the disk, somebody ends the witness.
    held = hold_record(tmp_path)
    connection = w1.connect()
    connection.request("POST", "/add-checkpoint", log.submission(3, 5))
    wait_until_in_hand(w1)
    began = time.monotonic()
    w1.process.send_signal(signal.SIGTERM)
    while "STOPPING=1" not in w1.told():
        pass
    assert w1.watch("/readyz") == (503, "Draining\n")
    assert w1.watch("/livez") == (200, "ok\n")
    while True:
        try:
            socket.create_connection(("127.0.0.1", w1.port), SECONDS).close()
        except ConnectionRefusedError:
            break
        assert time.monotonic() < began + GRACEFUL_SECONDS
    held.close()
    answer = connection.getresponse()
    assert (answer.status, answer.headers["Connection"]) == (200, "close"), answer.read()
    connection.close()
    assert w1.process.wait(SECONDS) == 0
    assert time.monotonic() - began < GRACEFUL_SECONDS

    # What it answered, it knows.
    w1.supervisor.close()
    (tmp_path / "notify").unlink()
    again = start()
    shown = again.ask("GET", f"/{hash_origin(log.origin)}/checkpoint")
    assert shown.body.splitlines()[1] == b"5"
    assert f'ktlog_witness_log_size{{origin="{log.origin}"}} 5\n' in again.watch("/metrics")[1]


@pytest.mark.slow
def test_a_request_that_never_ends_keeps_it_from_ending_for_some_seconds_only(start, log):
    w1 = start(**{KILL_VARIABLE: CHECKED, STOP_VARIABLE: "1"})
    connection = w1.connect()
    connection.request("POST", "/add-checkpoint", log.submission(0, 3))
    children = Path(f"/proc/{w1.process.pid}/task/{w1.process.pid}/children")
    deadline = time.monotonic() + SECONDS
    while not any(Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()[0] == "T"
                  for child in children.read_text().split()):
        assert time.monotonic() < deadline
    w1.process.send_signal(signal.SIGTERM)
    assert w1.process.wait(GRACEFUL_SECONDS + 5) == 0
