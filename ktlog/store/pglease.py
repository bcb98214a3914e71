"""The lease in the log's database: one row that says which sequencer is at work, until when by the server's clock.

It decides who tries, not who may: that is the epoch in ``log_state``. A sequencer that was overtaken and does not know
it changes nothing. (``ktlog.store.contracts``, "Compare and set".)

The functions take a connection in autocommit mode, and are one statement each but for the first.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from psycopg import Connection, errors

from ktlog.store.pgconnections import make_missing

TABLE = """CREATE TABLE lease (
    id integer PRIMARY KEY CHECK (id = 1),
    holder text NOT NULL,
    taken timestamptz NOT NULL,
    expires timestamptz NOT NULL
)"""


CLOCK_SECONDS = 60.0
"""By how much the server's clock may be put back without anybody taking a lease before its end."""


@dataclass(frozen=True)
class Held:
    """holder: who has it, or had it last. seconds_left: until it expires; negative once it has."""

    holder: str
    seconds_left: float


def create_table(db: Connection) -> None:
    """Make the table where there is none."""
    make_missing(db, "lease", (TABLE,))


def take(db: Connection, holder: str, seconds: float) -> bool:
    """Take the lease for *seconds*, if nobody has it.

    One that lasts for much longer than any does is from before the server's clock was put back: whoever had it, and
    lives, has renewed it by the new one.
    """
    return db.execute(
        "INSERT INTO lease (id, holder, taken, expires) VALUES (1, %s, now(), now() + %s * interval '1 second')"
        " ON CONFLICT (id) DO UPDATE SET holder = excluded.holder, taken = excluded.taken, expires = excluded.expires"
        " WHERE lease.expires <= now() OR lease.expires > now() + %s * interval '1 second'",
        (holder, seconds, 2 * seconds + CLOCK_SECONDS),
    ).rowcount == 1


def renew(db: Connection, holder: str, seconds: float) -> bool:
    """Keep the lease for *seconds* from now; False if somebody else has it."""
    return db.execute(
        "UPDATE lease SET expires = now() + %s * interval '1 second' WHERE id = 1 AND holder = %s", (seconds, holder)
    ).rowcount == 1


def release(db: Connection, holder: str) -> None:
    """Let the next one take it at once."""
    db.execute("UPDATE lease SET expires = now() WHERE id = 1 AND holder = %s AND expires > now()", (holder,))


def end_stalled(db: Connection) -> None:
    """End the sessions of this role that are in the middle of a write and wait for their client.

    For whoever has just taken the lease: these are its predecessor's, which was stopped, or cut off. The server would
    wait for it in the middle of a COPY for ever, and with it everybody who needs the rows that it has locked.
    """
    with suppress(errors.FeatureNotSupported, errors.UndefinedFunction, errors.UndefinedTable, errors.UndefinedColumn):
        db.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
            " AND usename = current_user AND pid <> pg_backend_pid() AND backend_xid IS NOT NULL"
            " AND wait_event_type = 'Client' AND wait_event = 'ClientRead'"
        )


def look(db: Connection) -> Held | None:
    """Who has the lease; None if nobody ever had."""
    row = db.execute(
        "SELECT holder, extract(epoch FROM expires - now())::float8 FROM lease WHERE id = 1"
    ).fetchone()
    return None if row is None else Held(*row)
