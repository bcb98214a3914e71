"""What one output leaf changed in the map: every new leaf, what was in its place, and the hashes beside.

From an update anybody computes the map's root before it and after it, without a text, a key or another leaf. As both
roots are committed to by output leaves k - 1 and k, exactly the listed leaves changed, and none went: a place that no
change leads to is one of the hashes, and stands in both roots.

>>> from ktlog.keymap.prefix import prove
>>> update = build_update(1, {bytes(32): b"\\x01" * 32}, prove([], [bytes(32)]))
>>> update_roots(parse_update(format_update(update)))[0] == MISSING
True

The shape is that of KEYTRANS's AuditorUpdate, whose searches are made in the map as it was. Here an entry says what
its search found and what is there now. Nothing is ever removed, so there is no list of that.

Spec: docs/protocol.md, section 6; KEYTRANS "Auditor Updates"; directory map v1 §4.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ktlog.errors import EncodingError, Invalid
from ktlog.keymap.prefix import (
    HASH_BYTES,
    MAX_DEPTH,
    MISSING,
    Kind,
    PrefixLeaf,
    PrefixProof,
    Search,
    bit,
    hash_parent,
    same_prefix,
    subtree_hash,
)
from ktlog.tlog.binary import Reader, u8, u16, u32, u64
from ktlog.tlog.tiles import number_path, parse_number_path

HEADER = b"ktlog-map-update/v1\n"
NAME = "BadMapUpdate"
KEPT_SECONDS = 30 * 86400
"""How long after its leaf's time an update is served. Directory map §4."""
MAX_CHANGES = 65_536
"""No update is published of a leaf that changes more: whoever audits that leaf derives its map."""
MAX_UPDATE_BYTES = 64 << 20
_FOLDER = "updates/"


class Change(NamedTuple):
    """One index with a new leaf. commitment: the new one. found: what the search for it ended at in the map before."""

    index: bytes
    commitment: bytes
    found: Search

    @property
    def before(self) -> bytes | None:
        """The commitment until then; None for an index that had no leaf."""
        return self.found.leaf.commitment if self.found.kind == Kind.INCLUSION and self.found.leaf else None


@dataclass(frozen=True, slots=True)
class MapUpdate:
    """leaf_index: of the output leaf. changes: by rising index. hashes: beside the paths, from left to right."""

    leaf_index: int
    changes: tuple[Change, ...]
    hashes: tuple[bytes, ...]


def update_path(leaf_index: int) -> str:
    """Where it is below the map's prefix.

    >>> update_path(1234)
    'updates/x001/234'
    """
    return _FOLDER + number_path(leaf_index)


def parse_update_path(path: str) -> int:
    """Inverse of :func:`update_path`. Raises EncodingError ``BadTilePath``; leaf 0 has no update."""
    number = parse_number_path(path.removeprefix(_FOLDER)) if path.startswith(_FOLDER) else 0
    if number == 0:
        raise EncodingError("BadTilePath", "not the path of a map's update")
    return number


# -- what an update says


def build_update(leaf_index: int, commitments: Mapping[bytes, bytes], proof: PrefixProof) -> MapUpdate:
    """The update that gives each index of *commitments* a new leaf.

    Args:
        proof: of the searches for exactly these indexes, in rising order, in the map before. Each finds another
            commitment than the new one.
    """
    return MapUpdate(
        leaf_index,
        tuple(
            Change(index, commitments[index], search)
            for index, search in zip(sorted(commitments), proof.searches, strict=True)
        ),
        proof.hashes,
    )


def update_roots(update: MapUpdate) -> tuple[bytes, bytes]:
    """The map's root before and after *update*.

    Raises:
        Invalid: ``BadMapUpdate``: it is of no map.
    """
    supply = iter(update.hashes)
    roots = _climb(update.changes, 0, len(update.changes), 0, supply)
    if next(supply, None) is not None:
        raise _bad("it holds more hashes than its changes need")
    return roots


