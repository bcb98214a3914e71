"""Proofs of logging that verify offline: an index, an inclusion proof, a cosigned checkpoint.

::

    c2sp.org/tlog-proof@v1
    extra YWdlLXYxLjIuMQ==            optional, and authenticated by nothing
    index 73894
    gSKyXoYZUgZ6jduWYrkDOARinOMGJveXjgMkBTcdPlQ=
    …

    keys.example.com                  the checkpoint, as the log served it
    …

Spec: c2sp.org/tlog-proof.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktlog.errors import EncodingError
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64, naming, parse_decimal
from ktlog.tlog.envelope import MAXIMUM_NOTE_BYTES
from ktlog.tlog.policy import Policy, VerifiedCheckpoint
from ktlog.tlog.tree import HASH_BYTES, hash_leaf, verify_inclusion

HEADER = "c2sp.org/tlog-proof@v1"
MAXIMUM_PROOF_HASHES = 63
MAXIMUM_PROOF_BYTES = 2 * MAXIMUM_NOTE_BYTES


@dataclass(frozen=True)
class TlogProof:
    """``hashes`` are 32 bytes each, leaf to root; ``checkpoint_bytes`` is a signed note.

    ``extra`` is opaque, never empty, and must not be trusted.
    """

    leaf_index: int
    hashes: tuple[bytes, ...]
    checkpoint_bytes: bytes
    extra: bytes | None = None


def parse_proof(data: bytes) -> TlogProof:
    """Read a proof and check the form of everything in it; believe nothing.

    Raises:
        EncodingError: ``BadTlogProof``, or those of :func:`parse_signed_checkpoint`.
    """
    head, separator, checkpoint_bytes = data.partition(b"\n\n")
    if len(data) > MAXIMUM_PROOF_BYTES or not separator or not head.isascii():
        raise EncodingError("BadTlogProof", "too long, not ASCII, or without an empty line")
    lines = head.decode("ascii").split("\n")
    if lines.pop(0) != HEADER:
        raise EncodingError("BadTlogProof", f"the first line is not {HEADER}")
    extra = None
    with naming("BadTlogProof", "extra"):
        if lines and lines[0].startswith("extra "):
            extra = decode_base64(lines.pop(0).removeprefix("extra "))
    if extra == b"":
        raise EncodingError("BadTlogProof", "an extra line holds nothing")
    if not lines or not lines[0].startswith("index "):
        raise EncodingError("BadTlogProof", "no index line")
    with naming("BadTlogProof", "index"):
        leaf_index = parse_decimal(lines.pop(0).removeprefix("index "))
    if len(lines) > MAXIMUM_PROOF_HASHES:
        raise EncodingError("BadTlogProof", f"more than {MAXIMUM_PROOF_HASHES} hashes")
    with naming("BadTlogProof", "inclusion proof"):
        hashes = tuple(decode_base64(line, HASH_BYTES) for line in lines)
    parse_signed_checkpoint(checkpoint_bytes)
    return TlogProof(leaf_index, hashes, checkpoint_bytes, extra)


def format_proof(proof: TlogProof) -> bytes:
    """Inverse of :func:`parse_proof`; raises its errors for a value that could not be read back."""
    lines = [HEADER]
    if proof.extra is not None:
        lines.append(f"extra {encode_base64(proof.extra)}")
    lines.append(f"index {proof.leaf_index}")
    lines.extend(encode_base64(item) for item in proof.hashes)
    data = "\n".join(lines).encode("ascii") + b"\n\n" + proof.checkpoint_bytes
    if parse_proof(data) != proof:
        raise EncodingError("BadTlogProof", "the proof does not read back as itself")
    return data


def verify_proof(proof_bytes: bytes, entry: bytes, policy: Policy, now: int) -> VerifiedCheckpoint:
    """Check that a log *policy* trusts has logged *entry*, and return the checkpoint that says so.

    Whether the policy is safe is its owner's affair: see :meth:`Policy.check_safe`.

    Args:
        proof_bytes: a ``.tlog-proof`` file.
        entry: the logged bytes, before hashing.
        now: Unix seconds; cosignatures from beyond now + 300 do not count.

    Raises:
        EncodingError: the proof does not parse.
        Invalid: ``WrongLog``, ``BadLogSignature``, ``BadCosignature``, or ``BadInclusionProof``.
        PolicyUnmet: ``TooFewWitnesses`` or ``TooFewVerifiers``.
    """
    proof = parse_proof(proof_bytes)
    verified = policy.open_checkpoint(proof.checkpoint_bytes, now)
    checkpoint = verified.checkpoint
    verify_inclusion(hash_leaf(entry), proof.leaf_index, checkpoint.size, proof.hashes, checkpoint.root)
    return verified
