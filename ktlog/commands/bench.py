"""``ktlog bench``: every measurement of docs/performance.md, each one command.

All print a table, or with ``--json`` one object, and end with exit code 0 whatever is measured; with a limit of the
caller's own they end with 5 where it is missed.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from ktlog.bench.audited import NEW_ENTRIES, measure_audit
from ktlog.bench.audited import Options as AuditOptions
from ktlog.bench.logs import measure_log, raw_settings
from ktlog.bench.maps import hash_microseconds, measure_map
from ktlog.bench.pages import measure_pages
from ktlog.bench.pglog import measure_postgres
from ktlog.bench.prefilled import prefilled
from ktlog.bench.rawlog import VKEY
from ktlog.bench.rawserve import serve_raw
from ktlog.bench.reading import measure_growth, measure_read
from ktlog.bench.recovery import measure_recover
from ktlog.bench.row import HEADING, Row
from ktlog.bench.submit import Options, measure_submit
from ktlog.bench.usage import cpu_seconds, peak, written_bytes
from ktlog.bench.witnessed import Options as WitnessOptions
from ktlog.bench.witnessed import measure_witness
from ktlog.config import Settings
from ktlog.words import count_entries

MISSED = 5
FEW_ENTRIES = 10_000
_as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_entries = click.option("--entries", type=click.IntRange(100, 10_000_000), default=1_000_000, show_default=True,
                        help="How many the log is filled with first, each by an actor of its own.")
_directory = click.option("--dir", "directory", type=click.Path(path_type=Path),
                          help="Make the log there and keep it; or use the one that an earlier run left there.")


@click.group()
def command() -> None:
    """Measure: appends, reads, pages, the directory map, recovery.

    Logs are made for it, called bench.invalid, and run on loopback. Filling one with a million entries takes five
    minutes and 2.5 GB; keep it with --dir and all measurements but `log` can use it.
    """


# What they have in common


def _teller(count: int, as_json: bool) -> Callable[[int], None]:
    def told(done: int) -> None:
        if not as_json and sys.stderr.isatty():
            click.echo(f"\r{done} of {count}", nl=False, err=True)

    return told


@contextmanager
def _filled(directory: Path | None, entries: int, as_json: bool) -> Iterator[tuple[Settings, Path]]:
    """The prefilled log, and a directory for what is not kept."""
    with tempfile.TemporaryDirectory(prefix="ktlog-bench-") as scratch:
        yield prefilled(directory or Path(scratch) / "log", entries, _teller(entries, as_json)), Path(scratch)


def _report(name: str, started: float, rows: Sequence[Row], as_json: bool, **numbers: Any) -> None:
    machine = {
        "cores": os.cpu_count(), "python": platform.python_version(), "sqlite": sqlite3.sqlite_version,
        "load": round(os.getloadavg()[0], 1), "sha256-us": round(hash_microseconds(), 2),
    }
    took = round(time.monotonic() - started, 1)
    if as_json:
        found = {"benchmark": name, "date": time.strftime("%Y-%m-%d"), "took-seconds": took, "machine": machine}
        click.echo(json.dumps(found | numbers | {"rows": [row.as_dict() for row in rows]}))
        return
    told = ", ".join(f"{key} {value}" for key, value in (machine | {"took": f"{took} s"}).items())
    click.echo(f"\r{name}: {told}\n\n{HEADING}")
    for row in rows:
        click.echo(row.as_line())


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


# The commands


@command.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True, help="Where it will be made.")
@_entries
@_as_json
def prefill(directory: Path, entries: int, as_json: bool) -> None:
    """Make a log with many actors and the map of them, for the other measurements.

    Its entries and messages are a few arbitrary bytes, so it would pass no audit. About 2.5 KB of disk for each.
    """
    started, found = time.monotonic(), directory.exists()
    cpu, written = cpu_seconds(os.getpid()), written_bytes()
    prefilled(directory, entries, _teller(entries, as_json))
    seconds = time.monotonic() - started
    rows = [] if found else [
        Row("entries and map, filled", entries / seconds, "/s", None),
        Row("CPU for 1,000 entries", (cpu_seconds(os.getpid()) - cpu) / entries * 1000, "s", None),
        Row("bytes written for an entry", (written_bytes() - written) / entries / 1024, "KiB", None),
        Row("memory of the process, at most", peak() / 2**20, "MiB", None),
    ]
    _report("prefill", started, rows, as_json, dir=str(directory), entries=entries, seconds=round(seconds, 1))
    if not as_json:
        click.echo(f"{count_entries(entries)}. Next: ktlog bench submit --dir {shlex.quote(str(directory))}", err=True)


@command.command()
@_entries
@_directory
@click.option("--messages", type=click.IntRange(10), default=1_500, show_default=True, help="That are timed.")
@click.option("--clients", type=click.IntRange(1, 256), default=48, show_default=True, help="Connections at once.")
@click.option("--without-argon2", is_flag=True, help="Let the log take commitments unseen, a switch of the bench's.")
@click.option("--overload", is_flag=True, help="Then send ten times as much, whether it is answered or not.")
@click.option("--seconds", type=click.FloatRange(1), default=60.0, show_default=True, help="Of the overload.")
@click.option("--calibration", type=click.FloatRange(0.1), default=10.0, show_default=True,
              help="Seconds of Argon2id before, and again after.")
@click.option("--at-least", type=click.FloatRange(min=0),
              help="End with exit code 5 below this ratio to the limit; without Argon2id, below this rate.")
@_as_json
def submit(
    entries: int, directory: Path | None, messages: int, clients: int, without_argon2: bool, overload: bool,
    seconds: float, calibration: float, at_least: float | None, as_json: bool,
) -> None:
    """Measure AddKey over HTTP: the whole way until it is durable, with two web workers.

    "limit" is half the rate at which this machine computes Argon2id in as many processes, just before and after.
    """
    started = time.monotonic()
    with _filled(directory, entries, as_json) as (settings, _):
        done = measure_submit(settings, Options(
            messages, clients, not without_argon2, seconds if overload else 0.0, calibration
        ))
    _report("submit", started, done.rows, as_json, entries=entries, rate=_round(done.rate), limit=_round(done.limit),
            ratio=_round(done.ratio), **done.numbers)
    reached = done.rate if done.ratio is None else done.ratio
    if at_least is not None and reached < at_least:
        sys.exit(MISSED)


@command.command()
@click.option("--entries", type=click.IntRange(100, 100_000_000), default=1_000_000, show_default=True,
              help="Up to which size.")
@click.option("--size", type=click.IntRange(16, 65_535), default=2_500, show_default=True, help="Bytes of an entry.")
@click.option("--producers", type=click.IntRange(1, 10_000), default=512, show_default=True,
              help="Who append at once, each one entry after the other.")
@click.option("--dir", "directory", type=click.Path(path_type=Path), help="Where the log is, and stays.")
@click.option("--store", default="",
              help="postgresql://..., an empty database: two front ends and one sequencer, each a process.")
@click.option("--serve", "listen", metavar="HOST:PORT",
              help="Measure nothing: answer POST /add with the decimal index, and serve checkpoint and tiles.")
@click.option("--at-least", type=click.FloatRange(min=0), help="End with exit code 5 below this rate at any size.")
@_as_json
def log(
    entries: int, size: int, producers: int, directory: Path | None, store: str, listen: str | None,
    at_least: float | None, as_json: bool,
) -> None:
    """Measure raw durable appends: entries of arbitrary bytes, in batches as they form.

    Everything of the engine but the directory: root after every leaf, one transaction for a batch, tiles, bundles
    and a checkpoint each second. Costs are compared with those in the smallest log of the same run.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ktlog-bench-") as scratch:
        settings = raw_settings(directory or Path(scratch) / "log", **({"store": store} if store else {}))
        if listen is not None:
            click.echo(f"checkpoints are verified with {VKEY}", err=True)
            served = serve_raw(settings, listen, lambda address: click.echo(f"listens on http://{address}", err=True))
            click.echo(json.dumps({"benchmark": "log", "entries": served}) if as_json else count_entries(served))
            return
        if settings.uses_postgres:
            rows = measure_postgres(settings, entries, size)
        else:
            rows = measure_log(settings, entries, size, producers, _teller(entries, as_json))
    rates = [row.measured for row in rows if row.at_least]
    _report("log", started, rows, as_json, entries=entries, size=size, rate=_round(rates[-1]))
    if entries < FEW_ENTRIES:
        few = f"Under {FEW_ENTRIES} entries the ratios for each entry mean little: start and end outweigh the rest."
        click.echo(few, err=True)
    if at_least is not None and min(rates) < at_least:
        sys.exit(MISSED)


