"""``ktlog conformance``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ktlog.conformance import format_report, parse_vectors, replay


@click.command()
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(file: Path, as_json: bool) -> None:
    """Replay published PKD test vectors through this server's own parser and state machine.

    Compares every step, attribute, signature, leaf, root and final mapping byte for byte, and
    says of a failure what differs and where. Exit code 5 when anything does.
    """
    report = replay(parse_vectors(file.read_bytes()))
    click.echo(json.dumps(report.as_dict()) if as_json else format_report(report))
    if report.as_dict()["failed"]:
        sys.exit(5)
