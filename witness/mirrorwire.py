"""What a mirror is sent and answers, and how it judges an upload: no I/O, no clock.

An ``add-entries`` body names a log, a range of its entries and the size of a pending checkpoint; then come packages,
each of which stays within one entry bundle and proves itself against that checkpoint. The order of the checks, and
the answers, are the specification's:

====== =================== ======================================================================
status reason              when
====== =================== ======================================================================
400    (an encoding name)  the head does not parse, or the first package is not whole
404    UnknownOrigin       the log is not mirrored here
422    NoPendingCheckpoint nobody has sent a checkpoint of it yet
409    UnknownSize         the upload's end is no pending checkpoint that is still known
409    SizeBehind          it is behind the mirror's own checkpoint
409    StartAhead          entries are missing before the upload's start
409    TooMuchAgain        too many of its entries are here already
422    BadSubtreeProof     a package does not belong to the tree of that checkpoint
202    (mirror info)       some packages were kept, and there are more to come
200    (signature lines)   all entries up to the upload's end are kept; it is the mirror's checkpoint
====== =================== ======================================================================

Spec: C2SP tlog-mirror.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import MAXIMUM_INTEGER, decode_base64, encode_base64, naming, parse_decimal
from ktlog.tlog.subtree import verify_subtree
from ktlog.tlog.tiles import MAXIMUM_ENTRY_BYTES, TILE_WIDTH
from ktlog.tlog.tree import HASH_BYTES, fold_right, hash_leaf, hash_level
from witness.decide import Cosigned, Refuse, refuse

MIRROR_INFO = "text/x.tlog.mirror-info"  # without any parameter: clients compare it exactly
OCTETS = "application/octet-stream"

MAX_HASHES = 63
#: Packages of one request that a client sends, so that it passes the limits of most hosting platforms.
CLIENT_PACKAGES = 32
#: Entries that are here already and may be sent again: as many as a client's request has that lost a race.
MAX_EXCESS = CLIENT_PACKAGES * TILE_WIDTH

_TICKET_LABEL = b"ktlog-mirror-ticket/v1\0"
_MAC_BYTES = 32
MAX_TICKET_BYTES = 0xFFFF

ReadBytes = Callable[[int], bytes]
"""Returns that many bytes, or fewer where the body ends."""


@dataclass(frozen=True)
class Upload:
    """The head of an ``add-entries`` body.

    origin: empty where it is no text, which no log's is. start, end: entries, half-open. ticket: as this mirror, or
    anybody, made it.
    """

    origin: str
    start: int
    end: int
    ticket: bytes = b""


@dataclass(frozen=True)
class Span:
    """The entries of one package, [start, end), and *first*, where the bundle that they lie in begins."""

    first: int
    start: int
    end: int


@dataclass(frozen=True)
class Package:
    """Entries, and the proof that they are the end of a subtree."""

    entries: tuple[bytes, ...]
    proof: tuple[bytes, ...]


@dataclass(frozen=True)
class Pending:
    """A checkpoint that entries may be uploaded for: it extends every one before. note: with the log's signatures."""

    checkpoint: Checkpoint
    note: bytes


@dataclass(frozen=True)
class Mirrored:
    """A log that is mirrored.

    Attributes:
        max_bytes: how much of the disk it may have. stored_bytes: how much it has, nearly.
        pending: the newest checkpoint that is to be mirrored; its ``time`` is when it came.
        next_entry: the first entry that is not here.
        latest: the mirror checkpoint, cosigned; every entry of it is here.
    """

    origin: str
    max_bytes: int
    stored_bytes: int = 0
    pending: Cosigned | None = None
    next_entry: int = 0
    latest: Cosigned | None = None


@dataclass(frozen=True)
class Info:
    """What a client needs to go on: a pending checkpoint's size, the first entry missing, a ticket for that size."""

    size: int
    next_entry: int
    ticket: bytes