def _climb(
    changes: tuple[Change, ...], start: int, end: int, depth: int, supply: Iterator[bytes]
) -> tuple[bytes, bytes]:
    if start == end:
        value = next(supply, None)
        if value is None:
            raise _bad("it holds fewer hashes than its changes need")
        return value, value
    shallowest = min(change.found.depth for change in changes[start:end])
    if shallowest < depth or depth > MAX_DEPTH + 1:
        raise _bad("a depth does not fit its neighbours'")
    if shallowest == depth:
        return _place(changes[start:end], depth)
    if depth > MAX_DEPTH:
        raise _bad("a search goes deeper than a map can be")
    border = start
    while border < end and not bit(changes[border].index, depth):
        border += 1
    before_left, after_left = _climb(changes, start, border, depth + 1, supply)
    before_right, after_right = _climb(changes, border, end, depth + 1, supply)
    return hash_parent(before_left, before_right), hash_parent(after_left, after_right)


def _place(changes: tuple[Change, ...], depth: int) -> tuple[bytes, bytes]:
    """A place where there was one leaf or none, before and after."""
    before = changes[0].found.leaf
    for change in changes:
        if change.found.depth != depth:
            raise _bad("a search ends where another goes on")
        if change.found.leaf != before:
            raise _bad("searches that end together found different leaves")
    after = [PrefixLeaf(change.index, change.commitment) for change in changes]
    if before is None:
        return MISSING, subtree_hash(after, depth)
    if all(leaf.index != before.index for leaf in after):
        after.append(before)
        after.sort()
    return before.hash, subtree_hash(after, depth)


# -- encoding


def format_update(update: MapUpdate) -> bytes:
    """Inverse of :func:`parse_update`."""
    parts = [HEADER, u64(update.leaf_index), u32(len(update.changes))]
    for index, commitment, found in update.changes:
        parts += index, commitment, u16(found.depth), u8(found.kind)
        if found.kind == Kind.OTHER_LEAF and found.leaf is not None:
            parts += found.leaf
        elif found.leaf is not None:
            parts.append(found.leaf.commitment)
    return b"".join((*parts, u32(len(update.hashes)), *update.hashes))


def parse_update(data: bytes) -> MapUpdate:
    """Read an update, in its one form; what it says is not checked against any root.

    Raises:
        EncodingError: ``BadMapUpdate``.
    """
    if len(data) > MAX_UPDATE_BYTES or not data.startswith(HEADER):
        raise EncodingError(NAME, "it is too long, or does not begin as an update does")
    read = Reader(data[len(HEADER):], NAME)
    leaf_index, count = read.u64(), read.u32()
    if leaf_index == 0 or count > MAX_CHANGES:
        raise read.refuse("it is of leaf 0, or of more changes than an update has")
    changes: list[Change] = []
    last = b""
    for _ in range(count):
        change = _change(read)
        if change.index <= last:
            raise read.refuse("its indexes do not rise")
        last = change.index
        changes.append(change)
    hashes = read.take(HASH_BYTES * read.u32())
    read.end()
    return MapUpdate(
        leaf_index, tuple(changes), tuple(hashes[at : at + HASH_BYTES] for at in range(0, len(hashes), HASH_BYTES))
    )


def _change(read: Reader) -> Change:
    index, commitment, depth, kind = read.take(HASH_BYTES), read.take(HASH_BYTES), read.u16(), read.u8()
    if depth > MAX_DEPTH + 1:
        raise read.refuse("a depth is out of range")
    leaf = None
    if kind == Kind.INCLUSION:
        leaf = PrefixLeaf(index, read.take(HASH_BYTES))
        if leaf.commitment == commitment:
            raise read.refuse("a leaf is listed that did not change")
    elif kind == Kind.OTHER_LEAF:
        leaf = PrefixLeaf(read.take(HASH_BYTES), read.take(HASH_BYTES))
        # Else a leaf from elsewhere would be pushed to where nobody looks for it.
        if leaf.index == index or not same_prefix(leaf.index, index, depth):
            raise read.refuse("the leaf that a search ended at does not lie where it went")
    elif kind != Kind.NOTHING:
        raise read.refuse("a search that ended in no known way")
    return Change(index, commitment, Search(Kind(kind), depth, leaf))


def _bad(what: str) -> Invalid:
    return Invalid(NAME, f"the map's update does not hold: {what}")
