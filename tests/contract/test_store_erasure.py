"""Erasure: what every store promises about it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.pkd.erasure import CarriedMove, ErasurePlan, ErasureRecord, Mention, erased_actor, map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.keys import key_hash
from ktlog.pkd.state import Actor, Change, HistoryLeaf
from ktlog.store.contracts import LogStore
from ktlog.tlog.tree import hash_leaf
from tests.store_samples import (
    ALICE,
    BOB,
    ORIGIN,
    Backend,
    Draft,
    append,
    dump,
    enrol,
    hash_of,
    make_actor,
    make_aux,
    make_key,
    move,
    plan_to_erase,
    touch,
)

CAROL = "https://example.com/users/carol"
KEY = make_key("alice's")


def erase(store: LogStore, actor_id: str) -> ErasurePlan:
    plan = plan_to_erase(store, actor_id)
    store.erase(plan, store.state())
    return plan


def burn(actor_id: str, operator: str, version: int, leaf_index: int) -> Draft:
    emptied = make_actor(actor_id, version=version, status=2, status_leaf=leaf_index)
    return Draft(
        f"{operator} burns {actor_id}", Change((emptied,), (HistoryLeaf(actor_id, 1),)),
        {"actor": actor_id, "operator": operator}, {"actor": hash_of("a"), "operator": hash_of("o")},
        action="BurnDown",
    )


def moved(old: str, new: str, leaf_index: int, version: int = 2) -> Draft:
    left = make_actor(old, version=version, status=4, status_leaf=leaf_index)
    come = make_actor(new, [KEY], cause=6, generation_leaf=leaf_index, status_leaf=leaf_index)
    return move(left, come, f"{old} moves to {new}")


def test_everything_readable_goes_and_the_log_stays(backend: Backend) -> None:
    store, reader = backend.store, backend.reader()
    append(store, enrol(ALICE, KEY), enrol(BOB, make_key("bob's")))
    append(store, touch(make_actor(ALICE, [KEY], [make_aux("x")], version=2), "again"))
    before = dump(store)
    plan = erase(store, ALICE)
    for handle in (store, reader):
        after = dump(handle)
        for same in ("state", "entries", "leaf_hashes", "roots", "sizes", "seen"):
            assert after[same] == before[same]
        first, _, third = after["records"]
        assert first.plain == {"actor": None, "public-key": None, "absent": None}
        assert third.plain == {"actor": None}
        assert (first.keys, first.salts, first.withheld, third.keys, third.withheld) == ({}, {}, True, {}, True)
        assert after["records"][1] == before["records"][1]
        assert after["actors"] == {BOB: before["actors"][BOB]}
        assert handle.actor(ALICE) == handle.erased(ALICE) == erased_actor(ALICE, 3, 1, 1)
        assert handle.actor("https://example.com/users/nobody") is handle.erased(BOB) is None
        assert (handle.history(ALICE), handle.salt(ALICE), handle.mentions(ALICE)) == ((), None, ())
        assert handle.holders(key_hash(KEY.public_key)) == ()
        assert handle.erasures(0, 1) == (plan.record,)
        assert (plan.record.newly_withheld, plan.record.index) == (3, map_index(ORIGIN, ALICE))
        assert (handle.erasure_count(), handle.erasure_count(2), handle.erasure_count(3)) == (1, 0, 1)
        assert handle.scrub_due()
    assert store.scrub()
    assert not reader.scrub_due()
    assert dump(reader) == after


def test_an_erased_actor_can_enrol_again_and_be_erased_again(backend: Backend) -> None:
    store = backend.store
    append(store, enrol(ALICE, KEY))
    erase(store, ALICE)
    again = make_actor(ALICE, [make_key("new", 1)], version=3, generation=2, erasures=1, cause=5, generation_leaf=1,
                       status_leaf=1)
    draft = enrol(ALICE, make_key("new", 1))
    append(store, replace(draft, change=replace(draft.change, actors=(again,))))
    assert store.actor(ALICE) == again
    assert store.erased(ALICE) == erased_actor(ALICE, 2, 1, 1)
    assert store.history(ALICE) == ((1, 1),)
    erase(store, ALICE)
    assert backend.reader().actor(ALICE) == erased_actor(ALICE, 4, 2, 2)
    assert [record.version for record in store.erasures(0, 2)] == [2, 4]


def test_mentions_are_all_entries_that_name_the_actor(store: LogStore) -> None:
    append(store, enrol(ALICE, KEY), enrol(BOB, make_key("b")))
    append(store, burn(BOB, ALICE, 2, 2), burn(ALICE, ALICE, 2, 3))
    token = Change((make_actor(BOB, version=3, status=3),), (HistoryLeaf(BOB, 1),), hash_of("token"))
    append(store, Draft("a token", token, action="RevokeKeyThirdParty"))
    found = store.mentions(ALICE)
    assert [(m.leaf_index, m.action, m.role, m.moved) for m in found] == [
        (0, "AddKey", 1, None), (2, "BurnDown", None, None), (3, "BurnDown", 1, None),
    ]
    assert found[1] == Mention(2, "BurnDown", None, {"actor": BOB, "operator": ALICE})
    # A token names nobody: it touched bob, and he is not to be found in its text.
    assert [m.leaf_index for m in store.mentions(BOB)] == [1, 2]
    assert store.mentions("\ud800") == ()


def test_an_operator_is_taken_out_of_the_burndowns_of_others(store: LogStore) -> None:
    append(store, enrol(ALICE, KEY), enrol(BOB, make_key("b")), burn(BOB, ALICE, 2, 2))
    burned = store.actor(BOB)
    erase(store, ALICE)
    record = store.records(2, 3)[0]
    assert (record.plain, record.keys) == ({"actor": BOB, "operator": None}, {"actor": hash_of("a")})
    assert store.actor(BOB) == burned
    assert [m.leaf_index for m in store.mentions(BOB)] == [1, 2]


def test_what_was_carried_to_somebody_stays_until_they_go_too(backend: Backend) -> None:
    store = backend.store
    append(store, enrol(ALICE, KEY), moved(ALICE, CAROL, 1))
    kept = store.actor(CAROL)
    carried = CarriedMove(1, False, (0,), 1, hash_leaf(history_leaf(1, 0)))
    assert store.mentions(CAROL)[0].moved == carried
    assert erase(store, ALICE).record.carried == (carried,)
    assert backend.reader().carried(1) == carried
    first, second = store.records(0, 2)
    assert (first.plain["actor"], first.plain["public-key"]) == (None, "a public key")
    assert second.plain == {"old-actor": None, "new-actor": CAROL}
    assert second.salts == {"new-actor": hash_of(f"salt {CAROL}")}
    assert backend.reader().actor(CAROL) == kept
    erase(store, CAROL)
    first, second = store.records(0, 2)
    assert set(first.plain.values()) == set(second.plain.values()) == {None}
    assert second.salts == first.keys == {}


def test_the_history_that_a_move_left_with_is_known_however_often_it_goes_on(backend: Backend) -> None:
    """And is the record's only truth: a plan that says anything else is refused."""
    store = backend.store
    append(store, enrol(ALICE, KEY), moved(ALICE, CAROL, 1), moved(CAROL, BOB, 2))
    first = (1, hash_leaf(history_leaf(1, 0)))
    second = (1, hash_leaf(history_leaf(3, 1, first)))
    assert [store.carried(at).before for at in (1, 2)] == [first, second]
    erase(store, ALICE)
    plan = plan_to_erase(store, CAROL)
    (one,) = plan.record.carried
    assert one.before == second
    for change in ({"history_size": 2}, {"history_root": bytes(32)}, {"fireproof": True}):
        with pytest.raises(StoreError, match="BadErasure"):
            store.erase(_record(plan, carried=(replace(one, **change),)), store.state())
    # Whoever moves to ALICE's new life begins a history of its own.
    again = make_actor(ALICE, [KEY], version=4, generation=2, erasures=1, cause=6, generation_leaf=3, status_leaf=3)
    append(store, move_to(BOB, again, 3))
    assert backend.reader().carried(3).before == (1, hash_leaf(history_leaf(3, 2, second)))


