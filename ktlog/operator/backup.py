"""Copies of a log, made while it runs: ``TARGET/2026-11-22T074100Z/``, one directory for each, with a manifest.

What is copied is of one moment: the small files first, then the map's database, then the log's, each in one snapshot.
So the map may lag behind the log and the heads behind both, as they do in a log that runs; none of them ever leads.

Immutable files (full tiles and bundles) are copied once, and linked into later copies. Nothing is linked with the log's
own directory: one damaged block must not damage both. ``MANIFEST.json`` is written last; without it there is no backup.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ktlog.config import ALL, Settings, with_setting
from ktlog.credential import has_credential
from ktlog.durable import FileLock, file_errors, make_directories, read_file, sync_directory, write_atomic
from ktlog.errors import EncodingError, StoreError
from ktlog.operator.create import PUBLIC_KEYS
from ktlog.operator.head import load_signed_head
from ktlog.operator.keys import PURPOSES
from ktlog.operator.mappending import load_pending
from ktlog.operator.stores import (
    database_moment,
    map_pending,
    map_signed_head,
    open_log,
    open_map,
    open_map_tiles,
    open_tiles,
    rules_document,
    signed_head,
)
from ktlog.pkd.canonical import parse_json
from ktlog.sqlitefile import database_errors, open_database
from ktlog.store.documents import Document
from ktlog.store.tilefiles import CHECKPOINT
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.tiles import bundles_between, tiles_between

MANIFEST = "MANIFEST.json"
VERSION = 1
CONFIGURATION = "ktlog.toml"
FILES_OF_ITS_OWN: Mapping[str, str] = {"store": "", "store_file": "", "role": ALL}
"""Settings of a copy, whatever the log's are: it is in files, and whole."""
SMALL = (CONFIGURATION, PUBLIC_KEYS, "keys.jsonl", "publish.policy", "cosigners", "rules.json")
TRIES = 50
CHUNK = 1 << 20
PAUSE_SECONDS = 0.1
_NAME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{6}Z(-\d+)?")

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Manifest:
    """What a backup holds. files: by path, SHA-256 in hex and size in bytes. Times are Unix seconds.

    size, root: of the log. erasures: how many it had. map_size, map_input: leaves of the output log, and the entries
    that the newest is of. published: entries of the published checkpoint; 0 for none. keys: whether the secret keys
    that are files are in it. tiles: whether the published files are; those in an object store are not.
    """

    origin: str
    time: int
    size: int
    root: bytes
    erasures: int
    map_size: int
    map_input: int
    published: int
    keys: bool
    tiles: bool
    files: dict[str, tuple[str, int]]


def format_manifest(manifest: Manifest) -> bytes:
    return json.dumps({
        "version": VERSION, "origin": manifest.origin, "time": manifest.time, "size": manifest.size,
        "root": encode_base64(manifest.root), "erasures": manifest.erasures, "map-size": manifest.map_size,
        "map-input": manifest.map_input, "published": manifest.published, "keys": manifest.keys,
        "tiles": manifest.tiles,
        "files": {path: {"sha256": digest, "size": size} for path, (digest, size) in sorted(manifest.files.items())},
    }, indent=1).encode() + b"\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of one backup.

    Raises:
        StoreError: ``NoBackup``, there is none; ``BadManifest``.
    """
    data = read_file(directory / MANIFEST)
    if data is None:
        raise StoreError("NoBackup", f"{directory} has no {MANIFEST}: it is no backup, or one that was not finished")
    try:
        found = parse_json(data)
        files = {path: (str(one["sha256"]), int(one["size"])) for path, one in found["files"].items()}
        if found["version"] != VERSION or any(not _is_safe(path) for path in files):
            raise EncodingError("BadManifest", "it is of another version, or names files elsewhere")
        numbers = [found[name] for name in ("time", "size", "erasures", "map-size", "map-input", "published")]
        if any(type(number) is not int or number < 0 for number in numbers):
            raise EncodingError("BadManifest", "a number in it is none")
        return Manifest(
            found["origin"], found["time"], found["size"], decode_base64(found["root"], 32), found["erasures"],
            found["map-size"], found["map-input"], found["published"], bool(found["keys"]), bool(found["tiles"]), files,
        )
    except (EncodingError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError("BadManifest", f"{directory / MANIFEST}: {error}") from None


def left_out(settings: Settings, manifest: Manifest) -> dict[str, str]:
    """The log's keys that are not in a backup with keys, by purpose, and where each of them is."""
    signer = f", or with the signer at {settings.signer}" if settings.signer else ""
    unseen = f"not in DIR/keys: a systemd credential of the log's unit, perhaps{signer}"
    return {
        purpose: f"the systemd credential {purpose}" if has_credential(purpose) else unseen
        for purpose in PURPOSES if manifest.keys and f"keys/{purpose}" not in manifest.files
    }


