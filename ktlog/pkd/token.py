"""Revocation tokens: proof by a key's holder that the key is lost, good at any time, for any directory.

A token is base64url of ``"FediPKD1" || 0xFE x 32 || "revoke-public-key" || public key || signature``,
3789 bytes, so the text has no padding to argue about.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, sign_mldsa44, verify_mldsa44
from ktlog.tlog.encoding import decode_base64url, encode_base64url

TOKEN_VERSION = b"FediPKD1"
REVOCATION_CONSTANT = b"\xfe" * 32 + b"revoke-public-key"

_PREFIX = TOKEN_VERSION + REVOCATION_CONSTANT
TOKEN_BYTES = len(_PREFIX) + PUBLIC_KEY_BYTES + SIGNATURE_BYTES


@dataclass(frozen=True, slots=True)
class RevocationToken:
    """A token whose signature held when it was parsed."""

    public_key: bytes
    """1312 raw bytes: the key that is revoked."""
    signature: bytes
    """2420 bytes, by that key."""
    text: str
    """The token as received; the log hashes this text."""


def make_token(private_key: MLDSA44PrivateKey, public: bytes) -> str:
    """A token that revokes *public* (1312 raw bytes), which must belong to *private_key*.

    Raises:
        Invalid: ``BadTokenSignature`` when the two do not belong together.

    Spec: PKD "Revocation Tokens".
    """
    if private_key.public_key().public_bytes_raw() != bytes(public):
        raise Invalid("BadTokenSignature", "the private key does not belong to the public key")
    signed = _PREFIX + bytes(public)
    return encode_base64url(signed + sign_mldsa44(private_key, signed))


def parse_token(text: str) -> RevocationToken:
    """Parse a token and check its signature.

    Raises:
        EncodingError: ``BadToken`` for text that is not 3789 bytes in canonical base64url, or
            another version or constant.
        Invalid: ``BadTokenSignature``.

    Spec: PKD "RevokeKeyThirdParty Validation Steps", 1 to 3.
    """
    if not isinstance(text, str):
        raise EncodingError("BadToken", "a revocation token is text")
    try:
        raw = decode_base64url(text, TOKEN_BYTES)
    except EncodingError:
        raise EncodingError("BadToken", f"not {TOKEN_BYTES} bytes in canonical base64url") from None
    if not raw.startswith(_PREFIX):
        raise EncodingError("BadToken", "not a FediPKD1 revocation token")
    signed, signature = raw[:-SIGNATURE_BYTES], raw[-SIGNATURE_BYTES:]
    public_key = signed[len(_PREFIX):]
    try:
        verify_mldsa44(public_key, signature, signed)
    except Invalid:
        raise Invalid("BadTokenSignature", "the key that the token revokes did not sign it") from None
    return RevocationToken(public_key, signature, text)
