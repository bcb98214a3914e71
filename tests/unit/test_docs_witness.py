"""docs/witness.md says what the witness does: its options, its metrics, and a quick start that starts something."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ktlog.tlog.note import ED25519
from tests.witness_log import Log
from tests.witness_site import Session
from witness import cli
from witness.bastion import Bastion, BastionState
from witness.config import WitnessDir
from witness.metrics import LevelCounter, Tally, format_metrics
from witness.pulling import PullState
from witness.web import create_app, open_witness

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "witness.md").read_text(encoding="utf-8")
MIRROR = ROOT / "docs" / "mirror.md"
TABLE = PAGE.partition("### Options")[2].partition("The other commands")[0]
METRICS = PAGE.partition("### Metrics")[2].partition("Be woken")[0]


def options(command: click.Command) -> list[click.Option]:
    return [one for one in command.params if isinstance(one, click.Option) and one.name not in ("help", "version")]


@pytest.mark.parametrize(("name", "command"), sorted(cli.main.commands.items()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_option_and_every_variable_is_documented(name: str, command: click.Command) -> None:
    text = PAGE + (MIRROR.read_text(encoding="utf-8") if MIRROR.exists() else "")
    for option in options(command):
        for word in (*(word for word in option.opts if word.startswith("--")), *_variables(option)):
            assert re.search(rf"{re.escape(word)}\b", text), f"{word} of {name} is not explained"


def _variables(option: click.Option) -> list[str]:
    found = [] if option.envvar is None else [option.envvar] if isinstance(option.envvar, str) else list(option.envvar)
    assert all(f"[env: {variable}]" in (option.help or "") for variable in found), option.name
    return found


def test_the_table_of_serve_has_its_variables_and_its_defaults() -> None:
    rows = {re.match(r"`(--[a-z-]+)", row[0])[1]: row for row in (
        [cell.strip() for cell in line.strip("|").split(" | ")] for line in TABLE.splitlines() if line.startswith("| `")
    )}
    found = {option.opts[0]: option for option in options(cli.serve)}
    assert len(rows) >= 14 and set(rows) <= set(found)
    for name, row in rows.items():
        assert re.findall(r"KTLOG_\w+", row[1]) == _variables(found[name])
        default = found[name].default
        if isinstance(default, str) and default:
            assert row[2] == f"`{default}`", name


def test_every_metric_is_documented_and_no_other(tmp_path) -> None:
    session = Session(tmp_path)
    found = set()
    for verifier in (None, _Followed()):
        session.witness.verifier = verifier
        text = format_metrics(
            session.witness, session.witness.store, Tally().counted(), unready=None, draining=False,
            logged=LevelCounter().counts, pulls=[PullState("x")], bastions=[BastionState(Bastion("b"))],
        ).decode()
        found |= set(re.findall(r"^# TYPE ktlog_witness_(\w+)", text, re.MULTILINE))
    said = {name for row in re.findall(r"^\| (`.*?) \|", METRICS, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert said == found
    for name in re.findall(r"ktlog_witness_(\w+)", PAGE):
        assert name in found or not name
    session.witness.store.close()


class _Followed:
    def status(self) -> list[dict]:
        return []


def test_the_quick_start_ends_with_a_cosignature(tmp_path, monkeypatch) -> None:
    """Its commands, as they are written; then a submission as its last line makes it, of that log under another key."""
    block = PAGE.partition("<!-- quick-start -->\n```sh\n")[2].partition("```")[0]
    lines = [shlex.split(line) for line in block.splitlines() if line.startswith("ktlog-witness ")]
    assert [line[1] for line in lines] == ["init", "add-log", "serve"]
    monkeypatch.chdir(tmp_path)
    for line in lines[:2]:
        result = CliRunner().invoke(cli.main, line[1:])
        assert result.exit_code == 0, result.output
    directory, origin = lines[1][lines[1].index("--dir") + 1], lines[1][lines[1].index("--origin") + 1]
    stand_in = Log(origin, key_name=lines[1][-1].partition("+")[0], algorithms=(ED25519,))
    assert CliRunner().invoke(cli.main, [*lines[1][1:-1], str(stand_in.vkeys[0])]).exit_code == 0

    prefix = re.search(r"printf '(.*?)'", block)[1].encode().decode("unicode_escape").encode()
    witness = open_witness(WitnessDir(Path(directory)))
    client = create_app(witness).test_client()
    answers = [client.post("/add-checkpoint", data=prefix + stand_in.note(5)) for _ in range(2)]
    witness.store.close()
    assert [answer.status_code for answer in answers] == [200, 409]
    assert answers[0].data.count(b"\n") == 2 and answers[1].data == b"5\n"
