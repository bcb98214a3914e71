"""``ktlog watch``."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import click

from ktlog.client import Answer, Present
from ktlog.commands.lookup import directory_options, open_directory, writing_evidence
from ktlog.errors import Stale, Unreachable
from ktlog.words import some


@click.command()
@click.argument("name")
@directory_options
@click.option("--interval", type=click.FloatRange(min=0), default=60, show_default=True, metavar="SECONDS",
              help="How long to wait between two lookups.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="Stop after N lookups.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    name: str, policy: Path, state: Path, domains: tuple[str, ...], max_age: int, interval: float, count: int | None,
    dial: Path | None, as_json: bool,
) -> None:
    """Look NAME up again and again, and print what changes, a line each.

    A line that begins with ALARM needs you: keys were reset or erased. When nothing can be learnt the
    watch says so and goes on; a failed check ends it with that check's exit code.
    """
    directory = open_directory(policy, state, domains, max_age, dial)
    before: Answer | None = None
    done = 0
    while True:
        try:
            with writing_evidence(state.expanduser() / "evidence"):
                answer = directory.lookup(name)
        except (Unreachable, Stale) as error:
            _say({"event": "unknown", "text": str(error)}, as_json)
        else:
            for event in changes(before, answer):
                _say(event, as_json)
            before = answer
        done += 1
        if count is not None and done >= count:
            return
        time.sleep(interval)


def changes(before: Answer | None, answer: Answer) -> Iterator[dict[str, str]]:
    """What *answer* says that *before*, or the memory of earlier runs, did not."""
    who = answer.handle or answer.actor_id
    if answer.reset is not None:
        yield {"event": "reset", "text": f"ALARM {who}: {answer.reset}. Treat this person as a stranger."}
    if before is None or type(before) is not type(answer):
        what = some(len(answer.keys), "key") if isinstance(answer, Present) else answer.as_dict()["answer"]
        yield {"event": "state", "text": f"{who}: {what}"}
    for key in answer.new_keys:
        yield {"event": "new-key", "text": f"{who}: new key {key.key_id}"}
    for key_id in answer.gone_keys:
        yield {"event": "gone-key", "text": f"{who}: key {key_id} is gone"}
    waiting = () if before is None else before.pending
    for item in answer.pending:
        if item not in waiting:
            yield {"event": "pending", "text": f"{who}: {item.action} is accepted and not published yet"}
    if isinstance(before, Present) and isinstance(answer, Present):
        if before.fireproof != answer.fireproof:
            yield {"event": "fireproof", "text": f"{who}: {'now' if answer.fireproof else 'no longer'} fireproof"}
        if before.status != answer.status:
            yield {"event": "status", "text": f"{who}: {answer.status}"}


def _say(event: dict[str, str], as_json: bool) -> None:
    moment = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    click.echo(json.dumps({"time": moment, **event}) if as_json else f"{moment} {event['text']}")
