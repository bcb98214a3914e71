"""After an erasure and a scrub no byte of the actor is in any file of the store; before, every one is.

The log is large enough, and filled in an order odd enough, that SQLite splits and refills pages: then the
space between their cells keeps copies that deleting the rows, also with secure_delete, leaves behind.
"""

from __future__ import annotations

import base64
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog import durable, sqlitefile
from ktlog.errors import StoreError
from ktlog.store import connections
from ktlog.store.sqlite import SqliteStore
from tests.store_samples import (
    ALICE,
    ORIGIN,
    append,
    enrol,
    hash_of,
    make_actor,
    make_aux,
    make_key,
    plan_to_erase,
    touch,
)

USERS = [f"https://example.com/users/{hash_of(f'user {number}').hex()[:12]}" for number in range(60)]
VICTIM = USERS[19]
ROOT = Path(__file__).parents[2]


def aux_id(user: str, number: int) -> str:
    return hash_of(f"{user} {number}").hex()


def fill(store: SqliteStore) -> None:
    for at, user in enumerate(USERS):
        append(store, replace(enrol(user, make_key(user)), text=f"message {at}"))
    for version in (2, 3):
        for at, user in enumerate(USERS):
            aux = [make_aux(aux_id(user, number), "text" * 9) for number in range((at * version) % 4)]
            keys = [make_key(user), make_key(f"{user} {version}")] if at % 3 or user == VICTIM else []
            append(store, touch(make_actor(user, keys, aux, version=version), f"message {version} {at}"))


def needles() -> dict[str, bytes]:
    """What must go: the name, keys raw and as the JSON columns hold them, salts, data."""
    salt, symmetric = hash_of(f"salt {VICTIM}"), hash_of(f"actor {VICTIM}")
    keys = {f"{name} key": make_key(text).public_key for name, text in
            (("first", VICTIM), ("second", f"{VICTIM} 2"), ("last", f"{VICTIM} 3"))}
    return keys | {
        "name": VICTIM.rpartition("/")[2].encode(), "salt": salt, "salt in JSON": base64.b64encode(salt),
        "symmetric key": base64.b64encode(symmetric), "aux id": aux_id(VICTIM, 0).encode(),
    }


def found(path: Path) -> set[str]:
    """Which needles are in the store's files, whole or as a piece of 24 bytes."""
    data = b"".join(file.read_bytes() for file in path.parent.iterdir() if file.name.startswith(path.name))
    return {
        name for name, needle in needles().items()
        if any(needle[at : at + 24] in data for at in range(0, max(1, len(needle) - 24), 24))
    }


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("filled") / "log.db"
    with SqliteStore.create(path, ORIGIN, "spec") as store:
        fill(store)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, filled: bytes) -> Path:
    made = tmp_path / "log.db"
    made.write_bytes(filled)
    return made


def erase(store: SqliteStore) -> None:
    store.erase(plan_to_erase(store, VICTIM), store.state())


def test_before_the_erasure_everything_is_there(path: Path) -> None:
    """The search finds what it looks for: otherwise the tests below would pass on nothing."""
    assert found(path) >= {"name", "first key", "last key", "salt", "salt in JSON", "symmetric key"}


def test_afterwards_nothing_is_there(path: Path) -> None:
    with SqliteStore.open(path) as store, SqliteStore.open(path, read_only=True) as reader:
        reader.state()
        append(store, touch(make_actor(VICTIM, [make_key(VICTIM)], version=4), "into the write-ahead log"))
        erase(store)
        assert "name" in found(path)  # the write-ahead log has it
        assert store.scrub()
        assert found(path) == set()
        assert Path(f"{path}-wal").stat().st_size < 3 * sqlitefile.PAGE_SIZE
        assert reader.actor(USERS[0]) is not None
        assert reader.state().size == 3 * len(USERS) + 1
    assert found(path) == set()
    with sqlite3.connect(path) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert database.execute("PRAGMA page_size").fetchone() == (16384,)
        assert database.execute("PRAGMA foreign_key_check").fetchall() == []
    database.close()


