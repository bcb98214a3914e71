"""Logs of every earlier PostgreSQL schema are brought up to date and are whole; one that cannot be is left as it was.

``tests/log_schemas/postgresql`` has one of each, as ``pg_dump --inserts`` wrote it: the log of ``tests/log_schemas/6.sql``,
moved to a database that had that schema's steps and no later one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import psycopg
import pytest
from click.testing import CliRunner

from ktlog.cli import ktlog
from ktlog.commands.serve import _ask_for_time, _check
from ktlog.config import Settings
from ktlog.errors import StoreError
from ktlog.operator.create import create_log
from ktlog.operator.fsck import check_log
from ktlog.operator.stores import create_map, open_log
from ktlog.store import pgconnections, pgschema, pgupgrade
from ktlog.store.pgupgrade import look
from ktlog.store.postgres import PostgresStore
from tests.audited_log import audited  # noqa: F401
from tests.pkd_samples import CAROL
from tests.postgres_server import PORT, USER, Cluster, database_name
from tests.store_samples import plan_to_erase

ROOT = Path(__file__).resolve().parents[2]
FIXTURES = ROOT / "tests/log_schemas/postgresql"
OLDER = sorted(int(path.stem) for path in FIXTURES.glob("*.sql"))
ORIGIN = "keys.example.com"
TABLES = "SELECT tablename FROM pg_tables WHERE schemaname = 'ktlog' ORDER BY 1"

Make = Callable[[int], Settings]


def damage(settings):
    """What is wrong with it. These stores come without files, and of some something was published."""
    return [finding for finding in check_log(settings) if finding.name != "CheckpointMissing"]


@pytest.fixture
def make(postgres: Cluster, postgres_url: str, tmp_path: Path) -> Make:
    """Makes the directory of a log whose database has that schema."""
    def made(version: int) -> Settings:
        settings = create_log(tmp_path / "log", ORIGIN, "spec", bytes(32), store=postgres_url)
        postgres.sql("DROP SCHEMA ktlog CASCADE", database_name(postgres_url))
        postgres.sql((FIXTURES / f"{version}.sql").read_text(encoding="utf-8"), database_name(postgres_url))
        create_map(settings)
        return settings

    return made


@pytest.fixture
def ask(postgres: Cluster, postgres_url: str) -> Callable[[str], list[tuple]]:
    return lambda statement: postgres.sql(statement, database_name(postgres_url))


@pytest.fixture
def add_step(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Has the code one more step, and returns its name."""
    def add(*statements: str, changes: tuple[str, ...] = (), oldest_code: int = 1) -> str:
        name = f"{len(pgschema.STEPS) + 1:04}_more"
        step = pgschema.Step(name, statements, changes=changes, about="more of it")
        monkeypatch.setattr(pgschema, "STEPS", (*pgschema.STEPS, step))
        monkeypatch.setattr(pgschema, "SCHEMA_VERSION", len(pgschema.STEPS))
        monkeypatch.setattr(pgschema, "OLDEST_CODE", oldest_code)
        return name

    return add


CHANGE = ("ALTER TABLE token_revoked ADD COLUMN more bigint", "UPDATE totp SET secret = NULL", "DELETE FROM directory_aux")
CHANGED = ("directory_aux", "token_revoked", "totp")


def copied(version: int) -> set[str]:
    """The tables of which a copy is made on the way from that schema."""
    named = {table for step in pgschema.STEPS[version:] for table in step.changes if table != "made_by_none"}
    return named | set(pgupgrade.ALWAYS) if named else set()


def dump(cluster: Cluster, settings: Settings) -> list[str]:
    """All of the database, as text; without the words that pg_dump draws anew each time."""
    text = cluster.run("pg_dump", "-h", str(cluster.directory), "-p", str(PORT), "-U", USER, "--inserts",
                       database_name(settings.store))
    return [line for line in text.splitlines() if not line.startswith(("\\restrict", "\\unrestrict"))]


def migrate(settings: Settings, *words: str):
    return CliRunner().invoke(ktlog, ["migrate", "--dir", str(settings.directory), *words])


def test_every_earlier_schema_is_here_and_every_step_says_what_it_does() -> None:
    assert list(range(1, pgschema.SCHEMA_VERSION)) == OLDER
    assert all(step.about for step in pgschema.STEPS)


