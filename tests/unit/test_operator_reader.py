"""Answers about actors: the state as of any published tree, and proofs that a stranger can check."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ktlog.errors import MessageRejected, StoreError
from ktlog.operator.reader import ActorReader, Held, Tree
from ktlog.operator.shred import plan_for
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import derive_key_id
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    UndoFireproof,
    aux_data_id,
    parse_wire,
)
from ktlog.pkd.state import Actor, Status
from ktlog.tlog.tiles import tile_nodes, tile_path, tiles_between
from ktlog.tlog.tree import hash_leaf, leaf_reader, verify_inclusion
from tests.operator_world import NOW, ORIGIN, Desk, Submission
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


def held_by(actor: Actor | None) -> Held | None:
    return None if actor is None or actor.status == Status.ERASED else Held(actor.keys, actor.aux)


def check_past(desk: Watched) -> None:
    """The reader knows every actor at every size, whatever came later."""
    reader = reader_of(desk)
    for size, actors in enumerate(desk.past):
        for name, actor in actors.items():
            assert reader.held_at(name, size) == held_by(actor), (name, size)


# --- the past


def test_keys_come_and_go(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "b"), "b")
    desk.send(add(ALICE, "c"))
    desk.send(RevokeKey(ALICE, public("a"), NOW), "c")
    desk.send(Fireproof(ALICE, NOW), "c")
    desk.send(AddAuxData(ALICE, "test", "text", None, NOW), "c")
    check_past(desk)
    at_three = reader_of(desk).held_at(ALICE, 3)
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
    assert reader.held_at(ALICE, 4) == Held((), ())
    assert [key.leaf_index for key in reader.held_at(CAROL, 4).keys] == [0, 2]
    assert reader.held_at(CAROL, 3) is None


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
    assert reader_of(desk).held_at(BOB, 40) == held_by(desk.past[40][BOB])
    assert time.monotonic() - started < 10


def test_a_token_and_what_it_leaves_behind(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "a"), "a")
    desk.send(add(BOB, "b"), "a")
    desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("a"))).preimage, {}, {}))
    desk.send(add(ALICE, "c"), "c")
    desk.send(Fireproof(BOB, NOW), "b")
    check_past(desk)
    assert reader_of(desk).held_at(ALICE, 4) == Held((), ())
    assert [key.public_key for key in reader_of(desk).held_at(BOB, 4).keys] == [public("b")]


def test_a_burn_down_rests_on_the_operator_s_keys(desk):
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "b"), "b")
    desk.send(add(BOB, "c"), "b")
    desk.send(RevokeKey(BOB, public("b"), NOW), "c")
    desk.send(BurnDown(ALICE, BOB, NOW), "c")  # no inbox lets these in yet, but the reader must know them
    desk.send(add(ALICE, "d"), "d")
    check_past(desk)
    assert reader_of(desk).held_at(ALICE, 5) == Held((), ())


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
        assert answer.held == reader.held_at(ALICE, tree_size)
        assert set(answer.key_proofs) == {key.leaf_index for key in answer.held.keys}
        for leaf_index, proof in answer.key_proofs.items():
            leaf = answered.store.leaf_hashes(leaf_index, leaf_index + 1)[0]
            verify_inclusion(leaf, leaf_index, tree_size, proof, answer.root)
        assert [(row.record.leaf_index, row.role) for row in answer.history.rows] == [(0, 1), (302, 1), (303, 1)]
        for row in answer.history.rows:
            if row.record.leaf_index >= tree_size:
                assert row.proof is None
            else:
                leaf = hash_leaf(row.record.entry)
                verify_inclusion(leaf, row.record.leaf_index, tree_size, row.proof, answer.root)


def test_what_is_pending_is_shown_and_changes_nothing(answered):
    answer = reader_of(answered, 302).answer(ALICE, 302, 302, with_history=True)
    assert [key.public_key for key in answer.held.keys] == [public("a")]
    assert [row.proof is None for row in answer.history.rows] == [False, True, True]
    assert answer.history.rows[2].record.action == "RevokeKey"
    bare = reader_of(answered, 302).answer(ALICE, 302, 302, with_history=False)
    assert bare == replace(answer, history=None)


def test_who_was_not_there_yet(answered):
    reader = reader_of(answered, 302)
    assert reader.answer(NOBODY, 302, 302, with_history=True) is None
    assert reader.answer(BOB, 1, 302, with_history=True) is None
    assert [key.public_key for key in reader.answer(BOB, 2, 302, with_history=True).held.keys] == [public("b")]
    assert reader.answer(ALICE, 0, 302, with_history=True) is None


def test_an_actor_without_keys_is_an_answer(desk):
    desk.send(add(ALICE, "a"))
    desk.send(MoveIdentity(ALICE, CAROL, NOW))
    answer = reader_of(desk, 2).answer(ALICE, 2, 2, with_history=True)
    assert (answer.held.keys, answer.key_proofs) == ((), {})
    assert [row.role for row in answer.history.rows] == [1, 2]
    moved = reader_of(desk, 2).answer(CAROL, 2, 2, with_history=True)
    assert [row.role for row in moved.history.rows] == [3]
    assert set(moved.key_proofs) == {0}  # the AddKey of the key it brought, from Alice's time


def test_the_answer_is_of_one_commit(desk):
    """A message that is committed between two reads does not get into an answer half-way."""
    desk.send(add(ALICE, "a"))
    store = desk.store
    depth: list[int] = []
    reader = reader_of(desk, 1)
    for name in ("history_span", "touches", "actor", "records"):
        original = getattr(store, name)

        def watched(*arguments, original=original):
            depth.append(store._contents.snapshots)
            return original(*arguments)

        setattr(store, name, watched)
    assert reader.answer(ALICE, 1, 1, with_history=True) is not None
    assert len(depth) >= 4 and all(level > 0 for level in depth)


# --- pages of a history


@pytest.fixture
def toggled(desk):
    """Alice, one key, and 250 entries about nothing."""
    desk.send(add(ALICE, "a"))
    for number in range(250):
        desk.send((UndoFireproof if number % 2 else Fireproof)(ALICE, NOW + number))
    return desk


def pages_of(reader, actor, tree):
    found = [reader.history(actor, tree)]
    while found[-1].more_after is not None:
        found.append(reader.history(actor, tree, found[-1].more_after))
    return found


def test_a_long_history_comes_in_pages(toggled):
    reader, tree = reader_of(toggled, 220), Tree(220, 220)
    pages = pages_of(reader, ALICE, tree)
    assert reader.answer(ALICE, 220, 220, with_history=True).history == pages[0]
    assert [len(page.rows) for page in pages] == [100, 100, 51]
    assert [page.more_after for page in pages] == [99, 199, None]
    rows = [row for page in pages for row in page.rows]
    assert [row.record.leaf_index for row in rows] == list(range(251))
    root = toggled.store.root_after(220)
    for row in rows:
        assert (row.proof is None) == (row.record.leaf_index >= 220)
        if row.proof is not None:
            verify_inclusion(hash_leaf(row.record.entry), row.record.leaf_index, 220, row.proof, root)
    assert reader.history(ALICE, tree, 250).rows == reader.history(ALICE, tree, 2**63 - 1).rows == ()
    assert reader.history(ALICE, tree, 250).more_after is None
    assert reader.history(BOB, tree) is reader.history(ALICE, Tree(0, 220)) is None


def test_a_page_that_ends_with_the_history_is_the_last(desk):
    desk.send(add(ALICE, "a"))
    for number in range(99):
        desk.send((UndoFireproof if number % 2 else Fireproof)(ALICE, NOW + number))
    assert [len(page.rows) for page in pages_of(reader_of(desk, 100), ALICE, Tree(100, 100))] == [100]


def test_a_page_of_large_messages_has_fewer(desk, monkeypatch):
    desk.send(add(ALICE, "a"))
    for number in range(4):
        desk.send(AddAuxData(ALICE, "test", f"{number}" * 40_000, None, NOW))
    monkeypatch.setattr("ktlog.operator.reader.HISTORY_PAGE_BYTES", 60_000)
    reader, tree = reader_of(desk, 5), Tree(5, 5)
    assert [len(page.rows) for page in pages_of(reader, ALICE, tree)] == [2, 1, 1, 1]
    monkeypatch.setattr("ktlog.operator.reader.HISTORY_PAGE_BYTES", 1)
    assert [len(page.rows) for page in pages_of(reader, ALICE, tree)] == [1] * 5


class Counting:
    """The leaf indexes of the records that were read."""

    def __init__(self, store) -> None:
        self.read: list[int] = []
        original = store.records

        def records(start, end):
            self.read += range(start, end)
            return original(start, end)

        store.records = records

    def during(self, call):
        self.read.clear()
        result = call()
        return result, self.read[:]


def test_an_id_that_is_none_costs_no_record(toggled):
    reader, counting = reader_of(toggled, 251), Counting(toggled.store)
    for size in (251, 100):
        for leaf_index in (1, 5, 300):
            found = counting.during(lambda: reader.key(ALICE, derive_key_id(ORIGIN, leaf_index), Tree(size, 251)))
            assert found == (None, [])
        assert counting.during(lambda: reader.aux(ALICE, aux_data_id("test", "x"), Tree(size, 251))) == (None, [])


def test_an_aux_id_that_is_none_costs_the_entries_that_added_one(desk):
    desk.send(add(ALICE, "a"))
    desk.send(AddAuxData(ALICE, "test", "text", None, NOW))
    desk.send(RevokeAuxData(ALICE, "test", aux_data_id("test", "text"), None, NOW))
    desk.send(MoveIdentity(ALICE, BOB, NOW))
    counting, reader = Counting(desk.store), reader_of(desk, 4)
    assert counting.during(lambda: reader.aux(ALICE, aux_data_id("test", "x"), Tree(4, 4))) == (None, [1])
    # What moved to Bob is read, and is a key.
    assert counting.during(lambda: reader.aux(BOB, aux_data_id("test", "x"), Tree(4, 4))) == (None, [0])


def test_entries_that_take_nothing_away_make_nobody_read_the_past(toggled):
    toggled.send(add(ALICE, "b"))
    toggled.send(AddAuxData(ALICE, "test", "text", None, NOW))
    check_past(toggled)
    reader, counting = reader_of(toggled, 253), Counting(toggled.store)
    held, read = counting.during(lambda: reader.held_at(ALICE, 60))
    assert ([key.leaf_index for key in held.keys], held.aux, read) == ([0], (), [])
    # A revocation does, but for what changes no key.
    toggled.send(RevokeKey(ALICE, public("b"), NOW))
    reader = reader_of(toggled, 254)
    held, read = counting.during(lambda: reader.held_at(ALICE, 253))
    assert ([key.leaf_index for key in held.keys], read) == ([0, 251], [0, 251, 252])
    answer, read = counting.during(lambda: reader.key(ALICE, derive_key_id(ORIGIN, 251), Tree(254, 254)))
    assert (answer.spell.end.leaf_index, read) == (253, [0, 251, 253])


# --- one key, one piece of auxiliary data


def key_of(desk, actor, leaf_index, size=None):
    size = desk.size if size is None else size
    return reader_of(desk, size).key(actor, derive_key_id(ORIGIN, leaf_index), Tree(size, size))


def check_item(desk, answer):
    """Both entries are in the tree that the answer is about, and the end's root is that of its own tree."""
    assert answer.root == desk.store.root_after(answer.tree_size)
    leaf_index, end = answer.spell.item.leaf_index, answer.spell.end
    leaves = desk.store.leaf_hashes(0, answer.tree_size)
    verify_inclusion(leaves[leaf_index], leaf_index, answer.tree_size, answer.proof, answer.root)
    assert (answer.end_proof is None) == (end is None)
    if end is not None:
        verify_inclusion(leaves[end.leaf_index], end.leaf_index, answer.tree_size, answer.end_proof, answer.root)
        assert end.root == desk.store.root_after(end.leaf_index + 1)


