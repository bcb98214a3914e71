"""The transition function: every action accepted and refused, and the fields that the map commits to."""

from __future__ import annotations

import math
from dataclasses import replace
from decimal import Decimal, localcontext
from typing import Any

import pytest

from ktlog.pkd import state
from ktlog.pkd.actors import MAX_HELD, Actor, Aux, Cause, HistoryLeaf, Key, Role, Status, View, check_invariants
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
    UndoFireproof,
    aux_data_id,
)
from ktlog.pkd.state import (
    apply,
    created_time,
    recent_root_ok,
    recent_window,
    signer_id,
    touched_by,
)
from tests.pkd_samples import ALICE, BOB, CAROL, NOW, ONE_OF_EACH, bytes_of, public, refusal, revoke_by_token

MALLORY = "https://example.com/users/mallory"


def fake(name: str) -> bytes:
    """1312 bytes that stand for a key nobody signs with in these tests."""
    return public(name) if len(name) == 1 else bytes_of(f"public key {name}", 1312)


class World:
    """Rows and indexes kept by hand; apply is told who signed."""

    def __init__(self) -> None:
        self.rows: dict[str, Actor] = {}
        self.tokens: set[bytes] = set()
        self.size = 0

    def holders(self, hashed: bytes) -> tuple[str, ...]:
        """Latest first: no order is promised to apply."""
        return tuple(
            name for name, actor in reversed(self.rows.items())
            if any(key_hash(key.public_key) == hashed for key in actor.keys)
        )

    def view(self, message: Any) -> View:
        hashed = key_hash(message.token.public_key) if message.time is None else b""
        rows = {name: self.rows.get(name) for name in touched_by(message, self.holders)}
        return View(rows, frozenset(self.tokens), {hashed: self.holders(hashed)})

    def do(self, message: Any, signer: str | bytes | None = "a") -> state.Change:
        raw = fake(signer) if isinstance(signer, str) else signer
        created = created_time(message, 0)
        change = apply(self.view(message), message, self.size, f"id-{self.size}", raw, created)
        self.size += 1
        for actor in change.actors:
            check_invariants(actor)
            self.rows[actor.actor_id] = actor
        if change.token_revoked:
            self.tokens.add(change.token_revoked)
        return change

    def refused(self, message: Any, signer: str | bytes | None = "a") -> str:
        before = dict(self.rows)
        code = refusal(lambda: self.do(message, signer))
        assert self.rows == before
        return code


def add(actor: str = ALICE, name: str = "a") -> AddKey:
    return AddKey(actor, fake(name), NOW)


@pytest.fixture
def world() -> World:
    """Alice with keys a (entry 0) and b (entry 1)."""
    world = World()
    world.do(add(), "a")
    world.do(add(name="b"), "a")
    return world


# --- AddKey


def test_the_first_key_enrols() -> None:
    world = World()
    change = world.do(add(), "a")
    key = Key(fake("a"), "id-0", 0, NOW)
    assert change.actors == (Actor(
        actor_id=ALICE, keys=(key,), aux=(), fireproof=False, version=1, generation=1, erasures=0,
        cause=1, generation_leaf=0, status=1, status_leaf=0, revoked=frozenset(),
    ),)
    assert change.history == (HistoryLeaf(ALICE, 1),)
    assert change.needs_salt == (ALICE,) and change.token_revoked is None


def test_another_key_is_signed_by_one_that_is_there(world) -> None:
    change = world.do(add(name="c"), "b")
    actor = world.rows[ALICE]
    assert [key.leaf_index for key in actor.keys] == [0, 1, 2]
    assert (actor.version, actor.generation, actor.generation_leaf, actor.status_leaf) == (3, 1, 0, 0)
    assert change.needs_salt == () and change.history == (HistoryLeaf(ALICE, Role.SUBJECT),)


