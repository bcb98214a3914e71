"""The attacks of the specification's threat model, each by its name and against the real components.

What the specification calls prevented fails here. What it leaves open succeeds here, and the test shows
what of it everybody can see afterwards: that is all that PKD promises.

Those that are the log's or its operator's own are in test_threat_model_log.py.

Source: PKD v0.8.0, "Threat Model", "Risks".
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
from client_log import key
from client_world import ALICE as ALICE_OF_ALPHA
from client_world import ROOT as ROOT_OF_ALPHA
from client_world import World, remembering_argon2id, say

from ktlog.client import build
from ktlog.client.build import add_key, burn_down, enrol
from ktlog.errors import Invalid, MessageRejected, RateLimited
from ktlog.operator.create import create_log
from ktlog.operator.guard import Guard
from ktlog.operator.link import Receipt
from ktlog.operator.request import Source
from ktlog.operator.shred import plan_for
from ktlog.pkd import attributes
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import verify_entry
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import encode_root, key_hash
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    Message,
    RevokeKey,
    UndoFireproof,
    message_from_plain,
    parse_wire,
)
from ktlog.pkd.state import Cause, Status
from ktlog.pkd.totp import totp_code, verify_totp
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from ktlog.web.app import create_app
from tests.admission_world import ERIN, HPKE, PEER_ACTOR, Inbox, checkpoint, http_key
from tests.operator_world import ORIGIN, Desk, leaf_key
from tests.pkd_samples import ALICE, BOB, CAROL, NOW, bytes_of, public, revoke_by_token
from tests.store_samples import dump

SECRET = bytes_of("an instance's TOTP secret")
DAVE, RICHARD = "https://richards.example/users/dave", "https://richards.example/users/richard"


def add(who: str, name: str, when: int = NOW) -> AddKey:
    return AddKey(who, public(name), when)


def enrolled(*people: tuple[str, str]) -> Desk:
    desk = Desk()
    for who, name in people:
        desk.send(add(who, name), name)
    return desk


def refused(desk: Desk, message: Message, signer: str) -> str:
    """The sequencer's refusal, which leaves the store as it was."""
    before = dump(desk.store)
    (result,) = desk.batch(desk.make(message, signer))
    assert isinstance(result, MessageRejected), result
    assert dump(desk.store) == before
    return result.code


def public_record(desk: Desk, index: int) -> Message:
    """What an auditor reads of one entry, everything checked: the immutable evidence of the deed."""
    (record,) = desk.store.records(index, index + 1)
    verify_entry(record.entry, record.preimage, {hashlib.sha256(leaf_key().public).digest(): leaf_key().public})
    _, message = message_from_plain(SPEC, record.preimage, record.plain, commitments=True)
    return message


@pytest.fixture
def world(tmp_path, monkeypatch) -> World:
    """A client of a log in which Alice, Bob and Root enrolled and Alice rotated."""
    monkeypatch.setattr(attributes, "argon2id", remembering_argon2id)
    return World(tmp_path)


# --- the instance and its administrator


def test_instance_administrator_enrolls_a_public_key_on_behalf_of_an_un_enrolled_user() -> None:
    """It succeeds, as it must, and stays visible for ever: Dave finds an enrolment that he did not make."""
    desk = enrolled((DAVE, "richards"))
    assert public_record(desk, 0) == add(DAVE, "richards")
    assert desk.store.history(DAVE) == ((0, 1),)
    # And Dave cannot be shut out in silence: his own enrolment is refused, by its reason.
    assert refused(desk, add(DAVE, "daves"), "daves") == "self_signed_not_allowed"


def test_instance_administrator_attempts_to_enroll_a_new_public_key_for_a_previously_enrolled_user() -> None:
    desk = enrolled((DAVE, "daves"))
    assert refused(desk, add(DAVE, "richards"), "richards") == "self_signed_not_allowed"
    desk.send(add(RICHARD, "richards"), "richards")
    assert refused(desk, add(DAVE, "more"), "richards") == "bad_signature"
    assert [held.public_key for held in desk.store.actor(DAVE).keys] == [public("daves")]


def test_instance_administrator_attempts_to_reset_the_public_keys_for_a_previously_enrolled_user() -> None:
    desk = enrolled((DAVE, "daves"), (RICHARD, "richards"))
    fireproof = enrolled((DAVE, "daves"), (RICHARD, "richards"))
    fireproof.send(Fireproof(DAVE, NOW), "daves")
    assert refused(fireproof, BurnDown(DAVE, RICHARD, NOW), "richards") == "actor_is_fireproof"
    desk.send(BurnDown(DAVE, RICHARD, NOW), "richards")
    assert desk.store.actor(DAVE).status == Status.BURNED