@pytest.mark.parametrize("version", OLDER)
def test_a_log_of_an_earlier_schema_is_brought_up_to_date_and_is_whole(make: Make, ask, version: int) -> None:
    settings = make(version)
    assert (look(settings.store).stored, look(settings.store).entries) == (version, 5)
    with pytest.raises(StoreError, match="OlderSchema"):
        open_log(settings, read_only=True)
    with open_log(settings) as store:
        assert (store.state().size, store.erasure_count()) == (5, 1)
        (key,) = store.actor(CAROL).keys
        assert store.owners(key.key_id, 2) == (CAROL,)
    assert damage(settings) == []
    assert ask("SELECT schema_version, oldest_code FROM ktlog.log_meta") == [
        (pgschema.SCHEMA_VERSION, pgschema.OLDEST_CODE)
    ]
    assert [name for (name,) in ask("SELECT name FROM ktlog.migrations ORDER BY 1")] == [
        step.name for step in pgschema.STEPS
    ]


@pytest.mark.parametrize("version", OLDER)
def test_an_auditor_finds_no_fault_in_a_log_of_an_earlier_schema(make: Make, audited, version: int) -> None:  # noqa: F811
    settings = make(version)
    report = audited(settings)
    assert (report["findings"], report["ok"], report["entries_audited"]) == ([], True, 5)
    assert report["map"]["leaves"] == report["map"]["derived"] == 1
    assert damage(settings) == []


@pytest.mark.parametrize("version", OLDER)
def test_what_a_step_does_not_name_it_leaves_as_it_was(make: Make, ask, version: int) -> None:
    settings = make(version)
    named = {table for step in pgschema.STEPS[version:] for table in step.changes}

    def rows() -> dict[str, list[tuple]]:
        # As JSON, so that a column that went or came is seen.
        return {table: sorted(ask(f"SELECT to_jsonb(t)::text FROM ktlog.{table} t")) for (table,) in ask(TABLES)}  # noqa: S608

    before = rows()
    open_log(settings).close()
    after = rows()
    for table in before.keys() - named - set(pgupgrade.ALWAYS):
        assert after[table] == before[table], table


def test_sums_are_of_what_older_code_wrote(make: Make, ask) -> None:
    settings, hashed = make(2), bytes(range(32))
    ask(f"INSERT INTO ktlog.token_revoked VALUES ('\\x{hashed.hex()}', 1)")
    ask(f"INSERT INTO ktlog.directory_revoked SELECT actor_number, '\\x{hashed.hex()}' FROM ktlog.directory_actors")
    with open_log(settings) as store:
        assert store.token_revoked(hashed) and not store.token_revoked(bytes(32))
        assert store.actor(CAROL).revoked == {hashed}


def test_what_is_wrong_in_an_earlier_log_is_found_afterwards(make: Make, ask) -> None:
    settings = make(OLDER[0])
    ask("ALTER TABLE ktlog.entries DISABLE TRIGGER USER")
    ask("UPDATE ktlog.entries SET entry = '\\x00' WHERE leaf_index = 1")
    ask("ALTER TABLE ktlog.entries ENABLE TRIGGER USER")
    open_log(settings).close()
    assert damage(settings) != []


@pytest.mark.parametrize(("last", "error"), [
    ("SELECT 1 / 0", "Refused"), ("SELECT pg_terminate_backend(pg_backend_pid())", "ConnectionLost"),
])
def test_a_step_that_fails_leaves_everything_as_it_was(make: Make, postgres, add_step, last: str, error: str) -> None:
    settings = make(OLDER[0])
    before = dump(postgres, settings)
    add_step("CREATE TABLE more (x bigint)", *CHANGE, last, changes=CHANGED)
    with pytest.raises(StoreError, match=error):
        open_log(settings)
    assert dump(postgres, settings) == before


def test_who_may_make_copies_and_who_may_read_them(make: Make, postgres: Cluster, ask, add_step) -> None:
    settings = make(OLDER[0])
    database = database_name(settings.store)
    for role in ("owns_it", "looks"):
        ask(f"DROP ROLE IF EXISTS {role}")
        ask(f"CREATE ROLE {role} LOGIN")
    try:
        ask("ALTER SCHEMA ktlog OWNER TO owns_it; GRANT USAGE ON SCHEMA ktlog TO looks")
        for (table,) in ask(TABLES):
            ask(f"ALTER TABLE ktlog.{table} OWNER TO owns_it; GRANT SELECT ON ktlog.{table} TO looks")
        add_step("ALTER TABLE totp ADD COLUMN more bigint", changes=("totp",))
        with pytest.raises(StoreError, match="Denied") as refused:
            PostgresStore.open(postgres.url(database, "owns_it"))
        assert "docs/postgresql.md" in refused.value.hint and look(settings.store).stored == OLDER[0]
        ask(f"GRANT CREATE ON DATABASE {database} TO owns_it")
        PostgresStore.open(postgres.url(database, "owns_it")).close()
        ask("CREATE SCHEMA ktlog_before_1_20200101t000000z AUTHORIZATION looks")
        (copy,) = look(postgres.url(database, "owns_it")).copies  # what another role named so is not its to remove
        with psycopg.connect(postgres.url(database, "looks")) as looking:
            looking.execute("SELECT * FROM ktlog.totp")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                looking.execute(f"SELECT * FROM {copy}.totp")  # noqa: S608
    finally:
        postgres.drop_database(settings.store)
        for role in ("owns_it", "looks"):
            postgres.sql(f"DROP ROLE {role}")