def test_add_key_refusals(world) -> None:
    assert world.refused(add(name="c"), "c") == "bad_signature"
    assert world.refused(add(name="a"), "a") == "self_signed_not_allowed"
    assert world.refused(add(name="b"), "a") == "key_exists"
    assert world.refused(add(name="c"), None) == "bad_signature"
    assert world.refused(add(BOB, "c"), "a") == "bad_signature"
    world.do(RevokeKey(ALICE, fake("b"), NOW), "a")
    assert world.refused(add(name="b"), "a") == "key_revoked"


def test_a_key_may_serve_two_actors_until_a_token_takes_it_from_both(world) -> None:
    world.do(add(BOB, "a"), "a")
    change = world.do(revoke_by_token("a"), None)
    assert [actor.actor_id for actor in change.actors] == [ALICE, BOB]
    alice, bob = change.actors
    assert [key.public_key for key in alice.keys] == [fake("b")]
    assert (alice.status, alice.version, alice.generation) == (Status.ACTIVE, 3, 1)
    assert (bob.keys, bob.status, bob.status_leaf, bob.version) == ((), Status.REVOKED, 3, 2)
    assert change.history == (HistoryLeaf(ALICE, 1), HistoryLeaf(BOB, 1))
    assert change.token_revoked == key_hash(fake("a"))
    for message in (add(name="a"), add(CAROL, "a")):
        assert world.refused(message, "b" if message.actor == ALICE else "a") == "key_revoked"


def test_a_full_actor_takes_no_more() -> None:
    keys = tuple(Key(i.to_bytes(4, "big") * 328, "", i, 0) for i in range(MAX_HELD))
    aux = tuple(Aux("x", str(i), None, i, 0) for i in range(MAX_HELD))
    world = World()
    world.do(add(), "a")
    world.rows[ALICE] = replace(world.rows[ALICE], keys=(*keys[:-1], Key(fake("a"), "", MAX_HELD, 0)), aux=aux)
    assert world.refused(add(name="c"), "a") == "too_many_keys"
    assert world.refused(AddAuxData(ALICE, "x", "y", None, NOW), "a") == "too_many_aux"


# --- RevokeKey and tokens


def test_revoke_key(world) -> None:
    change = world.do(RevokeKey(ALICE, fake("a"), NOW), "b")
    actor = world.rows[ALICE]
    assert [key.public_key for key in actor.keys] == [fake("b")]
    assert actor.revoked == {key_hash(fake("a"))} and actor.version == 3
    assert actor.status == Status.ACTIVE and actor.status_leaf == 0
    assert change.history == (HistoryLeaf(ALICE, 1),) and change.token_revoked is None


def test_revoke_key_refusals(world) -> None:
    assert world.refused(RevokeKey(ALICE, fake("a"), NOW), "a") == "self_revocation"
    assert world.refused(RevokeKey(ALICE, fake("c"), NOW), "a") == "unknown_key"
    assert world.refused(RevokeKey(ALICE, fake("a"), NOW), "c") == "bad_signature"
    assert world.refused(RevokeKey(BOB, fake("a"), NOW), "a") == "actor_not_enrolled"
    world.do(RevokeKey(ALICE, fake("a"), NOW), "b")
    assert world.refused(RevokeKey(ALICE, fake("b"), NOW), "b") == "last_key"
    assert world.refused(RevokeKey(ALICE, fake("a"), NOW), "b") == "unknown_key"


def test_a_token_for_a_key_that_nobody_holds_adds_nothing(world) -> None:
    assert world.refused(revoke_by_token("c"), None) == "unknown_token_key"
    world.do(revoke_by_token("b"), None)
    assert world.refused(revoke_by_token("b"), None) == "unknown_token_key"


