"""A log's keys: derived once from a seed at ``init``, then kept apart in files of their own.

Each file is one 32-byte seed, mode 0600, so that the web workers can hold the HPKE key and
the sequencer the signing keys without either having the other's (design decision 15). The root
seed is never stored: whoever has one file cannot derive another. In place of a file there may be a
systemd credential of the same name. A predecessor of a key is always a file: its time ends, and then it is removed.

One key is no seed and derived from none: an RSA key for GETs of other servers' actor documents, as PEM. Nothing
of the log's rests on it, so it may be replaced at any time, or be missing.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from ktlog.credential import check_credential, has_credential, read_credential
from ktlog.durable import (
    check_secret,
    file_errors,
    read_secret,
    read_secret_file,
    sync_directory,
    write_secret,
)
from ktlog.errors import EncodingError, StoreError
from ktlog.keymap.output import map_origin
from ktlog.pkd.hpke import DecapsulationKey
from ktlog.pkd.keychanges import ED25519_PREFIX
from ktlog.pkd.keys import encode_public_key, private_key_from_seed
from ktlog.pkd.pae import pae
from ktlog.tlog.encoding import encode_base64url, parse_decimal
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Signer, Vkey, signer_from_seed
from ktlog.wire.rsa import EXPONENT, parse_rsa_public_key

PURPOSES = (
    "hpke",
    "leaf",
    "checkpoint-ed25519",
    "checkpoint-mldsa44",
    "http-ed25519",
    "http-mldsa44",
    "map-ed25519",
    "map-mldsa44",
)
WEB_PURPOSES = ("hpke", "http-ed25519", "http-mldsa44")
"""Those that web workers hold."""

HPKE_PREFIX = "xwing:"
SEED_BYTES = 32
FETCH_KEY = "fetch-rsa.pem"
FETCH_KEY_BITS = 2048
MAXIMUM_FETCH_KEY_BYTES = 8192


def derive_seed(root_seed: bytes, origin: str, purpose: str) -> bytes:
    """Derive the 32-byte seed of one key; name and purpose both go in, so no two are related."""
    info = pae([b"ktlog/v1/key", origin.encode(), purpose.encode()])
    return HKDF(SHA256(), 32, None, info).derive(root_seed)


def create_keys(directory: Path, origin: str, root_seed: bytes) -> None:
    """Write one 0600 file per purpose under *directory*, which must not exist yet.

    Raises:
        StoreError: "KeysExist"; "TwoSources": this process was handed keys, and would read those.
    """
    handed = [purpose for purpose in PURPOSES if has_credential(purpose)]
    if handed:
        raise StoreError(
            "TwoSources", f"a new log makes its own keys, and there are credentials called {', '.join(handed)}",
            hint="Make the log outside of the unit. Its keys become credentials afterwards (docs/operating.md).",
        )
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise StoreError("KeysExist", f"{directory} already holds keys; they are never overwritten") from None
    for purpose in PURPOSES:
        write_secret(directory / purpose, derive_seed(root_seed, origin, purpose))
    create_fetch_key(directory)


def create_fetch_key(directory: Path) -> None:
    """Write a new RSA key for outgoing GETs. Raises StoreError: "SecretExists"."""
    write_secret(directory / FETCH_KEY, new_fetch_key())


def new_fetch_key() -> bytes:
    """A new RSA key, as PEM."""
    key = generate_private_key(EXPONENT, FETCH_KEY_BITS)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def parse_fetch_key(pem: bytes) -> RSAPrivateKey:
    """The RSA key in a PEM file. Raises EncodingError ``BadRsaKey``: other servers would not take it."""
    try:
        key = load_pem_private_key(pem, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise EncodingError("BadRsaKey", str(error)) from None
    if not isinstance(key, RSAPrivateKey):
        raise EncodingError("BadRsaKey", "it is no RSA key")
    parse_rsa_public_key(fetch_key_pem(key))
    return key


def load_fetch_key(directory: Path) -> RSAPrivateKey | None:
    """The RSA key for outgoing GETs; None for a log that was made before there was one.

    Raises:
        StoreError: "UnsafeSecret"; "BadSecret": it is no RSA key that other servers would take.
    """
    path = directory / FETCH_KEY
    if not path.exists():
        return None
    try:
        return parse_fetch_key(read_secret_file(path, MAXIMUM_FETCH_KEY_BYTES))
    except EncodingError as error:
        raise StoreError("BadSecret", f"{path}: {error}") from None


def fetch_key_pem(key: RSAPrivateKey) -> str:
    """The public half, as actor documents show it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def load_seed(directory: Path, purpose: str) -> bytes:
    """The seed of one key: what its file holds, or the systemd credential of its name.

    Raises:
        StoreError: as ``ktlog.durable.read_secret`` and ``ktlog.credential.read_credential``; "TwoSources".
    """
    if is_credential(directory, purpose):
        return read_credential(purpose, SEED_BYTES)
    return read_secret(directory / purpose, SEED_BYTES)


