"""Too much at once: refused before it costs anything, with when to come again; lookups go on."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from werkzeug.wrappers import Request as WerkzeugRequest

from ktlog.errors import MessageRejected, StoreError
from ktlog.operator.link import Submission
from ktlog.operator.request import Source
from ktlog.pkd import attributes
from ktlog.pkd.entry import leaf_key_hash
from ktlog.pkd.messages import Fireproof
from ktlog.web import inbox
from ktlog.web.context import Context
from ktlog.web.errors import TABLE
from ktlog.web.refusals import REPORT_SECONDS, RefusalReport
from ktlog.wire.fetch import Fetcher
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, quick_argon2  # noqa: F401
from tests.submission_site import Internet, Site, make_settings


@pytest.fixture
def site(tmp_path, monkeypatch):
    internet = Internet()
    monkeypatch.setattr(Fetcher, "from_environment", classmethod(lambda cls, *_, **__: internet))
    monkeypatch.setattr(Context, "now", lambda self: NOW)
    made = Site(make_settings(tmp_path / "log", threads=8), internet)
    yield made
    made.close()


def message(site: Site):
    wire = site.inbox.wire(Fireproof(ALICE, NOW), root=site.desk.root)
    return site.inbox.request(site.inbox.plain(wire))


def crowd(site: Site, *addresses: str) -> ExitStack:
    inside = ExitStack()
    for address in addresses:
        inside.enter_context(site.context.gate.enter(Source(address)))
    return inside


def refusal(answer) -> tuple[int, str, str]:
    return answer.status_code, answer.json["code"], answer.headers["Retry-After"]


@pytest.fixture
def messages(site):
    return [message(site) for _ in range(3)]


@pytest.fixture
def costs_nothing(messages, site, monkeypatch):
    """Fails the test when a refused message gets anywhere."""
    for target, name in ((site.context.admission, "admit"), (attributes, "argon2id")):
        monkeypatch.setattr(target, name, lambda *_, name=name: pytest.fail(f"{name} was asked"))


def test_when_enough_are_under_way_the_next_gets_503(site, messages, costs_nothing):
    with crowd(site, *(f"198.51.100.{number}" for number in range(6))):
        assert refusal(site.post(messages[0])) == (503, "overloaded", "1")
        assert site.app.test_client().get("/api/info", headers={"Host": "keys.example.com"}).status_code == 200
    assert site.context.gate._under_way == 0


def test_an_address_with_its_share_under_way_gets_429(site, messages, costs_nothing):
    with crowd(site, *["192.0.2.1"] * 4):
        assert refusal(site.post(messages[0])) == (429, "too_many_at_once", "1")
    # It is nobody's fault, and makes nobody wait.
    assert site.context.guard.penalize(Source("192.0.2.1"), 1).retry_after_ms == 100


def test_it_is_taken_when_there_is_room_and_leaves_nothing_behind(site):
    with crowd(site, "192.0.2.1", "192.0.2.1"):
        answer = site.post(message(site))
        assert answer.json["code"] == "not_encrypted"  # it got as far as being read
        assert site.context.gate._under_way == 2
    assert not site.context.gate._of


def test_the_same_refusal_is_signed_once(site, messages, costs_nothing):
    """Else each would cost as much as a message."""
    first = None
    with crowd(site, *(f"198.51.100.{number}" for number in range(6))):
        for one in messages:
            signature = site.post(one).headers["Signature"]
            first = first or signature
            assert signature == first


def test_a_full_sequencer_shuts_the_door_for_a_moment(site, monkeypatch):
    class Full:
        def append(self, _submission):
            raise MessageRejected("overloaded", "the queue is full")

    clock = [50.0]
    monkeypatch.setattr(site.context.gate, "_clock", lambda: clock[0])
    site.context.link = Full()
    with pytest.raises(MessageRejected):
        site.context.append(Submission(b"", {}, {}))
    assert refusal(site.post(message(site))) == (503, "overloaded", "1")
    clock[0] += 1.0
    assert site.post(message(site)).json["code"] == "not_encrypted"


def test_every_message_carries_the_leaf_key_that_this_front_end_knows(site, monkeypatch):
    """So that the sequencer can refuse one whose receipts nobody could check."""
    sent = []

    class Changed:
        def append(self, submission):
            sent.append(submission)
            raise MessageRejected("keys_differ", "it signs with another")

    site.context.link = Changed()
    with pytest.raises(MessageRejected):
        site.context.append(Submission(b"", {}, {}))
    assert sent[0].leaf_key == leaf_key_hash(site.context.public_keys.leaf_keys[-1])
    assert TABLE["keys_differ"][1] == 503


def test_a_message_says_whether_another_is_about_to_follow(site):
    sent = []

    class Taking:
        def append(self, submission):
            sent.append(submission.more)

    site.context.link = Taking()
    site.context.append(Submission(b"", {}, {}))
    with site.context.gate.hashing(1):
        site.context.append(Submission(b"", {}, {}))
    assert sent == [False, True]


# --- what workers tell the sequencer


def test_refusals_are_reported_at_most_once_a_second_and_none_is_lost():
    now, told, whose, seen, broken = [100.0], [], [], [], [False]

    def report(counts, rows, fetched):
        whose.append(list(rows))
        seen.append(fetched)
        if broken[0]:
            raise StoreError("SequencerUnreachable", "it is being restarted")
        told.append(dict(counts))

    refusals = RefusalReport(report, lambda: now[0])
    for code in ("bad_signature", "bad_signature", "too_large"):
        refusals.count(code, "a.example", True)
    assert told == [{"bad_signature": 1}]
    now[0] += REPORT_SECONDS
    broken[0] = True
    refusals.count("too_large")
    broken[0] = False
    now[0] += REPORT_SECONDS
    refusals.count("bad_signature")
    assert told[1:] == [{"bad_signature": 2, "too_large": 2}]
    assert sorted(whose[-1]) == [
        ("bad_signature", "", False, 1), ("bad_signature", "a.example", True, 1), ("too_large", "", False, 1),
        ("too_large", "a.example", True, 1),
    ]
    assert seen == [None] * 3
    # Fetches go the same way, with a refusal or without one.
    refusals.fetched(0.5, False)
    broken[0] = True
    now[0] += REPORT_SECONDS
    refusals.fetched(0.25, True)
    broken[0] = False
    now[0] += REPORT_SECONDS
    refusals.fetched(1.0, True)
    assert (sum(seen[-1].counts), seen[-1].microseconds, seen[-1].blocked, told[-1]) == (3, 1_750_000, 2, {})


def test_what_is_refused_is_counted_under_its_code(site, monkeypatch):
    codes: list[str] = []
    monkeypatch.setattr(site.context.refusals, "count", lambda code, *_: codes.append(code))
    with crowd(site, *(f"198.51.100.{number}" for number in range(6))):
        site.post(message(site))
    site.post(message(site))
    assert codes == ["overloaded", "not_encrypted"]


def test_reading_an_inbox_body_takes_a_place_so_that_slow_senders_cannot_take_every_thread(site, monkeypatch):
    seen = []
    get_data, read = WerkzeugRequest.get_data, inbox._read

    def noting(way):
        def slow(*arguments, **options):
            seen.append(site.context.gate._under_way)
            return way(*arguments, **options)
        return slow

    monkeypatch.setattr(WerkzeugRequest, "get_data", noting(get_data))  # the view's
    monkeypatch.setattr(inbox, "_read", noting(read))
    site.post(message(site))
    assert seen and all(count == 1 for count in seen)
    with crowd(site, *["192.0.2.1"] * 4):
        seen.clear()
        assert refusal(site.post(message(site))) == (429, "too_many_at_once", "1")
        assert not seen
