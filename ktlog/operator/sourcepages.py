"""Reads another log's public files: checkpoint, tiles, entry bundles, records, erasures, leaf keys.

What is read is bounded and taken apart, and believed by nobody yet. No answer is ``Unreachable``; one that
says that a published file is not there, or that is none, is ``Invalid``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ktlog.client.erasures import (
    MAX_ERASURE_HEAD_BYTES,
    MAX_ERASURES_BYTES,
    ErasureHead,
    page_name,
    parse_erasure_head,
    read_erasures,
)
from ktlog.client.page import parse_leaf_keys
from ktlog.errors import EncodingError, Invalid, Unreachable
from ktlog.pkd.erasure import ErasureRecord
from ktlog.tlog.tiles import TILE_WIDTH, entry_bundle_path, parse_bundle
from ktlog.wire.fetch import Response

MAX_BYTES = 1 << 20
MAX_BUNDLE_BYTES = TILE_WIDTH * 4096
MAX_RECORDS_BYTES = 96 << 20
_GONE = frozenset({404, 410})


class Getter(Protocol):
    """What is needed of a fetcher; :class:`ktlog.wire.fetch.Fetcher` is one."""

    def get(self, url: str, *, max_bytes: int | None = None) -> Response: ...


class SourcePages:
    """The files of the log at *url*, which has no slash at its end."""

    def __init__(self, fetcher: Getter, url: str) -> None:
        self._fetcher = fetcher
        self._url = url

    def checkpoint(self) -> bytes:
        """The signed note. Raises Unreachable, also for a log that published none yet."""
        try:
            return self.file("checkpoint")
        except Invalid as error:
            raise Unreachable("NoCheckpoint", error.message) from None

    def file(self, path: str, max_bytes: int = MAX_BYTES) -> bytes:
        """Any file. Raises Unreachable; Invalid (``MissingFile``, ``TooLarge``)."""
        url = f"{self._url}/{path}"
        try:
            response = self._fetcher.get(url, max_bytes=max_bytes)
        except Unreachable as error:
            if error.name == "TooLarge":
                raise Invalid("TooLarge", error.message) from None
            raise
        if response.status in _GONE:
            raise Invalid("MissingFile", f"{url} answers {response.status}")
        if response.status != 200:
            raise Unreachable("BadStatus", f"{url} answers {response.status}")
        return response.body

    def tile(self, path: str) -> bytes:
        """A tile, for ``TileHashReader``, which asks for the full one when a partial one is not there."""
        try:
            return self.file(path, TILE_WIDTH * 32)
        except Invalid as error:
            raise Unreachable(error.name, error.message) from None

    def leaf_keys(self) -> Mapping[bytes, bytes]:
        """By SHA-256 of the raw key. Raises Unreachable, Invalid."""
        return parse_leaf_keys(self.file("leaf-keys"))

    def erasure_head(self) -> ErasureHead:
        """How many erasures there were. Raises Unreachable, Invalid (``BadErasures``, ``MissingFile``)."""
        return parse_erasure_head(self.file("erasures", MAX_ERASURE_HEAD_BYTES))

    def erasures(self, head: ErasureHead, known: Sequence[ErasureRecord]) -> tuple[ErasureRecord, ...]:
        """The whole erasure log; full pages of those *known* are not asked for again.

        Raises:
            Unreachable
            Invalid: ``BadErasures``, ``BadErasure``, ``MissingFile``.
        """
        return read_erasures(head, lambda path: self.file(path, MAX_ERASURES_BYTES), known)

    def entries(self, number: int, width: int) -> list[bytes]:
        """The *width* entries of bundle *number*. Raises Unreachable; Invalid (``BadEntryBundle``, ``MissingFile``)."""
        data, of = self._page(lambda w: entry_bundle_path(number, w), width, MAX_BUNDLE_BYTES)
        try:
            return parse_bundle(data, of)[:width]
        except EncodingError as error:
            raise Invalid("BadEntryBundle", f"bundle {number} is not one of {of} entries: {error.message}") from None

    def records(self, number: int, width: int) -> list[bytes]:
        """The *width* lines of page *number*. Raises Unreachable; Invalid (``BadRecords``, ``MissingFile``)."""
        data, of = self._page(lambda w: f"records/{page_name(number, w)}", width, MAX_RECORDS_BYTES)
        lines = data.split(b"\n")
        if len(lines) != of + 1 or lines[-1]:
            raise Invalid("BadRecords", f"page {number} of the records has not {of} lines")
        return lines[:width]

    def _page(self, path: Callable[[int], str], width: int, max_bytes: int) -> tuple[bytes, int]:
        """A partial page or, when the log dropped it, the full one; and of how many it is. Spec: C2SP tlog-tiles."""
        try:
            return self.file(path(width), max_bytes), width
        except Invalid as error:
            if width == TILE_WIDTH or error.name != "MissingFile":
                raise
            try:
                return self.file(path(TILE_WIDTH), max_bytes), TILE_WIDTH
            except Invalid as second:
                raise (error if second.name == "MissingFile" else second) from None
