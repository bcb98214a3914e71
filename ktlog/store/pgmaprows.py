"""The rows of a map in PostgreSQL: the tables, the tree's row access, and what an update writes besides the tree."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from psycopg import Connection

from ktlog.store.mapcoding import join_history
from ktlog.store.mapcontract import Dead, Live
from ktlog.store.maptree import TreeRows

# Half of a page stays free where rows are replaced all the time: their next version finds room beside them.
_REPLACED = "WITH (fillfactor = 50)"

MAP_TABLES = (
    """CREATE TABLE map_meta (
        id integer PRIMARY KEY CHECK (id = 1),
        origin text NOT NULL,
        config bytea NOT NULL,
        schema_version integer NOT NULL
    )""",
    """CREATE TABLE map_state (
        id integer PRIMARY KEY CHECK (id = 1),
        leaves bigint NOT NULL,
        depth integer NOT NULL,
        root bytea NOT NULL CHECK (octet_length(root) = 32),
        input_size bigint NOT NULL,
        erasures bigint NOT NULL,
        output_size bigint NOT NULL,
        output_frontier bytea NOT NULL,
        scrub_due boolean NOT NULL
    )""",
    f"CREATE TABLE map_buckets (number bigint PRIMARY KEY, leaves bytea NOT NULL) {_REPLACED}",
    f"CREATE TABLE map_nodes (page bigint PRIMARY KEY, nodes bytea NOT NULL) {_REPLACED}",
    """CREATE TABLE map_values (
        leaf bytea PRIMARY KEY CHECK (octet_length(leaf) = 32),
        value bytea NOT NULL,
        opening bytea NOT NULL CHECK (octet_length(opening) = 16),
        history bytea NOT NULL,
        leaves bytea NOT NULL
    )""",
    # ANALYZE would copy samples of what an erasure must take away.
    "ALTER TABLE map_values ALTER COLUMN value SET STATISTICS 0, ALTER COLUMN opening SET STATISTICS 0,"
    " ALTER COLUMN history SET STATISTICS 0, ALTER COLUMN leaves SET STATISTICS 0",
    """CREATE TABLE map_tombstones (
        leaf bytea PRIMARY KEY CHECK (octet_length(leaf) = 32),
        version bigint NOT NULL,
        generation bigint NOT NULL,
        erasure_number bigint NOT NULL
    )""",
    """CREATE TABLE output_leaves (
        leaf_index bigint PRIMARY KEY,
        leaf bytea NOT NULL,
        leaf_hash bytea NOT NULL CHECK (octet_length(leaf_hash) = 32)
    )""",
    "CREATE TABLE output_checkpoints (size bigint PRIMARY KEY, note bytea NOT NULL)",
)
"""In the order of their making, in the schema of the log's tables."""

MAP_GUARDS = (
    *(
        f"CREATE TRIGGER {table}_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} FOR EACH STATEMENT"
        " EXECUTE FUNCTION refuse_change()"
        for table in ("output_leaves", "output_checkpoints")
    ),
    """CREATE TRIGGER map_state_advances BEFORE UPDATE ON map_state FOR EACH ROW
        WHEN (NEW.leaves < OLD.leaves OR NEW.input_size < OLD.input_size OR NEW.erasures < OLD.erasures
            OR NEW.output_size < OLD.output_size) EXECUTE FUNCTION refuse_change()""",
)
"""For people with a SQL prompt; left out where a server has no triggers."""


