"""Submissions whose answer comes later: when it is on the disk, and the same as for one who waits."""

from __future__ import annotations

import io
import queue

import pytest

from ktlog.errors import StoreError
from ktlog.tlog.note import Signer
from ktlog.wire.received import LATER
from tests.witness_log import NOW, Log
from tests.witness_site import Session
from witness.limits import MINIMUM_BURST
from witness.store import BEFORE_COMMIT
from witness.web import create_app

SECONDS = 30


class Later:
    """What a witness, or a server, is given; everything that it hears of, in order."""

    def __init__(self) -> None:
        self.heard: queue.SimpleQueue = queue.SimpleQueue()

    def answer(self, answer) -> None:
        self.heard.put(answer)

    def finish(self, status, headers, body) -> None:
        self.heard.put((status, dict(headers), body))

    def run(self, work) -> None:
        self.heard.put(work)

    def next(self):
        return self.heard.get(timeout=SECONDS)


def submit(session, body, later) -> None:
    session.witness.add_checkpoints([(body, later)])


@pytest.fixture
def session(tmp_path):
    session = Session(tmp_path)
    yield session
    session.witness.store.close()


def test_it_is_answered_when_it_is_on_the_disk_and_not_before(session):
    later, heard_before = Later(), []
    session.witness.store._reach = lambda name: heard_before.append(later.heard.qsize()) if name == BEFORE_COMMIT else None
    submit(session, session.log.submission(0, 3), later)
    answer = later.next()
    assert (answer.status, heard_before, session.size()) == (200, [0], 3)
    assert session.monitor().data.endswith(answer.body)


def test_what_is_refused_is_refused_at_once(session):
    later = Later()
    submit(session, b"hello", later)
    assert later.heard.get_nowait().status == 400
    submit(session, session.log.submission(0, 3).replace(b"\n3\n", b"\n4\n"), later)
    assert later.heard.get_nowait().status == 403


def test_of_many_together_each_gets_his_own_answer(session, monkeypatch):
    others = [Log(f"{name}.example", seed=seed) for seed, name in enumerate(("one", "two", "ill"), 7)]
    for log in others:
        session.witness.store.add_log(log.origin, log.vkeys, NOW)
    signer = session.witness.signers[1]

    class Agent:
        def sign(self, message):
            if b"ill.example" in message:
                raise StoreError("AgentGone", "the agent does not answer")
            return signer.private_key.sign(message)

    faulty = Signer(signer.vkey, Agent())
    monkeypatch.setattr(session.witness, "signers", (session.witness.signers[0], faulty))
    bodies = [session.log.submission(0, 3), b"hello", *(log.submission(0, 2) for log in others)]
    laters = [Later() for _ in bodies]
    session.witness.add_checkpoints(list(zip(bodies, laters, strict=True)))
    answers = [later.next() for later in laters]
    assert [(answer.status, answer.reason) for answer in answers] == [
        (200, ""), (400, "BadRequest"), (200, ""), (200, ""), (503, "AgentGone")
    ]
    for log, answer, size in zip((session.log, *others[:2]), answers[:1] + answers[2:], (3, 2, 2), strict=False):
        record = session.witness.store.log(log.origin).latest
        assert record.checkpoint.size == size and record.note.endswith(answer.body)
    assert session.witness.store.log("ill.example").latest is None
    assert not session.witness._limits._in_hand, "nothing is left in hand"


def test_where_no_thread_can_record_all_are_told(session, monkeypatch):
    def fail(records):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(session.witness.store, "record_later", fail)
    later = Later()
    submit(session, session.log.submission(0, 3), later)
    assert later.heard.get_nowait().status == 500 and session.size() is None
    assert not session.witness._limits._in_hand


def test_of_two_at_once_one_is_cosigned_and_the_other_judged_anew_by_a_thread_that_may_wait(session):
    group = session.witness.store._group
    group._led = True  # somebody commits while they come
    first, second = Later(), Later()
    session.witness.add_checkpoints([(session.log.submission(0, 3), first), (session.log.submission(0, 5), second)])
    group._hand_on()
    assert first.next().status == 200
    second.next()()
    answer = second.next()
    assert (answer.status, answer.body, session.size()) == (409, b"3\n", 3)


def test_a_failed_write_is_503_and_gives_no_signature_away(session):
    def fail(name):
        if name == BEFORE_COMMIT:
            raise OSError("the disk is gone")

    session.witness.store._reach = fail
    later = Later()
    submit(session, session.log.submission(0, 3), later)
    answer = later.next()
    assert (answer.status, answer.reason) == (503, "Poisoned")
    assert b"\xe2\x80\x94" not in answer.body
    submit(session, session.log.submission(0, 3), later)
    assert later.next().status == 503


def test_one_whose_answer_cannot_be_given_keeps_no_other_from_his(session):
    class Gone(Later):
        def answer(self, answer):
            raise RuntimeError("no such connection")

    submit(session, b"hello", Gone())
    submit(session, session.log.submission(0, 3), Gone())
    later = Later()
    while session.size() is None:
        pass
    submit(session, session.log.submission(3, 5), later)
    assert later.next().status == 200


def test_a_log_has_only_so_many_in_hand_until_they_are_answered(session):
    group = session.witness.store._group
    group._led = True
    laters = [Later() for _ in range(4)]
    for later in laters:
        submit(session, session.log.submission(0, 3), later)
    fifth = Later()
    submit(session, session.log.submission(0, 3), fifth)
    assert fifth.heard.get_nowait().reason == "TooManyAtOnce"
    group._hand_on()
    assert laters[0].next().status == 200
    assert session.submit(3, 5).status_code == 200


def test_what_anybody_can_send_again_holds_up_nothing_new(session):
    session.submit(0, 3)
    session.witness.store.add_log(session.log.origin, session.log.vkeys, NOW, 24)
    group = session.witness.store._group
    group._led = True
    published = [Later() for _ in range(5)]
    for later in published:
        submit(session, session.log.submission(3, 3), later)
    assert [later.heard.qsize() for later in published] == [0, 0, 1, 1, 1]
    assert {later.next().reason for later in published[2:]} == {"TooManyAtOnce"}
    later = Later()
    submit(session, session.log.submission(3, 5), later)
    group._hand_on()
    later.next()()  # those were faster, so it is judged anew
    assert later.next().status == 200 and session.size() == 5
    allowance = session.witness._limits._buckets[session.log.origin, True]
    assert MINIMUM_BURST - allowance.tokens < 1.5, "judged twice, and counted once"


def test_the_server_hears_the_same_as_one_who_waits(session):
    app, body, later = create_app(session.witness), session.log.submission(0, 3), Later()
    environ = {
        "REQUEST_METHOD": "POST", "PATH_INFO": "/add-checkpoint", "CONTENT_LENGTH": str(len(body)),
        "wsgi.input": io.BytesIO(body), LATER: later,
    }
    assert app(environ, None) is later
    later.next()()  # a thread of the server's works on what has come
    status, headers, answered = later.next()
    response = session.submit(3, 3)
    assert status == response.status == "200 OK"
    assert headers.keys() == {name for name, _ in response.headers}
    assert headers["Content-Type"] == response.content_type
    assert session.monitor().data.count(b"\n") == 4 + 2 + 2 and len(answered) == len(response.data)