def check_seed(directory: Path, purpose: str) -> None:
    """What :func:`load_seed` would refuse by, without a look at the seed. Raises as it does."""
    if is_credential(directory, purpose):
        check_credential(purpose, SEED_BYTES)
    else:
        check_secret(directory / purpose, SEED_BYTES)


def is_credential(directory: Path, purpose: str) -> bool:
    """Whether the service manager hands a key over (``$CREDENTIALS_DIRECTORY``), in place of its file.

    Raises:
        StoreError: "TwoSources": there are both, and one of them may be a key that was replaced.
    """
    if purpose not in PURPOSES or not has_credential(purpose):
        return False
    if os.path.lexists(directory / purpose):
        raise StoreError(
            "TwoSources", f"the key {purpose} is there twice: as {directory / purpose}, and as a credential",
            hint="If the file is the newer one, after a rotation perhaps, encrypt it as the credential anew. Then"
            " remove the file; or take the credential out of the unit.",
        )
    return True


def check_key_directory(directory: Path) -> None:
    """Refuse a directory that others may look into: each key's own file is checked when it is read.

    Raises:
        StoreError: "UnsafeKeys", "MissingStore".
    """
    with file_errors(directory):
        found = directory.stat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise StoreError("UnsafeKeys", f"{directory}: no directory, or another user's")
    if found.st_mode & 0o077:
        raise StoreError(
            "UnsafeKeys", f"{directory}: open to others (mode {found.st_mode & 0o777:04o})",
            hint=f"If nobody else has looked into it: chmod 700 {directory}",
        )


# A key that has a successor keeps its file, under another name, for as long as it is still of use.


def old_path(directory: Path, purpose: str, until: int) -> Path:
    """Where the predecessor of a key lies until the Unix time *until*."""
    return directory / f"{purpose}.until-{until}"


def old_paths(directory: Path, purpose: str) -> tuple[tuple[Path, int], ...]:
    """Every predecessor of a key that still has a file, and until when it is of use; the newest first."""
    prefix = f"{purpose}.until-"
    with file_errors(directory):
        names = [entry.name for entry in os.scandir(directory) if entry.name.startswith(prefix)]
    found = []
    for name in names:
        try:
            found.append((directory / name, parse_decimal(name.removeprefix(prefix))))
        except EncodingError:
            raise StoreError("BadSecret", f"{directory / name}: a key whose time cannot be read") from None
    return tuple(sorted(found, key=lambda one: one[1], reverse=True))


def load_old_seeds(directory: Path, purpose: str) -> tuple[tuple[bytes, int], ...]:
    """The predecessors of a key: seed, and until when it is of use; the newest first."""
    return tuple((read_secret(path, SEED_BYTES), until) for path, until in old_paths(directory, purpose))


def destroy_old(directory: Path, now: int) -> tuple[Path, ...]:
    """Remove every key that is of no use any more; nothing is read. Gives what was removed."""
    if not directory.exists():
        return ()
    ended = [path for purpose in PURPOSES for path, until in old_paths(directory, purpose) if until <= now]
    for path in ended:
        with file_errors(path):
            path.unlink(missing_ok=True)
    if ended:
        sync_directory(directory)
    return tuple(ended)


