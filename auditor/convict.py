"""What an evidence file proves, and against whom, in words and for machines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from auditor.evidence.claims import FORMAT as CLAIM_FORMAT
from auditor.evidence.claims import Claim, parse_claim
from auditor.evidence.judge import Known, judge_claim
from auditor.evidence.limits import MAX_MARKS
from auditor.report import printable
from ktlog.errors import EncodingError, KtlogError, Unreachable
from ktlog.keymap.evidence import FORMAT as MAP_FORMAT
from ktlog.keymap.evidence import MapEvidence, judge_map_evidence, parse_map_evidence
from ktlog.keymap.output import MAP_SUFFIX
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import INCONSISTENT, Evidence, parse_evidence, verify_evidence
from ktlog.tlog.note import ED25519, Vkey
from ktlog.words import count_entries

_NEXT = "Do not rely on this file. Was it changed on its way? Whoever gave it to you has the original."
_LATER = "Nothing was decided: what had to be read could not be. Try again."
# Verifiers keep these for themselves: they say what a verifier saw, and convict nobody on its word.
_OF_VERIFIERS = ("ktlog-wrong-leaf/v1", "ktlog-contradiction/v1")


def fingerprint(vkey: Vkey) -> str:
    """SHA-256 of the raw public key, in hex: for comparing keys by eye or over the telephone."""
    return hashlib.sha256(vkey.public_key).hexdigest()


def parse_any(data: bytes) -> Evidence | MapEvidence | Claim:
    """Read an evidence file of any format; believe nothing.

    Raises:
        EncodingError: ``BadEvidence``.
    """
    # Canonical evidence has some 30,000 members at most, and their texts few commas. Without this, a few megabytes of
    # empty lists become hundreds of them in memory before anything is refused.
    if sum(map(data.count, (b"{", b"[", b","))) > MAX_MARKS:
        raise EncodingError("BadEvidence", f"more than {MAX_MARKS} commas and opening brackets")
    # Every format is canonical JSON, which begins with the format's name.
    start = data[:64]
    if MAP_FORMAT.encode("ascii") in start:
        return parse_map_evidence(data)
    if CLAIM_FORMAT.encode("ascii") in start:
        return parse_claim(data)
    if any(name.encode("ascii") in start for name in _OF_VERIFIERS):
        raise EncodingError(
            "BadEvidence", "this is a verifier's note of what it refused, and no evidence that others can check",
            hint="Audit the log yourself: what the verifier saw, an audit finds too.",
        )
    return parse_evidence(data)


def input_origin(data: bytes) -> str:
    """The origin of the log of entries that a file is about, the map's log being its own: for ``--log``."""
    return parse_any(data).origin.removesuffix(MAP_SUFFIX)


def conviction(data: bytes, known: Known | Vkey | None) -> dict[str, Any]:
    """The verdict on an evidence file that convicts.

    Args:
        known: what the reader knows of the log. Without a key in it the answer is which key is convicted: anybody can
            make a key with any name and convict that, so the verdict has "log_key_known" false.

    Raises:
        EncodingError, Invalid: it convicts nobody, or not the holder of a known key. Exit code 5.
        Unreachable: what the file names could not be read.
    """
    known = known if isinstance(known, Known) else Known(() if known is None else (known,))
    try:
        evidence = parse_any(data)
        heads, what, unsigned = _judge(evidence, known)
    except KtlogError as error:
        error.hint = error.hint or (_LATER if isinstance(error, Unreachable) else _NEXT)
        raise
    return {
        "convicts": True,
        "kind": evidence.kind,
        "origin": evidence.origin,
        "vkey": str(evidence.vkey),
        "key_name": evidence.vkey.name,
        "algorithm": "Ed25519" if evidence.vkey.algorithm == ED25519 else "ML-DSA-44",
        "key_id": evidence.vkey.key_id.hex(),
        "fingerprint": fingerprint(evidence.vkey),
        "heads": [{"tree_size": head.size, "root": encode_base64(head.root)} for head in heads],
        "log_key_known": bool(known.keys),
        "rests_on": unsigned,
        "what": what,
    }


def _judge(evidence: Evidence | MapEvidence | Claim, known: Known) -> tuple[Sequence[Checkpoint], str, str | None]:
    """The heads that were signed, what they show, and what that rests on besides signatures."""
    if isinstance(evidence, Claim):
        judgement = judge_claim(evidence, known)
        return judgement.heads, f"The holder of this key signed what cannot be: {judgement.reason}.", judgement.unsigned
    named = evidence.vkey if evidence.vkey in known.keys else next(iter(known.keys), None)
    if isinstance(evidence, MapEvidence):
        found = judge_map_evidence(evidence, named)
        return found.heads, _what_of_map(evidence, found.reason), None
    # Only who says whose key it is may say so of another name: a policy's lines do not say which log a key signs for.
    bound = evidence.origin if (evidence.origin, evidence.vkey) in known.bound else None
    verify_evidence(evidence, named, origin=bound)
    first, second = (parse_signed_checkpoint(note)[1] for note in evidence.notes)
    return (first, second), _what(evidence, first.size, second.size), None


def _what_of_map(evidence: MapEvidence, reason: str) -> str:
    about = "two maps of its log" if evidence.actor_id is None else f"two answers about {printable(evidence.actor_id)}"
    return f"The holder of this key signed {about} that cannot both be true: {reason}."


def _what(evidence: Evidence, first: int, second: int) -> str:
    if evidence.kind == INCONSISTENT:
        return (
            f"The holder of this key signed a tree of {count_entries(first)} and a tree of {second:,} that does not"
            " begin with it: entries were changed or taken out after they were signed."
        )
    return (
        f"The holder of this key signed two different trees of {count_entries(first)} each: two histories, of which"
        " nobody was told but one."
    )


def format_conviction(verdict: dict[str, Any]) -> str:
    """A verdict of :func:`conviction` for a person."""
    heads = "\n".join(f"  signed: {count_entries(head['tree_size'])}, root {head['root']}" for head in verdict["heads"])
    origin = printable(verdict["origin"])
    if verdict["log_key_known"]:
        first = f"CONVICTED: the log {origin}, by the key you named"
    else:
        first = (
            f"CONVICTING: a key that calls itself {origin} signed what no honest log signs; check that this is"
            f" {origin}'s key: run again with --vkey"
        )
    last = "Nobody without the private key can have made these signatures."
    if verdict["rests_on"] is not None:
        last += f" It rests besides on {printable(verdict['rests_on'])}."
    return (
        f"{first}\n"
        f"  key: {printable(verdict['key_name'])}, {verdict['algorithm']}, id {verdict['key_id']},"
        f" SHA-256 of the public key {verdict['fingerprint']}\n"
        f"{heads}\n"
        f"  {printable(verdict['what'])}\n"
        f"  {last}"
    )


def format_refusal(name: str, error: KtlogError) -> str:
    """Why the file *name* convicts nobody, for a person."""
    return f"{name} convicts nobody. {printable(str(error))}\n{printable(error.hint or _NEXT)}"


def refusal(error: KtlogError) -> str:
    """The same for a machine, as JSON."""
    return json.dumps({"convicts": False, "error": error.as_dict()})
