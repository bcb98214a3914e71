"""The ``ktlog`` command. Each subcommand lives in ``ktlog/commands`` and is loaded when it is called."""

from __future__ import annotations

import json
import sys

import click

from ktlog import __version__
from ktlog.errors import KtlogError
from ktlog.lazygroup import LazyGroup

COMMANDS = {
    "init": "Make a new log.",
    "next": "Say what a new log is missing still.",
    "policy": "Say who must cosign a log, and what its readers need.",
    "proxy-config": "Print the configuration of nginx, Caddy or Apache for a log.",
    "unit": "Print a systemd unit.",
    "serve": "Run a log.",
    "config": "Show and check a log's configuration.",
    "admin": "Look after a log while it runs.",
    "doctor": "Look at a log from inside and outside, and say what to do.",
    "keys": "Show and replace a log's own keys.",
    "shred": "Erase an actor from a log, for good.",
    "fsck": "Check that a whole log is what its entries make it.",
    "backup": "Copy a log, while it runs.",
    "restore": "Put a log back from a backup, if the world allows it.",
    "migrate": "Bring a log's store up to this version's schema.",
    "migrate-store": "Move a stopped log from SQLite to PostgreSQL.",
    "checkpoint-peers": "Commit a log's root to the logs that it mirrors.",
    "demo": "Live through a whole federation on this machine.",
    "lookup": "Find an actor's keys, and prove them.",
    "verify": "Check a saved answer again, offline.",
    "watch": "Follow an actor, and say what changes.",
    "verify-page": "Write the page that checks a log in a browser, from your disk.",
    "key": "Make and show an actor's signing keys.",
    "submit": "Send a protocol message to a log, for an instance.",
    "receipt": "Check what a log signed when it took a message.",
    "bench": "Make a large log, and measure reading from it.",
    "conformance": "Replay published PKD test vectors.",
    "completion": "Teach a shell to complete these commands.",
    "man": "Write the manual pages.",
}


@click.group(
    cls=LazyGroup, commands_help=COMMANDS, package="ktlog.commands",
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="ktlog", message="%(prog)s %(version)s (PKD 0.8)")
def ktlog() -> None:
    """Key transparency for the Fediverse.

    Exit codes: 0 ok, 1 internal error, 2 usage, 3 unreachable, 4 not logged, 5 invalid,
    6 policy unmet, 7 misbehaviour proven, 8 local conflict, 9 stale.
    """


def main() -> None:
    """Run the command; a KtlogError becomes its message and its exit code."""
    try:
        # Outside standalone mode click returns the code of ctx.exit() instead of leaving with it.
        code = ktlog(prog_name="ktlog", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Abort:
        click.echo("ktlog: aborted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code if isinstance(error, click.UsageError) else 2)
    except KtlogError as error:
        if "--json" in sys.argv:
            click.echo(json.dumps({"error": error.as_dict()}))
        click.echo(f"ktlog: {error.diagnostics()}", err=True)
        sys.exit(error.exit_code)
