"""``ktlog migrate-store``: the log is the same in the other place, and never in two."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.config import Settings, load_settings
from ktlog.durable import FileLock
from ktlog.errors import StoreError, UsageError
from ktlog.operator import migrate
from ktlog.operator.fsck import check_log
from ktlog.operator.head import load_signed_head
from ktlog.operator.migrate import MOVED, migrate_store
from ktlog.operator.stopped import LOCKS
from ktlog.operator.stores import map_signed_head, open_log, open_map, signed_head
from ktlog.store.contracts import Cosignature
from ktlog.store.postgres import PostgresStore
from tests.postgres_server import Cluster, database_name
from tests.store_samples import Draft, append, dump
from tests.whole_log import WholeLog, copy_of, whole  # noqa: F401

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(whole: WholeLog, tmp_path: Path, postgres: Cluster) -> Settings:  # noqa: F811
    """A stopped log with all kinds of rows."""
    found = copy_of(whole, tmp_path / "log")
    with open_log(found) as store:
        size = store.state().size
        store.set_totp("example.com", bytes(32), 7, None)
        store.set_totp("removed.example", bytes(32), 7, None)
        store.set_totp("removed.example", None, 9, 1)
        store.add_cosignature(Cosignature(size, "a root", "w\u00fcrzburg", "a token", 5))
        store.note_published(size, 5)
        assert store.erasure_count() == 1
    (found.directory / "ktlog.toml").open("a").write("# by hand\nlisten = \"127.0.0.1:9999\"\n")
    return found


def _quiet(_what: str, _done: int, _total: int) -> None:
    pass


def _untouched(settings: Settings) -> bool:
    return not load_settings(settings.directory).uses_postgres and settings.database.exists()


def test_everything_is_the_same_in_the_other_place(settings: Settings, postgres_url: str) -> None:
    with open_log(settings, read_only=True) as old:
        before, touched = dump(old), old.touched(0, old.state().size)
        removed = old.totp("removed.example")
    old_map = open_map(settings, read_only=True)
    map_state, leaves = old_map.state(), list(old_map.leaves())
    old_map.close()
    heads = [load_signed_head(document(settings)) for document in (signed_head, map_signed_head)]
    assert None not in heads
    said: list[str] = []

    moved = migrate_store(settings, postgres_url, "", lambda what, done, total: said.append(f"{what} {done}/{total}"))

    now = load_settings(settings.directory)
    assert (now.store, now.listen) == (postgres_url, "127.0.0.1:9999")
    assert "# by hand" in (settings.directory / "ktlog.toml").read_text()
    assert moved.state == before["state"]
    assert f"check entries {moved.state.size}/{moved.state.size}" in said
    with open_log(now, read_only=True) as new:
        assert isinstance(new, PostgresStore)
        assert dump(new) == before
        assert new.touched(0, moved.state.size) == touched
        assert new.totp("removed.example") == removed is None
        assert [new.public_since(index) for index in range(moved.state.size)] == before["public"]
        assert not new.scrub_due()
    new_map = open_map(now, read_only=True)
    assert (new_map.state(), list(new_map.leaves())) == (map_state, leaves)
    new_map.close()
    assert [load_signed_head(document(now)) for document in (signed_head, map_signed_head)] == heads
    with open_log(now) as new:
        # The row of a removed secret went along: its serial goes on.
        assert new.set_totp("removed.example", bytes(32), 9, None).serial == 3
        append(new, Draft("the log goes on"))

    assert {path.name for path in moved.old} >= {f"log.db{MOVED}", f"map.db{MOVED}"}
    assert not settings.database.exists() and not settings.map_database.exists()
    with pytest.raises(StoreError, match="MissingStore"):
        open_log(settings)


@pytest.mark.parametrize("hook", migrate.HOOKS)
def test_a_move_that_was_cut_short_is_finished_by_saying_it_again(
    settings: Settings, postgres_url: str, hook: str
) -> None:
    with open_log(settings, read_only=True) as old:
        before = dump(old)
    command = [sys.executable, "-m", "ktlog", "migrate-store", "--dir", str(settings.directory), "--to", postgres_url]
    cut = subprocess.run(command, env=os.environ | {"KTLOG_KILL_AT": hook}, capture_output=True, check=False)
    assert cut.returncode == -9, cut.stderr
    assert _untouched(settings) == (hook != "migrate.switched")
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert not settings.database.exists()
    with open_log(load_settings(settings.directory), read_only=True) as new:
        assert dump(new) == before
    third = subprocess.run(command, capture_output=True, text=True, check=False)
    assert third.returncode == 8 and "AlreadyMoved" in third.stderr


def test_a_running_log_does_not_move(settings: Settings, postgres_url: str) -> None:
    for name in LOCKS:
        with FileLock(settings.directory / name), pytest.raises(StoreError, match="Locked"):
            migrate_store(settings, postgres_url, "", _quiet)
    assert _untouched(settings)


def test_nobody_writes_to_the_files_meanwhile(
    settings: Settings, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ktlog.sqlitefile.BUSY_TIMEOUT_SECONDS", 0.05)
    tried: list[str] = []

    def progress(what: str, _done: int, _total: int) -> None:
        if not tried:
            with open_log(settings) as store, pytest.raises(StoreError) as caught:
                store.claim_epoch()
            tried.append(caught.value.name)

    migrate_store(settings, postgres_url, "", progress)
    assert tried == ["Locked"]


def test_a_database_with_something_in_it_is_refused(settings: Settings, postgres: Cluster, postgres_url: str) -> None:
    PostgresStore.create(postgres_url, "other.example.com", "spec").close()
    with pytest.raises(StoreError, match="StoreExists"):
        migrate_store(settings, postgres_url, "", _quiet)
    postgres.sql("DROP SCHEMA ktlog CASCADE", database_name(postgres_url))
    with PostgresStore.create(postgres_url, settings.origin, "spec") as newer:
        append(newer, Draft("a log of the same name"))
    with pytest.raises(StoreError, match="StoreExists"):
        migrate_store(settings, postgres_url, "", _quiet)
    postgres.sql("DROP SCHEMA ktlog CASCADE", database_name(postgres_url))
    postgres.sql("CREATE SCHEMA ktlog", database_name(postgres_url))
    postgres.sql("CREATE TABLE ktlog.somebodys (x int)", database_name(postgres_url))
    with pytest.raises(StoreError, match="StoreExists"):
        migrate_store(settings, postgres_url, "", _quiet)
    assert _untouched(settings)


FLIPS = {
    "an entry": "UPDATE entries SET entry = entry || '\\x00' WHERE leaf_index = 2",
    "a plaintext": "UPDATE record_plain SET plain = '{}' WHERE leaf_index = 0",
    "a key": "UPDATE directory_keys SET created = created + 1",
    "a publication": "UPDATE publications SET time = time + 1",
    "a tombstone": "DELETE FROM tombstones",
    "a row too much": "INSERT INTO token_revoked VALUES (sha256(''), 1)",
    "a leaf of the map": "DELETE FROM map_tombstones",
    "a leaf of the map's log": "UPDATE output_leaves SET leaf = leaf || '\\x00' WHERE leaf_index = 1",
}


@pytest.fixture
def flip(
    request: pytest.FixtureRequest, settings: Settings, postgres: Cluster, postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[None]:
    """Between the copy and the comparison somebody changes one thing in the database, past its triggers."""
    real = migrate._copy

    def copy_and_change(*arguments):  # noqa: ANN002, ANN202
        state = real(*arguments)
        postgres.sql(
            f"DO $$ BEGIN SET LOCAL session_replication_role = replica; SET LOCAL search_path = ktlog;"
            f" {request.param}; END $$", database_name(postgres_url),
        )
        return state

    monkeypatch.setattr(migrate, "_copy", copy_and_change)
    yield


@pytest.mark.parametrize("flip", FLIPS.values(), ids=FLIPS, indirect=True)
@pytest.mark.usefixtures("flip")
def test_a_copy_that_differs_is_not_switched_to(settings: Settings, postgres_url: str) -> None:
    with pytest.raises(StoreError) as caught:
        migrate_store(settings, postgres_url, "", _quiet)
    assert caught.value.name in ("CopyDiffers", "Corrupt", "MapCorrupt")
    assert _untouched(settings)
    with open_log(settings) as store:
        append(store, Draft("the log goes on where it was"))


SOURCE_FLIPS = {
    "a revoked token": ("log.db", "UPDATE token_revoked SET key_hash = zeroblob(32)"),
    "a preimage": ("log.db", "UPDATE records SET preimage = CAST(preimage || ' ' AS BLOB)"),
    "a tombstone": ("log.db", "UPDATE tombstones SET generation = generation + 1"),
    "a leaf of the map's log": ("map.db", "UPDATE output_leaves SET leaf = zeroblob(40) WHERE leaf_index = 1"),
}


@pytest.mark.parametrize("file, change", SOURCE_FLIPS.values(), ids=SOURCE_FLIPS)
def test_a_damaged_log_is_not_moved(settings: Settings, postgres_url: str, file: str, change: str) -> None:
    """Its copy would have the same damage, and be no witness of it."""
    with closing(sqlite3.connect(settings.directory / file, isolation_level=None)) as db:
        for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            db.execute(f'DROP TRIGGER "{name}"')
        assert db.execute(change).rowcount > 0
    with pytest.raises(StoreError, match="Damaged"):
        migrate_store(settings, postgres_url, "", _quiet)
    assert _untouched(settings)


def test_a_log_whose_move_is_not_finished_is_served_from_nowhere(settings: Settings, postgres_url: str) -> None:
    database = settings.database.read_bytes()
    migrate_store(settings, postgres_url, "", _quiet)
    now = load_settings(settings.directory)
    settings.database.write_bytes(database)
    with pytest.raises(StoreError, match="UnfinishedMove"):
        open_log(now, read_only=True)
    assert migrate.finish_move(now)
    open_log(now, read_only=True).close()


@pytest.mark.parametrize("lines", [
    '# store = "what it was"\nstore = ""\n', 'store = ""\r\n# store = "what it was"\r\n',
])
def test_the_setting_is_changed_and_not_the_comment(settings: Settings, postgres_url: str, lines: str) -> None:
    path = settings.directory / "ktlog.toml"
    path.write_text(path.read_text() + lines)
    path.chmod(0o600)
    migrate_store(settings, postgres_url, "", _quiet)
    assert load_settings(settings.directory).store == postgres_url
    assert path.stat().st_mode & 0o777 == 0o600, "its mode stays"


def test_settings_that_cannot_be_changed_by_machine_are_left_alone(settings: Settings, postgres_url: str) -> None:
    path = settings.directory / "ktlog.toml"
    before = path.read_text() + '"store" = ""\n'
    path.write_text(before)
    with pytest.raises(StoreError, match="BadSwitch"):
        migrate_store(settings, postgres_url, "", _quiet)
    assert path.read_text() == before and _untouched(settings)


def test_the_url_may_come_from_a_secret_file(settings: Settings, postgres_url: str, tmp_path: Path) -> None:
    file = tmp_path / "store-url"
    file.write_text(postgres_url + "\n")
    file.chmod(0o644)
    arguments = ["migrate-store", "--dir", str(settings.directory), "--to-file", str(file)]
    result = CliRunner().invoke(ktlog, arguments)
    assert isinstance(result.exception, StoreError) and result.exception.name == "UnsafeSecret"
    file.chmod(0o600)
    result = CliRunner().invoke(ktlog, arguments)
    assert result.exit_code == 0, result.output
    found = load_settings(settings.directory)
    assert (found.store, found.store_file) == ("", str(file))
    with open_log(found, read_only=True) as store:
        assert store.state().size > 10
    assert check_log(found) == []


def test_a_password_is_not_written_into_the_settings(settings: Settings) -> None:
    for url in ("postgresql://me:secret@localhost/x", "postgresql:///x?password=secret"):
        with pytest.raises(UsageError, match="BadSetting") as caught:
            migrate_store(settings, url, "", _quiet)
        assert "secret@" not in str(caught.value) and "=secret" not in str(caught.value)
