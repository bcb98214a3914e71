"""The directory map in the PostgreSQL database of its log.

The rows are those of ``ktlog.store.mapdb``, and the prefix tree is ``ktlog.store.maptree``'s. What differs is that
several machines share the database:

* An update reads what it needs, works out the new rows in memory, and has the leaf sealed before it begins to write.
  So no transaction is open and no row locked while cosigners take their time, and a process that is stopped in the
  middle keeps nobody waiting.
* The transaction that writes begins with a compare-and-set of the map's state, and ends by looking whether the log's
  epoch is still the one that this handle was opened with. A process whose successor has claimed the log changes
  nothing any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from psycopg import Connection

from ktlog.errors import Conflict, StoreError
from ktlog.keymap.prefix import MISSING, PrefixLeaf, PrefixProof
from ktlog.store.mapbatch import prove_all
from ktlog.store.mapcoding import advanced, check_meta, make_state, split_history
from ktlog.store.mapcontract import Dead, Live, MapState
from ktlog.store.maptree import damaged, grow, grown_depth, prefix, prove, split_bucket, write_leaves
from ktlog.store.pgconnections import PgConnections
from ktlog.store.pgmaprows import MAP_GUARDS, MAP_TABLES, BufferedRows, Rows, write_values
from ktlog.store.pgschema import try_guards
from ktlog.tlog.tree import Frontier, hash_leaf

SCHEMA_VERSION = 1
SCRUB_LOCK_SECONDS = 2.0
"""How long a scrub waits until nobody reads the table that it writes anew."""
LEAVES_AT_A_TIME = 512
"""Buckets that are read at once where all of them are."""


class PgMapStore:
    """``MapStore`` over PostgreSQL tables.

    Args:
        connections: closed with the store.
        epoch: the log's, as claimed by the process that writes through this handle; None writes unfenced, which is
            for a log that nothing runs.

    Raises, from every method: StoreError, with the names of ``ktlog.store.pgconnections``.
    """

    def __init__(self, connections: PgConnections, *, epoch: int | None = None) -> None:
        self._connections = connections
        self._where = f"{connections.where}, the map"
        self._epoch = epoch

    @classmethod
    def create(cls, url: str, origin: str, config: bytes) -> None:
        """Make an empty map, whose output log has *config* for its leaf 0, beside the log in the database *url*.

        Raises:
            StoreError: ``StoreExists``.
        """
        connections = PgConnections(url, read_only=False)
        try:
            connections.write(lambda db: _create(db, connections.where, origin, config))
        finally:
            connections.close()

    @classmethod
    def exists(cls, url: str) -> bool:
        """Whether there is a map to be opened."""
        connections = PgConnections(url, read_only=True)
        try:
            return connections.read(_exists)
        finally:
            connections.close()

    @classmethod
    def remove(cls, url: str) -> None:
        """Remove a map that was never published. Nothing happens without one."""
        connections = PgConnections(url, read_only=False)
        try:
            connections.write(_remove)
        finally:
            connections.close()

    @classmethod
    def open(
        cls, url: str, *, origin: str, config: bytes, read_only: bool = False, epoch: int | None = None
    ) -> PgMapStore:
        """Open the map of the log *origin*.

        Raises:
            StoreError: ``MissingStore``; ``WrongOrigin``; ``WrongConfig``: the output log began with another
                configuration.
        """
        connections = PgConnections(url, read_only=read_only)
        try:
            if not connections.read(_exists):
                raise StoreError("MissingStore", f"{connections.where}: there is no map of a log in this database")
            row = connections.read(lambda db: db.execute(
                "SELECT origin, config, schema_version FROM map_meta WHERE id = 1", binary=True
            ).fetchone())
            check_meta(connections.where, row, origin=origin, config=config, version=SCHEMA_VERSION, oldest=1)
        except BaseException:
            connections.close()
            raise
        return cls(connections, epoch=epoch)

    def close(self) -> None:
        self._connections.close()

    def snapshot(self) -> AbstractContextManager[object]:
        return self._connections.snapshot()

    # Reading

    def version(self) -> int:
        return self._connections.peek(_read_size)

    def state(self) -> MapState:
        return self._connections.read(read_state, single=True)

    def live(self, index: bytes) -> Live | None:
        def read(db: Connection) -> Live | None:
            row = db.execute(
                "SELECT value, opening, history FROM map_values WHERE leaf = %b", (index,), binary=True
            ).fetchone()
            return None if row is None else Live(index, self._commitment(db, index), *row)

        return self._connections.read(read)

    def presented(self, index: bytes) -> tuple[bytes, bytes] | None:
        return self._value("SELECT value, opening FROM map_values WHERE leaf = %b", index)

    def dead(self, index: bytes) -> Dead | None:
        def read(db: Connection) -> Dead | None:
            row = db.execute(
                "SELECT version, generation, erasure_number FROM map_tombstones WHERE leaf = %b", (index,)
            ).fetchone()
            return None if row is None else Dead(index, self._commitment(db, index), *row)

        return self._connections.read(read)

    def prove(self, index: bytes) -> PrefixProof:
        return self._connections.read(lambda db: prove(Rows(db), _read_depth(db), index))

    def prove_all(self, indexes: Sequence[bytes]) -> PrefixProof:
        return self._connections.read(lambda db: prove_all(Rows(db), _read_depth(db), indexes))

    def history(self, index: bytes, end: int) -> tuple[bytes, ...]:
        row = self._value("SELECT leaves FROM map_values WHERE leaf = %b", index)
        return () if row is None else split_history(row[0], end)

    def checkpoint(self, size: int | None = None) -> bytes | None:
        if size is None:
            row = self._value("SELECT note FROM output_checkpoints ORDER BY size DESC LIMIT 1")
        else:
            row = self._value("SELECT note FROM output_checkpoints WHERE size = %s", size)
        return None if row is None else row[0]

    def scrub_due(self) -> bool:
        return self._value("SELECT scrub_due FROM map_state WHERE id = 1")[0]

    def output_leaves(self, start: int, end: int) -> tuple[bytes, ...]:
        return self._output("SELECT leaf FROM output_leaves", start, end)

    def output_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        return self._output("SELECT leaf_hash FROM output_leaves", start, end)

    def _output(self, select: str, start: int, end: int) -> tuple[bytes, ...]:
        where = " WHERE leaf_index >= %s AND leaf_index < %s ORDER BY leaf_index"
        rows = self._connections.read(
            lambda db: db.execute(select + where, (start, end), binary=True).fetchall(), single=True
        )
        if len(rows) != max(0, end - start):
            raise StoreError("OutOfRange", f"{self._where}: has no output leaves {start} to {end}")
        return tuple(row[0] for row in rows)

    def leaves(self) -> Iterator[PrefixLeaf]:
        with self._connections.reading() as db:
            after = -1
            while rows := db.execute(
                "SELECT number, leaves FROM map_buckets WHERE number > %s ORDER BY number LIMIT %s",
                (after, LEAVES_AT_A_TIME), binary=True,
            ).fetchall():
                after = rows[-1][0]
                for _number, blob in rows:
                    yield from split_bucket(blob)

    def damaged_rows(self) -> Iterator[str]:
        with self._connections.reading() as db:
            for table, query in (
                ("map_buckets", "SELECT number, leaves FROM map_buckets WHERE number > %s ORDER BY number LIMIT %s"),
                ("map_nodes", "SELECT page, nodes FROM map_nodes WHERE page > %s ORDER BY page LIMIT %s"),
            ):
                after = -1
                while rows := db.execute(query, (after, LEAVES_AT_A_TIME), binary=True).fetchall():
                    after = rows[-1][0]
                    yield from damaged(table, rows)

    def leaf_near(self, index: bytes) -> PrefixLeaf | None:
        def read(db: Connection) -> PrefixLeaf | None:
            for first in (prefix(index, _read_depth(db)), 0):
                row = db.execute(
                    "SELECT leaves FROM map_buckets WHERE number >= %s ORDER BY number LIMIT 1", (first,), binary=True
                ).fetchone()
                if row is not None:
                    leaves = split_bucket(row[0])
                    return next((leaf for leaf in leaves if leaf.index >= index), leaves[0])
            return None

        return self._connections.read(read)

    def _value(self, query: str, *parameters: object) -> tuple | None:
        return self._connections.read(
            lambda db: db.execute(query, parameters, binary=True).fetchone(), single=True
        )

    def _commitment(self, db: Connection, index: bytes) -> bytes:
        for leaf in split_bucket(Rows(db).bucket(prefix(index, _read_depth(db)))):
            if leaf.index == index:
                return leaf.commitment
        raise StoreError("Corrupt", f"{self._where}: a value without a leaf")

    # Writing

    def update(
        self, changes: Sequence[Live | Dead], *, expected: MapState, input_size: int, erasures: int,
        make_leaf: Callable[[bytes], bytes], seal: Callable[[MapState, bytes], bytes] | None = None,
    ) -> MapState:
        """As the contract says. *seal* and *make_leaf* run before the transaction, once each."""
        def work_out(db: Connection) -> tuple[BufferedRows, int, bytes]:
            if (stored := read_state(db)) != expected:
                raise advanced(self._where, stored)
            rows = BufferedRows(Rows(db))
            leaves, root = write_leaves(
                rows, expected.leaves, expected.depth, expected.root,
                [PrefixLeaf(change.index, change.commitment) for change in changes],
            )
            return rows, leaves, root

        rows, leaves, root = self._connections.read(work_out)
        leaf = make_leaf(root)
        output = expected.output.append(hash_leaf(leaf))
        after = MapState(leaves, grown_depth(leaves, expected.depth), root, input_size, erasures, output)
        note = None if seal is None else seal(after, leaf)

        def store(db: Connection) -> None:
            if not _swap_state(db, expected, after):
                raise advanced(self._where, read_state(db))
            rows.write_to(Rows(db))
            write_values(db, changes)
            db.execute(
                "INSERT INTO output_leaves (leaf_index, leaf, leaf_hash) VALUES (%s, %b, %b)",
                (expected.output.size, leaf, hash_leaf(leaf)),
            )
            if note is not None:
                db.execute("INSERT INTO output_checkpoints (size, note) VALUES (%s, %b)", (output.size, note))
            grow(Rows(db), expected.depth, after.depth)
            self._require_epoch(db)

        self._connections.write(store)
        return after

    def _require_epoch(self, db: Connection) -> None:
        """Refuse if another process has claimed the log; until the end of the transaction none can."""
        if self._epoch is None:
            return
        row = db.execute("SELECT epoch FROM log_state WHERE id = 1 FOR SHARE").fetchone()
        if row is None or row[0] != self._epoch:
            raise Conflict(
                "Fenced", f"{self._where}: another sequencer has taken over from writer {self._epoch}",
                stored=None if row is None else row[0], hint="This one must stop.",
            )

    def settle(self) -> None:
        """Nothing: the server's own housekeeping does it."""

    def scrub(self) -> bool:
        """Write the values' table anew; the server removes the old file. See ``LogStore.scrub``.

        What the server keeps beside its tables, its write-ahead log and copies of it, is the operator's to delete.
        """
        try:
            with self._connections.maintaining(SCRUB_LOCK_SECONDS) as db:
                db.execute("VACUUM (FULL) map_values")
        except StoreError as error:
            if error.name == "Locked":
                return False
            raise
        self._connections.write(lambda db: db.execute("UPDATE map_state SET scrub_due = false WHERE id = 1"))
        return True


