"""The judgement of a witness, and nothing else: no I/O, no clock, no key of its own.

``decide(request, latest, log_vkeys, now)`` says either ``Accept`` (what exactly to cosign, and
what to keep) or ``Refuse`` (the HTTP answer). The order of the checks is the specification's:

====== ================== ==============================================================
status reason             when
====== ================== ==============================================================
400    (an encoding name) the body does not parse, or not in its one canonical form
404    UnknownOrigin      no key was ever trusted for this origin
400    ExtensionLines     the checkpoint has lines that not every cosignature would cover
403    NoTrustedSignature no signature line by a trusted key of the origin
403    RetiredKey         the same, but one by a key that was trusted before
403    BadSignature       a trusted key's line that does not verify
400    OldAboveSize       the old size is larger than the checkpoint
409    SizeConflict       the old size is not the size cosigned last; the body is that size
422    BadEmptyRoot       size 0 whose root is not SHA-256 of nothing
422    ProofFromNothing   a consistency proof from size 0
422    OtherRoot          the size cosigned last, with another root: a fork
422    BadConsistencyProof
503    ClockBehind        our clock is behind our own last cosignature
====== ================== ==============================================================

Spec: C2SP tlog-witness v1.1, "add-checkpoint".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import Checkpoint, encode_checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64, naming, parse_decimal
from ktlog.tlog.evidence import Evidence, two_roots
from ktlog.tlog.note import (
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    Verified,
    Vkey,
    format_note,
    open_note,
)
from ktlog.tlog.tree import EMPTY_ROOT, verify_consistency

#: The types a log may sign with. A 0x04 key makes cosignatures, and never speaks for a log.
LOG_KEY_ALGORITHMS = (ED25519, COSIGNATURE_MLDSA44)
MAX_PROOF_LINES = 63
#: The one refusal for want of a signature that may come with evidence.
RETIRED_KEY = "RetiredKey"
HASH_BYTES = 32

TEXT = "text/plain; charset=utf-8"
TREE_SIZE = "text/x.tlog.size"  # without any parameter: clients compare it exactly


@dataclass(frozen=True)
class Request:
    """An add-checkpoint body that parses. Nothing in it is verified yet.

    Attributes:
        old_size: the tree size that the sender believes we cosigned last.
        proof: 32-byte hashes of the consistency proof, at most 63.
        note: the checkpoint with every signature line that came with it.
        checkpoint: what ``note.text`` says.
    """

    old_size: int
    proof: tuple[bytes, ...]
    note: Note
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Cosigned:
    """The latest checkpoint this witness cosigned for an origin.

    Attributes:
        revision: 1 for the first, then one more each time; what compare-and-set compares.
        checkpoint: origin, size and root.
        time: Unix seconds in our cosignatures.
        note: the signed note: the log's verified lines and our cosignatures, no other line; empty where
            it was left on the disk, and then there is no evidence.
    """

    revision: int
    checkpoint: Checkpoint
    time: int
    note: bytes


@dataclass(frozen=True)
class Accept:
    """Cosign *text*, which is re-encoded from what was understood, at *time*.

    Attributes:
        expected_revision: of the record this judgement rests on; 0 when there is none.
        checkpoint: origin, size and root to record.
        text: the note text to sign.
        log_signatures: the log's lines that verified; the only foreign lines ever kept.
        time: Unix seconds for the cosignatures, never 0.
    """

    expected_revision: int
    checkpoint: Checkpoint
    text: bytes
    log_signatures: tuple[Verified, ...]
    time: int


@dataclass(frozen=True)
class Refuse:
    """An answer that changes nothing.

    Attributes:
        status: of HTTP.
        body: of the answer, ready to send.
        content_type: of the answer.
        reason: stable name of what is wrong.
        evidence: present when the request, beside what we hold, convicts the log.
    """

    status: int
    body: bytes
    content_type: str
    reason: str
    evidence: Evidence | None = None


def refuse(status: int, reason: str, message: str, evidence: Evidence | None = None) -> Refuse:
    """A refusal whose body is one line of text: the stable name, then the sentence."""
    return Refuse(status, f"{reason}: {message}\n".encode(), TEXT, reason, evidence)


def parse_request(body: bytes) -> Request:
    """Parse an add-checkpoint body: old size, proof lines, an empty line, a signed checkpoint.

    Raises:
        EncodingError: not exactly that, or not in the canonical form.

    Spec: C2SP tlog-witness v1.1, "add-checkpoint".
    """
    head, separator, signed_checkpoint = body.partition(b"\n\n")
    if not separator:
        raise EncodingError("BadRequest", "no empty line between the proof and the checkpoint")
    try:
        old_line, *proof_lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as error:
        raise EncodingError("BadRequest", "the lines before the checkpoint are not ASCII") from error
    prefix, old_size = old_line[:4], old_line[4:]
    if prefix != "old ":
        raise EncodingError("BadRequest", "the first line must be `old`, one space, a tree size")
    if len(proof_lines) > MAX_PROOF_LINES:
        raise EncodingError(
            "TooManyProofLines", f"{len(proof_lines)} proof lines, where {MAX_PROOF_LINES} prove any tree"
        )
    with naming("BadOldSize", "the old size"):
        size = parse_decimal(old_size)
    with naming("BadProofLine", "a proof line"):
        proof = tuple(decode_base64(line, HASH_BYTES) for line in proof_lines)
    note, checkpoint = parse_signed_checkpoint(signed_checkpoint)
    return Request(size, proof, note, checkpoint)


def decide(
    request: Request, latest: Cosigned | None, log_vkeys: Sequence[Vkey], now: int, retired: Sequence[Vkey] = ()
) -> Accept | Refuse:
    """Whether to cosign, resting on *latest* and on nothing that happened after it was read.

    Args:
        request: from parse_request.
        latest: our last cosigned checkpoint of the request's origin; None before the first.
        log_vkeys: the keys trusted for that origin.
        now: Unix seconds.
        retired: the keys that were trusted for that origin before. Their lines are those of strangers, but two roots
            under one of them are still evidence. An origin without any key, of either kind, is unknown.
    """
    checkpoint = request.checkpoint
    if not (log_vkeys or retired):
        return refuse(404, "UnknownOrigin", f"this witness does not follow {checkpoint.origin}")
    if checkpoint.extensions:
        return refuse(
            400, "ExtensionLines", "the checkpoint has extension lines; ML-DSA-44 cosignatures cover none"
        )
    text = encode_checkpoint(checkpoint)
    if text != request.note.text:
        raise AssertionError("a checkpoint was parsed that is not in its canonical form")
    try:
        signed = open_note(request.note, log_vkeys)
    except Invalid as error:
        return refuse(403, "BadSignature", f"a line by a trusted key does not verify: {error.message}")
    formerly = _signed_formerly(request, latest, retired, needed=not signed)
    if not signed and formerly:
        message = f"signed by no key that is still trusted for {checkpoint.origin}, only by one that was retired"
        return refuse(403, RETIRED_KEY, message, _fork(request, latest, formerly))
    if not signed:
        return refuse(403, "NoTrustedSignature", f"no signature by a key trusted for {checkpoint.origin}")

    refusal = _refuse_growth(request, latest) or _refuse_clock(latest, now)
    if refusal is not None:
        status, reason, message = refusal
        evidence = _fork(request, latest, signed) or _fork(request, latest, formerly)
        if status == 409:
            return Refuse(409, f"{message}\n".encode("ascii"), TREE_SIZE, reason, evidence)
        return refuse(status, reason, message, evidence)
    return Accept(
        expected_revision=0 if latest is None else latest.revision,
        checkpoint=checkpoint,
        text=text,
        log_signatures=signed,
        time=now,
    )


def _signed_formerly(
    request: Request, latest: Cosigned | None, retired: Sequence[Vkey], *, needed: bool
) -> tuple[Verified, ...]:
    """The lines by retired keys where they matter: none by other keys, or another root of the size cosigned last."""
    checkpoint = request.checkpoint
    old = None if latest is None else latest.checkpoint
    forked = old is not None and old.size == checkpoint.size and old.root != checkpoint.root
    if not retired or not (needed or forked):
        return ()
    try:
        return open_note(request.note, retired)
    except Invalid:
        return ()  # a line of a stranger, like any other


def _refuse_growth(request: Request, latest: Cosigned | None) -> tuple[int, str, str] | None:
    """Status, reason and message when the checkpoint does not extend *latest*, else None."""
    old_size, new = request.old_size, request.checkpoint
    if old_size > new.size:
        return 400, "OldAboveSize", f"old size {old_size} is above the checkpoint's size {new.size}"
    latest_size = 0 if latest is None else latest.checkpoint.size
    if old_size != latest_size:
        return 409, "SizeConflict", str(latest_size)
    if new.size == 0 and new.root != EMPTY_ROOT:
        return 422, "BadEmptyRoot", "the root of an empty tree is the SHA-256 of nothing"
    if old_size == 0:
        if request.proof:
            return 422, "ProofFromNothing", "every tree extends the empty one: send no proof with old 0"
        return None
    if latest is None:
        raise AssertionError("an old size above 0 cannot equal the size of nothing")
    if new.size == old_size and new.root != latest.checkpoint.root:
        return 422, "OtherRoot", f"this witness cosigned another root at size {new.size}"
    try:
        verify_consistency(old_size, new.size, request.proof, latest.checkpoint.root, new.root)
    except Invalid as error:
        return (
            422, "BadConsistencyProof",
            f"no proof that size {new.size} extends the size {old_size} cosigned last: {error.message}",
        )
    return None


def _refuse_clock(latest: Cosigned | None, now: int) -> tuple[int, str, str] | None:
    """A cosignature says "the largest tree as of now", so our time must never run backwards."""
    not_before = 1 if latest is None else latest.time
    if now < not_before:
        return (
            503, "ClockBehind",
            f"this witness's clock says {now}, but it cosigned this log at {not_before}: try later",
        )
    return None


def _fork(request: Request, latest: Cosigned | None, signed: tuple[Verified, ...]) -> Evidence | None:
    """Evidence when the log signed this size before with another root, by one and the same key.

    Nothing else convicts at a witness: a stranger can send a genuine checkpoint with a wrong
    old size or a garbage proof. ML-DSA keys come first, because policies name those.
    """
    if latest is None or not latest.note:
        return None
    new, old = request.checkpoint, latest.checkpoint
    if new.size != old.size or new.root == old.root:
        return None
    vkeys = sorted((one.vkey for one in signed), key=lambda vkey: -vkey.algorithm)
    for vkey in vkeys:
        try:
            return two_roots(vkey, latest.note, format_note(request.note), origin=new.origin)
        except Invalid:
            continue  # we verified the older checkpoint under another of the log's keys
    return None
