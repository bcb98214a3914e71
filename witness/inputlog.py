"""Reads the entries of one log with what is published beside them, and lets nothing pass that does not hold.

A head counts once the log signed it and its tree contains the one before. An entry counts once it is in that tree,
one of the log's leaf keys signed it, and all of its text that is published opens its Argon2id commitments. The rules
are :mod:`witness.derivation`'s affair.

Argon2id takes 20 to 50 ms for each text and releases the interpreter's lock: a pool checks as many entries at once as
there are cores. What was checked once is remembered as a keyed digest of all of it, so a restart checks nothing
twice, and believes nothing that is not exactly what was checked.

Spec: directory map §4 to §6.
"""

from __future__ import annotations

import hmac
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from ktlog.client.publicfiles import PublicFiles, PublicRecord, parse_public_record
from ktlog.client.verify import Head, check_extends, check_two_roots, open_head
from ktlog.errors import EncodingError, Invalid, KtlogError, Stale
from ktlog.pkd.entry import parse_entry, verify_entry
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.messages import message_from_plain
from ktlog.pkd.pae import pae
from ktlog.tlog.tiles import TILE_WIDTH, TileHashReader
from ktlog.tlog.tree import hash_leaf
from ktlog.words import count_entries
from witness.replays import Replay, ReplayStore

LONGEST_GAP_SECONDS = 600
"""Between two looks at the log's head, for what is new at the second to be new."""
BATCH = 32
"""Entries checked between two looks at whether to stop."""

_LOG = logging.getLogger("ktlog.verifier")


@dataclass(frozen=True)
class Entry:
    """An entry that holds, with what is published beside it."""

    data: bytes
    record: PublicRecord


