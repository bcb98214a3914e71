"""Where the log in a directory keeps its entries, its map and its published files: the one place that opens them.

Everything else of the operator's side and of the web workers works on the contracts of ``ktlog.store.contracts``.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import ModuleType
from typing import Any

from ktlog.config import MAP_MMD_SECONDS, Settings
from ktlog.durable import file_errors, make_directories, read_secret_file
from ktlog.errors import StoreError, UsageError
from ktlog.keymap.output import MapConfig, format_config
from ktlog.operator.rules import RulesFile, RulesReader, RulesRow
from ktlog.operator.sweep import Sweep
from ktlog.store import upgrade
from ktlog.store.contracts import LogStore, TileStore
from ktlog.store.documents import Document, FileDocument
from ktlog.store.mapcontract import MapStore
from ktlog.store.mapdb import SqliteMapStore
from ktlog.store.place import Place
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles

MAX_URL_BYTES = 4096


def create_stores(settings: Settings) -> None:
    """Begin the log's store and its published files. The map's come with :func:`create_map`.

    Raises:
        StoreError: "StoreExists".
    """
    url = database_url(settings)
    if url is None:
        SqliteStore.create(settings.database, origin=settings.origin, dialect=settings.dialect).close()
    else:
        _postgres().PostgresStore.create(url, origin=settings.origin, dialect=settings.dialect).close()
    create_tiles(settings)


def database_url(settings: Settings) -> str | None:
    """The URL of the log's PostgreSQL database, with its password; None where SQLite files are used.

    Raises:
        StoreError: "MissingSecret", "UnsafeSecret", "BadSecret": what is wrong with ``store_file``.
        UsageError: "BadStore", it holds no URL.
    """
    if not settings.store_file:
        return settings.store or None
    path = settings.store_file_path
    try:
        lines = read_secret_file(path, MAX_URL_BYTES).decode("utf-8").split()
    except UnicodeDecodeError:
        lines = []
    if len(lines) != 1:
        raise UsageError("BadStore", f"{path} must hold one line: postgresql://USER:PASSWORD@HOST/DATABASE")
    return lines[0]


def check_database(settings: Settings) -> None:
    """Find out whether a new log's database can be used, before anything else is made for it.

    Raises:
        StoreError, UsageError: "StoreExists"; those of :func:`database_url` and of ``PgConnections``.
    """
    url = database_url(settings)
    if url is None:
        return
    refuse_existing = _postgres().refuse_existing
    connections = _postgres("pgconnections").PgConnections(url, read_only=False)
    try:
        connections.read(lambda db: refuse_existing(db, connections.where))
    finally:
        connections.close()


def _postgres(module: str = "postgres") -> ModuleType:
    """A module of ``ktlog.store`` that only who has a PostgreSQL database can import."""
    try:
        return importlib.import_module(f"ktlog.store.{module}")
    except ImportError:
        raise StoreError(
            "MissingExtra", "a log in PostgreSQL needs psycopg, which is not installed",
            hint="pip install 'ktlog[postgres]'",
        ) from None


def look_at_database(url: str) -> upgrade.DatabaseUpgrade:
    """See ``ktlog.store.pgupgrade.look``."""
    return _postgres("pgupgrade").look(url)


def database_moment(settings: Settings) -> AbstractContextManager[Any]:
    """See ``ktlog.store.pgback.snapshot``; of a log that is in a database."""
    return _postgres("pgback").snapshot(database_url(settings))


def open_log(settings: Settings, *, read_only: bool = False) -> LogStore:
    """The log itself. Whoever opens it closes it.

    A writer brings a SQLite file to this code's schema, and keeps a copy of what it was.

    Raises:
        StoreError: "UnfinishedMove"; "NoRoom", the disk has none for that copy; those of the stores.
    """
    url = database_url(settings)
    if url is not None:
        _refuse_left_files(settings)
        return _postgres().PostgresStore.open(url, origin=settings.origin, read_only=read_only)
    if not read_only:
        upgrade.prepare(settings.database)
    return SqliteStore.open(settings.database, origin=settings.origin, read_only=read_only)


def bring_up(settings: Settings) -> None:
    """Bring the SQLite files of a log that nobody serves to this code's schema, where there is another copy of them.

    Raises:
        StoreError: those of the stores.
    """
    if database_url(settings) is None:
        SqliteStore.open(settings.database, origin=settings.origin).close()
        SqliteMapStore.open(
            settings.map_database, origin=settings.origin, config=format_config(map_config(settings))
        ).close()


def _refuse_left_files(settings: Settings) -> None:
    """A move to the database that was cut short leaves files that could be served again by a slip of a setting."""
    with file_errors(settings.database):
        if settings.database.exists():
            raise StoreError(
                "UnfinishedMove", f"{settings.database} is there still, and the log is in a database",
                hint="Say ktlog migrate-store again, as before: it takes the old files their names away.",
            )


def map_config(settings: Settings) -> MapConfig:
    """What leaf 0 of the map's output log says."""
    return MapConfig(
        settings.origin, settings.dialect, mmd=MAP_MMD_SECONDS, heartbeat=settings.heartbeat_seconds,
        notice=settings.notice_seconds,
    )


def create_map(settings: Settings) -> None:
    """Begin the map's store."""
    url, config = database_url(settings), format_config(map_config(settings))
    if url is None:
        SqliteMapStore.create(settings.map_database, settings.origin, config)
    else:
        _postgres("pgmap").PgMapStore.create(url, settings.origin, config)


def map_exists(settings: Settings) -> bool:
    """Whether there is a map's store to be opened."""
    url = database_url(settings)
    return settings.map_database.exists() if url is None else _postgres("pgmap").PgMapStore.exists(url)


