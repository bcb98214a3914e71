"""The courier: signed as the Fediverse understands it, patient with servers, and not for ever."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from ktlog.errors import StoreError, Unreachable
from ktlog.operator import replies
from ktlog.operator.replies import FIRST_PAUSE_SECONDS, GIVE_UP_SECONDS, LONGEST_PAUSE_SECONDS, Courier
from ktlog.operator.replyqueue import Letter, ReplyQueue
from ktlog.tlog.encoding import encode_base64
from ktlog.wire.fetch import Response
from ktlog.wire.httpsig import verify_request
from ktlog.wire.webfinger import ACTIVITY_JSON
from tests.operator_world import Clock

LOG_ACTOR = "https://keys.example.com/users/pubkeydir"
ALICE, BOB = "https://alpha.example/users/alice", "https://alpha.example/users/bob"
BODY = b'{"type":"Create"}'
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class Fediverse:
    """Serves actor documents and takes what is posted. status: of inboxes. error: instead of any answer."""

    def __init__(self) -> None:
        self.documents = {actor: {"id": actor, "inbox": f"{actor}/inbox"} for actor in (ALICE, BOB)}
        self.status = 202
        self.actor_status = 200
        self.error: Exception | None = None
        self.posts: list[tuple[str, bytes, dict[str, str]]] = []
        self.asked: list[str] = []

    def get(self, url: str, **_: object) -> Response:
        self.asked.append(url)
        if self.error is not None:
            raise self.error
        body = json.dumps(self.documents.get(url)).encode()
        return Response(self.actor_status, {"content-type": ACTIVITY_JSON}, body, url)

    def post(self, url: str, body: bytes, headers: dict[str, str], **_: object) -> Response:
        self.posts.append((url, body, headers))
        return Response(self.status, {}, b"", url)


@pytest.fixture
def fediverse():
    return Fediverse()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def queue(tmp_path):
    queue = ReplyQueue(tmp_path / "replies.db")
    yield queue
    queue.close()


@pytest.fixture
def courier(queue, fediverse, clock):
    return Courier(queue, fediverse, LOG_ACTOR, KEY, clock)


def put(queue, clock, recipient=ALICE):
    assert queue.put(recipient, "alpha.example", BODY, clock.now)


def test_a_reply_is_posted_once_to_the_recipients_own_inbox(courier, queue, fediverse, clock):
    put(queue, clock)
    assert courier.deliver_one()
    assert [(url, body) for url, body, _ in fediverse.posts] == [(f"{ALICE}/inbox", BODY)]
    assert len(queue) == 0
    assert not courier.deliver_one()
    assert len(fediverse.posts) == 1


def test_one_ed25519_signature_and_a_sha256_digest(courier, queue, fediverse, clock):
    """All that a stock server of 2026 verifies: one label, one algorithm, one digest."""
    put(queue, clock)
    courier.deliver_one()
    (url, body, headers), = fediverse.posts
    assert headers["Content-Type"] == ACTIVITY_JSON
    assert headers["Content-Digest"] == f"sha-256=:{encode_base64(hashlib.sha256(body).digest())}:"
    assert headers["Signature-Input"].count("=(") == 1
    assert re.fullmatch(r"sig1=:[A-Za-z0-9+/]{86}==:", headers["Signature"])
    assert f'keyid="{LOG_ACTOR}#main-key"' in headers["Signature-Input"]
    verified = verify_request("POST", url, list(headers.items()), body, lambda key_id: KEY.public_key(), clock.now)
    assert verified.algorithms == ("ed25519",)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
def test_taken(courier, queue, fediverse, clock, status, caplog):
    put(queue, clock)
    fediverse.status = status
    courier.deliver_one()
    assert len(queue) == 0
    assert caplog.records == []


@pytest.mark.parametrize("status", [400, 403, 404, 405, 410, 413, 415, 422])
def test_refused_for_good(courier, queue, fediverse, clock, status, caplog):
    put(queue, clock)
    fediverse.status = status
    courier.deliver_one()
    assert len(queue) == 0
    assert str(status) in caplog.text


@pytest.mark.parametrize("status", [401, 408, 425, 429, 500, 502, 503])
def test_refused_for_now(courier, queue, fediverse, clock, status):
    put(queue, clock)
    fediverse.status = status
    courier.deliver_one()
    assert len(queue) == 1
    assert not courier.deliver_one()
    clock.now += FIRST_PAUSE_SECONDS
    fediverse.status = 202
    assert courier.deliver_one()
    assert len(queue) == 0


@pytest.mark.parametrize("spoil", [
    lambda f: setattr(f, "error", Unreachable("Timeout", "slow")),
    lambda f: setattr(f, "actor_status", 404),
    lambda f: f.documents.update({ALICE: {"id": BOB, "inbox": f"{BOB}/inbox"}}),
    lambda f: f.documents.update({ALICE: {"id": ALICE, "inbox": "https://evil.example/inbox"}}),
    lambda f: f.documents.update({ALICE: {"id": ALICE, "inbox": "https://127.0.0.1/inbox"}}),
    lambda f: f.documents.update({ALICE: []}),
])
def test_nothing_is_posted_to_anywhere_else(courier, queue, fediverse, clock, spoil):
    """An inbox elsewhere is nobody's to name: tried again later, in case the document was broken for a moment."""
    put(queue, clock)
    spoil(fediverse)
    courier.deliver_one()
    assert fediverse.posts == []
    assert len(queue) == 1


