"""Our witness, without any address of its own, is reached through torchwood's bastion."""

from __future__ import annotations

import http.client
import json
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ktlog.demo.pki import create_pki
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import Note, open_note, parse_signature_lines, parse_vkey
from tests.interop_peers import SECONDS, free_port, running
from tests.witness_log import Log
from witness.store import hash_origin

ROOT = Path(__file__).resolve().parents[2]


def ask(port: int, ca: Path, path: str, body: bytes | None = None) -> tuple[int, str | None, bytes]:
    context = ssl.create_default_context(cafile=str(ca))
    connection = http.client.HTTPSConnection("localhost", port, timeout=SECONDS, context=context)
    try:
        connection.request("GET" if body is None else "POST", path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def wait_for(port: int, ca: Path, path: str, status: int) -> None:
    deadline = time.monotonic() + SECONDS
    while ask(port, ca, path)[0] != status:
        assert time.monotonic() < deadline, f"{path}: never {status}"
        time.sleep(0.05)


@pytest.fixture
def witness(tmp_path):
    """Runs a command of ktlog-witness on one directory."""
    def run(command: str, *arguments: str) -> dict:
        done = subprocess.run(
            [sys.executable, "-m", "witness", command, "--dir", str(tmp_path / "w1"), *arguments, "--json"],
            cwd=ROOT, capture_output=True, text=True, timeout=SECONDS,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_a_session_through_it(built, witness, tmp_path):
    log, port = Log("example.com/log"), free_port()
    vkeys = tuple(map(parse_vkey, witness("init", "--name", "example.com/w1")["vkeys"]))
    witness("add-log", *map(str, log.vkeys))
    prefix = witness("bastion-key")["path_prefix"].strip("/")
    pki = create_pki(tmp_path / "pki", ["localhost"])
    (tmp_path / "backends").write_text(f"{prefix}\n")
    bastion = [
        built / "litebastion", "-listen", f"localhost:{port}", "-tls-cert", pki.certificate_file,
        "-tls-key", pki.key_file, "-backends", tmp_path / "backends",
    ]
    serve = [
        sys.executable, "-m", "witness", "serve", "--dir", str(tmp_path / "w1"), "--no-listen",
        "--bastion", f"localhost:{port}", "--bastion-ca", str(pki.ca_file),
    ]

    def submit(old: int, new: int) -> tuple[int, str | None, bytes]:
        return ask(port, pki.ca_file, f"/{prefix}/add-checkpoint", log.submission(old, new))

    with open(tmp_path / "witness.log", "wb") as words:
        ours = None
        try:
            with running(bastion, port, tmp_path / "bastion.log"):
                ours = subprocess.Popen(serve, cwd=ROOT, stdout=words, stderr=words, start_new_session=True)
                wait_for(port, pki.ca_file, f"/{prefix}/readyz", 200)
                status, _, answer = submit(0, 3)
                assert status == 200, answer
                text = parse_signed_checkpoint(log.note(3))[0].text
                assert {one.vkey for one in open_note(Note(text, parse_signature_lines(answer)), vkeys)} == set(vkeys)
                assert submit(1, 5) == (409, "text/x.tlog.size", b"3\n")
                assert submit(3, 70)[0] == 200
                assert ask(port, pki.ca_file, f"/{'0' * 64}/add-checkpoint", b"")[0] in (421, 502, 503)
            # The bastion was away, and everybody who asks finds the witness there again.
            with running(bastion, port, tmp_path / "bastion2.log"):
                wait_for(port, pki.ca_file, f"/{prefix}/readyz", 200)
                status, _, kept = ask(port, pki.ca_file, f"/{prefix}/{hash_origin(log.origin)}/checkpoint")
                assert (status, parse_signed_checkpoint(kept)[1].size) == (200, 70)
                ours.terminate()
                assert ours.wait(SECONDS) == 0
        finally:
            if ours is not None and ours.poll() is None:
                ours.kill()
                ours.wait()
    assert "Traceback" not in (tmp_path / "witness.log").read_text()
