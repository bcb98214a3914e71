"""The store of a log that is mirrored here: the same file, filled with what another log published.

A mirror may come late, and then finds text withheld; and it follows erasures that it did not make. All
else is the contract of ``ktlog.store.contracts``: the readers of a log read its mirror too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping, Sequence

from ktlog.errors import StoreError
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.replay import Tombstone
from ktlog.store import erasure_rows, rows
from ktlog.store.batch import check_batch, lost
from ktlog.store.contracts import Batch, LogState
from ktlog.store.erasing import without
from ktlog.store.sqlite import SqliteStore, insert_batch

Tombstones = Mapping[bytes, Tombstone]
"""By map index."""


class MirrorStore(SqliteStore):
    """``SqliteStore`` for the one process that mirrors a log. It calls neither ``commit`` nor ``erase``."""

    def append(self, batch: Batch, tombstones: Tombstones) -> None:
        """Store *batch*, some of whose records may withhold text, and what was erased while it was logged.

        Raises:
            StoreError, Conflict: as ``commit``.
        """
        check_batch(batch, mirrored=True)
        with self._connections.writing() as db:
            insert_batch(db, batch)
            for record in batch.records:
                if record.withheld:
                    rows.replace_plain(db, record)
            _write_tombstones(db, tombstones)

    def follow_erasures(
        self, expected: LogState, records: Sequence[ErasureRecord], withheld: Mapping[int, frozenset[str]],
        gone: Collection[str], tombstones: Tombstones,
    ) -> None:
        """Take away what the mirrored log took away, in one transaction. From then on a scrub is due.

        Args:
            records: the next ones of the erasure log; they may take effect beyond the entries stored so far.
            withheld: the attributes by leaf index that are readable here until now.
            gone: every actor stored that the entries lead to no more.

        Raises:
            Conflict: "StateMoved", "Fenced".
            StoreError: "BadErasure", it names what is not there.
        """
        with self._connections.writing() as db:
            stored = rows.read_state(db)
            if (stored.size, stored.root, stored.epoch) != (expected.size, expected.root, expected.epoch):
                raise lost(stored, expected)
            for leaf_index, names in sorted(withheld.items()):
                (record,) = rows.read_records(db, leaf_index, leaf_index + 1)
                if any(record.plain.get(name) is None for name in names):
                    raise StoreError("BadErasure", f"entry {leaf_index} has not all that it is to withhold")
                rows.replace_plain(db, without(record, names))
            for actor_id in sorted(gone):
                erasure_rows.delete_actor(db, actor_id)
            for record in records:
                erasure_rows.insert_erasure(db, record)
            _write_tombstones(db, tombstones)
            if withheld or gone:
                erasure_rows.set_scrub_due(db, True)


def _write_tombstones(db: sqlite3.Connection, tombstones: Tombstones) -> None:
    for index, item in tombstones.items():
        erasure_rows.write_tombstone(db, index, item.version, item.generation, item.erasures)
