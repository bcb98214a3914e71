"""Protocol messages: every action in every dialect, both ways of reading, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from ktlog.errors import Invalid, MessageRejected
from ktlog.pkd.attributes import encrypt_attribute
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC, VECTOR
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key, encode_root, key_hash, verify_mldsa44
from ktlog.pkd.messages import (
    ENCRYPTED,
    MAX_MESSAGE_BYTES,
    PADDING_RANDOM_BYTES,
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    RevokeAuxData,
    aux_data_id,
    build_wire,
    check_commitments,
    check_time,
    format_wire,
    message_from_plain,
    open_message_attributes,
    pad_plaintext,
    parse_wire,
    plain_attributes,
)
from ktlog.pkd.rejections import REJECTIONS, reject
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
    remembered_argon2,
    text_of,
    token,
)

EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)
EVERY_MESSAGE = pytest.mark.parametrize("message", ONE_OF_EACH, ids=lambda message: message.action)
CONTEXT = "https://github.com/fedi-e2ee/public-key-directory/v1"
ADD_KEY = AddKey(ALICE, public("a"), NOW)
FIREPROOF = Fireproof(ALICE, NOW)


def refusal(call: Callable[[], Any]) -> str:
    with pytest.raises(MessageRejected) as caught:
        call()
    assert caught.value.message == REJECTIONS[caught.value.code]
    return caught.value.code


def refused(text: str | bytes | dict[str, Any], dialect=SPEC) -> str:
    return refusal(lambda: parse_wire(dialect, json.dumps(text) if isinstance(text, dict) else text))


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


# --- what is refused


@pytest.mark.parametrize(("text", "code"), [
    ("", "bad_json"),
    ("{", "bad_json"),
    (b"\xff\xfe{}", "bad_json"),
    (b"\xef\xbb\xbf{}", "bad_json"),
    ("[" * 100_000, "bad_json"),
    ('{"action": 1.5}', "bad_json"),
    ('{"action": NaN}', "bad_json"),
    ('{"action": "\\ud800"}', "bad_json"),
    ('{"action": "AddKey", "action": "AddKey"}', "duplicate_json_key"),
    ('{"action": "AddKey", "\\u0061ction": "AddKey"}', "duplicate_json_key"),
    ('{"a": {"b": 1, "b": 1}}', "duplicate_json_key"),
    ("[]", "bad_request"),
    ('"AddKey"', "bad_request"),
    ("null", "bad_request"),
    ("{}", "wrong_context"),
    ('{"action": "AddKey"}', "wrong_context"),
    (" " * (MAX_MESSAGE_BYTES + 1), "too_large"),
])
def test_text_that_is_no_message(text, code) -> None:
    assert refused(text) == code


def test_a_key_named_twice_in_a_signed_message_is_refused_even_when_both_agree() -> None:
    text = text_of(SPEC, FIREPROOF)
    assert refused(text[:-1] + ',"action":"Fireproof"}') == "duplicate_json_key"
    assert refused(text.replace('"message":{', f'"message":{{"time":"{NOW}",')) == "duplicate_json_key"


@pytest.mark.parametrize("change", [
    {"!pkd-context": CONTEXT + "/"}, {"!pkd-context": None}, {"!pkd-context": "fedi-e2ee:v1/api/revoke"},
])
def test_another_context(change) -> None:
    assert refused(build(SPEC, FIREPROOF) | change) == "wrong_context"
    tokens = {"action": "RevokeKeyThirdParty", "revocation-token": token("a").text}
    assert refused(tokens | change) in ("wrong_context", "bad_request")


@pytest.mark.parametrize("action", ["addkey", "AddKey ", "", "TOTP-Enroll", None, 1, ["AddKey"]])
def test_unknown_actions(action) -> None:
    assert refused(build(SPEC, FIREPROOF) | {"action": action}) == "unknown_action"


@EVERY_MESSAGE
def test_every_member_is_needed_and_no_other_is_taken(message) -> None:
    members = build(SPEC, message)
    for name in set(members) - {"symmetric-keys", "action", "!pkd-context"}:
        assert refused({k: v for k, v in members.items() if k != name}) == "bad_request", name
    for name in ("extra", "Message", "current-time", "otp" if message.action != "BurnDown" else "OTP"):
        assert refused(members | {name: "x"}) == "bad_request", name
    for name in members.get("message", {}):
        without = {k: v for k, v in members["message"].items() if k != name}
        assert refused(members | {"message": without}) == "bad_request", name
        assert refused(members | {"message": members["message"] | {name: None}}) == "bad_request", name
    if "message" in members:
        assert refused(members | {"message": members["message"] | {"extra": "x"}}) == "bad_request"


@pytest.mark.parametrize("value", [None, 1, True, ["x"], {"x": "y"}, []])
def test_values_that_are_not_strings(value) -> None:
    members = build(SPEC, FIREPROOF, key_id=encode_base64url(bytes(32))) | {"padding": "A"}
    for name in ("recent-merkle-root", "signature", "key-id", "padding"):
        assert refused(members | {name: value}) == "bad_request", name
    for name in ("actor", "time"):
        assert refused(members | {"message": members["message"] | {name: value}}) == "bad_request", name
    if value != {"x": "y"}:
        assert refused(members | {"message": value}) == "bad_request"
    if value not in (None, []):
        assert refused(members | {"symmetric-keys": value}) == "bad_symmetric_key"
    assert refused(members | {"symmetric-keys": {"actor": value}}) == "bad_symmetric_key"
    burn = build(SPEC, BurnDown(BOB, ALICE, NOW))
    assert refused(burn | {"otp": value}) == "bad_request"
    revocation = {"action": "RevokeKeyThirdParty", "revocation-token": value}
    assert refused(revocation) == "bad_request"


@pytest.mark.parametrize("time", [
    "", "0x1", "+1800000000", "-1", " 1", "1 ", "1_000", "01", "1.0", "1e9", "٣", "９", str(2**63), "9" * 400,
])
def test_times_that_are_not_canonical_decimal(time) -> None:
    members = build(SPEC, FIREPROOF)
    assert refused(members | {"message": members["message"] | {"time": time}}) == "bad_time"


@pytest.mark.parametrize("time", ["0", "1", "4294967296", str(2**63 - 1)])
def test_times_are_64_bits_wide(time) -> None:
    members = build(SPEC, FIREPROOF)
    members["message"]["time"] = time
    assert parse_wire(SPEC, json.dumps(members)).time == int(time)


@pytest.mark.parametrize("root", [
    "", "pkd-mr-v1:", ZERO_ROOT[:-1], ZERO_ROOT + "A", ZERO_ROOT[:-1] + "B", ZERO_ROOT + "=", ZERO_ROOT.upper(),
    ZERO_ROOT.removeprefix("pkd-mr-v1:"), " " + ZERO_ROOT, ZERO_ROOT.replace("v1", "v2"),
])
def test_roots_are_strict(root) -> None:
    assert refused(build(SPEC, FIREPROOF) | {"recent-merkle-root": root}) == "bad_root"


def test_signatures_are_strict() -> None:
    members = build(SPEC, FIREPROOF)
    good = members["signature"]
    for text in ("", good[:-1], good + "A", good + "=", good[:-1] + "_", good[:100] + "+" + good[101:],
                 good[:100] + "\n" + good[101:], encode_base64url(bytes(2419))):
        assert refused(members | {"signature": text}) == "bad_signature"


@pytest.mark.parametrize("key_id", ["", "A" * 42, "A" * 42 + "B", "A" * 44, "+" * 43])
def test_key_ids_are_strict(key_id) -> None:
    assert refused(build(SPEC, FIREPROOF) | {"key-id": key_id}) == "bad_key_id"


@pytest.mark.parametrize("keys", [
    {}, {"actor": "A" * 42}, {"actor": "A" * 42 + "B"}, {"actor": "A" * 44}, {"time": "A" * 43},
    {"actor": "A" * 43, "public-key": "A" * 43},
])
def test_symmetric_keys_are_exactly_those_of_the_attributes(keys) -> None:
    assert refused(build(SPEC, FIREPROOF) | {"symmetric-keys": keys}) == "bad_symmetric_key"


def test_a_message_without_symmetric_keys_parses_but_does_not_open() -> None:
    members = build(SPEC, FIREPROOF)
    del members["symmetric-keys"]
    wire = parse_wire(SPEC, json.dumps(members))
    assert refusal(lambda: open_message_attributes(SPEC, wire, commitments=False)) == "bad_symmetric_key"


@pytest.mark.parametrize("aux_type", ["", "Age-v1", "age_v1", "a" * 33, "age v1", "é"])
def test_aux_types_are_strict(aux_type) -> None:
    assert refused(build(SPEC, AddAuxData(ALICE, aux_type, "x", None, NOW))) == "bad_aux_type"


@pytest.mark.parametrize("aux_id", ["", "A" * 42, "A" * 42 + "B", "A" * 44, "M" * 56])
def test_aux_ids_are_strict(aux_id) -> None:
    assert refused(build(SPEC, AddAuxData(ALICE, "x", "x", aux_id, NOW))) == "aux_id_mismatch"


def test_revoking_aux_data_needs_a_name_for_it() -> None:
    assert refused(build(SPEC, RevokeAuxData(ALICE, "x", None, None, NOW))) == "bad_request"


# --- attributes


@EVERY_DIALECT
def test_a_changed_attribute_or_key_does_not_open(dialect) -> None:
    members = build(dialect, ADD_KEY)
    for name in ("actor", "public-key"):
        text = members["message"][name]
        for place in (0, 5, 60, 100, len(text) // 2, len(text) - 2):
            other = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1:]
            changed = members | {"message": members["message"] | {name: other}}
            wire = parse_wire(dialect, json.dumps(changed))
            code = refusal(lambda wire=wire: open_message_attributes(dialect, wire, commitments=False))
            assert code == "attribute_decryption_failed"
        keys = members["symmetric-keys"] | {name: encode_base64url(bytes(32))}
        wire = parse_wire(dialect, json.dumps(members | {"symmetric-keys": keys}))
        code = refusal(lambda wire=wire: open_message_attributes(dialect, wire, commitments=False))
        assert code == "attribute_decryption_failed"


@pytest.mark.parametrize("text", ["", "AQ", "A" * 128, "A" * 129, "A" * 132 + "=", "A" * 131 + "+"])
def test_attributes_that_are_too_short_or_not_canonical(text) -> None:
    members = build(SPEC, FIREPROOF)
    changed = members | {"message": members["message"] | {"actor": text}}
    assert refused(changed) == "attribute_decryption_failed"


def sealed(dialect, message, name, text, root=ZERO_ROOT) -> dict[str, Any]:
    """A message whose attribute *name* holds *text*, committed to under *root*. Its signature is worthless."""
    members = build(dialect, message)
    key = decode_base64url(members["symmetric-keys"][name], 32)
    members["message"][name] = encrypt_attribute(dialect, name, text, key, root, bytes(32))
    return members


@EVERY_DIALECT
def test_a_false_commitment_is_found_by_the_directory_and_by_the_replayer(dialect) -> None:
    other_root = encode_root(bytes(31) + b"\x01")
    wire = parse_wire(dialect, json.dumps(sealed(dialect, FIREPROOF, "actor", ALICE, other_root)))
    message = open_message_attributes(dialect, wire, commitments=False)
    assert message == FIREPROOF
    assert refusal(lambda: check_commitments(dialect, wire, message)) == "plaintext_mismatch"
    assert refusal(lambda: open_message_attributes(dialect, wire, commitments=True)) == "plaintext_mismatch"
    plain = plain_attributes(wire, message)
    assert message_from_plain(dialect, wire.preimage, plain, commitments=False)[1] == message
    with pytest.raises(Invalid, match="PlaintextMismatch"):
        message_from_plain(dialect, wire.preimage, plain, commitments=True)


@pytest.mark.parametrize("actor", [
    "", "alice", "http://example.com/users/alice", "https://example.com", "https://Example.com/users/alice",
    "https://example.com:8443/users/alice", "https://example.com/users/alice#main", "https://a@example.com/u",
    "https://example.com/users/../alice", "https://example.com/users/%2e/alice", "https://127.0.0.1/u",
    "https://localhost/u", "https://example.com/üsers", "https://example.com/a b", "https://example.com/%zz",
    "https://example.com/users/alice\n", "https://example.com/" + "a" * 2048, "@alice@example.com",
])
def test_actor_ids_that_are_not_canonical_urls(actor) -> None:
    wire = parse_wire(SPEC, json.dumps(sealed(SPEC, FIREPROOF, "actor", actor)))
    assert refusal(lambda: open_message_attributes(SPEC, wire, commitments=False)) == "bad_actor_id"
    with pytest.raises(Invalid, match="BadEntry"):
        message_from_plain(SPEC, wire.preimage, {"actor": actor}, commitments=True)


def test_public_keys_are_strict() -> None:
    good = encode_public_key(public("a"))
    for text in ("", good[8:], good + "A", "mldsa65:" + good[8:], good[:-1] + "_", good[:-4]):
        wire = parse_wire(SPEC, json.dumps(sealed(SPEC, ADD_KEY, "public-key", text)))
        assert refusal(lambda wire=wire: open_message_attributes(SPEC, wire, commitments=False)) == (
            "bad_public_key"
        )


@pytest.mark.parametrize(("name", "value", "code"), [
    ("from-directory", "http://keys.example.net", "bad_request"),
    ("to-directory", "keys.example.com", "bad_request"),
    ("from-root", "pkd-mr-v1:", "bad_root"),
    ("to-validated-root", ZERO_ROOT[:-1] + "B", "bad_root"),
    ("from-public-key", "mldsa44:", "bad_public_key"),
])
def test_a_checkpoints_members_are_strict(name, value, code) -> None:
    members = build(SPEC, ONE_OF_EACH[-1])
    members["message"][name] = value
    wire = parse_wire(SPEC, json.dumps(members))
    assert isinstance(ONE_OF_EACH[-1], CheckpointMessage)
    assert refusal(lambda: open_message_attributes(SPEC, wire, commitments=False)) == code


# --- tokens


def test_tokens_are_strict() -> None:
    good = token("a").text
    changed = good[:3000] + ("A" if good[3000] != "A" else "B") + good[3001:]
    for text, code in [
        ("", "bad_token"), (good[:-1], "bad_token"), (good + "=", "bad_token"), (good + "AAAA", "bad_token"),
        ("A" + good[1:], "bad_token"), (changed, "bad_token_signature"),
    ]:
        assert refused({"action": "RevokeKeyThirdParty", "revocation-token": text}) == code


def test_a_tokens_preimage_is_its_action_and_its_text() -> None:
    members = {
        "!pkd-context": CONTEXT, "action": "RevokeKeyThirdParty", "padding": "AAAA",
        "revocation-token": token("a").text,
    }
    for dialect in DIALECTS.values():
        wire = parse_wire(dialect, json.dumps(members))
        expected = f'{{"action":"RevokeKeyThirdParty","revocation-token":"{token("a").text}"}}'
        assert wire.preimage == expected.encode()
        assert wire.token == token("a") and wire.signed_bytes == b"" and wire.recent_root is None


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
