"""Private keys in files: an actor's ML-DSA-44 key, and the Ed25519 key that signs HTTP requests.

A key file holds a 32-byte seed as 64 hexadecimal digits and a newline, with mode 0600. Files that
others may read are refused, and an existing file is never replaced. A revocation token, which has a
file of its own, away from the key, is kept in the same way: whoever reads it can revoke the key.
"""

from __future__ import annotations

import os
import re
import secrets
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ktlog.durable import file_errors, read_secret, write_secret
from ktlog.errors import EncodingError, Invalid, StoreError
from ktlog.pkd.keys import SEED_BYTES, encode_public_key, private_key_from_seed
from ktlog.pkd.token import make_token, parse_token

_HEX_SEED = re.compile(rb"[0-9a-fA-F]{64}\n?")


@dataclass(frozen=True)
class SigningKey:
    """An actor's private key. ``seed`` is 32 secret bytes; everything else follows from it.

    Raises:
        EncodingError: ``BadSeed`` for another length, when the key is first used.
    """

    seed: bytes

    def __repr__(self) -> str:
        return "SigningKey(...)"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key from the operating system's random generator."""
        return cls(secrets.token_bytes(SEED_BYTES))

    @cached_property
    def private(self) -> MLDSA44PrivateKey:
        return private_key_from_seed(self.seed)

    @cached_property
    def public_key(self) -> bytes:
        """1312 raw bytes."""
        return self.private.public_key().public_bytes_raw()

    @property
    def public_text(self) -> str:
        """``mldsa44:…``, as it stands in messages and answers."""
        return encode_public_key(self.public_key)

    def revocation_token(self) -> str:
        """A token that revokes this key, wherever it is held. Keep it offline.

        Spec: PKD "Revocation Tokens".
        """
        return make_token(self.private, self.public_key)


def save_key(path: str | os.PathLike[str], key: SigningKey) -> None:
    """Write a key file with mode 0600. Raises StoreError: "SecretExists" rather than replace one."""
    write_secret(Path(path), key.seed.hex().encode("ascii") + b"\n")


def load_key(path: str | os.PathLike[str]) -> SigningKey:
    """Read what :func:`save_key` wrote.

    Raises:
        StoreError: "MissingSecret", "UnsafeSecret", "BadSecret".
    """
    data = _read(Path(path))
    if not _HEX_SEED.fullmatch(data):
        raise StoreError("BadSecret", f"{path}: does not hold 64 hexadecimal digits")
    return SigningKey(bytes.fromhex(data.decode("ascii")))


def save_token(path: str | os.PathLike[str], key: SigningKey) -> None:
    """Write a revocation token of *key* with mode 0600, and check that it can be read and holds.

    Make it when you make the key, on a medium that you then take away: it is good for ever, wherever the key
    is held, when the key is lost or stolen. It can do nothing else.

    Raises:
        StoreError: "SecretExists" rather than replace one.
    """
    write_secret(Path(path), key.revocation_token().encode("ascii") + b"\n")
    if parse_token(load_token(path)).public_key != key.public_key:
        raise StoreError("BadSecret", f"{path}: what was written is not what is read")


def load_token(path: str | os.PathLike[str]) -> str:
    """The token that :func:`save_token` wrote, whose signature holds; for :func:`ktlog.client.revoke_by_token`.

    Raises:
        StoreError: "MissingSecret", "UnsafeSecret", "BadSecret".
    """
    try:
        return parse_token(_read(Path(path)).decode("ascii").removesuffix("\n")).text
    except (UnicodeDecodeError, EncodingError, Invalid) as error:
        raise StoreError("BadSecret", f"{path}: holds no revocation token: {error}") from None


def load_http_key(path: str | os.PathLike[str]) -> Ed25519PrivateKey:
    """The Ed25519 key that signs an actor's HTTP requests: a 32-byte seed in hex, or unencrypted PEM.

    Raises:
        StoreError: "MissingSecret", "UnsafeSecret", "BadSecret".
    """
    data = _read(Path(path))
    if _HEX_SEED.fullmatch(data):
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(data.decode("ascii")))
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise StoreError(
            "BadSecret", f"{path}: holds neither 64 hexadecimal digits nor an unencrypted private key in PEM"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise StoreError("BadSecret", f"{path}: holds another kind of key than Ed25519")
    return key


def _read(path: Path) -> bytes:
    with file_errors(path):
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            raise StoreError(
                "MissingSecret", f"{path}: no such file",
                hint="Name the file that `ktlog key` wrote, or restore it: nothing makes a key again.",
            ) from None
    if size > 16384:
        raise StoreError("BadSecret", f"{path}: too long for a key")
    return read_secret(path, size)
