"""Every log store, for the tests of what all of them promise."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ktlog.store.contracts import LogStore
from ktlog.store.memory import MemoryStore
from ktlog.store.sqlite import SqliteStore
from tests.store_samples import ORIGIN, Backend


@pytest.fixture(params=["memory", "sqlite"])
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    opened: list[LogStore] = []

    def keep(store: LogStore) -> LogStore:
        opened.append(store)
        return store

    if request.param == "memory":
        memory = MemoryStore(ORIGIN, "spec")
        yield Backend(keep(memory), lambda: keep(memory.reader()))
    else:
        path = tmp_path / "log.sqlite"
        store = keep(SqliteStore.create(path, ORIGIN, "spec"))
        yield Backend(store, lambda: keep(SqliteStore.open(path, read_only=True, origin=ORIGIN)))
    for handle in opened:
        handle.close()


@pytest.fixture
def store(backend: Backend) -> LogStore:
    return backend.store
