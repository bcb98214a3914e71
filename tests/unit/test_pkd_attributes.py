"""Attribute encryption in all dialects, and the XSalsa20 that one of them needs."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA512
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.poly1305 import Poly1305
from nacl.secret import SecretBox

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd import attributes
from ktlog.pkd.attributes import (
    check_commitment,
    commit_plaintext,
    decrypt_attribute,
    decrypt_without_commitment,
    encrypt_attribute,
)
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.dialects import DIALECTS, PHP, SPEC, VECTOR
from ktlog.pkd.keys import ZERO_ROOT
from ktlog.pkd.pae import prefixed
from ktlog.pkd.xsalsa20 import xsalsa20_xor
from ktlog.tlog.encoding import decode_base64url, encode_base64url

KEY = bytes(range(32))
RANDOM = bytes(range(100, 132))
ACTOR = "https://example.com/users/alice"
ROOT = "pkd-mr-v1:" + "B" * 42 + "A"
EVERY = pytest.mark.parametrize("dialect", DIALECTS.values(), ids=lambda dialect: dialect.name)


def _flip(text: str, position: int) -> str:
    raw = bytearray(decode_base64url(text))
    raw[position] ^= 1 << position % 8
    return encode_base64url(bytes(raw))


# -- XSalsa20 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 31, 32, 33, 63, 64, 65, 200, 1000])
def test_xsalsa20_is_the_stream_of_secretbox(length):
    nonce = bytes(range(24))
    message = hashlib.shake_128(b"message").digest(length)
    stream = xsalsa20_xor(KEY, nonce, bytes(32) + message)
    sealed = SecretBox(KEY).encrypt(message, nonce).ciphertext
    # SecretBox is Poly1305 under the first 32 bytes of the stream, then the rest of it as a cipher.
    assert stream[32:] == sealed[16:]
    assert Poly1305.generate_tag(stream[:32], sealed[16:]) == sealed[:16]
    assert xsalsa20_xor(KEY, nonce, stream) == bytes(32) + message


def test_xsalsa20_refuses_other_lengths():
    for key, nonce in [(bytes(31), bytes(24)), (bytes(32), bytes(8)), (bytes(16), bytes(24))]:
        with pytest.raises(AssertionError):
            xsalsa20_xor(key, nonce, b"")


# -- the construction -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "plaintext", "commitment"),
    [
        ("attr", b"value", "e44a2495c3bba901706661d596e3f3cf1cabffc0be95fe91a3e529253d8c619c"),
        ("different-attr", b"value", "d0ee4a5e3fdf590b4396286389db3de9120554174328e75eb44f9549d1bab75d"),
        ("attr", b"different-value", "ef1ece900516f45fa53af717f97760e5a0fdf5a9ff78084c70a7a5e99c6205b1"),
    ],
)
def test_commitment_known_answers(name, plaintext, commitment):
    # Source: fedi-e2ee/pkd-crypto, AttributeEncryption/Version1Test, testPlaintextCommitmentVectors.
    assert commit_plaintext(name, plaintext, ZERO_ROOT, b"\x01" * 16).hex() == commitment


def _second_derivation(name: str, plaintext: str, key: bytes, root: str, random: bytes) -> bytes:
    """The specification's algorithm, step by step, with other primitives than the module's."""

    def size(data: bytes) -> bytes:
        return len(data).to_bytes(8, "little")

    def hkdf(info: bytes, length: int) -> bytes:
        extracted = hmac.new(bytes(64), key, hashlib.sha512).digest()
        return hmac.new(extracted, info + b"\x01", hashlib.sha512).digest()[:length]

    a, m, p, h = name.encode(), root.encode(), plaintext.encode(), b"\x01"
    derived = hkdf(b"FediE2EE-v1-Compliance-Encryption-Key" + h + random + size(a) + a, 48)
    auth_key = hkdf(b"FediE2EE-v1-Compliance-Message-Auth-Key" + h + random + size(a) + a, 32)
    salted = b"FediE2EE-v1-Compliance-KDF-Salt" + h + random + size(m) + m + size(a) + a
    salt = hashlib.sha512(salted).digest()[48:]
    password = size(m) + m + size(a) + a + size(p) + p
    q = Argon2id(salt=salt, length=32, iterations=3, lanes=1, memory_cost=16384).derive(password)
    c = Cipher(algorithms.AES(derived[:32]), modes.CTR(derived[32:])).encryptor().update(p)
    t = hmac.new(auth_key, h + random + size(a) + a + size(c) + c + size(q) + q, hashlib.sha512).digest()[32:]
    return h + random + q + t + c


@pytest.mark.parametrize("plaintext", [ACTOR, "", "é😀", "x" * 1758])
def test_spec_equals_a_second_derivation(plaintext):
    text = encrypt_attribute(SPEC, "actor", plaintext, KEY, ROOT, RANDOM)
    assert decode_base64url(text) == _second_derivation("actor", plaintext, KEY, ROOT, RANDOM)
    assert len(decode_base64url(text)) == 97 + len(plaintext.encode())
    assert encrypt_attribute(PHP, "actor", plaintext, KEY, ROOT, RANDOM) == text


# Pinned by this project, so that no later change moves a byte unnoticed.
@pytest.mark.parametrize(
    ("dialect", "digest"),
    [
        (SPEC, "04a88acd10af02bcacfc5e4b42509aa9954cda8a3f885bf93778da9872b58da3"),
        (VECTOR, "765c5ca4761e244d07ba3b73bdc45ab1b67e32d942c80ef09f7516553acb2f4a"),
    ],
    ids=["spec", "vector"],
)
def test_known_answer_of_our_own(dialect, digest):
    text = encrypt_attribute(dialect, "actor", ACTOR, KEY, ROOT, RANDOM)
    assert hashlib.sha256(text.encode()).hexdigest() == digest


@EVERY
@pytest.mark.parametrize("plaintext", ["", "a", ACTOR, "x" * 64, "é😀\x00"])
def test_round_trip(dialect, plaintext):
    text = encrypt_attribute(dialect, "actor", plaintext, KEY, ROOT, RANDOM)
    assert decrypt_attribute(dialect, "actor", text, KEY, ROOT) == plaintext


@EVERY
def test_every_changed_byte_is_refused(dialect):
    text = encrypt_attribute(dialect, "actor", ACTOR, KEY, ROOT, RANDOM)
    for position in range(97 + len(ACTOR)):
        with pytest.raises(Invalid) as error:
            decrypt_without_commitment(dialect, "actor", _flip(text, position), KEY)
        assert error.value.name == "AttributeDecryptionFailed"


@EVERY
def test_wrong_key_name_or_length_is_refused(dialect):
    text = encrypt_attribute(dialect, "actor", ACTOR, KEY, ROOT, RANDOM)
    raw = decode_base64url(text)
    for name, sealed, key in [
        ("operator", text, KEY),
        ("", text, KEY),
        ("actor", text, bytes(32)),
        ("actor", encode_base64url(raw[:-1]), KEY),
        ("actor", encode_base64url(raw + b"\0"), KEY),
        ("actor", encode_base64url(raw[:97]), KEY),
    ]:
        with pytest.raises(Invalid) as error:
            decrypt_attribute(dialect, name, sealed, key, ROOT)
        assert error.value.name == "AttributeDecryptionFailed"


@EVERY
def test_commitment_alone(dialect):
    text = encrypt_attribute(dialect, "actor", ACTOR, KEY, ROOT, RANDOM)
    check_commitment(dialect, "actor", text, ACTOR, ROOT)
    for name, sealed, plaintext, root in [
        ("actor", text, ACTOR[:-1] + "f", ROOT),
        ("actor", text, ACTOR + "f", ROOT),
        ("actor", text, "", ROOT),
        ("operator", text, ACTOR, ROOT),
        ("actor", text, ACTOR, ZERO_ROOT),
        ("actor", _flip(text, 0), ACTOR, ROOT),
        ("actor", _flip(text, 1), ACTOR, ROOT),
        ("actor", _flip(text, 33), ACTOR, ROOT),
        ("actor", _flip(text, 64), ACTOR, ROOT),
    ]:
        with pytest.raises(Invalid) as error:
            check_commitment(dialect, name, sealed, plaintext, root)
        assert error.value.name == "PlaintextMismatch"


@EVERY
def test_a_wrong_root_passes_the_tag_and_fails_the_commitment(dialect):
    text = encrypt_attribute(dialect, "actor", ACTOR, KEY, ROOT, RANDOM)
    assert decrypt_without_commitment(dialect, "actor", text, KEY) == ACTOR
    with pytest.raises(Invalid) as error:
        decrypt_attribute(dialect, "actor", text, KEY, ZERO_ROOT)
    assert error.value.name == "PlaintextMismatch"


def test_a_key_holder_cannot_commit_to_something_else():
    """A valid tag over the commitment to another plaintext: the tag passes, the commitment does not."""
    mallory = "https://example.com/users/mallo"
    honest = decode_base64url(encrypt_attribute(SPEC, "actor", mallory, KEY, ROOT, RANDOM))
    decoy = decode_base64url(encrypt_attribute(SPEC, "actor", ACTOR, KEY, ROOT, RANDOM))
    commitment, ciphertext = decoy[33:65], honest[97:]
    info = b"FediE2EE-v1-Compliance-Message-Auth-Key\x01" + RANDOM + (5).to_bytes(8, "little") + b"actor"
    extracted = hmac.digest(bytes(64), KEY, "sha512")
    auth_key = hmac.digest(extracted, info + b"\x01", "sha512")[:32]
    framed = b"\x01" + RANDOM + b"".join(
        len(part).to_bytes(8, "little") + part for part in (b"actor", ciphertext, commitment)
    )
    forged = encode_base64url(
        b"\x01" + RANDOM + commitment + hmac.digest(auth_key, framed, "sha512")[32:] + ciphertext
    )
    assert decrypt_without_commitment(SPEC, "actor", forged, KEY) == mallory
    check_commitment(SPEC, "actor", forged, ACTOR, ROOT)
    with pytest.raises(Invalid) as error:
        decrypt_attribute(SPEC, "actor", forged, KEY, ROOT)
    assert error.value.name == "PlaintextMismatch"


def test_plaintext_that_is_not_utf8_is_a_coded_error():
    # The 0xff byte arrives by encrypting text whose ciphertext is then re-tagged by the key's holder.
    text = encrypt_attribute(SPEC, "actor", "a", KEY, ROOT, RANDOM)
    raw = decode_base64url(text)
    ciphertext = bytes([raw[97] ^ ord("a") ^ 0xFF])
    info = b"FediE2EE-v1-Compliance-Message-Auth-Key\x01" + RANDOM + (5).to_bytes(8, "little") + b"actor"
    auth_key = hmac.digest(hmac.digest(bytes(64), KEY, "sha512"), info + b"\x01", "sha512")[:32]
    framed = raw[:33] + b"".join(
        len(part).to_bytes(8, "little") + part for part in (b"actor", ciphertext, raw[33:65])
    )
    forged = raw[:65] + hmac.digest(auth_key, framed, "sha512")[32:] + ciphertext
    with pytest.raises(Invalid) as error:
        decrypt_attribute(SPEC, "actor", encode_base64url(forged), KEY, ROOT)
    assert error.value.name == "AttributeDecryptionFailed"


@pytest.mark.parametrize(
    "text",
    ["", "A", "AQ", "AQ==", "not base64url!", encode_base64url(bytes(96)), "\u0663" * 200, "A" * 129 + "=",
     # 98 bytes leave spare bits in the last character; this sets one.
     encode_base64url(bytes(98))[:-1] + "B"],
    ids=lambda text: repr(text[:16]),
)
def test_malformed_attributes_are_coded_errors(text):
    for function in (
        lambda: decrypt_attribute(SPEC, "actor", text, KEY, ROOT),
        lambda: decrypt_without_commitment(SPEC, "actor", text, KEY),
        lambda: check_commitment(SPEC, "actor", text, ACTOR, ROOT),
    ):
        with pytest.raises(EncodingError) as error:
            function()
        assert error.value.name == "BadAttribute"


def test_wrong_lengths_and_half_surrogates_are_coded_errors():
    text = encrypt_attribute(SPEC, "actor", ACTOR, KEY, ROOT, RANDOM)
    for size in (0, 31, 33, 64):
        with pytest.raises(EncodingError, match="BadSymmetricKey"):
            encrypt_attribute(SPEC, "actor", ACTOR, bytes(size), ROOT, RANDOM)
        with pytest.raises(EncodingError, match="BadSymmetricKey"):
            decrypt_attribute(SPEC, "actor", text, bytes(size), ROOT)
        with pytest.raises(EncodingError, match="BadRandom"):
            encrypt_attribute(SPEC, "actor", ACTOR, KEY, ROOT, bytes(size))
    with pytest.raises(EncodingError, match="BadText"):
        encrypt_attribute(SPEC, "actor", "\ud800", KEY, ROOT, RANDOM)
    with pytest.raises(EncodingError, match="BadText"):
        check_commitment(SPEC, "actor", text, "\ud800", ROOT)


# -- published vectors ------------------------------------------------------------------------


def test_published_attributes_byte_for_byte(vectors):
    document = parse_json((vectors / "pkd-vectors-0.9.0.json").read_bytes())
    count = 0
    for case in document["test-cases"]:
        for step in case["steps"]:
            message = parse_json(step["protocol-message"])
            # PHP writes an empty map as [].
            for name, key_text in dict(message.get("symmetric-keys", {})).items():
                key, root = decode_base64url(key_text, 32), message["recent-merkle-root"]
                sealed = message["message"][name]
                plaintext = decrypt_attribute(VECTOR, name, sealed, key, root)
                assert plaintext.startswith(("https://example.", "mldsa44:", "age1")), plaintext
                random = decode_base64url(sealed)[1:33]
                assert encrypt_attribute(VECTOR, name, plaintext, key, root, random) == sealed
                for dialect in (SPEC, PHP):
                    with pytest.raises(Invalid) as error:
                        decrypt_attribute(dialect, name, sealed, key, root)
                    assert error.value.name == "AttributeDecryptionFailed"
                count += 1
    assert count == 37


@pytest.mark.parametrize("size", [32, 48, 56, 64])
def test_keys_are_derived_as_the_librarys_hkdf_does_it(size):
    info = attributes.KDF_AUTH_KEY + b"\x01" + b"r" * 32 + prefixed("actor")
    expected = HKDF(SHA512(), size, None, info).derive(b"k" * 32)
    assert attributes._derive(b"k" * 32, attributes.KDF_AUTH_KEY, b"r" * 32, "actor", size) == expected