def test_a_token_keeps_fireproof_and_takes_aux_data_with_the_last_key(world) -> None:
    world.do(Fireproof(ALICE, NOW))
    world.do(AddAuxData(ALICE, "x", "y", None, NOW))
    world.do(revoke_by_token("a"), None)
    assert world.rows[ALICE].aux and world.rows[ALICE].status == Status.ACTIVE
    world.do(revoke_by_token("b"), None)
    actor = world.rows[ALICE]
    assert (actor.keys, actor.aux, actor.fireproof) == ((), (), True)
    assert (actor.status, actor.status_leaf, actor.generation, actor.cause) == (Status.REVOKED, 5, 1, 1)
    world.do(add(name="c"), "c")
    actor = world.rows[ALICE]
    assert actor.fireproof and (actor.generation, actor.cause) == (2, Cause.REVOKED)
    assert (actor.generation_leaf, actor.status, actor.status_leaf) == (6, Status.ACTIVE, 6)


def test_a_wrong_list_of_holders_is_a_bug_and_no_refusal(world) -> None:
    view = View({ALICE: world.rows[ALICE]}, frozenset(), {key_hash(fake("c")): (ALICE,)})
    with pytest.raises(AssertionError):
        apply(view, revoke_by_token("c"), 9, "", None, 0)
    with pytest.raises(AssertionError):
        apply(View({}, frozenset(), {}), add(), 0, "", fake("a"), 0)


# --- MoveIdentity


def test_moving_carries_everything_and_leaves_nothing(world) -> None:
    world.do(add(name="c"), "a")
    world.do(RevokeKey(ALICE, fake("c"), NOW))
    world.do(AddAuxData(ALICE, "x", "y", None, NOW))
    world.do(Fireproof(ALICE, NOW))
    before = world.rows[ALICE]
    change = world.do(MoveIdentity(ALICE, CAROL, NOW), "b")
    old, new = world.rows[ALICE], world.rows[CAROL]
    assert (new.keys, new.aux, new.fireproof, new.revoked) == (before.keys, before.aux, True, before.revoked)
    assert (new.version, new.generation, new.cause, new.generation_leaf) == (1, 1, Cause.MOVED_IN, 6)
    assert (new.status, new.status_leaf) == (Status.ACTIVE, 6)
    assert (old.keys, old.aux, old.fireproof, old.status, old.status_leaf) == ((), (), False, Status.MOVED, 6)
    assert (old.version, old.generation, old.cause) == (before.version + 1, 1, Cause.FIRST)
    assert change.history == (HistoryLeaf(ALICE, Role.MOVED_OUT), HistoryLeaf(CAROL, Role.MOVED_IN))
    assert change.needs_salt == (CAROL,)
    assert world.refused(AddKey(CAROL, fake("c"), NOW), "a") == "key_revoked"


def test_after_moving_away_a_new_root_of_trust_may_begin_but_not_with_a_revoked_key(world) -> None:
    world.do(RevokeKey(ALICE, fake("a"), NOW), "b")
    world.do(MoveIdentity(ALICE, CAROL, NOW), "b")
    assert world.refused(Fireproof(ALICE, NOW), "b") == "actor_not_enrolled"
    assert world.refused(add(name="a"), "a") == "key_revoked"
    change = world.do(add(name="b"), "b")
    actor = world.rows[ALICE]
    assert (actor.generation, actor.cause, actor.generation_leaf) == (2, Cause.MOVED, 4)
    assert actor.version == 5 and change.needs_salt == ()


def test_moving_to_someone_who_was_here_before_counts_on(world) -> None:
    world.do(add(BOB, "c"), "c")
    world.do(add(BOB, "d"), "c")
    world.do(RevokeKey(BOB, fake("d"), NOW), "c")
    world.do(BurnDown(BOB, ALICE, NOW), "a")
    change = world.do(MoveIdentity(ALICE, BOB, NOW), "a")
    bob = world.rows[BOB]
    assert (bob.version, bob.generation, bob.cause, bob.status) == (5, 2, Cause.MOVED_IN, Status.ACTIVE)
    assert key_hash(fake("d")) in bob.revoked and change.needs_salt == ()


