"""The queue between front ends and the sequencer: every request is answered once, by whoever leads, or nobody is."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from ktlog.errors import MessageRejected, StoreError
from tests.machine import need

need("postgres")

from ktlog.operator.courier import Courier, Parcel, QueueLink  # noqa: E402 - psycopg may be missing
from ktlog.operator.pgdoor import PgDoor  # noqa: E402
from ktlog.store import pgqueue  # noqa: E402
from ktlog.store.pgconnections import PgConnections  # noqa: E402
from ktlog.store.postgres import PostgresStore  # noqa: E402
from tests.postgres_server import own_cluster  # noqa: E402

SECONDS = 30.0


@dataclass
class Ticket:
    """As a desk's."""

    frame: bytes
    done: threading.Event = field(default_factory=threading.Event)

    def answer(self) -> bytes:
        return b'{"ok":{"echo":' + self.frame + b"}}"


class Desk:
    """Does what it is asked at once, or with *slow* when it is told to."""

    def __init__(self, *, slow: bool = False) -> None:
        self.slow = slow
        self.tickets: list[Ticket] = []
        self.came = threading.Semaphore(0)

    def hand_in(self, frame: bytes) -> Ticket:
        ticket = Ticket(frame)
        self.tickets.append(ticket)
        if not self.slow:
            ticket.done.set()
        self.came.release()
        return ticket

    def wait_for(self, count: int) -> None:
        for _ in range(count):
            assert self.came.acquire(timeout=SECONDS)


@pytest.fixture
def url(postgres_url: str) -> str:
    PostgresStore.create(postgres_url, origin="keys.example.com", dialect="spec").close()
    return postgres_url


@pytest.fixture
def keep() -> Iterator[Callable]:
    opened: list = []

    def kept(one):
        opened.append(one)
        return one

    yield kept
    for one in reversed(opened):
        one.close()


@pytest.fixture
def door(url: str, keep: Callable) -> Callable[..., PgDoor]:
    def make(desk: Desk, **how) -> PgDoor:
        how = {"in_flight": 64, "epoch": None, "failed": lambda: pytest.fail("failed"), **how}
        made = keep(PgDoor(url, desk.hand_in, **how))
        made.open()
        return made

    return make


def answer_of(parcel: Parcel) -> bytes:
    assert parcel.done.wait(SECONDS)
    return parcel.answer


def test_every_thread_of_two_front_ends_gets_its_own_answer(url, door, keep):
    door(Desk(), in_flight=8)
    links = [keep(QueueLink(url)) for _ in range(2)]

    def ask(number: int) -> object:
        return links[number % 2]._ask(b'"%d"' % number)

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(200)))
    assert answers == [{"ok": {"echo": str(number)}} for number in range(200)]


def test_requests_are_handed_in_in_turn(url, door, keep):
    courier, desk = keep(Courier(url)), Desk(slow=True)
    parcels = [courier.send(b"%d" % number) for number in range(100)]
    door(desk)
    desk.wait_for(64)
    assert not desk.came.acquire(timeout=0), "more than may be in flight"
    for ticket in desk.tickets:
        ticket.done.set()
    desk.slow = False
    assert [answer_of(parcel) for parcel in parcels] == [b'{"ok":{"echo":%d}}' % number for number in range(100)]
    assert [ticket.frame for ticket in desk.tickets] == [b"%d" % number for number in range(100)]


def test_what_is_refused_at_once_does_not_wait_for_what_is_not(url, door, keep):
    courier, desk = keep(Courier(url)), Desk(slow=True)
    door(desk)
    slow = courier.send(b"1")
    desk.wait_for(1)
    desk.slow = False
    assert answer_of(courier.send(b"2")) and not slow.done.is_set()
    desk.tickets[0].done.set()
    assert answer_of(slow) == b'{"ok":{"echo":1}}'


def test_a_row_with_a_name_too_long_for_a_channel_stops_nobody(url, door, keep):
    door(Desk(), in_flight=2)
    with PgConnections(url, read_only=True).connect() as db:
        for ticket in range(4):
            pgqueue.ask(db, f"{ticket}" * 80, [(ticket, b"0")], hint=False)
    courier = keep(Courier(url))
    assert [answer_of(courier.send(b"%d" % number)) for number in range(5)]


def test_a_courier_made_before_a_fork_has_another_name_in_each_process(url, door, keep):
    door(Desk())
    courier = keep(Courier(url))
    context = multiprocessing.get_context("fork")
    names = context.SimpleQueue()

    def child() -> None:
        courier.send(b"1")
        names.put(courier._front)

    process = context.Process(target=child)
    process.start()
    process.join()
    assert answer_of(courier.send(b"2")) == b'{"ok":{"echo":2}}'
    assert names.get() != courier._front


