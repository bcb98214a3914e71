"""Inside the process under test: every call that changes a file of the log passes here, and some go wrong.

``Calls.install`` puts wrappers around the functions of ``os`` that change files, and ``vfs`` one around SQLite's own
file methods; both come to ``Calls.around``. Nothing else of the process is touched. It is a harness's view from within:
that no call slips by it is checked from outside, by strace (``syscalls``).
"""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.faults.disk import Disk
from tests.faults.plan import WRITES, Fault, kind_of_file

real = {
    name: getattr(os, name)
    for name in ("open", "write", "pwrite", "fsync", "fdatasync", "rename", "replace", "link", "unlink", "mkdir", "fchmod",
                 "ftruncate", "rmdir")
}


class Calls:
    """Counts the calls on files below *root*, and makes those of *faults* go wrong.

    Args:
        report: a file descriptor for one JSON line each time that something went wrong.
        after: where a power cut leaves what it leaves; with it every call is followed on a model of the disk.
    """

    def __init__(self, root: Path, faults: Sequence[Fault], report: int, after: Path | None = None) -> None:
        self.root = str(root)
        self.counts: Counter[str] = Counter()
        self._waiting = list(faults)
        self._next = ""
        self._next_error = "EIO"
        self._lasting: Fault | None = None
        self._report = report
        self._after = after
        self._lock = threading.RLock()
        self.disk = Disk(root) if after is not None else None

    def below(self, path: str) -> bool:
        return path.startswith(self.root + "/")

    # Whoever makes a call comes here

    def around(
        self, call: str, path: str, act: Callable[[], Any], refuse: Callable[[str], Any], *,
        half: Callable[[], Any] | None = None, flipped: Callable[[], Any] | None = None,
        learn: Callable[[Disk, bool], None] | None = None, before: Callable[[Disk], None] | None = None,
    ) -> Any:
        """Do *act*, or what the plan says instead.

        Args:
            refuse: gives the answer of the call that failed, for the name of an errno.
            half: does half of it and gives the call's answer for that. flipped: does it with a bit changed.
            learn: tells the model of the disk what was done; its argument says whether by *half*.
            before: the same before anything is done.
        """
        with self._lock:
            fault = self._meet(call, path)
            mode = fault.mode if fault else ""
            if mode in ("kill", "cut"):
                self._die(fault)
            if mode == "fail":
                return refuse(fault.error)
            if self.disk is not None and before is not None:
                before(self.disk)
            do = {"short": half, "torn": half, "flip": flipped}.get(mode) or act
            result = do()
            if self.disk is not None and learn is not None:
                learn(self.disk, do is half)
            return refuse(fault.error) if mode in ("done", "torn") else result

    def _meet(self, call: str, path: str) -> Fault | None:
        kind = kind_of_file(path[len(self.root) + 1 :])
        self.counts[f"{call} {kind}"] += 1
        self.counts["* *"] += 1
        if self._lasting is not None:
            return Fault(call, kind, 0, "fail", self._lasting.error)
        if self._next:
            found = Fault(call, kind, 0, _able(call, self._next), self._next_error)
            self._next = ""
            return self._tell(found)
        for fault in self._waiting:
            key = f"{fault.call} {fault.file}"
            if key in (f"{call} {kind}", "* *") and self.counts[key] == fault.occurrence:
                self._waiting.remove(fault)
                self._next, self._next_error = fault.also, fault.error
                if fault.lasting:
                    self._lasting = fault
                return self._tell(Fault(
                    call, kind, fault.occurrence, _able(call, fault.mode), fault.error, fault.also, fault.lasting,
                    fault.drop,
                ))
        return None

    def _tell(self, fault: Fault) -> Fault:
        real["write"](self._report, json.dumps({"fault": str(fault)}).encode() + b"\n")
        return fault

    def _die(self, fault: Fault) -> None:
        if fault.mode == "cut" and self.disk is not None and self._after is not None:
            self.disk.cut(self._after, fault.drop)
            real["write"](self._report, b'{"cut": true}\n')
        os.kill(os.getpid(), signal.SIGKILL)

    def tell_counts(self) -> None:
        with self._lock:
            real["write"](self._report, json.dumps({"counts": dict(self.counts)}).encode() + b"\n")

    # The functions of os

    def install(self) -> None:
        """Replace the functions of ``os`` that change files."""
        for name in real:
            setattr(os, name, getattr(self, f"_{name}"))

    def _path(self, path: Any, directory: int | None = None) -> str:
        text = os.fspath(path)
        text = os.fsdecode(text)
        if directory is not None and not os.path.isabs(text):
            text = os.path.join(os.readlink(f"/proc/self/fd/{directory}"), text)
        return os.path.abspath(text)

    def _of_handle(self, handle: int) -> str:
        try:
            return os.readlink(f"/proc/self/fd/{handle}")
        except OSError:
            return ""

    def _os(self, name: str, path: str, act: Callable[[], Any], **more: Any) -> Any:
        def refuse(error: str) -> Any:
            number = getattr(errno, error)
            raise OSError(number, f"{os.strerror(number)} (injected)", path)

        return self.around(name, path, act, refuse, **more)

    def _open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        full = self._path(path, dir_fd)
        if not self.below(full) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return real["open"](path, flags, mode, dir_fd=dir_fd)
        opened: list[int] = []

        def act() -> int:
            opened.append(real["open"](path, flags, mode, dir_fd=dir_fd))
            return opened[0]

        there = os.path.lexists(full)
        try:
            return self._os(
                "open", full, act, before=lambda disk: disk.keep(full) if there else None,
                learn=lambda disk, _half: None if there else disk.made(full),
            )
        except OSError:
            for handle in opened:
                os.close(handle)
            raise

    def _write(self, handle: int, data: Any) -> int:
        path = self._of_handle(handle)
        if not self.below(path):
            return real["write"](handle, data)
        at = os.lseek(handle, 0, os.SEEK_CUR)
        return self._bytes("write", path, at, bytes(data), lambda part: real["write"](handle, part))

    def _pwrite(self, handle: int, data: Any, at: int) -> int:
        path = self._of_handle(handle)
        if not self.below(path):
            return real["pwrite"](handle, data, at)
        return self._bytes("write", path, at, bytes(data), lambda part: real["pwrite"](handle, part, at))

    def _bytes(self, name: str, path: str, at: int, data: bytes, put: Callable[[bytes], int]) -> int:
        part = data[: max(1, len(data) // 2)]
        return self._os(
            name, path, lambda: put(data), half=lambda: put(part), flipped=lambda: put(flip(data)),
            learn=lambda disk, half: disk.wrote(path, at, part if half else data),
        )

    def _sync(self, name: str, handle: int) -> None:
        path = self._of_handle(handle)
        if not self.below(path) and path != self.root:
            return real[name](handle)
        return self._os(name, path, lambda: real[name](handle), learn=lambda disk, _half: disk.synced(path))

    def _fsync(self, handle: int) -> None:
        self._sync("fsync", handle)

    def _fdatasync(self, handle: int) -> None:
        self._sync("fdatasync", handle)

    def _ftruncate(self, handle: int, length: int) -> None:
        path = self._of_handle(handle)
        if not self.below(path):
            return real["ftruncate"](handle, length)
        return self._os(
            "ftruncate", path, lambda: real["ftruncate"](handle, length),
            learn=lambda disk, _half: disk.truncated(path, length),
        )

    def _fchmod(self, handle: int, mode: int) -> None:
        path = self._of_handle(handle)
        if not self.below(path):
            return real["fchmod"](handle, mode)
        return self._os("fchmod", path, lambda: real["fchmod"](handle, mode))

    def _rename(self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:
        old, new = self._path(source, src_dir_fd), self._path(target, dst_dir_fd)
        act = lambda: real["rename"](source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)  # noqa: E731
        if not self.below(new):
            return act()
        return self._os(
            "rename", new, act, before=lambda disk: disk.keep(new) if os.path.lexists(new) else None,
            learn=lambda disk, _half: disk.renamed(old, new),
        )

    _replace = _rename

    def _link(
        self, source: Any, target: Any, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None,
        follow_symlinks: bool = True,
    ) -> None:
        old, new = self._path(source, src_dir_fd), self._path(target, dst_dir_fd)
        act = lambda: real["link"](  # noqa: E731
            source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=follow_symlinks
        )
        if not self.below(new):
            return act()
        return self._os("link", new, act, learn=lambda disk, _half: disk.linked(old, new))

    def _unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        full = self._path(path, dir_fd)
        act = lambda: real["unlink"](path, dir_fd=dir_fd)  # noqa: E731
        if not self.below(full):
            return act()
        return self._os(
            "unlink", full, act, before=lambda disk: disk.keep(full) if os.path.lexists(full) else None,
            learn=lambda disk, _half: disk.removed(full),
        )

    def _mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        full = self._path(path, dir_fd)
        act = lambda: real["mkdir"](path, mode, dir_fd=dir_fd)  # noqa: E731
        if not self.below(full):
            return act()
        return self._os("mkdir", full, act, learn=lambda disk, _half: disk.made_directory(full))

    def _rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        full = self._path(path, dir_fd)
        act = lambda: real["rmdir"](path, dir_fd=dir_fd)  # noqa: E731
        if not self.below(full):
            return act()
        return self._os("rmdir", full, act, learn=lambda disk, _half: disk.removed(full))


def _able(call: str, mode: str) -> str:
    """What of *mode* the call can do: only bytes can be torn."""
    return mode if mode not in ("short", "torn", "flip") or call in WRITES else "fail"


def flip(data: bytes) -> bytes:
    """One bit in the middle of it, another one."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :] if data else data
