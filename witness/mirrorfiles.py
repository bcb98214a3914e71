"""The entries and tiles of one mirrored log, as files: what is served, and what a cosignature of the mirror is about.

Every file is written once and is on the disk before the call that writes it returns. A bundle is written when its
package was verified, so a partial one is always the end of a checkpoint that the log signed; the tile of its leaf
hashes comes with it, and a tile of a higher level once it is full. The partial tiles of a checkpoint are written, and
all of its right edge is read back and folded into its root, before it is cosigned. Spec: C2SP tlog-tiles.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ktlog import durable
from ktlog.errors import EncodingError, Invalid, NotLogged, StoreError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.tiles import (
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    TileHashReader,
    bundles_between,
    entry_bundle_path,
    format_bundle,
    parse_bundle,
    parse_tile_path,
    tile_path,
    tiles_between,
)
from ktlog.tlog.tree import HASH_BYTES, hash_leaf
from witness.mirrorwire import Span, hash_leaves

#: Roots of full tiles kept in memory. To close a tile of the next level takes 256 of them.
REMEMBERED = 4096


@dataclass(frozen=True)
class Verified:
    """A package that holds: the entries from where its bundle begins, and their leaf hashes."""

    span: Span
    entries: tuple[bytes, ...]
    leaves: Sequence[bytes]


class MirrorFiles:
    """The files of one log below *root*/*name*. One writer at a time."""

    def __init__(self, root: Path, name: str) -> None:
        self._logs, self.root = root, root / name
        self._prepared: set[Path] = set()
        self._roots: dict[tuple[int, int], bytes] = {}

    def read(self, path: str) -> bytes | None:
        """A tile or an entry bundle; None when it is not there.

        Raises:
            EncodingError: "BadTilePath"; no file was touched.
        """
        parse_tile_path(path)  # digits, "x" and "/" only: nothing in it leads out of the directory
        return durable.read_file(self.root / path)

    def entries(self, first: int, end: int, next_entry: int) -> tuple[bytes, ...]:
        """The entries [first, end) of one bundle, which begins at *first*, when all below *next_entry* are held.

        Raises:
            StoreError: "EntriesMissing".
        """
        if first == end:
            return ()
        number = first // TILE_WIDTH
        # The full one last again: it may have taken the partial one's place just now.
        for width in (TILE_WIDTH, min(next_entry - first, TILE_WIDTH), TILE_WIDTH):
            data = self.read(entry_bundle_path(number, width))
            if data is not None:
                try:
                    return tuple(parse_bundle(data, width)[: end - first])
                except EncodingError as error:
                    raise StoreError("EntriesMissing", f"{self.root}: {error.message}") from error
        raise StoreError("EntriesMissing", f"{self.root}: {entry_bundle_path(number)} is not there, nor its part",
                         hint="Put the mirror's files back; its record says that they were written.")

    def save(self, packages: Sequence[Verified], next_entry: int) -> int:
        """Write what was verified, and every tile that it fills; returns how many bytes.

        Args:
            packages: neighbours, of which the first begins at or before *next_entry*.
        """
        files = {}
        for package in packages:
            number, width = package.span.first // TILE_WIDTH, len(package.entries)
            files[entry_bundle_path(number, width)] = format_bundle(package.entries)
            files[tile_path(0, number, width)] = b"".join(package.leaves)
            if width == TILE_WIDTH:
                self._remember(0, number, hash_leaves(package.leaves))
        held = packages[-1].span.end
        for tile in tiles_between(_full(next_entry), _full(held)):
            if tile.level and tile.width == TILE_WIDTH:
                files[tile.path] = self._hashes(tile)
        return self._write(files)

    def complete(self, old_size: int, checkpoint: Checkpoint, next_entry: int) -> int:
        """Write the partial tiles of *checkpoint*, all of whose entries are held; returns how many bytes.

        Args:
            old_size: of the checkpoint that was completed before.

        Raises:
            StoreError: "Corrupt": what is on the disk is not that tree.
        """
        size = checkpoint.size
        files = {}
        first = _full(size)
        if first < size:
            entries = self.entries(first, size, next_entry)
            files[entry_bundle_path(first // TILE_WIDTH, len(entries))] = format_bundle(entries)
            files[tile_path(0, first // TILE_WIDTH, len(entries))] = b"".join(map(hash_leaf, entries))
        for tile in tiles_between(old_size, size):
            if tile.level and tile.width < TILE_WIDTH:
                files[tile.path] = self._hashes(tile)
        written = self._write(files)
        self.check(checkpoint)
        return written

    def check(self, checkpoint: Checkpoint) -> None:
        """Read the right edge of that tree, and fold it into its root.

        Raises:
            StoreError: "Corrupt".
        """
        try:
            TileHashReader(self._fetch, checkpoint.size, checkpoint.root)([])
        except (Invalid, NotLogged) as error:
            raise StoreError(
                "Corrupt", f"{self.root} does not hold the tree of {checkpoint.size} leaves: {error.message}",
                hint="Put the mirror's files back as they were; its record says that they were written.",
            ) from error

    def check_all(self, checkpoint: Checkpoint) -> None:
        """Read every entry and every tile of that tree, and hold them against each other and its root.

        Raises:
            StoreError: "Corrupt", "EntriesMissing".
        """
        reader = TileHashReader(self._fetch, checkpoint.size, checkpoint.root)
        for bundle in bundles_between(0, checkpoint.size):
            first, end = bundle.number * TILE_WIDTH, bundle.number * TILE_WIDTH + bundle.width
            entries = self.entries(first, end, checkpoint.size)
            try:
                holds = reader([(0, index) for index in range(first, end)]) == list(map(hash_leaf, entries))
            except (Invalid, NotLogged) as error:
                raise StoreError("Corrupt", f"{self.root}: {error.message}") from error
            if not holds:
                raise StoreError("Corrupt", f"{self.root / bundle.path} does not have the entries that were logged")

    def tidy(self, old_size: int, new_size: int) -> int:
        """Remove the partial versions of what is full by now; returns how many bytes. No harm if one comes back."""
        freed = 0
        for tile in (*bundles_between(old_size, new_size), *tiles_between(old_size, new_size)):
            if tile.width == TILE_WIDTH:
                freed += self._remove_partials(self.root / tile.path)
        return freed

    # --- inside

    def _remove_partials(self, full: Path) -> int:
        directory = full.with_name(f"{full.name}.p")
        if not directory.is_dir() or not full.is_file():
            return 0
        freed = 0
        with durable.file_errors(directory):
            for entry in list(os.scandir(directory)):
                freed += entry.stat().st_size
                os.unlink(entry.path)
            self._prepared.discard(directory)
            os.rmdir(directory)
        return freed

    def _write(self, files: dict[str, bytes]) -> int:
        targets = {self.root / path: data for path, data in files.items() if not (self.root / path).is_file()}
        for directory in {target.parent for target in targets} - self._prepared:
            durable.make_directories(self._logs, directory)
            durable.remove_leftovers(directory)
            self._prepared.add(directory)
        # All of them: what is there has to be the same, and its name is synced again.
        durable.write_once_all({self.root / path: data for path, data in files.items()})
        return sum(map(len, targets.values()))

    def _hashes(self, tile: Tile) -> bytes:
        """The content of a tile above level 0: each of its hashes is the root of a full tile below."""
        level, first = int(tile.level) - 1, tile.number * TILE_WIDTH
        hashes = [self._root(level, number) for number in range(first, first + tile.width)]
        if tile.width == TILE_WIDTH:
            self._remember(level + 1, tile.number, hash_leaves(hashes))
        return b"".join(hashes)

    def _root(self, level: int, number: int) -> bytes:
        known = self._roots.get((level, number))
        if known is None:
            data = self.read(tile_path(level, number))
            if data is None or len(data) != TILE_WIDTH * HASH_BYTES:
                raise StoreError("EntriesMissing", f"{self.root / tile_path(level, number)} is missing, or damaged",
                                 hint="Put the mirror's files back; its record says that they were written.")
            hashes = [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]
            known = self._remember(level, number, hash_leaves(hashes))
        return known

    def _remember(self, level: int, number: int, root: bytes) -> bytes:
        self._roots[level, number] = root
        if len(self._roots) > REMEMBERED:
            del self._roots[next(iter(self._roots))]
        return root

    def _fetch(self, path: str) -> bytes:
        data = self.read(path)
        if data is None:
            raise NotLogged("NoTile", f"{path} is missing")
        return data


def _full(size: int) -> int:
    """The entries of *size* that are in full bundles."""
    return size - size % TILE_WIDTH


def served(path: str, size: int) -> bool:
    """Whether a mirror whose checkpoint has *size* shows that tile or bundle.

    Raises:
        EncodingError: "BadTilePath".
    """
    tile = parse_tile_path(path)
    level = tile.level if isinstance(tile.level, int) else 0
    return tile.number * TILE_WIDTH + tile.width <= size >> level * TILE_HEIGHT