def test_a_key_before_and_after_its_revocation(answered):
    before, after = key_of(answered, ALICE, 0, 303), key_of(answered, ALICE, 0, 304)
    for answer in (before, after):
        check_item(answered, answer)
        assert answer.spell.item.public_key == public("a")
    assert before.spell.end is None
    assert (after.spell.end.leaf_index, after.spell.end.action, after.spell.end.created) == (303, "RevokeKey", NOW)
    assert key_of(answered, ALICE, 302, 304).spell.end is None
    assert key_of(answered, ALICE, 302, 302) is None  # not there yet
    assert key_of(answered, ALICE, 1) is None  # Bob's
    assert key_of(answered, NOBODY, 0) is None


def test_what_ends_a_key(desk):
    """Each of the four ways, and the root that names the entry which did it."""
    desk.send(add(ALICE, "a"))
    desk.send(add(BOB, "b"), "b")
    desk.send(add(BOB, "a"), "b")
    desk.send(add(BOB, "c"), "b")
    desk.send(add(BOB, "d"), "b")
    desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("a"))).preimage, {}, {}))
    desk.send(RevokeKey(BOB, public("b"), NOW), "c")
    desk.send(MoveIdentity(BOB, CAROL, NOW), "c")
    desk.send(add(ALICE, "e"), "e")
    desk.send(add(BOB, "f"), "f")
    desk.send(BurnDown(ALICE, BOB, NOW), "f")
    ends = {
        (ALICE, 0): "RevokeKeyThirdParty", (BOB, 2): "RevokeKeyThirdParty", (BOB, 1): "RevokeKey",
        (BOB, 3): "MoveIdentity", (BOB, 4): "MoveIdentity", (CAROL, 3): None, (BOB, 9): None, (ALICE, 8): "BurnDown",
    }
    for (actor, leaf_index), action in ends.items():
        answer = key_of(desk, actor, leaf_index)
        check_item(desk, answer)
        assert (answer.spell.end.action if answer.spell.end else None) == action, (actor, leaf_index)
    # What Bob had lost before he moved away never was Carol's.
    assert key_of(desk, CAROL, 1) is key_of(desk, CAROL, 2) is None


