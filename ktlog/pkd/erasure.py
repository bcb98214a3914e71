"""Erasure: the record that a log publishes of it, and the plan of what it takes away.

An erasure destroys the salt, the symmetric keys and the plaintext of every attribute that names
the erased actor, and of the public keys and auxiliary data in its messages. Entries and preimages
stay, so the tree stays. What a MoveIdentity carried to an actor who is not erased stays readable:
that actor's own messages are signed with it. Pure.

The record says of each such move what it carried, by the move's own leaf index: the same two
actors can move to and fro, so that a list of keys for each target would not say what was carried
when. It says too whether Fireproof was carried, and what the erased actor's history was before the
move, which the new actor's history commits to: nobody could know either otherwise. (All three differ
from the draft; docs/decisions/0005-what-an-erasure-record-says.md.)

Spec: directory map §1 (labels) and §5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from ktlog.errors import EncodingError, UsageError
from ktlog.pkd.actions import AddAuxData, AddKey
from ktlog.pkd.actors import Actor, Cause, Change, Role, Status
from ktlog.pkd.history import Before
from ktlog.pkd.pae import pae
from ktlog.tlog.binary import Reader

INDEX_LABEL = "ktlog/v1/index"
RECORD_VERSION = 1
MAX_RECORD_BYTES = 65535
"""A record is served like an entry, in a bundle, whose length prefix has 16 bits."""

INDEX_BYTES = HISTORY_ROOT_BYTES = 32
NAMING = frozenset({"actor", "old-actor", "new-actor", "operator"})
"""The attributes that hold an actor id."""
OWNED: Mapping[str, str] = MappingProxyType({
    "AddKey": "public-key", "RevokeKey": "public-key", "AddAuxData": "aux-data", "RevokeAuxData": "aux-data",
})
"""What else of an erased actor's message is withheld, by action."""

_MAX_U16, _MAX_U32, _MAX_U63 = 2**16 - 1, 2**32 - 1, 2**63 - 1


@dataclass(frozen=True, slots=True)
class CarriedMove:
    """What one MoveIdentity carried from the old actor to the new one."""

    move_leaf: int
    """The MoveIdentity's own leaf index."""
    fireproof: bool
    leaves: tuple[int, ...]
    """Leaf indexes of the AddKey and AddAuxData entries carried, ascending; all below move_leaf."""
    history_size: int
    """Of the old actor's history before the move, since its last erasure; at least 1."""
    history_root: bytes
    """32 bytes."""

    @property
    def before(self) -> Before:
        """What the MOVED_IN leaf of the new actor's history says of the old one's."""
        return self.history_size, self.history_root


@dataclass(frozen=True, slots=True)
class ErasureRecord:
    """One entry of a log's erasure log, in effect after entry input_size - 1."""

    input_size: int
    index: bytes
    """:func:`map_index` of the erased actor, 32 bytes."""
    version: int
    """The actor's version with this erasure counted."""
    generation: int
    newly_withheld: int
    """How many attributes it withheld that were readable until then."""
    carried: tuple[CarriedMove, ...]
    """By move_leaf: every move from the erased actor to a name that is still readable."""


@dataclass(frozen=True, slots=True)
class Mention:
    """An entry whose readable plaintext names the actor to be erased."""

    leaf_index: int
    action: str
    role: int | None
    """The actor's role in the entry; None for the operator of a BurnDown, whom it does not touch."""
    plain: Mapping[str, str | None]
    moved: CarriedMove | None = None
    """For every MoveIdentity that had effect what it carried, from :func:`carried_by` when it was logged."""


@dataclass(frozen=True)
class ErasurePlan:
    """What one erasure does: publish *record*, withhold attributes by leaf index, keep *erased*."""

    record: ErasureRecord
    withhold: Mapping[int, frozenset[str]] = field(hash=False)
    erased: Actor
    """What ``LogStore.actor`` gives from then on; nothing but its tombstone is stored."""


def map_index(origin: str, actor_id: str) -> bytes:
    """The 32 bytes that stand for an actor where its id must not. Whoever guesses the id can test it.

    >>> map_index("keys.example.com", "https://example.com/users/alice").hex()
    'd20f381805471235f4d0dd80d0b20a5db2848a0bfa73dd647a756a506d74128d'

    Spec: directory map §1.
    """
    return hashlib.sha256(pae([INDEX_LABEL, origin, actor_id])).digest()


