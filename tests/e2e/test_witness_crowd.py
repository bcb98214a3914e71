"""Thousands of connections of which nothing comes: a witness answers beside them, and says how many it has room for."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import select
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.witness_log import Log
from witness import cli

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 60
SPARE = 300
IDLE = 10_000


@contextlib.contextmanager
def serving(directory: Path, descriptors: int | None):
    """Its process and port; with so many descriptors and no way to more, if that is said."""
    command = [sys.executable, "-m", "witness", "serve", "--dir", str(directory), "--listen", "127.0.0.1:0"]
    if descriptors is not None:
        command = ["sh", "-c", f'ulimit -n {descriptors}; exec "$@"', "sh", *command]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        ready, _, _ = select.select([process.stdout], [], [], SECONDS)
        assert ready
        yield process, int(process.stdout.readline().rpartition(":")[2])
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def crowd(port: int, count: int):
    """So many connections, as far as they are let in; all begun by the time that the block is entered."""
    with contextlib.ExitStack() as stack:
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        yield


@pytest.mark.slow
@pytest.mark.parametrize(("descriptors", "idle"), [(None, IDLE), (128, 500)])
def test_beside_a_crowd_that_says_nothing_logs_are_cosigned_for(tmp_path, descriptors, idle):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < idle + SPARE:
        if hard < idle + SPARE:
            pytest.skip(f"needs {idle + SPARE} descriptors, and may have {hard}")
        resource.setrlimit(resource.RLIMIT_NOFILE, (idle + SPARE, hard))
    log = Log()
    for words in (["init", "--name", "example.com/w1"], ["add-log", *map(str, log.vkeys)]):
        assert CliRunner().invoke(cli.main, [words[0], "--dir", str(tmp_path / "w1"), *words[1:]]).exit_code == 0
    try:
        with serving(tmp_path / "w1", descriptors) as (process, port), crowd(port, idle):
            for size in range(1, 21):
                connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
                connection.request("POST", "/add-checkpoint", log.submission(size - 1, size))
                assert connection.getresponse().status == 200
                connection.close()
            process.terminate()
            said = process.communicate(timeout=SECONDS)[1]
            assert process.returncode == 0
            assert ("room for 64 connections" in said) is (descriptors is not None)
            assert "no connection taken" not in said and os.strerror(24) not in said
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
