"""``ktlog-witness`` from the command line: exit codes, JSON, messages and help."""

from __future__ import annotations

import json
import stat

import pytest
from click.testing import CliRunner

from ktlog.tlog.note import parse_vkey
from tests.witness_log import NOW, Log
from witness import cli
from witness.config import WitnessDir
from witness.store import WitnessStore, hash_origin
from witness.web import open_witness
from witness.witness import Witness

LOG = Log()
VKEYS = [str(vkey) for vkey in LOG.vkeys]


def run(*arguments: object):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "w"
    (tmp_path / "seed").write_text("00" * 31 + "01\n")
    assert run("init", "--dir", path, "--name", "example.com/w1",
               "--seed-file", tmp_path / "seed").exit_code == 0
    return path


# --- init


def test_init_makes_a_private_directory_and_prints_both_vkeys(tmp_path):
    result = run("init", "--dir", tmp_path / "w", "--name", "example.com/w1")
    assert result.exit_code == 0
    vkeys = [parse_vkey(line) for line in result.stdout.splitlines()[1:]]
    assert [(vkey.name, vkey.algorithm) for vkey in vkeys] == [("example.com/w1", 4), ("example.com/w1", 6)]
    assert stat.S_IMODE((tmp_path / "w").stat().st_mode) == 0o700
    for path in (tmp_path / "w").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name


def test_init_json_and_the_seed_file_fixes_the_keys(tmp_path):
    seed = tmp_path / "seed"
    seed.write_text("ab" * 32)
    first, second, random = (
        run_json("init", "--dir", tmp_path / name, "--name", "example.com/w1", *options)
        for name, options in (("a", ("--seed-file", seed)), ("b", ("--seed-file", seed)), ("c", ()))
    )
    assert first["name"] == "example.com/w1"
    assert first["vkeys"] == second["vkeys"]
    assert not set(first["vkeys"]) & set(random["vkeys"])


def test_init_refuses_a_directory_that_holds_a_witness_and_leaves_it_alone(directory):
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    result = run("init", "--dir", directory, "--name", "example.com/w2")
    assert result.exit_code == 8
    assert "WitnessExists" in result.stderr
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before


def test_init_that_is_refused_makes_nothing(tmp_path):
    assert run("init", "--dir", tmp_path / "w", "--name", "two words").exit_code == 2
    assert run("init", "--dir", tmp_path / "w", "--name", "w", "--seed-file", tmp_path / "x").exit_code == 2
    assert not (tmp_path / "w").exists()


def test_an_error_is_one_json_object_too(tmp_path):
    result = run("init", "--dir", tmp_path / "w", "--name", "a+b", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["error"]["name"] == "BadName"


# --- logs


def test_add_log_takes_the_origin_from_the_key_and_several_keys(directory):
    answer = run_json("add-log", "--dir", directory, *VKEYS)
    assert (answer["origin"], answer["added"], answer["vkeys"]) == (LOG.origin, VKEYS, VKEYS)
    again = run_json("add-log", "--dir", directory, VKEYS[0])
    assert (again["added"], again["vkeys"]) == ([], VKEYS)
    assert "nothing new" in run("add-log", "--dir", directory, VKEYS[0]).stdout


def test_add_log_with_an_origin_of_its_own(directory):
    key = str(Log(key_name="sum.example.org").vkeys[0])
    answer = run_json("add-log", "--dir", directory, key, "--origin", "go.sum database tree")
    assert answer["origin"] == "go.sum database tree"
    assert answer["monitoring_path"] == f"/{hash_origin('go.sum database tree')}/checkpoint"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "name"),
    [
        (("example.com/log+00000000+AAAA",), 5, "BadVkey"),
        ((VKEYS[0] + " ",), 5, "BadVkey"),
        ((VKEYS[0], "--origin", "x" * 256), 2, "BadOrigin"),
        ((VKEYS[0], "--origin", "two\nlines"), 2, "BadOrigin"),
        ((VKEYS[0], "--origin", ""), 2, "BadOrigin"),
        ((VKEYS[0], str(Log("other.example").vkeys[0])), 2, "ManyNames"),
        ((), 2, "VKEY"),
    ],
)
def test_add_log_refuses_what_is_no_log(directory, arguments, exit_code, name):
    result = run("add-log", "--dir", directory, *arguments)
    assert result.exit_code == exit_code
    assert name in result.stderr
    assert run_json("list-logs", "--dir", directory)["logs"] == []


