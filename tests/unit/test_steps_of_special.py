"""BurnDown and RevokeKeyThirdParty: every validation step of the specification, by its number.

Each message is right in all but the one thing that its step is about, and comes through the whole of admission.
"""

from __future__ import annotations

import json

import pytest

from ktlog.client import build_envelope
from ktlog.operator.activity import ENCRYPTED_CONTEXT
from ktlog.pkd.actions import PKD_CONTEXT, AddAuxData
from ktlog.pkd.keys import encode_root
from ktlog.pkd.messages import AddKey, BurnDown, Fireproof
from ktlog.pkd.state import Cause, Status
from ktlog.pkd.totp import totp_code, window_at
from tests.admission_world import (
    ERIN,
    LOG_URL,
    NOBODYS_KEY_ID,
    UNDECIPHERABLE,
    WINDOW,
    Inbox,
    badly_signed,
    flipped,
    refusal_code,
    revocation,
    token_text,
)
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, BOB, CAROL, public, quick_argon2, revoke_by_token  # noqa: F401

OTHER_ROOT = encode_root(b"\x01" * 32)
SECRET = b"\x0b" * 32
DOMAIN = "example.com"

# Bob runs the instance where Alice is.
BURN = BurnDown(ALICE, BOB, NOW)


@pytest.fixture
def inbox() -> Inbox:
    """A log where Alice has the keys a and b and auxiliary data, Bob has c and d, and Carol, elsewhere, has e."""
    inbox = Inbox()
    inbox.enrol()
    inbox.desk.send(AddKey(ALICE, public("b"), NOW), "a")
    inbox.desk.send(AddAuxData(ALICE, "test", "x", None, NOW), "a")
    inbox.enrol(BOB, "c")
    inbox.desk.send(AddKey(BOB, public("d"), NOW), "c")
    inbox.enrol(CAROL, "e")
    return inbox


def burn(inbox: Inbox, signer: str = "c", **options) -> None:
    inbox.sequence(inbox.burn(BURN, signer, BOB, **options))


def code(inbox: Inbox, message=BURN, signer: str = "c", operator: str = BOB, **options) -> str:
    return inbox.burn_code(message, signer, operator, **options)


# --- BurnDown


@pytest.mark.parametrize(("spoil", "expected"), UNDECIPHERABLE)
def test_burn_down_step_1_the_actor_decrypts(inbox, spoil, expected):
    assert code(inbox, spoil(inbox.wire(BURN, "c"), "actor")) == expected


def test_burn_down_step_2_the_actor_is_enrolled(inbox):
    assert code(inbox, BurnDown("https://example.com/users/nobody", BOB, NOW)) == "actor_not_enrolled"


def test_burn_down_step_3_the_sender_is_the_operator(inbox):
    assert code(inbox, operator=ALICE) == "actor_mismatch"
    assert code(inbox, operator=CAROL) == "actor_mismatch"


def test_burn_down_step_4_the_actor_is_not_fireproof(inbox):
    inbox.desk.send(Fireproof(ALICE, NOW))
    assert code(inbox) == "actor_is_fireproof"
    assert code(inbox, key_id=inbox.key_id(BOB, "c")) == "actor_is_fireproof"


@pytest.mark.parametrize(("spoil", "expected"), UNDECIPHERABLE)
def test_burn_down_step_6_the_operator_decrypts(inbox, spoil, expected):
    assert code(inbox, spoil(inbox.wire(BURN, "c"), "operator")) == expected


def test_burn_down_step_7_a_key_id_selects_a_key_of_the_operator(inbox):
    assert code(inbox, key_id=NOBODYS_KEY_ID) == "unknown_key_id"
    assert code(inbox, key_id=inbox.key_id(ALICE, "a")) == "unknown_key_id"
    assert code(inbox, key_id=inbox.key_id(BOB, "d")) == "bad_signature"
    burn(inbox, key_id=inbox.key_id(BOB, "c"))


def test_burn_down_step_8_without_a_key_id_every_key_of_the_operator_is_tried(inbox):
    assert code(inbox, signer="a") == "bad_signature"  # the actor's own, who is not the operator
    burn(inbox, "d")


@pytest.mark.parametrize("hinted", [True, False])
def test_burn_down_step_9_the_domains_match_with_a_key_id_and_without(inbox, hinted):
    """By the letter, a key-id would skip this step."""
    options = {"key_id": inbox.key_id(CAROL, "e")} if hinted else {}
    assert code(inbox, BurnDown(ALICE, CAROL, NOW), "e", CAROL, **options) == "domain_mismatch"


