"""The one transition function: what a valid message does to the actors it touches.

Operator, auditor and client replay the same rules. They are the rules that the log alone can show
(directory map §3); HTTP signatures, time windows and allow-lists are admission's. :func:`apply` is
pure and total: it returns new values, or raises ``MessageRejected`` and has changed nothing.

Decided here, where the specifications leave room:

* BurnDown of an actor without keys is refused (``actor_not_enrolled``): it would change nothing.
* The set of keys ever revoked follows a MoveIdentity and also stays with the old actor: PKD knows
  no way back from a RevokeKey. For the same reason nobody can move, with a key, to an actor who
  revoked that key in an earlier life.
* Auxiliary data named by id must be of the type that the message names.
* An actor holds at most 65535 keys and as many auxiliary data: the map's value counts with u16.

Spec: directory map §1 to §3; PKD "Protocol Messages".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.actions import (
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
)
from ktlog.pkd.actors import (
    MAX_HELD,
    Actor,
    Aux,
    Cause,
    Change,
    HistoryLeaf,
    Key,
    Role,
    Status,
    View,
    check_invariants,
)
from ktlog.pkd.identity import actor_domain
from ktlog.pkd.keys import key_hash, verify_mldsa44
from ktlog.pkd.messages import WireMessage
from ktlog.pkd.rejections import reject

__all__ = [
    "Actor", "Aux", "Cause", "Change", "HistoryLeaf", "Key", "Role", "Status", "View", "apply",
    "check_invariants", "created_time", "find_signer", "recent_root_ok", "recent_window", "signer_id",
    "touched_by",
]

_CAUSE_AFTER = {
    Status.BURNED: Cause.BURNED, Status.REVOKED: Cause.REVOKED,
    Status.MOVED: Cause.MOVED, Status.ERASED: Cause.ERASED,
}


def recent_window(tree_size: int) -> int:
    """How many messages old a recent root may be in a tree of this size.

    ``max(ceil(2 log2(N)**2), floor(N/2))``. From 512 on the half is larger, so floating point
    decides for small trees only, where no value but that of a power of two, which is exact, comes
    near a whole number.

    Spec: directory map §3; PKD "Recent Merkle Root Included in Plaintext Commitments".
    """
    if tree_size < 2:
        return 0
    if tree_size >= 512:
        return tree_size // 2
    return max(math.ceil(2 * math.log2(tree_size) ** 2), tree_size // 2)


def recent_root_ok(age: int, tree_size: int) -> bool:
    """Whether a message may be based on the root that the log had *age* entries ago.

    Args:
        age: 0 for the newest root; tree_size for the zero root of the empty tree, which is good
            for the first entry only.
        tree_size: entries before this message.
    """
    if age >= tree_size:
        return age == tree_size == 0
    return 0 <= age <= recent_window(tree_size)


def created_time(message: Message, greatest_time_so_far: int) -> int:
    """The ``created`` of an entry: its message's time, or for a token the greatest time before it."""
    return greatest_time_so_far if message.time is None else message.time


def signer_id(message: Message) -> str | None:
    """The actor whose key has to sign: None for a token or another directory's Checkpoint."""
    match message:
        case RevokeKeyThirdParty() | CheckpointMessage():
            return None
        case MoveIdentity():
            return message.old_actor
        case BurnDown():
            return message.operator
    return message.actor


def touched_by(message: Message, holders: Callable[[bytes], Sequence[str]]) -> tuple[str, ...]:
    """The actors whose rows a :class:`View` for *message* must contain.

    Args:
        holders: looks up the actors where a key, named by its hash, is active.
    """
    match message:
        case RevokeKeyThirdParty():
            return tuple(sorted(holders(key_hash(message.token.public_key))))
        case CheckpointMessage():
            return ()
        case MoveIdentity():
            names = (message.old_actor, message.new_actor)
        case BurnDown():
            names = (message.actor, message.operator)
        case _:
            names = (message.actor,)
    return tuple(dict.fromkeys(names))