def _is_safe(path: str) -> bool:
    return not path.startswith("/") and all(part not in ("", ".", "..") for part in path.split("/"))


def generations(target: Path) -> list[Path]:
    """Every finished backup in *target*, the oldest first."""
    if not target.is_dir():
        return []
    return sorted(path for path in target.iterdir() if _NAME.fullmatch(path.name) and (path / MANIFEST).is_file())


def back_up(
    settings: Settings, target: Path, *, with_keys: bool = False, now: Callable[[], int] = lambda: int(time.time()),
    progress: Progress = lambda *_: None,
) -> tuple[Path, Manifest]:
    """Make one more backup in *target*; returns where it is.

    Raises:
        UsageError: ``BadSwitch``: of a log in a database, whose ``ktlog.toml`` cannot be changed to name none.
        StoreError: ``WrongTarget``: it holds backups of another log; ``Locked``; those of reading and writing.
    """
    with file_errors(target):
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
    with FileLock(target / "backup.lock"):
        earlier = generations(target)
        previous = read_manifest(earlier[-1]) if earlier else None
        if previous is not None and previous.origin != settings.origin:
            raise StoreError("WrongTarget", f"{target} holds backups of {previous.origin}")
        for unfinished in target.glob(".*.unfinished"):
            shutil.rmtree(unfinished, ignore_errors=True)
        name = _name(now(), earlier)
        work = target / f".{name}.unfinished"
        with file_errors(work):
            work.mkdir(mode=0o700)
        copy = _Copy(settings, work, earlier[-1] if earlier else None, previous, progress)
        manifest = copy.run(with_keys, now())
        write_atomic(work / MANIFEST, format_manifest(manifest), mode=0o600)
        with file_errors(work):
            work.rename(target / name)
        sync_directory(target)
        return target / name, manifest


def _name(now: int, earlier: list[Path]) -> str:
    name = time.strftime("%Y-%m-%dT%H%M%SZ", time.gmtime(now))
    taken = {path.name for path in earlier}
    return next(one for one in (name, *(f"{name}-{i}" for i in range(2, 10_000))) if one not in taken)