def test_burn_down_step_10_the_signature_holds(inbox):
    assert code(inbox, badly_signed(inbox.wire(BURN, "c"))) == "bad_signature"


def test_burn_down_step_11_keys_and_auxiliary_data_go_in_one_step(inbox):
    size = inbox.desk.size
    burn(inbox)
    actor = inbox.desk.store.actor(ALICE)
    assert (actor.keys, actor.aux, actor.status, inbox.desk.size) == ((), (), Status.BURNED, size + 1)
    assert len(inbox.desk.store.actor(BOB).keys) == 2
    inbox.take(AddKey(ALICE, public("f"), NOW), "f")
    assert inbox.desk.store.actor(ALICE).cause == Cause.BURNED


def test_burn_down_is_off_unless_the_operator_of_the_log_wants_it():
    inbox = Inbox(burndown_enabled=False)
    inbox.enrol()
    inbox.enrol(BOB, "c")
    assert code(inbox) == "burndown_disabled"
    assert inbox.instances.asked == []


@pytest.mark.parametrize("sealed", [True, False])
def test_burn_down_never_comes_by_the_inbox(inbox, sealed):
    wire = inbox.wire(BURN, "c")
    if sealed:
        assert inbox.wire_code(wire, BOB) == "burndown_by_inbox"
    else:
        assert inbox.code(inbox.request(inbox.plain(wire, BOB), BOB)) == "burndown_by_inbox"


def test_burn_down_is_never_encrypted(inbox):
    body = json.loads(build_envelope(BOB, inbox.sealed(inbox.wire(BURN, "c"))))
    assert body["!pkd-context"] == ENCRYPTED_CONTEXT
    request = inbox.signed(json.dumps(body).encode(), BOB, f"{LOG_URL}/api/burndown")
    assert refusal_code(lambda: inbox.admission.admit_burndown(request)) == "burndown_encrypted"


def test_burn_down_needs_an_http_signature_by_the_operator(inbox):
    good = inbox.burn_request(inbox.wire(BURN, "c"), BOB)
    unsigned = type(good)(good.method, good.target_url, [("Content-Type", "application/json")], good.body, good.source)
    assert refusal_code(lambda: inbox.admission.admit_burndown(unsigned)) == "unauthorized"
    for spoilt, expected in (
        ({"key_id": f"{ALICE}#main-key"}, "unknown_http_key"), ({"url": f"{LOG_URL}/api/revoke"}, "unauthorized"),
        ({"created": NOW - 400}, "unauthorized"),
    ):
        request = inbox.burn_request(inbox.wire(BURN, "c"), BOB, **spoilt)
        assert refusal_code(lambda asked=request: inbox.admission.admit_burndown(asked)) == expected


def test_nothing_but_burn_down_comes_by_its_door(inbox):
    assert inbox.burn_code(Fireproof(ALICE, NOW), "a") == "not_a_burndown"
    assert inbox.burn_code(revoke_by_token("a"), "a") == "not_a_burndown"


def test_a_burn_down_that_is_too_old_or_bound_to_another_log(inbox):
    assert code(inbox, BurnDown(ALICE, BOB, NOW - WINDOW - 1)) == "stale_time"
    assert code(inbox, root=OTHER_ROOT) == "merkle_root_stale"


def test_a_burn_down_that_is_in_the_log_gets_its_receipt(inbox):
    wire = inbox.wire(BURN, "c")
    first = inbox.sequence(inbox.admission.admit_burndown(inbox.burn_request(wire, BOB)))
    inbox.clock.now += 1  # the same message, in a request that is signed anew
    again = inbox.sequence(inbox.admission.admit_burndown(inbox.burn_request(wire, BOB)))
    assert (again.leaf_index, again.duplicate) == (first.leaf_index, True)
    assert code(inbox, wire, operator=ALICE) == "actor_mismatch"  # and is shown to nobody else


# --- BurnDown step 5: one-time passwords


def enrol_totp(inbox: Inbox, last_window: int = 0) -> None:
    inbox.desk.store.set_totp(DOMAIN, SECRET, last_window, None)


def otp(ago: int = 0) -> str:
    return totp_code(SECRET, window_at(NOW) - ago)


def test_burn_down_step_5_a_password_is_required_once_the_instance_enrolled_one(inbox):
    enrol_totp(inbox)
    assert code(inbox) == "otp_required"
    burn(inbox, otp=otp())


