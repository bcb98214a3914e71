"""A byte that flips in what a rule depends on is seen by whoever reads it, before an entry that breaks it is signed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from ktlog.errors import StoreError
from ktlog.operator.link import Submission
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import key_hash
from ktlog.pkd.messages import AddAuxData, AddKey, RevokeKey, parse_wire
from ktlog.store.contracts import LogStore
from ktlog.store.postgres import PostgresStore
from ktlog.store.rowsums import token_check
from ktlog.store.sqlite import SqliteStore
from tests.operator_world import NOW, ORIGIN, Desk
from tests.pkd_samples import ALICE, BOB, public, revoke_by_token, text_of
from tests.postgres_server import Cluster, database_name

ACTORS = ("version", "generation", "erasures", "cause", "generation_leaf", "status", "status_leaf")
HURT = (
    *(f"UPDATE directory_actors SET {column} = {column} + 1" for column in ACTORS),
    "UPDATE directory_actors SET fireproof = CASE WHEN fireproof THEN {no} ELSE {yes} END",
    "UPDATE directory_actors SET row_sum = NULL",
    "UPDATE directory_keys SET key_id = '\\141'",
    "UPDATE directory_keys SET leaf_index = leaf_index + 1",
    "UPDATE directory_keys SET created = created + 1",
    "DELETE FROM directory_keys",
    "UPDATE directory_aux SET aux_type = '\\141'",
    "UPDATE directory_aux SET aux_id = '\\141'",
    "UPDATE directory_aux SET aux_data = '\\141'",
    "UPDATE directory_aux SET aux_data = NULL",
    "UPDATE directory_aux SET leaf_index = leaf_index + 1",
    "UPDATE directory_aux SET created = created + 1",
    "DELETE FROM directory_aux",
    "UPDATE directory_revoked SET key_hash = {hash}",
    "DELETE FROM directory_revoked",
)


@pytest.fixture(params=["sqlite", "postgres"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[LogStore, Callable[..., None]]]:
    """A log in which somebody has of everything, and how to hurt what is stored of it."""
    words = {"hash": f"'\\x{'00' * 32}'", "yes": "true", "no": "false"}
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_log")
        cluster: Cluster = request.getfixturevalue("postgres")
        store: LogStore = PostgresStore.open(url, origin=ORIGIN)

        def hurt(statement: str) -> None:
            cluster.sql("SET search_path = ktlog; " + statement.format(**words), database_name(url))
    else:
        path = tmp_path / "log.db"
        store = SqliteStore.create(path, ORIGIN, "spec")
        words |= {"hash": f"x'{'00' * 32}'", "yes": "1", "no": "0"}

        def hurt(statement: str) -> None:
            with closing(sqlite3.connect(path)) as database:
                database.execute("PRAGMA foreign_keys=OFF")
                assert database.execute(statement.format(**words)).rowcount
                database.commit()

    with store:
        desk = Desk(store)
        desk.send(AddKey(ALICE, public("a"), NOW), "a")
        desk.send(AddKey(ALICE, public("c"), NOW), "a")
        desk.send(RevokeKey(ALICE, public("c"), NOW), "a")
        desk.send(AddAuxData(ALICE, "test-v1", "datum", None, NOW), "a")
        desk.send(AddKey(BOB, public("b"), NOW), "b")
        yield store, hurt


@pytest.mark.parametrize("statement", HURT)
def test_an_actor_of_whom_anything_flipped_is_not_read(stored, statement: str) -> None:
    store, hurt = stored
    assert key_hash(public("c")) in store.actor(ALICE).revoked
    hurt(statement)
    with pytest.raises(StoreError, match="Corrupt"):
        store.actor(ALICE)


@pytest.mark.parametrize("column", ["key_hash", "key_check"])
def test_a_revoked_token_is_found_by_either_form(stored, column: str) -> None:
    store, hurt = stored
    revoked, other = key_hash(public("b")), key_hash(public("a"))
    assert not store.token_revoked(revoked)
    Desk(store).batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("b"))).preimage, {}, {}))
    assert store.token_revoked(revoked) and not store.token_revoked(other)
    hurt(f"UPDATE token_revoked SET {column} = {{hash}}")
    with pytest.raises(StoreError, match="Corrupt"):
        store.token_revoked(revoked)
    assert not store.token_revoked(other)


def test_the_two_forms_are_two() -> None:
    assert token_check(bytes(32)) != bytes(32) and token_check(bytes(32)) != token_check(b"\1" + bytes(31))
