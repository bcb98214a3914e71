"""Where entries are read from that a claim names and does not hold: the log itself, or a copy of its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from auditor.evidence.claims import Logged
from ktlog.client.publicfiles import FileGetter, PublicFiles, PublicRecord, parse_public_record
from ktlog.errors import Unreachable, UsageError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.note import Vkey, open_note
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.wire.fetch import Response

COPY = "https://copy.invalid"


class CopiedFiles:
    """A fetcher that reads a directory laid out as a log serves its files, and nothing outside it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory.resolve()

    def get(self, url: str, *, max_bytes: int | None = None) -> Response:
        path = (self._directory / unquote(urlsplit(url).path).lstrip("/")).resolve()
        if not path.is_relative_to(self._directory):
            return Response(404, {}, b"", url)
        try:
            with open(path, "rb") as file:
                data = file.read() if max_bytes is None else file.read(max_bytes + 1)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return Response(404, {}, b"", url)
        except OSError as error:
            raise Unreachable("Broken", f"cannot read {path}: {error.strerror}") from None
        return Response(200, {}, data, url)


@dataclass(frozen=True)
class Source:
    """A log's files. genuine: they come from the log's own address, so that what nobody signs is at least its word."""

    files: PublicFiles
    genuine: bool

    def logged(self, size: int) -> Iterator[Logged]:
        """The first *size* entries with what is published beside them.

        Raises (on the way):
            Invalid, Unreachable: they cannot be had, or their records do not parse.
        """
        published = self._published()
        for number in range(-(-size // TILE_WIDTH)):
            width = min(TILE_WIDTH, max(published, size) - number * TILE_WIDTH)
            entries, records = self.files.entries(number, width), self.files.records(number, width)
            for offset in range(min(width, size - number * TILE_WIDTH)):
                record = parse_public_record(records[offset], number * TILE_WIDTH + offset)
                yield Logged(entries[offset], record.preimage, record.plain)

    def record(self, leaf_index: int) -> PublicRecord:
        """What is published beside one entry.

        Raises:
            Invalid, Unreachable
        """
        number, offset = divmod(leaf_index, TILE_WIDTH)
        width = min(TILE_WIDTH, max(self._published(), leaf_index + 1) - number * TILE_WIDTH)
        return parse_public_record(self.files.records(number, width)[offset], leaf_index)

    def has(self, vkey: Vkey, leaf_index: int, entry: bytes) -> bool:
        """Whether what answers is the log of *vkey*, with *entry* at its place: a name may have another owner by now.

        Raises:
            EncodingError, Invalid, Unreachable
        """
        note, checkpoint = parse_signed_checkpoint(self.files.checkpoint())
        if checkpoint.origin != vkey.name or checkpoint.size <= leaf_index or not open_note(note, [vkey]):
            return False
        number, offset = divmod(leaf_index, TILE_WIDTH)
        width = min(TILE_WIDTH, checkpoint.size - number * TILE_WIDTH)
        return self.files.entries(number, width)[offset] == entry

    def _published(self) -> int:
        """The size that decides which pages are whole; nothing is believed for it."""
        return parse_signed_checkpoint(self.files.checkpoint())[1].size


def open_source(text: str, origin: str, fetcher: FileGetter) -> Source:
    """What ``--log`` means for a claim about the log of entries *origin*.

    Raises:
        UsageError: ``BadLog``.
    """
    if "://" in text:
        url = text.rstrip("/")
        if url.partition("://")[0] != "https":
            raise UsageError("BadLog", f"{text!r} is no https URL")
        return Source(PublicFiles(fetcher, url, attempts=3), urlsplit(url).netloc == origin)
    if not Path(text).is_dir():
        raise UsageError("BadLog", f"{text!r} is neither a URL nor a directory", hint="Give https://… or a directory.")
    return Source(PublicFiles(CopiedFiles(Path(text)), COPY), False)
