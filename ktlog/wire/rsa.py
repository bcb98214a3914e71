"""RSA as the Fediverse uses it: public keys as PEM, RSASSA-PKCS1-v1_5 with SHA-256.

A log verifies it only where its operator said so (ktlog.wire.compat), and signs nothing with it but its own GETs of
actor documents (ktlog.wire.cavage).

Spec: RFC 8017 §8.2; RFC 9421 §3.3.2.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_public_key,
    load_pem_public_key,
)

from ktlog.errors import EncodingError, Invalid

MINIMUM_BITS = 2048
# Verification takes time that grows with both. Every server of the Fediverse has the exponent 65537.
MAXIMUM_BITS = 8192
EXPONENT = 65537
MAXIMUM_PEM_LENGTH = 4096


def parse_rsa_public_key(pem: str) -> bytes:
    """The key in *pem*, as the DER of its SubjectPublicKeyInfo.

    Raises:
        EncodingError: ``BadRsaKey``: no RSA key, or one of a size or an exponent that is not taken.
    """
    try:
        if len(pem) > MAXIMUM_PEM_LENGTH:
            raise ValueError("too long")
        key = load_pem_public_key(pem.encode("ascii"))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EncodingError("BadRsaKey", f"publicKeyPem is no public key: {error}") from None
    _check(key)
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def verify_rsa_sha256(public_key: bytes, signature: bytes, message: bytes) -> None:
    """Check *signature* by *public_key* (from parse_rsa_public_key) over *message*.

    The signature is as long as the modulus and smaller than it, so that one signature has one spelling.

    Raises:
        EncodingError: ``BadRsaKey``.
        Invalid: ``BadSignature``.
    """
    try:
        key = load_der_public_key(public_key)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise EncodingError("BadRsaKey", f"not the DER of a public key: {error}") from None
    rsa = _check(key)
    size = (rsa.key_size + 7) // 8
    if len(signature) != size or int.from_bytes(signature, "big") >= rsa.public_numbers().n:
        raise Invalid("BadSignature", f"an RSA signature by this key is a number of {size} bytes below its modulus")
    try:
        rsa.verify(signature, message, PKCS1v15(), SHA256())
    except InvalidSignature:
        raise Invalid("BadSignature", "an RSA signature does not verify") from None


def _check(key: object) -> RSAPublicKey:
    if not isinstance(key, RSAPublicKey):
        raise EncodingError("BadRsaKey", "publicKeyPem is no RSA key")
    if not MINIMUM_BITS <= key.key_size <= MAXIMUM_BITS or key.public_numbers().e != EXPONENT:
        raise EncodingError(
            "BadRsaKey", f"an RSA key has {MINIMUM_BITS} to {MAXIMUM_BITS} bits and the exponent {EXPONENT}"
        )
    return key
