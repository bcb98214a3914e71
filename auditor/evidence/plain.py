"""Claims that signatures and hashes decide: nothing is derived, and nothing is asked of anybody.

Each judge raises unless the claim convicts. In every one of them the accused key signed the head of a tree, and the
tree holds what no honest log puts there: an honest log signs its entries, writes down only what it took as a
message, takes no message twice, and changes no leaf.
"""

from __future__ import annotations

from hashlib import sha256

from auditor.evidence.claims import Claim, Judgement, not_evidence, open_signed, signed_by
from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import LogEntry, leaf_key_hash, parse_entry
from ktlog.pkd.keys import verify_mldsa44
from ktlog.pkd.messages import WireMessage, parse_wire
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import Vkey
from ktlog.tlog.proof import TlogProof, format_proof, parse_proof
from ktlog.tlog.tree import HashReader, hash_leaf, prove_inclusion, verify_inclusion

# A text that a newer log may understand, and this program not, is no fault of the log's.
_NOT_UNDERSTOOD = frozenset({"wrong_context", "unknown_action", "bad_token", "too_large", "bad_aux_type"})


def statement(vkey: Vkey, head: bytes, size: int, leaf_index: int, read: HashReader, entry: bytes | None) -> bytes:
    """A .tlog-proof of a leaf under a head of *size*, with the accused key's line alone.

    Args:
        head: the signed checkpoint as served. read: hashes of its tree. entry: the leaf's bytes, kept beside it.
    """
    path = tuple(prove_inclusion(leaf_index, size, read))
    return format_proof(TlogProof(leaf_index, path, signed_by(vkey, head), entry))


def open_statement(claim: Claim, data: bytes) -> tuple[Checkpoint, TlogProof, bytes]:
    """The head, the proof and the entry of a statement that holds, under the accused key's signature.

    Raises:
        EncodingError, Invalid: it does not.
    """
    proof = parse_proof(data)
    checkpoint = open_signed(claim, proof.checkpoint_bytes)
    if proof.extra is None:
        raise not_evidence("a statement is without its entry")
    verify_inclusion(hash_leaf(proof.extra), proof.leaf_index, checkpoint.size, proof.hashes, checkpoint.root)
    return checkpoint, proof, proof.extra


def _open_entry(claim: Claim, data: bytes) -> tuple[Checkpoint, int, Dialect, LogEntry]:
    checkpoint, proof, entry = open_statement(claim, data)
    if "/" in claim.origin:
        raise not_evidence("this is not the log of a directory's entries")
    try:
        dialect, parsed = parse_entry(entry)
    except EncodingError:
        raise not_evidence("the leaf is no entry of a key directory, so this program cannot judge it") from None
    return checkpoint, proof.leaf_index, dialect, parsed


def judge_two_leaves(claim: Claim) -> Judgement:
    """One index, two leaf hashes, under one head or two of whatever sizes."""
    heads = []
    first, second = claim["leaf-hashes"]
    for leaf_hash, data in zip(claim["leaf-hashes"], claim["statements"], strict=True):
        proof = parse_proof(data)
        if proof.extra is not None or proof.leaf_index != claim["leaf-index"]:
            raise not_evidence("a statement is about another leaf")
        heads.append(open_signed(claim, proof.checkpoint_bytes))
        verify_inclusion(leaf_hash, proof.leaf_index, heads[-1].size, proof.hashes, heads[-1].root)
    if first == second:
        raise not_evidence("the two leaves are one")
    return Judgement(tuple(heads), f"entry {claim['leaf-index']} is one thing in the one tree and another in the other")


def judge_leaf_signature(claim: Claim) -> Judgement:
    """The entry names its key by hash: whoever has the key can show that it made no such signature."""
    checkpoint, leaf_index, _, entry = _open_entry(claim, claim["statement"])
    try:
        named = leaf_key_hash(claim["leaf-key"])
    except EncodingError:
        raise not_evidence("the leaf key is no key") from None
    if named != entry.key_hash:
        raise not_evidence("the entry names another leaf key than the one in the file")
    try:
        verify_mldsa44(claim["leaf-key"], entry.signature, entry.message_hash)
    except Invalid:
        return Judgement((checkpoint,), f"entry {leaf_index} is not signed by the leaf key that it names")
    raise not_evidence("the entry is signed as it must be")


def judge_message(claim: Claim) -> Judgement:
    """An entry for a text that no directory may take: no message at all, or not written in the one way."""
    checkpoint, leaf_index, dialect, entry = _open_entry(claim, claim["statement"])
    message = claim["message"]
    if sha256(message).digest() != entry.message_hash:
        raise not_evidence("the entry is for another message than the one in the file")
    try:
        wire = parse_wire(dialect, message)
    except MessageRejected as error:
        if error.code in _NOT_UNDERSTOOD:
            raise not_evidence("this program may be too old to read that message") from None
        return Judgement((checkpoint,), f"entry {leaf_index} is for a text that is no message: {error.message}")
    if wire.preimage == message:
        raise not_evidence("the entry is for a message in its one form")
    return Judgement((checkpoint,), f"entry {leaf_index} is for a message that is not in its canonical form")


def judge_duplicate(claim: Claim) -> Judgement:
    """Two entries for one message: what is signed is the same, whatever the signatures."""
    heads, places, wires = [], [], []
    for data, message in zip(claim["statements"], claim["messages"], strict=True):
        checkpoint, leaf_index, dialect, entry = _open_entry(claim, data)
        if sha256(message).digest() != entry.message_hash:
            raise not_evidence("an entry is for another message than the one in the file")
        heads.append(checkpoint)
        places.append(leaf_index)
        wires.append(_wire(dialect, message))
    if places[0] >= places[1]:
        raise not_evidence("the two entries are one, or not in order")
    if wires[0].unique_hash != wires[1].unique_hash:
        raise not_evidence("the two messages are not the same")
    return Judgement(tuple(heads), f"entries {places[0]} and {places[1]} are one message, taken twice")


def _wire(dialect: Dialect, message: bytes) -> WireMessage:
    try:
        return parse_wire(dialect, message)
    except MessageRejected:
        raise not_evidence("a text is no message, and so not the same message as another") from None
