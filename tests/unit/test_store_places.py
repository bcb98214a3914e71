"""Where a hash is: found among any number of buckets, whatever else begins like it, and never found where it is not."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlog.errors import Conflict
from ktlog.store import places, schema
from ktlog.store.sqlite import SqliteStore
from tests.store_samples import ORIGIN, Draft, append, dump, make_batch


def item(number: int, prefix: int | None = None) -> bytes:
    """A hash; those with a *prefix* begin alike."""
    digest = hashlib.sha256(b"%d" % number).digest()
    return digest if prefix is None else prefix.to_bytes(8, "big") + digest[8:]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buckets of sixteen entries, eight that are recent, and four that are new."""
    monkeypatch.setattr(places, "FRESH_PLACES", 4)
    monkeypatch.setattr(places, "RECENT_PLACES", 8)
    monkeypatch.setattr(places, "BUCKET_BITS", 4)


@given(
    prefixes=st.lists(st.integers(0, 3) | st.just(2**64 - 1), max_size=60),
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=10), first=st.integers(0, 1),
)
def test_everything_is_found_and_only_what_begins_alike(prefixes, sizes, first):
    connection = sqlite3.connect(":memory:", isolation_level=None)
    for statement in places.create_statements():
        connection.execute(statement)
    hashes = [item(number, prefix) for number, prefix in enumerate(prefixes)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(places, "FRESH_PLACES", 4)
        patch.setattr(places, "RECENT_PLACES", 8)
        patch.setattr(places, "BUCKET_BITS", 4)
        at = 0
        while at < len(hashes):
            some = hashes[at : at + sizes[at % len(sizes)]]
            places.insert(connection, places.ENTRY_PLACES, some, first + at)
            at += len(some)
            for one in {*hashes[:at], item(9999), item(9999, 2)}:
                wanted = [first + n for n in range(at) if hashes[n][:8] == one[:8]]
                assert places.find(connection, places.ENTRY_PLACES, [one], first + at) == wanted
    every = connection.execute("SELECT bucket, place FROM entry_places").fetchall()
    assert sorted(place for _, place in every) == list(range(first, first + len(hashes)))
    assert all(bucket in (places.FRESH, places.RECENT, place >> 4) for bucket, place in every)
    assert sum(bucket == places.FRESH for bucket, _ in every) < 4 + 9
    assert sum(bucket == places.RECENT for bucket, _ in every) < 8 + 9
    connection.close()


@pytest.mark.usefixtures("small")
def test_a_store_finds_what_it_has(tmp_path: Path):
    with SqliteStore.create(tmp_path / "log.db", ORIGIN, "spec") as store:
        for number in range(0, 40, 5):
            append(store, *(Draft(f"{number + n}") for n in range(5)))
        records = store.records(0, 40)
        for record in records:
            assert store.seen(record.unique_hash) == record.leaf_index
            assert store.size_of_root(record.root) == record.leaf_index + 1
        assert store.seen(item(9999)) is None
        assert store.size_of_root(item(9999)) is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("old", [0, 3, 7, 8, 20, 21])
def test_a_hash_is_refused_wherever_its_first_is(tmp_path: Path, old: int):
    with SqliteStore.create(tmp_path / "log.db", ORIGIN, "spec") as store:
        for number in range(22):
            append(store, Draft(f"{number}"))
        before = dump(store)
        batch = make_batch(store.state(), Draft("new"), Draft("again"))
        twin = replace(batch.records[1], unique_hash=store.records(old, old + 1)[0].unique_hash)
        with pytest.raises(Conflict, match="Duplicate") as caught:
            store.commit(replace(batch, records=(batch.records[0], twin)))
        assert caught.value.stored == old
        assert dump(store) == before


@pytest.mark.usefixtures("small")
def test_hashes_that_begin_alike_are_two(tmp_path: Path):
    with SqliteStore.create(tmp_path / "log.db", ORIGIN, "spec") as store:
        for number in range(20):
            batch = make_batch(store.state(), Draft(f"{number}"))
            store.commit(replace(batch, records=(replace(batch.records[0], unique_hash=item(number, 7)),)))
        assert [store.seen(item(number, 7)) for number in range(20)] == list(range(20))
        assert store.seen(item(20, 7)) is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("count", [5, 8, 20, 23])
def test_places_that_older_code_left_go_on_from_there(tmp_path: Path, count: int):
    """Code of schema 6 had one part of new places, of twice the size, and filled buckets out of it."""
    path = tmp_path / "log.db"
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        append(store, *(Draft(f"{number}") for number in range(count)))
        database = sqlite3.connect(path, isolation_level=None)
        for table, last in ((places.ENTRY_PLACES, count), (places.ROOT_PLACES, count + 1)):
            database.execute(f"UPDATE {table} SET bucket = CASE WHEN place < {last // 8 * 8} THEN place >> 4 ELSE -1 END")
        database.close()
        for number in range(count, count + 20):
            for record in store.records(0, number):
                assert store.seen(record.unique_hash) == record.leaf_index
                assert store.size_of_root(record.root) == record.leaf_index + 1
            append(store, Draft(f"{number}"))


def degrade_to_fourth(path: Path) -> None:
    """As code of schema 4 left it: with an index over all unique hashes and one over all roots."""
    statements = [one for one in schema.STEPS[0].statements if " entries " in one or "ON entries" in one]
    database = sqlite3.connect(path, isolation_level=None)
    database.executescript(
        "PRAGMA foreign_keys=OFF; PRAGMA legacy_alter_table=ON; ALTER TABLE entries RENAME TO newer;"
        "DROP TRIGGER entries_with_state; DROP TRIGGER entries_in_order; DROP TRIGGER entries_no_update;"
        "DROP TRIGGER entries_no_delete"
    )
    database.execute(statements[0])
    database.execute("INSERT INTO entries SELECT * FROM newer")
    for statement in statements[1:]:
        database.execute(statement)
    database.executescript(
        "DROP TABLE newer; DROP TABLE entry_places; DROP TABLE root_places;"
        "CREATE INDEX leaf_roots_by_root ON leaf_roots (root);"
        "UPDATE log_meta SET schema_version = 4, oldest_code = 4"
    )
    database.execute("DELETE FROM _sqlite_migrations WHERE name IN (?, ?)", (schema.STEPS[4].name, schema.STEPS[6].name))
    database.close()


def test_an_older_log_gets_its_places(tmp_path: Path):
    path = tmp_path / "log.db"
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        append(store, *(Draft(f"{number}") for number in range(30)))
        wanted, records = dump(store), store.records(0, 30)
    degrade_to_fourth(path)
    with SqliteStore.open(path) as store:
        assert dump(store) == wanted
        for record in records:
            assert store.seen(record.unique_hash) == record.leaf_index
            assert store.size_of_root(record.root) == record.leaf_index + 1
        append(store, Draft("another"))
    database = sqlite3.connect(path)
    assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    indexes = database.execute("SELECT name FROM sqlite_schema WHERE type = 'index' AND tbl_name IN ('entries', 'leaf_roots')")
    assert indexes.fetchall() == []
    (references,) = database.execute("SELECT sql FROM sqlite_schema WHERE name = 'records'").fetchone()
    assert "REFERENCES entries," in references
    with pytest.raises(sqlite3.IntegrityError):
        database.execute("DELETE FROM entries")
    database.close()