def test_a_revoked_key_does_not_come_back_with_a_move(world) -> None:
    world.do(add(BOB, "b"), "b")
    world.do(add(BOB, "c"), "b")
    world.do(RevokeKey(BOB, fake("b"), NOW), "c")
    world.do(BurnDown(BOB, BOB, NOW), "c")
    assert world.refused(MoveIdentity(ALICE, BOB, NOW), "a") == "key_revoked"
    world.do(RevokeKey(ALICE, fake("b"), NOW), "a")
    world.do(MoveIdentity(ALICE, BOB, NOW), "a")  # without the key it may
    # No actor can have a key that a token revoked; it would be refused all the same.
    view = View({BOB: world.rows[BOB], CAROL: None}, {key_hash(fake("a"))}, {})
    assert refusal(lambda: apply(view, MoveIdentity(BOB, CAROL, NOW), 9, "", fake("a"), 0)) == "key_revoked"


def test_move_refusals(world) -> None:
    world.do(add(BOB, "c"), "c")
    assert world.refused(MoveIdentity(ALICE, BOB, NOW), "a") == "target_has_keys"
    assert world.refused(MoveIdentity(ALICE, ALICE, NOW), "a") == "target_has_keys"
    assert world.refused(MoveIdentity(ALICE, CAROL, NOW), "c") == "bad_signature"
    assert world.refused(MoveIdentity(CAROL, MALLORY, NOW), "a") == "actor_not_enrolled"
    assert world.refused(MoveIdentity(CAROL, ALICE, NOW), "a") == "actor_not_enrolled"


# --- BurnDown and Fireproof


def test_burn_down_empties_the_target_and_leaves_the_operator_alone(world) -> None:
    world.do(add(BOB, "c"), "c")
    world.do(AddAuxData(BOB, "x", "y", None, NOW), "c")
    change = world.do(BurnDown(BOB, ALICE, NOW), "b")
    bob = world.rows[BOB]
    assert change.actors == (bob,) and change.history == (HistoryLeaf(BOB, 1),)
    assert (bob.keys, bob.aux, bob.status, bob.status_leaf, bob.version) == ((), (), Status.BURNED, 4, 3)
    assert world.rows[ALICE].version == 2
    world.do(add(BOB, "c"), "c")
    bob = world.rows[BOB]
    assert (bob.generation, bob.cause, bob.generation_leaf) == (2, Cause.BURNED, 5)


def test_a_revoked_key_stays_revoked_after_a_burn_down(world) -> None:
    world.do(RevokeKey(ALICE, fake("a"), NOW), "b")
    world.do(add(BOB, "c"), "c")
    world.do(BurnDown(ALICE, BOB, NOW), "c")
    assert world.refused(add(name="a"), "a") == "key_revoked"


def test_burn_down_refusals(world) -> None:
    world.do(add(BOB, "c"), "c")
    world.do(add(CAROL, "d"), "d")
    assert world.refused(BurnDown(ALICE, CAROL, NOW), "d") == "domain_mismatch"
    assert world.refused(BurnDown(ALICE, BOB, NOW), "a") == "bad_signature"
    assert world.refused(BurnDown(ALICE, MALLORY, NOW), "a") == "actor_not_enrolled"
    assert world.refused(BurnDown(MALLORY, ALICE, NOW), "a") == "actor_not_enrolled"
    world.do(Fireproof(ALICE, NOW))
    assert world.refused(BurnDown(ALICE, BOB, NOW), "c") == "actor_is_fireproof"
    world.do(UndoFireproof(ALICE, NOW))
    world.do(BurnDown(ALICE, BOB, NOW), "c")
    assert world.refused(BurnDown(ALICE, BOB, NOW), "c") == "actor_not_enrolled"


def test_an_operator_may_burn_itself_down(world) -> None:
    change = world.do(BurnDown(ALICE, ALICE, NOW), "a")
    assert world.rows[ALICE].status == Status.BURNED and len(change.actors) == 1