@command.command()
@_entries
@_directory
@click.option("--seconds", type=click.FloatRange(0.2), default=10.0, show_default=True, help="Of each draw of keys.")
@click.option("--connections", type=click.IntRange(1, 1_000), default=8, show_default=True, help="At once.")
@click.option("--beside", type=click.Path(path_type=Path, exists=True, file_okay=False),
              help="A smaller log: compare the 99th percentiles of both, asked in turn.")
@click.option("--at-least", type=click.FloatRange(min=0), help="End with exit code 5 below this many keys a second.")
@_as_json
def read(
    entries: int, directory: Path | None, seconds: float, connections: int, beside: Path | None,
    at_least: float | None, as_json: bool,
) -> None:
    """Measure reads over HTTP with two web workers: keys with proofs, checkpoint and tiles."""
    started = time.monotonic()
    with _filled(directory, entries, as_json) as (settings, _):
        rows = measure_read(settings, entries, seconds, connections)
        if beside is not None:
            rows += measure_growth(beside, settings.directory)
    rates = {row.work: row.measured for row in rows if row.at_least and row.unit == "/s"}
    keys = min(rate for work, rate in rates.items() if work.startswith("keys"))
    _report("read", started, rows, as_json, entries=entries, rate=_round(keys))
    if at_least is not None and keys < at_least:
        sys.exit(MISSED)


