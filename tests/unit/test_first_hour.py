"""What `ktlog init`, `next`, `serve`, `policy` and `proxy-config` tell an operator, and that it works when it is done."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ktlog.cli import COMMANDS, ktlog
from ktlog.commands.doctor import _closing
from ktlog.config import Settings, load_settings
from ktlog.errors import KtlogError, UsageError
from ktlog.operator.create import load_public_keys
from ktlog.operator.firsthour import backup_line, describe_start, missing_at_start
from ktlog.operator.proxy import KINDS, Proxied, example
from ktlog.operator.service import load_publish_policy
from ktlog.operator.stores import open_map_tiles, open_tiles
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import COSIGNATURE_ED25519, COSIGNATURE_MLDSA44, ED25519, sign_checkpoint, signer_from_seed
from ktlog.tlog.policy import parse_policy
from ktlog.tlog.tree import EMPTY_ROOT
from ktlog.web.verifypage import page_hash
from tests.unit.test_docs import TOOLS
from witness.cli import main as witness_main

ROOT = Path(__file__).resolve().parents[2]
ORIGIN = "keys.example.com"


def vkeys(name: str) -> str:
    """What `ktlog-witness vkeys` prints for a witness of that name."""
    seeds = {kind: bytes([kind, len(name), *name.encode()[:1]]).ljust(32, b"x") for kind in (4, 6)}
    return "\n".join(
        str(signer_from_seed(name, kind, seeds[kind]).vkey) for kind in (COSIGNATURE_ED25519, COSIGNATURE_MLDSA44)
    )


def signed(origin: str) -> bytes:
    return sign_checkpoint(Checkpoint(origin, 0, EMPTY_ROOT), [signer_from_seed(origin, ED25519, bytes(32))], 1)


def run(*words: str) -> Result:
    return CliRunner().invoke(ktlog, list(words))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    directory = tmp_path_factory.mktemp("first hour") / "log"
    return directory, run("init", "--dir", str(directory), "--origin", ORIGIN)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    assert run("init", "--dir", str(tmp_path / "log"), "--origin", ORIGIN).exit_code == 0
    return load_settings(tmp_path / "log", environment={})


def make_policy(settings: Settings, *more: str, names: tuple[str, ...] = ("w1.example.net", "wit2.example.net")) -> Result:
    witnesses = [word for name in names for word in ("--witness", vkeys(name))]
    return run("policy", "make", "--dir", str(settings.directory), *witnesses, *more)


# -- init and next


def test_init_prints_the_vkeys_and_nothing_else_to_stdout(made: tuple[Path, Result]) -> None:
    directory, result = made
    public = load_public_keys(load_settings(directory, environment={}))
    assert result.stdout.splitlines() == [*public.vkeys, *public.map_vkeys]


def test_what_a_terminal_shows_of_init_is_the_letter_then_what_is_missing(made: tuple[Path, Result]) -> None:
    directory, result = made
    letter = run("next", "--dir", str(directory), "--letter").stdout
    assert letter in result.output
    assert run("next", "--dir", str(directory)).stdout in result.output
    assert page_hash() in result.output and len(result.output.splitlines()) < 45


def test_the_letters_commands_are_the_witnesses_own(made: tuple[Path, Result]) -> None:
    """With the letter's keys in place of its words, a witness and a verifier follow the log."""
    letter = run("next", "--dir", str(made[0]), "--letter").stdout
    keys = [line for line in letter.splitlines() if "+" in line.partition(" ")[0]]
    commands = re.findall(r"`(ktlog-witness add-log .*?)`", letter)
    assert len(keys) == len(commands) * 2 == 4
    for number, words in enumerate(map(shlex.split, commands)):
        directory = made[0].parent / f"w{number}"
        assert CliRunner().invoke(witness_main, ["init", "--dir", str(directory), "--name", "w.example"]).exit_code == 0
        words = [str(directory) if word in ("W", "V") else word for word in words[1:] if word != "VKEY"]
        for given in ([keys] if "--replay" in words else [keys[:2], keys[2:]]):
            assert CliRunner().invoke(witness_main, [*words, *given]).exit_code == 0


