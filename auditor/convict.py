"""What an evidence file proves, and against whom, in words and for machines."""

from __future__ import annotations

import hashlib
from typing import Any

from auditor.report import printable
from ktlog.errors import KtlogError
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
        vkey: the key known to be the log's, or None to learn which key is convicted.

    Raises:
        EncodingError, Invalid: it convicts nobody, or not the holder of *vkey*. Exit code 5.
    """
    try:
        evidence = parse_evidence(data)
        verify_evidence(evidence, vkey)
    except KtlogError as error:
        error.hint = error.hint or _NEXT
        raise
    heads = [parse_signed_checkpoint(note)[1] for note in evidence.notes]
    return {
        "convicts": True,
        "kind": evidence.kind,
        "origin": evidence.origin,
        "vkey": str(evidence.vkey),
        "algorithm": "Ed25519" if evidence.vkey.algorithm == ED25519 else "ML-DSA-44",
        "key_id": evidence.vkey.key_id.hex(),
        "fingerprint": fingerprint(evidence.vkey),
        "heads": [{"tree_size": head.size, "root": encode_base64(head.root)} for head in heads],
        "vkey_was_given": vkey is not None,
        "what": _what(evidence, heads[0].size, heads[1].size),
    }


def _what(evidence: Evidence, first: int, second: int) -> str:
    if evidence.kind == INCONSISTENT:
        return (
            f"The holder of this key signed a tree of {first} entries and a tree of {second} that does not begin"
            " with it: entries were changed or taken out after they were signed."
        )
    return (
        f"The holder of this key signed two different trees of {first} entries each: two histories, of which nobody"
        " was told but one."
    )


def format_conviction(verdict: dict[str, Any]) -> str:
    """A verdict of :func:`conviction` for a person."""
    heads = "\n".join(f"  signed: {head['tree_size']} entries, root {head['root']}" for head in verdict["heads"])
    key = "the key you named" if verdict["vkey_was_given"] else "this key; make sure that it is the log's"
    return (
        f"CONVICTED: the log {printable(verdict['origin'])}, by {key}\n"
        f"  key: {verdict['algorithm']}, id {verdict['key_id']}, SHA-256 of the public key {verdict['fingerprint']}\n"
        f"{heads}\n"
        f"  {verdict['what']}\n"
        "  Nobody without the private key can have made these signatures."
    )

