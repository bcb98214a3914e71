"""The tree of a log, and its published files, computed again from the entries: one page of 256 at a time.

What a byte's damage leads to is told apart by what vouches for what: the root after each entry says which of two
leaf hashes is the right one, and a leaf hash says which of two copies of an entry. So one damaged byte is one finding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ktlog.errors import EncodingError, Invalid
from ktlog.keymap.updates import parse_update, update_path, update_roots
from ktlog.operator.findings import Findings
from ktlog.pkd.erasure import ErasureRecord, encode_erasure_record
from ktlog.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, entry_bundle_path, parse_bundle, tile_path
from ktlog.tlog.tree import Frontier, hash_leaf, hash_level

ReadTile = Callable[[str], bytes | None]
Grown = tuple[int, int, list[bytes]]
"""Level, number and hashes of a tile."""


class TileStream:
    """The tiles of every level, as leaf hashes come. Holds one tile for each level."""

    def __init__(self) -> None:
        self._rows: list[list[bytes]] = []
        self._done: list[int] = []

    def append(self, leaf_hash: bytes) -> list[Grown]:
        """The tiles that this leaf completes, from below."""
        full: list[Grown] = []
        level, node = 0, leaf_hash
        while True:
            if len(self._rows) == level:
                self._rows.append([])
                self._done.append(0)
            row = self._rows[level]
            row.append(node)
            if len(row) < TILE_WIDTH:
                return full
            full.append((level, self._done[level], row))
            self._rows[level] = []
            self._done[level] += 1
            while len(row) > 1:
                row = hash_level(row)
            level, node = level + 1, row[0]

    def copy(self) -> TileStream:
        """Another one that goes on from here by itself."""
        other = TileStream()
        other._rows, other._done = [list(row) for row in self._rows], list(self._done)
        return other

    def partial(self) -> list[Grown]:
        """The tiles that are not full; none is empty."""
        return [(level, self._done[level], row) for level, row in enumerate(self._rows) if row]


@dataclass(frozen=True)
class Files:
    """Published files to be compared. prefix: where they lie, for findings. size: of the published tree.

    root: their directory, where partial files of older trees can be listed; None elsewhere.
    moved: whether a newer tree was published meanwhile; the partial files of this one may then be gone.
    """

    read: ReadTile
    prefix: str
    size: int
    root: Path | None = None
    moved: Callable[[], bool] = lambda: False


class FileCheck:
    """Compares published tiles and bundles with computed ones."""

    def __init__(self, files: Files, findings: Findings) -> None:
        self._files = files
        self._findings = findings
        self.broken: list[str] = []
        """Paths of what has to be made again."""

    def tile(self, level: int, number: int, hashes: Sequence[bytes]) -> None:
        """Every file of one tile, of which *hashes* are what the newest tree has of it."""
        for width, wanted in self._widths(level, number, len(hashes)):
            path = tile_path(level, number, width)
            found = self._files.read(path)
            if found is None:
                self._missing("TileMissing", path, wanted, width)
                continue
            if found != b"".join(hashes[:width]):
                self._damaged("TileDamaged", path, "it is not the tile that the entries make up")
            self._findings.checked["tiles"] += 1

    def bundle(self, number: int, hashes: Sequence[bytes]) -> list[bytes] | None:
        """Every file of one bundle, whose entries must have these leaf hashes; the widest good one's entries."""
        good: list[bytes] | None = None
        for width, wanted in self._widths("entries", number, len(hashes)):
            path = entry_bundle_path(number, width)
            found = self._files.read(path)
            if found is None:
                self._missing("BundleMissing", path, wanted, width)
                continue
            self._findings.checked["bundles"] += 1
            try:
                entries = parse_bundle(found, width)
                wrong = next((i for i, entry in enumerate(entries) if hash_leaf(entry) != hashes[i]), None)
            except EncodingError as error:
                self._damaged("BundleDamaged", path, error.message)
                continue
            if wrong is not None:
                at = number * TILE_WIDTH + wrong
                self._damaged("BundleDamaged", path, f"entry {at} in it is not the one in the tree")
            elif good is None or len(entries) > len(good):
                good = entries
        return good

    def update(self, leaf_index: int, before: bytes, after: bytes) -> None:
        """An update of the map, if it is there: it must lead from the one root to the other."""
        path = update_path(leaf_index)
        found = self._files.read(path)
        if found is None:
            self._findings.skip("Updates of the map: some are not there. They are not in a backup, and not made again.")
            return
        self._findings.checked["map updates"] += 1
        try:
            update = parse_update(found)
            if update.leaf_index != leaf_index or update_roots(update) != (before, after):
                raise Invalid("BadMapUpdate", "it does not lead from the map before to that of its leaf")
        except (EncodingError, Invalid) as error:
            self._findings.add("UpdateDamaged", f"{self._files.prefix}{path}", error.message)

    def _missing(self, name: str, path: str, wanted: bool, width: int) -> None:
        if wanted and not (width < TILE_WIDTH and self._files.moved()):
            self._damaged(name, path, "it is published, and not there")

    def _damaged(self, name: str, path: str, what: str) -> None:
        self.broken.append(path)
        self._findings.add(name, f"{self._files.prefix}{path}", what)

    def _widths(self, level: int | str, number: int, have: int) -> Iterator[tuple[int, bool]]:
        """The widths in which this tile may be there, and whether it must."""
        height = 0 if level == "entries" else TILE_HEIGHT * int(level)
        published = min(max(0, (self._files.size >> height) - number * TILE_WIDTH), TILE_WIDTH)
        if 0 < published <= have:
            yield published, True
        if self._files.root is None:
            return
        full = self._files.root / tile_path(level, number)  # type: ignore[arg-type]
        if have == TILE_WIDTH != published and full.exists():
            yield TILE_WIDTH, False
        partial = full.with_name(full.name + ".p")
        if not partial.is_dir():
            return
        for file in sorted(partial.iterdir()):
            width = int(file.name) if file.name.isascii() and file.name.isdigit() else 0
            if 0 < width <= have and width != published:
                yield width, False


