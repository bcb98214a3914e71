"""The lookup bundle: everything that an answer for one actor rests on, but for the checkpoint it goes with.

Light is sections 1 to 7, and 12 where something is pending; full adds the history, 10 and 11. Two things are said
here that the specification leaves open:

- 12, pending: per entry u64 leaf index, then entry, preimage and plain attributes as in 10. No proof: that it is in the
  log nobody has cosigned yet. In the order of the log, at most :data:`MAX_PENDING`, in :data:`MAX_PENDING_BYTES`.
- 13, page: u32 start, u32 total. A history that is too long for one answer comes in pages: sections 10 and 11 hold the
  items from *start* on, of *total* in 10 and then 11. See :mod:`ktlog.keymap.pages`; a bundle in a file has none.

Spec: directory map v1 §8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ktlog.errors import EncodingError
from ktlog.keymap.prefix import PrefixProof, encode_prefix_proof, parse_prefix_proof
from ktlog.tlog.binary import Reader, s32, u8, u16, u32, u64

HEADER = b"ktlog-bundle/v1\n"
MAX_PROOF_HASHES = 64
MAX_HELD = 65535
MAX_HISTORY = 65536
MAX_ATTRIBUTES = 16
"""Of one message; none has more than a handful."""
MAX_PENDING = 16
"""Each may cost whoever checks it some 100 ms."""
MAX_PENDING_BYTES = 128 << 10
MAX_BUNDLE_BYTES = 64 << 20
KEY_BYTES = 1312


@dataclass(frozen=True, slots=True)
class NoLeaf:
    """The map has no leaf for the actor: never enrolled."""


@dataclass(frozen=True, slots=True)
class Presented:
    """value: encoded, see :mod:`ktlog.keymap.value`. opening: 16 bytes."""

    value: bytes
    opening: bytes


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What the tombstone in the actor's leaf is recomputed from."""

    version: int
    generation: int
    erasure_number: int


Outcome = NoLeaf | Presented | Tombstone


@dataclass(frozen=True, slots=True)
class HistoryItem:
    """One entry behind a value.

    leaf: of the history tree. entry, preimage: as logged. plain: attribute to text, None where withheld.
    path: inclusion proof of the entry in the input log, 32 bytes a hash.
    """

    leaf: bytes
    entry: bytes
    preimage: bytes
    plain: Mapping[str, str | None]
    path: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class PendingItem:
    """One entry after those that the map covers. leaf_index: the log's word for its place. plain: as in HistoryItem."""

    leaf_index: int
    entry: bytes
    preimage: bytes
    plain: Mapping[str, str | None]


@dataclass(frozen=True, slots=True)
class Page:
    """Which part of a history a bundle holds: the items from *start* on, of *total*."""

    start: int
    total: int


@dataclass(frozen=True, slots=True)
class Bundle:
    """origin: of the output log. output_path: inclusion proof of the leaf at output_size - 1.

    keys: raw, in the value's order. aux: texts in the value's order, None when not asked for or withheld.
    checkpoint: the signed note of output_size, when asked for. history: None when light.
    old_histories: for each MOVED_IN leaf of *history*, in order, the leaves of the old actor's history.
    """

    origin: str
    output_size: int
    output_leaf: bytes
    output_path: tuple[bytes, ...]
    proof: PrefixProof
    outcome: Outcome
    keys: tuple[bytes, ...] = ()
    aux: tuple[str | None, ...] | None = None
    checkpoint: bytes | None = None
    history: tuple[HistoryItem, ...] | None = None
    old_histories: tuple[tuple[HistoryItem, ...], ...] = field(default=())
    pending: tuple[PendingItem, ...] = ()
    page: Page | None = None
    """None when the history is whole, or not there."""


