"""Limits: a log has what its list gives it, a stranger cannot use it up, and one log cannot hold all threads."""

from __future__ import annotations

import threading

import pytest

from tests.witness_log import NOW, Log
from tests.witness_site import Session
from witness.limits import BURSTS_PER_DAY, DAY_SECONDS, IN_HAND, MINIMUM_BURST, UNKNOWN_BURST, Limits
from witness.store import BY_HAND, WitnessStore
from witness.web import create_app
from witness.witness import CHECKED, Witness


class Seconds:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds():
    return Seconds()


@pytest.fixture
def session(tmp_path, seconds):
    session = Session(tmp_path)
    session.witness = Witness(
        session.witness.store, session.signers, clock=session.clock, limits=Limits(seconds), reach=lambda name: None
    )
    session.client = create_app(session.witness).test_client()
    session.witness.store.add_log(session.log.origin, session.log.vkeys, NOW, 24)
    yield session
    session.witness.store.close()


def test_a_burst_and_then_one_each_interval(seconds):
    limits = Limits(seconds)
    for per_day in (24, 86_400):
        burst = max(MINIMUM_BURST, per_day // BURSTS_PER_DAY)
        assert [limits.take(f"log {per_day}", per_day, growth=True) for _ in range(burst)] == [0] * burst
        wait = limits.take(f"log {per_day}", per_day, growth=True)
        assert wait == DAY_SECONDS // per_day
        seconds.now += wait
        assert limits.take(f"log {per_day}", per_day, growth=True) == 0
        assert limits.take(f"log {per_day}", per_day, growth=True) == wait
        seconds.now += 10 * DAY_SECONDS
        assert sum(not limits.take(f"log {per_day}", per_day, growth=True) for _ in range(2 * burst)) == burst
    assert limits.take("by hand", None, growth=True) == 0


def test_a_log_that_has_used_up_its_day_is_told_when_to_come_back(session, seconds):
    for size in range(MINIMUM_BURST):
        assert session.submit(size, size + 1).status_code == 200
    refused = session.submit(MINIMUM_BURST, MINIMUM_BURST + 1)
    assert (refused.status_code, refused.data[:18]) == (429, b"TooManySubmissions")
    assert refused.headers["Retry-After"] == "3600"
    assert session.submit(3, 12).data == b"10\n"  # it is still told where it stands
    seconds.now += 3600
    assert session.submit(MINIMUM_BURST, MINIMUM_BURST + 1).status_code == 200


def test_no_stranger_uses_up_what_is_a_log_s(session):
    session.submit(0, 3)
    forged = session.log.submission(3, 5).replace(b"\n5\n", b"\n6\n")
    published = session.log.note(3)
    for _ in range(3 * MINIMUM_BURST):
        assert session.post(forged).status_code == 403
        assert session.submit(3, 5, proof=[bytes(32)]).status_code == 422
        replayed = session.post(b"old 3\n\n" + published)  # anybody can read and send it
    assert replayed.status_code == 429
    for size in range(3, 2 + MINIMUM_BURST):
        assert session.submit(size, size + 1).status_code == 200


def test_what_fails_is_limited_for_all_strangers_together_and_for_nobody_else(session, monkeypatch):
    other = Log("other.example").submission(0, 1)
    statuses = [session.post(other).status_code for _ in range(int(UNKNOWN_BURST))]
    assert set(statuses) == {404}
    answer = session.post(b"not a request")
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert session.submit(0, 1).status_code == 200
    assert session.submit(0, 1).status_code == 409


def test_a_log_that_sends_many_at_once_does_not_get_every_thread(tmp_path):
    stalled, go_on = threading.Semaphore(0), threading.Event()

    def reach(name):
        if name == CHECKED and noisy.is_set():
            stalled.release()
            assert go_on.wait(30)

    noisy = threading.Event()
    session = Session(tmp_path, reach)
    quiet = Log("quiet.example", seed=5)
    session.witness.store.add_log(quiet.origin, quiet.vkeys, NOW)
    noisy.set()
    body = session.log.submission(0, 1)
    threads = [threading.Thread(target=session.witness.add_checkpoint, args=(body,)) for _ in range(IN_HAND)]
    for thread in threads:
        thread.start()
    for _ in threads:
        assert stalled.acquire(timeout=30)
    noisy.clear()
    answer = session.post(body)
    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")
    assert session.post(quiet.submission(0, 1)).status_code == 200
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert session.submit(1, 2).status_code == 200


def test_a_limit_that_another_process_sets_holds_from_the_next_record_on(session):
    store = session.witness.store
    assert [session.submit(size, size + 1).status_code for size in range(3)] == [200] * 3
    beside = WitnessStore.open(session.directory.database, beside_daemon=True)
    with beside.writing() as database:
        beside.insert_limit(database, session.log.origin, BY_HAND, 1000, "")
        beside.insert_limit(database, session.log.origin, "list", 2000, "")
    beside.close()
    assert store.recall(session.log.origin).per_day == 24
    session.submit(3, 4)
    session.submit(4, 5)
    assert store.recall(session.log.origin).per_day == 1000