def _row(view: View, actor_id: str) -> Actor | None:
    if actor_id not in view.actors:
        raise AssertionError("the view lacks an actor that touched_by named")
    return view.actors[actor_id]


def _enrolled(view: View, actor_id: str) -> Actor:
    actor = _row(view, actor_id)
    if actor is None or not actor.keys:
        raise reject("actor_not_enrolled")
    return actor


def _verifies(public_key: bytes, wire: WireMessage) -> bool:
    try:
        verify_mldsa44(public_key, wire.signature or b"", wire.signed_bytes)
    except Invalid:
        return False
    return True


def _candidates(view: View, message: Message, key_id: str | None) -> tuple[bytes, ...]:
    """The keys that may have signed. A key-id only counts where there is a key to point at."""
    if isinstance(message, CheckpointMessage):
        return (message.from_public_key,)
    actor = _row(view, signer_id(message) or "")
    if actor is None or not actor.keys:
        if isinstance(message, AddKey):
            return (message.public_key,)
        raise reject("actor_not_enrolled")
    keys = [key for key in actor.keys if key_id in (None, key.key_id)]
    if not keys:
        raise reject("unknown_key_id")
    return tuple(key.public_key for key in keys)


def find_signer(
    view: View, message: Message, wire: WireMessage, *, use_key_id: bool = False
) -> bytes | None:
    """The raw public key under which the message's signature verifies; None for a token.

    Args:
        use_key_id: honour the sender's hint, as admission must: no key but that one is tried, and
            a hint that points nowhere is refused. Replayers, who are not shown it, leave it off.

    Raises:
        MessageRejected: ``actor_not_enrolled``, ``unknown_key_id``, ``self_signed_not_allowed``,
            ``bad_signature``.
    """
    if isinstance(message, RevokeKeyThirdParty):
        return None
    for public_key in _candidates(view, message, wire.key_id if use_key_id else None):
        if _verifies(public_key, wire):
            return public_key
    if isinstance(message, AddKey) and _row(view, message.actor) and _verifies(message.public_key, wire):
        raise reject("self_signed_not_allowed")
    raise reject("bad_signature")


def _signed_by(actor: Actor, signer: bytes | None) -> None:
    if all(key.public_key != signer for key in actor.keys):
        raise reject("bad_signature")


def _is_token_revoked(view: View, hashed: bytes) -> bool:
    revoked = view.token_revoked
    return revoked(hashed) if callable(revoked) else hashed in revoked


def _cannot_return(view: View, actor: Actor | None, hashed: bytes) -> bool:
    """Whether a RevokeKey of the actor, or a token, withdrew the key for ever."""
    return (actor is not None and hashed in actor.revoked) or _is_token_revoked(view, hashed)


def _touch(actor: Actor, new: Actor, role: Role = Role.SUBJECT) -> Change:
    new = replace(new, version=actor.version + 1)
    return Change(actors=(new,), history=(HistoryLeaf(new.actor_id, role),))


def _emptied(actor: Actor, status: Status, leaf_index: int) -> Actor:
    return replace(actor, keys=(), aux=(), status=status, status_leaf=leaf_index)


def _begin(
    old: Actor | None, actor_id: str, leaf_index: int, cause: Cause, keys: tuple[Key, ...]
) -> tuple[Actor, tuple[str, ...]]:
    """A new root of trust for *actor_id*, version already counted, and who needs a salt."""
    fresh = old is None or old.status == Status.ERASED
    actor = Actor(
        actor_id=actor_id, keys=keys, aux=(), fireproof=old.fireproof if old else False,
        version=old.version + 1 if old else 1, generation=old.generation + 1 if old else 1,
        erasures=old.erasures if old else 0, cause=cause, generation_leaf=leaf_index,
        status=Status.ACTIVE, status_leaf=leaf_index, revoked=old.revoked if old else frozenset(),
    )
    return actor, (actor_id,) if fresh else ()


