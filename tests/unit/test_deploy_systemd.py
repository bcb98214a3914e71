"""The systemd units: systemd itself takes them, gives them a low exposure, and they call commands that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from ktlog.operator.keys import PURPOSES
from tests.machine import need, program
from tests.unit.test_docs import TOOLS

UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SERVICES = sorted(path.name for path in UNITS.glob("*.service"))
TELLER = "ktlog-tell@.service"
EXPOSURE_LIMIT = 2.0
OPERATING = (Path(__file__).parents[2] / "docs" / "operating.md").read_text(encoding="utf-8")
CREDENTIALS = re.search(r"^```ini\n(\[Service\]\nLoadCredentialEncrypted=.*?)^```", OPERATING, re.DOTALL | re.MULTILINE)[1]


def settings(name: str) -> list[tuple[str, str]]:
    lines = (UNITS / name).read_text(encoding="utf-8").splitlines()
    return [tuple(line.split("=", 1)) for line in lines if "=" in line and not line.startswith("#")]  # type: ignore[misc]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The units, with the commands at a place where they are."""
    need("systemd")
    directory = tmp_path_factory.mktemp("units")
    for path in UNITS.iterdir():
        text = path.read_text(encoding="utf-8").replace("/opt/ktlog/bin/ktlog", sys.executable)
        (directory / path.name).write_text(re.sub(rf"{re.escape(sys.executable)}-\w+", sys.executable, text))
    return directory


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    found = program("systemd-analyze")
    assert found is not None
    return subprocess.run([found, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def test_systemd_takes_every_unit_without_a_word(installed: Path) -> None:
    units = [str(path) for path in installed.iterdir() if path.suffix in (".service", ".timer")]
    done = analyze("verify", "--man=no", *units)
    assert (done.returncode, done.stderr) == (0, "")


def test_it_does_not_take_anything(installed: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.service"
    broken.write_text((installed / "ktlog.service").read_text().replace("ProtectSystem=", "ProtectTheSystem="))
    assert "ProtectTheSystem" in analyze("verify", "--man=no", str(broken)).stderr


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_break_in_would_find_is_little(installed: Path, name: str) -> None:
    done = analyze("security", "--offline=true", "--no-pager", str(installed / name))
    exposure = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert exposure is not None, done.stderr
    assert float(exposure[1]) <= EXPOSURE_LIMIT


@pytest.mark.parametrize("name", [name for name in SERVICES if name != TELLER])
def test_who_fails_is_told_of(name: str) -> None:
    assert ("OnFailure", "ktlog-tell@%n.service") in settings(name)


def test_what_is_told_is_which_unit_failed_and_where_to_look(tmp_path: Path) -> None:
    """What systemd makes of its command, given to a shell: $$ is $, and %i the unit."""
    (command,) = [value for key, value in settings(TELLER) if key == "ExecStart"]
    words = shlex.split(command.replace("$$", "$").replace("%i", "ktlog-backup.service"))
    told = tmp_path / "told"
    done = subprocess.run(words, env={"PATH": "/usr/bin:/bin", "KTLOG_TELL": f"tee {told}"}, capture_output=True, check=True)
    assert told.read_bytes() == done.stdout == b"ktlog-backup.service failed: journalctl -u ktlog-backup.service\n"
    assert ("EnvironmentFile", "-/etc/ktlog/tell") in settings(TELLER) and "/etc/ktlog/tell" in OPERATING


@pytest.mark.parametrize("name", [name for name in SERVICES if name != TELLER])
def test_what_it_starts_exists(name: str) -> None:
    (command,) = [value for key, value in settings(name) if key == "ExecStart"]
    words = shlex.split(command)
    tool = TOOLS[words[0].rpartition("/")[2]]
    subcommand = tool.get_command(None, words[1])  # type: ignore[arg-type]
    assert subcommand is not None
    options = {option for parameter in subcommand.params for option in parameter.opts}
    assert {word for word in words[2:] if word.startswith("--")} <= options


@pytest.mark.parametrize("name", [name for name in SERVICES if "Type=notify" in (UNITS / name).read_text()])
def test_a_worker_may_say_that_it_is_ready(name: str) -> None:
    assert ("NotifyAccess", "all") in settings(name)


def test_every_key_can_be_handed_over(installed: Path, tmp_path: Path) -> None:
    """What the page says to add to the log's unit: each key by its name, and systemd takes it."""
    assert re.findall(r"^LoadCredentialEncrypted=(\S+):/etc/ktlog/keys/\1$", CREDENTIALS, re.MULTILINE) == list(PURPOSES)
    for line in re.findall(r"^#(LoadCredential\S*)$", (UNITS / "ktlog.service").read_text(), re.MULTILINE):
        assert line in CREDENTIALS or line.startswith("LoadCredential=store:")
    unit = tmp_path / "ktlog.service"
    unit.write_text((installed / "ktlog.service").read_text() + CREDENTIALS)
    done = analyze("verify", "--man=no", str(unit))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_log_is_started_after_all_that_it_needs() -> None:
    """Without a policy `serve` ends with 2, which the unit does not try again."""
    text = OPERATING.partition("\n## systemd\n")[2].partition("\n### ")[0]
    steps = (
        "ktlog init ", "next --dir /var/lib/ktlog --letter", "policy make ", "proxy-config nginx ", "config check ",
        "systemctl enable --now ktlog.service",
    )
    places = [text.index(step) for step in steps]
    assert places == sorted(places)
    assert "2" in dict(settings("ktlog.service"))["RestartPreventExitStatus"].split()


def test_every_user_is_made() -> None:
    made = re.findall(r"^u (\S+) ", (UNITS / "ktlog.sysusers").read_text(encoding="utf-8"), re.MULTILINE)
    assert {value for name in SERVICES for key, value in settings(name) if key == "User"} == set(made)
