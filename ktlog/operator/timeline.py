"""What an actor held, and until when: read from the records of its history.

The sequencer checked every message before it stored it, so nothing is verified again here, and a
BurnDown counts although its operator was erased since. Whoever does not believe the operator
replays the entries (``ktlog.pkd.replay``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from ktlog.errors import EncodingError, MessageRejected, StoreError
from ktlog.pkd.actions import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
    aux_data_id,
)
from ktlog.pkd.actors import Aux, Key, Role
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.keys import decode_public_key, derive_key_id
from ktlog.pkd.messages import WireMessage, parse_wire
from ktlog.store.contracts import LogStore, Record

# What changes neither keys nor auxiliary data. Who toggles it without end makes nobody read these entries.
IDLE = frozenset({Fireproof.action, UndoFireproof.action})
# What takes nothing away: what was held before such an entry is what is held after it, less what it brought.
ADDING = IDLE | {AddKey.action, AddAuxData.action}
_ABOUT_AUX = frozenset({AddAuxData.action, RevokeAuxData.action})


@dataclass(frozen=True)
class End:
    """The entry that took a key or auxiliary data away. root: of the tree that this entry completes."""

    leaf_index: int
    action: str
    created: int
    root: bytes


@dataclass(frozen=True)
class Spell:
    """One key, or one piece of auxiliary data, at one actor. ``end`` is None while it is active."""

    item: Key | Aux
    end: End | None = None


@dataclass
class Ledger:
    """What one actor holds and held, by key id and by aux id; of several spells the latest."""

    keys: dict[str, Spell] = field(default_factory=dict)
    aux: dict[str, Spell] = field(default_factory=dict)

    def active_keys(self) -> tuple[Key, ...]:
        """By leaf index, as the directory keeps them."""
        return _active(self.keys.values())

    def active_aux(self) -> tuple[Aux, ...]:
        return _active(self.aux.values())


@dataclass(frozen=True)
class _Entry:
    """One record, parsed; ``text`` has every member of the message that is not withheld."""

    record: Record
    wire: WireMessage
    text: dict[str, str]

    def member(self, name: str) -> str:
        text = self.text.get(name)
        if text is None:
            raise StoreError("Withheld", f"the {name} of entry {self.record.leaf_index} was erased")
        return text


class Timeline:
    """Reads the ledgers of one log. Use it inside a snapshot of the store."""

    def __init__(self, store: LogStore, dialect: Dialect) -> None:
        self._store = store
        self._dialect = dialect

    def ledger(self, actor_id: str, tree_size: int, *, with_aux: bool = True) -> Ledger:
        """The ledger of *actor_id* after the first *tree_size* entries; empty if none of them touched it.

        Each needed entry is read once, however often identities moved back and forth. Without *with_aux*
        fewer are read, and the ledger has no auxiliary data.

        Raises:
            StoreError: ``CorruptHistory``, ``Withheld``, and those of the store.
        """
        entries, steps = self._steps_behind(actor_id, tree_size, IDLE if with_aux else IDLE | _ABOUT_AUX)
        ledgers: dict[str, Ledger] = {}
        # At one leaf a MOVED_IN comes before the MOVED_OUT that empties whom it takes from.
        for leaf_index, role, name in sorted(steps, key=lambda step: (step[0], -step[1])):
            self._step(entries[leaf_index], role, name, ledgers)
        return ledgers.get(actor_id, Ledger())

    def may_have_key(self, actor_id: str, tree_size: int, key_id: str) -> bool:
        """Whether the actor has or had a key of this id; for a few ids True although it has not.

        Reads no record: a stranger may ask for any number of ids that are none.
        """
        leaves = self._brought(actor_id, tree_size, AddKey.action)
        return leaves is None or any(derive_key_id(self._store.origin, leaf) == key_id for leaf in leaves)

    def may_have_aux(self, actor_id: str, tree_size: int, aux_id: str) -> bool:
        """Whether the actor has or had auxiliary data of this id; sometimes True although it has not.

        An id comes from the text, so the entries that added one are read, and no other.
        """
        leaves = self._brought(actor_id, tree_size, AddAuxData.action)
        return leaves is None or any(self._may_add(leaf, aux_id) for leaf in leaves)

    def _may_add(self, leaf_index: int, aux_id: str) -> bool:
        entry = self._entry(leaf_index)
        if entry.record.action != AddAuxData.action:
            return False
        # What was withheld may be anything.
        return not {"aux-type", "aux-data"} <= entry.text.keys() or _aux_id(entry) == aux_id

    def _brought(self, actor_id: str, tree_size: int, action: str) -> list[int] | None:
        """The *action* entries of the actor, and all entries that moves carried here; None if that is not known."""
        leaves: list[int] = []
        for leaf_index, role, what in self._store.touches(actor_id):
            if leaf_index >= tree_size:
                break
            if what == action:
                leaves.append(leaf_index)
            elif role == Role.MOVED_IN:
                move = self._store.carried(leaf_index)
                if move is None:
                    return None
                leaves += move.leaves
        return leaves

    def _steps_behind(
        self, actor_id: str, tree_size: int, skipped: frozenset[str]
    ) -> tuple[dict[int, _Entry], set[tuple[int, int, str]]]:
        """The entries that the ledger rests on, but for *skipped* actions, and (leaf index, role, actor) of each step.
        """
        entries: dict[int, _Entry] = {}
        steps: set[tuple[int, int, str]] = set()
        until: dict[str, int] = {}
        waiting = [(actor_id, tree_size)]
        while waiting:
            name, limit = waiting.pop()
            start = until.get(name, 0)
            if limit <= start:
                continue
            until[name] = limit
            for leaf_index, role, action in self._store.touches(name, start - 1):
                if leaf_index >= limit:
                    break
                if action in skipped:
                    continue
                entry = entries[leaf_index] = entries.get(leaf_index) or self._entry(leaf_index)
                steps.add((leaf_index, role, name))
                if role == Role.MOVED_IN and (old := entry.text.get("old-actor")) is not None:
                    waiting.append((old, leaf_index))
        return entries, steps

    def _entry(self, leaf_index: int) -> _Entry:
        record = self._store.records(leaf_index, leaf_index + 1)[0]
        try:
            wire = parse_wire(self._dialect, record.preimage)
        except MessageRejected as error:
            raise StoreError("CorruptHistory", f"entry {leaf_index} is no message: {error}") from None
        text = {name: value for name, value in wire.body.items() if name not in record.plain}
        text |= {name: value for name, value in record.plain.items() if value is not None}
        return _Entry(record, wire, text)

    def _step(self, entry: _Entry, role: int, name: str, ledgers: dict[str, Ledger]) -> None:
        record = entry.record
        ledger = ledgers.setdefault(name, Ledger())
        end = End(record.leaf_index, record.action, record.created, record.root)
        _check_about(entry, role, name)
        try:
            match record.action:
                case AddKey.action:
                    key = self._key(entry)
                    ledger.keys[key.key_id] = Spell(key)
                case RevokeKey.action:
                    _close(ledger.keys, end, public_key=decode_public_key(entry.member("public-key")))
                case RevokeKeyThirdParty.action if entry.wire.token is not None:
                    _close(ledger.keys, end, public_key=entry.wire.token.public_key)
                    if not ledger.active_keys():
                        _close(ledger.aux, end)
                case AddAuxData.action:
                    aux = _aux(entry)
                    ledger.aux[aux.aux_id] = Spell(aux)
                case RevokeAuxData.action:
                    _close(ledger.aux, end, aux_id=_aux_id(entry))
                case MoveIdentity.action if role == Role.MOVED_IN:
                    self._carry(entry, name, ledger, ledgers)
                case MoveIdentity.action | BurnDown.action:
                    _close(ledger.keys, end)
                    _close(ledger.aux, end)
        except EncodingError as error:
            raise StoreError("CorruptHistory", f"entry {record.leaf_index}: {error}") from None

    def _carry(self, entry: _Entry, name: str, ledger: Ledger, ledgers: dict[str, Ledger]) -> None:
        """What a MoveIdentity brings to *name*: all that was active where it comes from."""
        old = entry.text.get("old-actor")
        if old is None:
            carried = list(self._carried(entry.record.leaf_index))
        else:
            source = ledgers.get(old)
            if source is None:
                raise StoreError("CorruptHistory", f"entry {entry.record.leaf_index} moves an actor without keys")
            carried = [*source.active_keys(), *source.active_aux()]
        for item in carried:
            if isinstance(item, Key):
                ledger.keys[item.key_id] = Spell(item)
            else:
                ledger.aux[item.aux_id] = Spell(item)

    def _carried(self, move_leaf: int) -> Iterator[Key | Aux]:
        """What a move from an actor who was erased since brought along: an erasure record says which entries."""
        erasures = self._store.erasures(0, self._store.erasure_count())
        moves = (move for erasure in erasures for move in erasure.carried if move.move_leaf == move_leaf)
        move = next(moves, None)
        if move is None:
            raise StoreError("CorruptHistory", f"no erasure record tells what entry {move_leaf} moved")
        for leaf_index in move.leaves:
            entry = self._entry(leaf_index)
            yield self._key(entry) if entry.record.action == AddKey.action else _aux(entry)

    def _key(self, entry: _Entry) -> Key:
        leaf_index = entry.record.leaf_index
        public_key = decode_public_key(entry.member("public-key"))
        return Key(public_key, derive_key_id(self._store.origin, leaf_index), leaf_index, entry.record.created)


def _active(spells: Iterable[Spell]) -> tuple:
    return tuple(sorted((spell.item for spell in spells if spell.end is None), key=lambda item: item.leaf_index))


def _close(spells: dict[str, Spell], end: End, **wanted: object) -> None:
    """End every active spell whose item has the attributes *wanted*; all of them without any."""
    named = [
        name for name, spell in spells.items()
        if spell.end is None and all(getattr(spell.item, key) == value for key, value in wanted.items())
    ]
    if wanted and not named:
        raise StoreError("CorruptHistory", f"entry {end.leaf_index} takes away what was not there")
    spells.update({name: replace(spells[name], end=end) for name in named})


def _check_about(entry: _Entry, role: int, name: str) -> None:
    """Refuse a history that lists an entry about somebody else. A token names nobody."""
    member = {Role.MOVED_OUT: "old-actor", Role.MOVED_IN: "new-actor"}.get(Role(role), "actor")
    if entry.record.action != RevokeKeyThirdParty.action and entry.text.get(member) != name:
        raise StoreError("CorruptHistory", f"entry {entry.record.leaf_index} is in the history of somebody else")


def _aux_id(entry: _Entry) -> str:
    if "aux-id" in entry.text:
        return entry.text["aux-id"]
    return aux_data_id(entry.member("aux-type"), entry.member("aux-data"))


def _aux(entry: _Entry) -> Aux:
    """The auxiliary data of an AddAuxData, under the id that its type and text give it."""
    aux_type, text = entry.member("aux-type"), entry.member("aux-data")
    return Aux(aux_type, aux_data_id(aux_type, text), text, entry.record.leaf_index, entry.record.created)
