"""Every log store, for the tests of what all of them promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlog.store.contracts import LogStore
from ktlog.store.memory import MemoryStore
from ktlog.store.postgres import PostgresStore
from ktlog.store.sqlite import SqliteStore
from tests.postgres_server import Cluster, database_name
from tests.store_samples import ORIGIN, Backend


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    opened: list[LogStore] = []

    def keep(store: LogStore) -> LogStore:
        opened.append(store)
        return store

    if request.param == "memory":
        memory = MemoryStore(ORIGIN, "spec")
        yield Backend(keep(memory), lambda: keep(memory.reader()))
    elif request.param == "postgres":
        url = request.getfixturevalue("postgres_log")
        store = keep(PostgresStore.open(url, origin=ORIGIN))
        yield Backend(store, lambda: keep(PostgresStore.open(url, read_only=True, origin=ORIGIN)))
    else:
        path = tmp_path / "log.sqlite"
        store = keep(SqliteStore.create(path, ORIGIN, "spec"))
        yield Backend(store, lambda: keep(SqliteStore.open(path, read_only=True, origin=ORIGIN)))
    for handle in opened:
        handle.close()


# A store as PostgresStore.create leaves it, in a tenth of the time: a superuser can pass over the triggers.
_EMPTY = """
DO $$ DECLARE name text; BEGIN
    SET LOCAL session_replication_role = replica;
    SET LOCAL search_path = ktlog;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'ktlog' AND tablename NOT IN ('log_meta', 'migrations')
    LOOP EXECUTE format('DELETE FROM %I', name); END LOOP;
    INSERT INTO log_state SELECT 1, 0, sha256(''), decode('0000000000000000', 'hex'), 0, 0, 0;
    INSERT INTO housekeeping VALUES (1, false);
END $$"""


@pytest.fixture(scope="session")
def _postgres_database(postgres: Cluster) -> str:
    url = postgres.new_database()
    PostgresStore.create(url, ORIGIN, "spec").close()
    return url


@pytest.fixture
def postgres_log(postgres: Cluster, _postgres_database: str) -> str:
    """URL of a database with an empty log; this worker's tests use it one after the other."""
    postgres.sql(_EMPTY, database_name(_postgres_database))
    return _postgres_database


@pytest.fixture
def store(backend: Backend) -> LogStore:
    return backend.store
