"""Checks what a log says about an actor, and replays it. Pure: parsed answers in, verdict out.

Each message is checked on its own (it is in the tree; the log's leaf key signed it; the published
plaintext is what the message committed to) and then all are replayed in the order of the log with
the one transition function of :mod:`ktlog.pkd.state`. Histories of several actors are replayed
together, because a MoveIdentity carries keys from one to the other and a BurnDown is signed by a
third.

What this proves: every key in the result was put there by messages that are in this tree, each
signed by a key that was valid then, back to the first key of the generation. What it does not
prove: that the history shown is complete. A log can still leave out a message, a revocation too,
until lookups carry a proof from the directory map. Nor is it checked that a message named a recent
root; auditors check that.

What an erasure withheld of somebody else is replayed from what is left, and the answer lists it as
taken: a BurnDown by an operator erased since, and a MoveIdentity from an actor erased since.

Spec: directory map §3, §9 (steps 10, 12 and 13).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ktlog.client.answer import PendingMessage, ProvenKey
from ktlog.client.erasures import ErasureLog
from ktlog.client.page import ActorPage, HistoryRow, ListedKey
from ktlog.client.verify import Head
from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.pkd.actors import Change
from ktlog.pkd.entry import parse_entry, verify_entry
from ktlog.pkd.keys import derive_key_id, key_hash, verify_mldsa44
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Message,
    MoveIdentity,
    RevokeKey,
    RevokeKeyThirdParty,
    WireMessage,
    aux_data_id,
    message_from_plain,
)
from ktlog.pkd.state import (
    Actor,
    Aux,
    Key,
    View,
    apply,
    created_time,
    find_signer,
    touched_by,
)
from ktlog.pkd.withheld import Fragment, Held, apply_fragment, read_fragment, stand_in_for
from ktlog.tlog.tree import hash_leaf, verify_inclusion

Map = Callable[[Callable[[HistoryRow], "CheckedRow"], Iterable[HistoryRow]], Iterable["CheckedRow"]]
"""Like the built-in ``map``; an executor's may be passed in, since each check takes some 100 ms."""


AnyKey = TypeVar("AnyKey", Key, ProvenKey)


@dataclass(frozen=True)
class CheckedRow:
    """A row that holds on its own; whether the message was allowed, only the replay shows."""

    row: HistoryRow
    leaf_hash: bytes
    dialect_name: str
    wire: WireMessage
    message: Message | Fragment
    """A Fragment when an erasure withheld part of it."""


@dataclass(frozen=True)
class History:
    """The checked messages of one actor, and up to which leaf index (inclusive) they are all known."""

    rows: tuple[CheckedRow, ...]
    until: int


def check_rows(
    page: ActorPage, rows: Sequence[HistoryRow], head: Head, leaf_keys: Mapping[bytes, bytes],
    map_rows: Map = map,
) -> tuple[CheckedRow, ...]:
    """Check *rows* of *page*, each on its own.

    Args:
        leaf_keys: the log's leaf keys, by SHA-256 of the raw key.

    Raises:
        Invalid: ``BadEntryProof``, ``BadEntry``, ``BadLeafSignature``, ``PlaintextMismatch``,
            ``WrongActor``.
    """
    # What is cheap comes first and for all rows, so that a false answer costs no Argon2id.
    for row in rows:
        _check_inclusion(row, head)
    checked = tuple(map_rows(lambda row: check_row(row, leaf_keys), rows))
    for item in checked:
        _check_about(item, page.actor_id)
    return checked


def _check_inclusion(row: HistoryRow, head: Head) -> None:
    if row.leaf_index >= head.size:
        return
    if row.proof is None:
        raise Invalid("BadEntryProof", f"entry {row.leaf_index} comes without a proof that it is in the log")
    try:
        verify_inclusion(hash_leaf(row.entry), row.leaf_index, head.size, row.proof, head.root)
    except Invalid as error:
        raise Invalid(
            "BadEntryProof", f"entry {row.leaf_index} is not in the tree of {head.size} entries: {error.message}"
        ) from error