def test_a_deleted_actor_is_not_written_to_again(courier, queue, fediverse, clock):
    put(queue, clock)
    fediverse.actor_status = 410
    courier.deliver_one()
    assert (len(queue), fediverse.posts) == (0, [])


def test_a_known_inbox_is_written_to_without_a_look_at_the_document(courier, queue, fediverse, clock):
    queue.put_all([Letter(ALICE, "alpha.example", BODY, f"{ALICE}/inbox")], clock.now)
    courier.deliver_one()
    assert (len(queue), fediverse.asked, [url for url, *_ in fediverse.posts]) == (0, [], [f"{ALICE}/inbox"])


@pytest.mark.parametrize("status", [404, 410, 503])
def test_an_inbox_that_has_moved_is_looked_up(courier, queue, fediverse, clock, status):
    """At once where the old one says so, and else when it is tried again."""
    queue.put_all([Letter(ALICE, "alpha.example", BODY, "https://alpha.example/old")], clock.now)
    answer = fediverse.post

    def post(url, *arguments, **options):
        fediverse.status = status if url.endswith("/old") else 202
        return answer(url, *arguments, **options)

    fediverse.post = post
    courier.deliver_one()
    clock.now += FIRST_PAUSE_SECONDS
    courier.deliver_one()
    assert [url for url, *_ in fediverse.posts] == ["https://alpha.example/old", f"{ALICE}/inbox"]
    assert (len(queue), fediverse.asked) == (0, [ALICE])


def test_the_pauses_grow_and_end_after_a_day(courier, queue, fediverse, clock):
    put(queue, clock)
    began = clock.now
    fediverse.error = Unreachable("Timeout", "slow")
    attempts = []
    while len(queue):
        assert courier.deliver_one()
        attempts.append(clock.now - began)
        assert len(attempts) < 50
        while len(queue) and queue.next_due(clock.now) is None:
            clock.now += 10
    pauses = [later - earlier for earlier, later in zip(attempts, attempts[1:], strict=False)]
    assert pauses[:4] == [FIRST_PAUSE_SECONDS, 4 * FIRST_PAUSE_SECONDS, 16 * FIRST_PAUSE_SECONDS, 64 * FIRST_PAUSE_SECONDS]
    assert max(pauses) == LONGEST_PAUSE_SECONDS
    assert len(fediverse.asked) == len(attempts) - 1, "the last look finds it too old, and asks nobody"
    assert attempts[-2] < GIVE_UP_SECONDS <= attempts[-1]


def test_what_is_too_old_is_dropped_without_a_request(courier, queue, fediverse, clock):
    put(queue, clock)
    clock.now += GIVE_UP_SECONDS
    courier.deliver_one()
    assert (len(queue), fediverse.asked, fediverse.posts) == (0, [], [])


def test_a_server_that_is_down_is_tried_once_a_pause_however_much_waits_for_it(courier, queue, fediverse, clock):
    fediverse.error = Unreachable("Timeout", "slow")
    for number in range(20):
        queue.put(f"https://{number}.evil.example/a", f"{number}.evil.example", BODY, clock.now)
    attempts = []
    for _ in range(3 * FIRST_PAUSE_SECONDS):
        while courier.deliver_one():
            attempts.append(clock.now)
        clock.now += 2
    assert [later - attempts[0] for later in attempts] == [0, FIRST_PAUSE_SECONDS, 5 * FIRST_PAUSE_SECONDS]
    fediverse.error = None
    put(queue, clock)
    assert courier.deliver_one()
    assert fediverse.posts[-1][0] == f"{ALICE}/inbox"


