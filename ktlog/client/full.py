"""The full check: every message behind a value, replayed to exactly that value. Pure.

The map's proof needs one honest verifier. This needs none for what it shows: that every listed key was put there by
a message in the log, signed by a key that was valid then, back to the message that began the generation. What it
cannot show it lists as taken: who signed a BurnDown (an operator whose history is not in the bundle), and what was
carried by a move whose old actor's history is not there, because it was erased since or lies behind another move.

Where an unseen move began an earlier generation, the replay starts at the present one: no key of it rests on what
was before.

Spec: directory map §9, step 12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from ktlog.client.page import HistoryRow
from ktlog.client.replay import CheckedRow, Map, check_row, refused
from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.keymap.bundle import Bundle, HistoryItem
from ktlog.keymap.check import Mapped
from ktlog.keymap.evidence import history_root
from ktlog.keymap.value import Value, parse_history_leaf, value_of
from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.actors import Actor, Aux, Cause, Change, Key, Role, Status, View
from ktlog.pkd.erasure import erased_actor
from ktlog.pkd.identity import actor_domain
from ktlog.pkd.keys import derive_key_id, key_hash
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
)
from ktlog.pkd.state import apply, created_time, find_signer
from ktlog.pkd.withheld import STAND_IN, Fragment, apply_fragment, without_names
from ktlog.tlog.tree import hash_leaf, verify_inclusion

_ENDED = {
    Cause.BURNED: Status.BURNED, Cause.REVOKED: Status.REVOKED, Cause.MOVED: Status.MOVED,
    Cause.MOVED_IN: Status.BURNED,
}


@dataclass(frozen=True)
class FullCheck:
    """What the full check saw. created: of the keys and data whose own message it saw, by leaf index.

    unique: the hashes by which no message is logged twice.
    """

    messages: int
    created: Mapping[int, int]
    taken: tuple[str, ...]
    unique: frozenset[bytes]


@dataclass(frozen=True)
class _Step:
    """One entry of one actor's history. moved_from: the old actor's (size, root) for role MOVED_IN."""

    item: CheckedRow
    role: int
    moved_from: tuple[int, bytes] | None

    @property
    def index(self) -> int:
        return self.item.row.leaf_index


def check_full(
    bundle: Bundle, mapped: Mapped, origin: str, leaf_keys: Mapping[bytes, bytes] | None, map_rows: Map = map,
) -> FullCheck:
    """Check the messages in a full *bundle* about a present actor, and that they lead to its value.

    Args:
        mapped: what the bundle was found to prove. origin: of the input log.
        leaf_keys: the log's, by SHA-256; None where they are not to be had (then its signature in each entry is not
            checked; that the entries are in its tree is).

    Raises:
        Invalid: ``HistoryMismatch``, ``BadEntryProof``, ``BadEntry``, ``BadLeafSignature``, ``PlaintextMismatch``,
            ``RecordWithheld``, ``BadMessageSignature``, ``BadTransition``.
    """
    value = mapped.value
    if value is None or bundle.history is None:
        raise AssertionError("only a present actor's full bundle has messages to check")
    places = _places(bundle.history, (value.history_size, value.history_root), mapped.leaf.input_size)
    moves = [place for place in places if place[2] is not None]
    if len(moves) != len(bundle.old_histories):
        raise Invalid("HistoryMismatch", f"{len(moves)} moves, and {len(bundle.old_histories)} histories of old actors")
    old_places = [
        _places(items, move[2], move[1]) if items else []
        for items, move in zip(bundle.old_histories, moves, strict=True)
    ]
    rows = _check_rows(
        [(bundle.history, places), *zip(bundle.old_histories, old_places, strict=True)], mapped, leaf_keys, map_rows
    )
    steps = _steps(places, rows)
    old = {
        move[1]: _steps(old_place, rows) for move, old_place in zip(moves, old_places, strict=True) if old_place
    }
    run = _Replay(origin, mapped, value, old)
    run.check(steps)
    created = {
        index: item.message.time for index, item in rows.items()
        if item.message.action in ("AddKey", "AddAuxData") and item.message.time is not None
    }
    unique = frozenset(item.wire.unique_hash for item in rows.values())
    return FullCheck(len(rows), created, tuple(dict.fromkeys(run.taken)), unique)


_Place = tuple[int, int, tuple[int, bytes] | None]
"""Role, leaf index, and for MOVED_IN what the old actor's history was."""


