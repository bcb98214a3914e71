"""Portable evidence that a log forked: anyone who holds its public key can check it, offline.

Two statements signed by one key that cannot both be true convict the holder of that key:

``two-roots``
    Two checkpoints of one size with different roots.
``inconsistent``
    An older and a newer checkpoint, and a consistency proof that computes the newer root as signed
    but another older root. Each hash of such a proof is fixed by the newer root, so the newer tree
    has no prefix with the older root. Where the older size is a power of two, the plain proof
    starts from the older root itself and could show nothing; there the evidence's proof begins with
    the newer tree's own hash of that prefix.

Only the lines of the accused key are kept: cosigners are not accused, and their lines prove nothing
here. Two signed roots for size 0 convict as for any other size; since every tree extends the empty
one, ``inconsistent`` needs an older size above 0.

The file is JSON in one canonical form::

    {
      "format": "ktlog-evidence/v1",
      "kind": "two-roots",
      "origin": "keys.example.com",
      "vkey": "keys.example.com+…",
      "notes": ["keys.example.com\\n5\\n…", "keys.example.com\\n5\\n…"],
      "proof": []
    }
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES, Checkpoint, parse_checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64, naming
from ktlog.tlog.note import (
    COSIGNATURE_MLDSA44,
    ED25519,
    Note,
    Vkey,
    format_note,
    parse_note,
    parse_vkey,
    verify_line,
)
from ktlog.tlog.tree import HASH_BYTES, consistency_roots

FORMAT = "ktlog-evidence/v1"
TWO_ROOTS = "two-roots"
INCONSISTENT = "inconsistent"
KINDS = (TWO_ROOTS, INCONSISTENT)
MAXIMUM_EVIDENCE_BYTES = 4 << 20
MAXIMUM_PROOF_HASHES = 64

_FIELDS = ["format", "kind", "origin", "vkey", "notes", "proof"]


@dataclass(frozen=True)
class Evidence:
    """A claim that the holder of ``vkey`` forked the log ``origin``; see :func:`verify_evidence`.

    ``notes`` are two signed checkpoints (for ``inconsistent`` the older first) with one line each;
    ``proof`` holds 32-byte hashes, and is empty for ``two-roots``.
    """

    kind: str
    origin: str
    vkey: Vkey
    notes: tuple[bytes, ...]
    proof: tuple[bytes, ...] = ()


def two_roots(vkey: Vkey, note_a: bytes, note_b: bytes, *, origin: str | None = None) -> Evidence:
    """Evidence from two signed checkpoints of one size, under the log's key *vkey* (0x01 or 0x06).

    Args:
        origin: the log whose key the caller knows *vkey* to be, whatever its name.

    Raises:
        EncodingError: a note is no signed checkpoint.
        Invalid: they do not convict; see :func:`verify_evidence`.
    """
    return _build(TWO_ROOTS, vkey, (note_a, note_b), (), origin=origin)


def inconsistent(
    vkey: Vkey, old_note: bytes, new_note: bytes, proof: Sequence[bytes], prefix_root: bytes | None = None
) -> Evidence:
    """Evidence from an older and a newer signed checkpoint.

    Args:
        proof: the newer tree's consistency proof from the older size (RFC 9162 §2.1.4.1).
        prefix_root: the newer tree's own root of its first old-size leaves, as
            root_hash(old_size, reader of the newer tree) gives it. Needed when the older size is a
            power of two, and not used otherwise.

    Raises:
        EncodingError: a note is no signed checkpoint.
        Invalid: they do not convict; see :func:`verify_evidence`.
    """
    hashes = tuple(proof)
    if _is_power_of_two(parse_signed_checkpoint(old_note)[1].size):
        if prefix_root is None:
            raise Invalid("NotEvidence", "an older size that is a power of two needs the prefix's root")
        hashes = (prefix_root, *hashes)
    return _build(INCONSISTENT, vkey, (old_note, new_note), hashes)


def verify_evidence(evidence: Evidence, vkey: Vkey | None = None, *, origin: str | None = None) -> None:
    """Raise unless *evidence* convicts the holder of its key.

    With *vkey* the evidence must be about that very key. Without it only this is shown: whoever
    holds ``evidence.vkey`` forked; that the key is the log's, the caller must know from elsewhere.
    A key that is not named after the log (sum.golang.org's signs ``go.sum database tree``) is
    believed to be the log's only if *origin* says so as well: the caller knows *vkey* as the key of
    that very log. To know a key as some log's is not enough: its holder could sign two roots in
    any other log's name, and convict it.

    Raises:
        EncodingError: a note is no signed checkpoint.
        Invalid: ``WrongLog`` (another key or origin), ``BadLogSignature``, ``BadConsistencyProof``, or
            ``NotEvidence`` when the statements do not contradict each other.
    """
    if vkey is not None and evidence.vkey != vkey:
        raise Invalid(
            "WrongLog", f"the evidence is about the key {evidence.vkey.name}+{evidence.vkey.key_id.hex()}, and not the"
            f" one that you named, {vkey.name}+{vkey.key_id.hex()}",
            hint="A log may have several keys: if you know that this one is the log's too, name it instead.",
        )
    if evidence.vkey.algorithm not in (ED25519, COSIGNATURE_MLDSA44):
        raise Invalid("NotEvidence", "the key is a cosigner's, not a log's")
    # Otherwise a cosigner's 0x06 lines, or a key made up for the purpose, would seem to accuse a log.
    if origin is not None and origin != evidence.origin:
        raise Invalid("WrongLog", "the evidence is about another log than the one that the key is known for")
    if (vkey is None or origin is None) and evidence.vkey.name != evidence.origin:
        raise Invalid("WrongLog", "the key is not named after the log's origin")
    if len(evidence.notes) != 2:
        raise Invalid("NotEvidence", "evidence holds two notes")
    old, new = (_open(evidence, data) for data in evidence.notes)
    if evidence.kind == TWO_ROOTS:
        _check_two_roots(evidence, old, new)
    elif evidence.kind == INCONSISTENT:
        _check_inconsistent(evidence, old, new)
    else:
        raise Invalid("NotEvidence", "evidence of an unknown kind")


def format_evidence(evidence: Evidence) -> bytes:
    """The evidence as a file; inverse of :func:`parse_evidence`.

    Raises:
        EncodingError: ``BadEvidence`` for a value that could not be read back.
    """
    data = _encode(evidence)
    if parse_evidence(data) != evidence:
        raise EncodingError("BadEvidence", "the evidence does not read back as itself")
    return data


def parse_evidence(data: bytes) -> Evidence:
    """Read an evidence file, in its canonical form only; believe nothing.

    Raises:
        EncodingError: ``BadEvidence``.
    """
    if len(data) > MAXIMUM_EVIDENCE_BYTES:
        raise EncodingError("BadEvidence", f"longer than {MAXIMUM_EVIDENCE_BYTES} bytes")
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise EncodingError("BadEvidence", "not JSON in UTF-8") from None
    try:
        evidence = _from_json(value)
        canonical = _encode(evidence)
    except EncodingError as error:
        raise EncodingError("BadEvidence", error.message) from error
    # One comparison refuses duplicate keys, other spacing, other escapes and numbers in odd forms.
    if canonical != data:
        raise EncodingError("BadEvidence", "not in the canonical form")
    return evidence


def _from_json(value: Any) -> Evidence:
    if not isinstance(value, dict) or list(value) != _FIELDS or value["format"] != FORMAT:
        raise EncodingError("BadEvidence", f"not an object of the format {FORMAT}")
    kind, origin, vkey = _text(value["kind"]), _text(value["origin"]), _text(value["vkey"])
    if kind not in KINDS:
        raise EncodingError("BadEvidence", "an unknown kind")
    if not 1 <= len(origin.encode("utf-8")) <= MAXIMUM_ORIGIN_BYTES:
        raise EncodingError("BadEvidence", "the origin does not have 1 to 255 bytes")
    notes = tuple(_text(item).encode("utf-8") for item in _list(value["notes"], 2))
    if len(notes) != 2:
        raise EncodingError("BadEvidence", "evidence holds two notes")
    for note in notes:
        parse_signed_checkpoint(note)
    with naming("BadEvidence", "proof"):
        proof = tuple(
            decode_base64(_text(item), HASH_BYTES) for item in _list(value["proof"], MAXIMUM_PROOF_HASHES)
        )
    return Evidence(kind, origin, parse_vkey(vkey), notes, proof)


def _encode(evidence: Evidence) -> bytes:
    try:
        value = {
            "format": FORMAT,
            "kind": evidence.kind,
            "origin": evidence.origin,
            "vkey": str(evidence.vkey),
            "notes": [note.decode("utf-8") for note in evidence.notes],
            "proof": [encode_base64(item) for item in evidence.proof],
        }
        return (json.dumps(value, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
    except UnicodeError:
        raise EncodingError("BadEvidence", "not Unicode text") from None


def _text(value: Any) -> str:
    if not isinstance(value, str) or any("\ud800" <= character <= "\udfff" for character in value):
        raise EncodingError("BadEvidence", "a field is not Unicode text")
    return value


def _list(value: Any, maximum: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > maximum:
        raise EncodingError("BadEvidence", "a field is not a list, or too long")
    return value


def _build(
    kind: str, vkey: Vkey, notes: tuple[bytes, bytes], proof: tuple[bytes, ...], *, origin: str | None = None
) -> Evidence:
    kept = []
    for data in notes:
        note, checkpoint = parse_signed_checkpoint(data)
        accused = (vkey.name, vkey.key_id)
        lines = tuple(line for line in note.signatures if (line.name, line.key_id) == accused)
        if not lines:
            raise Invalid("BadLogSignature", "the accused key did not sign both notes")
        kept.append(format_note(Note(note.text, lines)))
    evidence = Evidence(kind, checkpoint.origin, vkey, tuple(kept), proof)
    verify_evidence(evidence, None if origin is None else vkey, origin=origin)
    return evidence


def _open(evidence: Evidence, data: bytes) -> Checkpoint:
    note = parse_note(data)
    checkpoint = parse_checkpoint(note.text)
    if checkpoint.origin != evidence.origin:
        raise Invalid("WrongLog", "a note is of another log")
    if len(note.signatures) != 1:
        raise Invalid("NotEvidence", "a note bears other lines than the accused key's")
    try:
        verify_line(evidence.vkey, note.text, note.signatures[0])
    except Invalid as error:
        raise Invalid("BadLogSignature", error.message) from error
    return checkpoint


def _check_two_roots(evidence: Evidence, one: Checkpoint, other: Checkpoint) -> None:
    if evidence.proof:
        raise Invalid("NotEvidence", "two roots need no proof")
    if one.size != other.size:
        raise Invalid("NotEvidence", "the notes are of different sizes")
    if one.root == other.root:
        raise Invalid("NotEvidence", "the notes have one root")


def _check_inconsistent(evidence: Evidence, old: Checkpoint, new: Checkpoint) -> None:
    if not 0 < old.size < new.size:
        raise Invalid("NotEvidence", "the older size is not between 0 and the newer")
    start, proof = old.root, evidence.proof
    if _is_power_of_two(old.size):
        if not proof:
            raise Invalid("NotEvidence", "the newer tree's own hash of the prefix is missing")
        start, proof = proof[0], proof[1:]
    prefix_root, root = consistency_roots(old.size, new.size, proof, start)
    if root != new.root:
        raise Invalid("BadConsistencyProof", "the proof does not compute the newer root")
    if prefix_root == old.root:
        raise Invalid("NotEvidence", "the newer tree extends the older")


def _is_power_of_two(value: int) -> bool:
    return value.bit_count() == 1