@dataclass(frozen=True)
class LeafKey:
    """Signs log entries. ``public`` is the raw 1,312 bytes."""

    private: MLDSA44PrivateKey
    public: bytes


def load_leaf_key(directory: Path) -> LeafKey:
    private = private_key_from_seed(load_seed(directory, "leaf"))
    return LeafKey(private, private.public_key().public_bytes_raw())


_LOG_KEYS = ((ED25519, "checkpoint-ed25519"), (COSIGNATURE_MLDSA44, "checkpoint-mldsa44"))
_MAP_KEYS = ((ED25519, "map-ed25519"), (COSIGNATURE_MLDSA44, "map-mldsa44"))


def load_checkpoint_signers(directory: Path, origin: str) -> tuple[Signer, Signer]:
    """The log's two checkpoint keys: Ed25519 (0x01) and ML-DSA-44 (0x06), both named *origin*."""
    return _load_signers(directory, origin, _LOG_KEYS)


def load_map_signers(directory: Path, origin: str) -> tuple[Signer, Signer]:
    """The two keys that sign checkpoints of the map's output log, both named after it. origin: the log's own."""
    return _load_signers(directory, map_origin(origin), _MAP_KEYS)


def old_checkpoint_signers(directory: Path, origin: str) -> tuple[tuple[Signer, int], ...]:
    """Predecessors of the log's checkpoint keys that still sign, and until when."""
    return _load_old_signers(directory, origin, _LOG_KEYS)


def old_map_signers(directory: Path, origin: str) -> tuple[tuple[Signer, int], ...]:
    """The same of the map's. origin: the log's own."""
    return _load_old_signers(directory, map_origin(origin), _MAP_KEYS)


def _load_signers(directory: Path, name: str, keys: tuple[tuple[int, str], ...]) -> tuple[Signer, Signer]:
    ed25519, mldsa44 = (signer_from_seed(name, algorithm, load_seed(directory, purpose)) for algorithm, purpose in keys)
    return ed25519, mldsa44


def _load_old_signers(
    directory: Path, name: str, keys: tuple[tuple[int, str], ...]
) -> tuple[tuple[Signer, int], ...]:
    return tuple(
        (signer_from_seed(name, algorithm, seed), until)
        for algorithm, purpose in keys for seed, until in load_old_seeds(directory, purpose)
    )


@dataclass(frozen=True)
class PublicKeys:
    """What everybody may know.

    vkeys: of the log's checkpoints. leaf_keys: every leaf-signing key ever used (1,312 bytes each). map_vkeys: of
    the checkpoints of the map's output log; empty in a directory that older code made and nothing was started in.
    retired_vkeys, retired_map_vkeys: what these were before, oldest first; heads that they signed are still this log's.
    web: of the keys that web workers hold, by purpose, as :func:`public_text` writes them; empty in a directory that
    older code made and nothing was started in.
    """

    vkeys: tuple[str, ...]
    leaf_keys: tuple[bytes, ...]
    map_vkeys: tuple[str, ...] = ()
    retired_vkeys: tuple[str, ...] = ()
    retired_map_vkeys: tuple[str, ...] = ()
    web: Mapping[str, str] = field(default_factory=dict)


def public_text(origin: str, purpose: str, secret: bytes) -> str:
    """The public half of a key file's content, as it is published.

    Raises:
        EncodingError: it is no such key.
    """
    if purpose == "fetch-rsa":
        return fetch_key_pem(parse_fetch_key(secret))
    if purpose == "hpke":
        return HPKE_PREFIX + encode_base64url(DecapsulationKey.from_seed(secret).encapsulation_key)
    if len(secret) != 32:
        raise EncodingError("BadSeed", "a seed has 32 bytes")
    if purpose.endswith("ed25519"):
        raw = Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()
        algorithm = ED25519
    else:
        raw = private_key_from_seed(secret).public_key().public_bytes_raw()
        algorithm = COSIGNATURE_MLDSA44
    if purpose.startswith(("checkpoint", "map")):
        return str(Vkey(map_origin(origin) if purpose.startswith("map") else origin, algorithm, raw))
    return ED25519_PREFIX + encode_base64url(raw) if algorithm == ED25519 else encode_public_key(raw)
