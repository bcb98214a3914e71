"""The queue between front ends on several machines and the one sequencer, in two tables of the log's database.

``door_requests`` holds what waits or is being worked on, ``door_answers`` what nobody fetched yet. A request stays
until its answer is there: a sequencer that dies leaves it to the next one, which finds what is in the log already and
answers with the first one's receipt. Neither table has to survive a crash of the server (UNLOGGED): nobody was
answered yet, and a message that is sent again is in the log once.

Notifications are hints. Whoever waits looks by itself too, so that a server without them costs a few milliseconds.

The functions take a connection in autocommit mode, and are one statement each but for the first.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from psycopg import Connection, errors

from ktlog.errors import Conflict
from ktlog.store.pgconnections import make_missing

OLD_SECONDS = 20
"""A request that nobody began with by then is dropped: its sender is told by its own front end that nobody knows."""

UNFETCHED_SECONDS = 120
"""An answer that lies longer is a dead front end's."""

LEFT_SECONDS = 900
"""A request that lies longer is nobody's: no work takes that long."""

# Both ends of a row's life are here within a second: what remains is only as large as what waits.
_BRIEF = "WITH (toast_tuple_target = 8160, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000)"

TABLES = (
    f"""CREATE UNLOGGED TABLE IF NOT EXISTS door_requests (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        front text NOT NULL,
        ticket bigint NOT NULL,
        made timestamptz NOT NULL DEFAULT now(),
        frame bytea NOT NULL
    ) {_BRIEF}""",
    f"""CREATE UNLOGGED TABLE IF NOT EXISTS door_answers (
        front text NOT NULL,
        ticket bigint NOT NULL,
        made timestamptz NOT NULL DEFAULT now(),
        answer bytea NOT NULL,
        PRIMARY KEY (front, ticket)
    ) {_BRIEF}""",
    "ALTER TABLE door_requests ALTER COLUMN frame SET STORAGE EXTERNAL, ALTER COLUMN frame SET STATISTICS 0",
    "ALTER TABLE door_answers ALTER COLUMN answer SET STORAGE EXTERNAL, ALTER COLUMN answer SET STATISTICS 0",
)

DOOR = "ktlog_door"
"""The channel on which the sequencer hears of requests. A front end hears of answers on :func:`channel_of` its name."""


@dataclass(frozen=True)
class Request:
    """One row: who asks (front, ticket), and what."""

    row: int
    front: str
    ticket: int
    frame: bytes


def create_tables(db: Connection) -> None:
    """Make the tables where there are none."""
    make_missing(db, "door_answers", TABLES)


def listen(db: Connection, channel: str) -> bool:
    """Hear of what is said on *channel*; False where the server, or what stands before it, has no notifications."""
    try:
        db.execute(f'LISTEN "{channel}"')
    except (errors.FeatureNotSupported, errors.SyntaxError):
        return False
    return has_hints(db)


def has_hints(db: Connection) -> bool:
    """Whether the server passes notifications on."""
    try:
        db.execute("SELECT pg_notify(%s, '')", (f"{DOOR}s",))
    except (errors.FeatureNotSupported, errors.UndefinedFunction, errors.SyntaxError):
        return False
    return True


def channel_of(front: str) -> str:
    return f"{DOOR}_{front}"


# A front end's side


def ask(db: Connection, front: str, frames: Sequence[tuple[int, bytes]], *, hint: bool) -> None:
    """Put *frames*, each with its ticket, into the queue."""
    put = (
        "WITH put AS (INSERT INTO door_requests (front, ticket, frame)"
        " SELECT %s, one.ticket, one.frame FROM unnest(%b::bigint[], %b::bytea[]) AS one(ticket, frame))"
    )
    values = (front, [ticket for ticket, _ in frames], [frame for _, frame in frames])
    if hint:
        db.execute(put + " SELECT pg_notify(%s, '')", (*values, DOOR))
    else:
        db.execute(put + " SELECT 1", values)


def fetch(db: Connection, front: str) -> list[tuple[int, bytes]]:
    """Take what is answered out of the queue: tickets with answers."""
    return db.execute(
        "DELETE FROM door_answers WHERE front = %s RETURNING ticket, answer", (front,), binary=True
    ).fetchall()


def withdraw(db: Connection, front: str, tickets: Sequence[int]) -> None:
    """Remove requests for whose answers nobody waits any more, unless somebody works on them."""
    db.execute("DELETE FROM door_requests WHERE front = %s AND ticket = ANY(%b::bigint[])", (front, list(tickets)))


# The sequencer's side


def take(db: Connection, floor: int, busy: Collection[int], limit: int) -> list[Request]:
    """The oldest requests that nobody began with.

    Args:
        floor: a row up to which there can be none; else the server would look through those that went, again and again.
        busy: rows that are being worked on.
    """
    rows = db.execute(
        "SELECT id, front, ticket, frame FROM door_requests WHERE id > %s AND id <> ALL(%b::bigint[])"
        " AND made > now() - %s * interval '1 second' ORDER BY id LIMIT %s",
        (floor, list(busy), OLD_SECONDS, limit), binary=True,
    ).fetchall()
    return [Request(*row) for row in rows]


def answer(db: Connection, answers: Sequence[tuple[Request, bytes]], *, epoch: int | None, hint: bool) -> None:
    """Put *answers* in the place of their requests.

    Args:
        epoch: the one that the caller claimed; None leaves that unchecked.

    Raises:
        Conflict: ``Fenced``; nobody was answered.
    """
    mine = db.execute(
        "WITH mine AS (SELECT 1 WHERE %b::bigint IS NULL OR EXISTS"
        "  (SELECT 1 FROM log_state WHERE id = 1 AND epoch = %b::bigint)),"
        " one AS (SELECT * FROM unnest(%b::bigint[], %b::text[], %b::bigint[], %b::bytea[])"
        "  AS one(id, front, ticket, answer) WHERE EXISTS (SELECT 1 FROM mine)),"
        " gone AS (DELETE FROM door_requests USING one WHERE door_requests.id = one.id"
        "  AND door_requests.front = one.front AND door_requests.ticket = one.ticket),"
        " put AS (INSERT INTO door_answers (front, ticket, answer) SELECT front, ticket, answer FROM one"
        "  ON CONFLICT (front, ticket) DO NOTHING)"
        " SELECT 1 FROM mine",
        (
            epoch, epoch, [request.row for request, _ in answers], [request.front for request, _ in answers],
            [request.ticket for request, _ in answers], [data for _, data in answers],
        ),
    ).fetchone()
    if not mine:
        raise Conflict(
            "Fenced", f"another sequencer has taken over from writer {epoch}", hint="This one must stop."
        )
    if hint:
        db.execute(
            # A longer name is an error, and whoever put it there would stop all answers.
            "SELECT pg_notify(left(%s || front, 63), '') FROM unnest(%b::text[]) AS front",
            (channel_of(""), sorted({request.front for request, _ in answers})),
        )


def clean(db: Connection, *, vacuum: bool) -> None:
    """Remove what nobody will fetch or begin with; with *vacuum* give back the room of all that went."""
    db.execute("DELETE FROM door_answers WHERE made < now() - %s * interval '1 second'", (UNFETCHED_SECONDS,))
    db.execute("DELETE FROM door_requests WHERE made < now() - %s * interval '1 second'", (LEFT_SECONDS,))
    if vacuum:
        db.execute("VACUUM door_requests")
        db.execute("VACUUM door_answers")
