"""systemd credentials: secrets that the service manager hands to one service, in files that nobody can write to.

Spec: systemd.exec(5), "Credentials". The files belong to root or to us; what the group seems to be allowed is the mask
of an access list that names us.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from ktlog.durable import file_errors
from ktlog.errors import StoreError

VARIABLE = "CREDENTIALS_DIRECTORY"


def has_credential(name: str) -> bool:
    """Whether this process was handed a credential of that name, of whatever kind it may be."""
    directory = os.environ.get(VARIABLE)
    return bool(directory) and os.path.lexists(Path(directory) / name)


def read_credential(name: str, size: int) -> bytes:
    """The secret of exactly *size* bytes in the credential *name*.

    Raises:
        StoreError: ``NoCredentials`` (none were handed over), ``MissingSecret``, ``UnsafeSecret``, ``BadSecret``.
    """
    path = _path(name)
    with file_errors(path):
        try:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            raise _missing(path) from None
        with os.fdopen(handle, "rb") as file:
            _check(path, os.fstat(file.fileno()), size)
            secret = file.read(size + 1)
    if len(secret) != size:
        raise _wrong_size(path, size)
    return secret


def check_credential(name: str, size: int) -> None:
    """What ``read_credential`` would refuse by, without a look at the secret. Raises as it does."""
    path = _path(name)
    with file_errors(path):
        try:
            found = path.lstat()
        except FileNotFoundError:
            raise _missing(path) from None
    _check(path, found, size)


def _path(name: str) -> Path:
    directory = os.environ.get(VARIABLE)
    if not directory:
        raise StoreError(
            "NoCredentials", f"{VARIABLE} is not set, so there is no credential {name}",
            hint="Run this as a systemd service with LoadCredential= or LoadCredentialEncrypted=.",
        )
    return Path(directory) / name


def _missing(path: Path) -> StoreError:
    return StoreError(
        "MissingSecret", f"{path}: no such credential",
        hint=f"The service needs LoadCredential={path.name}:FILE, or LoadCredentialEncrypted={path.name}.",
    )


def _check(path: Path, found: os.stat_result, size: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise StoreError("UnsafeSecret", f"{path}: not a regular file")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o027:
        raise StoreError("UnsafeSecret", f"{path}: others than this service may read it, or write to it")
    if found.st_size != size:
        raise _wrong_size(path, size)


def _wrong_size(path: Path, size: int) -> StoreError:
    return StoreError(
        "BadSecret", f"{path}: must hold exactly {size} bytes", hint="It is the key's file, and not in hex."
    )
