"""Several commands in one interpreter behave as at a shell."""

from __future__ import annotations

import json
import subprocess
import sys


def run_batch(module: str, commands: list[list[str]]) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-m", "ktlog.demo.batch", module, json.dumps(commands)],
        capture_output=True, text=True, timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)["done"]


def test_each_command_runs_by_itself_until_one_fails(tmp_path):
    directory = str(tmp_path / "w")
    made, listed, refused = run_batch("witness", [
        ["init", "--dir", directory, "--name", "w.example", "--json"],
        ["list-logs", "--dir", directory, "--json"],
        ["init", "--dir", directory, "--name", "w.example", "--json"],
        ["init", "--dir", str(tmp_path / "never"), "--name", "never.example", "--json"],
    ])
    assert (made["name"], made["exit_code"]) == ("w.example", 0)
    assert (listed["logs"], listed["exit_code"]) == ([], 0)
    assert refused["exit_code"] == refused["error"]["exit_code"] != 0
    assert not (tmp_path / "never").exists()


def test_a_command_that_is_none_has_a_code_and_says_nothing_on_standard_output(tmp_path):
    assert run_batch("auditor", [["verify-evidence", "--nothing"]]) == [{"exit_code": 2}]
