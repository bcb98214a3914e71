"""What the directory map has to change, worked out from one snapshot of the log's store.

Incremental: only whom entries touched, and whom erasures took, since the map as it stands. Nothing here writes.

Spec: directory map §1, §2, §5.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass

from ktlog.errors import EncodingError, StoreError
from ktlog.keymap.value import (
    commit_value,
    derive_opening,
    encode_value,
    parse_version,
    tombstone,
    value_of,
)
from ktlog.pkd.actors import Role, Status
from ktlog.pkd.erasure import ErasureRecord, encode_erasure_record, map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.state import Actor
from ktlog.store.contracts import LogStore
from ktlog.store.mapcontract import Dead, Live, MapState, MapStore
from ktlog.tlog.tree import Frontier, hash_leaf

ERASURES_AT_A_TIME = 1024

Touch = tuple[int, str, int]
"""leaf index, actor id, role"""


@dataclass(frozen=True)
class Draft:
    """What the next output leaf is about, but for its time and the map root, and the changes that lead there."""

    input_size: int
    input_root: bytes
    erasures: int
    erasures_root: bytes
    changes: tuple[Live | Dead, ...]


class Mapper:
    """Drafts changes of *state*, a map of the log in *store*. One thread at a time; both are read only."""

    def __init__(self, store: LogStore, map_store: MapStore) -> None:
        self._store = store
        self._map = map_store
        self._erasures = Frontier()

    def draft(self, state: MapState) -> Draft:
        """All that happened since *state*, as of the newest entry.

        Raises:
            StoreError: ``LateErasure``: an erasure was not mapped before the next entry; ``Corrupt``.
        """
        with self._store.snapshot():
            log, erasures = self._store.state(), self._store.erasure_count()
            records = self._store.erasures(state.erasures, erasures)
            # An erasure is first committed to with exactly its input size. The very first map stands for all before.
            if state.output.size > 1 and any(record.input_size != log.size for record in records):
                raise StoreError("LateErasure", "entries were taken before the map had the erasure before them")
            dead = self._dead(records, state.erasures)
            touches = self._store.touched(state.input_size, log.size)
            live = self._live(touches, dead.keys())
            changes: dict[bytes, Live | Dead] = {**dead, **{change.index: change for change in live}}
            return Draft(
                log.size, log.root, erasures, self._erasures_root(erasures),
                tuple(change for _index, change in sorted(changes.items())),
            )

    def erasures_root(self, size: int) -> bytes:
        """RFC 9162 root of the first *size* erasure records."""
        with self._store.snapshot():
            return self._erasures_root(size)

    def _erasures_root(self, size: int) -> bytes:
        if size < self._erasures.size:
            self._erasures = Frontier()
        while (have := self._erasures.size) < size:
            records = self._store.erasures(have, min(have + ERASURES_AT_A_TIME, size))
            self._erasures = self._erasures.extend(hash_leaf(encode_erasure_record(record)) for record in records)
        return self._erasures.root()

    def _dead(self, records: Sequence[ErasureRecord], first: int) -> dict[bytes, Dead]:
        """By index, the newest erasure of it."""
        return {
            record.index: Dead(
                record.index, tombstone(self._store.origin, record.index, record.version, record.generation, number),
                record.version, record.generation, number,
            )
            for number, record in enumerate(records, first)
        }

    def _live(self, touches: Sequence[Touch], erased: object) -> list[Live]:
        """The values of whom *touches* name, who are all alive: an erased actor's rows are gone."""
        indexes = {actor_id: map_index(self._store.origin, actor_id) for _leaf, actor_id, _role in touches}
        afresh = {actor_id for actor_id, index in indexes.items() if index in erased}  # type: ignore[operator]
        news: dict[str, list[bytes]] = {actor_id: [] for actor_id in indexes}
        leaves: dict[str, set[int]] = {actor_id: set() for actor_id in indexes}
        for leaf_index, actor_id, role in touches:
            leaves[actor_id].add(leaf_index)
            news[actor_id].append(self._history_leaf(leaf_index, role))
        found = []
        for actor_id, index in indexes.items():
            actor, salt = self._store.actor(actor_id), self._store.salt(actor_id)
            before = None if actor_id in afresh else self._map.live(index)
            if actor_id not in afresh:
                self._check_follows(actor, salt, index, before, leaves[actor_id])
            tree = Frontier() if before is None else _frontier(before.history)
            tree = tree.extend(map(hash_leaf, news[actor_id]))
            found.append(_value(actor, salt, index, tree, tuple(news[actor_id]), actor_id in afresh))
        return found

    def _check_follows(
        self, actor: Actor | None, salt: bytes | None, index: bytes, before: Live | None, leaves: Set[int]
    ) -> None:
        """Hold an actor's row against the published value and the records before it is signed (requirement R1).

        A bit that flipped in the row since it was written would else be published, and a verifier could convict the
        log with it. Keys are checked by the store, against their hashes.
        """
        if actor is None or salt is None:
            return  # said when its value is made
        if before is None:
            dead, first = self._map.dead(index), min(leaves)
            version = 0 if dead is None else dead.version
            same_salt = salt in self._store.records(first, first + 1)[0].salts.values()
        else:
            version = _version(before.value)
            same_salt = derive_opening(salt, version) == before.opening
        if not same_salt or actor.version != version + len(leaves):
            raise StoreError(
                "Corrupt", f"a row of the directory does not follow from the map and entries {sorted(leaves)[:3]}",
                hint="Nothing was signed. Run ktlog fsck, and restore log.db from the newest copy.",
            )

    def _history_leaf(self, leaf_index: int, role: int) -> bytes:
        if role != Role.MOVED_IN:
            return history_leaf(role, leaf_index)
        move = self._store.carried(leaf_index)
        if move is None:
            raise StoreError("Corrupt", f"what entry {leaf_index} moved is not stored")
        return history_leaf(role, leaf_index, move.before)


def _value(
    actor: Actor | None, salt: bytes | None, index: bytes, tree: Frontier, news: tuple[bytes, ...], afresh: bool
) -> Live:
    if actor is None or actor.status == Status.ERASED or salt is None:
        raise StoreError("Corrupt", f"somebody with a history has no {'salt' if salt is None else 'state'}")
    value = encode_value(value_of(actor, tree.size, tree.root()))
    opening = derive_opening(salt, actor.version)
    commitment = commit_value(index, actor.version, value, opening)
    return Live(index, commitment, value, opening, tree.encode(), news, afresh)


def _frontier(encoded: bytes) -> Frontier:
    try:
        return Frontier.decode(encoded)
    except EncodingError as error:
        raise StoreError("Corrupt", f"a stored history: {error.message}") from error


def _version(value: bytes) -> int:
    try:
        return parse_version(value)
    except EncodingError as error:
        raise StoreError("Corrupt", f"a stored value: {error.message}") from error
