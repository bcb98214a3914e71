"""A witness whose calls on files go wrong, one after the other (tests/faults/witnessed.py), and what notices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.witnessed import SABOTAGES

ROOT = Path(__file__).parents[2]


def witnessed(*options: str) -> tuple[int, dict]:
    """In a process of its own: it forks, which a test runner with threads should not."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.witnessed", *options], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])},
    )
    assert done.stdout.strip(), done.stderr[-3000:]
    return done.returncode, json.loads(done.stdout.splitlines()[-1])


def held(*options: str) -> int:
    """How many faults were injected; none may have done any harm."""
    code, told = witnessed(*options)
    assert (code, told["violations"]) == (0, [])
    return sum(counts.get("recovered", 0) for counts in told["table"].values())


def test_a_few_faults_of_every_kind() -> None:
    assert held("--share", "50", "--seed", "5") > 8


@pytest.mark.slow
def test_every_fifth_fault() -> None:
    assert held("--share", "5") > 150


@pytest.mark.slow
@pytest.mark.parametrize(("sabotage", "only"), [
    ("answers although the commit failed", "fails"), ("no fsync of commits", "power"), ("goes on after a failed commit", "fails"),
])
def test_a_witness_broken_on_purpose_is_noticed(sabotage: str, only: str) -> None:
    code, told = witnessed("--sabotage", sabotage, "--only", only)
    assert code == 1 and told["violations"]


def test_every_sabotage_is_tried() -> None:
    marks = test_a_witness_broken_on_purpose_is_noticed.pytestmark
    assert {case[0] for mark in marks if mark.name == "parametrize" for case in mark.args[1]} == set(SABOTAGES)
