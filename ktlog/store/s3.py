"""Tiles, entry bundles and the checkpoint in an S3-compatible bucket, under the paths of tlog-tiles.

A tile's name says all that it depends on, so it is written under the condition that there is none yet, and a late
write of an attempt that was given up can only bring the same bytes. The checkpoint is written under the condition that
it is still the one that was read and checked: a late write of an older one finds another ETag and is refused. Both
rest on the store, which :mod:`ktlog.store.s3probe` asks at the start. (Requirement R10.)

An answer that does not come proves nothing. The object is read back; what cannot be read is ``AMBIGUOUS``.

Spec: c2sp.org/tlog-tiles; S3 "conditional writes".
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

from ktlog.errors import Conflict, KtlogError, StoreError, Unreachable
from ktlog.keymap.updates import parse_update_path
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.published import check_next, is_update, largest
from ktlog.store.s3bucket import Absent, Bucket, Outcome, Still, Stored
from ktlog.tlog.tiles import TILE_WIDTH, parse_tile_path, tile_path

CHECKPOINT = "checkpoint"
MAXIMUM_CHECKPOINT_BYTES = 1 << 20
UPLOADS = 8
"""Tiles that are written at a time."""
PAUSES = (0.0, 0.1, 0.4, 1.6)
"""Seconds before each attempt."""
READ_PAUSES = (0.0, 0.2)

_ETAG = re.compile(r'(?:W/)?(?:"[!#-)+-~][!#-~]*"|[!#-)+-~][!#-~]*)', re.ASCII)
"""Not empty, and not one that begins with an asterisk."""

IMMUTABLE = "public, max-age=31536000, immutable"
FOR_A_DAY = "public, max-age=86400, immutable"
"""Of what is immutable, and goes some day: no cache should keep it for long."""
TILE_TYPE = "application/octet-stream"
NOTE_TYPE = "text/plain; charset=utf-8"


class S3Tiles:
    """``TileStore`` over a bucket: one writer, any number of readers. Safe to use from many threads.

    Args:
        bucket: where; a writer's was probed.
        spell: how the store wants an ETag spelled, as the probe found out.
        fresh_seconds: how old a checkpoint may be that ``checkpoint`` gives. A reader that is asked often
            should not ask the store as often.
        pause: sleeps. ticks: seconds of a clock that never goes back.
    """

    def __init__(
        self, bucket: Bucket, *, spell: Callable[[str], str] = str, fresh_seconds: float = 0.0,
        pause: Callable[[float], None] = time.sleep, ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._bucket = bucket
        self._spell = spell
        self._fresh_seconds = fresh_seconds
        self._pause = pause
        self._ticks = ticks
        self._lock = threading.Lock()
        self._seen: tuple[float, bytes | None] | None = None

    def __str__(self) -> str:
        return str(self._bucket.place)

    # Reading

    def read(self, path: str) -> bytes | None:
        """Content of a tile, an entry bundle or an update, or None when there is no such object.

        Raises:
            EncodingError: "BadTilePath"; the store was not asked.
            Unreachable, StoreError: those of ``Bucket.get``.
        """
        found = self._get(path, largest(path))
        return None if found is None else found.data

    def checkpoint(self) -> bytes | None:
        """The published checkpoint, at most ``fresh_seconds`` old, or None before the first."""
        seen = self._seen
        if seen is not None and self._ticks() - seen[0] < self._fresh_seconds:
            return seen[1]
        asked = self._ticks()
        found = self._get(CHECKPOINT, MAXIMUM_CHECKPOINT_BYTES)
        note = None if found is None else found.data
        self._seen = asked, note
        return note

    def _get(self, key: str, limit: int) -> Stored | None:
        for pause in READ_PAUSES[1:]:
            try:
                return self._bucket.get(key, limit)
            except Unreachable:
                self._pause(pause)
        return self._bucket.get(key, limit)

    # Tiles

    def write_tiles(self, files: Mapping[str, bytes]) -> None:
        """Store every tile, several at a time. See ``ktlog.store.contracts.TileStore``.

        When it returns or raises, no request of it is under way but such as were given up without an answer.

        Raises:
            EncodingError: "BadTilePath"; nothing was written.
            StoreError: "ImmutableChanged", AMBIGUOUS, those of ``Bucket.put``; of several the gravest. Others of the
                tiles may be there.
            Unreachable: the tiles that are missing were not stored.
        """
        for path in files:
            largest(path)
        if not files:
            return
        with ThreadPoolExecutor(min(UPLOADS, len(files)), "tile-upload") as uploads:
            errors = [error for error in uploads.map(self._try_place, files, files.values()) if error is not None]
        if errors:
            raise min(errors, key=_mildness)

    def _try_place(self, path: str, data: bytes) -> KtlogError | None:
        try:
            self._place(path, data)
        except KtlogError as error:
            return error
        return None

    def _place(self, path: str, data: bytes) -> None:
        outcome, doubtful = Outcome.UNSENT, False
        for pause in PAUSES:
            self._wait(pause)
            try:
                cache = FOR_A_DAY if is_update(path) else IMMUTABLE
                outcome = self._bucket.put(path, data, Absent(), content_type=TILE_TYPE, cache=cache)
                doubtful |= outcome is Outcome.UNKNOWN
                if outcome is Outcome.STORED:
                    return
                if outcome in (Outcome.REFUSED, Outcome.UNKNOWN) and self._is_there(path, data):
                    return
            except Unreachable:
                outcome = Outcome.UNSENT  # it was not read back: the next attempt tells more
            except StoreError as error:
                if doubtful and error.name != "ImmutableChanged":
                    raise self._ambiguous(path) from error
                raise
        raise self._given_up(path, outcome, doubtful)

    def _is_there(self, path: str, data: bytes) -> bool:
        """Whether the object is there, as it should be."""
        try:
            found = self._bucket.get(path, len(data))
        except StoreError as error:
            if error.name != "Corrupt":
                raise
            same = False  # it is longer
        else:
            if found is None:
                return False
            same = found.data == data
        if not same:
            raise StoreError(
                "ImmutableChanged", f"{self._bucket.where(path)}: exists with other content, which must never change",
                hint="Something wrote to this bucket, or an older state was restored. Do not delete the object "
                     "before you know which.",
            )
        return True

    def remove_partials(self, path: str) -> int:
        """Remove the partial versions of a full tile. See ``ktlog.store.contracts.TileStore``.

        Raises: as ``read``; StoreError "NotFull".
        """
        tile = parse_tile_path(path)
        # Nothing else begins with the path of a full tile.
        found = self._bucket.keys(path, 2 * TILE_WIDTH) if tile.width == TILE_WIDTH else []
        partials = {tile_path(tile.level, tile.number, width) for width in range(1, TILE_WIDTH)}.intersection(found)
        if tile.width != TILE_WIDTH or (partials and path not in found):
            raise StoreError("NotFull", f"{self._bucket.where(path)}: no full tile that could stand for its parts")
        if partials:
            with ThreadPoolExecutor(min(UPLOADS, len(partials)), "tile-removal") as removals:
                list(removals.map(self._bucket.delete, sorted(partials)))
        return len(partials)

    def remove_update(self, path: str) -> None:
        """Remove an update of the map. See ``ktlog.store.contracts.TileStore``. Raises as ``read``."""
        parse_update_path(path)
        self._bucket.delete(path)

    # The checkpoint

    def publish_checkpoint(self, note: bytes) -> None:
        """Replace the checkpoint that was read and checked. See ``ktlog.store.contracts.TileStore``.

        Raises:
            EncodingError: *note* is no checkpoint.
            Conflict: "WrongOrigin", "CheckpointWithdrawn", "CheckpointChanged"; "CheckpointMoved", it never stayed
                the one that was read.
            StoreError: AMBIGUOUS; "Corrupt", what is published is no checkpoint; those of ``Bucket.put``.
            Unreachable: it was not stored.
        """
        with self._lock:
            outcome, doubtful = Outcome.UNSENT, False
            try:
                for pause in PAUSES:
                    self._wait(pause)
                    try:
                        outcome = self._replace_checkpoint(note)
                    except Unreachable:
                        outcome = Outcome.UNSENT  # it was not read
                    doubtful |= outcome is Outcome.UNKNOWN
                    if outcome is Outcome.STORED:
                        return
                self._confirm(note, outcome, doubtful)
            except (StoreError, Unreachable) as error:
                if doubtful and not isinstance(error, Conflict):
                    raise self._ambiguous(CHECKPOINT) from error
                raise
            finally:
                self._seen = None

    def _replace_checkpoint(self, note: bytes) -> Outcome:
        stored = self._bucket.get(CHECKPOINT, MAXIMUM_CHECKPOINT_BYTES)
        check_next(note, None if stored is None else stored.data, self._bucket.where(CHECKPOINT))
        if stored is not None and stored.data == note:
            return Outcome.STORED
        condition = Absent() if stored is None else Still(self._spell(self._told(stored)))
        return self._bucket.put(CHECKPOINT, note, condition, content_type=NOTE_TYPE, cache="no-cache")

    def _told(self, stored: Stored) -> str:
        """Its ETag. Without one, or with one that stands for any, If-Match would be no condition."""
        if not _ETAG.fullmatch(stored.etag):
            raise StoreError(
                "BadObjectStore", f"{self._bucket.where(CHECKPOINT)}: came without an ETag that could be a condition",
                hint="Something between the log and the object store takes it away. Until then nothing is published.",
            )
        return stored.etag

    def _confirm(self, note: bytes, outcome: Outcome, doubtful: bool) -> None:
        """After the last attempt was not answered well: is it there all the same?"""
        stored = self._bucket.get(CHECKPOINT, MAXIMUM_CHECKPOINT_BYTES)
        if stored is not None and stored.data == note:
            return
        check_next(note, None if stored is None else stored.data, self._bucket.where(CHECKPOINT))
        if outcome is Outcome.REFUSED and not doubtful:
            raise Conflict(
                "CheckpointMoved", f"{self._bucket.where(CHECKPOINT)}: replaced again and again while it was written",
                stored=None if stored is None else stored.data,
                hint="Two processes publish this log, or the object store's conditions do not hold. Find out which.",
            )
        raise self._given_up(CHECKPOINT, outcome, doubtful)

    # Giving up

    def _wait(self, pause: float) -> None:
        if pause:
            self._pause(pause)

    def _given_up(self, key: str, outcome: Outcome, doubtful: bool) -> KtlogError:
        if doubtful:
            return self._ambiguous(key)
        where = self._bucket.where(key)
        if outcome is Outcome.REFUSED:
            return StoreError(
                "BadObjectStore", f"{where}: the object store says that it exists, and that it does not",
                hint="It is not read-after-write, or something removes objects. A log cannot be kept there.",
            )
        return Unreachable("ObjectsUnreachable", f"{where}: not stored: {outcome.value}")

    def _ambiguous(self, key: str) -> StoreError:
        return StoreError(
            AMBIGUOUS, f"{self._bucket.where(key)}: the object store did not say whether it was stored",
            hint="The log starts afresh from what it reads there. If this goes on, look at the object store.",
        )


def _mildness(error: KtlogError) -> int:
    """The gravest error first: a changed tile, a doubt, any other refusal, and last a store that did not answer."""
    if error.name in ("ImmutableChanged", AMBIGUOUS):
        return ("ImmutableChanged", AMBIGUOUS).index(error.name)
    return 2 if isinstance(error, StoreError) else 3