def erased_actor(actor_id: str, version: int, generation: int, erasures: int) -> Actor:
    """An erased actor as the rules see it: its counters, and nothing that was true of it."""
    return Actor(
        actor_id=actor_id, keys=(), aux=(), fireproof=False, version=version, generation=generation,
        erasures=erasures, cause=Cause.ERASED, generation_leaf=0, status=Status.ERASED, status_leaf=0,
        revoked=frozenset(),
    )


def carried_by(
    leaf_index: int, change: Change, history_of: Callable[[str | None], Before]
) -> CarriedMove | None:
    """What entry *leaf_index*, whose change this is, carried; None when it moved nobody in.

    Args:
        history_of: an actor's history as it was before this entry; None for an old actor whose name is withheld.
    """
    names = {leaf.role: leaf.actor_id for leaf in change.history}
    for actor in change.actors:
        if actor.actor_id == names.get(Role.MOVED_IN):
            leaves = [item.leaf_index for item in (*actor.keys, *actor.aux)]
            before = history_of(names.get(Role.MOVED_OUT))
            return CarriedMove(leaf_index, actor.fireproof, tuple(sorted(leaves)), *before)
    return None


def moves_away(actor_id: str, mentions: Iterable[Mention]) -> tuple[CarriedMove, ...]:
    """What each move from the actor to a name that is still readable carried, by move_leaf.

    A MoveIdentity without effect, which a log may hold and no rule allows, carried nothing.
    """
    return tuple(sorted(
        (
            mention.moved for mention in mentions
            if mention.moved is not None and mention.plain.get("old-actor") == actor_id
            and mention.plain.get("new-actor") is not None
        ),
        key=lambda move: move.move_leaf,
    ))


# The encoding


def encode_erasure_record(record: ErasureRecord) -> bytes:
    """The record's bytes: the leaf of the erasure log, before hashing. Big-endian.

    ``u8 1 | u64 input_size | 32 index | u32 version | u32 generation | u32 newly_withheld |
    u16 n, n x (u64 move_leaf | u8 fireproof | u64 history_size | 32 history_root | u16 k, k x u64 leaf_index)``

    Raises:
        EncodingError: ``BadErasureRecord`` for a number out of range, a wrong order, or a record
            that :data:`MAX_RECORD_BYTES` does not hold.
    """
    _check(record)
    out = [
        RECORD_VERSION.to_bytes(1, "big"), record.input_size.to_bytes(8, "big"), record.index,
        record.version.to_bytes(4, "big"), record.generation.to_bytes(4, "big"),
        record.newly_withheld.to_bytes(4, "big"), len(record.carried).to_bytes(2, "big"),
    ]
    for move in record.carried:
        out += [move.move_leaf.to_bytes(8, "big"), move.fireproof.to_bytes(1, "big"),
                move.history_size.to_bytes(8, "big"), move.history_root, len(move.leaves).to_bytes(2, "big")]
        out += [leaf.to_bytes(8, "big") for leaf in move.leaves]
    data = b"".join(out)
    if len(data) > MAX_RECORD_BYTES:
        raise _bad(f"it needs {len(data)} bytes, and {MAX_RECORD_BYTES} are the most")
    return data


def parse_erasure_record(data: bytes) -> ErasureRecord:
    """The inverse of :func:`encode_erasure_record`.

    Raises:
        EncodingError: ``BadErasureRecord`` for every other string of bytes.
    """
    if len(data) > MAX_RECORD_BYTES:
        raise _bad(f"it has more than {MAX_RECORD_BYTES} bytes")
    reader = Reader(data, "BadErasureRecord")
    if reader.number(1) != RECORD_VERSION:
        raise _bad("it is of a version not known here")
    input_size, index = reader.number(8), reader.take(INDEX_BYTES)
    version, generation, newly_withheld = (reader.number(4) for _ in range(3))
    carried = tuple(_parse_move(reader) for _ in range(reader.number(2)))
    reader.end()
    record = ErasureRecord(input_size, index, version, generation, newly_withheld, carried)
    _check(record)
    return record


def _parse_move(reader: Reader) -> CarriedMove:
    move_leaf, flag = reader.number(8), reader.number(1)
    if flag > 1:
        raise _bad("Fireproof is neither 0 nor 1")
    before = reader.number(8), reader.take(HISTORY_ROOT_BYTES)
    return CarriedMove(move_leaf, flag == 1, tuple(reader.number(8) for _ in range(reader.number(2))), *before)


def _bad(what: str) -> EncodingError:
    return EncodingError("BadErasureRecord", f"not an erasure record: {what}")


