"""Cosigning a part of a tree whose checkpoint this witness cosigned: the judgement, with no I/O and no key.

====== ==================== ==============================================================
status reason               when
====== ==================== ==============================================================
400    (an encoding name)   the body does not parse, or not in its one canonical form
400    NoSubtree            the range is no subtree, or reaches beyond the checkpoint
400    OneSignature         the checkpoint carries another number of signatures than one
404    UnknownOrigin        this witness does not follow the log
403    NotCosigned          the signature is not this witness's own, or does not verify
403    NoSubtreeKey         it is by the Ed25519 key, whose cosignatures speak of whole trees only
422    BadSubtreeProof      the proof does not lead from the subtree to the checkpoint's root
====== ==================== ==============================================================

What is signed says nothing new: the subtree is part of a tree that was cosigned. Nothing is recorded.

Spec: C2SP tlog-witness v1.1, "sign-subtree". The answer is one line, the base64 of the raw ML-DSA-44 signature; earlier
drafts returned a signature line with the time 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.cosignature import subtree_message
from ktlog.tlog.encoding import decode_base64, naming, parse_decimal
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Note, Vkey, open_note
from ktlog.tlog.subtree import is_subtree, verify_subtree
from witness.decide import HASH_BYTES, MAX_PROOF_LINES, Refuse, refuse


@dataclass(frozen=True)
class SubtreeRequest:
    """A sign-subtree body that parses. Nothing in it is verified yet.

    start, end: leaves, half-open, within the checkpoint. subtree_hash, proof: hashes of 32 bytes. note: the
    reference checkpoint, with its one signature; checkpoint: what it says.
    """

    start: int
    end: int
    subtree_hash: bytes
    proof: tuple[bytes, ...]
    note: Note
    checkpoint: Checkpoint


@dataclass(frozen=True)
class AcceptSubtree:
    """Sign *message* with the key of *vkey*."""

    vkey: Vkey
    message: bytes


def parse_subtree_request(body: bytes) -> SubtreeRequest:
    """Parse a sign-subtree body: range, hash, proof lines, an empty line, a checkpoint signed by the witness.

    Raises:
        EncodingError: not exactly that, or not in the canonical form.
    """
    head, separator, signed_checkpoint = body.partition(b"\n\n")
    if not separator:
        raise EncodingError("BadRequest", "no empty line between the proof and the checkpoint")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise EncodingError("BadRequest", "the lines before the checkpoint are not ASCII") from error
    words = lines[0].split(" ")
    if len(words) != 3 or words[0] != "subtree":
        raise EncodingError("BadRequest", "the first line is not `subtree START END`")
    if not 2 <= len(lines) <= 2 + MAX_PROOF_LINES:
        raise EncodingError("BadRequest", f"after the range come a hash and at most {MAX_PROOF_LINES} of a proof")
    with naming("BadRange", "the range"):
        start, end = parse_decimal(words[1]), parse_decimal(words[2])
    with naming("BadProofLine", "a hash"):
        subtree_hash, *proof = (decode_base64(line, HASH_BYTES) for line in lines[1:])
    note, checkpoint = parse_signed_checkpoint(signed_checkpoint)
    if not is_subtree(start, end) or end > checkpoint.size:
        raise EncodingError("NoSubtree", f"{start} to {end} is no subtree of a tree of {checkpoint.size} leaves")
    if len(note.signatures) != 1:
        raise EncodingError("OneSignature", "the checkpoint must carry the one signature of this witness's key")
    return SubtreeRequest(start, end, subtree_hash, tuple(proof), note, checkpoint)


def decide_subtree(request: SubtreeRequest, follows: bool, own: Sequence[Vkey]) -> AcceptSubtree | Refuse:
    """Whether to sign.

    Args:
        follows: whether this witness follows the checkpoint's log. own: the witness's keys.
    """
    checkpoint = request.checkpoint
    if not follows:
        return refuse(404, "UnknownOrigin", f"this witness does not follow {checkpoint.origin}")
    try:
        signed = open_note(request.note, own)
    except Invalid as error:
        return refuse(403, "NotCosigned", f"the signature does not verify: {error.message}")
    if not signed or signed[0].timestamp == 0:
        return refuse(403, "NotCosigned", "the checkpoint is not cosigned by this witness")
    vkey = signed[0].vkey
    if vkey.algorithm != COSIGNATURE_MLDSA44:
        return refuse(403, "NoSubtreeKey", "ask with the ML-DSA-44 cosignature: Ed25519 cannot sign a subtree")
    start, end = request.start, request.end
    try:
        verify_subtree(start, end, checkpoint.size, request.proof, request.subtree_hash, checkpoint.root)
    except Invalid as error:
        return refuse(422, error.name, error.message)
    return AcceptSubtree(vkey, subtree_message(vkey.name, 0, checkpoint.origin, start, end, request.subtree_hash))
