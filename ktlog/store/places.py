"""Where in the log a hash is: an index of random values that costs the same for every entry, however many there are.

An index over hashes in their order has a page for each new one, of all its pages: with a million entries, 256 of
them write 4 MB. So new hashes go into a small part of the index, of a few pages. When that has ``FRESH_PLACES`` they
move on together, in order, to a part of some dozen pages; and when that has ``RECENT_PLACES``, into the bucket of
their stretch of the log, each of which has an end. What moves touches every page of where it goes. So much of it moves
at a time that the pages written for an entry are about the same in a full bucket as in an empty one. A look-up asks
every bucket; there is one for each 262,144 entries.

A place is found by the first eight bytes of its hash, and then the whole hash is compared where it is stored.

Every function takes an open connection inside a transaction; ``sqlite3.Error`` is the caller's.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence

ENTRY_PLACES = "entry_places"
"""Leaf indexes by unique hash."""
ROOT_PLACES = "root_places"
"""Tree sizes by root."""

FRESH = -1
FRESH_PLACES = 4_096
RECENT = -2
RECENT_PLACES = 65_536
BUCKET_BITS = 18


def create_statements() -> tuple[str, ...]:
    return tuple(
        f"""CREATE TABLE {table} (
            bucket INTEGER NOT NULL,
            prefix INTEGER NOT NULL,
            place INTEGER NOT NULL,
            PRIMARY KEY (bucket, prefix, place)
        ) STRICT, WITHOUT ROWID"""
        for table in (ENTRY_PLACES, ROOT_PLACES)
    )


def insert(db: sqlite3.Connection, table: str, hashes: Sequence[bytes], first: int) -> None:
    """Note the places *first*, *first* + 1 and so on of *hashes*."""
    # S608, here and below: table is one of the two above, and everything else a number.
    db.executemany(
        f"INSERT INTO {table} (bucket, prefix, place) VALUES ({FRESH}, ?, ?)",  # noqa: S608
        sorted((_prefix(item), place) for place, item in enumerate(hashes, first)),
    )
    end = first + len(hashes)
    if end // RECENT_PLACES > first // RECENT_PLACES:
        _move(db, table, f"{RECENT}, {FRESH}", f"place >> {BUCKET_BITS}")
    elif end // FRESH_PLACES > first // FRESH_PLACES:
        _move(db, table, f"{FRESH}", f"{RECENT}")


def _move(db: sqlite3.Connection, table: str, source: str, target: str) -> None:
    db.execute(
        f"INSERT INTO {table} SELECT {target}, prefix, place FROM {table}"  # noqa: S608
        f" WHERE bucket IN ({source}) ORDER BY 1, 2, 3"
    )
    db.execute(f"DELETE FROM {table} WHERE bucket IN ({source})")  # noqa: S608


def find(db: sqlite3.Connection, table: str, hashes: Iterable[bytes], last: int) -> list[int]:
    """Places, up to *last*, that may have one of *hashes*; all that do are among them."""
    buckets = ",".join(map(str, range(RECENT, (last >> BUCKET_BITS) + 1)))
    prefixes = [_prefix(item) for item in hashes]
    # One prefix is a parameter, so that the same text is asked again; of many the text is the cheaper way.
    one = len(prefixes) == 1
    wanted = "?" if one else ",".join(map(str, prefixes))
    found = db.execute(
        f"SELECT place FROM {table} WHERE bucket IN ({buckets}) AND prefix IN ({wanted})",  # noqa: S608
        prefixes if one else (),
    )
    return sorted(place for (place,) in found)


def fill(db: sqlite3.Connection) -> None:
    """Note the places of everything that is in the log; the tables are empty."""
    for table, query in (
        (ENTRY_PLACES, "SELECT leaf_index, unique_hash FROM entries ORDER BY leaf_index"),
        (ROOT_PLACES, "SELECT tree_size, root FROM leaf_roots ORDER BY tree_size"),
    ):
        rows = db.execute(query)
        while some := rows.fetchmany(RECENT_PLACES):
            insert(db, table, [item for _, item in some], some[0][0])


def _prefix(item: bytes) -> int:
    return int.from_bytes(item[:8], "big", signed=True)