def _exists(db: Connection) -> bool:
    if db.execute("SELECT to_regclass('ktlog.map_meta')").fetchone() == (None,):
        return False
    return db.execute("SELECT 1 FROM map_meta").fetchone() is not None


def _create(db: Connection, where: str, origin: str, config: bytes) -> None:
    output = Frontier().append(hash_leaf(config))
    create_tables(db, where, origin, config, MapState(0, 0, MISSING, 0, 0, output))
    db.execute(
        "INSERT INTO output_leaves (leaf_index, leaf, leaf_hash) VALUES (0, %b, %b)", (config, hash_leaf(config))
    )
    guard_tables(db)


def create_tables(db: Connection, where: str, origin: str, config: bytes, state: MapState) -> None:
    """Make the tables of a map at *state*, but no row of the tree, of the values and of the output log.

    Raises:
        StoreError: ``StoreExists``.
    """
    if _exists(db):
        raise StoreError("StoreExists", f"{where}: has a map already, which is not replaced")
    for statement in MAP_TABLES:
        db.execute(statement)
    db.execute(
        "INSERT INTO map_meta (id, origin, config, schema_version) VALUES (1, %s, %b, %s)",
        (origin, config, SCHEMA_VERSION),
    )
    db.execute(
        "INSERT INTO map_state (id, leaves, depth, root, input_size, erasures, output_size, output_frontier, scrub_due)"
        " VALUES (1, %s, %s, %b, %s, %s, %s, %b, false)", _columns(state),
    )


