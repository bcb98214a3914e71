"""Values, commitments, tombstones, output leaves and bundles: known answers, round trips, hostile bytes."""

from __future__ import annotations

import random
from dataclasses import replace
from hashlib import sha256

import pytest

from ktlog.errors import EncodingError
from ktlog.keymap.bundle import (
    MAX_PENDING,
    MAX_PENDING_BYTES,
    Bundle,
    HistoryItem,
    NoLeaf,
    Page,
    PendingItem,
    Presented,
    Tombstone,
    encode_bundle,
    parse_bundle,
)
from ktlog.keymap.output import (
    MapConfig,
    OutputLeaf,
    format_config,
    format_leaf,
    hash_config,
    parse_config,
    parse_leaf,
)
from ktlog.keymap.pages import cut, join, next_start
from ktlog.keymap.prefix import PrefixLeaf, encode_prefix_proof, parse_prefix_proof, prove, subtree_hash
from ktlog.keymap.value import (
    ListedAux,
    ListedKey,
    Value,
    commit_value,
    derive_opening,
    encode_value,
    parse_history_leaf,
    parse_value,
    parse_version,
    tombstone,
)
from ktlog.pkd.actors import Cause, Role, Status
from ktlog.pkd.history import history_leaf
from ktlog.pkd.keys import key_hash
from ktlog.pkd.pae import pae
from ktlog.tlog.encoding import encode_base64, encode_base64url
from ktlog.tlog.tree import hash_leaf

ORIGIN = "keys.example.com"
ALICE = "https://example.com/users/alice"
INDEX = sha256(pae(["ktlog/v1/index", ORIGIN, ALICE])).digest()
VALUE = Value(
    ALICE, 1, 1, 0, Cause.FIRST, 0, Status.ACTIVE, 0, False, (ListedKey(0, key_hash(bytes(1312))),), (), 1,
    hash_leaf(history_leaf(Role.SUBJECT, 0)),
)


def test_known_answers():
    """Directory map v1 §10."""
    encoded = encode_value(VALUE)
    opening = derive_opening(bytes(32), 1)
    commitment = commit_value(INDEX, 1, encoded, opening)
    assert INDEX.hex() == "d20f381805471235f4d0dd80d0b20a5db2848a0bfa73dd647a756a506d74128d"
    assert len(encoded) == 150
    assert opening.hex() == "4225de54f80005a2ad89f1c17c67ea69"
    assert commitment.hex() == "fb0c3f089d65c055f8fc12836611e3a5d73c16776d8196472ce4fd523e383500"
    root = subtree_hash([PrefixLeaf(INDEX, commitment)])
    assert root.hex() == "02d0fb348b01c68654cb0cd84c86570927ed234551e9ffb7823d79f60a61715b"
    dead = tombstone(ORIGIN, INDEX, 2, 1, 0)
    assert dead.hex() == "c2c79d59d982a7f291fee6fb86817c4b59aab793a0b7e511ab6e53eb152d0223"
    assert encode_base64(hash_config(MapConfig(ORIGIN, "spec"))) == "8kmJTO3VgjWWzCBb/wSpxyJ3qcQvZ8IHPpiQ/38BN9c="


def busy_value() -> Value:
    return replace(
        VALUE, version=9, generation=2, erasures=1, cause=Cause.MOVED_IN, generation_leaf=70, status_leaf=70,
        fireproof=True, keys=(ListedKey(3, b"\x01" * 32), ListedKey(71, b"\x02" * 32)),
        aux=(ListedAux(72, "age-v1", encode_base64url(b"\x03" * 32)),), history_size=4, history_root=b"\x04" * 32,
    )


@pytest.mark.parametrize("value", [VALUE, busy_value()])
def test_values_round_trip(value):
    assert parse_value(encode_value(value)) == value
    assert parse_version(encode_value(value)) == value.version