def test_a_key_that_left_and_came_back_is_active(desk):
    desk.send(add(ALICE, "a"))
    desk.send(MoveIdentity(ALICE, CAROL, NOW))
    desk.send(MoveIdentity(CAROL, ALICE, NOW))
    assert key_of(desk, ALICE, 0, 2).spell.end.leaf_index == 1
    assert key_of(desk, ALICE, 0).spell.end is None
    assert key_of(desk, CAROL, 0).spell.end.leaf_index == 2


def test_auxiliary_data_before_and_after_its_revocation(desk):
    desk.send(add(ALICE, "a"))
    desk.send(AddAuxData(ALICE, "test", "text", None, NOW + 1))
    desk.send(AddAuxData(ALICE, "test", "more", None, NOW + 1))
    text_id, more_id = aux_data_id("test", "text"), aux_data_id("test", "more")
    desk.send(RevokeAuxData(ALICE, "test", text_id, None, NOW + 2))
    desk.send(RevokeAuxData(ALICE, "test", None, "more", NOW + 3))
    desk.send(AddAuxData(ALICE, "test", "more", None, NOW + 4))
    check_past(desk)

    def aux(aux_id, size=6):
        answer = reader_of(desk, size).aux(ALICE, aux_id, Tree(size, size))
        if answer is not None:
            check_item(desk, answer)
        return answer

    assert (aux(text_id, 3).spell.end, aux(text_id, 1)) == (None, None)
    revoked = aux(text_id).spell
    assert (revoked.item.aux_data, revoked.end.leaf_index, revoked.end.created) == ("text", 3, NOW + 2)
    assert aux(more_id, 5).spell.end.leaf_index == 4
    assert (aux(more_id).spell.end, aux(more_id).spell.item.leaf_index) == (None, 5)  # it came again
    assert aux(aux_data_id("test", "other")) is None


