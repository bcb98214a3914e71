"""``ktlog doctor``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click

from ktlog.config import Settings, load_settings
from ktlog.errors import printable
from ktlog.operator.doctor import BAD, LOOK, WRONG_HOST, Ailment, Outside, examine_inside, examine_outside
from ktlog.wire.dial import DIAL_VARIABLE
from ktlog.wire.fetch import Fetcher, load_dial

FETCH_SECONDS = 10.0
LOOK_AGAIN_SECONDS = 1.0
UNWELL = 5
_MARKS = {"ok": "ok  ", "look": "look", "bad": "BAD "}


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory.")
@click.option("--inside", is_flag=True, help="Ask nobody over the network.")
@click.option("--wait", type=click.IntRange(min=0), default=0, metavar="SECONDS",
              help="Look again, for so long, until nothing is bad and every entry is published and mapped.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: Path, inside: bool, wait: int, as_json: bool) -> None:
    """Look at a log from the inside and the outside, and say what to do about what is wrong.

    Inside: file modes, SQLite, disk, policy, whether it runs, publishes and is cosigned. Outside, as a peer sees it:
    the name, TLS, whether signed answers, paths and the host's name come through the proxy unchanged, each witness,
    whether enough of them answer, and what time it is there.

    Exit code 0: nothing is bad. 5: something is.
    """
    settings = load_settings(directory)
    deadline = time.monotonic() + wait
    found = list(_examine(settings, inside))
    while time.monotonic() < deadline and not all(one.settled and one.state != BAD for one in found):
        time.sleep(LOOK_AGAIN_SECONDS)
        found = list(_examine(settings, inside))
    bad = sum(ailment.state == BAD for ailment in found)
    if as_json:
        click.echo(json.dumps({"ok": not bad, "findings": [ailment.as_dict() for ailment in found]}))
    else:
        for ailment in found:
            click.echo(f"{_MARKS[ailment.state]}  {ailment.name}: {printable(ailment.what)}")
            if ailment.advice:
                click.echo(f"        {printable(ailment.advice)}")
        click.echo(_closing(bad, sum(ailment.state == LOOK for ailment in found)))
    sys.exit(UNWELL if bad else 0)


def _examine(settings: Settings, inside: bool) -> Iterator[Ailment]:
    yield from examine_inside(settings)
    if inside:
        return
    path = os.environ.get(DIAL_VARIABLE)
    dial = load_dial(path) if path else None
    with (
        Fetcher(dial, timeout=FETCH_SECONDS) as fetcher,
        Fetcher(dial, timeout=FETCH_SECONDS, odd={"Host": WRONG_HOST}) as misnamed,
        Fetcher(dial, timeout=FETCH_SECONDS, odd={"Accept-Encoding": "gzip, deflate, br, zstd"}) as zipping,
    ):
        outside = Outside(fetcher, misnamed, zipping, lambda: int(time.time()), dial.hosts if dial else ())
        yield from examine_outside(settings, outside)


def _closing(bad: int, look: int) -> str:
    """What all of it comes to."""
    if bad:
        return f"{bad} bad, {look} worth a look." if look else f"{bad} bad."
    return f"Nothing is bad; {look} worth a look." if look else "All is well."
