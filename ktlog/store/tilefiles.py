"""Tiles, entry bundles and the checkpoint as files that a plain web server can serve.

The layout below the directory is that of the URLs: ``tile/0/x001/234``, ``tile/entries/000.p/5``,
``checkpoint``. Tiles are immutable and have mode 0444; the checkpoint is replaced. Everything in here
but the checkpoint's signatures and the map's updates follows from the log store, and can be written again from it.

Spec: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ktlog import durable
from ktlog.errors import StoreError
from ktlog.keymap.updates import parse_update_path
from ktlog.store.published import check_next, largest
from ktlog.tlog.tiles import TILE_WIDTH, parse_tile_path

CHECKPOINT = "checkpoint"
SETTLED_NS = 100_000_000
"""Far above the steps in which file systems tell time."""


class TileFiles:
    """``TileStore`` over the directory *root*: one writer, any number of readers.

    Args:
        root: what a web server would serve as "/". It must exist; ``TileFiles.create`` makes it.

    Raises:
        StoreError: "MissingStore".
    """

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            raise StoreError(
                "MissingStore", f"{self.root}: no such directory",
                hint="Check the path; a new directory is made by init only.",
            )
        self._lock = threading.Lock()
        self._prepared: set[Path] = set()
        self._made: set[Path] = set()  # directories whose names are durable
        self._checkpoint = str(self.root / CHECKPOINT)
        self._known: tuple[tuple[int, ...], bytes] | None = None  # the checkpoint, and what its file was

    @classmethod
    def create(cls, root: Path | str) -> TileFiles:
        """Make the directory *root*, whose parent exists, durably; one that exists is taken as it is."""
        root = Path(root).absolute()
        durable.make_directories(root.parent, root)
        return cls(root)

    def read(self, path: str) -> bytes | None:
        """Content of a tile, an entry bundle or an update, or None when there is no such file.

        Raises:
            EncodingError: "BadTilePath"; no file was touched.
        """
        return durable.read_file(self._file(path))

    def write_tiles(self, files: Mapping[str, bytes]) -> None:
        """Store every file durably. See ``ktlog.store.contracts.TileStore``.

        One fsync for each new file, one for each directory that files are added to, and one for each that is new.

        Raises:
            EncodingError: "BadTilePath"; nothing was written.
            StoreError: "ImmutableChanged", "DiskFull" and others of ``durable.write_atomic``; files
                before the offending one may be there.
        """
        targets = {self._file(path): data for path, data in files.items()}
        with self._lock:
            for directory in {target.parent for target in targets} - self._prepared:
                durable.make_directories(self.root, directory, self._made)
                self._made.update((directory, *directory.parents))
                durable.remove_leftovers(directory)
                self._prepared.add(directory)
            durable.write_once_all(targets)

    def remove_partials(self, path: str) -> int:
        """Remove the partial versions of a full tile. See ``ktlog.store.contracts.TileStore``.

        Nothing is synced: a name that comes back after the loss of power does no harm.

        Raises:
            EncodingError: "BadTilePath". StoreError: "NotFull", and those of ``durable.file_errors``.
        """
        full = self._file(path)
        directory = full.with_name(f"{full.name}.p")
        with self._lock, durable.file_errors(directory):
            if parse_tile_path(path).width != TILE_WIDTH or (directory.is_dir() and not full.is_file()):
                raise StoreError("NotFull", f"{full}: no full tile that could stand for its parts")
            if not directory.is_dir():
                return 0
            partials = [name for name in os.listdir(directory) if not name.startswith(".")]
            for name in partials:
                (directory / name).unlink()
            self._forget(directory)
            with suppress(OSError):  # with what a process left that died while it wrote
                directory.rmdir()
        return len(partials)

    def remove_update(self, path: str) -> None:
        """Remove an update of the map. See ``ktlog.store.contracts.TileStore``.

        Raises:
            EncodingError: "BadTilePath". StoreError: those of ``durable.file_errors``.
        """
        parse_update_path(path)
        file = self._file(path)
        with self._lock, durable.file_errors(file):
            file.unlink(missing_ok=True)
            with suppress(OSError):  # the folder of a thousand of them goes with the last
                file.parent.rmdir()
                self._forget(file.parent)

    def checkpoint(self) -> bytes | None:
        """The published checkpoint, a signed note, or None before the first. Read again when its file is another."""
        try:
            found = os.stat(self._checkpoint)
        except OSError:
            return durable.read_file(self._checkpoint)
        file = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        known = self._known
        if known is not None and known[0] == file:
            return known[1]
        note = durable.read_file(self._checkpoint)
        # A file that is this new could be replaced by one of the same size and time.
        if note is not None and len(note) == found.st_size and time.time_ns() - found.st_ctime_ns > SETTLED_NS:
            self._known = file, note
        return note

    def publish_checkpoint(self, note: bytes) -> None:
        """Replace the checkpoint. See ``ktlog.store.contracts.TileStore``.

        Raises:
            EncodingError: *note* is no checkpoint.
            Conflict: "WrongOrigin", "CheckpointWithdrawn", "CheckpointChanged".
            StoreError: "Corrupt", the published file is no checkpoint; others of
                ``durable.write_atomic``.
        """
        with self._lock:
            check_next(note, durable.read_file(self._checkpoint), self._checkpoint)
            durable.write_atomic(self.root / CHECKPOINT, note)

    def _forget(self, directory: Path) -> None:
        self._prepared.discard(directory)
        self._made.discard(directory)

    def _file(self, path: str) -> Path:
        largest(path)  # letters, digits and "/" only: nothing in it leads out of the directory
        return self.root / path
