"""The directory's rules as the verifier reads them: what one entry does, and what a ledger of actors makes of it.

Written from the specifications, beside :mod:`witness.derivation`; one method for each kind of message. Pure.

Spec: directory map §3 and §5; PKD "Protocol Messages", "Special Protocol Messages".
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import TypeVar

from ktlog.errors import Invalid
from ktlog.pkd.actions import aux_data_id
from ktlog.pkd.erasure import CarriedMove, ErasureRecord
from ktlog.pkd.keys import decode_public_key, key_hash, verify_mldsa44
from ktlog.pkd.messages import WireMessage
from ktlog.pkd.pae import pae
from witness.maptree import (
    Added,
    BurnedDown,
    Came,
    Datum,
    Disclosed,
    Event,
    Guarded,
    Key,
    Left,
    Strand,
    Withdrawn,
)

MAX_HELD = 65535
"""Keys of one actor, and data of one actor: the value counts either with 16 bits."""
SALT_BYTES = 32

_Item = TypeVar("_Item", Key, Datum)


class RuleBroken(Invalid):
    """Why an entry changes nothing."""


@dataclass(slots=True)
class Said:
    """What can be read of an entry. A name is None when an erasure took it."""

    leaf_index: int
    wire: WireMessage
    names: dict[str, str | None]
    key: bytes | None = None
    datum: tuple[str, str] | None = None
    """Type and id."""


@dataclass(slots=True)
class Effects:
    """What an entry does, all of it or nothing."""

    events: list[tuple[bytes, Event]] = field(default_factory=list)
    salted: dict[bytes, tuple[str, bytes]] = field(default_factory=dict)
    """Name and salt of each index that gets a value."""
    raw: bytes = b""
    """Of the key that is added."""
    dead: frozenset[bytes] = frozenset()
    """Hashes of keys that a token revokes."""
    hide: list[tuple[Key | Datum, bytes]] = field(default_factory=list)
    """Keys and data that somebody erased has from here on, keys with their raw bytes."""
    unseen_key: bool = False
    unhide: tuple[int, ...] = ()
    taken: str = ""


class Ledger:
    """Everybody in the directory, by map index.

    Args:
        records: every erasure, for who comes late.
        keys: raw keys by hash; those that somebody has stay in it.
    """

    def __init__(
        self, origin: str, records: Sequence[ErasureRecord], keys: MutableMapping[bytes, bytes]
    ) -> None:
        self.strands: dict[bytes, Strand] = {}
        self._last_erasure = max((record.input_size for record in records), default=0)
        self._origin = origin
        self._carried = {move.move_leaf: move for record in records for move in record.carried}
        self._holders: dict[bytes, set[bytes]] = {}
        self._raw = keys
        self._dead: set[bytes] = set()
        self._hidden: dict[int, tuple[Key | Datum, bytes]] = {}
        self._unseen_key = False

    def judge(self, said: Said, salts: Mapping[str, bytes]) -> Effects:
        """What an entry does, by the rules of its kind.

        Raises:
            RuleBroken: it does nothing.
            Invalid: ``BadSalt``, ``BadErasure``: what is published about it cannot be.
        """
        effects = self._RULES[said.wire.action](self, said)
        needed = {}
        for index, event in effects.events:
            strand = self.strands.get(index)
            if strand is None or not strand.has_value:
                needed["new-actor" if isinstance(event, Came) else "actor"] = index
        if salts.keys() != needed.keys() or any(len(salt) != SALT_BYTES for salt in salts.values()):
            raise Invalid("BadSalt", f"entry {said.leaf_index} needs salts for {sorted(needed) or 'nobody'}")
        for name, index in needed.items():
            actor_id = said.names[name]
            if actor_id is None:
                raise AssertionError("who cannot be named gets no value")
            effects.salted[index] = (actor_id, salts[name])
        return effects

    def _add_key(self, said: Said) -> Effects:
        at, name = said.leaf_index, said.names["actor"]
        if said.key is None:
            return Effects(unseen_key=True)
        key = Key(at, said.wire.time or 0, key_hash(said.key))
        strand = Strand(b"") if name is None else self._strand(name)
        self._check_not_barred(strand, (key,))
        if name is None:
            return Effects(hide=[(key, said.key)])
        if key.key_hash in strand.keys:
            raise RuleBroken("BadTransition", "the key is active")
        if len(strand.keys) >= MAX_HELD:
            raise RuleBroken("BadTransition", "the actor has as many keys as there can be")
        self._check_signed(said, [self._raw[one] for one in strand.keys] or [said.key])
        return Effects([(strand.index, Added(at, key))], raw=said.key)

    def _revoke_key(self, said: Said) -> Effects:
        if said.names["actor"] is None or said.key is None:
            return Effects()
        strand, hashed = self._active(said.names["actor"]), key_hash(said.key)
        if hashed not in strand.keys:
            raise RuleBroken("BadTransition", "the key is not the actor's")
        others = [self._raw[one] for one in strand.keys if one != hashed]
        if not others:
            raise RuleBroken("BadTransition", "the actor's last key")
        self._check_signed(said, others)
        return Effects([(strand.index, Withdrawn(said.leaf_index, hashed))])

    def _revoke_by_token(self, said: Said) -> Effects:
        if said.wire.token is None:
            raise AssertionError("a token was parsed with its signature")
        hashed = key_hash(said.wire.token.public_key)
        holders = sorted(self._holders.get(hashed, ()))
        effects = Effects([(index, Disclosed(said.leaf_index, hashed)) for index in holders], dead=frozenset({hashed}))
        if not holders:
            hidden = any(isinstance(item, Key) and item.key_hash == hashed for item, _ in self._hidden.values())
            # Nothing else can be known of a key whose holder was erased later.
            if not (hidden or self._unseen_key) or self._last_erasure <= said.leaf_index:
                raise RuleBroken("BadTransition", "nobody has the key")
            effects.taken = "a token for a key that only somebody erased can have had"
        return effects

    def _move(self, said: Said) -> Effects:
        at, old_name, new_name = said.leaf_index, said.names["old-actor"], said.names["new-actor"]
        if old_name is None:
            return Effects() if new_name is None else self._move_from_nowhere(said, new_name)
        old = self._active(old_name)
        self._check_signed(said, [self._raw[one] for one in old.keys])
        keys, data = tuple(sorted(old.keys.values())), tuple(sorted(old.data.values()))
        leaves = tuple(sorted(item.leaf_index for item in (*keys, *data)))
        carried = CarriedMove(at, old.fireproof, leaves, old.history.size, old.history.root())
        if new_name is None:
            hide: list[tuple[Key | Datum, bytes]] = [(key, self._raw[key.key_hash]) for key in keys]
            hide += [(datum, b"") for datum in data]
            return Effects([(old.index, Left(at, None, carried))], hide=hide, taken="a move to somebody erased")
        new = self._open_to(new_name, keys)
        came = Came(at, keys, data, old.fireproof, old.barred, carried.before)
        return Effects([(old.index, Left(at, (new.index, new.erasures), carried)), (new.index, came)])

    def _move_from_nowhere(self, said: Said, new_name: str) -> Effects:
        """From an actor erased since: what its record says was carried, out of what is known to be hidden."""
        move = self._carried.get(said.leaf_index)
        if move is None:
            raise RuleBroken("BadTransition", "no erasure says what this move carried")
        if not self._hidden.keys() >= set(move.leaves):
            raise Invalid("BadErasure", f"entry {said.leaf_index} cannot have carried what its erasure says")
        items = [self._hidden[leaf] for leaf in move.leaves]
        keys = _only(Key, items)
        if not keys or len({key.key_hash for key in keys}) < len(keys) or self._dead & {k.key_hash for k in keys}:
            raise Invalid("BadErasure", f"the keys that entry {said.leaf_index} carried were no actor's")
        self._check_signed(said, [raw for item, raw in items if isinstance(item, Key)])
        new = self._open_to(new_name, keys)
        came = Came(said.leaf_index, keys, _only(Datum, items), move.fireproof, frozenset(), move.before)
        return Effects([(new.index, came)], unhide=move.leaves, taken="a move from somebody erased")

    def _burn_down(self, said: Said) -> Effects:
        name, operator = said.names["actor"], said.names["operator"]
        effects = Effects()
        if name is not None:
            # PKD asks for no more than a prior message of the actor; whom nothing is left of cannot be emptied again.
            burned = self._active(name)
            if burned.fireproof:
                raise RuleBroken("BadTransition", "the actor is fireproof")
            effects.events = [(burned.index, BurnedDown(said.leaf_index))]
            if operator is None:
                effects.taken = "a burn-down by somebody erased"
        if operator is not None:
            if name is not None and _host(name) != _host(operator):
                raise RuleBroken("BadTransition", "the operator is of another domain")
            self._check_signed(said, [self._raw[one] for one in self._active(operator).keys])
        return effects

    def _guard(self, said: Said) -> Effects:
        if (name := said.names["actor"]) is None:
            return Effects()
        strand, wanted = self._active(name), said.wire.action == "Fireproof"
        if strand.fireproof == wanted:
            raise RuleBroken("BadTransition", "the actor's Fireproof is as the message wants it")
        self._check_signed(said, [self._raw[one] for one in strand.keys])
        return Effects([(strand.index, Guarded(said.leaf_index, wanted))])

    def _attach(self, said: Said) -> Effects:
        if said.datum is None:
            return Effects()
        datum = Datum(said.leaf_index, said.wire.time or 0, *said.datum)
        if (name := said.names["actor"]) is None:
            return Effects(hide=[(datum, b"")])
        strand = self._active(name)
        if datum.aux_id in strand.data or len(strand.data) >= MAX_HELD:
            raise RuleBroken("BadTransition", "the actor has these data, or as many as there can be")
        self._check_signed(said, [self._raw[one] for one in strand.keys])
        return Effects([(strand.index, Added(said.leaf_index, datum))])

    def _detach(self, said: Said) -> Effects:
        if (name := said.names["actor"]) is None or said.datum is None:
            return Effects()
        strand, (aux_type, aux_id) = self._active(name), said.datum
        if aux_id not in strand.data or strand.data[aux_id].aux_type != aux_type:
            raise RuleBroken("BadTransition", "the actor does not have these data")
        self._check_signed(said, [self._raw[one] for one in strand.keys])
        return Effects([(strand.index, Withdrawn(said.leaf_index, aux_id))])

    def _commit_to_another(self, said: Said) -> Effects:
        """A Checkpoint touches no index; the directory that sent it signed with the key that it names."""
        if said.key is None:
            said.key = decode_public_key(said.wire.body["from-public-key"])
        self._check_signed(said, [said.key])
        return Effects()

    _RULES: Mapping[str, Callable[[Ledger, Said], Effects]] = {
        "AddKey": _add_key, "RevokeKey": _revoke_key, "RevokeKeyThirdParty": _revoke_by_token,
        "MoveIdentity": _move, "BurnDown": _burn_down, "Fireproof": _guard, "UndoFireproof": _guard,
        "AddAuxData": _attach, "RevokeAuxData": _detach, "Checkpoint": _commit_to_another,
    }

    def index(self, actor_id: str) -> bytes:
        """Where an actor lies in the map. Spec: directory map §1."""
        return sha256(pae(["ktlog/v1/index", self._origin, actor_id])).digest()

    def _strand(self, actor_id: str) -> Strand:
        index = self.index(actor_id)
        return self.strands.get(index) or Strand(index)

    def _active(self, actor_id: str) -> Strand:
        strand = self._strand(actor_id)
        if not strand.keys:
            raise RuleBroken("BadTransition", "the actor has no key")
        return strand

    def _open_to(self, actor_id: str, keys: Sequence[Key]) -> Strand:
        """The actor to whom a move brings *keys*."""
        strand = self._strand(actor_id)
        if strand.keys:
            raise RuleBroken("BadTransition", "the new actor has keys")
        self._check_not_barred(strand, keys)
        return strand

    def _check_not_barred(self, strand: Strand, keys: Sequence[Key]) -> None:
        if any(key.key_hash in strand.barred or key.key_hash in self._dead for key in keys):
            raise RuleBroken("BadTransition", "the actor, or a token, revoked the key for ever (key_revoked)")

    def _check_signed(self, said: Said, keys: Iterable[bytes]) -> None:
        for key in keys:
            try:
                verify_mldsa44(key, said.wire.signature or b"", said.wire.signed_bytes)
            except Invalid:
                continue
            return
        raise RuleBroken("BadMessageSignature", "no key that may sign this message signed it")

    # -- what follows

    def take(self, effects: Effects) -> None:
        """Do what :meth:`judge` found."""
        for leaf in effects.unhide:
            item, raw = self._hidden.pop(leaf)
            if isinstance(item, Key):
                self._raw[item.key_hash] = raw
        given_up: set[bytes] = set()
        for index, event in effects.events:
            if isinstance(event, Added) and isinstance(event.item, Key):
                self._raw[event.item.key_hash] = effects.raw
            strand = self.strands.setdefault(index, Strand(index))
            if index in effects.salted:
                strand.enter(*effects.salted[index])
            held = set(strand.keys)
            strand.add(event)
            self._settle(index, held, set(strand.keys))
            given_up |= held
        self._forget_keys(given_up)
        self._hidden.update({item.leaf_index: (item, raw) for item, raw in effects.hide})
        self._dead |= effects.dead
        self._unseen_key |= effects.unseen_key

    def bury(self, record: ErasureRecord, number: int, *, foretold: bool) -> None:
        """Erasure *number* of the log.

        Args:
            foretold: it was among the records given at the start, so its actor's name may never have been seen.

        Raises:
            Invalid: ``BadErasure`` when it does not say what is known here.
        """
        strand = self.strands.get(record.index)
        if strand is not None and strand.has_value:
            known = {
                "version": strand.version + 1, "generation": strand.generation, "carried": self._carried_away(strand),
            }
            wrong = [name for name, value in known.items() if getattr(record, name) != value]
            if wrong:
                raise Invalid("BadErasure", f"erasure {number} is not what this actor did: its {' and '.join(wrong)}")
        elif not foretold:
            raise Invalid("BadErasure", f"erasure {number} is of an index without a value")
        else:
            strand = strand or Strand(record.index)
            if record.version < strand.version + 2 or record.generation <= strand.generation:
                raise Invalid("BadErasure", f"erasure {number} goes back behind the one before")
            self.strands[record.index] = strand
        held = set(strand.keys)
        strand.bury(number, record.version, record.generation)
        self._settle(record.index, held, set())
        self._forget_keys(held)

    def _carried_away(self, strand: Strand) -> tuple[CarriedMove, ...]:
        """What each move from here carried, to whoever was not erased since."""
        return tuple(
            event.carried for event in strand.events
            if isinstance(event, Left) and event.target is not None
            and self.strands[event.target[0]].erasures == event.target[1]
        )

    def _settle(self, index: bytes, before: set[bytes], after: set[bytes]) -> None:
        """Keep track of who holds which key."""
        for hashed in after - before:
            self._holders.setdefault(hashed, set()).add(index)
        for hashed in before - after:
            self._holders[hashed].discard(index)

    def _forget_keys(self, hashes: Iterable[bytes]) -> None:
        """A key that nobody has is not needed, and its holder may want it gone."""
        for hashed in hashes:
            if not self._holders.get(hashed):
                self._holders.pop(hashed, None)
                self._raw.pop(hashed, None)


def datum_of(texts: Mapping[str, str | None]) -> tuple[str, str] | None:
    """Type and id of auxiliary data, of which a message gives the text, the id or both."""
    aux_type, text, claimed = texts["aux-type"], texts.get("aux-data"), texts.get("aux-id")
    if aux_type is None:
        raise AssertionError("the type of auxiliary data is never withheld")
    computed = claimed if text is None else aux_data_id(aux_type, text)
    if claimed not in (None, computed):
        raise RuleBroken("BadTransition", "the id is not that of the data")
    return None if computed is None or ("aux-data" in texts and text is None) else (aux_type, computed)


def _host(actor_id: str) -> str:
    return actor_id.removeprefix("https://").partition("/")[0].partition(":")[0]


def _only(kind: type[_Item], items: Iterable[tuple[Key | Datum, bytes]]) -> tuple[_Item, ...]:
    return tuple(sorted(item for item, _ in items if isinstance(item, kind)))
