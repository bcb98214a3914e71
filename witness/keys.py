"""The cosigning keys: one Ed25519 (0x04) and one ML-DSA-44 (0x06), each in its own file.

Both are derived from one root seed, which is then forgotten. The name and the kind are in the
HKDF info, so a seed used for two witnesses, or for two kinds, still makes unrelated keys: an
Ed25519 cosignature does not commit to the cosigner's name, so two witnesses must never share
a key (Spec: tlog-cosignature, "Ed25519 signed message").
"""

from __future__ import annotations

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ktlog import durable
from ktlog.errors import EncodingError, UsageError
from ktlog.tlog import note
from witness.config import SEED_BYTES, WitnessDir

#: Algorithm byte and key file of each cosigning key, in the order in which they sign.
KINDS: tuple[tuple[int, str], ...] = (
    (note.COSIGNATURE_ED25519, "ed25519"),
    (note.COSIGNATURE_MLDSA44, "mldsa44"),
)


def derive_seed(root_seed: bytes, name: str, kind: str) -> bytes:
    """The 32-byte seed of the *kind* key of witness *name*: HKDF-SHA256, no salt.

    Spec: RFC 5869; the info is ``ktlog-witness/v1``, kind and name, joined by zero bytes
    (neither kind nor name can contain one).
    """
    if len(root_seed) != SEED_BYTES:
        raise AssertionError("a root seed is 32 bytes")
    info = b"\x00".join((b"ktlog-witness/v1", kind.encode("ascii"), name.encode("utf-8")))
    return HKDF(algorithm=SHA256(), length=SEED_BYTES, salt=None, info=info).derive(root_seed)


def derive_signers(root_seed: bytes, name: str) -> tuple[note.Signer, ...]:
    """The signers of witness *name*, without touching a disk.

    Raises:
        UsageError: "BadName": *name* cannot stand on a signature line.
    """
    if "://" in name:
        raise UsageError("BadName", f"{name!r} has a scheme; a witness is named by its URL without one")
    try:
        note.Vkey(name, note.COSIGNATURE_MLDSA44, bytes(note.MLDSA44_PUBLIC_KEY_BYTES))
    except EncodingError as error:
        raise UsageError(
            "BadName", f"{name!r} cannot name a witness: {error.message}",
            hint="Use a URL without its scheme, like example.com/w1: 1 to 255 bytes, no space, no +.",
        ) from error
    return tuple(
        note.signer_from_seed(name, algorithm, derive_seed(root_seed, name, kind))
        for algorithm, kind in KINDS
    )


def write_keys(directory: WitnessDir, root_seed: bytes, name: str) -> tuple[note.Signer, ...]:
    """Write the key files (0600) of a new witness and return their signers.

    Raises:
        UsageError: "BadName".
        StoreError: a key file exists, or cannot be written.
    """
    signers = derive_signers(root_seed, name)
    for _, kind in KINDS:
        durable.write_secret(directory.key_file(kind), derive_seed(root_seed, name, kind))
    return signers


def load_signers(directory: WitnessDir, name: str) -> tuple[note.Signer, ...]:
    """The signers of an existing witness.

    Raises:
        StoreError: a key file is missing, of the wrong size, or readable by others.
    """
    return tuple(
        note.signer_from_seed(name, algorithm, durable.read_secret(directory.key_file(kind), SEED_BYTES))
        for algorithm, kind in KINDS
    )
