"""Stores of every earlier schema: a copy is kept, they are brought up to date, and all that is in them is checked.

``tests/log_schemas`` has one of each, as text, made by the code that had that schema: two actors who enrol, a BurnDown, a
move, and from schema 2 on an erasure.
"""

from __future__ import annotations

import json
import re
import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.commands.serve import _ask_for_time
from ktlog.config import Settings
from ktlog.durable import FileLock
from ktlog.errors import StoreError
from ktlog.operator.create import create_log
from ktlog.operator.fsck import check_log
from ktlog.operator.stores import open_log
from ktlog.store import schema, upgrade
from tests.pkd_samples import CAROL

ROOT = Path(__file__).resolve().parents[2]
OLDER = sorted(int(path.stem) for path in (ROOT / "tests/log_schemas").glob("*.sql"))
ORIGIN = "keys.example.com"


def make(directory: Path, version: int) -> Settings:
    """The directory of a log whose database is of that schema."""
    settings = create_log(directory, ORIGIN, "spec", bytes(32))
    settings.database.unlink()
    database = sqlite3.connect(settings.database)
    database.execute("PRAGMA journal_mode=WAL")
    database.executescript((ROOT / f"tests/log_schemas/{version}.sql").read_text(encoding="utf-8"))
    database.close()
    return settings


def damage(settings):
    """What is wrong with it. These stores come without files, and of some something was published."""
    return [finding for finding in check_log(settings) if finding.name != "CheckpointMissing"]


@pytest.fixture
def oldest(tmp_path) -> Settings:
    return make(tmp_path / "log", 1)


def meta(path: Path) -> tuple[int, int]:
    database = sqlite3.connect(path)
    try:
        return database.execute("SELECT schema_version, oldest_code FROM log_meta").fetchone()
    finally:
        database.close()


def migrate(settings: Settings, *words: str):
    return CliRunner().invoke(ktlog, ["migrate", "--dir", str(settings.directory), *words])


def test_every_earlier_schema_is_here_and_says_what_it_does():
    assert list(range(1, schema.SCHEMA_VERSION)) == OLDER
    assert all(step.about for step in schema.STEPS)


@pytest.mark.parametrize("version", OLDER)
def test_a_log_of_an_earlier_schema_is_brought_up_to_date_and_is_whole(tmp_path, version):
    settings = make(tmp_path / "log", version)
    with pytest.raises(StoreError, match="OlderSchema"):
        open_log(settings, read_only=True)
    with open_log(settings) as store:
        assert (store.state().size, store.erasure_count()) == ((4, 0) if version == 1 else (5, 1))
        assert store.actor(CAROL).keys
    assert damage(settings) == []
    (copy,) = upgrade.copies(settings.database)
    assert re.fullmatch(rf"log\.schema-{version}\.\d{{4}}-\d\d-\d\dT\d{{6}}Z\.db", copy.name)
    assert (meta(copy)[0], copy.stat().st_mode & 0o777) == (version, 0o600)
    with open_log(settings):
        assert upgrade.copies(settings.database) == [copy], "what is up to date is not copied"


def test_what_is_wrong_in_an_earlier_store_is_found_afterwards(tmp_path):
    settings = make(tmp_path / "log", 5)
    database = sqlite3.connect(settings.database)
    for name, text in database.execute("SELECT name, sql FROM sqlite_schema WHERE type = 'trigger'").fetchall():
        assert text
        database.execute(f"DROP TRIGGER {name}")
    database.execute("UPDATE entries SET entry = zeroblob(length(entry)) WHERE leaf_index = 1")
    database.commit()
    database.close()
    with open_log(settings):
        pass
    assert damage(settings) != []


def test_two_copies_stay_and_an_erasure_takes_both(oldest):
    for now in (0.0, 0.0, 60.0):
        upgrade.keep_copy(oldest.database, 1, now=lambda at=now: at)
    names = [path.name for path in upgrade.copies(oldest.database)]
    assert names == ["log.schema-1.1970-01-01T000000Z-2.db", "log.schema-1.1970-01-01T000100Z.db"]
    cut_short = oldest.directory / ".log.schema-1.1970-01-01T000200Z.db.unfinished"
    cut_short.write_bytes(b"plaintext")
    assert len(upgrade.remove_copies(oldest.database)) == 3
    assert not cut_short.exists() and upgrade.copies(oldest.database) == [] and oldest.database.exists()


def test_without_room_for_the_copy_nothing_is_changed(oldest, monkeypatch):
    needed = upgrade.look(oldest.database)
    assert needed.is_needed and needed.fits
    enough = needed.copy_bytes + needed.work_bytes + upgrade.SPARE_BYTES
    assert replace(needed, free_bytes=enough).fits and not replace(needed, free_bytes=enough - 1).fits
    monkeypatch.setattr(upgrade, "_free", lambda path: enough - 1)
    with pytest.raises(StoreError, match="NoRoom") as refused:
        open_log(oldest)
    assert "migrate --plan" in refused.value.hint
    assert (meta(oldest.database)[0], upgrade.copies(oldest.database)) == (1, [])
    assert not list(oldest.directory.glob(".log.schema-*"))


def test_a_store_of_newer_code_is_refused_and_not_copied(oldest):
    with open_log(oldest):
        pass
    before = upgrade.copies(oldest.database)
    database = sqlite3.connect(oldest.database)
    database.execute("UPDATE log_meta SET schema_version = 99, oldest_code = 98")
    database.commit()
    database.close()
    for refused in (lambda: open_log(oldest), lambda: open_log(oldest, read_only=True)):
        with pytest.raises(StoreError, match="NewerSchema") as error:
            refused()
        assert "schema 98 or newer" in error.value.hint
    assert upgrade.copies(oldest.database) == before
    assert migrate(oldest, "--plan").exception.name == "NewerSchema"


def test_the_plan_changes_nothing_and_the_command_does_it_once(oldest):
    plan = json.loads(migrate(oldest, "--plan", "--json").output)
    names = [step.name for step in schema.STEPS[1:]]
    assert [step["name"] for step in plan["steps"]] == names
    assert (plan["schema"], plan["wanted"], plan["entries"], plan["fits"], plan["copies"]) == (
        1, schema.SCHEMA_VERSION, 4, True, []
    )
    assert plan["copy-bytes"] == plan["database-bytes"] > 0 and plan["work-bytes"] > 0
    words = migrate(oldest, "--plan").output
    assert all(f"  {name}  " in words for name in names) and "enough" in words
    assert meta(oldest.database)[0] == 1
    with FileLock(oldest.directory / "serve.lock"):
        assert migrate(oldest).exception.name == "Locked"
    done = json.loads(migrate(oldest, "--json").output)
    assert (done["done"], done["schema"], len(done["copies"])) == (names, schema.SCHEMA_VERSION, 1)
    assert migrate(oldest).output == f"schema {schema.SCHEMA_VERSION}: nothing is to be done.\n"
    assert "nothing is to be done" in migrate(oldest, "--plan").output


def test_systemd_is_asked_to_wait_for_an_upgrade(oldest):
    told = []
    notifier = SimpleNamespace(send=lambda *states: told.extend(states))
    _ask_for_time(oldest, notifier)
    assert told[0].startswith("EXTEND_TIMEOUT_USEC=6") and told[1].startswith("STATUS=bringing the store from schema 1 to")
    with open_log(oldest):
        told.clear()
    _ask_for_time(oldest, notifier)
    assert told == []
