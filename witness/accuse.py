"""The file that a verifier keeps when it caught a log: what was signed, and why it cannot be true.

``ktlog-wrong-leaf/v1`` is JSON in one canonical form. It holds the checkpoint with the log's own signatures, the leaf
and its path, so that nobody needs the verifier's word for what was said. Whether it is wrong, a reader finds out as
the verifier did: from the log's entries. What convicts by itself has other forms, which need nothing else: two heads
that contradict each other make a ``ktlog-evidence/v1`` (:mod:`ktlog.tlog.evidence`), two leaves, each the newest under
a signed head, a ``ktlog-map-evidence/v1`` (:mod:`ktlog.keymap.evidence`).
"""

from __future__ import annotations

import json

from ktlog.client.verify import Head
from ktlog.errors import KtlogError
from ktlog.keymap.evidence import (
    MAP_CONTRADICTION,
    MapEvidence,
    format_map_evidence,
    keep_lines,
    verify_map_evidence,
)
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.proof import TlogProof, format_proof
from ktlog.tlog.tree import HashReader, prove_inclusion
from witness.derivation import Derivation
from witness.leaves import WrongLeaf

WRONG_LEAF = "ktlog-wrong-leaf/v1"
CONTRADICTION = "ktlog-contradiction/v1"


def accuse_leaf(
    wrong: WrongLeaf, before: tuple[Head | None, bytes] | None, head: Head, read: HashReader, leaf: bytes,
    shown: Head | None, derivation: Derivation | None,
) -> bytes:
    """What convicts *leaf*, under the checkpoint *head*.

    Args:
        before: the leaf before it, under the head with which it was checked.
        read: hashes of the head's tree. shown: of the input log. derivation: what was derived when it was found wrong.
    """
    contradiction = None if before is None else _two_leaves(wrong, before, head, read, leaf)
    if contradiction is not None:
        return contradiction
    try:
        path = prove_inclusion(wrong.leaf_index, head.size, read)
    except KtlogError:
        path = []  # the log stopped serving what it served a moment ago; the rest still says what it signed
    derived = None
    if derivation is not None:
        derived = {
            "entries": derivation.size, "root": encode_base64(derivation.input_root()), "erasures": derivation.erasures,
        }
    return _document({
        "format": WRONG_LEAF, "origin": head.origin, "name": wrong.name, "message": wrong.message,
        "leaf-index": wrong.leaf_index, "leaf": encode_base64(leaf), "path": [encode_base64(node) for node in path],
        "checkpoint": head.note.decode("utf-8", "replace"),
        "input-checkpoint": None if shown is None else shown.note.decode("utf-8", "replace"), "derived": derived,
    })


def _two_leaves(
    wrong: WrongLeaf, before: tuple[Head | None, bytes], head: Head, read: HashReader, leaf: bytes
) -> bytes | None:
    """Evidence that needs nobody's derivation; None where the two leaves alone do not convict one key."""
    old_head, old_leaf = before
    if old_head is None or old_head.size != wrong.leaf_index or head.size != wrong.leaf_index + 1:
        return None
    for vkey in {one.vkey for one in head.log}:
        try:
            items = tuple(
                format_proof(TlogProof(
                    at.size - 1, tuple(prove_inclusion(at.size - 1, at.size, read)), keep_lines(at.note, [vkey]), data
                ))
                for at, data in ((old_head, old_leaf), (head, leaf))
            )
            evidence = MapEvidence(MAP_CONTRADICTION, vkey, None, items)
            verify_map_evidence(evidence)
        except KtlogError:
            continue  # not signed by this key, or not a contradiction of this kind
        return format_map_evidence(evidence)
    return None


def accuse_fork(origin: str, error: KtlogError) -> bytes:
    """Of a log whose two heads were signed by two keys, so that no single key is convicted by them."""
    return _document({"format": CONTRADICTION, "origin": origin, "name": error.name, "message": error.message})


def _document(members: dict[str, object]) -> bytes:
    return (json.dumps(members, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
