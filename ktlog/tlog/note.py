"""Signed notes: keys, signing, and opening with the keys one knows.

A note is text, an empty line, and signature lines::

    keys.example.com
    20852163
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

    — keys.example.com Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Zhcyv2q1gGz…

Each line is an em dash, the key's name, and base64 of a 4-byte key id and a signature. A verifier
key (*vkey*) is ``name+hex(key id)+base64(algorithm, public key)``. Parsing is not believing: lines
of unknown keys mean nothing, and one bad line of a known key spoils the whole note.

Three algorithms are known: Ed25519 over the text (0x01, a log), and over checkpoints only, with a
time, Ed25519 (0x04, a cosigner) and ML-DSA-44 (0x06, a cosigner or a log).

Spec: c2sp.org/signed-note, c2sp.org/tlog-cosignature.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Protocol

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey, MLDSA44PublicKey

from ktlog.errors import EncodingError, Invalid, UsageError
from ktlog.tlog import cosignature, ed25519
from ktlog.tlog.checkpoint import Checkpoint, format_checkpoint, parse_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64, naming
from ktlog.tlog.envelope import (
    KEY_ID_BYTES,
    MAXIMUM_NOTE_BYTES,
    MAXIMUM_SIGNATURES,
    Note,
    SignatureLine,
    check_key_name,
    format_note,
    format_signature_line,
    parse_note,
    parse_signature_lines,
)

__all__ = [
    "COSIGNATURE_ED25519", "COSIGNATURE_MLDSA44", "ED25519", "KEY_ID_BYTES", "MAXIMUM_NOTE_BYTES",
    "MAXIMUM_SIGNATURES", "Note", "SignatureLine", "Signer", "Verified", "Vkey", "check_key_name",
    "format_note", "format_signature_line", "open_note", "parse_note", "parse_signature_lines",
    "parse_vkey", "sign_checkpoint", "signer_from_seed", "verify_line",
]

ED25519 = 1
COSIGNATURE_ED25519 = 4
COSIGNATURE_MLDSA44 = 6

SEED_BYTES = 32
MAXIMUM_NAME_BYTES = 255
MLDSA44_PUBLIC_KEY_BYTES = 1312
MLDSA44_SIGNATURE_BYTES = 2420


@dataclass(frozen=True)
class Vkey:
    """A verifier key. ``str(vkey)`` is its text; :func:`parse_vkey` is the inverse.

    Raises:
        EncodingError: ``BadVkey`` for a name of more than 255 bytes or with a space or plus, an
            unknown algorithm, or a public key that is not one (small-order Ed25519 included).
    """

    name: str
    algorithm: int
    public_key: bytes = field(repr=False)

    def __post_init__(self) -> None:
        with naming("BadVkey", "verifier key"):
            check_key_name(self.name)
            try:
                length = len(self.name.encode("utf-8"))
            except UnicodeEncodeError:
                raise EncodingError("BadVkey", "the name is not Unicode text") from None
            if length > MAXIMUM_NAME_BYTES:
                raise EncodingError("BadVkey", f"the name exceeds {MAXIMUM_NAME_BYTES} bytes")
            if self.algorithm in (ED25519, COSIGNATURE_ED25519):
                ed25519.load_ed25519_public_key(self.public_key)
            elif self.algorithm != COSIGNATURE_MLDSA44:
                raise EncodingError("BadVkey", f"the signature type {self.algorithm} is not supported")
            elif len(self.public_key) != MLDSA44_PUBLIC_KEY_BYTES:
                raise EncodingError("BadVkey", "an ML-DSA-44 public key has 1312 bytes")

    @cached_property
    def key_id(self) -> bytes:
        """SHA-256(name, newline, algorithm, public key), the first 4 bytes."""
        material = self.name.encode("utf-8") + b"\n" + bytes((self.algorithm,)) + self.public_key
        return sha256(material).digest()[:KEY_ID_BYTES]

    @cached_property
    def ed25519(self) -> Ed25519PublicKey:
        """The loaded key, of a vkey with such an algorithm; that it is a good one was checked when this was made."""
        return Ed25519PublicKey.from_public_bytes(self.public_key)

    @cached_property
    def mldsa44(self) -> MLDSA44PublicKey:
        """The loaded key, of a vkey with that algorithm; loading takes half as long as verifying."""
        return MLDSA44PublicKey.from_public_bytes(self.public_key)

    def __str__(self) -> str:
        material = encode_base64(bytes((self.algorithm,)) + self.public_key)
        return f"{self.name}+{self.key_id.hex()}+{material}"


def parse_vkey(text: str) -> Vkey:
    """Read a verifier key and recompute its key id.

    Raises:
        EncodingError: ``BadVkey``.
    """
    # Base64 may hold a plus itself, so only the first two separate.
    parts = text.split("+", 2)
    if len(parts) != 3:
        raise EncodingError("BadVkey", "a verifier key has three parts, joined by plus signs")
    with naming("BadVkey", "public key"):
        material = decode_base64(parts[2])
    if not material:
        raise EncodingError("BadVkey", "a verifier key holds no public key")
    vkey = Vkey(parts[0], material[0], material[1:])
    if parts[1] != vkey.key_id.hex():
        raise EncodingError("BadVkey", "the key id is not that of the name and the public key")
    return vkey


class SigningKey(Protocol):
    """What signs: a private key of the library's, or one that is kept elsewhere."""

    def sign(self, data: bytes, /) -> bytes: ...