@pytest.mark.parametrize("ago", [0, 1, 2])
def test_burn_down_step_5_two_previous_windows_count(inbox, ago):
    enrol_totp(inbox)
    burn(inbox, otp=otp(ago))


@pytest.mark.parametrize("wrong", [
    otp(3), otp(-1), totp_code(bytes(32), window_at(NOW)), "", " " + otp(), otp()[:7], otp() + "0", "x", "\u0661" * 8,
])
def test_burn_down_step_5_other_passwords_do_not(inbox, wrong):
    enrol_totp(inbox)
    assert code(inbox, otp=wrong) == "bad_otp"


def test_burn_down_step_5_a_password_counts_once(inbox):
    enrol_totp(inbox)
    burn(inbox, otp=otp())
    inbox.enrol("https://example.com/users/frank", "g")
    frank = BurnDown("https://example.com/users/frank", BOB, NOW)
    assert code(inbox, frank, otp=otp()) == "otp_reused"
    assert code(inbox, frank, otp=otp(1)) == "otp_reused"  # an earlier one neither
    inbox.clock.now += 30
    inbox.sequence(inbox.burn(frank, "c", BOB, otp=totp_code(SECRET, window_at(inbox.clock()))))


def test_burn_down_step_5_two_at_once_with_one_password(inbox):
    """Both pass admission; the sequencer, which commits use and entry together, takes one."""
    enrol_totp(inbox)
    inbox.enrol("https://example.com/users/frank", "g")
    frank = BurnDown("https://example.com/users/frank", BOB, NOW)
    both = [inbox.burn(message, "c", BOB, otp=otp()) for message in (BURN, frank)]
    first, second = inbox.desk.batch(*both)
    assert first.leaf_index == inbox.desk.size - 1
    assert second.code == "otp_reused"
    assert len(inbox.desk.store.actor("https://example.com/users/frank").keys) == 1


def test_burn_down_step_5_a_password_that_was_enrolled_meanwhile_is_asked_for(inbox):
    submission = inbox.burn(BURN, "c", BOB)
    enrol_totp(inbox)
    (refused,) = inbox.desk.batch(submission)
    assert refused.code == "otp_required"


def test_burn_down_step_5_passwords_are_the_instances_and_nobody_elses(inbox):
    inbox.desk.store.set_totp("example.net", SECRET, 0, None)
    burn(inbox, otp="00000000")  # nobody asked for it


def test_burn_down_step_5_is_not_reached_without_the_operators_keys(inbox):
    """A guess costs both signatures: refusals say nothing about the password before they hold."""
    enrol_totp(inbox)
    for password in (otp(), "00000000"):
        assert code(inbox, signer="a", otp=password) == "bad_signature"
        assert code(inbox, BurnDown(ALICE, CAROL, NOW), "e", CAROL, otp=password) == "domain_mismatch"


def test_an_otp_belongs_to_burn_down_alone(inbox):
    assert inbox.wire_code(inbox.wire(Fireproof(ALICE, NOW)) | {"otp": "00000000"}) == "bad_request"


# --- RevokeKeyThirdParty


@pytest.mark.parametrize("token", ["", "x", "=", token_text("a") + "=", token_text("a")[:-1], "A" * 5052, "é"])
def test_revoke_third_party_step_1_the_token_is_base64url(inbox, token):
    expected = "bad_request" if token == "" else "bad_token"
    assert inbox.revoke_code(revocation(token)) == expected
    if token:
        assert inbox.wire_code(json.dumps({"action": "RevokeKeyThirdParty", "revocation-token": token})) == "bad_token"


@pytest.mark.parametrize("at", [0, 5, 11, 20, 60])
def test_revoke_third_party_step_2_version_and_constant(inbox, at):
    assert inbox.revoke_code(revocation(flipped(token_text("a"), at))) == "bad_token"


@pytest.mark.parametrize("at", [100, 1000, 2000, 5000])
def test_revoke_third_party_step_3_the_key_signed_its_own_token(inbox, at):
    assert inbox.revoke_code(revocation(flipped(token_text("a"), at))) == "bad_token_signature"


