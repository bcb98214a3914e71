"""Fetches what a lookup needs of erased actors: the erasure log, and the entries of keys that outlived their owner.

Such an entry belongs to no actor's page any more, so it is read from the log's files: the entry
bundle, the records beside it, and the tree's tiles, which show that the entry is in the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktlog.client.erasures import ErasureLog
from ktlog.client.page import HistoryRow
from ktlog.client.publicfiles import FileGetter, PublicFiles, parse_public_record
from ktlog.client.verify import Head, Log
from ktlog.errors import Invalid
from ktlog.pkd.erasure import ErasureRecord
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import HashReader, hash_leaf

MAX_CARRIED = 256
"""Entries of erased actors in one lookup."""
_ROLE = 1


def fetch_erasures(fetcher: FileGetter, log: Log, known: Sequence[ErasureRecord] = ()) -> ErasureLog:
    """The erasure log; an empty one from a log that has no such page.

    Raises:
        Unreachable
        Invalid: ``BadErasures``, ``BadErasure``, ``MissingErasures``, ``TooLarge``.
    """
    files = PublicFiles(fetcher, log.url)
    head = files.erasure_head()
    return ErasureLog(log.origin, () if head is None else files.erasures(head, known))


def fetch_rows(fetcher: FileGetter, log: Log, head: Head, read: HashReader, leaves: Iterable[int]) -> list[HistoryRow]:
    """The entries *leaves*, each shown to be in the tree of *head*, with what is published beside them.

    Args:
        read: hashes of head's tree, for which its root vouches.

    Raises:
        Invalid: ``BadEntryProof``, ``BadEntryBundle``, ``BadRecords``, ``BadRecord``, ``MissingEntries``,
            ``MissingRecords``, ``TooLarge``; ``BadTransition`` for more than :data:`MAX_CARRIED` entries, or one that
            is not in the tree.
        Unreachable
    """
    wanted = sorted(leaves)
    if len(wanted) > MAX_CARRIED or (wanted and wanted[-1] >= head.size):
        raise Invalid(
            "BadTransition", f"keys rest on {len(wanted)} entries of erased actors: too many, or not in the tree"
        )
    rows, files = [], PublicFiles(fetcher, log.url)
    for number in dict.fromkeys(leaf // TILE_WIDTH for leaf in wanted):
        width = min(TILE_WIDTH, head.size - number * TILE_WIDTH)
        entries, lines = files.entries(number, width), files.records(number, width)
        for leaf in (leaf for leaf in wanted if leaf // TILE_WIDTH == number):
            entry = entries[leaf % TILE_WIDTH]
            if read([(0, leaf)]) != [hash_leaf(entry)]:
                raise Invalid("BadEntryProof", f"the entry {leaf} that the log serves is not in its tree")
            shown = parse_public_record(lines[leaf % TILE_WIDTH], leaf)
            rows.append(HistoryRow(leaf, _ROLE, entry, shown.preimage, shown.plain, None))
    return rows
