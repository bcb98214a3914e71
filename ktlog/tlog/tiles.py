"""A tree as static files: tiles of 256 hashes, bundles of 256 entries, and a reader that trusts neither.

The tile ``(level, number)`` holds, for i in [0, width), the hash of the complete subtree
``(8·level, 256·number + i)``. A tile of fewer than 256 hashes is *partial* and lies on the right
edge; its path says how wide it is. Spec: c2sp.org/tlog-tiles.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ktlog.errors import EncodingError, Invalid, NotLogged, Unreachable, UsageError
from ktlog.tlog.encoding import MAXIMUM_INTEGER, parse_decimal
from ktlog.tlog.tree import HASH_BYTES, Node, complete_subtrees, fold_right, hash_level

TILE_HEIGHT = 8
TILE_WIDTH = 256
MAXIMUM_LEVEL = 63
MAXIMUM_ENTRY_BYTES = 65535

ENTRIES: Literal["entries"] = "entries"
Level = int | Literal["entries"]

GROUP_HEIGHT = 3
GROUP_WIDTH = 1 << GROUP_HEIGHT
"""Hashes of a tile that are verified by themselves once the tile was."""
UPPER_FOR_ONE = 16
"""Tiles of which the upper levels are kept, for each that is kept whole."""

_Place = tuple[int, int]  # level and number of a full tile
_Levels = list[list[bytes]]

_PATH = re.compile(r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([0-9]{1,3}))?", re.ASCII)


@dataclass(frozen=True)
class Tile:
    """A tile, or with level ``"entries"`` an entry bundle, of *width* (1..256) hashes or entries."""

    level: Level
    number: int
    width: int = TILE_WIDTH

    @property
    def path(self) -> str:
        """Where it lies below the log's prefix, without a leading slash."""
        return tile_path(self.level, self.number, self.width)


def number_path(number: int) -> str:
    """Three digits to a path element; all but the last begin with an x.

    >>> number_path(1234067)
    'x001/x234/067'
    """
    _check_tile(0, number, TILE_WIDTH)
    groups = [f"{number % 1000:03d}"]
    while number := number // 1000:
        groups.append(f"x{number % 1000:03d}")
    return "/".join(reversed(groups))


def parse_number_path(text: str) -> int:
    """Inverse of :func:`number_path`. Raises EncodingError ``BadTilePath``."""
    if not re.fullmatch(r"(?:x[0-9]{3}/){0,6}[0-9]{3}", text, re.ASCII):
        raise EncodingError("BadTilePath", "not a tile number")
    number = int(text.replace("x", "").replace("/", ""))
    if number > MAXIMUM_INTEGER or number_path(number) != text:
        raise EncodingError("BadTilePath", "a tile number is not in its canonical form")
    return number


def tile_path(level: Level, number: int, width: int = TILE_WIDTH) -> str:
    """The path of a tile, without a leading slash.

    >>> tile_path(0, 1234, 5)
    'tile/0/x001/234.p/5'

    Raises:
        UsageError: ``OutOfRange``.
    """
    _check_tile(level, number, width)
    suffix = f".p/{width}" if width != TILE_WIDTH else ""
    return f"tile/{level}/{number_path(number)}{suffix}"


def entry_bundle_path(number: int, width: int = TILE_WIDTH) -> str:
    """The path of an entry bundle: ``tile/entries/...``."""
    return tile_path(ENTRIES, number, width)


def parse_tile_path(path: str) -> Tile:
    """Inverse of :func:`tile_path` and :func:`entry_bundle_path`.

    Raises:
        EncodingError: ``BadTilePath`` for every other text.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise EncodingError("BadTilePath", "not the path of a tile")
    level: Level = ENTRIES
    width = TILE_WIDTH
    try:
        if match[1] != ENTRIES:
            level = parse_decimal(match[1], MAXIMUM_LEVEL)
        if match[3] is not None:
            width = parse_decimal(match[3], TILE_WIDTH - 1)
    except EncodingError as error:
        raise EncodingError("BadTilePath", error.message) from error
    if width == 0:
        raise EncodingError("BadTilePath", "a tile is never empty")
    return Tile(level, parse_number_path(match[2]), width)


def format_bundle(entries: Iterable[bytes]) -> bytes:
    """Join 1 to 256 entries: for each a u16 length and its bytes (at most 65,535).

    Raises:
        EncodingError: ``BadBundle``.
    """
    entries = tuple(entries)
    if not 1 <= len(entries) <= TILE_WIDTH:
        raise EncodingError("BadBundle", f"a bundle does not hold {len(entries)} entries")
    if any(len(entry) > MAXIMUM_ENTRY_BYTES for entry in entries):
        raise EncodingError("BadBundle", f"an entry exceeds {MAXIMUM_ENTRY_BYTES} bytes")
    return b"".join(len(entry).to_bytes(2, "big") + entry for entry in entries)


def parse_bundle(data: bytes, width: int) -> list[bytes]:
    """Split a bundle into its *width* entries, with nothing left over.

    Raises:
        EncodingError: ``BadBundle``.
    """
    if not 1 <= width <= TILE_WIDTH:
        raise EncodingError("BadBundle", f"a bundle does not hold {width} entries")
    entries = []
    at = 0
    for _ in range(width):
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        entries.append(data[start:at])
    if at != len(data):
        raise EncodingError("BadBundle", f"a bundle does not end with its entry number {width}")
    return entries


def tiles_between(old_size: int, new_size: int) -> list[Tile]:
    """The tiles to be written when the tree grows: every one whose content changed, level by level."""
    _check_sizes(old_size, new_size)
    return [
        tile
        for level in range(MAXIMUM_LEVEL // TILE_HEIGHT + 1)
        for tile in _changed(level, old_size >> TILE_HEIGHT * level, new_size >> TILE_HEIGHT * level)
    ]


def bundles_between(old_size: int, new_size: int) -> list[Tile]:
    """The entry bundles to be written when the tree grows."""
    _check_sizes(old_size, new_size)
    return list(_changed(ENTRIES, old_size, new_size))


def tile_nodes(tile: Tile) -> list[Node]:
    """The nodes whose hashes, in this order, are the tile's bytes."""
    if tile.level == ENTRIES:
        raise UsageError("OutOfRange", "an entry bundle holds no hashes")
    first = tile.number * TILE_WIDTH
    return [(tile.level * TILE_HEIGHT, index) for index in range(first, first + tile.width)]


