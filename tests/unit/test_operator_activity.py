"""The direct message around a protocol message: one shape, addressed to the log alone, nothing repaired."""

from __future__ import annotations

import copy
import html
import json

import pytest

from ktlog.errors import EncodingError, KtlogError, MessageRejected
from ktlog.operator.activity import (
    ENCRYPTED_CONTEXT,
    PLAINTEXT_CONTEXT,
    REVOKE_CONTEXT,
    Activity,
    Envelope,
    open_envelope,
    parse_activity,
    parse_burndown,
    parse_revocation,
)
from ktlog.operator.instance import direct_message
from ktlog.pkd.actions import PKD_CONTEXT

INBOX_ACTOR = "https://keys.example.com/users/pubkeydir"
ALICE = "https://example.com/users/alice"
CONTENT = json.dumps({"!pkd-context": ENCRYPTED_CONTEXT, "actor": ALICE, "encrypted-message": "hpke:AA"})
PUBLIC = "https://www.w3.org/ns/activitystreams#Public"
MISSING = object()


def message() -> dict:
    return copy.deepcopy(direct_message(INBOX_ACTOR, ALICE, CONTENT, lambda size: bytes(range(size))))


def changed(path: str, value: object) -> bytes:
    """The good message with one member changed; ``object.x`` is a member of the Note."""
    document = message()
    target = document
    *parents, name = path.split(".")
    for parent in parents:
        target = target[parent]
    if value is MISSING:
        del target[name]
    else:
        target[name] = value
    return json.dumps(document).encode()


def code_of(body: bytes) -> str:
    with pytest.raises(KtlogError) as caught:
        parse_activity(body, INBOX_ACTOR)
    assert isinstance(caught.value, MessageRejected | EncodingError)
    return caught.value.name


def test_what_our_own_instance_client_sends():
    assert parse_activity(json.dumps(message()).encode(), INBOX_ACTOR) == Activity(ALICE, CONTENT)


@pytest.mark.parametrize(("path", "value"), [
    ("to", INBOX_ACTOR), ("object.to", INBOX_ACTOR), ("cc", []), ("object.cc", []), ("to", [INBOX_ACTOR, INBOX_ACTOR]),
    ("published", "2026-01-01T00:00:00Z"), ("object.sensitive", False), ("object.tag", []), ("@context", []),
    ("cc", [INBOX_ACTOR]),
])
def test_harmless_variations(path, value):
    assert parse_activity(changed(path, value), INBOX_ACTOR).content == CONTENT


@pytest.mark.parametrize(("path", "value", "code"), [
    ("type", "Announce", "not_a_direct_message"), ("type", ["Create"], "not_a_direct_message"),
    ("type", MISSING, "not_a_direct_message"), ("type", "create", "not_a_direct_message"),
    ("object", "https://example.com/objects/1", "bad_request"), ("object", [], "bad_request"),
    ("object", None, "bad_request"), ("object", MISSING, "bad_request"),
    ("object.type", "Article", "not_a_direct_message"), ("object.type", MISSING, "not_a_direct_message"),
    ("actor", MISSING, "bad_request"), ("actor", "", "bad_request"), ("actor", {"id": ALICE}, "bad_request"),
    ("actor", "http://example.com/users/alice", "BadActorId"), ("actor", "https://127.0.0.1/a", "BadActorId"),
    ("actor", "https://Example.com/users/alice", "BadActorId"), ("actor", "alice", "BadActorId"),
    ("actor", ALICE + "#main-key", "BadActorId"), ("actor", "https://example.com/a/../b", "BadActorId"),
    ("actor", "https://example.com/users/bob", "actor_mismatch"),
    ("object.attributedTo", "https://example.com/users/bob", "actor_mismatch"),
    ("object.attributedTo", [ALICE], "actor_mismatch"), ("object.attributedTo", MISSING, "actor_mismatch"),
    ("id", MISSING, "bad_request"), ("id", 5, "bad_request"), ("object.id", MISSING, "bad_request"),
    ("object.content", MISSING, "bad_request"), ("object.content", 5, "bad_request"),
    ("object.content", {"encrypted": "x"}, "bad_request"), ("object.content", [CONTENT], "bad_request"),
    ("object.content", "", "bad_request"), ("object.content", None, "bad_request"),
])
def test_other_shapes(path, value, code):
    assert code_of(changed(path, value)) == code


