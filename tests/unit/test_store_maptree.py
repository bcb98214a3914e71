"""The rows of the map's tree: a bit that flipped in one is never hashed into a root."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence

import pytest

from ktlog.errors import StoreError
from ktlog.keymap.prefix import MISSING, PrefixLeaf, subtree_hash
from ktlog.store.maptree import SUM_BYTES, damaged, grow, grown_depth, seal, unseal, write_leaves


class Rows:
    """``TreeRows`` in two dictionaries."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[int, bytes]] = {"buckets": {}, "pages": {}}

    def _some(self, kind: str, numbers: Iterable[int]) -> dict[int, bytes]:
        return {number: self.kept[kind][number] for number in numbers if number in self.kept[kind]}

    def buckets(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return self._some("buckets", numbers)

    def pages(self, numbers: Iterable[int]) -> dict[int, bytes]:
        return self._some("pages", numbers)

    def last_buckets(self, end: int, limit: int) -> Sequence[tuple[int, bytes]]:
        return sorted((row for row in self.kept["buckets"].items() if row[0] < end), reverse=True)[:limit]

    def write_buckets(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self.kept["buckets"] |= rows

    def write_pages(self, rows: Sequence[tuple[int, bytes]]) -> None:
        self.kept["pages"] |= rows

    def delete_buckets(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            del self.kept["buckets"][number]


def leaves(count: int, seed: int = 1) -> list[PrefixLeaf]:
    draw = random.Random(seed)
    return [PrefixLeaf(draw.randbytes(32), draw.randbytes(32)) for _ in range(count)]


def tree(count: int, *, old: bool = False) -> tuple[Rows, int, bytes]:
    """Rows of a tree of *count* leaves, its depth and its root; *old*: as they were before there were sums."""
    rows, depth = Rows(), 0
    size, root = write_leaves(rows, 0, depth, MISSING, leaves(count))
    wanted = grown_depth(size, depth)
    grow(rows, depth, wanted)
    if old:
        rows.kept = {kind: {n: row[:-SUM_BYTES] for n, row in kept.items()} for kind, kept in rows.kept.items()}
    return rows, wanted, root


@pytest.mark.parametrize("old", [False, True])
def test_rows_with_and_without_sums_make_the_same_root(old):
    rows, depth, root = tree(300, old=old)
    assert depth == 6 and root == subtree_hash(sorted(leaves(300)), 0)
    more = leaves(40, seed=2)
    assert write_leaves(rows, 300, depth, root, more)[1] == subtree_hash(sorted([*leaves(300), *more]), 0)
    assert [name for kind, kept in rows.kept.items() for name in damaged(kind, kept.items())] == []


@pytest.mark.parametrize("kind", ["buckets", "pages"])
def test_no_flipped_bit_reaches_a_root(kind):
    """Every byte of a row that an update reads, the marks of how many leaves lie below and the sum itself among them."""
    rows, depth, root = tree(300)
    change = leaves(1, seed=3)
    path = int.from_bytes(change[0].index[:8], "big") >> (64 - depth)
    number = path if kind == "buckets" else 1 << 3 | path >> 3
    whole = rows.kept[kind][number]
    assert len(whole) > 64
    before = {name: dict(kept) for name, kept in rows.kept.items()}
    for at in range(len(whole)):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        rows.kept[kind][number] = bytes(flipped)
        with pytest.raises(StoreError) as caught:
            write_leaves(rows, 300, depth, root, change)
        assert caught.value.name == "Corrupt"
        assert list(damaged(kind, rows.kept[kind].items())) == [f"{kind} {number}"]
        rows.kept = {name: dict(kept) for name, kept in before.items()}  # as the transaction that fails leaves it


@pytest.mark.parametrize("row", [b"", bytes(64), bytes(528)])
def test_a_sum_comes_off_as_it_went_on(row):
    assert unseal(seal(row)) == row == unseal(row)


@pytest.mark.parametrize("row", [bytes(3), bytes(65), bytes(527), seal(bytes(64))[:-1], seal(bytes(64)) + b"\0"])
def test_a_row_of_another_length_is_damaged(row):
    with pytest.raises(StoreError, match="not what was written"):
        unseal(row)
