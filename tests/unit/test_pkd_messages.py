"""Protocol messages: every action in every dialect, byte for byte, and both ways of reading."""

from __future__ import annotations

import hashlib
import json

import pytest

from ktlog.errors import Invalid
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC, VECTOR
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key, encode_root, key_hash, verify_mldsa44
from ktlog.pkd.messages import (
    ENCRYPTED,
    PADDING_RANDOM_BYTES,
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    aux_data_id,
    build_wire,
    check_time,
    format_wire,
    message_from_plain,
    open_message_attributes,
    pad_plaintext,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.rejections import reject
from ktlog.pkd.token import make_token
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    ALICE,
    BOB,
    NOW,
    ONE_OF_EACH,
    build,
    bytes_of,
    private,
    public,
    refusal,
    refused,
    remembered_argon2,
    text_of,
    token,
)

EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
EVERY_MESSAGE = pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: message.action)
CONTEXT = "https://github.com/fedi-e2ee/public-key-directory/v1"
ADD_KEY = AddKey(ALICE, public("a"), NOW)
FIREPROOF = Fireproof(ALICE, NOW)


# --- there and back


@EVERY_DIALECT
@EVERY_MESSAGE
def test_every_message_comes_back_as_it_was_built(dialect, message) -> None:
    wire = parse_wire(dialect, text_of(dialect, message))
    assert wire.action == message.action and wire.time == message.time
    assert open_message_attributes(dialect, wire, commitments=True) == message
    plain = plain_attributes(wire, message)
    assert message_from_plain(dialect, wire.preimage, plain, commitments=True)[1] == message


@EVERY_DIALECT
@EVERY_MESSAGE
def test_the_preimage_is_its_own_canonical_form_and_reads_as_the_same_message(dialect, message) -> None:
    wire = parse_wire(dialect, text_of(dialect, message))
    assert dialect.canonical(parse_json(wire.preimage)) == wire.preimage
    again = parse_wire(dialect, wire.preimage)
    assert again.preimage == wire.preimage
    assert again.unique_hash == wire.unique_hash and again.signed_bytes == wire.signed_bytes


@EVERY_DIALECT
@EVERY_MESSAGE
def test_neither_white_space_nor_order_nor_escapes_nor_padding_make_another_message(dialect, message) -> None:
    members = build(dialect, message)
    wire = parse_wire(dialect, format_wire(members))
    shuffled = dict(reversed(list(members.items())))
    texts = [
        json.dumps(shuffled, indent=3),
        "\r\n\t " + json.dumps(members) + " ",
        format_wire(members).replace('"action"', '"\\u0061ction"').replace("example", "ex\\u0061mple"),
    ]
    for text in texts:
        other = parse_wire(dialect, text)
        assert other.unique_hash == wire.unique_hash and other.preimage == wire.preimage
    padded = parse_wire(dialect, pad_plaintext(members, bytes_of("padding", PADDING_RANDOM_BYTES)))
    assert padded.unique_hash == wire.unique_hash


@EVERY_DIALECT
def test_every_different_message_has_a_different_unique_hash(dialect) -> None:
    hashes = {parse_wire(dialect, text_of(dialect, message)).unique_hash for message in ONE_OF_EACH}
    other_root = encode_root(bytes(31) + b"\x01")
    hashes.add(parse_wire(dialect, text_of(dialect, FIREPROOF, root=other_root)).unique_hash)
    hashes.add(parse_wire(dialect, text_of(dialect, Fireproof(ALICE, NOW + 1))).unique_hash)
    assert len(hashes) == len(ONE_OF_EACH) + 2


def test_the_unique_hash_ignores_who_signed_and_which_token_it_was() -> None:
    assert (
        parse_wire(SPEC, text_of(SPEC, FIREPROOF, "a")).unique_hash
        == parse_wire(SPEC, text_of(SPEC, FIREPROOF, "b")).unique_hash
    )
    another = make_token(private("a"), public("a"))
    assert another != token("a").text
    tokens = [
        {"action": "RevokeKeyThirdParty", "revocation-token": text} | extra
        for text in (another, token("a").text)
        for extra in ({}, {"!pkd-context": CONTEXT}, {"padding": "x"})
    ]
    hashes = {parse_wire(SPEC, json.dumps(members)).unique_hash for members in tokens}
    assert len(hashes) == 1 and hashes != {key_hash(public("a"))}