def test_without_notifications_looking_is_enough(url, door, keep, monkeypatch):
    monkeypatch.setattr(pgqueue, "listen", lambda _db, _channel: False)
    monkeypatch.setattr(pgqueue, "has_hints", lambda _db: False)
    door(Desk())
    courier = keep(Courier(url))
    assert [answer_of(courier.send(b"%d" % number)) for number in range(3)]


def test_a_sequencer_that_dies_leaves_its_requests_to_the_next(url, door, keep):
    courier, dead = keep(Courier(url)), Desk(slow=True)
    first = door(dead)
    parcels = [courier.send(b"%d" % number) for number in range(3)]
    dead.wait_for(3)
    first.close()
    door(Desk())
    assert [answer_of(parcel) for parcel in parcels] == [b'{"ok":{"echo":%d}}' % number for number in range(3)]


def test_whoever_was_overtaken_answers_nobody(url, door, keep):
    with PostgresStore.open(url) as store:
        old_epoch = store.claim_epoch()
        fenced, desk = threading.Event(), Desk(slow=True)
        door(desk, epoch=old_epoch, failed=fenced.set)
        courier = keep(Courier(url))
        parcel = courier.send(b'"x"')
        desk.wait_for(1)
        epoch = store.claim_epoch()
    desk.tickets[0].done.set()
    assert fenced.wait(SECONDS) and not parcel.done.is_set()
    successor = Desk()
    door(successor, epoch=epoch)
    assert answer_of(parcel) and [ticket.frame for ticket in successor.tickets] == [b'"x"']


def test_too_many_at_a_time_are_refused(url, keep):
    courier = keep(Courier(url, limit=2))
    first = courier.send(b"1")
    courier.send(b"2")
    with pytest.raises(MessageRejected) as refusal:
        courier.send(b"3")
    assert refusal.value.code == "overloaded"
    courier.give_up(first)
    courier.send(b"3")


def test_nobody_answers(url, door, keep):
    """The request is withdrawn: a sequencer that starts later does not do what nobody waits for."""
    link = keep(QueueLink(url, timeout_seconds=0.2))
    door(Desk()).close()  # makes the tables
    with pytest.raises(StoreError) as error:
        link.ping()
    assert error.value.name == "SequencerUnreachable"
    desk = Desk()
    door(desk)
    courier = keep(Courier(url))
    assert answer_of(courier.send(b"1"))
    assert [ticket.frame for ticket in desk.tickets] in ([b"1"], [b'{"op":"ping"}', b"1"])


def test_old_requests_and_answers_of_the_dead_are_dropped(url, door, keep):
    door(Desk()).close()
    connections = keep(PgConnections(url, read_only=True))
    with connections.connect() as db:
        pgqueue.ask(db, "gone", [(1, b"old"), (2, b"left")], hint=False)
        db.execute("UPDATE door_requests SET made = now() - %s * interval '1 second'", (pgqueue.OLD_SECONDS + 1,))
        db.execute("UPDATE door_requests SET made = now() - interval '1 day' WHERE ticket = 2")
        db.execute("INSERT INTO door_answers VALUES ('gone', 3, now() - interval '1 hour', 'x'), ('here', 4, now(), 'y')")
        desk = Desk()
        door(desk)
        assert answer_of(keep(Courier(url)).send(b"1")) and [ticket.frame for ticket in desk.tickets] == [b"1"]
        pgqueue.clean(db, vacuum=True)
        assert db.execute("SELECT ticket FROM door_requests").fetchall() == [(1,)]
        assert db.execute("SELECT ticket FROM door_answers").fetchall() == [(4,)]


def test_a_front_end_and_a_door_outlast_a_server_that_crashes(keep):
    import signal

    with own_cluster() as cluster:
        url = cluster.new_database()
        PostgresStore.create(url, origin="keys.example.com", dialect="spec").close()
        desk = Desk()
        door = PgDoor(url, desk.hand_in, in_flight=8, epoch=None, failed=lambda: pytest.fail("failed"))
        courier = Courier(url)
        door.open()
        assert all(answer_of(courier.send(b"%d" % number)) for number in range(3))
        cluster.stop(signal.SIGQUIT)
        parcel = courier.send(b"4")  # is on its way while there is no server
        cluster.start()
        assert answer_of(parcel) == b'{"ok":{"echo":4}}'
        assert answer_of(courier.send(b"5")) == b'{"ok":{"echo":5}}'
        courier.close()
        door.close()
