"""Between values and PostgreSQL rows: the log and its records. See ``ktlog.store.pgschema``.

The functions take an open connection *db* inside a transaction. They raise ``StoreError("Corrupt")`` for a
row that this code cannot have written; ``psycopg.Error`` is the caller's. Everything of a batch that is of one kind
goes in one statement, or in one pipeline: a round trip costs more than the row.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import psycopg

from ktlog.errors import EncodingError, StoreError
from ktlog.store.contracts import LogState, Record
from ktlog.store.plain import dump_bytes, dump_plain, load_bytes, load_plain
from ktlog.tlog.tree import EMPTY_ROOT, Frontier


def ask(db: psycopg.Connection, statement: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
    """All rows of a query, sent as they are and not as text."""
    return db.execute(statement, values, binary=True).fetchall()  # type: ignore[arg-type]


def ask_one(db: psycopg.Connection, statement: str, values: Sequence[object] = ()) -> tuple[Any, ...] | None:
    return db.execute(statement, values, binary=True).fetchone()  # type: ignore[arg-type]


def write_many(db: psycopg.Connection, statement: str, rows: Sequence[Sequence[object]]) -> None:
    """One statement for each of *rows*, all of them sent before an answer is waited for."""
    if rows:
        with db.cursor() as cursor:
            cursor.executemany(statement, rows)  # type: ignore[arg-type]


def copy_rows(db: psycopg.Connection, table: str, columns: Mapping[str, str], rows: Iterable[Sequence[object]]) -> None:
    """Insert *rows* by COPY. columns: name and type, in the order of the values."""
    names = ", ".join(columns)
    with db.cursor() as cursor, cursor.copy(f"COPY {table} ({names}) FROM STDIN (FORMAT BINARY)") as copy:  # type: ignore[arg-type]
        copy.set_types(tuple(columns.values()))
        for row in rows:
            copy.write_row(row)


def to_bytes(text: str) -> bytes:
    """How text is stored."""
    return text.encode("utf-8")


def to_text(data: bytes) -> str:
    """Inverse of :func:`to_bytes`."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise StoreError("Corrupt", f"a stored text: {error}") from error


# State

_STATE = "size, root, frontier, epoch, greatest_time"


def insert_first_state(db: psycopg.Connection) -> None:
    """Write the state of the empty log."""
    db.execute(
        "INSERT INTO log_state (id, size, root, frontier, epoch, greatest_time, writes) VALUES (1, 0, %s, %s, 0, 0, 0)",
        (EMPTY_ROOT, Frontier().encode()),
    )


def read_state(db: psycopg.Connection) -> LogState:
    return _state(ask_one(db, f"SELECT {_STATE} FROM log_state WHERE id = 1"))  # noqa: S608


def begin_write(db: psycopg.Connection) -> LogState:
    """Take the turn among all writers, until the transaction ends, and read where the log stands."""
    return _state(ask_one(
        db, f"UPDATE log_state SET writes = writes + 1 WHERE id = 1 RETURNING {_STATE}"  # noqa: S608
    ))


def _state(row: tuple[Any, ...] | None) -> LogState:
    if row is None:
        raise StoreError("Corrupt", "the log has no state")
    size, root, frontier, epoch, greatest_time = row
    try:
        return LogState(size, root, Frontier.decode(frontier), epoch, greatest_time)
    except EncodingError as error:
        raise StoreError("Corrupt", f"the stored frontier: {error}") from error


def read_size(db: psycopg.Connection) -> int:
    return _number(db, "SELECT size FROM log_state WHERE id = 1")


def read_writes(db: psycopg.Connection) -> int:
    """Another number after every transaction that changed anything."""
    return _number(db, "SELECT writes FROM log_state WHERE id = 1")


def _number(db: psycopg.Connection, statement: str) -> int:
    row = ask_one(db, statement)
    if row is None:
        raise StoreError("Corrupt", "the log has no state")
    return row[0]


def swap_state(db: psycopg.Connection, expected: LogState, state: LogState) -> bool:
    """Replace the state if it is *expected*; otherwise change nothing and return False.

    It waits for a transaction that changes the row just now, and then judges by what that left.
    """
    cursor = db.execute(
        "UPDATE log_state SET size = %s, root = %s, frontier = %s, greatest_time = %s, writes = writes + 1"
        " WHERE id = 1 AND size = %s AND root = %s AND epoch = %s",
        (
            state.size, state.root, state.frontier.encode(), state.greatest_time,
            expected.size, expected.root, expected.epoch,
        ),
    )
    return cursor.rowcount == 1


def raise_epoch(db: psycopg.Connection) -> int:
    row = ask_one(
        db, "UPDATE log_state SET epoch = epoch + 1, writes = writes + 1 WHERE id = 1 RETURNING epoch"
    )
    if row is None:
        raise StoreError("Corrupt", "the log has no state")
    return row[0]


def contradiction(db: psycopg.Connection) -> str | None:
    """What the state and the last rows disagree about, or None. Costs the same at every size."""
    state = read_state(db)
    entries, records, roots = ask(
        db,
        "SELECT (SELECT max(leaf_index) FROM entries), (SELECT max(leaf_index) FROM records),"
        " (SELECT max(tree_size) FROM leaf_roots)",
    )[0]
    for found, what in (
        (0 if entries is None else entries + 1, "entries"),
        (0 if records is None else records + 1, "records"),
        (roots or 0, "roots"),
        (state.frontier.size, "entries in the frontier"),
    ):
        if found != state.size:
            return f"the state says {state.size} entries, there are {found} {what}"
    if state.frontier.root() != state.root:
        return "the frontier has another root than the state"
    if read_root(db, state.size) != state.root:
        return "the last root is not that of the state"
    return None


