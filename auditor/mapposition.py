"""Where an audit of a map's log stands, and what it found of each leaf."""

from __future__ import annotations

from dataclasses import dataclass, field

from ktlog.errors import EncodingError
from ktlog.keymap.output import OutputLeaf
from ktlog.tlog.binary import Reader, s32, u64

_HEADER = b"ktlog-auditor-map/v1\n"


@dataclass(frozen=True)
class MapPosition:
    """The first *size* leaves were judged, and nothing was wrong.

    note: the signed head that was read then, of at least this size. config, leaf: leaf 0 and the newest one judged,
    as they are; empty before there was any. unsettled: see :class:`MapLeaves`, whose rows belong to this position.
    """

    size: int
    note: bytes
    config: bytes
    leaf: bytes
    unsettled: bytes = b""

    def encode(self) -> bytes:
        """Inverse of :func:`parse_map_position`."""
        return _HEADER + u64(self.size) + s32(self.note) + s32(self.config) + s32(self.leaf) + s32(self.unsettled)


def parse_map_position(data: bytes) -> MapPosition:
    """Raises EncodingError(``BadPosition``)."""
    if not data.startswith(_HEADER):
        raise EncodingError("BadPosition", "it does not begin as a position in a map's log does")
    read = Reader(data[len(_HEADER):], "BadPosition")
    position = MapPosition(read.u64(), read.s32(), read.s32(), read.s32(), read.s32())
    read.end()
    return position


@dataclass(frozen=True)
class MapClaim:
    """The map of the output leaf at *leaf_index* is not what the entries and erasures that it speaks of lead to."""

    leaf_index: int
    leaf: OutputLeaf


@dataclass
class MapSummary:
    """leaves: judged. followed: whose update held. derived: whose map follows from the entries. unchecked: neither.

    claims: of the leaves whose map does not follow, what a third party needs to derive it again.
    """

    leaves: int = 0
    followed: int = 0
    derived: int = 0
    unchecked: int = 0
    claims: list[MapClaim] = field(default_factory=list)
