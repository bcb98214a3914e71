"""Revocation tokens."""

from __future__ import annotations

import pytest

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.keys import private_key_from_seed
from ktlog.pkd.token import make_token, parse_token
from ktlog.tlog.encoding import decode_base64url, encode_base64url

KEY = private_key_from_seed(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
TOKEN = make_token(KEY, PUBLIC)
OTHER = private_key_from_seed(bytes(32))


def _name(error_class, text):
    with pytest.raises(error_class) as error:
        parse_token(text)
    return error.value.name


def test_layout():
    # Spec: PKD "Revocation Tokens".
    raw = decode_base64url(TOKEN)
    assert len(raw) == 3789
    assert raw[:8] == b"FediPKD1"
    assert raw[8:57] == b"\xfe" * 32 + b"revoke-public-key"
    assert raw[57:1369] == PUBLIC
    assert KEY.public_key().verify(raw[1369:], raw[:1369]) is None
    # What all tokens begin with; a wire message is easily recognised by it.
    assert TOKEN.startswith("RmVkaVBLRD")


def test_round_trip():
    token = parse_token(TOKEN)
    assert token.public_key == PUBLIC
    assert token.text == TOKEN
    assert token.signature == decode_base64url(TOKEN)[-2420:]


def test_two_tokens_for_one_key_differ_and_both_hold():
    again = make_token(KEY, PUBLIC)
    assert again != TOKEN
    assert parse_token(again).public_key == PUBLIC


def test_a_token_for_somebody_elses_key_cannot_be_made():
    for public in (OTHER.public_key().public_bytes_raw(), PUBLIC[:-1], b""):
        with pytest.raises(Invalid) as error:
            make_token(KEY, public)
        assert error.value.name == "BadTokenSignature"


def test_a_token_signed_by_another_key_is_refused():
    signed = decode_base64url(TOKEN)[:1369]
    assert _name(Invalid, encode_base64url(signed + OTHER.sign(signed))) == "BadTokenSignature"


def test_every_changed_byte_is_refused():
    raw = decode_base64url(TOKEN)
    for position in range(0, len(raw), 5):
        changed = bytearray(raw)
        changed[position] ^= 1 << position % 8
        text = encode_base64url(bytes(changed))
        expected = (EncodingError, "BadToken") if position < 57 else (Invalid, "BadTokenSignature")
        assert _name(expected[0], text) == expected[1]


@pytest.mark.parametrize(
    "text",
    ["", "A", TOKEN[:-1], TOKEN[:-4], TOKEN + "AAAA", TOKEN + "=", TOKEN + "\n", " " + TOKEN, "+" + TOKEN[1:],
     "\u0663" * 5052, "A" * 5052, None, 7, b"bytes"],
    ids=lambda text: repr(text)[:16],
)
def test_malformed_tokens_are_coded_errors(text):
    assert _name(EncodingError, text) == "BadToken"


def test_published_token(vectors):
    document = parse_json((vectors / "pkd-vectors-0.9.0.json").read_bytes())
    tokens = 0
    for case in document["test-cases"]:
        keys = [decode_base64url(each["mldsa44"]["public-key"]) for each in case["identities"].values()]
        for step in case["steps"]:
            message = parse_json(step["protocol-message"])
            if message["action"] == "RevokeKeyThirdParty":
                assert parse_token(message["revocation-token"]).public_key in keys
                tokens += 1
    assert tokens == 1
