"""``ktlog bench``."""

from __future__ import annotations

import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click

from ktlog.bench.mapped import build
from ktlog.bench.maps import hash_microseconds, measure_map
from ktlog.bench.prefill import prefill as make
from ktlog.bench.reads import measure
from ktlog.bench.row import HEADING
from ktlog.config import load_settings


@click.group()
def command() -> None:
    """Measure a log: make a large one, and read from it."""


@command.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path), required=True, help="Where it will be made.")
@click.option("--actors", type=click.IntRange(1, 10_000_000), required=True, help="How many are enrolled.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def prefill(directory: Path, actors: int, as_json: bool) -> None:
    """Make a log with many actors, to read from.

    It is called bench.invalid. Its keys and signatures are arbitrary, so it would pass no audit;
    reading from it costs what reading from a real log costs. About 13 KB of disk for each actor.
    """
    started = time.monotonic()
    make(directory, actors, _teller(actors, as_json))
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        click.echo(json.dumps({"dir": str(directory), "actors": actors, "seconds": seconds}))
    else:
        click.echo(f"\r{actors} actors in {seconds} s. Next: ktlog bench reads --dir {directory}", err=True)


def _teller(actors: int, as_json: bool) -> Callable[[int], None]:
    def told(done: int) -> None:
        if not as_json and sys.stderr.isatty():
            click.echo(f"\r{done} of {actors}", nl=False, err=True)

    return told


@command.command()
@click.option("--dir", "directories", type=click.Path(path_type=Path, exists=True, file_okay=False), multiple=True,
              required=True, help="A log to read from; may be repeated, the smallest first.")
@click.option("--requests", type=click.IntRange(1), default=2_000, show_default=True, help="To each log.")
@click.option("--at-most", type=click.FloatRange(min=0, min_open=True),
              help="End with exit code 5 if a p99 is more than this many times the first log's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def reads(directories: tuple[Path, ...], requests: int, at_most: float | None, as_json: bool) -> None:
    """Measure how long api/actor/.../keys takes, for actors chosen at random.

    Starts a web worker for each log, on loopback, and asks them in turn. With several logs it also
    prints how many times the first log's p99 the others' is.
    """
    found = measure(directories, requests)
    ratios = [item.p99_us / found[0].p99_us for item in found]
    if as_json:
        rows = [item.as_dict() | {"ratio": round(ratio, 2)} for item, ratio in zip(found, ratios, strict=True)]
        click.echo(json.dumps({"reads": rows}))
    else:
        click.echo(f"{'actors':>9} {'p50':>10} {'p99':>10} {'ratio':>6}")
        for item, ratio in zip(found, ratios, strict=True):
            click.echo(f"{item.actors:>9} {item.p50_us / 1000:>7.2f} ms {item.p99_us / 1000:>7.2f} ms {ratio:>6.2f}")
    if at_most is not None and max(ratios) > at_most:
        sys.exit(5)


@command.command("map")
@click.option("--actors", type=click.IntRange(100, 10_000_000), default=1_000_000, show_default=True,
              help="How many are in the map.")
@click.option("--requests", type=click.IntRange(1), default=3_000, show_default=True, help="Lookups over HTTP.")
@click.option("--batches", type=click.IntRange(1, 50), default=15, show_default=True, help="Of 1,000 updates each.")
@click.option("--dir", "directory", type=click.Path(path_type=Path),
              help="Make the log there and keep it; or measure the one that an earlier run left there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def directory_map(actors: int, requests: int, batches: int, directory: Path | None, as_json: bool) -> None:
    """Measure the directory map: batches, proofs, a restart, memory, lookups over HTTP.

    Makes a log whose map has many actors, about 3 KB of disk for each, and runs it on loopback. Ends with exit code 0
    whatever is measured; "limit" is the least that the same work could cost on this machine just then.
    """
    with tempfile.TemporaryDirectory(prefix="ktlog-bench-") as scratch:
        started = time.monotonic()
        where = directory or Path(scratch) / "log"
        if (where / "ktlog.toml").exists():
            settings = load_settings(where)
        else:
            settings = build(where, actors, _teller(actors, as_json))
        seconds = round(time.monotonic() - started, 1)
        rows = measure_map(settings, actors, Path(scratch), requests, batches)
    machine = {
        "cores": os.cpu_count(), "python": platform.python_version(), "sqlite": sqlite3.sqlite_version,
        "load": round(os.getloadavg()[0], 1), "sha256-us": round(hash_microseconds(), 2),
    }
    if as_json:
        click.echo(json.dumps({
            "actors": actors, "build-seconds": seconds, "machine": machine, "rows": [row.as_dict() for row in rows],
        }))
        return
    click.echo(f"\r{actors} actors; {', '.join(f'{name} {value}' for name, value in machine.items())}\n\n{HEADING}")
    for row in rows:
        click.echo(row.as_line())
