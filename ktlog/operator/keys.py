"""A log's keys: derived once from a seed at ``init``, then kept apart in files of their own.

Each file is one 32-byte seed, mode 0600, so that the web workers can hold the HPKE key and
the sequencer the signing keys without either having the other's (design decision 15). The root
seed is never stored: whoever has one file cannot derive another.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ktlog.durable import read_secret, write_secret
from ktlog.errors import StoreError
from ktlog.pkd.keys import private_key_from_seed
from ktlog.pkd.pae import pae
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Signer, signer_from_seed

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


@dataclass(frozen=True)
class PublicKeys:
    """What everybody may know: checkpoint vkeys, and every leaf-signing key ever used (1,312 bytes each)."""

    vkeys: tuple[str, ...]
    leaf_keys: tuple[bytes, ...]
