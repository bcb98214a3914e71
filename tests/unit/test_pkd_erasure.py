"""Erasure records byte for byte, and what the plan of an erasure takes away."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.pkd.actors import Cause, Status
from ktlog.pkd.erasure import (
    CarriedMove,
    ErasureRecord,
    Mention,
    encode_erasure_record,
    erased_actor,
    map_index,
    parse_erasure_record,
    plan_erasure,
)
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, MoveIdentity, RevokeAuxData, RevokeKey, aux_data_id
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash
from tests.erasure_log import ORIGIN, ErasingLog, check_same
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    ALICE,
    BOB,
    CAROL,
    NOW,
    public,
    quick_argon2,
)

RECORD = ErasureRecord(
    10, bytes(range(32)), 5, 2, 7,
    (CarriedMove(4, True, (0, 3), 1, b"\x5a" * 32), CarriedMove(9, False, (8,), 3, b"\xa5" * 32)),
)
BYTES = bytes.fromhex(
    "01" "000000000000000a" + bytes(range(32)).hex() + "00000005" "00000002" "00000007" "0002"
    "0000000000000004" "01" "0000000000000001" + "5a" * 32 + "0002" "0000000000000000" "0000000000000003"
    "0000000000000009" "00" "0000000000000003" + "a5" * 32 + "0001" "0000000000000008"
)


def test_an_index_is_the_specifications() -> None:
    assert map_index(ORIGIN, ALICE) == map_index("keys.example.com", "https://example.com/users/alice")
    assert map_index(ORIGIN, ALICE).hex() == "d20f381805471235f4d0dd80d0b20a5db2848a0bfa73dd647a756a506d74128d"
    assert len({map_index(o, a) for o in (ORIGIN, "keys.example.net") for a in (ALICE, BOB)}) == 4


def test_a_record_byte_for_byte() -> None:
    assert encode_erasure_record(RECORD) == BYTES
    assert parse_erasure_record(BYTES) == RECORD


def move(*leaves: int, at: int = 4, size: int = 1, root: bytes = bytes(32)) -> CarriedMove:
    return CarriedMove(at, True, leaves, size, root)


def moves(*found: CarriedMove) -> dict:
    return {"carried": found}


@pytest.mark.parametrize("changes", [
    {"input_size": 0}, {"input_size": 2**63}, {"input_size": 9}, {"index": bytes(31)}, {"version": 2}, {"version": 2**32},
    {"generation": 0}, {"generation": 5}, {"newly_withheld": 0}, {"newly_withheld": 2**32},
    moves(*RECORD.carried[::-1]), moves(*RECORD.carried[:1] * 2),
    moves(move()), moves(move(3, 0)), moves(move(0, 0)), moves(move(4)), moves(move(4, at=10)),
    moves(move(*range(8190), at=8200)),
    moves(move(0, size=0)), moves(move(0, at=1, size=2)), moves(move(0, size=2**63)), moves(move(0, root=bytes(31))),
    moves(move(0, size=4)),  # four leaves, the move and the erasure are more than version 5
    moves(move(0), move(1, at=9)), moves(move(0, size=3), move(1, at=9, size=2)),  # the first move is a leaf, too
], ids=lambda changes: str(changes)[:60])
def test_what_is_no_record_is_not_written(changes: dict) -> None:
    if "carried" in changes and changes["carried"][0].move_leaf == 8200:
        changes = {**changes, "input_size": 9000}  # only its length is wrong
    with pytest.raises(EncodingError) as caught:
        encode_erasure_record(replace(RECORD, **changes))
    assert caught.value.name == "BadErasureRecord"


@pytest.mark.parametrize("data", [
    b"", BYTES[:-1], BYTES + b"\0", b"\2" + BYTES[1:], b"\0" + BYTES[1:], bytes(65536),
    BYTES.replace(bytes.fromhex("0401"), bytes.fromhex("0402")),  # Fireproof is 0 or 1
    BYTES[:64] + BYTES[104:],  # as it was before a move said its history
    BYTES.replace(bytes.fromhex("0000000000000003"), bytes.fromhex("0000000000000000")),  # a leaf twice
    BYTES.replace(bytes.fromhex("0000000000000008"), bytes.fromhex("0000000000000009")),  # later than the move
])
def test_what_is_no_record_is_not_read(data: bytes) -> None:
    with pytest.raises(EncodingError) as caught:
        parse_erasure_record(data)
    assert caught.value.name == "BadErasureRecord"


@given(st.integers(0, len(BYTES) - 1), st.integers(1, 255), st.integers(0, 3))
def test_whatever_parses_is_canonical(place: int, change: int, cut: int) -> None:
    data = bytearray(BYTES)
    data[place] ^= change
    data = bytes(data[: len(data) - cut])
    try:
        record = parse_erasure_record(data)
    except EncodingError as error:
        assert error.name == "BadErasureRecord"
    else:
        assert encode_erasure_record(record) == data


# What an erasure takes


def history(*leaves: tuple) -> bytes:
    """The root of a history, written out: role, leaf index, and for somebody who moved in size and root."""
    out = [struct.pack(">BQ", *leaf) if len(leaf) == 2 else struct.pack(">BQQ32s", *leaf) for leaf in leaves]
    return root_hash(len(out), leaf_reader(map(hash_leaf, out)))


def story() -> ErasingLog:
    """Alice with two keys, a datum added and another withdrawn; one key revoked. Bob is there too."""
    log = ErasingLog()
    log.send(AddKey(ALICE, public("a"), NOW), "a")
    log.send(AddKey(BOB, public("b"), NOW), "b")
    log.send(AddKey(ALICE, public("c"), NOW), "a")
    log.send(AddAuxData(ALICE, "x", "text", None, NOW), "a")
    log.send(AddAuxData(ALICE, "x", "gone", aux_data_id("x", "gone"), NOW), "a")
    log.send(RevokeAuxData(ALICE, "x", None, "gone", NOW), "a")
    log.send(RevokeKey(ALICE, public("c"), NOW), "a")
    return log


def test_names_keys_and_data_of_the_erased_go_and_nothing_else() -> None:
    log = story()
    log.send(BurnDown(BOB, ALICE, NOW), "a")
    actor = log.live.actors[ALICE]
    record = log.erase(ALICE)
    assert log.readable() == {BOB, encode_public_key(public("b"))}
    assert (record.version, record.generation, record.carried) == (actor.version + 1, actor.generation, ())
    assert record.newly_withheld == 13 and record.input_size == 8
    erased = log.live.actor(ALICE)
    assert erased == erased_actor(ALICE, actor.version + 1, 1, 1)
    assert erased.status == Status.ERASED and not erased.keys and not erased.revoked
    check_same(log.replayed(), log.live)


def test_what_moved_on_stays_until_its_new_holder_is_erased() -> None:
    log = story()
    log.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    record = log.erase(ALICE)
    # The revoked key and the withdrawn datum did not move.
    assert record.carried == (CarriedMove(7, False, (0, 3), 6, history((1, 0), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6))),)
    assert log.readable() == {BOB, CAROL, "text", *(encode_public_key(public(name)) for name in "ab")}
    second = log.erase(CAROL)
    assert log.readable() == {BOB, encode_public_key(public("b"))}
    assert second.newly_withheld == 3  # the new name, the key, the datum
    check_same(log.replayed(), log.live)


def test_a_key_of_somebody_who_is_not_erased_stays() -> None:
    """It went from Alice, who stays, to Carol, who does not: Alice's own messages name it."""
    log = story()
    log.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    log.erase(CAROL)
    assert encode_public_key(public("a")) in log.readable() and CAROL not in log.readable()
    check_same(log.replayed(), log.live)


