"""Logs of every earlier schema, and maps, once this code serves them: an auditor finds no fault, and the map is whole.

``tests/log_schemas/map`` has a map of each earlier schema, as text, made by the code that had it: of the log in
``tests/log_schemas/3.sql``, cosigned twice.
"""

from __future__ import annotations

import json
import re
import sqlite3
from contextlib import closing
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from auditor.findings_store import SCHEMA_VERSION as WATCH_SCHEMA
from auditor.state import SCHEMA_VERSION as AUDIT_SCHEMA
from ktlog.cli import ktlog
from ktlog.commands.serve import _ask_for_time
from ktlog.config import Settings, write_settings
from ktlog.errors import StoreError
from ktlog.keymap.prefix import verify
from ktlog.keymap.updates import KEPT_SECONDS
from ktlog.operator.backup import back_up
from ktlog.operator.fsck import check_log
from ktlog.operator.head import SignedHead, record_signed_head
from ktlog.operator.stores import map_signed_head, open_log, open_map
from ktlog.store import mapdb, mapupgrade, pgmap, upgrade
from ktlog.store.mapcoding import split_history
from ktlog.store.mapcontract import Live
from ktlog.store.mapdb import SqliteMapStore
from ktlog.store.maptree import unseal
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from tests.audited_log import LATER, audited  # noqa: F401
from tests.operator_world import NOW, ORIGIN
from tests.unit.test_store_upgrade import OLDER, ROOT, make
from witness.mirrorstore import SCHEMA_VERSION as MIRROR_SCHEMA

MAPS = sorted(int(path.stem) for path in (ROOT / "tests/log_schemas/map").glob("*.sql"))


def make_map(directory: Path, version: int) -> Settings:
    """The directory of a log whose map is of that schema."""
    settings = replace(make(directory, 3), notice_seconds=1)
    write_settings(settings)
    settings.map_database.unlink()
    with closing(sqlite3.connect(settings.map_database)) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.executescript((ROOT / f"tests/log_schemas/map/{version}.sql").read_text(encoding="utf-8"))
        size, note = database.execute("SELECT size, note FROM output_checkpoints ORDER BY size DESC LIMIT 1").fetchone()
    root = parse_signed_checkpoint(note)[1].root
    record_signed_head(map_signed_head(settings), SignedHead(size, root, NOW + 3605))
    return settings


