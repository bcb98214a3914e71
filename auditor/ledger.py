"""The directory's state in SQLite, row by row: an audit that goes on from a position reads only the rows it touches.

:class:`auditor.saved.SavedDirectory` is made of such rows.

======  ===============================  =========================================
kind    key                              value
======  ===============================  =========================================
actor   SHA-256 of the actor id          the actor, as JSON
seen    a message's unique hash          its leaf index
root    a root                           the tree's size then
token   a key's hash                     none: a token withdrew that key
holder  a key's hash, an actor id        none: the actor has the key
hist    SHA-256 of the actor id, number  leaf index and role
tree    SHA-256 of the actor id          the frontier of its history
move    leaf index                       what a MoveIdentity carried
tomb    map index                        counters of an erased actor
limbo   leaf index                       a key, or auxiliary data, of somebody erased
id      map index                        the actor id
held    leaf index                       how many attributes are withheld of the entry, or by an
                                         erasure that came after it
ask     SHA-256 of the actor id          the id of an actor about whom the API was not asked since
enrol   leaf index                       leaf hash of the entry that enrolled a key
salt    map index                        the salt of a map value
leaf    map index                        the commitment in the map
again   none                             in how many audits, one after another, something was erased
                                         in every attempt; it stays when the log is read from its start
======  ===============================  =========================================
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Generic, TypeVar

from auditor.position import Position, decode_position
from auditor.rowcodec import integer, number
from ktlog.errors import EncodingError, StoreError
from ktlog.sqlitefile import database_errors

_AGAIN = "again"
K = TypeVar("K")
V = TypeVar("V")


class Ledger:
    """The saved position and rows of one log at one tier, and the transaction that changes them. One thread's.

    Raises:
        StoreError: those of :func:`ktlog.sqlitefile.database_errors`; "Corrupt" when a row does not parse.
    """

    def __init__(self, connection: sqlite3.Connection, path: Path, origin: str, tier: str) -> None:
        self._connection = connection
        self._path = path
        self.origin = origin
        self.tier = tier
        self.read_bytes = 0
        """Of the rows read so far, keys and values."""
        self._id = self._identify()
        self._begin()

    def _identify(self) -> int:
        with database_errors(self._path):
            named = (self.origin, self.tier)
            self._connection.execute("INSERT OR IGNORE INTO logs (origin, tier) VALUES (?, ?)", named)
            (found,) = self._connection.execute("SELECT id FROM logs WHERE origin = ? AND tier = ?", named).fetchone()
        return int(found)

    def _begin(self) -> None:
        with database_errors(self._path):
            self._connection.execute("BEGIN IMMEDIATE")

    def position(self) -> Position | None:
        """As saved last."""
        with database_errors(self._path):
            row = self._connection.execute("SELECT position FROM logs WHERE id = ?", (self._id,)).fetchone()
        if row is None or row[0] is None:
            return None
        self.read_bytes += len(row[0])
        try:
            return decode_position(row[0])
        except EncodingError as error:
            raise self.corrupt(error.message) from None

    def save(self, position: Position) -> None:
        """Make *position*, and every row written since the last one, durable in one step."""
        with database_errors(self._path):
            self._connection.execute("UPDATE logs SET position = ? WHERE id = ?", (position.encode(), self._id))
            self._connection.execute("COMMIT")
        self._begin()

    def forget(self) -> None:
        """Take back what was written since the last position."""
        with database_errors(self._path):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        self._begin()

    def keep(self) -> None:
        """Commit what was written beside the rows."""
        with database_errors(self._path):
            self._connection.execute("COMMIT")
        self._begin()

    def close(self) -> None:
        """Take back what no position covers, and end."""
        with database_errors(self._path):
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")

    def clear(self) -> None:
        """Drop every row, to read the log from its start. The old ones come back unless a position is saved."""
        with database_errors(self._path):
            self._connection.execute("DELETE FROM facts WHERE log = ? AND kind <> ?", (self._id, _AGAIN))
            self._connection.execute("UPDATE logs SET position = NULL WHERE id = ?", (self._id,))

    def corrupt(self, what: str) -> StoreError:
        return StoreError(
            "Corrupt", f"{self._path}: {what}", hint="Move the file away: the next audit reads the log from its start."
        )

    def erased_again(self, yes: bool) -> int:
        """Note at once whether something was erased in every attempt of this audit; in how many audits by now."""
        before = self.get(_AGAIN, b"")
        count = integer(before or number(0)) + 1 if yes else 0
        if yes:
            self.put(_AGAIN, b"", number(count))
        elif before is not None:
            self.delete(_AGAIN, b"")
        if yes or before is not None:
            self.keep()
        return count

    # Rows

    def get(self, kind: str, key: bytes) -> bytes | None:
        with database_errors(self._path):
            row = self._connection.execute(
                "SELECT value FROM facts WHERE log = ? AND kind = ? AND key = ?", (self._id, kind, key)
            ).fetchone()
        if row is None:
            return None
        self.read_bytes += len(key) + len(row[0])
        return bytes(row[0])

    def put(self, kind: str, key: bytes, value: bytes) -> None:
        with database_errors(self._path):
            self._connection.execute(
                "INSERT OR REPLACE INTO facts (log, kind, key, value) VALUES (?, ?, ?, ?)", (self._id, kind, key, value)
            )

    def delete(self, kind: str, key: bytes) -> None:
        with database_errors(self._path):
            self._connection.execute(
                "DELETE FROM facts WHERE log = ? AND kind = ? AND key = ?", (self._id, kind, key)
            )

    def scan(self, kind: str, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Rows whose key begins with *prefix*, in order of their keys, from prefix + *start* on. Read as a whole."""
        with database_errors(self._path):
            rows = self._connection.execute(
                "SELECT key, value FROM facts WHERE log = ? AND kind = ? AND key >= ? AND key < ? ORDER BY key",
                (self._id, kind, prefix + start, prefix + b"\xff" * 80),
            ).fetchall()
        for key, value in rows:
            self.read_bytes += len(key) + len(value)
            yield bytes(key), bytes(value)

    def last(self, kind: str, prefix: bytes) -> bytes | None:
        """The greatest key that begins with *prefix*."""
        with database_errors(self._path):
            row = self._connection.execute(
                "SELECT key FROM facts WHERE log = ? AND kind = ? AND key >= ? AND key < ? ORDER BY key DESC LIMIT 1",
                (self._id, kind, prefix, prefix + b"\xff" * 80),
            ).fetchone()
        return None if row is None else bytes(row[0])

    def drop(self, kind: str, prefix: bytes) -> None:
        with database_errors(self._path):
            self._connection.execute(
                "DELETE FROM facts WHERE log = ? AND kind = ? AND key >= ? AND key < ?",
                (self._id, kind, prefix, prefix + b"\xff" * 80),
            )


