"""Reads one log over HTTP for an audit: its public files, pages of entries ahead of time, and the API's answers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from ktlog.client.page import ActorPage, actor_page_path, read_all_pages
from ktlog.client.publicfiles import PublicFiles
from ktlog.errors import KtlogError
from ktlog.tlog.tiles import TILE_WIDTH, tile_path

ATTEMPTS = 3
"""How often a passing failure is tried in all."""


@dataclass(frozen=True)
class ActorAnswer:
    """What the API says about an actor: all its pages as one, and the first as it came."""

    page: ActorPage
    body: bytes


@dataclass(frozen=True)
class Page:
    """Up to 256 entries with what belongs to them; each part read, or the error instead."""

    number: int
    first: int
    width: int
    entries: list[bytes] | KtlogError
    records: list[bytes] | KtlogError


class LogReader(PublicFiles):
    """One log, read by several threads."""

    def tile(self, level: int, number: int, width: int) -> bytes:
        """The first *width* hashes of a tile, as the log serves them.

        Raises:
            Invalid: ``MissingTile``, ``TooLarge``.
            Unreachable
        """
        data, of = self.partial(lambda w: tile_path(level, number, w), width, "MissingTile", TILE_WIDTH * 32)
        return data if of == width else data[: width * 32]

    def actor_keys(self, actor_id: str, tree_size: int) -> ActorAnswer:
        """The answer about an actor's keys and history in the tree of *tree_size* entries, with proofs.

        Raises:
            Invalid: ``MissingAnswer`` for a 404, ``TooLarge``, ``HistoryTooLong``; ``WrongActor``,
                ``MalformedAnswer``.
            Unreachable
        """
        bodies: list[bytes] = []

        def read(after: int | None, max_bytes: int) -> bytes:
            path = actor_page_path(actor_id, tree_size, after).removeprefix("/")
            bodies.append(self.file(path, "MissingAnswer", max_bytes))
            return bodies[-1]

        page = read_all_pages(read, actor_id, tree_size)
        return ActorAnswer(page, bodies[0])

    def pages(self, tree_size: int, pool: Executor, ahead: int = 3) -> Iterator[Page]:
        """Every page of a tree of *tree_size* entries, in order, read *ahead* pages in advance."""
        pending: deque[Future[Page]] = deque()
        try:
            # Lazily: the size is only what a checkpoint says.
            for number in range(-(-tree_size // TILE_WIDTH)):
                width = min(TILE_WIDTH, tree_size - number * TILE_WIDTH)
                pending.append(pool.submit(self._page, number, width))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def _page(self, number: int, width: int) -> Page:
        def attempt(read: Callable[[int, int], list[bytes]]) -> list[bytes] | KtlogError:
            try:
                return read(number, width)
            except KtlogError as error:
                return error

        entries = attempt(self.entries)
        return Page(number, number * TILE_WIDTH, width, entries, attempt(self.records))
