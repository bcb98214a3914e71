"""Reads a log's erasure log: what it says that it took away, and from whom.

It is read here without the directory map, which alone commits to it, so it explains missing text and
proves nothing: what rests on it is shown as taken.

Spec: directory map §5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.actors import Actor
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.erasure import (
    MAX_RECORD_BYTES,
    CarriedMove,
    ErasureRecord,
    encode_erasure_record,
    erased_actor,
    map_index,
    parse_erasure_record,
)
from ktlog.pkd.replay import check_records
from ktlog.tlog.encoding import decode_base64
from ktlog.tlog.tiles import TILE_WIDTH, number_path, parse_bundle
from ktlog.tlog.tree import Frontier, hash_leaf

MAX_ERASURE_HEAD_BYTES = 4096
MAX_ERASURES_BYTES = TILE_WIDTH * (MAX_RECORD_BYTES + 2)
MAX_ERASURES = 1 << 24


@dataclass(frozen=True)
class ErasureHead:
    """How many erasures the log says there were, and the RFC 9162 root of their records."""

    size: int
    root: bytes


def parse_erasure_head(body: bytes) -> ErasureHead:
    """Read ``/erasures``.

    Raises:
        Invalid: ``BadErasures``.
    """
    try:
        document = parse_json(body)
        if not isinstance(document, dict) or type(document.get("size")) is not int:
            raise EncodingError("BadErasures", "there is no size")
        if not 0 <= document["size"] <= MAX_ERASURES:
            raise EncodingError("BadErasures", "its size is absurd")
        root = document.get("root")
        return ErasureHead(document["size"], decode_base64(root if isinstance(root, str) else "", 32))
    except EncodingError as error:
        raise Invalid("BadErasures", f"/erasures does not say where the erasure log stands: {error.message}") from error


def read_erasures(
    head: ErasureHead, fetch: Callable[[str], bytes], known: Sequence[ErasureRecord] = (),
) -> tuple[ErasureRecord, ...]:
    """The whole erasure log, which must make up *head*.

    Args:
        fetch: path without a leading slash to bytes.
        known: records read before; full pages of them are not asked for again.

    Raises:
        Invalid: ``BadErasures``; ``BadErasure`` when the records contradict each other.
        Whatever *fetch* raises.
    """
    kept = min(len(known), head.size) // TILE_WIDTH
    records = list(known[: kept * TILE_WIDTH])
    frontier = Frontier()
    for record in records:
        frontier = frontier.append(hash_leaf(encode_erasure_record(record)))
    for number in range(kept, -(-head.size // TILE_WIDTH)):
        width = min(TILE_WIDTH, head.size - number * TILE_WIDTH)
        data = fetch("erasures/" + page_name(number, width))
        try:
            for leaf in parse_bundle(data, width):
                records.append(parse_erasure_record(leaf))
                frontier = frontier.append(hash_leaf(leaf))
        except EncodingError as error:
            raise Invalid("BadErasures", f"page {number} of the erasures is none: {error.message}") from error
    if frontier.root() != head.root:
        raise Invalid("BadErasures", f"the {head.size} erasure records do not hash to the root beside them")
    return check_records(records)


def page_name(number: int, width: int) -> str:
    """The name of a page of records or erasures: that of the entry bundle in step with it."""
    return number_path(number) + ("" if width == TILE_WIDTH else f".p/{width}")


class ErasureLog:
    """The erasures of one log, by whom and what they are about."""

    def __init__(self, origin: str, records: Sequence[ErasureRecord]) -> None:
        self._origin = origin
        self.records = tuple(records)
        self._moves = {move.move_leaf: move for record in self.records for move in record.carried}
        self._last: dict[bytes, tuple[ErasureRecord, int]] = {}
        for record in self.records:
            count = self._last[record.index][1] if record.index in self._last else 0
            self._last[record.index] = record, count + 1

    def explains(self, leaf_index: int) -> bool:
        """Whether an erasure was late enough to have withheld text of entry *leaf_index*."""
        return bool(self.records) and self.records[-1].input_size > leaf_index

    def move(self, leaf_index: int) -> CarriedMove | None:
        """What the MoveIdentity at *leaf_index* carried, if its old actor was erased."""
        return self._moves.get(leaf_index)

    def erased_at(self, actor_id: str) -> int:
        """Entries before this one are not the actor's any more; 0 when it was never erased."""
        found = self._last.get(map_index(self._origin, actor_id)) if self._last else None
        return found[0].input_size if found else 0

    def tombstone(self, actor_id: str) -> Actor | None:
        """The actor as its last erasure left it; None when it was never erased."""
        found = self._last.get(map_index(self._origin, actor_id)) if self._last else None
        return erased_actor(actor_id, found[0].version, found[0].generation, found[1]) if found else None
