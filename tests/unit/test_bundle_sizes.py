"""How large a bundle is among a million actors and entries: its paths have that depth, and it holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
from client_world import remembering_argon2id
from keymap_world import ALICE, BOB, CONFIG, DAVE, NOW, ORIGIN, World, make_world
from map_log import ALICE as MOVER
from map_log import MapWorld

from ktlog.keymap.bundle import Bundle, encode_bundle, parse_bundle
from ktlog.keymap.check import check_bundle
from ktlog.keymap.prefix import PrefixLeaf, encode_prefix_proof, parse_prefix_proof, prove, subtree_hash
from ktlog.pkd import attributes
from ktlog.pkd.erasure import map_index
from ktlog.tlog.tree import hash_leaf, hash_node

MILLION = 20
"""log2 of a million, rounded up: the path to an entry, and the mean depth of a leaf in the map."""
DEEPEST = 40
"""A million random indexes: the two nearest to each other share about this many bits."""
OUTPUT = 24
"""The path in a log that gets a leaf a minute for thirty years."""


def neighbours(index: bytes, depth: int) -> list[PrefixLeaf]:
    """Leaves that share 0, 1, … bits with *index*, so that it lies at *depth*."""
    number = int.from_bytes(index, "big")
    return [PrefixLeaf((number ^ 1 << 255 - shared).to_bytes(32, "big"), bytes(32)) for shared in range(depth)]


def among_a_million(world: World, actor_id: str, depth: int) -> tuple[Bundle, bytes]:
    """The actor's bundle in such a map, and the root of the output log of 2**OUTPUT leaves that it is newest in."""
    own = map_index(ORIGIN, actor_id)
    world.map_leaves = lambda leaves=world.map_leaves(): sorted(  # type: ignore[method-assign]
        [*neighbours(own, depth), *(leaf for leaf in leaves if leaf.index == own)]
    )
    world.publish(map_root=subtree_hash(world.map_leaves()))
    proof = parse_prefix_proof(encode_prefix_proof(prove(world.map_leaves(), [own])))
    path = tuple(bytes([level]) * 32 for level in range(OUTPUT))
    root = hash_leaf(world.output[-1])
    for sibling in path:
        root = hash_node(sibling, root)
    return replace(world.bundle(actor_id), proof=proof, output_size=1 << OUTPUT, output_path=path, aux=None), root


@pytest.mark.parametrize(("actor_id", "most"), [(BOB, 4096), (ALICE, 4096 + 1400), (DAVE, 2600)])
@pytest.mark.parametrize("depth", [MILLION, DEEPEST])
def test_a_light_bundle_is_small(actor_id, most, depth):
    """With one key at most 4 KB; with two, and of nobody."""
    bundle, root = among_a_million(make_world(), actor_id, depth)
    data = encode_bundle(bundle)
    mapped = check_bundle(
        parse_bundle(data), actor_id, CONFIG, 1 << OUTPUT, root, now=NOW, as_of=NOW, max_age=3600
    )
    assert bundle.proof.searches[0].depth in (depth, depth - 1) and len(mapped.keys) == len(bundle.keys)
    assert 1700 < len(data) <= most


def test_a_full_bundle_is_at_most_12_kb_larger_for_each_message(tmp_path, monkeypatch):
    """Keys added and revoked: the largest messages but for auxiliary data and tokens."""
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    world = MapWorld(tmp_path)
    light, full = world.log.bundle(MOVER), world.log.bundle(MOVER, full=True)
    full = replace(full, history=tuple(replace(item, path=(bytes(32),) * MILLION) for item in full.history))
    assert len(full.history) == 4
    assert 4 * 8000 < len(encode_bundle(full)) - len(encode_bundle(light)) <= 4 * 12288