def schema_of(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT schema_version FROM log_meta").fetchone()[0]


def rows(path: Path, *tables: str) -> dict[str, list[tuple]]:
    with closing(sqlite3.connect(path)) as database:
        return {table: database.execute(f"SELECT * FROM {table}").fetchall() for table in tables}  # noqa: S608


def test_of_every_database_every_earlier_schema_is_here() -> None:
    assert list(range(mapupgrade.OLDEST, mapdb.SCHEMA_VERSION)) == MAPS
    assert list(mapupgrade.ABOUT) == [version + 1 for version in MAPS]
    # These have had one schema only. Whoever raises one says how the earlier comes there, and tries it on one of them.
    assert (pgmap.SCHEMA_VERSION, AUDIT_SCHEMA, WATCH_SCHEMA, MIRROR_SCHEMA) == (1, 1, 1, 1)


@pytest.mark.parametrize("version", OLDER)
def test_an_auditor_finds_no_fault_in_a_log_of_an_earlier_schema(tmp_path, audited, version) -> None:  # noqa: F811
    settings = make(tmp_path / "log", version)
    report = audited(settings)
    assert (report["findings"], report["ok"]) == ([], True)
    assert report["tree_size"] == report["entries_audited"] == (4 if version == 1 else 5)
    assert report["commitments"]["checked"] == report["commitments"]["total"] > 0
    assert report["map"]["leaves"] == report["map"]["derived"] == 1
    assert check_log(settings) == []


@pytest.mark.parametrize("version", MAPS)
def test_an_auditor_finds_no_fault_in_a_map_of_an_earlier_schema(tmp_path, audited, version) -> None:  # noqa: F811
    """But that its leaves have no updates, which that code did not publish: nothing misses them after their time."""
    settings = make_map(tmp_path / "log", version)
    report = audited(settings)
    assert [finding["name"] for finding in report["findings"]] == ["MissingMapUpdate"] * 2
    report = audited(settings, LATER + KEPT_SECONDS)
    assert (report["findings"], report["ok"]) == ([], True)
    assert report["map"]["leaves"] == 3
    assert check_log(settings) == []


@pytest.mark.parametrize("version", MAPS)
def test_a_map_of_an_earlier_schema_is_brought_up_to_date_and_a_copy_is_kept(tmp_path, version) -> None:
    settings = make_map(tmp_path / "log", version)
    path = settings.map_database
    kept = ("map_state", "map_buckets", "map_tombstones", "output_leaves", "output_checkpoints")
    before, old_values = rows(path, *kept), rows(path, "map_values", "map_history")
    with pytest.raises(StoreError, match="OlderSchema") as refused:
        open_map(settings, read_only=True)
    assert "ktlog migrate --dir DIR" in refused.value.hint
    open_map(settings).close()
    assert (schema_of(path), rows(path, *kept)) == (mapdb.SCHEMA_VERSION, before)
    values = rows(path, "map_values")["map_values"]
    assert [row[:4] for row in values] == old_values["map_values"]
    assert {row[0]: split_history(row[4], 99) for row in values} == {
        row[0]: tuple(item for leaf, _, item in old_values["map_history"] if leaf == row[0]) for row in values
    }
    (copy,) = upgrade.copies(path)
    assert (schema_of(copy), copy.stat().st_mode & 0o777) == (version, 0o600)
    assert copy.name.startswith(f"map.schema-{version}.") and rows(copy, *kept) == before
    open_map(settings).close()
    assert upgrade.copies(path) == [copy], "what is up to date is not copied"


@pytest.mark.parametrize("damage", [
    "DELETE FROM map_state", "DELETE FROM map_buckets", "UPDATE map_buckets SET leaves = zeroblob(0)",
    "UPDATE map_history SET item = zeroblob(300)", "UPDATE map_state SET depth = 7",
])
def test_a_map_that_is_none_is_refused_and_stays_as_it_is(tmp_path, damage) -> None:
    path = (settings := make_map(tmp_path / "log", 1)).map_database
    with closing(sqlite3.connect(path)) as database:
        database.execute(damage)
        database.commit()
        before = list(database.iterdump())
    with pytest.raises(StoreError, match="Corrupt"):
        open_map(settings)
    with closing(sqlite3.connect(path)) as database:
        assert list(database.iterdump()) == before


def test_the_tables_are_those_of_a_new_map(tmp_path) -> None:
    old, new = make_map(tmp_path / "old", 1), make(tmp_path / "new", 3)
    open_map(old).close()

    def texts(settings: Settings) -> dict[str, str]:
        with closing(sqlite3.connect(settings.map_database)) as database:
            found = database.execute("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL").fetchall()
        return {name: " ".join(text.replace('"', "").split()) for name, text in found}

    assert texts(old) == texts(new)


def test_a_large_map_has_the_nodes_that_it_had(tmp_path) -> None:
    """Taken back to schema 1, and brought up again: every page is the same."""
    path = tmp_path / "map.db"
    SqliteMapStore.create(path, ORIGIN, b"config")
    store = SqliteMapStore.open(path, origin=ORIGIN, config=b"config")
    changes = []
    for number in range(1200):
        index = sha256(b"%d" % number).digest()
        news = tuple(b"%d of %d" % (at, number) for at in range(number % 3 + 1))
        changes.append(Live(index, sha256(index).digest(), b"value", bytes(16), b"history", news))
    store.update(
        sorted(changes, key=lambda one: one.index), expected=store.state(), input_size=1, erasures=0,
        make_leaf=lambda root: root,
    )
    assert store.state().depth == 9
    wanted = [list(store.leaves()), store.state(), [store.history(one.index, 9) for one in changes]]
    store.close()
    pages = {number: unseal(row) for number, row in rows(path, "map_nodes")["map_nodes"]}
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        for statement in (*TO_FIRST, "UPDATE log_meta SET schema_version = 1"):
            database.execute(statement)
        for one in changes:
            database.executemany("INSERT INTO map_history VALUES (?, ?, ?)", (
                (one.index, at, item) for at, item in enumerate(one.news)
            ))
    store = SqliteMapStore.open(path, origin=ORIGIN, config=b"config")
    assert [list(store.leaves()), store.state(), [store.history(one.index, 9) for one in changes]] == wanted
    for one in changes[:20]:
        verify(store.prove(one.index), [one.index], store.state().root, [one.commitment])
    store.close()
    assert {number: unseal(row) for number, row in rows(path, "map_nodes")["map_nodes"]} == pages and len(pages) > 64


TO_FIRST = (
    """CREATE TABLE first (leaf BLOB PRIMARY KEY CHECK (length(leaf) = 32), value BLOB NOT NULL,
        opening BLOB NOT NULL CHECK (length(opening) = 16), history BLOB NOT NULL) STRICT, WITHOUT ROWID""",
    "INSERT INTO first SELECT leaf, value, opening, history FROM map_values",
    "DROP TABLE map_values",
    "ALTER TABLE first RENAME TO map_values",
    """CREATE TABLE map_history (leaf BLOB NOT NULL CHECK (length(leaf) = 32), position INTEGER NOT NULL,
        item BLOB NOT NULL, PRIMARY KEY (leaf, position)) STRICT, WITHOUT ROWID""",
    "DROP TABLE map_nodes",
    """CREATE TABLE map_nodes (depth INTEGER NOT NULL, number INTEGER NOT NULL, nodes BLOB NOT NULL,
        PRIMARY KEY (depth, number)) STRICT, WITHOUT ROWID""",
)


@pytest.mark.parametrize("damaged", [
    "leaves || zeroblob(64)", "leaves || zeroblob(16)", "substr(leaves, 1, length(leaves) - 1) || x'00'",
])
def test_a_damaged_map_is_not_brought_up_to_date_and_nothing_is_lost(tmp_path, damaged) -> None:
    settings = make_map(tmp_path / "log", 1)
    path = settings.map_database
    with closing(sqlite3.connect(path)) as database:
        database.execute(f"UPDATE map_buckets SET leaves = CAST({damaged} AS BLOB)")  # noqa: S608
        database.commit()
    tables = ("log_meta", "map_values", "map_history", "map_nodes", "map_buckets")
    before = rows(path, *tables)
    with pytest.raises(StoreError, match="Corrupt") as refused:
        open_map(settings)
    assert "newest copy" in refused.value.hint
    assert rows(path, *tables) == before


def test_without_room_for_the_copy_of_the_map_nothing_is_changed(tmp_path, monkeypatch) -> None:
    settings = make_map(tmp_path / "log", 1)
    needed = upgrade.look_at_map(settings.map_database)
    enough = needed.copy_bytes + needed.work_bytes + upgrade.SPARE_BYTES
    monkeypatch.setattr(upgrade, "_free", lambda path: enough - 1)
    with pytest.raises(StoreError, match="NoRoom"):
        open_map(settings)
    assert (schema_of(settings.map_database), upgrade.copies(settings.map_database)) == (1, [])


def test_the_plan_and_the_command_speak_of_the_map_too(tmp_path) -> None:
    settings = make_map(tmp_path / "log", 1)

    def migrate(*words: str) -> str:
        ran = CliRunner().invoke(ktlog, ["migrate", "--dir", str(settings.directory), *words])
        assert ran.exit_code == 0, ran.exception
        return ran.stdout

    words = migrate("--plan")
    assert "the map: schema 1, 3 leaves" in words and "  map_0002  a history lies with its value" in words
    assert json.loads(migrate("--plan", "--json"))["map"]["steps"][0]["name"] == "map_0002"
    told = []
    _ask_for_time(settings, SimpleNamespace(send=lambda *states: told.extend(states)))
    assert told[1] == "STATUS=bringing the store from schema 3 to 8"
    assert (schema_of(settings.database), schema_of(settings.map_database)) == (3, 1)
    words = migrate()
    assert "schema 3 became 8.\nthe map's schema 1 became 2.\n" in words
    assert re.findall(r"/(\w+)\.schema-(\d)\.", words) == [("log", "3"), ("map", "1")]
    assert migrate() == "schema 8: nothing is to be done.\n"
    told.clear()
    _ask_for_time(settings, SimpleNamespace(send=lambda *states: told.extend(states)))
    assert told == []


def test_an_erasure_takes_the_copies_of_both(tmp_path) -> None:
    settings = make_map(tmp_path / "log", 1)
    open_log(settings).close()
    open_map(settings).close()
    assert len(upgrade.remove_copies(settings.database, settings.map_database)) == 2
    assert list(settings.directory.glob("*.schema-*")) == []


def test_a_backup_by_newer_code_says_what_to_do_first(tmp_path) -> None:
    settings = make(tmp_path / "log", 6)
    with pytest.raises(StoreError, match="OlderSchema") as refused:
        back_up(settings, tmp_path / "backups", now=lambda: NOW)
    assert "ktlog migrate --dir DIR" in refused.value.hint and "serves the log" in refused.value.hint
