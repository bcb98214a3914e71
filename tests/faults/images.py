"""A real file system in a file: power cuts and full disks as ext4 has them. Needs root and a loop device.

A power cut: the process is stopped between two of its instructions, the file behind the file system is copied as it is
then, and the copy is mounted. What was not synced is in the kernel's memory and not in that file, so it is lost.
"""

from __future__ import annotations

import ctypes
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.faults.kinds import Outcome, Violated, World, closing, codes, feed, open_reader, play, unreadable
from tests.faults.site import Run
from tests.machine import program

EXT4 = 0xEF53
MEGABYTES = 32


def _tell(*command: str) -> str:
    found = program(command[0]) or command[0]
    done = subprocess.run([found, *command[1:]], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")
    return done.stdout


class _Statfs(ctypes.Structure):
    _fields_ = [("type", ctypes.c_long), ("rest", ctypes.c_long * 31)]


def file_system(path: Path) -> int:
    """The number that says which file system *path* is on."""
    found = _Statfs()
    if ctypes.CDLL(None, use_errno=True).statfs(os.fsencode(path), ctypes.byref(found)):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))
    return found.type


class Image:
    """An ext4 file system in the file *path*, mounted on *place* while it is needed."""

    def __init__(self, path: Path, place: Path) -> None:
        self.path = path
        self.place = place
        self.device = ""

    def make(self, megabytes: int = MEGABYTES) -> None:
        with open(self.path, "wb") as file:
            file.truncate(megabytes << 20)
        # Blocks as large as memory's pages, as every large file system has: with smaller ones a full disk ends whoever
        # opens a database by SIGBUS, because SQLite makes sure of one block of each page that it maps, and not of four.
        _tell(
            "mkfs.ext4", "-q", "-F", "-b", "4096", "-m", "0", "-J", "size=4", "-E", "lazy_itable_init=0,lazy_journal_init=0",
            str(self.path),
        )

    def mount(self, path: Path | None = None) -> None:
        self.device = _tell("losetup", "--find", "--show", str(path or self.path)).strip()
        _tell("mount", "-t", "ext4", self.device, str(self.place))
        if file_system(self.place) != EXT4:
            raise Violated(f"{self.place} is not on ext4")

    def unmount(self) -> None:
        if self.device:
            _tell("umount", str(self.place))
            _tell("losetup", "-d", self.device)
            self.device = ""

    def flushes(self) -> int:
        """How often the device was told to make durable what it has."""
        fields = Path(f"/sys/block/{Path(self.device).name}/stat").read_text().split()
        return int(fields[15]) if len(fields) > 15 else -1


@contextmanager
def on_image(run: Run) -> Iterator[Image]:
    """Move the log of *run* onto a file system of its own."""
    image = Image(run.directory / "image", run.log)
    shutil.move(run.log, run.directory / "moved")
    run.log.mkdir()
    image.make()
    image.mount()
    try:
        for entry in (run.directory / "moved").iterdir():
            shutil.move(entry, run.log / entry.name)
        os.sync()
        yield image
    finally:
        for child in run.children:
            child.signal(signal.SIGKILL)
            while child.poll() is None:
                time.sleep(0.002)
        image.unmount()


def power(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """The plug is pulled at an arbitrary moment of an arbitrary message."""
    def act(run: Run) -> Outcome:
        with on_image(run) as image:
            child = run.start(watch=False, prepare=world.prepare)
            for _ in range(draw.randrange(3)):
                flushes = image.flushes()
                if flushes < 0:
                    raise Violated("the kernel (before 5.5) does not tell of flushes")
                answered = run.send(child, *[next(run.bank) for _ in range(draw.choice((1, 1, 3)))])
                if None not in answered and image.flushes() <= flushes:
                    raise Violated("answered, and the device was never told to make it durable")
                run.settle(child, run.size)
            flushes = image.flushes()
            moment = time.monotonic() + draw.random() * 0.12
            for message in (next(run.bank), next(run.bank)):
                run.unanswered.append(message)  # at the cut it is on its way
                post(run, child, message)
            run.pump(child, lambda: time.monotonic() > moment)
            child.signal(signal.SIGSTOP)
            shutil.copyfile(image.path, run.directory / "copy")
            child.signal(signal.SIGKILL)
            run.wait(child)
            answered = len(run.acks)
            collect(run)
            if len(run.acks) > answered and image.flushes() <= flushes:
                raise Violated("answered, and the device was never told to make it durable")
            image.unmount()
            image.mount(run.directory / "copy")
            return closing(run, world, Outcome("power", f"after {len(run.acks) - run.base.size} answers", "recovered"))

    return guarded(world, base, directory, act)


def guarded(world: World, base: str, directory: Path, act: Callable[[Run], Outcome]) -> Outcome:
    try:
        return play(world, world.bases[base], directory, act)
    except Violated as error:
        return Outcome("", "", "VIOLATED", [str(error)])


def post(run: Run, child: object, message: object) -> None:
    """Send and do not wait: the answer, if there is one, is read after the cut."""
    from ktlog.operator.link import encode_submission

    connection = run.connect(child)
    if connection is None:
        return
    data = encode_submission(message)
    try:
        connection.sendall(len(data).to_bytes(4, "big") + data)
    except OSError:
        pass
    run.posted.append((message, connection))


def collect(run: Run) -> None:
    """The answers that were on their way when the power went: they were given, so they count."""
    from ktlog.operator.link import decode_receipt
    from ktlog.pkd.canonical import parse_json
    from tests.faults.site import Ack

    for message, connection in run.posted:
        connection.setblocking(False)
        try:
            head = connection.recv(4)
            data = connection.recv(int.from_bytes(head, "big")) if len(head) == 4 else b""
            receipt = decode_receipt(parse_json(data)) if data else None
        except (OSError, ValueError):
            receipt = None
        connection.close()
        if receipt is not None:
            run.acks.append(Ack(receipt.leaf_index, receipt.entry, receipt.root, message.preimage))
            run.unanswered.remove(message)


def room(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    """Requirement R4 on a small file system: a few kilobytes are left, then none; then there is room again."""
    left = draw.randrange(0, 480) * 1024

    def act(run: Run) -> Outcome:
        with on_image(run) as image:
            ballast = run.log / "ballast"
            free = os.statvfs(run.log)
            with open_reader(run) as store:
                fill(ballast, max(0, free.f_bavail * free.f_frsize - left))
                child = run.start(watch=False, prepare=world.prepare)
                feed(run, child, draw, 12)
                died = child.poll() is not None
                why = unreadable(run, store)
                run.stop(child)
                again = run.start(watch=False, prepare=world.prepare)  # as the supervisor does, while the disk is full
                run.pump(again, run.listens, seconds=10)
                why += unreadable(run, store)
                run.stop(again)
            ballast.unlink()
            seen = codes(run)
            result = "recovered" if died or "DiskFull" in seen else "missed"
            outcome = closing(run, world, Outcome("room", f"{left // 1024} kB left", result, why))
            if file_system(image.place) != EXT4:
                outcome.why.append("not on ext4")
            return outcome

    return guarded(world, base, directory, act)


def fill(path: Path, count: int) -> None:
    with open(path, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, max(1, count))
        except OSError:
            pass
    os.sync()
