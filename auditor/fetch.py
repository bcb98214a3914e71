"""Reads one log over HTTP for an audit: its public files, pages of entries ahead of time, and the API's answers."""

from __future__ import annotations

import os
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ktlog.client.page import ActorPage, actor_page_path, read_all_pages
from ktlog.client.publicfiles import FileGetter, PublicFiles
from ktlog.errors import KtlogError, Unreachable
from ktlog.tlog.tiles import TILE_WIDTH, tile_path
from ktlog.wire.fetch import Response

# Names that cannot leave the directory.
_IN_COPY = re.compile(r"[A-Za-z0-9_-]+(\.p)?(/[A-Za-z0-9_-]+(\.p)?)*", re.ASCII)

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
    records: list[bytes] | KtlogError | None
    """None where nobody asked for them."""


class LogReader(PublicFiles):
    """One log, read by several threads. ``read_bytes`` counts what was read so far."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._counting = threading.Lock()
        self.read_bytes = 0

    def beside(self, url: str) -> LogReader:
        """A reader of the files under another address, in the same way."""
        return LogReader(self._fetcher, url, attempts=self._attempts, pause=self._pause)

    def _get(self, path: str, missing: str, max_bytes: int) -> bytes:
        body = super()._get(path, missing, max_bytes)
        with self._counting:
            self.read_bytes += len(body)
        return body

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

    def pages(
        self, tree_size: int, pool: Executor, ahead: int = 3, *, start: int = 0, records: bool = True
    ) -> Iterator[Page]:
        """The pages of a tree of *tree_size* entries from entry *start* on, in order, read *ahead* in advance."""
        pending: deque[Future[Page]] = deque()
        try:
            # Lazily: the size is only what a checkpoint says.
            for number in range(start // TILE_WIDTH, -(-tree_size // TILE_WIDTH)):
                width = min(TILE_WIDTH, tree_size - number * TILE_WIDTH)
                pending.append(pool.submit(self.page, number, width, records))
                if len(pending) > ahead:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def page(self, number: int, width: int, records: bool = True) -> Page:
        """One page; what failed to be read is in it, as the error."""
        def attempt(read: Callable[[int, int], list[bytes]]) -> list[bytes] | KtlogError:
            try:
                return read(number, width)
            except KtlogError as error:
                return error

        entries = attempt(self.entries)
        return Page(number, number * TILE_WIDTH, width, entries, attempt(self.records) if records else None)


class LocalCopy:
    """A fetcher over a local copy of a log's published files; *otherwise* is asked for what is not among them.

    Args:
        directory: what a web server would serve under *url*.
        otherwise: None where nobody is to be asked; a file that is missing is then "404".
    """

    def __init__(self, directory: Path, url: str, otherwise: FileGetter | None = None) -> None:
        self._directory = directory
        self._url = url
        self._otherwise = otherwise

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        """What is at *url*; a file as it is, however large up to one byte more than *max_bytes*."""
        path = url.removeprefix(f"{self._url}/")
        if path != url and _IN_COPY.fullmatch(path):
            try:
                with open(self._directory / path, "rb", buffering=0) as file:
                    # As long as it is, where that is known: a read of as much as is allowed would make room for it.
                    short = max_bytes is None or os.fstat(file.fileno()).st_size <= max_bytes
                    return Response(200, {}, file.readall() if short else file.read(max_bytes + 1) or b"", url)
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                pass
            except OSError as error:
                raise Unreachable("UnreadableFile", f"{self._directory / path}: {error.strerror}") from None
        if self._otherwise is None:
            return Response(404, {}, b"", url)
        return self._otherwise.get(url, max_bytes=max_bytes)
