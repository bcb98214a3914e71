"""Attribute encryption: a value that the log commits to for ever and can still forget.

An encrypted attribute is base64url (unpadded) of ``h || r || Q || t || c``:

* ``h``, 1 byte: version, 0x01
* ``r``, 32 bytes: drawn once per attribute
* ``Q``, 32 bytes: Argon2id commitment to the plaintext, checkable without the key
* ``t``, 32 bytes: authentication tag over all the rest, needs the key
* ``c``, as long as the plaintext: the ciphertext

Who holds the key (admission, at insertion) checks the tag first, which is cheap, and the
commitment last, which costs about 50 ms. Who holds only the published plaintext (clients,
auditors) checks the commitment. The four places where dialects differ are asked of the
:class:`~ktlog.pkd.dialects.Dialect`.

Spec: PKD "Encrypting Message Attributes to Enable Crypto Shredding", Version 1.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass

from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.argon2 import argon2id
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.pae import prefixed, utf8
from ktlog.pkd.xsalsa20 import xsalsa20_xor
from ktlog.tlog.encoding import decode_base64url, encode_base64url

VERSION = b"\x01"
KEY_BYTES = 32
RANDOM_BYTES = 32
HEADER_BYTES = 1 + 32 + 32 + 32

KDF_ENCRYPT_KEY = b"FediE2EE-v1-Compliance-Encryption-Key"
KDF_AUTH_KEY = b"FediE2EE-v1-Compliance-Message-Auth-Key"
KDF_COMMIT_SALT = b"FediE2EE-v1-Compliance-KDF-Salt"
_NO_SALT = bytes(64)


@dataclass(frozen=True, slots=True)
class _Sealed:
    """The parts of an encrypted attribute, by the specification's letters."""

    version: bytes
    random: bytes
    commitment: bytes
    tag: bytes
    ciphertext: bytes


def _parse_sealed(text: str) -> _Sealed:
    try:
        raw = decode_base64url(text)
    except EncodingError:
        raise EncodingError("BadAttribute", "an encrypted attribute is not canonical base64url") from None
    if len(raw) < HEADER_BYTES:
        raise EncodingError("BadAttribute", f"an encrypted attribute has at least {HEADER_BYTES} bytes")
    return _Sealed(raw[:1], raw[1:33], raw[33:65], raw[65:97], raw[97:])


def _derive(key: bytes, label: bytes, random: bytes, name: str, size: int) -> bytes:
    """HKDF-SHA-512 without a salt, of one block at most: two HMACs (RFC 5869 §2)."""
    if size > 64:
        raise AssertionError("one block of HKDF-SHA-512 has 64 bytes")
    info = label + VERSION + random + prefixed(name)
    return hmac.digest(hmac.digest(_NO_SALT, key, "sha512"), info + b"\x01", "sha512")[:size]


def _stream(dialect: Dialect, name: str, key: bytes, random: bytes, data: bytes) -> bytes:
    material = _derive(key, KDF_ENCRYPT_KEY, random, name, KEY_BYTES + dialect.nonce_bytes)
    cipher_key, nonce = material[:KEY_BYTES], material[KEY_BYTES:]
    if dialect.cipher == "xsalsa20":
        return xsalsa20_xor(cipher_key, nonce, data)
    if dialect.cipher == "aes-256-ctr":
        encryptor = Cipher(AES(cipher_key), CTR(nonce)).encryptor()
        return encryptor.update(data) + encryptor.finalize()
    raise AssertionError(f"dialect {dialect.name} names no known cipher")


def _tag(dialect: Dialect, name: str, key: bytes, sealed: _Sealed) -> bytes:
    auth_key = _derive(key, KDF_AUTH_KEY, sealed.random, name, 32)
    message = VERSION + sealed.random + prefixed(name)
    message += prefixed(sealed.ciphertext) + prefixed(sealed.commitment)
    return dialect.shorten(hmac.digest(auth_key, message, "sha512"), 32)


def commit_plaintext(name: str, plaintext: bytes, root: str, salt: bytes) -> bytes:
    """The 32-byte commitment ``Q``: Argon2id of root, name and plaintext. Slow by design.

    Spec: PKD "Message Attribute Plaintext Commitment Algorithm".
    """
    return argon2id(prefixed(root) + prefixed(name) + prefixed(plaintext), salt)


def _commit(dialect: Dialect, name: str, plaintext: bytes, random: bytes, root: str) -> bytes:
    salted = KDF_COMMIT_SALT + VERSION + random + prefixed(root) + prefixed(name)
    salt = dialect.shorten(hashlib.sha512(salted).digest(), 16)
    return commit_plaintext(name, plaintext, root, salt)


