"""``ktlog-witness pull-logs`` and ``set-mark``: what an operator, or a timer, does beside the daemon."""

from __future__ import annotations

import time
from pathlib import Path

import click

from ktlog import durable
from ktlog.errors import UsageError
from ktlog.words import some
from witness.clikit import EXIT_CODES, dir_option, json_option, mark_option, open_store, print_json, reporting
from witness.config import WitnessDir
from witness.mark import write_mark
from witness.pulling import pull_from


@click.command("pull-logs", epilog=EXIT_CODES)
@dir_option
@click.argument("source", metavar="SOURCE")
@json_option
@reporting
def pull_logs(directory: Path, source: str, as_json: bool) -> None:
    """Follow all logs of a list of the witness network, at an https URL or in a file (format logs/v0).

    Logs are added, with the list's limits (qpd), and nothing else is changed: a log with another key than the one on
    record, and one that left the list, are told on standard error. Run it each hour or day; it takes effect at once,
    also while the witness is being served. `serve --pull-logs` does the same from within.
    """
    done = pull_from(directory, source, int(time.time()))
    for warning in done.warnings:
        click.echo(f"ktlog-witness: warning: {warning}", err=True)
    if as_json:
        print_json({"listed": done.listed, "added": list(done.added), "warnings": list(done.warnings)})
        return
    for origin in done.added:
        click.echo(f"{origin}: added")
    click.echo(f"{some(done.listed, 'log')} in the list, {len(done.added)} of them new")


@click.command("set-mark", epilog=EXIT_CODES)
@dir_option
@mark_option
@click.option("--record-is-the-newest", "sure", is_flag=True, required=True,
              help="Say that witness.db is no copy, restored or otherwise, of an earlier time.")
@json_option
@reporting
def set_mark(directory: Path, mark: Path | None, sure: bool, as_json: bool) -> None:
    """Write the high-water mark anew, from the record as it is now.

    The mark is how a witness finds out that its database was replaced by an older copy. With this command YOU say
    that it was not; were it one, the witness could cosign a second history, and nothing would tell. Use it when the
    mark was lost or is to be kept in another place, and never after restoring witness.db from a backup. A mark that
    is ahead of the record is left alone, and the command refused.
    """
    if not sure:
        raise UsageError("NotSaid", "say --record-is-the-newest, if you know it")
    paths = WitnessDir(directory)
    paths.check()
    place = paths.mark if mark is None else mark
    with durable.FileLock(paths.lock):
        store = open_store(directory)
        try:
            recorded = store.count_writes()
            write_mark(place, store.vkeys, recorded)
        finally:
            store.close()
    if as_json:
        print_json({"mark": str(place), "writes": recorded})
        return
    click.echo(f"{place} says that the record counts {recorded} writes")