class _Copy:
    """One backup under way. previous: the newest finished one, whose unchanged files are linked."""

    def __init__(
        self, settings: Settings, work: Path, before: Path | None, previous: Manifest | None, progress: Progress
    ) -> None:
        self._settings = settings
        self._work = work
        self._before = before
        self._known = {} if previous is None else previous.files
        self._progress = progress
        self._files: dict[str, tuple[str, int]] = {}

    def run(self, with_keys: bool, now: int) -> Manifest:
        settings = self._settings
        _require_schema(settings)
        local = settings.place is None
        for name in SMALL:
            self._small(name)
        if settings.uses_postgres:
            self._put_settings()
            self._document("rules.json", rules_document(settings))
        for policy in sorted(settings.replica_directory.glob("*.policy")):
            self._small(f"replicas/{policy.name}")
        # The order: whatever speaks of a tree is read before that tree.
        published = self._checkpoint("tiles", open_tiles(settings, read_only=True).checkpoint())
        self._document("signed-head.json", signed_head(settings))
        map_size, map_input = self._map()
        map_published = self._checkpoint("tiles/map", open_map_tiles(settings, read_only=True).checkpoint())
        with self._moment(settings.database) as moment:
            self._database("log.db", moment.copy_log)
        self._small("journal.jsonl")  # after the log: it knows of every erasure that the copy has, or of more
        size, root, erasures = self._read_log()
        if local:
            self._tiles("tiles", published)
            self._tiles("tiles/map", min(map_published, map_size))
        if with_keys:
            with file_errors(settings.keys):
                (self._work / "keys").mkdir(mode=0o700)
                names = sorted(os.listdir(settings.keys))
            for name in names:
                self._small(f"keys/{name}")
        for directory in [self._work, *(path for path in self._work.rglob("*") if path.is_dir())]:
            sync_directory(directory)
        return Manifest(
            settings.origin, now, size, root, erasures, map_size, map_input, published, with_keys, local, self._files
        )

    # Files

    def _put(self, path: str, data: bytes, mode: int = 0o600) -> None:
        place = self._work / path
        make_directories(self._work, place.parent)
        write_atomic(place, data, mode=mode)
        self._files[path] = hashlib.sha256(data).hexdigest(), len(data)

    def _small(self, path: str) -> None:
        data = read_file(self._settings.directory / path)
        if data is not None:
            self._put(path, data)

    def _document(self, path: str, document: Document) -> None:
        data = document.read()
        if data is not None:
            self._put(path, data)

    def _put_settings(self) -> None:
        """The copy is a log in files: ``ktlog.toml`` says so, and what it was is beside it."""
        was = read_file(self._settings.directory / CONFIGURATION) or b""
        text = was.decode("utf-8")
        for name, value in FILES_OF_ITS_OWN.items():
            text = with_setting(text, name, value)
        self._put(CONFIGURATION, text.encode())
        self._put(f"{CONFIGURATION}.postgresql", was)

    def _checkpoint(self, prefix: str, note: bytes | None) -> int:
        if note is None:
            return 0
        self._put(f"{prefix}/{CHECKPOINT}", note, 0o644)
        try:
            return parse_signed_checkpoint(note)[1].size
        except EncodingError as error:
            raise StoreError("BadCheckpoint", f"{prefix}/{CHECKPOINT} is damaged: {error.message}") from None

    def _tiles(self, prefix: str, size: int) -> None:
        """Every full tile and bundle of the published tree, and its right edge."""
        tiles = [*tiles_between(0, size), *bundles_between(0, size)]
        made: set[Path] = set()
        for done, tile in enumerate(tiles):
            path = f"{prefix}/{tile.path}"
            place = self._work / path
            if place.parent not in made:
                make_directories(self._work, place.parent)
                made.add(place.parent)
            if not self._link(path):
                self._copy(path)
            self._progress(prefix, done + 1, len(tiles))

    def _link(self, path: str) -> bool:
        if self._before is None or path not in self._known:
            return False
        with suppress(OSError):
            os.link(self._before / path, self._work / path)
            self._files[path] = self._known[path]
            return True
        return False

    def _copy(self, path: str) -> None:
        source = read_file(self._settings.directory / path)
        if source is not None:  # else it was superseded meanwhile, and a restore makes it again
            self._put(path, source, 0o444)

    # Databases

    def _moment(self, path: Path) -> AbstractContextManager[Any]:
        """A moment of the database, or of the file *path*: what it holds then can be copied."""
        return database_moment(self._settings) if self._settings.uses_postgres else _file_moment(path)

    def _map(self) -> tuple[int, int]:
        """The map's database and what was signed of it, of one moment; its sizes."""
        head_document, pending_document = map_signed_head(self._settings), map_pending(self._settings)
        for _ in range(TRIES):
            with self._moment(self._settings.map_database) as moment:
                size, covered = moment.map_sizes()
                head, pending = load_signed_head(head_document), load_pending(pending_document)
                signed = 1 if head is None else head.size
                waiting = pending is not None and pending.leaf_index == size
                if self._settings.signer and head is None:
                    signed = size  # somebody else's signer keeps its last head to itself
                # Between two of its steps the one or the other is of another moment than the snapshot.
                if signed == size or (signed == size + 1 and waiting):
                    self._document("map-signed-head.json", head_document)
                    if waiting:
                        self._document("map-pending", pending_document)
                    if load_signed_head(head_document) == head:
                        self._database("map.db", moment.copy_map)
                        return size, covered
                    self._files.pop("map-pending", None)
                    (self._work / "map-pending").unlink(missing_ok=True)
            time.sleep(PAUSE_SECONDS)
        raise StoreError("MapMoves", "the map changed whenever it was looked at", hint="Try again.")

    def _database(self, name: str, copy: Callable[[Path, Progress], None]) -> None:
        place = self._work / name
        copy(place, self._progress)
        for suffix in ("-wal", "-shm"):
            place.with_name(name + suffix).unlink(missing_ok=True)
        digest, size = hash_file(place, sync=True)
        self._files[name] = digest, size
        self._progress(name, 1, 1)

    def _read_log(self) -> tuple[int, bytes, int]:
        """Where the copied log stands; opening it checks that it holds together."""
        settings = replace(self._settings, directory=self._work, **FILES_OF_ITS_OWN)
        with closing(open_log(settings, read_only=True)) as store:
            state = store.state()
            found = state.size, state.root, store.erasure_count()
        with closing(open_map(settings, read_only=True)) as map_store:
            if map_store.state().input_size > found[0]:
                raise StoreError("Corrupt", "the copy of the map is ahead of the copy of the log")
        for name in ("log.db", "map.db"):
            for suffix in ("-wal", "-shm"):
                (self._work / (name + suffix)).unlink(missing_ok=True)
        return found


