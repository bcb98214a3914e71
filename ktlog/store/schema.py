"""The SQLite schema: what each table is for, how it came to be, and who may open it.

Every change is one step in ``STEPS``, applied by sqlite-utils' ``Migrations`` and never edited once
released. ``log_meta`` in the file names the schema's version and the oldest version of this code
that may still open it, so that old code refuses a file it would misread.

``entries``, ``leaf_roots`` and ``erasures`` are the log; triggers refuse every change to them, also
by somebody with a SQL prompt. ``record_plain`` holds everything that an erasure may take away, and
``directory_actors`` the only other copy of an actor's name. The ``directory_`` tables follow from
the log and could be made again from it. secure_delete overwrites what is deleted, but for what a
page that was filled anew still has between its cells: hence ``LogStore.scrub``.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from ktlog.store import places, rows
from ktlog.store.backfill import fill_histories_of_moves, fill_moves_and_operators


@dataclass(frozen=True)
class Step:
    """One migration: a name that never changes, and SQL statements that run in one transaction.

    ``fill`` runs after them, in the same transaction: what SQL cannot work out from older rows. ``about`` says to an
    operator what it does; ``seconds_per_million`` entries it took where it was measured, and ``written_bytes`` are what
    it writes for each entry, both about.
    """

    name: str
    statements: tuple[str, ...]
    fill: Callable[[sqlite3.Connection], None] | None = None
    about: str = ""
    seconds_per_million: float = 0.0
    written_bytes: int = 0


def _append_only(table: str) -> tuple[str, str]:
    """Triggers that refuse to change or remove a row of *table*."""
    return tuple(  # type: ignore[return-value]
        f"""CREATE TRIGGER {table}_no_{verb.lower()} BEFORE {verb} ON {table}
        BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"""
        for verb in ("UPDATE", "DELETE")
    )


def _hash(column: str) -> str:
    return f"{column} BLOB NOT NULL CHECK (length({column}) = 32)"


def _count(column: str) -> str:
    return f"{column} INTEGER NOT NULL CHECK ({column} >= 0)"


_IN_ORDER = """CREATE TRIGGER entries_in_order BEFORE INSERT ON entries
        WHEN NEW.leaf_index IS NOT (SELECT coalesce(max(leaf_index) + 1, 0) FROM entries)
        BEGIN SELECT RAISE(ABORT, 'entries are numbered without gaps'); END"""

_LOG = (
    f"""CREATE TABLE entries (
        leaf_index INTEGER PRIMARY KEY,
        {_hash("leaf_hash")},
        {_hash("unique_hash")} UNIQUE,
        entry BLOB NOT NULL
    ) STRICT""",
    *_append_only("entries"),
    # REPLACE deletes without asking the delete trigger unless recursive_triggers is on, which a
    # stranger's connection may not have; hence the checks before an insert.
    _IN_ORDER,
    """CREATE TRIGGER entries_unique BEFORE INSERT ON entries
        WHEN EXISTS (SELECT 1 FROM entries WHERE unique_hash = NEW.unique_hash)
        BEGIN SELECT RAISE(ABORT, 'an entry with this unique hash exists'); END""",
    f"""CREATE TABLE leaf_roots (
        tree_size INTEGER PRIMARY KEY,
        {_hash("root")}
    ) STRICT""",
    "CREATE INDEX leaf_roots_by_root ON leaf_roots (root)",
    *_append_only("leaf_roots"),
    """CREATE TRIGGER leaf_roots_in_order BEFORE INSERT ON leaf_roots
        WHEN NEW.tree_size IS NOT (SELECT coalesce(max(tree_size), 0) + 1 FROM leaf_roots)
        BEGIN SELECT RAISE(ABORT, 'tree sizes are numbered without gaps'); END""",
    f"""CREATE TABLE log_state (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        {_count("size")},
        {_hash("root")},
        frontier BLOB NOT NULL,
        {_count("epoch")},
        {_count("greatest_time")}
    ) STRICT""",
    """CREATE TRIGGER log_state_stays BEFORE DELETE ON log_state
        BEGIN SELECT RAISE(ABORT, 'the state of the log cannot be removed'); END""",
    """CREATE TRIGGER log_state_once BEFORE INSERT ON log_state WHEN EXISTS (SELECT 1 FROM log_state)
        BEGIN SELECT RAISE(ABORT, 'a log has one state'); END""",
    """CREATE TRIGGER log_state_advances BEFORE UPDATE ON log_state
        WHEN NEW.size < OLD.size OR NEW.epoch < OLD.epoch OR NEW.greatest_time < OLD.greatest_time
            OR (NEW.size = OLD.size AND NEW.root IS NOT OLD.root)
        BEGIN SELECT RAISE(ABORT, 'the state of a log only advances'); END""",
)

_RECORDS = (
    f"""CREATE TABLE records (
        leaf_index INTEGER PRIMARY KEY REFERENCES entries,
        preimage BLOB NOT NULL,
        action TEXT NOT NULL,
        {_count("created")},
        {_count("accepted")},
        withheld INTEGER NOT NULL DEFAULT 0 CHECK (withheld IN (0, 1))
    ) STRICT""",
    """CREATE TRIGGER records_no_delete BEFORE DELETE ON records
        BEGIN SELECT RAISE(ABORT, 'records is append-only'); END""",
    """CREATE TRIGGER records_no_update BEFORE UPDATE OF leaf_index, preimage, action, created, accepted
        ON records BEGIN SELECT RAISE(ABORT, 'only whether a record is withheld may change'); END""",
    # plain: {attribute: text or null}. keys and salts: {attribute: base64}.
    """CREATE TABLE record_plain (
        leaf_index INTEGER PRIMARY KEY REFERENCES records,
        plain TEXT NOT NULL,
        keys TEXT NOT NULL,
        salts TEXT NOT NULL
    ) STRICT""",
)

_DIRECTORY = (
    f"""CREATE TABLE directory_actors (
        actor_number INTEGER PRIMARY KEY,
        actor_id TEXT NOT NULL UNIQUE,
        fireproof INTEGER NOT NULL CHECK (fireproof IN (0, 1)),
        {_count("version")},
        {_count("generation")},
        {_count("erasures")},
        {_count("cause")},
        {_count("generation_leaf")},
        {_count("status")},
        {_count("status_leaf")},
        salt BLOB CHECK (length(salt) = 32)
    ) STRICT""",
    f"""CREATE TABLE directory_keys (
        actor_number INTEGER NOT NULL REFERENCES directory_actors,
        position INTEGER NOT NULL,
        public_key BLOB NOT NULL,
        {_hash("key_hash")},
        key_id TEXT NOT NULL,
        {_count("leaf_index")},
        {_count("created")},
        PRIMARY KEY (actor_number, position)
    ) STRICT""",
    "CREATE INDEX directory_keys_by_hash ON directory_keys (key_hash)",
    f"""CREATE TABLE directory_aux (
        actor_number INTEGER NOT NULL REFERENCES directory_actors,
        position INTEGER NOT NULL,
        aux_type TEXT NOT NULL,
        aux_id TEXT NOT NULL,
        aux_data TEXT,
        {_count("leaf_index")},
        {_count("created")},
        PRIMARY KEY (actor_number, position)
    ) STRICT""",
    f"""CREATE TABLE directory_revoked (
        actor_number INTEGER NOT NULL REFERENCES directory_actors,
        {_hash("key_hash")},
        PRIMARY KEY (actor_number, key_hash)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE directory_history (
        actor_number INTEGER NOT NULL REFERENCES directory_actors,
        leaf_index INTEGER NOT NULL,
        role INTEGER NOT NULL CHECK (role IN (1, 2, 3)),
        PRIMARY KEY (actor_number, leaf_index, role)
    ) STRICT, WITHOUT ROWID""",
    f"""CREATE TABLE token_revoked (
        key_hash BLOB PRIMARY KEY CHECK (length(key_hash) = 32),
        {_count("leaf_index")}
    ) STRICT, WITHOUT ROWID""",
)

_META = (
    """CREATE TABLE log_meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        origin TEXT NOT NULL,
        dialect TEXT NOT NULL,
        schema_version INTEGER NOT NULL,
        oldest_code INTEGER NOT NULL
    ) STRICT""",
    """CREATE TRIGGER log_meta_stays BEFORE UPDATE OF origin, dialect ON log_meta
        BEGIN SELECT RAISE(ABORT, 'origin and dialect are chosen once'); END""",
)

_ERASURE = (
    # record: as ktlog.pkd.erasure encodes it, a leaf of the erasure log.
    f"""CREATE TABLE erasures (
        number INTEGER PRIMARY KEY,
        {_count("input_size")},
        record BLOB NOT NULL
    ) STRICT""",
    "CREATE INDEX erasures_by_size ON erasures (input_size)",
    *_append_only("erasures"),
    """CREATE TRIGGER erasures_in_order BEFORE INSERT ON erasures
        WHEN NEW.number IS NOT (SELECT coalesce(max(number) + 1, 0) FROM erasures)
            OR NEW.input_size < (SELECT coalesce(max(input_size), 0) FROM erasures)
        BEGIN SELECT RAISE(ABORT, 'erasures are numbered without gaps, as the log grows'); END""",
    # The newest erasure of each index. The actor's id is in no table.
    f"""CREATE TABLE tombstones (
        map_index BLOB PRIMARY KEY CHECK (length(map_index) = 32),
        {_count("version")},
        {_count("generation")},
        {_count("erasures")}
    ) STRICT, WITHOUT ROWID""",
    # The operators of BurnDowns, whom these entries name and do not touch.
    """CREATE TABLE directory_operated (
        actor_number INTEGER NOT NULL REFERENCES directory_actors,
        leaf_index INTEGER NOT NULL,
        PRIMARY KEY (actor_number, leaf_index)
    ) STRICT, WITHOUT ROWID""",
    # What each MoveIdentity carried, as leaf indexes in JSON; names nobody.
    """CREATE TABLE directory_moves (
        leaf_index INTEGER PRIMARY KEY,
        fireproof INTEGER NOT NULL CHECK (fireproof IN (0, 1)),
        leaves TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE housekeeping (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        scrub_due INTEGER NOT NULL CHECK (scrub_due IN (0, 1))
    ) STRICT""",
    "INSERT INTO housekeeping (id, scrub_due) VALUES (1, 0)",
    f"""CREATE TABLE publications (
        tree_size INTEGER PRIMARY KEY,
        {_count("time")}
    ) STRICT""",
)

_INSTANCES = (
    # secret: NULL once it was removed; the row stays, so that its serial never restarts.
    f"""CREATE TABLE totp (
        domain TEXT PRIMARY KEY,
        {_count("serial")},
        secret BLOB CHECK (length(secret) = 32),
        {_count("last_window")}
    ) STRICT""",
    f"""CREATE TABLE cosignatures (
        tree_size INTEGER NOT NULL,
        witness TEXT NOT NULL,
        merkle_root TEXT NOT NULL,
        cosigned TEXT NOT NULL,
        {_count("time")},
        PRIMARY KEY (tree_size, witness)
    ) STRICT""",
)

# Who was touched by which entries: the directory map asks for it with every checkpoint. Without the index that
# reads the whole table: 0.1 s of a million rows instead of 1 ms.
_MAP = ("CREATE INDEX directory_history_by_leaf ON directory_history (leaf_index)",)

# What the old actor's history was before the move: an erasure record says so, long after its rows are gone.
_MOVES = (
    "ALTER TABLE directory_moves ADD COLUMN history_size INTEGER CHECK (history_size > 0)",
    "ALTER TABLE directory_moves ADD COLUMN history_root BLOB CHECK (length(history_root) = 32)",
)

# Hashes are looked up by their places (ktlog.store.places), which makes the two indexes over hashes superfluous. One
# comes from a constraint, so that its table is made anew; foreign keys are not enforced meanwhile, see ``migrate``.
_PLACES = (
    *places.create_statements(),
    "DROP INDEX IF EXISTS leaf_roots_by_root",
    f"""CREATE TABLE entries_anew (
        leaf_index INTEGER PRIMARY KEY,
        {_hash("leaf_hash")},
        {_hash("unique_hash")},
        entry BLOB NOT NULL
    ) STRICT""",
    "INSERT INTO entries_anew SELECT leaf_index, leaf_hash, unique_hash, entry FROM entries ORDER BY leaf_index",
    "DROP TABLE entries",
    "ALTER TABLE entries_anew RENAME TO entries",
    *_append_only("entries"),
    _IN_ORDER,
    # That no hash is there twice, the writer sees to, in the transaction that begins with the new state: without that
    # there are no new entries. A check for each row by SQL would have to ask all buckets.
    """CREATE TRIGGER entries_with_state BEFORE INSERT ON entries
        WHEN NEW.leaf_index >= (SELECT size FROM log_state WHERE id = 1)
        BEGIN SELECT RAISE(ABORT, 'the state of the log comes before its entries'); END""",
)

# What a person holds of a key or of auxiliary data is often its id alone. Only active ones are here: what an erasure
# or a revocation takes away is in no index either.
_IDS = (
    "CREATE INDEX IF NOT EXISTS directory_keys_by_id ON directory_keys (key_id)",
    "CREATE INDEX IF NOT EXISTS directory_aux_by_id ON directory_aux (aux_id)",
)

# So that a flipped byte in what a rule depends on is seen before an entry that breaks it is signed.
_SUMS = (
    "ALTER TABLE directory_actors ADD COLUMN row_sum BLOB CHECK (length(row_sum) = 32)",
    "ALTER TABLE token_revoked ADD COLUMN key_check BLOB CHECK (length(key_check) = 32)",
    "CREATE INDEX token_revoked_by_check ON token_revoked (key_check)",
)

STEPS = (
    Step("0001_log", _META + _LOG + _RECORDS + _DIRECTORY, about="the log, its records and its directory"),
    Step(
        "0002_erasure_and_instances", _ERASURE + _INSTANCES, fill_moves_and_operators,
        about="erasures, one-time passwords, cosignatures; the log is replayed up to its last move",
        seconds_per_million=800, written_bytes=64,
    ),
    Step(
        "0003_map", _MAP, about="an index of who was touched by which entry", seconds_per_million=5, written_bytes=64
    ),
    Step("0004_histories_of_moves", _MOVES, fill_histories_of_moves, about="which history each move left with"),
    Step(
        "0005_places", _PLACES, places.fill, about="entries are written anew, and found by their places",
        seconds_per_million=60, written_bytes=4_200,
    ),
    Step(
        "0006_ids", _IDS, about="indexes of the ids of keys and auxiliary data", seconds_per_million=5,
        written_bytes=128,
    ),
    # Nothing is moved: what lies in the one part of new places goes on from there. Older code would miss the other.
    Step("0007_recent_places", (), about="new places go through two parts, so that a full bucket costs no more"),
    Step(
        "0008_sums", _SUMS, rows.fill_sums, about="a sum of what is stored of each actor", seconds_per_million=60,
        written_bytes=80,
    ),
)

SCHEMA_VERSION = len(STEPS)
"""Version of the schema that this code writes."""

OLDEST_CODE = 8
"""Oldest ``SCHEMA_VERSION`` whose code may open a file of this version. Raise it together with a
step that older code would misread."""


def migrate(connection: sqlite3.Connection) -> None:
    """Apply every pending step. The caller has begun an IMMEDIATE transaction, and commits it.

    Without that transaction two processes may both find a step pending and both apply it. Each step
    nests inside as a savepoint. Foreign keys must be off, or a table that is referred to could not be made anew.
    """
    # Imported here because only the writer migrates, and the import costs a reader 0.2 s.
    from sqlite_utils import Database, Migrations

    if not connection.in_transaction:
        raise AssertionError("migrations run inside the caller's transaction")
    migrations = Migrations("ktlog")
    for step in STEPS:
        migrations(name=step.name)(_runner(step))
    migrations.apply(Database(connection, execute_plugins=False))
    if not connection.in_transaction:
        raise AssertionError("a migration ended the caller's transaction")
    connection.execute(
        "UPDATE log_meta SET schema_version = ?, oldest_code = ? WHERE id = 1", (SCHEMA_VERSION, OLDEST_CODE)
    )


def _runner(step: Step):  # noqa: ANN202 - sqlite-utils' own protocol type
    def run(database) -> None:  # noqa: ANN001
        for statement in step.statements:
            database.conn.execute(statement)
        if step.fill is not None:
            step.fill(database.conn)

    return run
