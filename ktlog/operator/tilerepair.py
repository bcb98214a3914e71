"""Makes damaged published files again: tiles and bundles, which follow from what the stores have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

from ktlog.config import Settings
from ktlog.durable import file_errors, sync_directory
from ktlog.errors import StoreError, UsageError
from ktlog.operator.fsck import Examined
from ktlog.operator.stores import open_log, open_map, open_map_tiles, open_tiles
from ktlog.store.contracts import TileStore
from ktlog.tlog.tiles import ENTRIES, TILE_HEIGHT, TILE_WIDTH, format_bundle, parse_tile_path
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash

Entries = Callable[[int, int], Sequence[bytes]]


def repair_tiles(settings: Settings, examined: Examined) -> int:
    """Write every file again that *examined* found damaged or missing; returns how many.

    Their content is decided: a published file never changes. So the log may run meanwhile.

    Raises:
        UsageError: ``NotRepairable``: something else is damaged, from which they would have to follow.
        StoreError: those of the stores.
    """
    files = {"TileMissing", "TileDamaged", "BundleMissing", "BundleDamaged"}
    others = sorted(set(examined.findings.counts) - files)
    if others:
        raise UsageError(
            "NotRepairable", f"tiles follow from what is damaged, too: {', '.join(others)}",
            hint="Restore that first (docs/backup.md).",
        )
    log_paths, map_paths = (list(dict.fromkeys(paths)) for paths in examined.broken)
    if log_paths:
        with closing(open_log(settings, read_only=True)) as store:
            _write(open_tiles(settings), settings.tiles, log_paths, store.entries)
    if map_paths:
        with closing(open_map(settings, read_only=True)) as map_store:
            _write(open_map_tiles(settings), settings.map_tiles, map_paths, map_store.output_leaves)
    return len(log_paths) + len(map_paths)


def _write(tiles: TileStore, root: Path, paths: Sequence[str], entries: Entries) -> None:
    for path in paths:
        data = make_file(path, entries)
        discard = getattr(tiles, "discard", None)
        if discard is not None:
            discard(path)
        elif (root / path).exists():
            with file_errors(root / path):
                (root / path).unlink()
            sync_directory((root / path).parent)
        elif tiles.read(path) is not None:
            raise StoreError(
                "NotRepairable", f"{path} is damaged in an object store, which this program replaces nothing in",
                hint="Remove the object by your store's own means, then run this again.",
            )
        tiles.write_tiles({path: data})


def make_file(path: str, entries: Entries) -> bytes:
    """The content of one file."""
    tile = parse_tile_path(path)
    first = tile.number * TILE_WIDTH
    if tile.level == ENTRIES:
        return format_bundle(entries(first, first + tile.width))
    span = 1 << TILE_HEIGHT * int(tile.level)
    return b"".join(_subtree(entries, (first + place) * span, span) for place in range(tile.width))


def _subtree(entries: Entries, start: int, count: int) -> bytes:
    """Root of the complete subtree over *count* entries, a power of 256, from *start* on; reads 256 at a time."""
    if count <= TILE_WIDTH:
        return root_hash(count, leaf_reader(map(hash_leaf, entries(start, start + count))))
    part = count // TILE_WIDTH
    return root_hash(TILE_WIDTH, leaf_reader(_subtree(entries, start + at * part, part) for at in range(TILE_WIDTH)))
