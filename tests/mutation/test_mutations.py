"""Break a cited rule, and its cited test turns red: the conformance page does not point at bystanders.

Each mutation of tests/mutations.py is made in a copy of the source, in which the one cited test then runs
in a process of its own. A run takes a seeded sample; to take all, or another one:

    KTLOG_MUTATIONS=all pytest -m slow tests/mutation
    KTLOG_MUTATIONS=20 KTLOG_MUTATION_SEED=7 pytest -m slow tests/mutation
"""

from __future__ import annotations

import ast
import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conformance_page import ROOT, read_page
from tests.mutations import MUTATIONS, Mutation

SAMPLE, SEED = os.environ.get("KTLOG_MUTATIONS", "24"), os.environ.get("KTLOG_MUTATION_SEED", "1")
COPIED = ("ktlog", "witness", "auditor", "tests", "docs", "setup.cfg", "pyproject.toml")
SECONDS = 120
ROWS = {requirement.number: requirement for requirement in read_page()[0]}


def sample() -> list[Mutation]:
    """The same one for the same seed; each file's mutations have the same chance."""
    if SAMPLE == "all":
        return list(MUTATIONS)
    return random.Random(SEED).sample(MUTATIONS, min(int(SAMPLE), len(MUTATIONS)))


# --- the list


def test_there_is_enough_to_choose_from() -> None:
    assert len(MUTATIONS) >= 50
    assert len({mutation.file for mutation in MUTATIONS}) >= 15
    assert [row for row, times in Counter((m.requirement, m.file, m.old) for m in MUTATIONS).items() if times > 1] == []
    assert sample() == sample()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_mutation_breaks_one_place_of_a_cited_rule(mutation: Mutation) -> None:
    """Its requirement is on the page and cites its test, its text is there once, and what it makes is Python."""
    row = ROWS[mutation.requirement]
    assert mutation.test in row.tests, f"{mutation.requirement} does not cite {mutation.test}"
    source = (ROOT / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1, f"{mutation.file} has {source.count(mutation.old)} times {mutation.old!r}"
    mutated = source.replace(mutation.old, mutation.new)
    assert mutated != source
    ast.parse(mutated)


# --- the run


def copy_of(directory: Path) -> Path:
    """The source as it is, in *directory*, with nothing compiled or cached."""
    directory.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, directory / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        else:
            shutil.copy2(ROOT / name, directory / name)
    return directory


def run(tree: Path, tests: Sequence[tuple[str, str]]) -> subprocess.CompletedProcess[str]:
    """These tests in the copy, and nothing of the tree that was copied."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTEST_ADDOPTS")}
    environment |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "HYPOTHESIS_STORAGE_DIRECTORY": str(tree / "hypothesis")}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header"]
    return subprocess.run(
        [*command, *dict.fromkeys(f"{file}::{function}" for file, function in tests)],
        cwd=tree, env=environment, capture_output=True, text=True, timeout=SECONDS * max(1, len(tests) // 4),
    )


@pytest.mark.slow
def test_the_copy_is_what_runs(tmp_path: Path) -> None:
    """Or nothing that is changed in it could ever matter."""
    tree = copy_of(tmp_path / "tree")
    code = "import ktlog, tests.mutations as m; print(ktlog.__file__, m.__file__)"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tree, env=os.environ | {"PYTHONPATH": str(tree)}, capture_output=True, text=True,
    )
    assert [Path(path).is_relative_to(tree) for path in found.stdout.split()] == [True, True], found.stderr


@pytest.mark.slow
def test_a_broken_rule_turns_its_cited_test_red(tmp_path: Path) -> None:
    """Green without the mutation, red with it; all of the sample, two at a time."""
    chosen = sample()
    green = run(copy_of(tmp_path / "unchanged"), [mutation.test for mutation in chosen])
    assert green.returncode == 0, green.stdout[-3000:] + green.stderr[-1000:]

    def survives(number: int) -> str | None:
        mutation = chosen[number]
        tree = copy_of(tmp_path / f"tree-{number}")
        try:
            path = tree / mutation.file
            source = path.read_text(encoding="utf-8")
            path.write_text(source.replace(mutation.old, mutation.new), encoding="utf-8")
            done = run(tree, [mutation.test])
        finally:
            shutil.rmtree(tree)
        # 1 is "tests failed": a crash of pytest itself, or nothing collected, would prove nothing.
        if done.returncode == 1 and " failed" in done.stdout:
            return None
        return f"{mutation.name} ({mutation.file}): exit code {done.returncode}\n{done.stdout[-800:]}"

    with ThreadPoolExecutor(2) as pool:
        survivors = [found for found in pool.map(survives, range(len(chosen))) if found]
    assert survivors == [], "\n".join(survivors)
