"""Databases of every earlier schema: read as they are, brought up to date by whoever writes, with a copy kept.

``tests/witness_schemas`` has one of each, as text, made by the release that wrote it: a log of five entries with a
fork on record, and one that was never cosigned.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.durable import FileLock
from ktlog.errors import StoreError
from tests.witness_log import NOW, Log
from tests.witness_site import NAME, Clock
from witness import cli
from witness.config import WitnessDir
from witness.keys import write_keys
from witness.migrate import HOOKS, copy_path
from witness.schema import SCHEMA_VERSION
from witness.store import WitnessStore
from witness.witness import Witness

ROOT = Path(__file__).resolve().parents[2]
OLDER = sorted(path.stem for path in (ROOT / "tests/witness_schemas").glob("*.sql"))
LOG = Log(algorithms=(1,))
FROZEN = ("2-freezes", "2-limits")


@pytest.fixture(params=OLDER)
def schema(request) -> str:
    return request.param


@pytest.fixture
def directory(tmp_path, schema) -> WitnessDir:
    """The directory of a witness of that release."""
    directory = WitnessDir(tmp_path / "w")
    directory.make()
    write_keys(directory, bytes(32), NAME)
    database = sqlite3.connect(directory.database)
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript((ROOT / f"tests/witness_schemas/{schema}.sql").read_text())
    database.close()
    return directory


def rows(path: Path) -> dict[str, list]:
    database = sqlite3.connect(path)
    try:
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]
        return {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}
    finally:
        database.close()


def texts(path: Path) -> dict[str, str]:
    database = sqlite3.connect(path)
    try:
        found = database.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        return {name: " ".join(text.split()) for name, text in found}
    finally:
        database.close()


def ask(directory: WitnessDir, body: bytes) -> int:
    store = WitnessStore.open(directory.database)
    try:
        store.keep_mark(directory.mark)
        clock = Clock()
        return Witness(store, write_keys_of(directory), clock=clock, reach=lambda name: None).add_checkpoint(body).status
    finally:
        store.close()


def write_keys_of(directory: WitnessDir):
    from witness.keys import derive_signers

    return derive_signers(bytes(32), NAME)


def test_every_earlier_schema_is_here():
    assert {name.split("-")[0] for name in OLDER} == {str(version) for version in range(1, SCHEMA_VERSION)}


def test_who_only_reads_reads_what_is_there_and_changes_nothing(directory, schema):
    before = rows(directory.database)
    store = WitnessStore.open(directory.database, read_only=True)
    log, never = (store.log(origin) for origin in (LOG.origin, "never.example/cosigned"))
    assert (log.latest.checkpoint.size, log.latest.checkpoint.root, log.vkeys, log.retired) == (
        5, LOG.root(5), LOG.vkeys, ()
    )
    assert never.latest is None
    assert (log.frozen is not None, log.per_day) == (schema in FROZEN, 500 if schema == "2-limits" else None)
    assert len(store.evidence()) == len(store.convictions()) == store.count_evidence() == 1
    assert store.count_writes() == 3
    store.close()
    listed = CliRunner().invoke(cli.main, ["list-logs", "--dir", str(directory.path), "--json"])
    assert (listed.exit_code, len(json.loads(listed.stdout)["logs"])) == (0, 2)
    assert rows(directory.database) == before


def test_who_writes_brings_it_up_to_date_and_a_copy_is_kept(directory, schema, tmp_path):
    before = rows(directory.database)
    WitnessStore.open(directory.database).close()
    after = rows(directory.database)
    assert after.pop("witness") == [(1, SCHEMA_VERSION, SCHEMA_VERSION, *before.pop("witness")[0][3:])]
    assert {table: after[table] for table in before} == before
    assert not any(after[table] for table in after.keys() - before.keys())
    fresh = tmp_path / "fresh.db"
    WitnessStore.create(fresh, NAME, (), NOW).close()
    assert texts(directory.database) == texts(fresh)

    copy = copy_path(directory.database, int(schema[0]))
    assert copy.stat().st_mode & 0o777 == 0o600
    assert rows(copy)["witness"][0][1] == int(schema[0])
    assert {**rows(copy), "witness": None} == {**before, "witness": None}
    WitnessStore.open(directory.database).close()
    assert sorted(path.name for path in directory.path.iterdir() if "schema" in path.name) == [copy.name]


def test_it_goes_on_where_it_was(directory, schema):
    with pytest.raises(StoreError) as caught:  # no release before the mark had one
        ask(directory, LOG.submission(5, 7))
    assert caught.value.name == "MarkMissing"
    set_mark = ["set-mark", "--dir", str(directory.path), "--record-is-the-newest"]
    assert CliRunner().invoke(cli.main, set_mark).exit_code == 0
    assert ask(directory, LOG.submission(3, 7)) == (403 if schema in FROZEN else 409)
    assert ask(directory, LOG.submission(5, 7)) == (403 if schema in FROZEN else 200)


@pytest.mark.parametrize("schema", ["2-limits"], indirect=True)
def test_a_command_beside_an_older_daemon_is_refused_and_alone_it_brings_up_to_date(directory):
    command = ["retire-key", "--dir", str(directory.path), str(LOG.vkeys[0]), "--leave-none"]
    with FileLock(directory.lock):
        refused = CliRunner().invoke(cli.main, command)
    assert (refused.exit_code, "OlderSchema" in refused.stderr) == (8, True)
    assert rows(directory.database)["witness"][0][1] == 2
    assert CliRunner().invoke(cli.main, command).exit_code == 0
    assert rows(directory.database)["witness"][0][1] == SCHEMA_VERSION


@pytest.mark.parametrize("schema", ["1", "2-limits"], indirect=True)
@pytest.mark.parametrize("hook", HOOKS)
def test_killed_on_the_way_it_is_brought_up_to_date_by_the_next(directory, schema, hook):
    before = rows(directory.database)
    code = f"from pathlib import Path; from witness.store import WitnessStore; WitnessStore.open(Path({str(directory.database)!r}))"
    killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env={"KTLOG_KILL_AT": hook}, check=False)
    assert killed.returncode == -9
    assert rows(directory.database) == before
    store = WitnessStore.open(directory.database)
    assert (store.schema_version, store.count_writes()) == (SCHEMA_VERSION, 3)
    store.close()
    assert rows(copy_path(directory.database, int(schema[0]))) == before


@pytest.mark.parametrize("schema", ["2"], indirect=True)
def test_without_room_for_the_copy_nothing_changes(directory, monkeypatch):
    before = rows(directory.database)
    copy_path(directory.database, 2).mkdir()  # in its way
    with pytest.raises(StoreError):
        WitnessStore.open(directory.database)
    assert rows(directory.database) == before


def test_code_that_knows_no_retired_keys_may_not_open_it(tmp_path):
    """It would go on trusting them: the release before this one refuses an oldest_reader above 2."""
    WitnessStore.create(tmp_path / "new.db", NAME, (), NOW).close()
    assert rows(tmp_path / "new.db")["witness"][0][2] == 3
