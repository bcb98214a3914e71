"""A stopped log moves from its SQLite files to a PostgreSQL database, without one byte of it changed.

First the log is checked as ``ktlog fsck`` does. Then everything is copied, each store in one transaction; then every
row and every value is compared and the tree is computed again from the entries; then ``ktlog.toml`` names the
database, and only then the old files lose their names. Whenever this ends, the log is served from one place: from the
files before ``ktlog.toml`` was replaced, and from the database after it. Called again it goes on where it ended.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ktlog.config import Settings, with_setting
from ktlog.durable import file_errors, reach, read_file, sync_directory, write_atomic
from ktlog.errors import StoreError, UsageError
from ktlog.keymap.output import format_config
from ktlog.operator.fsck import examine
from ktlog.operator.mapcheck import check_map
from ktlog.operator.stopped import stopped
from ktlog.operator.stores import (
    bring_up,
    database_url,
    map_config,
    map_pending,
    map_signed_head,
    rules_document,
    signed_head,
)
from ktlog.store.contracts import LogState, LogStore
from ktlog.store.documents import FileDocument
from ktlog.store.mapcopy import copy_map
from ktlog.store.mapdb import SqliteMapStore
from ktlog.store.pgcopy import Progress, Source, compare_rows, copy_log
from ktlog.store.pgmap import PgMapStore
from ktlog.store.postgres import PostgresStore
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.tree import Frontier, hash_leaf

HOOKS = ("migrate.copied", "migrate.compared", "migrate.switched")
"""Kill points: all is in the database; it was compared; ktlog.toml names it."""

MOVED = ".moved-to-postgresql"
"""What the old files are called afterwards: their name and this."""

PAGE = 1000


@dataclass(frozen=True)
class Moved:
    """What was moved. rows: of the log, compared one by one. old: the files that are no log any more."""

    state: LogState
    rows: int
    map_leaves: int
    old: tuple[Path, ...]


def migrate_store(settings: Settings, store: str, store_file: str, progress: Progress) -> Moved:
    """Move the log of *settings* to the database that *store* or *store_file* names.

    Raises:
        StoreError: "Locked", the log is running; "Damaged"; "AlreadyMoved"; "StoreExists", the database holds
            something else; "CopyDiffers"; "BadSwitch"; those of both stores. The log is where it was.
        UsageError: "BadSetting", "BadStore".
    """
    if settings.uses_postgres:
        raise StoreError("AlreadyMoved", f"{settings.directory}: ktlog.toml names a database already")
    target = replace(settings, store=store, store_file=store_file)
    url = database_url(target)
    if url is None:
        raise StoreError("NoStore", "say to which database: --to URL, or --to-file FILE")
    with _stopped(settings):
        _settle(settings)
        source = Source(settings.database)
        try:
            _require_whole(settings, progress)
            state = _copy(settings, target, source, url, progress)
            reach("migrate.copied")
            rows = compare_rows(source, url, progress)
            with SqliteStore.open(settings.database, read_only=True, origin=settings.origin) as old, \
                    PostgresStore.open(url, read_only=True, origin=settings.origin) as new:
                compare_logs(old, new, source.column("SELECT domain FROM totp"),
                             source.column("SELECT DISTINCT tree_size FROM cosignatures"), progress)
                leaves = _compare_map(settings, url, new)
            reach("migrate.compared")
            _switch(settings, "store" if store else "store_file", store or store_file)
            reach("migrate.switched")
        finally:
            source.close()
        return Moved(state, rows, leaves, _retire(settings))


def finish_move(settings: Settings) -> tuple[Path, ...]:
    """Take their names from the old files of a log that is in a database; a move that was cut short left them."""
    with _stopped(settings):
        return _retire(settings)


def _stopped(settings: Settings) -> AbstractContextManager[None]:
    return stopped(settings, "a log moves while it is stopped", "Stop it first.")


def _settle(settings: Settings) -> None:
    """Bring the files to this code's schema, with nothing in them that was erased."""
    bring_up(settings)
    with SqliteStore.open(settings.database, origin=settings.origin) as store:
        if store.scrub_due() and not store.scrub():
            raise StoreError("Locked", f"{settings.database}: somebody reads an older state of it", hint="Try again.")


def _require_whole(settings: Settings, progress: Progress) -> None:
    """The copy is compared with what was copied, and would be as damaged; so the whole log is checked before."""
    findings = examine(settings, progress=progress).findings
    if not findings.ok:
        raise StoreError(
            "Damaged", f"{settings.directory}: {findings.kept[0]}",
            hint="A damaged log is not moved. ktlog fsck --dir DIR lists all that is wrong, and what to do.",
        )


def _copy(settings: Settings, target: Settings, source: Source, url: str, progress: Progress) -> LogState:
    with SqliteStore.open(settings.database, read_only=True, origin=settings.origin) as store:
        state = store.state()
    if not _is_copied(url, settings.origin, state):
        copy_log(source, url, progress)
    if not PgMapStore.exists(url):
        with _old_map(settings) as old:
            copy_map(old, url)
    for path, document in (
        (settings.signed_head, signed_head(target)), (settings.map_signed_head, map_signed_head(target)),
        (settings.map_pending, map_pending(target)), (settings.rules, rules_document(target)),
    ):
        data = FileDocument(path).read()
        if document.read() != data:
            document.remove() if data is None else document.write(data)
    return state


