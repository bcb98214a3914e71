"""A log's keys: derived once from a seed at ``init``, then kept apart in files of their own.

Each file is one 32-byte seed, mode 0600, so that the web workers can hold the HPKE key and
the sequencer the signing keys without either having the other's (design decision 15). The root
seed is never stored: whoever has one file cannot derive another.

One key is no seed and derived from none: an RSA key for GETs of other servers' actor documents, as PEM. Nothing
of the log's rests on it, so it may be replaced at any time, or be missing.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
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

from ktlog.durable import read_secret, read_secret_file, write_secret
from ktlog.errors import EncodingError, StoreError
from ktlog.keymap.output import map_origin
from ktlog.pkd.keys import private_key_from_seed
from ktlog.pkd.pae import pae
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Signer, signer_from_seed
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
FETCH_KEY = "fetch-rsa.pem"
FETCH_KEY_BITS = 2048
MAXIMUM_FETCH_KEY_BYTES = 8192


def derive_seed(root_seed: bytes, origin: str, purpose: str) -> bytes:
    """Derive the 32-byte seed of one key; name and purpose both go in, so no two are related."""
    info = pae([b"ktlog/v1/key", origin.encode(), purpose.encode()])
    return HKDF(SHA256(), 32, None, info).derive(root_seed)


def create_keys(directory: Path, origin: str, root_seed: bytes) -> None:
    """Write one 0600 file per purpose under *directory*, which must not exist yet."""
    try:
        directory.mkdir(mode=0o700)
    except FileExistsError:
        raise StoreError("KeysExist", f"{directory} already holds keys; they are never overwritten") from None
    for purpose in PURPOSES:
        write_secret(directory / purpose, derive_seed(root_seed, origin, purpose))
    create_fetch_key(directory)


def create_fetch_key(directory: Path) -> None:
    """Write a new RSA key for outgoing GETs. Raises StoreError: "SecretExists"."""
    key = generate_private_key(EXPONENT, FETCH_KEY_BITS)
    write_secret(
        directory / FETCH_KEY, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )


def load_fetch_key(directory: Path) -> RSAPrivateKey | None:
    """The RSA key for outgoing GETs; None for a log that was made before there was one.

    Raises:
        StoreError: "UnsafeSecret"; "BadSecret": it is no RSA key that other servers would take.
    """
    path = directory / FETCH_KEY
    if not path.exists():
        return None
    try:
        key = load_pem_private_key(read_secret_file(path, MAXIMUM_FETCH_KEY_BYTES), None)
        if not isinstance(key, RSAPrivateKey):
            raise EncodingError("BadRsaKey", "it is no RSA key")
        parse_rsa_public_key(fetch_key_pem(key))
    except (EncodingError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise StoreError("BadSecret", f"{path}: {error}") from None
    return key


def fetch_key_pem(key: RSAPrivateKey) -> str:
    """The public half, as actor documents show it."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def load_seed(directory: Path, purpose: str) -> bytes:
    return read_secret(directory / purpose, 32)


@dataclass(frozen=True)
class LeafKey:
    """Signs log entries. ``public`` is the raw 1,312 bytes."""

    private: MLDSA44PrivateKey
    public: bytes


def load_leaf_key(directory: Path) -> LeafKey:
    private = private_key_from_seed(load_seed(directory, "leaf"))
    return LeafKey(private, private.public_key().public_bytes_raw())


def load_checkpoint_signers(directory: Path, origin: str) -> tuple[Signer, Signer]:
    """The log's two checkpoint keys: Ed25519 (0x01) and ML-DSA-44 (0x06), both named *origin*."""
    return (
        signer_from_seed(origin, ED25519, load_seed(directory, "checkpoint-ed25519")),
        signer_from_seed(origin, COSIGNATURE_MLDSA44, load_seed(directory, "checkpoint-mldsa44")),
    )


def load_map_signers(directory: Path, origin: str) -> tuple[Signer, Signer]:
    """The two keys that sign checkpoints of the map's output log, both named after it. origin: the log's own."""
    name = map_origin(origin)
    return (
        signer_from_seed(name, ED25519, load_seed(directory, "map-ed25519")),
        signer_from_seed(name, COSIGNATURE_MLDSA44, load_seed(directory, "map-mldsa44")),
    )


@dataclass(frozen=True)
class PublicKeys:
    """What everybody may know.

    vkeys: of the log's checkpoints. leaf_keys: every leaf-signing key ever used (1,312 bytes each). map_vkeys: of
    the checkpoints of the map's output log; empty in a directory that older code made and nothing was started in.
    """

    vkeys: tuple[str, ...]
    leaf_keys: tuple[bytes, ...]
    map_vkeys: tuple[str, ...] = ()