class Rows(MutableMapping[K, V], Generic[K, V]):
    """A dictionary whose every access is one row."""

    def __init__(
        self, ledger: Ledger, kind: str, key: Callable[[K], bytes], name: Callable[[bytes], K],
        encode: Callable[[V], bytes], decode: Callable[[bytes], V],
    ) -> None:
        self._ledger, self._kind = ledger, kind
        self._key, self._name = key, name
        self._encode, self._decode = encode, decode

    def __getitem__(self, key: K) -> V:
        value = self._ledger.get(self._kind, self._key(key))
        if value is None:
            raise KeyError(key)
        return self._read(value)

    def _read(self, value: bytes) -> V:
        try:
            return self._decode(value)
        except (ValueError, TypeError, KeyError, IndexError, EncodingError):
            raise self._ledger.corrupt(f"a row of kind {self._kind} does not parse") from None

    def get(self, key: K, default: Any = None) -> Any:
        value = self._ledger.get(self._kind, self._key(key))
        return default if value is None else self._read(value)

    def __setitem__(self, key: K, value: V) -> None:
        self._ledger.put(self._kind, self._key(key), self._encode(value))

    def __delitem__(self, key: K) -> None:
        if self._ledger.get(self._kind, self._key(key)) is None:
            raise KeyError(key)
        self._ledger.delete(self._kind, self._key(key))

    def __contains__(self, key: object) -> bool:
        return self._ledger.get(self._kind, self._key(key)) is not None  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[K]:
        return (self._name(key) for key, _ in self._ledger.scan(self._kind))

    def __len__(self) -> int:
        return sum(1 for _ in self._ledger.scan(self._kind))

    def __bool__(self) -> bool:
        return self._ledger.last(self._kind, b"") is not None

    def __ior__(self, other: MutableMapping[K, V]) -> Rows[K, V]:  # type: ignore[misc, override]
        self.update(other)
        return self
