"""AddKey, RevokeKey and MoveIdentity: every validation step of the specification, by its number.

Each message is right in all but the one thing that its step is about, and comes through the whole of admission.
"""

from __future__ import annotations

import pytest

from ktlog.pkd.messages import AddAuxData, AddKey, BurnDown, Fireproof, MoveIdentity, RevokeKey
from ktlog.pkd.state import Status
from tests.admission_world import NOBODYS_KEY_ID, UNDECIPHERABLE, Inbox, badly_signed, two_actors
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2, revoke_by_token  # noqa: F401


@pytest.fixture
def empty() -> Inbox:
    return Inbox()


@pytest.fixture
def inbox() -> Inbox:
    return two_actors()


def keys_of(inbox: Inbox, actor: str) -> list[bytes]:
    return [key.public_key for key in inbox.desk.store.actor(actor).keys]


FIRST = AddKey(ALICE, public("a"), NOW)
SECOND = AddKey(ALICE, public("d"), NOW)
REVOKE = RevokeKey(ALICE, public("b"), NOW)
MOVE = MoveIdentity(ALICE, CAROL, NOW)


# --- AddKey


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_add_key_step_1_the_actor_decrypts(empty, spoil, code):
    assert empty.wire_code(spoil(empty.wire(FIRST), "actor")) == code


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_add_key_step_2_the_public_key_decrypts(empty, spoil, code):
    assert empty.wire_code(spoil(empty.wire(FIRST), "public-key")) == code


def test_add_key_step_3_the_first_key_signs_itself(empty):
    assert empty.message_code(FIRST, "b") == "bad_signature"
    assert empty.wire_code(badly_signed(empty.wire(FIRST))) == "bad_signature"
    assert empty.take(FIRST).leaf_index == 0


def test_add_key_step_3_a_key_id_does_not_count_for_the_first_key(empty):
    assert empty.take(FIRST, key_id=NOBODYS_KEY_ID).leaf_index == 0


def test_add_key_step_4_a_key_id_selects_the_key(inbox):
    assert inbox.message_code(SECOND, "a", key_id=NOBODYS_KEY_ID) == "unknown_key_id"
    assert inbox.message_code(SECOND, "a", key_id=inbox.key_id(BOB, "c")) == "unknown_key_id"
    assert inbox.message_code(SECOND, "a", key_id=inbox.key_id(ALICE, "b")) == "bad_signature"
    inbox.take(SECOND, "a", key_id=inbox.key_id(ALICE, "a"))


def test_add_key_step_5_the_sender_is_the_actor(inbox):
    assert inbox.message_code(SECOND, "a", sender=BOB) == "actor_mismatch"


def test_add_key_step_6_without_a_key_id_every_key_is_tried(inbox):
    assert inbox.message_code(SECOND, "c") == "bad_signature"  # Bob's
    inbox.take(SECOND, "b")


def test_add_key_step_7_the_signature_holds(inbox):
    assert inbox.wire_code(badly_signed(inbox.wire(SECOND))) == "bad_signature"


def test_add_key_step_8_the_key_is_added(inbox):
    inbox.take(SECOND)
    assert keys_of(inbox, ALICE) == [public("a"), public("b"), public("d")]


def test_add_key_is_not_self_signed_while_there_are_keys(inbox):
    assert inbox.message_code(SECOND, "d") == "self_signed_not_allowed"


@pytest.mark.parametrize("how", ["burned", "revoked"])
def test_add_key_is_self_signed_again_after_the_last_key_is_gone(how):
    inbox = Inbox()
    inbox.enrol()
    inbox.enrol(BOB, "c")
    gone = BurnDown(ALICE, BOB, NOW) if how == "burned" else revoke_by_token("a")
    inbox.desk.send(gone, "c")
    inbox.take(SECOND, "d")
    assert keys_of(inbox, ALICE) == [public("d")]


# --- RevokeKey


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_revoke_key_step_1_the_actor_decrypts(inbox, spoil, code):
    assert inbox.wire_code(spoil(inbox.wire(REVOKE), "actor")) == code


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_revoke_key_step_2_the_public_key_decrypts(inbox, spoil, code):
    assert inbox.wire_code(spoil(inbox.wire(REVOKE), "public-key")) == code


def test_revoke_key_step_3_the_actor_is_enrolled(inbox):
    assert inbox.message_code(RevokeKey(CAROL, public("b"), NOW), sender=CAROL) == "actor_not_enrolled"


def test_revoke_key_step_4_the_sender_is_the_actor(inbox):
    assert inbox.message_code(REVOKE, sender=BOB) == "actor_mismatch"


def test_revoke_key_step_5_a_key_id_selects_the_key(inbox):
    assert inbox.message_code(REVOKE, key_id=NOBODYS_KEY_ID) == "unknown_key_id"
    assert inbox.message_code(REVOKE, key_id=inbox.key_id(ALICE, "b")) == "bad_signature"
    inbox.take(REVOKE, key_id=inbox.key_id(ALICE, "a"))


