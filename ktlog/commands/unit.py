"""``ktlog unit``."""

from __future__ import annotations

import re
from pathlib import Path

import click

from ktlog.operator.firsthour import own_command
from ktlog.operator.units import read_unit, unit_names

_RUNS = re.compile(r"^ExecStart=(/\S+)", re.MULTILINE)


@click.command()
@click.argument("name", required=False)
@click.option("--list", "names_only", is_flag=True, help="Print the names of all, a line each.")
def command(name: str | None, names_only: bool) -> None:
    """Print a systemd unit, as deploy/systemd has it.

    NAME is a file's: `ktlog unit ktlog-backup.timer`; without an ending it is a service. docs/operating.md,
    "systemd", says where each goes.
    """
    if names_only == bool(name):
        raise click.UsageError("Say one of NAME and --list.")
    if name is None:
        click.echo("\n".join(unit_names()))
        return
    text = read_unit(name)
    click.echo(text, nl=False)
    if (found := _RUNS.search(text)) and not Path(found[1]).exists():
        click.echo(
            f"It runs {found[1]}, which is not here. Install ktlog there, or change ExecStart; what runs now is"
            f" {own_command()}. A service of this kind sees nothing in a home directory.", err=True,
        )