@command.command()
@click.option("--entries", type=click.IntRange(100, 10_000_000), default=100_000, show_default=True,
              help="How many the log is filled with first, each by an actor of its own.")
@_directory
@click.option("--requests", type=click.IntRange(1), default=500, show_default=True, help="Of each page.")
@click.option("--at-most", type=click.FloatRange(min=0),
              help="End with exit code 5 if a 99th percentile is above so many milliseconds.")
@_as_json
def pages(entries: int, directory: Path | None, requests: int, at_most: float | None, as_json: bool) -> None:
    """Measure the explorer's pages over HTTP: status, actors, entries, the search; the first ones of a worker too."""
    started = time.monotonic()
    with _filled(directory, entries, as_json) as (settings, _):
        rows = measure_pages(settings, entries, requests)
    slowest = max(row.measured for row in rows if row.goal is not None)
    _report("pages", started, rows, as_json, entries=entries, slowest=_round(slowest))
    if at_most is not None and slowest > at_most:
        sys.exit(MISSED)


@command.command()
@_entries
@_directory
@click.option("--messages", type=click.IntRange(4), default=200, show_default=True, help="Sent around the crash.")
@click.option("--at-most", type=click.FloatRange(min=0), help="End with exit code 5 if the next append comes later.")
@_as_json
def recover(entries: int, directory: Path | None, messages: int, at_most: float | None, as_json: bool) -> None:
    """Measure a crash: kill -9 of the whole log under load, and the time until it answers and takes messages again."""
    started = time.monotonic()
    with _filled(directory, entries, as_json) as (settings, _):
        seconds, rows = measure_recover(settings, messages)
    _report("recover", started, rows, as_json, entries=entries, seconds=_round(seconds))
    if at_most is not None and seconds > at_most:
        sys.exit(MISSED)


