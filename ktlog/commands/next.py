"""``ktlog next``: what is missing before anybody gets a verified answer. ``ktlog init`` ends with the same words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import click

from ktlog.config import Settings, load_settings
from ktlog.operator.create import load_public_keys
from ktlog.operator.firsthour import Step, addresses, afterwards, letter, missing
from ktlog.web.verifypage import page_hash


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory, made by `ktlog init`.")
@click.option("--letter", "letter_only", is_flag=True, help="Print what to send to witnesses and verifiers, alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(directory: Path, letter_only: bool, as_json: bool) -> None:
    """Say what is missing before anybody gets a verified answer from a log, and how to do it.

    As far as it can be seen from here: `ktlog doctor` asks the world, too.
    """
    settings = load_settings(directory)
    if letter_only:
        for _kind, line in letter(settings, load_public_keys(settings)):
            click.echo(line)
    elif as_json:
        steps = missing(settings)
        click.echo(json.dumps({
            "ok": not steps, "missing": list(map(asdict, steps)), "then": list(map(asdict, afterwards(settings))),
            "verify-page-sha256": page_hash(),
        }))
    else:
        for line in describe_next(settings):
            click.echo(line)


def describe_next(settings: Settings, steps: list[Step] | None = None) -> Iterator[str]:
    """The words of it, a line each. steps: what is missing, where that is known."""
    steps = missing(settings) if steps is None else steps
    if steps:
        yield "Missing, before anybody gets a verified answer:"
        for number, step in enumerate(steps, 1):
            yield from _lines(f"{number}. {step.what}", step)
    else:
        yield f"Nothing is missing, as far as can be seen from here: {settings.origin} is cosigned and published."
    yield "Then:"
    for step in afterwards(settings):
        yield from _lines(f"- {step.what}", step)
    yield "And behind the proxy:"
    for what, url in addresses(settings):
        yield f"  {what:<17} {url}"
    yield f"  {'checks by browser':<17} {settings.url}/verify.html, SHA-256 {page_hash()}"


def _lines(head: str, step: Step) -> Iterator[str]:
    yield f"  {head}"
    for command_line in step.commands:
        yield f"       {command_line}"