@pytest.mark.parametrize("change", [
    {"keys": ()}, {"status": Status.BURNED}, {"status": 0}, {"status": 5}, {"cause": 0}, {"cause": 7},
    {"generation": 0}, {"generation": 10}, {"generation_leaf": 71}, {"status_leaf": 69}, {"history_size": 0},
    {"history_size": 10}, {"actor_id": "http://example.com/users/alice"}, {"actor_id": "https://EXAMPLE.com/u"},
    {"keys": (ListedKey(3, b"\x01" * 32), ListedKey(3, b"\x02" * 32))},
    {"keys": (ListedKey(4, b"\x01" * 32), ListedKey(3, b"\x02" * 32))},
    {"keys": (ListedKey(3, b"\x01" * 32), ListedKey(4, b"\x01" * 32))},
    {"aux": (ListedAux(1, "a", encode_base64url(bytes(32))), ListedAux(2, "b", encode_base64url(bytes(32))))},
    {"aux": (ListedAux(1, "", encode_base64url(bytes(32))),)},
])
def test_values_that_break_a_rule(change):
    with pytest.raises(EncodingError) as refusal:
        parse_value(encode_value(replace(busy_value(), **change)))
    assert refusal.value.name == "BadValue"


def test_truncated_and_overlong_values():
    data = encode_value(busy_value())
    for end in [*range(len(data))]:
        with pytest.raises(EncodingError, match="BadValue|cut short|rule"):
            parse_value(data[:end])
    with pytest.raises(EncodingError):
        parse_value(data + b"\0")


@pytest.mark.parametrize("position,byte", [(0, 2), (51, 2)])
def test_unknown_versions_and_flags(position, byte):
    data = bytearray(encode_value(VALUE))
    flag = len(data) - 32 - 8 - 2 - (8 + 1 + 32) - 2 - 1
    data[flag if position else 0] = byte
    with pytest.raises(EncodingError):
        parse_value(bytes(data))


def test_history_leaves():
    assert parse_history_leaf(history_leaf(Role.SUBJECT, 5)) == (1, 5, None)
    moved = history_leaf(Role.MOVED_IN, 5, (2, b"\x01" * 32))
    assert parse_history_leaf(moved) == (3, 5, (2, b"\x01" * 32))
    for bad in (moved[:-1], moved + b"\0", b"\x00" + moved[1:], b"\x01" + moved[1:], b""):
        with pytest.raises(EncodingError):
            parse_history_leaf(bad)


def test_output_leaves_round_trip_and_have_one_form():
    leaf = OutputLeaf(b"\x01" * 32, 1_700_000_000, 5, b"\x02" * 32, 0, b"\x03" * 32, b"\x04" * 32)
    data = format_leaf(leaf)
    assert parse_leaf(data) == leaf
    for bad in (
        data[:-1], data + b"\n", data.replace(b"time ", b"time +"), data.replace(b"input 5", b"input 05"),
        data.replace(b"input 5 ", b"input 5  "), data.replace(b"\n", b"\r\n"), data.replace(b"erasures", b"erasure"),
        data.replace(b"map ", b"map x "), b"\xff" + data, b"",
    ):
        with pytest.raises(EncodingError) as refusal:
            parse_leaf(bad)
        assert refusal.value.name == "BadOutputLeaf"


def test_configurations_round_trip_and_have_one_form():
    data = format_config(MapConfig(ORIGIN, "php", mmd=1))
    assert format_config(parse_config(data)) == data
    for bad in (data.replace(b"hash", b"vrf"), data.replace(b"php", b"xyz"), data.replace(b"mmd 1", b"mmd 01"), data[1:],
                data.replace(b"mmd 1", b"mmd 0"), data.replace(b"mmd 1", b"mmd 86401"),
                data.replace(b"heartbeat 600", b"heartbeat 86401")):
        with pytest.raises(EncodingError) as refusal:
            parse_config(bad)
        assert refusal.value.name == "BadMapConfig"


def item(rng: random.Random, leaf: bytes) -> HistoryItem:
    path = tuple(rng.randbytes(32) for _ in range(3))
    return HistoryItem(leaf, rng.randbytes(2484), rng.randbytes(300), {"actor": "é", "public-key": None}, path)


def pending(rng: random.Random, leaf_index: int) -> PendingItem:
    return PendingItem(leaf_index, rng.randbytes(2484), rng.randbytes(300), {"actor": "é", "public-key": None})


def bundles() -> list[Bundle]:
    rng = random.Random(1)
    proof = parse_prefix_proof(encode_prefix_proof(prove([PrefixLeaf(INDEX, b"\x01" * 32)], [INDEX])))
    light = Bundle(
        "keys.example.com/map", 7, b"leaf", (b"\x05" * 32,) * 3, proof, Presented(encode_value(VALUE), bytes(16)),
        (bytes(1312),),
    )
    moved = history_leaf(Role.MOVED_IN, 9, (1, b"\x01" * 32))
    return [
        light,
        replace(light, outcome=NoLeaf(), keys=()),
        replace(light, outcome=Tombstone(2, 1, 0), keys=()),
        replace(light, aux=("age1…", None), checkpoint=b"note", history=(), old_histories=()),
        replace(light, history=(item(rng, moved),), old_histories=((item(rng, history_leaf(1, 2)),),),
                pending=tuple(pending(rng, at) for at in (7, 9))),
    ]


