"""``ktlog completion``."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from ktlog.commands.tools import TOOLS
from ktlog.errors import UsageError

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def command(shell: str) -> None:
    """Print what teaches SHELL to complete ktlog, ktlog-witness and ktlog-auditor.

    \b
    bash: ktlog completion bash > /etc/bash_completion.d/ktlog
    zsh:  source <(ktlog completion zsh), in ~/.zshrc after compinit
    fish: ktlog completion fish > ~/.config/fish/conf.d/ktlog.fish
    """
    click.echo(completion_script(shell), nl=False)


def completion_script(shell: str) -> str:
    """The scripts of all three tools, one after the other."""
    kind = get_completion_class(shell)
    if kind is None:
        raise UsageError("UnknownShell", f"{shell} is none of {', '.join(SHELLS)}")
    scripts = []
    for tool in TOOLS:
        variable = f"_{tool.replace('-', '_').upper()}_COMPLETE"
        made = kind(click.Command(tool), {}, tool, variable)
        # Not `.source()`: that would ask a shell of this machine for its version.
        scripts.append((made.source_template % made.source_vars()).strip() + "\n")
    # click's function for fish takes a description to end at its first comma.
    return "\n".join(scripts).replace('(string split "," $completion)', '(string split --max 1 "," $completion)')
