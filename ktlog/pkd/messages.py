"""Reading protocol messages: from text to a checked value, and back to what the log publishes.

Three ways lead to a message. A directory receives text with the symmetric keys
(:func:`parse_wire`, :func:`open_message_attributes`). A replayer gets the preimage and the
published plaintext (:func:`message_from_plain`). A client writes one (:mod:`ktlog.pkd.compose`,
whose functions are exported here too). Reading is strict: known members only, strings only, one
encoding for each value, so that no two texts mean the same message to the log.

Spec: PKD "Protocol Messages", "Protocol Message Processing".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.pkd.actions import (
    ENCRYPTED,
    PKD_CONTEXT,
    SHAPES,
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
    aux_data_id,
    encrypted_attributes,
    token_unique_hash,
)
from ktlog.pkd.attributes import HEADER_BYTES, check_commitment, decrypt_without_commitment
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.compose import (
    PADDING_RANDOM_BYTES,
    build_wire,
    format_wire,
    pad_plaintext,
    plain_members,
    signed_bytes,
)
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import preimage as entry_preimage
from ktlog.pkd.identity import check_actor_id, check_directory_url
from ktlog.pkd.keys import SIGNATURE_BYTES, decode_public_key, decode_root, key_hash
from ktlog.pkd.rejections import reject
from ktlog.pkd.token import RevocationToken, parse_token
from ktlog.tlog.encoding import decode_base64url, parse_decimal

__all__ = [
    "ENCRYPTED", "MAX_MESSAGE_BYTES", "PADDING_RANDOM_BYTES", "PKD_CONTEXT", "AddAuxData", "AddKey",
    "BurnDown", "CheckpointMessage", "Fireproof", "Message", "MoveIdentity", "RevokeAuxData",
    "RevokeKey", "RevokeKeyThirdParty", "UndoFireproof", "WireMessage", "aux_data_id", "build_wire",
    "check_commitments", "check_time", "encrypted_attributes", "format_wire", "message_from_plain",
    "open_message_attributes", "pad_plaintext", "parse_wire", "plain_attributes",
]

MAX_MESSAGE_BYTES = 16 * 1024 * 1024
"""Of a message with its padding (PKD "Plaintext Padding for Length Hiding")."""

MAX_TIME_WINDOW_SECONDS = 30 * 86400

_SIGNED_MEMBERS = frozenset({"!pkd-context", "action", "message", "recent-merkle-root", "signature"})
_OPTIONAL_MEMBERS = frozenset({"symmetric-keys", "key-id", "padding"})
_TOKEN_MEMBERS = frozenset({"action", "revocation-token"})
_TOKEN_OPTIONAL = frozenset({"!pkd-context", "padding"})

_AUX_TYPE = re.compile(r"[0-9a-z-]{1,32}")
_ISO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", re.ASCII)


@dataclass(frozen=True)
class WireMessage:
    """A protocol message as received: well-formed, but neither decrypted nor believed."""

    action: str
    body: dict[str, str]
    """The ``message`` map as sent; empty for a revocation token."""
    recent_root: str | None
    """None for a revocation token, like every following None."""
    signature: bytes | None
    key_id: str | None
    """Which key signed, says the sender. Not signed."""
    symmetric_keys: dict[str, bytes]
    otp: str | None
    time: int | None
    encrypted: tuple[str, ...]
    """Members of body that travel encrypted in this message."""
    token: RevocationToken | None
    signed_bytes: bytes
    """What the signature is over; empty for a token, whose signature held when it was parsed."""
    unique_hash: bytes
    """32 bytes, the same for every text of the same message; no log accepts it twice."""
    preimage: bytes
    """The text whose hash the log commits to, in the log's dialect."""


def _only_strings(members: Mapping[str, Any], required: frozenset[str], optional: frozenset[str]) -> None:
    names = set(members)
    if not required <= names <= required | optional:
        odd = sorted(required - names) + sorted(names - required - optional)
        raise reject("bad_request", f"missing or unknown: {', '.join(odd)[:200]}")
    for name, value in members.items():
        if name not in ("message", "symmetric-keys") and not isinstance(value, str):
            raise reject("bad_request", f"{name} is not a string")


