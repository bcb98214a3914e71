"""The queue of replies: bounded, shared between processes, lost without harm, and forgetful to the last byte."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading

import pytest

from ktlog.errors import StoreError
from ktlog.operator import replyqueue
from ktlog.operator.replyqueue import Letter, ReplyQueue

ALICE, BOB = "https://alpha.example/users/alice", "https://alpha.example/users/bob"
HOST, OTHER = "alpha.example", "beta.example"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "replies.db"


@pytest.fixture
def queue(path):
    queue = ReplyQueue(path)
    yield queue
    queue.close()


def test_what_is_due_comes_in_its_order(queue):
    assert queue.next_due(100) is None
    for number, (recipient, host) in enumerate([(ALICE, HOST), (BOB, HOST), ("https://beta.example/c", OTHER)]):
        assert queue.put(recipient, host, b"%d" % number, 100 + number)
    first = queue.next_due(100)
    assert (first.recipient, first.host, first.body, first.created, first.attempts) == (ALICE, HOST, b"0", 100, 0)
    assert queue.next_due(99) is None
    assert queue.next_due(200, [HOST]).body == b"2"
    assert queue.next_due(200, [HOST, OTHER]) is None
    queue.postpone(first.id, 150)
    assert queue.next_due(140).body == b"2"
    queue.remove(queue.next_due(140).id)
    assert queue.next_due(149) is None, "the other one is for the same host"
    assert (queue.next_due(150).body, queue.next_due(150).attempts) == (b"1", 0)
    queue.remove(queue.next_due(150).id)
    assert (queue.next_due(150).body, queue.next_due(150).attempts) == (b"0", 1)
    assert len(queue) == 1


def test_a_host_that_fails_comes_last_and_one_message_at_a_time(queue):
    for number in range(3):
        queue.put(f"https://{number}.evil.example/x", f"{number}.evil.example", b"%d" % number, 100)
    first = queue.next_due(100)
    assert (first.host, first.failures) == ("evil.example", 0)
    queue.postpone(first.id, 130)
    assert queue.next_due(129) is None, "whatever name of theirs it is for"
    queue.put(ALICE, HOST, b"newer", 130)
    assert queue.next_due(130).body == b"newer"
    queue.postpone(queue.next_due(130).id, 130)
    second = queue.next_due(130)
    assert (second.body, second.attempts, second.failures) == (b"1", 0, 1), "one that was never tried comes first"
    queue.postpone(second.id, 200)
    assert queue.next_due(200, [HOST]).failures == 2
    queue.remove(queue.next_due(200, [HOST]).id, answered=True)
    assert queue.next_due(200, [HOST]).failures == 0


def test_nothing_is_kept_of_a_host_for_which_nothing_waits(queue, path):
    for end in (lambda one: queue.remove(one.id), lambda one: queue.forget(one.recipient)):
        queue.put(ALICE, HOST, b"x", 1)
        queue.postpone(queue.next_due(1).id, 1)
        end(queue.next_due(1))
        assert b"alpha" not in path.read_bytes()


def test_a_full_queue_takes_from_who_has_the_most(queue, monkeypatch):
    monkeypatch.setattr(replyqueue, "QUEUE_LIMIT", 4)
    for number in range(4):
        assert queue.put(f"https://{number}.evil.example/x", f"{number}.evil.example", b"%d" % number, 1)
    assert not queue.put("https://5.evil.example/x", "5.evil.example", b"5", 1)
    assert queue.put(ALICE, HOST, b"alice", 1)
    assert queue.put("https://beta.example/b", OTHER, b"bob", 1)
    assert len(queue) == 4
    bodies = []
    while (waiting := queue.next_due(1)) is not None:
        bodies.append(waiting.body)
        queue.remove(waiting.id)
    assert bodies == [b"0", b"1", b"alice", b"bob"]


def test_an_id_is_never_used_twice(queue):
    """A delivery that began before the message was erased must not speak of the next one."""
    queue.put(ALICE, HOST, b"1", 1)
    old = queue.next_due(1)
    assert queue.forget(ALICE) == 1
    queue.put(BOB, HOST, b"2", 1)
    queue.postpone(old.id, 1_000)
    queue.remove(old.id)
    assert (queue.next_due(1).body, queue.next_due(1).attempts) == (b"2", 0)


def test_it_is_bounded(queue, monkeypatch):
    for name, limit in (("RECIPIENT_LIMIT", 2), ("HOST_LIMIT", 3), ("QUEUE_LIMIT", 4)):
        monkeypatch.setattr(replyqueue, name, limit)
    assert [queue.put(ALICE, HOST, b"", 1) for _ in range(3)] == [True, True, False]
    assert [queue.put(BOB, HOST, b"", 1) for _ in range(2)] == [True, False]
    assert [queue.put(f"https://beta.example/{n}", OTHER, b"", 1) for n in range(3)] == [True, True, False]
    assert len(queue) == 4
    queue.forget(ALICE)
    assert queue.put(BOB, HOST, b"", 1)


def test_what_is_forgotten_is_in_no_byte(queue, path):
    queue.put(ALICE, HOST, b"for alice: LEAF-TWELVE", 1)
    queue.put(BOB, HOST, b"for bob", 1)
    assert b"alice" in path.read_bytes()
    assert queue.forget(ALICE) == 1
    for found in path.parent.iterdir():
        assert b"alice" not in found.read_bytes()
        assert b"LEAF-TWELVE" not in found.read_bytes()
    assert b"for bob" in path.read_bytes()
    queue.remove(queue.next_due(1).id)
    assert b"bob" not in path.read_bytes()


def test_many_are_queued_at_once_each_within_its_limits(queue, monkeypatch):
    monkeypatch.setattr(replyqueue, "RECIPIENT_LIMIT", 2)
    letters = [Letter(ALICE, HOST, b"%d" % number) for number in range(3)] + [Letter(BOB, HOST, b"b", f"{BOB}/inbox")]
    assert queue.put_all(letters, 1) == 3
    found = []
    while (waiting := queue.next_due(1)) is not None:
        found.append((waiting.body, waiting.inbox))
        queue.remove(waiting.id)
    assert found == [(b"0", None), (b"1", None), (b"b", f"{BOB}/inbox")]


def test_nobody_else_may_read_it(queue, path):
    assert path.stat().st_mode & 0o777 == 0o600


def test_two_processes_share_it(queue, path):
    queue.put(ALICE, HOST, b"1", 1)
    code = (
        "import sys; from pathlib import Path; from ktlog.operator.replyqueue import ReplyQueue;"
        f"queue = ReplyQueue(Path({str(path)!r})); queue.put({BOB!r}, {HOST!r}, b'2', 2); queue.remove(queue.next_due(1).id)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert queue.next_due(2).body == b"2"
    assert len(queue) == 1


def test_many_begin_at_once(path):
    barrier, failures = threading.Barrier(6), []

    def begin() -> None:
        try:
            barrier.wait(20)
            ReplyQueue(path).put(ALICE, HOST, b"x", 1)
        except BaseException as error:  # the test says what it was
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert failures == []
    assert len(ReplyQueue(path)) == 6


@pytest.mark.parametrize("damage", [b"this is not a database" * 100, b"\x00" * 8192])
def test_a_damaged_file_is_replaced(path, damage):
    path.write_bytes(damage)
    queue = ReplyQueue(path)
    assert queue.put(ALICE, HOST, b"x", 1)


def test_one_that_is_damaged_later_is_refused_once(queue, path):
    for number in range(10):
        queue.put(f"https://alpha.example/{number}", HOST, os.urandom(4_000), 1)
    with open(path, "r+b") as file:
        file.seek(24)  # the change counter: SQLite reads everything afresh
        file.write(b"\xff\xff\xff\x00")
        file.seek(16_384)
        file.write(b"\xaa" * (path.stat().st_size - 16_384))
    with pytest.raises(StoreError) as caught:
        for _ in range(3):
            queue.put(ALICE, HOST, b"x", 1)
    assert caught.value.name == "Corrupt"
    assert queue.put(ALICE, HOST, b"x", 1)
    assert len(queue) == 1


def test_one_that_is_locked_is_a_coded_error(queue, path, monkeypatch):
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN EXCLUSIVE")
    queue._file._connection.execute("PRAGMA busy_timeout=1")
    with pytest.raises(StoreError) as caught:
        queue.put(ALICE, HOST, b"x", 1)
    assert caught.value.name == "Locked"
    other.execute("ROLLBACK")
    assert queue.put(ALICE, HOST, b"x", 1)
    other.close()
