"""What a bundle holds is bounded: a history comes in pages, and revocations are never crowded out of what is pending."""

from __future__ import annotations

import pytest

from ktlog.errors import MessageRejected
from ktlog.keymap.bundle import MAX_PENDING, MAX_PENDING_BYTES, encode_bundle, encode_pending, parse_bundle
from ktlog.keymap.pages import join, next_start
from ktlog.operator import mapreader
from ktlog.pkd.actions import AddAuxData, AddKey, Fireproof, MoveIdentity, RevokeKey, UndoFireproof
from tests.map_world import MapPress
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2  # noqa: F401

pytestmark = pytest.mark.usefixtures("quick_argon2")


@pytest.fixture
def press(tmp_path):
    made = MapPress(tmp_path / "log")
    yield made
    made.close()


def pages(press: MapPress, actor_id: str, **wanted: bool) -> list:
    """Every page, each from its bytes."""
    found = [parse_bundle(encode_bundle(press.bundle(actor_id, **wanted)))]
    while (start := next_start(found[-1])) is not None:
        found.append(parse_bundle(encode_bundle(press.bundle(actor_id, start=start, **wanted))))
    return found


@pytest.fixture
def moved(press) -> MapPress:
    """Carol took over five messages of Alice's, and wrote two of her own."""
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(ALICE, public("c"), NOW))
    press.desk.send(Fireproof(ALICE, NOW))
    press.desk.send(UndoFireproof(ALICE, NOW))
    press.desk.send(AddKey(ALICE, public("b"), NOW))
    press.desk.send(MoveIdentity(ALICE, CAROL, NOW))
    press.desk.send(AddKey(CAROL, public("d"), NOW))
    press.desk.send(Fireproof(CAROL, NOW))
    press.cycle()
    press.desk.send(RevokeKey(CAROL, public("a"), NOW), "c")
    return press


def test_pages_make_up_the_whole(moved, monkeypatch):
    whole = moved.bundle(CAROL, full=True)
    assert (whole.page, len(whole.history), [len(items) for items in whole.old_histories]) == (None, 3, [5])
    for most in (1, 2, 3, 5, 7):
        monkeypatch.setattr(mapreader, "PAGE_ITEMS", most)
        found = pages(moved, CAROL, full=True)
        assert len(found) == -(-8 // most) and join(found) == whole
        assert [page.pending for page in found] == [whole.pending] + [()] * (len(found) - 1)


def test_a_page_is_bounded_in_bytes(moved, monkeypatch):
    monkeypatch.setattr(mapreader, "PAGE_BYTES", 5000)
    found = pages(moved, CAROL, full=True)
    assert 2 <= len(found) <= 8 and join(found) == moved.bundle(CAROL, full=True) or len(found) > 1
    item = max(len(one.entry) + len(one.preimage) for page in found for one in page.history or ())
    assert all(len(encode_bundle(page)) < 5000 + 2 * item + 8 * 1400 for page in found)


def test_places_alone_come_in_pages_too(moved, monkeypatch):
    full, leaves = moved.bundle(CAROL, full=True), moved.bundle(CAROL, leaves=True)
    assert [item.leaf for item in leaves.history] == [item.leaf for item in full.history]
    assert not any(item.entry or item.preimage or item.plain or item.path for item in leaves.history)
    monkeypatch.setattr(mapreader, "PAGE_LEAVES", 3)
    assert join(pages(moved, CAROL, leaves=True)) == leaves


def test_a_page_that_there_is_not(moved):
    for start in (8, 9, 1 << 70):
        with pytest.raises(MessageRejected, match="bad_request"):
            moved.bundle(CAROL, full=True, start=start)
    with pytest.raises(MessageRejected, match="bad_request"):
        moved.bundle(BOB, full=True, start=1)
    assert moved.bundle(BOB, full=True).history == ()


def test_a_history_that_no_bundle_holds(moved, monkeypatch):
    monkeypatch.setattr(mapreader, "MAX_HISTORY", 7)
    with pytest.raises(MessageRejected, match="too_large"):
        moved.bundle(CAROL, full=True)
    assert moved.bundle(CAROL).keys


def test_what_is_pending_is_in_the_light_answer(moved):
    (item,) = moved.bundle(CAROL).pending
    record = moved.store.records(8, 9)[0]
    assert (item.leaf_index, item.entry, item.preimage, item.plain) == (8, record.entry, record.preimage, record.plain)
    assert moved.bundle(ALICE).pending == moved.bundle(BOB).pending == ()
    moved.desk.send(AddKey(BOB, public("e"), NOW), "e")
    assert [one.leaf_index for one in moved.bundle(BOB).pending] == [9]
    moved.cycle()
    assert moved.bundle(CAROL).pending == moved.bundle(BOB).pending == ()


def test_a_revocation_is_not_crowded_out(press):
    """Whoever has one key of somebody writes all day; the owner's word against that key is shown all the same."""
    for letter in "abc":
        press.desk.send(AddKey(ALICE, public(letter), NOW))
    press.cycle()
    for _ in range(MAX_PENDING):
        press.desk.send(Fireproof(ALICE, NOW), "b")
        press.desk.send(UndoFireproof(ALICE, NOW), "b")
    press.desk.send(RevokeKey(ALICE, public("b"), NOW), "a")
    shown = press.bundle(ALICE).pending
    assert len(shown) == MAX_PENDING and shown[-1].leaf_index == press.desk.size - 1
    assert [one.leaf_index for one in shown] == [*range(3, MAX_PENDING + 2), press.desk.size - 1]
    parse_bundle(encode_bundle(press.bundle(ALICE)))


def test_what_is_pending_is_bounded_in_bytes(press):
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.cycle()
    for at in range(6):
        press.desk.send(AddAuxData(ALICE, "x-test", f"{at}" + "x" * 20000, None, NOW))
    press.desk.send(AddAuxData(ALICE, "x-test", "y" * MAX_PENDING_BYTES, None, NOW))
    press.desk.send(AddKey(ALICE, public("b"), NOW))
    press.desk.send(RevokeKey(ALICE, public("a"), NOW), "b")
    shown = press.bundle(ALICE).pending
    assert sum(len(encode_pending(one)) for one in shown) <= MAX_PENDING_BYTES
    assert shown[-1].leaf_index == 9 and 7 not in [one.leaf_index for one in shown]
