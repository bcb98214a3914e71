"""The commands of the documents, who runs each of them, and a shell that runs a page.

A page's shell blocks are run from top to bottom in one directory, as a reader would run them. Three things are others:
absolute paths lead below a directory of the test's own, ports are free ones, and names are those of the test's log.
What ends only when it is told to (``serve``, ``watch``, a line with ``&``) goes on to the end of the page.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUNS = ROOT / "tests" / "e2e" / "test_docs_run.py"
SECONDS = 60.0

_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_STAYS = re.compile(r"&$|\bserve(-mirror)?\b(?!.*--help)|\b(ktlog|ktlog-auditor) watch\b(?!.* --once)")
_PLACE = r"(?<![\w/.:-])/(?=(?:var|srv|opt|etc|backup|media|usr|run|root)/)"
_PORT = r"\b127\.0\.0\.1:\d+"


@dataclass(frozen=True)
class Command:
    """One command of a page, joined where ``\\`` divides it. block: the whole block that it is in."""

    page: str
    text: str
    block: str


def read_commands(page: Path) -> list[Command]:
    """All commands in the shell blocks of *page*, in their order."""
    found = []
    for kind, block in _BLOCK.findall(page.read_text(encoding="utf-8")):
        if kind == "sh":
            lines = re.sub(r"\\\n\s*", "", block).splitlines()
            found += [Command(page.name, line, block) for line in lines if line.strip() and not line.startswith("#")]
    return found


def find(listed: Mapping[str, str], command: Command) -> str | None:
    """The key of *listed* that *command* begins with, or ``block`` and what its block begins with; None without one."""
    keys = [
        key for key in listed
        if (command.block.startswith(key.removeprefix("block ")) if key.startswith("block ") else command.text.startswith(key))
    ]
    return keys[0] if keys else None


ELSEWHERE: Mapping[str, Mapping[str, str]] = {
    "README.md": {
        "python3 -m venv .venv && .venv/bin/pip install -q '.[all]'": "tests/e2e/test_demo.py::test_the_whole_story",
        "python3 -m venv .venv && .venv/bin/pip install -q '.[test]'": ".ci/run",
        "block # 1: Python and nginx": "tests/e2e/test_smoke.py::test_a_stranger_gets_a_proven_answer",
    },
    "index.md": {
        "python3 -m venv .venv && .venv/bin/pip install -q '.[all]'": "tests/e2e/test_demo.py::test_the_whole_story",
    },
    "quickstart.md": {
        "block # 1: Python and nginx": "tests/e2e/test_smoke.py::test_a_stranger_gets_a_proven_answer",
    },
    "witness.md": {
        "(printf 'old 0": "tests/unit/test_docs_witness.py::test_the_quick_start_ends_with_a_cosignature",
        "block python3 -m venv /opt/ktlog": "tests/e2e/test_docs_machine.py::test_what_is_done_to_a_machine",
        "block cp deploy/systemd/ktlog-witness.service": "tests/e2e/test_docs_machine.py::test_what_is_done_to_a_machine",
        "block install -d -m 700 /etc/credstore.encrypted": "tests/e2e/test_docs_machine.py::test_what_is_done_to_a_machine",
    },
    "operating.md": {
        "block python3 -m venv /opt/ktlog": "tests/e2e/test_docs_machine.py::test_what_is_done_to_a_machine",
        "block runuser -u ktlog": "tests/e2e/test_docs_machine.py::test_what_is_done_to_a_machine",
        "block install -d -m 700 /etc/ktlog/keys": "tests/e2e/test_docs_machine.py::test_what_is_done_to_a_machine",
    },
    "auditing.md": {
        "ktlog-auditor audit ": "tests/unit/test_docs_pages.py::test_the_audits_of_the_page_run",
    },
    "watching.md": {
        "ktlog-auditor watch keys.example.com": "tests/e2e/test_watch.py::test_the_quick_start_of_the_page",
        "ktlog-auditor findings --dir ./watch": "tests/e2e/test_watch.py::test_the_quick_start_of_the_page",
    },
    "evidence.md": {
        "ktlog-auditor verify-evidence wrong-record.json": "tests/unit/test_evidence_kinds.py::test_the_example_convicts",
        "ktlog-auditor audit keys.example.com --dir ./audits --policy audit.policy --cosign":
            "tests/unit/test_auditor_cosigner.py::test_audit_and_cosign_in_one_command",
        "ktlog-auditor audit keys.example.com --dir ./audits --policy audit.policy &&":
            "tests/e2e/test_replica.py::test_a_log_is_mirrored_and_an_erasure_followed",
    },
    "objects.md": {
        "ktlog init": "tests/e2e/test_log_objects.py::test_init_makes_a_log_in_an_object_store",
    },
    "performance.md": {
        "ktlog bench prefill": "tests/unit/test_bench_commands.py::test_prefill",
        "ktlog bench submit": "tests/unit/test_bench_commands.py::test_submit_without_argon2id",
        "ktlog bench read": "tests/unit/test_bench_commands.py::test_read",
        "ktlog bench pages": "tests/unit/test_bench_commands.py::test_pages",
        "ktlog bench recover": "tests/unit/test_bench_commands.py::test_recover",
        "ktlog bench log --entries": "tests/unit/test_bench_commands.py::test_log",
        "ktlog bench log --store": "tests/unit/test_bench_commands.py::test_log_on_postgresql",
        "ktlog bench log --serve": "tests/unit/test_bench_commands.py::test_log_answers_what_load_generators_send",
        "ktlog bench map": "tests/unit/test_bench_map.py::test_the_command",
        "ktlog bench audit": "tests/unit/test_bench_audit.py::test_an_audit_is_measured",
    },
}
"""By page and beginning of a command, or of its block: the test that runs it, or its like with smaller numbers."""

_NETWORK = "fetches packages or data from the Internet; tests talk to loopback only"

NOT_HERE: Mapping[str, Mapping[str, str]] = {
    "running.md": {"certbot": "asks an authority on the Internet, which looks the name up and comes back to port 80"},
    "operating.md": {"python3 -m venv": _NETWORK},
    "witness.md": {"python3 -m venv": _NETWORK},
    "objects.md": {"pip install": _NETWORK},
    "postgresql.md": {
        "sudo -u postgres": "makes a user and a database of the machine's own server; tests have servers of their own",
        "pip install": _NETWORK,
    },
}
"""By page and beginning of a command, or of its block: why no test runs it, though one may run the rest of its block."""


def install_tools(directory: Path) -> None:
    """Put the three commands into *directory*, as an installation does."""
    for tool in ("ktlog", "ktlog-witness", "ktlog-auditor"):
        entry = tool.replace("-", "_")
        (directory / tool).write_text(f"#!{sys.executable}\nfrom ktlog.entry import {entry}\n\n{entry}()\n")
        (directory / tool).chmod(0o755)


class Shell:
    """Runs commands below *directory*. words: what stands for what in them, longest first.

    ``here`` is the working directory, ``root`` what ``/`` of ``/var``, ``/etc`` and so on is. environment: on top of the
    test's own.
    """

    def __init__(self, directory: Path, words: Mapping[str, str] | None = None, **environment: str) -> None:
        self.here, self.root = directory / "here", directory / "root"
        self.words = dict(words or {})
        self.said: list[str] = []
        self._exports: list[str] = []
        self._ports: dict[str, str] = {}
        self._daemons: list[tuple[str, subprocess.Popen[bytes], Path]] = []
        tools = directory / "tools"
        for path in (self.here, self.root, tools, directory / "home"):
            path.mkdir(parents=True)
        install_tools(tools)
        self._environment = {
            **os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "HOME": str(directory / "home"), **environment,
        }

    def fill(self, text: str) -> str:
        """*text* as it is run."""
        words = "|".join(rf"(?<![\w.-]){re.escape(word)}(?![\w-])" for word in sorted(self.words, key=len, reverse=True))
        pattern = "|".join(filter(None, (words, _PORT, _PLACE)))
        return re.sub(pattern, lambda found: self._stand_in(found[0]), text)

    def _stand_in(self, found: str) -> str:
        if found in self.words:
            return self.words[found]
        return f"{self.root}/" if found == "/" else self.address(found)

    def address(self, written: str) -> str:
        """The ``127.0.0.1:PORT`` in place of the one on the page."""
        if written not in self._ports:
            with socket.create_server(("127.0.0.1", 0)) as listener:
                self._ports[written] = f"127.0.0.1:{listener.getsockname()[1]}"
        return self._ports[written]

    def run(self, text: str, *, typed: str = "", code: int = 0) -> str:
        """Run it to its end, which is to be *code*; gives what it wrote, standard error last."""
        variable = re.match(r"export (\w+)=", text)
        command = self._bash(f"{text}\ndeclare -p {variable[1]}" if variable else text)
        done = subprocess.run(
            command, cwd=self.here, env=self._environment, input=typed, capture_output=True, text=True,
            timeout=2 * SECONDS, check=False,
        )
        said = done.stdout + done.stderr
        self.said.append(said)
        assert done.returncode == code, f"{text}\n{self.fill(text)}\nended with {done.returncode}\n{said}"
        if variable:
            self._exports.append(done.stdout)  # its value, which may be long in the making
        return said

    def _bash(self, text: str) -> list[str]:
        return ["bash", "-euo", "pipefail", "-c", "\n".join([*self._exports, self.fill(text)])]

    def start(self, text: str) -> Callable[[], str]:
        """Run it until ``stop``, and wait until it listens where it says, or has said something; gives its words."""
        output = self.here.parent / f"daemon-{len(self._daemons)}"
        command = self._bash(f"exec {text.strip().removesuffix('&')}")
        with open(output, "wb") as file:
            process = subprocess.Popen(
                command, cwd=self.here, env=self._environment, stdin=subprocess.DEVNULL, stdout=file, stderr=file,
                start_new_session=True,
            )
        self._daemons.append((text, process, output))

        def said() -> str:
            return output.read_text(encoding="utf-8", errors="replace")

        listens = re.search(r"--listen (\S+)", self.fill(text))
        self.wait(text, lambda: _answers(listens[1]) if listens else bool(said()), said)
        return said

    def wait(self, what: str, ready: Callable[[], bool], said: Callable[[], str] = str) -> None:
        deadline = time.monotonic() + SECONDS
        while not ready():
            ended = [one for one, process, _ in self._daemons if process.poll() is not None]
            assert not ended, f"ended by itself: {ended}\n{said()}"
            assert time.monotonic() < deadline, f"{what}: not within {SECONDS:.0f} s\n{said()}"
            time.sleep(0.05)

    def stop(self, beginning: str = "") -> None:
        """End what was started with a command that begins so, and look how it ends: well, and without a traceback."""
        ended = [one for one in self._daemons if one[0].startswith(beginning)]
        for text, process, output in reversed(ended):
            self._daemons.remove((text, process, output))
            process.send_signal(signal.SIGTERM)
            try:
                code = process.wait(SECONDS)
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            said = output.read_text(encoding="utf-8", errors="replace")
            assert code in (0, -signal.SIGTERM) and "Traceback" not in said, f"{text}\nended with {code}\n{said}"

    def kill(self) -> None:
        """End everything, for a test that failed."""
        for _, process, _ in self._daemons:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


Step = Callable[[Shell], object]
BEFORE, TYPED, SAYS, CODES = range(4)


def walk(
    page: str, shell: Shell, *, before: Mapping[str, Step] | None = None, typed: Mapping[str, str] | None = None,
    says: Mapping[str, str] | None = None, codes: Mapping[str, int] | None = None, after: Step | None = None,
) -> None:
    """Run the commands of *page* that are not run elsewhere, and can be here. Keys are beginnings of commands.

    before: what other people do, or the text says to do, before the first such command. typed: answers to the questions of
    all of them. says: a regular expression for the words of the first. codes: how that one ends, if not with 0. after: what is looked at while what was started goes on.
    """
    path = ROOT / page if page == "README.md" else ROOT / "docs" / page
    left_out = {**ELSEWHERE.get(page, {}), **NOT_HERE.get(page, {})}
    used: set[tuple[int, str]] = set()
    tables = [table or {} for table in (before, typed, says, codes)]

    def look_up(number: int, command: Command) -> str | None:
        keys = [
            key for key in tables[number]
            if command.text.startswith(key) and (number == TYPED or (number, key) not in used)
        ]
        used.update((number, key) for key in keys[:1])
        return keys[0] if keys else None

    for command in read_commands(path):
        if find(left_out, command) is not None:
            continue
        keys = [look_up(number, command) for number in range(len(tables))]
        if keys[BEFORE] is not None:
            tables[BEFORE][keys[BEFORE]](shell)
        if _STAYS.search(command.text):
            said = shell.start(command.text)()
        else:
            said = shell.run(command.text, typed=tables[TYPED].get(keys[TYPED], ""), code=tables[CODES].get(keys[CODES], 0))
        if keys[SAYS] is not None:
            assert re.search(tables[SAYS][keys[SAYS]], said), f"{page}: {command.text}\n{said}"
    unused = [key for number, table in enumerate(tables) for key in table if (number, key) not in used]
    assert not unused, f"{page} has no such command: {unused}"
    if after is not None:
        after(shell)
    shell.stop()