@dataclass(frozen=True)
class Signer:
    """A private key and the verifier key that goes with it."""

    vkey: Vkey
    private_key: SigningKey = field(repr=False, compare=False)

    def sign(self, text: bytes, time: int, checkpoint: Checkpoint | None = None) -> SignatureLine:
        """Sign a note's *text* at *time* (Unix seconds). checkpoint: what *text* says, if that is known already.

        0x01 signs any text and ignores the time. 0x04 and 0x06 sign a checkpoint; 0x06 refuses one
        with extension lines, since it would not cover them.

        Raises:
            EncodingError: ``BadCheckpoint``, or ``BadCosignature`` for a time out of range.
        """
        return self.line(self.private_key.sign(self.message(text, time, checkpoint)), time)

    def message(self, text: bytes, time: int, checkpoint: Checkpoint | None = None) -> bytes:
        """What ``sign`` has the private key sign. It raises the same."""
        if self.vkey.algorithm == ED25519:
            return text
        checkpoint = checkpoint or parse_checkpoint(text)
        if self.vkey.algorithm == COSIGNATURE_MLDSA44 and checkpoint.extensions:
            raise EncodingError("BadCheckpoint", "an ML-DSA-44 signature would not cover the extension lines")
        return _cosigned_message(self.vkey, text, time, checkpoint)

    def line(self, signature: bytes, time: int) -> SignatureLine:
        """The line of a *signature* on ``message`` at *time*."""
        blob = signature if self.vkey.algorithm == ED25519 else cosignature.join_timestamped(time, signature)
        return SignatureLine(self.vkey.name, self.vkey.key_id, blob)


def signer_from_seed(name: str, algorithm: int, seed: bytes) -> Signer:
    """The key pair that a 32-byte *seed* stands for.

    Raises:
        EncodingError: ``BadSeed``, or ``BadVkey`` for a bad name or algorithm.
    """
    if len(seed) != SEED_BYTES:
        raise EncodingError("BadSeed", f"a seed has {SEED_BYTES} bytes, not {len(seed)}")
    private_key: Ed25519PrivateKey | MLDSA44PrivateKey
    if algorithm == COSIGNATURE_MLDSA44:
        private_key = MLDSA44PrivateKey.from_seed_bytes(seed)
    else:
        private_key = Ed25519PrivateKey.from_private_bytes(seed)
    return Signer(Vkey(name, algorithm, private_key.public_key().public_bytes_raw()), private_key)


def sign_checkpoint(checkpoint: Checkpoint, signers: Iterable[Signer], time: int) -> bytes:
    """A signed note of *checkpoint* with one line of each signer, in their order."""
    text = format_checkpoint(checkpoint)
    return format_note(Note(text, tuple(signer.sign(text, time) for signer in signers)))


def verify_line(vkey: Vkey, text: bytes, line: SignatureLine) -> int:
    """Check one signature line over a note's *text*; return its time in Unix seconds, 0 for 0x01.

    Raises:
        Invalid: ``BadSignature``, also for a line of another key.
    """
    return _verify_line(vkey, text, line, lambda: parse_checkpoint(text))


def _verify_line(vkey: Vkey, text: bytes, line: SignatureLine, checkpoint: Callable[[], Checkpoint]) -> int:
    """As :func:`verify_line`; *checkpoint* parses *text*, if that is needed."""
    if (line.name, line.key_id) != (vkey.name, vkey.key_id):
        raise Invalid("BadSignature", f"a line of {line.name!a} is not one of the key {vkey.name!a}")
    if vkey.algorithm == ED25519:
        ed25519.verify_loaded(vkey.ed25519, line.blob, text)
        return 0
    is_mldsa = vkey.algorithm == COSIGNATURE_MLDSA44
    size = MLDSA44_SIGNATURE_BYTES if is_mldsa else ed25519.SIGNATURE_BYTES
    try:
        time, signature = cosignature.split_timestamped(line.blob, size)
        message = _cosigned_message(vkey, text, time, checkpoint())
    except EncodingError as error:
        raise Invalid("BadSignature", f"{vkey.name!a}: {error.message}") from error
    if not is_mldsa:
        ed25519.verify_loaded(vkey.ed25519, signature, message)
        return time
    try:
        vkey.mldsa44.verify(signature, message)
    except InvalidSignature:
        raise Invalid("BadSignature", f"the ML-DSA-44 signature of {vkey.name!a} does not verify") from None
    return time


@dataclass(frozen=True)
class Verified:
    """A signature line that verified under ``vkey``, made at ``timestamp`` (0 for 0x01)."""

    vkey: Vkey
    line: SignatureLine
    timestamp: int


def open_note(note: Note, vkeys: Collection[Vkey]) -> tuple[Verified, ...]:
    """Verify every line of a key in *vkeys*, in the note's order; skip lines of other keys.

    Returns an empty tuple when no known key signed: then nothing in the note may be believed.

    Raises:
        Invalid: ``BadSignature`` when a known key's line fails, whatever the others say.
        UsageError: ``AmbiguousKeys`` when two known keys share a name and key id.
    """
    known = {(vkey.name, vkey.key_id): vkey for vkey in vkeys}
    if len(known) != len(vkeys) and len(known) != len(set(vkeys)):
        raise UsageError("AmbiguousKeys", "two known keys share a name and key id")
    parsed: list[Checkpoint] = []

    def checkpoint() -> Checkpoint:
        if not parsed:
            parsed.append(parse_checkpoint(note.text))
        return parsed[0]

    return tuple(
        Verified(vkey, line, _verify_line(vkey, note.text, line, checkpoint))
        for line in note.signatures
        if (vkey := known.get((line.name, line.key_id))) is not None
    )


def _cosigned_message(vkey: Vkey, text: bytes, time: int, checkpoint: Checkpoint) -> bytes:
    if vkey.algorithm == COSIGNATURE_ED25519:
        return cosignature.ed25519_message(text, time)
    return cosignature.checkpoint_message(vkey.name, time, checkpoint)