@pytest.mark.parametrize(("path", "value"), [
    ("to", []), ("to", MISSING), ("object.to", []), ("object.to", MISSING), ("to", None), ("to", ""),
    ("to", ["https://keys.example.com/users/other"]), ("to", [INBOX_ACTOR + "/"]), ("to", [INBOX_ACTOR.upper()]),
    ("to", [INBOX_ACTOR, PUBLIC]), ("cc", PUBLIC), ("cc", [PUBLIC]), ("cc", "as:Public"), ("object.cc", ["Public"]),
    ("bto", [PUBLIC]), ("bcc", [PUBLIC]), ("audience", PUBLIC), ("object.audience", [PUBLIC]),
    ("cc", ["https://example.com/users/alice/followers"]), ("object.bcc", [ALICE]), ("to", [INBOX_ACTOR, ALICE]),
    ("to", [[INBOX_ACTOR]]), ("to", [{"id": INBOX_ACTOR}]), ("cc", {"id": PUBLIC}), ("to", [INBOX_ACTOR, None]),
    ("to", [INBOX_ACTOR, 5]), ("to", 5), ("cc", [[]]), ("to", True),
])
def test_a_message_that_others_get_too(path, value):
    assert code_of(changed(path, value)) == "not_a_direct_message"


@pytest.mark.parametrize(("body", "code"), [
    (b"", "BadJson"), (b"null", "bad_request"), (b"[]", "bad_request"), (b'"x"', "bad_request"), (b"\xff", "BadJson"),
    (b"{", "BadJson"), (b'{"type":"Create","type":"Create"}', "DuplicateKey"),
    (b'{"type":"Create","\\u0074ype":"Create"}', "DuplicateKey"), (b'{"a":1.5}', "BadJson"), (b'{"a":1e3}', "BadJson"),
    (b'{"a":NaN}', "BadJson"), (b'{"a":"\\ud800"}', "BadJson"), (b"[" * 33 + b"]" * 33, "BadJson"),
    (b"[" * 100_000, "BadJson"), (b'{"a":' * 50_000, "BadJson"), (b"\xef\xbb\xbf{}", "BadJson"),
    (b'{"a":' + b"9" * 5000 + b"}", "BadJson"), (b"{} {}", "BadJson"),
], ids=lambda value: repr(value[:20]) if isinstance(value, bytes) else value)
def test_bodies_that_are_no_activity(body, code):
    assert code_of(body) == code


def test_a_duplicate_key_anywhere():
    for name in ("actor", "to", "object", "content", "attributedTo"):
        text = json.dumps(message())
        doubled = text.replace(f'"{name}":', f'"{name}": "x", "{name}":', 1)
        assert code_of(doubled.encode()) == "DuplicateKey"


# --- the content


def envelope(**changes: object) -> str:
    members = {"!pkd-context": ENCRYPTED_CONTEXT, "actor": ALICE, "encrypted-message": "hpke:AA"} | changes
    return json.dumps({name: value for name, value in members.items() if value is not MISSING})


def envelope_code(content: str) -> str:
    with pytest.raises(KtlogError) as caught:
        open_envelope(content)
    return caught.value.name


def test_both_envelopes():
    assert open_envelope(CONTENT) == Envelope(ALICE, "hpke:AA", None)
    plain = json.dumps({"!pkd-context": PLAINTEXT_CONTEXT, "actor": ALICE, "message": "{}"})
    assert open_envelope(plain) == Envelope(ALICE, None, "{}")
    assert open_envelope(f"\n {CONTENT}\t") == Envelope(ALICE, "hpke:AA", None)


@pytest.mark.parametrize("content", [
    f"<p>{html.escape(CONTENT)}</p>", f"<p>{CONTENT}</p>", html.escape(CONTENT), f"  \n<div>{CONTENT}</div>", "<",
    f"<!DOCTYPE html>{CONTENT}", CONTENT.replace('"', "&quot;"),
])
def test_html_is_named_as_such(content):
    assert envelope_code(content) == "html_content"


