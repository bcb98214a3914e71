"""A group of commands that loads the module of one at a time: ``--help``, and whoever needs little, need no more.

``ktlog`` and ``ktlog-auditor`` are such groups.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click
from click.shell_completion import CompletionItem


class LazyGroup(click.Group):
    """Commands that live in modules of *package*, each as ``command``.

    Args:
        commands_help: one line for each command, by name, in the order in which they are listed.
        package: has a module for each; a hyphen in a name is an underscore there.
    """

    def __init__(self, *args: object, commands_help: Mapping[str, str], package: str, **options: object) -> None:
        super().__init__(*args, **options)  # type: ignore[arg-type]
        self._help = commands_help
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._help)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in self._help:
            return None
        try:
            found: click.Command = importlib.import_module(f"{self._package}.{name.replace('-', '_')}").command
            return found
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] in ("ktlog", self._package.split(".")[0]):
                raise
            raise click.ClickException(
                f"`{ctx.command_path} {name}` needs the package {error.name}."
                " In a checkout of ktlog: pip install '.[all]'"
            ) from None

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """As click's, without importing every command for its help."""
        found = [CompletionItem(name, help=text) for name, text in self._help.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(self._help.items()))
