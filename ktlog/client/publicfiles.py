"""Reads a log's public files: checkpoint, tiles, entry bundles, records, erasures, leaf keys.

Nothing here is believed: what is read is bounded and taken apart, and judged elsewhere. Every failure is one coded
error. No answer at all (a time-out, a refused connection, a server in trouble) is ``Unreachable``; an answer that
cannot be right, or that a published file is not there, is ``Invalid``.

Auditors, mirrors and verifiers read with it, so none of them sees another log than the others by reading otherwise.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
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
from ktlog.client.page import parse_leaf_keys
from ktlog.client.terms import bad_status
from ktlog.errors import EncodingError, Invalid, Unreachable
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.erasure import ErasureRecord
from ktlog.tlog.encoding import decode_base64
from ktlog.tlog.tiles import TILE_WIDTH, TileHashReader, entry_bundle_path, parse_bundle
from ktlog.wire.fetch import Response

MAX_FILE_BYTES = 1 << 20
# Entries are 2,484 to 3,312 bytes, by dialect; the length prefix would allow 65,535.
MAX_BUNDLE_BYTES = TILE_WIDTH * 4096
# A log takes no message whose record is more than 300,000 bytes of JSON text; 256 such lines, and room to spare.
MAX_RECORDS_BYTES = 96 << 20
SALT_BYTES = 32
_GONE = frozenset({404, 410})
# Not worth asking again: the address is wrong.
_LASTING = frozenset({"BadAddress", "BadRedirect"})
_MEMBERS: Mapping[str, type] = {"leaf-index": int, "message": str, "plain": dict, "salts": dict, "withheld": bool}
_KINDS = {int: "integer", str: "string", dict: "object", bool: "boolean"}


class FileGetter(Protocol):
    """What is needed of a fetcher; :class:`ktlog.wire.fetch.Fetcher` is one."""

    def get(self, url: str, *, max_bytes: int | None = None) -> Response: ...


class PublicFiles:
    """The files under *url* ("https://keys.example.com", or its "/map"; no slash at the end).

    Args:
        fetcher: may be called from several threads, if this is.
        attempts: how often a passing failure is tried in all.
        pause: sleeps that many seconds before another attempt.
    """

    def __init__(
        self, fetcher: FileGetter, url: str, *, attempts: int = 1, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self._fetcher = fetcher
        self.url = url
        self._attempts = attempts
        self._pause = pause

    def checkpoint(self) -> bytes:
        """The signed note at /checkpoint, unverified.

        Raises:
            Unreachable: also ``NoCheckpoint`` for a log that has published none: it has claimed nothing yet.
            Invalid: ``TooLarge``.
        """
        try:
            return self.file("checkpoint", "NoCheckpoint")
        except Invalid as error:
            if error.name == "NoCheckpoint":
                raise Unreachable("NoCheckpoint", error.message) from None
            raise

    def leaf_keys(self) -> Mapping[bytes, bytes]:
        """Every leaf-signing key the log says it ever used: SHA-256 of the raw key -> the key.

        Raises:
            Invalid: ``BadLeafKeys``, ``MissingLeafKeys``, ``TooLarge``.
            Unreachable
        """
        data = self.file("leaf-keys", "MissingLeafKeys")
        try:
            return parse_leaf_keys(data)
        except Invalid as error:
            raise Invalid("BadLeafKeys", f"{self.url}/leaf-keys is no list of leaf keys: {error.message}") from None

    def erasure_head(self) -> ErasureHead | None:
        """What /erasures says; None when the log has no such page.

        Raises:
            Invalid: ``BadErasures``, ``TooLarge``.
            Unreachable
        """
        try:
            data = self.file("erasures", "MissingErasures", MAX_ERASURE_HEAD_BYTES)
        except Invalid as error:
            if error.name == "MissingErasures":
                return None
            raise
        return parse_erasure_head(data)

    def erasures(self, head: ErasureHead, known: Sequence[ErasureRecord] = ()) -> tuple[ErasureRecord, ...]:
        """The whole erasure log, which must make up *head*; full pages of those *known* are not asked for again.

        Raises:
            Invalid: ``BadErasures``, ``BadErasure``, ``MissingErasures``, ``TooLarge``.
            Unreachable
        """
        return read_erasures(head, lambda path: self.file(path, "MissingErasures", MAX_ERASURES_BYTES), known)

    def entries(self, number: int, width: int) -> list[bytes]:
        """The *width* entries of bundle *number*.

        Raises:
            Invalid: ``BadEntryBundle`` for a wrong count, a truncated bundle or bytes left over;
                ``MissingEntries``, ``TooLarge``.
            Unreachable
        """
        data, of = self.partial(lambda w: entry_bundle_path(number, w), width, "MissingEntries", MAX_BUNDLE_BYTES)
        try:
            return parse_bundle(data, of)[:width]
        except EncodingError as error:
            raise Invalid(
                "BadEntryBundle", f"{entry_bundle_path(number, of)} is not a bundle of {of} entries: {error.message}"
            ) from None

    def records(self, number: int, width: int) -> list[bytes]:
        """The *width* lines of page *number* of the records; see :func:`parse_public_record`.

        Raises:
            Invalid: ``BadRecords`` when it has another number of lines, or is cut off;
                ``MissingRecords``, ``TooLarge``.
            Unreachable
        """
        data, of = self.partial(
            lambda w: f"records/{page_name(number, w)}", width, "MissingRecords", MAX_RECORDS_BYTES
        )
        lines = data.split(b"\n")
        if len(lines) != of + 1 or lines[-1]:
            raise Invalid("BadRecords", f"records/{page_name(number, of)} has not {of} lines")
        return lines[:width]

    def hashes(self, tree_size: int, root: bytes) -> TileHashReader:
        """Hashes of the tree of a checkpoint already verified, for which its root vouches; see TileHashReader."""

        def tile(path: str) -> bytes:
            try:
                return self.file(path, "MissingTile", TILE_WIDTH * 32)
            except Invalid as error:
                # The reader asks for the full tile then.
                raise Unreachable(error.name, error.message) from None

        return TileHashReader(tile, tree_size, root)

    def partial(
        self, path: Callable[[int], str], width: int, missing: str, max_bytes: int
    ) -> tuple[bytes, int]:
        """What is at path(*width*) or, when the log has dropped it, the full one; and how wide it is.

        Spec: C2SP tlog-tiles.

        Raises:
            Invalid: *missing*, ``TooLarge``.
            Unreachable
        """
        try:
            return self.file(path(width), missing, max_bytes), width
        except Invalid as error:
            if width == TILE_WIDTH or error.name != missing:
                raise
            try:
                return self.file(path(TILE_WIDTH), missing, max_bytes), TILE_WIDTH
            except Invalid as second:
                raise (error if second.name == missing else second) from None

    def file(self, path: str, missing: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Any file. *missing* names the error when it is not there.

        Raises:
            Invalid: *missing*, ``TooLarge``.
            Unreachable
        """
        for attempt in range(1, self._attempts):
            try:
                return self._get(path, missing, max_bytes)
            except Unreachable as error:
                if error.name in _LASTING:
                    raise
            self._pause(0.2 * 4 ** (attempt - 1))
        return self._get(path, missing, max_bytes)

    def _get(self, path: str, missing: str, max_bytes: int) -> bytes:
        url = f"{self.url}/{path}"
        try:
            response = self._fetcher.get(url, max_bytes=max_bytes)
            if len(response.body) > max_bytes:
                raise Unreachable("TooLarge")
        except Unreachable as error:
            if error.name == "TooLarge":
                raise Invalid("TooLarge", f"{url} is larger than the {max_bytes} bytes it may be") from None
            raise
        if response.status in _GONE:
            raise Invalid(missing, f"{url} answers {response.status}")
        if response.status != 200:
            raise bad_status(response)
        return response.body


