"""What a store promises, whatever it is made of.

Two contracts: ``LogStore`` keeps the log and everything derived from it; ``TileStore`` keeps the
published files. They promise guarantees, not tables, and one test suite
(``tests/contract/test_store_contract.py``) holds every implementation to them.

The guarantees of a ``LogStore``:

Durable
    When ``commit`` or ``claim_epoch`` returns, the result survives the death of the process and
    the loss of power. (The memory store promises everything here except this.)
All or nothing
    A batch is stored whole, with its entries, roots, records, actors and new state, or nothing
    of it is.
Compare and set
    ``commit`` takes effect only if the stored (size, root, epoch) equals the batch's ``expected``.
    Two writers therefore cost a ``Conflict``, never a fork.
Read after write
    A read that starts after ``commit`` returned sees the batch, from any handle in any process.
Append-only
    An entry, its leaf hash, its unique hash and a per-leaf root never change and never go away,
    not even for someone who reaches below this contract by mistake.

What a failed ``commit`` or ``claim_epoch`` means is told by the error, all of them coded:

=====================================  ============================================================
``Conflict("Fenced")``                 nothing stored; a newer writer claimed the epoch: stop writing
``Conflict("StateMoved")``             nothing stored; size or root differ from ``expected``
``Conflict("Duplicate")``              nothing stored; a ``unique_hash`` is in the log already
``StoreError("BadBatch")``             nothing stored; the batch contradicts itself: a bug upstream
``StoreError(AMBIGUOUS)``              stored or not, nobody knows: discard what is in memory, close
                                       the store, open it again and read ``state()``
``StoreError("NeedsReopen")``          refused, because an ambiguous failure came before
any other ``StoreError``               nothing stored (``DiskFull``, ``Locked``, ``Corrupt``,
                                       ``ReadOnly``, ``InputOutput`` ...)
=====================================  ============================================================

Reads go on after every one of these. Ranges are half-open, ``[start, end)``, and must lie inside
the log: a range that reaches past ``state().size`` is ``StoreError("OutOfRange")``, never a short
answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ktlog.pkd.state import Actor, Change
from ktlog.tlog.tree import Frontier

AMBIGUOUS = "AmbiguousCommit"
"""Name of the ``StoreError`` after which nobody knows whether a batch was stored."""


@dataclass(frozen=True)
class LogState:
    """Where the log stands.

    size: number of entries. root: 32 bytes, RFC 9162 root of them (SHA-256 of nothing at size 0).
    frontier: the subtree hashes from which the next root follows; ``frontier.root() == root``.
    epoch: the number of the writer that may commit, see ``LogStore.claim_epoch``; 0 before any.
    greatest_time: greatest ``created`` so far, integer Unix seconds; 0 before any.
    """

    size: int
    root: bytes
    frontier: Frontier
    epoch: int
    greatest_time: int


@dataclass(frozen=True)
class Record:
    """One entry, and what the log knows about it.

    leaf_index: zero-based. entry: the bytes before hashing. leaf_hash: 32 bytes.
    root: 32 bytes, the root of the tree of ``leaf_index + 1`` entries, which this entry completes.
    preimage: canonical JSON, exactly the bytes that the entry commits to.
    plain: attribute name to text, or None where it is absent or was erased.
    keys: attribute name to its 32-byte symmetric key; erasable.
    salts: attribute name to the 32-byte salt of the actor that ``plain`` names there, for each
    actor in the change's ``needs_salt``, and for no other; erasable.
    unique_hash: 32 bytes, never twice in one log. action: the protocol message's.
    created: the entry's time by the rules of the directory. accepted: the operator's clock when it
    took the message. Both integer Unix seconds.
    withheld: True when an erasure took something away from ``plain``; always False in a batch.
    """

    leaf_index: int
    entry: bytes
    leaf_hash: bytes
    root: bytes
    preimage: bytes
    plain: Mapping[str, str | None]
    keys: Mapping[str, bytes]
    salts: Mapping[str, bytes]
    unique_hash: bytes
    action: str
    created: int
    accepted: int
    withheld: bool = False


@dataclass(frozen=True)
class Batch:
    """One unit of commit: *records* lead from *expected* to *state*.

    changes: one per record, in the same order, as ``ktlog.pkd.state.apply`` returned them. Where an
    actor occurs in several, the last value is the one that is kept.
    state: has the epoch of *expected*, the root of the last record, and the frontier for it.
    """

    expected: LogState
    records: tuple[Record, ...]
    state: LogState
    changes: tuple[Change, ...]


class LogStore(Protocol):
    """The log and what is derived from it. The module says what every method guarantees."""

    origin: str
    dialect: str
    read_only: bool

    def close(self) -> None:
        """Give back files and connections. Closing twice does nothing."""

    # Writing: one handle, in one process, behind the operator's own lock.

    def claim_epoch(self) -> int:
        """Make the caller the only writer: raise the stored epoch by one and return it.

        A handle that claimed earlier gets ``Conflict("Fenced")`` from its next ``commit``. The
        claim is not a lock: it cannot be left behind by a dead process, and need not be released.
        """

    def commit(self, batch: Batch) -> None:
        """Store *batch*, or nothing of it. See the module for what each error means."""

    # Reading: from any thread of any process.

    def snapshot(self) -> AbstractContextManager[None]:
        """Within this context all reads of this thread see one commit, the newest at its start.

        Without it each read sees the newest commit by itself. Contexts may be nested; ``commit``
        inside one is an ``AssertionError``. Keep it short: it holds back the store's house-keeping.
        """

    def state(self) -> LogState:
        """Where the log stands."""

    def entries(self, start: int, end: int) -> tuple[bytes, ...]:
        """The entries *start* up to *end*, before hashing."""

    def leaf_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        """Their leaf hashes, 32 bytes each."""

    def records(self, start: int, end: int) -> tuple[Record, ...]:
        """The same entries with everything known about them, less what was erased."""

    def root_after(self, size: int) -> bytes:
        """Root of the tree of the first *size* entries; ``StoreError("OutOfRange")`` beyond."""

    def size_of_root(self, root: bytes) -> int | None:
        """Greatest tree size that had this root (0 for the empty tree's), or None."""

    def seen(self, unique_hash: bytes) -> int | None:
        """Leaf index of the entry with this unique hash, or None."""

    def actor(self, actor_id: str) -> Actor | None:
        """The actor, equal to the value last committed; None when it was never enrolled."""

    def holders(self, key_hash: bytes) -> tuple[str, ...]:
        """Ids of the actors that hold this key now, sorted."""

    def token_revoked(self, key_hash: bytes) -> bool:
        """Whether a revocation token for this key is in the log."""

    def history(self, actor_id: str) -> tuple[tuple[int, int], ...]:
        """(leaf_index, role) of every entry that touched the actor, ascending."""

    def salt(self, actor_id: str) -> bytes | None:
        """The 32-byte salt under which the actor's values are committed to; None without one."""

    def actor_ids(self, after: str, limit: int) -> tuple[str, ...]:
        """Up to *limit* ids greater than *after* ("" to begin), in code point order."""


class TileStore(Protocol):
    """The published files: immutable tiles and entry bundles, and one checkpoint that moves.

    Paths are those of tlog-tiles (``tile/0/x001/234.p/5``, ``tile/entries/000``); anything that
    ``ktlog.tlog.tiles.parse_tile_path`` refuses is an ``EncodingError`` and reaches no file.
    """

    def read(self, path: str) -> bytes | None:
        """Content of a tile or an entry bundle, or None when there is no such file."""

    def write_tiles(self, files: Mapping[str, bytes]) -> None:
        """Store every file durably; each appears whole or not at all, in the order given.

        A path that exists with the same bytes is left alone, so a run that was cut short can be
        repeated. With other bytes: ``StoreError("ImmutableChanged")``, and the file stays as it is.
        """

    def checkpoint(self) -> bytes | None:
        """The published checkpoint, a signed note, or None before the first."""

    def publish_checkpoint(self, note: bytes) -> None:
        """Replace the checkpoint, atomically and durably.

        Refused, with the published one left in place: ``Conflict("CheckpointWithdrawn")`` for a
        smaller size, ``Conflict("CheckpointChanged")`` for the same size with another root,
        ``Conflict("WrongOrigin")`` for another origin; ``.stored`` is the published note. The same
        tree again is accepted: it may carry more cosignatures.
        """
