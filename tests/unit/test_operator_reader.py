"""Answers about actors: the state as of any published tree, and proofs that a stranger can check."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktlog.errors import MessageRejected, StoreError
from ktlog.operator.reader import ActorReader
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, Fireproof, MoveIdentity, RevokeKey, parse_wire
from ktlog.pkd.state import Actor, Status
from ktlog.tlog.tiles import tile_nodes, tile_path, tiles_between
from ktlog.tlog.tree import hash_leaf, leaf_reader, verify_inclusion
from tests.operator_world import NOW, Desk, Submission
from tests.pkd_samples import (
    ALICE,
    BOB,
    CAROL,
    public,
    quick_argon2,  # noqa: F401
    revoke_by_token,
    text_of,
)
from tests.store_samples import Draft, append

NOBODY = "https://example.com/users/nobody"


def add(actor: str, name: str, when: int = NOW) -> AddKey:
    return AddKey(actor, public(name), when)


def reader_of(desk: Desk, published: int = 0) -> ActorReader:
    read = leaf_reader(desk.store.leaf_hashes(0, desk.size))
    files = {
        tile_path(tile.level, tile.number, tile.width): b"".join(read(tile_nodes(tile)))
        for tile in tiles_between(0, published)
    }
    return ActorReader(desk.store, files.get, SPEC)


class Watched(Desk):
    """Remembers every actor after every entry, as the store had it then."""

    NAMES = (ALICE, BOB, CAROL)

    def __init__(self) -> None:
        self.past: list[dict[str, Actor | None]] = [dict.fromkeys(self.NAMES)]
        super().__init__()

    def batch(self, *submissions):
        results = super().batch(*submissions)
        while len(self.past) <= self.size:
            self.past.append({name: self.store.actor(name) for name in self.NAMES})
        return results


@pytest.fixture
def desk() -> Watched:
    return Watched()


def check_past(desk: Watched) -> None:
    """The reader knows every actor at every size, whatever came later."""
    reader = reader_of(desk)
    for size, actors in enumerate(desk.past):
        for name, actor in actors.items():
            assert reader.actor_at(name, size) == actor, (name, size)


# --- the past


def test_keys_come_and_go(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "b"), "b")
    desk.send(add(ALICE, "c"))
    desk.send(RevokeKey(ALICE, public("a"), NOW), "c")
    desk.send(Fireproof(ALICE, NOW), "c")
    desk.send(AddAuxData(ALICE, "test", "text", None, NOW), "c")
    check_past(desk)
    at_three = reader_of(desk).actor_at(ALICE, 3)
    assert [key.public_key for key in at_three.keys] == [public("a"), public("c")]
    assert [key.leaf_index for key in at_three.keys] == [0, 2]


def test_an_identity_moves(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "b"), "b")
    desk.send(add(ALICE, "c"))
    desk.send(MoveIdentity(ALICE, CAROL, NOW))
    desk.send(add(CAROL, "d"), "c")
    desk.send(add(ALICE, "e"), "e")
    check_past(desk)
    reader = reader_of(desk)
    assert reader.actor_at(ALICE, 4).status == Status.MOVED
    assert [key.leaf_index for key in reader.actor_at(CAROL, 4).keys] == [0, 2]
    assert reader.actor_at(CAROL, 3) is None


def test_identities_that_move_in_circles(desk):
    """Alice, Carol and Bob hand one set of keys around, and each is enrolled again in between."""
    desk.send(add(ALICE, "a"))
    for number, (old, new) in enumerate([(ALICE, CAROL), (CAROL, BOB), (BOB, ALICE), (ALICE, BOB), (BOB, CAROL)]):
        desk.send(MoveIdentity(old, new, NOW + number))
        if not desk.store.actor(new).fireproof:
            desk.send(Fireproof(new, NOW + number))
    desk.send(add(ALICE, "b"), "b")
    check_past(desk)


def test_moving_back_and_forth_for_ever_costs_no_more_than_its_entries(desk):
    """Each move rests on the one before. Following both actors back at each would double the work every time."""
    desk.send(add(ALICE, "a"))
    names = (ALICE, BOB)
    for number in range(40):
        desk.send(MoveIdentity(names[number % 2], names[1 - number % 2], NOW + number))
    started = time.monotonic()
    assert reader_of(desk).actor_at(BOB, 40) == desk.past[40][BOB]
    assert time.monotonic() - started < 10


def test_a_token_and_what_it_leaves_behind(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "a"), "a")
    desk.send(add(BOB, "b"), "a")
    desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("a"))).preimage, {}, {}))
    desk.send(add(ALICE, "c"), "c")
    desk.send(Fireproof(BOB, NOW), "b")
    check_past(desk)
    assert reader_of(desk).actor_at(ALICE, 4).status == Status.REVOKED
    assert [key.public_key for key in reader_of(desk).actor_at(BOB, 4).keys] == [public("b")]


def test_a_burn_down_rests_on_the_operator_s_keys(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "b"), "b")
    desk.send(add(BOB, "c"), "b")
    desk.send(RevokeKey(BOB, public("b"), NOW), "c")
    desk.send(BurnDown(ALICE, BOB, NOW), "c")  # no inbox lets these in yet, but the reader must know them
    desk.send(add(ALICE, "d"), "d")
    check_past(desk)
    assert reader_of(desk).actor_at(ALICE, 5).status == Status.BURNED


MOVES = st.sampled_from([
    (add(ALICE, "a"), "a"), (add(BOB, "b"), "b"), (add(CAROL, "c"), "c"), (add(ALICE, "d", NOW + 1), "a"),
    (MoveIdentity(ALICE, BOB, NOW), "a"), (MoveIdentity(BOB, ALICE, NOW), "a"), (MoveIdentity(BOB, CAROL, NOW), "b"),
    (MoveIdentity(CAROL, ALICE, NOW), "c"), (MoveIdentity(CAROL, BOB, NOW), "a"), (MoveIdentity(ALICE, CAROL, NOW), "b"),
    (BurnDown(ALICE, BOB, NOW), "b"), (RevokeKey(ALICE, public("a"), NOW), "d"), (Fireproof(ALICE, NOW), "a"),
    (revoke_by_token("a"), "a"), (revoke_by_token("b"), "a"), (add(ALICE, "e"), "e"), (add(BOB, "f"), "f"),
])


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(MOVES, min_size=2, max_size=14))
def test_any_history(moves):
    desk = Watched()
    for number, (message, signer) in enumerate(moves):
        dated = message if message.time is None else replace(message, time=NOW + number)
        try:
            desk.send(dated, signer)
        except MessageRejected:
            continue
    check_past(desk)


# --- answers


@pytest.fixture
def answered(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "b"), "b")
    append(desk.store, *(Draft(f"filler {number}") for number in range(300)))
    desk.past += [desk.past[-1]] * 300
    desk.restart()
    desk.send(add(ALICE, "c"))
    desk.send(RevokeKey(ALICE, public("a"), NOW), "c")
    return desk


@pytest.mark.parametrize("published", [1, 2, 255, 257, 302, 303, 304])
def test_every_proof_leads_to_the_root_of_the_tree_asked_about(answered, published):
    reader = reader_of(answered, published)
    for tree_size in {1, 2, 3, 256, 302, 303, 304}:
        if tree_size > published:
            continue
        answer = reader.answer(ALICE, tree_size, published, with_history=True)
        assert (answer.tree_size, answer.root) == (tree_size, answered.store.root_after(tree_size))
        assert answer.actor == reader.actor_at(ALICE, tree_size)
        assert set(answer.key_proofs) == {key.leaf_index for key in answer.actor.keys}
        for leaf_index, proof in answer.key_proofs.items():
            leaf = answered.store.leaf_hashes(leaf_index, leaf_index + 1)[0]
            verify_inclusion(leaf, leaf_index, tree_size, proof, answer.root)
        assert [(row.record.leaf_index, row.role) for row in answer.history] == [(0, 1), (302, 1), (303, 1)]
        for row in answer.history:
            if row.record.leaf_index >= tree_size:
                assert row.proof is None
            else:
                leaf = hash_leaf(row.record.entry)
                verify_inclusion(leaf, row.record.leaf_index, tree_size, row.proof, answer.root)


def test_what_is_pending_is_shown_and_changes_nothing(answered):
    answer = reader_of(answered, 302).answer(ALICE, 302, 302, with_history=True)
    assert [key.public_key for key in answer.actor.keys] == [public("a")]
    assert [row.proof is None for row in answer.history] == [False, True, True]
    assert answer.history[2].record.action == "RevokeKey"
    bare = reader_of(answered, 302).answer(ALICE, 302, 302, with_history=False)
    assert bare == replace(answer, history=())


def test_who_was_not_there_yet(answered):
    reader = reader_of(answered, 302)
    assert reader.answer(NOBODY, 302, 302, with_history=True) is None
    assert reader.answer(BOB, 1, 302, with_history=True) is None
    assert reader.answer(BOB, 2, 302, with_history=True).actor.actor_id == BOB
    assert reader.answer(ALICE, 0, 302, with_history=True) is None


def test_an_actor_without_keys_is_an_answer(desk):
    desk.send(add(ALICE, "a"))
    desk.send(MoveIdentity(ALICE, CAROL, NOW))
    answer = reader_of(desk, 2).answer(ALICE, 2, 2, with_history=True)
    assert (answer.actor.keys, answer.key_proofs) == ((), {})
    assert [row.role for row in answer.history] == [1, 2]
    moved = reader_of(desk, 2).answer(CAROL, 2, 2, with_history=True)
    assert [row.role for row in moved.history] == [3]
    assert set(moved.key_proofs) == {0}  # the AddKey of the key it brought, from Alice's time


def test_the_answer_is_of_one_commit(desk):
    """A message that is committed between two reads does not get into an answer half-way."""
    desk.send(add(ALICE, "a"))
    store = desk.store
    depth: list[int] = []
    original = store.history

    def history(actor_id):
        depth.append(store._contents.snapshots)
        return original(actor_id)

    store.history = history
    assert reader_of(desk, 1).answer(ALICE, 1, 1, with_history=True) is not None
    assert depth and all(level > 0 for level in depth)


# --- a store that cannot be right


def test_an_erased_entry_cannot_be_replayed(answered):
    records = answered.store._contents.records
    records[0] = replace(records[0], plain={"actor": ALICE, "public-key": None}, withheld=True)
    with pytest.raises(StoreError, match="Withheld"):
        reader_of(answered, 302).actor_at(ALICE, 302)


def test_a_history_that_names_an_entry_of_somebody_else(answered):
    answered.store._contents.histories[CAROL] = [(1, 1), (302, 1)]
    with pytest.raises(StoreError, match="CorruptHistory"):
        reader_of(answered, 302).actor_at(CAROL, 302)


def test_a_history_that_lost_an_entry(answered):
    answered.store._contents.histories[ALICE] = [(302, 1), (303, 1)]
    with pytest.raises(StoreError, match="CorruptHistory"):
        reader_of(answered, 303).actor_at(ALICE, 303)


def test_a_tree_that_is_larger_than_the_log(answered):
    with pytest.raises(StoreError, match="MissingLeaf"):
        reader_of(answered, 0).answer(ALICE, 400, 0, with_history=False)
