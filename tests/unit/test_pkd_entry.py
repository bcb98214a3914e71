"""Log entries in the three dialects, and what their preimage holds."""

from __future__ import annotations

import hashlib

import pytest

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC, VECTOR
from ktlog.pkd.entry import (
    LogEntry,
    encode_entry,
    leaf_key_hash,
    make_entry,
    parse_entry,
    preimage,
    verify_entry,
)
from ktlog.pkd.keys import key_hash, private_key_from_seed
from ktlog.pkd.pae import pae
from ktlog.tlog.encoding import decode_base64url, encode_base64url

KEY = private_key_from_seed(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
KEYS = {leaf_key_hash(PUBLIC): PUBLIC}
OTHER = private_key_from_seed(bytes(32))
OTHER_PUBLIC = OTHER.public_key().public_bytes_raw()
EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)

WIRE = {
    "signature": "c2ln",
    "action": "AddKey",
    "!pkd-context": "https://github.com/fedi-e2ee/public-key-directory/v1",
    "symmetric-keys": {"actor": "a2V5"},
    "padding": "AAAA",
    "otp": "00000000",
    "key-id": "aWQ",
    "message": {"time": "1", "actor": "YWN0b3I"},
    "recent-merkle-root": "pkd-mr-v1:AAAA",
}


def _with(data: bytes, position: int, bit: int = 1) -> bytes:
    changed = bytearray(data)
    changed[position] ^= bit
    return bytes(changed)


# -- preimages --------------------------------------------------------------------------------


def test_spec_hashes_the_five_signed_members():
    assert preimage(SPEC, WIRE) == (
        b'{"!pkd-context":"https://github.com/fedi-e2ee/public-key-directory/v1","action":"AddKey",'
        b'"message":{"actor":"YWN0b3I","time":"1"},"recent-merkle-root":"pkd-mr-v1:AAAA","signature":"c2ln"}'
    )


def test_the_dialects_add_what_they_add():
    plain = parse_json(preimage(SPEC, WIRE))
    assert parse_json(preimage(VECTOR, WIRE)) == {**plain, "symmetric-keys": {"actor": "a2V5"}}
    assert parse_json(preimage(PHP, WIRE)) == {**plain, "padding": "AAAA"}


@EVERY
def test_hints_and_one_time_passwords_are_never_hashed(dialect):
    text = preimage(dialect, WIRE)
    bare = {name: value for name, value in WIRE.items() if name not in ("otp", "key-id")}
    assert preimage(dialect, bare) == text
    assert preimage(dialect, dict(reversed(WIRE.items()))) == text
    assert preimage(dialect, parse_json(text)) == text


@EVERY
def test_a_token_is_hashed_with_its_action_alone(dialect):
    wire = {"action": "RevokeKeyThirdParty", "revocation-token": "abc", "symmetric-keys": {}, "otp": ""}
    assert preimage(dialect, wire) == b'{"action":"RevokeKeyThirdParty","revocation-token":"abc"}'


def test_what_has_no_canonical_form_has_no_preimage():
    with pytest.raises(EncodingError) as error:
        preimage(SPEC, {**WIRE, "message": {"time": 1.5}})
    assert error.value.name == "BadJson"


# -- entries ----------------------------------------------------------------------------------


@EVERY
def test_layout_and_round_trip(dialect):
    entry = LogEntry(b"\x01" * 32, b"\x02" * 2420, b"\x03" * 32)
    raw = b"\x01" * 32 + b"\x02" * 2420 + b"\x03" * 32
    data = encode_entry(dialect, entry)
    assert data == {
        "spec": raw,
        "vector": encode_base64url(raw).encode(),
        "php": pae([entry.message_hash, entry.signature, entry.key_hash]),
    }[dialect.name]
    assert len(data) == dialect.entry_bytes
    assert parse_entry(data) == (dialect, entry)


@EVERY
def test_make_and_verify(dialect):
    data = make_entry(dialect, b"preimage", KEY, PUBLIC)
    verify_entry(data, b"preimage", KEYS)
    found, entry = parse_entry(data)
    assert found is dialect
    assert entry.message_hash == hashlib.sha256(b"preimage").digest()
    assert entry.key_hash == hashlib.sha256(PUBLIC).digest()
    KEY.public_key().verify(entry.signature, entry.message_hash)
    assert make_entry(dialect, b"preimage", KEY, PUBLIC) != data, "signing is hedged: an entry is made once"