class TreeCheck:
    """Follows the tree from entry 0 on, and knows at each what the stored rows must say.

    Args:
        sizes: tree sizes whose roots are to be kept, in ``roots``.
    """

    def __init__(self, findings: Findings, sizes: frozenset[int] = frozenset()) -> None:
        self._findings = findings
        self._sizes = sizes
        self._stream = TileStream()
        self.frontier = Frontier()
        self.roots: dict[int, bytes] = {0: self.frontier.root()}

    def take(
        self, entry: bytes | None, stored_hash: bytes | None, stored_root: bytes | None
    ) -> tuple[bytes, list[Grown]]:
        """The next entry with its stored leaf hash and root, None for what cannot be read.

        Returns:
            The leaf hash that is in the tree as far as can be told, and the tiles that it completes.
        """
        at = self.frontier.size
        computed = None if entry is None else hash_leaf(entry)
        options = [one for one in dict.fromkeys((computed, stored_hash)) if one is not None] or [bytes(32)]
        grown = [self.frontier.append(one) for one in options]
        right = next((i for i, one in enumerate(grown) if stored_root is not None and one.root() == stored_root), None)
        chosen = options[right or 0]
        if len(options) > 1 and right == 0:
            self._findings.add("LeafHashDamaged", f"log.db entries {at}", "its leaf hash is not that of the entry")
        elif len(options) > 1:
            what = "the entry does not hash to its leaf in the tree"
            self._findings.add("EntryDamaged", f"log.db entries {at}", what)
        if right is None and stored_root is not None:
            self._findings.add("RootDamaged", f"log.db leaf_roots {at + 1}", "it is not the root that the entries have")
        self.frontier = grown[right or 0]
        if self.frontier.size in self._sizes:
            self.roots[self.frontier.size] = self.frontier.root()
        self._findings.checked["entries"] += 1
        return chosen, self._stream.append(chosen)

    def partial(self) -> list[Grown]:
        return self._stream.partial()


def erasure_roots(records: Sequence[ErasureRecord]) -> list[bytes]:
    """The erasure log's root after 0, 1, 2 ... records."""
    tree = Frontier()
    roots = [tree.root()]
    for record in records:
        tree = tree.append(hash_leaf(encode_erasure_record(record)))
        roots.append(tree.root())
    return roots
