"""Argon2id as PKD asks for it, by the faster of two libraries that both give the same bytes.

libsodium's (PyNaCl) takes 0.6 to 0.7 times as long as OpenSSL's (cryptography). Clients that install no more than
they need use the other. Both leave the interpreter to other threads meanwhile.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

try:
    from nacl import bindings as _sodium
    from nacl.exceptions import RuntimeError as _SodiumFailed
except ImportError:
    _sodium = None

PASSES = 3
MEMORY_KIB = 16384
SIZE = 32
"""PKD's parameters, with one lane. Spec: PKD "Message Attribute Plaintext Commitment Algorithm"."""


def argon2id(password: bytes, salt: bytes) -> bytes:
    """The 32-byte hash of *password* under the 16-byte *salt*. Slow by design: 16 MiB, three passes, one lane.

    Raises:
        MemoryError: the 16 MiB are not to be had.
    """
    return by_cryptography(password, salt) if _sodium is None else by_sodium(password, salt)


def by_cryptography(password: bytes, salt: bytes) -> bytes:
    """The same, by the library that everybody has."""
    return Argon2id(salt=salt, length=SIZE, iterations=PASSES, lanes=1, memory_cost=MEMORY_KIB).derive(password)


def by_sodium(password: bytes, salt: bytes) -> bytes:
    """The same, by libsodium; only where PyNaCl is installed."""
    try:
        return _sodium.crypto_pwhash_alg(
            SIZE, password, salt, PASSES, MEMORY_KIB * 1024, _sodium.crypto_pwhash_ALG_ARGON2ID13
        )
    except _SodiumFailed:  # it says so of nothing else
        raise MemoryError("no memory for Argon2id") from None