def remove_map(settings: Settings) -> None:
    """Remove a map of which nothing was signed yet."""
    url = database_url(settings)
    if url is not None:
        _postgres("pgmap").PgMapStore.remove(url)
        return
    for suffix in ("", "-wal", "-shm"):
        with file_errors(settings.map_database):
            settings.map_database.with_name(settings.map_database.name + suffix).unlink(missing_ok=True)


def open_map(settings: Settings, *, read_only: bool = False, epoch: int | None = None) -> MapStore:
    """The map and its output log. Whoever opens it closes it.

    A writer brings a SQLite file to this code's schema, and keeps a copy of what it was.

    Args:
        epoch: which the caller claimed of the log, so that a database shared with other machines takes no update from
            whoever was fenced since.

    Raises:
        StoreError: "WrongOrigin"; "WrongConfig", the output log began with other settings; "NoRoom".
    """
    url = database_url(settings)
    if url is not None:
        return _postgres("pgmap").PgMapStore.open(
            url, origin=settings.origin, config=format_config(map_config(settings)), read_only=read_only, epoch=epoch
        )
    if not read_only:
        upgrade.prepare(settings.map_database, upgrade.look_at_map)
    return SqliteMapStore.open(
        settings.map_database, origin=settings.origin, config=format_config(map_config(settings)),
        read_only=read_only,
    )


def create_tiles(settings: Settings) -> None:
    """Make the directory of the published files. An object store needs none; it is only tried.

    Raises:
        StoreError: those of ``durable.make_directories``, of ``ktlog.store.s3probe.probe``; "MissingExtra".
    """
    if settings.place is None:
        TileFiles.create(settings.tiles)
    else:
        open_tiles(settings)


def create_map_tiles(settings: Settings) -> None:
    """Make that of the map's, below the one that is there.

    Raises:
        StoreError: "MissingStore", and others of ``durable.make_directories``.
    """
    if settings.place is None:
        make_directories(settings.tiles, settings.map_tiles)


def open_tiles(settings: Settings, *, read_only: bool = False) -> TileStore:
    """The log's published files. A reader's checkpoint of an object store may be half an interval old.

    Raises:
        StoreError: "MissingStore"; those of an object store, see :func:`create_tiles`. Unreachable.
    """
    place = settings.place
    return TileFiles(settings.tiles) if place is None else _open_objects(settings, place, place, read_only)


def open_map_tiles(settings: Settings, *, read_only: bool = False) -> TileStore:
    """The published files of the map's output log. Raises as :func:`open_tiles`."""
    place = settings.place
    if place is None:
        return TileFiles(settings.map_tiles)
    return _open_objects(settings, place, place.below(settings.map_tiles.name), read_only)


def _open_objects(settings: Settings, whole: Place, place: Place, read_only: bool) -> TileStore:
    try:
        from ktlog.store.s3 import S3Tiles
        from ktlog.store.s3bucket import Bucket
    except ImportError:
        raise StoreError(
            "MissingExtra", "the setting objects needs boto3, which is not installed", hint="pip install 'ktlog[s3]'"
        ) from None
    if read_only:
        return S3Tiles(Bucket(place), fresh_seconds=settings.checkpoint_interval_ms / 2000)
    return S3Tiles(Bucket(place), spell=_probed(whole))


@functools.cache
def _probed(place: Place) -> Callable[[str], str]:
    """How the store at *place* spells ETags. It is tried once for a process, before anything is written there."""
    from ktlog.store.s3bucket import Bucket
    from ktlog.store.s3probe import probe

    return probe(Bucket(place))


def log_sweep(settings: Settings, tiles: TileStore) -> Sweep:
    """What removes partial tiles of the log that nobody needs any more."""
    return Sweep(tiles, FileDocument(settings.swept), settings.partials_kept)


def map_sweep(settings: Settings, tiles: TileStore) -> Sweep:
    """The same of the map's output log."""
    return Sweep(tiles, FileDocument(settings.map_swept), settings.partials_kept)


def map_updates_swept(settings: Settings) -> Document:
    """Which update of the map is the next to go. May be lost."""
    return FileDocument(settings.map_updates_swept)


def signed_head(settings: Settings, *, epoch: int | None = None) -> Document:
    """The last head that the log's keys signed."""
    return _document(settings, settings.signed_head, epoch)


def map_signed_head(settings: Settings, *, epoch: int | None = None) -> Document:
    """The same of the map's output log."""
    return _document(settings, settings.map_signed_head, epoch)


def rules_document(settings: Settings, *, epoch: int | None = None) -> Document:
    """Whose messages are taken; see ``ktlog.operator.rules``."""
    return _document(settings, settings.rules, epoch)


def rules_reader(settings: Settings) -> RulesReader:
    """The same for whoever asks before each message."""
    url = database_url(settings)
    if url is None:
        return RulesFile(settings.rules, FileDocument(settings.rules).read)
    row = _postgres("pgdocuments").PgDocumentReader(url, settings.rules.stem)
    return RulesRow(str(row), row.read)


def map_pending(settings: Settings, *, epoch: int | None = None) -> Document:
    """The output leaf that waits for its cosignatures."""
    return _document(settings, settings.map_pending, epoch)


def _document(settings: Settings, path: Path, epoch: int | None) -> Document:
    """A file; or a row of that name where the log is in a database, and other machines may write it too."""
    url = database_url(settings)
    return FileDocument(path) if url is None else _postgres("pgdocuments").PgDocument(url, path.stem, epoch=epoch)
