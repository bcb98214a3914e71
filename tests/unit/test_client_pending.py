"""Pending entries in an answer from the map: they may take a key out of use, and nothing else, whoever forges them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from client_log import NOW, key
from client_world import remembering_argon2id
from map_log import ALICE, BOB, CAROL, DAVE, MapWorld, say

from ktlog.client import Erased, NeverEnrolled, verify_bundle
from ktlog.client.build import Built, add_key, build_message, enrol, revoke_by_token, revoke_key
from ktlog.errors import Invalid
from ktlog.keymap.bundle import MAX_PENDING, MAX_PENDING_BYTES
from ktlog.pkd import attributes
from ktlog.pkd.actions import RevokeKey
from ktlog.pkd.canonical import canonical
from ktlog.pkd.messages import parse_wire, plain_attributes

FIRST, SECOND = key(2), key(3)
"""Alice's listed keys."""


@pytest.fixture
def world(tmp_path, monkeypatch) -> MapWorld:
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return MapWorld(tmp_path)


def slip_in(world: MapWorld, built: Built, who: str = ALICE) -> None:
    """The log takes what the rules refuse, signs it as an entry, and shows it to whoever asks about *who*."""
    wire = parse_wire(world.log.dialect, canonical(dict(built.wire)))
    world.log.append(wire.preimage, plain_attributes(wire, built.message), {who: 1})


def forge(world: MapWorld, build, *arguments, who: str = ALICE) -> None:
    slip_in(world, build(*arguments, recent_root=world.log.recent(), now=NOW + world.log.size), who)


def usable(world: MapWorld, **options) -> list[bytes]:
    answer = world.lookup(**options)
    assert {one.public_key for one in answer.keys} == {FIRST.public_key, SECOND.public_key}
    return [one.public_key for one in answer.usable_keys]


def refused(world: MapWorld, name: str, **options) -> None:
    with pytest.raises(Invalid) as caught:
        world.lookup(ALICE, **options)
    assert caught.value.name == name, str(caught.value)


BOTH = [FIRST.public_key, SECOND.public_key]


# -- what works


def test_a_rotation_that_is_not_in_the_map_yet(world):
    """The old key is out of use at once, the new one not in use before it is proven."""
    say(world.log, add_key, ALICE, key(4).public_key, FIRST)
    say(world.log, revoke_key, ALICE, FIRST.public_key, key(4))
    answer = world.lookup()
    assert [one.public_key for one in answer.usable_keys] == [SECOND.public_key]
    assert [(one.leaf_index, one.action, len(one.removes)) for one in answer.pending] == [
        (7, "AddKey", 0), (8, "RevokeKey", 1),
    ]
    offline = verify_bundle(answer.bundle, None, world.policy, ALICE, NOW)
    assert offline.usable_keys == answer.usable_keys and any("leaf keys" in text for text in offline.not_proven)
    world.log.publish_map()
    assert [one.public_key for one in world.lookup().usable_keys] == [SECOND.public_key, key(4).public_key]


def test_whoever_is_absent_may_have_something_pending(world):
    say(world.log, enrol, DAVE, key(40))
    say(world.log, enrol, CAROL, key(30))
    for name, kind in ((DAVE, NeverEnrolled), (CAROL, Erased)):
        answer = world.lookup(name)
        assert isinstance(answer, kind) and answer.usable_keys == ()
        assert [one.action for one in answer.pending] == ["AddKey"]


def test_without_anything_pending_nothing_more_is_asked(world):
    world.lookup()
    world.network.requests.clear()
    world.lookup()
    assert not any("leaf-keys" in url for url in world.network.requests)


# -- forgeries that the log signed as entries: they are shown, and move nothing


def test_a_revocation_by_a_stranger_s_key(world):
    forge(world, revoke_key, ALICE, FIRST.public_key, key(66))
    answer = world.lookup()
    assert usable(world) == BOTH and answer.pending[0].removes == ()


def test_a_revocation_by_a_key_that_a_stranger_added(world):
    forge(world, add_key, ALICE, key(67).public_key, key(66))
    forge(world, revoke_key, ALICE, FIRST.public_key, key(67))
    assert usable(world) == BOTH


