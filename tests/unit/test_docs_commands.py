"""Every command in the documents is run by a test, or stands on a list that says why it cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from tests.docs_commands import DOCUMENTS, ELSEWHERE, NOT_HERE, ROOT, RUNS, Command, Shell, find, read_commands
from tests.unit.test_docs import TOOLS

PAGES = {page.name: commands for page in DOCUMENTS if (commands := read_commands(page))}
RUN = set(re.findall(r"\bwalk\(\s*\"([\w-]+\.md)\"", RUNS.read_text(encoding="utf-8")))


def who(command: Command) -> str | None:
    """The reason why nobody runs it, the test that does, or the page's own."""
    for listed in (NOT_HERE, ELSEWHERE):
        key = find(listed.get(command.page, {}), command)
        if key is not None:
            return listed[command.page][key]
    return "the page's own test" if command.page in RUN else None


@pytest.mark.parametrize("page", sorted(PAGES))
def test_every_command_is_run_or_has_a_reason(page: str) -> None:
    assert [command.text for command in PAGES[page] if who(command) is None] == []


def test_the_lists_name_nothing_that_is_gone() -> None:
    stale = [
        f"{page}: {key}" for listed in (ELSEWHERE, NOT_HERE) for page, keys in listed.items() for key in keys
        if not any(find({key: ""}, command) for command in PAGES.get(page, []))
    ]
    assert stale == [] and not RUN - PAGES.keys()


@pytest.mark.parametrize("test", sorted({test for keys in ELSEWHERE.values() for test in keys.values()}))
def test_the_tests_that_are_named_exist(test: str) -> None:
    path, _, name = test.partition("::")
    assert f"def {name}(" in (ROOT / path).read_text(encoding="utf-8") if name else (ROOT / path).exists()


def test_no_command_hides_in_a_block_without_a_language() -> None:
    """Such blocks are for what programs print, and for files; their lines would be seen by no test."""
    for document in DOCUMENTS:
        for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE):
            if kind != "sh":
                hidden = re.findall(r"^(?:ktlog(?:-\w+)? [a-z]|pip |openssl |\(umask).*", block, re.MULTILINE)
                assert not hidden, f"{document.name}: {hidden}"


def inline_commands() -> list[tuple[str, str]]:
    """Every command of ours that stands in a sentence, from its name to the end of the code."""
    found = []
    for document in DOCUMENTS:
        text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        for code in re.findall(r"(?<!`)`([^`]+)`(?!`)", text):
            words = " ".join(code.split())
            if re.match(r"(ktlog|ktlog-witness|ktlog-auditor) [a-z]", words):
                found.append((document.name, words))
    return sorted(set(found))


def options(command: click.Command) -> set[str]:
    """Those of a command; of a group those of all its commands: a sentence may leave out which."""
    found = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found |= options(command.get_command(click.Context(command), name))
    return found


@pytest.mark.parametrize(("page", "words"), inline_commands(), ids=lambda value: value)
def test_a_command_in_a_sentence_exists(page: str, words: str) -> None:
    tool, *rest = words.split(" && ")[0].split(" | ")[0].split()
    command: click.Command = TOOLS[tool]
    while isinstance(command, click.Group) and rest and re.match("[a-z]", rest[0]):
        names = rest.pop(0).split("|")
        found = [command.get_command(click.Context(command), name) for name in names]
        assert None not in found, f"{page}: {names}"
        command = found[0]
    wrong = [word for word in rest if re.match("--[a-z]", word) and word.rstrip("…").partition("=")[0] not in options(command)]
    assert wrong == [], f"{page}: no option {wrong}"


def test_what_a_page_says_is_run_elsewhere(tmp_path: Path) -> None:
    """Paths below a directory of one's own, other ports, other names; and nothing else is changed."""
    shell = Shell(tmp_path, {"keys.example.com": "keys.alpha.example", "ORIGIN": "o", "/var/lib/ktlog": "/tmp/x/log"})
    told = "ktlog serve --dir /var/lib/ktlog --mark=/srv/mark --listen 127.0.0.1:8080 # a/var/lib https://h/var/lib/x"
    here = shell.address("127.0.0.1:8080")
    assert shell.fill(told) == (
        f"ktlog serve --dir /tmp/x/log --mark={shell.root}/srv/mark --listen {here} # a/var/lib https://h/var/lib/x"
    )
    assert shell.fill("/var/lib/ktlog-witness https://keys.example.com/x my.keys.example.com ORIGINAL ORIGIN") == (
        f"{shell.root}/var/lib/ktlog-witness https://keys.alpha.example/x my.keys.example.com ORIGINAL o"
    )
    assert here != "127.0.0.1:8080" and shell.address("127.0.0.1:8080") == here


def test_a_command_that_fails_fails_the_test(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    shell.run('export SAID="$(echo once >> made; cat made)"')
    assert [shell.run("echo $SAID; echo twice >&2") for _ in range(2)] == ["once\ntwice\n"] * 2
    with pytest.raises(AssertionError, match="ended with 2"):
        shell.run("ktlog policy make --dir /var/lib/nothing")
    with pytest.raises(AssertionError, match="ended with 1"):
        shell.run("false | true")
    with pytest.raises(AssertionError, match="ended by itself"):
        shell.start("false &")
    shell.kill()
