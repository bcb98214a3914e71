"""The process under test: forked from the harness, so that it costs no start, and then the command line's own code."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktlog.config import Settings
from ktlog.operator import custody, service
from ktlog.operator import signer as signer_module
from ktlog.wire.fetch import Fetcher
from tests.faults import vfs
from tests.faults.calls import Calls
from tests.faults.plan import Fault
from tests.faults.witness import Line

_harness = 0


@dataclass
class Child:
    """A running process. witness: where it asks the witness. report: what went wrong in it, lines of JSON."""

    pid: int
    handle: int
    witness: socket.socket
    report: int
    status: int | None = None

    def poll(self) -> int | None:
        """Its exit code, negative for a signal, or None while it lives."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = os.waitstatus_to_exitcode(status)
        return self.status

    def signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def close(self) -> None:
        self.signal(signal.SIGKILL)
        while self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        for handle in (self.handle, self.report):
            os.close(handle)
        self.witness.close()


def start(
    directory: Path, output: Path, faults: Sequence[Fault] = (), *, after: Path | None = None, count: bool = False,
    prepare: Callable[[], None] | None = None, watch: bool = True, signer: str = "inside",
) -> Child:
    """Fork the sequencer's process of the log in *directory*.

    Args:
        output: where its words go.
        after: follow every call on a model of the disk, and leave there what a power cut leaves.
        count: report every call at the end.
        prepare: sabotage: what to change in the process before it begins.
        watch: put the wrappers around the calls.
        signer: "process", a child of its own holds the keys, as in production, but forked too; "inside", this one does,
            so that one model of the disk sees every call.
    """
    global _harness
    _harness = os.getpid()
    ours, theirs = socket.socketpair()
    report, write_report = os.pipe()
    pid = os.fork()
    if pid:
        theirs.close()
        os.close(write_report)
        os.set_blocking(report, False)
        return Child(pid, os.pidfd_open(pid), ours, report)
    code = 99
    try:
        ours.close()
        os.close(report)
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(log, 1)
        os.dup2(log, 2)
        Fetcher.from_environment = classmethod(lambda _cls, *_more, **_options: Line(theirs))  # type: ignore[assignment]
        calls = Calls(directory, faults, write_report, after) if watch else None
        if prepare is not None:
            prepare()
        if calls is not None:
            calls.install()
            vfs.install(calls)
        _place_signer(signer)
        code = service.main(["--dir", str(directory)])
        if count and calls is not None:
            calls.tell_counts()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _place_signer(place: str) -> None:
    if place == "inside":
        service.open_custody = lambda settings, _on_end: custody.local_custody(settings, lambda: int(time.time()))
    else:
        custody.start_signer = _fork_signer


class _Forked:
    """As much of a ``Popen`` as the sequencer's process needs of its signer."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._lock = threading.Lock()
        self._ended = False

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            with self._lock:
                self._ended = self._ended or os.waitpid(self._pid, os.WNOHANG)[0] != 0
                if self._ended:
                    return 0
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("signer", timeout or 0)
            time.sleep(0.002)


def _fork_signer(settings: Settings, connections: int = 2) -> tuple[_Forked, list[socket.socket]]:
    pairs = [socket.socketpair() for _ in range(connections)]
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            for ours, _ in pairs:
                ours.close()
            signer_module.hide_memory = lambda: None  # it hides /proc/self from the wrappers, too
            claim, harness = signer_module.claim_keys, str(_harness).encode()
            signer_module.LOCK_SECONDS = 3.0
            # Copies of one log run beside each other here, each of them alone in a world of its own.
            signer_module.claim_keys = lambda keys: claim(key + harness for key in keys)
            ends = [text for _, theirs in pairs for text in ("--fd", str(theirs.detach()))]
            code = signer_module.main(["--dir", str(settings.directory), *ends])
        finally:
            os._exit(code)
    for _, theirs in pairs:
        theirs.close()
    return _Forked(pid), [ours for ours, _ in pairs]