def test_every_command_that_is_told_exists(made: tuple[Path, Result]) -> None:
    told = json.loads(run("next", "--dir", str(made[0]), "--json").stdout)
    assert told["ok"] is False and told["verify-page-sha256"] == page_hash()
    lines = [line for step in (*told["missing"], *told["then"]) for line in step["commands"]]
    assert len(lines) >= 7
    for line in lines:
        words = shlex.split(line[line.index("ktlog"):])
        command = TOOLS["ktlog"]
        for word in words[1:]:
            command = command.get_command(None, word) or command if hasattr(command, "get_command") else command
        options = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, line


def test_next_names_what_is_missing_until_nothing_is(settings: Settings) -> None:
    def missing() -> list[str]:
        told = json.loads(run("next", "--dir", str(settings.directory), "--json").stdout)
        assert told["ok"] is (told["missing"] == [])
        return [step["what"].split()[0] + " " + step["what"].split()[1] for step in told["missing"]]

    assert missing() == ["Two witnesses", "A TLS", "The log"]
    settings.publish_policy.write_text("quorum none\n")
    assert missing()[0] == "A policy"
    assert make_policy(settings, "--replace").exit_code == 0
    assert missing()[0] == "A verifier"
    assert make_policy(settings, "--replace", "--verifier", vkeys("v1.example.net")).exit_code == 0
    assert missing() == ["A TLS", "The log"]
    open_tiles(settings).publish_checkpoint(signed(ORIGIN))
    assert missing() == ["Its map:"]
    open_map_tiles(settings).publish_checkpoint(signed(f"{ORIGIN}/map"))
    assert missing() == []
    assert "Nothing is missing" in run("next", "--dir", str(settings.directory)).stdout


def test_what_serve_says_where_nobody_reads_along(settings: Settings) -> None:
    def said() -> list[str]:
        return list(describe_start(settings, missing_at_start(settings)))

    assert missing_at_start(replace(settings, role="web", store="postgresql:///x")) == []  # whose policy is elsewhere
    assert any("Two witnesses" in line for line in said()) and f"ktlog next --dir {settings.directory}" in said()[-1]
    make_policy(settings)
    assert any("no client gets proof" in line for line in said()) and len(said()) <= 7
    make_policy(settings, "--replace", "--verifier", vkeys("v1.example.net"))
    open_tiles(settings).publish_checkpoint(signed(ORIGIN))
    open_map_tiles(settings).publish_checkpoint(signed(f"{ORIGIN}/map"))
    assert len(said()) == 3 and settings.url in said()[-1] and max(map(len, said())) < 120


def serve(settings: Settings, *, terminal: bool, **variables: str) -> tuple[int, str]:
    """What `ktlog serve` writes to standard error, and its exit code. It must end by itself."""
    ours, theirs = pty.openpty() if terminal else os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "ktlog", "serve", "--dir", str(settings.directory)], stdin=subprocess.DEVNULL, stderr=theirs,
        env={**os.environ, **variables},
    )
    os.close(theirs)
    parts = []
    with contextlib.suppress(OSError):  # how a terminal ends
        while part := os.read(ours, 65536):
            parts.append(part)
    os.close(ours)
    return process.wait(60), b"".join(parts).decode().replace("\r\n", "\n")


def test_on_a_terminal_serve_says_all_that_is_missing_and_what_stops_it_last(settings: Settings) -> None:
    """URLs, vkeys, the letter, the proxy, the backup, and what is missing. In a journal it would be in nobody's way."""
    code, text = serve(settings, terminal=True)
    letter = run("next", "--dir", str(settings.directory), "--letter").stdout
    snippet = run("proxy-config", "nginx", "--dir", str(settings.directory)).stdout
    assert code == 2 and text.index(letter) < text.index("server_name") < text.index("Missing, before anybody")
    written = {line.strip() for line in text.splitlines()}
    assert {line.strip() for line in snippet.splitlines() if not line.strip().startswith("#")} <= written
    for words in ("1. Two witnesses", f"{settings.url}/checkpoint", settings.actor_id, f"backup --dir {settings.directory}"):
        assert words in text
    stopped, make, send, look = text.rstrip().splitlines()[-4:]
    assert stopped.startswith("ktlog: NoPublishPolicy: ") and "stops here until" in stopped and "witnesses" in stopped
    words = shlex.split(make[make.index("ktlog policy make"):])
    assert words[3:5] == ["--dir", str(settings.directory)] and "--witness" in words and "--verifier" in words
    assert send.endswith(f"ktlog next --dir {settings.directory}") and "`ktlog demo`" in look and "demo" in COMMANDS
    for more in ({"terminal": False}, {"terminal": True, "KTLOG_LOG_FORMAT": "json"}):
        code, text = serve(settings, **more)
        assert code == 2 and "NoPublishPolicy" in text and "server_name" not in text and len(text) < 1000
        assert "stops here until" in text and "ktlog policy make --dir" in text and "ktlog demo" in text


