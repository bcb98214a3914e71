"""Judges whole bundles of entries without their plaintext: form, leaf signatures, leaf hashes, the tile they make up.

A bundle (256 entries) is one job, for a thread or for a worker process. What comes back is small: the hash of the
bundle's subtree, and what was found; so the parent hashes one node where a worker hashed 256 leaves. A worker reads a
local copy of the log by itself; what comes over the network the parent reads, and hands on.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from auditor.fetch import LocalCopy, LogReader
from auditor.fold import hash_tile
from auditor.report import Finding, finding_from
from ktlog.errors import EncodingError, KtlogError
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.entry import LogEntry, parse_entry
from ktlog.tlog.tiles import TILE_WIDTH, tile_path
from ktlog.tlog.tree import hash_leaf

FEWEST_FOR_PROCESSES = 24
"""Bundles: for fewer, starting processes takes longer than they save."""

_RAW_LENGTHS = {dialect.entry_bytes: dialect.name for dialect in DIALECTS.values() if dialect.entry_form == "raw"}

Run = tuple[int, int, str]
"""Leaf indexes [start, end) that are entries of one dialect, and its name."""


@dataclass(frozen=True)
class Job:
    """One bundle to judge.

    Attributes:
        number: of the bundle. skip: its first entries that were judged before.
        entries: None where the worker is to read them.
        leaves: whether all leaf hashes are to come back.
    """

    number: int
    width: int
    skip: int = 0
    entries: Sequence[bytes] | None = None
    leaves: bool = False

    @property
    def first(self) -> int:
        return self.number * TILE_WIDTH


@dataclass(frozen=True)
class Judged:
    """What became of a job.

    Attributes:
        unread: the worker could not read the entries: the parent has to.
        tile_hash: of a whole tile. leaf_hashes: of every entry, those skipped too, where they were asked for or the
            tile is not whole.
        tile_checked: the tile that the log serves was compared. What was found is among the findings.
        signatures: leaf signatures that hold. read_bytes: from the local copy, by the worker.
    """

    job: Job
    unread: bool = False
    tile_hash: bytes = b""
    leaf_hashes: bytes = b""
    tile_checked: bool = False
    signatures: int = 0
    read_bytes: int = 0
    runs: tuple[Run, ...] = ()
    findings: tuple[Finding, ...] = field(default=())


class Judge:
    """Judges bundles. One for each process; several threads may use it.

    Args:
        leaf_keys: raw keys by hash; None when no leaf signature is to be checked.
        reader: of a local copy of the log's files, where there is one.
    """

    def __init__(self, leaf_keys: Mapping[bytes, bytes] | None, reader: LogReader | None = None) -> None:
        self._keys = None if leaf_keys is None else {
            hashed: MLDSA44PublicKey.from_public_bytes(raw) for hashed, raw in leaf_keys.items()
        }
        self._reader = reader

    def __call__(self, job: Job) -> Judged:
        entries, read = job.entries, 0
        if entries is None:
            try:
                if self._reader is None:
                    return Judged(job, unread=True)
                entries = self._reader.entries(job.number, job.width)
                read = sum(map(len, entries))
            except KtlogError:
                return Judged(job, unread=True)
        hashes = [hash_leaf(entry) for entry in entries]
        findings: list[Finding] = []
        runs, signatures = self._entries(job, entries, findings)
        whole = job.width == TILE_WIDTH
        # A tile that cannot be read here is compared by the parent, which asks the log.
        checked = whole and not job.leaves and self._compare(job, b"".join(hashes), findings)
        back = b"".join(hashes) if job.leaves or not checked else b""
        return Judged(
            Job(job.number, job.width, job.skip), False, hash_tile(hashes) if whole else b"", back, checked, signatures,
            read + 32 * len(hashes) * checked, runs, tuple(findings),
        )

    def _entries(self, job: Job, entries: Sequence[bytes], findings: list[Finding]) -> tuple[tuple[Run, ...], int]:
        runs: list[Run] = []
        verified = 0
        lengths = set(map(len, entries))
        if self._keys is None and len(lengths) == 1 and lengths <= _RAW_LENGTHS.keys():
            # A raw entry is three pieces of fixed length: that is all its form.
            return ((job.first + job.skip, job.first + len(entries), _RAW_LENGTHS[lengths.pop()]),), 0
        for offset in range(job.skip, len(entries)):
            leaf_index = job.first + offset
            try:
                dialect, entry = parse_entry(entries[offset])
            except EncodingError as error:
                findings.append(finding_from(error, "BadEntry", leaf_index))
                continue
            if runs and runs[-1][1:] == (leaf_index, dialect.name):
                runs[-1] = (runs[-1][0], leaf_index + 1, dialect.name)
            else:
                runs.append((leaf_index, leaf_index + 1, dialect.name))
            if self._keys is not None:
                fault = _signature_fault(entry, self._keys)
                if fault:
                    findings.append(Finding("BadLeafSignature", "Invalid", fault, leaf_index))
                else:
                    verified += 1
        return tuple(runs), verified

    def _compare(self, job: Job, expected: bytes, findings: list[Finding]) -> bool:
        if self._reader is None:
            return False
        try:
            served = self._reader.tile(0, job.number, job.width)
        except KtlogError:
            return False
        if served != expected:
            findings.append(tile_mismatch(0, job.number, job.width))
        return True


def tile_mismatch(level: int, number: int, width: int) -> Finding:
    path = tile_path(level, number, width)
    return Finding("TileMismatch", "Invalid", f"{path} is not the tile that the entries make up")


def _signature_fault(entry: LogEntry, keys: Mapping[bytes, MLDSA44PublicKey]) -> str:
    key = keys.get(entry.key_hash)
    if key is None:
        return "the entry names a leaf key that the log does not publish"
    try:
        key.verify(entry.signature, entry.message_hash)
    except InvalidSignature:
        return "the leaf key that the entry names did not sign it"
    return ""


# Worker processes


class JudgePool:
    """Judges jobs in *workers* processes, or in the threads of *threads* when there are few.

    Args:
        bundles: how many are to come. copy: the directory of a local copy, and the log's address.
    """

    def __init__(
        self, threads: Executor, workers: int, bundles: int, leaf_keys: Mapping[bytes, bytes] | None,
        copy: tuple[Path, str] | None,
    ) -> None:
        self._processes: ProcessPoolExecutor | None = None
        if bundles >= FEWEST_FOR_PROCESSES and workers > 1:
            # Not forked: this process has threads, whose locks a copy of it would find held for ever.
            self._processes = ProcessPoolExecutor(
                workers, mp_context=get_context("spawn"), initializer=_begin_worker, initargs=(leaf_keys, copy)
            )
        else:
            self._judge = Judge(leaf_keys, None if copy is None else local_reader(*copy))
        self._threads = threads

    @property
    def in_processes(self) -> bool:
        return self._processes is not None

    def submit(self, job: Job) -> Future[Judged]:
        if self._processes is not None:
            return self._processes.submit(_work, job)
        return self._threads.submit(self._judge, job)

    def close(self) -> None:
        """What nobody waits for any more is not begun."""
        if self._processes is not None:
            self._processes.shutdown(wait=True, cancel_futures=True)


def local_reader(directory: Path, url: str) -> LogReader:
    return LogReader(LocalCopy(directory, url), url)


_judge: Judge | None = None


def _begin_worker(leaf_keys: Mapping[bytes, bytes] | None, copy: tuple[Path, str] | None) -> None:
    global _judge  # noqa: PLW0603 - what a process is given at its start, and by no other way
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent says when to stop
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _judge = Judge(leaf_keys, None if copy is None else local_reader(*copy))


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: Job) -> Judged:
    if _judge is None:
        raise AssertionError("a worker was not begun")
    return _judge(job)
