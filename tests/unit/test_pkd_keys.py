"""Keys, roots, key ids and ML-DSA-44 signatures."""

from __future__ import annotations

import hashlib

import pytest

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.dialects import VECTOR
from ktlog.pkd.keys import (
    ZERO_ROOT,
    ZERO_ROOT_BYTES,
    decode_public_key,
    decode_root,
    derive_key_id,
    encode_public_key,
    encode_root,
    key_hash,
    pkd_root,
    private_key_from_seed,
    sign_mldsa44,
    verify_mldsa44,
)
from ktlog.pkd.pae import pae
from ktlog.tlog.encoding import decode_base64url, encode_base64url

KEY = private_key_from_seed(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()


def test_public_key_round_trip():
    text = encode_public_key(PUBLIC)
    assert text.startswith("mldsa44:")
    assert len(text) == 8 + 1750
    assert decode_public_key(text) == PUBLIC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mldsa44:",
        "mldsa44",
        encode_base64url(PUBLIC),
        "MLDSA44:" + encode_base64url(PUBLIC),
        "ed25519:" + encode_base64url(PUBLIC),
        "mldsa44:" + encode_base64url(PUBLIC)[:-1],
        "mldsa44:" + encode_base64url(PUBLIC) + "==",
        "mldsa44:" + encode_base64url(PUBLIC) + "\n",
        "mldsa44: " + encode_base64url(PUBLIC),
        "mldsa44:" + encode_base64url(PUBLIC[:-1]),
        "mldsa44:" + encode_base64url(PUBLIC + b"\0"),
        "mldsa44:" + "+" * 1750,
        "mldsa44:" + "\u0663" * 1750,
        # 1312 bytes leave 4 spare bits in the last character; these set one of them.
        "mldsa44:" + encode_base64url(bytes(1312))[:-1] + "B",
        None,
        7,
    ],
    ids=lambda text: repr(text)[:24],
)
def test_bad_public_keys_are_refused(text):
    with pytest.raises(EncodingError) as error:
        decode_public_key(text)
    assert error.value.name == "BadPublicKey"


@pytest.mark.parametrize("raw", [b"", PUBLIC[:-1], PUBLIC + b"\0"], ids=len)
def test_wrong_length_is_a_coded_error_everywhere(raw):
    for function in (encode_public_key, key_hash, lambda key: verify_mldsa44(key, bytes(2420), b"")):
        with pytest.raises(EncodingError) as error:
            function(raw)
        assert error.value.name == "BadPublicKey"


def test_key_hash_is_over_the_encoded_key():
    assert key_hash(PUBLIC) == hashlib.sha256(encode_public_key(PUBLIC).encode()).digest()
    assert key_hash(PUBLIC) != hashlib.sha256(PUBLIC).digest()


def test_roots():
    # Source: PKD specification, "Recent Merkle Root Included in Plaintext Commitments".
    assert ZERO_ROOT == "pkd-mr-v1:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    assert encode_root(ZERO_ROOT_BYTES) == ZERO_ROOT
    assert decode_root(ZERO_ROOT) == bytes(32)
    # Source: PKD specification, "Merkle Root Encoding".
    example = "pkd-mr-v1:7TwKAbkiKCCQuCpDBV2GbkkkIDfMg2AmG7TMHqXBDJU"
    assert encode_root(decode_root(example)) == example
    empty = hashlib.sha256().digest()
    assert pkd_root(0, empty) == ZERO_ROOT
    assert decode_root(pkd_root(1, empty)) == empty


@pytest.mark.parametrize(
    "text",
    ["", "pkd-mr-v1:", ZERO_ROOT[:-1], ZERO_ROOT + "A", ZERO_ROOT + "=", ZERO_ROOT[:-1] + "B",
     ZERO_ROOT[10:], "pkd-mr-v2:" + "A" * 43, "pkd-mr-v1%3A" + "A" * 43, ZERO_ROOT + "\n", None],
)
def test_bad_roots_are_refused(text):
    with pytest.raises(EncodingError) as error:
        decode_root(text)
    assert error.value.name == "BadMerkleRoot"


def test_root_of_another_length_is_refused():
    with pytest.raises(EncodingError):
        encode_root(bytes(31))
    with pytest.raises(EncodingError):
        pkd_root(1, bytes(33))