def test_one_witness_alone_and_two_of_two_are_warned_of(settings: Settings) -> None:
    def told(*names: str) -> tuple[str, str]:
        made = make_policy(settings, "--replace", "--verifier", vkeys("v1.example.net"), names=names)
        return made.stderr, run("next", "--dir", str(settings.directory)).stdout

    for text in told("w.example"):
        assert "One witness alone: if it is down nothing is published. Take three." in text
    for text in told("w.example", "ww.example"):
        assert "Of the 2 witnesses none may be down" in text
    for text in told("w.example", "ww.example", "www.example"):
        assert "down" not in text


def test_each_thing_that_is_missing_from_a_policy_has_its_command(settings: Settings) -> None:
    for words in (None, "quorum none\n", "made"):
        if words == "made":
            make_policy(settings, "--replace")
        elif words:
            settings.publish_policy.write_text(words)
        (step, *_) = json.loads(run("next", "--dir", str(settings.directory), "--json").stdout)["missing"]
        command = shlex.split(step["commands"][-1])
        assert command[:3] == ["ktlog", "policy", "make"] and ("--replace" in command) is (words is not None)


def test_the_backup_line_needs_no_path(settings: Settings) -> None:
    (line,) = [line for line in run("next", "--dir", str(settings.directory)).stdout.splitlines() if "17 * * * *" in line]
    words = shlex.split(line)[5:]
    done = subprocess.run([*words[:words.index("--dir")], "--help"], env={}, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert done.returncode == 0 and b"--drop-erased" in done.stdout


def test_the_backup_line_is_the_units(settings: Settings) -> None:
    """The cron line does what deploy/systemd does each hour."""
    unit = (ROOT / "deploy" / "systemd" / "ktlog-backup.service").read_text()
    command = re.search(r"^ExecStart=\S+/(ktlog .*)$", unit, re.MULTILINE)[1]
    assert backup_line(settings.directory).endswith(command.replace("/var/lib/ktlog", str(settings.directory)))


# -- policies


def test_a_policy_from_vkeys(settings: Settings) -> None:
    result = make_policy(settings, "--verifier", vkeys("v1.example.net"))
    assert result.exit_code == 0 and "2 of 2 witnesses and 1 of 1 verifiers" in result.output
    policy = load_publish_policy(settings)
    assert {one.url for one in policy.witnesses.values()} == {
        "https://w1.example.net", "https://wit2.example.net", "https://v1.example.net",
    }
    policy.check_safe(require_verifiers=True)
    for whom, names in (("clients", [f"{ORIGIN}/map"]), ("auditors", [ORIGIN, f"{ORIGIN}/map"])):
        shown = parse_policy(run("policy", "show", "--dir", str(settings.directory), "--for", whom).stdout_bytes)
        assert [(log.vkey.name, log.url) for log in shown.logs] == [(name, f"https://{name}") for name in names]
        assert {log.vkey.algorithm for log in shown.logs} == {COSIGNATURE_MLDSA44}
        shown.check_safe(require_verifiers=whom == "clients")
        assert ("verifiers" in shown.groups) is (whom == "clients")


def test_without_verifiers_clients_are_given_no_map(settings: Settings) -> None:
    """A policy with a map and no verifiers is one that a client refuses."""
    make_policy(settings)
    for whom, names in (("clients", [ORIGIN]), ("auditors", [ORIGIN, f"{ORIGIN}/map"])):
        shown = parse_policy(run("policy", "show", "--dir", str(settings.directory), "--for", whom).stdout_bytes)
        assert [log.vkey.name for log in shown.logs] == names


def test_more_than_half_of_the_witnesses(settings: Settings) -> None:
    for count, needed in ((1, 1), (2, 2), (3, 2), (4, 3)):
        names = tuple(f"{'w' * number}.example" for number in range(1, count + 1))
        assert make_policy(settings, "--replace", names=names).exit_code == 0
        assert load_publish_policy(settings).groups["witnesses"].threshold == needed


def test_a_policy_is_not_overwritten_nor_made_of_nonsense(settings: Settings) -> None:
    make_policy(settings)
    before = settings.publish_policy.read_bytes()
    own = "\n".join(load_public_keys(settings).vkeys)
    for words in (
        [], ["--replace", "--witness", vkeys("w1.example.net")], ["--replace", "--witness", "x"], ["--replace", "--witness", own],
        ["--replace", "--witness", f"{vkeys('a.example')} {vkeys('b.example')}"], ["--replace", "--verifier", vkeys("w1.example.net")],
    ):
        result = make_policy(settings, *words)
        assert isinstance(result.exception, KtlogError), words
        assert settings.publish_policy.read_bytes() == before
    result = run("policy", "make", "--dir", str(settings.directory), "--replace")
    assert isinstance(result.exception, UsageError) and result.exception.name == "NoWitnesses"


# -- the proxy


@pytest.mark.parametrize("kind", KINDS)
def test_deploy_has_what_the_command_prints(kind: str) -> None:
    assert (ROOT / "deploy" / KINDS[kind]).read_text(encoding="utf-8") == example(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_logs_own_names_stand_in_it(settings: Settings, kind: str) -> None:
    words = ["proxy-config", kind, "--dir", str(settings.directory), "--upstream", "127.0.0.1:9999", "--also", "w1.example=127.0.0.1:8081"]
    text = run(*words).stdout
    assert ORIGIN in text and "127.0.0.1:9999" in text and "127.0.0.1:8080" not in text
    assert re.search(r"w1\.example\b.*127\.0\.0\.1:8081", text, re.DOTALL)
    assert not re.search(r"@[A-Z]+@|^#[\[\]]|^#\w+\]", text, re.MULTILINE)
    assert "/srv/ktlog" not in text


def test_what_cannot_be_written_into_a_configuration_is_refused() -> None:
    for values in (
        {"origin": "keys.example.com; evil"}, {"upstream": "fd://3"}, {"upstream": "127.0.0.1:80; }"}, {"tiles": "/srv/a b"},
        {"key": "/x;y"}, {"also": (("W", "127.0.0.1:1"),)}, {"also": (("w.example", "x y"),)},
    ):
        with pytest.raises(UsageError):
            Proxied(**values)


def test_tiles_are_for_nginx(settings: Settings) -> None:
    words = ["--dir", str(settings.directory), "--tiles", "/srv/ktlog"]
    assert "root /srv/ktlog;" in run("proxy-config", "nginx", *words).stdout
    assert isinstance(run("proxy-config", "caddy", *words).exception, UsageError)


# -- doctor's last line


def test_doctors_last_line() -> None:
    assert [_closing(*counts) for counts in ((0, 0), (0, 2), (1, 0), (1, 2))] == [
        "All is well.", "Nothing is bad; 2 worth a look.", "1 bad.", "1 bad, 2 worth a look.",
    ]


def test_doctor_ends_with_it(settings: Settings) -> None:
    result = run("doctor", "--dir", str(settings.directory), "--inside")
    assert re.fullmatch(r"\d bad(, \d worth a look)?\.", result.stdout.splitlines()[-1]) and result.exit_code == 5


# -- the twelve commands


def test_the_twelve_commands_are_the_same_everywhere() -> None:
    blocks = {
        re.search(r"<!-- smoke -->\n```sh\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)[1]
        for name in ("README.md", "docs/quickstart.md")
    }
    (block,) = blocks
    assert (ROOT / "deploy" / "smoke.sh").read_text(encoding="utf-8").endswith(f"\n{block}")
    lines = block.splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == [f"# {number}" for number in range(1, 13)]
    assert not any(line.startswith("#") or not line for line in lines[1::2]) and len(lines) == 24
