"""The form of the three TOTP requests, and what is signed in them."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from ktlog.errors import MessageRejected
from ktlog.pkd.keys import verify_mldsa44
from ktlog.pkd.totp_requests import Operation, build_totp_request, parse_totp_request, signed_bytes
from ktlog.tlog.encoding import encode_base64url
from tests.pkd_samples import ALICE, NOW, bytes_of, private, public

KEY_ID = encode_base64url(bytes_of("key id"))
MEMBER = {Operation.ENROLL: "enrollment", Operation.DISENROLL: "disenrollment", Operation.ROTATE: "rotation"}
FIELDS = {
    Operation.ENROLL: {"otp-current": "1", "otp-previous": "2", "totp-secret": "hpke:x"},
    Operation.DISENROLL: {"otp": "1"},
    Operation.ROTATE: {"new-otp-current": "1", "new-otp-previous": "2", "new-totp-secret": "hpke:x", "old-otp": "3"},
}
NAMES = ["!pkd-context", "action", "current-time", "signature"]
EVERY = pytest.mark.parametrize("operation", list(Operation), ids=lambda operation: operation.value)


def fields(operation: Operation) -> dict[str, str]:
    return {"actor-id": ALICE, "key-id": KEY_ID} | FIELDS[operation]


def built(operation: Operation) -> dict[str, Any]:
    return build_totp_request(operation, fields(operation), private("a"), NOW)


def code(operation: Operation, body: Any) -> str:
    with pytest.raises(MessageRejected) as caught:
        parse_totp_request(operation, body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value.code


@EVERY
def test_built_and_parsed(operation):
    asked = parse_totp_request(operation, json.dumps(built(operation)).encode())
    assert (asked.operation, asked.time, asked.actor_id, asked.key_id) == (operation, NOW, ALICE, KEY_ID)
    assert asked.fields == fields(operation)
    verify_mldsa44(public("a"), asked.signature, asked.signed_bytes)


@EVERY
def test_what_is_signed_byte_by_byte(operation):
    """Six pieces and no root, written down by hand from the specification's text."""
    def piece(text: str) -> bytes:
        return len(text).to_bytes(8, "little") + text.encode()

    inner = json.dumps(fields(operation), sort_keys=True, separators=(",", ":"))
    pieces = [
        "!pkd-context", f"fedi-e2ee:v1/api/totp/{operation.value}", "action", f"totp-{operation.value}",
        MEMBER[operation], inner,
    ]
    expected = (6).to_bytes(8, "little") + b"".join(map(piece, pieces))
    assert signed_bytes(operation, f"totp-{operation.value}", fields(operation)) == expected


@EVERY
def test_both_spellings_of_the_action(operation):
    for action in (f"TOTP-{operation.value.capitalize()}", f"totp-{operation.value}"):
        asked = parse_totp_request(operation, json.dumps(built(operation) | {"action": action}).encode())
        assert asked.signed_bytes == signed_bytes(operation, action, fields(operation))
    for action in (f"TOTP-{operation.value.upper()}", f"Totp-{operation.value}", operation.value, ""):
        assert code(operation, built(operation) | {"action": action}) == "unknown_action"


@EVERY
def test_no_member_may_be_missing(operation):
    for name in [*NAMES, MEMBER[operation]]:
        body = built(operation)
        del body[name]
        assert code(operation, body) == "bad_request"


@EVERY
def test_no_member_of_the_object_may_be_missing(operation):
    for name in fields(operation):
        body = built(operation)
        del body[MEMBER[operation]][name]
        assert code(operation, body) == "bad_request"


@EVERY
def test_nothing_else_may_be_there(operation):
    assert code(operation, built(operation) | {"recent-merkle-root": "x"}) == "bad_request"
    body = built(operation)
    body[MEMBER[operation]]["time"] = str(NOW)
    assert code(operation, body) == "bad_request"


@EVERY
def test_every_member_is_text(operation):
    for value in (5, None, True, [], {}):
        for name in NAMES:
            assert code(operation, built(operation) | {name: value}) == "bad_request"
        for name in fields(operation):
            body = built(operation)
            body[MEMBER[operation]][name] = value
            assert code(operation, body) == "bad_request"


@EVERY
def test_a_request_for_another_operation(operation):
    for other in Operation:
        if other != operation:
            assert code(operation, built(other)) == "bad_request"
            assert code(operation, built(operation) | {"!pkd-context": other.context}) == "wrong_context"


def test_spoilt_bytes_give_a_coded_refusal_or_a_request():
    generator = random.Random(3)
    whole = json.dumps(built(Operation.ENROLL)).encode()
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            index = generator.randrange(len(data))
            data[index:index + generator.randint(0, 3)] = generator.choice([b"", b"{", b'"', b"\\u0000", b"\xff", b"9"])
        try:
            parse_totp_request(Operation.ENROLL, bytes(data))
        except MessageRejected as refusal:
            assert refusal.code in {
                "bad_json", "duplicate_json_key", "bad_request", "wrong_context", "unknown_action", "bad_time",
                "bad_actor_id", "bad_key_id", "bad_signature",
            }
