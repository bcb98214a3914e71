"""``ktlog serve``."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from ktlog.commands.next import describe_next
from ktlog.commands.settings import as_environment, setting_options
from ktlog.config import WEB, Settings, load_settings
from ktlog.errors import KtlogError, StoreError
from ktlog.operator.cosigning import load_cosigners
from ktlog.operator.create import ensure_map, load_public_keys
from ktlog.operator.directories import check_directories
from ktlog.operator.firsthour import Step, describe_start, letter, missing_at_start, proxy_snippet, without_policy
from ktlog.operator.mapcheck import check_whole_map
from ktlog.operator.service import load_publish_policy
from ktlog.operator.shred import finish_erasures
from ktlog.operator.sources import load_sources
from ktlog.operator.startkeys import check_keys
from ktlog.operator.stores import database_url, look_at_database, map_exists
from ktlog.operator.supervisor import supervise
from ktlog.pkd.extensions import choose
from ktlog.store import upgrade
from ktlog.wire import logs
from ktlog.wire.notify import Notifier

START_SECONDS = 600.0
UPGRADE_FACTOR = 5.0
"""How much slower than where it was measured an upgrade may be."""
SECONDS_PER_ENTRY = 0.001
"""Of an upgrade of a database whose steps were not measured: the slowest of SQLite's takes less."""
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

    On a terminal it says what is missing before anybody gets a verified answer, with all that this takes.

    Every setting of DIR/ktlog.toml can be given here too, for this run. `ktlog config show` tells what holds.
    """
    settings = load_settings(directory, flags)
    logs.configure_daemon(settings.log_format, settings.log_level)
    notifier = Notifier.from_environment()
    steps = missing_at_start(settings)
    welcomed = bool(steps) and sys.stderr.isatty() and not logs.are_lines()
    if welcomed:  # before the checks: what stops them, a policy that is missing perhaps, is the last word then
        click.echo("\n".join(_welcome(settings, steps)), err=True)
    try:
        _check(settings, check_map, notifier)
    except KtlogError as error:
        if not logs.are_lines():
            raise
        logs.say_why(error)
        sys.exit(error.exit_code)
    for line in () if welcomed else describe_start(settings, steps):
        logs.say(line)
    sys.exit(supervise(settings, as_environment(flags), notifier))


def _welcome(settings: Settings, steps: list[Step]) -> Iterator[str]:
    """For somebody at a terminal, while something is missing: all that this takes, the most pressing last."""
    public = load_public_keys(settings)
    yield from (line for _kind, line in letter(settings, public))
    if any("proxy" in step.what for step in steps) and (snippet := list(proxy_snippet(settings))):
        yield f"\nFor nginx, within http {{ }} (`ktlog proxy-config nginx --dir {settings.directory}` explains it):"
        yield from (f"  {line}" for line in snippet)
    yield ""
    yield from describe_next(settings, steps)
    yield ""


def _check(settings: Settings, check_map: bool, notifier: Notifier) -> None:
    """See that the log can start, and finish what an earlier run could not."""
    choose(settings.aux_type_names())
    check_directories(settings.directory_urls())
    load_cosigners(settings.cosigners)
    check_keys(settings)
    load_sources(settings)
    if settings.role != WEB:
        if not settings.publish_policy.exists():
            raise without_policy(settings)
        load_publish_policy(settings)
    _ask_for_time(settings, notifier)
    if not settings.uses_postgres:  # else the sequencer does this when it is its turn, and only then
        finish_erasures(settings, lambda: int(time.time()))
        ensure_map(settings)
    if check_map:
        check_whole_map(settings)


def _ask_for_time(settings: Settings, notifier: Notifier) -> None:
    """Have systemd wait for an upgrade of the store: ended in the middle of it, each start would begin it anew.

    A database is upgraded by whichever sequencer's turn it is, here or elsewhere; web workers wait for that.
    """
    url = database_url(settings)
    found: list[upgrade.Upgrade | upgrade.DatabaseUpgrade] = []
    if url is None:
        found.append(upgrade.look(settings.database))
        if map_exists(settings):
            found.append(upgrade.look_at_map(settings.map_database))
    elif notifier.address:
        with suppress(StoreError):  # who needs the database says what is wrong, and tries again
            found.append(look_at_database(url))
    needed = [one for one in found if one.steps]
    if needed:
        seconds = START_SECONDS + sum(_slowly(one) for one in needed)
        notifier.send(
            f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}",
            f"STATUS=bringing the store from schema {needed[0].stored} to {needed[0].wanted}",
        )


def _slowly(needed: upgrade.Upgrade | upgrade.DatabaseUpgrade) -> float:
    """Seconds that an upgrade takes on a slow machine."""
    work = needed.seconds if isinstance(needed, upgrade.Upgrade) else SECONDS_PER_ENTRY * needed.entries
    return UPGRADE_FACTOR * work + needed.copy_bytes / COPY_BYTES_PER_SECOND
