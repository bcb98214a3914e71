"""The tables of ``witness.db``, and the triggers that keep what must never change."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

SCHEMA_VERSION = 2
"""2 added what a verifier keeps. A database of schema 1 belongs to a witness and stays one."""

_TABLES = """
CREATE TABLE witness (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    schema_version INTEGER NOT NULL,
    oldest_reader INTEGER NOT NULL,  -- the oldest schema_version whose code may open this file
    name TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE witness_keys (
    vkey TEXT PRIMARY KEY
) STRICT;
CREATE TABLE logs (
    origin TEXT PRIMARY KEY,
    origin_hash TEXT NOT NULL UNIQUE,  -- lowercase hex SHA-256, the name on the monitoring path
    added INTEGER NOT NULL
) STRICT;
CREATE TABLE log_keys (
    origin TEXT NOT NULL REFERENCES logs (origin),
    name TEXT NOT NULL,
    key_id BLOB NOT NULL CHECK (length(key_id) = 4),
    vkey TEXT NOT NULL,
    added INTEGER NOT NULL,
    PRIMARY KEY (origin, name, key_id)
) STRICT;
CREATE TABLE checkpoints (
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    revision INTEGER NOT NULL CHECK (revision > 0),
    size INTEGER NOT NULL CHECK (size >= 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    time INTEGER NOT NULL CHECK (time > 0),
    note BLOB NOT NULL
) STRICT;
CREATE TABLE evidence (
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL REFERENCES logs (origin),
    size INTEGER NOT NULL,
    recorded INTEGER NOT NULL,
    document BLOB NOT NULL,
    UNIQUE (origin, size)
) STRICT;
CREATE TRIGGER checkpoints_only_grow BEFORE UPDATE ON checkpoints
WHEN NEW.origin IS NOT OLD.origin
    OR NEW.revision IS NOT OLD.revision + 1
    OR NEW.size < OLD.size
    OR (NEW.size = OLD.size AND NEW.root IS NOT OLD.root)
    OR NEW.time < OLD.time
BEGIN SELECT RAISE(ABORT, 'a cosigned checkpoint never rolls back'); END;
CREATE TABLE replays (  -- of a verifier: the logs whose entries it replays
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    map_origin TEXT NOT NULL UNIQUE REFERENCES logs (origin),
    url TEXT NOT NULL,
    secret BLOB NOT NULL CHECK (length(secret) = 32),  -- keys the digests below
    added INTEGER NOT NULL
) STRICT;
CREATE TABLE heads (  -- the largest checkpoint signed by the log that was ever shown to this verifier
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    size INTEGER NOT NULL,
    root BLOB NOT NULL CHECK (length(root) = 32),
    seen INTEGER NOT NULL,  -- Unix seconds
    note BLOB NOT NULL
) STRICT;
CREATE TRIGGER heads_only_grow BEFORE UPDATE ON heads
WHEN NEW.origin IS NOT OLD.origin OR NEW.size <= OLD.size
BEGIN SELECT RAISE(ABORT, 'a head seen is never forgotten'); END;
CREATE TABLE sightings (  -- when each checkpoint of an input log was first seen
    origin TEXT NOT NULL REFERENCES logs (origin),
    size INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    PRIMARY KEY (origin, size)
) STRICT, WITHOUT ROWID;
CREATE TABLE checked (  -- up to where a map's log was checked, by its origin
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    size INTEGER NOT NULL,
    timely_from INTEGER NOT NULL,
    derived_from INTEGER NOT NULL,
    note BLOB NOT NULL  -- the checkpoint of that size
) STRICT;
CREATE TRIGGER checked_only_grows BEFORE UPDATE ON checked
WHEN NEW.origin IS NOT OLD.origin OR NEW.size <= OLD.size
BEGIN SELECT RAISE(ABORT, 'what was checked stays checked'); END;
CREATE TABLE digests (  -- of each entry with the text beside it, once all of it was found to hold
    origin TEXT NOT NULL REFERENCES logs (origin),
    leaf_index INTEGER NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (origin, leaf_index)
) STRICT, WITHOUT ROWID;
CREATE TABLE verdicts (  -- why nothing is signed for a map any more
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    name TEXT NOT NULL,
    message TEXT NOT NULL,
    recorded INTEGER NOT NULL,
    document BLOB NOT NULL
) STRICT;
"""

_FIXED = ("witness", "witness_keys", "logs", "log_keys", "evidence", "verdicts")
_KEPT = (*_FIXED, "checkpoints", "replays", "heads", "checked")


def schema_statements() -> Iterator[str]:
    """The schema, statement by statement: executescript would commit behind our back."""
    statement = ""
    for line in _TABLES.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
    if statement.strip():
        raise AssertionError("the schema ends in the middle of a statement")
    for table in _KEPT:
        yield (
            f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
    for table in _FIXED:
        yield (
            f"CREATE TRIGGER {table}_no_update BEFORE UPDATE ON {table} "
            f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        )
