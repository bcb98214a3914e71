"""Where a mirror keeps what it has, and the keys that are its own.

A mirror is a second role of a witness, and never the same cosigner: its signature says that it holds every entry. It
is made by ``init-mirror`` and by nothing else, all at once, so what is missing later was lost::

    DIR/mirror/         0700, within the witness's directory
    ├─ ed25519.key      0600, 32 bytes: the seed of its 0x04 cosigning key
    ├─ mldsa44.key      0600, 32 bytes: the seed of its 0x06 cosigning key
    ├─ ticket.key       0600, 32 bytes: what it knows its own tickets by
    ├─ mirror.db        name, vkeys, the logs that are mirrored, their pending and mirror checkpoints
    ├─ high-water       how much mirror.db has recorded; may be elsewhere, on another disk
    ├─ serve.lock       held by the one running ``serve-mirror``
    └─ logs/            of each log, by its origin's hash, entry bundles and tiles as they are served
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ktlog import durable
from ktlog.errors import StoreError, UsageError
from ktlog.tlog import note
from witness.config import SEED_BYTES, WitnessDir
from witness.keys import KINDS, derive_seed, derive_signers

TICKET_KIND = "ticket"
PREFIX = "mirror-"
"""What the kinds of a mirror's keys begin with where they are derived: one seed makes no key twice."""


@dataclass(frozen=True)
class MirrorDir:
    """The paths of the mirror within one witness directory."""

    witness: WitnessDir
    name: str = "mirror"

    @property
    def path(self) -> Path:
        return self.witness.path / self.name

    @property
    def database(self) -> Path:
        return self.path / "mirror.db"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def mark(self) -> Path:
        """Where the high-water mark is, unless the operator names another place."""
        return self.path / "high-water"

    @property
    def lock(self) -> Path:
        return self.path / "serve.lock"

    def key_file(self, kind: str) -> Path:
        return self.path / f"{kind}.key"

    def exists(self) -> bool:
        return self.path.is_dir()

    def check(self) -> None:
        """Refuse a directory without its record, which is never made anew.

        Raises:
            StoreError: "NoMirror", "MirrorDatabaseMissing".
        """
        if not self.exists():
            raise StoreError(
                "NoMirror", f"there is no mirror in {self.witness.path}",
                hint=f"Make one: ktlog-witness init-mirror --dir {self.witness.path} --name NAME",
            )
        if not (self.database.is_file() and self.logs.is_dir()):
            raise StoreError(
                "MirrorDatabaseMissing", f"{self.database}, or {self.logs} beside it, is missing",
                hint="Find it. Without its record this mirror could cosign a second history, so it will not start."
                     " If it is lost for good, move the rest of the mirror's directory away, and make a mirror with a"
                     " new name and new keys.",
            )

    def begin(self) -> MirrorDir:
        """An empty directory to make a mirror in; it becomes this one by :meth:`finish`.

        Raises:
            StoreError: "MirrorExists".
        """
        if self.exists():
            raise StoreError("MirrorExists", f"{self.path} exists: a mirror is made once")
        new = MirrorDir(self.witness, f".{self.name}.new")
        with durable.file_errors(new.path):
            if new.exists():  # of an init-mirror that died: nobody was told these keys
                shutil.rmtree(new.path)
            new.path.mkdir(mode=0o700)
            new.logs.mkdir(mode=0o755)
        return new

    def finish(self, made: MirrorDir) -> None:
        """Give what was made its name, durably."""
        durable.sync_directory(made.path)
        with durable.file_errors(self.path):
            os.rename(made.path, self.path)
        durable.sync_directory(self.witness.path)


def derive_mirror_signers(root_seed: bytes, name: str) -> tuple[note.Signer, ...]:
    """The signers of the mirror *name*, without touching a disk.

    Raises:
        UsageError: "BadName".
    """
    derive_signers(root_seed, name)  # refuses a bad name, with what to do
    return tuple(
        note.signer_from_seed(name, algorithm, derive_seed(root_seed, name, PREFIX + kind)) for algorithm, kind in KINDS
    )


def write_mirror_keys(directory: MirrorDir, root_seed: bytes, name: str) -> None:
    """Write the key files (0600) of a new mirror."""
    for kind in (*(kind for _, kind in KINDS), TICKET_KIND):
        durable.write_secret(directory.key_file(kind), derive_seed(root_seed, name, PREFIX + kind))


def load_mirror_signers(directory: MirrorDir, name: str) -> tuple[note.Signer, ...]:
    """The signers of an existing mirror.

    Raises:
        StoreError: a key file is missing, of the wrong size, or readable by others.
    """
    return tuple(
        note.signer_from_seed(name, algorithm, durable.read_secret(directory.key_file(kind), SEED_BYTES))
        for algorithm, kind in KINDS
    )


def load_ticket_key(directory: MirrorDir) -> bytes:
    """As :func:`load_mirror_signers`."""
    return durable.read_secret(directory.key_file(TICKET_KIND), SEED_BYTES)


def check_apart(name: str, vkeys: set[str], witness_name: str, witness_vkeys: set[str]) -> None:
    """Refuse a mirror that would be the same cosigner as its witness.

    Raises:
        UsageError: "SameCosigner".
    """
    keys = {vkey.rpartition("+")[2] for vkey in vkeys}
    if name == witness_name or keys & {vkey.rpartition("+")[2] for vkey in witness_vkeys}:
        raise UsageError(
            "SameCosigner", f"{name} is the witness of this directory, by name or by key",
            hint="A mirror says something else than a witness, so it needs a name and keys of its own.",
        )
