"""Admission: every refusal by its code, in an order in which the expensive checks come last."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from ktlog.client import build_envelope
from ktlog.errors import MessageRejected, StoreError
from ktlog.operator import admission as admission_module
from ktlog.operator import sequencer as sequencer_module
from ktlog.operator.activity import PLAINTEXT_CONTEXT
from ktlog.operator.actor_keys import REFRESH_SECONDS
from ktlog.operator.instance import direct_message
from ktlog.operator.link import Submission
from ktlog.operator.request import Request, Source
from ktlog.pkd import attributes
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.hpke import DecapsulationKey, seal_message
from ktlog.pkd.keys import ZERO_ROOT, encode_root, sign_mldsa44
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    signed_bytes,
)
from ktlog.pkd.token import make_token, parse_token
from ktlog.tlog.encoding import encode_base64url
from ktlog.web.guarding import penalty_weight
from tests.admission_world import INBOX, LOG_ACTOR, WINDOW, Inbox, http_key
from tests.operator_world import NOW, ORIGIN
from tests.pkd_samples import ALICE, BOB, CAROL, build, private, public, quick_argon2  # noqa: F401
from tests.store_samples import Draft, append


@pytest.fixture
def inbox() -> Inbox:
    return Inbox()


def add(actor: str = ALICE, name: str = "a", when: int = NOW) -> AddKey:
    return AddKey(actor, public(name), when)


# --- what gets in


def test_what_is_admitted_is_what_the_sequencer_takes(inbox):
    submission = inbox.admit(add())
    assert submission == Submission(
        submission.preimage, {"actor": ALICE, "public-key": submission.plain["public-key"]}, submission.keys
    )
    assert set(submission.keys) == {"actor", "public-key"}
    (receipt,) = inbox.desk.batch(submission)
    assert receipt.leaf_index == 0
    assert inbox.desk.store.actor(ALICE).keys[0].public_key == public("a")


def test_each_kind_of_sender(inbox):
    inbox.enrol()
    token = RevokeKeyThirdParty(parse_token(make_token(private("a"), public("a"))))
    assert inbox.admit(MoveIdentity(ALICE, CAROL, NOW), sender=CAROL).plain == {"old-actor": ALICE, "new-actor": CAROL}
    assert inbox.admit(token, sender=BOB).plain == {}  # a token speaks for itself, whoever brings it
    assert inbox.admit(AddAuxData(ALICE, "test", "x", None, NOW)).plain["aux-data"] == "x"
    assert inbox.admit(Fireproof(ALICE, NOW)).plain == {"actor": ALICE}


def test_a_token_may_come_in_plain_text_and_nothing_else_does(inbox):
    inbox.enrol()
    token = RevokeKeyThirdParty(parse_token(make_token(private("a"), public("a"))))

    def plain(wire: dict[str, Any]) -> Request:
        members = {"!pkd-context": PLAINTEXT_CONTEXT, "actor": ALICE, "message": json.dumps(wire)}
        return inbox.request(json.dumps(members))

    assert inbox.admission.admit(plain(inbox.wire(token))).plain == {}
    assert inbox.code(plain(inbox.wire(Fireproof(ALICE, NOW)))) == "not_encrypted"
    assert inbox.code(plain(inbox.wire(BurnDown(BOB, ALICE, NOW)))) == "burndown_by_inbox"
    assert inbox.code(plain({"action": "AddKey"})) == "wrong_context"


def test_sent_again_it_passes_however_old_it_is(inbox):
    """The first answer was lost; by now the time is over, the root is stale and the key is gone."""
    request = inbox.request(build_envelope(ALICE, inbox.sealed(inbox.wire(add()))))
    (first,) = inbox.desk.batch(inbox.admission.admit(request))
    append(inbox.desk.store, *(Draft(f"filler {number}") for number in range(300)))
    inbox.desk.restart()
    token = RevokeKeyThirdParty(parse_token(make_token(private("a"), public("a"))))
    inbox.desk.batch(inbox.admit(token))
    inbox.clock.now += 2 * WINDOW
    wire = inbox.wire(add(), root=ZERO_ROOT)
    (again,) = inbox.desk.batch(inbox.admission.admit(inbox.request(build_envelope(ALICE, inbox.sealed(wire)))))
    assert again == replace(first, duplicate=True)


def test_padding_and_white_space_are_not_signed(inbox):
    wire = inbox.wire(add())
    texts = [json.dumps(wire), json.dumps(wire, indent=2), json.dumps(wire | {"padding": "x" * 99}, sort_keys=True)]
    submissions = [
        inbox.admission.admit(inbox.request(build_envelope(ALICE, inbox.seal_text(text)))) for text in texts
    ]
    assert submissions[0] == submissions[1] == submissions[2]


# --- the HTTP signature


def good_body(inbox: Inbox) -> bytes:
    return inbox.request(build_envelope(ALICE, inbox.sealed(inbox.wire(add())))).body


def without(request: Request, name: str) -> Request:
    return replace(request, headers=[line for line in request.headers if line[0].lower() != name])


def altered(request: Request, name: str, old: str, new: str) -> Request:
    headers = [(key, value.replace(old, new) if key.lower() == name else value) for key, value in request.headers]
    assert headers != list(request.headers)
    return replace(request, headers=headers)


@pytest.mark.parametrize("header", ["signature", "signature-input", "content-digest"])
def test_a_header_that_is_missing_or_there_twice(inbox, header):
    request = inbox.signed(good_body(inbox))
    assert inbox.code(without(request, header)) == "unauthorized"
    line = next(line for line in request.headers if line[0].lower() == header)
    assert inbox.code(replace(request, headers=[*request.headers, line])) == "unauthorized"


def test_what_is_signed_is_what_is_checked(inbox):
    body = good_body(inbox)
    request = inbox.signed(body)
    assert inbox.admission.admit(request)
    for changed in (
        replace(request, body=body + b" "), replace(request, body=body.replace(b"hpke:", b"hpkE:")),
        replace(request, method="PUT"), replace(request, target_url=INBOX + "?x"),
        replace(request, target_url=INBOX.replace("https", "http")),
        altered(request, "signature-input", "ed25519", "ml-dsa-44"),
        altered(request, "signature-input", '"@method" ', ""),
        altered(request, "signature-input", "created=1", "created=2"),
        inbox.signed(body, url=INBOX.replace(ORIGIN, "keys.example.net")), inbox.signed(body, key=http_key(BOB)),
    ):
        assert inbox.code(changed) == "unauthorized"


@pytest.mark.parametrize(("age", "admitted"), [(0, True), (300, True), (-300, True), (301, False), (-301, False)])
def test_a_signature_is_good_for_minutes(inbox, age, admitted):
    request = inbox.signed(good_body(inbox), created=NOW - age)
    if admitted:
        inbox.admission.admit(request)
    else:
        assert inbox.code(request) == "unauthorized"


def test_whose_key_it_is(inbox):
    body = good_body(inbox)
    assert inbox.code(inbox.signed(body, key_id=f"{BOB}#main-key")) == "unknown_http_key"
    assert inbox.code(inbox.signed(body, key_id=f"{ALICE}#other-key")) == "unknown_http_key"
    assert inbox.instances.asked == [ALICE]
    # Bob may sign for himself, and then the envelope must be his, and the message in it.
    sealed = inbox.sealed(inbox.wire(add()))
    assert inbox.code(inbox.request(build_envelope(ALICE, sealed), BOB)) == "actor_mismatch"
    assert inbox.code(inbox.request(build_envelope(BOB, sealed), ALICE)) == "actor_mismatch"
    assert inbox.code(inbox.request(build_envelope(BOB, sealed), BOB)) == "actor_mismatch"


def test_a_key_that_changed_since_the_document_was_cached(inbox):
    inbox.admission.admit(inbox.signed(good_body(inbox)))
    inbox.instances.generation = 2
    renewed = inbox.signed(good_body(inbox), key=http_key(ALICE, 2))
    assert inbox.code(renewed) == "unauthorized"  # too soon to look again
    assert len(inbox.instances.asked) == 1
    inbox.clock.now += REFRESH_SECONDS
    assert inbox.admission.admit(renewed)
    assert len(inbox.instances.asked) == 2
    # A forger makes us look again, once in a while and no more often.
    for _ in range(5):
        assert inbox.code(inbox.signed(good_body(inbox), key=http_key(BOB))) == "unauthorized"
    assert len(inbox.instances.asked) == 2


# --- the order: nothing dear before everything cheap


def test_nobody_is_asked_for_a_key_before_the_digest_is_right(inbox):
    request = inbox.signed(good_body(inbox))
    old = inbox.signed(request.body, created=1)
    for bad in (replace(request, body=request.body + b" "), without(request, "signature"), old):
        assert inbox.code(bad) == "unauthorized"
    assert inbox.instances.asked == []


def test_without_a_signature_nothing_is_decrypted(inbox, monkeypatch):
    monkeypatch.setattr("ktlog.operator.admission.open_hpke", lambda *_: pytest.fail("decrypted for a stranger"))
    assert inbox.code(inbox.signed(good_body(inbox), key=http_key(BOB))) == "unauthorized"


def test_argon2_comes_last(inbox, monkeypatch):
    inbox.enrol()
    good = inbox.wire(Fireproof(ALICE, NOW))
    calls: list[bytes] = []
    real = attributes.argon2id

    def counted(password: bytes, salt: bytes) -> bytes:
        calls.append(salt)
        return real(password, salt)

    monkeypatch.setattr(attributes, "argon2id", counted)
    bad = [
        good | {"signature": encode_base64url(bytes(2420))}, good | {"key-id": encode_base64url(bytes(32))},
        good | {"recent-merkle-root": encode_root(b"\x01" * 32)}, good | {"symmetric-keys": {"actor": "A" * 43}},
    ]
    for wire in bad:
        inbox.wire_code(wire)
    assert calls == []
    inbox.admission.admit(inbox.request(build_envelope(ALICE, inbox.sealed(good))))
    assert len(calls) == 1


# --- the envelope and what is in it


@pytest.mark.parametrize(("text", "code"), [
    ("hpke:", "decryption_failed"), ("hpke:AAAA", "decryption_failed"), ("AAAA", "decryption_failed"),
    ("HPKE:AAAA", "decryption_failed"), ("hpke:!!!!", "decryption_failed"), ("hpke:" + "A" * 2000, "decryption_failed"),
])
def test_ciphertexts_that_are_none(inbox, text, code):
    assert inbox.code(inbox.request(build_envelope(ALICE, text))) == code


def test_ciphertexts_that_do_not_open(inbox):
    sealed = inbox.sealed(inbox.wire(add()))
    other = DecapsulationKey.from_seed(b"\x06" * 32)
    elsewhere = seal_message(other.encapsulation_key, b"{}")
    assert inbox.code(inbox.request(build_envelope(ALICE, elsewhere))) == "decryption_failed"
    for at in (5, 1000, 1700, len(sealed) - 10):
        flipped = sealed[:at] + ("A" if sealed[at] != "A" else "B") + sealed[at + 1:]
        assert inbox.code(inbox.request(build_envelope(ALICE, flipped))) == "decryption_failed"
    for tail in ("=", "==", "\n", " "):
        assert inbox.code(inbox.request(build_envelope(ALICE, sealed + tail))) == "decryption_failed"
    # The same bytes with one stray bit in the last character are the same bytes to a lax decoder.
    if len(sealed[5:]) % 4:
        alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
        stray = sealed[:-1] + alphabet[alphabet.index(sealed[-1]) + 1]
        assert inbox.code(inbox.request(build_envelope(ALICE, stray))) == "decryption_failed"


@pytest.mark.parametrize(("text", "code"), [
    ("", "bad_json"), ("{", "bad_json"), ("[]", "bad_request"), ("\x00", "bad_json"), ('{"action":"AddKey"}', "wrong_context"),
    ('{"a":1.0}', "bad_json"), ('{"action":"AddKey","action":"AddKey"}', "duplicate_json_key"),
    ('{"a":"\\udc00"}', "bad_json"), ("[" * 40 + "]" * 40, "bad_json"), ('{"a":NaN}', "bad_json"),
    ('{"action":"RevokeKeyThirdParty","revocation-token":"x"}', "bad_token"),
    ('{"action":"RevokeKeyThirdParty"}', "bad_request"),
])
def test_texts_that_are_no_message(inbox, text, code):
    assert inbox.wire_code(text) == code


def message_with(inbox: Inbox, **changes: Any) -> dict[str, Any]:
    wire = inbox.wire(add()) | changes
    return {name: value for name, value in wire.items() if value is not None}


@pytest.mark.parametrize(("changes", "code"), [
    ({"!pkd-context": "https://example.com"}, "wrong_context"), ({"action": "Addkey"}, "unknown_action"),
    ({"action": 5}, "unknown_action"), ({"action": None}, "unknown_action"), ({"action": ["AddKey"]}, "unknown_action"),
    ({"extra": "x"}, "bad_request"), ({"signature": None}, "bad_request"), ({"signature": 5}, "bad_request"),
    ({"signature": "AAAA"}, "bad_signature"), ({"signature": "=" * 4}, "bad_signature"),
    ({"recent-merkle-root": "x"}, "bad_root"), ({"recent-merkle-root": None}, "bad_request"),
    ({"recent-merkle-root": encode_root(b"\x01" * 32)}, "merkle_root_stale"),
    ({"key-id": "x"}, "bad_key_id"), ({"key-id": "A" * 44}, "bad_key_id"),
    ({"symmetric-keys": {}}, "bad_symmetric_key"), ({"symmetric-keys": None}, "bad_symmetric_key"),
    ({"symmetric-keys": {"actor": "A" * 43}}, "bad_symmetric_key"), ({"symmetric-keys": []}, "bad_symmetric_key"),
    ({"symmetric-keys": {"actor": "A" * 43, "public-key": "A" * 43}}, "attribute_decryption_failed"),
    ({"symmetric-keys": {"actor": "A" * 43, "public-key": 5}}, "bad_symmetric_key"),
    ({"message": {}}, "bad_request"), ({"message": "x"}, "bad_request"), ({"message": []}, "bad_request"),
    ({"otp": "123456"}, "bad_request"), ({"revocation-token": "x"}, "bad_request"),
])
def test_members_of_a_message(inbox, changes, code):
    assert inbox.wire_code(message_with(inbox, **changes)) == code


@pytest.mark.parametrize(("changes", "code"), [
    ({"time": "+1"}, "bad_time"), ({"time": "1_000"}, "bad_time"), ({"time": "01"}, "bad_time"), ({"time": 5}, "bad_request"),
    ({"time": "1.5"}, "bad_time"), ({"time": "2027-01-15T08:00:00+00:00"}, "bad_time"), ({"extra": "x"}, "bad_request"),
    ({"actor": ALICE}, "attribute_decryption_failed"), ({"actor": "AA=="}, "attribute_decryption_failed"),
    ({"actor": encode_base64url(bytes(97))}, "attribute_decryption_failed"), ({"actor": None}, "bad_request"),
])
def test_members_of_its_message_map(inbox, changes, code):
    wire = inbox.wire(add())
    wire["message"] = wire["message"] | changes
    assert inbox.wire_code(wire) == code


@pytest.mark.parametrize(("offset", "admitted"), [
    (0, True), (WINDOW, True), (-WINDOW, True), (WINDOW + 1, False), (-WINDOW - 1, False), (10**9, False),
])
def test_the_time_window(inbox, offset, admitted):
    if admitted:
        inbox.admit(add(when=NOW + offset))
    else:
        assert inbox.message_code(add(when=NOW + offset)) == "stale_time"


def test_actions_that_do_not_come_in_here(inbox):
    inbox.enrol()
    checkpoint = CheckpointMessage(
        "https://keys.example.org", ZERO_ROOT, public("directory"), f"https://{ORIGIN}", ZERO_ROOT, NOW
    )
    assert inbox.message_code(BurnDown(BOB, ALICE, NOW)) == "burndown_by_inbox"
    assert inbox.message_code(checkpoint, "directory") == "directory_not_allowed"
    assert inbox.message_code(AddAuxData(ALICE, "other", "x", None, NOW)) == "unsupported_aux_type"
    assert Inbox(frozenset()).message_code(AddAuxData(ALICE, "test", "x", None, NOW)) == "unsupported_aux_type"
    assert inbox.message_code(AddAuxData(ALICE, "test", "x", encode_base64url(bytes(32)), NOW)) == "aux_id_mismatch"
    wire = inbox.wire(AddAuxData(ALICE, "test", "x", None, NOW))
    wire["message"] = wire["message"] | {"aux-type": "Not A Type"}
    assert inbox.wire_code(wire) == "bad_aux_type"


def test_who_may_speak_for_whom(inbox):
    inbox.enrol()
    inbox.enrol(BOB, "b")
    assert inbox.message_code(add(BOB, "c"), "b") == "actor_mismatch"  # Alice brings Bob's message
    assert inbox.message_code(MoveIdentity(ALICE, CAROL, NOW)) == "actor_mismatch"  # the new actor has to bring it
    assert inbox.message_code(MoveIdentity(ALICE, BOB, NOW), sender=CAROL) == "actor_mismatch"


def test_rules_of_the_state(inbox):
    inbox.enrol()
    assert inbox.message_code(add(ALICE, "b"), "b") == "self_signed_not_allowed"
    assert inbox.message_code(add(ALICE, "b"), "c") == "bad_signature"
    assert inbox.message_code(add(ALICE, "a", NOW + 1)) == "self_signed_not_allowed"
    assert inbox.message_code(RevokeKey(ALICE, public("a"), NOW)) == "last_key"
    assert inbox.message_code(RevokeKey(ALICE, public("b"), NOW)) == "unknown_key"
    assert inbox.message_code(Fireproof(BOB, NOW), sender=BOB) == "actor_not_enrolled"
    token = RevokeKeyThirdParty(parse_token(make_token(private("b"), public("b"))))
    assert inbox.message_code(token) == "unknown_token_key"
    assert inbox.desk.size == 1
    inbox.desk.send(add(ALICE, "b"))
    assert inbox.message_code(add(ALICE, "a", NOW + 1), "b") == "key_exists"
    assert inbox.message_code(RevokeKey(ALICE, public("b"), NOW), "b") == "self_revocation"


def test_a_key_id_counts_as_far_as_it_points(inbox):
    inbox.enrol()
    inbox.desk.send(add(ALICE, "b"))
    ids = {key.public_key: key.key_id for key in inbox.desk.store.actor(ALICE).keys}
    assert inbox.admit(Fireproof(ALICE, NOW), "a", key_id=ids[public("a")])
    assert inbox.admit(Fireproof(ALICE, NOW), "b", key_id=ids[public("b")])
    assert inbox.message_code(Fireproof(ALICE, NOW), "a", key_id=ids[public("b")]) == "bad_signature"
    assert inbox.message_code(Fireproof(ALICE, NOW), "a", key_id=encode_base64url(bytes(32))) == "unknown_key_id"


def test_an_altered_token(inbox):
    inbox.enrol()
    text = make_token(private("a"), public("a"))
    flipped = text[:-10] + ("A" if text[-10] != "A" else "B") + text[-9:]

    def code(token: str) -> str:
        return inbox.wire_code(json.dumps({"action": "RevokeKeyThirdParty", "revocation-token": token}))

    assert code(flipped) == "bad_token_signature"
    assert {code(bad) for bad in (text + "=", text[:-1], "x", text[:20] + "!" + text[21:])} == {"bad_token"}


def test_an_attribute_that_does_not_commit_to_its_text(inbox):
    """The tag is right and the message is signed; only the Argon2id commitment is of something else."""
    inbox.enrol()
    wire = inbox.wire(Fireproof(ALICE, NOW))
    # Made for another root, every part but the commitment is as good as in the right one.
    elsewhere = build(SPEC, Fireproof(ALICE, NOW), "a", encode_root(b"\x01" * 32))
    body = wire["message"] | {"actor": elsewhere["message"]["actor"]}
    assert body != wire["message"]
    signature = sign_mldsa44(private("a"), signed_bytes(SPEC, "Fireproof", body, wire["recent-merkle-root"]))
    forged = wire | {"message": body, "signature": encode_base64url(signature)}
    assert elsewhere["symmetric-keys"] == wire["symmetric-keys"]
    assert inbox.wire_code(forged) == "plaintext_mismatch"
    assert inbox.admission.admit(inbox.request(build_envelope(ALICE, inbox.sealed(wire))))


@pytest.mark.parametrize("content", [5, {"a": 1}, None, [], True])
def test_a_content_that_is_no_text(inbox, content):
    body = direct_message(LOG_ACTOR, ALICE, "x", lambda size: bytes(size))
    body["object"]["content"] = content
    assert inbox.code(inbox.signed(json.dumps(body).encode())) == "bad_request"


@pytest.mark.parametrize(("body", "code"), [
    (b"", "bad_json"), (b"not json", "bad_json"), (b"[]", "bad_request"),
    (b'{"type":"Create","type":"Create"}', "duplicate_json_key"), (b"[" * 5000, "bad_json"), (b'{"type":1.5}', "bad_json"),
])
def test_a_body_that_is_no_activity(inbox, body, code):
    assert inbox.code(inbox.signed(body)) == code


def test_a_store_that_fails_is_no_refusal(inbox):
    """The sender must try again; a refusal would tell it not to."""
    inbox.desk.store.close()
    wire = build(SPEC, add(), "a", ZERO_ROOT)
    with pytest.raises(StoreError):
        inbox.admission.admit(inbox.request(build_envelope(ALICE, inbox.sealed(wire))))


# --- what one actor, one domain and one message may cost


def test_a_log_of_one_instance_serves_its_own_actors_only(inbox):
    admission, domain = inbox.admission, ALICE.split("/")[2]
    admission._actor_domains = frozenset({domain})
    assert inbox.admit(add()).plain["actor"] == ALICE
    admission._actor_domains = frozenset({"other.example"})
    before = list(inbox.instances.asked)
    assert inbox.message_code(add()) == "domain_not_served"
    assert inbox.instances.asked == before  # nobody was asked for a key


def test_an_actor_may_not_collect_keys_for_ever(inbox, monkeypatch):
    inbox.enrol()
    waiting = [inbox.admit(AddAuxData(ALICE, "test", text, None, NOW)) for text in ("x", "y")]
    waiting.append(inbox.admit(add(name="b")))
    monkeypatch.setattr(sequencer_module, "KEYS_LIMIT", 1)
    monkeypatch.setattr(sequencer_module, "AUX_LIMIT", 1)
    assert inbox.message_code(add(name="b")) == "too_many_keys"
    # Admitted together, they are counted again where it counts.
    first, *others = inbox.desk.batch(*waiting)
    assert first.leaf_index == 1
    assert [refusal.code for refusal in others] == ["too_many_keys"] * 2
    # And whoever has more than that by now may always give it away.
    monkeypatch.setattr(sequencer_module, "AUX_LIMIT", 0)
    assert inbox.admit(RevokeAuxData(ALICE, "test", None, "x", NOW)).plain["aux-data"] == "x"
    token = RevokeKeyThirdParty(parse_token(make_token(private("a"), public("a"))))
    assert inbox.take(token, sender=BOB).leaf_index == 2


# --- what is no attempt at anything


def free(inbox: Inbox, content: object = "<p>@pubkeydir hello</p>", sender: str = ALICE, **changes: object) -> tuple[str, int]:
    """The refusal of a Create that nobody signed, and what it counts for."""
    activity = direct_message(LOG_ACTOR, sender, "", lambda size: bytes(size)) | changes
    if "object" not in changes:
        activity["object"] |= {"content": content}
    request = Request("POST", INBOX, [], json.dumps(activity).encode(), Source("192.0.2.1"))
    with pytest.raises(MessageRejected) as caught:
        inbox.admission.admit(request)
    assert inbox.instances.asked == []
    return caught.value.code, penalty_weight(caught.value)


PUBLIC = "https://www.w3.org/ns/activitystreams#Public"
PKD = json.dumps({"!pkd-context": PLAINTEXT_CONTEXT, "actor": ALICE, "message": "{}"})


@pytest.mark.parametrize(("content", "changes", "code"), [
    ("<p>@pubkeydir hello</p>", {}, "html_content"), ("hello", {}, "bad_json"), ('{"a":"b"}', {}, "wrong_context"),
    (f"<p>{PKD}</p>", {}, "html_content"), (None, {}, "bad_request"), (PKD, {"cc": [PUBLIC]}, "not_a_direct_message"),
    (PKD, {"to": "as:Public"}, "not_a_direct_message"), ("x", {"published": 1.5}, "bad_json"),
    ("", {"object": "https://alpha.example/notes/1"}, "bad_request"),
    ("", {"object": {"type": "Question", "name": "?"}}, "not_a_direct_message"),
])
def test_a_mention_in_the_fediverse_counts_for_nothing(inbox, content, changes, code):
    """It is refused, for it is no message; but a server whose people talk about the log is no attacker."""
    assert free(inbox, content, **changes) == (code, 0)
    inbox.admission._actor_domains = frozenset({"other.example"})
    assert free(inbox, content, **changes) == (code, 0)


@pytest.mark.parametrize(("content", "changes", "code"), [
    (PKD.replace("plaintext", "other"), {}, "wrong_context"), (PKD[:-1], {}, "bad_json"),
    (PKD.replace('"', "&quot;"), {}, "html_content"), (f"  {PKD[:-1]},\"x\":\"y\"}}", {}, "bad_request"),
    (PKD, {"to": [BOB]}, "not_a_direct_message"), (PKD, {"published": 1.5}, "bad_json"), (PKD, {}, "unauthorized"),
    ("x", {"type": "create"}, "not_a_direct_message"),
])
def test_a_message_that_is_wrong_counts(inbox, content, changes, code):
    assert free(inbox, content, **changes) == (code, 1)


def test_a_record_that_json_would_swell_is_refused(inbox, monkeypatch):
    text = "\x01" * 1000  # six characters each in JSON
    inbox.enrol()
    assert inbox.admit(AddAuxData(ALICE, "test", text, None, NOW)).plain["aux-data"] == text
    monkeypatch.setattr(admission_module, "RECORD_LIMIT_BYTES", 9000)
    assert inbox.message_code(AddAuxData(ALICE, "test", text, None, NOW)) == "too_large"
