"""The ten protocol messages as values, and what each looks like on the wire.

A value holds plaintext: actor ids as text, public keys as 1312 raw bytes, times as Unix seconds
(None only for a revocation token, which carries none). Encryption, signatures and the Merkle root
belong to :mod:`ktlog.pkd.messages`.

Spec: PKD "Protocol Messages" and "Special Protocol Messages".
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar

from ktlog.pkd.dialects import Dialect
from ktlog.pkd.pae import pae
from ktlog.pkd.token import RevocationToken
from ktlog.tlog.encoding import encode_base64url

PKD_CONTEXT = "https://github.com/fedi-e2ee/public-key-directory/v1"
AUX_ID_KEY = b"FediPKD1-Auxiliary-Data-IDKeyGen"


@dataclass(frozen=True, slots=True)
class AddKey:
    """Enrol *public_key*: self-signed when the actor has no key, else signed by one they have."""

    action: ClassVar[str] = "AddKey"
    actor: str
    public_key: bytes
    time: int


@dataclass(frozen=True, slots=True)
class RevokeKey:
    """Withdraw *public_key* for good, signed by another key of the actor."""

    action: ClassVar[str] = "RevokeKey"
    actor: str
    public_key: bytes
    time: int


@dataclass(frozen=True, slots=True)
class RevokeKeyThirdParty:
    """Withdraw the token's key from whoever holds it. Not dated."""

    action: ClassVar[str] = "RevokeKeyThirdParty"
    token: RevocationToken
    time: None = None


@dataclass(frozen=True, slots=True)
class MoveIdentity:
    """Carry keys, auxiliary data and Fireproof from *old_actor*, who signs, to *new_actor*."""

    action: ClassVar[str] = "MoveIdentity"
    old_actor: str
    new_actor: str
    time: int


@dataclass(frozen=True, slots=True)
class BurnDown:
    """Empty *actor*, signed by *operator*, an actor of the same domain."""

    action: ClassVar[str] = "BurnDown"
    actor: str
    operator: str
    time: int


@dataclass(frozen=True, slots=True)
class Fireproof:
    """Forbid BurnDown."""

    action: ClassVar[str] = "Fireproof"
    actor: str
    time: int


@dataclass(frozen=True, slots=True)
class UndoFireproof:
    """Allow BurnDown again."""

    action: ClassVar[str] = "UndoFireproof"
    actor: str
    time: int


@dataclass(frozen=True, slots=True)
class AddAuxData:
    """Attach auxiliary data. *aux_id* is the sender's own claim of its id, or None."""

    action: ClassVar[str] = "AddAuxData"
    actor: str
    aux_type: str
    aux_data: str
    aux_id: str | None
    time: int


@dataclass(frozen=True, slots=True)
class RevokeAuxData:
    """Detach auxiliary data named by its id, by its text, or by both when they agree."""

    action: ClassVar[str] = "RevokeAuxData"
    actor: str
    aux_type: str
    aux_id: str | None
    aux_data: str | None
    time: int


@dataclass(frozen=True, slots=True)
class CheckpointMessage:
    """Another directory commits its root to this log. Touches no actor.

    PKD calls it Checkpoint; here that word is kept for C2SP's.
    """

    action: ClassVar[str] = "Checkpoint"
    from_directory: str
    from_root: str
    from_public_key: bytes
    to_directory: str
    to_validated_root: str
    time: int


Message = (
    AddKey | RevokeKey | RevokeKeyThirdParty | MoveIdentity | BurnDown | Fireproof | UndoFireproof
    | AddAuxData | RevokeAuxData | CheckpointMessage
)


@dataclass(frozen=True, slots=True)
class Shape:
    """The members of an action's ``message`` map, and which of them travel encrypted."""

    required: frozenset[str]
    optional: frozenset[str] = frozenset()
    encrypted: tuple[str, ...] = ()
    one_of: frozenset[str] = frozenset()
    """At least one of these must be there."""


def _shape(required: str, encrypted: str = "", optional: str = "", one_of: str = "") -> Shape:
    return Shape(
        frozenset(required.split()), frozenset(optional.split()),
        tuple(encrypted.split()), frozenset(one_of.split()),
    )


SHAPES: Mapping[str, Shape] = MappingProxyType({
    "AddKey": _shape("actor public-key time", "actor public-key"),
    "RevokeKey": _shape("actor public-key time", "actor public-key"),
    "MoveIdentity": _shape("old-actor new-actor time", "old-actor new-actor"),
    "BurnDown": _shape("actor operator time", "actor operator"),
    "Fireproof": _shape("actor time", "actor"),
    "UndoFireproof": _shape("actor time", "actor"),
    "AddAuxData": _shape("actor aux-type aux-data time", "actor aux-data", "aux-id"),
    "RevokeAuxData": _shape(
        "actor aux-type time", "actor aux-data", "aux-data aux-id", one_of="aux-data aux-id"
    ),
    "Checkpoint": _shape(
        "from-directory from-root from-public-key to-directory to-validated-root time"
    ),
})
"""By action; a RevokeKeyThirdParty has no ``message`` map."""

TOKEN_ACTION = RevokeKeyThirdParty.action

ENCRYPTED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {action: shape.encrypted for action, shape in SHAPES.items()} | {TOKEN_ACTION: ()}
)
"""Attributes that travel encrypted, by action, as the specification has it."""


def encrypted_attributes(dialect: Dialect, action: str) -> tuple[str, ...]:
    """The same for one dialect."""
    return () if action in dialect.plain_actions else ENCRYPTED[action]


def aux_data_id(aux_type: str, aux_data: str) -> str:
    """The id of auxiliary data: 32 bytes as 43 characters of unpadded base64url.

    Spec: PKD "Auxiliary Data Identifiers" (which names no encoding; its examples use this one).
    """
    data = pae(["aux_type", aux_type, "data", aux_data])
    return encode_base64url(hmac.digest(AUX_ID_KEY, data, "sha256"))


def token_unique_hash(key_hash: bytes) -> bytes:
    """What stands for a token where other messages have the hash of what they sign.

    A key is revoked once, whichever of its many valid tokens did it. Two pieces here and eight in
    a signed message: the encoding keeps the two kinds of hash apart.
    """
    return hashlib.sha256(pae(["ktlog/v1/revoked-key", key_hash])).digest()
