"""Evidence for what was found: one function for each kind, giving the file, or None where nobody can be convicted.

Every file is judged before it is given back, as whoever gets it will judge it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from auditor.evidence.claims import Claim, Logged, accused_key, format_claim, signed_by
from auditor.evidence.judge import Known, judge_claim
from auditor.evidence.limits import MAX_ENTRIES
from auditor.evidence.plain import statement
from auditor.evidence.promises import open_receipt, promise_claim
from ktlog.errors import KtlogError
from ktlog.keymap.evidence import MAP_CONTRADICTION, MapEvidence, format_map_evidence, keep_lines, verify_map_evidence
from ktlog.keymap.output import parse_leaf
from ktlog.pkd.entry import parse_entry
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.note import Vkey
from ktlog.tlog.proof import TlogProof, format_proof
from ktlog.tlog.tree import HashReader, hash_leaf, leaf_reader, prove_consistency, prove_inclusion


def _file(claim: Claim, known: Known | None = None) -> bytes | None:
    try:
        judge_claim(claim, known or Known())
        return format_claim(claim)
    except KtlogError:
        return None


def _signed(vkeys: Sequence[Vkey], *heads: bytes) -> tuple[Vkey, list[Checkpoint]] | None:
    try:
        return accused_key(vkeys, *heads), [parse_signed_checkpoint(head)[1] for head in heads]
    except KtlogError:
        return None


def evidence_for_two_leaves(
    vkeys: Sequence[Vkey], leaf_index: int, one: tuple[bytes, HashReader], other: tuple[bytes, HashReader]
) -> bytes | None:
    """Two signed heads, each with the hashes of its tree, whose trees differ at *leaf_index*."""
    found = _signed(vkeys, one[0], other[0])
    if found is None:
        return None
    vkey, heads = found
    try:
        hashes = tuple(read([(0, leaf_index)])[0] for _, read in (one, other))
        statements = tuple(
            statement(vkey, note, head.size, leaf_index, read, None)
            for head, (note, read) in zip(heads, (one, other), strict=True)
        )
    except KtlogError:
        return None
    return _file(Claim("two-leaves", vkey.name, vkey, {
        "leaf-index": leaf_index, "leaf-hashes": hashes, "statements": statements,
    }))


def evidence_for_leaf_signature(
    vkeys: Sequence[Vkey], head: bytes, read: HashReader, leaf_index: int, entry: bytes,
    leaf_keys: Mapping[bytes, bytes],
) -> bytes | None:
    """An entry that the key it names did not sign. leaf_keys: raw, by hash, as the log publishes them.

    None where the log does not publish the key that the entry names: nobody can tell whose signature it is.
    """
    found = _signed(vkeys, head)
    try:
        key = leaf_keys.get(parse_entry(entry)[1].key_hash)
    except KtlogError:
        return None
    if found is None or key is None:
        return None
    vkey, (checkpoint,) = found
    return _file(Claim("bad-leaf-signature", vkey.name, vkey, {
        "statement": statement(vkey, head, checkpoint.size, leaf_index, read, entry), "leaf-key": key,
    }))


def evidence_for_message(
    vkeys: Sequence[Vkey], head: bytes, read: HashReader, leaf_index: int, entry: bytes, message: bytes
) -> bytes | None:
    """An entry for a text that is no message, or not in its canonical form."""
    found = _signed(vkeys, head)
    if found is None:
        return None
    vkey, (checkpoint,) = found
    return _file(Claim("bad-message", vkey.name, vkey, {
        "statement": statement(vkey, head, checkpoint.size, leaf_index, read, entry), "message": message,
    }))


def evidence_for_duplicate(
    vkeys: Sequence[Vkey], head: bytes, read: HashReader, first: tuple[int, Logged], second: tuple[int, Logged]
) -> bytes | None:
    """Two entries, each with its index, for one message."""
    found = _signed(vkeys, head)
    if found is None:
        return None
    vkey, (checkpoint,) = found
    return _file(Claim("duplicate-message", vkey.name, vkey, {
        "statements": tuple(
            statement(vkey, head, checkpoint.size, index, read, logged.entry) for index, logged in (first, second)
        ),
        "messages": (first[1].message, second[1].message),
    }))


def evidence_for_receipt(
    vkeys: Sequence[Vkey], head: bytes, read: HashReader, receipt: bytes, http_key: bytes, now: int,
    key_changes: bytes = b"",
) -> bytes | None:
    """A receipt, and a signed tree that does not keep it; None where it keeps it, or does not reach so far yet.

    Args:
        http_key: the log's for answers, raw. key_changes: the log's /keys, where one line names *http_key*: with it
            nobody needs to know that key beforehand.
    """
    found = _signed(vkeys, head)
    if found is None:
        return None
    vkey, (checkpoint,) = found
    acceptance = open_receipt(receipt, http_key, checkpoint.origin, now)
    claim = promise_claim(vkey, head, checkpoint, read, receipt, http_key, acceptance, key_changes)
    return None if claim is None else _file(claim, Known(http_keys=(http_key,), now=now))


def evidence_for_rule(
    map_vkeys: Sequence[Vkey], map_head: bytes, map_read: HashReader, output_index: int, output_leaf: bytes,
    name: str, entries: Sequence[Logged], leaf_hashes: Sequence[bytes], workers: int = 2,
) -> bytes | None:
    """The last of *entries*, all from 0 on, breaks the rule *name*.

    Args:
        output_leaf: at *output_index* of the map's log; it covers that entry, and there was no erasure.
        leaf_hashes: of all the entries that the output leaf covers.
    """
    found = _signed(map_vkeys, map_head)
    if found is None:
        return None
    vkey, (checkpoint,) = found
    covered, size = parse_leaf(output_leaf).input_size, len(entries)
    if not 0 < size <= covered <= len(leaf_hashes) or size > MAX_ENTRIES:
        return None
    proof = () if size == covered else tuple(prove_consistency(size, covered, leaf_reader(leaf_hashes[:covered])))
    return _file(Claim("broken-rule", vkey.name, vkey, {
        "name": name, "leaf-index": size - 1, "proof": proof, "entries": tuple(entries),
        "statement": statement(vkey, map_head, checkpoint.size, output_index, map_read, output_leaf),
    }), Known(workers=workers))


def evidence_for_value(
    map_vkeys: Sequence[Vkey], actor_id: str, bundle: bytes, map_head: bytes, entries: Sequence[Logged],
    workers: int = 2,
) -> bytes | None:
    """A map's statement about an actor (:func:`ktlog.keymap.evidence.actor_statement`) that its entries do not give."""
    found = _signed(map_vkeys, map_head)
    if found is None or len(entries) > MAX_ENTRIES:
        return None
    return _file(Claim("wrong-value", found[0].name, found[0], {
        "actor-id": actor_id, "bundle": bundle, "entries": tuple(entries),
    }), Known(workers=workers))


