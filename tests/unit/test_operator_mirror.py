"""Mirroring a log: what is mirrored is what the log has, before and after erasures, and of a lie nothing is kept."""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import replace

import pytest

from ktlog.errors import Invalid, KtlogError, MessageRejected, Unreachable
from ktlog.operator import mirror as mirror_module
from ktlog.operator.mirror import REREAD_SECONDS, Mirror
from ktlog.operator.sources import PLAINTEXT_SECONDS, load_status
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, Fireproof, MoveIdentity, RevokeKey
from ktlog.tlog.encoding import encode_base64
from tests.mirror_world import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    ERIN,
    FRED,
    SourceLog,
    check_same,
    edit_record,
    make_mirror,
    mirrored,
    refused,
    shown,
)
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import public, quick_argon2  # noqa: F401

SIZE = 17


@pytest.fixture
def log(tmp_path):
    made = SourceLog(tmp_path / "log").fill().publish()
    yield made
    made.close()


@pytest.fixture
def mirror(tmp_path, log):
    made = make_mirror(tmp_path / "mirror", log)
    yield made
    made.close()


# --- what is mirrored


def test_a_log_with_every_kind_of_message_is_mirrored_row_by_row(mirror, log):
    mirror.poll()
    check_same(mirror, log)
    status = mirror.status
    assert (status.last_success, status.last_reread, status.taken) == (NOW, NOW, {})
    with mirrored(mirror.source) as store:
        texts = sum(text is not None for record in store.records(0, SIZE) for text in record.plain.values())
        assert store.records(0, 1)[0].accepted == NOW
    assert status.total == texts and 0 < status.checked < texts, "16 of 17 entries are drawn"


def test_a_mirror_follows_the_log(mirror, log):
    mirror.poll()
    asked = len(log.asked)
    mirror.poll()
    assert log.asked[asked:] == ["checkpoint", "erasures", "leaf-keys", "map/checkpoint"], "nothing new, nothing read"
    log.desk.send(AddKey(ALICE, public("a3"), NOW + 50), "a2")
    log.publish()
    mirror.poll()
    check_same(mirror, log)
    # A process that starts anew goes on from what is stored.
    mirror.close()
    again = Mirror(mirror.source, log, log.clock)
    log.desk.send(AddKey(DAVE, public("d"), NOW + 51), "d")
    log.publish()
    again.poll()
    check_same(again, log)
    again.close()


@pytest.mark.parametrize("gone", [(BOB,), (FRED,), (ERIN,), (BOB, FRED, ERIN, ALICE), (CAROL, BOB)])
def test_erasures_are_followed_and_whoever_comes_later_has_the_same(tmp_path, mirror, log, gone):
    mirror.poll()
    for actor_id in gone:
        log.erase(actor_id)
    mirror.poll()
    check_same(mirror, log)
    late = make_mirror(tmp_path / "late", log)
    late.poll()
    check_same(late, log)
    assert late.status.taken == mirror.status.taken
    late.close()


def test_what_rests_on_erased_text_is_said_to_be_taken(mirror, log):
    log.erase(BOB)
    log.erase(FRED)
    log.erase(ERIN)
    mirror.poll()
    assert sorted(map(int, mirror.status.taken)) == [5, 8, 10]
    with mirrored(mirror.source) as store:
        assert [key.leaf_index for key in store.actor(CAROL).keys] == [2], "what Bob moved is still Carol's"


def test_erasures_in_the_middle_and_enrolments_after_them(tmp_path, mirror, log):
    early = make_mirror(tmp_path / "early", log)
    early.poll()
    log.erase(BOB)
    log.desk.send(AddKey(BOB, public("b2"), NOW + 50), "b2")
    log.publish()
    log.erase(ALICE)
    log.desk.send(AddKey(ALICE, public("a4"), NOW + 51), "a4")
    log.desk.send(MoveIdentity(CAROL, DAVE, NOW + 52), "b")
    log.publish()
    log.erase(CAROL)
    for one in (early, mirror):
        one.poll()
        check_same(one, log)
    log.erase(BOB)
    log.desk.send(AddKey(BOB, public("b3"), NOW + 53), "b3")
    log.publish()
    early.poll()
    check_same(early, log)
    assert log.store.erased(BOB).erasures == 2
    early.close()


