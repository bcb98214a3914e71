"""``ktlog-auditor test-sink``: send a test alarm, at once and past the outbox."""

from __future__ import annotations

import json
import secrets
import time
from pathlib import Path

import click

from auditor.alarm import test_alarm
from auditor.commands.owning import config_option, directory_option, find_sink, json_option, load_sinks, open_outbox
from auditor.outbox import Delivered


@click.command("test-sink")
@click.argument("name", metavar="SINK")
@directory_option
@config_option
@click.option("--dial", "dial_file", type=click.Path(path_type=Path, dir_okay=False),
              help="Dial table: loopback addresses in place of name resolution, for demos and tests.")
@json_option
def command(name: str, directory: Path, config: Path | None, dial_file: Path | None, as_json: bool) -> None:
    """Send a test alarm to SINK, and say whether it was taken.

    An Atom feed shows it until the next real one.
    """
    sink = find_sink(load_sinks(directory, config, dial_file), name)
    document = test_alarm("test.invalid", int(time.time()), secrets.token_hex(16)).as_dict()
    with open_outbox(directory) as outbox:
        sink.send(document, ["a test"], lambda count: [
            Delivered(document, ("a test",)), *outbox.recent(name, count - 1)
        ])
    taken = {"sink": name, "id": document["id"], "ok": True}
    click.echo(json.dumps(taken) if as_json else f"{name} took the test alarm")