def check_carried(
    origin: str, rows: Sequence[HistoryRow], leaf_keys: Mapping[bytes, bytes], map_rows: Map = map
) -> dict[int, Held]:
    """The keys and auxiliary data that entries enrol whose owner's name may be withheld.

    Args:
        rows: entries already shown to be in the tree; their roles and proofs are not looked at.

    Raises:
        Invalid: ``BadEntry``, ``BadLeafSignature``, ``PlaintextMismatch``.
    """
    held: dict[int, Held] = {}
    for item in map_rows(lambda row: check_row(row, leaf_keys), rows):
        index = item.row.leaf_index
        match item.message:
            case AddKey(public_key=public_key, time=time):
                held[index] = Key(public_key, derive_key_id(origin, index), index, time)
            case AddAuxData(aux_type=aux_type, aux_data=text, time=time):
                held[index] = Aux(aux_type, aux_data_id(aux_type, text), text, index, time)
            case Fragment(public_key=bytes() as public_key, time=time):
                held[index] = Key(public_key, derive_key_id(origin, index), index, time)
            case Fragment(aux=(aux_type, text, aux_id), time=time):
                held[index] = Aux(aux_type, aux_id, text, index, time)
    return held


def check_row(row: HistoryRow, leaf_keys: Mapping[bytes, bytes] | None) -> CheckedRow:
    """Check one entry by itself; whether it is in the tree was checked before.

    Args:
        leaf_keys: None where they are not to be had: then the log's signature in the entry is not checked.

    Raises:
        Invalid: ``BadEntry``, ``BadLeafSignature``, ``PlaintextMismatch``, ``RecordWithheld``.
    """
    at = f"entry {row.leaf_index}" if row.leaf_index >= 0 else "a pending entry"
    try:
        dialect, entry = parse_entry(row.entry)
        if leaf_keys is not None:
            verify_entry(row.entry, row.preimage, leaf_keys)
        elif entry.message_hash != hashlib.sha256(row.preimage).digest():
            raise Invalid("BadEntry", "the entry commits to another message")
        wire, message = message_from_plain(dialect, row.preimage, row.plain, commitments=True)
        what = read_fragment(wire, row.plain) if message is None else message
    except EncodingError as error:
        raise Invalid("BadEntry", f"{at}: {error.message}") from error
    except Invalid as error:
        raise Invalid(error.name, f"{at}: {error.message}") from error
    return CheckedRow(row, hash_leaf(row.entry), dialect.name, wire, what)


def _check_about(item: CheckedRow, actor_id: str) -> None:
    """A token names no actor; whether it concerns this one, the replay shows."""
    if isinstance(item.message, RevokeKeyThirdParty):
        return
    if isinstance(item.message, Fragment):
        names: Iterable[str | None] = item.message.names.values()
    else:
        names = touched_by(item.message, lambda _: ())
    if actor_id not in names:
        raise Invalid("WrongActor", f"entry {item.row.leaf_index} is not about {actor_id}")


def needed_histories(histories: Mapping[str, History]) -> dict[str, int]:
    """Which other actors' messages the replay needs, and up to which leaf index.

    The source of a MoveIdentity is needed because its keys are carried over, the operator of a
    BurnDown because its key signed.
    """
    needs: dict[str, int] = {}
    for actor_id, history in histories.items():
        for item in history.rows:
            match item.message:
                case MoveIdentity(old_actor=other) | BurnDown(operator=other):
                    index = item.row.leaf_index
                case _:
                    continue
            known = histories.get(other)
            if other != actor_id and (known is None or known.until < index):
                needs[other] = max(index, needs.get(other, -1))
    return needs


def needed_leaves(histories: Mapping[str, History], erasures: ErasureLog) -> frozenset[int]:
    """The entries of erased actors that the replay needs: the keys and data that their moves carried.

    Raises:
        Invalid: ``RecordWithheld`` when text is withheld that no erasure explains; ``BadTransition``
            when none says what a move from an erased actor carried.
    """
    leaves: set[int] = set()
    for history in histories.values():
        for item in history.rows:
            message, index = item.message, item.row.leaf_index
            if not isinstance(message, Fragment):
                continue
            if not erasures.explains(index):
                raise Invalid("RecordWithheld", f"entry {index}: the log withholds text, and no erasure explains it")
            if message.action == "MoveIdentity" and message.changes_others():
                move = erasures.move(index)
                if move is None:
                    raise Invalid(
                        "BadTransition", f"entry {index} moved keys from somebody whose name the log withholds, and"
                        " no erasure says which keys"
                    )
                leaves |= set(move.leaves)
    return frozenset(leaves)


@dataclass(frozen=True)
class Replayed:
    """An actor at the checkpoint's tree size, and what about it rests on withheld text."""

    actor: Actor
    taken: tuple[str, ...]


