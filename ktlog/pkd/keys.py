"""ML-DSA-44 keys and signatures, Merkle roots and key identifiers, as PKD writes them."""

from __future__ import annotations

import hashlib
from binascii import b2a_base64

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.pae import pae
from ktlog.tlog.encoding import decode_base64url, encode_base64url

PUBLIC_KEY_BYTES = 1312
SIGNATURE_BYTES = 2420
SEED_BYTES = 32
ROOT_BYTES = 32

KEY_PREFIX = "mldsa44:"
ROOT_PREFIX = "pkd-mr-v1:"
_KEY_PREFIX = KEY_PREFIX.encode()
_TO_URL = bytes.maketrans(b"+/", b"-_")
KEY_ID_LABEL = "ktlog/v1/key-id"

ZERO_ROOT_BYTES = bytes(ROOT_BYTES)
"""PKD's root of the empty tree. C2SP's is SHA-256 of nothing; see :func:`pkd_root`."""

ZERO_ROOT = ROOT_PREFIX + "A" * 43
"""ZERO_ROOT_BYTES as text."""


def _decode_prefixed(text: str, prefix: str, size: int, name: str) -> bytes:
    if not isinstance(text, str) or not text.startswith(prefix):
        raise EncodingError(name, f"does not start with {prefix}")
    try:
        return decode_base64url(text[len(prefix):], size)
    except EncodingError:
        raise EncodingError(name, f"not {prefix} and {size} bytes in canonical base64url") from None


def encode_public_key(raw: bytes) -> str:
    """``mldsa44:`` and unpadded base64url of the 1312 raw bytes.

    Raises:
        EncodingError: ``BadPublicKey`` for another length.

    Spec: PKD "Public Key Encoding".
    """
    if len(raw) != PUBLIC_KEY_BYTES:
        raise _bad_length()
    return KEY_PREFIX + encode_base64url(raw)


def _bad_length() -> EncodingError:
    return EncodingError("BadPublicKey", f"an ML-DSA-44 public key is {PUBLIC_KEY_BYTES} bytes long")


def decode_public_key(text: str) -> bytes:
    """The 1312 raw bytes of an encoded key: the inverse of :func:`encode_public_key`.

    Every string of that length is an ML-DSA-44 public key (FIPS 204 Algorithm 23 cannot fail).

    Raises:
        EncodingError: ``BadPublicKey``.
    """
    return _decode_prefixed(text, KEY_PREFIX, PUBLIC_KEY_BYTES, "BadPublicKey")


def key_hash(raw: bytes) -> bytes:
    """SHA-256 of the *encoded* key: the 32 bytes by which state and map name a user's key.

    Not the hash in a log entry, which is over the raw bytes (see :mod:`ktlog.pkd.entry`).

    Raises:
        EncodingError: ``BadPublicKey``.
    """
    # Of as many keys as an actor has whenever one is read, so the text itself is not made.
    if len(raw) != PUBLIC_KEY_BYTES:
        raise _bad_length()
    return hashlib.sha256(_KEY_PREFIX + b2a_base64(raw, newline=False).translate(_TO_URL, b"=")).digest()


def encode_root(root_hash: bytes) -> str:
    """``pkd-mr-v1:`` and unpadded base64url of a 32-byte root.

    Raises:
        EncodingError: ``BadMerkleRoot`` for another length.

    Spec: PKD "Merkle Root Encoding".
    """
    if len(root_hash) != ROOT_BYTES:
        raise EncodingError("BadMerkleRoot", f"a Merkle root is {ROOT_BYTES} bytes long")
    return ROOT_PREFIX + encode_base64url(root_hash)


def decode_root(text: str) -> bytes:
    """The 32 bytes of an encoded root: the inverse of :func:`encode_root`.

    Raises:
        EncodingError: ``BadMerkleRoot``.
    """
    return _decode_prefixed(text, ROOT_PREFIX, ROOT_BYTES, "BadMerkleRoot")


def pkd_root(tree_size: int, root_hash: bytes) -> str:
    """The root of a tree of *tree_size* entries as PKD writes it.

    An empty tree has 32 zero bytes over PKD, whatever *root_hash* says: in a checkpoint the same
    tree has SHA-256 of nothing.

    Raises:
        EncodingError: ``BadMerkleRoot``.

    Spec: PKD "Recent Merkle Root Included in Plaintext Commitments".
    """
    return ZERO_ROOT if tree_size == 0 else encode_root(root_hash)


def derive_key_id(origin: str, leaf_index: int) -> str:
    """The key-id of the key that the AddKey at *leaf_index* of log *origin* enrolled.

    PKD lets a server draw it at random, but then nobody can replay the directory's state.

    Returns:
        43 characters of unpadded base64url.

    Spec: directory map v1 §1.
    """
    if not 0 <= leaf_index < 2**64:
        raise AssertionError("a leaf index is an unsigned 64-bit number")
    digest = hashlib.sha256(pae([KEY_ID_LABEL, origin, leaf_index.to_bytes(8, "big")])).digest()
    return encode_base64url(digest)


def private_key_from_seed(seed: bytes) -> MLDSA44PrivateKey:
    """The ML-DSA-44 private key of a 32-byte seed (FIPS 204's xi).

    Raises:
        EncodingError: ``BadSeed`` for another length.
    """
    if len(seed) != SEED_BYTES:
        raise EncodingError("BadSeed", f"an ML-DSA-44 seed is {SEED_BYTES} bytes long")
    return MLDSA44PrivateKey.from_seed_bytes(seed)


def sign_mldsa44(private: MLDSA44PrivateKey, data: bytes) -> bytes:
    """Sign *data* with the empty context; 2420 bytes.

    Hedged (FIPS 204 §3.4): the library draws randomness, so two calls give two signatures. Sign
    once and keep the result wherever the bytes are hashed.
    """
    return private.sign(data)


def verify_mldsa44(public_raw: bytes, sig: bytes, data: bytes) -> None:
    """Check an ML-DSA-44 signature with the empty context.

    Args:
        public_raw: 1312 raw bytes.
        sig: 2420 bytes; any other length does not verify.

    Raises:
        EncodingError: ``BadPublicKey`` for a key of another length.
        Invalid: ``BadMessageSignature``.

    Spec: FIPS 204 Algorithm 3.
    """
    if len(public_raw) != PUBLIC_KEY_BYTES:
        raise _bad_length()
    try:
        MLDSA44PublicKey.from_public_bytes(bytes(public_raw)).verify(bytes(sig), bytes(data))
    except InvalidSignature:
        raise Invalid("BadMessageSignature", "the ML-DSA-44 signature does not verify") from None
