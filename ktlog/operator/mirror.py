"""Mirrors one log into a store of our own, from its public files alone.

::

    checkpoint ─ signature ─ two roots? ─ not behind ─ quorum ─ age ─ contains what was mirrored?
    the erasure log ─ only grows
    something erased, or a day gone by: every record again ─ replayed from 0 ─ text taken away here too
    new pages of 256 ─ in the tree ─ checked and replayed (follower.py) ─ one transaction each
    tiles, then the checkpoint: from then on the new entries are shown

Nothing of a page that does not hold is stored, and the checkpoint shown is always one whose whole tree
held. An erasure between two requests takes text away that the erasure log as read did not explain: then
all begins again, and only a log that withholds without ever saying so is at fault.

Spec: directory map §4 and §5; PKD, "Mirror Plaintext Cache Invalidation".
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ktlog.client.erasures import ErasureHead
from ktlog.client.publicfiles import FileGetter, PublicFiles, PublicRecord, parse_public_record
from ktlog.client.verify import (
    DEFAULT_MAX_AGE_SECONDS,
    Head,
    check_cosigned,
    check_extends,
    check_not_smaller,
    check_two_roots,
    open_head,
    open_remembered,
)
from ktlog.durable import make_directories, read_file, write_atomic
from ktlog.errors import EncodingError, Forked, Invalid, KtlogError, StoreError
from ktlog.operator.follower import Follower
from ktlog.operator.mapcopy import MapCopy
from ktlog.operator.nodes import LogNodes
from ktlog.operator.sources import Source, load_status, save_status
from ktlog.pkd.actors import Actor
from ktlog.pkd.dialects import DIALECTS, Dialect
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.erasure import ErasureRecord, map_index
from ktlog.pkd.keys import encode_public_key
from ktlog.store.contracts import Batch, Record
from ktlog.store.erasing import without
from ktlog.store.mirror import MirrorStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.tiles import TILE_WIDTH, TileHashReader, tile_nodes, tile_path, tiles_between
from ktlog.tlog.tree import hash_leaf
from ktlog.words import count_entries

REREAD_SECONDS = 12 * 3_600
"""How often every record is read again. The specification has a mirror look once a day."""

SAMPLE = 16
"""Entries of each page whose plaintext commitments are checked, drawn by chance; of a page with fewer, all."""

log = logging.getLogger("ktlog.replicas")

ATTEMPTS = 3
_IDS_AT_A_TIME = 1_000


@dataclass(frozen=True)
class _Reading:
    """What one poll is based on: a head that holds, its tree's hashes, the erasure log, the leaf keys."""

    head: Head
    hashes: TileHashReader
    erasures: tuple[ErasureRecord, ...]
    leaf_keys: dict[bytes, bytes]


