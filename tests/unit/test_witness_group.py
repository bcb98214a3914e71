"""Group commit: those who come together share a transaction, and each hears of his own."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest

from ktlog.errors import Conflict, StoreError
from ktlog.tlog.checkpoint import Checkpoint
from tests.witness_log import NOW, Log
from tests.witness_site import Session
from witness.decide import Cosigned
from witness.store import BEFORE_COMMIT

LOGS = [Log(f"log{n}.example", seed=n + 1) for n in range(6)]


def record_together(store, items: list[Cosigned]) -> tuple[list, int]:
    """What each was told, in order; and how many transactions there were."""
    transactions = []
    reach = store._reach
    store._reach = lambda name: (transactions.append(name) if name == BEFORE_COMMIT else None, reach(name))
    told: list = [None] * len(items)

    def record(which: int) -> None:
        try:
            store.record_checkpoint(items[which])
        except (Conflict, StoreError) as error:
            told[which] = error.name

    threads = [threading.Thread(target=record, args=(which,)) for which in range(len(items))]
    group = store._group
    group._led = True  # somebody commits while they come
    for thread in threads:
        thread.start()
    while len(group._waiting) < len(items):
        threading.Event().wait(0.001)
    group._hand_on()
    for thread in threads:
        thread.join(30)
    return told, len(transactions)


@pytest.fixture
def store(tmp_path):
    session = Session(tmp_path)
    for log in LOGS:
        session.witness.store.add_log(log.origin, log.vkeys, NOW)
    yield session.witness.store
    session.witness.store.close()


def items() -> list[Cosigned]:
    return [Cosigned(1, Checkpoint(log.origin, 3, bytes(32)), NOW, b"note") for log in LOGS]


def test_many_share_one_transaction_and_the_mark_counts_each(store):
    assert record_together(store, items()) == ([None] * len(LOGS), 1)
    assert store.count_writes() == store._mark.count == len(LOGS)
    assert {store.log(log.origin).latest.checkpoint.size for log in LOGS} == {3}


def test_one_that_came_too_late_spoils_nothing_for_the_others(store):
    late = replace(items()[2], revision=2)
    told, _ = record_together(store, [*items()[:2], late, *items()[3:]])
    assert told == [None, None, "CheckpointMoved", None, None, None]
    same = [replace(items()[2], note=b"one"), replace(items()[2], note=b"other")]
    told, transactions = record_together(store, same)
    assert (sorted(map(str, told)), transactions) == (["CheckpointMoved", "None"], 1)
    assert store.count_writes() == store._mark.count == len(LOGS)


def test_a_failed_transaction_is_everybody_s(store):
    def fail(name):
        raise OSError("no")

    store._reach = fail
    told, _ = record_together(store, items())
    assert told == ["Poisoned"] * len(LOGS)
    assert store.count_writes() == store._mark.count == 0


def test_whoever_comes_during_a_commit_is_done_by_one_of_them_and_the_next_alone(store):
    begun, go_on = threading.Event(), threading.Event()
    reach, sizes, commit = store._reach, [], store._group._commit
    store._group._commit = lambda tickets: (sizes.append(len(tickets)), commit(tickets))

    def stall(name):
        if name == BEFORE_COMMIT and not begun.is_set():
            begun.set()
            assert go_on.wait(30)
        reach(name)

    store._reach = stall
    threads = [threading.Thread(target=store.record_checkpoint, args=(item,)) for item in items()]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    while len(store._group._waiting) < len(LOGS) - 1:
        threading.Event().wait(0.001)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert sizes == [1, len(LOGS) - 1]
    store.record_checkpoint(replace(items()[0], revision=2))
    assert (sizes, store.count_writes()) == ([1, len(LOGS) - 1, 1], len(LOGS) + 1)


def test_what_is_no_store_s_error_leaves_nobody_believing_that_it_is_recorded(store):
    def fail(tickets):
        raise MemoryError

    store._group._commit = fail
    group, told = store._group, []

    def record(item):
        try:
            store.record_checkpoint(item)
            told.append(None)
        except BaseException as error:
            told.append(type(error))

    group._led = True
    threads = [threading.Thread(target=record, args=(item,)) for item in items()[:2]]
    for thread in threads:
        thread.start()
    while len(group._waiting) < 2:
        threading.Event().wait(0.001)
    group._hand_on()
    for thread in threads:
        thread.join(30)
    assert sorted(map(str, told)) == sorted(map(str, [MemoryError, StoreError]))


def test_one_who_said_that_he_comes_and_does_not_keeps_nobody(store, monkeypatch):
    monkeypatch.setattr("witness.group.PATIENCE_SECONDS", 60.0)
    announced, go_away = threading.Event(), threading.Event()

    def stay_away():
        with store.recording():
            announced.set()
            assert go_away.wait(30)

    absent = threading.Thread(target=stay_away)
    absent.start()
    assert announced.wait(30)
    present = threading.Thread(target=store.record_checkpoint, args=(items()[0],))
    present.start()
    go_away.set()
    present.join(30)
    assert not present.is_alive() and store.count_writes() == 1
    absent.join(30)


def test_a_log_that_was_frozen_since_it_was_judged_gets_nothing(store):
    first = items()[0]
    store.record_checkpoint(first)
    with store.writing() as database:
        database.execute("INSERT INTO freezes (origin, size, frozen) VALUES (?, 3, 1)", (LOGS[0].origin,))
    with pytest.raises(Conflict):
        store.record_checkpoint(replace(first, revision=2))