# Entries and roots

ENTRIES = {"leaf_index": "int8", "leaf_hash": "bytea", "unique_hash": "bytea", "entry": "bytea"}
ROOTS = {"tree_size": "int8", "root": "bytea"}
RECORDS = {
    "leaf_index": "int8", "preimage": "bytea", "action": "bytea", "created": "int8", "accepted": "int8",
    "withheld": "bool",
}
PLAIN = {"leaf_index": "int8", "plain": "text", "keys": "text", "salts": "text"}


def insert_records(db: psycopg.Connection, records: Sequence[Record]) -> None:
    # By COPY even for one: a pipeline of INSERTs was no faster at any size.
    copy_rows(db, "entries", ENTRIES, (
        (record.leaf_index, record.leaf_hash, record.unique_hash, record.entry) for record in records
    ))
    copy_rows(db, "leaf_roots", ROOTS, ((record.leaf_index + 1, record.root) for record in records))
    copy_rows(db, "records", RECORDS, (
        (
            record.leaf_index, record.preimage, to_bytes(record.action), record.created, record.accepted,
            record.withheld,
        )
        for record in records
    ))
    copy_rows(db, "record_plain", PLAIN, (
        (record.leaf_index, dump_plain(record.plain), dump_bytes(record.keys), dump_bytes(record.salts))
        for record in records
    ))


def replace_plain(db: psycopg.Connection, record: Record) -> None:
    """Write what a record has left after an erasure."""
    db.execute(
        "UPDATE record_plain SET plain = %s, keys = %s, salts = %s WHERE leaf_index = %s",
        (dump_plain(record.plain), dump_bytes(record.keys), dump_bytes(record.salts), record.leaf_index),
    )
    db.execute("UPDATE records SET withheld = %s WHERE leaf_index = %s", (record.withheld, record.leaf_index))


def read_column(db: psycopg.Connection, column: str, start: int, end: int) -> tuple[bytes, ...]:
    """One column of the entries *start* up to *end*, which the caller knows to be in the log."""
    if column not in ("entry", "leaf_hash"):
        raise AssertionError(f"no such column: {column}")
    rows = ask(
        db, f"SELECT {column} FROM entries WHERE leaf_index >= %s AND leaf_index < %s ORDER BY leaf_index",  # noqa: S608
        (start, end),
    )
    _check_complete(rows, start, end)
    return tuple(row[0] for row in rows)


_RECORD = (
    "SELECT e.leaf_index, e.entry, e.leaf_hash, r.root, c.preimage, p.plain, p.keys, p.salts,"
    " e.unique_hash, c.action, c.created, c.accepted, c.withheld"
    " FROM entries e JOIN leaf_roots r ON r.tree_size = e.leaf_index + 1"
    " JOIN records c ON c.leaf_index = e.leaf_index"
    " LEFT JOIN record_plain p ON p.leaf_index = e.leaf_index"
)


def read_records(db: psycopg.Connection, start: int, end: int) -> tuple[Record, ...]:
    rows = ask(
        db, f"{_RECORD} WHERE e.leaf_index >= %s AND e.leaf_index < %s ORDER BY e.leaf_index", (start, end)
    )
    _check_complete(rows, start, end)
    return tuple(map(_record, rows))


def read_records_at(db: psycopg.Connection, leaf_indexes: Sequence[int]) -> tuple[Record, ...]:
    """Those of *leaf_indexes*, ascending; each is known to be in the log."""
    rows = ask(db, f"{_RECORD} WHERE e.leaf_index = ANY(%s::bigint[]) ORDER BY e.leaf_index", (list(leaf_indexes),))
    if len(rows) != len(set(leaf_indexes)):
        raise StoreError("Corrupt", f"of {len(set(leaf_indexes))} entries only {len(rows)} are there")
    return tuple(map(_record, rows))


def _record(row: tuple[Any, ...]) -> Record:
    (leaf_index, entry, leaf_hash, root, preimage, plain, keys, salts, unique_hash, action, created, accepted,
     withheld) = row
    return Record(
        leaf_index, entry, leaf_hash, root, preimage, load_plain(plain), load_bytes(keys), load_bytes(salts),
        unique_hash, to_text(action), created, accepted, withheld,
    )


def read_root(db: psycopg.Connection, size: int) -> bytes:
    """Root of the first *size* entries, which the caller knows to be in the log."""
    if size == 0:
        return EMPTY_ROOT
    row = ask_one(db, "SELECT root FROM leaf_roots WHERE tree_size = %s", (size,))
    if row is None:
        raise StoreError("Corrupt", f"the root after {size} entries is gone")
    return row[0]


def read_size_of_root(db: psycopg.Connection, root: bytes) -> int | None:
    row = ask_one(db, "SELECT tree_size FROM leaf_roots WHERE root = %s ORDER BY tree_size DESC LIMIT 1", (root,))
    if row is None:
        return 0 if root == EMPTY_ROOT else None
    return row[0]


def read_seen(db: psycopg.Connection, unique_hashes: Sequence[bytes]) -> dict[bytes, int]:
    """Leaf indexes by unique hash, of those that are in the log."""
    return dict(ask(
        db, "SELECT unique_hash, leaf_index FROM entries WHERE unique_hash = ANY(%s::bytea[])", (list(unique_hashes),)
    ))


def _check_complete(rows: Sequence[Any], start: int, end: int) -> None:
    if len(rows) != end - start:
        raise StoreError("Corrupt", f"of the entries {start} to {end} only {len(rows)} are there")
