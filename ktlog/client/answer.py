"""What a lookup answers, and what the answer is worth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from ktlog.errors import NotLogged
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
    "that a handle means this actor id: WebFinger says so, and a lookup by handle remembers what it said first",
    "that each message named a root that was recent then: an auditor checks it",
)
"""What no answer of this version claims."""

_NEVER_PROVEN = (
    "that nothing was left out, if every verifier counted here lies",
    "that the first key of this generation came from the person: the instance says so, and the log alone could",
    "that a handle means this actor id: WebFinger says so, and a lookup by handle remembers what it said first",
)
NOT_PROVEN_BY_LIGHT = (
    *_NEVER_PROVEN,
    "that each key was signed for by an earlier one: the verifiers say so; the full check shows it",
)
"""What the map alone does not prove of a present actor."""
NOT_PROVEN_BY_FULL = _NEVER_PROVEN
"""What not even the full check proves."""
NOT_PROVEN_OF_ERASED = (
    "that the erasure was lawful, or that no copies are left",
    "that this holds if every verifier counted here lies",
    "that a handle means this actor id: WebFinger says so, and a lookup by handle remembers what it said first",
)
NOT_PROVEN_OF_ABSENT = NOT_PROVEN_OF_ERASED[1:]

TAKEN_NOT_PROVEN = (
    "that what is taken is true: a log can write such a message and say that its author was erased"
)
"""And what an answer does not claim that rests on erased text."""


def serving(origin: str) -> str:
    """In words, that whoever asks named the log: no answer can say it."""
    return f"which log serves the domain: {origin}, by your own configuration"


@dataclass(frozen=True)
class PendingMessage:
    """A message that the log accepted but has not published: shown, and believed only to warn.

    ``removes`` lists the key ids that it takes out of ``usable_keys``.
    """

    leaf_index: int | None
    """None when the log's answer did not say it."""
    action: str
    removes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProvenKey:
    """A key that the map lists; the same attributes as :class:`ktlog.pkd.state.Key`.

    created: Unix seconds as its AddKey claims; None in a light answer, which does not show the AddKey.
    """

    public_key: bytes
    key_id: str
    leaf_index: int
    created: int | None = None


@dataclass(frozen=True, slots=True)
class ProvenAux:
    """Auxiliary data that the map lists. aux_data is None when the log did not send the text."""

    aux_type: str
    aux_id: str
    aux_data: str | None
    leaf_index: int
    created: int | None = None


@dataclass(frozen=True)
class MapBasis:
    """The directory map that a proven answer was read from.

    Attributes:
        size, root_hash: of the output log's checkpoint.
        time: Unix seconds at which the operator made this map.
        erasures: that this log ever made, of anybody.
        full: the messages behind the answer were checked too.
        linked: the checkpoint was compared with an earlier one that was trusted, or is the first one seen.
            False for an answer that was verified without any memory.
    """

    size: int
    root_hash: bytes
    time: int
    erasures: int
    full: bool
    linked: bool

    def as_dict(self) -> dict[str, Any]:
        return {
            "size": self.size, "root": self.root_hash.hex(), "time": self.time, "erasures": self.erasures,
            "full": self.full, "linked": self.linked,
        }


@dataclass(frozen=True)
class Present:
    """The keys of an actor after every check in ``checks`` passed.

    With a ``map`` the list is proven to be complete and current, as far as one of the verifiers counted
    is honest. Without one it is what the log chose to show, and nothing more.

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
        map: the map it was read from; None when the policy names no verifiers for this log.
        bundle: what to keep in order to prove this answer offline, later, to anybody.
    """

    actor_id: str
    handle: str | None
    origin: str
    keys: tuple[Key | ProvenKey, ...]
    usable_keys: tuple[Key | ProvenKey, ...]
    aux: tuple[Aux | ProvenAux, ...]
    fireproof: bool
    status: str
    cause: str
    version: int
    generation: int
    new_keys: tuple[Key | ProvenKey, ...]
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
    map: MapBasis | None = None
    bundle: bytes | None = field(default=None, repr=False, compare=False)

    def key(self, key_id: str) -> Key | ProvenKey:
        """The active key of that id. Raises NotLogged(``UnlistedKey``)."""
        for key in self.keys:
            if key.key_id == key_id:
                return key
        raise NotLogged("UnlistedKey", f"{self.actor_id} has no active key {key_id[:64]!a}")

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
            "pending": _pending_list(self.pending),
            "not-proven": list(self.not_proven),
            "map": None if self.map is None else self.map.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class _Absent:
    """What the two answers without keys have in common; the attributes are those of :class:`Present`."""

    actor_id: str
    handle: str | None
    origin: str
    gone_keys: tuple[str, ...]
    reset: str | None
    tree_size: int
    root_hash: bytes
    as_of: int
    cosigners: tuple[str, ...]
    checks: tuple[str, ...]
    not_proven: tuple[str, ...]
    map: MapBasis
    pending: tuple[PendingMessage, ...] = ()
    bundle: bytes | None = field(default=None, repr=False, compare=False)

    @property
    def keys(self) -> tuple[()]:
        """None: a loop over the keys of any answer encrypts to nobody who has none."""
        return ()

    @property
    def usable_keys(self) -> tuple[()]:
        return ()

    @property
    def new_keys(self) -> tuple[()]:
        return ()

    def as_dict(self) -> dict[str, Any]:
        """The answer for a machine: what ``ktlog lookup --json`` prints."""
        return {
            "answer": _NAMES[type(self)], "actor-id": self.actor_id, "handle": self.handle, "origin": self.origin,
            "keys": [], "gone-keys": list(self.gone_keys), "reset": self.reset, "tree-size": self.tree_size,
            "merkle-root": encode_root(self.root_hash), "as-of": self.as_of, "cosigners": list(self.cosigners),
            "checks": list(self.checks), "pending": _pending_list(self.pending),
            "not-proven": list(self.not_proven), "map": self.map.as_dict(),
        }


@dataclass(frozen=True, kw_only=True)
class Erased(_Absent):
    """Proven: the log erased the actor, and there is nothing since.

    erasure_number: counts the erasures of the log, from 0. version, generation: as the erasure left them.
    """

    version: int
    generation: int
    erasure_number: int

    def as_dict(self) -> dict[str, Any]:
        return super().as_dict() | {
            "version": self.version, "generation": self.generation, "erasure-number": self.erasure_number,
        }


@dataclass(frozen=True, kw_only=True)
class NeverEnrolled(_Absent):
    """Proven: this log knows nothing of the actor and never did."""


Answer = Present | Erased | NeverEnrolled
"""What a lookup answers; everything else is an error with a name."""

_NAMES = {Erased: "erased", NeverEnrolled: "never-enrolled"}


def _pending_list(pending: tuple[PendingMessage, ...]) -> list[dict[str, Any]]:
    return [
        {"leaf-index": item.leaf_index, "action": item.action, "removes": list(item.removes)} for item in pending
    ]
