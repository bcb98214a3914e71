"""What every store of the map has in common: how histories and frontiers are kept, and what a refusal says."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ktlog.errors import Conflict, StoreError
from ktlog.store.mapcontract import MapState
from ktlog.tlog.tree import Frontier

decode_frontier = lru_cache(maxsize=4)(Frontier.decode)
"""The same for every reader until the next update."""


def make_state(
    leaves: int, depth: int, root: bytes, input_size: int, erasures: int, output_frontier: bytes, output_size: int
) -> MapState:
    """The state in a row of the store.

    Raises:
        StoreError: ``Corrupt``: the size of the output log, which its guards go by, is not the frontier's.
        EncodingError: the frontier is none.
    """
    output = decode_frontier(output_frontier)
    if output.size != output_size:
        raise StoreError("Corrupt", f"the map's store: an output log of {output_size} leaves, and of {output.size}")
    return MapState(leaves, depth, root, input_size, erasures, output)


def join_history(leaves: Iterable[bytes]) -> bytes:
    """Each after its length in one byte.

    Raises:
        StoreError: ``Corrupt``: one is longer than a leaf can be.
    """
    leaves = tuple(leaves)
    if any(len(leaf) > 255 for leaf in leaves):
        raise StoreError("Corrupt", "the map's store: a leaf of a history is longer than any")
    return b"".join(len(leaf).to_bytes(1, "big") + leaf for leaf in leaves)


def split_history(data: bytes, end: int) -> tuple[bytes, ...]:
    """The first *end* of what :func:`join_history` joined."""
    found: list[bytes] = []
    at = 0
    while at < len(data) and len(found) < end:
        found.append(data[at + 1 : at + 1 + data[at]])
        at += 1 + data[at]
    return tuple(found)


def check_meta(
    where: object, stored: tuple[str, bytes, int] | None, *, origin: str, config: bytes, version: int, oldest: int
) -> None:
    """Refuse the map of another log, or one with other settings. *stored*: its origin, config and schema version.

    oldest: the oldest schema that the caller can use, or brings to *version*, which this code writes.

    Raises:
        StoreError: ``WrongOrigin``; ``WrongConfig``: the output log began with another configuration; ``NewerSchema``,
            ``OlderSchema``: it is other code's; ``Corrupt``.
    """
    if stored is None or type(stored[2]) is not int:
        raise StoreError("Corrupt", f"{where}: it does not say which map it holds")
    if stored[2] > version:
        raise StoreError(
            "NewerSchema", f"{where}: has schema {stored[2]}, and code for {version} must not use it",
            hint="Install the release of ktlog that made it, or a newer one.",
        )
    if stored[2] < oldest:
        raise StoreError(
            "OlderSchema", f"{where}: has schema {stored[2]}, {version} is needed",
            hint="Start the log once, or say ktlog migrate --dir DIR while it is stopped: its writer migrates the map.",
        )
    if stored[0] != origin:
        raise StoreError("WrongOrigin", f"{where}: is the map of {stored[0]}, not of {origin}")
    if stored[1] != config:
        raise StoreError(
            "WrongConfig", f"{where}: the output log began with other settings: {_differences(stored[1], config)}",
            hint="heartbeat_seconds and notice_seconds are for ever once the log was started: put them back.",
        )


def _differences(stored: bytes, wanted: bytes) -> str:
    pairs = zip(stored.decode("ascii", "replace").split("\n"), wanted.decode("ascii").split("\n"), strict=False)
    return "; ".join(f"{old!r}, now {new!r}" for old, new in pairs if old != new)


def advanced(where: object, stored: MapState) -> Conflict:
    """The error for an update that expected another state than *stored*."""
    return Conflict("MapAdvanced", f"{where}: the map is no longer what was read", stored=stored)
