"""Products that are broken on purpose, to see that the harness notices: each is a mistake that a log has made, or nearly.

A sabotage changes the process under test before it begins. ``CAUGHT`` says by which kinds of faults it must be caught.
"""

from __future__ import annotations

import os
import queue
import sqlite3
import stat
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ktlog import durable, sqlitefile
from ktlog.errors import StoreError
from ktlog.operator import head, nodes, publisher
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.entry import make_entry
from ktlog.store import connections
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.tree import Frontier, hash_leaf
from tests.pkd_samples import private, public


class _Os:
    """``os`` as it is at the time of each call, so that the harness's wrappers see what is left of it."""

    def __init__(self, **others: Callable[..., Any]) -> None:
        self._others = others

    def __getattr__(self, name: str) -> Any:
        return self._others[name] if name in self._others else getattr(os, name)


def no_fsync() -> None:
    """What was written is never synced: the benchmarked log whose database did not open after a reboot."""
    durable.os = _Os(fsync=lambda _handle: None)
    no_commit_sync()


def no_commit_sync() -> None:
    """SQLite is told not to wait for the disk."""
    configure = sqlitefile._configure

    def careless(connection: sqlite3.Connection, *more: Any) -> None:
        configure(connection, *more)
        connection.execute("PRAGMA synchronous=OFF")

    sqlitefile._configure = careless


def no_directory_sync() -> None:
    """Files are synced, their names are not."""
    def fsync(handle: int) -> None:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            os.fsync(handle)

    durable.os = _Os(fsync=fsync)


def answer_first() -> None:
    """The answer is given, and then the entry is stored."""
    commit, later = SqliteStore.commit, queue.Queue()

    def work() -> None:
        while True:
            store, batch = later.get()
            threading.Event().wait(0.05)
            commit(store, batch)

    def soon(self: SqliteStore, batch: Any) -> None:
        if not later.unfinished_tasks:
            threading.Thread(target=work, daemon=True).start()
        later.put((self, batch))

    SqliteStore.commit = soon


def sign_again() -> None:
    """Recovery signs the newest entry anew: ML-DSA is hedged, so it is another entry at the same index."""
    claim = SqliteStore.claim_epoch

    def recover(self: SqliteStore) -> int:
        epoch = claim(self)
        state = self.state()
        with sqlite3.connect(self.path, isolation_level=None) as db:
            for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'trigger'").fetchall():
                db.execute(f"DROP TRIGGER {name}")
            record = self.records(state.size - 1, state.size)[0]
            entry = make_entry(SPEC, record.preimage, private("leaf"), public("leaf"))
            hashes = [*self.leaf_hashes(0, state.size - 1), hash_leaf(entry)]
            frontier = Frontier().extend(hashes)
            db.execute("UPDATE entries SET entry = ?, leaf_hash = ? WHERE leaf_index = ?", (entry, hashes[-1], state.size - 1))
            db.execute("UPDATE leaf_roots SET root = ? WHERE tree_size = ?", (frontier.root(), state.size))
            db.execute("UPDATE log_state SET root = ?, frontier = ?", (frontier.root(), frontier.encode()))
        db.close()
        return epoch

    SqliteStore.claim_epoch = recover
    forget_heads()


def forget_heads() -> None:
    """Nobody looks at what was signed last, nor asks the witnesses."""
    def sign(self: head.LocalHeads, text: bytes, _proof: Any) -> Any:
        with self._lock if hasattr(self, "_lock") else suppress():
            now = self._now()
            return tuple(signer.sign(text, now) for signer in self._signers)

    head.LocalHeads.sign = sign
    publisher.Publisher._check_tree = lambda *_more: None
    publisher.Publisher.compare = lambda self: self.compared.set()
    load = publisher.Publisher._load_published

    def trusting(self: publisher.Publisher) -> None:
        with suppress(StoreError):
            load(self)

    publisher.Publisher._load_published = trusting


def ignore_errors() -> None:
    """A disk that says no is not heard."""
    def commit(_self: Any, connection: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            connection.execute("COMMIT")
        if connection.in_transaction:
            with suppress(sqlite3.Error):
                connection.execute("ROLLBACK")

    connections.Connections._commit = commit

    def fsync(handle: int) -> None:
        with suppress(OSError):
            os.fsync(handle)

    durable.os = _Os(fsync=fsync)


def believe_the_disk() -> None:
    """What is published is not read again before it is signed (requirement R1)."""
    class Yes(bytes):
        def __eq__(self, _other: object) -> bool:
            return True

        def __ne__(self, _other: object) -> bool:
            return False

        __hash__ = None  # type: ignore[assignment]

    nodes.hash_leaf = lambda _entry: Yes()
    nodes.root_hash = lambda _size, _nodes: Yes()


SABOTAGES: dict[str, Callable[[], None]] = {
    "no fsync": no_fsync,
    "no commit sync": no_commit_sync,
    "no directory sync": no_directory_sync,
    "answer first": answer_first,
    "sign again": sign_again,
    "forget heads": forget_heads,
    "ignore errors": ignore_errors,
    "believe the disk": believe_the_disk,
}

CAUGHT = {
    "no fsync": "cut", "no commit sync": "cut", "no directory sync": "cut", "answer first": "call", "sign again": "call",
    "forget heads": "restored", "ignore errors": "call", "believe the disk": "flipped",
}
"""The kind of fault that shows each. A store without its fence is noticed by tests/contract/test_store_contract.py: here
whoever is overtaken ends by the head on disk, or its socket, before anybody can ask it for anything."""
