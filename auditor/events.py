"""What an accepted entry, or an erasure, means to those whom it is about.

Pure. The replay calls :func:`events_of` for each entry that had an effect, with what it knew of the touched actors
before and after. What came in on withheld text (:class:`~ktlog.pkd.withheld.Fragment`) gives events too: about the
names that can still be read.

An event is what the entries say. Whether the entries may be believed is the audit's to say, and its findings go to the
same sinks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ktlog.pkd.actions import BurnDown, Message, MoveIdentity
from ktlog.pkd.actors import Actor, Cause, Key, Status
from ktlog.pkd.erasure import ErasureRecord, map_index
from ktlog.pkd.messages import WireMessage
from ktlog.pkd.withheld import Fragment
from ktlog.tlog.encoding import decode_base64url, encode_base64url

ERASURE = "Erasure"
"""The action of the one event that is no entry."""

ALARMING = frozenset({
    "AddKey", "RevokeKey", "RevokeKeyThirdParty", "BurnDown", "Fireproof", "UndoFireproof", "MoveIdentity", ERASURE,
})
"""Actions that change whom others will encrypt to, or who may change it. Auxiliary data and Checkpoints are not."""

ERASED_PREFIX = "erased:"
"""Before a map index, where an actor's id was until an erasure took it."""


@dataclass(frozen=True)
class Event:
    """One thing that happened to actors of a log.

    Attributes:
        leaf_index: of the entry; of an erasure, the number of entries it came after.
        action: of the message, or ``Erasure``.
        subjects: ids of the actors it is about, sorted; of those erased, ``erased:`` and the map index.
        added: keys that an actor has since, raw. A MoveIdentity adds, for the new name, what the old one had.
        removed: keys that an actor no longer has, raw.
        key_ids: of both, those added first.
        time: as the message claims, in Unix seconds; None for a token and for an erasure.
        generation: the highest that a subject has now; None when nobody's state is known.
        reset: whether a new root of trust began for somebody that had one before.
        detail: a short plain word on the cause: ``after a BurnDown``.
    """

    origin: str
    leaf_index: int
    action: str
    subjects: tuple[str, ...]
    added: tuple[bytes, ...] = ()
    removed: tuple[bytes, ...] = ()
    key_ids: tuple[str, ...] = ()
    time: int | None = None
    generation: int | None = None
    reset: bool = False
    detail: str = ""

    @property
    def alarming(self) -> bool:
        """Whether somebody who watches a subject, or a key, wants to be woken for it."""
        return self.action in ALARMING or self.reset


_CAUSES = {
    Cause.BURNED: "after a BurnDown", Cause.REVOKED: "after a revocation by token", Cause.MOVED: "after a move away",
    Cause.ERASED: "after an erasure", Cause.MOVED_IN: "by a move from another name",
}


def events_of(
    leaf_index: int, wire: WireMessage, message: Message | Fragment, before: Mapping[str, Actor | None],
    after: Mapping[str, Actor | None], *, origin: str = "",
) -> list[Event]:
    """What entry *leaf_index* did: one event, or none where nobody was touched and no key withdrawn.

    Args:
        before: the touched actors as the rules saw them until then; missing or None: never enrolled.
        after: the same ones after it.
        origin: of the log.
    """
    touched = sorted(after)
    names = {*touched, *_named(message)}
    if not touched and wire.token is None:
        return []
    added: list[Key] = []
    removed: list[Key] = []
    details: list[str] = []
    reset = False
    for actor_id in touched:
        old, new = before.get(actor_id), after[actor_id]
        held, holds = _keys(old), _keys(new)
        added += [key for raw, key in holds.items() if raw not in held]
        removed += [key for raw, key in held.items() if raw not in holds]
        if new is not None and old is not None and new.generation > old.generation:
            reset = True
            details.append(_CAUSES.get(Cause(new.cause), ""))
        if new is not None and old is not None and new.fireproof != old.fireproof and wire.action == "MoveIdentity":
            details.append("Fireproof went with the keys")
        if new is not None and old is not None and old.keys and not new.keys and wire.action == "RevokeKeyThirdParty":
            details.append("no key is left" if new.status == Status.REVOKED else "")
    gone = [key.public_key for key in removed] + ([] if wire.token is None else [wire.token.public_key])
    return [Event(
        origin, leaf_index, wire.action, tuple(sorted(names)),
        tuple(dict.fromkeys(key.public_key for key in added)),
        tuple(dict.fromkeys(gone)),
        tuple(dict.fromkeys(key.key_id for key in (*added, *removed))),
        wire.time, max((actor.generation for actor in after.values() if actor is not None), default=None), reset,
        "; ".join(dict.fromkeys(text for text in details if text)),
    )]


def erasure_event(origin: str, record: ErasureRecord) -> Event:
    """The event of one record of the erasure log. It names nobody but by index."""
    return Event(
        origin, record.input_size, ERASURE, (erased_name(record.index),), generation=record.generation,
        detail=f"{record.newly_withheld} attributes were withheld",
    )


def erased_name(index: bytes) -> str:
    """What stands for an actor whose id is to be forgotten."""
    return ERASED_PREFIX + encode_base64url(index)


def index_of(origin: str, subject: str) -> bytes:
    """The map index of a subject of an event, 32 bytes, whether it is an actor id or stands for one."""
    if subject.startswith(ERASED_PREFIX):
        return decode_base64url(subject.removeprefix(ERASED_PREFIX), 32)
    return map_index(origin, subject)


def _named(message: Message | Fragment) -> tuple[str, ...]:
    """Actors that a message is about, or that did it, though it need not touch them."""
    if isinstance(message, Fragment):
        return tuple(name for name in message.names.values() if name is not None)
    if isinstance(message, BurnDown):
        return (message.actor, message.operator)
    if isinstance(message, MoveIdentity):
        return (message.old_actor, message.new_actor)
    return ()


def _keys(actor: Actor | None) -> dict[bytes, Key]:
    return {} if actor is None else {key.public_key: key for key in actor.keys}