def encode_bundle(bundle: Bundle) -> bytes:
    """Inverse of :func:`parse_bundle`."""
    sections: list[tuple[int, bytes]] = [
        (1, bundle.origin.encode("ascii")),
        (2, u64(bundle.output_size)),
        (3, bundle.output_leaf),
        (4, b"".join(bundle.output_path)),
        (5, encode_prefix_proof(bundle.proof)),
        (6, _encode_outcome(bundle.outcome)),
        (7, b"".join(bundle.keys)),
    ]
    if bundle.aux is not None:
        sections.append((8, b"".join(_encode_text(text) for text in bundle.aux)))
    if bundle.checkpoint is not None:
        sections.append((9, bundle.checkpoint))
    if bundle.history is not None:
        sections.append((10, b"".join(_encode_item(item) for item in bundle.history)))
        sections.append((11, b"".join(
            u32(len(items)) + b"".join(_encode_item(item) for item in items) for items in bundle.old_histories
        )))
    if bundle.pending:
        sections.append((12, b"".join(encode_pending(item) for item in bundle.pending)))
    if bundle.page is not None:
        sections.append((13, u32(bundle.page.start) + u32(bundle.page.total)))
    return HEADER + b"".join(u8(kind) + s32(body) for kind, body in sections)


def parse_bundle(data: bytes) -> Bundle:
    """Read a bundle; every size is bounded, every section there once and in order.

    Raises:
        EncodingError: ``MalformedBundle``.
    """
    if len(data) > MAX_BUNDLE_BYTES or not data.startswith(HEADER):
        raise EncodingError("MalformedBundle", "not a bundle, or one that is too long")
    found = _sections(Reader(data[len(HEADER):], "MalformedBundle"))
    required = set(range(1, 8))
    if not required <= found.keys() or found.keys() - set(range(1, 14)) or (10 in found) != (11 in found):
        raise EncodingError("MalformedBundle", f"its sections are {sorted(found)}")
    read = Reader(found[2], "MalformedBundle")
    size = read.u64()
    read.end()
    if not found[1].isascii():
        raise EncodingError("MalformedBundle", "the origin is not ASCII")
    try:
        proof = parse_prefix_proof(found[5])
    except EncodingError as error:
        raise EncodingError("MalformedBundle", error.message) from None
    bundle = Bundle(
        origin=found[1].decode("ascii"), output_size=size, output_leaf=found[3],
        output_path=_chunks(found[4], 32, MAX_PROOF_HASHES), proof=proof, outcome=_outcome(found[6]),
        keys=_chunks(found[7], KEY_BYTES, MAX_HELD),
        aux=_texts(found[8]) if 8 in found else None, checkpoint=found.get(9),
        history=_items(Reader(found[10], "MalformedBundle")) if 10 in found else None,
        old_histories=_item_lists(found[11]) if 11 in found else (),
        pending=_pending(found[12]) if 12 in found else (), page=_page(found[13]) if 13 in found else None,
    )
    _check_page(bundle)
    return bundle


def _sections(read: Reader) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    last = 0
    while read.left:
        kind = read.u8()
        if kind <= last:
            raise read.refuse(f"section {kind} follows section {last}")
        found[kind] = read.s32()
        last = kind
    return found


def _chunks(data: bytes, size: int, most: int) -> tuple[bytes, ...]:
    count, left_over = divmod(len(data), size)
    if left_over or count > most:
        raise EncodingError("MalformedBundle", f"{len(data)} bytes are not up to {most} pieces of {size}")
    return tuple(data[i * size : (i + 1) * size] for i in range(count))


def _encode_outcome(outcome: Outcome) -> bytes:
    match outcome:
        case NoLeaf():
            return u8(0)
        case Presented(value, opening):
            return u8(1) + s32(value) + opening
        case Tombstone(version, generation, number):
            return u8(2) + u32(version) + u32(generation) + u64(number)


def _outcome(data: bytes) -> Outcome:
    read = Reader(data, "MalformedBundle")
    outcome: Outcome
    match read.u8():
        case 0:
            outcome = NoLeaf()
        case 1:
            outcome = Presented(read.s32(), read.take(16))
        case 2:
            outcome = Tombstone(read.u32(), read.u32(), read.u64())
        case kind:
            raise read.refuse(f"unknown outcome {kind}")
    read.end()
    return outcome


def _encode_text(text: str | None) -> bytes:
    return u8(0) if text is None else u8(1) + s32(text.encode("utf-8"))


def _text(read: Reader) -> str | None:
    match read.u8():
        case 0:
            return None
        case 1:
            try:
                return read.s32().decode("utf-8")
            except UnicodeDecodeError:
                raise read.refuse("a text is not UTF-8") from None
    raise read.refuse("a text is neither there nor withheld")


