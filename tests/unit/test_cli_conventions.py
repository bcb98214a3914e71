"""What docs/decisions/0013 says of the command line."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.commands.shred import command as shred
from ktlog.errors import KtlogError

ROOT = Path(__file__).resolve().parents[2]
COLOUR = re.compile(rb"\x1b\[(?:\d+;)*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
ASKING = {"click.confirm", "click.prompt", "click.confirmation_option", "click.password_option", "input", "getpass.getpass"}
ASKED = {"prompt", "confirmation_prompt"}  # what an option can be given
TELL = """
from ktlog.demo.teller import choose_teller
teller = choose_teller(False)
teller.step(1, "One")
teller.held("it")
teller.refused("who", "no")
with teller.progress("bar", 1) as advance:
    advance()
"""


def on_a_terminal(**variables: str) -> bytes:
    """What the teller of `ktlog demo` writes to a terminal."""
    ours, theirs = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "COLORTERM")}
    process = subprocess.Popen(
        [sys.executable, "-c", TELL], stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, cwd=ROOT,
        env={**kept, "TERM": "xterm-256color", **variables},
    )
    os.close(theirs)
    parts = []
    with contextlib.suppress(OSError):  # how a terminal ends
        while part := os.read(ours, 65536):
            parts.append(part)
    os.close(ours)
    assert process.wait(60) == 0
    return b"".join(parts)


def test_no_colour_where_somebody_wants_none() -> None:
    plain, dumb = on_a_terminal(NO_COLOR="1"), on_a_terminal(TERM="dumb")
    assert COLOUR.search(on_a_terminal()) and not COLOUR.search(plain) and b"\x1b" not in dumb
    for text in (plain, dumb):  # what a colour says elsewhere is still said
        assert "✓ ok".encode() in text and "✗ refused".encode() in text


def test_one_command_asks_and_a_script_can_answer() -> None:
    asking = set()
    for path in (path for package in ("ktlog", "witness", "auditor") for path in (ROOT / package).rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call):
                name = ast.unparse(call.func)
                if name in ASKING or (name == "click.option" and ASKED & {word.arg for word in call.keywords}):
                    asking.add(path.relative_to(ROOT).as_posix())
    assert asking == {"ktlog/commands/shred.py"}
    assert "--yes" in {option for parameter in shred.params for option in parameter.opts}


def test_json_is_one_object_without_a_version(tmp_path: Path) -> None:
    where = ["--dir", str(tmp_path / "log")]
    assert CliRunner().invoke(ktlog, ["init", *where, "--origin", "keys.example.com"]).exit_code == 0
    for words in (["next"], ["config", "show"], ["keys", "list"], ["fsck"], ["doctor", "--inside"]):
        found = json.loads(CliRunner().invoke(ktlog, [*words, *where, "--json"]).stdout)
        assert isinstance(found, dict) and found and "schema" not in found, words


@pytest.mark.parametrize("module", ["ktlog", "auditor", "witness"])
def test_a_tool_lists_the_codes_that_it_ends_with(module: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True, cwd=ROOT,
    )
    words = done.stdout.partition("Exit codes: ")[2].partition("\n\n")[0].partition("With several")[0]
    listed = set(map(int, re.findall(r"\b\d+\b", words)))
    kinds, codes = [KtlogError], {0}
    while kinds:
        kind = kinds.pop()
        codes.add(kind.exit_code)
        kinds += kind.__subclasses__()
    assert listed == codes if module == "ktlog" else {0, 2, 3, 5, 8} <= listed <= codes
