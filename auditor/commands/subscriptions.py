"""``ktlog-auditor subscriptions``: who watches whom, and where alarms go."""

from __future__ import annotations

import json
from pathlib import Path

import click

from auditor.alarm import printable_line
from auditor.commands.owning import directory_option, json_option, open_outbox
from auditor.subscriptions import Subscriptions


@click.command("subscriptions")
@directory_option
@json_option
def command(directory: Path, as_json: bool) -> None:
    """List the subscriptions, oldest first.

    One whose actor was erased shows no name: the watch still sees when somebody enrols under it again.
    """
    with open_outbox(directory) as outbox:
        rows = Subscriptions(outbox).all()
    if as_json:
        click.echo(json.dumps({"subscriptions": [row.as_dict() for row in rows], "ok": True}))
        return
    for row in rows:
        subject = "(erased)" if row.subject is None else row.subject[:100]
        click.echo(printable_line(
            f"{row.id}: {row.kind} {subject} in {row.origin}, to {row.sink}" + (f" ({row.label})" if row.label else "")
        ))
