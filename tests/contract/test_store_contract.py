"""One suite for every log store: what ``ktlog.store.contracts`` promises."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.pkd.keys import key_hash
from ktlog.pkd.state import Change, HistoryLeaf
from ktlog.store.contracts import Batch, LogStore
from ktlog.store.memory import MemoryStore
from ktlog.tlog.tree import EMPTY_ROOT, Frontier
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
    make_batch,
    make_key,
    touch,
)


def test_an_empty_log(store: LogStore) -> None:
    state = store.state()
    assert (state.size, state.root, state.frontier, state.epoch) == (0, EMPTY_ROOT, Frontier(), 0)
    assert state.greatest_time == 0
    assert (store.origin, store.dialect, store.read_only) == (ORIGIN, "spec", False)
    assert store.entries(0, 0) == store.records(0, 0) == store.leaf_hashes(0, 0) == ()
    assert store.root_after(0) == EMPTY_ROOT
    assert store.size_of_root(EMPTY_ROOT) == 0
    assert store.size_of_root(bytes(32)) is None
    assert store.seen(bytes(32)) is None
    assert store.actor(ALICE) is None
    assert store.salt(ALICE) is None
    assert store.history(ALICE) == ()
    assert store.holders(bytes(32)) == ()
    assert not store.token_revoked(bytes(32))
    assert store.actor_ids("", 10) == ()


def test_what_was_committed_is_read_back_exactly(backend: Backend) -> None:
    key = make_key("alice's first")
    batch = append(backend.store, enrol(ALICE, key), enrol(BOB, make_key("bob's")), Draft("no actor"))
    for handle in (backend.store, backend.reader()):
        assert handle.state() == batch.state
        assert handle.records(0, 3) == batch.records
        assert handle.records(1, 2) == batch.records[1:2]
        assert handle.entries(0, 3) == tuple(record.entry for record in batch.records)
        assert handle.leaf_hashes(1, 3) == tuple(record.leaf_hash for record in batch.records[1:])
        assert [handle.root_after(size) for size in (1, 2, 3)] == [record.root for record in batch.records]
        assert [handle.size_of_root(record.root) for record in batch.records] == [1, 2, 3]
        assert [handle.seen(record.unique_hash) for record in batch.records] == [0, 1, 2]
        assert handle.actor(ALICE) == make_actor(ALICE, [key])
        assert handle.salt(ALICE) == hash_of(f"salt {ALICE}")
        assert handle.history(BOB) == ((1, 1),)
        assert handle.holders(key_hash(key.public_key)) == (ALICE,)


def test_a_read_after_a_commit_sees_it_from_every_handle(backend: Backend) -> None:
    reader = backend.reader()
    for number in range(5):
        batch = append(backend.store, Draft(f"entry {number}"))
        assert reader.state() == batch.state
        assert reader.seen(batch.records[0].unique_hash) == number


def test_an_actor_round_trips_in_every_field(backend: Backend) -> None:
    keys = [make_key("first", 7), make_key("second", 3), make_key("third", 9)]
    actor = make_actor(
        ALICE, keys, [make_aux("b", "x\u2028é\U0001f511\x00"), make_aux("a", None, 4)], fireproof=True, version=11,
        generation=12, erasures=13, cause=5, generation_leaf=2**62, status=4, status_leaf=2**63 - 1,
        revoked=frozenset({hash_of("one"), hash_of("two")}),
    )
    append(backend.store, replace(enrol(ALICE), change=Change((actor,), (HistoryLeaf(ALICE, 1),), None, (ALICE,))))
    assert backend.store.actor(ALICE) == actor
    assert backend.reader().actor(ALICE) == actor
    assert backend.store.history(ALICE) == ((0, 1),)


def test_later_values_replace_earlier_ones(store: LogStore) -> None:
    first, second, third = make_key("first"), make_key("second", 1), make_key("third", 2)
    append(store, enrol(ALICE, first))
    append(store, touch(make_actor(ALICE, [first, second, third], [make_aux("a"), make_aux("b")], version=2), "2"))
    append(store, touch(make_actor(ALICE, [second, third], [make_aux("b")], version=3,
                                   revoked=frozenset({key_hash(first.public_key)})), "3"))
    assert store.actor(ALICE) == make_actor(
        ALICE, [second, third], [make_aux("b")], version=3, revoked=frozenset({key_hash(first.public_key)})
    )
    assert store.holders(key_hash(first.public_key)) == ()
    assert store.holders(key_hash(third.public_key)) == (ALICE,)
    emptied = make_actor(ALICE, version=4, status=2, status_leaf=3)
    append(store, touch(emptied, "4"))
    assert store.actor(ALICE) == emptied
    assert store.holders(key_hash(third.public_key)) == ()
    assert store.history(ALICE) == ((0, 1), (1, 1), (2, 1), (3, 1))
    assert store.salt(ALICE) == hash_of(f"salt {ALICE}")


def test_one_batch_may_touch_an_actor_more_than_once(store: LogStore) -> None:
    first, second = make_key("first"), make_key("second", 1)
    last = make_actor(ALICE, [second], version=3)
    append(store, enrol(ALICE, first), touch(make_actor(ALICE, [first, second], version=2), "2"), touch(last, "3"))
    assert store.actor(ALICE) == last
    assert store.holders(key_hash(first.public_key)) == ()
    assert store.history(ALICE) == ((0, 1), (1, 1), (2, 1))


def test_a_move_touches_two_actors(store: LogStore) -> None:
    key = make_key("the key")
    append(store, enrol(ALICE, key))
    old, new = make_actor(ALICE, version=2, status=4, status_leaf=1), make_actor(BOB, [key], cause=6)
    change = Change((old, new), (HistoryLeaf(ALICE, 2), HistoryLeaf(BOB, 3)), None, (BOB,))
    append(store, Draft("move", change, {"old-actor": ALICE, "new-actor": BOB}, salts={"new-actor": hash_of("s")}))
    assert (store.actor(ALICE), store.actor(BOB)) == (old, new)
    assert (store.history(ALICE), store.history(BOB)) == (((0, 1), (1, 2)), ((1, 3),))
    assert (store.salt(ALICE), store.salt(BOB)) == (hash_of(f"salt {ALICE}"), hash_of("s"))
    assert store.holders(key_hash(key.public_key)) == (BOB,)


def test_holders_are_all_of_them_sorted(store: LogStore) -> None:
    key = make_key("shared")
    append(store, enrol(BOB, key), enrol(ALICE, key))
    assert store.holders(key_hash(key.public_key)) == (ALICE, BOB)


def test_a_revoked_token_stays_revoked(backend: Backend) -> None:
    append(backend.store, Draft("token", Change(token_revoked=hash_of("key"))))
    assert backend.store.token_revoked(hash_of("key"))
    assert backend.reader().token_revoked(hash_of("key"))
    assert not backend.store.token_revoked(hash_of("other key"))


def test_actor_ids_come_in_order_page_by_page(store: LogStore) -> None:
    names = [f"https://example.com/users/{name}" for name in ("b", "a", "B", "aa", "c")]
    append(store, *(enrol(name) for name in names))
    assert store.actor_ids("", 100) == tuple(sorted(names))
    assert store.actor_ids("", 2) == tuple(sorted(names)[:2])
    assert store.actor_ids(sorted(names)[1], 2) == tuple(sorted(names)[2:4])
    assert store.actor_ids(sorted(names)[-1], 2) == ()


@pytest.mark.parametrize("limit", [0, -1, 10_001, 2**70])
def test_a_number_of_actor_ids_has_bounds(store: LogStore, limit: int) -> None:
    with pytest.raises(StoreError, match="OutOfRange"):
        store.actor_ids("", limit)


@pytest.mark.parametrize("bounds", [(0, 3), (-1, 1), (2, 1), (3, 3), (0, 2**70), (-(2**70), 0)])
def test_ranges_lie_inside_the_log(store: LogStore, bounds: tuple[int, int]) -> None:
    append(store, Draft("one"), Draft("two"))
    for read in (store.entries, store.leaf_hashes, store.records):
        with pytest.raises(StoreError, match="OutOfRange"):
            read(*bounds)
    assert store.entries(2, 2) == ()


@pytest.mark.parametrize("size", [-1, 3, 2**70])
def test_there_is_no_root_beyond_the_log(store: LogStore, size: int) -> None:
    append(store, Draft("one"), Draft("two"))
    with pytest.raises(StoreError, match="OutOfRange"):
        store.root_after(size)


def test_no_text_of_a_question_is_a_crash(store: LogStore) -> None:
    append(store, enrol(ALICE))
    for text in ("\ud800", "\x00", "'; DROP TABLE entries", "%", ""):
        assert (store.actor(text), store.salt(text), store.history(text)) == (None, None, ())


def test_a_moved_state_is_a_conflict_and_changes_nothing(backend: Backend) -> None:
    stale = backend.store.state()
    append(backend.store, enrol(ALICE, make_key("a")))
    before = dump(backend.store)
    with pytest.raises(Conflict) as caught:
        backend.store.commit(make_batch(stale, enrol(BOB, make_key("b"))))
    assert caught.value.name == "StateMoved"
    assert caught.value.stored == before["state"]
    assert dump(backend.store) == dump(backend.reader()) == before
    append(backend.store, enrol(BOB, make_key("b")))


def test_the_same_size_with_another_root_is_a_conflict(store: LogStore) -> None:
    other = MemoryStore(ORIGIN, "spec")
    append(other, Draft("what the other log holds"))
    append(store, Draft("what this log holds"))
    with pytest.raises(Conflict, match="StateMoved"):
        store.commit(make_batch(other.state(), Draft("next")))
    assert store.state().size == 1


def test_a_new_writer_fences_the_old_one(store: LogStore) -> None:
    assert store.claim_epoch() == 1
    append(store, Draft("by writer 1"))
    mine = store.state()
    assert store.claim_epoch() == 2
    before = dump(store)
    with pytest.raises(Conflict) as caught:
        store.commit(make_batch(mine, Draft("too late")))
    assert caught.value.name == "Fenced"
    assert caught.value.stored == before["state"]
    assert dump(store) == before
    append(store, Draft("by writer 2"))
    assert store.state().epoch == 2


def test_a_repeated_message_is_a_conflict_and_changes_nothing(backend: Backend) -> None:
    append(backend.store, Draft("zero"), enrol(ALICE, make_key("a")))
    before = dump(backend.store)
    with pytest.raises(Conflict) as caught:
        append(backend.store, enrol(BOB, make_key("b")), replace(enrol(ALICE, make_key("a")), keys={}))
    assert (caught.value.name, caught.value.stored) == ("Duplicate", 1)
    assert dump(backend.store) == dump(backend.reader()) == before
    assert backend.store.actor(BOB) is None
    append(backend.store, enrol(BOB, make_key("b")))


def test_a_message_repeated_in_one_batch_is_a_conflict(store: LogStore) -> None:
    append(store, Draft("zero"))
    with pytest.raises(Conflict) as caught:
        append(store, Draft("one"), Draft("two"), Draft("one"))
    assert (caught.value.name, caught.value.stored) == ("Duplicate", 1)
    assert store.state().size == 1


def _record(batch: Batch, index: int = 1, **fields: object) -> Batch:
    records = list(batch.records)
    records[index] = replace(records[index], **fields)  # type: ignore[arg-type]
    return replace(batch, records=tuple(records))


def _change(batch: Batch, **fields: object) -> Batch:
    changes = (batch.changes[0], replace(batch.changes[1], **fields))  # type: ignore[arg-type]
    return replace(batch, changes=changes)


def _actor(batch: Batch, **fields: object) -> Batch:
    return _change(batch, actors=(replace(batch.changes[1].actors[0], **fields),))  # type: ignore[arg-type]


BROKEN: dict[str, Callable[[Batch], Batch]] = {
    "no records": lambda b: replace(b, records=(), changes=(), state=b.expected),
    "a change too few": lambda b: replace(b, changes=b.changes[:1]),
    "a gap": lambda b: _record(b, leaf_index=7),
    "records swapped": lambda b: replace(b, records=b.records[::-1]),
    "one bit of an entry": lambda b: _record(b, entry=bytes([b.records[1].entry[0] ^ 1]) + b.records[1].entry[1:]),
    "leaf hash": lambda b: _record(b, leaf_hash=bytes(32)),
    "short leaf hash": lambda b: _record(b, leaf_hash=b.records[1].leaf_hash[:31]),
    "first root": lambda b: _record(b, 0, root=bytes(32)),
    "last root": lambda b: _record(b, root=bytes(32)),
    "size after": lambda b: replace(b, state=replace(b.state, size=b.state.size + 1)),
    "root after": lambda b: replace(b, state=replace(b.state, root=bytes(32))),
    "frontier after": lambda b: replace(b, state=replace(b.state, frontier=b.expected.frontier)),
    "frontier before": lambda b: replace(b, expected=replace(b.expected, frontier=b.state.frontier)),
    "root before": lambda b: replace(b, expected=replace(b.expected, root=bytes(32))),
    "epoch changed": lambda b: replace(b, state=replace(b.state, epoch=b.state.epoch + 1)),
    "time ran backwards": lambda b: replace(b, state=replace(b.state, greatest_time=0)),
    "short unique hash": lambda b: _record(b, unique_hash=bytes(31)),
    "withheld at birth": lambda b: _record(b, withheld=True),
    "negative time": lambda b: _record(b, created=-1),
    "time beyond 63 bits": lambda b: _record(b, accepted=2**63),
    "surrogate in the text": lambda b: _record(b, plain=dict(b.records[1].plain) | {"x": "\ud800"}),
    "salt of nobody": lambda b: _record(b, salts=dict(b.records[1].salts) | {"absent": bytes(32)}),
    "salt not needed": lambda b: _change(b, needs_salt=()),
    "salt missing": lambda b: _record(b, salts={}),
    "short salt": lambda b: _record(b, salts={"actor": bytes(31)}),
    "history of a stranger": lambda b: _change(b, history=(HistoryLeaf(ALICE, 1),)),
    "a move from nowhere": lambda b: _change(b, history=(HistoryLeaf(BOB, 3),)),
    "role 4": lambda b: _change(b, history=(HistoryLeaf(BOB, 4),)),
    "history twice": lambda b: _change(b, history=b.changes[1].history * 2),
    "actor twice": lambda b: _change(b, actors=b.changes[1].actors * 2),
    "short key hash": lambda b: _change(b, token_revoked=bytes(31)),
    "short key": lambda b: _actor(b, keys=(replace(make_key("k"), public_key=bytes(31)),)),
    "short revoked hash": lambda b: _actor(b, revoked=frozenset({bytes(31)})),
    "version beyond 63 bits": lambda b: _actor(b, version=2**63),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_batch_that_contradicts_itself_is_refused_whole(store: LogStore, name: str) -> None:
    append(store, Draft("zero"))
    before = dump(store)
    batch = make_batch(store.state(), enrol(ALICE, make_key("a")), enrol(BOB, make_key("b")))
    with pytest.raises(StoreError) as caught:
        store.commit(BROKEN[name](batch))
    assert caught.value.name == "BadBatch"
    assert dump(store) == before
    store.commit(batch)
    assert store.state() == batch.state


def test_a_snapshot_sees_one_commit(backend: Backend) -> None:
    append(backend.store, enrol(ALICE, make_key("a")))
    reader = backend.reader()
    writer = threading.Thread(target=lambda: append(backend.store, enrol(BOB, make_key("b"))))
    with reader.snapshot():
        before = dump(reader)
        writer.start()
        writer.join(0.5)  # a store may keep the writer waiting, or let it go on
        with reader.snapshot():
            assert dump(reader) == before
        assert reader.actor(BOB) is None
        assert reader.state().size == 1
    writer.join()
    assert reader.state().size == 2
    assert reader.actor(BOB) is not None


def test_a_snapshot_begins_where_its_context_begins(backend: Backend) -> None:
    reader = backend.reader()
    writer = threading.Thread(target=lambda: append(backend.store, Draft("late")))
    with reader.snapshot():
        writer.start()
        writer.join(0.5)
        assert reader.state().size == 0
    writer.join()
    assert reader.state().size == 1


def test_an_error_inside_a_snapshot_passes_through_and_ends_it(backend: Backend) -> None:
    reader = backend.reader()
    with pytest.raises(KeyError), reader.snapshot():
        raise KeyError("the caller's own")
    append(backend.store, Draft("one"))
    assert reader.state().size == 1


def test_writing_inside_a_snapshot_is_a_bug(store: LogStore) -> None:
    batch = make_batch(store.state(), Draft("one"))
    with store.snapshot():
        with pytest.raises(AssertionError):
            store.commit(batch)
        with pytest.raises(AssertionError):
            store.claim_epoch()
        assert store.state().size == 0
    store.commit(batch)


def test_a_reading_handle_does_not_write(backend: Backend) -> None:
    reader = backend.reader()
    assert reader.read_only
    with pytest.raises(StoreError, match="ReadOnly"):
        reader.commit(make_batch(reader.state(), Draft("one")))
    with pytest.raises(StoreError, match="ReadOnly"):
        reader.claim_epoch()
    assert backend.store.state().size == backend.store.state().epoch == 0


def test_of_many_writers_with_one_expectation_one_wins(store: LogStore) -> None:
    expected = store.state()
    results: list[str] = []
    start = threading.Barrier(6)

    def write(number: int) -> None:
        batch = make_batch(expected, enrol(ALICE, make_key(f"{number}")))
        start.wait()
        try:
            store.commit(batch)
            results.append("committed")
        except Conflict as conflict:
            results.append(conflict.name)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["StateMoved"] * 5 + ["committed"]
    assert store.state().size == len(store.history(ALICE)) == 1


def test_threads_read_while_one_writes(backend: Backend) -> None:
    reader = backend.reader()
    problems: list[object] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            found = dump(reader)
            if found["state"].size != len(found["histories"].get(ALICE, ())):
                problems.append(found)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    append(backend.store, enrol(ALICE))
    for number in range(2, 30):
        append(backend.store, touch(make_actor(ALICE, version=number), f"version {number}"))
    done.set()
    for thread in threads:
        thread.join()
    assert not problems
    assert reader.state().size == 29


def test_a_closed_store_says_so(store: LogStore) -> None:
    store.close()
    store.close()
    with pytest.raises(StoreError, match="ClosedStore"):
        store.state()
    with pytest.raises(StoreError, match="ClosedStore"):
        store.claim_epoch()


# --- parts of a history


def test_a_history_in_parts(backend: Backend) -> None:
    key = make_key("k")
    drafts = [enrol(ALICE, key), enrol(BOB), Draft("no actor")]
    drafts += [touch(make_actor(ALICE, [key], version=2 + number), f"{number}") for number in range(3)]
    append(backend.store, *drafts)
    for handle in (backend.store, backend.reader()):
        actions = [record.action for record in handle.records(0, 6)]
        expected = tuple((at, role, actions[at]) for at, role in handle.history(ALICE))
        assert [row[0] for row in expected] == [0, 3, 4, 5]
        assert handle.touches(ALICE) == handle.touches(ALICE, -1, 9) == expected
        assert handle.touches(ALICE, 0) == handle.touches(ALICE, 2) == expected[1:]
        assert handle.touches(ALICE, 0, 2) == expected[1:3]
        assert handle.touches(ALICE, 5) == handle.touches(ALICE, 2**63 - 1) == handle.touches(ALICE, 2**70) == ()
        assert handle.touches(ALICE, -(2**70), 1) == expected[:1]
        assert (handle.history_span(ALICE), handle.history_span(BOB)) == ((0, 5), (1, 1))
        for actor_id in (ALICE, BOB):
            standing, actor = handle.standing(actor_id), handle.actor(actor_id)
            assert (standing.first, standing.last) == handle.history_span(actor_id)
            assert (standing.keys, standing.aux) == (actor.keys, actor.aux)
        accepted = [record.accepted for record in handle.records(0, 6)]
        assert handle.accepted_times(ALICE, 9) == tuple(accepted[at] for at in (5, 4, 3, 0))
        assert handle.accepted_times(ALICE, 2) == (accepted[5], accepted[4])
        for nobody in (f"{ALICE}x", "\ud800"):
            assert (handle.history_span(nobody), handle.touches(nobody), handle.accepted_times(nobody, 5)) == (None, (), ())
            assert handle.standing(nobody) is None


def test_a_history_from_its_newest_end(backend: Backend) -> None:
    alice = make_actor(ALICE)
    append(backend.store, enrol(ALICE), enrol(BOB), touch(alice, "again"), touch(alice, "once more"))
    for handle in (backend.store, backend.reader()):
        assert handle.newest_touches(ALICE, None, 9) == handle.touches(ALICE)[::-1]
        assert [item.leaf_index for item in handle.newest_touches(ALICE, 3, 1)] == [2]
        assert handle.newest_touches(ALICE, 0, 9) == handle.newest_touches("\ud800", None, 9) == ()


def test_the_owners_of_an_id_are_those_that_hold_it_now(backend: Backend) -> None:
    key, aux = make_key("k"), make_aux("x")
    append(backend.store, enrol(ALICE, key), touch(make_actor(ALICE, [key], [aux]), "with aux"), enrol(BOB))
    append(backend.store, touch(make_actor(BOB, [make_key("b")], [aux]), "the same"))
    for handle in (backend.store, backend.reader()):
        assert handle.owners(key.key_id, 9) == (ALICE,)
        assert handle.owners(aux.aux_id, 9) == tuple(sorted((ALICE, BOB)))
        assert len(handle.owners(aux.aux_id, 1)) == 1
        assert handle.owners("nothing", 9) == handle.owners("\ud800", 9) == ()
    append(backend.store, touch(make_actor(ALICE), "all revoked"))
    assert backend.reader().owners(key.key_id, 9) == ()


def test_how_large_the_log_was_at_a_time(backend: Backend) -> None:
    assert backend.store.sizes_at((5,)) == (0,)
    append(backend.store, *(Draft(str(number), time=1000 + 10 * (number // 3)) for number in range(10)))
    for handle in (backend.store, backend.reader()):  # each was accepted a second after its time
        assert handle.sizes_at((0, 1001, 1002, 1012, 1031, 1032, 9999)) == (0, 0, 3, 6, 9, 10, 10)


def test_what_a_move_carried_is_known(backend: Backend) -> None:
    key = make_key("the key")
    append(backend.store, enrol(ALICE, key))
    old, new = make_actor(ALICE, version=2, status=4, status_leaf=1), make_actor(BOB, [key], cause=6)
    change = Change((old, new), (HistoryLeaf(ALICE, 2), HistoryLeaf(BOB, 3)), None, (BOB,))
    append(backend.store, Draft("move", change, {"old-actor": ALICE, "new-actor": BOB}, salts={"new-actor": hash_of("s")}))
    for handle in (backend.store, backend.reader()):
        assert (handle.carried(1).move_leaf, handle.carried(1).leaves) == (1, (key.leaf_index,))
        assert handle.carried(0) is handle.carried(7) is None
        assert handle.touches(BOB)[0][:2] == (1, 3)
