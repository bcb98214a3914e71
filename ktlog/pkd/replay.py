"""A whole directory in memory: the fold of :func:`ktlog.pkd.state.apply` over a log.

Auditors, conformance runs and tests replay with it; an operator's store keeps the same facts on
disk. No clock, no randomness, no I/O. The order of checks is a replayer's: was it logged before,
is its root recent, who signed it, does the state allow it.

Erasures come in two ways. Who follows a log sees one when it happens, and calls :meth:`Directory.erase`.
Who comes later finds text withheld: given the erasure log from the start, the directory arrives at
the same actors, and says in ``taken`` which entries it had to take on the word of earlier readers.

>>> directory = Directory("keys.example.com")
>>> directory.size, directory.root_text[:12]
(0, 'pkd-mr-v1:AA')

"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace

from ktlog.errors import Invalid, UsageError
from ktlog.pkd.actions import BurnDown, Message, RevokeKeyThirdParty
from ktlog.pkd.actors import Actor, Change, Key, Role, View
from ktlog.pkd.erasure import (
    CarriedMove,
    ErasureRecord,
    Mention,
    carried_by,
    erased_actor,
    map_index,
    plan_erasure,
)
from ktlog.pkd.history import Before, extend_history
from ktlog.pkd.keys import ZERO_ROOT_BYTES, decode_root, derive_key_id, key_hash, pkd_root
from ktlog.pkd.messages import WireMessage
from ktlog.pkd.rejections import reject
from ktlog.pkd.state import apply, created_time, find_signer, recent_root_ok, touched_by
from ktlog.pkd.withheld import (
    Fragment,
    FragmentChange,
    Held,
    apply_fragment,
    revoke_unseen,
    stand_in_for,
    without_names,
)
from ktlog.tlog.tree import Frontier, hash_leaf


@dataclass(frozen=True, slots=True)
class Tombstone:
    """All that is left of an erased actor."""

    version: int
    generation: int
    erasures: int


class Directory:
    """Actors, keys and roots after the entries so far.

    Args:
        erasures: the erasure log, in its order, for a replay of entries with withheld text. Each is
            applied when its time comes; those beyond the replayed entries explain text, no more.

    Raises:
        Invalid: ``BadErasure`` when the records contradict each other.
    """

    def __init__(self, origin: str, erasures: Sequence[ErasureRecord] = ()) -> None:
        self.origin = origin
        self.frontier = Frontier()
        self.roots: list[bytes] = []
        """roots[i] is the tree's root after entry i."""
        self.actors: dict[str, Actor] = {}
        self.token_revoked: set[bytes] = set()
        self.seen: dict[bytes, int] = {}
        """Leaf index by WireMessage.unique_hash."""
        self.histories: dict[str, list[tuple[int, Role]]] = {}
        """Leaf index and role of every entry that touched an actor."""
        self.moves: dict[int, CarriedMove] = {}
        """By leaf index, what every MoveIdentity to an actor that can be read carried."""
        self._trees: dict[str, Frontier] = {}
        self.greatest_time = 0
        self._holders: dict[bytes, set[str]] = {}
        self._size_of_root: dict[bytes, int] = {ZERO_ROOT_BYTES: 0}
        self.tombstones: dict[bytes, Tombstone] = {}
        """By map index; also of who enrolled again since."""
        self.taken: dict[int, str] = {}
        """By leaf index, what an entry did to somebody not erased and rests on withheld text."""
        self._limbo: dict[int, Held] = {}
        self._hidden_keys = 0
        self._ids: dict[bytes, str] = {}
        self._withheld: list[tuple[int, int]] = []
        self._records = check_records(erasures)
        self._erased = 0
        self._faults: list[Invalid] = []
        self._told = {move.move_leaf: move for record in self._records for move in record.carried}
        self._shrouded = {record.index: record.input_size for record in self._records}

    @property
    def size(self) -> int:
        """Entries so far, those without effect included."""
        return self.frontier.size

    @property
    def root_text(self) -> str:
        """The current root as PKD writes it."""
        return pkd_root(self.size, self.roots[-1] if self.roots else ZERO_ROOT_BYTES)

    def holders(self, hashed_key: bytes) -> tuple[str, ...]:
        """The actors where a key, named by its hash, is active, sorted."""
        return tuple(sorted(self._holders.get(hashed_key, ())))

    def view_for(self, message: Message) -> View:
        """What the transition of *message* looks at, as of now."""
        names = touched_by(message, self.holders)
        holders = {}
        if isinstance(message, RevokeKeyThirdParty):
            hashed = key_hash(message.token.public_key)
            holders[hashed] = self.holders(hashed)
        return View({name: self.actor(name) for name in names}, self.token_revoked, holders)

    def actor(self, actor_id: str) -> Actor | None:
        """The actor as the rules see it: an erased one keeps its counters, one never enrolled is None."""
        actor = self.actors.get(actor_id)
        if actor is None and self.tombstones:
            tombstone = self.tombstones.get(map_index(self.origin, actor_id))
            if tombstone is not None:
                return erased_actor(actor_id, tombstone.version, tombstone.generation, tombstone.erasures)
        return actor

    def actor_at(self, index: bytes) -> Actor | None:
        """The actor with this map index, if it can be read."""
        return self.actors.get(self._ids.get(index, ""))

    def check_unique(self, wire: WireMessage) -> None:
        """Raises MessageRejected(``duplicate_message``)."""
        if wire.unique_hash in self.seen:
            raise reject("duplicate_message", f"entry {self.seen[wire.unique_hash]}")

    def check_recent_root(self, wire: WireMessage) -> None:
        """A message is based on an earlier root of this log, not too old.

        Raises:
            MessageRejected: ``merkle_root_stale``.

        Spec: directory map §3.
        """
        if wire.recent_root is None:
            return
        size = self._size_of_root.get(decode_root(wire.recent_root))
        if size is None or not recent_root_ok(self.size - size, self.size):
            raise reject("merkle_root_stale")

    def check(self, wire: WireMessage, message: Message, *, use_key_id: bool = False) -> bytes | None:
        """Every rule but the state's own; returns the signer for :meth:`accept`.

        Raises:
            MessageRejected: ``duplicate_message``, ``merkle_root_stale``, and what
                :func:`~ktlog.pkd.state.find_signer` raises.
        """
        self.check_unique(wire)
        self.check_recent_root(wire)
        return find_signer(self.view_for(message), message, wire, use_key_id=use_key_id)

    def accept(
        self, leaf_index: int, wire: WireMessage, message: Message, signer: bytes | None, entry: bytes,
        key_id: str | None = None,
    ) -> Change:
        """Apply a checked message and append its entry. A refusal leaves everything as it was.

        Args:
            leaf_index: must be the next one.
            entry: the log entry's bytes, before hashing.
            key_id: in place of the derived one.

        Raises:
            MessageRejected: from :func:`~ktlog.pkd.state.apply`.
        """
        if leaf_index != self.size:
            raise AssertionError("entries are accepted in order")
        key_id = key_id or derive_key_id(self.origin, leaf_index)
        created = created_time(message, self.greatest_time)
        if isinstance(message, RevokeKeyThirdParty) and self._may_be_erased_holders(message):
            change = revoke_unseen(message)
            self.taken[leaf_index] = "revokes a key that only an actor erased since can have had"
        else:
            change = apply(self.view_for(message), message, leaf_index, key_id, signer, created)
        self._log(leaf_index, wire, change, created, entry)
        return change

    def replay(self, wire: WireMessage, message: Message, entry: bytes) -> Change:
        """:meth:`check` and :meth:`accept` of the next entry."""
        if isinstance(message, BurnDown) and (hidden := self.hidden_names(message)):
            return self.replay_fragment(wire, without_names(message, hidden), entry).change
        return self.accept(self.size, wire, message, self.check(wire, message), entry)

    def replay_fragment(self, wire: WireMessage, fragment: Fragment, entry: bytes) -> FragmentChange:
        """Check and accept the next entry, as far as it can still be read.

        Raises:
            MessageRejected: as :meth:`check` and :meth:`accept`; ``actor_not_enrolled`` for a MoveIdentity of which
                no erasure record says that it carried anything: it broke a rule when it was logged.
            Invalid: ``RecordWithheld`` when no erasure is late enough to have withheld something here;
                ``BadErasure`` when what a record says of a move cannot be true.
        """
        self.check_unique(wire)
        self.check_recent_root(wire)
        leaf_index, mover = self.size, None
        if fragment.action == "MoveIdentity" and fragment.changes_others():
            move = self._told.get(leaf_index)
            if move is None and not self.may_be_withheld(leaf_index):
                raise Invalid("RecordWithheld", "no erasure explains what is withheld of this MoveIdentity")
            if move is None:
                raise reject("actor_not_enrolled", "no erasure record says that this MoveIdentity carried anything")
            mover = stand_in_for(move, self._limbo, self.token_revoked)
        result = apply_fragment(
            fragment, wire, leaf_index, derive_key_id(self.origin, leaf_index), self.actor, mover, self.token_revoked
        )
        if mover is not None:
            for item in (*mover.keys, *mover.aux):
                del self._limbo[item.leaf_index]
            self.taken[leaf_index] = "moved what the erasure record says from an actor erased since"
        elif fragment.changes_others():
            self.taken[leaf_index] = "burned an actor down on the word of an operator erased since"
        self._limbo |= {item.leaf_index: item for item in result.limbo}
        self._hidden_keys += fragment.action == "AddKey" and fragment.public_key is None
        self._log(leaf_index, wire, result.change, fragment.time, entry)
        return result

    def _log(self, leaf_index: int, wire: WireMessage, change: Change, created: int, entry: bytes) -> None:
        move = carried_by(
            leaf_index, change, lambda old: self._told[leaf_index].before if old is None else self.history(old)
        )
        if move is not None:
            self.moves[leaf_index] = move
        self._record(leaf_index, change)
        self.seen[wire.unique_hash] = leaf_index
        self.greatest_time = max(self.greatest_time, created)
        self._append(entry)

    def hidden_names(self, message: BurnDown) -> frozenset[str]:
        """Those actors of a message in plain text whose own messages are withheld by a later erasure."""
        if not self._shrouded:
            return frozenset()
        return frozenset(
            name for name in (message.actor, message.operator)
            if self._shrouded.get(map_index(self.origin, name), 0) > self.size and name not in self.actors
        )

    def _may_be_erased_holders(self, message: RevokeKeyThirdParty) -> bool:
        """Whether nobody who can be read holds the token's key, and somebody erased may have."""
        hashed = key_hash(message.token.public_key)
        if self._holders.get(hashed):
            return False
        return self._hidden_keys > 0 or any(_is_key(item, hashed) for item in self._limbo.values())

    # Erasure

    def may_be_withheld(self, leaf_index: int) -> bool:
        """Whether a record that was given is about entries up to this one, so that it may have taken text from it."""
        return bool(self._records) and self._records[-1].input_size > leaf_index

    def note_withheld(self, leaf_index: int, count: int) -> None:
        """Count the attributes withheld of an entry, for :meth:`erasure_faults`."""
        if count:
            self._withheld.append((leaf_index, count))

    def erasure_faults(self) -> tuple[Invalid, ...]:
        """How the erasure log contradicts the entries, once all were replayed.

        ``BadErasure`` for counters that cannot be; ``NotErased`` for an actor, or text, that a record
        says is gone and is still published; ``RecordWithheld`` for text that no record explains. A
        record explains entries before its own size, and says how many attributes, not which.
        """
        waiting, unexplained = sorted(self._withheld), 0
        for record in sorted(self._records, key=lambda one: -one.input_size):
            unexplained += _take_from(waiting, record.input_size)
            if unexplained > 0:
                break
            unexplained -= record.newly_withheld
        else:
            unexplained += _take_from(waiting, 0)
        faults = list(self._faults)
        if unexplained > 0:
            faults.append(Invalid("RecordWithheld", f"no erasure explains {unexplained} or more withheld attributes"))
        # A record beyond the replayed entries may be about some that were not replayed.
        if unexplained < 0 and all(record.input_size <= self.size for record in self._records):
            faults.append(Invalid(
                "NotErased", f"{-unexplained} attributes that an erasure says are gone are still published"
            ))
        return tuple(faults)

    def erase(
        self, record: ErasureRecord, mentions: Sequence[Mention], plain_of: Callable[[int], Mapping[str, str | None]]
    ) -> None:
        """Follow an erasure, the next one of the erasure log, that takes effect now.

        Args:
            mentions: every entry that names the actor, as it could be read until now. What a move carried is
                known here, and not taken from them.
            plain_of: the plaintext of any entry until now, None for attributes withheld earlier.

        Raises:
            Invalid: ``BadErasure`` when it contradicts the other records, or is not word for word the record that
                follows from what was replayed.
        """
        if record.input_size != self.size or self._erased != len(self._records):
            raise Invalid("BadErasure", f"it is about {record.input_size} entries, and {self.size} were replayed")
        actor = self.actors.get(self._ids.get(record.index, ""))
        if actor is None:
            raise Invalid("BadErasure", "it is about nobody who can be erased")
        known = [replace(mention, moved=self.moves.get(mention.leaf_index)) for mention in mentions]
        try:
            own = plan_erasure(self.origin, self.size, actor, known, self._records, plain_of).record
        except UsageError as error:
            raise Invalid("BadErasure", error.message) from None
        wrong = [part.name for part in fields(own) if getattr(own, part.name) != getattr(record, part.name)]
        if wrong:
            raise Invalid("BadErasure", f"not what the entries say of the actor: its {' and '.join(wrong)}")
        self._records = check_records((*self._records, record))
        self._erase(record)

    def _erase_due(self) -> None:
        """Apply the records that were given and whose time has come."""
        while self._erased < len(self._records) and self._records[self._erased].input_size == self.size:
            record = self._records[self._erased]
            before = self.tombstones.get(record.index)
            # Between two erasures lies an enrolment: a generation, and a version of its own.
            if before and not (record.version >= before.version + 2 and record.generation > before.generation):
                self._faults.append(Invalid("BadErasure", f"erasure {self._erased} turns an actor's counters back"))
            if record.index in self._ids:
                self._faults.append(Invalid(
                    "NotErased", f"{self._ids[record.index]} is readable, and erasure {self._erased} says it is not"
                ))
            self._erase(record)

    def _erase(self, record: ErasureRecord) -> None:
        before = self.tombstones.get(record.index)
        self.tombstones[record.index] = Tombstone(
            record.version, record.generation, before.erasures + 1 if before else 1
        )
        self._erased += 1
        actor_id = self._ids.pop(record.index, None)
        if actor_id is not None:
            self._set_keys(actor_id, self.actors.pop(actor_id).keys, ())
            self.histories.pop(actor_id, None)
            self._trees.pop(actor_id, None)

    def append_void(self, leaf_index: int, entry: bytes) -> None:
        """Append an entry that breaks a rule: it is in the tree, and has no other effect."""
        if leaf_index != self.size:
            raise AssertionError("entries are appended in order")
        self._append(entry)

    def _append(self, entry: bytes) -> None:
        self.frontier = self.frontier.append(hash_leaf(entry))
        root = self.frontier.root()
        self.roots.append(root)
        self._size_of_root[root] = self.size
        self._erase_due()

    def history(self, actor_id: str) -> Before:
        """Size and root of the actor's history. Each of its leaves is hashed once, however often it moves."""
        tree, rows = self._trees.get(actor_id, Frontier()), self.histories.get(actor_id, [])
        tree = extend_history(tree, rows[tree.size:], lambda leaf_index: self.moves[leaf_index].before)
        self._trees[actor_id] = tree
        return tree.size, tree.root()

    def _record(self, leaf_index: int, change: Change) -> None:
        for actor in change.actors:
            old = self.actors.get(actor.actor_id)
            if old is None:
                self._ids[map_index(self.origin, actor.actor_id)] = actor.actor_id
            self._set_keys(actor.actor_id, old.keys if old else (), actor.keys)
            self.actors[actor.actor_id] = actor
        for leaf in change.history:
            self.histories.setdefault(leaf.actor_id, []).append((leaf_index, Role(leaf.role)))
        if change.token_revoked is not None:
            self.token_revoked.add(change.token_revoked)

    def _set_keys(self, actor_id: str, old: Sequence[Key], new: Sequence[Key]) -> None:
        before, after = ({key_hash(key.public_key) for key in keys} for keys in (old, new))
        for hashed in before - after:
            self._holders[hashed].discard(actor_id)
            if not self._holders[hashed]:
                del self._holders[hashed]
        for hashed in after - before:
            self._holders.setdefault(hashed, set()).add(actor_id)


def _is_key(item: Held, hashed: bytes) -> bool:
    return isinstance(item, Key) and key_hash(item.public_key) == hashed


def _take_from(waiting: list[tuple[int, int]], limit: int) -> int:
    """Remove the entries from *limit* on, and say how many attributes were withheld of them."""
    count = 0
    while waiting and waiting[-1][0] >= limit:
        count += waiting.pop()[1]
    return count


def check_records(records: Sequence[ErasureRecord]) -> tuple[ErasureRecord, ...]:
    """An erasure log that may be true: sizes never fall, and one record at most speaks for a move.

    Raises:
        Invalid: ``BadErasure``.
    """
    sizes = [record.input_size for record in records]
    moves = [move.move_leaf for record in records for move in record.carried]
    if sizes != sorted(sizes) or len(set(moves)) != len(moves):
        raise Invalid("BadErasure", "the erasure records are out of order, or two speak for one move")
    return tuple(records)