def _places(items: Sequence[HistoryItem], expected: tuple[int, bytes], limit: int) -> list[_Place]:
    """Where the entries of a history stand, after the history was found to be the one committed to."""
    leaves = [item.leaf for item in items]
    if (len(leaves), history_root(leaves)) != expected:
        raise Invalid("HistoryMismatch", f"the {len(leaves)} messages are not the {expected[0]} committed to")
    try:
        places = [parse_history_leaf(leaf) for leaf in leaves]
    except EncodingError as error:
        raise Invalid("HistoryMismatch", f"a history leaf is malformed: {error.message}") from None
    before = -1
    for _, index, _ in places:
        if not before < index < limit:
            raise Invalid("HistoryMismatch", "the history is not in the order of the log, or beyond its end")
        before = index
    return places


def _check_rows(
    histories: Iterable[tuple[Sequence[HistoryItem], Sequence[_Place]]], mapped: Mapped,
    leaf_keys: Mapping[bytes, bytes] | None, map_rows: Map,
) -> dict[int, CheckedRow]:
    """Every entry of every history, each checked once by itself."""
    rows: dict[int, HistoryRow] = {}
    for items, places in histories:
        for item, (role, index, _) in zip(items, places, strict=True):
            row = HistoryRow(index, role, item.entry, item.preimage, item.plain, item.path)
            known = rows.setdefault(index, row)
            if (known.entry, known.preimage, known.plain) != (row.entry, row.preimage, row.plain):
                raise Invalid("BadEntry", f"entry {index} is shown in two ways")
    leaf = mapped.leaf
    # What is cheap comes first and for all, so that a false answer costs no Argon2id.
    for index, row in rows.items():
        try:
            verify_inclusion(hash_leaf(row.entry), index, leaf.input_size, row.proof or (), leaf.input_root)
        except Invalid as error:
            raise Invalid("BadEntryProof", f"entry {index} is not in the log: {error.message}") from None
    checked = {item.row.leaf_index: item for item in map_rows(lambda row: check_row(row, leaf_keys), rows.values())}
    if len({item.wire.unique_hash for item in checked.values()}) != len(checked):
        raise Invalid("BadEntry", "a message is logged twice")
    if len({item.dialect_name for item in checked.values()}) > 1:
        raise Invalid("BadEntry", "the log mixes entries of different dialects")
    return checked


def _steps(places: Iterable[_Place], rows: Mapping[int, CheckedRow]) -> list[_Step]:
    return [_Step(rows[index], role, moved_from) for role, index, moved_from in places]


