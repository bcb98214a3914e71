"""The high-water mark: how much this witness has recorded, kept outside its database.

A copy of ``witness.db`` that was restored from a backup looks in every way like the record of a witness that never
went on from there, and whoever starts it cosigns a second history. The mark tells the two apart. It is a count of
everything that may never be taken back (each checkpoint recorded, each piece of evidence), written after the
transaction that counts it is on the disk, and on the disk itself before an answer leaves: so it is never ahead of a
record that lost nothing, and never behind an answer.

The file has two slots, written in turn, each in a disk block of its own: a write that the power cut short spoils one,
and the other is still right, or behind by what nobody was told.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from ktlog import durable
from ktlog.errors import StoreError

FORMAT = "ktlog-witness-mark/v1"
SLOT_BYTES = 4096

#: Kill points: a slot is written and not synced yet, and it is synced but not answered for.
MARK_WRITTEN, MARK_SYNCED = HOOKS = ("witness.mark_written", "witness.mark_synced")

_LOG = logging.getLogger("ktlog.witness")


def identify(vkeys: Sequence[str]) -> str:
    """What a mark calls its witness: a digest of the keys that it signs with."""
    return sha256("\n".join(sorted(vkeys)).encode()).hexdigest()


class Mark:
    """An open mark. Its writes are serialised; an error of one is for the caller to stop at."""

    def __init__(
        self, path: Path, handle: int, witness: str, count: int, slot: int, reach: Callable[[str], None]
    ) -> None:
        """Use :func:`open_mark`. slot: where the next write goes, which is not where the newest count is."""
        self.path, self.count = path, count
        self._handle, self._witness, self._slot = handle, witness, slot
        self._lock = threading.Lock()
        self._reach = reach

    def advance(self, by: int) -> None:
        """Count *by* more, durably.

        Raises:
            StoreError: it may or may not be on the disk; do not go on.
        """
        with self._lock, durable.file_errors(self.path):
            os.pwrite(self._handle, _slot(self._witness, self.count + by), self._slot * SLOT_BYTES)
            self._reach(MARK_WRITTEN)
            os.fdatasync(self._handle)
            self.count += by
            self._slot = 1 - self._slot
        self._reach(MARK_SYNCED)

    def close(self) -> None:
        with self._lock, suppress(OSError):
            handle, self._handle = self._handle, -1
            os.close(handle)


def open_mark(
    path: Path, vkeys: Sequence[str], recorded: int, reach: Callable[[str], None] = durable.reach
) -> Mark:
    """The mark at *path* of the witness with *vkeys*, held against a record that counts *recorded*.

    A record of nothing needs no mark yet, and gets one.

    Raises:
        StoreError: "MarkMissing", "MarkDamaged", "ForeignMark", "RecordRolledBack"; or it cannot be read or written.
    """
    witness = identify(vkeys)
    found = durable.read_file(path)
    if found is None and recorded:
        raise StoreError(
            "MarkMissing", f"{path}, the high-water mark of this witness, is missing, so nothing says that its record"
            f" ({recorded} writes) is the newest",
            hint="Give its place with --mark if it is elsewhere. If you know that witness.db was not restored from a"
                 " copy, say so: ktlog-witness set-mark --dir DIR --record-is-the-newest, with the --mark of serve.",
        )
    if found is None:
        write_mark(path, vkeys, 0)
        found = _whole(witness, 0)
    count, newest = _read(path, found, witness)
    if count > recorded:
        raise StoreError(
            "RecordRolledBack", f"witness.db counts {recorded} writes, and this witness had {count} of them"
            f" ({path}): it is an older copy",
            hint="Put back the newest witness.db, with witness.db-wal if there is one. If it is lost for good, this"
                 " name and these keys must never sign again: make a new witness with ktlog-witness init, in another"
                 " directory, and tell those who trust the old one.",
        )
    with durable.file_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    mark = Mark(path, handle, witness, count, 1 - newest, reach)
    if count < recorded:
        # It died between the two writes, and told nobody; or the mark itself was restored from a copy.
        _LOG.warning("the high-water mark was %d writes behind the record", recorded - count)
        try:
            mark.advance(recorded - count)
        except BaseException:
            mark.close()
            raise
    return mark


def write_mark(path: Path, vkeys: Sequence[str], recorded: int) -> None:
    """Make the mark anew, whatever is there, unless that is a mark of this witness which the record is behind of.

    Raises:
        StoreError: "RecordRolledBack", "ForeignMark"; or it cannot be written.
    """
    witness = identify(vkeys)
    found = durable.read_file(path)
    if found is not None:
        try:
            count, _ = _read(path, found, witness)
        except StoreError as error:
            if error.name != "MarkDamaged":
                raise
            count = 0
        if count > recorded:
            raise StoreError(
                "RecordRolledBack", f"witness.db counts {recorded} writes, and the mark {count}: it is an older copy,"
                " so it is not the newest record",
            )
    durable.write_atomic(path, _whole(witness, recorded), 0o600)


def _read(path: Path, data: bytes, witness: str) -> tuple[int, int]:
    """The highest count, and in which slot it is."""
    counts = {}
    for slot in (0, 1):
        with suppress(ValueError, KeyError, TypeError):
            members = json.loads(data[slot * SLOT_BYTES : (slot + 1) * SLOT_BYTES])
            if members["check"] == _check(members["witness"], members["count"]):
                counts[slot] = members
    if not counts:
        raise StoreError(
            "MarkDamaged", f"{path} is no high-water mark",
            hint="Put it back. If you know that witness.db was not restored from a copy, make it anew:"
                 " ktlog-witness set-mark --dir DIR --record-is-the-newest, and --mark too if serve has it.",
        )
    if any(members["witness"] != witness for members in counts.values()):
        raise StoreError("ForeignMark", f"{path} is the high-water mark of another witness",
                         hint="Each witness has its own; give this one's with --mark.")
    newest = max(counts, key=lambda slot: counts[slot]["count"])
    return counts[newest]["count"], newest


def _whole(witness: str, count: int) -> bytes:
    return _slot(witness, count) * 2


def _slot(witness: str, count: int) -> bytes:
    members = {"format": FORMAT, "witness": witness, "count": count, "check": _check(witness, count)}
    return json.dumps(members).encode("ascii").ljust(SLOT_BYTES - 1) + b"\n"


def _check(witness: str, count: int) -> str:
    return sha256(f"{FORMAT} {witness} {count:d}".encode()).hexdigest()
