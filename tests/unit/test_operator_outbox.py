"""Replies on their way into the queue: together, bounded, and lost rather than waited for."""

from __future__ import annotations

import threading
from contextlib import nullcontext

import pytest

from ktlog.errors import StoreError
from ktlog.operator import outbox
from ktlog.operator.outbox import Outbox
from ktlog.operator.replyqueue import Letter


class Queue:
    """Takes letters in batches. failure: what the next batch meets."""

    def __init__(self) -> None:
        self.batches: list[list[bytes]] = []
        self.failure: Exception | None = None
        self.taken = threading.Event()

    def put_all(self, letters, now):
        failure, self.failure = self.failure, None
        if failure is not None:
            raise failure
        self.batches.append([letter.body for letter in letters])
        self.taken.set()


class Store:
    def snapshot(self):
        return nullcontext()

    def erasure_count(self):
        return 0


@pytest.fixture
def queue():
    return Queue()


def box_of(queue):
    return Outbox(queue, Store(), lambda actor_id: False, lambda: 1)


def letter(number):
    return Letter("https://alpha.example/a", "alpha.example", b"%d" % number)


def test_what_comes_together_is_queued_together_and_no_more_than_fits(queue, monkeypatch):
    monkeypatch.setattr(outbox, "LIMIT", 3)
    monkeypatch.setattr(Outbox, "_run", lambda self: None)
    box = box_of(queue)
    assert [box.send(letter(number)) for number in range(5)] == [True, True, True, False, False]
    box.flush()
    box.flush()
    assert queue.batches == [[b"0", b"1", b"2"]]
    assert box.send(letter(5))


@pytest.mark.parametrize("failure", [StoreError("DiskFull", "x"), ZeroDivisionError("a bug")])
def test_the_thread_outlasts_what_fails(queue, monkeypatch, failure, caplog):
    monkeypatch.setattr(outbox, "LINGER_SECONDS", 0.0)
    box, failed = box_of(queue), threading.Event()
    queue.failure = failure
    flush = box.flush

    def flush_and_tell():
        try:
            flush()
        finally:
            failed.set()

    monkeypatch.setattr(box, "flush", flush_and_tell)
    box.send(letter(0))
    assert failed.wait(20)
    box.send(letter(1))
    assert queue.taken.wait(20)
    assert queue.batches == [[b"1"]]
    assert "not queued" in caplog.text
