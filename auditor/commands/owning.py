"""What the commands about owners, sinks and alarms share."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from auditor.commands.common import fetcher, read_file
from auditor.outbox import Outbox, Sink
from auditor.sinks import parse_sinks
from ktlog.errors import UsageError

CONFIG = "watch.toml"
MAX_CONFIG_BYTES = 1 << 20


def directory_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--dir", "directory", required=True, type=click.Path(path_type=Path, file_okay=False),
        help="The directory of the watch; made if missing.",
    )(function)


def config_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option(
        "--config", "config", type=click.Path(path_type=Path, dir_okay=False),
        help=f"The settings of the watch, with its sinks.  [default: {CONFIG} in --dir, if it is there]",
    )(function)


def json_option(function: Callable[..., Any]) -> Callable[..., Any]:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def sinks_table(directory: Path, config: Path | None = None) -> tuple[Any, Path]:
    """The table ``[sinks]`` of the watch's settings, empty where there are none, and where its paths start.

    Raises:
        UsageError: ``BadWatchFile``, ``UnreadableFile``.
    """
    path = directory / CONFIG if config is None else config
    if config is None and not path.exists():
        return {}, path.parent
    try:
        return tomllib.loads(read_file(path, MAX_CONFIG_BYTES).decode("utf-8")).get("sinks", {}), path.parent
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError("BadWatchFile", f"{path} is no TOML: {error}") from None


def load_sinks(directory: Path, config: Path | None, dial_file: Path | None = None) -> dict[str, Sink]:
    """The sinks of the watch's settings.

    Raises:
        UsageError: ``BadWatchFile``, ``BadSink``, ``UnreadableFile``.
        StoreError: about a secret's file.
    """
    return parse_sinks(*sinks_table(directory, config), lambda: fetcher(dial_file))


def find_sink(sinks: dict[str, Sink], name: str) -> Sink:
    """Raises UsageError(``UnknownSink``)."""
    if name not in sinks:
        raise UsageError(
            "UnknownSink", f"there is no sink {name[:60]!a}; there are {', '.join(sorted(sinks))}",
            hint=f"Name it in {CONFIG}: [sinks.{name if name.isidentifier() else 'NAME'}]. See docs/alarms.md.",
        )
    return sinks[name]


def open_outbox(directory: Path) -> Outbox:
    return Outbox(directory)