# --- bytes, written out by hand


def test_signed_bytes_preimage_and_hash_of_a_fireproof() -> None:
    members = build(SPEC, FIREPROOF, key_id=encode_base64url(bytes(32)))
    actor = members["message"]["actor"]
    body = f'{{"actor":"{actor}","time":"{NOW}"}}'.encode()
    pieces = [
        b"!pkd-context", CONTEXT.encode(), b"action", b"Fireproof", b"message", body,
        b"recent-merkle-root", ZERO_ROOT.encode(),
    ]
    signed = (8).to_bytes(8, "little")
    for piece in pieces:
        signed += len(piece).to_bytes(8, "little") + piece
    wire = parse_wire(SPEC, format_wire(members))
    assert wire.signed_bytes == signed
    assert wire.unique_hash == hashlib.sha256(signed).digest()
    verify_mldsa44(public("a"), decode_base64url(members["signature"]), signed)
    assert wire.preimage == (
        f'{{"!pkd-context":"{CONTEXT}","action":"Fireproof","message":'.encode() + body
        + f',"recent-merkle-root":"{ZERO_ROOT}","signature":"{members["signature"]}"}}'.encode()
    )
    assert wire.symmetric_keys == {"actor": bytes_of("key Fireproof actor")}
    assert wire.key_id == encode_base64url(bytes(32))


def test_the_vector_dialect_hashes_the_symmetric_keys_but_no_otp_nor_key_id() -> None:
    members = build(VECTOR, BurnDown(BOB, ALICE, NOW), otp="12345678", key_id=encode_base64url(bytes(32)))
    wire = parse_wire(VECTOR, format_wire(members))
    del members["otp"], members["key-id"]
    assert wire.preimage == canonical(members) and wire.otp == "12345678"
    assert set(parse_json(wire.preimage)["symmetric-keys"]) == {"actor", "operator"}


def test_php_leaves_burndown_plain_and_writes_iso_times() -> None:
    members = build(PHP, BurnDown(BOB, ALICE, 1776655443))
    assert members["message"] == {"actor": BOB, "operator": ALICE, "time": "2026-04-20T03:24:03+00:00"}
    assert members["symmetric-keys"] == {}
    for text in ("1776655443", "2026-04-20T05:24:03+02:00"):
        members["message"]["time"] = text
        assert parse_wire(PHP, json.dumps(members)).time == 1776655443
    for text in ("2026-04-20T03:24:60+00:00", "1969-12-31T23:59:59+00:00", "2026-04-20 03:24:03+00:00",
                 "2026-04-20T03:24:03", "0000-01-01T00:00:00+00:00"):
        members["message"]["time"] = text
        assert refused(members, PHP) == "bad_time"
    assert refused(build(PHP, FIREPROOF), SPEC) == "bad_time"


@pytest.mark.parametrize("symmetric_keys", [{}, [], None])
def test_an_empty_map_may_be_a_list_since_php_wrote_it(symmetric_keys) -> None:
    members = build(VECTOR, ONE_OF_EACH[-1])
    members["symmetric-keys"] = symmetric_keys
    if symmetric_keys is None:
        del members["symmetric-keys"]
    wire = parse_wire(VECTOR, json.dumps(members))
    assert wire.symmetric_keys == {}
    assert wire.preimage == canonical(members)
    assert parse_wire(VECTOR, wire.preimage).preimage == wire.preimage


def test_text_beyond_ascii_is_signed_in_the_dialects_own_spelling() -> None:
    """No attribute that travels in clear can hold any, but the rule stands: the body is spelt per dialect."""
    message = AddAuxData(ALICE, "test-v1", "\u2028 ü \U0001f511", None, NOW)
    for dialect in DIALECTS.values():
        wire = parse_wire(dialect, format_wire(build(dialect, message)))
        assert open_message_attributes(dialect, wire, commitments=True) == message


def test_the_id_of_auxiliary_data() -> None:
    # The age recipient of the specification's example; that example's own id is a placeholder.
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    assert aux_data_id("age-v1", recipient) == "azZJtU3QLRUnfcWOpbbLBxEcOJzRTpHPgIXDkFGdIjg"