@pytest.mark.parametrize("number", range(5))
def test_bundles_round_trip(number):
    bundle = bundles()[number]
    assert parse_bundle(encode_bundle(bundle)) == bundle


@pytest.mark.parametrize("number", range(5))
def test_a_bundle_cut_or_lengthened_anywhere_is_refused(number):
    data = encode_bundle(bundles()[number])
    step = max(1, len(data) // 200)
    # A cut right before an optional section leaves a whole, lighter bundle; that is none of these.
    for end in range(0, len(data) - 5 - (number == 4) * 6000, step):
        try:
            parse_bundle(data[:end])
        except EncodingError as error:
            assert error.name == "MalformedBundle"
        else:
            raise AssertionError(f"cut at {end} is accepted")
    with pytest.raises(EncodingError):
        parse_bundle(data + b"\0")


def test_pages_are_joined_into_the_bundle_that_was_cut():
    """Every place of a cut, through the actor's own history and old ones, empty ones among them."""
    rng = random.Random(2)
    own = tuple(item(rng, history_leaf(Role.MOVED_IN, 10 + at, (1, b"\x01" * 32))) for at in range(3))
    old = ((), tuple(item(rng, history_leaf(1, at)) for at in range(2)), (item(rng, history_leaf(1, 5)),))
    whole = replace(bundles()[0], history=own, old_histories=old)
    for most in range(1, 6):
        pages = []
        for start in range(0, 6, most):
            parts = cut([3, 0, 2, 1], start, most)
            lists = [items[part.start : part.stop] for items, part in zip((own, *old), parts, strict=True)]
            page = replace(whole, history=lists[0], old_histories=tuple(lists[1:]), page=Page(start, 6))
            pages.append(parse_bundle(encode_bundle(page)))
        assert join(pages) == whole and next_start(pages[-1]) is None and next_start(pages[0]) == most
        others = [replace(pages[1], output_leaf=b"leaf "), replace(pages[1], page=Page(most, 7)), pages[0]]
        for bad in (pages[:-1], pages[1:], pages[::-1], *([pages[0], other, *pages[2:]] for other in others)):
            with pytest.raises(EncodingError, match="MalformedBundle"):
                join(bad)


@pytest.mark.parametrize("page", [Page(0, 3), Page(4, 4), Page(0, 0), Page(3, 4), Page(0, 65537)])
def test_pages_that_are_none(page):
    """Of two items; with three, one that holds all of them; and without any."""
    rng = random.Random(3)
    items = tuple(item(rng, history_leaf(1, at)) for at in range(3 if page == Page(0, 3) else 2))
    for bad in (replace(bundles()[0], history=items, page=page), replace(bundles()[0], page=page)):
        with pytest.raises(EncodingError, match="MalformedBundle"):
            parse_bundle(encode_bundle(bad))


def test_too_much_that_is_pending():
    """Bounded in number, in bytes, and in the order of the log without duplicates."""
    rng, light = random.Random(4), bundles()[0]
    full = [pending(rng, at) for at in range(MAX_PENDING + 1)]
    fat = replace(full[0], preimage=bytes(MAX_PENDING_BYTES))
    assert len(parse_bundle(encode_bundle(replace(light, pending=tuple(full[:-1])))).pending) == MAX_PENDING
    for bad in (full, [fat], full[1::-1], [full[0], full[0]]):
        with pytest.raises(EncodingError, match="MalformedBundle"):
            parse_bundle(encode_bundle(replace(light, pending=tuple(bad))))
    with pytest.raises(EncodingError, match="MalformedBundle"):
        parse_bundle(encode_bundle(light) + b"\x0c\0\0\0\0")


def test_sections_are_in_order_once_and_known():
    data = encode_bundle(bundles()[0])
    header, body = data[:16], data[16:]
    first = body[: 5 + len("keys.example.com/map")]
    for bad in (header + first + body, header + body[len(first):], header + body + b"\x0e\0\0\0\0", data[1:]):
        with pytest.raises(EncodingError) as refusal:
            parse_bundle(bad)
        assert refusal.value.name == "MalformedBundle"
