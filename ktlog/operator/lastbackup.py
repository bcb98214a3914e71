"""When the log was backed up last, for those who watch it. No backup depends on what is noted here."""

from __future__ import annotations

import json
import os
import stat
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ktlog.config import Settings
from ktlog.durable import write_atomic
from ktlog.errors import EncodingError
from ktlog.pkd.canonical import parse_json
from ktlog.tlog.encoding import MAXIMUM_INTEGER

NAME = "last-backup.json"
LIMIT_BYTES = 1_024


@dataclass(frozen=True)
class LastBackup:
    """time: when it was begun, in Unix seconds. size: entries that it has."""

    time: int
    size: int


def note_backup(settings: Settings, backup: LastBackup) -> None:
    """Raises StoreError: it cannot be written, which takes nothing from the backup."""
    data = json.dumps({"time": backup.time, "size": backup.size}).encode() + b"\n"
    write_atomic(settings.directory / NAME, data, mode=0o600)


def last_backup(settings: Settings) -> LastBackup | None:
    """The newest that was noted; None where none was, or what is there cannot be read or is no such note."""
    try:
        found = parse_json(_read(settings.directory / NAME))
        backup = LastBackup(found["time"], found["size"])
    except (OSError, EncodingError, KeyError, TypeError):
        return None
    fits = all(type(number) is int and 0 <= number <= MAXIMUM_INTEGER for number in (backup.time, backup.size))
    return backup if fits else None


def _read(path: Path) -> bytes:
    """Raises OSError: there is no regular file, or none of at most LIMIT_BYTES."""
    at = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)  # a pipe would keep us
    try:
        if not stat.S_ISREG(os.fstat(at).st_mode):
            raise OSError(f"{path} is no regular file")
        data = os.read(at, LIMIT_BYTES + 1)
    finally:
        with suppress(OSError):
            os.close(at)
    if len(data) > LIMIT_BYTES:
        raise OSError(f"{path} is longer than such a note")
    return data