def test_what_a_step_changes_is_copied_before(make: Make, ask, add_step, caplog) -> None:
    settings = make(OLDER[0])
    tables = {table: ask(f"SELECT * FROM ktlog.{table}") for table in (*CHANGED, "migrations")}  # noqa: S608
    assert tables["directory_aux"] or tables["totp"] or tables["token_revoked"], "else nothing is seen to be kept"
    add_step(*CHANGE, changes=(*CHANGED, "made_by_none"))
    with caplog.at_level(logging.WARNING, "ktlog.store"):
        open_log(settings).close()
    (copy,) = look(settings.store).copies
    assert f"from schema {OLDER[0]} to {pgschema.SCHEMA_VERSION}" in caplog.text and copy in caplog.text
    assert {table for (table,) in ask(TABLES.replace("ktlog", copy))} == copied(OLDER[0]) > set(CHANGED)
    for table, rows in tables.items():
        assert ask(f"SELECT * FROM {copy}.{table}") == rows  # noqa: S608
    assert ask(f"SELECT schema_version FROM {copy}.log_meta") == [(OLDER[0],)]  # noqa: S608
    assert ask(f"SELECT size FROM {copy}.log_state") == [(5,)]  # noqa: S608
    ask("ANALYZE")
    assert ask(f"SELECT * FROM pg_stats WHERE schemaname = '{copy}'") == [], "samples of what an erasure takes away"  # noqa: S608
    open_log(settings).close()
    assert look(settings.store).copies == (copy,), "what is up to date is not copied"


def test_two_copies_stay_and_an_erasure_takes_them(make: Make, ask, add_step) -> None:
    settings = make(OLDER[0])
    for name in ("ktlog_before_7_20200101t000000z", "ktlog_before_1_20210101t000000z", "ktlog_before_x", "ktlog_before_1"):
        ask(f"CREATE SCHEMA {name}; CREATE TABLE {name}.totp (x bigint)")
    add_step(*CHANGE, changes=CHANGED)
    with open_log(settings) as store:
        first, second = look(settings.store).copies
        assert first == "ktlog_before_1_20210101t000000z" and second > first
        store.erase(plan_to_erase(store, CAROL), store.state())
        with psycopg.connect(settings.store) as reader:
            reader.execute(f"SELECT * FROM {second}.totp")  # noqa: S608
            assert not store.scrub() and store.scrub_due(), "somebody reads what is to go"
        assert store.scrub() and not store.scrub_due()
    assert look(settings.store).copies == ()
    assert ask("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'ktlog_before%' ORDER BY 1") == [
        ("ktlog_before_1",), ("ktlog_before_x",)
    ], "what somebody else named so stays"


def test_a_step_may_take_longer_than_any_other_statement(make: Make, add_step, monkeypatch) -> None:
    settings = make(OLDER[0])
    session = pgconnections._SESSION.replace(f"statement_timeout = '{pgconnections.STATEMENT_SECONDS}s'",
                                             "statement_timeout = '300ms'")
    assert session != pgconnections._SESSION
    monkeypatch.setattr(pgconnections, "_SESSION", session)
    add_step("SELECT pg_sleep(0.6)")
    with open_log(settings) as store, pytest.raises(StoreError, match="TimedOut"):
        store._connections.write(lambda db: db.execute("SELECT pg_sleep(0.6)"))


def test_nobody_writes_while_it_is_copied(make: Make) -> None:
    settings = make(OLDER[0])
    connections = pgconnections.PgConnections(settings.store, read_only=False)
    try:
        with connections.writing() as db, psycopg.connect(settings.store) as other:
            pgupgrade.migrate(db, "here", OLDER[0])
            other.execute("SET lock_timeout = '100ms'")
            with pytest.raises(psycopg.errors.LockNotAvailable):
                other.execute("UPDATE ktlog.log_state SET writes = writes + 1")
    finally:
        connections.close()
    assert look(settings.store).stored == pgschema.SCHEMA_VERSION


@pytest.mark.parametrize(("server", "transactional"), [
    ("PostgreSQL 15.14 (Debian 15.14-0+deb12u1) on x86_64-pc-linux-gnu, compiled by gcc", True),
    ("PostgreSQL 11.2-YB-2.18.0.0-b0 on x86_64-pc-linux-gnu, compiled by clang version 15.0.3", False),
    ("CockroachDB CCL v23.1.11 (x86_64-pc-linux-gnu, built 2023/09/27 01:53:43, go1.19.10)", False),
    ("", False),
])
def test_which_server_undoes_a_migration_that_fails(server: str, transactional: bool) -> None:
    assert pgupgrade.is_transactional(server) == transactional


