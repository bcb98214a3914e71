"""``ktlog config``: which settings hold, where each comes from, and whether a log could start with them."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import click

from ktlog.commands.settings import MEANINGS
from ktlog.config import WEB, Settings, load_settings
from ktlog.errors import KtlogError
from ktlog.operator.cosigning import load_cosigners
from ktlog.operator.directories import check_directories
from ktlog.operator.service import load_publish_policy
from ktlog.operator.sources import load_sources
from ktlog.operator.startkeys import check_keys
from ktlog.pkd.extensions import choose
from ktlog.wire.prometheus import parse_metrics_listen

_directory = click.option(
    "--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
    help="The log's directory, made by `ktlog init`.",
)
_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("config", context_settings={"help_option_names": ["-h", "--help"]})
def command() -> None:
    """Show and check a log's configuration, without starting anything."""


@command.command()
@_directory
@_json
def show(directory: Path, as_json: bool) -> None:
    """Print every setting, its value, and whether it comes from the environment, the file or the default."""
    settings = load_settings(directory)
    shown = {name: (getattr(settings, name), source) for name, source in _sources(directory).items()}
    if as_json:
        click.echo(json.dumps({name: {"value": value, "from": source} for name, (value, source) in shown.items()}))
        return
    for name, (value, source) in shown.items():
        said = f"{name} = {json.dumps(value, ensure_ascii=False)}"
        click.echo(f"{said:<40} # {source}. {MEANINGS.get(name, 'For ever.')}")


@command.command()
@_directory
@_json
def check(directory: Path, as_json: bool) -> None:
    """Read the configuration, the policies and the keys as `ktlog serve` does, and say all that is wrong.

    Exit codes: 0 a log could start; else the gravest of what is wrong: 2 the configuration, 6 a policy that would
    let the log vouch for itself, 8 the keys or files.
    """
    problems = [error.as_dict() | {"hint": error.hint} for error in _problems(directory)]
    if as_json:
        click.echo(json.dumps({"ok": not problems, "problems": problems}))
    elif not problems:
        click.echo(f"{directory}: nothing is wrong.")
    else:
        for problem in problems:
            click.echo(f"{problem['name']}: {problem['message']}")
            if problem["hint"]:
                click.echo(f"  {problem['hint']}")
    sys.exit(max((problem["exit_code"] for problem in problems), default=0))


def _sources(directory: Path, environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Where each setting comes from, in the order in which they are documented."""
    found = tomllib.loads((directory / "ktlog.toml").read_text(encoding="utf-8"))
    out = {}
    for field in fields(Settings):
        if field.name == "directory":
            continue
        if f"KTLOG_{field.name.upper()}" in environment and field.name in MEANINGS:
            out[field.name] = "environment"
        else:
            out[field.name] = "file" if field.name in found else "default"
    return out


def _problems(directory: Path) -> list[KtlogError]:
    try:
        settings = load_settings(directory)
    except KtlogError as error:
        return [error]
    checks: list[Callable[[], Any]] = [
        lambda: choose(settings.aux_type_names()), lambda: check_directories(settings.directory_urls()),
        lambda: load_cosigners(settings.cosigners), lambda: check_keys(settings), lambda: load_sources(settings),
    ]
    if settings.metrics_listen:
        checks.append(lambda: parse_metrics_listen(settings.metrics_listen))
    if settings.role != WEB:
        checks.append(lambda: load_publish_policy(settings))
    problems = []
    for one in checks:
        try:
            one()
        except KtlogError as error:
            problems.append(error)
    return problems