def evidence_for_record(
    vkeys: Sequence[Vkey], head: bytes, read: HashReader, leaf_index: int, entry: bytes, name: str
) -> bytes | None:
    """A claim that names a record to look at: it convicts whoever still publishes it so, and before their own eyes."""
    found = _signed(vkeys, head)
    if found is None:
        return None
    vkey, (checkpoint,) = found
    return format_claim(Claim("wrong-record", vkey.name, vkey, {
        "name": name, "statement": statement(vkey, head, checkpoint.size, leaf_index, read, entry),
    }))


def evidence_for_output_leaves(
    map_vkeys: Sequence[Vkey], older: tuple[int, bytes], newer: tuple[int, bytes], map_head: bytes, read: HashReader
) -> bytes | None:
    """Two leaves of the output log, each with its index and under one head, that cannot both be true."""
    found = _signed(map_vkeys, map_head)
    if found is None:
        return None
    vkey, (checkpoint,) = found
    note = keep_lines(signed_by(vkey, map_head), [vkey])
    try:
        items = tuple(
            format_proof(TlogProof(index, tuple(prove_inclusion(index, checkpoint.size, read)), note, leaf))
            for index, leaf in (older, newer)
        )
        evidence = MapEvidence(MAP_CONTRADICTION, vkey, None, items)
        verify_map_evidence(evidence, vkey)
    except KtlogError:
        return None
    return format_map_evidence(evidence)


def leaf_hashes_of(entries: Sequence[Logged]) -> list[bytes]:
    """For :func:`evidence_for_rule`, where every entry that the output leaf covers is at hand."""
    return [hash_leaf(logged.entry) for logged in entries]