@dataclass(frozen=True)
class PublicRecord:
    """What a log publishes beside an entry: the exact preimage, and what of its text is not withheld.

    salts: 32 bytes each, by attribute.
    """

    leaf_index: int
    preimage: bytes
    plain: Mapping[str, str | None]
    salts: Mapping[str, bytes]

    @property
    def withheld(self) -> bool:
        return None in self.plain.values()


def parse_public_record(line: bytes, leaf_index: int) -> PublicRecord:
    """Parse one line of a page of records, which must be about *leaf_index*, strictly.

    Raises:
        Invalid: ``BadRecord`` when it has not exactly the members, of the types, that a record has.
    """
    try:
        found = parse_json(line)
        if not isinstance(found, dict) or found.keys() != _MEMBERS.keys():
            raise EncodingError("BadRecord", f"it has not exactly the members {', '.join(_MEMBERS)}")
        for name, kind in _MEMBERS.items():
            # type(), not isinstance(): true is an int to Python.
            if type(found[name]) is not kind:
                raise EncodingError("BadRecord", f'its "{name}" is no {_KINDS[kind]}')
        plain, salts = found["plain"], found["salts"]
        if found["leaf-index"] != leaf_index:
            raise EncodingError("BadRecord", f"it says it is about entry {found['leaf-index']}")
        if not all(text is None or isinstance(text, str) for text in plain.values()):
            raise EncodingError("BadRecord", "a plaintext is neither a string nor null")
        if found["withheld"] != (None in plain.values()):
            raise EncodingError("BadRecord", "it says of itself whether text is withheld, and it is not so")
        decoded = {
            name: decode_base64(salt if isinstance(salt, str) else "", SALT_BYTES) for name, salt in salts.items()
        }
        return PublicRecord(leaf_index, found["message"].encode("utf-8"), plain, decoded)
    except EncodingError as error:
        raise Invalid("BadRecord", f"the record of entry {leaf_index}: {error.message}") from None
