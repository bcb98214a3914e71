"""A log store in memory: for tests, and to show the contract with nothing else in the way.

It keeps every promise of ``ktlog.store.contracts`` but durability. The handles that ``reader`` gives
see the same log.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ktlog.errors import StoreError
from ktlog.pkd.keys import key_hash
from ktlog.pkd.state import Actor
from ktlog.store.batch import (
    check_batch,
    check_limit,
    check_range,
    duplicate,
    last_actors,
    lost,
    salts_by_actor,
)
from ktlog.store.contracts import Batch, LogState, Record
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
    lock: threading.RLock = field(default_factory=threading.RLock)
    snapshots: int = 0


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
            _store(contents, batch)

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

    def seen(self, unique_hash: bytes) -> int | None:
        with self._open() as contents:
            return contents.unique.get(unique_hash)

    def actor(self, actor_id: str) -> Actor | None:
        with self._open() as contents:
            return contents.actors.get(actor_id)

    def holders(self, key_hash: bytes) -> tuple[str, ...]:
        with self._open() as contents:
            return tuple(sorted(contents.holders.get(key_hash, ())))

    def token_revoked(self, key_hash: bytes) -> bool:
        with self._open() as contents:
            return key_hash in contents.tokens

    def history(self, actor_id: str) -> tuple[tuple[int, int], ...]:
        with self._open() as contents:
            return tuple(sorted(contents.histories.get(actor_id, ())))

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
    for actor_id, actor in last_actors(batch.changes).items():
        before = contents.actors.get(actor_id)
        for key in before.keys if before else ():
            contents.holders[key_hash(key.public_key)].discard(actor_id)
        for key in actor.keys:
            contents.holders.setdefault(key_hash(key.public_key), set()).add(actor_id)
        contents.actors[actor_id] = actor
    contents.state = batch.state
