"""Uploading a log to a mirror: for a log's publisher, for whoever has a copy, and for tests. No HTTP in here.

::

    old N, proof, checkpoint -> add-checkpoint      (409: the mirror's N)
    32 packages at most      -> add-entries         (202, 409: where to go on; 200: cosigned)

Each request is made of what the mirror said last, so an upload can begin anywhere, be cut short anywhere, and run
beside another. Spec: C2SP tlog-mirror.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import EncodingError, Invalid, Unreachable
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64, parse_decimal
from ktlog.tlog.note import SignatureLine, parse_signature_lines
from ktlog.tlog.subtree import prove_subtree
from ktlog.tlog.tiles import MAXIMUM_ENTRY_BYTES, TILE_WIDTH, entry_bundle_path, parse_bundle
from ktlog.tlog.tree import HashReader, prove_consistency
from witness.mirrorwire import (
    CLIENT_PACKAGES,
    OCTETS,
    Info,
    Package,
    Upload,
    format_package,
    format_upload,
    parse_info,
    spans,
)

MAX_ATTEMPTS = 8
"""In a row without progress."""

MAX_BUNDLE_BYTES = TILE_WIDTH * (2 + MAXIMUM_ENTRY_BYTES)

ReadEntries = Callable[[int, int], Sequence[bytes]]


class Reply(Protocol):
    """Of an HTTP response what is needed here."""

    @property
    def status(self) -> int: ...
    @property
    def body(self) -> bytes: ...


Post = Callable[[str, bytes, dict[str, str]], Reply]
"""Endpoint (``add-entries``), body and header fields to the response; raises Unreachable."""


@dataclass(frozen=True)
class Tree:
    """What is uploaded from: entries, of one bundle at a time, and hashes of all leaves that the checkpoint has."""

    entries: ReadEntries
    hashes: HashReader


def public_tree(files: PublicFiles, checkpoint: Checkpoint) -> Tree:
    """What a log, or another mirror, serves as tlog-tiles. Raises, when read, what PublicFiles does."""

    def entries(start: int, end: int) -> Sequence[bytes]:
        number, first = start // TILE_WIDTH, start - start % TILE_WIDTH
        width = min(TILE_WIDTH, checkpoint.size - first)
        data, width = files.partial(
            lambda width: entry_bundle_path(number, width), width, "MissingEntries", MAX_BUNDLE_BYTES
        )
        return parse_bundle(data, width)[start - first : end - first]

    return Tree(entries, files.hashes(checkpoint.size, checkpoint.root))


def upload(post: Post, tree: Tree, note: bytes, *, packages: int = CLIENT_PACKAGES) -> tuple[SignatureLine, ...]:
    """Have a mirror hold *note*'s tree; returns its signature lines, which nobody has verified yet.

    Args:
        note: a checkpoint, signed by the log.
        packages: at most, of one request.

    Raises:
        Invalid: "MirrorRefused", "MirrorAhead".
        EncodingError: what it answered does not parse.
        Whatever *post* and *tree* raise.
    """
    checkpoint = parse_signed_checkpoint(note)[1]
    submit_checkpoint(post, tree, note, checkpoint)
    info = Info(checkpoint.size, 0, b"")
    idle = 0
    while idle < MAX_ATTEMPTS:
        body = format_request(tree, checkpoint.origin, info, packages)
        fields = {"Content-Type": OCTETS, "Content-Encoding": "gzip"}
        reply = post("add-entries", gzip.compress(body, 1, mtime=0), fields)
        if reply.status == 200:
            if info.size == checkpoint.size:
                return parse_signature_lines(reply.body)
            info, idle = Info(checkpoint.size, info.size, b""), 0  # an earlier one was finished; now ours
            continue
        if reply.status not in (202, 409):
            raise _refused("add-entries", reply)
        told = parse_info(reply.body)
        if told.size > checkpoint.size:
            raise Invalid("MirrorAhead", f"the mirror is to hold {told.size} leaves, beyond {checkpoint.size}")
        idle = 0 if told.next_entry > info.next_entry else idle + 1
        info = told
    raise Unreachable("NoProgress", f"a mirror does not get beyond entry {info.next_entry}")


def submit_checkpoint(post: Post, tree: Tree, note: bytes, checkpoint: Checkpoint) -> None:
    """Make *note* the mirror's pending checkpoint. Raises Invalid "MirrorRefused", "MirrorAhead"."""
    old_size = 0
    for _ in range(MAX_ATTEMPTS):
        proof = prove_consistency(old_size, checkpoint.size, tree.hashes)
        lines = "".join(f"{encode_base64(node)}\n" for node in proof)
        reply = post("add-checkpoint", f"old {old_size}\n{lines}\n".encode("ascii") + note, {})
        if reply.status == 200:
            return
        if reply.status != 409:
            raise _refused("add-checkpoint", reply)
        try:
            old_size = parse_decimal(reply.body.decode("ascii").removesuffix("\n"))
        except UnicodeDecodeError:
            raise EncodingError("BadSize", "a mirror's tree size is not ASCII") from None
        if old_size > checkpoint.size:
            raise Invalid("MirrorAhead", f"the mirror is to hold {old_size} leaves, beyond {checkpoint.size}")
    raise Unreachable("NoProgress", "a mirror's pending checkpoint moves at each request")


def format_request(tree: Tree, origin: str, info: Info, packages: int = CLIENT_PACKAGES) -> bytes:
    """The body of ``add-entries`` from ``info.next_entry`` up to ``info.size``, and at most *packages* of it."""
    start = min(info.next_entry, info.size)
    parts = [format_upload(Upload(origin, start, info.size, info.ticket))]
    for span in islice(spans(start, info.size), packages):
        proof = prove_subtree(span.first, span.end, info.size, tree.hashes)
        parts.append(format_package(Package(tuple(tree.entries(span.start, span.end)), tuple(proof))))
    return b"".join(parts)


def _refused(endpoint: str, reply: Reply) -> Invalid:
    words = reply.body[:200].decode("utf-8", "replace").strip()
    return Invalid("MirrorRefused", f"{endpoint} was answered with {reply.status}: {words}")