def test_one_server_holds_one_thread(queue, clock):
    """While one delivery to a host lasts, the next takes another host, or waits."""
    entered, release = threading.Event(), threading.Event()

    class Slow(Fediverse):
        def get(self, url: str, **options: object) -> Response:
            if url == ALICE:
                entered.set()
                release.wait(20)
            return super().get(url, **options)

    fediverse = Slow()
    carol = "https://beta.example/users/carol"
    fediverse.documents[carol] = {"id": carol, "inbox": f"{carol}/inbox"}
    courier = Courier(queue, fediverse, LOG_ACTOR, KEY, clock)
    put(queue, clock)
    put(queue, clock, BOB)
    queue.put(carol, "beta.example", BODY, clock.now)
    thread = threading.Thread(target=courier.deliver_one)
    thread.start()
    entered.wait(20)
    assert courier.deliver_one()
    assert [url for url, *_ in fediverse.posts] == [f"{carol}/inbox"]
    assert not courier.deliver_one()
    release.set()
    thread.join(20)
    assert courier.deliver_one()
    assert [url for url, *_ in fediverse.posts] == [f"{carol}/inbox", f"{ALICE}/inbox", f"{BOB}/inbox"]


def test_an_actor_erased_meanwhile_stays_erased(queue, fediverse, clock):
    """The delivery fails after the message was forgotten: it does not come back."""
    class Erasing(Fediverse):
        def get(self, url: str, **options: object) -> Response:
            queue.forget(url)
            raise Unreachable("Timeout", "slow")

    put(queue, clock)
    Courier(queue, Erasing(), LOG_ACTOR, KEY, clock).deliver_one()
    assert len(queue) == 0


def test_nobody_is_named_in_the_output(courier, queue, fediverse, clock, caplog):
    caplog.set_level(logging.DEBUG)
    for status in (403, 500):
        put(queue, clock)
        fediverse.status = status
        courier.deliver_one()
    clock.now += GIVE_UP_SECONDS
    courier.deliver_one()
    assert len(caplog.records) == 2
    assert "alice" not in caplog.text
    assert "alpha.example" not in caplog.text


def test_a_queue_that_cannot_be_read_ends_no_courier(courier, queue, clock, monkeypatch, caplog):
    """It waits for a moment, and goes on."""
    turns = []

    class Stop:
        def is_set(self) -> bool:
            return len(turns) >= 3

        def wait(self, timeout: float | None = None) -> bool:
            turns.append(timeout)
            return False

    def broken(*_: object):
        raise StoreError("Locked", "somebody else has it")

    monkeypatch.setattr(queue, "next_due", broken)
    courier.work(Stop())
    assert turns == [replies.POLL_SECONDS] * 3
    assert "Locked" in caplog.text


def test_a_directory_without_a_log(tmp_path, capsys):
    assert replies.main(["--dir", str(tmp_path)]) == 8
    assert "NoSuchLog" in capsys.readouterr().err


# -- many at a time


def put_many(queue, clock, fediverse, count):
    """One for each of *count* hosts, of the first of which two more."""
    actors = [f"https://host{number}.example/users/x" for number in range(count)]
    fediverse.documents |= {actor: {"id": actor, "inbox": f"{actor}/inbox"} for actor in actors}
    for actor in [*actors, actors[0], actors[0]]:
        assert queue.put(actor, actor.split("/")[2], BODY, clock.now)
    return actors


def test_messages_to_many_hosts_are_read_and_removed_together(courier, queue, fediverse, clock, monkeypatch):
    actors = put_many(queue, clock, fediverse, 5)
    removed = []
    monkeypatch.setattr(queue, "remove_all", lambda done, real=queue.remove_all: (removed.append(len(done)), real(done)))
    assert [courier.deliver_one() for _ in range(8)] == [True] * 7 + [False]
    assert sorted(url for url, *_ in fediverse.posts) == sorted(f"{actor}/inbox" for actor in [*actors, actors[0], actors[0]])
    assert [url for url, *_ in fediverse.posts[:5]] == [f"{actor}/inbox" for actor in actors], "one at each host first"
    assert (removed, len(queue)) == ([5, 1, 1], 0)


def test_what_was_taken_a_while_ago_is_read_again_and_the_erased_are_told_nothing(queue, fediverse, clock):
    moment = [0.0]
    courier = Courier(queue, fediverse, LOG_ACTOR, KEY, clock, clock=lambda: moment[0])
    actors = put_many(queue, clock, fediverse, 3)
    assert courier.deliver_one()
    queue.forget(actors[1])
    moment[0] = replies.TAKEN_SECONDS + 0.1
    while courier.deliver_one():
        pass
    assert sorted({url for url, *_ in fediverse.posts}) == [f"{actors[0]}/inbox", f"{actors[2]}/inbox"]
    assert len(fediverse.posts) == 4, "nothing twice"


def test_what_could_not_be_removed_is_removed_later_and_not_delivered_again(courier, queue, fediverse, clock, monkeypatch):
    put(queue, clock)
    real = queue.remove_all

    def locked(done):
        monkeypatch.setattr(queue, "remove_all", real)
        raise StoreError("Locked", "somebody else writes")

    monkeypatch.setattr(queue, "remove_all", locked)
    with pytest.raises(StoreError):
        courier.deliver_one()
    assert not courier.deliver_one()
    assert (len(fediverse.posts), len(queue)) == (1, 0)
