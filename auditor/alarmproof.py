"""Checks an alarm offline: no network, no memory, nothing believed but a policy. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from auditor.alarm import EVENT, SCHEMA
from auditor.events import ERASED_PREFIX
from auditor.heads import for_entries
from ktlog.client.publicfiles import PublicRecord, parse_public_record
from ktlog.errors import Invalid, MessageRejected
from ktlog.pkd.actions import ENCRYPTED
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.keys import encode_public_key
from ktlog.pkd.messages import WireMessage, message_from_plain
from ktlog.tlog.encoding import decode_base64
from ktlog.tlog.policy import Policy
from ktlog.tlog.proof import parse_proof, verify_proof

_ACTOR_ATTRIBUTES = frozenset({"actor", "old-actor", "new-actor", "operator"})


@dataclass(frozen=True)
class VerifiedAlarm:
    """What an alarm proves.

    subjects: the actors that the message itself names, None where withheld. keys: those that it names. time: as the
    message claims. as_of: when the quorum stood behind the log.
    """

    origin: str
    leaf_index: int
    action: str
    subjects: tuple[str | None, ...]
    keys: tuple[str, ...]
    time: int | None
    as_of: int | None


def verify_alarm(document: Mapping[str, Any], policy: Policy, now: int) -> VerifiedAlarm:
    """Check what an alarm carries against *policy* alone: the cosigned head, the entry, the message, its commitments.

    Nothing else in the alarm is believed. What the message did to the actor's state is not checked: only a replay of
    the log shows it.

    Raises:
        Invalid: ``NoProof``, ``BadRecord``, ``PreimageMismatch``, ``PlaintextMismatch``, ``AlarmContradictsEntry``,
            ``BadInclusionProof`` and the names of the policy's checks.
        PolicyUnmet, EncodingError
    """
    if document.get("schema") != SCHEMA or document.get("kind") != EVENT:
        raise Invalid("NoProof", "this is no alarm about an entry; nothing in it can be checked offline")
    proof, entry, record = (document.get(name) for name in ("tlog_proof", "entry", "record"))
    if not isinstance(proof, str) or not isinstance(entry, str) or not isinstance(record, Mapping):
        raise Invalid("NoProof", f"the alarm carries no whole proof: {str(document.get('proof_missing'))[:200]}")
    raw, note = decode_base64(entry), proof.encode("utf-8", "replace")
    verified = verify_proof(note, raw, for_entries(policy), now)
    leaf_index = parse_proof(note).leaf_index
    dialect, parsed = parse_entry(raw)
    public = parse_public_record(json.dumps(record, ensure_ascii=False).encode("utf-8", "replace"), leaf_index)
    if hashlib.sha256(public.preimage).digest() != parsed.message_hash:
        raise Invalid("PreimageMismatch", "the message shown is not the one that the entry commits to")
    wire = _read(dialect, public, commitments=False)
    texts = {**wire.body, **public.plain}
    subjects = tuple(texts[name] for name in ENCRYPTED[wire.action] if name in _ACTOR_ATTRIBUTES)
    keys = [texts["public-key"]] if texts.get("public-key") else []
    if wire.token is not None:
        keys.append(encode_public_key(wire.token.public_key))
    _check_claims(document, verified.checkpoint.origin, leaf_index, wire, subjects, keys)
    _read(dialect, public, commitments=True)  # what is dear comes last
    return VerifiedAlarm(
        verified.checkpoint.origin, leaf_index, wire.action, subjects, tuple(keys), wire.time, verified.as_of
    )


def _read(dialect: Dialect, public: PublicRecord, *, commitments: bool) -> WireMessage:
    try:
        return message_from_plain(dialect, public.preimage, public.plain, commitments=commitments)[0]
    except MessageRejected as error:
        raise Invalid("BadEntry", error.message) from None


def _check_claims(
    document: Mapping[str, Any], origin: str, leaf_index: int, wire: WireMessage, subjects: Sequence[str | None],
    keys: Sequence[str],
) -> None:
    """Compare what the alarm says outside of its proof with the message itself, as far as that can be compared."""
    if (document.get("origin"), document.get("name"), document.get("leaf_index")) != (origin, wire.action, leaf_index):
        raise Invalid("AlarmContradictsEntry", "the alarm is about another entry than it carries")
    claimed = {name for name in document.get("subjects") or () if not str(name).startswith(ERASED_PREFIX)}
    if wire.token is None and not claimed <= set(subjects):
        raise Invalid("AlarmContradictsEntry", "the alarm names actors whom the message does not name")
    shown = set(document.get("keys_added") or ()) | set(document.get("keys_removed") or ())
    if wire.action in ("AddKey", "RevokeKey", "RevokeKeyThirdParty") and not shown <= set(keys):
        raise Invalid("AlarmContradictsEntry", "the alarm shows keys that the message does not name")
