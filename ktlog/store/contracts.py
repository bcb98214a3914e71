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

Erasable
    What ``erase`` takes away is in no answer of any handle from then on, and after ``scrub`` in no
    byte of the store's files.

What a failed write (``commit``, ``claim_epoch``, ``erase``, ``set_totp`` ...) means is told by the
error, all of them coded:

=====================================  ============================================================
``Conflict("Fenced")``                 nothing stored; a newer writer claimed the epoch: stop writing
``Conflict("StateMoved")``             nothing stored; size or root differ from ``expected``
``Conflict("Duplicate")``              nothing stored; a ``unique_hash`` is in the log already
``Conflict("TotpMoved")``              nothing stored; a domain's one-time passwords went on meanwhile
``StoreError("BadBatch")``             nothing stored; the batch contradicts itself: a bug upstream
``StoreError("BadErasure")``           nothing erased; the plan does not fit what is stored: likewise
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

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from ktlog.pkd.erasure import CarriedMove, ErasurePlan, ErasureRecord, Mention
from ktlog.pkd.state import Actor, Aux, Change, Key
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


class Touch(NamedTuple):
    """One entry of an actor's history, without its record."""

    leaf_index: int
    role: int
    action: str


@dataclass(frozen=True)
class TotpSecret:
    """The one-time password secret of an instance that enrolled one.

    domain: the instance's. secret: 32 bytes. last_window: greatest 30-second window whose code was
    accepted; no code of it or of an earlier one counts again.
    serial: a number that grows with every change of this row, each accepted code included, and
    never restarts. Whoever checked a code names the serial that it was checked against.
    """

    domain: str
    serial: int
    secret: bytes = field(repr=False)
    last_window: int


@dataclass(frozen=True)
class TotpUse:
    """An accepted code: of *domain*, checked against its row *serial*, for the time window *window*."""

    domain: str
    serial: int
    window: int


@dataclass(frozen=True)
class Cosignature:
    """What a PKD witness said about one root of this log.

    tree_size, merkle_root: the tree, and its root as PKD writes it. witness: the cosigner's id.
    cosigned: the signed token, exactly as it was sent. time: Unix seconds, the token's own.
    """

    tree_size: int
    merkle_root: str
    witness: str
    cosigned: str
    time: int


@dataclass(frozen=True)
class Batch:
    """One unit of commit: *records* lead from *expected* to *state*.

    changes: one per record, in the same order, as ``ktlog.pkd.state.apply`` returned them. Where an
    actor occurs in several, the last value is the one that is kept.
    state: has the epoch of *expected*, the root of the last record, and the frontier for it.
    totp_uses: the codes that records of this batch rest on, used up with it; at most one a domain.
    """

    expected: LogState
    records: tuple[Record, ...]
    state: LogState
    changes: tuple[Change, ...]
    totp_uses: tuple[TotpUse, ...] = ()


