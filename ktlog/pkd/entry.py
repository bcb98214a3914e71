"""Log entries: what the tree hashes for one accepted message.

An entry holds SHA-256 of the message's preimage, the log's ML-DSA-44 signature of that hash, and
SHA-256 of the raw public key that made it. The preimage is canonical JSON of the members that the
dialect hashes; the log publishes exactly that text.

The signature is hedged, so signing the same message again gives another entry, and publishing
both would be a fork. Make an entry once, store it, then hash it.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.dialects import TOKEN_FIELDS, Dialect, dialect_of_entry
from ktlog.pkd.keys import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, sign_mldsa44, verify_mldsa44
from ktlog.pkd.pae import pae
from ktlog.tlog.encoding import decode_base64url, encode_base64url

HASH_BYTES = 32
TOKEN_ACTION = "RevokeKeyThirdParty"  # noqa: S105 - an action's name, not a secret


@dataclass(frozen=True, slots=True)
class LogEntry:
    """The three parts of an entry, before a dialect encodes them."""

    message_hash: bytes
    """SHA-256 of the preimage."""
    signature: bytes
    """ML-DSA-44, 2420 bytes, over message_hash, empty context."""
    key_hash: bytes
    """SHA-256 of the leaf key's raw 1312 bytes."""

    def __post_init__(self) -> None:
        lengths = len(self.message_hash), len(self.signature), len(self.key_hash)
        if lengths != (HASH_BYTES, SIGNATURE_BYTES, HASH_BYTES):
            raise EncodingError("BadEntry", "an entry has 32, 2420 and 32 bytes")


def leaf_key_hash(public_key: bytes) -> bytes:
    """SHA-256 of a leaf key's raw 1312 bytes; not :func:`ktlog.pkd.keys.key_hash`.

    Raises:
        EncodingError: ``BadPublicKey`` for another length.
    """
    if len(public_key) != PUBLIC_KEY_BYTES:
        raise EncodingError("BadPublicKey", f"an ML-DSA-44 public key is {PUBLIC_KEY_BYTES} bytes long")
    return hashlib.sha256(public_key).digest()


def preimage(dialect: Dialect, wire: Mapping[str, Any]) -> bytes:
    """The canonical JSON whose hash the log commits to.

    Args:
        wire: a parsed protocol message as received. Members that the dialect does not hash
            (key-id, symmetric-keys, otp, padding, as the case may be) are left out; a message
            that lacks a hashed member simply has none. For a RevokeKeyThirdParty the preimage is
            its action and its token.

    Raises:
        EncodingError: ``BadJson`` for values without canonical form.

    Spec: PKD "Tlog Integration".
    """
    fields = TOKEN_FIELDS if wire.get("action") == TOKEN_ACTION else dialect.hashed_fields
    return dialect.canonical({name: wire[name] for name in fields if name in wire})


def encode_entry(dialect: Dialect, entry: LogEntry) -> bytes:
    """The entry's bytes in *dialect*: dialect.entry_bytes of them."""
    parts = [entry.message_hash, entry.signature, entry.key_hash]
    if dialect.entry_form == "raw":
        return b"".join(parts)
    if dialect.entry_form == "base64url":
        return encode_base64url(b"".join(parts)).encode("ascii")
    if dialect.entry_form == "pae":
        return pae(parts)
    raise AssertionError(f"dialect {dialect.name} names no known entry form")


def _split(body: bytes) -> LogEntry:
    return LogEntry(body[:HASH_BYTES], body[HASH_BYTES:-HASH_BYTES], body[-HASH_BYTES:])


def _parse_base64url(data: bytes) -> LogEntry:
    try:
        return _split(decode_base64url(data.decode("ascii")))
    except (UnicodeDecodeError, EncodingError):
        raise EncodingError("BadEntry", "the entry is not canonical base64url") from None


def _parse_pae(data: bytes) -> LogEntry:
    # The lengths are fixed, so the frame is too: take the pieces and build it again.
    entry = LogEntry(data[16:48], data[56:56 + SIGNATURE_BYTES], data[-HASH_BYTES:])
    if pae([entry.message_hash, entry.signature, entry.key_hash]) != data:
        raise EncodingError("BadEntry", "the entry is not the encoding of three pieces")
    return entry


def parse_entry(data: bytes) -> tuple[Dialect, LogEntry]:
    """Read an entry in the dialect that its length shows: the inverse of :func:`encode_entry`.

    Raises:
        EncodingError: ``BadEntry``.
    """
    dialect = dialect_of_entry(data)
    if dialect.entry_form == "base64url":
        return dialect, _parse_base64url(data)
    if dialect.entry_form == "pae":
        return dialect, _parse_pae(data)
    return dialect, _split(data)


def make_entry(
    dialect: Dialect, preimage: bytes, leaf_private_key: MLDSA44PrivateKey, leaf_public_raw: bytes
) -> bytes:
    """Sign *preimage* into the log, once: each call gives other bytes.

    Args:
        preimage: from :func:`preimage`.
        leaf_public_raw: the raw 1312 bytes that belong to *leaf_private_key*.

    Raises:
        EncodingError: ``BadPublicKey``.

    Spec: PKD "Tlog Integration".
    """
    message_hash = hashlib.sha256(preimage).digest()
    signature = sign_mldsa44(leaf_private_key, message_hash)
    return encode_entry(dialect, LogEntry(message_hash, signature, leaf_key_hash(leaf_public_raw)))


def verify_entry(data: bytes, preimage: bytes, leaf_keys: Mapping[bytes, bytes]) -> None:
    """Check that the entry is for *preimage* and was signed by one of *leaf_keys*.

    Args:
        leaf_keys: raw public keys that the log ever signed entries with, by :func:`leaf_key_hash`.

    Raises:
        EncodingError: ``BadEntry`` when *data* does not parse, ``BadPublicKey`` for a key in
            *leaf_keys* that is none.
        Invalid: ``BadEntry`` for another message, ``BadLeafSignature`` for an unknown leaf key or
            a signature that does not verify.
    """
    _, entry = parse_entry(data)
    if not hmac.compare_digest(entry.message_hash, hashlib.sha256(preimage).digest()):
        raise Invalid("BadEntry", "the entry commits to another message")
    public_key = leaf_keys.get(entry.key_hash)
    if public_key is None or leaf_key_hash(public_key) != entry.key_hash:
        raise Invalid("BadLeafSignature", "the entry names a leaf key that this log does not have")
    try:
        verify_mldsa44(public_key, entry.signature, entry.message_hash)
    except Invalid:
        raise Invalid("BadLeafSignature", "the leaf key did not sign this entry") from None