def test_race_condition_between_successful_burn_down_and_subsequent_add_key(world) -> None:
    """Open: whoever enrols first after a BurnDown wins. Nobody who knew Dave takes it for the old trust."""
    world.lookup(ROOT_OF_ALPHA)
    before = world.lookup()
    say(world.log, burn_down, ALICE_OF_ALPHA, ROOT_OF_ALPHA, key(20))
    say(world.log, enrol, ALICE_OF_ALPHA, key(66))
    world.log.publish()
    after = world.lookup()
    assert [held.public_key for held in after.keys] == [key(66).public_key]
    assert (before.reset, after.generation) == (None, before.generation + 1)
    assert after.reset is not None and "BurnDown" in after.reset


def test_hostile_nation_state_demands_their_public_key_be_added_to_an_existing_actor_under_a_gag_order() -> None:
    """Alice, who runs Bob's instance, cannot comply; burning Bob down first cannot be kept quiet."""
    desk = enrolled((BOB, "b"), (ALICE, "a"))
    assert refused(desk, add(BOB, "graces"), "graces") == "self_signed_not_allowed"
    assert refused(desk, add(BOB, "graces"), "a") == "bad_signature"
    desk.send(BurnDown(BOB, ALICE, NOW), "a")
    desk.send(add(BOB, "graces"), "graces")
    assert [public_record(desk, 2), public_record(desk, 3)] == [BurnDown(BOB, ALICE, NOW), add(BOB, "graces")]
    assert (desk.store.actor(BOB).generation, desk.store.actor(BOB).cause) == (2, Cause.BURNED)


def test_hostile_nation_state_seeks_to_abuse_right_to_be_forgotten_mechanisms_to_cover_up_an_unlawful_intrusion() -> None:
    """The cover-up itself stays on record: entries and roots as they were, an erasure that says when, and of which
    index; and Bob's friends are told that he starts over, not that nothing happened."""
    desk = enrolled((BOB, "b"), (ALICE, "a"))
    desk.send(BurnDown(BOB, ALICE, NOW), "a")
    desk.send(add(BOB, "graces"), "graces")
    before, actor = desk.store.state(), desk.store.actor(BOB)
    entries = desk.store.entries(0, 4)
    desk.store.erase(plan_for(desk.store, actor), before)
    assert (desk.store.state().size, desk.store.state().root, desk.store.entries(0, 4)) == (4, before.root, entries)
    (record,) = desk.store.erasures(0, 1)
    assert (record.input_size, record.index) == (4, map_index(ORIGIN, BOB))
    assert [row.withheld for row in desk.store.records(0, 4)] == [True, False, True, True]
    assert json.loads(desk.store.records(2, 3)[0].preimage)["action"] == "BurnDown"
    desk.restart()
    desk.send(add(BOB, "bobs"), "bobs")
    again = desk.store.actor(BOB)
    assert (again.cause, again.erasures) == (Cause.ERASED, 1)
    assert again.generation > actor.generation and again.version > actor.version


def test_instance_administrator_loses_all_their_signing_keys() -> None:
    """Carol's way back: a second account of her own instance burns the first one down, then herself."""
    second = "https://example.net/users/carol2"
    desk = enrolled((CAROL, "lost"))
    desk.send(add(second, "new"), "new")
    desk.send(BurnDown(CAROL, second, NOW), "new")
    desk.send(add(CAROL, "carols"), "carols")
    desk.send(BurnDown(second, second, NOW), "new")
    assert [held.public_key for held in desk.store.actor(CAROL).keys] == [public("carols")]
    assert desk.store.actor(second).keys == ()
    # Unless she was Fireproof: then nobody can, and that is what she chose.
    stuck = enrolled((CAROL, "lost"), (second, "new"))
    stuck.send(Fireproof(CAROL, NOW), "lost")
    assert refused(stuck, BurnDown(CAROL, second, NOW), "new") == "actor_is_fireproof"


