"""The ``ktlog-auditor`` command. Each subcommand lives in ``auditor/commands`` and is loaded when it is called."""

from __future__ import annotations

import json
import sys

import click

from ktlog import __version__
from ktlog.errors import KtlogError
from ktlog.lazygroup import LazyGroup

COMMANDS = {
    "audit": "Read a log and check all of it.",
    "report": "Write one page about a log: what was checked, how it grew, what was found.",
    "check-receipt": "Did a log keep the word that it gave in a receipt?",
    "verify-evidence": "Check an evidence file: does it convict the holder of a log's key?",
    "watch": "Follow logs: what they show, what others saw of them, and each new entry.",
    "findings": "List what a watch found.",
    "subscribe": "Be woken when an actor, a key or anybody of a domain changes.",
    "unsubscribe": "End subscriptions.",
    "subscriptions": "List who is watched, and where alarms go.",
    "alarms": "List alarms and what waits for a sink.",
    "test-sink": "Send a test alarm.",
    "verify-alarm": "Check an alarm offline, with nothing but your policy.",
}


@click.group(
    cls=LazyGroup, commands_help=COMMANDS, package="auditor.commands",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ktlog-auditor", message="%(prog)s %(version)s (PKD 0.8)")
def ktlog_auditor() -> None:
    """Check key-transparency logs, and convict those that lie.

    Exit codes: 0 no fault found, 1 internal error, 2 usage, 3 unreachable, 5 invalid, 6 policy unmet,
    7 fork proven (evidence written), 8 local state unusable, 9 stale or rolled back. With several findings
    the gravest decides: 7, 5, 6, 9, 3.
    """


def main() -> None:
    """Run the command; a KtlogError becomes its message and its exit code."""
    try:
        ktlog_auditor(standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("ktlog-auditor: aborted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code if isinstance(error, click.UsageError) else 2)
    except KtlogError as error:
        if "--json" in sys.argv:
            click.echo(json.dumps({"error": error.as_dict(), "ok": False}))
        click.echo(f"ktlog-auditor: {error.diagnostics()}", err=True)
        sys.exit(error.exit_code)
