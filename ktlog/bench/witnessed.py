"""``ktlog bench witness``: cosigning for many logs at once.

The witness is the real program, started as its users start it. What it is held against is what nobody can do without:
the signatures (the log's verified, both of the witness made), and an answer of the same server that does nothing; both
in CPU time, measured in the same run.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from ktlog.bench.row import Row, percentile
from ktlog.bench.usage import Server
from ktlog.bench.witnessload import Plan, format_plan
from ktlog.errors import StoreError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import (
    COSIGNATURE_ED25519,
    COSIGNATURE_MLDSA44,
    ED25519,
    Signer,
    sign_checkpoint,
    signer_from_seed,
    verify_line,
)
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_consistency, root_hash

SECONDS = 120
SIGNED = 300
RATIO_GOAL, TAIL_GOAL = 0.80, 10.0
CROWDED = "a cosigned checkpoint beside what cannot be avoided"


@dataclass(frozen=True)
class Options:
    """followed: logs on the list. logs: of them, those that send at once. rounds: times each does. rate: the list's."""

    followed: int = 40_000
    logs: int = 1_000
    rounds: int = 4
    rate: float = 100.0
    seconds: float = 10.0


class Logs:
    """Logs that have the same entries, and keys of their own."""

    def __init__(self, count: int, sizes: int) -> None:
        self.signers = [
            signer_from_seed(f"log{n}.bench.invalid", ED25519, n.to_bytes(32, "big")) for n in range(count)
        ]
        read = leaf_reader([hash_leaf(b"%d" % n) for n in range(sizes)])
        self._roots = [root_hash(size, read) for size in range(sizes + 1)]
        self._proofs = [prove_consistency(size - 1, size, read) if size > 1 else [] for size in range(sizes + 1)]

    def list(self) -> str:
        """All of them, as the witness network publishes lists; with a limit that nobody reaches."""
        lines = (f"\nvkey {signer.vkey}\nqpd {2**31 - 1}\ncontact nobody\n" for signer in self.signers)
        return "logs/v0\n" + "".join(lines)

    def submission(self, log: int, size: int) -> str:
        """From the size before to *size*."""
        signer = self.signers[log]
        note = sign_checkpoint(Checkpoint(signer.vkey.name, size, self._roots[size]), [signer], 0)
        proof = "".join(f"{encode_base64(node)}\n" for node in self._proofs[size])
        return f"old {size - 1}\n{proof}\n{note.decode()}"


class Witness:
    """The program on a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.port = 0
        self.started = 0.0

    def run(self, command: str, *arguments: str) -> None:
        """One of its commands.

        Raises:
            StoreError: "NoWitness", with what it said.
        """
        done = subprocess.run(
            [sys.executable, "-m", "witness", command, "--dir", str(self._directory), *arguments],
            capture_output=True, text=True, timeout=SECONDS, check=False,
        )
        if done.returncode:
            raise StoreError("NoWitness", f"ktlog-witness {command}: {done.stderr.strip()}")

    @contextmanager
    def serving(self) -> Iterator[Server]:
        """Runs it until the block ends; ``started`` is how long it took to listen."""
        began = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "-m", "witness", "serve", "--dir", str(self._directory), "--listen", "127.0.0.1:0"],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )
        try:
            ready, _, _ = select.select([process.stdout], [], [], SECONDS)
            line = process.stdout.readline() if ready and process.stdout else ""
            if " listens on http://" not in line:
                raise StoreError("NoWitness", "ktlog-witness serve does not start")
            self.started = time.perf_counter() - began
            self.port = int(line.strip().rpartition(":")[2])
            yield Server(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(SECONDS)
            if process.stdout is not None:
                process.stdout.close()


@dataclass(frozen=True)
class Sent:
    """What came of a plan. cpu: the witness's, in seconds for each request of the plan."""

    count: int
    took: float
    cpu: float
    seconds: list[float]
    refused: int
    hostile: int


def send(server: Server, plan: Plan) -> Sent:
    """Have another process carry out *plan*."""
    before = server.cpu_seconds()
    done = subprocess.run(
        [sys.executable, "-m", "ktlog.bench.witnessload"], input=format_plan(plan), capture_output=True, check=True,
    )
    used = server.cpu_seconds() - before
    found = json.loads(done.stdout)
    count = sum(found["statuses"].values())
    return Sent(
        count, found["took"], used / count, found["seconds"], count - found["statuses"].get("200", 0),
        sum(found["hostile"].values()),
    )


def signature_seconds() -> float:
    """CPU time of what one submission's signatures cost: one Ed25519 verified, one made, and one ML-DSA-44 made."""
    log = signer_from_seed("log.bench.invalid", ED25519, bytes(32))
    keys = [signer_from_seed("w.bench.invalid", kind, bytes(32)) for kind in (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)]
    text = b"log.bench.invalid\n1\n" + encode_base64(bytes(32)).encode() + b"\n"
    line = log.sign(text, 0)
    return _timed(log, text, line, keys)


