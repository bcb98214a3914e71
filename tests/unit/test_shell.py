"""Completion and manual pages are made of the commands, all of them, and the same every time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ktlog.cli import COMMANDS, ktlog
from ktlog.commands.completion import SHELLS, completion_script
from ktlog.commands.man import man_pages
from ktlog.commands.tools import TOOLS, load_tool
from tests.machine import program

PAGES = {name: text for tool in TOOLS for name, text in man_pages(tool)}


def commands(shown: click.Command, name: str):
    """Every command below *shown* by the name of its page."""
    yield name, shown
    if isinstance(shown, click.Group):
        for word in shown.list_commands(click.Context(shown)):
            below = shown.get_command(click.Context(shown), word)
            if not below.hidden:
                yield from commands(below, f"{name}-{word}")


ALL = dict(found for tool in TOOLS for found in commands(load_tool(tool), tool))


def plain(roff: str) -> str:
    """Roff as a reader sees it, near enough to look words up."""
    return roff.replace("\\-", "-").replace("\\(aq", "'").replace("\\(ga", "`").replace("\\&", "")


def test_every_command_has_a_page_with_every_option() -> None:
    assert PAGES.keys() == ALL.keys() and len(PAGES) > 80
    for name, shown in ALL.items():
        text = plain(PAGES[name])
        assert text.startswith(f'.TH "{name.upper()}" 1 ')
        for option in (one for one in shown.params if isinstance(one, click.Option) and not one.hidden):
            assert all(re.search(rf"{re.escape(word)}\b", text) for word in option.opts), f"{name}: {option.opts}"


def test_no_line_of_a_page_is_a_request_by_accident() -> None:
    known = r"\.(TH|SH|TP|PP|nf|fi|B)\b"
    for name, text in PAGES.items():
        assert not [line for line in text.splitlines() if line.startswith((".", "'")) and not re.match(known, line)], name


def test_the_pages_are_the_same_bytes_again(tmp_path: Path) -> None:
    assert CliRunner().invoke(ktlog, ["man", "--dir", str(tmp_path)]).exit_code == 0
    found = {path.name: path.read_text(encoding="utf-8") for path in (tmp_path / "man1").iterdir()}
    assert found == {f"{name}.1": text for name, text in PAGES.items()}


def test_groff_has_nothing_to_say() -> None:
    if program("groff") is None:
        pytest.skip("groff is not installed (Debian: groff-base)")
    done = subprocess.run(
        [program("groff"), "-Tutf8", "-man", "-ww", "-z"], input="".join(PAGES.values()), capture_output=True, text=True, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_shell_learns_all_three_tools() -> None:
    for shell in SHELLS:
        script = completion_script(shell)
        assert all(f"_{tool.replace('-', '_').upper()}_COMPLETE" in script for tool in TOOLS)
        assert CliRunner().invoke(ktlog, ["completion", shell]).output == script


def test_bash_takes_it_and_completes(tmp_path: Path) -> None:
    """In a real bash, whose function asks the tool itself."""
    if program("bash") is None:
        pytest.skip("bash is not installed")
    tool = tmp_path / "ktlog"
    tool.write_text(f"#!/bin/sh\nexec {sys.executable} -m ktlog \"$@\"\n")
    tool.chmod(0o755)
    ask = 'COMP_WORDS=(ktlog policy m); COMP_CWORD=2; _ktlog_completion ktlog; echo "${COMPREPLY[@]}"; complete -p ktlog-auditor'
    done = subprocess.run(
        [program("bash"), "--norc", "-c", f"{completion_script('bash')}\n{ask}"], stdin=subprocess.DEVNULL, capture_output=True,
        text=True, env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}, check=False,
    )
    assert done.stdout.splitlines()[0] == "make" and "_ktlog_auditor_completion" in done.stdout, done.stderr


def test_the_first_word_is_completed_without_importing_every_command() -> None:
    items = ktlog.shell_complete(click.Context(ktlog), "re")
    assert [item.value for item in items] == [name for name in COMMANDS if name.startswith("re")] != []
    assert {item.value for item in ktlog.shell_complete(click.Context(ktlog), "--v")} == {"--version"}
