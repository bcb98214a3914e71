"""``ktlog man``: manual pages, made from the commands themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import click

from ktlog import __version__
from ktlog.commands.tools import TOOLS, load_tool
from ktlog.durable import file_errors, write_atomic

DIRECTORY = "/usr/local/share/man"


@click.command()
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False), default=Path(DIRECTORY),
              show_default=True, help="Where `man` looks; the pages go into its man1.")
def command(directory: Path) -> None:
    """Write the manual pages of ktlog, ktlog-witness and ktlog-auditor: `man ktlog-serve`, and one for each command.

    They say what --help says, and are the same bytes for the same version.
    """
    pages = directory / "man1"
    with file_errors(pages):
        pages.mkdir(parents=True, exist_ok=True)
    count = 0
    for tool in TOOLS:
        for name, text in man_pages(tool):
            write_atomic(pages / f"{name}.1", text.encode())
            count += 1
    click.echo(f"{count} pages in {pages}")


def man_pages(tool: str) -> Iterator[tuple[str, str]]:
    """Name and roff text of the page of *tool* and of each of its commands."""
    yield from _pages(load_tool(tool), _context(load_tool(tool), tool))


def _pages(shown: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    below = []
    if isinstance(shown, click.Group):
        for name in shown.list_commands(context):
            one = shown.get_command(context, name)
            if one is not None and not one.hidden:
                below.append((name, one))
    yield _name(context), _page(shown, context, below)
    for name, one in below:
        yield from _pages(one, _context(one, name, context))


def _context(shown: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    return click.Context(shown, parent=parent, info_name=name, **shown.context_settings)


def _name(context: click.Context) -> str:
    return context.command_path.replace(" ", "-")


def _page(shown: click.Command, context: click.Context, below: list[tuple[str, click.Command]]) -> str:
    name = _name(context)
    lines = [
        f'.TH "{_roff(name.upper())}" 1 "" "ktlog {__version__}" "ktlog manual"',
        ".SH NAME", f"{_roff(name)} \\- {_roff(shown.get_short_help_str(200).rstrip('.'))}",
        ".SH SYNOPSIS", f".B {_roff(context.command_path)}", _roff(" ".join(shown.collect_usage_pieces(context))),
        ".SH DESCRIPTION", *_text(shown.help or ""),
    ]
    records = [(one, one.get_help_record(context)) for one in shown.get_params(context)]
    # click has a record of an argument, too; one without words is in the synopsis already.
    options = [record for one, record in records if record and (isinstance(one, click.Option) or record[1])]
    if options:
        lines.append(".SH OPTIONS")
    for words, help_text in options:
        lines += [".TP", f"\\fB{_roff(words)}\\fR", *_text(help_text)]
    if below:
        lines.append(".SH COMMANDS")
    for word, one in below:
        lines += [".TP", f"\\fB{_roff(name)}\\-{_roff(word)}\\fR(1)", _roff(one.get_short_help_str(200))]
    if shown.epilog:
        lines += [".PP", *_text(shown.epilog)]
    parents = [_name(context.parent)] if context.parent is not None else [tool for tool in TOOLS if tool != name]
    lines += [".SH SEE ALSO", ", ".join(f"\\fB{_roff(one)}\\fR(1)" for one in parents)]
    return "\n".join(lines) + "\n"


def _text(text: str) -> list[str]:
    """Paragraphs as click shows them: those after ``\\b`` keep their lines."""
    lines = []
    for number, paragraph in enumerate(re.split(r"\n\s*\n", text.strip())):
        kept = [line.strip() for line in paragraph.splitlines() if line.strip()]
        if number:
            lines.append(".PP")
        if kept and kept[0] == "\b":
            lines += [".nf", *map(_roff, kept[1:]), ".fi"]
        else:
            lines.append(_roff(" ".join(kept)))
    return lines


_ROFF = str.maketrans({
    "\\": "\\e", "-": "\\-", "`": "\\(ga", "'": "\\(aq", "^": "\\(ha", "~": "\\(ti", "…": "...",
})


def _roff(text: str) -> str:
    """*text* as roff reads it: nothing in it is a request, and a hyphen is one that can be copied."""
    text = text.translate(_ROFF)
    return f"\\&{text}" if text.startswith(".") else text
