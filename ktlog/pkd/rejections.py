"""Why a directory refuses a message: every stable code, with its text for people.

A refusal is always ``MessageRejected(code, text)`` and changes nothing. Where the published
vectors name an error, the text here is theirs, word for word, so that conformance can compare.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from ktlog.errors import MessageRejected

REJECTIONS: Mapping[str, str] = MappingProxyType({
    # The text does not parse as a protocol message.
    "too_large": "Message exceeds 16 MiB",
    "bad_json": "Message is not acceptable JSON",
    "duplicate_json_key": "Message repeats a JSON key",
    "wrong_context": "Unexpected !pkd-context",
    "unknown_action": "Unknown action",
    "bad_request": "Message has missing, unknown or malformed fields",
    "bad_time": "Malformed time",
    "bad_root": "Malformed Merkle root",
    "bad_key_id": "Malformed key-id",
    "bad_public_key": "Malformed public key",
    "bad_actor_id": "Actor ID is not a canonical HTTPS URL",
    "bad_aux_type": "Malformed auxiliary data type",
    "bad_symmetric_key": "Symmetric keys do not match the encrypted attributes",
    "bad_token": "Malformed revocation token",
    # It parses, but something in it is untrue.
    "bad_token_signature": "Revocation token is not signed by its own key",
    "attribute_decryption_failed": "Attribute does not decrypt",
    "plaintext_mismatch": "Attribute does not match its plaintext commitment",
    "bad_signature": "Message signature does not verify",
    "unknown_key_id": "No active key has this key-id",
    "stale_time": "Time is outside the accepted window",
    "merkle_root_stale": "recent-merkle-root is unknown or too old",
    "duplicate_message": "Message was accepted before",
    # The state of the directory forbids it.
    "actor_not_enrolled": "Actor has no enrolled keys",
    "self_signed_not_allowed": "Self-signed AddKey not allowed when keys exist",
    "key_exists": "Key is already active for this actor",
    "key_revoked": "Key was revoked and cannot return",
    "too_many_keys": "Actor has as many keys as a directory can hold",
    "unknown_key": "Key is not active for this actor",
    "last_key": "Cannot revoke the last remaining key",
    "self_revocation": "A key cannot revoke itself",
    "unknown_token_key": "No actor holds the key of this revocation token",
    "target_has_keys": "Target actor already has keys",
    "domain_mismatch": "Operator and target domains must match",
    "actor_is_fireproof": "Actor is Fireproof",
    "already_fireproof": "Actor is already Fireproof",
    "not_fireproof": "Actor is not Fireproof",
    "aux_exists": "Auxiliary data is already present",
    "too_many_aux": "Actor has as much auxiliary data as a directory can hold",
    "unknown_aux": "Actor has no such auxiliary data",
    "aux_id_mismatch": "aux-id does not belong to this type and data",
    "bad_aux_data": "Auxiliary data is not in the form that its type demands",
    # One-time passwords, and cosignatures of other directories' witnesses.
    "otp_required": "Operator's instance has enrolled one-time passwords, and this message has none",
    "bad_otp": "One-time password is not valid now",
    "otp_reused": "One-time password, or a later one, was used before",
    "bad_new_otp": "One-time passwords do not belong to the new TOTP secret",
    "bad_totp_secret": "TOTP secret does not decrypt to 32 bytes",
    "bad_cosignature": "Cosignature is malformed, or is not by the witness for this directory and root",
})

NEXT_STEPS: Mapping[str, str] = MappingProxyType({
    "self_signed_not_allowed": "Sign it with a key that the actor has: --sign-with FILE.",
})
"""What whoever sent the message can do, where the text does not say it."""


def reject(code: str, detail: str = "") -> MessageRejected:
    """The error to raise for *code*; *detail*, or else the next step, goes to its hint, never into the text."""
    text = REJECTIONS.get(code)
    if text is None:
        raise AssertionError(f"no rejection is called {code!r}")
    return MessageRejected(code, text, hint=detail or NEXT_STEPS.get(code, ""))