def test_fireproof_and_back(world) -> None:
    assert world.refused(UndoFireproof(ALICE, NOW)) == "not_fireproof"
    world.do(Fireproof(ALICE, NOW), "b")
    assert world.rows[ALICE].fireproof and world.rows[ALICE].version == 3
    assert world.refused(Fireproof(ALICE, NOW)) == "already_fireproof"
    world.do(UndoFireproof(ALICE, NOW))
    assert not world.rows[ALICE].fireproof
    for message in (Fireproof(ALICE, NOW), UndoFireproof(ALICE, NOW)):
        assert world.refused(message, "c") == "bad_signature"
    for message in (Fireproof(BOB, NOW), UndoFireproof(BOB, NOW)):
        assert world.refused(message) == "actor_not_enrolled"


# --- auxiliary data


def test_aux_data_comes_and_goes_by_text_or_by_id(world) -> None:
    named = aux_data_id("x", "y")
    for added in (None, named):
        for removed in ((named, None), (None, "y"), (named, "y")):
            world.do(AddAuxData(ALICE, "x", "y", added, NOW))
            assert world.rows[ALICE].aux == (Aux("x", named, "y", world.size - 1, NOW),)
            world.do(RevokeAuxData(ALICE, "x", *removed, NOW), "b")
            assert world.rows[ALICE].aux == ()


def test_aux_refusals(world) -> None:
    world.do(AddAuxData(ALICE, "x", "y", None, NOW))
    named, other = aux_data_id("x", "y"), aux_data_id("x", "z")
    for message, code in [
        (AddAuxData(ALICE, "x", "y", None, NOW), "aux_exists"),
        (AddAuxData(ALICE, "x", "z", named, NOW), "aux_id_mismatch"),
        (AddAuxData(ALICE, "w", "y", named, NOW), "aux_id_mismatch"),
        (AddAuxData(ALICE, "x", "\ud800", None, NOW), "bad_request"),
        (AddAuxData(BOB, "x", "y", None, NOW), "actor_not_enrolled"),
        (RevokeAuxData(ALICE, "x", None, "z", NOW), "unknown_aux"),
        (RevokeAuxData(ALICE, "x", other, None, NOW), "unknown_aux"),
        (RevokeAuxData(ALICE, "w", named, None, NOW), "unknown_aux"),
        (RevokeAuxData(ALICE, "x", other, "y", NOW), "aux_id_mismatch"),
        (RevokeAuxData(ALICE, "x", None, None, NOW), "bad_request"),
        (RevokeAuxData(BOB, "x", named, None, NOW), "actor_not_enrolled"),
    ]:
        assert world.refused(message) == code, message
    assert world.refused(AddAuxData(ALICE, "x", "w", None, NOW), "c") == "bad_signature"
    assert world.refused(RevokeAuxData(ALICE, "x", named, None, NOW), "c") == "bad_signature"


def test_one_aux_datum_of_several_goes(world) -> None:
    for text in "pqr":
        world.do(AddAuxData(ALICE, "x", text, None, NOW))
    world.do(RevokeAuxData(ALICE, "x", None, "q", NOW))
    assert [aux.aux_data for aux in world.rows[ALICE].aux] == ["p", "r"]


# --- Checkpoint, erasure, indexes


def test_a_checkpoint_touches_nobody_and_is_signed_by_the_key_it_names() -> None:
    world, message = World(), ONE_OF_EACH[-1]
    assert isinstance(message, CheckpointMessage)
    assert world.do(message, message.from_public_key) == state.Change()
    assert world.refused(message, "a") == "bad_signature"


def test_an_erased_actor_begins_again_with_a_salt_and_counts_on() -> None:
    erased = Actor(ALICE, (), (), False, 7, 2, 1, Cause.MOVED, 3, Status.ERASED, 5, frozenset())
    world = World()
    world.rows[ALICE], world.size = erased, 10
    change = world.do(add(), "a")
    actor = world.rows[ALICE]
    assert (actor.version, actor.generation, actor.erasures, actor.cause) == (8, 3, 1, Cause.ERASED)
    assert change.needs_salt == (ALICE,)


