"""Inclusion proofs of a running log: from verified tiles where they are published.

Reading leaf hashes from the store costs a page for every few of them, so a proof over a large log
would touch hundreds of pages. From tiles it reads one file of 8 KiB for each of the tree's levels
of tiles, and keeps what it verified, also when the tree has grown.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from ktlog.errors import Invalid, NotLogged, StoreError
from ktlog.operator.nodes import LogNodes
from ktlog.store.contracts import LogStore
from ktlog.tlog.tiles import TileHashReader
from ktlog.tlog.tree import prove_inclusion


class Proofs:
    """Proves inclusion in one log. Safe to use from many threads.

    Args:
        read_tile: a published tile's bytes by its path, or None.
    """

    def __init__(self, store: LogStore, read_tile: Callable[[str], bytes | None]) -> None:
        self._store = store
        self._read_tile = read_tile
        self._lock = threading.Lock()
        self._reader: tuple[int, TileHashReader] | None = None

    def inclusion(self, leaf_index: int, tree_size: int, published_size: int) -> list[bytes]:
        """The proof that entry *leaf_index* is in the tree of the first *tree_size* entries.

        Args:
            published_size: how far the tiles reach. A larger *tree_size* is proven from leaf hashes, of
                which there are few beyond the tiles (``unpublished_limit``).

        Raises:
            StoreError: ``MissingTile``, ``BadTile``, ``MissingLeaf``, and those of the store.
        """
        if tree_size > published_size:
            return prove_inclusion(leaf_index, tree_size, LogNodes(self._store, self._read_tile, published_size))
        try:
            with self._lock:
                return prove_inclusion(leaf_index, tree_size, self._tiles(published_size))
        except (Invalid, NotLogged) as error:
            raise StoreError(
                error.name, f"a published tile cannot be used: {error.message}",
                hint="The tiles can be made again from the entries: stop the log and run it with an empty tiles/.",
            ) from None

    def _tiles(self, published_size: int) -> TileHashReader:
        """The reader of the newest tree that was asked about; it keeps the tiles that it verified."""
        if self._reader is None or self._reader[0] != published_size:
            root = self._store.root_after(published_size)
            if self._reader is None or self._reader[0] > published_size:
                self._reader = published_size, TileHashReader(self._fetch, published_size, root)
            else:
                self._reader[1].advance(published_size, root)
                self._reader = published_size, self._reader[1]
        return self._reader[1]

    def _fetch(self, path: str) -> bytes:
        data = self._read_tile(path)
        if data is None:
            raise NotLogged("MissingTile", f"{path} is missing")
        return data
