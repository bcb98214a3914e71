"""How fast an actor's history may grow: ``too_many_messages``, and for whom it is not meant."""

from __future__ import annotations

import pytest

from ktlog.client import build_envelope
from ktlog.config import Settings
from ktlog.errors import RateLimited
from ktlog.operator import admission as admission_module
from ktlog.operator.admission import check_pace
from ktlog.operator.create import create_log
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeKey,
    UndoFireproof,
)
from ktlog.web.app import create_app
from ktlog.web.guarding import guarded, penalty_weight
from tests.admission_world import Inbox, token_text
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2  # noqa: F401


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


def toggles(inbox, count):
    """Alice, enrolled, with *count* entries, all accepted now."""
    inbox.enrol()
    for number in range(count - 1):
        inbox.desk.send((UndoFireproof if number % 2 else Fireproof)(ALICE, NOW + number))
    assert set(inbox.desk.store.accepted_times(ALICE, count)) == {NOW}


def test_a_history_may_not_grow_without_end(inbox, monkeypatch):
    monkeypatch.setattr("ktlog.operator.admission.MESSAGES_LIMIT", 6)
    toggles(inbox, 5)
    inbox.admit(Fireproof(ALICE, NOW + 9))
    inbox.desk.send(AddKey(ALICE, public("b"), NOW))
    inbox.enrol(BOB, "z")
    asked_at = inbox.clock()
    with pytest.raises(RateLimited) as caught:
        inbox.admit(Fireproof(ALICE, NOW + 10))
    assert (caught.value.code, caught.value.limit) == ("too_many_messages", 6)
    assert caught.value.retry_after_ms == (NOW + 86_400 - asked_at) * 1000
    assert caught.value.reset == NOW + 86_400
    assert penalty_weight(caught.value) == 0
    for message in (AddKey(ALICE, public("c"), NOW + 11), AddAuxData(ALICE, "test", "x", None, NOW + 11)):
        assert inbox.message_code(message) == "too_many_messages"
    # Neither by moving away with it, nor to it.
    assert inbox.message_code(MoveIdentity(ALICE, CAROL, NOW + 12), sender=CAROL) == "too_many_messages"
    # Whoever must get rid of a key can; and others are not held up.
    inbox.admit(RevokeKey(ALICE, public("b"), NOW + 12))
    inbox.burn(BurnDown(ALICE, BOB, NOW + 13), "z", BOB)
    inbox.revoke(token_text("b"))
    inbox.admit(AddKey(BOB, public("y"), NOW + 14), "z", BOB)


def test_what_was_accepted_already_is_not_too_much(inbox, monkeypatch):
    monkeypatch.setattr("ktlog.operator.admission.MESSAGES_LIMIT", 2)
    inbox.enrol()
    wire = inbox.wire(Fireproof(ALICE, NOW))
    request = inbox.request(build_envelope(ALICE, inbox.sealed(wire)))
    receipt = inbox.sequence(inbox.admission.admit(request))
    again = inbox.request(build_envelope(ALICE, inbox.sealed(wire)))
    assert inbox.sequence(inbox.admission.admit(again)).leaf_index == receipt.leaf_index


@pytest.mark.parametrize(("now", "refused"), [
    (NOW, True), (NOW + 86_399, True), (NOW + 86_400, False), (NOW + 10**6, False), (NOW - 1, False),
])
def test_the_period_of_the_pace(inbox, monkeypatch, now, refused):
    """A clock that was set back locks nobody out."""
    monkeypatch.setattr("ktlog.operator.admission.MESSAGES_LIMIT", 3)
    toggles(inbox, 3)
    if not refused:
        check_pace(inbox.desk.store, ALICE, now)
        return
    with pytest.raises(RateLimited):
        check_pace(inbox.desk.store, ALICE, now)


def test_a_hundred_messages_a_day():
    assert (admission_module.MESSAGES_LIMIT, admission_module.MESSAGES_SECONDS) == (100, 24 * 60 * 60)


def test_who_is_too_fast_is_told_when_to_come_back_and_not_held_up(tmp_path):
    """429 with the wait in whole seconds; the guard counts nothing, so the address's other messages pass."""
    create_log(tmp_path / "log", ORIGIN, "spec", bytes(32))
    app = create_app(Settings(tmp_path / "log", ORIGIN, "spec", rate_limit_base_ms=60_000))
    error = RateLimited("too much", retry_after_ms=4_200, limit=100, reset=NOW + 5, code="too_many_messages")

    def refuse():
        raise error

    app.add_url_rule("/refuse", "refuse", guarded(refuse), methods=["POST"])
    for _ in range(3):
        answer = app.test_client().post("/refuse", headers={"Host": ORIGIN})
        assert (answer.status_code, answer.json["error"], answer.json["code"]) == (429, "rate_limited", "too_many_messages")
        assert (answer.headers["Retry-After"], answer.headers["X-RateLimit-Limit"]) == ("5", "100")
    app.extensions["ktlog"].guard.close()