def signature_seconds_crowded() -> float:
    """The same while every core does so, as in a witness under load: cores that share caches and clock take longer."""
    cores = len(os.sched_getaffinity(0))
    with ProcessPoolExecutor(cores, mp_context=get_context("spawn")) as pool:
        list(pool.map(_warm_up, range(cores)))
        found = list(pool.map(_crowded, range(cores)))
    return sum(found) / cores


def _warm_up(_: int) -> None:
    signature_seconds()


def _crowded(_: int) -> float:
    return signature_seconds()


def _timed(log: Signer, text: bytes, line: object, keys: Sequence[Signer]) -> float:
    message = text * 2  # as long as what is signed
    began = time.process_time()
    for _ in range(SIGNED):
        verify_line(log.vkey, text, line)  # type: ignore[arg-type]
        for key in keys:
            key.private_key.sign(message)
    return (time.process_time() - began) / SIGNED


def measure_witness(scratch: Path, options: Options) -> tuple[float, list[Row]]:
    """The ratio, and all rows. *scratch*: an empty directory."""
    logs = Logs(options.followed, 2 * options.rounds + 2)
    witness = Witness(scratch / "witness")
    witness.run("init", "--name", "w.bench.invalid")
    (scratch / "list").write_text(logs.list())
    began = time.perf_counter()
    witness.run("pull-logs", str(scratch / "list"))
    rows = [Row(f"{options.followed:,} logs pulled from a list", time.perf_counter() - began, "s", None)]
    active = range(options.logs)

    def rounds(first: int, last: int) -> list[list[str]]:
        return [[logs.submission(log, size) for size in range(first, last)] for log in active]

    with witness.serving() as server:
        send(server, Plan(witness.port, rounds(1, 2)))  # the first of each log, and everything warm
        turned, after = 2 + options.rounds, 2 + 2 * options.rounds
        signatures, empty = [signature_seconds()], [_empty(server, witness.port, options)]
        sent = send(server, Plan(witness.port, rounds(2, turned)))
        signatures.append(signature_seconds())
        crowded = signature_seconds_crowded()
        empty.append(_empty(server, witness.port, options))
        beside = send(server, Plan(witness.port, rounds(turned, after), hostile=True))
        least = (sum(signatures) + sum(empty)) / 2
        ratio = least / sent.cpu
        rows += _rows(options, sent, beside, ratio, least, sum(empty) / 2)
        crowded += sum(empty) / 2
        rows.append(Row(
            f"{CROWDED}, the signatures timed on every core at once", sent.cpu * 1e3, "ms CPU", None, None,
            crowded * 1e3, crowded / sent.cpu,
        ))
    return ratio, rows + _list_rows(witness, logs, options)


def _empty(server: Server, port: int, options: Options) -> float:
    return send(server, Plan(port, empty=2 * options.logs, at_once=options.logs)).cpu


def _rows(options: Options, sent: Sent, beside: Sent, ratio: float, least: float, empty: float) -> list[Row]:
    middle, tail = percentile(sent.seconds, 0.5), percentile(sent.seconds, 0.99)
    hurt = percentile(beside.seconds, 0.99)
    work = f"cosigned for {options.logs:,} logs at once"
    return [
        Row(work, sent.count / sent.took, "/s", RATIO_GOAL, sent.cpu * 1e3, least * 1e3, ratio, at_least=True),
        Row(f"{work}: an answer that does nothing", empty * 1e3, "ms CPU", None),
        Row(f"{work}: not answered 200", sent.refused, "", 0),
        Row(f"{work}: median", middle * 1e3, "ms", None),
        Row(f"{work}: 99th percentile", tail * 1e3, "ms", TAIL_GOAL, None, middle * 1e3, tail / middle),
        Row(f"{work}, beside {beside.hostile} hostile requests: 99th percentile", hurt * 1e3, "ms", None, None,
            middle * 1e3, hurt / middle),
        Row(f"{work}, beside hostile requests: not answered 200", beside.refused, "", 0),
    ]


def _list_rows(witness: Witness, logs: Logs, options: Options) -> list[Row]:
    """The whole list at its rate, each time another log, after a new start."""
    count = min(int(options.rate * options.seconds), options.followed - options.logs)
    others = [[logs.submission(options.followed - 1 - n, 1)] for n in range(count)]
    with witness.serving() as server:
        paced = send(server, Plan(witness.port, others, rate=options.rate))
        memory = server.resident()
    middle, tail = percentile(paced.seconds, 0.5), percentile(paced.seconds, 0.99)
    what = f"{options.followed:,} logs, {options.rate:g} a second"
    return [
        Row(f"{options.followed:,} logs: start", witness.started, "s", None),
        Row(f"{what}: median", middle * 1e3, "ms", None, paced.cpu * 1e3),
        Row(f"{what}: 99th percentile", tail * 1e3, "ms", TAIL_GOAL, None, middle * 1e3, tail / middle),
        Row(f"{what}: not answered 200", paced.refused, "", 0),
        Row(f"{what}: memory", memory / 2**20, "MiB", None),
    ]


