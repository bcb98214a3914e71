"""Three answers, proven; and every lie that a server can tell in a bundle, by the name of its failure."""

from __future__ import annotations

from dataclasses import replace

import pytest
from keymap_world import ALICE, BOB, CAROL, CONFIG, DAVE, NOW, ORIGIN, World, key, listed, make_world

from ktlog.errors import Invalid, KtlogError, Stale
from ktlog.keymap.bundle import Bundle, NoLeaf, Presented, Tombstone, encode_bundle, parse_bundle
from ktlog.keymap.check import Mapped, check_bundle
from ktlog.keymap.output import MapConfig
from ktlog.keymap.value import encode_value
from ktlog.pkd.keys import derive_key_id


def check(world: World, bundle: Bundle, actor_id: str, **changes: int) -> Mapped:
    times = {"now": NOW, "as_of": NOW, "max_age": 3600} | changes
    return check_bundle(bundle, actor_id, CONFIG, len(world.output), world.root, **times)


def refusal(world: World, bundle: Bundle, actor_id: str, **changes: int) -> tuple[type, str]:
    with pytest.raises(KtlogError) as caught:
        check(world, bundle, actor_id, **changes)
    return type(caught.value), caught.value.name


def test_present_with_every_key():
    world = make_world()
    bundle = parse_bundle(encode_bundle(world.bundle(ALICE)))
    mapped = check(world, bundle, ALICE)
    assert [k.public_key for k in mapped.keys] == [key(5), key(7)]
    assert [k.key_id for k in mapped.keys] == [derive_key_id(ORIGIN, 5), derive_key_id(ORIGIN, 7)]
    assert mapped.aux[0].aux_data == "age1…" and mapped.value == world.values[ALICE]


def test_erased_and_never_enrolled():
    world = make_world()
    assert check(world, world.bundle(CAROL), CAROL).outcome == Tombstone(2, 1, 0)
    assert check(world, world.bundle(DAVE), DAVE).outcome == NoLeaf()


def test_auxiliary_data_only_when_asked_for():
    world = make_world()
    mapped = check(world, replace(world.bundle(ALICE), aux=None), ALICE)
    assert mapped.aux[0].aux_data is None


def test_a_light_bundle_for_one_key_is_small():
    world = make_world()
    assert len(encode_bundle(world.bundle(BOB))) < 2500


LIES = {
    "omitted_key": (lambda w, b: replace(b, keys=b.keys[:1]), Invalid, "OmittedKey"),
    "another_key": (lambda w, b: replace(b, keys=(b.keys[0], key(8))), Invalid, "UnlistedKey"),
    "keys_swapped": (lambda w, b: replace(b, keys=b.keys[::-1]), Invalid, "UnlistedKey"),
    "a_value_without_a_key": (
        lambda w, b: replace(b, keys=b.keys[:1], outcome=replace(
            b.outcome, value=encode_value(replace(w.values[ALICE], keys=(listed(5),))))),
        Invalid, "CommitmentMismatch"),
    "another_opening": (
        lambda w, b: replace(b, outcome=replace(b.outcome, opening=b"\x09" * 16)), Invalid, "CommitmentMismatch"),
    "a_value_that_breaks_a_rule": (
        lambda w, b: replace(b, outcome=Presented(b"\x01", bytes(16))), Invalid, "BadValue"),
    "the_answer_of_another_actor": (lambda w, b: w.bundle(BOB), Invalid, "CommitmentMismatch"),
    "absence_of_an_enrolled_actor": (lambda w, b: replace(b, outcome=NoLeaf(), keys=()), Invalid, "OutcomeMismatch"),
    "absence_with_another_s_proof": (lambda w, b: replace(w.bundle(DAVE)), Invalid, "BadMapProof"),
    "erasure_of_an_enrolled_actor": (
        lambda w, b: replace(b, outcome=Tombstone(2, 1, 0), keys=()), Invalid, "CommitmentMismatch"),
    "other_auxiliary_data": (lambda w, b: replace(b, aux=("age2…",)), Invalid, "WrongAuxData"),
    "omitted_auxiliary_data": (lambda w, b: replace(b, aux=()), Invalid, "WrongAuxData"),
    "another_log": (lambda w, b: replace(b, origin="keys.evil.example/map"), Invalid, "WrongLog"),
    "the_input_log_s_origin": (lambda w, b: replace(b, origin=ORIGIN), Invalid, "WrongLog"),
    "behind_the_checkpoint": (lambda w, b: replace(b, output_size=2), Stale, "BundleBehindCheckpoint"),
    "an_older_leaf": (lambda w, b: replace(b, output_leaf=w.output[1]), Invalid, "BadOutputProof"),
    "a_shorter_path": (lambda w, b: replace(b, output_path=b.output_path[1:]), Invalid, "BadOutputProof"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_about_alice(lie):
    world = make_world()
    tell, kind, name = LIES[lie]
    assert refusal(world, tell(world, world.bundle(ALICE)), ALICE) == (kind, name)


@pytest.mark.parametrize("actor_id", [CAROL, DAVE])
def test_presence_of_nobody(actor_id):
    """Presence claimed for an erased actor and for one that never enrolled."""
    world = make_world()
    bob = world.bundle(BOB)
    mine = world.bundle(actor_id)
    forged = replace(mine, outcome=bob.outcome, keys=bob.keys)
    expected = "CommitmentMismatch" if actor_id == CAROL else "OutcomeMismatch"
    assert refusal(world, forged, actor_id) == (Invalid, expected)


def test_an_erasure_that_no_record_tells_of():
    world = make_world()
    world.dead[CAROL] = Tombstone(2, 1, 5)
    world.publish()
    assert refusal(world, world.bundle(CAROL), CAROL) == (Invalid, "CommitmentMismatch")


def test_a_value_at_another_actor_s_place():
    """The log itself put Bob's value, well committed, where Alice's belongs."""
    world = make_world()
    world.values[ALICE] = world.values[BOB]
    world.publish()
    assert refusal(world, world.bundle(ALICE), ALICE) == (Invalid, "WrongActor")


def test_a_value_beyond_the_entries_that_the_map_covers():
    world = make_world()
    world.publish(input_size=9)
    assert refusal(world, world.bundle(ALICE), ALICE) == (Invalid, "BadValue")


def test_old_maps_and_maps_from_the_future():
    world = make_world()
    bundle = world.bundle(ALICE)
    assert refusal(world, bundle, ALICE, now=NOW + 3601) == (Stale, "OldMap")
    assert check(world, bundle, ALICE, now=NOW + 3600).value is not None
    assert refusal(world, bundle, ALICE, as_of=NOW - 301) == (Invalid, "BadOutputLeaf")


def test_another_configuration():
    world = make_world()
    other = MapConfig(ORIGIN, "spec", heartbeat=601)
    with pytest.raises(Invalid) as caught:
        check_bundle(
            world.bundle(ALICE), ALICE, other, len(world.output), world.root, now=NOW, as_of=NOW, max_age=3600
        )
    assert caught.value.name == "WrongConfig"


def test_a_leaf_that_is_none():
    world = make_world()
    world.output.append(b"ktlog-map/v1\n")
    assert refusal(world, world.bundle(ALICE), ALICE) == (Invalid, "BadOutputLeaf")


def test_the_configuration_is_no_map():
    world = make_world()
    del world.output[1:]
    assert refusal(world, world.bundle(ALICE), ALICE) == (Invalid, "NotNewestLeaf")
