"""One sequencer at a time: who has the lease, who stands by, and who ends because it cannot renew."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from ktlog.errors import StoreError
from tests.machine import need

need("postgres")

from ktlog.operator import lease as leases  # noqa: E402 - psycopg may be missing
from ktlog.operator.lease import Lease  # noqa: E402
from ktlog.store import pglease, pgqueue  # noqa: E402
from ktlog.store.pgconnections import PgConnections  # noqa: E402
from ktlog.store.postgres import PostgresStore  # noqa: E402

SECONDS = 30.0
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")


@pytest.fixture
def url(postgres_url: str) -> str:
    PostgresStore.create(postgres_url, origin="keys.example.com", dialect="spec").close()
    return postgres_url


@pytest.fixture
def lease(url: str, monkeypatch) -> Iterator[Callable[..., Lease]]:
    monkeypatch.setattr(leases, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.05)
    opened: list[Lease] = []

    def make(holder: str, lost=lambda: pytest.fail("lost"), **how) -> Lease:
        opened.append(Lease(url, lost, holder=holder, **how))
        return opened[-1]

    yield make
    for one in opened:
        one.release()


@pytest.fixture
def db(url: str):
    connections = PgConnections(url, read_only=True)
    with connections.connect() as connection:
        yield connection
    connections.close()


def test_a_lease_from_before_the_clock_was_put_back_is_taken(lease, db):
    first = lease("first")
    assert first.wait(lambda: False)
    first._over.set()  # it dies
    first._renewer.join()
    db.execute("UPDATE lease SET expires = now() + interval '1 minute'")
    looks = iter(range(3))
    assert not lease("second").wait(lambda: next(looks, None) is None), "an hour is much, a minute is not"
    db.execute("UPDATE lease SET expires = now() + interval '1 hour'")
    assert lease("third").wait(lambda: False)


@pytest.mark.parametrize(("make", "table", "statements"), [
    (pglease.create_table, "lease", (pglease.TABLE,)), (pgqueue.create_tables, "door_answers", pgqueue.TABLES),
])
def test_two_that_start_at_once_both_find_no_table(url, db, make, table, statements):
    connections = PgConnections(url, read_only=True)
    with connections.connect() as other, ThreadPoolExecutor(1) as pool:
        with db.transaction():
            for statement in statements:
                db.execute(statement)
            # It has looked, and found nothing: what another transaction made is not there until that is committed.
            done = pool.submit(make, other)
            waits = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
            while db.execute(waits, (other.info.backend_pid,)).fetchone() == (0,):
                assert not done.done()
        done.result()
        assert other.execute("SELECT to_regclass(%s) IS NOT NULL", (table,)).fetchone() == (True,)
    connections.close()


def test_half_of_the_queue_s_tables_becomes_all_of_it(db):
    db.execute(pgqueue.TABLES[0])  # an older release died between the two
    for _ in range(2):
        pgqueue.create_tables(db)
        assert db.execute("SELECT to_regclass('door_answers') IS NOT NULL").fetchone() == (True,)


def standing_by(one: Lease) -> tuple[threading.Thread, threading.Event]:
    """A thread in which *one* waits; the event is set once it waited a while in vain, or has the lease."""
    looked = threading.Event()
    looks = iter(range(3))

    def stop() -> bool:
        if next(looks, None) is None:
            looked.set()
        return False

    thread = threading.Thread(target=one.wait, args=(stop,), daemon=True)
    thread.start()
    return thread, looked


def test_the_first_has_it_and_gives_it_back(lease, db):
    first, second = lease("first"), lease("second")
    assert first.wait(lambda: False)
    thread, looked = standing_by(second)
    assert looked.wait(SECONDS) and thread.is_alive() and pglease.look(db).holder == "first"
    first.release()
    thread.join(SECONDS)
    assert pglease.look(db).holder == "second" and not thread.is_alive()


def test_it_is_renewed_for_as_long_as_its_holder_lives(lease, db):
    assert lease("first").wait(lambda: False)
    left = pglease.look(db).seconds_left
    for _ in range(2):
        before, deadline = db.execute("SELECT expires FROM lease").fetchone(), threading.Event()
        while db.execute("SELECT expires FROM lease").fetchone() == before:
            assert not deadline.wait(0.01)
    assert 0 < left <= leases.LEASE_SECONDS


def test_the_next_takes_it_when_it_has_run_out(lease, db):
    dead = lease("dead")
    assert pglease.take(db, "dead", 1000.0) and not pglease.take(db, "other", 1000.0)
    assert not pglease.take(db, "dead", 1000.0), "a new process is another one, whatever it is called"
    db.execute("UPDATE lease SET expires = now() - interval '1 second'")
    assert lease("second").wait(lambda: False)
    assert not pglease.renew(db, "dead", 9.0) and pglease.look(db).holder == "second"
    pglease.release(db, "dead")
    assert pglease.look(db).seconds_left > 0
    dead.release()


def test_a_write_in_whose_middle_the_predecessor_was_stopped_holds_nobody_up(lease, db, url):
    """The server waits for the rest of a COPY for as long as the connection lives."""
    stopped = PgConnections(url, read_only=False)
    with pytest.raises(StoreError) as error, stopped.writing() as old, old.cursor() as cursor:
        old.execute("UPDATE log_state SET writes = writes + 1")
        with cursor.copy("COPY leaf_roots FROM STDIN") as copy:
            copy.write(b"1\t")
            # Half of a row was sent. Whoever takes the lease goes on all the same.
            assert lease("second").wait(lambda: False)
            with PostgresStore.open(url) as store:
                assert store.claim_epoch() == 1
            copy.write(b"2" * 9_000_000)
    assert error.value.name in ("ConnectionLost", "Refused")
    stopped.close()


def test_who_stands_by_can_be_told_to_stop(lease, db):
    one = lease("one")
    pglease.take(db, "other", 50.0)
    answers = iter([False, False, True])
    assert not one.wait(lambda: next(answers))


def test_a_holder_ends_whose_lease_was_taken(lease, db):
    lost = threading.Event()
    assert lease("first", lost.set).wait(lambda: False)
    db.execute("UPDATE lease SET holder = 'second'")
    assert lost.wait(SECONDS)
    assert pglease.look(db).holder == "second"


def test_a_holder_ends_before_its_lease_does_when_it_cannot_renew(lease, db):
    """Its machine slept, or the network hangs: the clock says that its time is over."""
    lost, ticks = threading.Event(), [0.0]
    assert lease("first", lost.set, ticks=lambda: ticks[0]).wait(lambda: False)
    db.execute("BEGIN")
    db.execute("SELECT 1 FROM lease FOR UPDATE")  # the renewing hangs
    ticks[0] = leases.LEASE_SECONDS - leases.MARGIN_SECONDS + 0.01
    assert lost.wait(SECONDS)
    assert db.execute("SELECT expires > now() FROM lease").fetchone() == (True,)
    db.execute("ROLLBACK")


def test_a_lost_connection_is_not_a_lost_lease(lease, db):
    lost = threading.Event()
    assert lease("first", lost.set).wait(lambda: False)
    before = db.execute("SELECT expires FROM lease").fetchone()
    db.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        " AND datname = current_database() AND backend_type = 'client backend'"
    )
    while db.execute("SELECT expires FROM lease").fetchone() == before:
        assert not lost.wait(0.01)
