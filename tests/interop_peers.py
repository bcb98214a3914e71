"""Other implementations for the interop tests: built from Go modules, asked over a pipe or over loopback."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import socket
import sqlite3
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.tree import EMPTY_ROOT
from tests.machine import GO_MODULES, GO_OFFLINE

SECONDS = 60
BUILD_SECONDS = 900
"""With an empty build cache, on a busy machine. With a full one it takes two seconds."""


def build(directory: Path) -> Path:
    """Build our programs and the peers' commands into *directory*, once for all the workers of a run."""
    directory.mkdir(exist_ok=True)
    with open(directory / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (directory / "built").exists():
            for module in GO_MODULES:
                done = subprocess.run(
                    ["go", "build", "-o", f"{directory}/", ".", "tool"], cwd=module, timeout=BUILD_SECONDS,
                    env={**os.environ, **GO_OFFLINE}, capture_output=True, text=True,
                )
                assert done.returncode == 0, done.stderr
            (directory / "built").touch()
    return directory


class PeerRefused(Exception):
    """What the peer's library said of it."""


class Peer:
    """One of our programs in tests/interop/go, which answers a line with a line."""

    def __init__(self, program: Path, words: Path) -> None:
        with open(words, "wb") as output:
            self._process = subprocess.Popen(
                [program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=output, text=True, bufsize=1
            )

    def ask(self, do: str, **fields: Any) -> dict[str, Any]:
        """Bytes go as base64. What comes back is as the program's function says.

        Raises:
            PeerRefused: it answered with an error.
        """
        self._process.stdin.write(json.dumps({"do": do, **fields}, default=encode_base64) + "\n")
        ready, _, _ = select.select([self._process.stdout], [], [], SECONDS)
        answer = json.loads(self._process.stdout.readline() if ready else '{"error": "no answer"}')
        if "error" in answer:
            raise PeerRefused(answer["error"])
        return answer

    def stop(self) -> None:
        self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(1)
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def wait_for_port(port: int, process: subprocess.Popen, words: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=SECONDS).close()
            return
        except ConnectionRefusedError:
            assert process.poll() is None and time.monotonic() < deadline, words.read_text()
            time.sleep(0.02)


@contextmanager
def running(command: Sequence[str | Path], port: int, words: Path, **options: Any):
    """A peer's command that listens on *port*; what it writes goes to *words*."""
    with open(words, "wb") as output:
        process = subprocess.Popen(
            list(command), stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, **options
        )
    try:
        wait_for_port(port, process, words)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Litewitness:
    """The command of that name, with its key in an ssh-agent and its logs in a database."""

    def __init__(self, name: str, database: Path, port: int, vkey: str) -> None:
        self.name, self.database, self.port, self.vkey = name, database, port, vkey

    def add_log(self, origin: str, vkey: str) -> None:
        """As its ``witnessctl add-log`` and ``add-key`` do; the command needs a library that is not everywhere."""
        with sqlite3.connect(self.database, timeout=SECONDS) as database:
            empty = base64.b64encode(EMPTY_ROOT).decode()
            database.execute("INSERT INTO log (origin, tree_size, tree_hash) VALUES (?, 0, ?)", (origin, empty))
            database.execute("INSERT INTO key (origin, key) VALUES (?, ?)", (origin, vkey))
        database.close()


@contextmanager
def litewitness(built: Path, directory: Path, name: str):
    directory.mkdir()
    key, port = directory / "key", free_port()
    # A Unix socket's path must be short.
    short = Path(subprocess.check_output(["mktemp", "-d"], text=True).strip())
    agent = subprocess.Popen(
        ["ssh-agent", "-D", "-a", str(short / "agent")], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        deadline = time.monotonic() + SECONDS
        while not (short / "agent").exists():
            assert agent.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        environment = {**os.environ, "SSH_AUTH_SOCK": str(short / "agent")}
        subprocess.run(["ssh-add", "-q", str(key)], env=environment, check=True)
        print_key = ["ssh-keygen", "-l", "-f", f"{key}.pub"]
        fingerprint = subprocess.check_output(print_key, text=True).split()[1]
        command = [
            built / "litewitness", "-name", name, "-db", directory / "db", "-ssh-agent", short / "agent",
            "-listen", f"127.0.0.1:{port}", "-key", fingerprint,
        ]
        words = directory / "log"
        with running(command, port, words):
            vkey = next(word for word in words.read_text().split() if word.startswith("vkey="))
            yield Litewitness(name, directory / "db", port, vkey.removeprefix("vkey=").strip('"'))
    finally:
        agent.terminate()
        agent.wait()
        for left in short.iterdir():
            left.unlink()
        short.rmdir()


def lines_of_policy(vkeys: Mapping[str, str], url: str) -> str:
    """A witness policy that wants all of *vkeys*, by a name for each, at one URL."""
    lines = "".join(f"witness {name} {vkey} {url}\n" for name, vkey in vkeys.items())
    return f"{lines}group all-of-them all {' '.join(vkeys)}\nquorum all-of-them\n"
