"""``ktlog-auditor unsubscribe``: watch something no longer."""

from __future__ import annotations

import json
from pathlib import Path

import click

from auditor.commands.owning import directory_option, json_option, open_outbox
from auditor.subscriptions import Subscriptions
from ktlog.errors import UsageError


@click.command("unsubscribe")
@click.argument("numbers", metavar="NUMBER...", nargs=-1, required=True, type=click.IntRange(min=1))
@directory_option
@json_option
def command(numbers: tuple[int, ...], directory: Path, as_json: bool) -> None:
    """End the subscriptions with these numbers, as `ktlog-auditor subscriptions` lists them.

    Alarms that were raised for them already are still delivered.
    """
    with open_outbox(directory) as outbox:
        subscriptions = Subscriptions(outbox)
        missing = sorted(set(numbers) - {row.id for row in subscriptions.all()})
        if missing:
            raise UsageError("UnknownSubscription", f"there is no subscription {missing[0]}")
        for number in numbers:
            subscriptions.remove(number)
    click.echo(json.dumps({"ended": list(numbers), "ok": True}) if as_json else f"ended: {len(numbers)}")
