"""Which entry was rewritten: of two signed trees that exclude each other, the first leaf at which they differ.

That a log forked, two heads and the newer tree show. Which entry it was takes hashes of the older tree too: the auditor
kept those of its right edge, and the log may still serve the older tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from auditor.evidence.build import evidence_for_two_leaves
from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import Invalid, KtlogError
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Vkey
from ktlog.tlog.tree import HashReader, Node

KeptEdge = tuple[int, bytes, Mapping[Node, bytes]]
"""Size and root of a tree that was audited, and hashes of its right edge."""


def evidence_for_first_difference(
    vkeys: Sequence[Vkey], notes: Sequence[bytes], files: PublicFiles, kept: KeptEdge | None = None
) -> bytes | None:
    """Two leaves at one index under the two heads *notes*; None where the trees' hashes are not to be had.

    Args:
        files: of the log that signed both.
    """
    heads = [parse_signed_checkpoint(note)[1] for note in notes]
    size = min(head.size for head in heads)
    for one in _readers(heads[0], files, kept):
        for other in _readers(heads[1], files, kept):
            try:
                at = _first_difference(size, one, other)
            except KtlogError:
                continue
            if at is not None:
                return evidence_for_two_leaves(vkeys, at, (notes[0], one), (notes[1], other))
    return None


def _readers(head: Checkpoint, files: PublicFiles, kept: KeptEdge | None) -> Iterator[HashReader]:
    """Who gives hashes of the tree of *head*: what was kept of it, and then the log."""
    if kept is not None and kept[:2] == (head.size, head.root):
        yield _reader(kept[2])
    yield files.hashes(head.size, head.root)


def _reader(known: Mapping[Node, bytes]) -> HashReader:
    def read(nodes: Sequence[Node]) -> list[bytes]:
        if not known.keys() >= set(nodes):
            raise Invalid("NotKept", "these hashes of an older tree were not kept")
        return [known[node] for node in nodes]

    return read


def _first_difference(size: int, one: HashReader, other: HashReader) -> int | None:
    """The first of the first *size* leaves that is not the same in both; None if all are."""
    start = 0
    for level in reversed(range(size.bit_length())):
        if not size >> level & 1:
            continue
        at = start >> level
        if one([(level, at)]) != other([(level, at)]):
            for below in reversed(range(level)):
                at *= 2
                if one([(below, at)]) == other([(below, at)]):
                    at += 1
            return at
        start += 1 << level
    return None
