"""Random stories against a naive model: the same verdicts, the same keys, and nothing ever breaks.

The model keeps plain sets and knows nothing of versions or leaves. Signatures are left to the unit
tests: here the signer is named, rightly or wrongly, and keys are 1312 bytes made from one letter.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from ktlog.errors import MessageRejected
from ktlog.pkd.actors import Actor, Status, View, check_invariants
from ktlog.pkd.keys import key_hash
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
    aux_data_id,
)
from ktlog.pkd.rejections import REJECTIONS
from ktlog.pkd.state import apply, created_time, recent_root_ok, recent_window, touched_by

ACTORS = ("https://a.example/1", "https://a.example/2", "https://b.example/3")
KEYS = "pqrst"
RAW = {name: name.encode() * 1312 for name in KEYS}
NAME = {raw: name for name, raw in RAW.items()}
IDS = {text: aux_data_id("x", text) for text in "uvw"}

actors = st.sampled_from(ACTORS)
keys = st.sampled_from(KEYS).map(RAW.__getitem__)
times = st.integers(0, 50)
texts = st.sampled_from("uvw")
aux_ids = st.none() | texts.map(IDS.__getitem__)

messages = st.one_of(
    st.builds(AddKey, actors, keys, times),
    st.builds(AddKey, actors, keys, times),
    st.builds(RevokeKey, actors, keys, times),
    keys.map(lambda raw: RevokeKeyThirdParty(SimpleNamespace(public_key=raw))),
    st.builds(MoveIdentity, actors, actors, times),
    st.builds(BurnDown, actors, actors, times),
    st.builds(Fireproof, actors, times),
    st.builds(UndoFireproof, actors, times),
    st.builds(AddAuxData, actors, st.sampled_from("xy"), texts, aux_ids, times),
    st.builds(RevokeAuxData, actors, st.sampled_from("xy"), aux_ids, st.none() | texts, times),
    st.builds(CheckpointMessage, st.just("d"), st.just("r"), keys, st.just("e"), st.just("s"), times),
)
stories = st.lists(st.tuples(messages, st.none() | keys, st.booleans()), max_size=40)


@dataclass
class Model:
    """What a person would keep on paper. Each do_x answers whether the message is taken."""

    keys: dict[str, set[bytes]] = field(default_factory=lambda: {a: set() for a in ACTORS})
    aux: dict[str, set[tuple[str, str]]] = field(default_factory=lambda: {a: set() for a in ACTORS})
    revoked: dict[str, set[bytes]] = field(default_factory=lambda: {a: set() for a in ACTORS})
    fireproof: set[str] = field(default_factory=set)
    dead: set[bytes] = field(default_factory=set)

    def takes(self, message: Any, signer: bytes | None) -> bool:
        return getattr(self, "do_" + type(message).__name__)(message, signer)

    def do_AddKey(self, m: AddKey, signer: bytes | None) -> bool:
        mine, new = self.keys[m.actor], m.public_key
        if new in mine | self.revoked[m.actor] | self.dead:
            return False
        if signer not in (mine or {new}):
            return False
        mine.add(new)
        return True

    def do_RevokeKey(self, m: RevokeKey, signer: bytes | None) -> bool:
        mine = self.keys[m.actor]
        if not {signer, m.public_key} <= mine or signer == m.public_key:
            return False
        mine.remove(m.public_key)
        self.revoked[m.actor].add(m.public_key)
        return True

    def do_RevokeKeyThirdParty(self, m: RevokeKeyThirdParty, signer: bytes | None) -> bool:
        hit = [a for a in ACTORS if m.token.public_key in self.keys[a]]
        for actor in hit:
            self.keys[actor].remove(m.token.public_key)
            if not self.keys[actor]:
                self.aux[actor].clear()
        self.dead |= {m.token.public_key} if hit else set()
        return bool(hit)

    def do_MoveIdentity(self, m: MoveIdentity, signer: bytes | None) -> bool:
        if signer not in self.keys[m.old_actor] or self.keys[m.new_actor]:
            return False
        if self.keys[m.old_actor] & (self.revoked[m.new_actor] | self.dead):
            return False
        for table in (self.keys, self.aux):
            table[m.new_actor], table[m.old_actor] = table[m.old_actor], set()
        self.revoked[m.new_actor] |= self.revoked[m.old_actor]
        was_fireproof = m.old_actor in self.fireproof
        self.fireproof -= {m.old_actor, m.new_actor}
        self.fireproof |= {m.new_actor} if was_fireproof else set()
        return True

    def do_BurnDown(self, m: BurnDown, signer: bytes | None) -> bool:
        same_domain = m.actor.split("/")[2] == m.operator.split("/")[2]
        if signer not in self.keys[m.operator] or not self.keys[m.actor]:
            return False
        if not same_domain or m.actor in self.fireproof:
            return False
        self.keys[m.actor], self.aux[m.actor] = set(), set()
        return True

    def do_Fireproof(self, m: Fireproof, signer: bytes | None) -> bool:
        if signer not in self.keys[m.actor] or m.actor in self.fireproof:
            return False
        self.fireproof.add(m.actor)
        return True

    def do_UndoFireproof(self, m: UndoFireproof, signer: bytes | None) -> bool:
        if signer not in self.keys[m.actor] or m.actor not in self.fireproof:
            return False
        self.fireproof.remove(m.actor)
        return True

    def do_AddAuxData(self, m: AddAuxData, signer: bytes | None) -> bool:
        wrong = m.aux_id not in (None, aux_data_id(m.aux_type, m.aux_data))
        datum = (m.aux_type, m.aux_data)
        if signer not in self.keys[m.actor] or wrong or datum in self.aux[m.actor]:
            return False
        self.aux[m.actor].add(datum)
        return True

    def do_RevokeAuxData(self, m: RevokeAuxData, signer: bytes | None) -> bool:
        if signer not in self.keys[m.actor]:
            return False
        meant = {
            (kind, text) for kind, text in self.aux[m.actor]
            if kind == m.aux_type
            and m.aux_data in (None, text) and m.aux_id in (None, aux_data_id(kind, text))
        }
        if m.aux_data is m.aux_id is None or not meant:
            return False
        self.aux[m.actor] -= meant
        return True

    def do_CheckpointMessage(self, m: CheckpointMessage, signer: bytes | None) -> bool:
        return signer == m.from_public_key


class World:
    """The real thing, its rows kept in a dictionary."""

    def __init__(self) -> None:
        self.rows: dict[str, Actor] = {}
        self.tokens: set[bytes] = set()
        self.histories: dict[str, list[int]] = {}
        self.size = self.time = 0

    def holders(self, hashed: bytes) -> list[str]:
        return [a.actor_id for a in self.rows.values() if any(key_hash(k.public_key) == hashed for k in a.keys)]

    def view(self, message: Any) -> View:
        rows = {name: self.rows.get(name) for name in touched_by(message, self.holders)}
        hashes = [key_hash(raw) for raw in RAW.values()]
        return View(rows, self.tokens, {hashed: self.holders(hashed) for hashed in hashes})

    def do(self, message: Any, signer: bytes | None) -> bool:
        view = self.view(message)
        before = copy.deepcopy((dict(view.actors), view.holders, view.token_revoked))
        created = created_time(message, self.time)
        try:
            change = apply(view, message, self.size, f"id {self.size}", signer, created)
        except MessageRejected as refusal:
            assert refusal.message == REJECTIONS[refusal.code]
            return False
        finally:
            assert before == (dict(view.actors), view.holders, view.token_revoked), "apply changed its view"
        self.check_change(view, change)
        for actor in change.actors:
            self.rows[actor.actor_id] = actor
        if change.token_revoked is not None:
            self.tokens.add(change.token_revoked)
        self.size, self.time = self.size + 1, max(self.time, created)
        return True

    def check_change(self, view: View, change: Any) -> None:
        names = [actor.actor_id for actor in change.actors]
        assert sorted(names) == sorted(leaf.actor_id for leaf in change.history) and len(set(names)) == len(names)
        assert list(change.needs_salt) == [name for name in names if view.actors[name] is None]
        for actor in change.actors:
            check_invariants(actor)
            old = view.actors[actor.actor_id]
            assert actor.version == (old.version if old else 0) + 1
            assert actor.generation - (old.generation if old else 0) in (0, 1)
            began = old is None or actor.generation > old.generation
            assert began == (actor.generation_leaf == self.size)
            assert began == (bool(actor.keys) and not (old and old.keys))
            if old is not None:
                assert old.revoked <= actor.revoked
                assert (old.status != actor.status) == (actor.status_leaf == self.size)
            self.histories.setdefault(actor.actor_id, []).append(self.size)


def likely(message: Any, world: World, guess: bytes | None, helpful: bool) -> bytes | None:
    """Half of the time the right signer, or most messages would fail for the same dull reason."""
    if not helpful:
        return guess
    if isinstance(message, CheckpointMessage):
        return message.from_public_key
    name = getattr(message, "operator", None) or getattr(message, "old_actor", None) or getattr(message, "actor", "")
    row = world.rows.get(name)
    if row is not None and row.keys:
        return row.keys[-1].public_key
    return getattr(message, "public_key", guess)


@settings(max_examples=150, deadline=None)
@given(stories)
def test_the_transition_function_and_the_model_agree(story: list[tuple[Any, bytes | None, bool]]) -> None:
    world, model = World(), Model()
    for message, guess, helpful in story:
        signer = likely(message, world, guess, helpful)
        assert world.do(message, signer) == model.takes(message, signer), message
        for name in ACTORS:
            row = world.rows.get(name)
            assert {key.public_key for key in row.keys} == model.keys[name] if row else not model.keys[name]
            assert {(a.aux_type, a.aux_data) for a in row.aux} == model.aux[name] if row else not model.aux[name]
            assert bool(row and row.fireproof) == (name in model.fireproof)
            assert (row.status == Status.ACTIVE if row else False) == bool(model.keys[name])
            assert (row.revoked if row else set()) == {key_hash(raw) for raw in model.revoked[name]}
            assert (row.version if row else 0) == len(world.histories.get(name, []))
        assert world.tokens == {key_hash(raw) for raw in model.dead}


@settings(max_examples=50, deadline=None)
@given(stories, stories)
def test_apply_is_a_function(first: list, second: list) -> None:
    """The same view and message give the same change, whatever was applied in between."""
    world = World()
    for message, guess, helpful in first:
        world.do(message, likely(message, world, guess, helpful))
    for message, guess, helpful in second:
        signer, view = likely(message, world, guess, helpful), world.view(message)
        outcomes = []
        for _ in range(2):
            try:
                outcomes.append(apply(view, message, world.size, "id", signer, 7))
            except MessageRejected as refusal:
                outcomes.append(refusal.code)
        assert outcomes[0] == outcomes[1]


@given(st.integers(0, 2**63 - 1), st.integers(-5, 2**63))
def test_recent_means_within_the_window_and_of_this_log(tree_size: int, age: int) -> None:
    in_log = age == 0 if tree_size == 0 else 0 <= age < tree_size
    assert recent_root_ok(age, tree_size) == (in_log and age <= recent_window(tree_size))