def _check_key(key: bytes) -> None:
    if len(key) != KEY_BYTES:
        raise EncodingError("BadSymmetricKey", f"an attribute key is {KEY_BYTES} bytes long")


def encrypt_attribute(
    dialect: Dialect, name: str, plaintext: str, key: bytes, root: str, random32: bytes
) -> str:
    """Encrypt and commit to one attribute.

    Args:
        name: the member of ``message`` it goes into, such as ``actor``; it is authenticated.
        key: 32 bytes, never used for another attribute.
        root: the message's ``recent-merkle-root``, the whole text with its prefix.
        random32: 32 fresh bytes, published inside the result.

    Returns:
        unpadded base64url of 97 bytes and as many again as the plaintext has in UTF-8.

    Raises:
        EncodingError: ``BadSymmetricKey``, ``BadRandom`` for a wrong length, ``BadText``.

    Spec: PKD "Message Attribute Encryption Algorithm".
    """
    _check_key(key)
    if len(random32) != RANDOM_BYTES:
        raise EncodingError("BadRandom", f"an attribute takes {RANDOM_BYTES} random bytes")
    data = utf8(plaintext)
    commitment = _commit(dialect, name, data, random32, root)
    ciphertext = _stream(dialect, name, key, random32, data)
    tag = _tag(dialect, name, key, _Sealed(VERSION, random32, commitment, b"", ciphertext))
    return encode_base64url(VERSION + random32 + commitment + tag + ciphertext)


def decrypt_without_commitment(dialect: Dialect, name: str, ciphertext: str, key: bytes) -> str:
    """Check the tag and decrypt, but leave the commitment for :func:`check_commitment`.

    Enough to learn the plaintext, not enough to accept it: whoever holds the key can make a valid
    tag over a commitment to something else.

    Raises:
        EncodingError: ``BadAttribute``, ``BadSymmetricKey``.
        Invalid: ``AttributeDecryptionFailed`` for an unknown version, a wrong tag (key, name,
            dialect or any bit), or a plaintext that is not UTF-8.
    """
    _check_key(key)
    sealed = _parse_sealed(ciphertext)
    if sealed.version != VERSION:
        raise Invalid("AttributeDecryptionFailed", f"attribute {name} is of an unknown version")
    if not hmac.compare_digest(_tag(dialect, name, key, sealed), sealed.tag):
        raise Invalid("AttributeDecryptionFailed", f"the tag of attribute {name} does not hold")
    try:
        return _stream(dialect, name, key, sealed.random, sealed.ciphertext).decode("utf-8")
    except UnicodeDecodeError:
        raise Invalid("AttributeDecryptionFailed", f"attribute {name} is not UTF-8 text") from None


def check_commitment(dialect: Dialect, name: str, ciphertext: str, plaintext: str, root: str) -> None:
    """Check that the encrypted attribute commits to *plaintext*; no key is needed. Slow (Argon2id).

    Raises:
        EncodingError: ``BadAttribute``, ``BadText``.
        Invalid: ``PlaintextMismatch``.

    Spec: PKD "Message Attribute Plaintext Commitment Algorithm".
    """
    sealed = _parse_sealed(ciphertext)
    data = utf8(plaintext)
    if sealed.version != VERSION:
        raise Invalid("PlaintextMismatch", f"attribute {name} is of an unknown version")
    # Free, and it spares the Argon2id: a stream cipher keeps the length.
    if len(data) != len(sealed.ciphertext):
        raise Invalid("PlaintextMismatch", f"attribute {name} is not as long as its plaintext")
    if not hmac.compare_digest(_commit(dialect, name, data, sealed.random, root), sealed.commitment):
        raise Invalid("PlaintextMismatch", f"attribute {name} does not commit to this plaintext")


def decrypt_attribute(dialect: Dialect, name: str, ciphertext: str, key: bytes, root: str) -> str:
    """Decrypt one attribute and check everything: tag first, then commitment.

    Args:
        root: the message's ``recent-merkle-root``, the whole text with its prefix.

    Raises:
        EncodingError: ``BadAttribute``, ``BadSymmetricKey``.
        Invalid: ``AttributeDecryptionFailed``, ``PlaintextMismatch``.

    Spec: PKD "Message Attribute Decryption Algorithm".
    """
    plaintext = decrypt_without_commitment(dialect, name, ciphertext, key)
    check_commitment(dialect, name, ciphertext, plaintext, root)
    return plaintext