def test_a_token_for_the_last_key_takes_the_auxiliary_data_with_it(desk):
    desk.send(add(ALICE, "a"))
    desk.send(AddAuxData(ALICE, "test", "text", None, NOW))
    desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("a"))).preimage, {}, {}))
    answer = reader_of(desk, 3).aux(ALICE, aux_data_id("test", "text"), Tree(3, 3))
    assert answer.spell.end.action == "RevokeKeyThirdParty"


# --- after an erasure


def erase(desk: Watched, actor_id: str) -> None:
    """Shred the actor; the reader is to know nothing of its past any more."""
    actor = desk.store.actor(actor_id)
    desk.store.erase(plan_for(desk.store, actor), desk.store.state())
    for actors in desk.past:
        actors[actor_id] = None


def test_an_erased_actor_is_nobody(desk):
    desk.send(add(ALICE, "a"))
    desk.send(AddAuxData(ALICE, "test", "text", None, NOW))
    erase(desk, ALICE)
    check_past(desk)
    reader = reader_of(desk, 2)
    assert reader.answer(ALICE, 2, 2, with_history=True) is None
    assert key_of(desk, ALICE, 0) is None
    assert reader.aux(ALICE, aux_data_id("test", "text"), Tree(2, 2)) is None


def test_who_enrols_again_has_no_past(desk):
    desk.send(add(ALICE, "a"))
    erase(desk, ALICE)
    desk.send(add(ALICE, "b", NOW + 1), "b")
    desk.send(add(ALICE, "c"), "b")
    check_past(desk)
    assert [row.record.leaf_index for row in reader_of(desk, 3).answer(ALICE, 3, 3, with_history=True).history.rows] == [1, 2]
    assert key_of(desk, ALICE, 0) is None
    assert key_of(desk, ALICE, 1).spell.end is None


