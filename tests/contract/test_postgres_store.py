"""What is PostgreSQL's own about its store: the server it accepts, its schema, and what erasing leaves behind."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from ktlog.errors import Conflict, StoreError, UsageError
from ktlog.operator.rules import Note, Rules, RulesKeeper, RulesRow, blocked
from ktlog.store import pgschema
from ktlog.store.contracts import Cosignature
from ktlog.store.memory import MemoryStore
from ktlog.store.pgdocuments import PgDocument, PgDocumentReader
from ktlog.store.pgupgrade import look
from ktlog.store.postgres import PostgresStore
from ktlog.store.sqlite import SqliteStore
from tests.postgres_server import PORT, USER, Cluster, database_name, own_cluster
from tests.store_samples import (
    ALICE,
    BOB,
    ORIGIN,
    Draft,
    append,
    dump,
    enrol,
    make_actor,
    make_aux,
    make_batch,
    make_key,
    plan_to_erase,
    touch,
)


@pytest.fixture
def store(postgres_log: str) -> Iterator[PostgresStore]:
    with PostgresStore.open(postgres_log, origin=ORIGIN) as opened:
        yield opened


# Which server


@pytest.mark.parametrize("setting", ["fsync", "full_page_writes", "synchronous_commit"])
def test_a_server_that_may_lose_a_commit_is_refused(postgres: Cluster, postgres_log: str, setting: str) -> None:
    if setting == "synchronous_commit":
        unsafe, safe = "ALTER ROLE ktlog SET {} = {}", ("off", "on")
        postgres.sql(unsafe.format(setting, safe[0]))
    else:
        postgres.sql(f"ALTER SYSTEM SET {setting} = off")
        postgres.sql("SELECT pg_reload_conf()")
    try:
        for read_only in (False, True):
            with pytest.raises(StoreError) as caught:
                _until_reloaded(postgres_log, read_only, setting)
            assert caught.value.name == "UnsafeStore"
            assert setting in caught.value.message
    finally:
        if setting == "synchronous_commit":
            postgres.sql("ALTER ROLE ktlog RESET synchronous_commit")
        else:
            postgres.sql(f"ALTER SYSTEM RESET {setting}")
            postgres.sql("SELECT pg_reload_conf()")
            _wait_for(postgres, setting, "on")
    PostgresStore.open(postgres_log).close()


def _wait_for(cluster: Cluster, setting: str, value: str) -> None:
    while cluster.sql(f"SHOW {setting}") != [(value,)]:
        pass


def _until_reloaded(url: str, read_only: bool, setting: str) -> None:
    """The server's main process reads the new settings in its own time; whoever connects afterwards has them."""
    value = "on"
    while value == "on":
        with psycopg.connect(url) as connection:
            value = connection.execute(f"SHOW {setting}").fetchone()[0]
    PostgresStore.open(url, read_only=read_only).close()


def test_an_open_session_keeps_its_synchronous_commit(postgres: Cluster, postgres_log: str) -> None:
    """A server that is told to read its settings again would turn it off for every session that is there."""
    with PostgresStore.open(postgres_log) as store:
        try:
            postgres.sql("ALTER SYSTEM SET synchronous_commit = off")
            postgres.sql("SELECT pg_reload_conf()")
            _wait_for(postgres, "synchronous_commit", "off")
            with store._connections.writing() as db:
                assert db.execute("SHOW synchronous_commit").fetchone() == ("on",)
        finally:
            postgres.sql("ALTER SYSTEM RESET synchronous_commit")
            postgres.sql("SELECT pg_reload_conf()")
            _wait_for(postgres, "synchronous_commit", "on")


