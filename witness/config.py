"""Where a witness keeps what it has, and the few numbers an operator may want to know.

A witness directory is made by ``init`` and by nothing else::

    DIR/                0700
    ├─ ed25519.key      0600, 32 bytes: the seed of the 0x04 cosigning key
    ├─ mldsa44.key      0600, 32 bytes: the seed of the 0x06 cosigning key
    ├─ witness.db       name, vkeys, logs, the latest cosigned checkpoint of each, evidence
    ├─ high-water       how much witness.db has recorded; may be elsewhere, on another disk
    ├─ serve.lock       held by the one running ``serve``
    └─ evidence/        of a verifier: a file for each log that it caught; copies of what witness.db has
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ktlog import durable
from ktlog.errors import StoreError

SEED_BYTES = 32

#: Bytes of one request body. A post-quantum signature line is 3.3 kB and a log may hand on
#: the cosignatures that it has collected so far, so a checkpoint is larger than it looks.
MAX_BODY_BYTES = 128 * 1024

#: One process, so that one connection orders all writes. Its threads sign, some of them many at a time (together.py),
#: and wait neither for senders nor for the disk: more would only get in each other's way. A verifier's wait for logs.
WORKERS = 1
THREADS = 8
VERIFIER_THREADS = 32


@dataclass(frozen=True)
class WitnessDir:
    """The paths inside one witness directory."""

    path: Path

    @property
    def database(self) -> Path:
        return self.path / "witness.db"

    @property
    def mark(self) -> Path:
        """Where the high-water mark is, unless the operator names another place."""
        return self.path / "high-water"

    @property
    def lock(self) -> Path:
        return self.path / "serve.lock"

    @property
    def evidence(self) -> Path:
        """Directory of what a verifier keeps about logs that it caught; made when there is something."""
        return self.path / "evidence"

    def key_file(self, kind: str) -> Path:
        return self.path / f"{kind}.key"

    def make(self) -> None:
        """Create the directory with mode 0700; an empty one that is there already will do.

        Raises:
            StoreError: something is in it ("WitnessExists"), or it cannot be made.
        """
        with durable.file_errors(self.path):
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            if any(self.path.iterdir()):
                raise StoreError(
                    "WitnessExists", f"{self.path} is not empty: it holds a witness, or something else",
                    hint="A witness is made once. To start another, name another directory.",
                )
            self.path.chmod(0o700)
        durable.sync_directory(self.path.parent)

    def check(self) -> None:
        """Refuse a directory that no ``init`` has finished.

        A database that went missing is never made anew: a witness that forgot what it has
        cosigned would cosign a second history.

        Raises:
            StoreError: "NoWitness" or "DatabaseMissing".
        """
        if not self.path.is_dir():
            raise StoreError(
                "NoWitness", f"there is no witness in {self.path}",
                hint=f"Make one: ktlog-witness init --dir {self.path} --name NAME",
            )
        if not self.database.is_file():
            raise StoreError(
                "DatabaseMissing", f"{self.database} is missing",
                hint="Find it. Without its record this witness could cosign a second history, so it will "
                "not start. If the record is lost for good, make a witness with a new name and new keys.",
            )