class Rows:
    """``TreeRows`` on one connection."""

    __slots__ = ("_db",)

    def __init__(self, db: Connection) -> None:
        self._db = db

    def bucket(self, number: int) -> bytes:
        row = self._db.execute("SELECT leaves FROM map_buckets WHERE number = %s", (number,), binary=True).fetchone()
        return b"" if row is None else row[0]

    def some_bucket(self, start: int, end: int) -> bytes:
        row = self._db.execute(
            "SELECT leaves FROM map_buckets WHERE number >= %s AND number < %s LIMIT 1", (start, end), binary=True
        ).fetchone()
        return b"" if row is None else row[0]

    def last_buckets(self, end: int, limit: int) -> Sequence[tuple[int, bytes]]:
        return self._db.execute(
            "SELECT number, leaves FROM map_buckets WHERE number < %s ORDER BY number DESC LIMIT %s", (end, limit),
            binary=True,
        ).fetchall()

    def buckets(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return dict(self._db.execute(
            "SELECT number, leaves FROM map_buckets WHERE number = ANY(%b::bigint[])", (list(numbers),), binary=True
        ))

    def pages(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return dict(self._db.execute(
            "SELECT page, nodes FROM map_nodes WHERE page = ANY(%b::bigint[])", (list(numbers),), binary=True
        ))

    def write_buckets(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self._upsert(
            "INSERT INTO map_buckets (number, leaves) SELECT * FROM unnest(%b::bigint[], %b::bytea[])"
            " ON CONFLICT (number) DO UPDATE SET leaves = excluded.leaves", rows,
        )

    def write_pages(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self._upsert(
            "INSERT INTO map_nodes (page, nodes) SELECT * FROM unnest(%b::bigint[], %b::bytea[])"
            " ON CONFLICT (page) DO UPDATE SET nodes = excluded.nodes", rows,
        )

    def delete_buckets(self, numbers: Iterable[int]) -> None:
        self._db.execute("DELETE FROM map_buckets WHERE number = ANY(%b::bigint[])", (list(numbers),))

    def _upsert(self, statement: str, rows: Sequence[tuple[int, bytes]]) -> None:
        if rows:
            self._db.execute(statement, ([number for number, _ in rows], [blob for _, blob in rows]))


class BufferedRows:
    """``TreeRows`` that reads through, and keeps what is written until :meth:`write_to`.

    For an update that reads each row once and writes it once; it does not read back what it wrote.
    """

    def __init__(self, below: TreeRows) -> None:
        self._below = below
        self._buckets: dict[int, bytes] = {}
        self._pages: dict[int, bytes] = {}

    def bucket(self, number: int) -> bytes:
        return self._below.bucket(number)

    def some_bucket(self, start: int, end: int) -> bytes:
        return self._below.some_bucket(start, end)

    def last_buckets(self, end: int, limit: int) -> Sequence[tuple[int, bytes]]:
        return self._below.last_buckets(end, limit)

    def buckets(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return self._below.buckets(numbers)

    def pages(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return self._below.pages(numbers)

    def write_buckets(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self._buckets |= rows

    def write_pages(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self._pages |= rows

    def delete_buckets(self, numbers: Iterable[int]) -> None:
        raise AssertionError("only a growing tree deletes buckets, and it is not buffered")

    def write_to(self, rows: TreeRows) -> None:
        """Write what was kept."""
        rows.write_buckets(sorted(self._buckets.items()))
        rows.write_pages(sorted(self._pages.items()))


def write_values(db: Connection, changes: Sequence[Live | Dead]) -> None:
    """Store what *changes* disclose, and remove what they take away."""
    live = [change for change in changes if isinstance(change, Live)]
    dead = [change for change in changes if isinstance(change, Dead)]
    gone = [change.index for change in dead] + [change.index for change in live if change.afresh]
    if gone:
        db.execute("DELETE FROM map_values WHERE leaf = ANY(%b::bytea[])", (gone,))
        db.execute("UPDATE map_state SET scrub_due = true WHERE id = 1")
    if live:
        db.execute("DELETE FROM map_tombstones WHERE leaf = ANY(%b::bytea[])", ([change.index for change in live],))
        db.execute(
            "INSERT INTO map_values (leaf, value, opening, history, leaves)"
            " SELECT * FROM unnest(%b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[], %b::bytea[])"
            " ON CONFLICT (leaf) DO UPDATE SET value = excluded.value, opening = excluded.opening,"
            " history = excluded.history, leaves = map_values.leaves || excluded.leaves",
            (
                [change.index for change in live], [change.value for change in live],
                [change.opening for change in live], [change.history for change in live],
                [join_history(change.news) for change in live],
            ),
        )
    if dead:
        db.execute(
            "INSERT INTO map_tombstones (leaf, version, generation, erasure_number)"
            " SELECT * FROM unnest(%b::bytea[], %b::bigint[], %b::bigint[], %b::bigint[])"
            " ON CONFLICT (leaf) DO UPDATE SET version = excluded.version, generation = excluded.generation,"
            " erasure_number = excluded.erasure_number",
            (
                [change.index for change in dead], [change.version for change in dead],
                [change.generation for change in dead], [change.erasure_number for change in dead],
            ),
        )