def _changed(level: Level, old_count: int, new_count: int) -> Iterator[Tile]:
    """The tiles of one level that grow when its hashes (or entries) grow from *old_count* to *new_count*."""
    if old_count == new_count:
        return
    for number in range(old_count // TILE_WIDTH, new_count // TILE_WIDTH):
        yield Tile(level, number)
    if width := new_count % TILE_WIDTH:
        yield Tile(level, new_count // TILE_WIDTH, width)


class TileHashReader:
    """Reads the hashes of a remote tree and returns none that the root does not vouch for.

    The right edge is fetched first and folded into *root_hash*; from there every full tile must
    hash to its place in the tile above it. Only then is a hash computed from it. Of partial tiles,
    only those of exactly *tree_size* are asked for, and the full tile instead when the log has
    dropped one.

    Of verified tiles the *cache_tiles* read last are kept. Of 16 times as many the upper levels are, 2 kB each. They
    vouch for what is read of such a tile again, eight hashes at a time.

    Args:
        fetch: path to bytes; raises Unreachable or NotLogged for what is not there.
        tree_size: of a checkpoint already verified.
        root_hash: of the same checkpoint.

    Raises (when called):
        Invalid: ``BadTile`` for a tile of the wrong length or content.
        UsageError: ``OutOfRange`` for a node that is not complete in this tree.
        Whatever *fetch* raises.
    """

    def __init__(
        self, fetch: Callable[[str], bytes], tree_size: int, root_hash: bytes, *, cache_tiles: int = 512
    ) -> None:
        self._fetch = fetch
        self._cache_tiles = cache_tiles
        self._tiles: dict[_Place, bytes] = {}  # full ones as they were fetched, the one read last at the end
        self._upper: dict[_Place, bytes] = {}  # of verified ones the hashes at heights GROUP_HEIGHT to TILE_HEIGHT
        self.advance(tree_size, root_hash)

    def advance(self, tree_size: int, root_hash: bytes) -> None:
        """Read another tree from now on: a larger one of the same log. What is kept is checked against its root."""
        _check_sizes(0, tree_size)
        self._tree_size = tree_size
        self._root_hash = root_hash
        self._edge: dict[_Place, _Levels] | None = None
        self._vouched: set[_Place] = set()  # those of _upper that belong to this root
        self._group: tuple[_Place, int, _Levels] | None = None

    def __call__(self, nodes: Sequence[Node]) -> list[bytes]:
        for level, index in nodes:
            if level < 0 or index < 0 or (index + 1) << level > self._tree_size:
                raise UsageError("OutOfRange", "a node is not complete in this tree")
        if self._edge is None:
            self._edge = self._read_edge()
        return [self._node(level, index) for level, index in nodes]

    def _node(self, level: int, index: int) -> bytes:
        if self._edge is None:
            raise AssertionError("a tile was asked for before the right edge was verified")
        tile_level, height = divmod(level, TILE_HEIGHT)
        number, at = divmod(index, TILE_WIDTH >> height)
        place = (tile_level, number)
        if (edge := self._edge.get(place)) is not None:
            return edge[height][at]
        upper = self._upper_levels(place)
        if height >= GROUP_HEIGHT:
            return _hash_in(upper, height, at)
        group, at = divmod(at, GROUP_WIDTH >> height)
        return self._read_group(place, group, upper)[height][at]

    def _upper_levels(self, place: _Place) -> bytes:
        """The upper levels of a full tile, verified."""
        level, number = place
        upper = self._upper.get(place)
        if upper is not None and place in self._vouched:
            return upper
        # Full, since every partial tile is on the edge; so its hash stands in the tile above.
        expected = self._node((level + 1) * TILE_HEIGHT, number)
        data = None
        if upper is None:
            data = self._tile(place)
            upper = b"".join(node for row in _levels(_split_tile(data, TILE_WIDTH))[GROUP_HEIGHT:] for node in row)
        if _hash_in(upper, TILE_HEIGHT, 0) != expected:
            self._upper.pop(place, None)
            raise Invalid("BadTile", f"{tile_path(level, number)} does not belong to the tree's root")
        _keep(self._upper, place, upper, UPPER_FOR_ONE * self._cache_tiles)
        if data is not None:
            _keep(self._tiles, place, data, self._cache_tiles)
        if len(self._vouched) > 2 * UPPER_FOR_ONE * self._cache_tiles:
            self._vouched.clear()
        self._vouched.add(place)
        return upper

    def _read_group(self, place: _Place, group: int, upper: bytes) -> _Levels:
        """The levels of GROUP_WIDTH hashes of a tile, which *upper* vouches for."""
        if self._group is not None and self._group[:2] == (place, group):
            return self._group[2]
        data = self._tile(place)
        start = group * GROUP_WIDTH * HASH_BYTES
        levels = _levels(_split_tile(data[start : start + GROUP_WIDTH * HASH_BYTES], GROUP_WIDTH), GROUP_HEIGHT)
        if levels[GROUP_HEIGHT] != [_hash_in(upper, GROUP_HEIGHT, group)]:
            raise Invalid("BadTile", f"{tile_path(*place)} is not what it was when it was verified")
        self._group = place, group, levels
        _keep(self._tiles, place, data, self._cache_tiles)
        return levels

    def _tile(self, place: _Place) -> bytes:
        """A full tile as it is, not verified, or not all of it."""
        return self._tiles.pop(place, None) or self._fetch(tile_path(*place))

    def _read_edge(self) -> dict[_Place, _Levels]:
        """Fetch the partial tiles of this size; together they hold all that the root is made of."""
        edge: dict[_Place, _Levels] = {}
        for level in range(MAXIMUM_LEVEL // TILE_HEIGHT + 1):
            number, width = divmod(self._tree_size >> TILE_HEIGHT * level, TILE_WIDTH)
            if width:
                edge[level, number] = _levels(self._fetch_partial(level, number, width))
        subtrees = []
        for level, index in complete_subtrees(0, self._tree_size):
            tile_level, height = divmod(level, TILE_HEIGHT)
            number, place = divmod(index, TILE_WIDTH >> height)
            subtrees.append(edge[tile_level, number][height][place])
        if fold_right(subtrees) != self._root_hash:
            raise Invalid("BadTile", "the tiles of the right edge do not make up the tree's root")
        return edge

    def _fetch_partial(self, level: int, number: int, width: int) -> list[bytes]:
        try:
            data = self._fetch(tile_path(level, number, width))
        except (Unreachable, NotLogged) as missing:
            try:
                data = self._fetch(tile_path(level, number))
            except (Unreachable, NotLogged):
                raise missing from None
            return _split_tile(data, TILE_WIDTH)[:width]
        return _split_tile(data, width)


def _split_tile(data: bytes, width: int) -> list[bytes]:
    if len(data) != width * HASH_BYTES:
        raise Invalid("BadTile", f"a tile of {width} hashes has {len(data)} bytes")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def _levels(hashes: list[bytes], height: int = TILE_HEIGHT) -> _Levels:
    """The hashes of every complete subtree up to *height* inside a tile, by height: its own hashes first."""
    levels = [hashes]
    while len(levels) <= height:
        levels.append(hash_level(levels[-1]))
    return levels


def _hash_in(upper: bytes, height: int, at: int) -> bytes:
    """A hash of what is kept of a tile: 32 of GROUP_HEIGHT, then 16, and so on."""
    row = 2 * (TILE_WIDTH >> GROUP_HEIGHT) - (2 * TILE_WIDTH >> height)
    return upper[(row + at) * HASH_BYTES : (row + at + 1) * HASH_BYTES]


def _keep(kept: dict[_Place, bytes], place: _Place, data: bytes, limit: int) -> None:
    kept.pop(place, None)
    while kept and len(kept) >= limit:
        del kept[next(iter(kept))]
    if limit:
        kept[place] = data


def _check_tile(level: Level, number: int, width: int) -> None:
    in_range = level == ENTRIES or (isinstance(level, int) and 0 <= level <= MAXIMUM_LEVEL)
    if not (in_range and 0 <= number <= MAXIMUM_INTEGER and 1 <= width <= TILE_WIDTH):
        raise UsageError("OutOfRange", "no tile has this level, number or width")


def _check_sizes(old_size: int, new_size: int) -> None:
    if not 0 <= old_size <= new_size <= MAXIMUM_INTEGER:
        raise UsageError("OutOfRange", "a tree's size does not shrink or exceed 2^63 - 1")
