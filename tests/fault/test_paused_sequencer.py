"""A sequencer is stopped (SIGSTOP) at a named hook, another one takes over, and then the first one wakes up.

It does not know that any time went by. Nothing that it still does may count: no commit, no head, no checkpoint, no leaf of
the map; and it ends by itself. Two real processes with two directories, over one real PostgreSQL database; what leaves
either of them goes through the test's own witness.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog.config import write_settings
from ktlog.durable import STOP_VARIABLE, write_atomic
from ktlog.errors import StoreError
from ktlog.tlog.checkpoint import parse_checkpoint
from tests.fault.test_kill_hooks import Site
from tests.machine import need
from tests.operator_world import ORIGIN
from tests.pkd_samples import quick_argon2  # noqa: F401

need("postgres")

import psycopg  # noqa: E402 - it may be missing

from ktlog.operator.courier import QueueLink  # noqa: E402

BEFORE_A_SIGNATURE = ("sequencer.before_commit", "store.written", "publisher.head_offered", "mapping.head_offered")
AFTER_IT = (
    "sequencer.leaf_signed", "sequencer.after_commit", "publisher.tiles_written", "publisher.signed", "publisher.cosigned",
    "sequencer.answered", "mapping.pending", "mapping.signed", "mapping.cosigned", "mapping.committed",
)
FIRST = 2
"""Messages until the hook counts."""


# Two signers with the same keys do not run on one machine: what keeps them from it is a name in its network.
_ELSEWHERE = """
import socket

class Socket(socket.socket):
    def bind(self, address):
        elsewhere = isinstance(address, str) and address.startswith("\\0ktlog-")
        super().bind(address + "-elsewhere" if elsewhere else address)

