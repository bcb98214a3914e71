"""``ktlog-auditor alarms``: what was raised, what waits, and how to give up on a sink that is gone."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from auditor.alarm import printable_line
from auditor.commands.owning import directory_option, json_option, open_outbox
from ktlog.words import some


@click.command("alarms")
@directory_option
@click.option("--count", default=50, show_default=True, type=click.IntRange(1, 10_000), metavar="N",
              help="The newest N deliveries.")
@click.option("--give-up", "sink", metavar="SINK", help="Drop all that waits for SINK, for good.")
@json_option
def command(directory: Path, count: int, sink: str | None, as_json: bool) -> None:
    """List alarms and whether their sinks have taken them, newest first."""
    with open_outbox(directory) as outbox:
        dropped = None if sink is None else outbox.give_up(sink)
        rows, waiting = outbox.rows(count), outbox.waiting()
    if as_json:
        more = {} if dropped is None else {"given_up": dropped}
        click.echo(json.dumps({"waiting": waiting, "deliveries": rows, "ok": True, **more}))
        return
    if dropped is not None:
        click.echo(f"given up: {dropped}")
    for row in rows:
        alarm = row["alarm"]
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(alarm["time"]))
        state = "delivered" if row["delivered_at"] is not None else f"waiting, {some(row['attempts'], 'attempt')}"
        why = f": {row['last_error']}" if row["last_error"] else ""
        click.echo(printable_line(f"{when}  {row['sink']}  {state}{why}"))
        click.echo(f"  {printable_line(alarm['sentence'])}")
    click.echo(f"waiting: {waiting}")