def _check(record: ErasureRecord) -> None:
    if len(record.index) != INDEX_BYTES:
        raise _bad(f"an index has {INDEX_BYTES} bytes")
    if not 1 <= record.input_size <= _MAX_U63:
        raise _bad("nothing can be erased from an empty log, nor from one beyond 2^63 - 1")
    # The erasure itself is a version, so a version is greater than every generation.
    if not 1 <= record.generation < record.version <= _MAX_U32:
        raise _bad("its version or generation is out of range")
    if not 1 <= record.newly_withheld <= _MAX_U32:
        raise _bad("it withholds nothing, or too much")
    _check_ascending([move.move_leaf for move in record.carried], record.input_size)
    if len(record.carried) > _MAX_U16:
        raise _bad("it lists too many moves")
    for move in record.carried:
        if not 1 <= len(move.leaves) <= _MAX_U16:
            raise _bad("a move carries one key or more, and no more than 65535 keys and data")
        _check_ascending(move.leaves, move.move_leaf)
        if not 1 <= move.history_size <= move.move_leaf or len(move.history_root) != HISTORY_ROOT_BYTES:
            raise _bad("a history is of entries before the move, and its root has 32 bytes")
    # Each leaf of the history is a version, the move is one too, and the erasure another.
    _check_ascending(
        [move.history_size for move in record.carried], record.version - 1, "its histories do not grow, or too far"
    )


def _check_ascending(
    numbers: Sequence[int], limit: int, fault: str = "its leaf indexes are not ascending, or beyond what it is about"
) -> None:
    previous = -1
    for number in (*numbers, limit):
        if number <= previous:
            raise _bad(fault)
        previous = number


# The plan


def plan_erasure(
    origin: str, input_size: int, actor: Actor, mentions: Sequence[Mention],
    records: Iterable[ErasureRecord], plain_of: Callable[[int], Mapping[str, str | None]],
) -> ErasurePlan:
    """What erasing *actor* from a log of *input_size* entries takes away.

    Args:
        mentions: every entry whose readable plaintext names the actor.
        records: every erasure so far.
        plain_of: the plaintext attributes of the entry with that leaf index, None for withheld ones.

    Raises:
        UsageError: ``NothingToErase`` for an actor erased already; ``ErasureTooLarge`` when its
            moves carried more than a record holds.

    Spec: directory map §5.
    """
    if actor.status == Status.ERASED or not mentions:
        raise UsageError("NothingToErase", "the log holds nothing readable about this actor")
    moves = {
        move.move_leaf: move for record in records for move in record.carried
        if plain_of(move.move_leaf).get("new-actor") is not None
    }
    released = {m.leaf_index for m in mentions if m.plain.get("new-actor") == actor.actor_id}
    freed = {leaf for number in released & moves.keys() for leaf in moves[number].leaves}
    carried = moves_away(actor.actor_id, mentions)
    kept = {leaf for number in moves.keys() - released for leaf in moves[number].leaves}
    kept |= {leaf for move in carried for leaf in move.leaves}
    withhold = {mention.leaf_index: _withheld_of(mention, actor.actor_id, kept) for mention in mentions}
    for leaf in freed - kept - withhold.keys():
        plain = plain_of(leaf)
        readable = {name for name, text in plain.items() if text is not None}
        # Of an actor who is not erased nothing is withheld, whoever else held its keys meanwhile.
        if "actor" not in readable and readable:
            withhold[leaf] = frozenset(readable)
    erased = erased_actor(actor.actor_id, actor.version + 1, actor.generation, actor.erasures + 1)
    record = ErasureRecord(
        input_size, map_index(origin, actor.actor_id), erased.version, erased.generation,
        sum(len(names) for names in withhold.values()), carried,
    )
    try:
        encode_erasure_record(record)
    except EncodingError as error:
        raise UsageError(
            "ErasureTooLarge", f"what this actor's moves carried does not fit in a record: {error.message}",
            hint="Erase the actors that it moved to first; then nothing is carried.",
        ) from None
    return ErasurePlan(record, MappingProxyType(withhold), erased)


def _withheld_of(mention: Mention, actor_id: str, kept: set[int]) -> frozenset[str]:
    names = {name for name in NAMING if mention.plain.get(name) == actor_id}
    if not names:
        raise AssertionError(f"entry {mention.leaf_index} does not name the actor")
    owned = OWNED.get(mention.action)
    carried = mention.action in (AddKey.action, AddAuxData.action) and mention.leaf_index in kept
    if owned is not None and mention.plain.get(owned) is not None and not carried:
        names.add(owned)
    return frozenset(names)
