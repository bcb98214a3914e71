"""Every system call of an append, made to fail or to kill by strace: what the process really asks of the kernel.

The log runs; strace is attached to all its threads; messages are sent until they are published and mapped; and the
*n*-th call of some name in a thread gives EIO, or dies by SIGKILL before it is done. Which calls there are is
counted first, by the same means: ``DISK`` and ``OTHER`` together must be all of them, so that a new one is not missed.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import time
from collections import Counter, defaultdict
from pathlib import Path

from tests.faults.kinds import Outcome, World, closing, play
from tests.faults.site import Run
from tests.machine import program

DISK = frozenset({
    "openat", "open", "close", "read", "write", "pread64", "pwrite64", "writev", "pwritev", "fsync", "fdatasync", "sync_file_range",
    "ftruncate", "truncate", "fallocate", "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat",
    "mkdir", "mkdirat", "rmdir", "fchmod", "chmod", "fchmodat", "fchown", "lseek", "fcntl", "flock", "stat", "fstat",
    "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "readlink", "readlinkat", "getdents64",
    "symlink", "symlinkat", "copy_file_range", "sendfile", "statfs", "fstatfs", "getcwd", "dup", "dup2", "ioctl", "utimensat",
})
"""Calls about files: each of them is made to fail, and to kill."""

OTHER = frozenset({
    "futex", "mmap", "munmap", "mprotect", "madvise", "mremap", "brk", "clone", "clone3", "exit", "set_robust_list", "rseq",
    "rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "gettid", "getpid", "getppid", "geteuid", "getuid",
    "clock_gettime", "clock_nanosleep", "nanosleep", "restart_syscall", "sched_yield", "sched_getaffinity", "getrandom",
    "poll", "ppoll", "select", "pselect6", "epoll_wait", "accept", "accept4", "sendto", "recvfrom", "sendmsg",
    "recvmsg", "socket", "connect", "shutdown", "getsockopt", "setsockopt", "getpeername", "getsockname", "tgkill",
    "prctl", "wait4", "waitid", "pipe2", "socketpair", "exit_group", "prlimit64", "times", "getrusage", "sysinfo",
    "uname", "bind", "listen", "kill",
})
"""Memory, threads, time and sockets: their failures are not the disk's."""

_LINE = re.compile(r"^(\d+)\s+(?:<\.\.\. )?([a-z_0-9]+)(?:\(| resumed)")


STRACE_SECONDS = 10.0


class Strace:
    """strace on a running process and all its threads, until closed."""

    def __init__(self, run: Run, pid: int, *options: str) -> None:
        self.trace = run.directory / "strace"
        self.words = run.directory / "strace.words"
        with open(self.words, "wb") as words:
            self.process = subprocess.Popen(
                [program("strace") or "strace", "-f", "-o", str(self.trace), *options, "-p", str(pid)],
                stdin=subprocess.DEVNULL, stdout=words, stderr=words,
            )

    def attached(self, threads: int) -> bool:
        said = self.words.read_text()
        return self.process.poll() is not None or said.count("attached") > 0 and (
            "with" in said or said.count("attached") >= threads
        )

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(STRACE_SECONDS)
        except subprocess.TimeoutExpired:  # it may wait for ever for a dead thread that the kernel tells nobody of
            self.process.kill()
            self.process.wait()

    def calls(self) -> Counter[str]:
        """By name, the greatest number of any one thread: strace counts each thread's apart."""
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        for line in self.trace.read_text(errors="replace").splitlines():
            found = _LINE.match(line)
            if found and "resumed" not in line.split("(")[0]:
                counts[found[1]][found[2]] += 1
        most: Counter[str] = Counter()
        for one in counts.values():
            most |= one
        return most

    def injected(self) -> int:
        return self.trace.read_text(errors="replace").count("(INJECTED)")


def under_strace(run: Run, world: World, options: tuple[str, ...], rounds: int = 2) -> Strace:
    """Run the log, attach strace, append, and detach; the process is left as it is."""
    child = run.start(watch=False, prepare=world.prepare)
    connection = run.connect(child)
    if connection is not None:
        connection.close()
    run.settle(child, run.size)
    run.pump(child, lambda: True)
    threads = len(os.listdir(f"/proc/{child.pid}/task"))
    strace = Strace(run, child.pid, *options)
    deadline = time.monotonic() + 20
    run.pump(child, lambda: strace.attached(threads) or time.monotonic() > deadline)
    try:
        for _ in range(rounds):
            if child.poll() is None:
                run.send(child, next(run.bank))
                if not run.settle(child, run.size):
                    break
    finally:
        strace.close()
    run.stop(child)
    return strace


def count_calls(world: World, base: str, directory: Path) -> Counter[str]:
    """The system calls of two appends, published and mapped."""
    run = Run(world.bases[base], directory)
    try:
        return under_strace(run, world, ("-e", "trace=all")).calls()
    finally:
        run.close()


_counts: dict[str, Counter[str]] = {}


def syscall(world: World, base: str, directory: Path, draw: random.Random) -> Outcome:
    if base not in _counts:
        _counts[base] = count_calls(world, base, directory.with_name(directory.name + "-count"))
    counts = {name: count for name, count in _counts[base].items() if name in DISK}
    name = draw.choice(sorted(counts))
    what = draw.choice(("error=EIO", "error=EIO", "signal=KILL", "error=ENOSPC"))
    return inject(world, base, directory, name, what, draw.randrange(counts[name]) + 1)


def every_call(world: World, base: str, directory: Path) -> list[tuple[str, str, int]]:
    """Each call about a file, failed and killed. Raises AssertionError for one that no list has."""
    counts = count_calls(world, base, directory)
    unknown = counts.keys() - DISK - OTHER
    if unknown:
        raise AssertionError(f"system calls that nobody has thought of: {sorted(unknown)}")
    return [
        (name, what, number) for name, count in sorted(counts.items()) if name in DISK
        for number in range(1, count + 1) for what in ("error=EIO", "signal=KILL")
    ]


def one_call(
    world: World, base: str, directory: Path, _draw: random.Random, case: tuple[str, str, int]
) -> Outcome:
    return inject(world, base, directory, *case)


def inject(world: World, base: str, directory: Path, name: str, what: str, number: int) -> Outcome:
    """The *number*-th call *name* of a thread goes wrong: *what* is strace's word for how."""
    def act(run: Run) -> Outcome:
        strace = under_strace(run, world, ("-e", f"trace={name}", "-e", f"inject={name}:{what}:when={number}"))
        done = strace.injected() or signal.SIGKILL * -1 in run.exits
        return closing(run, world, Outcome("syscall", f"{name} #{number} {what}", "recovered" if done else "missed"))

    return play(world, world.bases[base], directory, act)
