"""Every setting is a flag, a variable and a line of the file; `ktlog config` tells which holds, and what is wrong."""

from __future__ import annotations

import json
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.commands.serve import command as serve
from ktlog.commands.settings import MEANINGS, as_environment
from ktlog.config import Settings, load_settings
from ktlog.operator.create import create_log

SET = [field for field in fields(Settings) if field.name not in ("directory", "origin", "dialect")]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("config") / "log"
    create_log(directory, "keys.example.com", "spec", None)
    return directory


def run(*words: object) -> tuple[int, str]:
    done = CliRunner().invoke(ktlog, ["config", *map(str, words)])
    return done.exit_code, done.output


def test_every_setting_has_a_meaning_and_a_flag() -> None:
    assert set(MEANINGS) == {field.name for field in SET}
    assert {parameter.name for parameter in serve.params} >= set(MEANINGS)


@pytest.mark.parametrize("field", SET, ids=lambda field: field.name)
def test_a_flag_reaches_processes_that_read_the_configuration_anew(log: Path, field) -> None:
    """Through the environment, which says the same as the flag."""
    parameter = next(parameter for parameter in serve.params if parameter.name == field.name)
    chosen = {"role": "all", "log_format": "json", "log_level": "debug"}
    given = {bool: "true", int: "1"}.get(type(field.default), chosen.get(field.name, "x"))
    value = parameter.type.convert(given, parameter, None)
    environment = as_environment({field.name: value, "listen2": None})
    assert environment == {f"KTLOG_{field.name.upper()}": given}
    assert type(value) is type(field.default)


def test_it_shows_where_a_value_comes_from(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTLOG_WORKERS", "3")
    code, out = run("show", "--dir", log, "--json")
    shown = json.loads(out)
    assert code == 0
    assert shown["workers"] == {"value": 3, "from": "environment"}
    assert shown["origin"] == {"value": "keys.example.com", "from": "file"}
    assert shown["threads"] == {"value": 8, "from": "default"}
    assert set(shown) == {field.name for field in fields(Settings)} - {"directory"}


def test_what_it_shows_is_a_configuration_that_says_the_same(log: Path) -> None:
    code, out = run("show", "--dir", log)
    assert code == 0
    values = tomllib.loads(out)
    assert values == {name: getattr(load_settings(log), name) for name in values}


def test_all_that_is_wrong_is_said_at_once(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTLOG_AUX_TYPES", "no-such-type")
    monkeypatch.setenv("KTLOG_METRICS_LISTEN", "0.0.0.0:9464")
    code, out = run("check", "--dir", log, "--json")
    said = json.loads(out)
    assert code == 2 and not said["ok"]
    names = [problem["name"] for problem in said["problems"]]
    assert {"BadListen", "NoPublishPolicy"} <= set(names) and len(names) == 3
    code, out = run("check", "--dir", log)
    assert "NoPublishPolicy: " in out and "tlog-policy" in out


def test_a_configuration_that_cannot_be_read(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KTLOG_WORKERS", "many")
    code, out = run("check", "--dir", log)
    assert (code, out.split(":")[0]) == (2, "BadConfiguration")
