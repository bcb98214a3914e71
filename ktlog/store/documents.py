"""Small things that must never be half written: the last signed heads, the leaf that waits for its cosignatures.

A document is replaced whole, durably, before anything rests on what it says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from ktlog.durable import file_errors, read_file, sync_directory, write_atomic


class Document(Protocol):
    """One of them; ``str`` gives where it is, for messages."""

    def read(self) -> bytes | None:
        """All of it, or None when there is none."""

    def write(self, data: bytes) -> None:
        """Replace it, durably: afterwards it is *data*, or after an error what it was."""

    def remove(self) -> None:
        """Remove it, durably; nothing happens without one."""


class FileDocument:
    """``Document`` over the file *path*, which only its owner can read."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __str__(self) -> str:
        return str(self._path)

    def read(self) -> bytes | None:
        return read_file(self._path)

    def write(self, data: bytes) -> None:
        write_atomic(self._path, data, mode=0o600)

    def remove(self) -> None:
        with file_errors(self._path):
            self._path.unlink(missing_ok=True)
        sync_directory(self._path.parent)