def _add_key(
    view: View, message: AddKey, leaf_index: int, key_id: str, signer: bytes | None, created: int
) -> Change:
    old = _row(view, message.actor)
    hashed = key_hash(message.public_key)
    if old is not None and old.keys:
        _signed_by(old, signer)
        if signer == message.public_key:
            raise reject("self_signed_not_allowed")
        if any(key.public_key == message.public_key for key in old.keys):
            raise reject("key_exists")
        if len(old.keys) >= MAX_HELD:
            raise reject("too_many_keys")
    elif signer != message.public_key:
        raise reject("bad_signature")
    if _cannot_return(view, old, hashed):
        raise reject("key_revoked")
    key = Key(message.public_key, key_id, leaf_index, created)
    if old is not None and old.keys:
        return _touch(old, replace(old, keys=(*old.keys, key)))
    cause = Cause.FIRST if old is None else _CAUSE_AFTER.get(Status(old.status))
    if cause is None:
        raise AssertionError("an active actor has no keys")
    actor, needs_salt = _begin(old, message.actor, leaf_index, cause, (key,))
    return Change((actor,), (HistoryLeaf(actor.actor_id, Role.SUBJECT),), needs_salt=needs_salt)


def _revoke_key(view: View, message: RevokeKey, signer: bytes | None) -> Change:
    actor = _enrolled(view, message.actor)
    _signed_by(actor, signer)
    remaining = tuple(key for key in actor.keys if key.public_key != message.public_key)
    if len(remaining) == len(actor.keys):
        raise reject("unknown_key")
    if not remaining:
        raise reject("last_key")
    if signer == message.public_key:
        raise reject("self_revocation")
    revoked = actor.revoked | {key_hash(message.public_key)}
    return _touch(actor, replace(actor, keys=remaining, revoked=revoked))


def _revoke_by_token(view: View, message: RevokeKeyThirdParty, leaf_index: int) -> Change:
    hashed = key_hash(message.token.public_key)
    actors, history = [], []
    for actor_id in sorted(view.holders.get(hashed, ())):
        actor = _row(view, actor_id)
        if actor is None or all(key.public_key != message.token.public_key for key in actor.keys):
            raise AssertionError("an actor is listed as holder of a key that is not active there")
        remaining = tuple(key for key in actor.keys if key.public_key != message.token.public_key)
        new = replace(actor, keys=remaining) if remaining else _emptied(actor, Status.REVOKED, leaf_index)
        actors.append(replace(new, version=actor.version + 1))
        history.append(HistoryLeaf(actor_id, Role.SUBJECT))
    if not actors:
        raise reject("unknown_token_key")
    return Change(tuple(actors), tuple(history), token_revoked=hashed)


def _move_identity(
    view: View, message: MoveIdentity, leaf_index: int, signer: bytes | None
) -> Change:
    old, target = _enrolled(view, message.old_actor), _row(view, message.new_actor)
    _signed_by(old, signer)
    if target is not None and target.keys:
        raise reject("target_has_keys")
    if any(_cannot_return(view, target, key_hash(key.public_key)) for key in old.keys):
        raise reject("key_revoked")
    new, needs_salt = _begin(target, message.new_actor, leaf_index, Cause.MOVED_IN, old.keys)
    new = replace(new, aux=old.aux, fireproof=old.fireproof, revoked=new.revoked | old.revoked)
    left = _emptied(replace(old, fireproof=False, version=old.version + 1), Status.MOVED, leaf_index)
    history = (HistoryLeaf(left.actor_id, Role.MOVED_OUT), HistoryLeaf(new.actor_id, Role.MOVED_IN))
    return Change((left, new), history, needs_salt=needs_salt)


