"""HPKE, base mode, one shot: X-Wing, HKDF-SHA256, ChaCha20Poly1305.

Written over public primitives because the library's own HPKE takes no additional data, and PKD
binds the recipient's key through it. The key schedule is RFC 9180's with no PSK; the KEM is
X-Wing, ML-KEM-768 and X25519 side by side, so that a message stays secret while either holds.

A sealed message on the wire is ``hpke:`` and unpadded base64url of ``enc || ciphertext``, enc
being 1120 bytes and the ciphertext 16 bytes longer than the plaintext.

Spec: RFC 9180 §5.1, §5.2, §6.1; draft-connolly-cfrg-xwing-kem §5; PKD "HPKE Rules for Encrypted
Protocol Messages".
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.encoding import decode_base64url, encode_base64url

KEM_XWING = 0x647A
KDF_HKDF_SHA256 = 0x0001
AEAD_CHACHA20POLY1305 = 0x0003

SEED_BYTES = 32
ENCAPSULATION_KEY_BYTES = 1184 + 32
ENC_BYTES = 1088 + 32
TAG_BYTES = 16
MAX_PLAINTEXT_BYTES = 16 * 1024 * 1024
"""Of a protocol message with its padding (PKD "Plaintext Padding for Length Hiding")."""

MESSAGE_PREFIX = "hpke:"
MESSAGE_INFO = b"fedi-e2ee/public-key-directory:v1:protocol-message"
KEY_ID_MESSAGE = b"fedi-e2ee/public-key-directory:v1:key-id"

_XWING_LABEL = b"\\.//^\\"


@dataclass(frozen=True, slots=True)
class KeySchedule:
    """What both sides derive: an AEAD key (32), its first nonce (12) and an exporter secret (32)."""

    key: bytes
    base_nonce: bytes
    exporter_secret: bytes


def key_schedule(kem_id: int, shared_secret: bytes, info: bytes) -> KeySchedule:
    """RFC 9180's KeySchedule in base mode for HKDF-SHA256 and ChaCha20Poly1305.

    Args:
        kem_id: the KEM that made *shared_secret*, as registered for HPKE.

    Spec: RFC 9180 §5.1.
    """
    suite_id = b"HPKE" + b"".join(
        number.to_bytes(2, "big") for number in (kem_id, KDF_HKDF_SHA256, AEAD_CHACHA20POLY1305)
    )

    def extract(salt: bytes, label: bytes, material: bytes) -> bytes:
        return hmac.digest(salt, b"HPKE-v1" + suite_id + label + material, "sha256")

    def expand(secret: bytes, label: bytes, context: bytes, size: int) -> bytes:
        # No more than one block of HKDF-Expand, which is one HMAC (RFC 5869 §2.3).
        labelled = size.to_bytes(2, "big") + b"HPKE-v1" + suite_id + label + context
        return hmac.digest(secret, labelled + b"\x01", "sha256")[:size]

    context = b"\x00" + extract(b"", b"psk_id_hash", b"") + extract(b"", b"info_hash", info)
    secret = extract(shared_secret, b"secret", b"")
    return KeySchedule(
        key=expand(secret, b"key", context, 32),
        base_nonce=expand(secret, b"base_nonce", context, 12),
        exporter_secret=expand(secret, b"exp", context, 32),
    )


def _combine(kem_secret: bytes, dh_secret: bytes, dh_ciphertext: bytes, dh_public: bytes) -> bytes:
    return hashlib.sha3_256(kem_secret + dh_secret + dh_ciphertext + dh_public + _XWING_LABEL).digest()


def encapsulate(encapsulation_key: bytes) -> tuple[bytes, bytes]:
    """X-Wing's Encapsulate: a fresh shared secret (32) and its encapsulation (1120).

    Draws randomness inside the library.

    Raises:
        EncodingError: ``BadEncapsulationKey`` for another length than 1216, a non-canonical
            ML-KEM key or an X25519 key of small order.
    """
    if len(encapsulation_key) != ENCAPSULATION_KEY_BYTES:
        raise EncodingError("BadEncapsulationKey", f"an X-Wing key is {ENCAPSULATION_KEY_BYTES} bytes long")
    kem_public, dh_public = encapsulation_key[:1184], encapsulation_key[1184:]
    ephemeral = X25519PrivateKey.generate()
    try:
        kem_secret, kem_ciphertext = MLKEM768PublicKey.from_public_bytes(kem_public).encapsulate()
        dh_secret = ephemeral.exchange(X25519PublicKey.from_public_bytes(dh_public))
    except ValueError:
        raise EncodingError("BadEncapsulationKey", "one half of the X-Wing key is not a valid key") from None
    dh_ciphertext = ephemeral.public_key().public_bytes_raw()
    shared_secret = _combine(kem_secret, dh_secret, dh_ciphertext, dh_public)
    return shared_secret, kem_ciphertext + dh_ciphertext


@dataclass(frozen=True, slots=True, eq=False)
class DecapsulationKey:
    """An X-Wing private key; its representation shows nothing secret. Made by :meth:`from_seed`."""

    encapsulation_key: bytes = field(repr=False)
    """The 1216-byte public half: ML-KEM-768 key, then X25519 key."""
    _kem: MLKEM768PrivateKey = field(repr=False)
    _dh: X25519PrivateKey = field(repr=False)

    @classmethod
    def from_seed(cls, seed: bytes) -> DecapsulationKey:
        """The key that a 32-byte seed expands to.

        Raises:
            EncodingError: ``BadSeed`` for another length.

        Spec: draft-connolly-cfrg-xwing-kem §5.2 (expandDecapsulationKey).
        """
        if len(seed) != SEED_BYTES:
            raise EncodingError("BadSeed", f"an X-Wing seed is {SEED_BYTES} bytes long")
        expanded = hashlib.shake_256(seed).digest(96)
        kem = MLKEM768PrivateKey.from_seed_bytes(expanded[:64])
        dh = X25519PrivateKey.from_private_bytes(expanded[64:])
        return cls(kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw(), kem, dh)

    def decapsulate(self, enc: bytes) -> bytes:
        """X-Wing's Decapsulate: the 32-byte shared secret in *enc*.

        A tampered *enc* gives another secret rather than an error (ML-KEM rejects implicitly).

        Raises:
            EncodingError: ``BadEncapsulation`` for another length than 1120, or an X25519 half of
                small order.
        """
        if len(enc) != ENC_BYTES:
            raise EncodingError("BadEncapsulation", f"an X-Wing encapsulation is {ENC_BYTES} bytes long")
        kem_ciphertext, dh_ciphertext = enc[:1088], enc[1088:]
        try:
            kem_secret = self._kem.decapsulate(kem_ciphertext)
            dh_secret = self._dh.exchange(X25519PublicKey.from_public_bytes(dh_ciphertext))
        except ValueError:
            raise EncodingError("BadEncapsulation", "one half of the encapsulation is not valid") from None
        return _combine(kem_secret, dh_secret, dh_ciphertext, self.encapsulation_key[1184:])


def seal(encapsulation_key: bytes, plaintext: bytes, info: bytes, aad: bytes) -> bytes:
    """Single-shot SealBase: ``enc || ciphertext``, 1136 bytes longer than *plaintext*.

    Raises:
        EncodingError: ``BadEncapsulationKey``.

    Spec: RFC 9180 §6.1.
    """
    shared_secret, enc = encapsulate(encapsulation_key)
    schedule = key_schedule(KEM_XWING, shared_secret, info)
    return enc + ChaCha20Poly1305(schedule.key).encrypt(schedule.base_nonce, plaintext, aad)


def open_sealed(key: DecapsulationKey, sealed: bytes, info: bytes, aad: bytes) -> bytes:
    """Single-shot OpenBase: the inverse of :func:`seal`.

    Raises:
        EncodingError: ``BadEncapsulation``, also when *sealed* is too short to hold a tag.
        Invalid: ``HpkeOpenFailed`` for another key, info or aad, or any changed bit.
    """
    if len(sealed) < ENC_BYTES + TAG_BYTES:
        raise EncodingError("BadEncapsulation", f"sealed data is at least {ENC_BYTES + TAG_BYTES} bytes long")
    schedule = key_schedule(KEM_XWING, key.decapsulate(sealed[:ENC_BYTES]), info)
    try:
        return ChaCha20Poly1305(schedule.key).decrypt(schedule.base_nonce, sealed[ENC_BYTES:], aad)
    except InvalidTag:
        raise Invalid("HpkeOpenFailed", "the sealed message does not open with this key") from None


def key_id(encapsulation_key: bytes) -> bytes:
    """PKD's Server Encapsulation Key Identifier, 32 bytes: the aad of every message to that key.

    Spec: PKD "HPKE Configuration".
    """
    return hmac.digest(encapsulation_key, KEY_ID_MESSAGE, "sha256")


def seal_message(encapsulation_key: bytes, plaintext: bytes) -> str:
    """Encrypt a protocol message to a directory: ``hpke:`` and base64url.

    Args:
        encapsulation_key: the directory's 1216 bytes.
        plaintext: UTF-8 JSON, padded; at most 16 MiB.

    Raises:
        EncodingError: ``BadEncapsulationKey``, ``TooLarge``.

    Spec: PKD "Protocol Message Encryption".
    """
    if len(plaintext) > MAX_PLAINTEXT_BYTES:
        raise EncodingError("TooLarge", "a protocol message is at most 16 MiB long")
    sealed = seal(encapsulation_key, plaintext, MESSAGE_INFO, key_id(encapsulation_key))
    return MESSAGE_PREFIX + encode_base64url(sealed)


def open_message(key: DecapsulationKey, text: str) -> bytes:
    """Decrypt what :func:`seal_message` made.

    Raises:
        EncodingError: ``BadHpkeMessage`` for a missing prefix, text that is not canonical
            base64url, or a bad encapsulation; ``TooLarge``.
        Invalid: ``HpkeOpenFailed``.

    Spec: PKD "Protocol Message Decryption".
    """
    if not isinstance(text, str) or not text.startswith(MESSAGE_PREFIX):
        raise EncodingError("BadHpkeMessage", f"does not start with {MESSAGE_PREFIX}")
    # Four characters carry three bytes: refuse before decoding what is surely too long.
    if len(text) * 3 // 4 > MAX_PLAINTEXT_BYTES + ENC_BYTES + TAG_BYTES + 8:
        raise EncodingError("TooLarge", "a protocol message is at most 16 MiB long")
    try:
        sealed = decode_base64url(text[len(MESSAGE_PREFIX):])
        return open_sealed(key, sealed, MESSAGE_INFO, key_id(key.encapsulation_key))
    except EncodingError as error:
        raise EncodingError("BadHpkeMessage", error.message) from None