def _texts(data: bytes) -> tuple[str | None, ...]:
    read = Reader(data, "MalformedBundle")
    texts = []
    while read.left:
        if len(texts) == MAX_HELD:
            raise read.refuse(f"more than {MAX_HELD} texts")
        texts.append(_text(read))
    return tuple(texts)


def _encode_logged(item: HistoryItem | PendingItem) -> bytes:
    plain = b"".join(s32(name.encode("ascii")) + _encode_text(text) for name, text in sorted(item.plain.items()))
    return s32(item.entry) + s32(item.preimage) + u16(len(item.plain)) + plain


def _logged(read: Reader) -> tuple[bytes, bytes, dict[str, str | None]]:
    entry, preimage = read.s32(), read.s32()
    plain: dict[str, str | None] = {}
    last = ""
    count = read.u16()
    if count > MAX_ATTRIBUTES:
        raise read.refuse(f"a message has {count} attributes")
    for _ in range(count):
        name = read.s32()
        if not name.isascii() or name.decode("ascii") <= last:
            raise read.refuse("attributes are not in order")
        last = name.decode("ascii")
        plain[last] = _text(read)
    return entry, preimage, plain


def encode_pending(item: PendingItem) -> bytes:
    """One item of section 12, whose length counts towards MAX_PENDING_BYTES."""
    return u64(item.leaf_index) + _encode_logged(item)


def _pending(data: bytes) -> tuple[PendingItem, ...]:
    read = Reader(data, "MalformedBundle")
    items: list[PendingItem] = []
    if not 0 < len(data) <= MAX_PENDING_BYTES:
        raise read.refuse(f"{len(data)} bytes of pending entries")
    while read.left:
        item = PendingItem(read.u64(), *_logged(read))
        if len(items) == MAX_PENDING or (items and item.leaf_index <= items[-1].leaf_index):
            raise read.refuse(f"pending entries are more than {MAX_PENDING}, or not in the order of the log")
        items.append(item)
    return tuple(items)


def _page(data: bytes) -> Page:
    read = Reader(data, "MalformedBundle")
    page = Page(read.u32(), read.u32())
    read.end()
    return page


def count_items(bundle: Bundle) -> int:
    """How many items its history and the old ones have."""
    return len(bundle.history or ()) + sum(map(len, bundle.old_histories))


def _check_page(bundle: Bundle) -> None:
    page, count = bundle.page, count_items(bundle)
    if count > MAX_HISTORY:
        raise EncodingError("MalformedBundle", f"more than {MAX_HISTORY} entries")
    if page is None:
        return
    # A page that holds nothing, or everything, is none.
    if not 0 < count < page.total <= MAX_HISTORY or page.start + count > page.total:
        raise EncodingError("MalformedBundle", f"{count} items from {page.start} on, of {page.total}, are no page")


def _encode_item(item: HistoryItem) -> bytes:
    return s32(item.leaf) + _encode_logged(item) + u16(len(item.path)) + b"".join(item.path)


def _item(read: Reader) -> HistoryItem:
    leaf = read.s32()
    entry, preimage, plain = _logged(read)
    count = read.u16()
    if count > MAX_PROOF_HASHES:
        raise read.refuse("an inclusion proof is too long")
    return HistoryItem(leaf, entry, preimage, plain, tuple(read.take(32) for _ in range(count)))


def _items(read: Reader) -> tuple[HistoryItem, ...]:
    items: list[HistoryItem] = []
    while read.left:
        if len(items) == MAX_HISTORY:
            raise read.refuse(f"more than {MAX_HISTORY} entries")
        items.append(_item(read))
    return tuple(items)


def _item_lists(data: bytes) -> tuple[tuple[HistoryItem, ...], ...]:
    """Each list belongs to an entry of the history, so there are no more of them than entries in all."""
    read = Reader(data, "MalformedBundle")
    lists: list[tuple[HistoryItem, ...]] = []
    total = 0
    while read.left:
        count = read.u32()
        total += count
        if total > MAX_HISTORY or len(lists) == MAX_HISTORY:
            raise read.refuse(f"more than {MAX_HISTORY} entries")
        lists.append(tuple(_item(read) for _ in range(count)))
    return tuple(lists)