class Mirror:
    """Follows *source*. One process at a time, one thread at a time.

    Args:
        now: Unix seconds.
        chance: draws the samples; the source must not be able to foresee them.
        files: where the source's files are read, if not at the source.
        max_age: seconds that the cosignatures of its head may be old.

    Raises:
        StoreError: what is mirrored already cannot be read.
    """

    def __init__(
        self, source: Source, fetcher: FileGetter, now: Callable[[], int], chance: random.Random | None = None, *,
        files: PublicFiles | None = None, max_age: int = DEFAULT_MAX_AGE_SECONDS,
    ) -> None:
        self.source = source
        self._files = files or PublicFiles(fetcher, source.log.url)
        self._max_age = max_age
        self._now = now
        self._chance = chance or random.SystemRandom()
        make_directories(source.directory.parent.parent, source.directory)
        self._tiles = TileFiles.create(source.tiles)
        self._map_copy = MapCopy(source, PublicFiles(fetcher, f"{self._files.url}/map"))
        self._store: MirrorStore | None = None
        self._follower: Follower | None = None
        self._erasures_read: ErasureHead | None = None
        self.status = load_status(source)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None
        self._follower = None

    def poll(self) -> None:
        """Bring the mirror up to the source's checkpoint.

        Raises:
            KtlogError: whatever the source did, or did not; its name is in the status. Nothing of what
                did not hold was stored. ``Forked``: evidence is beside the store, and the source is asked no more.
        """
        if self.status.stopped:
            raise StoreError(
                "MirrorStopped", f"{self.source.log.origin} was convicted of a fork ({self.status.error})",
                hint=f"The evidence is in {self.source.directory}. Remove status.json there to follow it all the same.",
            )
        try:
            self._poll_patiently()
        except KtlogError as error:
            # What is in memory may be ahead of the store, or wrong.
            self.close()
            if isinstance(error, Forked):
                self._keep_evidence(error)
            self._note(error=error.name, stopped=isinstance(error, Forked))
            raise

    def _poll_patiently(self) -> None:
        for _ in range(ATTEMPTS - 1):
            try:
                self._poll()
                return
            except Invalid:
                self.close()
                if not self._erased_meanwhile():
                    raise
        self._poll()

    def _erased_meanwhile(self) -> bool:
        with suppress(KtlogError):
            return self._erasures_read is not None and self._files.erasure_head() != self._erasures_read
        return False

    def _poll(self) -> None:
        store = self._open_store()
        remembered = self._remembered()
        head = self._read_head(remembered)
        hashes = self._files.hashes(head.size, head.root)
        if remembered is not None:
            check_extends(self.source.log, remembered, head, hashes)
        # Before anything rests on it: a later head has to contain this one, also after a crash.
        write_atomic(self._newest_head, head.note)
        known = () if store is None else store.erasures(0, store.erasure_count())
        size = 0 if store is None else store.state().size
        erasures = self._read_erasures(known, size)
        reading = _Reading(head, hashes, erasures, dict(self._files.leaf_keys()))
        keys = [encode_public_key(key) for key in reading.leaf_keys.values()]
        if read_file(self.source.leaf_keys) != (told := json.dumps({"leaf-keys": keys}).encode()):
            write_atomic(self.source.leaf_keys, told)
        status = self.status
        rereading = len(erasures) > len(known) or self._now() - status.last_reread >= REREAD_SECONDS
        started = self._now() if rereading or store is None else status.last_reread
        if store is not None and rereading:
            self._note(erasing=status.erasing or len(erasures) > len(known))
            self._reread(store, reading, erasures[len(known):])
        elif store is not None and self._follower is None:
            self._follower = self._remember(store, reading)
        if size < head.size:
            for number in range(size // TILE_WIDTH, -(-head.size // TILE_WIDTH)):
                self._append_page(reading, number)
        if self._follower is not None:
            self._follower.check_erasures()
            self._show(head)
        self._succeed(head, started)

    # What the source says of itself

    def _open_store(self) -> MirrorStore | None:
        """The store; None before the first entry, because the log's dialect is not known earlier."""
        if self._store is None and self.source.database.exists():
            self._store = MirrorStore(self.source.database, origin=self.source.log.origin)
            self._store.claim_epoch()
        return self._store

    @property
    def _newest_head(self) -> Path:
        return self.source.directory / "newest-head"

    def _remembered(self) -> Head | None:
        """The newest head that held; what is shown may be an older one."""
        note = read_file(self._newest_head)
        return None if note is None else open_remembered(note, self.source.log)

    def _read_head(self, remembered: Head | None) -> Head:
        head = open_head(self._files.checkpoint(), self.source.log)
        if remembered is not None:
            check_two_roots(self.source.log, remembered, head)
            check_not_smaller(remembered, head)
        check_cosigned(head, self.source.policy, self._now(), self._max_age)
        return head

    def _read_erasures(self, known: tuple[ErasureRecord, ...], size: int) -> tuple[ErasureRecord, ...]:
        """The erasure log, which goes on where the one known ends, and takes effect after what is stored.

        No honest log publishes an erasure that takes effect earlier: it appears with the first
        checkpoint that covers it, and the erasures are read after the checkpoint.
        """
        self._erasures_read = head = self._files.erasure_head()
        if head is None:
            raise Invalid("MissingErasures", f"{self._files.url}/erasures is not there")
        erasures = self._files.erasures(head, known)
        if erasures[: len(known)] != known:
            raise Invalid("BadErasures", "the erasure log is not the one that it was")
        if any(record.input_size < size for record in erasures[len(known):]):
            raise Invalid("BadErasure", f"an erasure takes effect before entry {size}, and was not there then")
        return erasures

    # Reading again what is stored

    def _remember(self, store: MirrorStore, reading: _Reading) -> Follower:
        """The directory as the store's own records lead to it; they were checked when they were stored."""
        follower = self._new_follower(DIALECTS[store.dialect], reading)
        for record in _records(store):
            shown = PublicRecord(record.leaf_index, record.preimage, record.plain, record.salts)
            follower.take(record.entry, shown, commitments=False, signed=False)
        return follower

    def _reread(self, store: MirrorStore, reading: _Reading, fresh: tuple[ErasureRecord, ...]) -> None:
        """Compare every record with the source's, replay them all, and take away what the source took away."""
        follower = self._new_follower(DIALECTS[store.dialect], reading)
        withheld: dict[int, frozenset[str]] = {}
        lines: list[bytes] = []
        for record in _records(store):
            place = record.leaf_index % TILE_WIDTH
            if place == 0:
                number = record.leaf_index // TILE_WIDTH
                lines = self._files.records(number, min(TILE_WIDTH, reading.head.size - record.leaf_index))
            shown = parse_public_record(lines[place], record.leaf_index)
            names = _newly_withheld(record, shown)
            if names:
                withheld[record.leaf_index] = names
            follower.take(record.entry, shown, commitments=False, signed=False)
        if withheld and not fresh:
            count = count_entries(len(withheld))
            raise Invalid("RecordWithheld", f"the text of {count} is withheld, and nothing was erased")
        follower.check_erasures()
        gone = _check_actors(store, follower)
        named = {record.index for record in fresh}
        if any(map_index(store.origin, actor_id) not in named for actor_id in gone):
            raise Invalid("BadErasure", "text of an actor is withheld, and the erasures name somebody else")
        if fresh:
            store.follow_erasures(store.state(), fresh, withheld, gone, follower.tombstones(follower.size - 1))
            store.scrub()
        self._follower = follower

    def _new_follower(self, dialect: Dialect, reading: _Reading) -> Follower:
        return Follower(self.source.log.origin, dialect, reading.erasures, reading.leaf_keys)

    # Going on

    def _append_page(self, reading: _Reading, number: int) -> None:
        """Read, check and store what is new of one page."""
        first = number * TILE_WIDTH
        width = min(TILE_WIDTH, reading.head.size - first)
        entries, lines = self._files.entries(number, width), self._files.records(number, width)
        if reading.hashes([(0, first + place) for place in range(width)]) != [hash_leaf(entry) for entry in entries]:
            raise Invalid("BadEntryProof", f"the entries of bundle {number} are not those of the log's tree")
        follower = self._follower = self._follower or self._new_follower(_dialect_of(entries[0]), reading)
        start = follower.size
        chosen = frozenset(self._chance.sample(range(start, first + width), min(SAMPLE, first + width - start)))
        records, changes = [], []
        for place in range(start - first, width):
            shown = parse_public_record(lines[place], first + place)
            record, change = follower.take(entries[place], shown, commitments=first + place in chosen)
            records.append(replace(record, accepted=self._now()))
            changes.append(change)
        follower.check_erasures()
        store = self._open_store() or self._make_store(follower)
        expected = store.state()
        if not records or expected.size != start:
            raise StoreError("MirrorMoved", "somebody else writes to this mirror")
        store.append(
            Batch(expected, tuple(records), follower.state(expected.epoch), tuple(changes)), follower.tombstones(start)
        )
        texts = [sum(text is not None for text in record.plain.values()) for record in records]
        checked = sum(count for record, count in zip(records, texts, strict=True) if record.leaf_index in chosen)
        self.status = replace(
            self.status, checked=self.status.checked + checked, total=self.status.total + sum(texts)
        )

    def _make_store(self, follower: Follower) -> MirrorStore:
        """Begin the store, once the first page of the log was found to hold."""
        MirrorStore.create(self.source.database, self.source.log.origin, follower.dialect.name).close()
        store = self._open_store()
        if store is None:
            raise StoreError("MissingStore", f"{self.source.database} was just made, and is not there")
        store.follow_erasures(store.state(), follower.erasures, {}, (), {})
        return store

    def _show(self, head: Head) -> None:
        """Write the tiles of the new tree and then its checkpoint, with which it is shown."""
        if self._store is None:
            raise AssertionError("entries were followed without a store")
        shown = self._tiles.checkpoint()
        if shown == head.note:
            return
        old_size = 0 if shown is None else open_remembered(shown, self.source.log).size
        if self._store.root_after(head.size) != head.root:
            raise Invalid("BadEntryProof", f"the entries do not make up the root of {count_entries(head.size)}")
        nodes = LogNodes(self._store, self._tiles.read, old_size)
        self._tiles.write_tiles({
            tile_path(tile.level, tile.number, tile.width): b"".join(nodes(tile_nodes(tile)))
            for tile in tiles_between(old_size, head.size)
        })
        self._tiles.publish_checkpoint(head.note)

    def _succeed(self, head: Head, last_reread: int) -> None:
        taken = {} if self._follower is None else self._follower.directory.taken
        if self._store is not None and self._store.scrub_due():
            self._store.scrub()
        self._copy_map()
        self._note(
            tree_size=head.size, last_success=self._now(), last_reread=last_reread, error=None, erasing=False,
            taken={str(leaf_index): why for leaf_index, why in taken.items()},
        )

    def _copy_map(self) -> None:
        """Keep what the log's own operator would need of its map. It costs the mirror nothing when that fails."""
        try:
            self._map_copy.follow()
        except KtlogError as error:
            if error.name != "NoCheckpoint":
                log.warning("the map of %s is not copied: %s", self.source.log.origin, error.name)

    def _note(self, **changes: object) -> None:
        self.status = replace(self.status, **changes)
        save_status(self.source, self.status)

    def _keep_evidence(self, error: Forked) -> None:
        if error.evidence is not None:
            write_atomic(self.source.directory / f"evidence-{self._now()}.txt", error.evidence)


def _dialect_of(entry: bytes) -> Dialect:
    try:
        return parse_entry(entry)[0]
    except EncodingError as error:
        raise Invalid("BadEntry", f"entry 0: {error.message}") from error


def _records(store: MirrorStore) -> Iterator[Record]:
    size = store.state().size
    for start in range(0, size, TILE_WIDTH):
        yield from store.records(start, min(start + TILE_WIDTH, size))


def _newly_withheld(record: Record, shown: PublicRecord) -> frozenset[str]:
    """What of *record* the source shows no more.

    Raises:
        Invalid: ``RecordChanged``, it shows anything else than before.
    """
    names = frozenset(
        name for name, text in record.plain.items() if text is not None and shown.plain.get(name, text) is None
    )
    left = without(record, names)
    if (shown.preimage, shown.plain, shown.salts) != (left.preimage, left.plain, left.salts):
        raise Invalid("RecordChanged", f"the record of entry {record.leaf_index} is not what it was")
    return names


def _check_actors(store: MirrorStore, follower: Follower) -> frozenset[str]:
    """The actors that are stored and that the entries lead to no more. Everybody else is as stored.

    Raises:
        Invalid: ``BadErasure``, an erasure changed somebody whom it does not erase.
    """
    actors, gone, count, after = follower.directory.actors, set(), 0, ""
    while ids := store.actor_ids(after, _IDS_AT_A_TIME):
        after = ids[-1]
        for actor_id in ids:
            replayed, stored = actors.get(actor_id), store.actor(actor_id)
            if replayed is None:
                gone.add(actor_id)
            elif stored is None or _public(replayed) != _public(stored):
                raise Invalid("BadErasure", "with the erasure log as it is, an actor who is not erased is another")
            else:
                count += 1
    if count != len(actors):
        raise Invalid("BadErasure", "with the erasure log as it is, there is an actor who was not there")
    return frozenset(gone)


def _public(actor: Actor) -> Actor:
    """An actor less what an erasure of somebody else may hide: which keys it revoked before it moved."""
    return replace(actor, revoked=frozenset())
