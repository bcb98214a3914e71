"""What stands between a stored log and this code's schema, and the copy that is kept of an older database.

    needed = look(path)            # which schema, which steps, how much
    copy = keep_copy(path, ...)    # log.schema-4.2026-11-22T201500Z.db, beside it
    SqliteStore.open(path)         # the writer runs the steps, in one transaction

The copy is what to put back if the new code turns out to be wrong. It holds what an erasure takes away, so that
``remove_copies`` is part of every erasure.
"""

from __future__ import annotations

import logging
import os
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from ktlog import sqlitefile
from ktlog.durable import file_errors, sync_directory
from ktlog.errors import StoreError
from ktlog.store import mapdb, mapupgrade, schema
from ktlog.store.sqlite import read_meta

KEEP = 2
"""Copies that stay, the newest."""

SPARE_BYTES = 64 << 20
"""What is left on the disk when all is done, at least."""

log = logging.getLogger("ktlog.store")

_COPY = re.compile(r"\.schema-(\d+)\.\d{4}-\d{2}-\d{2}T\d{6}Z(?:-\d+)?\.db")


@dataclass(frozen=True)
class Upgrade:
    """What bringing a database to this code's schema takes.

    stored, wanted: schema versions. entries: of the log. database_bytes: of it with its write-ahead log. steps: those
    that would run. seconds: about how long. copy_bytes: of the copy. work_bytes: what the steps need besides, at most.
    free_bytes: on its disk.
    """

    stored: int
    wanted: int
    entries: int
    database_bytes: int
    steps: tuple[schema.Step, ...]
    seconds: float
    copy_bytes: int
    work_bytes: int
    free_bytes: int

    @property
    def is_needed(self) -> bool:
        return bool(self.steps)

    @property
    def fits(self) -> bool:
        return self.copy_bytes + self.work_bytes + SPARE_BYTES <= self.free_bytes


@dataclass(frozen=True)
class DatabaseUpgrade:
    """The same of a PostgreSQL database; see ``ktlog.store.pgupgrade``. How much is free is known to its server alone.

    steps: name, and what it does. tables: those that are copied before. copies: schemas of copies that were kept.
    other_server: what the server says that it is, where it cannot be migrated; else empty.
    """

    stored: int
    wanted: int
    entries: int
    database_bytes: int
    steps: tuple[tuple[str, str], ...]
    tables: tuple[str, ...]
    copy_bytes: int
    copies: tuple[str, ...]
    other_server: str


def look(path: Path) -> Upgrade:
    """What the log in *path* is from and would become; changes nothing.

    Raises:
        StoreError: ``NewerSchema`` for a database of newer code; ``MissingStore``, ``NotALog``, ``Corrupt``.
    """
    with closing(sqlitefile.open_database(path, read_only=True)) as database, sqlitefile.database_errors(path):
        stored = read_meta(database, path)[2]
        (entries,) = database.execute("SELECT size FROM log_state").fetchone()
    steps = schema.STEPS[stored:]
    size = _database_size(path)
    # A step's changes are in the write-ahead log before they are in the file: what it writes, is written twice.
    work = sum(2 * step.written_bytes * entries for step in steps)
    return Upgrade(
        stored, max(stored, schema.SCHEMA_VERSION), entries, size, steps,
        sum(step.seconds_per_million for step in steps) * entries / 1e6, size if steps else 0, work, _free(path),
    )


def look_at_map(path: Path) -> Upgrade:
    """The same of a log's map. entries: leaves of the map.

    Raises:
        StoreError: ``MissingStore``, ``Corrupt``.
    """
    with closing(sqlitefile.open_database(path, read_only=True)) as database, sqlitefile.database_errors(path):
        row = database.execute("SELECT schema_version, leaves FROM log_meta, map_state").fetchone()
    stored, leaves = (mapdb.SCHEMA_VERSION, 0) if row is None else row  # whoever opens it says what is wrong
    steps = tuple(
        schema.Step(f"map_{version:04}", (), about=mapupgrade.ABOUT[version])
        for version in range(max(mapupgrade.OLDEST, stored) + 1, mapdb.SCHEMA_VERSION + 1)
    )
    size = _database_size(path)
    seconds = mapupgrade.SECONDS_PER_MILLION_LEAVES * leaves / 1e6 if steps else 0.0
    # Values and nodes are written anew, into the write-ahead log and then into the file.
    return Upgrade(
        stored, max(stored, mapdb.SCHEMA_VERSION), leaves, size, steps, seconds, size if steps else 0,
        2 * size if steps else 0, _free(path),
    )