def test_the_leaf_key_hash_is_over_raw_bytes():
    assert leaf_key_hash(PUBLIC) == hashlib.sha256(PUBLIC).digest() != key_hash(PUBLIC)
    for raw in (b"", PUBLIC[:-1], PUBLIC + b"\0"):
        with pytest.raises(EncodingError):
            leaf_key_hash(raw)
        with pytest.raises(EncodingError):
            make_entry(SPEC, b"preimage", KEY, raw)


@EVERY
def test_every_changed_byte_is_refused(dialect):
    data = make_entry(dialect, b"preimage", KEY, PUBLIC)
    for position in range(0, len(data), 3):
        with pytest.raises((EncodingError, Invalid)) as error:
            verify_entry(_with(data, position, 1 << position % 8), b"preimage", KEYS)
        assert error.value.name in ("BadEntry", "BadLeafSignature")


def test_each_part_has_its_own_refusal():
    data = make_entry(SPEC, b"preimage", KEY, PUBLIC)
    for changed, message, keys, name in [
        (data, b"Preimage", KEYS, "BadEntry"),
        (_with(data, 0), b"preimage", KEYS, "BadEntry"),
        (_with(data, 32), b"preimage", KEYS, "BadLeafSignature"),
        (_with(data, 2451), b"preimage", KEYS, "BadLeafSignature"),
        (_with(data, 2483), b"preimage", KEYS, "BadLeafSignature"),
        (data, b"preimage", {}, "BadLeafSignature"),
        (data, b"preimage", {leaf_key_hash(OTHER_PUBLIC): OTHER_PUBLIC}, "BadLeafSignature"),
        # A table that files a key under another's hash does not make it that key.
        (make_entry(SPEC, b"preimage", OTHER, PUBLIC), b"preimage", {leaf_key_hash(PUBLIC): OTHER_PUBLIC},
         "BadLeafSignature"),
    ]:
        with pytest.raises(Invalid) as error:
            verify_entry(changed, message, keys)
        assert error.value.name == name


def test_the_right_key_is_chosen_among_several():
    keys = {**KEYS, leaf_key_hash(OTHER_PUBLIC): OTHER_PUBLIC}
    verify_entry(make_entry(SPEC, b"a", KEY, PUBLIC), b"a", keys)
    verify_entry(make_entry(SPEC, b"b", OTHER, OTHER_PUBLIC), b"b", keys)


def test_frames_are_read_strictly():
    php = make_entry(PHP, b"preimage", KEY, PUBLIC)
    vector = make_entry(VECTOR, b"preimage", KEY, PUBLIC)
    for data in [
        b"",
        php[:-1],
        php + b"\0",
        *(_with(php, position) for position in (*range(16), *range(48, 56), *range(2476, 2484))),
        vector[:-1] + b"=",
        vector[:-1] + b"+",
        vector[:-1] + b"\n",
        vector[:-2] + "é".encode(),
        b"\xff" * 3312,
    ]:
        with pytest.raises(EncodingError) as error:
            parse_entry(data)
        assert error.value.name == "BadEntry"


def test_parts_of_another_length_are_refused():
    for lengths in [(31, 2420, 32), (32, 2419, 33), (33, 2420, 31), (0, 0, 0)]:
        with pytest.raises(EncodingError) as error:
            LogEntry(*(bytes(length) for length in lengths))
        assert error.value.name == "BadEntry"


# -- published vectors ------------------------------------------------------------------------


def test_every_published_leaf(vectors):
    document = parse_json((vectors / "pkd-vectors-0.9.0.json").read_bytes())
    count = 0
    for case in document["test-cases"]:
        public = decode_base64url(case["server-keys"]["sign-public-key"], 1312)
        keys = {leaf_key_hash(public): public}
        for step in case["steps"]:
            wire = parse_json(step["signed-message"] or step["protocol-message"])
            data = step["merkle-leaf"].encode()
            verify_entry(data, preimage(VECTOR, wire), keys)
            dialect, entry = parse_entry(data)
            assert dialect is VECTOR
            assert encode_entry(dialect, entry) == data
            if wire["action"] != "RevokeKeyThirdParty":
                with pytest.raises(Invalid) as error:
                    verify_entry(data, preimage(SPEC, wire), keys)
                assert error.value.name == "BadEntry"
            count += 1
    assert count == 23
