"""What the parser refuses, and with which code; what does not open; what is no revocation token."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ktlog.errors import Invalid
from ktlog.pkd.attributes import encrypt_attribute
from ktlog.pkd.dialects import DIALECTS, SPEC
from ktlog.pkd.keys import ZERO_ROOT, encode_public_key, encode_root
from ktlog.pkd.messages import (
    MAX_MESSAGE_BYTES,
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    RevokeAuxData,
    check_commitments,
    message_from_plain,
    open_message_attributes,
    parse_wire,
    plain_attributes,
)
from ktlog.tlog.encoding import decode_base64url, encode_base64url
from tests.pkd_samples import (  # noqa: F401 - the fixture works by being here
    ALICE,
    BOB,
    NOW,
    ONE_OF_EACH,
    build,
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
