"""``DIR/acked``: how far the log has answered, outside of the database that holds the entries.

SQLite cuts its write-ahead log off at the first frame that does not hang together, without a word: after a crash that
is a commit that nobody was told of. A bit that flipped there looks the same, and takes entries with it that were
acknowledged and are under no signed head yet. So size and root are written here as well, synced before the answers, and
a store that has less is refused: no index may be given away twice. (Requirement R5, and R14 for what no witness has
seen.)

Two slots are written in turn, each with its own hash, so that a torn write costs the newer and never the older.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from ktlog.durable import file_errors, sync_directory
from ktlog.errors import StoreError
from ktlog.store.contracts import LogStore
from ktlog.words import some

HEADER = b"ktlog-acked/v1\n"
SLOT_BYTES = 512
"""One sector each: what tears one leaves the other."""


@dataclass(frozen=True)
class Acked:
    """Tree size, and the 32-byte root of that many entries."""

    size: int
    root: bytes


def format_slot(acked: Acked) -> bytes:
    """Inverse of :func:`parse_slot`."""
    body = HEADER + acked.size.to_bytes(8, "big") + acked.root
    return (body + sha256(body).digest()).ljust(SLOT_BYTES, b"\0")


def parse_slot(data: bytes) -> Acked | None:
    """None for a slot that was never written whole."""
    at = len(HEADER)
    acked = Acked(int.from_bytes(data[at : at + 8], "big"), data[at + 8 : at + 40])
    return acked if len(acked.root) == 32 and format_slot(acked) == data else None


class AckMark:
    """The file. One thread of one process writes it.

    Raises:
        StoreError: ``AckMarkDamaged``, it has bytes and no whole slot; and those of ``durable.write_atomic``.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with file_errors(path):
            self._handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                data = os.pread(self._handle, 2 * SLOT_BYTES, 0)
            except BaseException:
                os.close(self._handle)
                raise
        slots = [parse_slot(data[at : at + SLOT_BYTES]) for at in (0, SLOT_BYTES)]
        whole = [acked for acked in slots if acked is not None]
        # The first slot of a new file may be torn: nothing was answered before it was whole.
        if not whole and len(data) > SLOT_BYTES:
            self.close()
            raise StoreError(
                "AckMarkDamaged", f"{path} is damaged: how far the log has answered is not known",
                hint="Compare the log's size with the newest receipts and the web workers' logs; then remove the file.",
            )
        self.acked = max(whole, key=lambda acked: acked.size, default=None)
        self._next = 0 if self.acked is None or self.acked == slots[1] else 1
        sync_directory(path.parent)

    def check(self, store: LogStore) -> None:
        """Refuse a store that has not what was answered for.

        Raises:
            StoreError: ``EntriesLost``.
        """
        if self.acked is None:
            return
        have = store.state().size
        if have < self.acked.size or store.root_after(self.acked.size) != self.acked.root:
            raise StoreError(
                "EntriesLost",
                f"{some(self.acked.size, 'entry was', 'entries were')} acknowledged; the store has {have:,}, or others",
                hint="The store lost its end, or is an older copy. Restore the newest: no index is given away twice."
                     f" If they are lost for good, tell their senders, and remove {self._path}.",
            )

    def advance(self, size: int, root: bytes) -> None:
        """Durably, before anybody is told that there are *size* entries.

        Raises:
            StoreError: nobody may be told.
        """
        with file_errors(self._path):
            os.pwrite(self._handle, format_slot(Acked(size, root)), self._next * SLOT_BYTES)
            os.fdatasync(self._handle)
        self.acked, self._next = Acked(size, root), 1 - self._next

    def close(self) -> None:
        with suppress(OSError):
            os.close(self._handle)
