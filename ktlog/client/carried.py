"""Fetches what a lookup needs of erased actors: the erasure log, and the entries of keys that outlived their owner.

Such an entry belongs to no actor's page any more, so it is read from the log's files: the entry
bundle, the records beside it, and the tree's tiles, which show that the entry is in the tree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ktlog.client.erasures import (
    MAX_ERASURE_HEAD_BYTES,
    MAX_ERASURES_BYTES,
    ErasureLog,
    page_name,
    parse_erasure_head,
    read_erasures,
)
from ktlog.client.page import HistoryRow, parse_record_line
from ktlog.client.terms import Getter, bad_status, fetch_body
from ktlog.client.verify import Head, Log
from ktlog.errors import EncodingError, Invalid, NotLogged, Unreachable
from ktlog.pkd.erasure import ErasureRecord
from ktlog.tlog.tiles import TILE_WIDTH, entry_bundle_path, parse_bundle
from ktlog.tlog.tree import HashReader, hash_leaf

MAX_CARRIED = 256
"""Entries of erased actors in one lookup."""
MAX_BUNDLE_BYTES = TILE_WIDTH * 4096
MAX_RECORDS_BYTES = 96 << 20
_ROLE = 1


def fetch_erasures(fetcher: Getter, log: Log, known: Sequence[ErasureRecord] = ()) -> ErasureLog:
    """The erasure log; an empty one from a log that has no such page.

    Raises:
        Unreachable
        Invalid: ``BadErasures``, ``BadErasure``.
    """
    response = fetcher.get(f"{log.url}/erasures", max_bytes=MAX_ERASURE_HEAD_BYTES)
    if response.status == 404:
        return ErasureLog(log.origin, ())
    if response.status != 200:
        raise bad_status(response)
    head = parse_erasure_head(response.body)
    return ErasureLog(log.origin, read_erasures(
        head, lambda path: fetch_body(fetcher, log.url, f"/{path}", MAX_ERASURES_BYTES), known
    ))


def fetch_rows(fetcher: Getter, log: Log, head: Head, read: HashReader, leaves: Iterable[int]) -> list[HistoryRow]:
    """The entries *leaves*, each shown to be in the tree of *head*, with what is published beside them.

    Args:
        read: hashes of head's tree, for which its root vouches.

    Raises:
        Invalid: ``BadEntryProof``, ``BadEntry``, ``MalformedAnswer``; ``BadTransition`` for more than
            :data:`MAX_CARRIED` entries, or one that is not in the tree.
        Unreachable
    """
    wanted = sorted(leaves)
    if len(wanted) > MAX_CARRIED or (wanted and wanted[-1] >= head.size):
        raise Invalid(
            "BadTransition", f"keys rest on {len(wanted)} entries of erased actors: too many, or not in the tree"
        )
    rows = []
    for number in dict.fromkeys(leaf // TILE_WIDTH for leaf in wanted):
        entries, lines = _fetch_page(fetcher, log, number, min(TILE_WIDTH, head.size - number * TILE_WIDTH))
        for leaf in (leaf for leaf in wanted if leaf // TILE_WIDTH == number):
            entry = entries[leaf % TILE_WIDTH]
            if read([(0, leaf)]) != [hash_leaf(entry)]:
                raise Invalid("BadEntryProof", f"the entry {leaf} that the log serves is not in its tree")
            preimage, plain = parse_record_line(lines[leaf % TILE_WIDTH], leaf)
            rows.append(HistoryRow(leaf, _ROLE, entry, preimage, plain, None))
    return rows


def _fetch_page(fetcher: Getter, log: Log, number: int, width: int) -> tuple[list[bytes], list[bytes]]:
    try:
        return _fetch_exactly(fetcher, log, number, width)
    except (Unreachable, NotLogged):
        # A log may drop a partial page once it has the full one. Spec: C2SP tlog-tiles.
        if width == TILE_WIDTH:
            raise
        return _fetch_exactly(fetcher, log, number, TILE_WIDTH)


def _fetch_exactly(fetcher: Getter, log: Log, number: int, width: int) -> tuple[list[bytes], list[bytes]]:
    bundle = fetch_body(fetcher, log.url, f"/{entry_bundle_path(number, width)}", MAX_BUNDLE_BYTES)
    records = fetch_body(fetcher, log.url, f"/records/{page_name(number, width)}", MAX_RECORDS_BYTES)
    try:
        entries = parse_bundle(bundle, width)
    except EncodingError as error:
        raise Invalid("BadEntry", f"entry bundle {number} does not parse: {error.message}") from error
    lines = records.split(b"\n")
    if len(lines) != width + 1 or lines[-1]:
        raise Invalid("MalformedAnswer", f"page {number} of the records has not {width} lines")
    return entries, lines[:-1]
