"""The tables of the outbox in ``DIR/watch.db``; what they hold is told in :mod:`auditor.outbox`."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from auditor.findings_store import DATABASE, open_watch_database
from ktlog.sqlitefile import database_errors, transaction

if TYPE_CHECKING:
    from sqlite_utils import Database

_TABLES = (
    """CREATE TABLE subscriptions (
        id INTEGER PRIMARY KEY, origin TEXT NOT NULL, kind TEXT NOT NULL CHECK (kind IN ('actor', 'key', 'domain')),
        subject TEXT, digest BLOB NOT NULL, sink TEXT NOT NULL, label TEXT NOT NULL, first INTEGER NOT NULL,
        created INTEGER NOT NULL, UNIQUE (origin, kind, digest, sink)
    ) STRICT""",
    """CREATE TABLE alarms (
        id TEXT PRIMARY KEY, time INTEGER NOT NULL, origin TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL,
        body TEXT NOT NULL
    ) STRICT""",
    """CREATE TABLE alarm_subjects (
        digest BLOB NOT NULL, alarm_id TEXT NOT NULL REFERENCES alarms ON DELETE CASCADE, PRIMARY KEY (digest, alarm_id)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE deliveries (
        alarm_id TEXT NOT NULL REFERENCES alarms ON DELETE CASCADE, sink TEXT NOT NULL, reasons TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0, next_try INTEGER NOT NULL, delivered_at INTEGER, last_error TEXT,
        PRIMARY KEY (alarm_id, sink)
    ) STRICT""",
    "CREATE INDEX deliveries_waiting ON deliveries (sink, next_try) WHERE delivered_at IS NULL",
    """CREATE TABLE sinks (
        name TEXT PRIMARY KEY, failures INTEGER NOT NULL, next_try INTEGER NOT NULL, last_error TEXT
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE live_checks (
        origin TEXT NOT NULL, digest BLOB NOT NULL, actor_id TEXT NOT NULL, next_check INTEGER NOT NULL,
        seen TEXT NOT NULL, PRIMARY KEY (origin, digest)
    ) STRICT, WITHOUT ROWID""",
    """CREATE TABLE alarm_counts (
        origin TEXT NOT NULL, kind TEXT NOT NULL, name TEXT NOT NULL, count INTEGER NOT NULL,
        PRIMARY KEY (origin, kind, name)
    ) STRICT, WITHOUT ROWID""",
)

# What convicts or accuses a log first; what was tried before goes behind what was not; then logs take turns, and the
# actors of a log, so that no stranger's many alarms stand before one of somebody else.
DUE = """
    WITH due AS (
        SELECT d.alarm_id, d.reasons, d.attempts, a.origin, a.time, a.rowid AS number, a.kind <> 'finding' AS late,
            (SELECT min(digest) FROM alarm_subjects s WHERE s.alarm_id = a.id) AS subject
        FROM deliveries d JOIN alarms a ON a.id = d.alarm_id
        WHERE d.sink = ? AND d.delivered_at IS NULL AND d.next_try <= ?
    ), turns AS (
        SELECT *, row_number() OVER (PARTITION BY late, attempts > 0, origin, subject ORDER BY time, number) AS turn
        FROM due
    ), lots AS (
        SELECT *, row_number() OVER (PARTITION BY late, attempts > 0, origin ORDER BY turn, time, number) AS lot
        FROM turns
    )
    SELECT alarm_id, body, reasons, attempts FROM (
        SELECT * FROM lots ORDER BY late, attempts > 0, lot, time, number LIMIT ?
    ) AS chosen JOIN alarms ON id = alarm_id ORDER BY late, attempts > 0, lot, chosen.time, number
"""


def open_owners_database(directory: Path | str) -> sqlite3.Connection:
    """A connection to ``watch.db`` with the tables of this module in it; made if missing.

    Raises:
        StoreError: as :func:`auditor.findings_store.open_watch_database`.
    """
    from sqlite_utils import Migrations  # late: the import takes 0.2 s

    database = open_watch_database(directory)
    try:
        with database_errors(Path(directory) / DATABASE), transaction(database.conn):
            migrations = Migrations("owners")
            migrations(name="0001_owners")(_run_all)
            migrations(name="0002_subjects_by_alarm")(_index_subjects)
            migrations.apply(database)
    except BaseException:
        database.conn.close()
        raise
    return database.conn


def _run_all(database: Database) -> None:
    for statement in _TABLES:
        database.conn.execute(statement)


def _index_subjects(database: Database) -> None:
    """For taking turns by subject, and for deleting alarms."""
    database.conn.execute("CREATE INDEX alarm_subjects_alarm ON alarm_subjects (alarm_id)")
