"""A mirror as a process of its own, over loopback HTTP: what uploaders do to it, and what they find afterwards."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import Note, open_note, parse_note, parse_vkey
from tests.mirror_site import Reply, check_copy, request_body, tree_of
from tests.witness_log import Log
from witness.cli import main
from witness.mirror import HOOKS
from witness.mirrorclient import upload
from witness.mirrorwire import MIRROR_INFO, OCTETS, Upload, format_upload, parse_info
from witness.store import hash_origin

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30
HEADERS = {"Content-Type": OCTETS}


class Desk:
    """Someone at a shell, with one witness directory, and at most one mirror running."""

    def __init__(self, directory: Path, log: Log) -> None:
        self.directory, self.log = directory, log
        self.process: subprocess.Popen | None = None
        self.port = 0

    def run_json(self, command: str, *arguments: str, exit_code: int = 0) -> dict:
        """A command in this process; the mirror is one of its own."""
        result = CliRunner().invoke(main, [command, "--dir", str(self.directory), *arguments, "--json"])
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def serve(self, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "witness", "serve-mirror", "--dir", str(self.directory), "--listen", "127.0.0.1:0"],
            cwd=ROOT, env={**os.environ, **environment}, start_new_session=True, stdout=subprocess.PIPE, text=True,
        )
        ready, _, _ = select.select([self.process.stdout], [], [], SECONDS)
        line = self.process.stdout.readline() if ready else ""
        assert " listens on http://127.0.0.1:" in line, line
        self.port = int(line.strip().rpartition(":")[2])

    def kill(self) -> None:
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(SECONDS)
            self.process.stdout.close()
            self.process = None

    def request(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Reply:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, answer.read(), answer.headers["Content-Type"])
        finally:
            connection.close()

    def post(self, endpoint: str, body: bytes, headers: dict[str, str]) -> Reply:
        return self.request("POST", f"/{endpoint}", body, headers)

    def submit(self, old: int, new: int) -> Reply:
        return self.post("add-checkpoint", self.log.submission(old, new), {})

    def add(self, body: bytes, **headers: str) -> Reply:
        return self.post("add-entries", body, {**HEADERS, **headers})

    def fetch(self, path: str) -> bytes:
        reply = self.request("GET", f"/{hash_origin(self.log.origin)}/{path}")
        assert reply.status == 200, path
        return reply.body

    def talk(self, sent: bytes) -> bytes:
        """Send bytes, then no more; what comes back."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: connection.recv(65536), b""))

    def check_cosigned(self, vkeys: list[str], lines, size: int) -> None:
        note = parse_note(self.fetch("checkpoint"))
        assert parse_signed_checkpoint(self.fetch("checkpoint"))[1].size == size
        known = [parse_vkey(vkey) for vkey in vkeys]
        assert len(open_note(note, known)) == len(open_note(Note(note.text, tuple(lines)), known)) == 2
        check_copy(self.fetch, self.log, size)


@pytest.fixture
def desk(tmp_path):
    desk = Desk(tmp_path / "w1", Log("example.com/behind-the-sofa"))
    desk.run_json("init", "--name", "example.com/w1")
    yield desk
    desk.kill()


@pytest.fixture
def vkeys(desk: Desk) -> list[str]:
    vkeys = desk.run_json("init-mirror", "--name", "example.com/m1")["vkeys"]
    desk.run_json("add-log", *map(str, desk.log.vkeys))
    desk.run_json("mirror-log", desk.log.origin)
    desk.serve()
    return vkeys