def test_another_server_is_refused_before_anything_is_changed(make: Make, postgres, monkeypatch) -> None:
    settings = make(OLDER[0])
    before = dump(postgres, settings)
    monkeypatch.setattr(pgupgrade, "_server", lambda db: "CockroachDB CCL v23.1.11 (x86_64, built 2023)")
    assert "NO, it would be refused: CockroachDB CCL v23.1.11" in migrate(settings, "--plan").output
    with pytest.raises(StoreError, match="OtherServer") as refused:
        open_log(settings)
    assert "CockroachDB CCL v23.1.11 does not" in refused.value.message and "was changed" in refused.value.hint
    assert dump(postgres, settings) == before
    monkeypatch.undo()
    open_log(settings).close()
    monkeypatch.setattr(pgupgrade, "_server", lambda db: "CockroachDB")
    open_log(settings).close()


def test_the_plan_changes_nothing_and_the_command_does_it_once(make: Make, postgres, add_step) -> None:
    settings = make(OLDER[0])
    before = dump(postgres, settings)
    words = migrate(settings, "--plan").output
    assert all(f"  {step.name}  {step.about}\n" in words for step in pgschema.STEPS[OLDER[0]:])
    assert f"pg_dump -Fc -n ktlog -f ktlog-schema-{OLDER[0]}.dump URL" in words
    more = add_step(*CHANGE, changes=CHANGED)
    words = migrate(settings, "--plan").output
    assert f"  {more}  more of it\n" in words
    assert f"{', '.join(sorted(copied(OLDER[0])))}, in the schema ktlog_before_{OLDER[0]}_" in words
    plan = json.loads(migrate(settings, "--plan", "--json").output)
    assert (plan["schema"], plan["wanted"], plan["entries"], plan["copies"], plan["other-server"]) == (
        OLDER[0], pgschema.SCHEMA_VERSION, 5, [], ""
    )
    assert set(plan["tables"]) == copied(OLDER[0]) and 0 < plan["copy-bytes"] < plan["database-bytes"]
    assert dump(postgres, settings) == before
    words = migrate(settings).output
    (copy,) = look(settings.store).copies
    assert words == f"schema {OLDER[0]} became {pgschema.SCHEMA_VERSION}.\na copy: {copy}\n"
    assert migrate(settings).output == f"schema {pgschema.SCHEMA_VERSION}: nothing is to be done.\n"
    assert look(settings.store).tables == ()


def test_a_dump_from_before_is_put_back_as_the_manual_says(make: Make, postgres: Cluster, add_step) -> None:
    settings = make(OLDER[0])
    where = ("-h", str(postgres.directory), "-p", str(PORT), "-U", USER, "-d", database_name(settings.store))
    before = dump(postgres, settings)
    kept = str(postgres.directory / f"{database_name(settings.store)}.dump")
    postgres.run("pg_dump", "-Fc", "-n", "ktlog", "-f", kept, *where)
    add_step(*CHANGE, changes=CHANGED, oldest_code=3)
    open_log(settings).close()
    postgres.run("psql", "-v", "ON_ERROR_STOP=1", "-c", "DROP SCHEMA ktlog CASCADE", *where)
    postgres.run("pg_restore", "-1", *where, kept)
    for name in look(settings.store).copies:
        postgres.sql(f"DROP SCHEMA {name} CASCADE", database_name(settings.store))
    assert dump(postgres, settings) == before
    open_log(settings).close()
    with PostgresStore.open(settings.store, read_only=True) as store:
        assert store.state().size == 5


def test_systemd_is_asked_to_wait_for_an_upgrade_of_a_database(make: Make) -> None:
    """Its sequencer is ended in the middle of it otherwise, and each start begins it anew."""
    settings, told = make(OLDER[0]), []
    notifier = SimpleNamespace(send=lambda *states: told.extend(states), address="")
    _ask_for_time(settings, notifier)
    assert told == [], "nobody is told, and nobody is asked"
    notifier.address = "/run/systemd/notify"
    _ask_for_time(replace(settings, store="postgresql://127.0.0.1:1/nothing"), notifier)
    assert told == []
    _check(replace(settings, role="web"), False, notifier)  # which waits for a sequencer elsewhere
    assert told[0].startswith("EXTEND_TIMEOUT_USEC=6000") and told[1].startswith("STATUS=bringing the store from schema 1 to")
    open_log(settings).close()
    told.clear()
    _ask_for_time(settings, notifier)
    assert told == []