@dataclass
class _State:
    """The replay in progress. Actors are known only up to where their histories reach."""

    origin: str
    histories: Mapping[str, History]
    erasures: ErasureLog
    carried: Mapping[int, Held]
    taken: list[str] = field(default_factory=list)
    actors: dict[str, Actor | None] = field(default_factory=dict)
    tokens: set[bytes] = field(default_factory=set)
    unique: set[bytes] = field(default_factory=set)
    greatest_time: int = 0

    def knows(self, actor_id: str, leaf_index: int) -> bool:
        return actor_id in self.histories and leaf_index <= self.histories[actor_id].until

    def holders(self, leaf_index: int) -> dict[bytes, tuple[str, ...]]:
        held: dict[bytes, tuple[str, ...]] = {}
        for actor_id, actor in self.actors.items():
            if actor is not None and self.knows(actor_id, leaf_index):
                for key in actor.keys:
                    hashed = key_hash(key.public_key)
                    held[hashed] = (*held.get(hashed, ()), actor_id)
        return held

    def check_relied_on(self, message: Message, index: int) -> None:
        """Refuse a message whose force comes from an actor whose history the log does not show.

        The log writes its entries alone. If it did not have to show who signed a BurnDown, it could
        empty anybody by itself, and then enrol a key of its own.
        """
        match message:
            case MoveIdentity(old_actor=other):
                what = f"{other}, whose keys it moved"
            case BurnDown(operator=other):
                what = f"{other}, who is said to have signed the BurnDown"
            case _:
                return
        if not self.knows(other, index):
            raise Invalid("BadTransition", f"entry {index}: the log shows no history of {what}")

    def step(self, item: CheckedRow, roles: Mapping[str, int]) -> None:
        """Apply one message, and compare whom it touched with what the log said."""
        index, message = item.row.leaf_index, item.message
        if item.wire.unique_hash in self.unique:
            raise Invalid("BadEntry", f"entry {index} repeats an earlier message")
        self.unique.add(item.wire.unique_hash)
        if isinstance(message, Fragment):
            change, created = self.fragment(item, message), message.time
        else:
            change, created = self.whole(item, message)
        touched = {leaf.actor_id: int(leaf.role) for leaf in change.history if self.knows(leaf.actor_id, index)}
        if touched != roles:
            raise Invalid("BadTransition", f"entry {index}: the log misstates whom the {message.action} concerns")
        self.actors.update({actor.actor_id: actor for actor in change.actors})
        if change.token_revoked is not None:
            self.tokens.add(change.token_revoked)
        self.greatest_time = max(self.greatest_time, created)

    def whole(self, item: CheckedRow, message: Message) -> tuple[Change, int]:
        """What a message does of which nothing is withheld, and when it says it was made."""
        index = item.row.leaf_index
        self.check_relied_on(message, index)
        holders = self.holders(index)
        names = touched_by(message, lambda hashed: holders.get(hashed, ()))
        rows = {name: self.actors.get(name) if self.knows(name, index) else None for name in names}
        view = View(rows, self.tokens, holders)
        created = created_time(message, self.greatest_time)
        try:
            signer = find_signer(view, message, item.wire)
            change = apply(view, message, index, derive_key_id(self.origin, index), signer, created)
        except MessageRejected as error:
            raise refused(index, message.action, error) from error
        return change, created

    def fragment(self, item: CheckedRow, fragment: Fragment) -> Change:
        """What is left of a message that an erasure withheld in part."""
        index, mover = item.row.leaf_index, None
        move = self.erasures.move(index)
        if fragment.changes_others():
            if fragment.action == "MoveIdentity":
                if move is None:
                    raise AssertionError("needed_leaves was not asked what this move carried")
                mover = stand_in_for(move, self.carried, self.tokens)
                self.taken.append(
                    f"entry {index} moved these keys from an actor erased since: which, the erasure record says"
                )
            else:
                self.taken.append(f"entry {index} burned the actor down on the word of an operator erased since")
        try:
            return apply_fragment(
                fragment, item.wire, index, derive_key_id(self.origin, index),
                lambda name: self.actors.get(name) if self.knows(name, index) else None, mover, self.tokens,
            ).change
        except MessageRejected as error:
            raise refused(index, fragment.action, error) from error


def refused(index: int, action: str, error: MessageRejected) -> Invalid:
    """What a message that breaks a rule of the directory is called in a log that holds it."""
    name = "BadMessageSignature" if error.code == "bad_signature" else "BadTransition"
    return Invalid(name, f"entry {index}, {action}: {error.message}")