def test_what_is_there_is_found_whatever_strings_the_database_is_used_to(postgres: Cluster, postgres_log: str) -> None:
    """With it off, psycopg escapes an array of bytes in a way that matches nothing: every actor would be unknown."""
    database = database_name(postgres_log)
    postgres.sql(f"ALTER DATABASE {database} SET standard_conforming_strings = off")
    try:
        with PostgresStore.open(postgres_log) as store:
            append(store, enrol(ALICE, make_key("one")))
            assert store.actor(ALICE) is not None
            assert store.seen(store.records(0, 1)[0].unique_hash) == 0
    finally:
        postgres.sql(f"ALTER DATABASE {database} RESET standard_conforming_strings")


def test_a_schema_that_somebody_else_owns_is_refused(postgres: Cluster, postgres_url: str) -> None:
    database = database_name(postgres_url)
    for role in ("somebody", "logs_own"):
        postgres.sql(f"DROP ROLE IF EXISTS {role}")
        postgres.sql(f"CREATE ROLE {role} LOGIN")
    try:
        postgres.sql(f"GRANT CREATE ON DATABASE {database} TO logs_own")
        postgres.sql("CREATE SCHEMA ktlog AUTHORIZATION somebody", database)
        postgres.sql("GRANT ALL ON SCHEMA ktlog TO logs_own", database)
        with pytest.raises(StoreError, match="Denied"):
            PostgresStore.create(postgres.url(database, "logs_own"), ORIGIN, "spec")
        postgres.sql("ALTER SCHEMA ktlog OWNER TO logs_own", database)
        PostgresStore.create(postgres.url(database, "logs_own"), ORIGIN, "spec").close()
    finally:
        postgres.drop_database(postgres_url)
        for role in ("somebody", "logs_own"):
            postgres.sql(f"DROP ROLE {role}")


def test_a_role_that_only_reads_is_no_writer(postgres: Cluster, postgres_log: str) -> None:
    database = database_name(postgres_log)
    postgres.sql(f"ALTER DATABASE {database} SET default_transaction_read_only = on")
    try:
        with pytest.raises(StoreError) as caught:
            PostgresStore.open(postgres_log)
        assert caught.value.name == "ReadOnly"
        with PostgresStore.open(postgres_log, read_only=True) as reader:
            assert reader.state().size == 0
    finally:
        postgres.sql(f"ALTER DATABASE {database} RESET default_transaction_read_only")


