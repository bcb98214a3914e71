"""What ``ktlog completion`` prints teaches real shells to complete all three tools; bash has its test in test_shell.py."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from ktlog.commands.completion import completion_script
from tests.docs_commands import install_tools
from tests.machine import need, program

pytestmark = pytest.mark.slow

SECONDS = 30.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With the three tools on the path, and a home of the test's own."""
    tools = tmp_path / "tools"
    tools.mkdir()
    install_tools(tools)
    return {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb", "XDG_CONFIG_HOME": ""}


def test_fish(environment: dict[str, str], tmp_path: Path) -> None:
    """Loaded from where the command's help says. A candidate and its description are a line, with a tab between."""
    need("shells")
    place = tmp_path / ".config" / "fish" / "conf.d" / "ktlog.fish"
    place.parent.mkdir(parents=True)
    place.write_text(completion_script("fish"))
    (tmp_path / "alice.bundle").touch()

    def complete(line: str) -> list[list[str]]:
        done = subprocess.run(
            [program("fish"), "-c", f"complete -C '{line}'"], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env=environment, cwd=tmp_path, timeout=SECONDS, check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")
        return [found.split("\t") for found in done.stdout.splitlines()]

    assert ["restore", "Put a log back from a backup, if the world allows it."] in complete("ktlog re")
    assert [found[0] for found in complete("ktlog policy m")] == ["make"]
    assert [found[0] for found in complete("ktlog-witness add")] == ["add-log"]
    assert {"verify-alarm", "verify-evidence"} <= {found[0] for found in complete("ktlog-auditor verify")}
    assert [found[0] for found in complete("ktlog verify alice")] == ["alice.bundle"]


class Terminal:
    """A shell at a terminal, to which a test types."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    def type(self, text: str, *awaited: str) -> str:
        """*text*, and what came back until all that is awaited did."""
        os.write(self._handle, text.encode())
        said, deadline = "", time.monotonic() + SECONDS
        while not all(word in said for word in awaited):
            assert time.monotonic() < deadline, f"{text!r}: {said!r}"
            if select.select([self._handle], [], [], 0.5)[0]:
                said += os.read(self._handle, 65536).decode("utf-8", "replace")
        return said


@contextmanager
def terminal(*command: str, cwd: Path, environment: dict[str, str]) -> Iterator[Terminal]:
    handle, inner = pty.openpty()
    process = subprocess.Popen(
        command, stdin=inner, stdout=inner, stderr=inner, env=environment, cwd=cwd, start_new_session=True,
    )
    os.close(inner)
    try:
        yield Terminal(handle)
    finally:
        process.kill()
        process.wait()
        with suppress(OSError):
            os.close(handle)


def test_zsh(environment: dict[str, str], tmp_path: Path) -> None:
    """Loaded in .zshrc after compinit, as the command's help says. What was completed is what the line then does."""
    need("shells")
    (tmp_path / "alice.bundle").touch()
    (tmp_path / ".zshrc").write_text(
        "autoload -Uz compinit; compinit -D -u\nsource <(ktlog completion zsh)\n"
        "ktlog ktlog-witness ktlog-auditor() { print -r -- \"<$*>\" }\nPS1='> '\n"
    )
    with terminal(program("zsh"), "-d", "-i", cwd=tmp_path, environment=environment | {"ZDOTDIR": str(tmp_path)}) as shell:
        shell.type("", "> ")
        for typed, meant in (
            ("ktlog policy m", "policy make"), ("ktlog-witness add", "add-log"), ("ktlog-auditor check-r", "check-receipt"),
            ("ktlog verify alice", "verify alice.bundle"),
        ):
            shell.type(f"{typed}\t", meant.split()[-1])
            shell.type("\n", f"<{meant}>", "> ")
        listed = shell.type("ktlog re\t\t", "receipt", "restore", "if the world allows it.")
        assert "-- Check what a log signed" in listed
