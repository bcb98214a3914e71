"""What an evidence file proves, and against whom, in words and for machines."""

from __future__ import annotations

import hashlib
from typing import Any

from auditor.report import printable
from ktlog.client.verify import count_entries
from ktlog.errors import KtlogError
from ktlog.keymap.evidence import FORMAT, MapEvidence, judge_map_evidence, parse_map_evidence
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import INCONSISTENT, Evidence, parse_evidence, verify_evidence
from ktlog.tlog.note import ED25519, Vkey

_NEXT = "Do not rely on this file. Ask whoever gave it to you for the original, byte for byte."


def fingerprint(vkey: Vkey) -> str:
    """SHA-256 of the raw public key, in hex: for comparing keys by eye or over the telephone."""
    return hashlib.sha256(vkey.public_key).hexdigest()


def conviction(data: bytes, vkey: Vkey | None) -> dict[str, Any]:
    """The verdict on an evidence file that convicts.

    Args:
        vkey: the key known to be the log's, or None to learn which key is convicted. Anybody can make a
            key with any name and convict that: without *vkey* the verdict has "log_key_known" false.

    Raises:
        EncodingError, Invalid: it convicts nobody, or not the holder of *vkey*. Exit code 5.
    """
    evidence: Evidence | MapEvidence
    try:
        # Both formats are canonical JSON, which begins with the format's name.
        if FORMAT.encode("ascii") in data[:64]:
            evidence = parse_map_evidence(data)
            judgement = judge_map_evidence(evidence, vkey)
            heads, what = judgement.heads, _what_of_map(evidence, judgement.reason)
        else:
            evidence = parse_evidence(data)
            verify_evidence(evidence, vkey)
            first, second = (parse_signed_checkpoint(note)[1] for note in evidence.notes)
            heads, what = (first, second), _what(evidence, first.size, second.size)
    except KtlogError as error:
        error.hint = error.hint or _NEXT
        raise
    return {
        "convicts": True,
        "kind": evidence.kind,
        "origin": evidence.origin,
        "vkey": str(evidence.vkey),
        "algorithm": "Ed25519" if evidence.vkey.algorithm == ED25519 else "ML-DSA-44",
        "key_id": evidence.vkey.key_id.hex(),
        "fingerprint": fingerprint(evidence.vkey),
        "heads": [{"tree_size": head.size, "root": encode_base64(head.root)} for head in heads],
        "log_key_known": vkey is not None,
        "what": what,
    }


def _what_of_map(evidence: MapEvidence, reason: str) -> str:
    about = "two maps of its log" if evidence.actor_id is None else f"two answers about {printable(evidence.actor_id)}"
    return f"The holder of this key signed {about} that cannot both be true: {reason}."


def _what(evidence: Evidence, first: int, second: int) -> str:
    if evidence.kind == INCONSISTENT:
        return (
            f"The holder of this key signed a tree of {count_entries(first)} and a tree of {second} that does not begin"
            " with it: entries were changed or taken out after they were signed."
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
            f"CONVICTING: a key that calls itself {origin} signed two histories; check that this is {origin}'s key:"
            " run again with --vkey"
        )
    return (
        f"{first}\n"
        f"  key: {verdict['algorithm']}, id {verdict['key_id']}, SHA-256 of the public key {verdict['fingerprint']}\n"
        f"{heads}\n"
        f"  {verdict['what']}\n"
        "  Nobody without the private key can have made these signatures."
    )