def _is_copied(url: str, origin: str, state: LogState) -> bool:
    """Whether an earlier call copied all of the log. What is there is compared afterwards, to the last row.

    Raises:
        StoreError: "StoreExists", the database holds another log, or another state of this one.
    """
    try:
        with PostgresStore.open(url, read_only=True) as store:
            if (store.origin, store.state()) == (origin, state):
                return True
            where = store.where
    except StoreError as error:
        if error.name == "NotALog":  # copy_log refuses whatever else is there
            return False
        raise
    raise StoreError(
        "StoreExists", f"{where}: it has a log already, which is not this one as it is now",
        hint="Every log has a database of its own. If it was served from there meanwhile, nothing else may serve it.",
    )


@contextmanager
def _old_map(settings: Settings) -> Iterator[SqliteMapStore]:
    store = SqliteMapStore.open(
        settings.map_database, origin=settings.origin, config=format_config(map_config(settings)), read_only=True
    )
    try:
        yield store
    finally:
        store.close()


# Comparing


def compare_logs(
    one: LogStore, other: LogStore, domains: list[str], sizes: list[int], progress: Progress
) -> None:
    """Compare all that two stores answer, and compute every leaf hash and root again from the entries.

    Args:
        domains: that ever had a one-time password. sizes: of trees that have cosignatures.

    Raises:
        StoreError: "CopyDiffers".
    """
    with one.snapshot(), other.snapshot():
        state = one.state()
        _require((one.origin, one.dialect, state) == (other.origin, other.dialect, other.state()), "state")
        frontier = Frontier()
        for start in range(0, state.size, PAGE):
            end = min(start + PAGE, state.size)
            records = other.records(start, end)
            _require(one.records(start, end) == records, f"records {start} to {end}")
            _require(one.touched(start, end) == other.touched(start, end), f"touched by {start} to {end}")
            for record in records:
                frontier = frontier.append(record.leaf_hash)
                _require(
                    hash_leaf(record.entry) == record.leaf_hash and frontier.root() == record.root,
                    f"tree at entry {record.leaf_index}",
                )
                if record.action == "MoveIdentity":
                    at = record.leaf_index
                    _require(one.carried(at) == other.carried(at), f"move {at}")
            progress("check entries", end, state.size)
        _require((frontier.root(), frontier) == (state.root, state.frontier), "root")
        count = one.erasure_count()
        _require(count == other.erasure_count(), "number of erasures")
        _require(one.erasures(0, count) == other.erasures(0, count), "erasures")
        for domain in domains:
            _require(one.totp(domain) == other.totp(domain), "one-time passwords")
        for size in sizes:
            _require(one.cosignatures(size) == other.cosignatures(size), f"cosignatures of {size}")
        _compare_actors(one, other, progress)


def _compare_actors(one: LogStore, other: LogStore, progress: Progress) -> None:
    after, done = "", 0
    while True:
        ids = one.actor_ids(after, PAGE)
        _require(ids == other.actor_ids(after, PAGE), "actors")
        if not ids:
            return
        for actor_id in ids:
            for name in ("actor", "salt", "history", "erased"):
                _require(getattr(one, name)(actor_id) == getattr(other, name)(actor_id), f"an actor's {name}")
        after, done = ids[-1], done + len(ids)
        progress("check actors", done, done)


def _compare_map(settings: Settings, url: str, log: PostgresStore) -> int:
    """Check the copied map against the copied log, leaf by leaf, and against the old one's state."""
    new = PgMapStore.open(
        url, origin=settings.origin, config=format_config(map_config(settings)), read_only=True
    )
    try:
        with _old_map(settings) as old:
            _require(old.state() == new.state(), "map's state")
            size = old.state().output.size
            for start in range(0, size, PAGE):
                end = min(start + PAGE, size)
                _require(old.output_leaves(start, end) == new.output_leaves(start, end), f"map's leaf after {start}")
            _require(old.checkpoint() == new.checkpoint(), "map's newest checkpoint")
        return check_map(new, log)
    finally:
        new.close()


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise StoreError(
            "CopyDiffers", f"the two stores have another {what}",
            hint="The log is still where it was. Drop the database's schema ktlog before you try again.",
        )


# Switching


def _switch(settings: Settings, name: str, value: str) -> None:
    """Make ``ktlog.toml`` say ``name = value``, and leave every other line as it is."""
    path = settings.directory / "ktlog.toml"
    try:
        changed = with_setting((read_file(path) or b"").decode("utf-8"), name, value)
    except UsageError as error:
        what = f"{path}: {error.message}; the log is still where it was"
        raise StoreError(error.name, what, hint=error.hint) from None
    with file_errors(path):
        mode = stat.S_IMODE(path.stat().st_mode)
    write_atomic(path, changed.encode(), mode=mode)


def _retire(settings: Settings) -> tuple[Path, ...]:
    """Give the old files names under which nothing opens them."""
    renamed = []
    for path in (settings.database, settings.map_database):
        for suffix in ("-wal", "-shm", ""):
            old = path.with_name(path.name + suffix)
            with file_errors(old):
                if old.exists():
                    renamed.append(old.rename(path.with_name(path.name + MOVED + suffix)))
    with file_errors(settings.map_pending):
        settings.map_pending.unlink(missing_ok=True)  # it holds what an erasure must be able to take away
    sync_directory(settings.directory)
    return tuple(renamed)
