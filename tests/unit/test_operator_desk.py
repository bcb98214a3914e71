"""The queue before the sequencing thread: bounded in number and in time, counted, and empty again in the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest

from ktlog.errors import MessageRejected
from ktlog.operator import desk as desk_module
from ktlog.operator.desk import WAIT_SECONDS, Desk
from ktlog.operator.link import Fetched, Receipt, decode_receipt, encode_refused, encode_submission
from ktlog.operator.refusalbook import KEEP_SECONDS, ROWS_LIMIT, RefusalBook, RefusalKey
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.messages import AddKey, Fireproof
from ktlog.tlog.encoding import MAXIMUM_INTEGER
from ktlog.wire.prometheus import LATENCY_BOUNDS
from tests import operator_world
from tests.operator_world import NOW, submission
from tests.pkd_samples import ALICE, BOB, public, quick_argon2  # noqa: F401


class Slow:
    """A sequencer that takes *seconds* of the clock for each message."""

    def __init__(self) -> None:
        self.inner = operator_world.Desk()
        self.seconds = 0.0
        self.now = 0.0
        self.batches: list[int] = []

    @property
    def state(self):
        return self.inner.sequencer.state

    def clock(self) -> float:
        return self.now

    def process(self, submissions):
        self.now += self.seconds * len(submissions)
        self.batches.append(len(submissions))
        return self.inner.sequencer.process(submissions)


@pytest.fixture
def slow(quick_argon2) -> Slow:  # noqa: F811
    return Slow()


def make(slow: Slow, **options) -> Desk:
    values = {"unpublished": lambda: 0, "unpublished_limit": 100, "queue_limit": 8} | options
    return Desk(slow, lambda op, request: None, status=dict, clock=slow.clock, **values)


def add(number: int) -> bytes:
    return encode_submission(submission(AddKey(f"https://example.com/users/u{number}", public("a"), NOW + number)))


def code(raw: bytes) -> str:
    return parse_json(raw)["error"]["code"]


def test_without_room_on_the_disk_nothing_is_taken(slow):
    short = ["the log's disk has 3 MiB left"]
    desk = make(slow, shortage=lambda: short[0])
    answer = parse_json(desk.hand_in(add(1)).answer())["error"]
    assert (answer["code"], answer["message"], desk.queue.qsize()) == ("overloaded", short[0], 0)
    short[0] = None
    assert not desk.hand_in(add(1)).done.is_set()


def test_what_is_queued_is_one_batch_and_each_gets_its_own_answer(slow):
    desk = make(slow)
    tickets = [desk.hand_in(encode_submission(one)) for one in (
        submission(AddKey(ALICE, public("a"), NOW)), submission(AddKey(BOB, public("b"), NOW), "b"),
    )]
    assert not any(ticket.done.is_set() for ticket in tickets)
    desk.work(0)
    assert slow.batches == [2]
    assert decode_receipt(parse_json(tickets[0].answer())).leaf_index == 0
    assert code(tickets[1].answer()) == "merkle_root_stale"
    assert (desk.batches, desk.accepted, desk.queue.qsize()) == (1, 1, 0)
    assert desk.refusals.counts() == {("sequencer", "merkle_root_stale"): 1}


def test_a_batch_forms_where_more_messages_are_about_to_come(slow, monkeypatch):
    monkeypatch.setattr(desk_module, "GATHER_SECONDS", 20.0)  # for a slow machine
    desk = make(slow, queue_limit=100)
    numbers = iter(range(100))

    def hand_in(*, more: bool) -> None:
        number = next(numbers)
        message = submission(AddKey(f"https://example.com/users/u{number}", public("a"), NOW + number))
        desk.hand_in(encode_submission(replace(message, more=more)))

    def work(*, more: bool, then: Sequence[bool] = ()) -> int:
        """How many messages were one batch: the first, and some of those that come one after the other."""
        hand_in(more=more)
        late = [threading.Timer(0.02 * at, hand_in, kwargs={"more": one}) for at, one in enumerate(then, 1)]
        for one in late:
            one.start()
        desk.work(0)
        for one in late:
            one.join()
        found = slow.batches[-1]
        while not desk.queue.empty():
            desk.queue.get_nowait()
        slow.now += 5
        return found

    assert work(more=True, then=[False]) == 1, "after a quiet time nobody waits"
    assert work(more=True, then=[True, False, False]) == 3, "until one says that none follows"
    assert work(more=False, then=[True]) == 1
    slow.now += 14.98
    assert work(more=True) == 1, "nobody came after all"
    slow.now += 20
    assert work(more=True, then=[False]) == 1
    slow.now -= 1000
    assert work(more=True, then=[False]) == 1, "the clock went back"


def test_a_task_ends_the_wait_for_more_messages(slow, monkeypatch):
    monkeypatch.setattr(desk_module, "GATHER_SECONDS", 20.0)
    done = []
    desk = Desk(
        slow, lambda op, request: (lambda: done.append(op) or b"{}") if op == "task" else None, status=dict, clock=slow.clock,
        unpublished=lambda: 0, unpublished_limit=100, queue_limit=8,
    )
    desk.hand_in(add(1))
    desk.work(0)
    desk.hand_in(encode_submission(replace(submission(AddKey(BOB, public("b"), NOW)), more=True)))
    later = threading.Timer(0.02, desk.hand_in, [canonical({"op": "task"})])
    later.start()
    desk.work(0)
    assert (done, slow.batches) == (["task"], [1, 1])
    later.join()


def test_a_receipt_given_again_is_nothing_accepted(slow):
    desk = make(slow)
    raw = encode_submission(submission(AddKey(ALICE, public("a"), NOW)))
    first, again = desk.hand_in(raw), desk.hand_in(raw)
    desk.work(0)
    assert isinstance(first.result, Receipt)
    assert again.result == replace(first.result, duplicate=True)
    assert (desk.accepted, desk.refusals.counts()) == (1, {})


def test_a_front_end_that_knows_another_leaf_key_is_refused_and_nothing_is_appended(slow):
    desk = make(slow, leaf_key=b"n" * 32)
    message = submission(AddKey(ALICE, public("a"), NOW))
    assert code(desk.answer(encode_submission(replace(message, leaf_key=b"o" * 32)))) == "keys_differ"
    assert (desk.queue.qsize(), desk.refusals.counts()) == (0, {("sequencer", "keys_differ"): 1})
    told = desk.hand_in(encode_submission(replace(message, leaf_key=b"n" * 32)))
    desk.work(0)
    assert isinstance(told.result, Receipt)


def test_the_queue_is_bounded_and_what_does_not_fit_is_refused_at_once(slow):
    desk = make(slow, queue_limit=3)
    tickets = [desk.hand_in(add(number)) for number in range(5)]
    assert [ticket.done.is_set() for ticket in tickets] == [False] * 3 + [True] * 2
    assert [code(ticket.answer()) for ticket in tickets[3:]] == ["overloaded"] * 2
    desk.work(0)
    assert all(ticket.done.is_set() for ticket in tickets)
    assert desk.refusals.counts()["sequencer", "overloaded"] == 2
    assert not desk.hand_in(add(9)).done.is_set()


def test_nobody_queues_for_longer_than_a_sender_waits(slow):
    """It is the time that counts, not the number: with a slow disk less fits in."""
    desk = make(slow)
    slow.seconds = WAIT_SECONDS / 3
    first = desk.hand_in(add(0))
    desk.work(0)
    assert first.done.is_set()
    tickets = [desk.hand_in(add(number)) for number in range(1, 6)]
    assert [ticket.done.is_set() for ticket in tickets] == [False] * 4 + [True]
    assert code(tickets[4].answer()) == "overloaded"
    slow.seconds = 0.0
    while desk.queue.qsize():
        desk.work(0)
    for number in range(10, 40):  # quick again, it is soon forgotten
        desk.hand_in(add(number))
        desk.work(0)
    tickets = [desk.hand_in(add(number)) for number in range(50, 58)]
    assert not any(ticket.done.is_set() for ticket in tickets)


def test_a_task_is_not_refused_for_what_messages_wait_for(slow):
    desk = make(slow, unpublished=lambda: 100)
    desk._plan = lambda op, request: (lambda: b"done") if op == "task" else None
    assert code(desk.hand_in(add(1)).answer()) == "overloaded"
    ticket = desk.hand_in(canonical({"op": "task"}))
    desk.work(0)
    assert ticket.answer() == b"done"


def test_a_refused_task(slow):
    def fail() -> bytes:
        raise MessageRejected("nothing_to_erase", "nobody")

    desk = make(slow)
    desk._plan = lambda op, request: fail
    ticket = desk.hand_in(canonical({"op": "shred"}))
    desk.work(0)
    assert code(ticket.answer()) == "nothing_to_erase"


def test_blocked_senders_are_freed_and_nothing_is_left(slow):
    """A sequencing thread that hangs: the queue fills, the rest is refused, and all is answered when it goes on."""
    desk = make(slow, queue_limit=4)
    answers: list[bytes] = []
    threads = [threading.Thread(target=lambda n=n: answers.append(desk.answer(add(n)))) for n in range(9)]
    for thread in threads:
        thread.start()
    while len(answers) < 5:  # who is refused does not wait
        threading.Event().wait(0.001)
    assert (desk.queue.qsize(), {code(answer) for answer in answers}) == (4, {"overloaded"})
    while any(thread.is_alive() for thread in threads):
        desk.work(0.01)
    assert (len(answers), desk.queue.qsize()) == (9, 0)


def test_what_web_workers_refused_is_counted_here(slow):
    desk = make(slow)
    for _ in range(2):
        assert parse_json(desk.answer(encode_refused({"bad_signature": 3, "too_large": 1}))) == {"ok": {}}
    assert desk.refusals.counts() == {("web", "bad_signature"): 6, ("web", "too_large"): 2}
    for wrong in (
        {"op": "refused"}, {"op": "refused", "codes": []}, {"op": "refused", "codes": {"x": 1}},
        {"op": "refused", "codes": {"x": "-1"}}, {"op": "refused", "codes": {'x"}': "1"}},
        {"op": "refused", "codes": {f"c{number}": "1" for number in range(300)}},
    ):
        assert code(desk.answer(canonical(wrong))) == "bad_request"


def test_what_web_workers_fetched_is_counted_here(slow):
    desk = make(slow)
    counts = tuple(range(len(LATENCY_BOUNDS) + 1))
    for _ in range(2):
        assert parse_json(desk.answer(encode_refused({}, (), Fetched(counts, 1_500_000, 2)))) == {"ok": {}}
    fetches, blocked = desk.fetches()
    assert (fetches.counts, fetches.total, blocked) == ([2 * count for count in counts], 3.0, 4)
    good = {"counts": ["1"] * len(counts), "blocked": "0", "microseconds": "5"}
    for wrong in ({"counts": ["1"]}, {"counts": [1] * len(counts)}, {"counts": None}, {"blocked": "-1"}, {"microseconds": 5}):
        assert code(desk.answer(canonical({"op": "refused", "codes": {"x": "1"}, "fetched": good | wrong}))) == "bad_request"
    for wrong in ([], None, "x"):
        assert code(desk.answer(canonical({"op": "refused", "codes": {"x": "1"}, "fetched": wrong}))) == "bad_request"
    assert (desk.fetches()[0].counts, desk.refusals.counts()) == ([2 * count for count in counts], {})


def test_a_web_worker_that_was_taken_over_writes_nothing_but_names_into_the_list_of_refusals(slow):
    """The operator's terminal shows them, and the sequencer keeps a thousand."""
    desk = make(slow, now=lambda: NOW)
    for code_, instance in (
        ("bad_signature", "\x1b[2Jevil.example"), ("bad_signature", "a.example\n"), ("bad_signature", "a" * 100_000),
        ("\x1b[2J", "a.example"), ("not_counted", "a.example"),
    ):
        assert code(desk.answer(encode_refused({"bad_signature": 1}, [(code_, instance, True, 1)]))) == "bad_request"
    assert (desk.book.rows(NOW), desk.refusals.counts()) == ([], {})
    rows = [("bad_signature", "a.example", True, 2), ("bad_signature", "", False, 1)]
    assert parse_json(desk.answer(encode_refused({"bad_signature": 3}, rows))) == {"ok": {}}
    assert [(row.key.instance, row.count) for row in desk.book.rows(NOW)] == [("", 1), ("a.example", 2)]