def test_a_witness_s_key_is_no_log_key_and_its_own_least_of_all(directory):
    own = WitnessStore.open(WitnessDir(directory).database).vkeys
    for vkey, name in zip(own, ("NotALogKey", "OwnKey"), strict=True):
        result = run("add-log", "--dir", directory, vkey)
        assert result.exit_code == 2
        assert name in result.stderr


def test_list_logs_before_and_after_a_cosignature(directory):
    assert run_json("list-logs", "--dir", directory) == {
        "name": "example.com/w1", "logs": [], "evidence": 0
    }
    assert "No logs" in run("list-logs", "--dir", directory).stdout
    run("add-log", "--dir", directory, *VKEYS)
    assert run_json("list-logs", "--dir", directory)["logs"][0]["size"] is None
    assert "never cosigned" in run("list-logs", "--dir", directory).stdout

    witness = open_witness(WitnessDir(directory))
    at_noon = Witness(witness.store, witness.signers, clock=lambda: NOW)
    assert at_noon.add_checkpoint(LOG.submission(0, 5)).status == 200
    assert at_noon.add_checkpoint(LOG.submission(5, 5, root=bytes(32))).status == 422
    witness.store.close()

    answer = run_json("list-logs", "--dir", directory)
    assert answer["evidence"] == 1
    (log,) = answer["logs"]
    assert (log["origin"], log["size"], log["time"], log["vkeys"]) == (LOG.origin, 5, NOW, VKEYS)
    text = run("list-logs", "--dir", directory).stdout
    assert "size 5" in text
    assert "cosigned 2023-11-14T22:13:20Z" in text
    assert f"{LOG.origin}+{LOG.vkeys[1].key_id.hex()} (ML-DSA-44)" in text
    assert "Evidence of forks on record: 1" in text


# --- refusals at the door


@pytest.mark.parametrize("command", [("add-log", VKEYS[0]), ("list-logs",), ("serve", "--listen", "127.0.0.1:0")])
def test_without_a_witness_or_its_database_nothing_starts_and_nothing_is_made(tmp_path, directory, command):
    result = run(command[0], "--dir", tmp_path / "none", *command[1:])
    assert (result.exit_code, "NoWitness" in result.stderr) == (8, True)
    assert not (tmp_path / "none").exists()

    (directory / "witness.db").unlink()
    result = run(command[0], "--dir", directory, *command[1:])
    assert (result.exit_code, "DatabaseMissing" in result.stderr) == (8, True)
    assert not (directory / "witness.db").exists()


def test_serve_refuses_bad_keys_and_bad_addresses(directory):
    assert run("serve", "--dir", directory, "--listen", "nowhere").exit_code == 2
    (directory / "ed25519.key").chmod(0o644)
    result = run("serve", "--dir", directory, "--listen", "127.0.0.1:0")
    assert (result.exit_code, "chmod 600" in result.stderr) == (8, True)
    (directory / "ed25519.key").unlink()
    result = run("serve", "--dir", directory, "--listen", "127.0.0.1:0")
    assert (result.exit_code, "MissingSecret" in result.stderr) == (8, True)


# --- help


@pytest.mark.parametrize("command", [(), ("init",), ("add-log",), ("list-logs",), ("serve",)])
def test_help_is_enough_to_work_from(command):
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert "Exit codes" in result.stdout
    if command:
        assert "--dir" in result.stdout
    else:
        for name in ("init", "add-log", "list-logs", "serve"):
            assert f"ktlog-witness {name}" in result.stdout or f"  {name} " in result.stdout


def test_no_option_goes_unexplained():
    for command in cli.main.commands.values():
        assert command.help
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or parameter.help, (command.name, parameter.name)


def test_an_unknown_command_is_usage():
    assert run("remove-log").exit_code == 2
