"""The client library stands on cryptography and requests, and on nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.machine import not_fetched

ROOT = Path(__file__).resolve().parents[2]
OTHERS = ["flask", "sqlite3", "_sqlite3", "sqlite_utils", "click", "rich", "gunicorn", "http_message_signatures"]

BLOCKED = f"""
import sys
sys.modules.update(dict.fromkeys({OTHERS!r}))
"""

USE = """
import tempfile
import ktlog.client
from ktlog.client import Directory, SigningKey, build_envelope, enrol, seal
from ktlog.errors import PolicyUnmet, UsageError
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.tlog.policy import parse_policy

key = SigningKey.generate()
built = enrol("https://alpha.example/users/alice", key, recent_root=ZERO_ROOT, now=1)
content = build_envelope(built.sender, seal(built, DecapsulationKey.from_seed(bytes(32)).encapsulation_key))
assert content.startswith('{"!pkd-context"')
for attempt, error in (
    (lambda: Directory(parse_policy(b"quorum none\\n"), state=tempfile.mkdtemp()), PolicyUnmet),
    (lambda: Directory.from_policy_file("/nowhere/policy", state=tempfile.mkdtemp()), UsageError),
):
    try:
        attempt()
    except error:
        pass
    else:
        raise SystemExit("no error")
print("bare", ktlog.client.__name__)
"""


def run(python: str, code: str, **options) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=120, check=False, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client_needs_none_of_the_servers_packages():
    assert run(sys.executable, BLOCKED + USE) == "bare ktlog.client\n"


def test_the_test_would_notice():
    """The block works: a module of the server's side fails under it."""
    with pytest.raises(AssertionError, match="flask|click"):
        run(sys.executable, BLOCKED + "import ktlog.cli, ktlog.web.app")


def test_nothing_else_is_imported_from_outside():
    code = "import sys; import ktlog.client; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = set(run(sys.executable, code).split()) - set(sys.stdlib_module_names)
    carried = {"ktlog", "cryptography", "requests", "urllib3", "certifi", "idna", "charset_normalizer", "cffi"}
    carried.add("nacl")  # taken where it is installed, and not missed where it is not: see the bare environment above
    odd = {name for name in loaded if not name.startswith("_") and name not in carried}
    assert not odd - {"sitecustomize", "usercustomize", "ktlog_loopback_guard"}


@pytest.mark.slow
def test_a_bare_environment_is_enough(tmp_path):
    """`pip install .` without extras into a new environment, from a copy of the tree."""
    tree, home = tmp_path / "tree", tmp_path / "venv"
    names = [name for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE") if (ROOT / name).exists()]
    tree.mkdir()
    for name in names:
        shutil.copy(ROOT / name, tree / name)
    for name in ("ktlog", "witness", "auditor"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run([sys.executable, "-m", "venv", str(home)], check=True, timeout=120)
    python = str(home / "bin" / "python")
    # Installing is the one thing that reaches for the network, so it runs without the loopback guard.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    install = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-input", str(tree)],
        capture_output=True, text=True, timeout=600, env=environment, check=False,
    )
    if install.returncode != 0 and any(
        words in install.stderr for words in ("Could not find a version", "No matching distribution", "connection")
    ):
        not_fetched("Python's packages", install.stderr)
    assert install.returncode == 0, install.stderr
    listed = subprocess.run(
        [python, "-m", "pip", "list", "--format=freeze"], capture_output=True, text=True, env=environment, check=True
    ).stdout.lower()
    assert "flask" not in listed
    assert "click" not in listed
    assert run(python, USE, env=environment, cwd=tmp_path) == "bare ktlog.client\n"
