"""What is on a disk when the power goes: what was synced, and of the rest whatever the disk pleases.

A file's bytes are safe once the file was synced, its name once its directory was. Everything since may be there or
not: none of it, all of it, the first few writes, any of them, the last one torn at a sector, or the length without
the bytes, as a journaling file system leaves it. That is POSIX's promise and no more, and harsher than ext4.
"""

from __future__ import annotations

import os
import random
import stat
from dataclasses import dataclass, field
from pathlib import Path

SECTOR = 512
STRATEGIES = ("none", "none", "all", "prefix", "subset", "torn", "zeros")

real_open, real_close, real_write = os.open, os.close, os.write


@dataclass
class _Inode:
    """safe: the bytes as they were synced last. since: writes after that, (offset, bytes), or (length, None) to cut."""

    mode: int
    safe: bytes = b""
    since: list[tuple[int, bytes | None]] = field(default_factory=list)


class Disk:
    """A directory's tree as the disk has it, told of every call that changes something. Locking is the caller's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._inodes: dict[int, _Inode] = {}
        self._safe: dict[str, dict[str, int]] = {}
        self._since: dict[str, list[tuple[str, ...]]] = {}
        self._names: dict[str, dict[str, int]] = {}
        for directory, _folders, _files in os.walk(root):
            found = {entry.name: entry.inode() for entry in os.scandir(directory)}
            self._safe[directory], self._names[directory] = found, dict(found)

    # What happens to bytes

    def keep(self, path: str) -> None:
        """Before the file at *path* is changed for the first time, or loses its name: remember what it holds."""
        found = os.lstat(path)
        if found.st_ino not in self._inodes and stat.S_ISREG(found.st_mode):
            self._inodes[found.st_ino] = _Inode(found.st_mode, Path(path).read_bytes())

    def made(self, path: str) -> None:
        found = os.lstat(path)
        self._inodes[found.st_ino] = _Inode(found.st_mode)
        self._add(path, found.st_ino)

    def wrote(self, path: str, at: int, data: bytes) -> None:
        self._of(path).since.append((at, bytes(data)))

    def truncated(self, path: str, length: int) -> None:
        self._of(path).since.append((length, None))

    def synced(self, path: str) -> None:
        if path in self._names:
            self._safe[path] = dict(self._names[path])
            self._since[path] = []
            return
        inode = self._of(path)
        inode.safe, inode.since = _apply(inode.safe, inode.since), []

    def _of(self, path: str) -> _Inode:
        number = self._names[os.path.dirname(path)][os.path.basename(path)]
        return self._inodes[number]

    # What happens to names

    def _add(self, path: str, number: int) -> None:
        parent, name = os.path.split(path)
        self._names[parent][name] = number
        self._since.setdefault(parent, []).append(("add", name, str(number)))

    def linked(self, source: str, target: str) -> None:
        self._add(target, self._names[os.path.dirname(source)][os.path.basename(source)])

    def removed(self, path: str) -> None:
        parent, name = os.path.split(path)
        self._names[parent].pop(name, None)
        self._since.setdefault(parent, []).append(("del", name))

    def renamed(self, source: str, target: str) -> None:
        """Within one directory, in one step."""
        parent, name = os.path.split(source)
        number = self._names[parent].pop(name)
        self._names[parent][os.path.basename(target)] = number
        self._since.setdefault(parent, []).append(("move", name, os.path.basename(target), str(number)))

    def made_directory(self, path: str) -> None:
        if path not in self._names:
            self._names[path], self._safe[path] = {}, {}
            self._add(path, os.lstat(path).st_ino)

    # The cut

    def cut(self, target: Path, seed: int) -> None:
        """Write to *target* what could be found after a cut now; *seed* chooses among what is possible."""
        draw = random.Random(seed)
        contents = {number: self._after(inode, draw) for number, inode in self._inodes.items()}
        self._copy(str(self.root), target, contents, draw)

    def _after(self, inode: _Inode, draw: random.Random) -> bytes:
        since, strategy = inode.since, draw.choice(STRATEGIES)
        if not since or strategy == "none":
            return inode.safe
        if strategy == "subset":
            return _apply(inode.safe, [write for write in since if draw.random() < 0.5])
        if strategy == "zeros":
            return inode.safe + bytes(max(0, len(_apply(inode.safe, since)) - len(inode.safe)))
        kept = since if strategy == "all" else since[: draw.randrange(len(since) + 1)]
        if strategy == "torn" and kept and kept[-1][1] is not None:
            at, data = kept[-1]
            kept = [*kept[:-1], (at, data[: SECTOR * draw.randrange(len(data) // SECTOR + 1)])]
        return _apply(inode.safe, kept)

    def _copy(self, directory: str, target: Path, contents: dict[int, bytes], draw: random.Random) -> None:
        since = self._since.get(directory, [])
        kept = since[: draw.choice((0, 0, len(since), draw.randrange(len(since) + 1)))]
        names = dict(self._safe[directory])
        for step in kept:
            if step[0] == "add":
                names[step[1]] = int(step[2])
            elif step[0] == "del":
                names.pop(step[1], None)
            else:
                names.pop(step[1], None)
                names[step[2]] = int(step[3])
        target.mkdir(mode=0o700, exist_ok=True)
        for name, number in names.items():
            path = os.path.join(directory, name)
            if path in self._names:
                self._copy(path, target / name, contents, draw)
            elif number in contents:
                _write(target / name, contents[number], self._inodes[number].mode)
            elif os.path.isfile(path) and not name.endswith("-shm"):  # -shm is memory; sockets are nothing
                _write(target / name, Path(path).read_bytes(), os.lstat(path).st_mode)


def _apply(data: bytes, writes: list[tuple[int, bytes | None]]) -> bytes:
    after = bytearray(data)
    for at, more in writes:
        if more is None:
            after = after[:at] + bytes(max(0, at - len(after)))
            continue
        if len(after) < at:
            after += bytes(at - len(after))
        after[at : at + len(more)] = more
    return bytes(after)


def _write(path: Path, data: bytes, mode: int) -> None:
    handle = real_open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, stat.S_IMODE(mode) | 0o200)
    view = memoryview(data)
    while view:
        view = view[real_write(handle, view):]
    os.fchmod(handle, stat.S_IMODE(mode))
    real_close(handle)
