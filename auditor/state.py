"""What an auditor keeps between runs: the head of its last clean audit, and the evidence.

::

    DIR/
      heads/<origin>.note     the checkpoint of the last clean audit, exactly as it was signed
      evidence/<kind>-*.json  what convicts a log; never overwritten
      lock                    one audit at a time

A head is only ever replaced by that of a later clean audit; a failed one leaves it alone.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import quote

from ktlog.durable import FileLock, file_errors, read_file, write_atomic, write_once

_LONGEST_NAME_BYTES = 180


def origin_filename(origin: str) -> str:
    """A file name for *origin*, the same on every machine, that cannot leave its directory."""
    name = quote(origin, safe="")
    if name.startswith("."):
        name = "%2E" + name[1:]
    if len(name) <= _LONGEST_NAME_BYTES:
        return name
    return hashlib.sha256(origin.encode("utf-8")).hexdigest()


class AuditDirectory:
    """The directory given as ``--dir``. Use as a context manager: it holds the lock.

    Raises:
        StoreError: ``Locked`` when another audit runs in it; ``NoPermission`` and the like when it
            cannot be made, read or written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._lock = FileLock(self.path / "lock")

    def __enter__(self) -> AuditDirectory:
        for part in ("heads", "evidence"):
            with file_errors(self.path / part):
                (self.path / part).mkdir(parents=True, exist_ok=True)
        self._lock.acquire()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()

    def head_path(self, origin: str) -> Path:
        return self.path / "heads" / (origin_filename(origin) + ".note")

    def load_head(self, origin: str) -> bytes | None:
        """The signed note of the last clean audit of *origin*, or None before the first."""
        return read_file(self.head_path(origin))

    def save_head(self, origin: str, note: bytes) -> None:
        """Remember *note* in one atomic step. Only a clean audit may."""
        write_atomic(self.head_path(origin), note)

    def save_evidence(self, evidence: bytes, kind: str, origin: str) -> Path:
        """Write *evidence* durably under a name that tells its content; the same twice is one file."""
        digest = hashlib.sha256(evidence).hexdigest()[:16]
        path = self.path / "evidence" / f"{kind}-{origin_filename(origin)[:80]}-{digest}.json"
        write_once(path, evidence)
        return path