def test_a_key_that_two_erased_actors_had_after_somebody_who_is_not() -> None:
    """From Alice, who stays, over Carol to Dan: erasing both takes nothing of Alice's own entry."""
    dan = "https://example.com/users/dan"
    log = story()
    log.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    log.send(MoveIdentity(CAROL, dan, NOW), "a")
    log.erase(CAROL)
    inherited = (7, 6, history((1, 0), (1, 2), (1, 3), (1, 4), (1, 5), (1, 6)))
    assert log.records[0].carried == (CarriedMove(8, False, (0, 3), 1, history((3, *inherited))),)
    log.erase(dan)
    assert log.plains[0] == {"actor": ALICE, "public-key": encode_public_key(public("a"))}
    check_same(log.replayed(), log.live)


def test_counters_never_fall_however_often_somebody_is_erased() -> None:
    log = story()
    for number in (1, 2, 3):
        before = log.live.actors[ALICE]
        record = log.erase(ALICE)
        log.send(AddKey(ALICE, public(f"life {number}"), NOW), f"life {number}")
        actor = log.live.actors[ALICE]
        assert (record.version, record.generation) == (before.version + 1, before.generation)
        assert (actor.version, actor.generation) == (record.version + 1, record.generation + 1)
        assert (actor.erasures, actor.cause) == (number, Cause.ERASED)
    check_same(log.replayed(), log.live)