# Bodies


def parse_upload(read: ReadBytes) -> Upload:
    """Read the head of an ``add-entries`` body; what follows is left unread.

    Raises:
        EncodingError: ``BadUpload``.
    """
    origin = _exactly(read, int.from_bytes(_exactly(read, 2), "big"))
    start, end = (int.from_bytes(_exactly(read, 8), "big") for _ in range(2))
    ticket = _exactly(read, int.from_bytes(_exactly(read, 2), "big"))
    if not start <= end <= MAXIMUM_INTEGER:
        raise EncodingError("BadUpload", "the upload's range is none")
    try:
        return Upload(origin.decode("utf-8"), start, end, ticket)
    except UnicodeDecodeError:
        return Upload("", start, end, ticket)


def format_upload(upload: Upload) -> bytes:
    """Inverse of :func:`parse_upload`. Raises EncodingError ``BadUpload`` for what does not fit."""
    origin = upload.origin.encode("utf-8")
    in_range = 0 <= upload.start <= upload.end <= MAXIMUM_INTEGER
    if max(len(origin), len(upload.ticket)) > MAX_TICKET_BYTES or not in_range:
        raise EncodingError("BadUpload", "an origin, a ticket or a range does not fit")
    return b"".join((
        len(origin).to_bytes(2, "big"), origin, upload.start.to_bytes(8, "big"), upload.end.to_bytes(8, "big"),
        len(upload.ticket).to_bytes(2, "big"), upload.ticket,
    ))


def spans(start: int, end: int) -> Iterator[Span]:
    """The packages of an upload of [start, end), in their one order.

    >>> list(spans(200, 300))
    [Span(first=0, start=200, end=256), Span(first=256, start=256, end=300)]
    """
    for first in range(start - start % TILE_WIDTH, end, TILE_WIDTH):
        if start < end:
            yield Span(first, max(start, first), min(end, first + TILE_WIDTH))


def read_package(read: ReadBytes, count: int) -> Package:
    """Read the next package, of *count* entries.

    Raises:
        EncodingError: ``BadUpload``: the body ended within it, or it claims more hashes than a proof has.
    """
    entries = tuple(_exactly(read, int.from_bytes(_exactly(read, 2), "big")) for _ in range(count))
    (hashes,) = _exactly(read, 1)
    if hashes > MAX_HASHES:
        raise EncodingError("BadUpload", f"a package has {hashes} hashes, where {MAX_HASHES} prove any subtree")
    proof = _exactly(read, hashes * HASH_BYTES)
    return Package(entries, tuple(proof[at : at + HASH_BYTES] for at in range(0, len(proof), HASH_BYTES)))


def format_package(package: Package) -> bytes:
    """Inverse of :func:`read_package`. Raises EncodingError ``BadUpload`` for what does not fit."""
    if any(len(entry) > MAXIMUM_ENTRY_BYTES for entry in package.entries) or len(package.proof) > MAX_HASHES:
        raise EncodingError("BadUpload", "an entry or a proof does not fit")
    entries = (len(entry).to_bytes(2, "big") + entry for entry in package.entries)
    return b"".join((*entries, bytes((len(package.proof),)), *package.proof))


def format_info(info: Info) -> bytes:
    """The three lines of ``text/x.tlog.mirror-info``."""
    return f"{info.size}\n{info.next_entry}\n{encode_base64(info.ticket)}\n".encode("ascii")


def parse_info(body: bytes) -> Info:
    """Inverse of :func:`format_info`. Raises EncodingError ``BadMirrorInfo``."""
    with naming("BadMirrorInfo", "mirror info"):
        try:
            size, next_entry, ticket, rest = body.decode("ascii").split("\n")
        except (UnicodeDecodeError, ValueError):
            raise EncodingError("BadMirrorInfo", "not three lines of ASCII") from None
        if rest:
            raise EncodingError("BadMirrorInfo", "not three lines")
        return Info(parse_decimal(size), parse_decimal(next_entry), decode_base64(ticket))