def test_counts_of_refusals_stay_numbers_that_can_be_answered(slow):
    desk = make(slow, now=lambda: NOW)
    for _ in range(2):
        desk.answer(encode_refused({"bad_signature": 1}, [("bad_signature", "a.example", True, MAXIMUM_INTEGER)]))
    assert [row.count for row in desk.book.rows(NOW)] == [MAXIMUM_INTEGER]


def test_who_makes_up_instances_does_not_hide_those_that_signed():
    book = RefusalBook()
    seen = RefusalKey("sequencer", "instance_blocked", "spam.example", True)
    book.add(seen, NOW)
    for number in range(ROWS_LIMIT + 100):
        book.add(RefusalKey("web", "bad_signature", f"i{number}.example"), NOW + 1)
    rows = book.rows(NOW + 1)
    assert (len(rows), rows[-1].key) == (ROWS_LIMIT, seen)
    for number in range(ROWS_LIMIT):
        book.add(RefusalKey("web", "bad_signature", f"v{number}.example", True), NOW + 2)
    assert seen not in [row.key for row in book.rows(NOW + 2)]  # among those that signed, the oldest goes
    late = RefusalKey("web", "too_large")
    book.add(late, NOW + 3 + KEEP_SECONDS)  # yesterday's make room for anybody
    assert [row.key for row in book.rows(NOW + 3 + KEEP_SECONDS)] == [late]


def test_how_it_does_needs_no_queue(slow):
    desk = make(slow, queue_limit=1)
    desk.hand_in(add(0))
    desk._status = lambda: {"waiting": str(desk.queue.qsize())}
    assert parse_json(desk.answer(canonical({"op": "status"}))) == {"ok": {"waiting": "1"}}


def test_a_batch_has_a_greatest_size(slow, monkeypatch):
    monkeypatch.setattr("ktlog.operator.desk.BATCH_LIMIT", 3)
    desk = make(slow)
    for number in range(5):
        desk.hand_in(encode_submission(submission(Fireproof(ALICE, NOW + number))))
    desk.work(0)
    desk.work(0)
    assert slow.batches == [3, 2]