@pytest.mark.parametrize(("content", "code"), [
    (f"{CONTENT}<br>", "BadJson"), (CONTENT.replace('"', "&#34;"), "BadJson"),
    ("hello @pubkeydir", "BadJson"), ("[]", "bad_request"), ("5", "bad_request"), ("null", "bad_request"),
    (envelope(**{"!pkd-context": "fedi-e2ee:v2-encrypted-message"}), "wrong_context"),
    (envelope(**{"!pkd-context": MISSING}), "wrong_context"), (envelope(**{"!pkd-context": None}), "wrong_context"),
    (envelope(**{"!pkd-context": PLAINTEXT_CONTEXT}), "bad_request"),
    (envelope(message="{}"), "bad_request"), (envelope(extra="x"), "bad_request"),
    (envelope(actor=MISSING), "bad_request"), (envelope(actor=5), "bad_request"), (envelope(actor="alice"), "BadActorId"),
    (envelope(**{"encrypted-message": ""}), "bad_request"),
    (envelope(**{"encrypted-message": 5}), "bad_request"), (envelope(**{"encrypted-message": MISSING}), "bad_request"),
    (CONTENT[:-1] + ', "actor": "https://example.com/users/bob"}', "DuplicateKey"),
])
def test_contents_that_are_no_envelope(content, code):
    assert envelope_code(content) == code


@pytest.mark.parametrize("context", [["x"], {"a": "b"}, 5, True])
def test_a_context_of_another_type(context):
    """An object cannot be looked up in a table: it must be refused, not raise something else."""
    assert envelope_code(envelope(**{"!pkd-context": context})) == "wrong_context"


# The two other doors


PLAIN = {"!pkd-context": PLAINTEXT_CONTEXT, "actor": ALICE, "message": "{}"}
PARAMETERS = {"!pkd-context": REVOKE_CONTEXT, "current-time": "1730909831", "revocation-token": "token"}


def door_code(parse, fields) -> str:
    with pytest.raises(KtlogError) as caught:
        parse(fields if isinstance(fields, bytes) else json.dumps(fields).encode())
    assert isinstance(caught.value, MessageRejected | EncodingError)
    return caught.value.name


def without(fields: dict, name: str) -> dict:
    return {key: value for key, value in fields.items() if key != name}


def test_the_body_of_a_burn_down_is_the_plaintext_envelope():
    assert parse_burndown(json.dumps(PLAIN).encode()) == Envelope(ALICE, None, "{}")


@pytest.mark.parametrize(("fields", "code"), [
    (b"", "BadJson"), (b"[]", "bad_request"), (b'{"actor":1,"actor":2}', "DuplicateKey"), ({}, "wrong_context"),
    (json.loads(CONTENT), "burndown_encrypted"), (PLAIN | {"!pkd-context": PKD_CONTEXT}, "wrong_context"),
    (PLAIN | {"encrypted-message": "hpke:AA"}, "bad_request"), (without(PLAIN, "actor"), "bad_request"),
    (without(PLAIN, "message"), "bad_request"), (PLAIN | {"message": {}}, "bad_request"),
    (PLAIN | {"message": ""}, "bad_request"), (PLAIN | {"actor": "bob"}, "BadActorId"), (message(), "wrong_context"),
])
def test_bodies_that_are_no_burn_down(fields, code):
    assert door_code(parse_burndown, fields) == code


@pytest.mark.parametrize("fields", [
    PARAMETERS, PARAMETERS | {"action": "RevokeKeyThirdParty"}, PARAMETERS | {"current-time": "0"},
    without(PARAMETERS, "current-time") | {"action": "RevokeKeyThirdParty", "!pkd-context": PKD_CONTEXT},
])
def test_the_body_of_a_revocation(fields):
    assert parse_revocation(json.dumps(fields).encode()) == "token"


@pytest.mark.parametrize(("fields", "code"), [
    (b"\xff", "BadJson"), (b"5", "bad_request"), (b'{"a":1.5}', "BadJson"), ({}, "wrong_context"),
    (without(PARAMETERS, "!pkd-context"), "wrong_context"), (PARAMETERS | {"!pkd-context": []}, "wrong_context"),
    (without(PARAMETERS, "current-time"), "bad_request"), (without(PARAMETERS, "revocation-token"), "bad_request"),
    (PARAMETERS | {"revocation-token": ["token"]}, "bad_request"), (PARAMETERS | {"revocation-token": ""}, "bad_request"),
    (PARAMETERS | {"current-time": 1730909831}, "bad_request"), (PARAMETERS | {"current-time": "01"}, "bad_time"),
    (PARAMETERS | {"current-time": "-1"}, "bad_time"), (PARAMETERS | {"time": "1"}, "bad_request"),
    (PARAMETERS | {"action": "BurnDown"}, "unknown_action"), (PARAMETERS | {"action": None}, "unknown_action"),
])
def test_bodies_that_are_no_revocation(fields, code):
    assert door_code(parse_revocation, fields) == code