def replay(
    origin: str, actor_id: str, histories: Mapping[str, History], erasures: ErasureLog, carried: Mapping[int, Held],
) -> Replayed:
    """Replay the published messages of *actor_id* and of the actors they depend on.

    Args:
        histories: by actor id; that of actor_id itself is not empty.
        carried: from :func:`check_carried`, for the leaves of :func:`needed_leaves`.

    Raises:
        Invalid: ``BadMessageSignature``; ``BadTransition``, also when the history of an actor they depend on
            is not shown; ``BadErasure``, an erasure record that cannot be true; ``BadEntry`` (a message logged
            twice, or entries in different dialects).
    """
    steps: dict[int, CheckedRow] = {}
    roles: dict[int, dict[str, int]] = {}
    for name, history in histories.items():
        for item in history.rows:
            steps[item.row.leaf_index] = item
            roles.setdefault(item.row.leaf_index, {})[name] = item.row.role
    if len({item.dialect_name for item in steps.values()}) > 1:
        raise Invalid("BadEntry", "the log mixes entries of different dialects")
    state = _State(origin, histories, erasures, carried)
    state.actors = {name: erasures.tombstone(name) for name in histories}
    for index in sorted(steps):
        state.step(steps[index], roles[index])
    actor = state.actors.get(actor_id)
    if actor is None:
        raise AssertionError("a history that is not empty leads to a state")
    return Replayed(actor, tuple(state.taken))


def check_listed(actor: Actor, listed: Sequence[ListedKey]) -> None:
    """Compare the keys that the log lists with those that its own messages lead to.

    Raises:
        Invalid: ``OmittedKey`` when one is missing; ``UnlistedKey`` when one is there that no message
            enrolled, or with another key id, leaf index or time.
    """
    replayed = {key.public_key: key for key in actor.keys}
    for claim in listed:
        key = replayed.get(claim.public_key)
        if key is None:
            raise Invalid(
                "UnlistedKey", f"the log lists a key ({claim.key_id[:64]!r}) that no message in the log put there",
                hint="Somebody swapped or added a key in this answer. Do not use it.",
            )
        if (claim.key_id, claim.leaf_index, claim.created) != (key.key_id, key.leaf_index, key.created):
            raise Invalid("UnlistedKey", f"the log lists key {key.key_id} under another name, place or time")
    claimed = [claim.public_key for claim in listed]
    if len(set(claimed)) != len(claimed):
        raise Invalid("UnlistedKey", "the log lists a key twice")
    for public_key, key in replayed.items():
        if public_key not in claimed:
            raise Invalid("OmittedKey", f"the log leaves out the key {key.key_id}, which its own messages put there")


def judge_pending(
    actor_id: str, keys: Sequence[AnyKey], pending: Sequence[CheckedRow]
) -> tuple[tuple[AnyKey, ...], tuple[PendingMessage, ...]]:
    """Which listed *keys* stay usable in view of messages that are accepted but not published.

    Such a message is believed for one purpose only: to take a key out of use. A RevokeKey counts
    when a listed key signed it, or a key that a listed key added in a pending message before, and
    none that a pending message before withdrew; a token proves itself.

    Returns the usable keys and a summary of each pending message, which come in the order of the log.

    Raises:
        Invalid: ``WrongActor``: a message is about somebody else; ``BadEntry``: one is there twice.
    """
    if len({item.wire.unique_hash for item in pending}) != len(pending):
        raise Invalid("BadEntry", "a pending message is shown twice")
    voices = {key.public_key for key in keys}
    usable = {key.public_key: key for key in keys}
    shown = []
    for item in pending:
        _check_about(item, actor_id)
        removed: bytes | None = None
        match item.message:
            case RevokeKeyThirdParty(token=token):
                removed = token.public_key
            case AddKey(public_key=new) if _spoken_by(voices, item.wire):
                voices.add(new)
            case RevokeKey(public_key=old) if _spoken_by(voices - {old}, item.wire):
                removed = old
            case _:
                pass
        key = usable.pop(removed, None) if removed is not None else None
        voices -= {removed}
        removes = (key.key_id,) if key is not None else ()
        leaf_index = item.row.leaf_index if item.row.leaf_index >= 0 else None
        shown.append(PendingMessage(leaf_index, item.message.action, removes))
    return tuple(key for key in keys if key.public_key in usable), tuple(shown)


def _spoken_by(voices: Iterable[bytes], wire: WireMessage) -> bool:
    for public_key in voices:
        try:
            verify_mldsa44(public_key, wire.signature or b"", wire.signed_bytes)
        except Invalid:
            continue
        return True
    return False