def test_revoke_key_step_6_without_a_key_id_every_key_is_tried(inbox):
    assert inbox.message_code(REVOKE, "c") == "bad_signature"
    inbox.take(RevokeKey(ALICE, public("a"), NOW), "b")


def test_revoke_key_step_7_the_signature_holds(inbox):
    assert inbox.wire_code(badly_signed(inbox.wire(REVOKE))) == "bad_signature"


def test_revoke_key_step_8_the_key_is_revoked_for_good(inbox):
    inbox.take(REVOKE)
    assert keys_of(inbox, ALICE) == [public("a")]
    assert inbox.message_code(AddKey(ALICE, public("b"), NOW)) == "key_revoked"


def test_revoke_key_leaves_the_actor_a_key(inbox):
    inbox.take(REVOKE)
    assert inbox.message_code(RevokeKey(ALICE, public("a"), NOW)) == "last_key"
    assert inbox.message_code(RevokeKey(ALICE, public("a"), NOW), "b") == "bad_signature"  # the revoked one


def test_revoke_key_is_signed_by_another_key(inbox):
    assert inbox.message_code(REVOKE, "b") == "self_revocation"


def test_revoke_key_takes_no_key_of_somebody_else(inbox):
    assert inbox.message_code(RevokeKey(ALICE, public("c"), NOW)) == "unknown_key"


# --- MoveIdentity: signed by a key of the old actor, brought by the new one


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_move_identity_step_1_the_old_actor_decrypts(inbox, spoil, code):
    assert inbox.wire_code(spoil(inbox.wire(MOVE), "old-actor"), CAROL) == code


@pytest.mark.parametrize(("spoil", "code"), UNDECIPHERABLE)
def test_move_identity_step_2_the_new_actor_decrypts(inbox, spoil, code):
    assert inbox.wire_code(spoil(inbox.wire(MOVE), "new-actor"), CAROL) == code


def test_move_identity_step_3_the_old_actor_is_enrolled(empty):
    assert empty.message_code(MOVE, sender=CAROL) == "actor_not_enrolled"


def test_move_identity_step_4_the_sender_is_the_new_actor(inbox):
    assert inbox.message_code(MOVE, sender=ALICE) == "actor_mismatch"
    assert inbox.message_code(MOVE, sender=BOB) == "actor_mismatch"


def test_move_identity_step_5_a_key_id_selects_a_key_of_the_old_actor(inbox):
    assert inbox.message_code(MOVE, sender=CAROL, key_id=NOBODYS_KEY_ID) == "unknown_key_id"
    assert inbox.message_code(MOVE, sender=CAROL, key_id=inbox.key_id(ALICE, "b")) == "bad_signature"
    inbox.take(MOVE, sender=CAROL, key_id=inbox.key_id(ALICE, "a"))


def test_move_identity_step_6_without_a_key_id_every_key_of_the_old_actor_is_tried(inbox):
    assert inbox.message_code(MOVE, "c", sender=CAROL) == "bad_signature"
    inbox.take(MOVE, "b", sender=CAROL)


def test_move_identity_step_7_the_signature_holds(inbox):
    assert inbox.wire_code(badly_signed(inbox.wire(MOVE)), CAROL) == "bad_signature"


def test_move_identity_step_8_keys_and_auxiliary_data_move_together(inbox):
    inbox.desk.send(AddAuxData(ALICE, "test", "x", None, NOW))
    inbox.desk.send(Fireproof(ALICE, NOW))
    inbox.take(MOVE, sender=CAROL)
    old, new = inbox.desk.store.actor(ALICE), inbox.desk.store.actor(CAROL)
    assert (old.keys, old.aux, old.fireproof, old.status) == ((), (), False, Status.MOVED)
    assert keys_of(inbox, CAROL) == [public("a"), public("b")]
    assert ([aux.aux_data for aux in new.aux], new.fireproof) == (["x"], True)


def test_move_identity_needs_both_signatures_and_neither_stands_in_for_the_other(inbox):
    """The new server without the user's key, and the user's key without the new server."""
    assert inbox.message_code(MOVE, "d", sender=CAROL) == "bad_signature"
    inbox.enrol(CAROL, "d")
    assert inbox.message_code(MOVE, "d", sender=CAROL) == "bad_signature"
    assert inbox.message_code(MOVE, "a", sender=ALICE) == "actor_mismatch"


def test_move_identity_is_refused_when_the_new_actor_has_keys(inbox):
    assert inbox.message_code(MoveIdentity(ALICE, BOB, NOW), sender=BOB) == "target_has_keys"
    assert inbox.message_code(MoveIdentity(ALICE, ALICE, NOW), sender=ALICE) == "target_has_keys"


def test_move_identity_to_an_actor_who_lost_the_last_key(inbox):
    inbox.desk.send(revoke_by_token("c"))
    inbox.take(MoveIdentity(ALICE, BOB, NOW), sender=BOB)
    assert keys_of(inbox, BOB) == [public("a"), public("b")]
