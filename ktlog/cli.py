"""The ``ktlog`` command. Each subcommand lives in ``ktlog/commands`` and is loaded when it is called."""

from __future__ import annotations

import importlib
import json
import sys

import click

from ktlog import __version__
from ktlog.errors import KtlogError

COMMANDS = {
    "init": "Make a new log.",
    "serve": "Run a log.",
    "shred": "Erase an actor from a log, for good.",
    "checkpoint-peers": "Commit a log's root to the logs that it mirrors.",
    "demo": "Live through a whole federation on this machine.",
    "lookup": "Find an actor's keys, and prove them.",
    "verify": "Check a saved answer again, offline.",
    "watch": "Follow an actor, and say what changes.",
    "key": "Make and show an actor's signing keys.",
    "submit": "Send a protocol message to a log, for an instance.",
    "receipt": "Check what a log signed when it took a message.",
    "bench": "Make a large log, and measure reading from it.",
    "conformance": "Replay published PKD test vectors.",
}


class _Lazy(click.Group):
    """Loads one command's module at a time: `--help` and `lookup` need no server."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        try:
            return importlib.import_module(f"ktlog.commands.{name.replace('-', '_')}").command
        except ModuleNotFoundError as error:
            if error.name is None or error.name.startswith("ktlog"):
                raise
            raise click.ClickException(
                f"`ktlog {name}` needs the package {error.name}. In a checkout of ktlog: pip install '.[all]'"
            ) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
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
