"""``DIR/map-pending``: the output leaf that is being published, with the changes that lead to its map root.

It is durable before anything is signed. Whatever happens then, the same leaf is offered again, and no other one
for its index. Once the map has it, the file goes: it holds values that an erasure must be able to take away.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktlog.errors import EncodingError, StoreError
from ktlog.operator.mapper import Draft
from ktlog.store.documents import Document
from ktlog.store.mapcontract import Dead, Live
from ktlog.tlog.binary import Reader, s32, u8, u32, u64

HEADER = b"ktlog-map-pending/v1\n"
NAME = "BadPending"


@dataclass(frozen=True)
class Pending:
    """leaf: of the output log, at leaf_index, as it will be hashed. draft: what led to it."""

    leaf_index: int
    leaf: bytes
    draft: Draft


def encode_pending(pending: Pending) -> bytes:
    """Inverse of :func:`parse_pending`."""
    draft = pending.draft
    return b"".join([
        HEADER, u64(pending.leaf_index), s32(pending.leaf), u64(draft.input_size), draft.input_root,
        u64(draft.erasures), draft.erasures_root, u32(len(draft.changes)), *map(_encode_change, draft.changes),
    ])


def parse_pending(data: bytes) -> Pending:
    """Raises EncodingError(``BadPending``)."""
    if not data.startswith(HEADER):
        raise EncodingError(NAME, "it does not begin as such a file does")
    read = Reader(data[len(HEADER):], NAME)
    leaf_index, leaf = read.u64(), read.s32()
    size, root, erasures, erasures_root = read.u64(), read.take(32), read.u64(), read.take(32)
    changes = tuple(_change(read) for _ in range(read.u32()))
    read.end()
    return Pending(leaf_index, leaf, Draft(size, root, erasures, erasures_root, changes))


def _encode_change(change: Live | Dead) -> bytes:
    if isinstance(change, Dead):
        return b"".join([
            u8(0), change.index, change.commitment, u32(change.version), u32(change.generation),
            u64(change.erasure_number),
        ])
    return b"".join([
        u8(1), change.index, change.commitment, s32(change.value), change.opening, s32(change.history),
        u8(change.afresh), u32(len(change.news)), *map(s32, change.news),
    ])


def _change(read: Reader) -> Live | Dead:
    kind, index, commitment = read.u8(), read.take(32), read.take(32)
    if kind == 0:
        return Dead(index, commitment, read.u32(), read.u32(), read.u64())
    if kind != 1:
        raise read.refuse("an unknown kind of change")
    value, opening, history, afresh = read.s32(), read.take(16), read.s32(), read.u8()
    return Live(
        index, commitment, value, opening, history, tuple(read.s32() for _ in range(read.u32())), bool(afresh)
    )


def load_pending(document: Document) -> Pending | None:
    """What an earlier process left, or None.

    Raises:
        StoreError: ``BadPending``. It is not replaced: what it says may be signed already.
    """
    data = document.read()
    if data is None:
        return None
    try:
        return parse_pending(data)
    except EncodingError as error:
        raise StoreError(
            NAME, f"{document} is damaged: {error.message}",
            hint="Its leaf may be signed. Ask the witnesses for the newest size of the map's log that they know; only"
                 " if it is the published one may the file be deleted.",
        ) from None


def write_pending(document: Document, pending: Pending) -> None:
    document.write(encode_pending(pending))
