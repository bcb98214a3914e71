"""Fireproof, UndoFireproof, AddAuxData and RevokeAuxData: every validation step of the specification, by its number.

Each message is right in all but the one thing that its step is about, and comes through the whole of admission.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.messages import AddAuxData, BurnDown, Fireproof, Message, RevokeAuxData, UndoFireproof
from tests.admission_world import NOBODYS_KEY_ID, UNDECIPHERABLE, Inbox, badly_signed, keyless, two_actors
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2  # noqa: F401

AUX_ID = aux_data_id("test", "x")
PROOF = Fireproof(ALICE, NOW)
UNDO = UndoFireproof(ALICE, NOW)
ADD = AddAuxData(ALICE, "test", "x", None, NOW)
REVOKE = RevokeAuxData(ALICE, "test", None, "x", NOW)
REVOKE_BY_ID = RevokeAuxData(ALICE, "test", AUX_ID, None, NOW)


@pytest.fixture
def inbox() -> Inbox:
    return two_actors()


@pytest.fixture
def proofed() -> Inbox:
    """The same, and Alice is Fireproof."""
    inbox = two_actors()
    inbox.desk.send(PROOF)
    return inbox


@pytest.fixture
def stocked() -> Inbox:
    """The same, and Alice has auxiliary data."""
    inbox = two_actors()
    inbox.desk.send(ADD)
    return inbox


def check_key_id(inbox: Inbox, message: Message) -> None:
    """Of the actor's keys the hint selects one, and no other key counts then."""
    assert inbox.message_code(message, key_id=NOBODYS_KEY_ID) == "unknown_key_id"
    assert inbox.message_code(message, key_id=inbox.key_id(BOB, "c")) == "unknown_key_id"
    assert inbox.message_code(message, key_id=inbox.key_id(ALICE, "b")) == "bad_signature"
    inbox.take(message, key_id=inbox.key_id(ALICE, "a"))


def check_any_key(inbox: Inbox, message: Message) -> None:
    """Without a hint every key of the actor is tried, and nobody else's."""
    assert inbox.message_code(message, "c") == "bad_signature"
    inbox.take(message, "b")


def check_not_enrolled(inbox: Inbox, message: Callable[[str], Message]) -> None:
    assert inbox.message_code(message(CAROL), sender=CAROL) == "actor_not_enrolled"


# --- Fireproof


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_fireproof_step_1_the_actor_decrypts(inbox, spoil, code):
    assert inbox.wire_code(spoil(inbox.wire(PROOF), "actor")) == code


def test_fireproof_step_2_the_sender_is_the_actor(inbox):
    assert inbox.message_code(PROOF, sender=BOB) == "actor_mismatch"


def test_fireproof_step_3_the_actor_is_enrolled(inbox):
    check_not_enrolled(inbox, lambda actor: Fireproof(actor, NOW))


def test_fireproof_step_4_a_key_id_selects_the_key(inbox):
    check_key_id(inbox, PROOF)


def test_fireproof_step_5_without_a_key_id_every_key_is_tried(inbox):
    check_any_key(inbox, PROOF)


def test_fireproof_step_6_the_signature_holds(inbox):
    assert inbox.wire_code(badly_signed(inbox.wire(PROOF))) == "bad_signature"


def test_fireproof_step_7_the_actor_is_fireproof(inbox):
    inbox.take(PROOF)
    assert inbox.desk.store.actor(ALICE).fireproof
    assert not inbox.desk.store.actor(BOB).fireproof
    assert inbox.burn_code(BurnDown(ALICE, BOB, NOW), "c", BOB) == "actor_is_fireproof"


def test_fireproof_is_not_idempotent(proofed):
    assert proofed.message_code(Fireproof(ALICE, NOW + 1)) == "already_fireproof"


# --- UndoFireproof


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_undo_fireproof_step_1_the_actor_decrypts(proofed, spoil, code):
    assert proofed.wire_code(spoil(proofed.wire(UNDO), "actor")) == code


def test_undo_fireproof_step_2_the_actor_is_enrolled(proofed):
    check_not_enrolled(proofed, lambda actor: UndoFireproof(actor, NOW))


def test_undo_fireproof_step_3_the_sender_is_the_actor(proofed):
    assert proofed.message_code(UNDO, sender=BOB) == "actor_mismatch"


def test_undo_fireproof_step_4_a_key_id_selects_the_key(proofed):
    check_key_id(proofed, UNDO)


def test_undo_fireproof_step_5_without_a_key_id_every_key_is_tried(proofed):
    check_any_key(proofed, UNDO)


def test_undo_fireproof_step_6_the_signature_holds(proofed):
    assert proofed.wire_code(badly_signed(proofed.wire(UNDO))) == "bad_signature"


def test_undo_fireproof_step_7_the_actor_can_be_burned_down_again(proofed):
    proofed.take(UNDO)
    assert not proofed.desk.store.actor(ALICE).fireproof
    proofed.sequence(proofed.burn(BurnDown(ALICE, BOB, NOW), "c", BOB))
    assert proofed.desk.store.actor(ALICE).keys == ()


def test_undo_fireproof_of_an_actor_who_is_not_fireproof(inbox):
    assert inbox.message_code(UNDO) == "not_fireproof"


# --- AddAuxData


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_add_aux_data_step_1_the_actor_decrypts(inbox, spoil, code):
    assert inbox.wire_code(spoil(inbox.wire(ADD), "actor")) == code


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_add_aux_data_step_2_the_data_decrypts(inbox, spoil, code):
    assert inbox.wire_code(spoil(inbox.wire(ADD), "aux-data")) == code