def test_what_travels_encrypted() -> None:
    assert set(ENCRYPTED) == {message.action for message in ONE_OF_EACH}
    for message in ONE_OF_EACH:
        wire = parse_wire(SPEC, text_of(SPEC, message))
        assert set(wire.encrypted) <= set(ENCRYPTED[message.action])
        assert set(wire.symmetric_keys) == set(wire.encrypted) == set(plain_attributes(wire, message))


# --- padding


def test_padding_fills_up_to_a_kibibyte_at_every_length() -> None:
    random = bytes_of("padding", PADDING_RANDOM_BYTES)
    for length in range(1100):
        text = pad_plaintext({"action": "x" * length}, random)
        assert len(text) % 1024 == 0 and len(text) < 1100 + 1200
        padding = json.loads(text)["padding"]
        assert encode_base64url(decode_base64url(padding)) == padding
        assert random.startswith(decode_base64url(padding))


@pytest.mark.parametrize("padding", ["A", "", "!!", "ü", "A" * 4097])
def test_padding_is_never_looked_into(padding) -> None:
    members = build(SPEC, FIREPROOF)
    plain = parse_wire(SPEC, json.dumps(members))
    assert parse_wire(SPEC, json.dumps(members | {"padding": padding})) == plain


# --- the replayer's way


def test_a_replayer_is_not_satisfied_with_another_plaintext() -> None:
    wire = parse_wire(SPEC, text_of(SPEC, FIREPROOF))
    for plain in ({"actor": BOB}, {"actor": "https://example.com/users/alicf"}, {}, {"actor": 1},
                  {"actor": ALICE, "public-key": "x"}, {"operator": ALICE}):
        with pytest.raises(Invalid, match="PlaintextMismatch"):
            message_from_plain(SPEC, wire.preimage, plain, commitments=True)


def test_a_withheld_attribute_leaves_the_message_without_value() -> None:
    wire = parse_wire(SPEC, text_of(SPEC, ADD_KEY))
    key = encode_public_key(public("a"))
    for plain in ({"actor": None, "public-key": key}, {"actor": ALICE, "public-key": None}):
        read, message = message_from_plain(SPEC, wire.preimage, plain, commitments=True)
        assert message is None and read.unique_hash == wire.unique_hash
    with pytest.raises(Invalid, match="PlaintextMismatch"):
        message_from_plain(SPEC, wire.preimage, {"actor": None, "public-key": key[:-1] + "_"}, commitments=True)


@EVERY_DIALECT
def test_a_preimage_has_one_form(dialect) -> None:
    wire = parse_wire(dialect, text_of(dialect, FIREPROOF))
    members = parse_json(wire.preimage)
    others = [
        json.dumps(members).encode(), wire.preimage + b"\n", wire.preimage.replace(b"/", rb"\/"),
        canonical(members | {"key-id": encode_base64url(bytes(32))}),
        canonical(members | {"otp": "12345678"}), b"", b"{}", wire.preimage[:-1],
        canonical({k: v for k, v in members.items() if k != "signature"}),
    ]
    if dialect is SPEC:
        others.append(format_wire(build(dialect, FIREPROOF)).encode())
        others.append(canonical(members | {"padding": "AAAA"}))
    for preimage in others:
        with pytest.raises(Invalid, match="BadEntry"):
            message_from_plain(dialect, preimage, {"actor": ALICE}, commitments=False)


# --- small things


def test_the_time_window_is_closed_and_two_sided() -> None:
    check_time(None, NOW)
    for time in (NOW, NOW - 30 * 86400, NOW + 30 * 86400):
        check_time(time, NOW)
    for time in (NOW - 30 * 86400 - 1, NOW + 30 * 86400 + 1, 0):
        assert refusal(lambda time=time: check_time(time, NOW)) == "stale_time"
    assert refusal(lambda: check_time(NOW - 61, NOW, 60)) == "stale_time"


def test_building_wants_exactly_the_keys_it_uses() -> None:
    with pytest.raises(AssertionError):
        build_wire(SPEC, FIREPROOF, ZERO_ROOT, private("a"), {}, {})
    with pytest.raises(AssertionError):
        build_wire(SPEC, FIREPROOF, None, private("a"), {"actor": bytes(32)}, {"actor": bytes(32)})
    with pytest.raises(AssertionError):
        pad_plaintext({}, bytes(PADDING_RANDOM_BYTES - 1))


def test_a_rejection_without_a_code_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        reject("no_such_code")
