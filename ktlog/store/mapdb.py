"""The directory map on disk, and the output log that commits to it: one SQLite file beside the log's own.

Nothing is kept in memory between two calls, so a restart costs nothing and a reader sees whole batches only. How the
prefix tree lies in rows is ``ktlog.store.maptree``'s.

``map_values`` is what an answer discloses (value, opening), the leaves of the actor's history tree and the frontier
from which the next value follows; an erasure removes them. All of it is one row, for a batch changes a thousand of
them, and each costs a page. Each output leaf is stored together with the signed checkpoint of the output log that it
completes, so that what is in here was published, or is about to be.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from ktlog import sqlitefile
from ktlog.errors import StoreError
from ktlog.keymap.prefix import MISSING, PrefixLeaf, PrefixProof
from ktlog.store import mapupgrade
from ktlog.store.connections import Connections
from ktlog.store.mapbatch import prove_all
from ktlog.store.mapcoding import advanced, check_meta, join_history, make_state, split_history
from ktlog.store.mapcontract import Dead, Live, MapState
from ktlog.store.maptree import damaged, grow, grown_depth, prefix, prove, split_bucket, write_leaves
from ktlog.tlog.tree import Frontier, hash_leaf

SCHEMA_VERSION = 2
PAGE_SIZE = 4096
"""A batch changes rows all over the file, and each of them costs writing its page."""
LOG_PAGES = 16384
"""Of the write-ahead log, before a commit itself moves them into the file; see :meth:`SqliteMapStore.settle`."""
WRITER_CACHE_KIB = 32_768
"""At most. An update of a thousand changes 18 MiB of pages; what finds no room is written at once, and read again."""
SCHEMA = (
    """CREATE TABLE log_meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        origin TEXT NOT NULL,
        config BLOB NOT NULL,
        schema_version INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE map_state (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        leaves INTEGER NOT NULL,
        depth INTEGER NOT NULL,
        root BLOB NOT NULL CHECK (length(root) = 32),
        input_size INTEGER NOT NULL,
        erasures INTEGER NOT NULL,
        output_size INTEGER NOT NULL,
        output_frontier BLOB NOT NULL
    ) STRICT""",
    """CREATE TRIGGER map_state_advances BEFORE UPDATE ON map_state
        WHEN NEW.leaves < OLD.leaves OR NEW.input_size < OLD.input_size OR NEW.erasures < OLD.erasures
            OR NEW.output_size < OLD.output_size
        BEGIN SELECT RAISE(ABORT, 'the state of a map only advances'); END""",
    "CREATE TABLE map_buckets (number INTEGER PRIMARY KEY, leaves BLOB NOT NULL) STRICT",
    "CREATE TABLE map_nodes (page INTEGER PRIMARY KEY, nodes BLOB NOT NULL) STRICT",
    """CREATE TABLE map_values (
        leaf BLOB PRIMARY KEY CHECK (length(leaf) = 32),
        value BLOB NOT NULL,
        opening BLOB NOT NULL CHECK (length(opening) = 16),
        history BLOB NOT NULL,
        leaves BLOB NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE map_tombstones (
        leaf BLOB PRIMARY KEY CHECK (length(leaf) = 32),
        version INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        erasure_number INTEGER NOT NULL
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE output_leaves (
        leaf_index INTEGER PRIMARY KEY,
        leaf BLOB NOT NULL,
        leaf_hash BLOB NOT NULL CHECK (length(leaf_hash) = 32)
    ) STRICT""",
    """CREATE TRIGGER output_leaves_no_update BEFORE UPDATE ON output_leaves
        BEGIN SELECT RAISE(ABORT, 'output_leaves is append-only'); END""",
    """CREATE TRIGGER output_leaves_no_delete BEFORE DELETE ON output_leaves
        BEGIN SELECT RAISE(ABORT, 'output_leaves is append-only'); END""",
    """CREATE TABLE output_checkpoints (
        size INTEGER PRIMARY KEY,
        note BLOB NOT NULL
    ) STRICT""",
    """CREATE TRIGGER output_checkpoints_no_update BEFORE UPDATE ON output_checkpoints
        BEGIN SELECT RAISE(ABORT, 'output_checkpoints is append-only'); END""",
    """CREATE TRIGGER output_checkpoints_no_delete BEFORE DELETE ON output_checkpoints
        BEGIN SELECT RAISE(ABORT, 'output_checkpoints is append-only'); END""",
    """CREATE TABLE housekeeping (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        scrub_due INTEGER NOT NULL CHECK (scrub_due IN (0, 1))
    ) STRICT""",
    "INSERT INTO housekeeping (id, scrub_due) VALUES (1, 0)",
)


class SqliteMapStore:
    """``MapStore`` over the SQLite file *path*. A writing handle belongs to one process.

    Raises, from every method: StoreError, with the names of ``ktlog.sqlitefile`` and ``Connections``.
    """

    def __init__(self, path: Path, connections: Connections) -> None:
        self._path = path
        self._connections = connections

    @classmethod
    def create(cls, path: Path, origin: str, config: bytes) -> None:
        """Make an empty map whose output log has *config* for its leaf 0. It appears whole or not at all."""
        with sqlitefile.new_database(path, page_size=PAGE_SIZE) as connection:
            for statement in SCHEMA:
                connection.execute(statement)
            connection.execute("INSERT INTO log_meta VALUES (1, ?, ?, ?)", (origin, config, SCHEMA_VERSION))
            output = Frontier().append(hash_leaf(config))
            connection.execute("INSERT INTO output_leaves VALUES (0, ?, ?)", (config, hash_leaf(config)))
            connection.execute("INSERT INTO map_state VALUES (1, 0, 0, ?, 0, 0, 1, ?)", (MISSING, output.encode()))

    @classmethod
    def open(cls, path: Path, *, origin: str, config: bytes, read_only: bool = False) -> SqliteMapStore:
        """Open the map of the log *origin*. A writer brings one of an earlier schema to this code's.

        Raises:
            StoreError: ``WrongOrigin``; ``WrongConfig``: the output log began with another configuration;
                ``OlderSchema``, only with read_only.
        """
        connection = sqlitefile.open_database(path, read_only=read_only)
        try:
            with sqlitefile.database_errors(path):
                row = _read_meta(connection)
                oldest = SCHEMA_VERSION if read_only else mapupgrade.OLDEST
                check_meta(path, row, origin=origin, config=config, version=SCHEMA_VERSION, oldest=oldest)
                if row is not None and row[2] < SCHEMA_VERSION:
                    with sqlitefile.transaction(connection):
                        if _read_meta(connection) == row:  # or another process was faster
                            mapupgrade.bring_up(connection, _Rows(connection))
        except BaseException:
            connection.close()
            raise
        connections = Connections(path, connection, read_only=read_only)
        if not read_only:
            connection.execute(f"PRAGMA cache_size=-{WRITER_CACHE_KIB}")
            connections.defer_checkpoints(LOG_PAGES)
        return cls(path, connections)

    def close(self) -> None:
        self._connections.close()

    def snapshot(self) -> AbstractContextManager[object]:
        return self._connections.snapshot()

    # Reading

    def version(self) -> int:
        return self._connections.version()

    def state(self) -> MapState:
        with self._connections.reading() as connection:
            return _read_state(connection)

    def live(self, index: bytes) -> Live | None:
        with self.snapshot(), self._connections.reading() as connection:
            row = connection.execute(
                "SELECT value, opening, history FROM map_values WHERE leaf = ?", (index,)
            ).fetchone()
            return None if row is None else Live(index, self._commitment(connection, index), *row)

    def presented(self, index: bytes) -> tuple[bytes, bytes] | None:
        with self._connections.reading() as connection:
            return connection.execute("SELECT value, opening FROM map_values WHERE leaf = ?", (index,)).fetchone()

    def dead(self, index: bytes) -> Dead | None:
        with self.snapshot(), self._connections.reading() as connection:
            row = connection.execute(
                "SELECT version, generation, erasure_number FROM map_tombstones WHERE leaf = ?", (index,)
            ).fetchone()
            return None if row is None else Dead(index, self._commitment(connection, index), *row)

    def prove(self, index: bytes) -> PrefixProof:
        with self._connections.reading() as connection:
            return prove(_Rows(connection), _read_depth(connection), index)

    def prove_all(self, indexes: Sequence[bytes]) -> PrefixProof:
        with self.snapshot(), self._connections.reading() as connection:
            return prove_all(_Rows(connection), _read_depth(connection), indexes)

    def history(self, index: bytes, end: int) -> tuple[bytes, ...]:
        with self._connections.reading() as connection:
            row = connection.execute("SELECT leaves FROM map_values WHERE leaf = ?", (index,)).fetchone()
        return () if row is None else split_history(row[0], end)

    def checkpoint(self, size: int | None = None) -> bytes | None:
        with self._connections.reading() as connection:
            row = connection.execute(
                "SELECT note FROM output_checkpoints WHERE size = ?"
                if size is not None else "SELECT note FROM output_checkpoints ORDER BY size DESC LIMIT 1",
                () if size is None else (size,),
            ).fetchone()
        return None if row is None else row[0]

    def scrub_due(self) -> bool:
        with self._connections.reading() as connection:
            return bool(connection.execute("SELECT scrub_due FROM housekeeping").fetchone()[0])

    def output_leaves(self, start: int, end: int) -> tuple[bytes, ...]:
        return self._output("SELECT leaf FROM output_leaves", start, end)

    def output_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        return self._output("SELECT leaf_hash FROM output_leaves", start, end)

    def _output(self, select: str, start: int, end: int) -> tuple[bytes, ...]:
        with self._connections.reading() as connection:
            rows = connection.execute(
                select + " WHERE leaf_index >= ? AND leaf_index < ? ORDER BY leaf_index", (start, end)
            ).fetchall()
        if len(rows) != max(0, end - start):
            raise StoreError("OutOfRange", f"{self._path}: has no output leaves {start} to {end}")
        return tuple(row[0] for row in rows)

    def leaves(self) -> Iterator[PrefixLeaf]:
        with self._connections.reading() as connection:
            for (blob,) in connection.execute("SELECT leaves FROM map_buckets ORDER BY number"):
                yield from split_bucket(blob)

    def damaged_rows(self) -> Iterator[str]:
        with self._connections.reading() as connection:
            buckets = connection.execute("SELECT number, leaves FROM map_buckets ORDER BY number")
            yield from damaged("map_buckets", buckets)
            yield from damaged("map_nodes", connection.execute("SELECT page, nodes FROM map_nodes ORDER BY page"))

    def leaf_near(self, index: bytes) -> PrefixLeaf | None:
        with self._connections.reading() as connection:
            depth = _read_depth(connection)
            for first in (prefix(index, depth), 0):
                row = connection.execute(
                    "SELECT leaves FROM map_buckets WHERE number >= ? ORDER BY number LIMIT 1", (first,)
                ).fetchone()
                if row is not None:
                    leaves = split_bucket(row[0])
                    return next((leaf for leaf in leaves if leaf.index >= index), leaves[0])
        return None

    # For a copy

    def meta(self) -> tuple[str, bytes]:
        """Origin and configuration."""
        with self._connections.reading() as connection:
            return connection.execute("SELECT origin, config FROM log_meta").fetchone()

    def rows(self, table: str, columns: Sequence[str]) -> Iterator[tuple]:
        """Every row of *table*; inside a snapshot, of one update."""
        with self._connections.reading() as connection:
            yield from connection.execute(f"SELECT {', '.join(columns)} FROM {table}")  # noqa: S608 - names of ours

    def _commitment(self, connection: sqlite3.Connection, index: bytes) -> bytes:
        for leaf in split_bucket(_Rows(connection).bucket(prefix(index, _read_depth(connection)))):
            if leaf.index == index:
                return leaf.commitment
        raise StoreError("Corrupt", f"{self._path}: a value without a leaf")

    # Writing

    def update(
        self, changes: Sequence[Live | Dead], *, expected: MapState, input_size: int, erasures: int,
        make_leaf: Callable[[bytes], bytes], seal: Callable[[MapState, bytes], bytes] | None = None,
    ) -> MapState:
        with self._connections.writing() as connection:
            state = _read_state(connection)
            if state != expected:
                raise advanced(self._path, state)
            rows = _Rows(connection)
            leaves, root = write_leaves(
                rows, state.leaves, state.depth, state.root,
                [PrefixLeaf(change.index, change.commitment) for change in changes],
            )
            depth = grown_depth(leaves, state.depth)
            grow(rows, state.depth, depth)
            _write_values(connection, changes)
            leaf = make_leaf(root)
            output = state.output.append(hash_leaf(leaf))
            connection.execute(
                "INSERT INTO output_leaves VALUES (?, ?, ?)", (state.output.size, leaf, hash_leaf(leaf))
            )
            after = MapState(leaves, depth, root, input_size, erasures, output)
            if seal is not None:
                connection.execute("INSERT INTO output_checkpoints VALUES (?, ?)", (output.size, seal(after, leaf)))
            connection.execute(
                "UPDATE map_state SET leaves = ?, depth = ?, root = ?, input_size = ?, erasures = ?, output_size = ?,"
                " output_frontier = ?", (leaves, depth, root, input_size, erasures, output.size, output.encode()),
            )
        return after

    def settle(self) -> None:
        """Move what updates wrote to its place in the file. It is durable before; nobody needs to wait for this."""
        self._connections.checkpoint()

    def scrub(self) -> bool:
        """Leave no erased byte in the file, and return whether that succeeded. See ``LogStore.scrub``."""
        if not self._connections.rewrite():
            return False
        with self._connections.writing() as connection:
            connection.execute("UPDATE housekeeping SET scrub_due = 0")
        return True


def _read_meta(connection: sqlite3.Connection) -> tuple[str, bytes, int] | None:
    return connection.execute("SELECT origin, config, schema_version FROM log_meta").fetchone()


def _read_state(connection: sqlite3.Connection) -> MapState:
    row = connection.execute(
        "SELECT leaves, depth, root, input_size, erasures, output_frontier, output_size FROM map_state"
    ).fetchone()
    return make_state(*row)


def _read_depth(connection: sqlite3.Connection) -> int:
    return connection.execute("SELECT depth FROM map_state").fetchone()[0]


def _write_values(connection: sqlite3.Connection, changes: Iterable[Live | Dead]) -> None:
    live = [
        (c.index, c.value, c.opening, c.history, join_history(c.news)) for c in changes if isinstance(c, Live)
    ]
    dead = [(c.index, c.version, c.generation, c.erasure_number) for c in changes if isinstance(c, Dead)]
    gone = [row[0] for row in dead] + [c.index for c in changes if isinstance(c, Live) and c.afresh]
    connection.executemany("DELETE FROM map_values WHERE leaf = ?", ((index,) for index in gone))
    if gone:
        connection.execute("UPDATE housekeeping SET scrub_due = 1")
    if connection.execute("SELECT 1 FROM map_tombstones LIMIT 1").fetchone():
        connection.executemany("DELETE FROM map_tombstones WHERE leaf = ?", ((row[0],) for row in live))
    connection.executemany(
        "INSERT INTO map_values VALUES (?, ?, ?, ?, ?) ON CONFLICT (leaf) DO UPDATE SET value = excluded.value,"
        " opening = excluded.opening, history = excluded.history, leaves = CAST(leaves || excluded.leaves AS BLOB)",
        live,
    )
    connection.executemany("INSERT OR REPLACE INTO map_tombstones VALUES (?, ?, ?, ?)", dead)


class _Rows:
    """``TreeRows`` on one connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def bucket(self, number: int) -> bytes:
        row = self._connection.execute("SELECT leaves FROM map_buckets WHERE number = ?", (number,)).fetchone()
        return b"" if row is None else row[0]

    def some_bucket(self, start: int, end: int) -> bytes:
        row = self._connection.execute(
            "SELECT leaves FROM map_buckets WHERE number >= ? AND number < ? LIMIT 1", (start, end)
        ).fetchone()
        return b"" if row is None else row[0]

    def last_buckets(self, end: int, limit: int) -> list[tuple[int, bytes]]:
        return self._connection.execute(
            "SELECT number, leaves FROM map_buckets WHERE number < ? ORDER BY number DESC LIMIT ?", (end, limit)
        ).fetchall()

    def buckets(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return dict(self._connection.execute(
            "SELECT number, leaves FROM map_buckets WHERE number IN (SELECT value FROM json_each(?))",
            (json.dumps(list(numbers)),),
        ))

    def pages(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return dict(self._connection.execute(
            "SELECT page, nodes FROM map_nodes WHERE page IN (SELECT value FROM json_each(?))",
            (json.dumps(list(numbers)),),
        ))

    def write_buckets(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO map_buckets VALUES (?, ?)", rows)

    def write_pages(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self._connection.executemany("INSERT OR REPLACE INTO map_nodes VALUES (?, ?)", rows)

    def delete_buckets(self, numbers: Iterable[int]) -> None:
        self._connection.executemany("DELETE FROM map_buckets WHERE number = ?", ((number,) for number in numbers))