def _parse_time(dialect: Dialect, text: str) -> int:
    """Unix seconds. A dialect that writes ISO 8601 is read in both forms, as its servers do."""
    try:
        if dialect.iso_time and _ISO_TIME.fullmatch(text):
            seconds = int(datetime.fromisoformat(text).timestamp())
            if seconds >= 0:
                return seconds
            raise reject("bad_time", "before 1970")
        return parse_decimal(text)
    except (EncodingError, ValueError, OverflowError):
        raise reject("bad_time", "want Unix seconds as a decimal string") from None


def check_time(time: int | None, now: int, window_seconds: int = MAX_TIME_WINDOW_SECONDS) -> None:
    """Admission's rule: a message that carries a time is not older or newer than the window.

    No replayer can check it afterwards, so it is no part of validity.

    Raises:
        MessageRejected: ``stale_time``.

    Spec: PKD "Handling Protocol Messages" (at most 30 days).
    """
    if time is not None and abs(now - time) > window_seconds:
        raise reject("stale_time", f"more than {window_seconds} seconds from the directory's clock")


def _check_shape(action: str, body: Any) -> None:
    shape = SHAPES[action]
    if not isinstance(body, dict):
        raise reject("bad_request", "message is not an object")
    _only_strings(body, shape.required, shape.optional)
    if shape.one_of and not shape.one_of & set(body):
        raise reject("bad_request", f"want one of {', '.join(sorted(shape.one_of))}")
    aux_type = body.get("aux-type")
    if aux_type is not None and not _AUX_TYPE.fullmatch(aux_type):
        raise reject("bad_aux_type", "want 1 to 32 of 0-9, a-z and -")
    if "aux-id" in body:
        try:
            decode_base64url(body["aux-id"], 32)
        except EncodingError as error:
            raise reject("aux_id_mismatch", error.message) from None


def _check_sealed(body: Mapping[str, str], encrypted: tuple[str, ...]) -> None:
    for name in encrypted:
        try:
            sealed = decode_base64url(body[name])
        except EncodingError as error:
            raise reject("attribute_decryption_failed", f"{name}: {error.message}") from None
        if len(sealed) < HEADER_BYTES:
            raise reject("attribute_decryption_failed", f"{name} is shorter than {HEADER_BYTES} bytes")


def _parse_symmetric_keys(value: Any, encrypted: tuple[str, ...]) -> dict[str, bytes]:
    if value is None:
        return {}
    # PHP has one empty array, and writes an empty map as [].
    members = {} if value == [] else value
    if not isinstance(members, dict) or set(members) != set(encrypted):
        raise reject("bad_symmetric_key", f"want keys for exactly: {', '.join(encrypted) or 'nothing'}")
    keys = {}
    for name, text in members.items():
        try:
            keys[name] = decode_base64url(text, 32) if isinstance(text, str) else b""
        except EncodingError:
            keys[name] = b""
        if not keys[name]:
            raise reject("bad_symmetric_key", f"{name}: want 32 bytes in canonical base64url")
    return keys


def _decoded(code: str, text: str, size: int) -> bytes:
    try:
        return decode_base64url(text, size)
    except EncodingError as error:
        raise reject(code, error.message) from None


def _check_root(text: str) -> str:
    try:
        decode_root(text)
    except EncodingError as error:
        raise reject("bad_root", error.message) from None
    return text


def _parse_token_message(dialect: Dialect, members: dict[str, Any]) -> WireMessage:
    _only_strings(members, _TOKEN_MEMBERS, _TOKEN_OPTIONAL)
    if members.get("!pkd-context", PKD_CONTEXT) != PKD_CONTEXT:
        raise reject("wrong_context")
    try:
        token = parse_token(members["revocation-token"])
    except EncodingError as error:
        raise reject("bad_token", error.message) from None
    except Invalid as error:
        raise reject("bad_token_signature", error.message) from None
    return WireMessage(
        action=TOKEN_ACTION, body={}, recent_root=None, signature=None, key_id=None, symmetric_keys={},
        otp=None, time=None, encrypted=(), token=token, signed_bytes=b"",
        unique_hash=token_unique_hash(key_hash(token.public_key)),
        preimage=entry_preimage(dialect, members),
    )