def test_what_rests_on_actors_who_were_erased_since(desk):
    """Carol's key came from Alice, and Dave's end from Bob: both are known still, at every size."""
    desk.send(add(ALICE, "a"))
    desk.send(AddAuxData(ALICE, "test", "text", None, NOW))
    desk.send(MoveIdentity(ALICE, CAROL, NOW))
    desk.send(add(ALICE, "d"), "d")
    desk.send(add(BOB, "b"), "b")
    desk.send(BurnDown(ALICE, BOB, NOW), "b")
    desk.send(add(CAROL, "c"))
    desk.send(RevokeKey(CAROL, public("a"), NOW), "c")
    erase(desk, BOB)
    check_past(desk)
    assert key_of(desk, ALICE, 3).spell.end.action == "BurnDown"
    erase(desk, ALICE)
    check_past(desk)
    assert [key.leaf_index for key in reader_of(desk).held_at(CAROL, 7).keys] == [0, 6]
    revoked = key_of(desk, CAROL, 0)
    check_item(desk, revoked)
    assert (revoked.spell.item.public_key, revoked.spell.end.leaf_index) == (public("a"), 7)
    carried = reader_of(desk, 8).aux(CAROL, aux_data_id("test", "text"), Tree(8, 8))
    assert (carried.spell.item.aux_data, carried.spell.end) == ("text", None)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.one_of(MOVES, st.sampled_from([ALICE, BOB, CAROL])), min_size=4, max_size=16))
def test_any_history_with_erasures(steps):
    desk = Watched()
    for number, step in enumerate(steps):
        try:
            if isinstance(step, str):
                if reader_of(desk).held_at(step, desk.size) is not None:
                    erase(desk, step)
            else:
                message, signer = step
                desk.send(message if message.time is None else replace(message, time=NOW + number), signer)
        except MessageRejected:
            continue
    check_past(desk)


# --- a store that cannot be right


def test_an_erased_entry_cannot_be_replayed(answered):
    records = answered.store._contents.records
    records[0] = replace(records[0], plain={"actor": ALICE, "public-key": None}, withheld=True)
    with pytest.raises(StoreError, match="Withheld"):
        reader_of(answered, 302).held_at(ALICE, 302)


def test_a_history_that_names_an_entry_of_somebody_else(answered):
    answered.store._contents.histories[CAROL] = [(1, 1), (302, 1)]
    with pytest.raises(StoreError, match="CorruptHistory"):
        reader_of(answered, 302).held_at(CAROL, 302)


def test_a_history_that_lost_an_entry(answered):
    answered.send(add(ALICE, "d"), "c")
    answered.send(RevokeKey(ALICE, public("c"), NOW), "d")
    assert key_of(answered, ALICE, 302).spell.end.leaf_index == 305
    answered.store._contents.histories[ALICE].remove((0, 1))
    with pytest.raises(StoreError, match="CorruptHistory"):
        key_of(answered, ALICE, 302)


def test_a_history_of_nobody(answered):
    answered.store._contents.histories[CAROL] = [(1, 1)]
    with pytest.raises(StoreError, match="CorruptHistory"):
        reader_of(answered, 302).held_at(CAROL, 302)


@pytest.mark.parametrize(("damage", "name"), [
    (lambda path, data: None, "MissingTile"),
    (lambda path, data: data[:-32], "BadTile"),
    (lambda path, data: bytes([data[0] ^ 1]) + data[1:], "BadTile"),
])
def test_a_tile_that_is_damaged_is_never_proven_from(answered, damage, name):
    read = leaf_reader(answered.store.leaf_hashes(0, 304))
    files = {
        tile_path(tile.level, tile.number, tile.width): b"".join(read(tile_nodes(tile)))
        for tile in tiles_between(0, 304)
    }
    reader = ActorReader(answered.store, lambda path: damage(path, files[path]) if path in files else None, SPEC)
    with pytest.raises(StoreError, match=name):
        reader.answer(ALICE, 304, 304, with_history=False)


def test_a_tree_that_is_larger_than_the_log(answered):
    with pytest.raises(StoreError, match="MissingLeaf"):
        reader_of(answered, 0).answer(ALICE, 400, 0, with_history=False)
