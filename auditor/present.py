"""Who of a domain has keys in a log already: for an owner whose watch read those entries before the subscription.

It is read from what the watch has saved of the log (``DIR/logs/<origin>/audit.db``), as of its position, while the
watch runs or not. Nobody is asked.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from auditor.position import SEMANTIC, decode_position
from auditor.rowcodec import decode_actor
from auditor.state import AuditDirectory, origin_filename
from ktlog.errors import EncodingError, StoreError
from ktlog.sqlitefile import database_errors, open_database
from ktlog.wire.actor_id import actor_domain

MAX_LISTED = 10_000


@dataclass(frozen=True)
class Present:
    """actors: (id, number of keys), by id; MAX_LISTED at most, and *more* beside them.

    read_to: entries that the watch has read and judged, which this is about; saved: when, in Unix seconds.
    """

    host: str
    read_to: int
    saved: int
    actors: tuple[tuple[str, int], ...]
    more: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "domain": self.host, "read_to": self.read_to, "as_of": self.saved, "more": self.more,
            "actors": [{"id": actor_id, "keys": keys} for actor_id, keys in self.actors],
        }


def present(directory: Path, origin: str, host: str) -> Present | None:
    """The actors of *host* who have keys by the entries that a watch in *directory* has read.

    Returns:
        None where it has read none: its first reading begins at entry 0, and tells of everybody.

    Raises:
        StoreError: what SQLite says; ``Corrupt``.
    """
    path = AuditDirectory(directory / "logs" / origin_filename(origin)).database
    if not path.exists():
        return None
    connection = open_database(path, read_only=True)
    try:
        with database_errors(path):
            connection.execute("BEGIN")  # the rows of one position, whatever the watch saves meanwhile
            log = connection.execute(
                "SELECT id, position FROM logs WHERE origin = ? AND tier = ?", (origin, SEMANTIC)
            ).fetchone()
            if log is None or log[1] is None:
                return None
            position, start = decode_position(log[1]), b'["https://' + host.encode("ascii")
            actors = [decode_actor(value) for (value,) in connection.execute(
                "SELECT value FROM facts WHERE log = ? AND kind = 'actor' AND substr(value, 1, ?) = ?",
                (log[0], len(start), start),
            )]
        there = [one for one in actors if one.keys and actor_domain(one.actor_id) == host]
    except (ValueError, TypeError, KeyError, IndexError, EncodingError):
        raise StoreError(
            "Corrupt", f"{path}: a saved row does not parse",
            hint="Move the file away: the next reading begins at entry 0.",
        ) from None
    finally:
        connection.close()
    found = sorted((one.actor_id, len(one.keys)) for one in there)
    return Present(host, position.size, position.saved, tuple(found[:MAX_LISTED]), max(0, len(found) - MAX_LISTED))
