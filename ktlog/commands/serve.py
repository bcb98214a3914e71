"""``ktlog serve``."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from ktlog.commands.settings import as_environment, setting_options
from ktlog.config import WEB, Settings, load_settings
from ktlog.errors import KtlogError
from ktlog.operator.cosigning import load_cosigners
from ktlog.operator.create import ensure_map
from ktlog.operator.directories import check_directories
from ktlog.operator.firsthour import describe_start
from ktlog.operator.mapcheck import check_whole_map
from ktlog.operator.service import load_publish_policy
from ktlog.operator.shred import finish_erasures
from ktlog.operator.sources import load_sources
from ktlog.operator.startkeys import check_keys
from ktlog.operator.supervisor import supervise
from ktlog.pkd.extensions import choose
from ktlog.store import upgrade
from ktlog.wire import logs
from ktlog.wire.notify import Notifier

START_SECONDS = 600.0
UPGRADE_FACTOR = 5.0
"""How much slower than where it was measured an upgrade may be."""
COPY_BYTES_PER_SECOND = 10e6  # of a slow disk


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True,
              help="The log's directory, made by `ktlog init`.")
@click.option("--check-map", is_flag=True, help="First check every value of the directory map, not only a sample.")
@setting_options
def command(directory: Path, check_map: bool, **flags: Any) -> None:
    """Run a log until SIGTERM: the sequencer, the publisher and the web workers.

    Put a TLS proxy in front that passes the Host header through. Without DIR/publish.policy
    nothing starts: a log that no witness watches is not one.

    A log in PostgreSQL may run on several machines. Each has a directory of its own, with the same
    settings; of those with a sequencer one works, and the others stand by.

    Every setting of DIR/ktlog.toml can be given here too, for this run. `ktlog config show` tells what holds.
    """
    settings = load_settings(directory, flags)
    logs.configure_daemon(settings.log_format, settings.log_level)
    notifier = Notifier.from_environment()
    try:
        _check(settings, check_map, notifier)
    except KtlogError as error:
        if not logs.are_lines():
            raise
        logs.say_why(error)
        sys.exit(error.exit_code)
    for line in describe_start(settings):
        logs.say(line)
    sys.exit(supervise(settings, as_environment(flags), notifier))


def _check(settings: Settings, check_map: bool, notifier: Notifier) -> None:
    """See that the log can start, and finish what an earlier run could not."""
    choose(settings.aux_type_names())
    check_directories(settings.directory_urls())
    load_cosigners(settings.cosigners)
    check_keys(settings)
    load_sources(settings)
    if settings.role != WEB:
        load_publish_policy(settings)
    if not settings.uses_postgres:  # else the sequencer does this when it is its turn, and only then
        _ask_for_time(settings, notifier)
        finish_erasures(settings, lambda: int(time.time()))
        ensure_map(settings)
    if check_map:
        check_whole_map(settings)


def _ask_for_time(settings: Settings, notifier: Notifier) -> None:
    """Have systemd wait for an upgrade of the store: ended in the middle of it, each start would begin it anew."""
    needed = upgrade.look(settings.database)
    if needed.is_needed:
        seconds = START_SECONDS + UPGRADE_FACTOR * needed.seconds + needed.copy_bytes / COPY_BYTES_PER_SECOND
        notifier.send(
            f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}",
            f"STATUS=bringing the store from schema {needed.stored} to {needed.wanted}",
        )