@dataclass(frozen=True)
class Standing:
    """first, last: leaf indexes of the history. keys, aux: what the actor holds now."""

    first: int
    last: int
    keys: tuple[Key, ...]
    aux: tuple[Aux, ...]


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

    def erase(self, plan: ErasurePlan, expected: LogState) -> None:
        """Take away for good what *plan* withholds, or nothing of it.

        In one transaction: the withheld plaintext with its symmetric keys and salts, the actor with
        its keys, auxiliary data, history and salt. What stays of the actor is the erasure record and
        a tombstone under its map index. From then on a scrub is due.

        Raises:
            Conflict: "StateMoved", "Fenced": the log is not at *expected* any more.
            StoreError: "BadErasure", the plan does not fit the actor as stored.
        """

    def scrub(self) -> bool:
        """Leave no erased byte in the store's files, and return whether that succeeded.

        False while some reader still holds an older snapshot: try again. It costs time and space
        in proportion to the whole store. Nothing that can be asked changes.
        """

    def scrub_due(self) -> bool:
        """Whether something was erased since the last ``scrub`` that succeeded."""

    def note_published(self, size: int, time: int) -> None:
        """Remember that the first *size* entries were public at *time*, if that says anything new."""

    def set_totp(
        self, domain: str, secret: bytes | None, used_window: int, expected_serial: int | None
    ) -> TotpSecret | None:
        """Enrol, replace or (None) remove the secret of *domain*; return what is stored then.

        Args:
            secret: 32 bytes.
            used_window: greatest window of the codes that were shown for this; they are used up.
            expected_serial: of the secret to be replaced or removed; None if there must be none.

        Raises:
            Conflict: "TotpMoved", something else is stored by now; ``.stored`` is that.
            StoreError: "BadTotp", a value out of range: a bug upstream.
        """

    def add_cosignature(self, cosignature: Cosignature) -> bool:
        """Keep a cosignature; False, and nothing changes, if this witness cosigned this size before.

        Raises:
            StoreError: "OutOfRange", the log has no such size.
        """

    # Reading: from any thread of any process.

    def snapshot(self) -> AbstractContextManager[None]:
        """Within this context all reads of this thread see one commit, the newest at its start.

        Without it each read sees the newest commit by itself. Contexts may be nested; ``commit``
        inside one is an ``AssertionError``. Keep it short: it holds back the store's house-keeping.
        """

    def version(self) -> Hashable:
        """Another value after every commit that any read could notice; equal values mean equal answers.

        Comparable only between calls on one handle. It costs next to nothing, so that whoever keeps answers can ask
        before each.
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

    def sizes_at(self, times: Sequence[int]) -> tuple[int, ...]:
        """How many entries were accepted before each of *times*, which ascend. Unix seconds.

        As far as the operator's clock ever went back, it is a number between those that are right.
        """

    def seen(self, unique_hash: bytes) -> int | None:
        """Leaf index of the entry with this unique hash, or None."""

    def actor(self, actor_id: str) -> Actor | None:
        """The actor, equal to the value last committed; None when it was never enrolled.

        Of an erased actor that did not enrol again: ``ktlog.pkd.erasure.erased_actor``. Its id is
        kept nowhere; it is found by its map index.
        """

    def erased(self, actor_id: str) -> Actor | None:
        """What the newest erasure left of this actor, enrolled again since or not; None without one."""

    def mentions(self, actor_id: str) -> tuple[Mention, ...]:
        """Every entry whose readable plaintext names the actor, ascending."""

    def erasure_count(self, size: int | None = None) -> int:
        """Number of erasures; given *size*, of those that take effect within the first *size* entries.

        It changes with every erasure and never goes back: whoever keeps anything readable in
        memory keys it by this number.
        """

    def erasures(self, start: int, end: int) -> tuple[ErasureRecord, ...]:
        """The erasure records *start* up to *end*, zero-based."""

    def public_since(self, leaf_index: int) -> int | None:
        """A time at which the entry was public already, as noted; None when none was noted yet."""

    def totp(self, domain: str) -> TotpSecret | None:
        """The domain's one-time password secret, if it enrolled one."""

    def cosignatures(self, tree_size: int) -> tuple[Cosignature, ...]:
        """The cosignatures of the tree of this size, by witness id."""

    def holders(self, key_hash: bytes) -> tuple[str, ...]:
        """Ids of the actors that hold this key now, sorted."""

    def owners(self, item_id: str, limit: int) -> tuple[str, ...]:
        """Ids of actors that now hold the key, or the auxiliary data, with this key id or aux id; *limit* at most."""

    def token_revoked(self, key_hash: bytes) -> bool:
        """Whether a revocation token for this key is in the log."""

    def history(self, actor_id: str) -> tuple[tuple[int, int], ...]:
        """(leaf_index, role) of every entry that touched the actor, ascending."""

    def history_span(self, actor_id: str) -> tuple[int, int] | None:
        """Leaf index of the first and of the last of them; None without any. Costs the same for every length."""

    def standing(self, actor_id: str) -> Standing | None:
        """The span of the actor's history and what the actor holds now, as of one commit; None without a history."""

    def touches(self, actor_id: str, after: int = -1, limit: int | None = None) -> tuple[Touch, ...]:
        """The part of the history beyond entry *after*, at most *limit* entries of it, ascending."""

    def newest_touches(self, actor_id: str, before: int | None, limit: int) -> tuple[Touch, ...]:
        """The part of the history up to entry *before*, less that entry; at most *limit* entries, the newest first."""

    def accepted_times(self, actor_id: str, limit: int) -> tuple[int, ...]:
        """When the newest *limit* entries of the history were accepted, the newest entry first."""

    def carried(self, leaf_index: int) -> CarriedMove | None:
        """What the MoveIdentity at *leaf_index* carried; None of any other entry. Erasures do not change it."""

    def touched(self, start: int, end: int) -> tuple[tuple[int, str, int], ...]:
        """(leaf_index, actor_id, role) of whom the entries *start* up to *end* touched, ascending.

        Nothing of who was erased since.
        """

    def salt(self, actor_id: str) -> bytes | None:
        """The 32-byte salt under which the actor's values are committed to; None without one."""

    def actor_ids(self, after: str, limit: int) -> tuple[str, ...]:
        """Up to *limit* ids greater than *after* ("" to begin), in code point order."""


class TileStore(Protocol):
    """The published files: immutable tiles and entry bundles, and one checkpoint that moves.

    What a failed write means is told as by a ``LogStore``: after ``StoreError(AMBIGUOUS)`` nobody knows
    what is there, and all has to be read again. ``Unreachable`` is for a store elsewhere that does not
    answer: nothing was read or replaced, and asking again later is safe.

    Paths are those of tlog-tiles (``tile/0/x001/234.p/5``, ``tile/entries/000``) and of updates of the map
    (``updates/x001/234``); anything else is an ``EncodingError`` ("BadTilePath") and reaches no file.
    """

    def read(self, path: str) -> bytes | None:
        """Content of a tile, an entry bundle or an update, or None when there is no such file."""

    def write_tiles(self, files: Mapping[str, bytes]) -> None:
        """Store every file durably; each appears whole or not at all, and all are there when this returns.

        In which order they appear is open: whoever needs one says so by a second call. A path that
        exists with the same bytes is left alone, so a run that was cut short can be repeated. With
        other bytes: ``StoreError("ImmutableChanged")``, and the file stays as it is.
        """

    def remove_partials(self, path: str) -> int:
        """Remove every partial version of the full tile or bundle *path*; return how many there were.

        Refused as ``StoreError("NotFull")`` while the full one is not there. Whoever calls this
        knows that nobody reads them any more, or takes the full one in their place.
        """

    def remove_update(self, path: str) -> None:
        """Remove an update of the map, which may be gone already. Of no other file can this be asked."""

    def checkpoint(self) -> bytes | None:
        """The published checkpoint, a signed note, or None before the first."""

    def publish_checkpoint(self, note: bytes) -> None:
        """Replace the checkpoint, atomically and durably.

        Refused, with the published one left in place: ``Conflict("CheckpointWithdrawn")`` for a
        smaller size, ``Conflict("CheckpointChanged")`` for the same size with another root,
        ``Conflict("WrongOrigin")`` for another origin; ``.stored`` is the published note. The same
        tree again is accepted: it may carry more cosignatures.
        """
