"""Writing protocol messages: the client's side, and the bytes that both sides sign.

Nothing here draws randomness or checks rules: keys and random bytes come in as arguments, and a
message that breaks the rules can be built, so that a directory's refusals can be tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from ktlog.pkd.actions import (
    PKD_CONTEXT,
    TOKEN_ACTION,
    AddAuxData,
    AddKey,
    BurnDown,
    CheckpointMessage,
    Fireproof,
    Message,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
    encrypted_attributes,
)
from ktlog.pkd.attributes import encrypt_attribute
from ktlog.pkd.canonical import canonical
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.keys import encode_public_key, sign_mldsa44
from ktlog.pkd.pae import pae
from ktlog.tlog.encoding import encode_base64url

PADDING_MULTIPLE_BYTES = 1024
PADDING_RANDOM_BYTES = 768
"""As many random bytes as a padding can need: 1023 characters of base64url."""


def signed_bytes(dialect: Dialect, action: str, body: Mapping[str, str], recent_root: str) -> bytes:
    """What a message's ML-DSA-44 signature is over.

    Args:
        body: the ``message`` map as it travels, encrypted attributes encrypted.

    Spec: PKD "Protocol Signatures".
    """
    return pae([
        "!pkd-context", PKD_CONTEXT, "action", action, "message", dialect.canonical(dict(body)),
        "recent-merkle-root", recent_root,
    ])


def format_time(dialect: Dialect, time: int) -> str:
    """Unix seconds as the dialect writes them; PHP's writes ISO 8601 in UTC."""
    return datetime.fromtimestamp(time, UTC).isoformat() if dialect.iso_time else str(time)


def plain_members(message: Message) -> dict[str, str]:
    """The ``message`` map before encryption, without its time. A token has none: an empty map."""
    match message:
        case RevokeKeyThirdParty():
            return {}
        case AddKey() | RevokeKey():
            return {"actor": message.actor, "public-key": encode_public_key(message.public_key)}
        case MoveIdentity():
            return {"old-actor": message.old_actor, "new-actor": message.new_actor}
        case BurnDown():
            return {"actor": message.actor, "operator": message.operator}
        case Fireproof() | UndoFireproof():
            return {"actor": message.actor}
        case AddAuxData() | RevokeAuxData():
            optional = {"aux-data": message.aux_data, "aux-id": message.aux_id}
            members = {"actor": message.actor, "aux-type": message.aux_type}
            return members | {name: text for name, text in optional.items() if text is not None}
        case CheckpointMessage():
            return {
                "from-directory": message.from_directory,
                "from-root": message.from_root,
                "from-public-key": encode_public_key(message.from_public_key),
                "to-directory": message.to_directory,
                "to-validated-root": message.to_validated_root,
            }
    raise AssertionError(f"not a protocol message: {type(message).__name__}")


def build_wire(
    dialect: Dialect,
    message: Message,
    recent_root: str | None = None,
    private_key: MLDSA44PrivateKey | None = None,
    keys: Mapping[str, bytes] | None = None,
    randoms: Mapping[str, bytes] | None = None,
    key_id: str | None = None,
    otp: str | None = None,
) -> dict[str, Any]:
    """Encrypt and sign a message for a directory.

    Args:
        recent_root: a recent root of the directory (``pkd-mr-v1:…``).
        private_key: the signer's. A revocation token is signed already: it needs neither this nor
            anything that follows.
        keys: a fresh 32-byte key for each attribute that travels encrypted in this message.
        randoms: 32 fresh random bytes for each of them.
        key_id: which of the signer's keys signs; a hint, not signed.
        otp: one-time password of a BurnDown, not signed.

    Returns:
        The message as a JSON object; see :func:`format_wire` and :func:`pad_plaintext`.

    Raises:
        EncodingError: a key or random of a wrong length, or text without UTF-8 form.
    """
    if isinstance(message, RevokeKeyThirdParty):
        return {"action": TOKEN_ACTION, "revocation-token": message.token.text}
    if recent_root is None or private_key is None:
        raise AssertionError("only a revocation token goes without a recent root and a key")
    keys, randoms = keys or {}, randoms or {}
    body = plain_members(message) | {"time": format_time(dialect, message.time)}
    encrypted = [name for name in encrypted_attributes(dialect, message.action) if name in body]
    if set(keys) != set(encrypted) or set(randoms) != set(encrypted):
        raise AssertionError(f"keys and randoms are needed for exactly {encrypted}")
    for name in encrypted:
        body[name] = encrypt_attribute(dialect, name, body[name], keys[name], recent_root, randoms[name])
    signature = sign_mldsa44(private_key, signed_bytes(dialect, message.action, body, recent_root))
    wire: dict[str, Any] = {
        "!pkd-context": PKD_CONTEXT,
        "action": message.action,
        "message": body,
        "recent-merkle-root": recent_root,
        "signature": encode_base64url(signature),
        "symmetric-keys": {name: encode_base64url(keys[name]) for name in encrypted},
    }
    optional = {"key-id": key_id, "otp": otp}
    return wire | {name: text for name, text in optional.items() if text is not None}


def format_wire(wire: Mapping[str, Any]) -> str:
    """The message as compact sorted JSON text."""
    return canonical(dict(wire)).decode("utf-8")


def pad_plaintext(wire: Mapping[str, Any], random_bytes: bytes) -> str:
    """The message as JSON text whose UTF-8 length is a multiple of 1 KiB, ready for HPKE.

    Args:
        wire: from :func:`build_wire`, without padding.
        random_bytes: PADDING_RANDOM_BYTES of them; as many as fit are used.

    Spec: PKD "Plaintext Padding for Length Hiding".
    """
    if "padding" in wire or len(random_bytes) < PADDING_RANDOM_BYTES:
        raise AssertionError(f"want a message without padding and {PADDING_RANDOM_BYTES} random bytes")
    opening = format_wire(wire)[:-1] + ',"padding":"'
    room = -(len(opening.encode("utf-8")) + len('"}')) % PADDING_MULTIPLE_BYTES
    if room % 4 == 1:
        # No byte string is that long in base64url; white space before the value makes it fit.
        opening = opening[:-1] + ' "'
        room -= 1
    return opening + encode_base64url(random_bytes[:room * 3 // 4]) + '"}'