def _exactly(read: ReadBytes, count: int) -> bytes:
    data = read(count) if count else b""
    if len(data) != count:
        raise EncodingError("BadUpload", "the body ends too early")
    return data


# Tickets


def issue_ticket(key: bytes, pending: Pending) -> bytes:
    """Remember *pending* for its client: the note, and proof that it was pending here; empty where that is too long."""
    ticket = _mac(key, pending.note) + pending.note
    return ticket if len(ticket) <= MAX_TICKET_BYTES else b""


def open_ticket(key: bytes, ticket: bytes, origin: str, size: int) -> Pending | None:
    """The pending checkpoint in a ticket that was issued with *key*, if it is that of *origin* and *size*."""
    mac, note = ticket[:_MAC_BYTES], ticket[_MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(key, note)):
        return None
    checkpoint = parse_signed_checkpoint(note)[1]
    return Pending(checkpoint, note) if (checkpoint.origin, checkpoint.size) == (origin, size) else None


def _mac(key: bytes, note: bytes) -> bytes:
    return hmac.digest(key, _TICKET_LABEL + note, "sha256")


# Judgement


def decide_upload(upload: Upload, log: Mirrored | None, base: Pending | None, key: bytes) -> Refuse | None:
    """Whether to read an upload's packages; None is yes.

    Args:
        log: None: not mirrored here.
        base: the pending or mirror checkpoint that has the size of the upload's end; None when none is known.
        key: that tickets are made with.
    """
    if log is None:
        return refuse(404, "UnknownOrigin", "no such log is mirrored here")
    if log.pending is None:
        return refuse(422, "NoPendingCheckpoint", f"send a checkpoint of {log.origin} to add-checkpoint first")
    newest = Pending(log.pending.checkpoint, log.pending.note)
    if base is None:
        return conflict("UnknownSize", newest, log, key)
    if log.latest is not None and upload.end < log.latest.checkpoint.size:
        return conflict("SizeBehind", newest, log, key)
    if upload.start > log.next_entry:
        return conflict("StartAhead", base, log, key)
    if min(upload.end, log.next_entry) - upload.start > MAX_EXCESS:
        return conflict("TooMuchAgain", base, log, key)
    return None


def conflict(reason: str, pending: Pending, log: Mirrored, key: bytes) -> Refuse:
    """The 409 that tells a client how to go on, with *pending*."""
    return Refuse(409, describe(pending, log.next_entry, key), MIRROR_INFO, reason)


def describe(pending: Pending, next_entry: int, key: bytes) -> bytes:
    """The mirror info for an upload up to *pending*."""
    return format_info(Info(pending.checkpoint.size, next_entry, issue_ticket(key, pending)))


def verify_package(span: Span, before: Sequence[bytes], package: Package, checkpoint: Checkpoint) -> list[bytes]:
    """Check a package against the checkpoint of the upload's end; return the leaf hashes of [first, end).

    Args:
        before: the entries [first, start), which are here already.

    Raises:
        Invalid: ``BadSubtreeProof``.
    """
    if len(before) != span.start - span.first or len(package.entries) != span.end - span.start:
        raise Invalid("BadSubtreeProof", "the package has another number of entries than its place")
    leaves = [hash_leaf(entry) for entry in (*before, *package.entries)]
    verify_subtree(span.first, span.end, checkpoint.size, package.proof, hash_leaves(leaves), checkpoint.root)
    return leaves


def hash_leaves(hashes: Sequence[bytes]) -> bytes:
    """The root over at most 256 hashes that fill a tile from its left."""
    complete, level = [], list(hashes)
    while level:  # the last one without a partner is a complete subtree of the right edge
        if len(level) % 2:
            complete.append(level[-1])
        level = hash_level(level)
    return fold_right(complete[::-1])