@dataclass
class _Replay:
    """The replay in progress. old: the steps of an old actor before it moved here, by the move's leaf index."""

    origin: str
    mapped: Mapped
    value: Value
    old: Mapping[int, Sequence[_Step]]
    taken: list[str] = field(default_factory=list)

    def check(self, steps: Sequence[_Step]) -> None:
        """Replay *steps* and compare what they lead to with the value."""
        value = self.value
        start, prior = self._start(steps)
        unseen = any(step.moved_from is not None and not self._is_seen(step) for step in steps[start:])
        if unseen and value.status != Status.ACTIVE:
            self.taken.append(
                "how the actor came to have no keys: it follows a move whose old history is not shown"
            )
            return
        actor = prior
        tokens: set[bytes] = set()
        greatest = 0
        for step in steps[start:]:
            source = self._source(step, steps) if step.role == Role.MOVED_IN else None
            actor, greatest = self._apply(value.actor_id, step, actor, source, tokens, greatest)
        if actor is None:
            raise AssertionError("a history that is not empty leads to a state")
        self._compare(actor, exact=prior is None)

    def _is_seen(self, step: _Step) -> bool:
        """Whether the old actor's history is shown, and rests on no move that is not."""
        return step.index in self.old and all(one.moved_from is None for one in self.old[step.index])

    def _start(self, steps: Sequence[_Step]) -> tuple[int, Actor | None]:
        """Which step to begin with, and the actor just before it."""
        value, size = self.value, len(steps)
        hidden = [
            step.index for step in steps
            if step.moved_from is not None and not self._is_seen(step) and step.index < value.generation_leaf
        ]
        if not hidden:
            if not value.erasures:
                return 0, None
            return 0, erased_actor(value.actor_id, value.version - size, 0, value.erasures)
        start = next((at for at, step in enumerate(steps) if step.index == value.generation_leaf), None)
        if start is None or value.cause not in _ENDED:
            raise Invalid("BadTransition", "the value's generation did not begin where it says")
        self.taken.append(f"what happened before entry {value.generation_leaf}, where the present keys begin")
        return start, Actor(
            value.actor_id, (), (), self._fireproof_before(steps[start:]), value.version - (size - start), 0,
            value.erasures, Cause.FIRST, 0, _ENDED[Cause(value.cause)], 0, frozenset(),
        )

    def _fireproof_before(self, steps: Sequence[_Step]) -> bool:
        """Whether the actor was Fireproof before *steps*, judged by what they did to it."""
        for step in steps:
            if isinstance(step.item.message, Fireproof | UndoFireproof):
                return isinstance(step.item.message, UndoFireproof)
        return self.value.fireproof

    # Moves

    def _source(self, step: _Step, steps: Sequence[_Step]) -> Actor:
        """The old actor just before it moved here."""
        name = _old_actor(step.item)
        if self._is_seen(step):
            actor: Actor | None = None
            tokens: set[bytes] = set()
            greatest = 0
            for one in self.old[step.index]:
                actor, greatest = self._apply(name, one, actor, None, tokens, greatest)
            if actor is None:
                raise AssertionError("a history that is shown is not empty")
            return actor
        who = "an actor erased since" if name == STAND_IN else name
        self.taken.append(f"entry {step.index} moved these keys from {who}, whose history is not shown")
        later = [one for one in steps if one.index > step.index]
        return Actor(
            name, self._carried_keys(step.index, later), self._carried_aux(step.index, later),
            self._fireproof_before(later), 1, 1, 0, Cause.FIRST, 0, Status.ACTIVE, 0, frozenset(),
        )

    def _carried_keys(self, move: int, later: Sequence[_Step]) -> tuple[Key, ...]:
        """What an unseen old actor must have had: older keys that are listed, and those that later steps revoke."""
        listed = [
            Key(key.public_key, key.key_id, key.leaf_index, 0) for key in self.mapped.keys if key.leaf_index < move
        ]
        known = {key.public_key for key in listed}
        gone: dict[bytes, None] = {}
        for step in later:
            match step.item.message:
                case AddKey(public_key=public_key):
                    known.add(public_key)
                case RevokeKey(public_key=public_key):
                    gone.setdefault(public_key)
                case RevokeKeyThirdParty(token=token):
                    gone.setdefault(token.public_key)
        lost = [public_key for public_key in gone if public_key not in known]
        placeholders = [Key(public_key, "", at - len(lost), 0) for at, public_key in enumerate(lost)]
        return (*placeholders, *listed)

    def _carried_aux(self, move: int, later: Sequence[_Step]) -> tuple[Aux, ...]:
        listed = [
            Aux(aux.aux_type, aux.aux_id, aux.aux_data, aux.leaf_index, 0)
            for aux in self.mapped.aux if aux.leaf_index < move
        ]
        known = {(aux.aux_type, aux.aux_id) for aux in listed}
        gone: dict[tuple[str, str], None] = {}
        for step in later:
            match step.item.message:
                case RevokeAuxData(aux_type=aux_type, aux_data=text, aux_id=aux_id):
                    gone.setdefault((aux_type, aux_id or "" if text is None else _aux_id(aux_type, text)))
                case AddAuxData(aux_type=aux_type, aux_data=text):
                    known.add((aux_type, _aux_id(aux_type, text)))
        lost = [one for one in gone if one not in known]
        placeholders = [Aux(kind, aux_id, None, at - len(lost), 0) for at, (kind, aux_id) in enumerate(lost)]
        return (*placeholders, *listed)

    # One entry

    def _apply(
        self, name: str, step: _Step, actor: Actor | None, source: Actor | None, tokens: set[bytes], greatest: int
    ) -> tuple[Actor, int]:
        """The actor *name* after one entry of its history, and the greatest time so far."""
        message, index = step.item.message, step.index
        try:
            if isinstance(message, Fragment):
                change, time = self._fragment(name, step, message, actor, source, tokens), message.time
            else:
                time = created_time(message, greatest)
                change = self._whole(name, step, actor, source, tokens, time)
        except MessageRejected as error:
            raise refused(index, message.action, error) from error
        roles = {leaf.actor_id: int(leaf.role) for leaf in change.history}
        new = next((one for one in change.actors if one.actor_id == name), None)
        if new is None or roles.get(name) != step.role:
            raise Invalid("BadTransition", f"entry {index} does not do to {name} what its history says")
        if change.token_revoked is not None:
            tokens.add(change.token_revoked)
        return new, max(greatest, time)

    def _whole(
        self, name: str, step: _Step, actor: Actor | None, source: Actor | None, tokens: set[bytes], created: int
    ) -> Change:
        item, message, index = step.item, step.item.message, step.index
        rows: dict[str, Actor | None] = {name: actor}
        holders: dict[bytes, tuple[str, ...]] = {}
        match message:
            case BurnDown(actor=burned, operator=operator) if operator != name:
                if burned == name and actor_domain(burned) != actor_domain(operator):
                    raise Invalid("BadTransition", f"entry {index}: the operator is of another domain")
                return self._fragment(name, step, without_names(message, {operator}), actor, None, tokens)
            case MoveIdentity(old_actor=old, new_actor=new):
                rows = {old: source if step.role == Role.MOVED_IN else actor, new: None}
                if step.role == Role.MOVED_IN:
                    rows[new] = actor
            case RevokeKeyThirdParty(token=token):
                if actor is not None and any(key.public_key == token.public_key for key in actor.keys):
                    holders = {key_hash(token.public_key): (name,)}
            case _:
                if getattr(message, "actor", None) != name:
                    raise Invalid("BadTransition", f"entry {index} is not about {name}")
        view = View(rows, tokens, holders)
        signer = find_signer(view, message, item.wire)
        return apply(view, message, index, derive_key_id(self.origin, index), signer, created)

    def _fragment(
        self, name: str, step: _Step, fragment: Fragment, actor: Actor | None, source: Actor | None,
        tokens: set[bytes],
    ) -> Change:
        if name not in fragment.names.values():
            raise Invalid("BadTransition", f"entry {step.index} is not about {name}")
        if fragment.action == BurnDown.action and fragment.names["operator"] is None:
            self.taken.append(f"entry {step.index} burned {name} down on an operator's word whose keys are not shown")
        mover = None
        if fragment.action == MoveIdentity.action and fragment.names["old-actor"] is None:
            if source is None:
                raise Invalid("BadTransition", f"entry {step.index} is a MoveIdentity, and is listed as something else")
            mover = source
        return apply_fragment(
            fragment, step.item.wire, step.index, derive_key_id(self.origin, step.index),
            lambda one: actor if one == name else None, mover, tokens,
        ).change

    def _compare(self, actor: Actor, *, exact: bool) -> None:
        """Check that *actor* is what the value says; only a replay from the very beginning counts generations."""
        value = self.value
        if not exact:
            offset = value.generation - actor.generation
            if offset < 1:
                raise Invalid("BadTransition", "the value counts fewer generations than its messages began")
            actor = replace(actor, generation=value.generation)
        found = value_of(actor, value.history_size, value.history_root)
        if found != value:
            wrong = [name for name in Value.__slots__ if getattr(found, name) != getattr(value, name)]
            raise Invalid("BadTransition", f"the messages lead to another value: {', '.join(wrong)} differ")


def _aux_id(aux_type: str, text: str) -> str:
    try:
        return aux_data_id(aux_type, text)
    except EncodingError as error:
        raise Invalid("BadEntry", f"auxiliary data have no id: {error.message}") from None


def _old_actor(item: CheckedRow) -> str:
    match item.message:
        case MoveIdentity(old_actor=old):
            return old
        case Fragment(action=MoveIdentity.action, names=names):
            return names["old-actor"] or STAND_IN
    raise Invalid("BadTransition", f"entry {item.row.leaf_index} is no MoveIdentity, and is listed as one")
