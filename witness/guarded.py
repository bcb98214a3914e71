"""One SQLite connection under one lock, which writes no more once the outcome of a write is unknown."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ktlog import sqlitefile
from ktlog.errors import Conflict, StoreError, UsageError


class Guarded:
    """Safe to use from many threads, not across a fork."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self._path = path
        self._connection = connection
        self._lock = threading.Lock()
        self._poison: str | None = None

    def refuse_poisoned(self) -> None:
        """Raise StoreError unless writes are still allowed."""
        if self._poison is not None:
            raise StoreError(
                "Poisoned", f"a write failed, and its outcome is unknown: {self._poison}",
                hint="Mend the disk and start the witness again; what it has cosigned is on record.",
            )

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Reads of one moment: a deferred transaction, so that two SELECTs cannot disagree."""
        with self._lock, sqlitefile.database_errors(self._path):
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.execute("ROLLBACK")

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction. An honest refusal inside it rolls back; any other failure poisons."""
        with self._lock:
            self.refuse_poisoned()
            try:
                self._connection.execute("BEGIN IMMEDIATE")
            except sqlite3.Error as error:
                coded = sqlitefile.database_error(self._path, error)
                if coded.name == "Locked":
                    raise coded from error  # nothing was begun, so nothing is in doubt
                raise self._poisoned(error) from error
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except (Conflict, UsageError):
                with sqlitefile.database_errors(self._path):
                    self._connection.execute("ROLLBACK")
                raise
            except BaseException as error:
                failure = self._poisoned(error)
                with suppress(sqlite3.Error):  # SQLite may have rolled back by itself
                    self._connection.execute("ROLLBACK")
                raise failure from error

    def _poisoned(self, error: BaseException) -> StoreError:
        self._poison = f"{type(error).__name__}: {error}"
        return StoreError("Poisoned", f"a write failed, so this process writes no more: {self._poison}")
