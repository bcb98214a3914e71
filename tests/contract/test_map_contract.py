"""Every map store against the naive definition: roots, proofs, growth, tombstones, and one writer at a time."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import naive_map
import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.keymap.output import MapConfig, format_config
from ktlog.keymap.prefix import MISSING, PrefixLeaf, encode_prefix_proof, prove, subtree_hash, verify
from ktlog.store.mapcontract import Dead, Live, MapState, MapStore
from ktlog.store.mapdb import SqliteMapStore
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash

ORIGIN = "keys.example.com"
CONFIG = format_config(MapConfig(ORIGIN, "spec"))


@dataclass(frozen=True)
class World:
    """A new map. open: another handle to it, with ``read_only``, ``origin`` or ``config``."""

    open: Callable[..., MapStore]
    create: Callable[[], None]

    @property
    def store(self) -> MapStore:
        return self.open()


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    opened: list[MapStore] = []

    def keep(store: MapStore) -> MapStore:
        opened.append(store)
        return store

    if request.param == "sqlite":
        path = tmp_path / "map.db"
        yield World(
            lambda origin=ORIGIN, config=CONFIG, **how: keep(
                SqliteMapStore.open(path, origin=origin, config=config, **how)
            ),
            lambda: SqliteMapStore.create(path, ORIGIN, CONFIG),
        )
    else:
        url = request.getfixturevalue("postgres_url")
        from ktlog.store.pgconnections import PgConnections
        from ktlog.store.pgmap import PgMapStore
        from ktlog.store.pgschema import apply_steps

        log = PgConnections(url, read_only=False)
        with log.writing() as db:
            db.execute("CREATE SCHEMA ktlog")
            apply_steps(db)
        log.close()
        yield World(
            lambda origin=ORIGIN, config=CONFIG, **how: keep(PgMapStore.open(url, origin=origin, config=config, **how)),
            lambda: PgMapStore.create(url, ORIGIN, CONFIG),
        )
    for handle in opened:
        handle.close()


@pytest.fixture
def store(world: World) -> MapStore:
    world.create()
    return world.open()


def live(index: bytes, commitment: bytes, *news: bytes) -> Live:
    return Live(index, commitment, b"value of " + index, commitment[:16], b"history", news)


def update(store: MapStore, changes, state: MapState | None = None, **how) -> MapState:
    state = state or store.state()
    return store.update(
        changes, expected=state, input_size=state.input_size + 1, erasures=0, make_leaf=lambda root: b"leaf " + root,
        **how,
    )


def test_an_empty_map_proves_absence(store):
    state = store.state()
    assert (state.leaves, state.depth, state.root, state.output.size) == (0, 0, MISSING, 1)
    assert store.output_leaves(0, 1) == (CONFIG,)
    index = b"\x05" * 32
    assert verify(store.prove(index), [index], state.root, [None]) == [None]
    for indexes in ([], [index], [bytes(32), index]):
        assert store.prove_all(indexes) == prove([], indexes)
    assert store.leaf_near(index) is None and store.presented(index) is None and store.history(index, 9) == ()


@pytest.mark.parametrize("seed", range(2))
def test_roots_and_proofs_are_those_of_the_definition(world, store, seed):
    """Through four growths of the upper part, with prefixes shared far below it."""
    rng = random.Random(seed)
    reader = world.open(read_only=True)
    known: dict[bytes, bytes] = {}
    for batch in range(14):
        news = {rng.randbytes(32): rng.randbytes(32) for _ in range(rng.choice([1, 3, 40, 90]))}
        for index in rng.sample(sorted(known), min(len(known), 5)):
            news[index] = rng.randbytes(32)
            near = (int.from_bytes(index, "big") ^ (1 << rng.choice([0, 3, 100, 230, 250]))).to_bytes(32, "big")
            if batch % 2:
                news[near] = rng.randbytes(32)
        known |= news
        state = update(store, [live(i, c) for i, c in news.items()])
        leaves = sorted(PrefixLeaf(i, c) for i, c in known.items())
        assert state == reader.state() and state.root == subtree_hash(leaves)
        assert list(reader.leaves()) == leaves and state.leaves == len(leaves)
        assert reader.leaf_near(leaves[len(leaves) // 2].index) == leaves[len(leaves) // 2]
        asked = sorted({*rng.sample(sorted(known), min(9, len(known))), *(rng.randbytes(32) for _ in range(9))})
        for indexes in (asked, asked[:1], []):
            assert reader.prove_all(indexes) == prove(leaves, indexes)
        for index in [*rng.sample(sorted(known), min(6, len(known))), *(rng.randbytes(32) for _ in range(6))]:
            proof = reader.prove(index)
            found = verify(proof, [index], state.root, [known.get(index)])[0]
            assert (found is not None) == (index in known)
    assert state.depth >= 6


def test_the_root_of_the_definition_after_growth(store):
    rng = random.Random(11)
    known = {rng.randbytes(32): rng.randbytes(32) for _ in range(150)}
    state = update(store, [live(i, c) for i, c in known.items()])
    assert state.depth == 6 and state.root == naive_map.root(known)
    for index in [*sorted(known)[:20], *(rng.randbytes(32) for _ in range(20))]:
        kind, depth, _leaf, hashes = naive_map.search(known, index)
        proof = store.prove(index)
        assert (proof.searches[0].kind, proof.searches[0].depth, list(proof.hashes)) == (kind, depth, hashes)
        assert len(encode_prefix_proof(proof)) >= 5


def test_values_and_tombstones_replace_each_other(store):
    index, other = b"\x01" * 32, b"\x02" * 32
    update(store, [live(index, b"\x0a" * 32), live(other, b"\x0b" * 32)])
    assert store.live(index) == live(index, b"\x0a" * 32) and store.dead(index) is None
    assert store.presented(index) == (b"value of " + index, b"\x0a" * 16) and not store.scrub_due()
    dead = Dead(index, b"\x0c" * 32, 2, 1, 0)
    update(store, [dead])
    assert store.live(index) is None and store.dead(index) == dead and store.live(other) is not None
    update(store, [live(index, b"\x0d" * 32)])
    assert store.live(index).commitment == b"\x0d" * 32 and store.dead(index) is None
    assert store.scrub_due() and store.scrub() and not store.scrub_due()
    assert store.live(other) == live(other, b"\x0b" * 32)


def test_a_history_goes_on_or_begins_afresh(store):
    index = b"\x01" * 32
    update(store, [live(index, bytes(32), b"one", b"")])
    update(store, [live(index, bytes(32), b"three")])
    assert store.history(index, 9) == (b"one", b"", b"three") and store.history(index, 2) == (b"one", b"")
    change = live(index, bytes(32), b"new")
    update(store, [Live(**{**vars(change), "afresh": True})])
    assert store.history(index, 9) == (b"new",) and store.scrub_due()


def test_the_output_log_grows_by_one_leaf_a_batch(store):
    for number in range(5):
        state = update(store, [live(bytes([number]) * 32, bytes(32))])
    leaves = store.output_leaves(0, 6)
    assert leaves[5] == b"leaf " + state.root and state.output.size == 6
    assert state.output.root() == root_hash(6, leaf_reader([hash_leaf(leaf) for leaf in leaves]))
    assert store.output_hashes(2, 4) == (hash_leaf(leaves[2]), hash_leaf(leaves[3]))
    with pytest.raises(StoreError, match="no output leaves"):
        store.output_leaves(5, 7)


def test_a_heartbeat_changes_nothing_but_the_output_log(store):
    before = update(store, [live(b"\x01" * 32, bytes(32))])
    after = update(store, [])
    assert after.root == before.root and after.output.size == before.output.size + 1


def test_the_version_follows_every_update_of_another_handle(world, store):
    reader = world.open(read_only=True)
    first = reader.version()
    assert reader.version() == first
    with reader.snapshot():
        assert reader.version() == first
        update(store, [])
        assert reader.version() != first


def test_a_checkpoint_is_kept_with_its_leaf(store):
    update(store, [live(b"\x01" * 32, bytes(32))], seal=lambda after, leaf: b"note of " + leaf)
    after = update(store, [], seal=lambda after, leaf: b"%d" % after.output.size)
    assert store.checkpoint() == b"3" == store.checkpoint(after.output.size)
    assert store.checkpoint(2) == b"note of " + store.output_leaves(1, 2)[0] and store.checkpoint(1) is None


def test_readers_see_the_state_before_while_a_leaf_is_sealed(world, store):
    reader, index = world.open(read_only=True), b"\x01" * 32
    before = reader.state()
    seen = []

    def seal(_after: MapState, _leaf: bytes) -> bytes:
        seen.append((reader.state(), reader.live(index), reader.leaf_near(index)))
        return b"note"

    after = update(store, [live(index, bytes(32))], seal=seal)
    assert seen == [(before, None, None)] and reader.state() == after != before


def test_a_snapshot_stays_at_one_update(world, store):
    reader, index = world.open(read_only=True), b"\x01" * 32
    with reader.snapshot():
        before = reader.state()
        update(store, [live(index, bytes(32))])
        assert reader.state() == before and reader.live(index) is None
        assert verify(reader.prove(index), [index], before.root, [None]) == [None]
    assert reader.live(index) is not None


def test_a_stale_writer_is_refused(store):
    stale = store.state()
    update(store, [live(b"\x01" * 32, bytes(32))])
    with pytest.raises(Conflict) as refusal:
        update(store, [live(b"\x02" * 32, bytes(32))], stale)
    assert refusal.value.name == "MapAdvanced" and store.live(b"\x02" * 32) is None


@pytest.mark.parametrize("part", ["make_leaf", "seal"])
def test_a_failure_in_the_middle_changes_nothing(store, part):
    before = store.state()

    def fail(*_arguments: object) -> bytes:
        raise StoreError("Invented", "in the middle")

    with pytest.raises(StoreError, match="in the middle"):
        store.update(
            [live(b"\x01" * 32, bytes(32))], expected=before, input_size=1, erasures=0,
            **{"make_leaf": lambda root: root, part: fail},
        )
    assert store.state() == before and store.live(b"\x01" * 32) is None


def test_of_two_writers_at_once_one_wins(request, world, store):
    """The second begins while the first seals its leaf; SQLite makes it wait, PostgreSQL lets it win."""
    other, index = world.open(), b"\x02" * 32
    outcomes: list[object] = []

    def second() -> None:
        try:
            outcomes.append(update(other, [live(index, bytes(32))], stale))
        except StoreError as error:
            outcomes.append(error)

    stale = store.state()
    thread = threading.Thread(target=second)
    on_postgres = "postgres" in request.node.name

    def seal(_after: MapState, _leaf: bytes) -> bytes:
        thread.start()
        if on_postgres:
            thread.join()
        return b"note"

    try:
        outcomes.append(update(store, [live(b"\x01" * 32, bytes(32))], stale, seal=seal))
    except StoreError as error:
        outcomes.append(error)
    thread.join()
    lost = [one.name for one in outcomes if isinstance(one, Conflict)]
    assert lost == ["MapAdvanced"] and len(outcomes) == 2
    assert store.state().leaves == 1 and store.state().output.size == 2


def test_a_reader_changes_nothing(world, store):
    reader = world.open(read_only=True)
    with pytest.raises(StoreError) as refusal:
        update(reader, [live(b"\x01" * 32, bytes(32))])
    assert refusal.value.name == "ReadOnly" and store.state().leaves == 0


def test_another_log_s_map_and_another_configuration(world, store):
    with pytest.raises(StoreError) as refusal:
        world.open(origin="keys.evil.example")
    assert refusal.value.name == "WrongOrigin"
    with pytest.raises(StoreError) as refusal:
        world.open(config=CONFIG.replace(b"mmd 60", b"mmd 61"))
    assert refusal.value.name == "WrongConfig" and "mmd 60" in refusal.value.message


def test_a_map_is_made_once_and_never_by_opening(world):
    with pytest.raises(StoreError) as refusal:
        world.open()
    assert refusal.value.name == "MissingStore"
    world.create()
    with pytest.raises(StoreError) as refusal:
        world.create()
    assert refusal.value.name == "StoreExists"