def _burn_down(view: View, message: BurnDown, leaf_index: int, signer: bytes | None) -> Change:
    actor, operator = _enrolled(view, message.actor), _enrolled(view, message.operator)
    _signed_by(operator, signer)
    # PKD's steps skip this check when a key-id is given; that can only be a slip.
    if actor_domain(message.actor) != actor_domain(message.operator):
        raise reject("domain_mismatch")
    if actor.fireproof:
        raise reject("actor_is_fireproof")
    return _touch(actor, _emptied(actor, Status.BURNED, leaf_index))


def _set_fireproof(view: View, message: Fireproof | UndoFireproof, signer: bytes | None) -> Change:
    actor = _enrolled(view, message.actor)
    _signed_by(actor, signer)
    wanted = isinstance(message, Fireproof)
    if actor.fireproof == wanted:
        raise reject("already_fireproof" if wanted else "not_fireproof")
    return _touch(actor, replace(actor, fireproof=wanted))


def _aux_id(message: AddAuxData | RevokeAuxData) -> str:
    """The id of the data that the message means: computed where there is text, and compared."""
    if message.aux_data is None:
        if message.aux_id is None:
            raise reject("bad_request")
        return message.aux_id
    try:
        computed = aux_data_id(message.aux_type, message.aux_data)
    except EncodingError as error:
        raise reject("bad_request", error.message) from None
    if message.aux_id not in (None, computed):
        raise reject("aux_id_mismatch")
    return computed


def _add_aux(
    view: View, message: AddAuxData, leaf_index: int, signer: bytes | None, created: int
) -> Change:
    actor = _enrolled(view, message.actor)
    _signed_by(actor, signer)
    aux_id = _aux_id(message)
    if any(aux.aux_id == aux_id for aux in actor.aux):
        raise reject("aux_exists")
    if len(actor.aux) >= MAX_HELD:
        raise reject("too_many_aux")
    aux = Aux(message.aux_type, aux_id, message.aux_data, leaf_index, created)
    return _touch(actor, replace(actor, aux=(*actor.aux, aux)))


def _revoke_aux(view: View, message: RevokeAuxData, signer: bytes | None) -> Change:
    actor = _enrolled(view, message.actor)
    _signed_by(actor, signer)
    named = (message.aux_type, _aux_id(message))
    remaining = tuple(aux for aux in actor.aux if (aux.aux_type, aux.aux_id) != named)
    if len(remaining) == len(actor.aux):
        raise reject("unknown_aux")
    return _touch(actor, replace(actor, aux=remaining))


def apply(
    view: View, message: Message, leaf_index: int, key_id: str, signer: bytes | None, created: int
) -> Change:
    """What *message*, as entry *leaf_index*, changes.

    Args:
        view: rows of every actor that :func:`touched_by` names; never modified.
        key_id: for the key that an AddKey enrols (derived from the leaf index; conformance runs
            inject another).
        signer: from :func:`find_signer`. It is checked again to be entitled to sign.
        created: from :func:`created_time`.

    Raises:
        MessageRejected: a rule of the state forbids the message.

    Spec: directory map §3.
    """
    match message:
        case AddKey():
            return _add_key(view, message, leaf_index, key_id, signer, created)
        case RevokeKey():
            return _revoke_key(view, message, signer)
        case RevokeKeyThirdParty():
            return _revoke_by_token(view, message, leaf_index)
        case MoveIdentity():
            return _move_identity(view, message, leaf_index, signer)
        case BurnDown():
            return _burn_down(view, message, leaf_index, signer)
        case Fireproof() | UndoFireproof():
            return _set_fireproof(view, message, signer)
        case AddAuxData():
            return _add_aux(view, message, leaf_index, signer, created)
        case RevokeAuxData():
            return _revoke_aux(view, message, signer)
        case CheckpointMessage():
            if signer != message.from_public_key:
                raise reject("bad_signature")
            return Change()
    raise AssertionError(f"not a protocol message: {type(message).__name__}")
