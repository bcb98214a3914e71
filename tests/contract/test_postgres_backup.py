"""A log in PostgreSQL is backed up while it runs, as a log in files: the same rows, of one moment; and it comes back."""

from __future__ import annotations

import hashlib
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog.config import Settings, load_settings
from ktlog.operator.backup import back_up, check_files, read_manifest
from ktlog.operator.fsck import check_log
from ktlog.operator.head import load_signed_head
from ktlog.operator.migrate import migrate_store
from ktlog.operator.stores import map_signed_head, open_log, open_map, rules_document, signed_head
from ktlog.store.mapcopy import TABLES as MAP_TABLES
from ktlog.store.pgback import snapshot
from ktlog.store.pgcopy import Source, compare_rows
from ktlog.store.sqlite import SqliteStore
from tests.contract.test_migrate_store import settings  # noqa: F401 - the fixture
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import quick_argon2  # noqa: F401
from tests.postgres_server import Cluster, database_name
from tests.store_samples import Draft, append, dump
from tests.unit.test_restore import World
from tests.whole_log import whole  # noqa: F401


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


@pytest.fixture
def moved(settings: Settings, postgres_url: str) -> Settings:  # noqa: F811
    migrate_store(settings, postgres_url, "", quiet)
    return load_settings(settings.directory)


def in_files(directory: Path) -> Settings:
    """A backup, as the log in files that it is."""
    return replace(load_settings(directory, environment={}), directory=directory)


def test_every_row_is_in_the_copy(moved: Settings, tmp_path: Path, postgres: Cluster, postgres_url: str) -> None:
    rules_document(moved).write(b'{"rules":"of the operator"}')
    place, manifest = back_up(moved, tmp_path / "backups", now=lambda: NOW)
    assert list(check_files(place, manifest)) == [] and read_manifest(place) == manifest
    copy = in_files(place)
    assert not copy.uses_postgres and copy.listen == moved.listen == "127.0.0.1:9999"
    assert "# by hand" in (place / "ktlog.toml").read_text()
    assert (place / "ktlog.toml.postgresql").read_bytes() == (moved.directory / "ktlog.toml").read_bytes()
    with closing(Source(copy.database)) as source:
        assert compare_rows(source, postgres_url, quiet) > 80
    with open_log(moved, read_only=True) as one, open_log(copy, read_only=True) as other:
        assert dump(one) == dump(other)
        assert manifest.size == other.state().size and manifest.root == other.state().root
        assert (other.origin, other.dialect, manifest.erasures) == (one.origin, one.dialect, 1)
        for record in other.records(0, other.state().size):
            assert other.seen(record.unique_hash) == record.leaf_index, "its places were noted"
            assert other.size_of_root(record.root) == record.leaf_index + 1
    with closing(open_map(copy, read_only=True)) as map_store, closing(open_map(moved, read_only=True)) as there:
        assert map_store.state() == there.state() and list(map_store.leaves()) == list(there.leaves())
        for table, columns in MAP_TABLES:
            names = ", ".join(columns)
            rows = postgres.sql(f"SELECT {names} FROM ktlog.{table}", database_name(postgres_url))  # noqa: S608
            assert sorted(rows) == sorted(map_store.rows(table, tuple(columns))), table
    assert load_signed_head(signed_head(copy)) == load_signed_head(signed_head(moved)) is not None
    assert load_signed_head(map_signed_head(copy)) == load_signed_head(map_signed_head(moved)) is not None
    assert (place / "rules.json").read_bytes() == b'{"rules":"of the operator"}'
    (place / "rules.json").unlink()
    assert check_log(copy) == []
    for name, (digest, _size) in manifest.files.items():
        if name != "rules.json":
            assert hashlib.sha256((place / name).read_bytes()).hexdigest() == digest, "nothing opened it for writing"


def test_a_copy_is_of_one_moment_while_the_log_goes_on(moved: Settings, tmp_path: Path) -> None:
    with open_log(moved) as writer:
        before = writer.state().size
        added: list[int] = []

        def grow(what: str, _done: int, _total: int) -> None:
            if len(added) < 8:
                append(writer, Draft(f"{what} {len(added)}"))
                added.append(1)

        _place, manifest = back_up(moved, tmp_path / "backups", now=lambda: NOW, progress=grow)
        assert before < manifest.size < writer.state().size, "the map's copy came before, the rest after"
        with snapshot(moved.store) as moment:
            append(writer, Draft("one more"))
            moment.copy_log(tmp_path / "log.db", quiet)
        with SqliteStore.open(tmp_path / "log.db", read_only=True, origin=ORIGIN) as copy:
            assert copy.state().size == writer.state().size - 1
            assert copy.state().root == copy.root_after(copy.state().size)


def test_it_comes_back_as_a_log_in_files_and_moves_again(tmp_path: Path, postgres: Cluster, postgres_url: str) -> None:
    world = World(tmp_path / "world")
    world.log.close()
    migrate_store(world.log.settings, postgres_url, "", quiet)
    before = load_settings(world.log.settings.directory)
    with open_log(before, read_only=True) as store:
        state = store.state()
    back_up(before, world.target, now=world.log.clock)
    world.lose()
    done = world.restore()
    assert (done.size, done.recovered, done.unknown) == (state.size, (0, 0), ())
    new = load_settings(world.directory / "new")
    assert not new.uses_postgres and check_log(new) == []
    migrate_store(new, postgres.new_database(), "", quiet)
    again = load_settings(new.directory)
    assert again.uses_postgres and check_log(again) == []
    with open_log(again, read_only=True) as store:
        assert store.state() == state