def test_deleting_rows_is_not_enough_and_writing_the_file_anew_is(tmp_path: Path) -> None:
    """Why scrub costs what it costs: a page filled anew keeps copies of moved rows between its cells.

    Should the first half fail one day, SQLite clears those too, and secure_delete alone would do.
    """
    path = tmp_path / "small.db"
    database = sqlitefile.open_database(path, create=True)
    pick = random.Random(2)  # noqa: S311
    database.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, name TEXT UNIQUE, data TEXT)")
    database.execute("BEGIN")
    for n in range(800):
        database.execute(
            "INSERT INTO t VALUES (?, ?, ?)",
            (n, hash_of(f"{n}").hex() * pick.randint(1, 5), hash_of(f"data {n}").hex() * pick.randint(1, 40)),
        )
    for n in pick.choices(range(800), k=4000):
        data = hash_of(f"data {n}").hex() * pick.randint(1, 60)
        database.execute("UPDATE t SET data = ? WHERE n = ?", (data, n))
    database.execute("DELETE FROM t WHERE n % 2")
    database.execute("COMMIT")

    def left() -> int:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        data = path.read_bytes()
        return sum(hash_of(f"data {n}").hex().encode() in data for n in range(1, 800, 2))

    assert left() > 0
    assert connections.Connections(path, database, read_only=False).rewrite()
    assert left() == 0
    database.close()


def test_a_reader_that_does_not_end_keeps_the_old_bytes_and_the_store_says_so(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlitefile, "BUSY_TIMEOUT_SECONDS", 0.05)
    with SqliteStore.open(path) as store, SqliteStore.open(path, read_only=True) as reader:
        inside, leave = threading.Event(), threading.Event()

        def read() -> None:
            with reader.snapshot():
                reader.state()
                inside.set()
                leave.wait(20)

        thread = threading.Thread(target=read)
        append(store, touch(make_actor(VICTIM, [make_key(VICTIM)], version=4), "into the write-ahead log"))
        thread.start()
        inside.wait(20)
        erase(store)
        assert not store.scrub()
        assert store.scrub_due()
        leave.set()
        thread.join()
        assert store.scrub()
        assert not store.scrub_due()
        assert found(path) == set()


SCRUB = """
import sys
from ktlog.store.sqlite import SqliteStore
from tests.store_samples import plan_to_erase
with SqliteStore(sys.argv[1]) as store:
    store.erase(plan_to_erase(store, sys.argv[2]), store.state())
    store.scrub()
    print("done")
"""


@pytest.mark.parametrize("hook", [*connections.HOOKS, *connections.REWRITE_HOOKS, "store.written:2", "store.committed:2"])
def test_a_kill_leaves_all_of_an_erasure_or_none(path: Path, hook: str) -> None:
    """And as long as a byte may be left, the store knows that a scrub is due."""
    result = subprocess.run(
        [sys.executable, "-c", SCRUB, str(path), VICTIM], capture_output=True, text=True, timeout=60, check=False,
        cwd=ROOT, env=os.environ | {durable.KILL_VARIABLE: hook},
    )
    assert (result.returncode, result.stdout) == (-signal.SIGKILL, ""), result.stderr
    with SqliteStore.open(path) as store:
        erased = hook != "store.written"
        assert store.erasure_count() == int(erased)
        assert (store.actor(VICTIM).erasures, store.mentions(VICTIM) == ()) == (int(erased), erased)
        assert store.scrub_due() == (erased and hook != "store.committed:2")
        if not erased:
            erase(store)
        assert store.scrub()
    assert found(path) == set()


def test_a_full_disk_leaves_the_scrub_due(path: Path) -> None:
    with SqliteStore.open(path) as store:
        erase(store)
        (connection,) = store._connections._idle
        connection.execute(f"PRAGMA max_page_count={connection.execute('PRAGMA page_count').fetchone()[0]}")
        store._connections._idle[:] = [_FullDisk(connection)]
        with pytest.raises(StoreError, match="DiskFull"):
            store.scrub()
        store._connections._idle[:] = [connection]
        assert store.scrub_due()
        assert store.scrub()
    assert found(path) == set()


class _FullDisk:
    """A connection that finds no room to write everything anew."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, *arguments: object) -> sqlite3.Cursor:
        if statement == "VACUUM":
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error
        return self._connection.execute(statement, *arguments)

    def __getattr__(self, name: str) -> object:
        return getattr(self._connection, name)


def test_kill_points_are_listed() -> None:
    assert connections.REWRITE_HOOKS == ("store.rewritten", "store.emptied")
    assert ALICE not in USERS
