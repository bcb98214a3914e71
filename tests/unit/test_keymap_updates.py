"""Updates of the map against their own definition and the published answers, and every way to lie in one."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import naive_map
import pytest

from auditor.mapfold import MapFold
from ktlog.errors import EncodingError, Invalid
from ktlog.keymap.prefix import Kind, PrefixLeaf, Search, prove, subtree_hash
from ktlog.keymap.updates import (
    MAX_CHANGES,
    Change,
    MapUpdate,
    build_update,
    format_update,
    parse_update,
    parse_update_path,
    update_path,
    update_roots,
)

VECTORS = json.loads((Path(__file__).resolve().parents[2] / "docs/vectors/map-update-v1.json").read_text())
Pairs = dict[bytes, bytes]


def leaves_of(pairs: Pairs) -> list[PrefixLeaf]:
    return sorted(PrefixLeaf(*item) for item in pairs.items())


def some_index(rng: random.Random, known: list[bytes]) -> bytes:
    """A random index, or one that shares up to 255 bits with a known one."""
    if not known or rng.random() < 0.5:
        return rng.randbytes(32)
    shared = rng.choice([1, 7, 8, 63, 250, 254, 255])
    return (int.from_bytes(rng.choice(known), "big") ^ (1 << (255 - shared))).to_bytes(32, "big")


def a_batch(rng: random.Random, before: Pairs, count: int) -> Pairs:
    """New leaves for *count* indexes, old and new ones."""
    changed: Pairs = {}
    while len(changed) < count:
        known = [*before, *changed]
        index = rng.choice(list(before)) if before and rng.random() < 0.4 else some_index(rng, known)
        changed[index] = rng.randbytes(32)
    return changed


def update_of(before: Pairs, changed: Pairs, leaf_index: int = 1) -> MapUpdate:
    return build_update(leaf_index, changed, prove(leaves_of(before), sorted(changed)))


def roots_of(update: MapUpdate) -> tuple[bytes, bytes]:
    """By the product's recursion and by the auditor's fold, which must agree, also that it is wrong."""
    outcomes = []
    for roots in (update_roots, MapFold.roots):
        try:
            outcomes.append(roots(update))
        except Invalid as error:
            outcomes.append(error.name)
    assert outcomes[0] == outcomes[1], outcomes
    if isinstance(outcomes[0], str):
        raise Invalid(outcomes[0], "both refuse it")
    return outcomes[0]


@pytest.mark.parametrize("seed", range(40))
def test_an_update_is_that_of_the_definition(seed):
    rng = random.Random(seed)
    before = a_batch(rng, {}, rng.choice([0, 1, 2, 3, 9, 20]))
    changed = a_batch(rng, before, rng.choice([0, 1, 1, 2, 5, 12]))
    update = update_of(before, changed, seed + 1)
    data = format_update(update)
    assert data == naive_map.update_bytes(seed + 1, before, changed)
    assert parse_update(data) == update
    assert roots_of(update) == (naive_map.root(before), naive_map.root(before | changed))
    assert [(change.index, change.before) for change in update.changes] == [
        (index, before.get(index)) for index in sorted(changed)
    ]


@pytest.mark.parametrize("vector", VECTORS["updates"], ids=lambda vector: vector["name"])
def test_published_answers(vector):
    before, changed = ({bytes.fromhex(i): bytes.fromhex(c) for i, c in vector[n].items()} for n in ("before", "changed"))
    data = bytes.fromhex(vector["update"])
    assert naive_map.update_bytes(vector["leaf-index"], before, changed) == data
    assert format_update(update_of(before, changed, vector["leaf-index"])) == data
    roots = tuple(bytes.fromhex(vector[name]) for name in ("root-before", "root-after"))
    assert roots_of(parse_update(data)) == roots == (naive_map.root(before), naive_map.root(before | changed))


@pytest.mark.parametrize("vector", VECTORS["refusals"], ids=lambda vector: vector["name"])
def test_published_refusals(vector):
    """``parse``: it is malformed. ``roots``: it is of no map. ``before``: of another map than the one before."""
    data = bytes.fromhex(vector["update"])
    if vector["refused"] == "parse":
        with pytest.raises(EncodingError) as caught:
            parse_update(data)
    elif vector["refused"] == "roots":
        with pytest.raises(Invalid) as caught:
            roots_of(parse_update(data))
    else:
        roots = roots_of(parse_update(data))
        assert roots[vector["refused"] == "after"].hex() != vector[f"root-{vector['refused']}"]
        return
    assert caught.value.name == "BadMapUpdate"


# A map of nine leaves, and a batch that changes two of them and adds two, one of them beside another's leaf.
RNG = random.Random(9)
BEFORE = {bytes([16 * n]) + RNG.randbytes(31): RNG.randbytes(32) for n in range(9)}
OLD = sorted(BEFORE)
BESIDE = (int.from_bytes(OLD[4], "big") ^ 1).to_bytes(32, "big")
CHANGED = {OLD[1]: b"a" * 32, OLD[7]: b"b" * 32, BESIDE: b"c" * 32, b"\xf0" + bytes(31): b"d" * 32}
ROOTS = naive_map.root(BEFORE), naive_map.root(BEFORE | CHANGED)


def honest() -> MapUpdate:
    return update_of(BEFORE, CHANGED)


def forged(update: MapUpdate) -> str:
    """How it is found out: it is of no map, or of another one before or after."""
    try:
        before, after = roots_of(update)
    except Invalid as error:
        return error.name
    return "another before" if before != ROOTS[0] else "another after" if after != ROOTS[1] else "not at all"


def without(update: MapUpdate, index: bytes) -> MapUpdate:
    return replace(update, changes=tuple(change for change in update.changes if change.index != index))


def test_what_is_listed_is_all_that_changed():
    """A leaf that changed and is not listed: its place is a hash, which stands in both roots."""
    assert forged(honest()) == "not at all"
    rest = {index: new for index, new in CHANGED.items() if index != OLD[7]}
    assert forged(update_of(BEFORE, rest)) == "another after"
    assert forged(update_of(BEFORE | {OLD[7]: b"b" * 32}, rest)) == "another before"
    assert forged(without(honest(), OLD[7])) != "not at all"


def test_a_removed_leaf_is_found_out():
    """By a map after in which it is missing, however the batch tells it."""
    fewer = {index: value for index, value in BEFORE.items() if index != OLD[3]}
    assert forged(update_of(fewer, CHANGED)) == "another before"
    after = naive_map.root(fewer | CHANGED)
    assert roots_of(honest())[1] != after
    # Nothing in the format says that a leaf goes: its new commitment would have to hash to nothing.
    gone = update_of(BEFORE, CHANGED | {OLD[3]: bytes(32)})
    assert roots_of(gone)[0] == ROOTS[0] and roots_of(gone)[1] != after
    # Nor can a new leaf take an old one's place, when the search says that there was nothing.
    there = next(change for change in honest().changes if change.index == BESIDE)
    for found in (Search(Kind.NOTHING, there.found.depth), Search(Kind.INCLUSION, there.found.depth,
                                                                   PrefixLeaf(BESIDE, BEFORE[OLD[4]]))):
        changes = tuple(one._replace(found=found) if one.index == BESIDE else one for one in honest().changes)
        assert forged(replace(honest(), changes=changes)) == "another before"


def test_every_hash_counts():
    hashes = honest().hashes
    for at in range(len(hashes)):
        for other in (bytes(32), bytes([hashes[at][0] ^ 1]) + hashes[at][1:]):
            wrong = (*hashes[:at], other, *hashes[at + 1 :])
            assert other == hashes[at] or forged(replace(honest(), hashes=wrong)) == "another before"
    for wrong in (hashes[1:], (*hashes, bytes(32)), hashes[::-1]):
        assert forged(replace(honest(), hashes=wrong)) in ("BadMapUpdate", "another before")


@pytest.mark.parametrize("by", [-2, -1, 1, 2])
def test_every_depth_counts(by):
    for at, change in enumerate(honest().changes):
        found = replace(change.found, depth=max(0, change.found.depth + by))
        changes = (*honest().changes[:at], change._replace(found=found), *honest().changes[at + 1 :])
        assert forged(replace(honest(), changes=changes)) != "not at all"


def test_searches_that_end_together_find_one_leaf():
    two = {BESIDE: b"c" * 32, (int.from_bytes(OLD[4], "big") ^ 2).to_bytes(32, "big"): b"e" * 32}
    update = update_of(BEFORE, two)
    assert roots_of(update) == (ROOTS[0], naive_map.root(BEFORE | two))
    first, second = update.changes
    other = replace(second.found, leaf=PrefixLeaf(OLD[4], bytes(32)))
    assert forged(replace(update, changes=(first, second._replace(found=other)))) == "BadMapUpdate"
    deeper = replace(second.found, depth=second.found.depth + 1)
    assert forged(replace(update, changes=(first, second._replace(found=deeper)))) == "BadMapUpdate"


def test_indexes_that_share_255_bits():
    one, other = bytes(32), bytes(31) + b"\x01"
    for before, changed in (({}, {one: b"1" * 32, other: b"2" * 32}), ({one: b"1" * 32}, {other: b"2" * 32}),
                            ({one: b"1" * 32, other: b"2" * 32}, {other: b"3" * 32})):
        update = parse_update(format_update(update_of(before, changed)))
        assert roots_of(update) == (naive_map.root(before), naive_map.root(before | changed))
    assert update.changes[0].found.depth == 256
    deeper = replace(update, changes=(Change(other, b"3" * 32, replace(update.changes[0].found, depth=257)),))
    with pytest.raises(Invalid):
        roots_of(replace(deeper, hashes=(*deeper.hashes, bytes(32))))


@pytest.mark.parametrize("at", range(0, 700, 7))
def test_no_flipped_byte_says_the_same(at):
    data = bytearray(format_update(honest()))
    data[at % len(data)] ^= 0x41
    try:
        update = parse_update(bytes(data))
    except EncodingError as error:
        assert error.name == "BadMapUpdate"
        return
    assert update.leaf_index != 1 or forged(update) != "not at all"


def test_paths():
    assert [update_path(n) for n in (1, 999, 1234067)] == ["updates/001", "updates/999", "updates/x001/x234/067"]
    assert parse_update_path("updates/x001/x234/067") == 1234067
    for path in ("updates/000", "updates/1", "updates/x000/001", "updates/001.p/3", "/updates/001", "tile/0/001",
                 "updates/../001", "updates/", "001", "updates/x001/"):
        with pytest.raises(EncodingError) as caught:
            parse_update_path(path)
        assert caught.value.name == "BadTilePath"


def test_a_map_of_nothing_and_a_batch_of_nothing():
    nothing = update_of({}, {})
    assert nothing == MapUpdate(1, (), (bytes(32),)) and roots_of(nothing) == (bytes(32), bytes(32))
    still = update_of(BEFORE, {})
    assert still.hashes == (subtree_hash(leaves_of(BEFORE)),) and roots_of(still) == (ROOTS[0], ROOTS[0])


def test_more_changes_than_an_update_has_are_refused_before_they_are_read():
    data = b"ktlog-map-update/v1\n" + (1).to_bytes(8, "big") + (MAX_CHANGES + 1).to_bytes(4, "big")
    with pytest.raises(EncodingError, match="more changes"):
        parse_update(data + bytes(10))
