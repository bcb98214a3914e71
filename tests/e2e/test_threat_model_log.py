"""The attacks of the specification's threat model that are the log's or its operator's own, each by its name.

The others are in test_threat_model.py. Source: PKD v0.8.0, "Threat Model", "Risks".
"""

from __future__ import annotations

import pytest
from client_log import ORIGIN as CLIENT_ORIGIN
from client_log import TinyLog, key, make_policy
from client_world import ALICE as ALICE_OF_ALPHA
from client_world import World, remembering_argon2id, say

from ktlog.client import build
from ktlog.client.build import enrol
from ktlog.errors import Forked, Invalid, PolicyUnmet
from ktlog.pkd import argon2, attributes
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.messages import AddKey
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.tlog.evidence import parse_evidence, verify_evidence
from ktlog.tlog.tree import hash_leaf, leaf_reader, prove_inclusion, root_hash, verify_inclusion
from tests.operator_world import Desk
from tests.pkd_samples import ALICE, BOB, CAROL, NOW, bytes_of, public


def enrolled(*people: tuple[str, str]) -> Desk:
    desk = Desk()
    for who, name in people:
        desk.send(AddKey(who, public(name), NOW), name)
    return desk


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    """A client of a log in which Alice, Bob and Root enrolled and Alice rotated."""
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return World(tmp_path)


def test_attackers_seek_to_change_history(world) -> None:
    """Mallory's key in place of Alice's second one, in a tree made anew and signed with the log's own keys."""
    world.lookup()
    lying = TinyLog()
    for index, row in enumerate(world.log.rows):
        preimage = row["encrypted-message"].encode()
        if index == 2:
            preimage = enrol(ALICE_OF_ALPHA, key(66), recent_root=lying.recent(), now=1_700_000_000).preimage
        lying.append(preimage, row["plain"], world.log.roles[index])
    world.serve(lying.publish())
    error = world.refuses(Forked, "TwoRoots")
    verify_evidence(parse_evidence(error.evidence))


def test_attackers_seek_to_selectively_censor_historical_records(world) -> None:
    """A message left out of Alice's history is missed; the log itself refuses to lose an entry."""
    world.network.edit(lambda page: page["history"].pop(1))
    world.refuses(Invalid, "BadMessageSignature")
    desk = enrolled((ALICE, "a"), (BOB, "b"))
    assert desk.store.state().size == len(desk.store.entries(0, desk.size)) == 2


@pytest.mark.parametrize("variant", ["another plaintext", "another symmetric key"])
def test_attackers_seek_to_replace_public_key_mappings_without_altering_the_ledger(world, variant) -> None:
    if variant == "another plaintext":
        world.network.edit(lambda page: page["history"][0]["plain"].update({"public-key": key(66).public_text}))
        world.refuses(Invalid, "PlaintextMismatch")
        return
    built = build.enrol(ALICE_OF_ALPHA, key(1), recent_root=world.log.recent(), now=NOW)
    sealed = built.wire["message"]["public-key"]
    for other in (bytes(32), bytes_of("yvonne"), decode_base64url(built.wire["symmetric-keys"]["actor"])):
        with pytest.raises(Invalid, match="AttributeDecryptionFailed"):
            attributes.decrypt_attribute(SPEC, "public-key", sealed, other, world.log.recent())


def test_attackers_seek_to_leverage_plaintext_commitment_to_recover_encrypted_records_whose_keys_were_wiped(
    monkeypatch,
) -> None:
    """Every guess costs one Argon2id of 16 MiB, for one record alone: no two records share a salt."""
    calls: list[tuple[bytes, bytes]] = []
    real = attributes.argon2id
    monkeypatch.setattr(attributes, "argon2id", lambda password, salt: calls.append((password, salt)) or real(password, salt))
    root = f"pkd-mr-v1:{encode_base64url(bytes(32))}"
    records = [
        attributes.encrypt_attribute(SPEC, "actor", ALICE, bytes_of(f"key {n}"), root, bytes_of(f"random {n}"))
        for n in range(3)
    ]
    assert len({salt for _, salt in calls}) == 3  # the same person, the same root: nothing to share
    calls.clear()
    for guess in (ALICE[:-1] + letter for letter in "abcd"):
        for record in records:
            with pytest.raises(Invalid, match="PlaintextMismatch"):
                attributes.check_commitment(SPEC, "actor", record, guess, root)
    assert len(calls) == 12
    memory = {"memory_cost": 0, "iterations": 0, "lanes": 0}

    class Asked(Exception):
        """The real work was about to begin."""

    def note_costs(**options):
        memory.update(options)
        raise Asked

    # Both libraries give the same bytes (tests/unit/test_pkd_argon2.py), so what the one is asked for the other does.
    monkeypatch.setattr(argon2, "Argon2id", note_costs)
    with pytest.raises(Asked):
        argon2.by_cryptography(b"", bytes(16))
    assert (memory["memory_cost"], memory["iterations"], memory["lanes"]) == (16384, 3, 1)


def test_malicious_instance_administrator_also_controls_the_public_key_directory(world) -> None:
    """Without witnesses of its own choice the log convinces nobody, however well it signs."""
    world.log.publish(witnesses=0)
    world.refuses(PolicyUnmet, "TooFewWitnesses")


def test_attacker_uses_a_decoy_public_key_directory_that_publishes_a_dishonest_history(world) -> None:
    """Which log speaks for a domain is the client's own knowledge; the decoy answers in its place in vain."""
    decoy = TinyLog("keys.decoy.example", seed=50)
    say(decoy, enrol, ALICE_OF_ALPHA, key(66))
    decoy.publish()
    world.network.logs[CLIENT_ORIGIN] = decoy
    error = world.refuses(Invalid, "WrongLog")
    assert error.exit_code == 5


def test_witness_collusion_attacks(world) -> None:
    """One of three colludes: too few for a quorum of two. A quorum that one could make is refused outright."""
    world.log.publish(witnesses=1)
    world.refuses(PolicyUnmet, "TooFewWitnesses")
    with pytest.raises(PolicyUnmet, match="UnsafePolicy"):
        world.directory(policy=make_policy([world.log], need=1))


def test_cosmic_ray_causes_a_bit_flip_on_stored_data_or_the_result_of_a_computation() -> None:
    """Any flipped bit of an entry, of a proof or of a root is noticed by whoever verifies."""
    desk = enrolled((ALICE, "a"), (BOB, "b"), (CAROL, "c"))
    entries = desk.store.entries(0, 3)
    read = leaf_reader([hash_leaf(entry) for entry in entries])
    root, proof = root_hash(3, read), prove_inclusion(1, 3, read)
    verify_inclusion(hash_leaf(entries[1]), 1, 3, proof, root)
    for bit in range(0, 8 * len(entries[1]), 97):
        damaged = bytearray(entries[1])
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Invalid):
            verify_inclusion(hash_leaf(bytes(damaged)), 1, 3, proof, root)
