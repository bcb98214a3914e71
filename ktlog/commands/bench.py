"""``ktlog bench``."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click

from ktlog.bench.prefill import prefill as make
from ktlog.bench.reads import measure


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

    def told(done: int) -> None:
        if not as_json and sys.stderr.isatty():
            click.echo(f"\r{done} of {actors}", nl=False, err=True)

    make(directory, actors, told)
    seconds = round(time.monotonic() - started, 1)
    if as_json:
        click.echo(json.dumps({"dir": str(directory), "actors": actors, "seconds": seconds}))
    else:
        click.echo(f"\r{actors} actors in {seconds} s. Next: ktlog bench reads --dir {directory}", err=True)


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