def _parse_members(data: bytes | str) -> dict[str, Any]:
    if len(data) > MAX_MESSAGE_BYTES:
        raise reject("too_large")
    try:
        members = parse_json(data)
    except EncodingError as error:
        code = "duplicate_json_key" if error.name == "DuplicateKey" else "bad_json"
        raise reject(code, error.message) from None
    if not isinstance(members, dict):
        raise reject("bad_request", "a protocol message is a JSON object")
    return members


def parse_wire(dialect: Dialect, data: bytes | str) -> WireMessage:
    """Read one protocol message, decrypted from its envelope, strictly.

    Args:
        data: JSON text. Members the signature does not cover are read where they have a meaning
            (key-id, symmetric-keys, otp) and ignored unread where they have none (padding).

    Raises:
        MessageRejected: ``too_large``, ``bad_json``, ``duplicate_json_key``, ``bad_request``,
            ``wrong_context``, ``unknown_action``, ``bad_time``, ``bad_root``, ``bad_key_id``,
            ``bad_aux_type``, ``aux_id_mismatch``, ``bad_symmetric_key``, ``bad_signature`` (its
            encoding), ``attribute_decryption_failed`` (its encoding), ``bad_token``,
            ``bad_token_signature``.

    Spec: PKD "Protocol Message Parsing", "Handling Protocol Messages".
    """
    members = _parse_members(data)
    action = members.get("action")
    if action == TOKEN_ACTION:
        return _parse_token_message(dialect, members)
    if members.get("!pkd-context") != PKD_CONTEXT:
        raise reject("wrong_context")
    if not isinstance(action, str) or action not in SHAPES:
        raise reject("unknown_action")
    optional = _OPTIONAL_MEMBERS | {"otp"} if action == BurnDown.action else _OPTIONAL_MEMBERS
    _only_strings(members, _SIGNED_MEMBERS, optional)
    body = members["message"]
    _check_shape(action, body)
    encrypted = tuple(name for name in encrypted_attributes(dialect, action) if name in body)
    _check_sealed(body, encrypted)
    symmetric_keys = _parse_symmetric_keys(members.get("symmetric-keys"), encrypted)
    if "key-id" in members:
        _decoded("bad_key_id", members["key-id"], 32)
    recent_root = _check_root(members["recent-merkle-root"])
    to_sign = signed_bytes(dialect, action, body, recent_root)
    return WireMessage(
        action=action,
        body=body,
        recent_root=recent_root,
        signature=_decoded("bad_signature", members["signature"], SIGNATURE_BYTES),
        key_id=members.get("key-id"),
        symmetric_keys=symmetric_keys,
        otp=members.get("otp"),
        time=_parse_time(dialect, body["time"]),
        encrypted=encrypted,
        token=None,
        signed_bytes=to_sign,
        unique_hash=hashlib.sha256(to_sign).digest(),
        preimage=entry_preimage(dialect, members),
    )


def _decode_key(text: str) -> bytes:
    try:
        return decode_public_key(text)
    except EncodingError as error:
        raise reject("bad_public_key", error.message) from None


def _to_message(wire: WireMessage, text: Mapping[str, str]) -> Message:
    """The value of a message whose members, in plain text, are *text*."""
    time = wire.time
    if wire.token is not None:
        return RevokeKeyThirdParty(wire.token)
    if time is None:
        raise AssertionError("only a revocation token has no time")
    match wire.action:
        case "AddKey":
            return AddKey(check_actor_id(text["actor"]), _decode_key(text["public-key"]), time)
        case "RevokeKey":
            return RevokeKey(check_actor_id(text["actor"]), _decode_key(text["public-key"]), time)
        case "MoveIdentity":
            return MoveIdentity(check_actor_id(text["old-actor"]), check_actor_id(text["new-actor"]), time)
        case "BurnDown":
            return BurnDown(check_actor_id(text["actor"]), check_actor_id(text["operator"]), time)
        case "Fireproof":
            return Fireproof(check_actor_id(text["actor"]), time)
        case "UndoFireproof":
            return UndoFireproof(check_actor_id(text["actor"]), time)
        case "AddAuxData":
            actor, aux_id = check_actor_id(text["actor"]), text.get("aux-id")
            return AddAuxData(actor, text["aux-type"], text["aux-data"], aux_id, time)
        case "RevokeAuxData":
            actor, aux_id = check_actor_id(text["actor"]), text.get("aux-id")
            return RevokeAuxData(actor, text["aux-type"], aux_id, text.get("aux-data"), time)
        case "Checkpoint":
            return CheckpointMessage(
                check_directory_url(text["from-directory"]), _check_root(text["from-root"]),
                _decode_key(text["from-public-key"]), check_directory_url(text["to-directory"]),
                _check_root(text["to-validated-root"]), time,
            )
    raise AssertionError(f"no message is called {wire.action}")