def test_attacker_sends_spoofed_messages_on_behalf_of_another_server() -> None:
    """Mallory signs requests as Alice's instance, with keys that Alice's instance does not list."""
    inbox = Inbox()
    inbox.enrol(ALICE, "a")
    before = dump(inbox.desk.store)
    content = build.build_envelope(BOB, inbox.sealed(inbox.wire(add(BOB, "mallorys"), "mallorys")))
    good = inbox.request(content, BOB)
    mallorys = http_key("https://evil.example/users/mallory")
    spoofed = [
        inbox.signed(good.body, BOB, key=mallorys),
        inbox.signed(good.body, BOB, key=mallorys, key_id="https://evil.example/users/mallory#main-key"),
        inbox.signed(good.body, BOB, key=mallorys, key_id=f"{BOB}#another-key"),
        inbox.signed(good.body, BOB, key=http_key(ALICE), key_id=f"{ALICE}#main-key"),
    ]
    assert [inbox.code(request) for request in spoofed] == ["unauthorized"] + ["unknown_http_key"] * 3
    burn = inbox.wire(BurnDown(BOB, ALICE, NOW), "a")
    assert inbox.admission is not None
    with pytest.raises(MessageRejected) as caught:
        inbox.admission.admit_burndown(inbox.burn_request(burn, ALICE, key=mallorys))
    assert caught.value.code == "unauthorized"
    assert dump(inbox.desk.store) == before
    assert inbox.admission.admit(good).plain["actor"] == BOB  # and with Bob's own it goes through


def test_attacker_sends_spoofed_messages_from_a_compromised_fediverse_server() -> None:
    """Mallory has the instance's HTTP keys, and none of its people's: what is Fireproof stays as it is."""
    inbox = Inbox()
    inbox.enrol(DAVE, "daves")
    inbox.enrol(RICHARD, "richards")
    inbox.desk.send(Fireproof(DAVE, NOW), "daves")
    inbox.desk.batch(inbox.desk.make(Fireproof(RICHARD, NOW), "richards"))
    before = dump(inbox.desk.store)
    assert inbox.message_code(add(DAVE, "mallorys"), "mallorys", sender=DAVE) == "self_signed_not_allowed"
    for message in (RevokeKey(DAVE, public("daves"), NOW), UndoFireproof(DAVE, NOW), AddAuxData(DAVE, "test", "x", None, NOW)):
        assert inbox.message_code(message, "mallorys", sender=DAVE) == "bad_signature"
    assert inbox.burn_code(BurnDown(DAVE, RICHARD, NOW), "mallorys", operator=RICHARD) == "bad_signature"
    assert inbox.burn_code(BurnDown(DAVE, RICHARD, NOW), "richards", operator=RICHARD) == "actor_is_fireproof"
    assert dump(inbox.desk.store) == before


def test_malicious_instance_administrator_attempts_to_censor_fireproof_messages_to_retain_control() -> None:
    """What the instance passes on says neither what it is nor how long it is, to within a kibibyte."""
    inbox = Inbox()
    inbox.enrol()
    sealed = {
        type(message).__name__: build.build_envelope(ALICE, inbox.sealed(inbox.wire(message)))
        for message in (Fireproof(ALICE, NOW), UndoFireproof(ALICE, NOW), AddAuxData(ALICE, "test", "a" * 60, None, NOW))
    }
    assert len({len(text) for text in sealed.values()}) == 1
    for text in sealed.values():
        envelope = json.loads(text)
        assert set(envelope) == {"!pkd-context", "actor", "encrypted-message"}
        raw = decode_base64url(envelope["encrypted-message"].removeprefix("hpke:"))
        assert b"Fireproof" not in raw and b"AuxData" not in raw
        assert (len(raw) - 1136) % 1024 == 0
    assert HPKE.encapsulation_key not in sealed["Fireproof"].encode()


# --- strangers and other users


def test_attacker_submits_contraband_as_auxiliary_data() -> None:
    """Only types that the log takes, only text that the type's own rule takes."""
    inbox = Inbox()
    inbox.enrol()
    before = dump(inbox.desk.store)
    assert inbox.message_code(AddAuxData(ALICE, "picture", "…", None, NOW)) == "unsupported_aux_type"
    assert inbox.message_code(AddAuxData(ALICE, "test", "spam", None, NOW)) == "bad_aux_data"
    assert dump(inbox.desk.store) == before
    assert inbox.admit(AddAuxData(ALICE, "test", "eggs", None, NOW)).plain["aux-data"] == "eggs"


def test_actor_confusion_between_http_message_signatures_and_protocol_messages() -> None:
    """Mallory's HTTP signature is good and the message is for Bob, once even signed by Bob."""
    inbox = Inbox()
    inbox.enrol(BOB, "b")
    before = dump(inbox.desk.store)
    for signer in ("b", "mallorys"):
        wire = inbox.wire(Fireproof(BOB, NOW), signer)
        for outer in (ALICE, BOB):
            request = inbox.request(build.build_envelope(outer, inbox.sealed(wire)), ALICE)
            assert inbox.code(request) == "actor_mismatch"
    assert dump(inbox.desk.store) == before


