"""What a lookup answers, and what the answer is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ktlog.pkd.keys import encode_public_key, encode_root
from ktlog.pkd.state import Aux, Cause, Key, Status

STATUS: Mapping[int, str] = MappingProxyType({
    Status.ACTIVE: "active", Status.BURNED: "burned down", Status.REVOKED: "revoked by token",
    Status.MOVED: "moved away",
})
"""Why an actor is as it is, in words."""

CAUSE: Mapping[int, str] = MappingProxyType({
    Cause.FIRST: "first enrolment", Cause.BURNED: "enrolment after a BurnDown",
    Cause.REVOKED: "enrolment after a revocation token", Cause.MOVED: "enrolment after moving away",
    Cause.ERASED: "enrolment after erasure", Cause.MOVED_IN: "move from another actor",
})
"""What began the present generation, in words."""

NOT_PROVEN = (
    "that nothing was left out: a message newer than the last one listed may be hidden, a revocation"
    " too (this needs the directory map)",
    "that the first key of this generation came from the person: the instance says so",
    "that the handle means this actor id: WebFinger says so, and the pin remembers it",
    "that each message named a root that was recent then: an auditor checks it",
)
"""What no answer of this version claims."""

TAKEN_NOT_PROVEN = (
    "that what is taken is true: a log can write such a message and say that its author was erased"
)
"""And what an answer does not claim that rests on erased text."""


@dataclass(frozen=True)
class PendingMessage:
    """A message that the log accepted but has not published: shown, and believed only to warn.

    ``removes`` lists the key ids that it takes out of ``usable_keys``.
    """

    leaf_index: int
    action: str
    removes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Present:
    """The keys of an actor, as far as the log shows them, after every check in ``checks`` passed.

    Attributes:
        actor_id: the canonical https URL that was looked up.
        handle: the handle it was resolved from, or None; shown so that a person can compare.
        origin: the log that local configuration names for the actor's domain.
        keys: active at ``tree_size``, in the order of their leaf indexes; may be empty, and then
            ``status`` says why.
        usable_keys: those of ``keys`` that no pending revocation withdraws. Encrypt to these only.
        aux: auxiliary data active at ``tree_size``.
        fireproof: a BurnDown of this actor is forbidden.
        status: a value of ``STATUS``.
        cause: a value of ``CAUSE``: what began the present generation.
        version, generation: as the directory map counts them.
        new_keys: those of ``keys`` that were not there at the last lookup; empty at the first one.
        gone_keys: key ids that were active at the last lookup and are not any more.
        reset: None, or why the trust in this actor starts over since the last lookup: treat the
            person as a stranger until keys were compared again.
        tree_size, root_hash: of the checkpoint that everything was checked against.
        as_of: Unix seconds; the greatest time at which the policy's quorum had seen this checkpoint.
        cosigners: names of the policy's cosigners that signed it.
        checks: what was checked, in words.
        taken: what could not be checked any more, in words, because an erasure took the text away:
            it is believed on the word of whoever checked it in time.
        not_proven: what an answer of this version never proves.
        pending: messages accepted but not published yet.
    """

    actor_id: str
    handle: str | None
    origin: str
    keys: tuple[Key, ...]
    usable_keys: tuple[Key, ...]
    aux: tuple[Aux, ...]
    fireproof: bool
    status: str
    cause: str
    version: int
    generation: int
    new_keys: tuple[Key, ...]
    gone_keys: tuple[str, ...]
    reset: str | None
    tree_size: int
    root_hash: bytes
    as_of: int
    cosigners: tuple[str, ...]
    checks: tuple[str, ...]
    pending: tuple[PendingMessage, ...] = ()
    taken: tuple[str, ...] = ()
    not_proven: tuple[str, ...] = NOT_PROVEN

    def as_dict(self) -> dict[str, Any]:
        """The answer for a machine: what ``ktlog lookup --json`` prints."""
        usable = {key.key_id for key in self.usable_keys}
        return {
            "answer": "present",
            "actor-id": self.actor_id,
            "handle": self.handle,
            "origin": self.origin,
            "keys": [
                {
                    "key-id": key.key_id,
                    "public-key": encode_public_key(key.public_key),
                    "leaf-index": key.leaf_index,
                    "created": key.created,
                    "usable": key.key_id in usable,
                }
                for key in self.keys
            ],
            "auxiliary": [
                {"aux-id": aux.aux_id, "aux-type": aux.aux_type, "aux-data": aux.aux_data}
                for aux in self.aux
            ],
            "fireproof": self.fireproof,
            "status": self.status,
            "cause": self.cause,
            "version": self.version,
            "generation": self.generation,
            "new-keys": [key.key_id for key in self.new_keys],
            "gone-keys": list(self.gone_keys),
            "reset": self.reset,
            "tree-size": self.tree_size,
            "merkle-root": encode_root(self.root_hash),
            "as-of": self.as_of,
            "cosigners": list(self.cosigners),
            "checks": list(self.checks),
            "taken": list(self.taken),
            "pending": [
                {"leaf-index": item.leaf_index, "action": item.action, "removes": list(item.removes)}
                for item in self.pending
            ],
            "not-proven": list(self.not_proven),
        }