@pytest.mark.parametrize("aux_type", ["other", "test-alias"])
def test_add_aux_data_step_3_the_type_is_supported_by_its_own_name(inbox, aux_type):
    assert inbox.message_code(AddAuxData(ALICE, aux_type, "x", None, NOW)) == "unsupported_aux_type"


def test_add_aux_data_step_4_the_sender_is_the_actor(inbox):
    assert inbox.message_code(ADD, sender=BOB) == "actor_mismatch"


def test_add_aux_data_step_5_the_actor_is_enrolled(inbox):
    check_not_enrolled(inbox, lambda actor: AddAuxData(actor, "test", "x", None, NOW))


def test_add_aux_data_step_6_a_key_id_selects_the_key(inbox):
    check_key_id(inbox, ADD)


def test_add_aux_data_step_7_without_a_key_id_every_key_is_tried(inbox):
    check_any_key(inbox, ADD)


def test_add_aux_data_step_8_the_signature_holds(inbox):
    assert inbox.wire_code(badly_signed(inbox.wire(ADD))) == "bad_signature"


def test_add_aux_data_step_9_the_data_follows_the_rules_of_its_type(inbox):
    spam = AddAuxData(ALICE, "test", "spam", None, NOW)
    assert inbox.message_code(spam) == "bad_aux_data"
    assert inbox.message_code(spam, "c") == "bad_signature"  # a stranger does not learn that much
    inbox.take(ADD)
    assert [(aux.aux_type, aux.aux_data, aux.aux_id) for aux in inbox.desk.store.actor(ALICE).aux] == [
        ("test", "x", AUX_ID),
    ]


def test_add_aux_data_with_the_id_of_other_data(inbox):
    assert inbox.message_code(AddAuxData(ALICE, "test", "y", AUX_ID, NOW)) == "aux_id_mismatch"
    inbox.take(AddAuxData(ALICE, "test", "x", AUX_ID, NOW))


def test_add_aux_data_that_is_there_already(stocked):
    assert stocked.message_code(AddAuxData(ALICE, "test", "x", None, NOW + 1)) == "aux_exists"


# --- RevokeAuxData


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_revoke_aux_data_step_1_the_actor_decrypts(stocked, spoil, code):
    assert stocked.wire_code(spoil(stocked.wire(REVOKE), "actor")) == code


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_revoke_aux_data_step_2_the_data_decrypts(stocked, spoil, code):
    assert stocked.wire_code(spoil(stocked.wire(REVOKE), "aux-data")) == code


def test_revoke_aux_data_step_2_data_in_clear_text_is_refused(stocked):
    wire = keyless(stocked.wire(REVOKE), "aux-data")
    wire["message"] = wire["message"] | {"aux-data": "x"}
    assert stocked.wire_code(wire) in ("attribute_decryption_failed", "bad_symmetric_key")


def test_revoke_aux_data_step_3_the_sender_is_the_actor(stocked):
    assert stocked.message_code(REVOKE, sender=BOB) == "actor_mismatch"


def test_revoke_aux_data_step_4_the_actor_is_enrolled(stocked):
    check_not_enrolled(stocked, lambda actor: RevokeAuxData(actor, "test", None, "x", NOW))


def test_revoke_aux_data_step_5_an_id_is_enough(stocked):
    stocked.take(REVOKE_BY_ID)
    assert stocked.desk.store.actor(ALICE).aux == ()


def test_revoke_aux_data_step_6_the_data_is_enough(stocked):
    stocked.take(REVOKE)
    assert stocked.desk.store.actor(ALICE).aux == ()


@pytest.mark.parametrize("message", [
    RevokeAuxData(ALICE, "test", None, "y", NOW), RevokeAuxData(ALICE, "test", aux_data_id("test", "y"), None, NOW),
    RevokeAuxData(ALICE, "other", None, "x", NOW), RevokeAuxData(ALICE, "other", AUX_ID, None, NOW),
])
def test_revoke_aux_data_step_7_there_is_such_data(stocked, message):
    assert stocked.message_code(message) == "unknown_aux"


def test_revoke_aux_data_step_7_of_this_actor(stocked):
    message = RevokeAuxData(BOB, "test", AUX_ID, None, NOW)
    assert stocked.message_code(message, "c", BOB) == "unknown_aux"


def test_revoke_aux_data_step_8_a_key_id_selects_the_key(stocked):
    check_key_id(stocked, REVOKE)


def test_revoke_aux_data_step_9_without_a_key_id_every_key_is_tried(stocked):
    check_any_key(stocked, REVOKE)


def test_revoke_aux_data_step_10_the_signature_holds(stocked):
    assert stocked.wire_code(badly_signed(stocked.wire(REVOKE))) == "bad_signature"


def test_revoke_aux_data_step_11_nothing_else_goes(stocked):
    stocked.desk.send(AddAuxData(ALICE, "test", "y", None, NOW))
    stocked.take(REVOKE)
    assert [aux.aux_data for aux in stocked.desk.store.actor(ALICE).aux] == ["y"]


def test_revoke_aux_data_whose_id_and_text_disagree(stocked):
    message = RevokeAuxData(ALICE, "test", aux_data_id("test", "y"), "x", NOW)
    assert stocked.message_code(message) == "aux_id_mismatch"


def test_revoke_aux_data_needs_data_or_id(stocked):
    wire = stocked.wire(REVOKE_BY_ID)
    wire["message"] = {name: text for name, text in wire["message"].items() if name != "aux-id"}
    assert stocked.wire_code(wire) == "bad_request"


def test_revoke_aux_data_of_a_type_that_the_log_no_longer_takes(stocked):
    """Or what slipped in could never be taken out."""
    stocked.admission._extensions = {}
    assert stocked.message_code(AddAuxData(ALICE, "test", "y", None, NOW)) == "unsupported_aux_type"
    stocked.take(REVOKE)
