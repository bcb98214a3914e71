"""What a logged message still does when some of its plaintext is withheld.

An erasure leaves the entry, the preimage and the time, and takes names and keys. Whoever replays
afterwards puts a stand-in where a name is missing and uses the one transition function; the
stand-in is never told about. Two effects on others remain, and rest on what the erasure record
says or on the word of those who saw the text: a MoveIdentity from an erased actor, and a BurnDown
by an erased operator. The signature of the first is still checked, because the keys that it
carried stay readable; that of the second cannot be. Pure.

Spec: directory map §5, last paragraph.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, replace

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.pkd.actions import (
    AddAuxData,
    AddKey,
    BurnDown,
    MoveIdentity,
    RevokeKeyThirdParty,
    aux_data_id,
)
from ktlog.pkd.actors import Actor, Aux, Cause, Change, Key, Status, View
from ktlog.pkd.erasure import NAMING, CarriedMove
from ktlog.pkd.identity import actor_domain, check_actor_id
from ktlog.pkd.keys import PUBLIC_KEY_BYTES, decode_public_key, key_hash
from ktlog.pkd.messages import WireMessage
from ktlog.pkd.rejections import reject
from ktlog.pkd.state import apply, find_signer

# No actor id: it is no URL, so it can never be the name of anybody.
STAND_IN = "withheld:"
_NO_KEY = bytes(PUBLIC_KEY_BYTES)

Held = Key | Aux


@dataclass(frozen=True, slots=True)
class Fragment:
    """A message some of whose attributes are withheld; None stands for one that is."""

    action: str
    time: int
    names: Mapping[str, str | None]
    """The attributes that hold actor ids."""
    public_key: bytes | None = None
    aux: tuple[str, str, str] | None = None
    """Type, text and id of auxiliary data that are still readable."""

    def changes_others(self) -> bool:
        """Whether it has an effect on an actor that can be read, and rests on one that cannot."""
        match self.action:
            case MoveIdentity.action:
                return self.names["old-actor"] is None and self.names["new-actor"] is not None
            case BurnDown.action:
                return self.names["operator"] is None and self.names["actor"] is not None
        return False


@dataclass(frozen=True, slots=True)
class FragmentChange:
    """What a fragment does: to actors that can be read, and which keys and data left their sight."""

    change: Change
    limbo: tuple[Held, ...] = ()
    """Keys and auxiliary data that an erased actor has from here on."""
    signer: bytes | None = None
    """Who signed, where that could still be checked."""


def read_fragment(wire: WireMessage, plain: Mapping[str, str | None]) -> Fragment:
    """Read what is left of a message: *wire* and *plain* as ``message_from_plain`` took them.

    Raises:
        Invalid: ``RecordWithheld`` when no erasure takes just these attributes; ``BadEntry`` when
            one that is left is malformed.
    """
    withheld = {name for name, text in plain.items() if text is None}
    if wire.action not in (MoveIdentity.action, BurnDown.action):
        # A key or datum can outlive its owner's name. It never goes alone, nor does the name of a revocation.
        spared = set(plain) - withheld
        may_spare = {AddKey.action: {"public-key"}, AddAuxData.action: {"aux-data"}}.get(wire.action, set())
        if not spared <= may_spare:
            raise Invalid("RecordWithheld", f"no erasure withholds just {', '.join(sorted(withheld))} of {wire.action}")
    if not withheld or wire.time is None:
        raise AssertionError("nothing is withheld of this message")
    try:
        names = {name: _name(text) for name, text in plain.items() if name in NAMING}
        key = plain.get("public-key")
        public_key = None if key is None else decode_public_key(key)
        return Fragment(wire.action, wire.time, names, public_key, _aux(wire, plain.get("aux-data")))
    except (MessageRejected, EncodingError) as error:
        raise Invalid("BadEntry", f"what is left of the message is malformed: {error.message}") from None


def _name(text: str | None) -> str | None:
    return None if text is None else check_actor_id(text)


def _aux(wire: WireMessage, text: str | None) -> tuple[str, str, str] | None:
    if text is None:
        return None
    aux_type, claimed = wire.body["aux-type"], wire.body.get("aux-id")
    aux_id = aux_data_id(aux_type, text)
    if claimed not in (None, aux_id):
        raise reject("aux_id_mismatch")
    return aux_type, text, aux_id


def without_names(message: BurnDown, hidden: Container[str]) -> Fragment:
    """A BurnDown, in a dialect that does not encrypt it, some of whose actors were erased since."""
    names = {"actor": message.actor, "operator": message.operator}
    return Fragment(
        message.action, message.time, {name: None if text in hidden else text for name, text in names.items()}
    )


def stand_in_for(move: CarriedMove, limbo: Mapping[int, Held], token_revoked: Container[bytes]) -> Actor:
    """The erased actor as it was when it moved away, as far as the move shows it.

    Args:
        limbo: what erased actors may have had then, by leaf index.

    Raises:
        Invalid: ``BadErasure`` when the record says that something was carried that no erased actor had.
    """
    held = [limbo.get(leaf) for leaf in move.leaves]
    if None in held:
        raise Invalid("BadErasure", f"the move at entry {move.move_leaf} cannot have carried what its erasure says")
    keys = tuple(item for item in held if isinstance(item, Key))
    aux = tuple(item for item in held if isinstance(item, Aux))
    hashes = [key_hash(key.public_key) for key in keys]
    if not keys or len(set(hashes)) < len(hashes) or any(hashed in token_revoked for hashed in hashes):
        raise Invalid("BadErasure", f"the keys that the move at entry {move.move_leaf} carried were no actor's")
    return Actor(
        STAND_IN, keys, aux, move.fireproof, version=1, generation=1, erasures=0, cause=Cause.FIRST,
        generation_leaf=0, status=Status.ACTIVE, status_leaf=0, revoked=frozenset(),
    )


def apply_fragment(
    fragment: Fragment, wire: WireMessage, leaf_index: int, key_id: str,
    actor_of: Callable[[str], Actor | None], mover: Actor | None, token_revoked: Container[bytes],
) -> FragmentChange:
    """What entry *leaf_index* does to the actors that can still be read.

    Args:
        key_id: for the key of an AddKey.
        actor_of: the row of an actor that the fragment names.
        mover: from :func:`stand_in_for`, when it is a MoveIdentity from an erased actor to one who
            is not; else None.

    Raises:
        MessageRejected: what is left of the message breaks a rule of the state.
    """
    match fragment.action:
        case MoveIdentity.action:
            return _move(fragment, wire, leaf_index, actor_of, mover)
        case BurnDown.action:
            return _burn_down(fragment, wire, leaf_index, actor_of)
        case AddKey.action if fragment.public_key is not None:
            if key_hash(fragment.public_key) in token_revoked:
                raise reject("key_revoked")
            return FragmentChange(Change(), (Key(fragment.public_key, key_id, leaf_index, fragment.time),))
        case AddAuxData.action if fragment.aux is not None:
            aux_type, text, aux_id = fragment.aux
            return FragmentChange(Change(), (Aux(aux_type, aux_id, text, leaf_index, fragment.time),))
    return FragmentChange(Change())


def _move(
    fragment: Fragment, wire: WireMessage, leaf_index: int, actor_of: Callable[[str], Actor | None],
    mover: Actor | None,
) -> FragmentChange:
    old, new = fragment.names["old-actor"], fragment.names["new-actor"]
    if old is None and new is None:
        return FragmentChange(Change())
    if old is None and mover is None:
        raise AssertionError("nobody said what this move carried")
    rows = {name: actor_of(name) for name in (old, new) if name is not None}
    rows[STAND_IN] = mover if old is None else None
    message = MoveIdentity(old or STAND_IN, new or STAND_IN, fragment.time)
    view = View(rows, frozenset(), {})
    signer = find_signer(view, message, wire)
    change = apply(view, message, leaf_index, "", signer, fragment.time)
    (stand_in,) = (actor for actor in change.actors if actor.actor_id == STAND_IN)
    return FragmentChange(_without_stand_in(change), (*stand_in.keys, *stand_in.aux), signer)


def _burn_down(
    fragment: Fragment, wire: WireMessage, leaf_index: int, actor_of: Callable[[str], Actor | None]
) -> FragmentChange:
    name, operator = fragment.names["actor"], fragment.names["operator"]
    if name is not None:
        # That the operator was of the same domain and signed is taken on the word of those who saw it.
        domain = actor_domain(name)
        stand_in = next(f"https://{domain}/{path}" for path in ("", "-") if f"https://{domain}/{path}" != name)
        row = Actor(
            stand_in, (Key(_NO_KEY, "", 0, 0),), (), False, version=1, generation=1, erasures=0, cause=Cause.FIRST,
            generation_leaf=0, status=Status.ACTIVE, status_leaf=0, revoked=frozenset(),
        )
        view = View({name: actor_of(name), stand_in: row}, frozenset(), {})
        return FragmentChange(
            apply(view, BurnDown(name, stand_in, fragment.time), leaf_index, "", _NO_KEY, fragment.time)
        )
    if operator is None:
        return FragmentChange(Change())
    view = View({operator: actor_of(operator)}, frozenset(), {})
    return FragmentChange(Change(), signer=find_signer(view, BurnDown(STAND_IN, operator, fragment.time), wire))


def _without_stand_in(change: Change) -> Change:
    return replace(
        change, actors=tuple(actor for actor in change.actors if actor.actor_id != STAND_IN),
        history=tuple(leaf for leaf in change.history if leaf.actor_id != STAND_IN),
        needs_salt=tuple(name for name in change.needs_salt if name != STAND_IN),
    )


def revoke_unseen(message: RevokeKeyThirdParty) -> Change:
    """The effect of a token for a key that only an erased actor had: it can never come back."""
    return Change(token_revoked=key_hash(message.token.public_key))
