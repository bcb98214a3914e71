"""Direct messages that wait to be delivered: ``replies.db``, filled by the web workers, emptied by one process.

It may be lost: a sender has the result as the HTTP answer already, and at the status URL for ever. What was
delivered, given up or erased is gone from the bytes of the file too: it names actors.

Hosts are counted, and wait, by who owns their names (``site_of``): a stranger has as many as they like. One that fails
is tried with one message at a time and after the others, however many wait for it; and when the queue is
full, it is who has the most in it that loses some.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ktlog.operator.scratch import ScratchFile
from ktlog.wire.actor_id import site_of

if TYPE_CHECKING:
    import sqlite3

QUEUE_LIMIT = 10_000
HOST_LIMIT = 1_000
RECIPIENT_LIMIT = 16

_SCHEMA = (
    # Ids are never used twice: a delivery that takes long must not speak of another message in the end.
    "CREATE TABLE IF NOT EXISTS replies ("
    " id INTEGER PRIMARY KEY AUTOINCREMENT, recipient TEXT NOT NULL, host TEXT NOT NULL, body BLOB NOT NULL,"
    " inbox TEXT, created INTEGER NOT NULL, due INTEGER NOT NULL, attempts INTEGER NOT NULL DEFAULT 0) STRICT",
    "CREATE INDEX IF NOT EXISTS replies_order ON replies (attempts, due)",
    "CREATE INDEX IF NOT EXISTS replies_recipient ON replies (recipient)",
    "CREATE INDEX IF NOT EXISTS replies_host ON replies (host)",
    # Those whose last attempt failed, while anything waits for them.
    "CREATE TABLE IF NOT EXISTS failing_hosts ("
    " host TEXT PRIMARY KEY, failures INTEGER NOT NULL, due INTEGER NOT NULL) STRICT, WITHOUT ROWID",
)

# Never tried, at hosts that do not fail; ?1: now, ?2: hosts that are left out.
_UNTRIED = (
    "FROM replies WHERE attempts = 0 AND due <= ?1"
    " AND host NOT IN (SELECT value FROM json_each(?2)) AND host NOT IN (SELECT host FROM failing_hosts)"
    " ORDER BY due, id"
)


@dataclass(frozen=True)
class Letter:
    """A message to queue. recipient: an actor on *host*. inbox: theirs, if their document was just looked at."""

    recipient: str
    host: str
    body: bytes
    inbox: str | None = None


@dataclass(frozen=True)
class Waiting:
    """A message to deliver. recipient: actor id. body: the activity's bytes. created: Unix seconds.

    host: who owns the recipient's. attempts: those for this message; failures: those in a row at that host.
    inbox: where the recipient's was when the message was queued, if that was known.
    """

    id: int
    recipient: str
    host: str
    body: bytes
    created: int
    attempts: int
    failures: int
    inbox: str | None = None


class ReplyQueue:
    """One process's hold on the queue. Safe to use from many threads.

    Raises, from every method: StoreError, when the file can neither be used nor replaced.
    """

    def __init__(self, path: Path) -> None:
        self._file = ScratchFile(path, _SCHEMA)

    def close(self) -> None:
        self._file.close()

    def put(self, recipient: str, host: str, body: bytes, now: int) -> bool:
        """Queue *body* for *recipient*, an actor on *host*. False when their part of the queue is full.

        In a full queue it takes the place of a message to whom the most wait for.
        """
        return self.put_all([Letter(recipient, host, body)], now) == 1

    def put_all(self, letters: Iterable[Letter], now: int) -> int:
        """:meth:`put` for many, in one transaction; gives how many were queued."""
        with self._file.transaction() as connection:
            return sum(_put(connection, letter, now) for letter in letters)

    def next_due(self, now: int, but_hosts: Collection[str] = ()) -> Waiting | None:
        """The message to deliver next, at a host not in *but_hosts* (as ``Waiting.host`` says them).

        First those at hosts that do not fail, then those that were not tried, then who has waited for the longest.
        """
        asked = (now, json.dumps(list(but_hosts)))
        with self._file.reading() as connection:
            # The first that was never tried, at a host that does not fail, is found without a look at all the others.
            row = connection.execute(
                f"SELECT id, recipient, host, body, created, attempts, 0, inbox {_UNTRIED} LIMIT 1",  # noqa: S608
                asked,
            ).fetchone() or connection.execute(
                "SELECT id, recipient, host, body, created, attempts, coalesce(failures, 0) AS failed, inbox"
                " FROM replies LEFT JOIN failing_hosts USING (host)"
                " WHERE replies.due <= ?1 AND coalesce(failing_hosts.due, 0) <= ?1"
                " AND host NOT IN (SELECT value FROM json_each(?2))"
                " ORDER BY failed > 0, attempts > 0, replies.due, id LIMIT 1", asked,
            ).fetchone()
        return None if row is None else Waiting(*row)

    def due_now(self, now: int, but_hosts: Collection[str], limit: int) -> tuple[list[Waiting], bool]:
        """Up to *limit* messages that :meth:`next_due` would give one after the other, no two at one host; and
        whether there are more that are due.

        None where none is due at a host that does not fail: those are tried one by one.
        """
        asked = (now, json.dumps(list(but_hosts)), 2 * limit)
        with self._file.reading() as connection:
            rows = connection.execute(
                f"SELECT id, host {_UNTRIED} LIMIT ?3", asked,  # noqa: S608 - the text below
            ).fetchall()
            first = {host: waiting_id for waiting_id, host in reversed(rows)}
            taken = sorted(first.values())[:limit]
            found = connection.execute(
                "SELECT id, recipient, host, body, created, attempts, 0, inbox FROM replies"
                " WHERE id IN (SELECT value FROM json_each(?)) ORDER BY due, id", (json.dumps(taken),),
            ).fetchall() if taken else []
        return [Waiting(*row) for row in found], len(rows) > len(taken)

    def postpone(self, waiting_id: int, due: int) -> None:
        """Count an attempt, and try again at *due*, and nothing at its host before. Unless the message is gone."""
        with self._file.transaction() as connection:
            connection.execute(
                "UPDATE replies SET due = ?, attempts = attempts + 1 WHERE id = ?", (due, waiting_id)
            )
            connection.execute(
                "INSERT INTO failing_hosts SELECT host, 1, ?1 FROM replies WHERE id = ?2"
                " ON CONFLICT DO UPDATE SET failures = failures + 1, due = ?1", (due, waiting_id),
            )

    def remove(self, waiting_id: int, *, answered: bool = False) -> None:
        """Take a message out; *answered*: its host does not fail any more."""
        self.remove_all([(waiting_id, answered)])

    def remove_all(self, done: Iterable[tuple[int, bool]]) -> None:
        """:meth:`remove` for many, each with its *answered*, in one transaction."""
        with self._file.transaction() as connection:
            for waiting_id, answered in done:
                if answered:
                    connection.execute(
                        "DELETE FROM failing_hosts WHERE host = (SELECT host FROM replies WHERE id = ?)", (waiting_id,)
                    )
                connection.execute("DELETE FROM replies WHERE id = ?", (waiting_id,))
            _forget_hosts(connection)

    def forget(self, recipient: str) -> int:
        """Remove everything for *recipient*, from the bytes of the file too; gives how many it was."""
        with self._file.transaction() as connection:
            count = connection.execute("DELETE FROM replies WHERE recipient = ?", (recipient,)).rowcount
            _forget_hosts(connection)
            return count

    def __len__(self) -> int:
        with self._file.reading() as connection:
            return connection.execute("SELECT count(*) FROM replies").fetchone()[0]


def _put(connection: sqlite3.Connection, letter: Letter, now: int) -> bool:
    host = site_of(letter.host)
    for condition, value, limit in (
        ("recipient = ?", letter.recipient, RECIPIENT_LIMIT), ("host = ?", host, HOST_LIMIT),
    ):
        # S608: the conditions are the two above.
        query = f"SELECT count(*) FROM replies WHERE {condition}"  # noqa: S608
        if (own := connection.execute(query, (value,)).fetchone()[0]) >= limit:
            return False
    if connection.execute("SELECT count(*) FROM replies").fetchone()[0] >= QUEUE_LIMIT:
        fullest, most = connection.execute(
            "SELECT host, count(*) FROM replies GROUP BY host ORDER BY count(*) DESC LIMIT 1"
        ).fetchone()
        if own >= most:
            return False
        connection.execute(
            "DELETE FROM replies WHERE id ="
            " (SELECT id FROM replies WHERE host = ? ORDER BY attempts DESC, id DESC LIMIT 1)", (fullest,),
        )
        _forget_hosts(connection)
    connection.execute(
        "INSERT INTO replies (recipient, host, body, inbox, created, due) VALUES (?, ?, ?, ?, ?, ?)",
        (letter.recipient, host, letter.body, letter.inbox, now, now),
    )
    return True


def _forget_hosts(connection: sqlite3.Connection) -> None:
    """Nothing is kept of a host that nothing waits for."""
    connection.execute("DELETE FROM failing_hosts WHERE host NOT IN (SELECT host FROM replies)")
