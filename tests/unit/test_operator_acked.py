"""How far the log has answered, kept outside of the database (ktlog/operator/acked.py)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ktlog.errors import StoreError
from ktlog.operator.acked import SLOT_BYTES, Acked, AckMark, format_slot, parse_slot
from ktlog.pkd.messages import AddKey
from tests.operator_world import Desk
from tests.pkd_samples import public, quick_argon2  # noqa: F401

ROOTS = [bytes([number]) * 32 for number in range(6)]


def name_of(call) -> str:
    with pytest.raises(StoreError) as caught:
        call()
    return caught.value.name


def test_a_slot_is_what_was_written_or_nothing():
    data = format_slot(Acked(7, ROOTS[1]))
    assert len(data) == SLOT_BYTES
    assert parse_slot(data) == Acked(7, ROOTS[1])
    for at in range(90):
        assert parse_slot(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]) is None
    assert parse_slot(b"") is None
    assert parse_slot(bytes(SLOT_BYTES)) is None


def test_the_newest_is_found_again(tmp_path: Path):
    path = tmp_path / "acked"
    for size in range(1, 6):
        mark = AckMark(path)
        assert mark.acked == (Acked(size - 1, ROOTS[size - 1]) if size > 1 else None)
        mark.advance(size, ROOTS[size])
        mark.close()
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.stat().st_size == 2 * SLOT_BYTES


@pytest.mark.parametrize("torn", [0, 1])
def test_a_torn_write_costs_the_newer_alone(tmp_path: Path, torn: int):
    path = tmp_path / "acked"
    mark = AckMark(path)
    for size in (1, 2, 3):
        mark.advance(size, ROOTS[size])
    mark.close()
    data = bytearray(path.read_bytes())
    data[torn * SLOT_BYTES + 20] ^= 1  # 3 and 1 were written to the first, 2 to the second
    path.write_bytes(data)
    again = AckMark(path)
    assert again.acked == (Acked(2, ROOTS[2]) if torn == 0 else Acked(3, ROOTS[3]))
    again.advance(4, ROOTS[4])
    again.close()
    assert AckMark(path).acked == Acked(4, ROOTS[4])


def test_without_a_whole_slot_it_does_not_guess(tmp_path: Path):
    path = tmp_path / "acked"
    path.write_bytes(bytes(2 * SLOT_BYTES))
    assert name_of(lambda: AckMark(path)) == "AckMarkDamaged"
    path.write_bytes(format_slot(Acked(1, ROOTS[1]))[:100])  # the very first write was torn: nobody was answered
    assert AckMark(path).acked is None


def test_a_store_that_has_less_or_other_entries_is_refused(tmp_path: Path):
    desk = Desk()
    mark = AckMark(tmp_path / "acked")
    mark.check(desk.store)
    for number in range(2):
        desk.send(AddKey(f"https://example.com/users/u{number}", public("a"), desk.clock()))
    state = desk.store.state()
    mark.advance(1, desk.store.root_after(1))
    mark.check(desk.store)
    mark.advance(2, state.root)
    mark.check(desk.store)
    assert name_of(lambda: mark.check(Desk().store)) == "EntriesLost"
    mark.advance(2, ROOTS[1])
    assert name_of(lambda: mark.check(desk.store)) == "EntriesLost"


def test_nobody_is_answered_before_it_is_synced(tmp_path: Path):
    desk = Desk()
    told: list[tuple[int, int]] = []
    desk.sequencer._before_answers = lambda size, _root: told.append((size, desk.store.state().size))
    desk.send(AddKey("https://example.com/users/u0", public("a"), desk.clock()))
    assert told == [(1, 1)]

    def fail(_size: int, _root: bytes) -> None:
        raise StoreError("InputOutput", "injected")

    desk.sequencer._before_answers = fail
    with pytest.raises(StoreError, match="InputOutput"):
        desk.send(AddKey("https://example.com/users/u1", public("a"), desk.clock()))


def test_a_write_that_fails_is_an_error_with_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mark = AckMark(tmp_path / "acked")

    def fdatasync(_handle: int) -> None:
        raise OSError(5, "injected")

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    assert name_of(lambda: mark.advance(1, ROOTS[1])) == "InputOutput"
    assert name_of(lambda: AckMark(tmp_path / "missing" / "acked")) == "MissingStore"