def test_what_is_erased_already_cannot_be_erased() -> None:
    actor = erased_actor(ALICE, 3, 1, 1)
    for row, mentions in ((actor, [Mention(0, "Fireproof", 1, {"actor": ALICE})]), (replace(actor, status=1), [])):
        with pytest.raises(UsageError) as caught:
            plan_erasure(ORIGIN, 9, row, mentions, (), lambda index: {})
        assert caught.value.name == "NothingToErase"


def test_a_move_that_carried_more_than_a_record_holds() -> None:
    move = CarriedMove(9000, False, tuple(range(8200)), 1, bytes(32))
    plain = {"old-actor": ALICE, "new-actor": BOB}
    actor = replace(erased_actor(ALICE, 3, 1, 0), status=Status.MOVED)
    mention = Mention(9000, "MoveIdentity", 2, plain, move)
    with pytest.raises(UsageError) as caught:
        plan_erasure(ORIGIN, 9001, actor, [mention], (), lambda index: plain)
    assert caught.value.name == "ErasureTooLarge" and "first" in caught.value.hint


def test_an_erasure_that_contradicts_the_entries_is_not_followed() -> None:
    log = story()
    log.send(MoveIdentity(ALICE, CAROL, NOW), "a")
    actor, mentions = log.live.actors[ALICE], log.mentions(ALICE)
    right = plan_erasure(ORIGIN, 8, actor, mentions, (), log.plains.__getitem__).record
    (moved,) = right.carried
    for change in (
        {"version": 9}, {"generation": 2}, {"index": bytes(32)}, {"input_size": 6},
        {"newly_withheld": right.newly_withheld - 1}, {"newly_withheld": right.newly_withheld + 1},
        {"carried": ()}, {"carried": (replace(moved, fireproof=True),)}, {"carried": (replace(moved, leaves=(0,)),)},
        {"carried": (replace(moved, history_size=5),)}, {"carried": (replace(moved, history_root=bytes(32)),)},
    ):
        with pytest.raises(Invalid) as caught:
            log.live.erase(replace(right, **change), mentions, log.plains.__getitem__)
        assert caught.value.name == "BadErasure", change
        assert log.live.actors[ALICE] == actor and not log.live.tombstones
    # What a move carried is known from the entries, whatever those who ask say.
    lied = [replace(mention, moved=None) for mention in mentions]
    log.live.erase(right, lied, log.plains.__getitem__)
    assert ALICE not in log.live.actors


def test_an_erasure_of_somebody_of_whom_nothing_is_readable_is_not_followed() -> None:
    log = story()
    record = ErasureRecord(7, map_index(ORIGIN, ALICE), log.live.actors[ALICE].version + 1, 1, 1, ())
    with pytest.raises(Invalid, match="BadErasure"):
        log.live.erase(record, (), log.plains.__getitem__)
