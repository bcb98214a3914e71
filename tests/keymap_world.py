"""A small honest map with its output log, made from the product's own parts, to be lied with in tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ktlog.keymap.bundle import Bundle, NoLeaf, Presented, Tombstone
from ktlog.keymap.output import MapConfig, OutputLeaf, format_config, format_leaf, hash_config, map_origin
from ktlog.keymap.prefix import PrefixLeaf, encode_prefix_proof, parse_prefix_proof, prove, subtree_hash
from ktlog.keymap.value import (
    ListedAux,
    ListedKey,
    Value,
    commit_value,
    derive_opening,
    encode_value,
    tombstone,
)
from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.actors import Cause, Role, Status
from ktlog.pkd.erasure import map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.keys import key_hash
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash

ORIGIN = "keys.example.com"
NOW = 1_700_000_000
CONFIG = MapConfig(ORIGIN, "spec")
ALICE, BOB, CAROL, DAVE = (f"https://example.com/users/{name}" for name in ("alice", "bob", "carol", "dave"))
"""Alice has two keys and auxiliary data, Bob one key, Carol was erased, Dave never enrolled."""


def key(number: int) -> bytes:
    return bytes([number]) * 1312


@dataclass
class World:
    values: dict[str, Value]
    aux: dict[str, tuple[str, ...]]
    dead: dict[str, Tombstone]
    output: list[bytes]

    def salt(self, actor_id: str) -> bytes:
        return actor_id.encode().ljust(32, b"s")[-32:]

    def map_leaves(self) -> list[PrefixLeaf]:
        alive = [PrefixLeaf(map_index(ORIGIN, actor), self.commitment(actor)) for actor in self.values]
        dead = [
            PrefixLeaf(index, tombstone(ORIGIN, index, t.version, t.generation, t.erasure_number))
            for actor, t in self.dead.items() for index in [map_index(ORIGIN, actor)]
        ]
        return sorted(alive + dead)

    def commitment(self, actor_id: str) -> bytes:
        value = self.values[actor_id]
        opening = derive_opening(self.salt(actor_id), value.version)
        return commit_value(map_index(ORIGIN, actor_id), value.version, encode_value(value), opening)

    def publish(self, time: int = NOW, input_size: int = 100, **changes: object) -> None:
        leaf = OutputLeaf(
            hash_config(CONFIG), time, input_size, b"\x01" * 32, 1, b"\x02" * 32, subtree_hash(self.map_leaves())
        )
        self.output.append(format_leaf(replace(leaf, **changes)))

    @property
    def root(self) -> bytes:
        return root_hash(len(self.output), leaf_reader([hash_leaf(leaf) for leaf in self.output]))

    def bundle(self, actor_id: str) -> Bundle:
        size = len(self.output)
        proof = prove(self.map_leaves(), [map_index(ORIGIN, actor_id)])
        path = prove_inclusion(size - 1, size, leaf_reader([hash_leaf(leaf) for leaf in self.output]))
        value = self.values.get(actor_id)
        outcome: NoLeaf | Presented | Tombstone = self.dead.get(actor_id, NoLeaf())
        if value is not None:
            outcome = Presented(encode_value(value), derive_opening(self.salt(actor_id), value.version))
        return Bundle(
            map_origin(ORIGIN), size, self.output[-1], tuple(path), parse_prefix_proof(encode_prefix_proof(proof)),
            outcome, tuple(key(k.leaf_index) for k in value.keys) if value else (),
            self.aux.get(actor_id) if value else None,
        )


def listed(number: int) -> ListedKey:
    return ListedKey(number, key_hash(key(number)))


def make_world() -> World:
    root = hash_leaf(history_leaf(Role.SUBJECT, 3))
    bob = Value(BOB, 1, 1, 0, Cause.FIRST, 3, Status.ACTIVE, 3, False, (listed(3),), (), 1, root)
    aux = ListedAux(9, "age-v1", aux_data_id("age-v1", "age1…"))
    alice = replace(
        bob, actor_id=ALICE, version=3, generation_leaf=5, status_leaf=5, keys=(listed(5), listed(7)), aux=(aux,),
        history_size=3,
    )
    world = World({ALICE: alice, BOB: bob}, {ALICE: ("age1…",)}, {CAROL: Tombstone(2, 1, 0)}, [format_config(CONFIG)])
    world.publish(NOW - 60, 50)
    world.publish(NOW)
    return world
