"""The witness's daemon on disks that fail it: full, read-only, without power, with errors, or put back from a copy.

Whatever happens, what was answered is on record afterwards, and nobody ever has two histories. The kill tests at every
hook are in tests/e2e/test_witness_session.py; the calls one by one in test_witness_faults.py.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.tree import hash_leaf, leaf_reader
from tests.e2e.test_witness_session import Daemon, Desk
from tests.faults.images import EXT4, Image, file_system, fill
from tests.machine import need, program
from tests.witness_log import Log
from tests.witness_site import Session

SECONDS = 30


class Branch(Log):
    """As the log up to *common* leaves, and another after that."""

    def __init__(self, common: int) -> None:
        super().__init__(algorithms=(1,))
        self.common = common

    def _reader(self, tree_size: int):
        leaves = [b"entry" if index < self.common else b"branch" for index in range(tree_size)]
        return leaf_reader([hash_leaf(leaf + b" %d" % index) for index, leaf in enumerate(leaves)])


@pytest.fixture
def log() -> Log:
    return Log(algorithms=(1,))


@contextlib.contextmanager
def desks() -> Iterator[list[Desk]]:
    made: list[Desk] = []
    try:
        yield made
    finally:
        for desk in made:
            end(desk)


def end(desk: Desk) -> None:
    for daemon in desk.daemons:
        if daemon.process.poll() is None:
            daemon.kill()
        daemon.process.stdout.close()
    desk.daemons.clear()


def make(directory: Path, log: Log) -> Desk:
    desk = Desk(directory)
    desk.run_json("init", "--name", "example.com/w1")
    desk.run_json("add-log", *map(str, log.vkeys))
    return desk


def check(log: Log, daemon: Daemon, answered: int) -> int:
    """What was answered is on record, and no other branch is cosigned; returns the size on record."""
    _, checkpoint = parse_signed_checkpoint(daemon.monitor(log.origin).body)
    assert checkpoint.size >= answered and checkpoint.root == log.root(checkpoint.size)
    branch = Branch(max(0, answered - 1))
    for old in (max(0, answered - 1), checkpoint.size):
        assert daemon.post(branch.submission(old, checkpoint.size + 1)).status in (409, 422)
    size = checkpoint.size
    assert daemon.post(log.submission(size, size + 1)).status == 200
    return size + 1


@pytest.fixture
def image(tmp_path):
    """An ext4 of its own, mounted on ``tmp_path/disk``."""
    need("loop")
    place = tmp_path / "disk"
    place.mkdir()
    image = Image(tmp_path / "image", place)
    image.make()
    image.mount()
    assert file_system(place) == EXT4
    yield image
    release(image)


def release(image: Image) -> None:
    """Unmount it as soon as the processes that were killed have let go of it."""
    deadline = time.monotonic() + SECONDS
    while True:
        try:
            image.unmount()
            return
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


# --- without a file system of its own


def test_a_database_locked_by_another_process_is_503_and_nothing_is_in_doubt(tmp_path):
    session = Session(tmp_path)
    session.submit(0, 3)
    session.witness.store._connection.execute("PRAGMA busy_timeout=20")
    code = (
        "import sqlite3, sys; one = sqlite3.connect(sys.argv[1], isolation_level=None); one.execute('BEGIN IMMEDIATE');"
        " print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(session.directory.database)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == b"locked\n"
        refused = session.submit(3, 5)
        assert (refused.status_code, refused.data[:6]) == (503, b"Locked")
        fork = session.submit(3, 3, root=bytes(32))
        assert (fork.status_code, fork.data[:6]) == (503, b"Locked")  # 422 would say that it is on record
        assert session.submit(1, 5).data == b"3\n"
        other.stdin.close()
        other.wait(SECONDS)
    assert session.submit(3, 5).status_code == 200  # and no restart
    assert session.witness.store.count_writes() == session.witness.store._mark.count == 2
    session.witness.store.close()


@pytest.mark.slow
def test_put_back_from_a_copy_it_does_not_start(tmp_path, log):
    def keep() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in desk.directory.iterdir() if path.name.startswith("witness.db")}

    def put_back(files: dict[str, bytes]) -> None:
        for name in keep():
            (desk.directory / name).unlink()
        for name, data in files.items():
            (desk.directory / name).write_bytes(data)

    def refused() -> bool:
        done = desk.run("serve", "--listen", "127.0.0.1:0")
        return (done.returncode, "RecordRolledBack" in done.stderr) == (8, True)

    mark = tmp_path / "w" / "high-water"
    with desks() as made:
        desk = make(tmp_path / "w", log)
        made.append(desk)
        daemon = desk.serve()
        assert daemon.post(log.submission(0, 3)).status == 200
        older, older_mark = keep(), mark.read_bytes()  # as a backup takes it, from a witness that runs
        assert daemon.post(log.submission(3, 5)).status == 200
        assert daemon.stop() == 0
        newest = keep()
        put_back(older)
        assert refused()
        assert desk.run("set-mark", "--record-is-the-newest").returncode == 8
        # An older mark beside the newest record is what a crash between the two leaves: it goes on, and catches up.
        put_back(newest)
        mark.write_bytes(older_mark)
        daemon = desk.serve()
        assert check(log, daemon, 5) == 6
        assert daemon.stop() == 0
        put_back(newest)
        assert refused()


# --- on a disk of its own


@pytest.mark.slow
def test_a_full_disk(image, log):
    with desks() as made:
        desk = make(image.place / "w", log)
        made.append(desk)
        daemon = desk.serve()
        assert daemon.post(log.submission(0, 3)).status == 200
        free = os.statvfs(image.place)
        fill(image.place / "ballast", free.f_bavail * free.f_frsize)
        answered = 3
        for size in range(4, 400):  # until the write-ahead log needs room that is not there
            reply = daemon.post(log.submission(answered, size))
            if reply.status != 200:
                break
            answered = size
        assert (reply.status, reply.body[:8]) == (503, b"Poisoned")
        assert daemon.request("GET", "/readyz").status == 503
        assert parse_signed_checkpoint(daemon.monitor(log.origin).body)[1].size == answered
        (image.place / "ballast").unlink()
        assert daemon.post(log.submission(answered, answered + 1)).status == 503  # until it is started again
        daemon.kill()
        check(log, desk.serve(), answered)
        end(desk)


@pytest.mark.slow
def test_a_file_system_that_became_read_only(image, log):
    with desks() as made:
        desk = make(image.place / "w", log)
        made.append(desk)
        daemon = desk.serve()
        assert daemon.post(log.submission(0, 3)).status == 200
        # What is open for writing stays open, and every write fails, as ext4 is mounted where servers are.
        subprocess.run([program("mount"), "-o", "remount,errors=remount-ro", str(image.place)], check=True)
        Path(f"/sys/fs/ext4/{Path(image.device).name}/trigger_fs_error").write_text("tested\n")
        reply = daemon.post(log.submission(3, 5))
        assert reply.status == 503, reply
        assert daemon.post(log.submission(3, 4)).status == 503
        daemon.kill()
        refused = desk.run("serve", "--listen", "127.0.0.1:0")
        assert refused.returncode == 8 and "Traceback" not in refused.stderr, refused.stderr
        end(desk)
        release(image)
        image.mount()
        check(log, desk.serve(), 3)
        end(desk)


@pytest.mark.slow
def test_power_cuts(image, log, tmp_path):
    """Five in a row, each while submissions come as fast as they can; every disk is the copy that the last cut left."""
    with desks() as made:
        desk = make(image.place / "w", log)
        made.append(desk)
        answered, cuts = 0, 0
        for number in range(5):
            daemon = desk.serve()
            if answered:
                answered = check(log, daemon, answered)
            said: list[int] = []
            over = threading.Event()

            def grow(start: int, daemon: Daemon = daemon, said: list[int] = said, over: threading.Event = over) -> None:
                size = start
                with contextlib.suppress(OSError, http.client.HTTPException):
                    while not over.is_set():
                        if daemon.post(log.submission(size, size + 1)).status != 200:
                            return
                        size += 1
                        said.append(size)

            client = threading.Thread(target=grow, args=(answered,))
            client.start()
            moment = time.monotonic() + 0.35 + number * 0.013
            while (time.monotonic() < moment or not said) and client.is_alive():
                time.sleep(0.001)
            os.killpg(daemon.process.pid, signal.SIGSTOP)
            before = len(said)
            copy = tmp_path / f"copy-{number}"
            shutil.copyfile(image.path, copy)
            over.set()
            daemon.kill()
            client.join(SECONDS)
            cuts += before > 0
            answered = max([answered, *said[:before]])
            end(desk)
            release(image)
            shutil.move(copy, image.path)
            image.mount()
        daemon = desk.serve()
        check(log, daemon, answered)
        assert cuts == 5
        end(desk)


# --- errors of the device, as the kernel gives them


@pytest.mark.slow
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_an_error_of_the_kernel_s(tmp_path, log, call):
    need("strace")
    with desks() as made:
        desk = make(tmp_path / "w", log)
        made.append(desk)
        daemon = desk.serve()
        assert daemon.post(log.submission(0, 3)).status == 200
        children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children").read_text().split()
        trace = tmp_path / "trace"
        with open(tmp_path / "words", "wb") as words, subprocess.Popen(
            [program("strace"), "-f", "-o", str(trace), "-e", f"trace={call}", "-e", f"inject={call}:error=EIO",
             "-p", children[0]], stdin=subprocess.DEVNULL, stdout=words, stderr=words,
        ) as strace:
            deadline = time.monotonic() + SECONDS
            while "attached" not in (tmp_path / "words").read_text() and time.monotonic() < deadline:
                assert strace.poll() is None, (tmp_path / "words").read_text()
                time.sleep(0.02)
            reply = daemon.post(log.submission(3, 5))
            strace.send_signal(signal.SIGINT)
            strace.wait(SECONDS)
        assert "(INJECTED)" in trace.read_text()
        assert (reply.status, reply.body[:8]) == (503, b"Poisoned")
        assert daemon.post(log.submission(3, 4)).status == 503  # the device is well again; the process does not know
        assert daemon.monitor(log.origin).status == 200
        daemon.kill()
        check(log, desk.serve(), 3)
        end(desk)