def test_who_is_touched_and_who_signs() -> None:
    held = {key_hash(fake("a")): (BOB, ALICE)}
    expected = {
        "AddKey": ((ALICE,), ALICE), "RevokeKey": ((ALICE,), ALICE),
        "RevokeKeyThirdParty": ((ALICE, BOB), None), "MoveIdentity": ((ALICE, CAROL), ALICE),
        "BurnDown": ((BOB, ALICE), ALICE), "Fireproof": ((ALICE,), ALICE),
        "UndoFireproof": ((ALICE,), ALICE), "AddAuxData": ((ALICE,), ALICE),
        "RevokeAuxData": ((ALICE,), ALICE), "Checkpoint": ((), None),
    }
    for message in ONE_OF_EACH:
        touched = touched_by(message, lambda hashed: held.get(hashed, ()))
        assert (touched, signer_id(message)) == expected[message.action], message.action


def test_the_index_of_tokens_may_be_a_function(world) -> None:
    view = world.view(add(name="c"))
    asked = []
    view = replace(view, token_revoked=lambda hashed: asked.append(hashed) or True)
    assert refusal(lambda: apply(view, add(name="c"), 2, "", fake("a"), 0)) == "key_revoked"
    assert asked == [key_hash(fake("c"))]


def test_created_is_the_messages_time_or_the_greatest_before_it() -> None:
    assert created_time(add(), 5) == NOW
    assert created_time(Fireproof(ALICE, 3), 5) == 3
    assert created_time(revoke_by_token("a"), 5) == 5


@pytest.mark.parametrize("broken", [
    {"keys": ()}, {"status": Status.BURNED}, {"status": 9}, {"cause": 0}, {"generation": 2},
    {"version": 0}, {"generation": 0}, {"status_leaf": 1}, {"generation_leaf": 1},
    {"keys": (Key(b"\x00" * 1312, "", 1, 0), Key(b"\x01" * 1312, "", 1, 0))},
    {"keys": (Key(b"\x00" * 1312, "", 1, 0), Key(b"\x00" * 1312, "", 2, 0))},
    {"aux": (Aux("x", "i", None, 2, 0), Aux("x", "j", None, 1, 0))},
    {"aux": (Aux("x", "i", None, 1, 0), Aux("x", "i", None, 2, 0))},
    {"status": Status.MOVED, "keys": (), "fireproof": True},
])
def test_the_invariants_can_be_broken(world, broken) -> None:
    actor = replace(world.rows[ALICE], **{"version": 1} | broken)
    with pytest.raises(AssertionError):
        check_invariants(actor)


# --- recent roots


def test_the_window_is_exact_at_every_size() -> None:
    """ceil(2 log2(N)^2), worked out with sixty digits; a float is never near enough to a step to be wrong."""
    with localcontext() as context:
        context.prec = 60
        for size in range(2, 3000):
            exact = 2 * (Decimal(size).ln() / Decimal(2).ln()) ** 2
            ceiling = 2 * (size.bit_length() - 1) ** 2 if size.bit_count() == 1 else math.ceil(exact)
            if size.bit_count() != 1:
                assert abs(exact - round(exact)) > Decimal("1e-9")
            assert recent_window(size) == max(ceiling, size // 2), size


@pytest.mark.parametrize(("size", "window"), [
    (0, 0), (1, 0), (2, 2), (3, 6), (4, 8), (256, 128), (257, 129), (512, 256), (10**6, 500_000), (2**62, 2**61),
])
def test_windows(size, window) -> None:
    assert recent_window(size) == window
    assert recent_root_ok(min(window, size - 1), size) or size == 0
    assert not recent_root_ok(window + 1, size)
    assert not recent_root_ok(-1, size)


def test_the_zero_root_is_good_for_the_first_entry_only() -> None:
    assert recent_root_ok(0, 0)
    for size in range(1, 50):
        assert not recent_root_ok(size, size)
        assert recent_root_ok(0, size)