def test_a_revocation_by_a_key_that_adds_itself(world):
    forge(world, enrol, ALICE, key(66))
    forge(world, revoke_key, ALICE, FIRST.public_key, key(66))
    assert usable(world) == BOTH


def test_a_revocation_by_a_key_revoked_before(world):
    """In the map, and in a pending message before."""
    forge(world, revoke_key, ALICE, FIRST.public_key, key(1))
    assert usable(world) == BOTH
    say(world.log, revoke_key, ALICE, FIRST.public_key, SECOND)
    forge(world, revoke_key, ALICE, SECOND.public_key, FIRST)
    assert usable(world) == [SECOND.public_key]


def test_a_key_revoking_itself(world):
    """Only a token can do that: whoever stole one key must not take the others' word away by it."""
    slip_in(world, build_message(RevokeKey(ALICE, FIRST.public_key, NOW), FIRST, world.log.recent()))
    assert usable(world) == BOTH


def test_a_token_for_somebody_else_s_key(world):
    slip_in(world, revoke_by_token(key(10).revocation_token()))
    assert usable(world) == BOTH


def test_a_key_is_never_added(world):
    for number in (4, 5):
        forge(world, add_key, ALICE, key(number).public_key, FIRST)
    assert usable(world) == BOTH


# -- forgeries that end the lookup


def test_a_revocation_for_another_actor(world):
    """Bob holds the same two keys, and revokes one of them: that says nothing about Alice's."""
    forge(world, revoke_key, BOB, FIRST.public_key, SECOND)
    refused(world, "WrongActor")
    refused(world, "WrongActor", full=True)


def test_the_same_message_twice(world):
    built = revoke_key(ALICE, FIRST.public_key, SECOND, recent_root=world.log.recent(), now=NOW)
    slip_in(world, built)
    slip_in(world, built)
    refused(world, "BadEntry")


def lie(world: MapWorld, change) -> None:
    world.log.lie = lambda bundle: replace(bundle, pending=tuple(change(bundle)))


def test_an_entry_that_the_map_covers(world):
    """A message of the past, shown again at its own place, or at another one."""
    lie(world, lambda bundle: [world.log.waiting(4)])
    refused(world, "BadEntry")
    lie(world, lambda bundle: [replace(world.log.waiting(4), leaf_index=9)])
    refused(world, "BadEntry", full=True)
    # The light answer cannot tell, and the key that it revoked can never be listed again.
    assert usable(world) == BOTH


GARBAGE = {
    "no_entry": ({"entry": b"garbage"}, "BadEntry"),
    "another_message": ({"preimage": b'{"action":"AddKey"}'}, "BadEntry"),
    "other_text": ({"plain": {"actor": ALICE, "public-key": key(3).public_text}}, "PlaintextMismatch"),
    "another_actor": ({"plain": {"actor": BOB, "public-key": FIRST.public_text}}, "PlaintextMismatch"),
    "no_text": ({"plain": {}}, "PlaintextMismatch"),
    "withheld_text": ({"plain": {"actor": None, "public-key": FIRST.public_text}}, "RecordWithheld"),
}


@pytest.mark.parametrize("case", GARBAGE)
def test_garbage(world, case):
    changes, name = GARBAGE[case]
    say(world.log, revoke_key, ALICE, FIRST.public_key, SECOND)
    lie(world, lambda bundle: [replace(bundle.pending[0], **changes)])
    refused(world, name)


def test_an_entry_that_the_log_did_not_sign(world):
    say(world.log, revoke_key, ALICE, FIRST.public_key, SECOND)
    world.network.replace("/leaf-keys", b'{"leaf-keys":["%s"]}' % key(66).public_text.encode())
    refused(world, "BadLeafSignature")


def test_too_many_are_refused_before_any_is_looked_at(world, monkeypatch):
    say(world.log, revoke_key, ALICE, FIRST.public_key, SECOND)
    item = world.log.waiting(7)
    monkeypatch.setattr(attributes, "argon2id", lambda *_: pytest.fail("a bundle that is refused costs no Argon2id"))
    for items in (
        [replace(item, leaf_index=7 + at) for at in range(MAX_PENDING + 1)], [item, item],
        [replace(item, leaf_index=8), item], [replace(item, preimage=bytes(MAX_PENDING_BYTES))],
    ):
        lie(world, lambda bundle, items=items: items)
        refused(world, "MalformedBundle")
