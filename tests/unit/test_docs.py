"""The documents say what the code does: commands, options, settings, exit codes, links."""

from __future__ import annotations

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import click
import pytest

import auditor.cli
import ktlog.cli
import ktlog.errors
import witness.cli
from ktlog.config import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
TOOLS = {"ktlog": ktlog.cli.ktlog, "ktlog-witness": witness.cli.main, "ktlog-auditor": auditor.cli.ktlog_auditor}


def command_lines() -> list[tuple[str, list[str]]]:
    """Every line in a shell block that calls one of our tools, with its words."""
    found = []
    for document in DOCUMENTS:
        for block in re.findall(r"```sh\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                for part in " ".join(words).split(" && "):
                    command = part.split()
                    if command and command[0].rpartition("/")[2] in TOOLS:
                        found.append((f"{document.name}: {line}", [command[0].rpartition("/")[2], *command[1:]]))
    return found


@pytest.mark.parametrize(("where", "words"), command_lines(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_command_in_the_documents_exists(where: str, words: list[str]) -> None:
    """The command is there and takes every option that the document gives it."""
    command: click.Command = TOOLS[words[0]]
    rest = words[1:]
    context = click.Context(command)
    while isinstance(command, click.Group):
        assert rest, f"{where}: no subcommand"
        command = command.get_command(context, rest.pop(0))
        assert command is not None, f"{where}: no such command"
    options = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    for word in rest:
        if word.startswith("--"):
            assert word in options, f"{where}: no option {word}"


def test_the_documents_name_enough_commands() -> None:
    """The test above sees what it should: without commands it would pass on nothing."""
    used = {words[0] for _, words in command_lines()}
    assert used == set(TOOLS) and len(command_lines()) >= 25


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    for field in fields(Settings):
        if field.name not in ("directory", "origin", "dialect"):
            assert f"`{field.name}`" in text, f"docs/running.md does not explain {field.name}"


def test_documented_settings_exist() -> None:
    text = (ROOT / "docs" / "running.md").read_text(encoding="utf-8")
    table = text.partition("## Configuration")[2]
    names = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert names == {field.name for field in fields(Settings)} - {"directory", "origin", "dialect"}


def test_links_within_the_repository_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)", document.read_text(encoding="utf-8")):
            assert (document.parent / target).exists(), f"{document.name} links to {target}"


def test_the_readme_names_every_exit_code() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8").partition("ends with a code")[2]
    said = {int(number) for number in re.findall(r"\b(\d) [a-z]", text)}
    classes = vars(ktlog.errors).values()
    used = {c.exit_code for c in classes if isinstance(c, type) and issubclass(c, ktlog.errors.KtlogError)}
    assert said | {1} == used | {0}


def test_python_in_the_readme_parses_and_imports_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                module = __import__(node.module, fromlist=[alias.name for alias in node.names])
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_ci_runs_the_readmes_test_command() -> None:
    """.ci/run takes the command from the README, so the marker that it looks for must be there, once."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert readme.count("<!-- test-command -->") == readme.count("<!-- demo-command -->") == 1
    assert "<!-- test-command -->" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
