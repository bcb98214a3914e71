"""Checks of a batch against itself, before any store writes a byte of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ktlog.errors import Conflict, StoreError
from ktlog.pkd.actors import Role
from ktlog.pkd.keys import PUBLIC_KEY_BYTES
from ktlog.pkd.state import Actor, Change
from ktlog.store.contracts import Batch, LogState, Record, Standing
from ktlog.tlog.tree import hash_leaf

HASH_SIZE = 32
GREATEST_NUMBER = 2**63 - 1
MOST_ACTOR_IDS = 10_000


def check_batch(batch: Batch, *, mirrored: bool = False) -> None:
    """Check that *batch* is one that an honest sequencer could have made.

    With *mirrored* its records come from another log, which may have erased something of them since.

    Indexes follow on ``expected`` without gaps; each leaf hash and each root is computed again and
    compared, so that a flipped bit upstream is found before it is stored; the state after is that of
    the last record; salts and history fit the changes.

    Raises:
        StoreError: "BadBatch".
        Conflict: "Duplicate", two records share a unique hash; ``.stored`` is the first one's index.
    """
    _check_states(batch)
    _check_totp_uses(batch)
    _require(len(batch.changes) == len(batch.records), "there must be one change per record")
    leaf_hashes = [hash_leaf(record.entry) for record in batch.records]
    frontier, roots = batch.expected.frontier.append_each(leaf_hashes)
    seen: dict[bytes, int] = {}
    rows = zip(batch.records, batch.changes, leaf_hashes, roots, strict=True)
    for leaf_index, (record, change, leaf_hash, root) in enumerate(rows, batch.expected.size):
        _require(record.leaf_index == leaf_index, f"record {record.leaf_index} stands for {leaf_index}")
        _require(leaf_hash == record.leaf_hash, f"leaf hash {leaf_index} is not the entry's")
        _require(root == record.root, f"root after entry {leaf_index} does not follow")
        _require(mirrored or not record.withheld, "a new record withholds nothing")
        _check_record(record)
        _check_change(record, change)
        _check_roles(change, mirrored)
        first = seen.setdefault(record.unique_hash, leaf_index)
        if first != leaf_index:
            raise duplicate(leaf_index, first)
    _require(frontier == batch.state.frontier, "the frontier after the batch does not follow")


def _check_states(batch: Batch) -> None:
    expected, state = batch.expected, batch.state
    _require(len(batch.records) > 0, "it is empty")
    for side in (expected, state):
        _require(side.frontier.size == side.size, "a frontier has another size than its state")
        _require(side.frontier.root() == side.root, "a frontier has another root than its state")
        _check_number(side.size, side.epoch, side.greatest_time)
    _require(state.size == expected.size + len(batch.records), "its sizes do not add up")
    _require(state.root == batch.records[-1].root, "the root after it is not that of its last record")
    _require(state.epoch == expected.epoch, "it changes the epoch")
    _require(state.greatest_time >= expected.greatest_time, "time runs backwards")


def _check_totp_uses(batch: Batch) -> None:
    domains = [use.domain for use in batch.totp_uses]
    _require(len(set(domains)) == len(domains), "two one-time passwords of one domain")
    _check_text(*domains)
    _check_number(*(number for use in batch.totp_uses for number in (use.serial, use.window)))


def _check_record(record: Record) -> None:
    _require(len(record.unique_hash) == HASH_SIZE, "a unique hash has 32 bytes")
    _check_number(record.created, record.accepted)
    _check_text(record.action, *record.plain, *record.keys, *record.salts)
    _check_text(*(text for text in record.plain.values() if text is not None))


def _check_change(record: Record, change: Change) -> None:
    actor_ids = [actor.actor_id for actor in change.actors]
    _require(len(set(actor_ids)) == len(actor_ids), "a change names an actor twice")
    for actor in change.actors:
        _check_actor(actor)
    for leaf in change.history:
        _require(leaf.actor_id in actor_ids, "history of an actor that the entry does not touch")
        _require(leaf.role in tuple(Role), "a role is 1, 2 or 3")
    _require(len(set(change.history)) == len(change.history), "an entry enters a history twice")
    if change.token_revoked is not None:
        _require(len(change.token_revoked) == HASH_SIZE, "a key hash has 32 bytes")
    new_salts = salts_by_actor(record)
    _require(set(new_salts) == set(change.needs_salt), "its salts are not those that the change needs")
    _require(set(new_salts) <= set(actor_ids), "a salt for an actor that the entry does not touch")
    _require(all(len(salt) == HASH_SIZE for salt in new_salts.values()), "a salt has 32 bytes")


def _check_roles(change: Change, mirrored: bool) -> None:
    """Who moves comes from somebody, whose history goes along; a mirror may not know either's name any more."""
    moved = [leaf.role for leaf in change.history if leaf.role != Role.SUBJECT]
    both = sorted(moved) == [Role.MOVED_OUT, Role.MOVED_IN] and len(change.history) == 2
    one = mirrored and len(moved) == len(change.history) == 1
    _require(not moved or both or one, "a move has one actor that moves out, one that moves in, and nobody else")


