"""The PostgreSQL schema ``ktlog``: what each table is for, how it came to be, and who may use it.

The tables are those of ``ktlog.store.schema``, row for row, and so are the guarantees. What differs:

- Text that comes from outside is ``bytea`` and holds its UTF-8 bytes: PostgreSQL's text has no U+0000, and bytes
  are ordered by code point whatever the database's collation is.
- ``log_state.writes`` counts the transactions that changed anything. Every writer begins with an UPDATE of that row.
- Columns that an erasure empties have no statistics: ANALYZE would copy samples of them into the catalogue.

Every change is one step in ``STEPS``, never edited once released, applied in one transaction together with its
name in ``migrations``. ``log_meta`` names the schema's version and the oldest version of this code that may still use
it. The triggers are there for people with a SQL prompt, and are left out where a server has no such triggers; what
keeps the log from forking is the compare-and-set of ``log_state``, and the primary keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psycopg
from psycopg import errors, sql

from ktlog.store import pgdirectory

SCHEMA = "ktlog"


@dataclass(frozen=True)
class Step:
    """One migration: a name that never changes, statements, and *guards*, which a server may not be able to have.

    changes: the tables of earlier steps in which it changes or removes a row or a column; they are copied before.
    fill: runs after them, in the same transaction: what SQL cannot work out from older rows.
    about: what it does, for a person.
    """

    name: str
    statements: tuple[str, ...]
    guards: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    fill: Callable[[psycopg.Connection], None] | None = None
    about: str = ""


def _hash(column: str) -> str:
    return f"{column} bytea NOT NULL CHECK (octet_length({column}) = 32)"


def _count(column: str) -> str:
    return f"{column} bigint NOT NULL CHECK ({column} >= 0)"


def _no_statistics(table: str, *columns: str) -> str:
    return f"ALTER TABLE {table} " + ", ".join(f"ALTER COLUMN {column} SET STATISTICS 0" for column in columns)


# Rows of up to 4 KB stay in one piece; an entry is mostly signature, which does not get smaller.
_WHOLE = "WITH (toast_tuple_target = 4096)"

_LOG = (
    """CREATE TABLE log_meta (
        id bigint PRIMARY KEY CHECK (id = 1),
        origin text NOT NULL,
        dialect text NOT NULL,
        schema_version bigint NOT NULL,
        oldest_code bigint NOT NULL
    )""",
    f"""CREATE TABLE entries (
        leaf_index bigint PRIMARY KEY CHECK (leaf_index >= 0),
        {_hash("leaf_hash")},
        {_hash("unique_hash")} UNIQUE,
        entry bytea NOT NULL
    ) {_WHOLE}""",
    "ALTER TABLE entries ALTER COLUMN entry SET STORAGE EXTERNAL",
    f"""CREATE TABLE leaf_roots (
        tree_size bigint PRIMARY KEY CHECK (tree_size > 0),
        {_hash("root")}
    )""",
    "CREATE INDEX leaf_roots_by_root ON leaf_roots (root)",
    f"""CREATE TABLE log_state (
        id bigint PRIMARY KEY CHECK (id = 1),
        {_count("size")},
        {_hash("root")},
        frontier bytea NOT NULL,
        {_count("epoch")},
        {_count("greatest_time")},
        {_count("writes")}
    ) WITH (fillfactor = 10)""",
)

_RECORDS = (
    f"""CREATE TABLE records (
        leaf_index bigint PRIMARY KEY,
        preimage bytea NOT NULL,
        action bytea NOT NULL,
        {_count("created")},
        {_count("accepted")},
        withheld boolean NOT NULL DEFAULT false
    ) {_WHOLE}""",
    # plain: {attribute: text or null}. keys and salts: {attribute: base64}. JSON in ASCII.
    f"""CREATE TABLE record_plain (
        leaf_index bigint PRIMARY KEY,
        plain text NOT NULL,
        keys text NOT NULL,
        salts text NOT NULL
    ) {_WHOLE}""",
    _no_statistics("record_plain", "plain", "keys", "salts"),
)

_DIRECTORY = (
    f"""CREATE TABLE directory_actors (
        actor_number bigint PRIMARY KEY,
        actor_id bytea NOT NULL UNIQUE,
        fireproof boolean NOT NULL,
        {_count("version")},
        {_count("generation")},
        {_count("erasures")},
        {_count("cause")},
        {_count("generation_leaf")},
        {_count("status")},
        {_count("status_leaf")},
        salt bytea CHECK (octet_length(salt) = 32)
    )""",
    _no_statistics("directory_actors", "actor_id", "salt"),
    f"""CREATE TABLE directory_keys (
        actor_number bigint NOT NULL REFERENCES directory_actors,
        position bigint NOT NULL,
        public_key bytea NOT NULL,
        {_hash("key_hash")},
        key_id bytea NOT NULL,
        {_count("leaf_index")},
        {_count("created")},
        PRIMARY KEY (actor_number, position)
    )""",
    "CREATE INDEX directory_keys_by_hash ON directory_keys (key_hash)",
    _no_statistics("directory_keys", "public_key", "key_hash", "key_id"),
    f"""CREATE TABLE directory_aux (
        actor_number bigint NOT NULL REFERENCES directory_actors,
        position bigint NOT NULL,
        aux_type bytea NOT NULL,
        aux_id bytea NOT NULL,
        aux_data bytea,
        {_count("leaf_index")},
        {_count("created")},
        PRIMARY KEY (actor_number, position)
    )""",
    _no_statistics("directory_aux", "aux_type", "aux_id", "aux_data"),
    f"""CREATE TABLE directory_revoked (
        actor_number bigint NOT NULL REFERENCES directory_actors,
        {_hash("key_hash")},
        PRIMARY KEY (actor_number, key_hash)
    )""",
    _no_statistics("directory_revoked", "key_hash"),
    """CREATE TABLE directory_history (
        actor_number bigint NOT NULL REFERENCES directory_actors,
        leaf_index bigint NOT NULL,
        role bigint NOT NULL CHECK (role IN (1, 2, 3)),
        PRIMARY KEY (actor_number, leaf_index, role)
    )""",
    "CREATE INDEX directory_history_by_leaf ON directory_history (leaf_index)",
    """CREATE TABLE directory_operated (
        actor_number bigint NOT NULL REFERENCES directory_actors,
        leaf_index bigint NOT NULL,
        PRIMARY KEY (actor_number, leaf_index)
    )""",
    f"""CREATE TABLE directory_moves (
        leaf_index bigint PRIMARY KEY,
        fireproof boolean NOT NULL,
        leaves text NOT NULL,
        history_size bigint NOT NULL CHECK (history_size > 0),
        {_hash("history_root")}
    )""",
    f"""CREATE TABLE token_revoked (
        key_hash bytea PRIMARY KEY CHECK (octet_length(key_hash) = 32),
        {_count("leaf_index")}
    )""",
)

_ERASURE = (
    f"""CREATE TABLE erasures (
        number bigint PRIMARY KEY CHECK (number >= 0),
        {_count("input_size")},
        record bytea NOT NULL
    )""",
    "CREATE INDEX erasures_by_size ON erasures (input_size)",
    f"""CREATE TABLE tombstones (
        map_index bytea PRIMARY KEY CHECK (octet_length(map_index) = 32),
        {_count("version")},
        {_count("generation")},
        {_count("erasures")}
    )""",
    """CREATE TABLE housekeeping (
        id bigint PRIMARY KEY CHECK (id = 1),
        scrub_due boolean NOT NULL
    )""",
    "INSERT INTO housekeeping (id, scrub_due) VALUES (1, false)",
    f"""CREATE TABLE publications (
        tree_size bigint PRIMARY KEY,
        {_count("time")}
    )""",
)

_OTHERS = (
    # secret: NULL once it was removed; the row stays, so that its serial never restarts.
    f"""CREATE TABLE totp (
        domain bytea PRIMARY KEY,
        {_count("serial")},
        secret bytea CHECK (octet_length(secret) = 32),
        {_count("last_window")}
    )""",
    _no_statistics("totp", "secret"),
    f"""CREATE TABLE cosignatures (
        tree_size bigint NOT NULL,
        witness bytea NOT NULL,
        merkle_root bytea NOT NULL,
        cosigned bytea NOT NULL,
        {_count("time")},
        PRIMARY KEY (tree_size, witness)
    )""",
    # What must never be half written; see ktlog.store.documents.
    "CREATE TABLE documents (name text PRIMARY KEY, data bytea NOT NULL)",
    _no_statistics("documents", "data"),
)

_REFUSE = """CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN RAISE EXCEPTION '% is append-only', TG_TABLE_NAME; END $$"""


def _append_only(table: str, events: str = "UPDATE OR DELETE OR TRUNCATE") -> str:
    """A trigger that refuses to change or remove rows of *table*."""
    name = "append_only" if "DELETE" in events else "stays"
    return (
        f"CREATE TRIGGER {table}_{name} BEFORE {events} ON {table} FOR EACH STATEMENT"
        " EXECUTE FUNCTION refuse_change()"
    )


def _in_order(table: str, column: str, first: int) -> tuple[str, str]:
    """A trigger that lets rows of *table* only continue it: *first*, and then one after the other."""
    return (
        f"""CREATE FUNCTION {table}_continue() RETURNS trigger LANGUAGE plpgsql SET search_path = ktlog, pg_temp AS $$
        DECLARE low bigint; high bigint; added bigint; before bigint;
        BEGIN
            SELECT min({column}), max({column}), count(*) INTO low, high, added FROM new_rows;
            SELECT max({column}) INTO before FROM {table} WHERE {column} < low;
            IF added > 0 AND (low <> coalesce(before + 1, {first}) OR high - low + 1 <> added) THEN
                RAISE EXCEPTION '{table} is numbered without gaps';
            END IF;
            RETURN NULL;
        END $$""",  # noqa: S608
        f"CREATE TRIGGER {table}_in_order AFTER INSERT ON {table} REFERENCING NEW TABLE AS new_rows"
        f" FOR EACH STATEMENT EXECUTE FUNCTION {table}_continue()",
    )


_GUARDS = (
    _REFUSE,
    *(_append_only(table) for table in ("entries", "leaf_roots", "erasures")),
    *_in_order("entries", "leaf_index", 0),
    *_in_order("leaf_roots", "tree_size", 1),
    *_in_order("erasures", "number", 0),
    _append_only("records", "DELETE OR TRUNCATE"),
    _append_only("records", "UPDATE OF leaf_index, preimage, action, created, accepted"),
    _append_only("log_meta", "DELETE OR TRUNCATE"),
    _append_only("log_meta", "UPDATE OF origin, dialect"),
    _append_only("log_state", "DELETE OR TRUNCATE"),
    """CREATE TRIGGER log_state_advances BEFORE UPDATE ON log_state FOR EACH ROW
        WHEN (NEW.size < OLD.size OR NEW.epoch < OLD.epoch OR NEW.greatest_time < OLD.greatest_time
            OR NEW.writes <= OLD.writes OR (NEW.size = OLD.size AND NEW.root IS DISTINCT FROM OLD.root))
        EXECUTE FUNCTION refuse_change()""",
)

# What a person holds of a key or of auxiliary data is often its id alone.
_IDS = (
    "CREATE INDEX directory_keys_by_id ON directory_keys (key_id)",
    "CREATE INDEX directory_aux_by_id ON directory_aux (aux_id)",
)

# So that a flipped byte in what a rule depends on is seen before an entry that breaks it is signed.
_SUMS = (
    "ALTER TABLE directory_actors ADD COLUMN row_sum bytea CHECK (octet_length(row_sum) = 32)",
    _no_statistics("directory_actors", "row_sum"),
    "ALTER TABLE token_revoked ADD COLUMN key_check bytea CHECK (octet_length(key_check) = 32)",
    "CREATE INDEX token_revoked_by_check ON token_revoked (key_check)",
)

STEPS = (
    Step("0001_log", _LOG + _RECORDS + _DIRECTORY + _ERASURE + _OTHERS, _GUARDS, about="the tables of a log"),
    Step("0002_ids", _IDS, about="indexes of the ids of keys and auxiliary data"),
    Step(
        "0003_sums", _SUMS, changes=("directory_actors", "token_revoked"), fill=pgdirectory.fill_sums,
        about="a sum of what is stored of each actor",
    ),
)

SCHEMA_VERSION = len(STEPS)
"""Version of the schema that this code writes."""

OLDEST_CODE = 3
"""Oldest ``SCHEMA_VERSION`` whose code may use a database of this version. Raise it together with a step that older
code would misread."""

PLAIN_TABLES = (
    "record_plain", "directory_actors", "directory_keys", "directory_aux", "directory_revoked", "directory_history",
    "directory_operated", "totp", "documents",
)
"""Those from which an erasure takes something."""

LASTING_TABLES = (
    "log_meta", "log_state", "migrations", "entries", "leaf_roots", "records", "directory_moves", "token_revoked",
    "erasures", "tombstones", "housekeeping", "publications", "cosignatures",
)
"""Those that hold nothing which an erasure takes away."""


def apply_steps(db: psycopg.Connection) -> None:
    """Apply every pending step. The caller has begun a transaction, in which nobody else does, and commits it."""
    db.execute(
        "CREATE TABLE IF NOT EXISTS migrations (name text PRIMARY KEY, applied timestamptz NOT NULL DEFAULT now())"
    )
    done = {name for (name,) in db.execute("SELECT name FROM migrations").fetchall()}
    for step in STEPS:
        if step.name not in done:
            for statement in step.statements:
                db.execute(statement)
            try_guards(db, step.guards)
            if step.fill is not None:
                step.fill(db)
            db.execute("INSERT INTO migrations (name) VALUES (%s)", (step.name,))


def try_guards(db: psycopg.Connection, guards: tuple[str, ...]) -> None:
    """All of them, or none where the server says that it has no such thing."""
    db.execute("SAVEPOINT guards")
    try:
        for statement in guards:
            db.execute(statement)
    except (errors.FeatureNotSupported, errors.SyntaxError):
        db.execute("ROLLBACK TO SAVEPOINT guards")
    db.execute("RELEASE SAVEPOINT guards")


def column_names(db: psycopg.Connection, table: str) -> tuple[str, ...]:
    """The columns of *table*, in order."""
    cursor = db.execute(sql.SQL("SELECT * FROM {} LIMIT 0").format(sql.Identifier(SCHEMA, table)))
    return tuple(column.name for column in cursor.description or ())