def guard_tables(db: Connection) -> None:
    """Let nobody change what only grows. After the first rows are there."""
    try_guards(db, MAP_GUARDS)


def _remove(db: Connection) -> None:
    for table in ("map_state", "map_buckets", "map_nodes", "map_values", "map_tombstones", "output_leaves",
                  "output_checkpoints", "map_meta"):
        db.execute(f"DROP TABLE IF EXISTS {table}")


def read_state(db: Connection) -> MapState:
    """Where the map stands."""
    row = db.execute(
        "SELECT leaves, depth, root, input_size, erasures, output_frontier, output_size FROM map_state WHERE id = 1",
        binary=True,
    ).fetchone()
    if row is None:
        raise StoreError("Corrupt", "the map in the database has no state")
    return make_state(*row)


def _read_size(db: Connection) -> int:
    return db.execute("SELECT output_size FROM map_state WHERE id = 1").fetchone()[0]


def _read_depth(db: Connection) -> int:
    return db.execute("SELECT depth FROM map_state WHERE id = 1").fetchone()[0]


def _swap_state(db: Connection, expected: MapState, after: MapState) -> bool:
    """Set the state to *after* if it is *expected*. It is the first statement: two writers take turns here."""
    return db.execute(
        "UPDATE map_state SET leaves = %s, depth = %s, root = %b, input_size = %s, erasures = %s, output_size = %s,"
        " output_frontier = %b WHERE id = 1 AND leaves = %s AND depth = %s AND root = %b AND input_size = %s"
        " AND erasures = %s AND output_size = %s AND output_frontier = %b",
        (*_columns(after), *_columns(expected)),
    ).rowcount == 1


def _columns(state: MapState) -> tuple:
    return (
        state.leaves, state.depth, state.root, state.input_size, state.erasures, state.output.size,
        state.output.encode(),
    )