@pytest.mark.slow
def test_a_standby_is_refused_and_a_promoted_one_is_not() -> None:
    """A real one, that follows a server of its own."""
    from tests.machine import need

    need("postgres")
    with own_cluster({"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}) as primary:
        primary.sql("ALTER SYSTEM SET wal_log_hints = on")
        url = primary.new_database()
        with PostgresStore.create(url, ORIGIN, "spec") as store:
            batch = append(store, Draft("one"))
        standby = Cluster.beside(primary)
        try:
            standby.start()
            for read_only in (True, False):
                with pytest.raises(StoreError) as caught:
                    PostgresStore.open(standby.url(database_name(url)), read_only=read_only)
                assert caught.value.name == "Replica"
            primary.stop(signal.SIGQUIT)
            standby.sql("SELECT pg_promote(true)")
            with PostgresStore.open(standby.url(database_name(url))) as store:
                assert store.state() == batch.state
        finally:
            standby.remove()


@pytest.mark.slow
def test_of_two_servers_in_the_url_none_reads_from_the_standby() -> None:
    """The first is the primary when the handle is opened; each later connection takes whichever answers first."""
    from tests.machine import need

    need("postgres")
    with own_cluster() as primary:
        url = primary.new_database()
        PostgresStore.create(url, ORIGIN, "spec").close()
        standby = Cluster.beside(primary)
        try:
            standby.start()
            hosts = ",".join(quote(str(one.directory), safe="") for one in (primary, standby))
            both = f"postgresql://{USER}@/{database_name(url)}?host={hosts}&port={PORT},{PORT}"
            with PostgresStore.open(both, read_only=True) as reader:
                assert reader.state().size == 0
                primary.stop()
                with pytest.raises(StoreError, match="Replica"):
                    reader.state()
                primary.start()
                with PostgresStore.open(url) as store:
                    append(store, Draft("one"))
                assert reader.state().size == 1
        finally:
            standby.remove()


def test_a_server_that_cannot_be_reached_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(StoreError) as caught:
        PostgresStore.open(f"postgresql://me:secret@/db?host={tmp_path}&connect_timeout=2")
    assert caught.value.name == "CannotOpen"
    assert "secret" not in caught.value.diagnostics()


@pytest.mark.parametrize("url", ["", "postgresql://", "mysql://x/y", "postgresql:///?port=secret", "dbname=x"])
def test_what_is_no_url_of_a_database_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(UsageError, match="BadStore") as caught:
        PostgresStore.open(url)
    assert "secret" not in caught.value.diagnostics()


# The schema


def test_only_a_log_is_opened(postgres: Cluster, postgres_url: str) -> None:
    with pytest.raises(StoreError, match="NotALog"):
        PostgresStore.open(postgres_url)
    PostgresStore.create(postgres_url, ORIGIN, "spec").close()
    with pytest.raises(StoreError, match="StoreExists"):
        PostgresStore.create(postgres_url, ORIGIN, "spec")
    with pytest.raises(StoreError, match="WrongOrigin"):
        PostgresStore.open(postgres_url, origin="other.example.com")


def test_schemas_of_other_releases(postgres: Cluster, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    PostgresStore.create(postgres_url, ORIGIN, "spec").close()
    later = (*pgschema.STEPS, pgschema.Step("0004_more", ("CREATE TABLE more (x bigint)",)))
    monkeypatch.setattr(pgschema, "STEPS", later)
    monkeypatch.setattr(pgschema, "SCHEMA_VERSION", 4)
    monkeypatch.setattr(pgschema, "OLDEST_CODE", 4)
    with pytest.raises(StoreError, match="OlderSchema"):
        PostgresStore.open(postgres_url, read_only=True)
    assert (look(postgres_url).stored, look(postgres_url).steps) == (3, (("0004_more", ""),))
    with PostgresStore.open(postgres_url) as store:
        append(store, Draft("one"))
    PostgresStore.open(postgres_url, read_only=True).close()
    found = look(postgres_url)
    assert (found.stored, found.entries, found.steps) == (4, 1, ())
    names = postgres.sql("SELECT name FROM ktlog.migrations ORDER BY name", database_name(postgres_url))
    assert [name for (name,) in names] == ["0001_log", "0002_ids", "0003_sums", "0004_more"]
    monkeypatch.undo()
    for read_only in (True, False):
        with pytest.raises(StoreError, match="NewerSchema"):
            PostgresStore.open(postgres_url, read_only=read_only)
    with pytest.raises(StoreError, match="NewerSchema"):
        look(postgres_url)


def test_the_operators_rules_are_in_the_database_for_every_front_end(postgres_url: str) -> None:
    with PostgresStore.create(postgres_url, ORIGIN, "spec") as store:
        epoch = store.claim_epoch()
        row = PgDocumentReader(postgres_url, "rules")
        reader = RulesRow(str(row), row.read)
        assert reader.rules() == Rules()
        keeper = RulesKeeper(PgDocument(postgres_url, "rules", epoch=epoch))
        changed = keeper.change(lambda rules: blocked(rules, ["bad.example"], Note("spam", 1)))
        assert RulesRow(str(row), row.read).rules() == RulesKeeper(PgDocument(postgres_url, "rules")).rules == changed
        store.claim_epoch()
        with pytest.raises(Conflict, match="Fenced"):
            keeper.change(lambda rules: Rules())
        assert keeper.rules == changed


def test_a_server_without_such_triggers_gets_the_tables_alone(
    postgres: Cluster, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, *later = pgschema.STEPS
    refused = "DO $$ BEGIN RAISE EXCEPTION 'no such triggers' USING ERRCODE = 'feature_not_supported'; END $$"
    without = pgschema.Step(step.name, step.statements, (*step.guards[:3], refused))
    monkeypatch.setattr(pgschema, "STEPS", (without, *later))
    with PostgresStore.create(postgres_url, ORIGIN, "spec") as store:
        append(store, enrol(ALICE, make_key("a")))
        mine = store.state()
        with PostgresStore.open(postgres_url) as other:
            other.claim_epoch()
        with pytest.raises(Conflict, match="Fenced"):
            store.commit(make_batch(mine, Draft("late")))
    triggers = "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal"
    assert postgres.sql(triggers, database_name(postgres_url)) == [(0,)]


STATEMENTS = {
    "change an entry": "UPDATE entries SET entry = entry",
    "change no entry": "UPDATE entries SET entry = entry WHERE false",
    "remove an entry": "DELETE FROM entries WHERE leaf_index = 1",
    "empty the entries": "TRUNCATE entries",
    "an entry after a gap": "INSERT INTO entries VALUES (5, sha256('a'), sha256('b'), 'x')",
    "an entry before the first": "INSERT INTO entries VALUES (-1, sha256('a'), sha256('b'), 'x')",
    "two entries with a gap": "INSERT INTO entries VALUES (2, sha256('a'), sha256('b'), 'x'),"
                              " (4, sha256('c'), sha256('d'), 'x')",
    "a unique hash again": "INSERT INTO entries SELECT 2, leaf_hash, unique_hash, entry FROM entries WHERE leaf_index = 0",
    "change a root": "UPDATE leaf_roots SET root = root",
    "remove a root": "DELETE FROM leaf_roots",
    "a root after a gap": "INSERT INTO leaf_roots VALUES (9, sha256('a'))",
    "remove a record": "DELETE FROM records",
    "change a record": "UPDATE records SET preimage = 'x'",
    "empty the erasures": "TRUNCATE erasures",
    "remove the state": "DELETE FROM log_state",
    "a second state": "INSERT INTO log_state SELECT 2, size, root, frontier, epoch, greatest_time, writes FROM log_state",
    "a smaller size": "UPDATE log_state SET size = 1, writes = writes + 1",
    "another root": "UPDATE log_state SET root = sha256('x'), writes = writes + 1",
    "an older epoch": "UPDATE log_state SET epoch = 0, writes = writes + 1",
    "a change that does not count": "UPDATE log_state SET epoch = epoch + 1",
    "another origin": "UPDATE log_meta SET origin = 'other.example.com'",
    "remove the name": "DELETE FROM log_meta",
}


@pytest.mark.parametrize("statement", STATEMENTS.values(), ids=STATEMENTS)
def test_the_log_holds_against_a_person_with_a_prompt(
    store: PostgresStore, postgres: Cluster, postgres_log: str, statement: str
) -> None:
    store.claim_epoch()
    append(store, Draft("one"), enrol(ALICE, make_key("a")))
    before = dump(store)
    with pytest.raises(psycopg.Error):
        postgres.sql(f"SET search_path = ktlog; {statement}", database_name(postgres_log))
    assert dump(store) == before


# Text


def test_every_text_comes_back_as_it_was(store: PostgresStore, tmp_path: Path) -> None:
    """PostgreSQL's own text has no U+0000, and its order is the database's collation."""
    names = ["https://example.com/users/" + end for end in (
        "a", "B", "b", "\x00", "a\x00b", "\xe9", "e\u0301", "\uffff", "\U0001f511", "z", "_", "~", "\u2028",
    )]
    drafts = [
        Draft(f"text {number}", enrol(name, make_key(f"k\x00{number}")).change, {"actor": name, "aux-data": "x\x00y"},
              {"actor": bytes(32)}, {"actor": bytes(32)}, action="Add\x00Key")
        for number, name in enumerate(names)
    ]
    others = (MemoryStore(ORIGIN, "spec"), SqliteStore.create(tmp_path / "log.db", ORIGIN, "spec"))
    dumps = []
    for one in (store, *others):
        append(one, *drafts)
        append(one, touch(make_actor(names[3], [], [make_aux("\x00", "\x00\u2028")], version=2), "aux"))
        one.set_totp("ex\x00ample", bytes(32), 3, None)
        one.add_cosignature(Cosignature(2, "r\x00", "w\x00", "c\x00\U0001f511", 1))
        dumps.append((dump(one), one.totp("ex\x00ample"), one.touched(0, 14), one.touches(names[3])))
        one.close()
    assert dumps[0] == dumps[1] == dumps[2]
    assert list(dumps[0][0]["actors"]) == sorted(names)


# What erasing leaves behind


def _files_with(cluster: Cluster, database: str, *needles: bytes) -> list[Path]:
    (number,), = cluster.sql(f"SELECT oid FROM pg_database WHERE datname = '{database}'")
    return [
        path for path in (cluster.directory / "data" / "base" / str(number)).iterdir()
        if any(needle in path.read_bytes() for needle in needles)
    ]


def test_a_scrub_leaves_no_erased_byte_in_the_databases_files(
    store: PostgresStore, postgres: Cluster, postgres_log: str
) -> None:
    database = database_name(postgres_log)
    gone = "https://example.com/users/somebody-who-must-go"
    key = make_key("the key that must go")
    append(store, replace(enrol(gone, key), text="one"), enrol(BOB, make_key("b")))
    append(store, touch(make_actor(gone, [key], [make_aux("aux-that-must-go", "text-that-must-go")], version=2), "2"))
    postgres.sql("ANALYZE", database)  # would put samples of every column into the catalogue
    postgres.sql("CHECKPOINT")
    needles = (gone.encode(), b"text-that-must-go", key.public_key[:64], key.public_key[-64:])
    assert _files_with(postgres, database, *needles)
    assert not store.scrub_due()
    plan = plan_to_erase(store, gone)
    with PostgresStore.open(postgres_log, read_only=True) as reader:
        with reader.snapshot():
            assert reader.actor(gone) is not None
            store.erase(plan, store.state())
            assert store.scrub_due()
            assert not store.scrub(), "somebody still reads what was erased"
            assert reader.actor(gone) is not None
        assert reader.actor(gone).keys == ()
    assert store.scrub()
    assert not store.scrub_due()
    postgres.sql("CHECKPOINT")  # the server removes replaced files, and writes what it holds in memory
    assert _files_with(postgres, database, *needles) == []
    assert store.actor(BOB).keys == (make_key("b"),)


# Documents


def test_a_document_is_replaced_whole_and_by_one(postgres_log: str, store: PostgresStore) -> None:
    store.claim_epoch()
    one, other = PgDocument(postgres_log, "head"), PgDocument(postgres_log, "head")
    assert one.read() is other.read() is None
    one.write(b"first\x00")
    assert PgDocument(postgres_log, "head").read() == b"first\x00"
    assert PgDocument(postgres_log, "another").read() is None
    with pytest.raises(Conflict, match="DocumentMoved"):
        other.write(b"second")
    assert other.read() == b"first\x00"
    other.write(b"second")
    other.remove()
    other.remove()
    assert other.read() is PgDocument(postgres_log, "head").read() is None


def test_a_fenced_writer_replaces_no_document(postgres_log: str, store: PostgresStore) -> None:
    mine = store.claim_epoch()
    told, learnt = PgDocument(postgres_log, "head", epoch=mine), PgDocument(postgres_log, "head")
    told.write(b"mine")
    assert learnt.read() == b"mine"
    with PostgresStore.open(postgres_log) as newer:
        newer.claim_epoch()
    for document in (told, learnt):
        for change in (lambda document=document: document.write(b"late"), document.remove):
            with pytest.raises(Conflict, match="Fenced"):
                change()
    assert told.read() == b"mine"
    newest = PgDocument(postgres_log, "head")
    newest.read()
    newest.write(b"theirs")
    assert told.read() == b"theirs"
