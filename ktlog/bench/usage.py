"""What processes cost: CPU time, bytes written, syncs, memory. Read from ``/proc``; syncs are counted by strace.

A log is a tree of processes of several kinds, which their command lines tell.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

KINDS: Mapping[str, str] = {
    "ktlog.web.service": "web", "ktlog.operator.service": "sequencer", "ktlog.operator.signer": "signer",
    "ktlog.operator.replies": "replies", "ktlog.operator.replica": "replicas", "serve": "supervisor",
    "ktlog.bench.engine": "engine",
}
"""Words of a command line, and what such a process is called. gunicorn names its workers after the web service."""
ATTACH_SECONDS = 20.0
_ESTABLISHED = "01"
_SYNCS = "fsync,fdatasync,sync_file_range,msync,syncfs"
_SYNC = re.compile(rf"\b(?:{_SYNCS.replace(',', '|')})\(")


@dataclass(frozen=True)
class Usage:
    """What some processes used so far. cpu: seconds by kind. written: bytes that they sent towards a disk."""

    cpu: Mapping[str, float] = field(default_factory=dict)
    written: int = 0

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(
            {kind: used - earlier.cpu.get(kind, 0.0) for kind, used in self.cpu.items()}, self.written - earlier.written
        )

    @property
    def seconds(self) -> float:
        return sum(self.cpu.values())


class Server:
    """A process and all that it started."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def pids(self) -> list[int]:
        parents = {}
        for path in Path("/proc").iterdir():
            if path.name.isdigit():
                with contextlib.suppress(OSError, IndexError):
                    parents[int(path.name)] = int(stat_of(int(path.name))[1])
        found = [self.pid]
        for pid in found:
            found += [child for child, parent in parents.items() if parent == pid]
        return found

    def kinds(self) -> dict[int, str]:
        """Each process and its kind; one that nothing tells has its parent's."""
        found: dict[int, str] = {}
        for pid in self.pids():
            words = _read(f"/proc/{pid}/cmdline").split("\0")
            named = next((kind for word, kind in KINDS.items() if word in words), None)
            if named is None:
                with contextlib.suppress(OSError, IndexError):
                    named = found.get(int(stat_of(pid)[1]))
            found[pid] = named or ("web" if any("gunicorn" in word for word in words) else "other")
        return found

    def usage(self) -> Usage:
        """Of all of them together, so far."""
        cpu: Counter[str] = Counter()
        written = 0
        for pid, kind in self.kinds().items():
            with contextlib.suppress(OSError, IndexError):
                cpu[kind] += cpu_seconds(pid)
                written += written_bytes(pid)
        return Usage(dict(cpu), written)

    def cpu_seconds(self) -> float:
        return self.usage().seconds

    def peaks(self) -> list[int]:
        """The most bytes that each of them held in memory, its page cache aside."""
        return [peak(pid) for pid in self.pids()]

    def resident(self) -> int:
        """Bytes that the largest of them holds now."""
        return max(memory(pid, "VmRSS") for pid in self.pids())


def stat_of(pid: int) -> list[str]:
    """The fields of ``/proc/PID/stat`` from the state on: the name before them may hold anything."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and of its children that ended; raises OSError when it is gone."""
    return sum(map(int, stat_of(pid)[11:15])) / os.sysconf("SC_CLK_TCK")


def written_bytes(pid: int | str = "self") -> int:
    """Bytes that a process caused to be written to storage: pages that it dirtied, so at least 4,096 each."""
    for line in _read(f"/proc/{pid}/io").splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    return 0


def peak(pid: int | str = "self") -> int:
    """The greatest resident size of a process, in bytes."""
    return memory(pid, "VmHWM")


def memory(pid: int | str, what: str) -> int:
    for line in _read(f"/proc/{pid}/status").splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    return 0  # a process that has ended


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


# Syncs


class SyncCount:
    """How many syncs were counted; None where that is not possible on this machine."""

    value: int | None = None


@contextlib.contextmanager
def counting_syncs(pids: Iterable[int]) -> Iterator[SyncCount]:
    """Count the syncs of *pids* and of what they start while this lasts, with strace, which slows them down."""
    count = SyncCount()
    strace = shutil.which("strace")
    if strace is None:
        yield count
        return
    with tempfile.TemporaryDirectory() as scratch:
        output = Path(scratch) / "syncs"
        words = [strace, "-f", "-e", f"trace={_SYNCS}", "-o", str(output)]
        for pid in pids:
            words += ["-p", str(pid)]
        log = Path(scratch) / "log"
        with log.open("wb") as errors, subprocess.Popen(words, stderr=errors) as tracer:
            attached = _attached(tracer, log, words.count("-p"))
            try:
                yield count
            finally:
                tracer.send_signal(signal.SIGINT)
                try:
                    tracer.wait(ATTACH_SECONDS)
                except subprocess.TimeoutExpired:  # it can wait for ever for a thread that ended unnoticed
                    tracer.kill()
        if attached:
            count.value = len(_SYNC.findall(output.read_text(encoding="utf-8", errors="replace")))


def _attached(tracer: subprocess.Popen[bytes], log: Path, count: int) -> bool:
    """Whether strace got hold of all *count* processes in time; it says so of each."""
    late = time.monotonic() + ATTACH_SECONDS
    while time.monotonic() < late and tracer.poll() is None:
        if len(re.findall(rb"attached", log.read_bytes())) >= count:
            return True
        time.sleep(0.02)
    return False


# Connections


def holders(port: int, pids: Iterable[int]) -> dict[int, int]:
    """Which of *pids* holds the server's end of each connection to *port*: by the client's port."""
    inodes = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for path in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    inodes[os.readlink(path)] = pid
    found = {}
    for line in _read("/proc/net/tcp").splitlines()[1:]:
        fields = line.split()
        local, remote, state, inode = fields[1], fields[2], fields[3], fields[9]
        if state == _ESTABLISHED and int(local.rpartition(":")[2], 16) == port and f"socket:[{inode}]" in inodes:
            found[int(remote.rpartition(":")[2], 16)] = inodes[f"socket:[{inode}]"]
    return found