def test_key_id_known_answer():
    # The directory map's own known answer: log keys.example.com, AddKey at leaf 0.
    assert derive_key_id("keys.example.com", 0) == "AWUI3RFyjepNO56BAVq0bwTKovLnYAFfIKbhNDdpo_Y"
    # Leaf 0 reads the same in either byte order; this one does not.
    framed = pae([b"ktlog/v1/key-id", b"keys.example.com", bytes([0, 0, 0, 0, 0, 1, 2, 3])])
    expected = encode_base64url(hashlib.sha256(framed).digest())
    assert derive_key_id("keys.example.com", 0x010203) == expected
    origins = ("a.example", "b.example")
    ids = {derive_key_id(origin, index) for origin in origins for index in (0, 1, 256, 2**63)}
    assert len(ids) == 8
    for index in (-1, 2**64):
        with pytest.raises(AssertionError):
            derive_key_id("a.example", index)


def test_seed_of_another_length_is_refused():
    for seed in (b"", bytes(31), bytes(33)):
        with pytest.raises(EncodingError) as error:
            private_key_from_seed(seed)
        assert error.value.name == "BadSeed"


def test_sign_and_verify():
    first, second = sign_mldsa44(KEY, b"message"), sign_mldsa44(KEY, b"message")
    assert len(first) == 2420
    assert first != second, "signing is hedged: nothing may rely on equal signatures"
    verify_mldsa44(PUBLIC, first, b"message")
    verify_mldsa44(PUBLIC, second, b"message")


def test_every_changed_byte_of_a_signature_is_refused():
    signature = sign_mldsa44(KEY, b"message")
    for position in range(0, len(signature), 7):
        changed = bytearray(signature)
        changed[position] ^= 1 << position % 8
        with pytest.raises(Invalid) as error:
            verify_mldsa44(PUBLIC, bytes(changed), b"message")
        assert error.value.name == "BadMessageSignature"


def test_wrong_message_key_length_or_context_is_refused():
    signature = sign_mldsa44(KEY, b"message")
    other = private_key_from_seed(bytes(32)).public_key().public_bytes_raw()
    for public, sig, data in [
        (PUBLIC, signature, b"massage"),
        (other, signature, b"message"),
        (PUBLIC, signature[:-1], b"message"),
        (PUBLIC, signature + b"\0", b"message"),
        (PUBLIC, b"", b"message"),
        (PUBLIC, bytes(2420), b"message"),
        (PUBLIC, KEY.sign(b"message", b"context"), b"message"),
    ]:
        with pytest.raises(Invalid) as error:
            verify_mldsa44(public, sig, data)
        assert error.value.name == "BadMessageSignature"


@pytest.fixture(scope="module")
def cases(vectors):
    return parse_json((vectors / "pkd-vectors-0.9.0.json").read_bytes())["test-cases"]


def test_every_published_key_derives_from_its_seed(cases):
    pairs = [
        (identity["mldsa44"]["secret-key"], identity["mldsa44"]["public-key"])
        for case in cases
        for identity in case["identities"].values()
    ]
    servers = [case["server-keys"] for case in cases]
    pairs += [(server["sign-secret-key"], server["sign-public-key"]) for server in servers]
    assert len(pairs) > 20
    for seed, public in pairs:
        derived = private_key_from_seed(decode_base64url(seed, 32)).public_key().public_bytes_raw()
        assert encode_base64url(derived) == public


def test_every_published_message_signature_verifies_under_exactly_one_identity(cases):
    verified = 0
    for case in cases:
        keys = [decode_base64url(each["mldsa44"]["public-key"]) for each in case["identities"].values()]
        for step in case["steps"]:
            if not step["signed-message"]:
                continue
            message = parse_json(step["signed-message"])
            body = VECTOR.canonical(message["message"])
            signed = pae([
                "!pkd-context", message["!pkd-context"], "action", message["action"],
                "message", body, "recent-merkle-root", message["recent-merkle-root"],
            ])
            signature = decode_base64url(message["signature"], 2420)
            signers = [key for key in keys if _verifies(key, signature, signed)]
            assert len(signers) == 1, step["description"]
            assert not _verifies(signers[0], signature, signed + b"\0")
            verified += 1
    assert verified == 22


def _verifies(key, signature, data):
    try:
        verify_mldsa44(key, signature, data)
    except Invalid:
        return False
    return True
