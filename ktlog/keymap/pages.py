"""A history in pages: what a server cuts and a client joins. Pure.

The items are counted through: first those of the actor's own history, then those of each old history, in order. A
page repeats everything else of the bundle, and has one list for each old history, often empty. Nothing in a page is
believed before the joined history was compared with the root that the value commits to.

Spec: directory map v1 §8, sections 10, 11 and 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

from ktlog.errors import EncodingError
from ktlog.keymap.bundle import Bundle, Page, count_items


def cut(lengths: Sequence[int], start: int, most: int) -> list[range]:
    """Which items of each list belong to the page that begins with item *start* and has at most *most*.

    Args:
        lengths: of the lists, in their order.
    """
    ranges, before = [], 0
    for length in lengths:
        first = min(max(start - before, 0), length)
        last = min(max(start + most - before, 0), length)
        ranges.append(range(first, last))
        before += length
    return ranges


def next_start(bundle: Bundle) -> int | None:
    """Where the page after this one begins; None after the last."""
    if bundle.page is None:
        return None
    following = bundle.page.start + count_items(bundle)
    return None if following == bundle.page.total else following


def join(pages: Sequence[Bundle]) -> Bundle:
    """The bundle that *pages*, in order and complete, are pages of; pending entries are the first page's.

    Raises:
        EncodingError: ``MalformedBundle``: they are pages of different bundles, or one is missing.
    """
    first, wanted = pages[0], 0
    if first.page is None and len(pages) == 1:
        return first
    for page in pages:
        if page.page != Page(wanted, first.page.total if first.page else 0) or _frame(page) != _frame(first):
            raise EncodingError("MalformedBundle", "the pages do not belong together")
        wanted += count_items(page)
    if next_start(pages[-1]) is not None:
        raise EncodingError("MalformedBundle", "the last page is missing")
    return replace(
        first, page=None, history=tuple(chain.from_iterable(page.history or () for page in pages)),
        old_histories=tuple(
            tuple(chain.from_iterable(lists)) for lists in zip(*(page.old_histories for page in pages), strict=True)
        ),
    )


def _frame(bundle: Bundle) -> tuple[Bundle, int]:
    """What all pages of one bundle have in common."""
    return replace(bundle, history=None, old_histories=(), pending=(), page=None), len(bundle.old_histories)
