"""Documents in the database of their log: where other machines' signers look before they sign.

See ``ktlog.store.documents``. A write is refused once another writer has claimed the log's epoch, and once the
document is not what was read here last: of two who would replace it, one is told so.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import TypeVar

import psycopg

from ktlog.errors import Conflict, StoreError
from ktlog.store.contracts import AMBIGUOUS
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgerrors import describe, parse_url
from ktlog.store.pgrows import ask_one

T = TypeVar("T")

MAX_BYTES = 256 * 2**20


class PgDocument:
    """``Document`` over a row of the table ``documents``.

    Args:
        url: the log's database. It is connected to when it is needed.
        name: of the document.
        epoch: of the writer that may replace it; without one, the epoch that the log has at the first read here.

    Raises, from reading and writing: StoreError, those of ``PgConnections``. Writing: Conflict "Fenced",
    "DocumentMoved".
    """

    def __init__(self, url: str, name: str, *, epoch: int | None = None) -> None:
        self._url = url
        self._name = name
        self._epoch = epoch
        self._where = f"{describe(parse_url(url))} ({name})"
        self._connections: PgConnections | None = None
        # What was read or written here last; a tuple, because None says that there is no document.
        self._seen: tuple[bytes | None] | None = None

    def __str__(self) -> str:
        return self._where

    def read(self) -> bytes | None:
        return self._write(self._read)

    def write(self, data: bytes) -> None:
        if len(data) > MAX_BYTES:
            raise StoreError("Refused", f"{self._where}: {len(data)} bytes are too many")
        self._replace(data)

    def remove(self) -> None:
        self._replace(None)

    def _replace(self, data: bytes | None) -> None:
        if self._seen is None:
            self.read()

        def work(db: psycopg.Connection) -> None:
            # The row that every commit and every claim of an epoch changes: it stays what it is until this is done.
            row = ask_one(db, "SELECT epoch FROM log_state WHERE id = 1 FOR UPDATE")
            if row is None or row[0] != self._epoch:
                raise Conflict(
                    "Fenced", f"{self._where}: another writer has taken over",
                    stored=None if row is None else row[0], hint="Two sequencers run on one store. This one must stop.",
                )
            stored = _stored(db, self._name)
            if (stored,) != self._seen:
                raise Conflict("DocumentMoved", f"{self._where}: somebody else has replaced it", stored=stored)
            if data is None:
                db.execute("DELETE FROM documents WHERE name = %s", (self._name,))
            else:
                db.execute(
                    "INSERT INTO documents (name, data) VALUES (%s, %s)"
                    " ON CONFLICT (name) DO UPDATE SET data = excluded.data", (self._name, data),
                )

        self._write(work)
        self._seen = (data,)

    def _read(self, db: psycopg.Connection) -> bytes | None:
        if self._epoch is None:
            row = ask_one(db, "SELECT epoch FROM log_state WHERE id = 1")
            self._epoch = None if row is None else row[0]
        stored = _stored(db, self._name)
        self._seen = (stored,)
        return stored

    def _write(self, work: Callable[[psycopg.Connection], T]) -> T:
        if self._connections is None:
            self._connections = PgConnections(self._url, read_only=False)
            weakref.finalize(self, self._connections.close)
        try:
            return self._connections.write(work)
        except StoreError as error:
            if error.name == AMBIGUOUS:
                # Nobody knows what is stored: the next call looks, over a new connection.
                self._connections = self._seen = None
            raise


class PgDocumentReader:
    """Reads the document *name* in the database *url*, and cannot write. ``str`` gives where it is."""

    def __init__(self, url: str, name: str) -> None:
        self._name = name
        self._connections = PgConnections(url, read_only=True, readers=1)
        weakref.finalize(self, self._connections.close)

    def __str__(self) -> str:
        return f"{self._connections.where} ({self._name})"

    def read(self) -> bytes | None:
        """All of it, or None when there is none. Raises StoreError, those of ``PgConnections``."""
        return self._connections.read(lambda db: _stored(db, self._name), single=True)


def _stored(db: psycopg.Connection, name: str) -> bytes | None:
    row = ask_one(db, "SELECT data FROM documents WHERE name = %s", (name,))
    return None if row is None else row[0]