def test_nothing_readable_of_an_erased_actor_is_left_in_any_file(mirror, log):
    def places(needle: bytes) -> set[str]:
        files = mirror.source.directory.rglob("*")
        return {file.name for file in files if file.is_file() and needle in file.read_bytes()}

    mirror.poll()
    needles = [ALICE.encode(), public("a2"), encode_public_key(public("a2")).encode()]
    assert all(places(needle) for needle in needles)
    log.erase(ALICE)
    mirror.poll()
    assert [places(needle) for needle in needles] == [set()] * 3
    assert places(CAROL.encode())


def test_pages_of_a_long_log_are_stored_one_by_one(mirror, log, monkeypatch):
    """A failure in the middle keeps what was verified before it; the next poll goes on there."""
    monkeypatch.setattr(mirror_module, "SAMPLE", 0)
    for number in range(300 - SIZE):
        log.desk.send(Fireproof(ALICE, NOW + 60 + number) if number == 0 else AddKey(
            f"https://example.net/users/{number}", public("g"), NOW + 60 + number
        ), "a2" if number == 0 else "g")
    log.publish()
    log.lies["tile/entries/001.p/44"] = lambda body: Unreachable("Timeout", "no answer")
    with pytest.raises(Unreachable):
        mirror.poll()
    with mirrored(mirror.source) as store:
        assert store.state().size == 256
    assert shown(mirror) is None, "what was not verified to the end is not shown"
    log.lies.clear()
    asked = len(log.asked)
    mirror.poll()
    assert "tile/entries/000" not in log.asked[asked:]
    check_same(mirror, log)


def test_an_empty_log_is_mirrored_when_it_begins(tmp_path):
    log = SourceLog(tmp_path / "log").publish()
    mirror = make_mirror(tmp_path / "mirror", log)
    mirror.poll()
    assert (mirror.status.tree_size, mirror.status.error) == (0, None)
    assert not mirror.source.database.exists()
    log.fill().publish()
    mirror.poll()
    check_same(mirror, log)
    mirror.close()
    log.close()


def test_an_erasure_between_two_requests_begins_the_poll_anew(mirror, log):
    mirror.poll()
    log.desk.send(AddKey(BOB, public("b2"), NOW + 50), "b2")
    log.publish()

    def erase(path: str) -> None:
        if path.startswith("records"):
            log.before = lambda path: None
            log.erase(BOB)

    log.before = erase
    mirror.poll()
    check_same(mirror, log)
    assert log.asked.count("checkpoint") == 3, "a poll, one in vain, and one more"


@pytest.mark.parametrize("seed", range(3))
def test_whatever_happens_and_whenever_it_is_looked_at(tmp_path, seed):
    """Random messages, most of them refused, and erasures; one mirror looks now and then, one at the end."""
    chance = random.Random(seed)
    log = SourceLog(tmp_path / "log").publish()
    early, late = make_mirror(tmp_path / "early", log), make_mirror(tmp_path / "late", log)
    people, keys = (ALICE, BOB, CAROL, DAVE), [f"k{number}" for number in range(12)]
    for time in range(NOW, NOW + 80):
        who, other, key = chance.choice(people), chance.choice(people), chance.choice(keys)
        actor = log.store.actor(who)
        held = [name for name in keys if actor and public(name) in [key.public_key for key in actor.keys]]
        message = chance.choice([
            AddKey(who, public(key), time), AddKey(who, public(key), time),
            RevokeKey(who, public(held[0] if held else key), time), MoveIdentity(who, other, time),
            BurnDown(other, who, time), AddAuxData(who, "test", str(time), None, time),
        ])
        with suppress(MessageRejected):
            log.desk.send(message, held[-1] if held else key)
        if time % 30 == 29:
            log.revoke(held[0] if held else key)
        if chance.random() < 0.15:
            log.publish()
            if chance.random() < 0.5 and (actor := log.store.actor(other)) is not None and actor.status:
                log.erase(other)
            if chance.random() < 0.7:
                early.poll()
    log.publish()
    for mirror in (early, late):
        mirror.poll()
        check_same(mirror, log)
        mirror.close()
    assert log.store.erasure_count() > 1 and log.desk.size > 20 and late.status.taken
    log.close()


