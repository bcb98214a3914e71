"""A log of the first schema becomes one of the second: what older code did not write down is worked out."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from ktlog.errors import StoreError
from ktlog.operator.link import Submission
from ktlog.operator.shred import plan_for
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import key_hash
from ktlog.pkd.messages import AddKey, BurnDown, Fireproof, MoveIdentity, RevokeKey, parse_wire
from ktlog.store import schema
from ktlog.store.sqlite import SqliteStore
from tests.operator_world import NOW, ORIGIN, Desk
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2, revoke_by_token, text_of  # noqa: F401
from tests.store_samples import dump

ADDED = ("erasures", "tombstones", "directory_operated", "directory_moves", "housekeeping", "publications", "totp",
         "cosignatures", "entry_places", "root_places")


@pytest.fixture
def old(tmp_path: Path, quick_argon2) -> Path:  # noqa: F811
    """A log with a BurnDown and two moves, as code of schema 1 left it; beside it what this code has of it."""
    path = tmp_path / "log.db"
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        desk = Desk(store)
        desk.send(AddKey(ALICE, public("a"), NOW), "a")
        desk.send(AddKey(BOB, public("b"), NOW), "b")
        desk.send(AddKey(ALICE, public("c"), NOW), "a")
        desk.send(Fireproof(ALICE, NOW), "c")
        desk.send(BurnDown(BOB, ALICE, NOW), "a")
        desk.send(MoveIdentity(ALICE, CAROL, NOW), "a")
        desk.send(MoveIdentity(CAROL, ALICE, NOW + 1), "a")
        (tmp_path / "wanted").write_text(repr(sorted(dump(store).items())))
    with sqlite3.connect(path) as database:
        for table in ADDED:
            database.execute(f"DROP TABLE {table}")  # noqa: S608
        database.execute("DROP INDEX token_revoked_by_check")
        database.execute("ALTER TABLE token_revoked DROP COLUMN key_check")
        database.execute("ALTER TABLE directory_actors DROP COLUMN row_sum")
        database.execute("UPDATE log_meta SET schema_version = 1, oldest_code = 1")
        database.execute("DROP INDEX directory_history_by_leaf")
        database.execute("DELETE FROM _sqlite_migrations WHERE name != ?", (schema.STEPS[0].name,))
    database.close()
    return path


def test_moves_and_operators_are_worked_out_from_the_entries(old: Path) -> None:
    with pytest.raises(StoreError, match="OlderSchema"):
        SqliteStore.open(old, read_only=True)
    with SqliteStore.open(old) as store:
        assert repr(sorted(dump(store).items())) == (old.parent / "wanted").read_text()
        first, second = (m.moved for m in store.mentions(ALICE) if m.moved is not None)
        assert (first.leaves, first.fireproof, second.leaves) == ((0, 2), True, (0, 2))
        assert [m.leaf_index for m in store.mentions(ALICE)] == [0, 2, 3, 4, 5, 6]
        assert not store.scrub_due()


def degrade_to_third(path: Path) -> None:
    """As code of schema 3 left it: no move says the history that it left with."""
    with sqlite3.connect(path) as database:
        for column in ("history_size", "history_root"):
            database.execute(f"ALTER TABLE directory_moves DROP COLUMN {column}")
        database.execute("UPDATE log_meta SET schema_version = 3, oldest_code = 2")
        database.execute("DELETE FROM _sqlite_migrations WHERE name = ?", (schema.STEPS[3].name,))
    database.close()


def test_histories_of_moves_are_worked_out_while_their_old_actors_are_there(old: Path) -> None:
    with SqliteStore.open(old) as store:
        wanted = dump(store)
    degrade_to_third(old)
    with SqliteStore.open(old) as store:
        assert dump(store) == wanted
        store.erase(plan_for(store, store.actor(ALICE)), store.state())
    degrade_to_third(old)
    with pytest.raises(StoreError, match="OldErasures"):
        SqliteStore.open(old)


def test_entries_that_do_not_follow_are_corrupt(old: Path) -> None:
    with sqlite3.connect(old) as database:
        database.execute("UPDATE record_plain SET plain = '{}' WHERE leaf_index = 0")
    database.close()
    with pytest.raises(StoreError, match="Corrupt"):
        SqliteStore.open(old)
    with sqlite3.connect(old) as database:
        assert database.execute("SELECT schema_version FROM log_meta").fetchone() == (1,)
    database.close()


def test_sums_are_of_what_older_code_wrote(tmp_path: Path, quick_argon2) -> None:  # noqa: F811
    path = tmp_path / "log.db"
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        desk = Desk(store)
        desk.send(AddKey(ALICE, public("a"), NOW), "a")
        desk.send(AddKey(ALICE, public("c"), NOW), "a")
        desk.send(RevokeKey(ALICE, public("c"), NOW), "a")
        desk.send(AddKey(BOB, public("b"), NOW), "b")
        desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("b"))).preimage, {}, {}))
        wanted = dump(store)
    with sqlite3.connect(path) as database:
        database.execute("DROP INDEX token_revoked_by_check")
        database.execute("ALTER TABLE token_revoked DROP COLUMN key_check")
        database.execute("ALTER TABLE directory_actors DROP COLUMN row_sum")
        database.execute("UPDATE log_meta SET schema_version = 7, oldest_code = 7")
        database.execute("DELETE FROM _sqlite_migrations WHERE name = '0008_sums'")
    database.close()
    with SqliteStore.open(path) as store:
        assert dump(store) == wanted
        assert store.actor(ALICE).revoked and store.token_revoked(key_hash(public("b")))
