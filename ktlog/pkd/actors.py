"""What a directory knows: values of actors, of what a transition looks at and of what it does.

The numbers are the directory map's, so that a map value can be encoded from an :class:`Actor`
without translation. Spec: directory map §1 and §2.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from ktlog.pkd.keys import key_hash

MAX_HELD = 65535
"""Keys of one actor, and auxiliary data of one actor: the map's value counts both with u16."""


class Status(IntEnum):
    """Whether an actor has keys, and if not, why. ERASED stands for a tombstone in the map."""

    ERASED = 0
    ACTIVE = 1
    BURNED = 2
    REVOKED = 3
    MOVED = 4


class Cause(IntEnum):
    """What began an actor's current root of trust (its generation)."""

    FIRST = 1
    BURNED = 2
    REVOKED = 3
    MOVED = 4
    ERASED = 5
    MOVED_IN = 6


class Role(IntEnum):
    """An actor's part in an entry of its history."""

    SUBJECT = 1
    MOVED_OUT = 2
    MOVED_IN = 3


@dataclass(frozen=True, slots=True)
class Key:
    """An active key. A MoveIdentity carries it unchanged."""

    public_key: bytes
    """1312 raw bytes."""
    key_id: str
    leaf_index: int
    """Of the AddKey that enrolled it."""
    created: int
    """Unix seconds as the AddKey claims; orders nothing."""


@dataclass(frozen=True, slots=True)
class Aux:
    """Active auxiliary data. aux_data is None when the text is withheld."""

    aux_type: str
    aux_id: str
    aux_data: str | None
    leaf_index: int
    created: int


@dataclass(frozen=True, slots=True)
class Actor:
    """One actor's state after the entries so far. An actor never enrolled is None instead."""

    actor_id: str
    keys: tuple[Key, ...]
    """By leaf_index, key hashes distinct."""
    aux: tuple[Aux, ...]
    """By leaf_index, ids distinct."""
    fireproof: bool
    version: int
    """Grows by one with every entry that touches the actor, and never restarts."""
    generation: int
    """Grows by one with every new root of trust."""
    erasures: int
    cause: int
    generation_leaf: int
    status: int
    status_leaf: int
    """The entry that set status; generation_leaf while active."""
    revoked: frozenset[bytes]
    """Hashes of keys that a RevokeKey ever withdrew here, or at an actor who moved here."""


@dataclass(frozen=True, slots=True)
class View:
    """All that :func:`apply` looks at: the rows that :func:`touched_by` names, and two indexes."""

    actors: Mapping[str, Actor | None]
    token_revoked: Callable[[bytes], bool] | Container[bytes]
    """By key hash: was this key withdrawn by a token in this log?"""
    holders: Mapping[bytes, Sequence[str]]
    """By key hash: the actors where it is active. Needed for the key of a token only."""


@dataclass(frozen=True, slots=True)
class HistoryLeaf:
    """An entry to append to an actor's history."""

    actor_id: str
    role: int


@dataclass(frozen=True, slots=True)
class Change:
    """What an accepted message does; nothing else changes."""

    actors: tuple[Actor, ...] = ()
    """New values of every touched actor."""
    history: tuple[HistoryLeaf, ...] = ()
    token_revoked: bytes | None = None
    """Hash of the key that a token withdraws from this log for ever."""
    needs_salt: tuple[str, ...] = ()
    """Actors whose map index goes from no leaf, or an erased one, to a value."""


def check_invariants(actor: Actor) -> None:
    """What holds for every actor that :func:`ktlog.pkd.state.apply` ever returns, erased ones apart.

    Raises:
        AssertionError: a bug here, or a store that changed a row.
    """
    key_hashes = [key_hash(key.public_key) for key in actor.keys]
    aux_ids = [aux.aux_id for aux in actor.aux]
    rules = {
        "keys are in leaf order": _ascending([key.leaf_index for key in actor.keys]),
        "keys are distinct": len(set(key_hashes)) == len(key_hashes) <= MAX_HELD,
        "no key came back after it was revoked": not actor.revoked & set(key_hashes),
        "aux data are in leaf order": _ascending([aux.leaf_index for aux in actor.aux]),
        "aux data are distinct": len(set(aux_ids)) == len(aux_ids) <= MAX_HELD,
        "active means having keys": (actor.status == Status.ACTIVE) == bool(actor.keys),
        "without keys there are no aux data": bool(actor.keys) or not actor.aux,
        "status and cause are in range": actor.status in list(Status)[1:] and actor.cause in list(Cause),
        "an active status began with its generation":
            actor.status != Status.ACTIVE or actor.status_leaf == actor.generation_leaf,
        "a generation comes before its end": actor.generation_leaf <= actor.status_leaf,
        "every generation is a version": 1 <= actor.generation <= actor.version,
        "the first generation is an enrolment":
            actor.cause not in (Cause.FIRST,) or actor.generation == 1,
        "who was burned down was not fireproof, who moved away is not":
            not (actor.fireproof and actor.status in (Status.BURNED, Status.MOVED)),
    }
    broken = [rule for rule, holds in rules.items() if not holds]
    if broken:
        raise AssertionError(f"{actor.actor_id}: {'; '.join(broken)} does not hold")


def _ascending(numbers: Sequence[int]) -> bool:
    return all(first < second for first, second in zip(numbers, numbers[1:], strict=False))
