"""A witness daemon that is asked through a bastion, with or without a door of its own, until SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ktlog.tlog.note import Note, open_note, parse_signature_lines, parse_vkey
from tests.bastion_server import HOST, BastionServer
from tests.unit.test_witness_cli import run_json
from tests.witness_log import Log
from witness.bastion import make_certificate

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30


@pytest.mark.parametrize("door", [("--listen", "127.0.0.1:0"), ("--no-listen",)], ids=["listening", "bastion-only"])
def test_a_witness_behind_a_bastion(tmp_path, door):
    log, directory = Log(), tmp_path / "w"
    vkeys = [parse_vkey(vkey) for vkey in run_json("init", "--dir", directory, "--name", "example.com/w1")["vkeys"]]
    run_json("add-log", "--dir", directory, *log.vkeys)
    prefix = run_json("bastion-key", "--dir", directory)["path_prefix"]
    server = BastionServer(tmp_path, make_certificate((directory / "bastion.key").read_bytes()))
    server.start()
    daemon = subprocess.Popen(
        [sys.executable, "-m", "witness", "serve", "--dir", str(directory), *door, "--bastion-ca", server.ca_file],
        cwd=ROOT, env={**os.environ, "KTLOG_WITNESS_BASTION": f"{HOST}:{server.port}"}, stdout=subprocess.PIPE, text=True,
    )
    try:
        backend = server.backend()
        assert backend.key_hash == prefix
        reply = backend.ask("/add-checkpoint", log.submission(0, 3))
        assert reply.status == 200
        text = log.note(3).partition(b"\n\n")[0] + b"\n"
        verified = open_note(Note(text, parse_signature_lines(reply.body)), vkeys)
        assert [one.vkey for one in verified] == vkeys
        assert backend.ask("/readyz").status == 200
        if door[0] == "--listen":
            assert "listens on" in daemon.stdout.readline()
        assert f"https://{HOST}/{prefix}/" in daemon.stdout.readline()
        # What has begun when the end is told is answered, and the bastion hears a GOAWAY without an error.
        slow = backend.open("/add-checkpoint", "POST", end=False)
        backend.sync()
        daemon.send_signal(signal.SIGTERM)
        original, left = backend.h2.receive_data, []

        def without_goaway(data: bytes):
            at = data.find(b"\0\0\x08\x07\0\0\0\0\0")
            if at < 0:
                return original(data)
            left.append(data[at + 13 : at + 17])
            return original(data[:at] + data[at + 17 :])

        backend.h2.receive_data = without_goaway
        while not left:
            backend.step()
        backend.send(slow, log.submission(3, 5))
        assert (backend.wait(slow).status, left) == (200, [bytes(4)])
        backend.until_gone()
        backend.close()
        assert daemon.wait(SECONDS) == 0
    finally:
        if daemon.poll() is None:
            daemon.kill()
            daemon.wait()
        daemon.stdout.close()
        server.stop()
