"""Direct messages that wait to be delivered: ``replies.db``, filled by the web workers, emptied by one process.

It may be lost: a sender has the result as the HTTP answer already, and at the status URL for ever. What was
delivered, given up or erased is gone from the bytes of the file too: it names actors.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from ktlog.operator.scratch import ScratchFile

QUEUE_LIMIT = 10_000
HOST_LIMIT = 1_000
RECIPIENT_LIMIT = 16

_SCHEMA = (
    # Ids are never used twice: a delivery that takes long must not speak of another message in the end.
    "CREATE TABLE IF NOT EXISTS replies ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, recipient TEXT NOT NULL, host TEXT NOT NULL, body BLOB NOT NULL,"
    " created INTEGER NOT NULL, due INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0) STRICT",
    "CREATE INDEX IF NOT EXISTS replies_due ON replies (due)",
    "CREATE INDEX IF NOT EXISTS replies_recipient ON replies (recipient)",
    "CREATE INDEX IF NOT EXISTS replies_host ON replies (host)",
)


@dataclass(frozen=True)
class Waiting:
    """A message to deliver. recipient: actor id. body: the activity's bytes. created: Unix seconds."""

    id: int
    recipient: str
    host: str
    body: bytes
    created: int
    attempts: int


class ReplyQueue:
    """One process's hold on the queue. Safe to use from many threads.

    Raises, from every method: StoreError, when the file can neither be used nor replaced.
    """

    def __init__(self, path: Path) -> None:
        self._file = ScratchFile(path, _SCHEMA)

    def close(self) -> None:
        self._file.close()

    def put(self, recipient: str, host: str, body: bytes, now: int) -> bool:
        """Queue *body* for *recipient*, an actor on *host*. False when the queue, or their part of it, is full."""
        with self._file.transaction() as connection:
            for condition, value, limit in (
                ("recipient = ?", (recipient,), RECIPIENT_LIMIT), ("host = ?", (host,), HOST_LIMIT),
                ("true", (), QUEUE_LIMIT),
            ):
                # S608: the conditions are the three above.
                query = f"SELECT count(*) FROM replies WHERE {condition}"  # noqa: S608
                if connection.execute(query, value).fetchone()[0] >= limit:
                    return False
            connection.execute(
                "INSERT INTO replies (recipient, host, body, created, due) VALUES (?, ?, ?, ?, ?)",
                (recipient, host, body, now, now),
            )
            return True

    def next_due(self, now: int, but_hosts: Collection[str] = ()) -> Waiting | None:
        """The message that has been due for the longest, at a host not in *but_hosts*."""
        with self._file.reading() as connection:
            row = connection.execute(
                "SELECT id, recipient, host, body, created, attempts FROM replies"
                " WHERE due <= ? AND host NOT IN (SELECT value FROM json_each(?)) ORDER BY due, id LIMIT 1",
                (now, json.dumps(list(but_hosts))),
            ).fetchone()
        return None if row is None else Waiting(*row)

    def postpone(self, waiting_id: int, due: int) -> None:
        """Count an attempt, and try again at *due*. Nothing happens when the message is gone."""
        with self._file.transaction() as connection:
            connection.execute(
                "UPDATE replies SET due = ?, attempts = attempts + 1 WHERE id = ?", (due, waiting_id)
            )

    def remove(self, waiting_id: int) -> None:
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM replies WHERE id = ?", (waiting_id,))

    def forget(self, recipient: str) -> int:
        """Remove everything for *recipient*, from the bytes of the file too; gives how many it was."""
        with self._file.transaction() as connection:
            return connection.execute("DELETE FROM replies WHERE recipient = ?", (recipient,)).rowcount

    def __len__(self) -> int:
        with self._file.reading() as connection:
            return connection.execute("SELECT count(*) FROM replies").fetchone()[0]
