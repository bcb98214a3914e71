"""The tables of ``witness.db``, and the triggers that keep what must never change.

======  ================================================================================================
schema  what it added
======  ================================================================================================
1       logs, keys, checkpoints, evidence
2       what a verifier keeps; some databases of 2 have freezes and limits too, which came without a number
3       keys that were retired. Code that knows nothing of these would go on trusting them, so it may not
        open such a database
======  ================================================================================================

Each statement makes what is missing and leaves alone what is there, so a database of an older schema becomes one of
this by running them all (``witness.migrate``).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

SCHEMA_VERSION = 3
#: The oldest code that may open what this code writes.
OLDEST_READER = 3

_TABLES = """
CREATE TABLE IF NOT EXISTS witness (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    schema_version INTEGER NOT NULL,
    oldest_reader INTEGER NOT NULL,  -- the oldest schema_version whose code may open this file
    name TEXT NOT NULL,
    created INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS witness_keys (
    vkey TEXT PRIMARY KEY
) STRICT;
CREATE TABLE IF NOT EXISTS logs (
    origin TEXT PRIMARY KEY,
    origin_hash TEXT NOT NULL UNIQUE,  -- lowercase hex SHA-256, the name on the monitoring path
    added INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS log_keys (
    origin TEXT NOT NULL REFERENCES logs (origin),
    name TEXT NOT NULL,
    key_id BLOB NOT NULL CHECK (length(key_id) = 4),
    vkey TEXT NOT NULL,
    added INTEGER NOT NULL,
    PRIMARY KEY (origin, name, key_id)
) STRICT;
CREATE TABLE IF NOT EXISTS checkpoints (
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    revision INTEGER NOT NULL CHECK (revision > 0),
    size INTEGER NOT NULL CHECK (size >= 0),
    root BLOB NOT NULL CHECK (length(root) = 32),
    time INTEGER NOT NULL CHECK (time > 0),
    note BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS evidence (
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL REFERENCES logs (origin),
    size INTEGER NOT NULL,
    recorded INTEGER NOT NULL,
    document BLOB NOT NULL,
    UNIQUE (origin, size)
) STRICT;
CREATE TRIGGER IF NOT EXISTS checkpoints_only_grow BEFORE UPDATE ON checkpoints
WHEN NEW.origin IS NOT OLD.origin
    OR NEW.revision IS NOT OLD.revision + 1
    OR NEW.size < OLD.size
    OR (NEW.size = OLD.size AND NEW.root IS NOT OLD.root)
    OR NEW.time < OLD.time
BEGIN SELECT RAISE(ABORT, 'a cosigned checkpoint never rolls back'); END;
CREATE TABLE IF NOT EXISTS replays (  -- of a verifier: the logs whose entries it replays
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    map_origin TEXT NOT NULL UNIQUE REFERENCES logs (origin),
    url TEXT NOT NULL,
    secret BLOB NOT NULL CHECK (length(secret) = 32),  -- keys the digests below
    added INTEGER NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS heads (  -- the largest checkpoint signed by the log that was ever shown to this verifier
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    size INTEGER NOT NULL,
    root BLOB NOT NULL CHECK (length(root) = 32),
    seen INTEGER NOT NULL,  -- Unix seconds
    note BLOB NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS heads_only_grow BEFORE UPDATE ON heads
WHEN NEW.origin IS NOT OLD.origin OR NEW.size <= OLD.size
BEGIN SELECT RAISE(ABORT, 'a head seen is never forgotten'); END;
CREATE TABLE IF NOT EXISTS sightings (  -- when each checkpoint of an input log was first seen
    origin TEXT NOT NULL REFERENCES logs (origin),
    size INTEGER NOT NULL,
    seen INTEGER NOT NULL,
    PRIMARY KEY (origin, size)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS checked (  -- up to where a map's log was checked, by its origin
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    size INTEGER NOT NULL,
    timely_from INTEGER NOT NULL,
    derived_from INTEGER NOT NULL,
    note BLOB NOT NULL  -- the checkpoint of that size
) STRICT;
CREATE TRIGGER IF NOT EXISTS checked_only_grows BEFORE UPDATE ON checked
WHEN NEW.origin IS NOT OLD.origin OR NEW.size <= OLD.size
BEGIN SELECT RAISE(ABORT, 'what was checked stays checked'); END;
CREATE TABLE IF NOT EXISTS digests (  -- of each entry with the text beside it, once all of it was found to hold
    origin TEXT NOT NULL REFERENCES logs (origin),
    leaf_index INTEGER NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    PRIMARY KEY (origin, leaf_index)
) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS verdicts (  -- why nothing is signed for a map any more
    origin TEXT PRIMARY KEY REFERENCES logs (origin),
    name TEXT NOT NULL,
    message TEXT NOT NULL,
    recorded INTEGER NOT NULL,
    document BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS freezes (  -- of logs that were convicted; none is lifted but by the operator's hand
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL REFERENCES logs (origin),
    size INTEGER NOT NULL,  -- of the evidence
    frozen INTEGER NOT NULL,
    lifted INTEGER,
    UNIQUE (origin, size)
) STRICT;
CREATE TRIGGER IF NOT EXISTS freezes_no_delete BEFORE DELETE ON freezes
BEGIN SELECT RAISE(ABORT, 'freezes is append-only'); END;
CREATE TRIGGER IF NOT EXISTS freezes_only_lifted BEFORE UPDATE ON freezes
WHEN OLD.lifted IS NOT NULL OR NEW.lifted IS NULL OR NEW.id IS NOT OLD.id OR NEW.origin IS NOT OLD.origin
    OR NEW.size IS NOT OLD.size OR NEW.frozen IS NOT OLD.frozen
BEGIN SELECT RAISE(ABORT, 'a freeze can only be lifted, once'); END;
CREATE TABLE IF NOT EXISTS log_limits (  -- how often a log may submit
    origin TEXT NOT NULL REFERENCES logs (origin),
    source TEXT NOT NULL,  -- the list that says so; empty: the operator
    per_day INTEGER NOT NULL CHECK (per_day > 0),
    contact TEXT NOT NULL,
    PRIMARY KEY (origin, source)
) STRICT;
CREATE TABLE IF NOT EXISTS retirements (  -- of keys that a log was trusted under, and is no more
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL,
    name TEXT NOT NULL,
    key_id BLOB NOT NULL,
    retired INTEGER NOT NULL,  -- Unix seconds
    reason TEXT NOT NULL,
    restored INTEGER,  -- when the operator said to trust it again
    FOREIGN KEY (origin, name, key_id) REFERENCES log_keys (origin, name, key_id)
) STRICT;
CREATE INDEX IF NOT EXISTS retirements_by_key ON retirements (origin, name, key_id);
CREATE UNIQUE INDEX IF NOT EXISTS retired_once ON retirements (origin, name, key_id) WHERE restored IS NULL;
CREATE TRIGGER IF NOT EXISTS retirements_no_delete BEFORE DELETE ON retirements
BEGIN SELECT RAISE(ABORT, 'retirements is append-only'); END;
CREATE TRIGGER IF NOT EXISTS retirements_only_restored BEFORE UPDATE ON retirements
WHEN OLD.restored IS NOT NULL OR NEW.restored IS NULL OR NEW.id IS NOT OLD.id OR NEW.origin IS NOT OLD.origin
    OR NEW.name IS NOT OLD.name OR NEW.key_id IS NOT OLD.key_id OR NEW.retired IS NOT OLD.retired
    OR NEW.reason IS NOT OLD.reason
BEGIN SELECT RAISE(ABORT, 'a retired key can only be trusted again, once'); END;
CREATE TABLE IF NOT EXISTS retired_evidence (  -- two roots under a key that was retired when they were shown
    id INTEGER PRIMARY KEY,
    origin TEXT NOT NULL,
    name TEXT NOT NULL,
    key_id BLOB NOT NULL,
    size INTEGER NOT NULL,
    recorded INTEGER NOT NULL,
    document BLOB NOT NULL,
    UNIQUE (origin, name, key_id),  -- one convicts a key for good, and whoever stole it can make many
    FOREIGN KEY (origin, name, key_id) REFERENCES log_keys (origin, name, key_id)
) STRICT;
"""

_FIXED = ("witness", "witness_keys", "logs", "log_keys", "evidence", "verdicts", "retired_evidence")
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
        yield _trigger(table, "delete")
    for table in _FIXED:
        yield _trigger(table, "update")


def renumber_statements() -> Iterator[str]:
    """Say that the database has this schema now, where a trigger keeps anybody from saying so."""
    yield "DROP TRIGGER witness_no_update"
    yield f"UPDATE witness SET schema_version = {SCHEMA_VERSION}, oldest_reader = {OLDEST_READER}"  # noqa: S608
    yield _trigger("witness", "update")


def _trigger(table: str, event: str) -> str:
    return (
        f"CREATE TRIGGER IF NOT EXISTS {table}_no_{event} BEFORE {event.upper()} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
    )
