"""``ktlog bench audit``: how fast an auditor reads and checks a log.

The auditor is the real program, started as its users start it, on a local copy of the log's files. What it is held
against is what nobody can do without, on all cores in the same run: verifying the leaf signatures, and Argon2id.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PublicKey

from ktlog.bench.auditlog import VKEY, signature_parts, write_messages, write_raw
from ktlog.bench.calibrate import argon2_rate
from ktlog.bench.names import ORIGIN
from ktlog.bench.row import Row
from ktlog.bench.usage import Server, peak
from ktlog.errors import StoreError

NEW_ENTRIES = 1_000
RATIO_GOAL, PLAIN_GOAL, MEMORY_GOAL, SEMANTIC_GOAL, BYTES_GOAL = 0.8, 150_000, 500, 0.9, 1.5
_LOOK_SECONDS = 0.4
"""Between two looks at the processes' memory: each takes some milliseconds of a core."""


@dataclass(frozen=True)
class Options:
    """entries: of the large log. messages: of that with plaintext. calibration: seconds of each, before and after."""

    entries: int = 1_000_000
    messages: int = 2_500
    calibration: float = 10.0


@dataclass(frozen=True)
class Measured:
    """ratios: of the structural and the semantic tier to their limits."""

    rows: list[Row]
    structural: float
    semantic: float


def measure_audit(scratch: Path, options: Options) -> Measured:
    """Make both logs in *scratch*, and audit them."""
    cores = os.cpu_count() or 1
    entries = options.entries
    raw = scratch / "raw"
    rows: list[Row] = []

    write_raw(raw, entries - NEW_ENTRIES)
    plain, _, plain_cpu = _audit(raw, scratch / "plain", "--tier", "structural", "--leaf-signatures", "none")
    write_raw(raw, entries)
    new, _, _ = _audit(raw, scratch / "plain", "--tier", "structural", "--leaf-signatures", "none")
    if new["entries_audited"] != NEW_ENTRIES:
        raise StoreError("NotMeasured", f"catching up read {new['entries_audited']} entries, not {NEW_ENTRIES}")

    before = mldsa_rate(cores, options.calibration)
    signed, memory, cpu = _audit(raw, scratch / "signed", "--tier", "structural")
    limit = (before + mldsa_rate(cores, options.calibration)) / 2
    rate = entries / signed["seconds"]
    about = f"{entries:,} entries, structural"
    rows += [
        Row(f"{about}, leaf signatures verified", rate, "/s", RATIO_GOAL, None, limit, rate / limit, at_least=True),
        Row(f"{about}: memory of all processes", memory / 1e6, "MB", MEMORY_GOAL),
        Row(f"{about}: CPU for 1,000", cpu / entries * 1e6, "ms", None),
        Row(f"{about}, no leaf signatures: CPU for 1,000", plain_cpu / plain["entries_audited"] * 1e6, "ms", None),
        Row(f"{about}, no leaf signatures", plain["entries_audited"] / plain["seconds"], "/s", PLAIN_GOAL,
            at_least=True),
    ]
    least = (raw / "tile/entries/000").stat().st_size * NEW_ENTRIES / 256
    rows.append(Row(
        f"then {NEW_ENTRIES:,} more: bytes read", new["bytes_read"] / 1e6, "MB", BYTES_GOAL, None, least / 1e6,
        new["bytes_read"] / least,
    ))
    rows.append(Row(f"then {NEW_ENTRIES:,} more: seconds", new["seconds"], "s", None))

    said = scratch / "messages"
    commitments = write_messages(said, options.messages)
    before = argon2_rate(cores, 1, options.calibration)
    whole, memory, cpu = _audit(said, scratch / "semantic", "--answers", "none")
    argon2 = (before + argon2_rate(cores, 1, options.calibration)) / 2
    if not whole["complete"] or whole["commitments"]["checked"] != commitments:
        raise StoreError("NotMeasured", "the audit of both tiers was not complete")
    opened = commitments / whole["seconds"]
    rows += [
        Row(f"{options.messages:,} AddKeys, both tiers: commitments", opened, "/s", SEMANTIC_GOAL, None, argon2,
            opened / argon2, at_least=True),
        Row(f"{options.messages:,} AddKeys, both tiers: CPU for a commitment", cpu / commitments * 1e3, "ms", None),
        Row(f"{options.messages:,} AddKeys, both tiers: share of all cores' time", cpu / whole["seconds"] / cores, "",
            None),
        Row(f"{options.messages:,} AddKeys, both tiers: memory of all processes", memory / 1e6, "MB", MEMORY_GOAL),
    ]
    return Measured(rows, rate / limit, opened / argon2)


def _audit(files: Path, directory: Path, *arguments: str) -> tuple[dict[str, Any], int, float]:
    """The auditor's report, the most memory that it and its workers held together in bytes, and their CPU seconds."""
    before = _children()
    process = subprocess.Popen(
        [sys.executable, "-m", "auditor", "audit", ORIGIN, "--vkey", VKEY, "--tiles", str(files), "--dir",
         str(directory), "--json", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    server, peaks = Server(process.pid), dict[int, int]()
    try:
        while process.poll() is None:
            peaks |= {pid: found for pid in server.pids() if (found := peak(pid))}
            time.sleep(_LOOK_SECONDS)
        # It says one line, which no pipe is too narrow for.
        out, err = process.communicate()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    report = json.loads(out) if process.returncode == 0 else None
    if report is None or not report["ok"]:
        raise StoreError("NotMeasured", f"the audit failed: {(err + out)[-2000:]}")
    return report, sum(peaks.values()), _children() - before


def _children() -> float:
    """CPU seconds of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


# Leaf signatures alone


def mldsa_rate(processes: int, seconds: float) -> float:
    """ML-DSA-44 verifications a second of *processes* at once: keys parsed before, each signature another."""
    public, parts = signature_parts()
    context = get_context("spawn")
    barrier = context.Barrier(processes)
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_join, initargs=(barrier,)) as pool:
        return sum(pool.map(_verify, [public] * processes, [parts] * processes, [seconds] * processes))


_barrier: Any = None


def _join(barrier: Any) -> None:
    global _barrier  # noqa: PLW0603 - what a process is given at its start, and by no other way
    _barrier = barrier


def _verify(public: bytes, parts: Sequence[tuple[bytes, bytes]], seconds: float) -> float:
    key = MLDSA44PublicKey.from_public_bytes(public)
    _barrier.wait(60.0)
    begin, count = time.perf_counter(), 0
    while time.perf_counter() - begin < seconds:
        for signature, signed in parts:
            key.verify(signature, signed)
        count += len(parts)
    return count / (time.perf_counter() - begin)

