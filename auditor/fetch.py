"""Reads one log over HTTP: checkpoint, entry bundles, records, erasures, leaf keys, tiles, answers.

Nothing here is believed: what is read is bounded and parsed, and judged elsewhere. Every
failure is one coded error. No answer at all (a time-out, a refused connection, a server in
trouble) is ``Unreachable`` after a few attempts; an answer that cannot be right is ``Invalid``.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Protocol

from ktlog.client.erasures import (
    MAX_ERASURE_HEAD_BYTES,
    MAX_ERASURES_BYTES,
    ErasureHead,
    page_name,
    parse_erasure_head,
    read_erasures,
)
from ktlog.client.page import ActorPage, actor_page_path, parse_leaf_keys, read_all_pages
from ktlog.errors import EncodingError, Invalid, KtlogError, Unreachable
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.erasure import ErasureRecord
from ktlog.tlog.encoding import decode_base64
from ktlog.tlog.tiles import TILE_WIDTH, entry_bundle_path, parse_bundle, tile_path

MAX_CHECKPOINT_BYTES = 1 << 20
# Entries are 2,484 to 3,312 bytes, by dialect; the length prefix would allow 65,535.
MAX_BUNDLE_BYTES = TILE_WIDTH * 4096
# A log takes no message whose record is more than 300,000 bytes of JSON text; 256 such lines, and room to spare.
MAX_RECORDS_BYTES = 96 << 20
MAX_LEAF_KEYS_BYTES = 1 << 20
_GONE_STATUS = frozenset({404, 410})
# Not worth asking again: the address is wrong, or the answer will be as large next time.
_LASTING = frozenset({"TooLarge", "BadAddress", "BadRedirect"})
_RECORD_TYPES: dict[str, type] = {"leaf-index": int, "message": str, "plain": dict, "salts": dict, "withheld": bool}
_KIND_NAMES = {int: "integer", str: "string", dict: "object", bool: "boolean"}


class HttpResponse(Protocol):
    """What a fetcher gives back (ktlog.wire.fetch.Response)."""

    status: int
    body: bytes


class HttpFetcher(Protocol):
    """The one method the auditor needs of ktlog.wire.fetch.Fetcher."""

    def get(self, url: str, *, max_bytes: int | None = None) -> HttpResponse: ...


@dataclass(frozen=True)
class Record:
    """What the log publishes beside an entry: the exact preimage and the plaintext attributes."""

    leaf_index: int
    preimage: bytes
    plain: dict[str, str | None]
    withheld: bool


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


class LogReader:
    """One log under *base_url* ("https://keys.example.com", no slash at the end).

    Args:
        fetcher: anything with ``get(url, max_bytes=...)``; called from several threads.
        attempts: how often a passing failure is tried in all.
        pause: sleeps that many seconds before another attempt.
    """

    def __init__(
        self, fetcher: HttpFetcher, base_url: str, *, attempts: int = 3,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._fetcher = fetcher
        self.base_url = base_url
        self._attempts = attempts
        self._pause = pause

    def checkpoint(self) -> bytes:
        """The signed note at /checkpoint, unverified.

        Raises:
            Unreachable: also ``NoCheckpoint`` for a log that has published none: it has claimed nothing yet.
            Invalid: ``TooLarge``.
        """
        try:
            return self._get("checkpoint", MAX_CHECKPOINT_BYTES, "NoCheckpoint")
        except Invalid as error:
            if error.name == "NoCheckpoint":
                raise Unreachable("NoCheckpoint", error.message) from error
            raise

    def leaf_keys(self) -> Mapping[bytes, bytes]:
        """Every leaf-signing key the log says it ever used: SHA-256 of the raw key -> the key.

        Raises:
            Invalid: ``BadLeafKeys``, ``MissingLeafKeys``, ``TooLarge``.
            Unreachable
        """
        data = self._get("leaf-keys", MAX_LEAF_KEYS_BYTES, "MissingLeafKeys")
        try:
            return parse_leaf_keys(data)
        except Invalid as error:
            raise Invalid(
                "BadLeafKeys", f"{self.base_url}/leaf-keys is no list of leaf keys: {error.message}"
            ) from error

    def erasure_head(self) -> ErasureHead | None:
        """What /erasures says; None when the log has no such page and so never erased anything.

        Raises:
            Invalid: ``BadErasures``, ``TooLarge``.
            Unreachable
        """
        try:
            data = self._get("erasures", MAX_ERASURE_HEAD_BYTES, "MissingErasures")
        except Invalid as error:
            if error.name == "MissingErasures":
                return None
            raise
        return parse_erasure_head(data)

    def erasures(self, head: ErasureHead) -> tuple[ErasureRecord, ...]:
        """The whole erasure log, which must make up *head*.

        Raises:
            Invalid: ``BadErasures``, ``BadErasure``, ``MissingErasures``, ``TooLarge``.
            Unreachable
        """
        return read_erasures(head, lambda path: self._get(path, MAX_ERASURES_BYTES, "MissingErasures"))

    def entries(self, number: int, width: int) -> list[bytes]:
        """The *width* entries of bundle *number*.

        Raises:
            Invalid: ``BadEntryBundle`` for a wrong count, a truncated bundle or bytes left over;
                ``MissingEntries``, ``TooLarge``.
            Unreachable
        """
        data, full = self._get_partial(
            lambda w: entry_bundle_path(number, w), width, MAX_BUNDLE_BYTES, "MissingEntries"
        )
        try:
            return parse_bundle(data, TILE_WIDTH if full else width)[:width]
        except KtlogError as error:
            raise Invalid(
                "BadEntryBundle",
                f"{entry_bundle_path(number, width)} is not a bundle of {width} entries: {error.message}",
            ) from error

    def records(self, number: int, width: int) -> list[bytes]:
        """The lines of page *number* of the records, as many as there are (at most 256).

        Raises:
            Invalid: ``BadRecords`` when it does not end with a newline or has more than 256 lines;
                ``MissingRecords``, ``TooLarge``.
            Unreachable
        """
        def path(page_width: int) -> str:
            return f"records/{page_name(number, page_width)}"

        data, full = self._get_partial(path, width, MAX_RECORDS_BYTES, "MissingRecords")
        if not data.endswith(b"\n"):
            raise Invalid("BadRecords", f"{path(width)} does not end with a newline: it may be cut off")
        if data.count(b"\n") > TILE_WIDTH:
            raise Invalid("BadRecords", f"{path(width)} has more than {TILE_WIDTH} lines")
        lines = data[:-1].split(b"\n")
        return lines[:width] if full else lines

    def tile(self, level: int, number: int, width: int) -> bytes:
        """The first *width* hashes of a tile, as the log serves them.

        Raises:
            Invalid: ``MissingTile``, ``TooLarge``.
            Unreachable
        """
        data, full = self._get_partial(
            lambda w: tile_path(level, number, w), width, TILE_WIDTH * 32, "MissingTile"
        )
        return data[: width * 32] if full else data

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
            bodies.append(self._get(path, max_bytes, "MissingAnswer"))
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

    def _get_partial(
        self, path: Callable[[int], str], width: int, max_bytes: int, missing: str
    ) -> tuple[bytes, bool]:
        """A partial resource or, when the log has dropped it, the full one. Spec: C2SP tlog-tiles."""
        if width == TILE_WIDTH:
            return self._get(path(width), max_bytes, missing), False
        try:
            return self._get(path(width), max_bytes, missing), False
        except Invalid as error:
            if error.name != missing:
                raise
            try:
                return self._get(path(TILE_WIDTH), max_bytes, missing), True
            except Invalid as second:
                raise (error if second.name == missing else second) from second

    def _get(self, path: str, max_bytes: int, missing: str) -> bytes:
        url = f"{self.base_url}/{path}"
        for attempt in range(1, self._attempts):
            try:
                return self._get_once(url, max_bytes, missing)
            except Unreachable as error:
                if error.name in _LASTING:
                    raise
            self._pause(0.2 * 4 ** (attempt - 1))
        return self._get_once(url, max_bytes, missing)

    def _get_once(self, url: str, max_bytes: int, missing: str) -> bytes:
        try:
            response = self._fetcher.get(url, max_bytes=max_bytes)
        except Unreachable as error:
            if error.name == "TooLarge":
                raise Invalid("TooLarge", f"{url} is larger than the {max_bytes} bytes it may be") from error
            raise
        if response.status in _GONE_STATUS:
            raise Invalid(missing, f"{url} answers {response.status}")
        if response.status != 200:
            raise Unreachable(
                "BadStatus", f"{url} answers {response.status}",
                hint="Try again later; if it lasts, ask the log's operator.",
            )
        if len(response.body) > max_bytes:
            raise Invalid("TooLarge", f"{url} is larger than the {max_bytes} bytes it may be")
        return response.body


def parse_record(line: bytes, leaf_index: int) -> Record:
    """Parse one line of a page of records, which must be about *leaf_index*.

    Raises:
        Invalid: ``BadRecord`` when it has not exactly the members, of the types, that a record has.
    """
    try:
        document = parse_json(line)
    except KtlogError as error:
        raise Invalid("BadRecord", f"the record does not parse: {error.message}") from error
    if not isinstance(document, dict) or document.keys() != _RECORD_TYPES.keys():
        raise Invalid("BadRecord", f"the record has not exactly the members {', '.join(_RECORD_TYPES)}")
    for name, kind in _RECORD_TYPES.items():
        # type(), not isinstance(): true is an int to Python.
        if type(document[name]) is not kind:
            raise Invalid("BadRecord", f'"{name}" of the record is no {_KIND_NAMES[kind]}')
    if document["leaf-index"] != leaf_index:
        raise Invalid("BadRecord", f"the record says it is about entry {document['leaf-index']}")
    if not all(text is None or isinstance(text, str) for text in document["plain"].values()):
        raise Invalid("BadRecord", "a plaintext in the record is neither a string nor null")
    if document["withheld"] != (None in document["plain"].values()):
        raise Invalid("BadRecord", "the record says of itself whether text is withheld, and it is not so")
    for salt in document["salts"].values():
        try:
            decode_base64(salt if isinstance(salt, str) else "", 32)
        except EncodingError as error:
            raise Invalid("BadRecord", "a salt in the record is not base64 of 32 bytes") from error
    return Record(
        leaf_index, document["message"].encode("utf-8"), document["plain"], document["withheld"]
    )