def keep_copy(path: Path, stored: int, *, now: Callable[[], float] = time.time) -> Path:
    """Copy a database while others may read and write it, and remove copies but for the newest ``KEEP``.

    It is there, whole and durable, when this returns.

    Raises:
        StoreError: the copy cannot be made; then there is none.
    """
    name = f"{path.stem}.schema-{stored}.{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime(now()))}"
    taken = {one.name for one in copies(path)}
    kept = path.with_name(next(
        one for one in (f"{name}.db", *(f"{name}-{i}.db" for i in range(2, 10_000))) if one not in taken
    ))
    unfinished = path.with_name(f".{kept.name}.unfinished")
    _remove_unfinished(path)
    with file_errors(unfinished):
        os.close(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    try:
        with (
            closing(sqlitefile.open_database(path, read_only=True)) as source, sqlitefile.database_errors(unfinished),
            closing(sqlite3.connect(unfinished, isolation_level=None)) as target,
        ):
            target.execute("PRAGMA journal_mode=OFF")
            source.backup(target)  # all pages in one step: one read transaction
            if target.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                raise StoreError("Corrupt", f"{path}: the copy of it is damaged", hint="See ktlog fsck --dir DIR.")
        with file_errors(unfinished):
            descriptor = os.open(unfinished, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            unfinished.rename(kept)
        _remove_unfinished(path)  # what SQLite left beside it
        sync_directory(path.parent)
    except BaseException:
        _remove_unfinished(path)
        raise
    for old in copies(path)[:-KEEP]:
        with file_errors(old):
            old.unlink(missing_ok=True)
    return kept


def prepare(path: Path, look: Callable[[Path], Upgrade] = look) -> Path | None:
    """Keep a copy of a database that a writer is about to bring to this code's schema; None where it has that.

    look: :func:`look` for a log's, :func:`look_at_map` for that of its map.

    Raises:
        StoreError: ``NoRoom``: the disk has none for the copy and for what the steps write; ``NewerSchema``.
    """
    found = look(path)
    if not found.is_needed:
        return None
    if not found.fits:
        wanted = found.copy_bytes + found.work_bytes + SPARE_BYTES
        raise StoreError(
            "NoRoom", f"{path}: to bring it from schema {found.stored} to {found.wanted} takes {wanted >> 20} MiB,"
            f" for a copy and for the work; the disk has {found.free_bytes >> 20} MiB",
            hint="Nothing was changed. Make room, or take a larger disk; ktlog migrate --plan says how much it takes.",
        )
    log.warning(
        "%s is brought from schema %d to %d, which takes about %.0f s", path, found.stored, found.wanted, found.seconds
    )
    kept = keep_copy(path, found.stored)
    log.warning("what it was is in %s", kept)
    return kept


def copies(path: Path) -> list[Path]:
    """The copies of *path* that were kept, the oldest first."""
    with file_errors(path.parent):
        found = [one for one in path.parent.iterdir() if one.name.startswith(f"{path.stem}.")]
    named = [one for one in found if _COPY.fullmatch(one.name[len(path.stem):])]
    return sorted(named, key=lambda one: (one.stat().st_mtime_ns, one.name))


def remove_copies(*paths: Path) -> list[Path]:
    """Remove all of them, of databases in one directory, and what is left of one that was cut short; says what went."""
    gone = [one for path in paths for one in (*copies(path), *_unfinished(path))]
    for one in gone:
        with file_errors(one):
            one.unlink(missing_ok=True)
    if gone:
        sync_directory(paths[0].parent)
    return gone


def _unfinished(path: Path) -> list[Path]:
    return [one for one in path.parent.glob(f".{path.stem}.schema-*.db.unfinished*") if one.is_file()]


def _remove_unfinished(path: Path) -> None:
    for one in _unfinished(path):
        with file_errors(one):
            one.unlink(missing_ok=True)


def _database_size(path: Path) -> int:
    return sum(_size(path.with_name(path.name + suffix)) for suffix in ("", "-wal"))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _free(path: Path) -> int:
    with file_errors(path):
        found = os.statvfs(path.parent)
    return found.f_bavail * found.f_frsize