class InputLog:
    """One log's entries. One thread.

    Args:
        files: of the log. pool: runs what takes long. stopping: whether to give up.
    """

    def __init__(
        self, replay: Replay, store: ReplayStore, files: PublicFiles, pool: Executor, clock: Callable[[], int],
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._replay = replay
        self._store = store
        self._files = files
        self._pool = pool
        self._clock = clock
        self._stopping = stopping
        self._log = replay.log
        self._leaf_keys: dict[bytes, bytes] = {}
        self._hashes: TileHashReader | None = None
        known = store.head(replay.log)
        self.head = None if known is None else known[0]
        self.new_from: int | None = None
        """Entries from here on were seen when they were new, by this process."""
        self._polled = 0

    @property
    def size(self) -> int:
        """Of the newest head that counts."""
        return 0 if self.head is None else self.head.size

    def poll(self) -> None:
        """Look for a newer head.

        Raises:
            Forked: the log signed two heads that contradict each other. Stale: ``RolledBack``.
            Invalid, Unreachable: nothing was learnt.
        """
        head = open_head(self._files.checkpoint(), self._log)
        known = self.head
        if known is not None:
            check_two_roots(self._log, known, head)
            if head.size < known.size:
                self._check_smaller(head, known)
            if head.size <= known.size:
                self._note_poll(known.size)
                return
        hashes = self._files.hashes(head.size, head.root)
        if known is not None:
            check_extends(self._log, known, head, hashes)
        self._store.note_head(head, self._clock(), sighting=True)
        self.head, self._hashes = head, hashes
        self._note_poll(head.size)

    def _note_poll(self, size: int) -> None:
        """Whoever did not look for a while did not see what came meanwhile when it was new."""
        now = self._clock()
        if self.new_from is None or now - self._polled > LONGEST_GAP_SECONDS:
            self.new_from = size
        self._polled = now

    def _check_smaller(self, head: Head, known: Head) -> None:
        """A smaller head is no news; one of another tree convicts, if the log still serves ours."""
        check_extends(self._log, head, known, self._files.hashes(known.size, known.root))
        before = count_entries(known.size)
        raise Stale("RolledBack", f"{head.origin} showed {before} before and shows {head.size:,} now")

    def erasures(self, known: Sequence[ErasureRecord]) -> tuple[ErasureRecord, ...]:
        """The whole erasure log, which goes on where *known* ends.

        Raises:
            Invalid: ``BadErasures``, ``BadErasure``. Unreachable.
        """
        head = self._files.erasure_head()
        found = () if head is None else self._files.erasures(head, known)
        if found[: len(known)] != tuple(known):
            raise Invalid("BadErasures", "the erasure log is not the one that it was")
        return found

    def read(self, start: int) -> list[Entry]:
        """The entries from *start* to the end of its page, or to the head's.

        Raises:
            Invalid: ``BadEntryProof`` (not in the tree), ``BadRecord``, ``BadRecords``, ``BadEntry``,
                ``BadLeafSignature``, ``PlaintextMismatch``. Unreachable.
        """
        if self.head is None or start >= self.head.size:
            raise AssertionError("there are no entries beyond the head")
        number, first = start // TILE_WIDTH, start // TILE_WIDTH * TILE_WIDTH
        width = min(TILE_WIDTH, self.head.size - first)
        entries = self._files.entries(number, width)
        if self._hashes is None:
            self._hashes = self._files.hashes(self.head.size, self.head.root)
        hashes = self._hashes([(0, first + place) for place in range(start - first, width)])
        if hashes != [hash_leaf(entry) for entry in entries[start - first:]]:
            raise Invalid("BadEntryProof", f"the entries of bundle {number} are not those of the log's tree")
        lines = self._files.records(number, width)
        found = [
            Entry(entries[place], parse_public_record(lines[place], first + place))
            for place in range(start - first, width)
        ]
        self._check(found)
        return found

    def _check(self, entries: Sequence[Entry]) -> None:
        """Check what was not checked before; what held is remembered batch by batch."""
        origin, first = self._replay.origin, entries[0].record.leaf_index
        held = self._store.digests(origin, first, first + len(entries))
        new = {}
        for entry in entries:
            digest = digest_of(self._replay.secret, entry)
            if not hmac.compare_digest(held.get(entry.record.leaf_index, b""), digest):
                new[entry.record.leaf_index] = (entry, digest)
        items = list(new.items())
        for at in range(0, len(items), BATCH):
            if self._stopping():
                raise Invalid("Stopping", "this verifier is being stopped")
            batch = items[at : at + BATCH]
            keys = self._keys_for([entry for _, (entry, _) in batch])
            for failure in self._pool.map(_failure, [entry for _, (entry, _) in batch], [keys] * len(batch)):
                if failure is not None:
                    raise failure
            self._store.note_digests(origin, {leaf_index: digest for leaf_index, (_, digest) in batch})

    def _keys_for(self, entries: Sequence[Entry]) -> Mapping[bytes, bytes]:
        """The log's leaf keys, read again when an entry names another one."""
        try:
            named = {parse_entry(entry.data)[1].key_hash for entry in entries}
        except EncodingError as error:
            raise Invalid("BadEntry", error.message) from None
        if not named <= self._leaf_keys.keys():
            self._leaf_keys = dict(self._files.leaf_keys())
        return self._leaf_keys


def digest_of(secret: bytes, entry: Entry) -> bytes:
    """Stands for an entry and all its published text, for whoever knows *secret*."""
    plain = json.dumps(dict(sorted(entry.record.plain.items())), ensure_ascii=True).encode("ascii")
    return hmac.digest(secret, pae([entry.data, entry.record.preimage, plain]), "sha256")


def check_entry(entry: Entry, leaf_keys: Mapping[bytes, bytes]) -> None:
    """What the entry's own bytes show: who signed the leaf, and what the published text commits to.

    Raises:
        Invalid: ``BadEntry`` (another preimage), ``BadLeafSignature``, ``PlaintextMismatch``.
        EncodingError: ``BadEntry``.
    """
    record = entry.record
    verify_entry(entry.data, record.preimage, leaf_keys)
    dialect, _ = parse_entry(entry.data)
    try:
        message_from_plain(dialect, record.preimage, record.plain, commitments=True)
    except Invalid as error:
        # A message that means nothing changes nothing: the derivation counts it among the violations.
        if error.name != "BadEntry":
            raise


def _failure(entry: Entry, leaf_keys: Mapping[bytes, bytes]) -> Invalid | None:
    try:
        check_entry(entry, leaf_keys)
    except KtlogError as error:
        return Invalid(error.name, f"entry {entry.record.leaf_index}: {error.message}")
    return None