# --- rereading


def test_every_record_is_compared_twice_a_day(mirror, log):
    mirror.poll()
    log.clock.now += REREAD_SECONDS - 1
    log.publish()
    asked = len(log.asked)
    mirror.poll()
    assert not any(path.startswith("records") for path in log.asked[asked:])
    log.clock.now += 1
    mirror.poll()
    assert any(path.startswith("records") for path in log.asked[asked:])
    assert mirror.status.last_reread == log.clock.now
    check_same(mirror, log)


@pytest.mark.parametrize(("lie", "name"), [
    (edit_record(0, plain={"actor": CAROL}), "RecordChanged"),
    (edit_record(0, salts={"actor": encode_base64(bytes(32))}), "RecordChanged"),
    (edit_record(0, plain={"actor": None}, withheld=True), "RecordChanged"),  # its salt is still there
    (edit_record(1, plain={"actor": None, "public-key": None}, withheld=True), "RecordWithheld"),
    (edit_record(3, message="{}"), "RecordChanged"),
])
def test_a_record_that_changed_without_an_erasure(mirror, log, lie, name):
    mirror.poll()
    log.clock.now += REREAD_SECONDS
    log.publish()
    log.lies["records/000.p/17"] = lie
    error = refused(mirror)
    assert isinstance(error, Invalid) and error.name == name
    assert load_status(mirror.source).may_show_plaintext(log.clock.now) == (name != "RecordWithheld")
    log.lies.clear()
    mirror.poll()
    check_same(mirror, log)
    assert load_status(mirror.source).may_show_plaintext(log.clock.now)


def test_text_that_an_erasure_says_is_gone_and_is_still_there(mirror, log):
    mirror.poll()
    told = log.get(f"https://{ORIGIN}/records/000.p/17").body
    log.erase(ALICE)
    log.lies["records/000.p/17"] = lambda body: told
    assert refused(mirror).name == "NotErased"
    status = load_status(mirror.source)
    assert status.erasing and not status.may_show_plaintext(log.clock.now)


def test_nobody_is_shown_while_an_erasure_waits_to_be_followed(mirror, log):
    mirror.poll()
    log.erase(ALICE)
    log.lies["records/000.p/17"] = lambda body: Unreachable("Timeout", "no answer")
    assert refused(mirror).name == "Timeout"
    assert not load_status(mirror.source).may_show_plaintext(log.clock.now)
    log.lies.clear()
    mirror.poll()
    check_same(mirror, log)
    assert load_status(mirror.source).may_show_plaintext(log.clock.now)


def test_a_source_not_heard_of_for_seven_days_is_not_shown(mirror, log):
    mirror.poll()
    assert mirror.status.may_show_plaintext(NOW + PLAINTEXT_SECONDS)
    assert not mirror.status.may_show_plaintext(NOW + PLAINTEXT_SECONDS + 1)


def test_a_mirror_in_a_directory_of_another_log_is_refused(mirror, log):
    mirror.poll()
    mirror.close()
    elsewhere = replace(mirror.source, log=replace(mirror.source.log, origin="keys.other.example"))
    with pytest.raises(KtlogError):
        Mirror(elsewhere, log, log.clock).poll()