socket.socket = Socket
"""


class TwoMachines(Site):
    """A site, and a second directory over the same database and the same published files."""

    def __init__(self, directory: Path, url: str) -> None:
        super().__init__(directory, store=url)
        self.url = url
        self.second = replace(self.settings, directory=directory / "second")
        shutil.copytree(
            self.settings.directory, self.second.directory, ignore=shutil.ignore_patterns("tiles", "*.db*", "*.lock")
        )
        (self.second.directory / "tiles").symlink_to(self.settings.tiles)
        write_settings(self.second)
        self.link = QueueLink(url, timeout_seconds=60.0)
        (directory / "elsewhere").mkdir()
        (directory / "elsewhere" / "sitecustomize.py").write_text(_ELSEWHERE)

    def close(self) -> None:
        self.link.close()
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
        super().close()

    def start_second(self) -> subprocess.Popen:
        first, self.settings = self.settings, self.second
        try:
            return self.start(PYTHONPATH=os.pathsep.join([os.environ["PYTHONPATH"], str(self.directory / "elsewhere")]))
        finally:
            self.settings = first

    def expire_lease(self) -> None:
        """Instead of waiting until it does."""
        with psycopg.connect(self.url, autocommit=True) as db:
            db.execute("UPDATE ktlog.lease SET expires = now()")

    def size(self) -> int:
        with self.store() as store:
            return store.state().size

    def has_lease(self, process: subprocess.Popen) -> bool:
        with psycopg.connect(self.url, autocommit=True) as db:
            row = db.execute("SELECT holder FROM ktlog.lease WHERE expires > now()").fetchone()
        return row is not None and row[0].split(":")[1] == str(process.pid)

    def heads(self, origin: str) -> list[tuple[int, bytes]]:
        """Every head that any process sent to the witness, as (size, root)."""
        found = [parse_checkpoint(note.partition(b"\n\n")[0] + b"\n") for note in self.seen]
        return [(one.size, one.root) for one in found if one.origin == origin]

    def check_heads(self) -> None:
        """No two of them contradict each other, or what is stored now."""
        with self.store() as store:
            for size, root in self.heads(ORIGIN):
                assert store.root_after(size) == root
        assert len(dict(self.heads(f"{ORIGIN}/map"))) == len(set(self.heads(f"{ORIGIN}/map")))


def is_stopped(process: subprocess.Popen) -> bool:
    return Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.fixture
def site(tmp_path: Path, postgres_url: str, quick_argon2) -> Iterator[TwoMachines]:  # noqa: F811
    made = TwoMachines(tmp_path, postgres_url)
    try:
        yield made
    finally:
        made.close()


def hooks() -> list:
    default = ("store.written",)
    names = (*BEFORE_A_SIGNATURE, *AFTER_IT)
    return [name if name in default else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.mark.parametrize("hook", hooks())
def test_whoever_was_overtaken_in_its_sleep_does_nothing_more(site: TwoMachines, hook: str) -> None:
    old = site.start()
    assert site.wait("the first sequencer", old, lambda: answers(site)), site.output()
    answered = [send(site) for _ in range(FIRST)]
    assert site.wait("publication", old, lambda: site.published_size() == site.mapped_size() == FIRST)
    old.kill()
    old.wait()
    site.expire_lease()
    old = site.start(**{"KTLOG_KILL_AT": f"{hook}:{times(hook)}", STOP_VARIABLE: "1"})
    late: list = []
    sender = threading.Thread(target=lambda: late.append(send(site)), daemon=True)
    sender.start()
    assert site.wait("the hook", old, lambda: is_stopped(old)), site.output()

    site.expire_lease()
    new = take_over(site)
    sender.join(60)
    answered += late + [send(site) for _ in range(2)]
    total = FIRST + 3
    assert [receipt.leaf_index for receipt in answered] == list(range(total)) and site.size() == total
    assert site.wait("publication", new, lambda: site.published_size() == site.mapped_size() == total)
    checkpoints, seen = published_files(site), len(site.seen)

    old.send_signal(signal.SIGCONT)
    assert old.wait(60) != 0, "it ends by itself"
    if hook in BEFORE_A_SIGNATURE:
        assert len(site.seen) == seen, "it sent a head"
    assert published_files(site) == checkpoints, "it published a checkpoint"
    site.check_heads()
    with site.store() as store:
        assert store.state().size == total
    answered.append(send(site))
    assert answered[-1].leaf_index == total and new.poll() is None
    assert site.wait("publication", new, lambda: site.published_size() == site.mapped_size() == total + 1)
    site.check_heads()


@pytest.mark.parametrize("place", ["tiles", "map_tiles"])
def test_a_checkpoint_that_it_puts_back_in_its_sleep_does_not_stay(site: TwoMachines, place: str) -> None:
    """Stopped between its last look and the renaming, it puts the older file there before it ends: done by hand here."""
    path = getattr(site.settings, place) / "checkpoint"
    sequencer = site.start()
    assert site.wait("publication", sequencer, lambda: site.mapped_size() == 0), site.output()
    older = path.read_bytes()
    send(site)
    assert site.wait("publication", sequencer, lambda: site.published_size() == site.mapped_size() == 1), site.output()
    newer = published_files(site)
    write_atomic(path, older)
    told = "replaced by an older one, and is shown again"  # in this order: first it is shown, then it is told
    assert site.wait("the newer one", sequencer, lambda: told in site.output()), site.output()
    assert published_files(site) == newer
    assert send(site).leaf_index == 1
    assert site.wait("publication", sequencer, lambda: site.published_size() == site.mapped_size() == 2), site.output()
    site.check_heads()


def times(hook: str) -> int:
    """How often the hook is reached before the message: a write of the store, by claiming the epoch and the like."""
    return 1 if hook != "store.written" else 3


def send(site: TwoMachines):
    return site.link.append(site.message())


def take_over(site: TwoMachines) -> subprocess.Popen:
    """Start the second machine's until one stays: the database may still wait for the first one to go on."""
    for _ in range(6):
        process = site.start_second()
        if site.wait("the second sequencer", process, lambda p=process: site.has_lease(p) and answers(site)):
            return process
        assert process.returncode == 75, site.output()
    raise AssertionError(site.output())


def answers(site: TwoMachines) -> bool:
    probe = QueueLink(site.url, timeout_seconds=1.0)
    try:
        probe.ping()
        return True
    except StoreError:
        return False
    finally:
        probe.close()


def published_files(site: TwoMachines) -> tuple[bytes, ...]:
    return tuple((root / "checkpoint").read_bytes() for root in (site.settings.tiles, site.settings.map_tiles))


