"""What a witness must never forget, in one SQLite file.

The promises, each of which a test tries to break:

* A checkpoint is recorded by compare-and-set on its revision, in one transaction that is on
  the disk (WAL, synchronous=FULL) before ``record_checkpoint`` returns. Those that come at one time share one.
* The high-water mark (``mark``), if there is one, counts it before ``record_checkpoint`` returns.
* Sizes never fall, a size never changes its root, cosigning times never fall, and neither logs,
  keys, checkpoints nor evidence are ever deleted: triggers refuse it, whatever the caller does.
* After a write whose outcome is unknown the store refuses every further write. What is on
  the disk is true; what this process believes may not be.
* A missing database is refused; only ``create`` makes one.
* A key that was retired is trusted again by the operator's word alone, and no checkpoint is recorded that was judged
  by other keys than the log has when it is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from ktlog import durable, sqlitefile
from ktlog.errors import Conflict, KtlogError, StoreError, UsageError
from ktlog.tlog.evidence import Evidence, format_evidence
from ktlog.tlog.note import Vkey
from witness.decide import Cosigned
from witness.group import Group, Ticket
from witness.mark import Mark, open_mark
from witness.migrate import migrate
from witness.reading import BY_HAND, Conviction, Log, Reader, hash_origin, is_retired
from witness.recall import Recall
from witness.schema import OLDEST_READER, SCHEMA_VERSION, schema_statements

__all__ = ["AFTER_COMMIT", "BEFORE_COMMIT", "BY_HAND", "Conviction", "Log", "WitnessStore", "hash_origin"]

#: The kill points of one accepted request, in their order. "checked" (see web.py) lies between
#: the judgement and the transaction; the other two lie on both sides of COMMIT.
BEFORE_COMMIT = "witness.before_commit"
AFTER_COMMIT = "witness.after_commit"

#: Per origin. One piece of evidence convicts a log for good; a log that keeps forking must
#: not be able to fill our disk.
MAX_EVIDENCE = 100

#: Of a new database, in bytes. A record with two cosignatures fills one such page, and writing it costs no more.
PAGE_SIZE = 4096

# A log that was convicted since it was judged gets no signature, and neither does one whose keys are others since.
_INSERT = (
    "INSERT INTO checkpoints (revision, size, root, time, note, origin) SELECT ?1, ?2, ?3, ?4, ?5, ?6"
    " WHERE (?7 IS NULL OR (SELECT count(*) FROM log_keys WHERE origin = ?6)"
    " + (SELECT count(*) + count(restored) FROM retirements WHERE origin = ?6) = ?7)"
    " AND NOT EXISTS (SELECT 1 FROM freezes WHERE origin = ?6 AND lifted IS NULL) ON CONFLICT (origin) DO NOTHING"
)
_UPDATE = (
    "UPDATE checkpoints SET revision = ?1, size = ?2, root = ?3, time = ?4, note = ?5"
    " WHERE origin = ?6 AND revision = ?1 - 1"
    " AND (?7 IS NULL OR (SELECT count(*) FROM log_keys WHERE origin = ?6)"
    " + (SELECT count(*) + count(restored) FROM retirements WHERE origin = ?6) = ?7)"
    " AND NOT EXISTS (SELECT 1 FROM freezes WHERE origin = ?6 AND lifted IS NULL)"
)

#: What is to be recorded, and how many changes of its log's keys the judgement knew of; None: all there are.
Judged = tuple[Cosigned, int | None]


class WitnessStore(Reader):
    """One connection under one lock; safe to use from many threads, not across a fork."""

    def __init__(
        self, path: Path, connection: sqlite3.Connection, reach: Callable[[str], None] = durable.reach
    ) -> None:
        """Use ``create`` or ``open``."""
        super().__init__(path, connection)
        self._reach = reach
        self._mark: Mark | None = None
        self._group: Group[Judged] = Group(self._record_all)
        self._recall = Recall()
        self._data_version = 0
        self._counted = 0  # of what the mark counts: as much as this process knows of

    @classmethod
    def create(cls, path: Path, name: str, vkeys: Sequence[Vkey], now: int) -> WitnessStore:
        """Make the database of a new witness, in one transaction. Refuses a file that exists.

        Raises:
            StoreError: "StoreExists", or it cannot be written.
        """
        connection = sqlitefile.open_database(path, create=True, page_size=PAGE_SIZE)
        with sqlitefile.database_errors(path):
            connection.execute("BEGIN IMMEDIATE")
            for statement in schema_statements():
                connection.execute(statement)
            connection.execute(
                "INSERT INTO witness VALUES (1, ?, ?, ?, ?)", (SCHEMA_VERSION, OLDEST_READER, name, now)
            )
            connection.executemany(
                "INSERT INTO witness_keys (vkey) VALUES (?)", [(str(vkey),) for vkey in vkeys]
            )
            connection.execute("COMMIT")
        return cls(path, connection)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        read_only: bool = False,
        beside_daemon: bool = False,
        reach: Callable[[str], None] = durable.reach,
    ) -> WitnessStore:
        """Open the database that ``create`` made. One of an older schema is brought up to date, unless *read_only*.

        Args:
            beside_daemon: for a command that writes while ``serve`` may be running: it leaves
                checkpoints of the write-ahead log to the daemon (see sqlitefile.open_database).

        Raises:
            StoreError: missing, damaged, or written by newer code. "OlderSchema", beside a daemon.
        """
        connection = sqlitefile.open_database(path, read_only=read_only)
        try:
            if beside_daemon:
                with sqlitefile.database_errors(path):
                    connection.execute("PRAGMA wal_autocheckpoint=0")
            store = cls(path, connection, reach)
            if store.schema_version >= SCHEMA_VERSION or read_only:
                return store
            if beside_daemon:
                raise StoreError(
                    "OlderSchema", f"{path} has schema {store.schema_version}; this code writes {SCHEMA_VERSION}",
                    hint="Start the witness once with this release; that brings its database up to date.",
                )
            migrate(path, connection, reach)
            return cls(path, connection, reach)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._connection.close()
            if self._mark is not None:
                self._mark.close()

    def keep_mark(self, path: Path) -> None:
        """Hold the record against the high-water mark at *path*, and count every write there from now on.

        Raises:
            StoreError: see open_mark.
        """
        self._counted = self.count_writes()
        self._mark = open_mark(path, self.vkeys, self._counted, self._reach)

    # --- remembering

    def log(self, origin: str) -> Log | None:
        """The log of that origin, read in one piece; None when it is unknown."""
        log = super().log(origin)
        if log is not None:
            self._recall.keep(log)
        return log

    def recall(self, origin: str) -> Log | None:
        """The log of that origin as this process last saw it, without the note; None when it must be read.

        It may be older than the record: a key or a limit may have been added, or a freeze lifted, by another process,
        and a checkpoint recorded just now. Good enough to accept by, since ``record_checkpoint`` compares.
        """
        return self._recall.get(origin)

    def forget(self, origin: str) -> None:
        """Read that log anew the next time."""
        self._recall.forget(origin)

    def _notice_others(self, database: sqlite3.Connection) -> bool:
        """What a command beside this process has written (keys, limits, a freeze lifted) holds from here on."""
        version = database.execute("PRAGMA data_version").fetchone()[0]
        changed = version != self._data_version
        if changed:
            self._data_version = version
            self._recall.forget_all()
        return changed

    def _to_count(self, database: sqlite3.Connection, own: int, *, others: bool) -> int:
        """How far the mark has to go for this transaction, which ends here, and for commands beside this process."""
        by = own
        if self._mark is not None and others:
            by = self._count_writes(database) - self._counted
        self._counted += by
        return by

    # --- writing

    def add_log(
        self, origin: str, vkeys: Sequence[Vkey], now: int, per_day: int | None = None, *, again: bool = False
    ) -> tuple[Vkey, ...]:
        """Follow *origin* under each of *vkeys*, beside the keys it has; returns the new keys.

        With *per_day* it may have so many submissions signed a day.

        There is no way to remove a log or a key: one that was removed and added again would
        start without its record, and that is a split view. With *again* a key that was retired is trusted as before.

        Raises:
            UsageError: "KeyCollision": another key of the origin has that name and key id. "KeyRetired".
        """
        with self.writing() as database:
            added = self.insert_log(database, origin, vkeys, now, again=again)
            if per_day is not None:
                self.insert_limit(database, origin, BY_HAND, per_day, "")
        self.forget(origin)
        return added

    @staticmethod
    def insert_limit(database: sqlite3.Connection, origin: str, source: str, per_day: int, contact: str) -> None:
        """Let *origin* submit *per_day* times, as *source* has it; inside a transaction."""
        database.execute(
            "INSERT INTO log_limits VALUES (?, ?, ?, ?) ON CONFLICT (origin, source) DO UPDATE"
            " SET per_day = excluded.per_day, contact = excluded.contact"
            " WHERE (per_day, contact) IS NOT (excluded.per_day, excluded.contact)", (origin, source, per_day, contact),
        )

    @staticmethod
    def insert_log(
        database: sqlite3.Connection, origin: str, vkeys: Sequence[Vkey], now: int, *, again: bool = False
    ) -> tuple[Vkey, ...]:
        """``add_log`` inside a transaction."""
        added = []
        database.execute("INSERT OR IGNORE INTO logs VALUES (?, ?, ?)", (origin, hash_origin(origin), now))
        for vkey in vkeys:
            known = database.execute(
                "SELECT vkey FROM log_keys WHERE origin = ? AND name = ? AND key_id = ?",
                (origin, vkey.name, vkey.key_id),
            ).fetchone()
            if known is None:
                database.execute(
                    "INSERT INTO log_keys VALUES (?, ?, ?, ?, ?)",
                    (origin, vkey.name, vkey.key_id, str(vkey), now),
                )
                added.append(vkey)
            elif known[0] != str(vkey):
                raise UsageError("KeyCollision", f"{origin} has another key with the id of {vkey}")
            elif again:
                restored = database.execute(
                    "UPDATE retirements SET restored = ? WHERE origin = ? AND name = ? AND key_id = ?"
                    " AND restored IS NULL", (now, origin, vkey.name, vkey.key_id),
                )
                added += [vkey] * restored.rowcount
            elif is_retired(database, origin, vkey):
                raise UsageError(
                    "KeyRetired", f"{vkey.name}+{vkey.key_id.hex()} of {origin} was retired here",
                    hint="Whoever stole it could speak for the log again. If it was retired by mistake, say so:"
                         " --trust-again.",
                )
        return tuple(added)

    def retire_keys(
        self, keys: Sequence[tuple[str, Vkey]], now: int, reason: str, *, leave_none: bool = False
    ) -> tuple[tuple[str, Vkey], ...]:
        """Trust no signature by these keys (origin, vkey) any more; returns those that it was news for.

        The record, and that the keys were trusted once, stay. Either all are retired or none.

        Raises:
            UsageError: "UnknownKey": it never was trusted. "LastKey": a log would have none; not with *leave_none*.
        """
        done = []
        with self.writing() as database:
            others = self._notice_others(database)
            for origin, vkey in keys:
                named = (origin, vkey.name, vkey.key_id)
                known = database.execute(
                    "SELECT vkey FROM log_keys WHERE origin = ? AND name = ? AND key_id = ?", named
                ).fetchone()
                if known != (str(vkey),):
                    raise UsageError("UnknownKey", f"{origin} was never trusted under {vkey.name}+{vkey.key_id.hex()}")
                inserted = database.execute(
                    "INSERT INTO retirements (origin, name, key_id, retired, reason) VALUES (?, ?, ?, ?, ?)"
                    " ON CONFLICT DO NOTHING", (*named, now, reason),
                )
                done += [(origin, vkey)] * inserted.rowcount
            for origin in dict.fromkeys(origin for origin, _ in done):
                if not (leave_none or self._keys(database, origin)[0]):
                    raise UsageError(
                        "LastKey", f"{origin} would be left with no key, so that nothing is signed for it any more",
                        hint="Add its new key first: ktlog-witness add-log. Or say that you mean it: --leave-none.",
                    )
            by = self._to_count(database, len(done), others=others)
        for origin, _ in done:
            self.forget(origin)
        self._advance_mark(by)
        return tuple(done)

    def record_checkpoint(self, cosigned: Cosigned, key_changes: int | None = None) -> None:
        """Make *cosigned* the latest of its origin, durably, if the one before it still is.

        Args:
            key_changes: of its log, as the judgement knew it. None: whatever its keys are now.

        Raises:
            Conflict: the record moved on since it was read (``.stored`` is what it is now).
            StoreError: "Locked" (nothing happened), or "Poisoned" (nothing more will).
        """
        self._group.record((cosigned, key_changes))
        self._reach(AFTER_COMMIT)

    def record_later(self, records: Sequence[tuple[Cosigned, int | None, Callable[[KtlogError | None], None]]]) -> None:
        """As ``record_checkpoint`` for each, without waiting: what comes third is called, by another thread, with what
        that would raise, or with None once it is on the disk."""
        self._group.record_later([
            ((cosigned, key_changes), partial(self._told, tell)) for cosigned, key_changes, tell in records
        ])

    def _told(self, tell: Callable[[KtlogError | None], None], error: KtlogError | None) -> None:
        if error is None:
            self._reach(AFTER_COMMIT)
        tell(error)

    def recording(self) -> AbstractContextManager[None]:
        """A block in which ``record_checkpoint`` will be called: others wait a moment, to share its transaction."""
        return self._group.coming()

    def _record_all(self, tickets: Sequence[Ticket[Judged]]) -> None:
        """One transaction for all, each still compared and set by itself."""
        moved: dict[Ticket[Judged], Conflict] = {}
        with self.writing() as database:
            others = self._notice_others(database)
            for ticket in tickets:
                if not self._put(database, *ticket.item):
                    origin = ticket.item[0].checkpoint.origin
                    moved[ticket] = Conflict(
                        "CheckpointMoved", f"{origin} moved on, is frozen, or has other keys",
                        stored=self._latest(database, origin),
                    )
            by = self._to_count(database, len(tickets) - len(moved), others=others)
            self._reach(BEFORE_COMMIT)
        for ticket in tickets:
            ticket.error = moved.get(ticket)
            if ticket in moved:
                self.forget(ticket.item[0].checkpoint.origin)
            else:
                self._recall.recorded(ticket.item[0])
        self._advance_mark(by)

    @staticmethod
    def _put(database: sqlite3.Connection, cosigned: Cosigned, key_changes: int | None) -> bool:
        checkpoint = cosigned.checkpoint
        values = (
            cosigned.revision, checkpoint.size, checkpoint.root, cosigned.time, cosigned.note, checkpoint.origin,
            key_changes,
        )
        return database.execute(_INSERT if cosigned.revision == 1 else _UPDATE, values).rowcount == 1

    def record_evidence(self, evidence: Evidence, size: int, now: int, *, freeze: bool = False) -> bool:
        """Keep the first proof of a fork of this origin at this size; True when it is new.

        With *freeze* the same transaction freezes the log: nothing more is signed for it until :meth:`lift_freeze`.
        What the operator has lifted stays so, however often the same fork is shown again. A fork under a key that is
        retired freezes nothing, because whoever stole it can make one; the first of each such key is kept.
        """
        origin, vkey, document = evidence.origin, evidence.vkey, format_evidence(evidence)
        with self.writing() as database:
            others = self._notice_others(database)
            if is_retired(database, origin, vkey):
                freeze = False
                changed = database.execute(
                    "INSERT OR IGNORE INTO retired_evidence (origin, name, key_id, size, recorded, document)"
                    " VALUES (?, ?, ?, ?, ?, ?)", (origin, vkey.name, vkey.key_id, size, now, document),
                )
            else:
                changed = database.execute(
                    "INSERT OR IGNORE INTO evidence (origin, size, recorded, document) SELECT ?, ?, ?, ? "
                    "WHERE (SELECT count(*) FROM evidence WHERE origin = ?) < ?",
                    (origin, size, now, document, origin, MAX_EVIDENCE),
                )
            is_new = changed.rowcount == 1
            if is_new and freeze:
                database.execute("INSERT INTO freezes (origin, size, frozen) VALUES (?, ?, ?)", (origin, size, now))
            by = self._to_count(database, int(is_new), others=others)
        self.forget(origin)
        self._advance_mark(by)
        return is_new

    def lift_freeze(self, origin: str, now: int) -> int:
        """Sign for *origin* again; returns how many convictions that sets aside.

        Raises:
            UsageError: "NotFrozen"; "TooManyForks": so many that no more evidence could be kept.
        """
        with self.writing() as database:
            kept = database.execute("SELECT count(*) FROM evidence WHERE origin = ?", (origin,)).fetchone()[0]
            if kept >= MAX_EVIDENCE:
                raise UsageError("TooManyForks", f"{origin} forked at {kept} sizes; it stays frozen")
            lifted = database.execute(
                "UPDATE freezes SET lifted = ? WHERE origin = ? AND lifted IS NULL", (now, origin)
            ).rowcount
            if not lifted:
                raise UsageError("NotFrozen", f"{origin} is not frozen here")
            return lifted

    # --- inside

    def _advance_mark(self, by: int) -> None:
        if by and self._mark is not None:
            try:
                self._mark.advance(by)
            except BaseException as error:
                raise self._poisoned(error) from error