def _verify_commitments(dialect: Dialect, wire: WireMessage, plain: Mapping[str, str | None]) -> None:
    for name in wire.encrypted:
        text = plain[name]
        if text is not None and wire.recent_root is not None:
            check_commitment(dialect, name, wire.body[name], text, wire.recent_root)


def check_commitments(dialect: Dialect, wire: WireMessage, message: Message) -> None:
    """Check that every encrypted attribute commits to what it decrypted to.

    About 50 ms each (Argon2id): admission does it last.

    Raises:
        MessageRejected: ``plaintext_mismatch``.
    """
    try:
        _verify_commitments(dialect, wire, plain_attributes(wire, message))
    except Invalid as error:
        raise reject("plaintext_mismatch", error.message) from None


def open_message_attributes(dialect: Dialect, wire: WireMessage, *, commitments: bool) -> Message:
    """Decrypt a message with the symmetric keys it brought.

    Args:
        commitments: also check the Argon2id commitments; without them the message must not be
            accepted before :func:`check_commitments`.

    Raises:
        MessageRejected: ``bad_symmetric_key`` (missing), ``attribute_decryption_failed``,
            ``bad_actor_id``, ``bad_public_key``, ``bad_root``, ``bad_request``,
            ``plaintext_mismatch``.
    """
    plain = dict(wire.body)
    for name in wire.encrypted:
        if name not in wire.symmetric_keys:
            raise reject("bad_symmetric_key", f"no key for {name}")
        try:
            plain[name] = decrypt_without_commitment(dialect, name, plain[name], wire.symmetric_keys[name])
        except (EncodingError, Invalid) as error:
            raise reject("attribute_decryption_failed", error.message) from None
    message = _to_message(wire, plain)
    if commitments:
        check_commitments(dialect, wire, message)
    return message


def message_from_plain(
    dialect: Dialect, preimage: bytes, plain: Mapping[str, str | None], *, commitments: bool
) -> tuple[WireMessage, Message | None]:
    """Read a logged message the replayer's way: preimage and published plaintext, no key.

    Args:
        preimage: exactly the published bytes, whose hash is in the entry.
        plain: text of every attribute that travels encrypted; None for one that is withheld.
        commitments: check the Argon2id commitment of every text. Whoever skips this believes the
            publisher about the plaintext.

    Returns:
        The message as received, and its value: None when an attribute is withheld.

    Raises:
        Invalid: ``BadEntry`` for a preimage that is not the canonical text of a well-formed
            message, or that means nothing once read; ``PlaintextMismatch`` for text that is not
            what the message commits to, or for other attributes than the message has.
    """
    try:
        wire = parse_wire(dialect, preimage)
    except MessageRejected as error:
        raise Invalid("BadEntry", f"{error.message} ({error.hint or error.code})") from None
    if wire.preimage != preimage:
        raise Invalid("BadEntry", "the preimage is not in its canonical form")
    if set(plain) != set(wire.encrypted) or not all(isinstance(v, str | None) for v in plain.values()):
        raise Invalid("PlaintextMismatch", "the published attributes are not those of the message")
    if commitments:
        try:
            _verify_commitments(dialect, wire, plain)
        except EncodingError as error:
            raise Invalid("PlaintextMismatch", error.message) from None
    known = {name: text for name, text in plain.items() if text is not None}
    if len(known) < len(plain):
        return wire, None
    try:
        return wire, _to_message(wire, wire.body | known)
    except MessageRejected as error:
        raise Invalid("BadEntry", f"{error.message} ({error.hint or error.code})") from None


def plain_attributes(wire: WireMessage, message: Message) -> dict[str, str]:
    """The text of every attribute that travels encrypted: what a log publishes beside the preimage."""
    members = plain_members(message)
    return {name: members[name] for name in wire.encrypted}
