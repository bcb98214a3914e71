"""Builds protocol messages for an actor, encrypts them to a log, and checks the receipt.

::

    key = SigningKey.generate()
    built = enrol("https://example.social/users/alice", key, recent_root=root, now=now)
    content = build_envelope(built.sender, seal(built, encapsulation_key))

``root`` and ``encapsulation_key`` are what the log answers at ``/api/history`` and
``/api/server-public-key``. The instance then delivers ``content`` with an HTTP signature of the
actor that ``built.sender`` names. A new random key and nonce are drawn for every attribute of
every message; ``random`` is there for tests.

Spec: PKD "Protocol Messages", "Encryption of Protocol Messages", "Wire Format for Protocol Messages".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from ktlog.client.keyfile import SigningKey
from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.pkd.actions import encrypted_attributes
from ktlog.pkd.canonical import canonical
from ktlog.pkd.compose import plain_members
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.entry import parse_entry, preimage, verify_entry
from ktlog.pkd.hpke import seal_message
from ktlog.pkd.keys import decode_root
from ktlog.pkd.messages import (
    PADDING_RANDOM_BYTES,
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
    build_wire,
    format_wire,
    pad_plaintext,
)
from ktlog.pkd.token import parse_token
from ktlog.tlog.encoding import decode_base64url

ENVELOPE_CONTEXT = "fedi-e2ee:v1-encrypted-message"
PLAIN_CONTEXT = "fedi-e2ee:v1-plaintext-message"
Random = Callable[[int], bytes]


@dataclass(frozen=True)
class Built:
    """A signed protocol message, not encrypted yet.

    Attributes:
        message: its value.
        wire: the JSON object as the log reads it. It holds the attributes' symmetric keys.
        dialect: the log's.
        sender: the actor whose HTTP signature must deliver it. None for a token, which anybody may deliver,
            and for a Checkpoint, which an actor on the sending directory's host must.
    """

    message: Message
    wire: Mapping[str, Any]
    dialect: Dialect
    sender: str | None

    @property
    def preimage(self) -> bytes:
        """The text whose hash the log will commit to; :func:`check_receipt` needs it."""
        return preimage(self.dialect, self.wire)


def build_message(
    message: Message, signer: SigningKey | None, recent_root: str | None, *, dialect: Dialect = SPEC,
    key_id: str | None = None, otp: str | None = None, random: Random = os.urandom,
) -> Built:
    """Encrypt the attributes of *message* and sign it.

    Args:
        signer, recent_root: None for a RevokeKeyThirdParty and for nothing else.
        key_id: which of the signer's keys this is; a hint for the log.
        otp: one-time password of a BurnDown, where the operator's instance has enrolled a TOTP secret.

    Raises:
        EncodingError: ``BadMerkleRoot``, ``BadText``, ``BadPublicKey``.
        UsageError: ``NoSigner``, ``NoPassword``.
    """
    if otp is not None and not isinstance(message, BurnDown):
        raise UsageError("NoPassword", f"a {message.action} has no one-time password")
    if isinstance(message, RevokeKeyThirdParty):
        return Built(message, build_wire(dialect, message), dialect, None)
    if signer is None or recent_root is None:
        raise UsageError("NoSigner", f"a {message.action} needs a signing key and a recent root")
    decode_root(recent_root)
    members = plain_members(message)
    names = [name for name in encrypted_attributes(dialect, message.action) if name in members]
    keys = {name: random(32) for name in names}
    randoms = {name: random(32) for name in names}
    wire = build_wire(dialect, message, recent_root, signer.private, keys, randoms, key_id, otp)
    sender = members.get("new-actor") or members.get("operator") or members.get("actor")
    return Built(message, wire, dialect, sender)


def enrol(actor_id: str, key: SigningKey, *, recent_root: str, now: int, **options: Any) -> Built:
    """The first AddKey of an actor who has no key: it signs itself.

    *options* here and below are those of :func:`build_message`.
    """
    return build_message(AddKey(actor_id, key.public_key, now), key, recent_root, **options)


def add_key(
    actor_id: str, new_key: bytes, signer: SigningKey, *, recent_root: str, now: int, **options: Any
) -> Built:
    """Add *new_key* (1312 raw bytes), signed by a key that the actor has."""
    return build_message(AddKey(actor_id, new_key, now), signer, recent_root, **options)


def revoke_key(
    actor_id: str, old_key: bytes, signer: SigningKey, *, recent_root: str, now: int, **options: Any
) -> Built:
    """Withdraw *old_key* (1312 raw bytes) for good, signed by another key that the actor has.

    Raises:
        UsageError: ``SelfRevocation``; a revocation token can do that.
    """
    if old_key == signer.public_key:
        raise UsageError(
            "SelfRevocation", "a key cannot revoke itself", hint="Sign with another key, or use a revocation token."
        )
    return build_message(RevokeKey(actor_id, old_key, now), signer, recent_root, **options)


def rotate(
    actor_id: str, old_key: SigningKey, new_key: SigningKey, *, recent_root: str, now: int, **options: Any
) -> tuple[Built, Built]:
    """Replace a key: an AddKey signed by the old one, then a RevokeKey signed by the new one."""
    return (
        add_key(actor_id, new_key.public_key, old_key, recent_root=recent_root, now=now, **options),
        revoke_key(actor_id, old_key.public_key, new_key, recent_root=recent_root, now=now, **options),
    )


def fireproof(actor_id: str, signer: SigningKey, *, recent_root: str, now: int, **options: Any) -> Built:
    """Forbid BurnDown of the actor."""
    return build_message(Fireproof(actor_id, now), signer, recent_root, **options)


def undo_fireproof(actor_id: str, signer: SigningKey, *, recent_root: str, now: int, **options: Any) -> Built:
    """Allow BurnDown again."""
    return build_message(UndoFireproof(actor_id, now), signer, recent_root, **options)


def add_aux_data(
    actor_id: str, aux_type: str, aux_data: str, signer: SigningKey, *, recent_root: str, now: int, **options: Any
) -> Built:
    """Attach auxiliary data, such as a public key of another protocol."""
    return build_message(AddAuxData(actor_id, aux_type, aux_data, None, now), signer, recent_root, **options)


def revoke_aux_data(
    actor_id: str, aux_type: str, aux_id: str, signer: SigningKey, *, recent_root: str, now: int, **options: Any
) -> Built:
    """Detach auxiliary data by its id."""
    return build_message(RevokeAuxData(actor_id, aux_type, aux_id, None, now), signer, recent_root, **options)


def move_identity(
    old_actor: str, new_actor: str, signer: SigningKey, *, recent_root: str, now: int, **options: Any
) -> Built:
    """Carry keys and auxiliary data over; signed by a key of *old_actor*, delivered by *new_actor*."""
    return build_message(MoveIdentity(old_actor, new_actor, now), signer, recent_root, **options)


def burn_down(
    actor_id: str, operator: str, signer: SigningKey, *, recent_root: str, now: int, **options: Any
) -> Built:
    """Empty an actor, signed by a key of *operator*, an actor of the same host.

    It must not be encrypted: see :func:`build_plain_envelope`.
    """
    return build_message(BurnDown(actor_id, operator, now), signer, recent_root, **options)


def checkpoint_message(
    from_directory: str, from_root: str, to_directory: str, to_validated_root: str, signer: SigningKey, *,
    recent_root: str, now: int, **options: Any,
) -> Built:
    """Commit a directory's root to another directory's log.

    Args:
        from_directory, to_directory: URLs, exactly as the receiving directory writes them.
        from_root: the sending directory's newest root.
        to_validated_root: the newest root of the receiving directory up to which the sender has replayed
            its entries. Whoever signs this says that they have.
        signer: the sending directory's own key, the ``public-key`` of its ``/api/info``.

    Raises:
        EncodingError: ``BadMerkleRoot``.
    """
    decode_root(from_root)
    decode_root(to_validated_root)
    message = CheckpointMessage(from_directory, from_root, signer.public_key, to_directory, to_validated_root, now)
    return build_message(message, signer, recent_root, **options)


def revoke_by_token(token: str, *, dialect: Dialect = SPEC) -> Built:
    """Withdraw the key of a revocation token from whoever holds it.

    Raises:
        EncodingError: ``BadToken``.
        Invalid: ``BadTokenSignature``.
    """
    return build_message(RevokeKeyThirdParty(parse_token(token)), None, None, dialect=dialect)


def seal(built: Built, encapsulation_key: bytes, *, random: Random = os.urandom) -> str:
    """Pad and encrypt a message to a log: ``hpke:…``.

    Args:
        encapsulation_key: the log's 1216 bytes.

    Raises:
        EncodingError: ``BadEncapsulationKey``.
        UsageError: ``NotEncrypted``: a BurnDown travels in plain text, and not through an inbox.
    """
    if isinstance(built.message, BurnDown):
        raise UsageError("NotEncrypted", "a BurnDown must not be encrypted")
    return seal_message(encapsulation_key, pad_plaintext(built.wire, random(PADDING_RANDOM_BYTES)).encode("utf-8"))


def build_envelope(actor_id: str, sealed: str) -> str:
    """The content of the direct message that delivers *sealed* for *actor_id*.

    Spec: PKD "HPKE-encrypted Protocol Message Format".
    """
    envelope = {"!pkd-context": ENVELOPE_CONTEXT, "actor": actor_id, "encrypted-message": sealed}
    return canonical(envelope).decode("utf-8")


def build_plain_envelope(actor_id: str, built: Built) -> str:
    """The envelope of a message that is not encrypted: the body of a POST to ``/api/burndown``.

    Args:
        actor_id: whose HTTP signature delivers it; for a BurnDown the operator.

    Spec: PKD "Plaintext Protocol Message Format".
    """
    envelope = {"!pkd-context": PLAIN_CONTEXT, "actor": actor_id, "message": format_wire(built.wire)}
    return canonical(envelope).decode("utf-8")


@dataclass(frozen=True)
class Receipt:
    """A log's answer that it took a message. Keep it.

    The leaf signature in ``entry`` proves that the log signed this message as an entry. ``leaf_index`` and ``root``
    are in nothing but the answer, which the log signs as a whole as its answer to one request
    (:mod:`ktlog.wire.httpsig_response`). Kept with those signatures (``ktlog submit --receipt``) they are a promise
    that can be held against it; without them, only what it says.
    """

    leaf_index: int
    entry: bytes
    root: str

    @property
    def tree_size(self) -> int:
        return self.leaf_index + 1


def check_receipt(
    receipt: Mapping[str, Any], preimage: bytes, dialect: Dialect, leaf_keys: Mapping[bytes, bytes]
) -> Receipt:
    """Check a log's answer to an accepted message: that it signed this message as an entry.

    That the log signed the answer as a whole is not checked here: :func:`ktlog.operator.instance.deliver` has done so
    before. That the entry has this index, and is under this root, the log promises with that; whether it keeps the
    promise, a lookup or an auditor sees once the entry is published.

    Args:
        receipt: the JSON object of the 202 answer.
        preimage: of the message that was sent (``built.preimage``).
        leaf_keys: the log's leaf keys by SHA-256 of the raw key, from ``/leaf-keys``.

    Raises:
        Invalid: ``BadReceipt`` out of form or in another dialect; ``BadEntry`` for another message;
            ``BadLeafSignature``.
    """
    try:
        leaf_index, tree_size = receipt["leaf-index"], receipt["tree-size"]
        entry, root = decode_base64url(receipt["merkle-leaf"]), receipt["merkle-root"]
        if type(leaf_index) is not int or leaf_index < 0 or tree_size != leaf_index + 1:
            raise Invalid("BadReceipt", "the receipt's leaf index and tree size do not belong together")
        decode_root(root)
        if parse_entry(entry)[0] != dialect:
            raise Invalid("BadReceipt", f"the receipt's entry is not in the dialect {dialect.name}")
        verify_entry(entry, preimage, leaf_keys)
    except (EncodingError, KeyError, AttributeError, TypeError) as error:
        raise Invalid("BadReceipt", f"the log's receipt does not parse: {error}") from error
    return Receipt(leaf_index, entry, root)
