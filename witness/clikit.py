"""What the commands of ``ktlog-witness`` have in common."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from ktlog.durable import FileLock
from ktlog.errors import KtlogError, StoreError
from witness.config import WitnessDir
from witness.store import WitnessStore

EXIT_CODES = """\b
Exit codes: 0 done; 1 internal error; 2 the command asks for the impossible; 3 a
server was not reached; 5 something does not parse; 8 the witness directory
contradicts the command, or is damaged.
"""

dir_option = click.option(
    "--dir", "directory", required=True, metavar="DIR", envvar="KTLOG_WITNESS_DIR",
    type=click.Path(file_okay=False, path_type=Path),
    help="The witness directory. [env: KTLOG_WITNESS_DIR]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
mark_option = click.option(
    "--mark", metavar="FILE", envvar="KTLOG_WITNESS_MARK", type=click.Path(dir_okay=False, path_type=Path),
    help="Where the high-water mark is, best on another disk; else in DIR. [env: KTLOG_WITNESS_MARK]",
)


def reporting(command: Callable[..., None]) -> Callable[..., None]:
    """Turn a KtlogError into its message (JSON under --json) and its exit code."""

    @wraps(command)
    def run(*arguments: Any, **options: Any) -> None:
        try:
            command(*arguments, **options)
        except KtlogError as error:
            if options.get("as_json"):
                click.echo(json.dumps({"error": error.as_dict()}))
            click.echo(f"ktlog-witness: {error.diagnostics()}", err=True)
            sys.exit(error.exit_code)

    return run


def open_store(directory: Path, **options: bool) -> WitnessStore:
    """The record of the witness in *directory*; options as of WitnessStore.open.

    Raises:
        StoreError: "OlderSchema": it must be brought up to date first, and an older release is serving it.
    """
    paths = WitnessDir(directory)
    paths.check()
    try:
        return WitnessStore.open(paths.database, **options)
    except StoreError as error:
        if error.name != "OlderSchema":
            raise
        try:
            with FileLock(paths.lock):
                WitnessStore.open(paths.database).close()
        except StoreError as locked:
            raise (error if locked.name == "Locked" else locked) from None
    return WitnessStore.open(paths.database, **options)


def print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value, ensure_ascii=False))