def move_to(old: str, new: Actor, leaf_index: int) -> Draft:
    return move(make_actor(old, version=2, status=4, status_leaf=leaf_index), new, f"{old} moves on")


def _record(plan: ErasurePlan, **fields: object) -> ErasurePlan:
    return replace(plan, record=replace(plan.record, **fields))  # type: ignore[arg-type]


def _erased(plan: ErasurePlan, **fields: object) -> ErasurePlan:
    return replace(plan, erased=replace(plan.erased, **fields))  # type: ignore[arg-type]


BROKEN: dict[str, Callable[[ErasurePlan], ErasurePlan]] = {
    "another index": lambda p: _record(p, index=bytes(32)),
    "another size": lambda p: _record(p, input_size=p.record.input_size + 1),
    "another version": lambda p: _record(p, version=p.record.version + 1),
    "a version too far": lambda p: _erased(_record(p, version=p.record.version + 1), version=p.erased.version + 1),
    "another generation": lambda p: _record(p, generation=2),
    "another count": lambda p: _record(p, newly_withheld=p.record.newly_withheld + 1),
    "a move that was not": lambda p: _record(p, carried=(CarriedMove(1, False, (0,), 1, bytes(32)),)),
    "a living tombstone": lambda p: _erased(p, status=1),
    "a tombstone with keys": lambda p: _erased(p, keys=(KEY,)),
    "somebody else's tombstone": lambda p: _erased(p, actor_id=BOB),
    "nobody's tombstone": lambda p: _erased(p, actor_id=CAROL),
    "a name that is left": lambda p: replace(p, withhold={0: frozenset({"actor", "public-key"})}),
    "an entry beyond the log": lambda p: replace(p, withhold={**p.withhold, 9: frozenset({"actor"})}),
    "an attribute that is not there": lambda p: replace(p, withhold={**p.withhold, 1: frozenset({"absent"})}),
    "nothing of an entry": lambda p: replace(p, withhold={**p.withhold, 1: frozenset()}),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_plan_that_does_not_fit_erases_nothing(backend: Backend, name: str) -> None:
    store = backend.store
    append(store, enrol(ALICE, KEY), enrol(BOB, make_key("b")), touch(make_actor(ALICE, [KEY], version=2), "again"))
    before = dump(store)
    plan = plan_to_erase(store, ALICE)
    with pytest.raises(StoreError, match="BadErasure"):
        store.erase(BROKEN[name](plan), store.state())
    assert dump(store) == dump(backend.reader()) == before
    assert not store.scrub_due()
    store.erase(plan, store.state())


def test_nothing_is_erased_twice(store: LogStore) -> None:
    append(store, enrol(ALICE, KEY))
    plan = erase(store, ALICE)
    with pytest.raises(StoreError, match="BadErasure"):
        store.erase(plan, store.state())
    assert store.erasure_count() == 1


def test_a_log_that_went_on_meanwhile_is_a_conflict(store: LogStore) -> None:
    append(store, enrol(ALICE, KEY))
    plan, expected = plan_to_erase(store, ALICE), store.state()
    append(store, Draft("meanwhile"))
    with pytest.raises(Conflict, match="StateMoved"):
        store.erase(plan, expected)
    expected = store.state()
    store.claim_epoch()
    with pytest.raises(Conflict, match="Fenced"):
        store.erase(plan_to_erase(store, ALICE), expected)
    assert store.actor(ALICE).keys == (KEY,)


def test_a_reading_handle_erases_nothing(backend: Backend) -> None:
    append(backend.store, enrol(ALICE, KEY))
    reader = backend.reader()
    with pytest.raises(StoreError, match="ReadOnly"):
        reader.erase(plan_to_erase(reader, ALICE), reader.state())


@pytest.mark.parametrize("bounds", [(0, 2), (-1, 0), (1, 0), (0, 2**70)])
def test_ranges_lie_inside_the_erasure_log(store: LogStore, bounds: tuple[int, int]) -> None:
    append(store, enrol(ALICE, KEY))
    erase(store, ALICE)
    with pytest.raises(StoreError, match="OutOfRange"):
        store.erasures(*bounds)
    assert store.erasures(1, 1) == ()
    assert all(isinstance(record, ErasureRecord) for record in store.erasures(0, 1))


def test_when_an_entry_was_public(backend: Backend) -> None:
    store = backend.store
    append(store, Draft("one"), Draft("two"), Draft("three"))
    store.note_published(1, 1_700_000_100)
    store.note_published(1, 1_700_000_200)
    store.note_published(0, 1_700_000_300)
    store.note_published(3, 1_700_000_400)
    store.note_published(2, 1_700_000_500)
    assert [backend.reader().public_since(leaf) for leaf in range(3)] == [1_700_000_100] + [1_700_000_400] * 2
    append(store, Draft("four"))
    assert store.public_since(3) is None
    with pytest.raises(StoreError, match="OutOfRange"):
        store.note_published(5, 1_700_000_600)


def test_whom_entries_touched_is_known_by_entry_until_they_are_erased(backend: Backend) -> None:
    store = backend.store
    append(store, enrol(ALICE, KEY), enrol(BOB, make_key("bob's")), moved(ALICE, CAROL, 2))
    for reader in (store, backend.reader()):
        assert reader.touched(0, 3) == ((0, ALICE, 1), (1, BOB, 1), (2, ALICE, 2), (2, CAROL, 3))
        assert reader.touched(1, 2) == ((1, BOB, 1),) and reader.touched(3, 3) == ()
        with pytest.raises(StoreError, match="OutOfRange"):
            reader.touched(0, 4)
    erase(store, ALICE)
    assert store.touched(0, 3) == ((1, BOB, 1), (2, CAROL, 3))