class _FileMoment:
    """What a SQLite file holds at one moment: the transaction that *connection* is in."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def map_sizes(self) -> tuple[int, int]:
        return self._connection.execute("SELECT output_size, input_size FROM map_state").fetchone()

    def copy_log(self, place: Path, _progress: Progress) -> None:
        with file_errors(place):
            os.close(os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        with database_errors(place):
            copy = sqlite3.connect(place, isolation_level=None)
            try:
                copy.execute("PRAGMA journal_mode=MEMORY")
                self._connection.backup(copy)  # all pages in one step: one read transaction
            finally:
                copy.close()

    copy_map = copy_log


@contextmanager
def _file_moment(path: Path) -> Iterator[_FileMoment]:
    connection = open_database(path, read_only=True)
    try:
        with database_errors(path):
            connection.execute("BEGIN")
            yield _FileMoment(connection)
    finally:
        connection.close()


def _require_schema(settings: Settings) -> None:
    """A copy is opened by this code, which reads no store that it has not brought up to date."""
    try:
        open_log(settings, read_only=True).close()
        open_map(settings, read_only=True).close()
    except StoreError as error:
        if error.name != "OlderSchema":
            raise
        raise StoreError(
            error.name, error.message, hint="Take this backup with the release of ktlog that serves the log. Or stop"
            " the log and say ktlog migrate --dir DIR, which keeps a copy of its databases.",
        ) from None


def hash_file(path: Path, *, sync: bool = False) -> tuple[str, int]:
    """SHA-256 in hex and size, a piece at a time; *sync* makes it durable first."""
    digest, size = hashlib.sha256(), 0
    with file_errors(path), open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while piece := file.read(CHUNK):
            digest.update(piece)
            size += len(piece)
    return digest.hexdigest(), size


def check_files(directory: Path, manifest: Manifest) -> Iterator[str]:
    """What is wrong with the files of a backup, in words.

    Raises:
        StoreError: a file cannot be read at all.
    """
    for path, (digest, size) in manifest.files.items():
        if not (directory / path).is_file():
            yield f"{path} is not there"
        elif hash_file(directory / path) != (digest, size):
            yield f"{path} is not what it was"


def prune(target: Path, *, keep: int | None = None, erased: bool = False) -> list[Path]:
    """Remove old backups; the newest always stays. Returns what was removed.

    Args:
        keep: how many of the newest stay.
        erased: remove every backup that is from before an erasure that the newest one has: it holds what was erased.
    """
    found = generations(target)
    if not found:
        return []
    newest = read_manifest(found[-1])
    gone = []
    for place, path in enumerate(found[:-1]):
        old = keep is not None and place < len(found) - keep
        if old or (erased and read_manifest(path).erasures < newest.erasures):
            with file_errors(path):
                (path / MANIFEST).unlink()  # first: what is half removed is no backup
            shutil.rmtree(path, ignore_errors=True)
            gone.append(path)
    sync_directory(target)
    return gone
