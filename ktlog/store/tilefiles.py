"""Tiles, entry bundles and the checkpoint as files that a plain web server can serve.

The layout below the directory is that of the URLs: ``tile/0/x001/234``, ``tile/entries/000.p/5``,
``checkpoint``. Tiles are immutable and have mode 0444; the checkpoint is replaced. Everything in here
but the checkpoint's signatures follows from the log store, and can be written again from it.

Spec: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path

from ktlog import durable
from ktlog.errors import Conflict, EncodingError, StoreError
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.tiles import parse_tile_path

CHECKPOINT = "checkpoint"


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

    @classmethod
    def create(cls, root: Path | str) -> TileFiles:
        """Make the directory *root*, whose parent exists, durably; one that exists is taken as it is."""
        root = Path(root).absolute()
        durable.make_directories(root.parent, root)
        return cls(root)

    def read(self, path: str) -> bytes | None:
        """Content of a tile or an entry bundle, or None when there is no such file.

        Raises:
            EncodingError: "BadTilePath", from ``parse_tile_path``; no file was touched.
        """
        return durable.read_file(self._file(path))

    def write_tiles(self, files: Mapping[str, bytes]) -> None:
        """Store every file durably. See ``ktlog.store.contracts.TileStore``.

        One fsync for each new file and one for each directory that files are added to.

        Raises:
            EncodingError: "BadTilePath"; nothing was written.
            StoreError: "ImmutableChanged", "DiskFull" and others of ``durable.write_atomic``; files
                before the offending one may be there.
        """
        targets = {self._file(path): data for path, data in files.items()}
        with self._lock:
            for directory in {target.parent for target in targets} - self._prepared:
                durable.make_directories(self.root, directory)
                durable.remove_leftovers(directory)
                self._prepared.add(directory)
            durable.write_once_all(targets)

    def checkpoint(self) -> bytes | None:
        """The published checkpoint, a signed note, or None before the first."""
        return durable.read_file(self.root / CHECKPOINT)

    def publish_checkpoint(self, note: bytes) -> None:
        """Replace the checkpoint. See ``ktlog.store.contracts.TileStore``.

        Raises:
            EncodingError: *note* is no checkpoint.
            Conflict: "WrongOrigin", "CheckpointWithdrawn", "CheckpointChanged".
            StoreError: "Corrupt", the published file is no checkpoint; others of
                ``durable.write_atomic``.
        """
        _note, checkpoint = parse_signed_checkpoint(note)
        with self._lock:
            published = self.checkpoint()
            if published is not None:
                _check_successor(self._parse_published(published), checkpoint, published)
            durable.write_atomic(self.root / CHECKPOINT, note)

    def _file(self, path: str) -> Path:
        parse_tile_path(path)  # digits, "x" and "/" only: nothing in it leads out of the directory
        return self.root / path

    def _parse_published(self, published: bytes) -> Checkpoint:
        try:
            return parse_signed_checkpoint(published)[1]
        except EncodingError as error:
            raise StoreError(
                "Corrupt", f"{self.root / CHECKPOINT}: {error}",
                hint="It was published once. Find out what changed it before publishing another.",
            ) from error


def _check_successor(published: Checkpoint, checkpoint: Checkpoint, stored: bytes) -> None:
    """Refuse a checkpoint that takes back what was published."""
    if checkpoint.origin != published.origin:
        raise Conflict(
            "WrongOrigin", f"{checkpoint.origin} would replace the log {published.origin}", stored=stored
        )
    if checkpoint.size < published.size:
        raise Conflict(
            "CheckpointWithdrawn", f"size {checkpoint.size} is published after size {published.size}",
            stored=stored, hint="An older state was restored. Publishing it would be seen as a fork.",
        )
    if checkpoint.size == published.size and checkpoint.root != published.root:
        raise Conflict(
            "CheckpointChanged", f"another root for size {checkpoint.size} was published already",
            stored=stored, hint="Publishing it would be a fork. Do not sign anything with this log's keys.",
        )
