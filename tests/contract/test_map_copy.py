"""A map moves from SQLite to PostgreSQL with every byte, and goes on there as it would have here."""

from __future__ import annotations

import random

import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.keymap.output import MapConfig, format_config
from ktlog.store.mapcontract import Dead, Live
from ktlog.store.mapdb import SqliteMapStore
from tests.machine import need

ORIGIN = "keys.example.com"
CONFIG = format_config(MapConfig(ORIGIN, "spec"))


def live(index: bytes, commitment: bytes, *news: bytes) -> Live:
    return Live(index, commitment, b"value of " + index, commitment[:16], b"history", news)


def change(store, changes):
    state = store.state()
    return store.update(
        changes, expected=state, input_size=state.input_size + 1, erasures=state.erasures,
        make_leaf=lambda root: b"leaf " + root, seal=lambda after, leaf: b"note " + leaf,
    )


@pytest.fixture
def log_url(postgres_url):
    need("postgres")
    from ktlog.store.pgconnections import PgConnections
    from ktlog.store.pgschema import apply_steps

    log = PgConnections(postgres_url, read_only=False)
    with log.writing() as db:
        db.execute("CREATE SCHEMA ktlog")
        apply_steps(db)
    log.close()
    return postgres_url


def test_a_map_moves_with_every_byte(tmp_path, log_url):
    from ktlog.store.mapcopy import copy_map
    from ktlog.store.pgmap import PgMapStore

    SqliteMapStore.create(tmp_path / "map.db", ORIGIN, CONFIG)
    source = SqliteMapStore.open(tmp_path / "map.db", origin=ORIGIN, config=CONFIG)
    rng = random.Random(5)
    indexes = [rng.randbytes(32) for _ in range(100)]
    change(source, [live(index, rng.randbytes(32), b"born") for index in indexes])
    change(source, [Dead(indexes[0], bytes(32), 3, 1, 0), live(indexes[1], rng.randbytes(32), b"changed")])
    reader = SqliteMapStore.open(tmp_path / "map.db", origin=ORIGIN, config=CONFIG, read_only=True)

    state = copy_map(reader, log_url)
    copy = PgMapStore.open(log_url, origin=ORIGIN, config=CONFIG)
    assert state == source.state() == copy.state() and not copy.scrub_due()
    for index in indexes:
        assert copy.live(index) == source.live(index) and copy.dead(index) == source.dead(index)
        assert copy.history(index, 9) == source.history(index, 9) and copy.prove(index) == source.prove(index)
    assert copy.output_leaves(0, 3) == source.output_leaves(0, 3) and copy.checkpoint(3) == source.checkpoint(3)
    further = [live(rng.randbytes(32), rng.randbytes(32)) for _ in range(500)]  # the tree grows
    assert change(copy, further) == change(source, further)
    with pytest.raises(StoreError) as refusal:
        copy_map(reader, log_url)
    assert refusal.value.name == "StoreExists"
    for store in (source, reader, copy):
        store.close()


def test_whoever_was_overtaken_changes_nothing(log_url):
    from ktlog.store.pgconnections import PgConnections
    from ktlog.store.pgmap import PgMapStore

    PgMapStore.create(log_url, ORIGIN, CONFIG)
    log = PgConnections(log_url, read_only=False)
    claim = "INSERT INTO log_state (id, size, root, frontier, epoch, greatest_time, writes) VALUES (1, 0, %b, '', 7, 0, 0)"
    log.write(lambda db: db.execute(claim, (bytes(32),)))
    old = PgMapStore.open(log_url, origin=ORIGIN, config=CONFIG, epoch=7)
    before = change(old, [live(b"\x01" * 32, bytes(32))])

    def seal(_after, _leaf):
        # Another sequencer claims the log while this one waits for its cosigners. Nothing holds it up.
        log.write(lambda db: db.execute("UPDATE log_state SET epoch = 8, writes = writes + 1"))
        return b"note"

    with pytest.raises(Conflict) as refusal:
        old.update([live(b"\x02" * 32, bytes(32))], expected=before, input_size=2, erasures=0,
                   make_leaf=lambda root: root, seal=seal)
    assert refusal.value.name == "Fenced"
    new = PgMapStore.open(log_url, origin=ORIGIN, config=CONFIG, epoch=8)
    assert new.state() == before and new.live(b"\x02" * 32) is None and new.checkpoint(3) is None
    change(new, [live(b"\x02" * 32, bytes(32))])
    for store in (old, new, log):
        store.close()


def test_the_output_log_only_grows_also_at_a_prompt(log_url):
    from ktlog.store.pgconnections import PgConnections
    from ktlog.store.pgmap import PgMapStore

    PgMapStore.create(log_url, ORIGIN, CONFIG)
    prompt = PgConnections(log_url, read_only=False)
    for statement in (
        "DELETE FROM output_leaves", "TRUNCATE output_leaves", "UPDATE output_leaves SET leaf = ''",
        "DELETE FROM output_checkpoints", "UPDATE map_state SET output_size = 0",
    ):
        with pytest.raises(StoreError) as refusal, prompt.writing() as db:
            db.execute(statement)
        assert refusal.value.name == "Refused", statement
    prompt.close()