def test_sharing_an_account_by_sharing_the_secret_key() -> None:
    """Open: Troy, who has the key too, takes the account; every step of it is on record."""
    desk = enrolled((BOB, "shared"))
    desk.send(add(BOB, "troys"), "shared")
    desk.send(RevokeKey(BOB, public("shared"), NOW), "troys")
    desk.send(Fireproof(BOB, NOW), "troys")
    assert [held.public_key for held in desk.store.actor(BOB).keys] == [public("troys")]
    assert [type(public_record(desk, index)).__name__ for index in range(4)] == ["AddKey", "AddKey", "RevokeKey", "Fireproof"]


def test_shared_accounts_by_adding_two_keys() -> None:
    """Open: one of two keys revokes the other. Which one did it can be read off the signature."""
    desk = enrolled((BOB, "b"))
    desk.send(add(BOB, "troys"), "b")
    desk.send(RevokeKey(BOB, public("b"), NOW), "troys")
    assert [held.public_key for held in desk.store.actor(BOB).keys] == [public("troys")]
    # Bob's key is of no use any more.
    assert refused(desk, RevokeKey(BOB, public("troys"), NOW), "b") == "bad_signature"


def test_timing_side_channel_attacks(monkeypatch) -> None:
    """What a stranger can try again and again is compared by hmac.compare_digest, window by window, to the end."""
    compared: list[tuple] = []
    monkeypatch.setattr("hmac.compare_digest", lambda one, other: compared.append((one, other)) and False)
    for code in ("00000000", totp_code(SECRET, NOW // 30), "not a code"):
        compared.clear()
        with pytest.raises(MessageRejected, match="bad_otp"):
            verify_totp(SECRET, code, NOW, -1)
        assert len(compared) == 3
    compared.clear()
    text = attributes.encrypt_attribute(SPEC, "actor", ALICE, bytes(32), f"pkd-mr-v1:{'A' * 43}", bytes(32))
    with pytest.raises(Invalid):
        attributes.decrypt_without_commitment(SPEC, "actor", text, bytes(32))
    assert len(compared) == 1


def test_parallel_enrollment_race_conditions() -> None:
    """Two AddKeys for one new actor, both good when they were admitted: in one batch, and one after the other."""
    for together in (True, False):
        inbox = Inbox()
        inbox.enrol(BOB, "b")  # so that both are bound to a root that stays recent
        one, other = inbox.admit(add(ALICE, "a")), inbox.admit(add(ALICE, "mallorys"), "mallorys")
        results = inbox.desk.batch(one, other) if together else [*inbox.desk.batch(one), *inbox.desk.batch(other)]
        assert isinstance(results[0], Receipt)
        assert isinstance(results[1], MessageRejected) and results[1].code == "self_signed_not_allowed"
        assert inbox.desk.size == 2
        assert [held.public_key for held in inbox.desk.store.actor(ALICE).keys] == [public("a")]


def test_dns_rebinding_attacks(tmp_path) -> None:
    """A page of evil.example whose name now means the log's address reaches nothing of it."""
    settings = create_log(tmp_path / "log", "keys.alpha.example", "spec", None)
    client = create_app(settings).test_client()
    for host in ("evil.example", "127.0.0.1", "[::1]", "localhost", "keys.alpha.example.evil.example", "keys.alpha.example:8443"):
        for path in ("/api/info", "/api/history", "/checkpoint", "/users/pubkeydir"):
            found = client.get(path, headers={"Host": host})
            assert (found.status_code, found.get_json()["code"]) == (421, "wrong_host"), (host, path)
    assert client.get("/api/info", headers={"Host": "keys.alpha.example"}).status_code == 200


def test_cross_pkd_consistency_verification_attacks() -> None:
    """A peer's root gets into this log by a Checkpoint of that peer alone: right key, right host, on the list."""
    inbox = Inbox()
    inbox.enrol()
    good = checkpoint(inbox)
    codes = [
        inbox.message_code(good, "directory", sender=ERIN),  # delivered by another host
        inbox.message_code(good, "mallorys", sender=PEER_ACTOR),  # signed by another key
        inbox.message_code(replace(good, from_public_key=public("mallorys")), "mallorys", sender=PEER_ACTOR),
        inbox.message_code(replace(good, from_directory="https://keys.evil.example"), "directory", sender=PEER_ACTOR),
        inbox.message_code(replace(good, to_directory="https://keys.other.example"), "directory", sender=PEER_ACTOR),
        inbox.message_code(replace(good, to_validated_root=encode_root(bytes(31) + b"x")), "directory", sender=PEER_ACTOR),
    ]
    assert codes == [
        "actor_mismatch", "bad_signature", "directory_key_mismatch", "directory_not_allowed", "wrong_directory",
        "merkle_root_stale",
    ]
    assert inbox.desk.size == 1
    submission = inbox.admit(good, "directory", sender=PEER_ACTOR)
    (receipt,) = inbox.desk.batch(submission)
    assert isinstance(receipt, Receipt)
    assert public_record(inbox.desk, 1) == good  # both logs now bear witness to one root


def test_attacks_against_the_one_time_password_on_burn_down(tmp_path) -> None:
    """Guessing: each wrong code costs eight refusals' wait, a few dozen tries a day of 10^8. Overhearing: used up."""
    clock = [NOW * 1000]
    guard = Guard(tmp_path / "guard.db", 100, 3600, (), lambda: clock[0])
    attacker, tries = Source("192.0.2.9", "example.com"), 0
    while clock[0] < (NOW + 86_400) * 1000:
        try:
            guard.check(attacker, None)
        except RateLimited as error:
            clock[0] += error.retry_after_ms
            continue
        tries += 1
        with pytest.raises(MessageRejected, match="bad_otp"):
            verify_totp(SECRET, "00000000", clock[0] // 1000, -1)
        guard.penalize(attacker, weight=8)
    guard.close()
    assert 3 <= tries <= 60
    code = totp_code(SECRET, NOW // 30)
    window = verify_totp(SECRET, code, NOW, -1)
    for later in (NOW, NOW + 30, NOW + 60):
        with pytest.raises(MessageRejected, match="otp_reused"):
            verify_totp(SECRET, code, later, window)
    with pytest.raises(MessageRejected, match="bad_otp"):
        verify_totp(SECRET, code, NOW + 90, -1)


def test_permanent_lockout_via_revoke_key_third_party_fireproof_and_a_hostile_instance() -> None:
    """Open: Henry has Dave's only key. Fireproof outlasts the token; who enrols next is a new root of trust."""
    desk = enrolled((DAVE, "daves"), (RICHARD, "richards"))
    desk.send(Fireproof(DAVE, NOW), "daves")
    desk.send(revoke_by_token("daves"))
    dave = desk.store.actor(DAVE)
    assert (dave.keys, dave.fireproof, dave.status) == ((), True, Status.REVOKED)
    assert refused(desk, BurnDown(DAVE, RICHARD, NOW), "richards") == "actor_not_enrolled"
    assert refused(desk, add(DAVE, "daves"), "daves") == "key_revoked"  # not even Henry gets in with that key
    assert desk.store.token_revoked(key_hash(public("daves")))
    desk.send(add(DAVE, "henrys"), "henrys")
    assert (desk.store.actor(DAVE).generation, desk.store.actor(DAVE).cause) == (2, Cause.REVOKED)


def test_an_adversary_with_a_cryptography_relevant_quantum_computer_wants_to_forge_protocol_messages() -> None:
    """They can make any Ed25519 signature, here by having the key. What people signed is ML-DSA-44."""
    inbox = Inbox()
    inbox.enrol(BOB, "b")
    wire = inbox.wire(Fireproof(BOB, NOW), "b")
    signature = http_key(BOB).sign(parse_wire(SPEC, json.dumps(wire)).signed_bytes)
    for forged in (signature, signature.ljust(2420, b"\0"), bytes(2420)):
        assert inbox.wire_code(wire | {"signature": encode_base64url(forged)}, BOB) == "bad_signature"
    assert inbox.admit(Fireproof(BOB, NOW), "b", sender=BOB).plain == {"actor": BOB}


def test_slander_campaign_against_an_instance_and_its_administrators() -> None:
    """Open: the log shows that an instance brought a first key, and can show nothing about who asked for it."""
    desk = enrolled((BOB, "b"))
    (record,) = desk.store.records(0, 1)
    members = json.loads(record.preimage)
    assert set(members) == {"!pkd-context", "action", "message", "recent-merkle-root", "signature"}
    assert public_record(desk, 0) == add(BOB, "b")
    # After the first key nothing moves without it, which is Alice's remedy.
    assert refused(desk, replace(add(BOB, "alices"), time=NOW + 1), "alices") == "self_signed_not_allowed"


def test_growing_trust_in_an_honest_actor_is_no_alarm(world) -> None:
    """Or all of the above would hold for a client that trusts nobody."""
    first = world.lookup()
    say(world.log, add_key, ALICE_OF_ALPHA, key(4).public_key, key(2))
    world.log.publish()
    again = world.lookup()
    assert (first.reset, again.reset) == (None, None)
    assert [held.public_key for held in again.new_keys] == [key(4).public_key]
