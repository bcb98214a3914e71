"""Ed25519 for keys that strangers chose.

The library checks a signature's equation and that S < L. It does not object to a public key of
small order (under which one signature fits many messages), nor to a second encoding of the same
point. Both are refused here. Spec: RFC 8032 §5.1.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from ktlog.errors import EncodingError, Invalid

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64

_P = 2**255 - 19
_L = 2**252 + 27742317777372353535851937790883648493
_D = -121665 * pow(121666, -1, _P) % _P
_SIGN = 1 << 255

# y of the eight points whose order divides 8; the two of order 8 are each other's negatives.
_ORDER_8_Y = 0x7A03AC9277FDC74EC6CC392CFA53202A0F67100D760B3CBA4FD84D3D706A17C7
_SMALL_ORDER_Y = frozenset({0, 1, _P - 1, _ORDER_8_Y, _P - _ORDER_8_Y})


def load_ed25519_public_key(raw: bytes) -> Ed25519PublicKey:
    """Load 32 bytes that are the canonical encoding of a curve point of large order.

    Raises:
        EncodingError: ``BadEd25519Key``.
    """
    y = _check_encoding(raw)
    if y & _SIGN:
        y -= _SIGN
    # x² = (y²-1)/(dy²+1) must be a square; numerator·denominator is one exactly when that is.
    square = (y * y - 1) * (_D * y * y + 1) % _P
    if pow(square, (_P - 1) // 2, _P) != 1:
        raise EncodingError("BadEd25519Key", "an Ed25519 public key is not a point of the curve")
    return Ed25519PublicKey.from_public_bytes(raw)


def verify_ed25519(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Check *signature* (64 bytes) by *public_key* (32 bytes) over *message*.

    Raises:
        EncodingError: ``BadEd25519Key``, when the key is of small order or not canonical.
        Invalid: ``BadSignature``.
    """
    _check_encoding(public_key)
    verify_loaded(Ed25519PublicKey.from_public_bytes(public_key), signature, message)


def verify_loaded(public_key: Ed25519PublicKey, signature: bytes, message: bytes) -> None:
    """As :func:`verify_ed25519`, with a key that :func:`load_ed25519_public_key` found good."""
    if len(signature) != SIGNATURE_BYTES:
        raise Invalid("BadSignature", f"an Ed25519 signature has 64 bytes, not {len(signature)}")
    if int.from_bytes(signature[32:], "little") >= _L:
        raise Invalid("BadSignature", "an Ed25519 signature is not in its canonical form")
    try:
        public_key.verify(signature, message)
    except InvalidSignature:
        raise Invalid("BadSignature", "an Ed25519 signature does not verify") from None


def _check_encoding(raw: bytes) -> int:
    """The key as a little-endian integer, sign bit included."""
    if len(raw) != PUBLIC_KEY_BYTES:
        raise EncodingError("BadEd25519Key", f"an Ed25519 public key has 32 bytes, not {len(raw)}")
    value = int.from_bytes(raw, "little")
    y = value & (_SIGN - 1)
    if y >= _P:
        raise EncodingError("BadEd25519Key", "an Ed25519 public key is not in its canonical form")
    if y in _SMALL_ORDER_Y:
        raise EncodingError("BadEd25519Key", "an Ed25519 public key has small order")
    return value
