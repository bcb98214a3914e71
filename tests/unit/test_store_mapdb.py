"""The map on disk against the naive definition: roots, proofs, growth, tombstones, and one writer at a time."""

from __future__ import annotations

import random

import naive_map
import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.keymap.output import MapConfig, format_config
from ktlog.keymap.prefix import MISSING, PrefixLeaf, encode_prefix_proof, subtree_hash, verify
from ktlog.store.mapdb import Dead, Live, MapState, MapStore
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash

CONFIG = format_config(MapConfig("keys.example.com", "spec"))


@pytest.fixture
def path(tmp_path):
    MapStore.create(tmp_path / "map.db", "keys.example.com", CONFIG)
    return tmp_path / "map.db"


def open_map(path, read_only=False) -> MapStore:
    return MapStore.open(path, origin="keys.example.com", config=CONFIG, read_only=read_only)


def live(index: bytes, commitment: bytes) -> Live:
    return Live(index, commitment, b"value of " + index, commitment[:16], b"history")


def update(store: MapStore, changes, state: MapState | None = None) -> MapState:
    state = state or store.state()
    return store.update(
        changes, expected=state, input_size=state.input_size + 1, erasures=0, make_leaf=lambda root: b"leaf " + root
    )


def test_an_empty_map_proves_absence(path):
    store = open_map(path)
    state = store.state()
    assert (state.leaves, state.depth, state.root, state.output.size) == (0, 0, MISSING, 1)
    assert store.output_leaves(0, 1) == (CONFIG,)
    index = b"\x05" * 32
    assert verify(store.prove(index), [index], state.root, [None]) == [None]


@pytest.mark.parametrize("seed", range(4))
def test_roots_and_proofs_are_those_of_the_definition(path, seed):
    """Through four growths of the upper part, with prefixes shared far below it."""
    rng = random.Random(seed)
    store, reader = open_map(path), open_map(path, read_only=True)
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
        for index in [*rng.sample(sorted(known), min(6, len(known))), *(rng.randbytes(32) for _ in range(6))]:
            proof = reader.prove(index)
            found = verify(proof, [index], state.root, [known.get(index)])[0]
            assert (found is not None) == (index in known)
    assert state.depth >= 6


def test_the_root_of_the_definition_after_growth(path):
    rng = random.Random(11)
    store = open_map(path)
    known = {rng.randbytes(32): rng.randbytes(32) for _ in range(150)}
    state = update(store, [live(i, c) for i, c in known.items()])
    assert state.depth == 6 and state.root == naive_map.root(known)
    for index in [*sorted(known)[:20], *(rng.randbytes(32) for _ in range(20))]:
        kind, depth, leaf, hashes = naive_map.search(known, index)
        proof = store.prove(index)
        assert (proof.searches[0].kind, proof.searches[0].depth, list(proof.hashes)) == (kind, depth, hashes)
        assert len(encode_prefix_proof(proof)) >= 5


def test_values_and_tombstones_replace_each_other(path):
    store = open_map(path)
    index, other = b"\x01" * 32, b"\x02" * 32
    update(store, [live(index, b"\x0a" * 32), live(other, b"\x0b" * 32)])
    assert store.live(index) == live(index, b"\x0a" * 32) and store.dead(index) is None
    dead = Dead(index, b"\x0c" * 32, 2, 1, 0)
    update(store, [dead])
    assert store.live(index) is None and store.dead(index) == dead and store.live(other) is not None
    update(store, [live(index, b"\x0d" * 32)])
    assert store.live(index).commitment == b"\x0d" * 32 and store.dead(index) is None


def test_an_erased_value_leaves_no_bytes(path):
    store = open_map(path)
    index = b"\x01" * 32
    secret = b"https://example.com/users/very-secret"
    update(store, [Live(index, bytes(32), secret, bytes(16), b"h")])
    update(store, [Dead(index, b"\x01" * 32, 2, 1, 0)])
    store.close()
    open_map(path).close()
    assert secret not in path.read_bytes()


def test_the_output_log_grows_by_one_leaf_a_batch(path):
    store = open_map(path)
    for number in range(5):
        state = update(store, [live(bytes([number]) * 32, bytes(32))])
    leaves = store.output_leaves(0, 6)
    assert leaves[5] == b"leaf " + state.root and state.output.size == 6
    assert state.output.root() == root_hash(6, leaf_reader([hash_leaf(leaf) for leaf in leaves]))
    assert store.output_hashes(2, 4) == (hash_leaf(leaves[2]), hash_leaf(leaves[3]))
    with pytest.raises(StoreError, match="no output leaves"):
        store.output_leaves(5, 7)


def test_a_heartbeat_changes_nothing_but_the_output_log(path):
    store = open_map(path)
    before = update(store, [live(b"\x01" * 32, bytes(32))])
    after = update(store, [])
    assert after.root == before.root and after.output.size == before.output.size + 1


def test_a_stale_writer_is_refused(path):
    store = open_map(path)
    stale = store.state()
    update(store, [live(b"\x01" * 32, bytes(32))])
    with pytest.raises(Conflict) as refusal:
        update(store, [live(b"\x02" * 32, bytes(32))], stale)
    assert refusal.value.name == "MapAdvanced" and store.live(b"\x02" * 32) is None


def test_a_failure_in_the_middle_changes_nothing(path):
    store = open_map(path)
    before = store.state()

    def fail(root: bytes) -> bytes:
        raise StoreError("Invented", "while the leaf is made")

    with pytest.raises(StoreError, match="while"):
        store.update([live(b"\x01" * 32, bytes(32))], expected=before, input_size=1, erasures=0, make_leaf=fail)
    assert store.state() == before and store.live(b"\x01" * 32) is None


def test_another_log_s_map_and_another_configuration(path):
    with pytest.raises(StoreError) as refusal:
        MapStore.open(path, origin="keys.evil.example", config=CONFIG)
    assert refusal.value.name == "WrongOrigin"
    with pytest.raises(StoreError) as refusal:
        MapStore.open(path, origin="keys.example.com", config=CONFIG.replace(b"mmd 60", b"mmd 61"))
    assert refusal.value.name == "WrongConfig"
