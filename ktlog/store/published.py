"""What may be published under which name, and what may take a published checkpoint's place."""

from __future__ import annotations

from ktlog.errors import Conflict, EncodingError, StoreError
from ktlog.keymap.updates import MAX_UPDATE_BYTES, parse_update_path
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.tiles import ENTRIES, MAXIMUM_ENTRY_BYTES, parse_tile_path
from ktlog.tlog.tree import HASH_BYTES


def is_update(path: str) -> bool:
    """Whether a file of that name goes some day: it is an update of the map, and no tile."""
    return path.startswith("updates/")


def largest(path: str) -> int:
    """How many bytes the immutable file *path* has at most: a tile, an entry bundle or an update of the map.

    Raises:
        EncodingError: "BadTilePath", it is the name of none.
    """
    if is_update(path):
        parse_update_path(path)
        return MAX_UPDATE_BYTES
    tile = parse_tile_path(path)
    return tile.width * (2 + MAXIMUM_ENTRY_BYTES if tile.level == ENTRIES else HASH_BYTES)


def check_next(note: bytes, stored: bytes | None, where: str) -> None:
    """Refuse *note* if it takes back what *stored*, published at *where*, says.

    Raises:
        EncodingError: *note* is no checkpoint.
        Conflict: "WrongOrigin", "CheckpointWithdrawn", "CheckpointChanged".
        StoreError: "Corrupt", *stored* is no checkpoint.
    """
    checkpoint = parse_signed_checkpoint(note)[1]
    if stored is None:
        return
    try:
        published = parse_signed_checkpoint(stored)[1]
    except EncodingError as error:
        raise StoreError(
            "Corrupt", f"{where}: {error}",
            hint="It was published once. Find out what changed it before publishing another.",
        ) from error
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
