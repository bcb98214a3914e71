"""A log store in memory: for tests, and to show the contract with nothing else in the way.

It keeps every promise of ``ktlog.store.contracts`` but durability. The handles that ``reader`` gives
see the same log.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

from ktlog.errors import StoreError
from ktlog.pkd.erasure import (
    CarriedMove,
    ErasurePlan,
    ErasureRecord,
    Mention,
    carried_by,
    erased_actor,
    map_index,
)
from ktlog.pkd.history import Before, extend_history
from ktlog.pkd.keys import key_hash
from ktlog.pkd.state import Actor
from ktlog.store.batch import (
    check_batch,
    check_limit,
    check_range,
    duplicate,
    is_text,
    last_actors,
    lost,
    salts_by_actor,
    standing_of,
)
from ktlog.store.contracts import Batch, Cosignature, LogState, Record, Standing, TotpSecret, Touch
from ktlog.store.erasing import check_erasure, names_actor, without
from ktlog.store.growth import bisect_sizes
from ktlog.store.instances import check_cosignature, check_totp, totp_moved, use_allowed
from ktlog.tlog.tree import EMPTY_ROOT, Frontier


@dataclass
class _Contents:
    """Everything that is stored, shared by all handles, behind one lock."""

    state: LogState = field(default_factory=lambda: LogState(0, EMPTY_ROOT, Frontier(), 0, 0))
    records: list[Record] = field(default_factory=list)
    sizes: dict[bytes, int] = field(default_factory=lambda: {EMPTY_ROOT: 0})
    unique: dict[bytes, int] = field(default_factory=dict)
    actors: dict[str, Actor] = field(default_factory=dict)
    holders: dict[bytes, set[str]] = field(default_factory=dict)
    histories: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    salts: dict[str, bytes] = field(default_factory=dict)
    tokens: set[bytes] = field(default_factory=set)
    operated: dict[str, set[int]] = field(default_factory=dict)
    moves: dict[int, CarriedMove] = field(default_factory=dict)
    erasures: list[ErasureRecord] = field(default_factory=list)
    tombstones: dict[bytes, tuple[int, int, int]] = field(default_factory=dict)
    scrub_due: bool = False
    publications: list[tuple[int, int]] = field(default_factory=list)
    totp: dict[str, tuple[int, bytes | None, int]] = field(default_factory=dict)
    cosignatures: dict[tuple[int, str], Cosignature] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    snapshots: int = 0
    writes: int = 0


class MemoryStore:
    """``LogStore`` over Python containers. A snapshot keeps every other thread out."""

    def __init__(self, origin: str, dialect: str) -> None:
        self.origin = origin
        self.dialect = dialect
        self.read_only = False
        self._contents = _Contents()
        self._closed = False

    def reader(self) -> MemoryStore:
        """Another handle on the same log, for reading only."""
        other = MemoryStore(self.origin, self.dialect)
        other.read_only = True
        other._contents = self._contents
        return other

    def close(self) -> None:
        self._closed = True

    @contextmanager
    def _open(self) -> Iterator[_Contents]:
        if self._closed:
            raise StoreError("ClosedStore", "the store was closed")
        with self._contents.lock:
            yield self._contents

    @contextmanager
    def _writing(self) -> Iterator[_Contents]:
        if self.read_only:
            raise StoreError("ReadOnly", "the store was opened for reading only")
        with self._open() as contents:
            if contents.snapshots:
                raise AssertionError("a commit inside a snapshot of the same thread")
            contents.writes += 1
            yield contents

    @contextmanager
    def snapshot(self) -> Iterator[None]:
        with self._open() as contents:
            contents.snapshots += 1
            try:
                yield
            finally:
                contents.snapshots -= 1

    def claim_epoch(self) -> int:
        with self._writing() as contents:
            contents.state = replace(contents.state, epoch=contents.state.epoch + 1)
            return contents.state.epoch

    def commit(self, batch: Batch) -> None:
        check_batch(batch)
        with self._writing() as contents:
            stored, expected = contents.state, batch.expected
            if (stored.size, stored.root, stored.epoch) != (expected.size, expected.root, expected.epoch):
                raise lost(stored, expected)
            for record in batch.records:
                if record.unique_hash in contents.unique:
                    raise duplicate(record.leaf_index, contents.unique[record.unique_hash])
            for use in batch.totp_uses:
                found = _totp(contents, use.domain)
                if not use_allowed(found, use):
                    raise totp_moved(use.domain, found)
            _store(contents, batch)

    def erase(self, plan: ErasurePlan, expected: LogState) -> None:
        with self._writing() as contents:
            stored = contents.state
            if (stored.size, stored.root, stored.epoch) != (expected.size, expected.root, expected.epoch):
                raise lost(stored, expected)
            actor_id = plan.erased.actor_id
            check_erasure(
                plan, self.origin, stored, contents.actors.get(actor_id), _mentions(contents, actor_id),
                lambda leaf_index: contents.records[leaf_index].plain,
            )
            _erase(contents, plan)

    def scrub(self) -> bool:
        with self._writing() as contents:
            contents.scrub_due = False
            return True

    def note_published(self, size: int, time: int) -> None:
        with self._writing() as contents:
            check_range(0, size, contents.state.size)
            if size > (contents.publications[-1][0] if contents.publications else 0):
                contents.publications.append((size, time))

    def set_totp(
        self, domain: str, secret: bytes | None, used_window: int, expected_serial: int | None
    ) -> TotpSecret | None:
        check_totp(domain, secret, used_window)
        with self._writing() as contents:
            stored = _totp(contents, domain)
            if (stored.serial if stored else None) != expected_serial:
                raise totp_moved(domain, stored)
            if secret is not None or stored is not None:
                serial, _secret, last_window = contents.totp.get(domain, (0, None, 0))
                contents.totp[domain] = (serial + 1, secret, max(last_window, used_window))
            return _totp(contents, domain)

    def add_cosignature(self, cosignature: Cosignature) -> bool:
        with self._writing() as contents:
            check_cosignature(cosignature, contents.state.size)
            place = (cosignature.tree_size, cosignature.witness)
            is_new = place not in contents.cosignatures
            contents.cosignatures.setdefault(place, cosignature)
            return is_new

    def version(self) -> int:
        with self._open() as contents:
            return contents.writes

    def state(self) -> LogState:
        with self._open() as contents:
            return contents.state

    def entries(self, start: int, end: int) -> tuple[bytes, ...]:
        return tuple(record.entry for record in self.records(start, end))

    def leaf_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        return tuple(record.leaf_hash for record in self.records(start, end))

    def records(self, start: int, end: int) -> tuple[Record, ...]:
        with self._open() as contents:
            check_range(start, end, contents.state.size)
            return tuple(contents.records[start:end])

    def root_after(self, size: int) -> bytes:
        with self._open() as contents:
            check_range(0, size, contents.state.size)
            return contents.records[size - 1].root if size else EMPTY_ROOT

    def size_of_root(self, root: bytes) -> int | None:
        with self._open() as contents:
            return contents.sizes.get(root)

    def sizes_at(self, times: Sequence[int]) -> tuple[int, ...]:
        with self._open() as contents:
            return bisect_sizes(times, len(contents.records), lambda at: contents.records[at].accepted)

    def owners(self, item_id: str, limit: int) -> tuple[str, ...]:
        with self._open() as contents:
            return tuple(sorted(
                actor.actor_id for actor in contents.actors.values()
                if item_id in {*(key.key_id for key in actor.keys), *(aux.aux_id for aux in actor.aux)}
            ))[:limit]

    def seen(self, unique_hash: bytes) -> int | None:
        with self._open() as contents:
            return contents.unique.get(unique_hash)

    def actor(self, actor_id: str) -> Actor | None:
        with self._open() as contents:
            return contents.actors.get(actor_id) or self.erased(actor_id)

    def erased(self, actor_id: str) -> Actor | None:
        if not is_text(actor_id):
            return None
        with self._open() as contents:
            found = contents.tombstones.get(map_index(self.origin, actor_id))
            return erased_actor(actor_id, *found) if found else None

    def mentions(self, actor_id: str) -> tuple[Mention, ...]:
        with self._open() as contents:
            return _mentions(contents, actor_id)

    def erasure_count(self, size: int | None = None) -> int:
        with self._open() as contents:
            return sum(size is None or record.input_size <= size for record in contents.erasures)

    def erasures(self, start: int, end: int) -> tuple[ErasureRecord, ...]:
        with self._open() as contents:
            check_range(start, end, len(contents.erasures), "erasures")
            return tuple(contents.erasures[start:end])

    def scrub_due(self) -> bool:
        with self._open() as contents:
            return contents.scrub_due

    def public_since(self, leaf_index: int) -> int | None:
        with self._open() as contents:
            check_range(leaf_index, leaf_index, contents.state.size)
            return next((time for size, time in contents.publications if size > leaf_index), None)

    def totp(self, domain: str) -> TotpSecret | None:
        with self._open() as contents:
            return _totp(contents, domain)

    def cosignatures(self, tree_size: int) -> tuple[Cosignature, ...]:
        with self._open() as contents:
            check_range(tree_size, tree_size, contents.state.size)
            found = [one for (size, _), one in contents.cosignatures.items() if size == tree_size]
            return tuple(sorted(found, key=lambda one: one.witness))

    def holders(self, key_hash: bytes) -> tuple[str, ...]:
        with self._open() as contents:
            return tuple(sorted(contents.holders.get(key_hash, ())))

    def token_revoked(self, key_hash: bytes) -> bool:
        with self._open() as contents:
            return key_hash in contents.tokens

    def history(self, actor_id: str) -> tuple[tuple[int, int], ...]:
        with self._open() as contents:
            return tuple(sorted(contents.histories.get(actor_id, ())))

    def history_span(self, actor_id: str) -> tuple[int, int] | None:
        rows = self.history(actor_id)
        return (rows[0][0], rows[-1][0]) if rows else None

    def standing(self, actor_id: str) -> Standing | None:
        with self._open():
            return standing_of(self.history_span(actor_id), self.actor(actor_id))

    def touches(self, actor_id: str, after: int = -1, limit: int | None = None) -> tuple[Touch, ...]:
        with self._open() as contents:
            rows = [row for row in self.history(actor_id) if row[0] > after][:limit]
            return tuple(Touch(at, role, contents.records[at].action) for at, role in rows)

    def newest_touches(self, actor_id: str, before: int | None, limit: int) -> tuple[Touch, ...]:
        with self._open() as contents:
            rows = [row for row in self.history(actor_id) if before is None or row[0] < before]
            return tuple(Touch(at, role, contents.records[at].action) for at, role in rows[::-1][:limit])

    def accepted_times(self, actor_id: str, limit: int) -> tuple[int, ...]:
        with self._open() as contents:
            newest = self.history(actor_id)[::-1][:limit]
            return tuple(contents.records[at].accepted for at, _role in newest)

    def carried(self, leaf_index: int) -> CarriedMove | None:
        with self._open() as contents:
            return contents.moves.get(leaf_index)

    def touched(self, start: int, end: int) -> tuple[tuple[int, str, int], ...]:
        with self._open() as contents:
            check_range(start, end, contents.state.size)
            return tuple(sorted(
                (leaf_index, actor_id, role) for actor_id, rows in contents.histories.items()
                for leaf_index, role in rows if start <= leaf_index < end
            ))

    def salt(self, actor_id: str) -> bytes | None:
        with self._open() as contents:
            return contents.salts.get(actor_id)

    def actor_ids(self, after: str, limit: int) -> tuple[str, ...]:
        check_limit(limit)
        with self._open() as contents:
            ordered = sorted(contents.actors)
            start = bisect_right(ordered, after)
            return tuple(ordered[start : start + limit])


def _store(contents: _Contents, batch: Batch) -> None:
    """Apply a batch that was checked; nothing here can fail half-way."""
    for record, change in zip(batch.records, batch.changes, strict=True):
        plain, keys, salts = dict(record.plain), dict(record.keys), dict(record.salts)
        contents.records.append(replace(record, plain=plain, keys=keys, salts=salts))
        contents.sizes[record.root] = record.leaf_index + 1
        contents.unique[record.unique_hash] = record.leaf_index
        contents.salts.update(salts_by_actor(record))
        for leaf in change.history:
            contents.histories.setdefault(leaf.actor_id, []).append((record.leaf_index, leaf.role))
        if change.token_revoked is not None:
            contents.tokens.add(change.token_revoked)
        move = carried_by(record.leaf_index, change, partial(_history_before, contents, record.leaf_index))
        if move is not None:
            contents.moves[record.leaf_index] = move
    for use in batch.totp_uses:
        serial, secret, _last = contents.totp[use.domain]
        contents.totp[use.domain] = (serial + 1, secret, use.window)
    for actor_id, actor in last_actors(batch.changes).items():
        before = contents.actors.get(actor_id)
        for key in before.keys if before else ():
            contents.holders[key_hash(key.public_key)].discard(actor_id)
        for key in actor.keys:
            contents.holders.setdefault(key_hash(key.public_key), set()).add(actor_id)
        contents.actors[actor_id] = actor
    for record in batch.records:
        operator = record.plain.get("operator")
        if operator in contents.actors:
            contents.operated.setdefault(operator, set()).add(record.leaf_index)
    contents.state = batch.state


def _history_before(contents: _Contents, leaf_index: int, actor_id: str | None) -> Before:
    rows = [row for row in contents.histories.get(actor_id or "", ()) if row[0] < leaf_index]
    tree = extend_history(Frontier(), rows, lambda at: contents.moves[at].before)
    return tree.size, tree.root()


def _erase(contents: _Contents, plan: ErasurePlan) -> None:
    """Apply a plan that was checked."""
    for leaf_index, names in plan.withhold.items():
        contents.records[leaf_index] = without(contents.records[leaf_index], names)
    erased = plan.erased
    for key in contents.actors.pop(erased.actor_id).keys:
        contents.holders[key_hash(key.public_key)].discard(erased.actor_id)
    for table in (contents.histories, contents.salts, contents.operated):
        table.pop(erased.actor_id, None)
    contents.tombstones[plan.record.index] = (erased.version, erased.generation, erased.erasures)
    contents.erasures.append(plan.record)
    contents.scrub_due = True


def _mentions(contents: _Contents, actor_id: str) -> tuple[Mention, ...]:
    roles: dict[int, int | None] = dict.fromkeys(contents.operated.get(actor_id, ()))
    roles |= dict(sorted(contents.histories.get(actor_id, ())))
    return tuple(
        Mention(at, contents.records[at].action, roles[at], contents.records[at].plain, contents.moves.get(at))
        for at in sorted(roles) if names_actor(contents.records[at].plain, actor_id)
    )


def _totp(contents: _Contents, domain: str) -> TotpSecret | None:
    serial, secret, last_window = contents.totp.get(domain, (0, None, 0))
    return None if secret is None else TotpSecret(domain, serial, secret, last_window)