def test_a_mirrors_day(desk: Desk, vkeys: list[str]) -> None:
    log = desk.log
    # Someone uploads, and goes away in the middle of a package: with a length, in chunks, and compressed.
    assert (desk.submit(0, 1500).status, desk.add(b"").status) == (200, 400)
    body = request_body(log, 0, 1500)
    head = f"POST /add-entries HTTP/1.1\r\nHost: m\r\nContent-Type: {OCTETS}\r\n"
    half = len(body) * 2 // 5
    answer = desk.talk(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:half])
    assert b" 202 " in answer.partition(b"\r\n")[0] and MIRROR_INFO.encode() in answer
    info = parse_info(answer.partition(b"\r\n\r\n")[2])
    assert (info.size, info.next_entry) == (1500, 512)
    body = request_body(log, 512, 1500)
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:100], body[100:-60]))
    answer = desk.talk(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks)
    assert parse_info(answer.partition(b"\r\n\r\n")[2]).next_entry == 1024
    packed = gzip.compress(request_body(log, 1024, 1500))
    answer = desk.talk(f"{head}Content-Encoding: gzip\r\nContent-Length: {len(packed)}\r\n\r\n".encode() + packed[:-60])
    assert parse_info(answer.partition(b"\r\n\r\n")[2]).next_entry == 1280

    # Someone sends what he should not.
    held = desk.run_json("list-mirrored")["logs"][0]["next_entry"]
    head_bytes = format_upload(Upload(log.origin, held, 1500))
    assert desk.add(request_body(Log(log.origin, prefix=b"forged"), held, 1500)).status == 422
    bomb = gzip.compress(head_bytes + bytes(20_000_000), 1)
    assert desk.add(bomb, **{"Content-Encoding": "gzip"}).status == 422
    assert desk.add(head_bytes + b"\xff" * 17_000_000).status == 400  # longer than the longest package
    assert desk.post("add-checkpoint", bytes(200_000), {}).status == 413
    assert desk.run_json("list-mirrored")["logs"][0]["next_entry"] == held

    # One holds a request open, and two upload at once; all is there in the end, also after a restart.
    with socket.create_connection(("127.0.0.1", desk.port), SECONDS) as idle:
        idle.sendall(f"{head}Content-Length: 1000000\r\n\r\n".encode() + head_bytes)
        replies = []
        uploads = [
            threading.Thread(target=lambda: replies.append(upload(desk.post, tree_of(log, 1500), log.note(1500), packages=1)))
            for _ in range(2)
        ]
        for one in uploads:
            one.start()
        for one in uploads:
            one.join(SECONDS)
        assert len(replies) == 2
        for lines in replies:
            desk.check_cosigned(vkeys, lines, 1500)
    desk.process.send_signal(signal.SIGTERM)
    assert desk.process.wait(SECONDS) == 0
    desk.process.stdout.close()
    with socket.create_server(("127.0.0.1", 0)) as free:
        metrics = free.getsockname()[1]
    desk.serve(KTLOG_MIRROR_METRICS_LISTEN=f"127.0.0.1:{metrics}", KTLOG_MIRROR_LOG_FORMAT="json")
    desk.check_cosigned(vkeys, replies[0], 1500)
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=SECONDS) as page:
        lines = page.read().decode().splitlines()
    name = f'{{origin="{log.origin}"}}'
    assert {f"ktlog_mirror_log_size{name} 1500", f"ktlog_mirror_log_entries_held{name} 1500", "ktlog_mirror_ready 1"} <= {*lines}
    assert any(line.startswith('ktlog_mirror_requests_total{endpoint="checkpoint",status="200"') for line in lines)
    assert b"example.com/m1: a transparency-log mirror" in desk.request("GET", "/").body

    # The files are all there is of it, and the record is needed.
    desk.kill()
    (desk.directory / "mirror" / "mirror.db").unlink()
    refused = CliRunner().invoke(main, ["serve-mirror", "--dir", str(desk.directory), "--listen", "127.0.0.1:0"])
    assert refused.exit_code == 8 and "MirrorDatabaseMissing" in refused.stderr


def test_the_commands_refuse_what_cannot_be(desk: Desk) -> None:
    def refused(command: str, *arguments: str, exit_code: int = 2) -> str:
        return desk.run_json(command, *arguments, exit_code=exit_code)["error"]["name"]

    assert refused("mirror-log", desk.log.origin) == "UnknownOrigin"
    desk.run_json("add-log", *map(str, desk.log.vkeys))
    assert refused("mirror-log", desk.log.origin, exit_code=8) == "NoMirror"
    assert refused("init-mirror", "--name", "example.com/w1") == "SameCosigner"
    assert refused("init-mirror", "--name", desk.log.origin) == "OwnKey"
    desk.run_json("init-mirror", "--name", "example.com/m1")
    assert refused("init-mirror", "--name", "example.com/m2", exit_code=8) == "MirrorExists"
    assert desk.run_json("mirror-log", desk.log.origin, "--max-bytes", "1000")["added"]
    assert not desk.run_json("mirror-log", desk.log.origin)["added"]
    assert desk.run_json("list-mirrored")["logs"][0]["max_bytes"] == 1000
    assert desk.run_json("set-mirror-mark", "--record-is-the-newest")["writes"] == 0


@pytest.mark.slow
def test_it_is_killed_at_every_hook(desk: Desk, vkeys: list[str]) -> None:
    size = 0
    for hook in (*HOOKS, "durable.staged:3", "durable.named:3"):
        desk.kill()
        desk.serve(KTLOG_KILL_AT=hook)
        grown = size + 400
        with pytest.raises((http.client.HTTPException, OSError)):
            upload(desk.post, tree_of(desk.log, grown), desk.log.note(grown))
        desk.kill()
        desk.serve()
        if size:
            found = parse_signed_checkpoint(desk.fetch("checkpoint"))[1].size
            assert found in (size, grown) and (found == grown) == (hook == HOOKS[-1])
            check_copy(desk.fetch, desk.log, found)
        lines = upload(desk.post, tree_of(desk.log, grown), desk.log.note(grown))
        desk.check_cosigned(vkeys, lines, grown)
        size = grown