@command.command("map")
@click.option("--actors", type=click.IntRange(100, 10_000_000), default=1_000_000, show_default=True,
              help="How many are in the map.")
@click.option("--requests", type=click.IntRange(1), default=3_000, show_default=True, help="Lookups over HTTP.")
@click.option("--batches", type=click.IntRange(1, 50), default=15, show_default=True, help="Of 1,000 updates each.")
@_directory
@_as_json
def directory_map(actors: int, requests: int, batches: int, directory: Path | None, as_json: bool) -> None:
    """Measure the directory map: batches, proofs, a restart, memory, lookups over HTTP.

    "limit" is the least that the same work could cost on this machine just then.
    """
    started = time.monotonic()
    with _filled(directory, actors, as_json) as (settings, scratch):
        rows = measure_map(settings, actors, scratch, requests, batches)
    _report("map", started, rows, as_json, actors=actors)


@command.command()
@click.option("--followed", type=click.IntRange(10, 1_000_000), default=40_000, show_default=True,
              help="Logs on the list that the witness pulls.")
@click.option("--logs", type=click.IntRange(1, 1_000), default=1_000, show_default=True,
              help="Of them, those that submit at once.")
@click.option("--rounds", type=click.IntRange(1, 100), default=4, show_default=True, help="Times that each does.")
@click.option("--rate", type=click.FloatRange(0.1), default=100.0, show_default=True,
              help="Submissions a second of all logs of the list together.")
@click.option("--seconds", type=click.FloatRange(1), default=10.0, show_default=True, help="Of that rate.")
@click.option("--at-least", type=click.FloatRange(min=0), help="End with exit code 5 below this ratio to the limit.")
@_as_json
def witness(
    followed: int, logs: int, rounds: int, rate: float, seconds: float, at_least: float | None, as_json: bool
) -> None:
    """Measure a witness: cosignatures for many logs at once, and for a long list of logs at its rate.

    "limit" is the CPU time of the signatures and of an answer that does nothing, in the same run. Of the 99th
    percentiles it is the median.
    """
    started = time.monotonic()
    options = WitnessOptions(followed, min(logs, followed // 2), rounds, rate, seconds)
    with tempfile.TemporaryDirectory(prefix="ktlog-bench-") as scratch:
        ratio, rows = measure_witness(Path(scratch), options)
    _report("witness", started, rows, as_json, followed=followed, logs=options.logs, ratio=_round(ratio))
    if at_least is not None and ratio < at_least:
        sys.exit(MISSED)


@command.command()
@click.option("--entries", type=click.IntRange(2 * NEW_ENTRIES, 10_000_000), default=1_000_000, show_default=True,
              help="Of the log that the structural tier reads.")
@click.option("--messages", type=click.IntRange(1), default=2_500, show_default=True,
              help="AddKeys of the log that both tiers read.")
@click.option("--calibration", type=click.FloatRange(0.1), default=10.0, show_default=True,
              help="Seconds of signatures, and of Argon2id, before and again after.")
@click.option("--at-least", type=click.FloatRange(min=0), help="End with exit code 5 below this ratio to a limit.")
@_as_json
def audit(entries: int, messages: int, calibration: float, at_least: float | None, as_json: bool) -> None:
    """Measure an auditor: both tiers from local files, memory, catching up.

    "limit" is ML-DSA-44 verification alone on all cores, and Argon2id alone, in the same run. The large log repeats one
    bundle of 256 entries, each signed, under as many names as it takes; every signature is verified each time.
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="ktlog-bench-") as scratch:
        done = measure_audit(Path(scratch), AuditOptions(entries, messages, calibration))
    _report("audit", started, done.rows, as_json, entries=entries, messages=messages,
            structural=_round(done.structural), semantic=_round(done.semantic))
    if at_least is not None and min(done.structural, done.semantic) < at_least:
        sys.exit(MISSED)