def test_revoke_third_party_step_4_everybody_who_has_the_key_loses_it(inbox):
    inbox.desk.send(AddKey(CAROL, public("a"), NOW), "e")
    inbox.sequence(inbox.revoke(token_text("a")))
    holders = {actor: [key.public_key for key in inbox.desk.store.actor(actor).keys] for actor in (ALICE, BOB, CAROL)}
    assert holders == {ALICE: [public("b")], BOB: [public("c"), public("d")], CAROL: [public("e")]}
    assert inbox.message_code(AddKey(ALICE, public("a"), NOW), "b") == "key_revoked"


def test_revoke_third_party_of_the_last_key_ends_as_a_burn_down_does_and_keeps_fireproof(inbox):
    inbox.desk.send(AddAuxData(CAROL, "test", "x", None, NOW), "e")
    inbox.desk.send(Fireproof(CAROL, NOW), "e")
    inbox.sequence(inbox.revoke(token_text("e")))
    carol = inbox.desk.store.actor(CAROL)
    assert (carol.keys, carol.aux, carol.status, carol.fireproof) == ((), (), Status.REVOKED, True)
    inbox.take(AddKey(CAROL, public("f"), NOW), "f", CAROL)


@pytest.mark.parametrize("name", ["stranger", "directory"])
def test_revoke_third_party_of_a_key_that_nobody_has_adds_no_leaf(inbox, name):
    size = inbox.desk.size
    assert inbox.revoke_code(revocation(token_text(name))) == "unknown_token_key"
    assert inbox.message_code(revoke_by_token(name), sender=CAROL) == "unknown_token_key"
    assert inbox.desk.size == size


def test_revoke_third_party_again_with_another_token_of_the_key_gets_the_receipt(inbox):
    first = inbox.sequence(inbox.revoke(token_text("a")))
    second = inbox.sequence(inbox.revoke(token_text("a")))  # signed anew: another text
    assert (second.leaf_index, second.duplicate) == (first.leaf_index, True)


def test_revoke_third_party_needs_no_http_signature_and_one_that_is_there_must_hold(inbox):
    token = revocation(token_text("a"))
    good = inbox.revoke_request(token, ERIN)
    for name in ("Signature", "Signature-Input"):
        kept = [(key, value) for key, value in good.headers if key != name]
        spoilt = type(good)(good.method, good.target_url, kept, good.body, good.source)
        assert inbox.revoke_code(spoilt) == "unauthorized"
    altered = type(good)(good.method, good.target_url, good.headers, good.body + b" ", good.source)
    assert inbox.revoke_code(altered) == "unauthorized"
    nameless = [(key, value.replace("keyid=", "nonce=")) for key, value in good.headers]
    assert inbox.revoke_code(type(good)(good.method, good.target_url, nameless, good.body, good.source)) == "unauthorized"
    assert inbox.desk.size == 6
    inbox.sequence(inbox.admission.admit_revocation(good))
    assert good.source.domain == "elsewhere.example"


def test_revoke_third_party_fetches_nothing_for_a_token_of_no_use(inbox):
    """Nor for a signer whose server this log does not serve."""
    for token in ("x", flipped(token_text("a"), 5), flipped(token_text("a"), 4000), token_text("z")):
        code = inbox.revoke_code(inbox.revoke_request(revocation(token), ERIN))
        assert code in ("bad_token", "bad_token_signature", "unknown_token_key")
    good = inbox.revoke_request(revocation(token_text("a")), ERIN)
    inbox.admission._actor_domains = frozenset({"example.com"})
    assert inbox.revoke_code(good) == "domain_not_served"
    assert inbox.instances.asked == []
    inbox.admission._actor_domains = frozenset()
    inbox.sequence(inbox.admission.admit_revocation(good))
    assert inbox.instances.asked == [ERIN]


def test_revoke_third_party_by_the_inbox_from_anybody(inbox):
    inbox.take(revoke_by_token("a"), sender=CAROL)
    assert [key.public_key for key in inbox.desk.store.actor(ALICE).keys] == [public("b")]


@pytest.mark.parametrize("body", [
    {"!pkd-context": "fedi-e2ee:v1/api/revoke", "current-time": "1"},
    {"!pkd-context": "fedi-e2ee:v1/api/revoke", "current-time": "1", "action": "RevokeKeyThirdParty"},
    {"!pkd-context": PKD_CONTEXT, "action": "RevokeKeyThirdParty"},
])
def test_the_bodies_of_a_revocation(inbox, body):
    """The parameters that the specification lists, and the protocol message that existing clients send."""
    token = {"revocation-token": token_text("a")}
    inbox.sequence(inbox.admission.admit_revocation(inbox.revoke_request(body | token)))