def _check_actor(actor: Actor) -> None:
    _check_number(
        actor.version, actor.generation, actor.erasures, actor.cause, actor.generation_leaf, actor.status,
        actor.status_leaf,
    )
    _check_text(actor.actor_id)
    if actor.keys:
        _require({len(key.public_key) for key in actor.keys} == {PUBLIC_KEY_BYTES}, "a public key of another length")
        _check_number(*[key.leaf_index for key in actor.keys], *[key.created for key in actor.keys])
        _check_text(*[key.key_id for key in actor.keys])
    for aux in actor.aux:
        _check_number(aux.leaf_index, aux.created)
        _check_text(aux.aux_type, aux.aux_id, aux.aux_data or "")
    _require(all(len(key_hash) == HASH_SIZE for key_hash in actor.revoked), "a key hash has 32 bytes")


def duplicate(leaf_index: int, stored: int) -> Conflict:
    """The error for entry *leaf_index*, whose unique hash entry *stored* has already."""
    return Conflict("Duplicate", f"entry {leaf_index} has the unique hash of entry {stored}", stored=stored)


def lost(stored: LogState, expected: LogState) -> Conflict:
    """The error for a batch that expected another state than the stored one."""
    if stored.epoch != expected.epoch:
        return Conflict(
            "Fenced", f"writer {stored.epoch} has taken over from writer {expected.epoch}", stored=stored,
            hint="Two sequencers run on one store. This one must stop.",
        )
    return Conflict(
        "StateMoved", f"the log has {stored.size} entries, {expected.size} were expected", stored=stored
    )


def salts_by_actor(record: Record) -> Mapping[str, bytes]:
    """The record's salts by actor id instead of by attribute."""
    salts: dict[str, bytes] = {}
    for attribute, salt in record.salts.items():
        actor_id = record.plain.get(attribute)
        if actor_id is None:
            raise StoreError("BadBatch", f"a salt for attribute {attribute}, which names no actor")
        if salts.setdefault(actor_id, salt) != salt:
            raise StoreError("BadBatch", "two salts for one actor")
    return salts


def standing_of(span: tuple[int, int] | None, actor: Actor | None) -> Standing | None:
    """``LogStore.standing`` for stores that read an actor's span and the actor one after the other."""
    if span is None:
        return None
    if actor is None:
        raise StoreError("CorruptHistory", "an actor that is not in the directory has a history")
    return Standing(*span, actor.keys, actor.aux)


def last_actors(changes: Iterable[Change]) -> dict[str, Actor]:
    """Every actor that the changes touch, with the value that it has after the last of them."""
    return {actor.actor_id: actor for change in changes for actor in change.actors}


def check_range(start: int, end: int, size: int, what: str = "entries") -> None:
    """Refuse a range that does not lie inside ``[0, size)``.

    Raises:
        StoreError: "OutOfRange".
    """
    if not 0 <= start <= end <= size:
        raise StoreError("OutOfRange", f"{what} {start} to {end} are asked for, the log has {size}")


def check_limit(limit: int) -> None:
    """Refuse a number of actor ids that is none, or more than ``MOST_ACTOR_IDS`` ("OutOfRange")."""
    if not 1 <= limit <= MOST_ACTOR_IDS:
        raise StoreError("OutOfRange", f"between 1 and {MOST_ACTOR_IDS} actor ids at a time, not {limit}")


def check_order(after: str, actor_ids: tuple[str, ...]) -> tuple[str, ...]:
    """*actor_ids*, if each comes after the one before it, and the first after *after*.

    An index in which a byte flipped gives them in another order: who goes on after the last one would never end.

    Raises:
        StoreError: "Corrupt".
    """
    for before, following in zip((after, *actor_ids), actor_ids, strict=False):
        if following <= before:
            raise StoreError("Corrupt", f"the index of actors is damaged: {following!a} comes after {before!a}")
    return actor_ids


def is_text(text: str) -> bool:
    """Whether *text* has a UTF-8 form (no lone surrogates), without which nothing is stored."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _check_number(*numbers: int) -> None:
    _require(min(numbers, default=0) >= 0 and max(numbers, default=0) <= GREATEST_NUMBER, "a number is out of range")


def _check_text(*texts: str) -> None:
    _require(is_text("".join(texts)), "text without a UTF-8 form")  # two halves of a pair do not make one


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise StoreError("BadBatch", f"refused: {what}")
