"""What the sequencer does besides messages, over its socket: one-time passwords, cosignatures, erasures."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlog.config import write_settings
from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.operator import desk as desk_module
from ktlog.operator import service as service_module
from ktlog.operator import tasks as tasks_module
from ktlog.operator.create import create_log
from ktlog.operator.journal import read_journal
from ktlog.operator.link import (
    SequencerLink,
    ShredReport,
    Submission,
    TotpChange,
    decode_cosign,
    decode_ok,
    decode_shred,
    decode_shred_report,
    decode_submission,
    decode_totp_change,
    encode_cosign,
    encode_refusal,
    encode_shred,
    encode_shred_report,
    encode_submission,
    encode_totp_change,
)
from ktlog.operator.service import Service
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.messages import AddKey, BurnDown
from ktlog.store.contracts import Cosignature, TotpSecret, TotpUse
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.policy import format_policy
from tests.operator_world import NOW, ORIGIN, Clock, Desk, FakeWitness, witness_policy
from tests.operator_world import submission as made
from tests.pkd_samples import ALICE, BOB, public, quick_argon2  # noqa: F401

DOMAIN = "example.com"
SECRET, OTHER = bytes(range(32)), bytes(32)

# --- values over the link

text = st.text(st.characters(codec="utf-8"), max_size=9)
number = st.integers(0, 2**63 - 1)


@given(st.builds(TotpChange, text, st.none() | st.binary(min_size=32, max_size=32), number, st.none() | number))
def test_a_change_of_a_secret_there_and_back(change):
    assert decode_totp_change(parse_json(encode_totp_change(change))) == change


@given(st.builds(Cosignature, number, text, text, text, number))
def test_a_cosignature_there_and_back(cosignature):
    assert decode_cosign(parse_json(encode_cosign(cosignature))) == cosignature


REPORT = ShredReport(3, "aW5kZXg=", 100, 7, 4, (1, 2), (9,), True, False)


@given(st.builds(
    ShredReport, number, text, number, number, number, st.lists(number, max_size=3).map(tuple),
    st.lists(number, max_size=3).map(tuple), st.booleans(), st.booleans(), st.none() | number,
))
def test_a_report_there_and_back(report):
    assert decode_shred_report(parse_json(encode_shred_report(report))) == report


@given(text, st.booleans())
def test_an_erasure_there_and_back(actor_id, preview):
    assert decode_shred(parse_json(encode_shred(actor_id, preview))) == (actor_id, preview)


def test_a_submission_with_a_password_there_and_back():
    submission = Submission(b"x", {"operator": ALICE}, {}, TotpUse(DOMAIN, 7, 60_000_000))
    assert decode_submission(parse_json(encode_submission(submission))) == submission


@pytest.mark.parametrize(("decode", "request_"), [
    (decode_totp_change, {"domain": 5}), (decode_totp_change, {"secret": "AAAA"}), (decode_totp_change, {"secret": None}),
    (decode_totp_change, {"used-window": "+1"}), (decode_totp_change, {"expected-serial": "-1"}),
    (decode_cosign, {"tree-size": 1}), (decode_cosign, {"witness": None}), (decode_cosign, {"time": "1.0"}),
    (decode_shred, {"actor": None}), (decode_shred, {"preview": True}), (decode_shred, {"preview": "maybe"}),
    (decode_submission, {"totp": None}), (decode_submission, {"totp": {}}),
    (decode_submission, {"totp": {"domain": 1, "serial": "1", "window": "1"}}),
    (decode_submission, {"totp": {"domain": "d", "serial": "01", "window": "1"}}),
])
def test_requests_that_are_none(decode, request_):
    whole = {
        decode_totp_change: encode_totp_change(TotpChange(DOMAIN, SECRET, 1, 2)),
        decode_cosign: encode_cosign(Cosignature(1, "r", "w", "c", 5)), decode_shred: encode_shred(ALICE, False),
        decode_submission: encode_submission(Submission(b"x", {}, {})),
    }[decode]
    for broken in (parse_json(whole) | request_, {}):
        with pytest.raises(EncodingError):
            decode(broken)


@pytest.mark.parametrize("change", [{"number": "x"}, {"carried": None}, {"tokens": ["1", 2]}, {"done": True}])
def test_answers_that_are_no_report(change):
    answer = parse_json(encode_shred_report(REPORT))
    answer["ok"] |= change
    with pytest.raises(EncodingError):
        decode_shred_report(answer)
    for other in ({}, [], None, {"ok": 5}, {"error": {"code": 1, "message": ""}}):
        with pytest.raises(EncodingError):
            decode_ok(other)
    with pytest.raises(MessageRejected, match="notice_period"):
        decode_ok(parse_json(encode_refusal("notice_period", "not yet")))


# --- one-time passwords at the sequencer


def burn(desk: Desk, use: TotpUse | None, time: int = NOW) -> Submission:
    return replace(desk.make(BurnDown(BOB, ALICE, time), "a"), totp=use)


@pytest.fixture
def desk(quick_argon2) -> Desk:  # noqa: F811
    """Alice and bob of one domain, which has enrolled a secret."""
    desk = Desk()
    desk.send(AddKey(ALICE, public("a"), NOW), "a")
    desk.send(AddKey(BOB, public("b"), NOW), "b")
    desk.store.set_totp(DOMAIN, SECRET, 100, None)
    return desk


def outcome(desk: Desk, *submissions: Submission) -> list[str | int]:
    return [r.code if isinstance(r, MessageRejected) else r.leaf_index for r in desk.batch(*submissions)]


@pytest.mark.parametrize(("use", "code"), [
    (None, "otp_required"), (TotpUse("other.example", 1, 101), "otp_required"), (TotpUse(DOMAIN, 1, 100), "otp_reused"),
    (TotpUse(DOMAIN, 1, 99), "otp_reused"), (TotpUse(DOMAIN, 2, 101), "otp_reused"),
])
def test_a_burndown_needs_a_password_that_is_new(desk, use, code):
    before = desk.store.totp(DOMAIN)
    assert outcome(desk, burn(desk, use)) == [code]
    assert (desk.size, desk.store.totp(DOMAIN)) == (2, before)


def test_a_password_is_used_up_by_the_burndown_it_came_with(desk):
    assert outcome(desk, burn(desk, TotpUse(DOMAIN, 1, 101))) == [2]
    assert desk.store.totp(DOMAIN) == TotpSecret(DOMAIN, 2, SECRET, 101)
    desk.send(AddKey(BOB, public("c"), NOW + 1), "c")
    again = burn(desk, TotpUse(DOMAIN, 2, 101), NOW + 2)
    assert outcome(desk, again) == ["otp_reused"]
    assert outcome(desk, replace(again, totp=TotpUse(DOMAIN, 2, 102))) == [4]


def test_one_password_serves_one_burndown_of_a_batch(desk):
    carol = "https://example.com/users/carol"
    desk.send(AddKey(carol, public("c"), NOW), "c")
    use = TotpUse(DOMAIN, 1, 101)
    other = replace(desk.make(BurnDown(carol, ALICE, NOW), "a"), totp=replace(use, window=102))
    assert outcome(desk, burn(desk, use), other) == [3, "otp_reused"]


def test_a_refused_burndown_uses_nothing_up(desk):
    use = TotpUse(DOMAIN, 1, 101)
    stranger = replace(desk.make(BurnDown("https://example.com/users/nobody", ALICE, NOW), "a"), totp=use)
    assert outcome(desk, stranger, burn(desk, use)) == ["actor_not_enrolled", 2]


def test_the_same_burndown_again_is_the_same_receipt_and_costs_nothing(desk):
    message = burn(desk, TotpUse(DOMAIN, 1, 101))
    first = desk.batch(message)[0]
    assert desk.batch(message) == [replace(first, duplicate=True)]
    assert desk.store.totp(DOMAIN).last_window == 101


def test_without_a_secret_no_password_is_asked_for_nor_counted(desk):
    desk.store.set_totp(DOMAIN, None, 100, 1)
    assert outcome(desk, burn(desk, TotpUse(DOMAIN, 1, 101))) == [2]


# --- the process


@pytest.fixture
def service():
    directory = Path(tempfile.mkdtemp(prefix="kt"))  # a socket's path must stay short
    settings = replace(create_log(directory / "log", ORIGIN, "spec", bytes(32)), notice_seconds=1)
    write_settings(settings)
    settings.publish_policy.write_bytes(format_policy(witness_policy([FakeWitness("w1.witness.example", 10, Clock())], 1)))
    yield Service(settings)
    shutil.rmtree(directory)


@pytest.fixture
def running(service):
    service._publisher.run = lambda stop: stop.wait()
    service._publisher.compared.set()
    thread = threading.Thread(target=service.run)
    thread.start()
    deadline = time.monotonic() + 20
    while not service._settings.socket_record.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield service
    service.stop()
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def link(running) -> SequencerLink:
    return SequencerLink(running._settings.socket_record)


@pytest.fixture
def reader(running):
    with SqliteStore.open(running._settings.database, read_only=True) as store:
        yield store


def test_secrets_over_the_socket(link, reader):
    link.totp_set(DOMAIN, SECRET, 100, None)
    assert reader.totp(DOMAIN) == TotpSecret(DOMAIN, 1, SECRET, 100)
    with pytest.raises(MessageRejected, match="totp_moved"):
        link.totp_set(DOMAIN, OTHER, 101, None)
    link.totp_set(DOMAIN, OTHER, 101, 1)
    link.totp_set(DOMAIN, None, 102, 2)
    assert reader.totp(DOMAIN) is None


def test_cosignatures_over_the_socket(link, reader, quick_argon2):  # noqa: F811
    receipt = link.append(made(AddKey(ALICE, public("a"), int(time.time()))))
    cosignature = Cosignature(1, receipt.root, "w.example", "{}", NOW)
    assert link.cosign(cosignature)
    assert not link.cosign(cosignature)
    assert reader.cosignatures(1) == (cosignature,)
    for wrong in (replace(cosignature, tree_size=2), replace(cosignature, merkle_root="pkd-mr-v1:x")):
        with pytest.raises(MessageRejected, match="unknown_root"):
            link.cosign(wrong)


def test_an_erasure_over_the_socket(running, link, reader, quick_argon2, monkeypatch):  # noqa: F811
    clock = Clock(NOW)
    monkeypatch.setattr(Service, "_now", staticmethod(clock))
    object.__setattr__(running._tasks.shredder, "now", clock)
    running._mapping.covers = lambda size, erasures: True  # the map's cycle has tests of its own
    with pytest.raises(MessageRejected, match="nothing_to_erase"):
        link.shred(ALICE)
    receipt = link.append(made(AddKey(ALICE, public("a"), int(time.time()))))
    assert link.shred(ALICE, preview=True).due is None
    running._publisher.published_size = 1
    deadline = time.monotonic() + 20
    while reader.public_since(0) is None and time.monotonic() < deadline:
        time.sleep(0.01)
    with pytest.raises(MessageRejected, match="notice_period"):
        link.shred(ALICE)
    clock.now += 1
    assert not link.shred(ALICE, preview=True).done
    assert reader.erasure_count() == 0
    report = link.shred(ALICE)
    assert (report.done, report.scrubbed, report.withheld) == (True, True, 2)
    assert (reader.actor(ALICE).erasures, reader.entries(0, 1)) == (1, (receipt.entry,))
    assert len(read_journal(running._settings.journal)) == 1
    with pytest.raises(MessageRejected, match="nothing_to_erase"):
        link.shred(ALICE)
    # The log goes on, and takes the actor again.
    again = link.append(made(AddKey(ALICE, public("b"), int(time.time())), "b", receipt.root))
    assert (again.leaf_index, reader.actor(ALICE).version, reader.actor(ALICE).erasures) == (1, 3, 1)


def test_an_erasure_waits_for_the_checkpoint_before_it(running, link, reader, quick_argon2, monkeypatch):  # noqa: F811
    """Or an auditor would see text withheld by an erasure that nobody published yet."""
    monkeypatch.setattr(tasks_module, "PUBLISH_SECONDS", 0.1)
    link.append(made(AddKey(ALICE, public("a"), int(time.time()))))
    with pytest.raises(MessageRejected, match="overloaded"):
        link.shred(ALICE)
    assert reader.erasure_count() == 0


def test_a_scrub_that_was_left_is_taken_up_again(running, reader, monkeypatch):
    calls = []
    monkeypatch.setattr(running._store, "scrub_due", lambda: not calls)
    monkeypatch.setattr(running._store, "scrub", lambda: calls.append(1) is None)
    running._scrub_next = 0.0
    deadline = time.monotonic() + 20
    while not calls and time.monotonic() < deadline:
        time.sleep(0.01)
    assert calls


def test_a_task_that_the_store_cannot_answer_ends_the_process(service, monkeypatch):
    class Ended(BaseException):
        pass

    def end(code: int) -> None:
        raise Ended(code)

    def fail() -> bytes:
        raise StoreError("InputOutput", "the disk is gone")

    monkeypatch.setattr(service_module.os, "_exit", end)
    waiting = desk_module.Ticket(fail)
    service.desk.queue.put_nowait(waiting)
    with pytest.raises(Ended) as caught:
        service._sequence()
    assert caught.value.args == (70,)
    assert (waiting.result, waiting.done.is_set()) == (None, False)
    service._store.close()
