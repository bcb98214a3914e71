"""A receipt that the log did not keep: it signed that a message became entry *i* of a tree, and signed another tree.

A receipt is signed by the log's key for HTTP answers, a head by its key for checkpoints. That both are one log's must
be known, or anybody could put a receipt of his own making beside an honest log's head: either the reader names the
answers' key, or the file holds the log's history of keys, of which the accused key signed the line that names it.

A tree without the entry is not yet a broken promise: the log may only be late, and late is no crime. What convicts is a
tree that has *another* entry there, or that is as large and has another root.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from auditor.evidence.claims import Claim, Judgement, not_evidence, open_signed, signed_by
from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.keychanges import FIRST, KeyChange, change_message, hash_change, parse_changes
from ktlog.pkd.keys import PUBLIC_KEY_BYTES, decode_root, encode_public_key, verify_mldsa44
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.note import COSIGNATURE_MLDSA44, Vkey
from ktlog.tlog.tree import (
    HashReader,
    consistency_roots,
    prove_consistency,
    prove_inclusion,
    root_hash,
    verify_inclusion,
)
from ktlog.wire.actor import ML_DSA_44, Multikey
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.httpsig_response import Exchange
from ktlog.wire.receipts import Acceptance, format_receipt, log_actor_of, parse_receipt, verify_receipt

_OWN_WORD = (
    "the time in the receipt, which is the receipt's own word, and on the file's history of keys being whole: that no"
    " later line gave up the key that signed the receipt"
)


def open_receipt(data: bytes, http_key: bytes, origin: str, now: int) -> Acceptance:
    """What the log *origin* signed with its ML-DSA-44 key for answers.

    Raises:
        EncodingError, Invalid: it is no receipt, not of this log, or not signed by that key.
    """
    exchange = parse_receipt(data)
    if len(http_key) != PUBLIC_KEY_BYTES:
        raise EncodingError("BadPublicKey", f"an ML-DSA-44 public key is {PUBLIC_KEY_BYTES} bytes long")
    if parse_https_url(exchange.url or "").host != origin:
        raise Invalid("WrongLog", "the receipt is of another log")
    return _accepted(exchange, http_key, now)


def whole_receipt(data: bytes) -> bytes:
    """The receipt in the one form that evidence holds it in.

    Raises:
        EncodingError: it is none.
    """
    exchange = parse_receipt(data)
    if "signature-input" not in exchange.headers:
        raise EncodingError("BadReceiptFile", "nobody signed it")
    return format_receipt(exchange)


def _accepted(exchange: Exchange, http_key: bytes, now: int) -> Acceptance:
    log_actor = log_actor_of(exchange)
    trusted = Multikey(f"{log_actor}#pq-key", log_actor, ML_DSA_44, http_key)

    def resolve(key_id: str) -> Multikey:
        if key_id != trusted.id:
            raise Invalid("UnknownKey", "a key that is not the log's for answers")
        return trusted

    return verify_receipt(exchange, resolve, now, (ML_DSA_44,))


def judge_promise(claim: Claim, known_http_keys: Collection[bytes], now: int) -> Judgement:
    """Raise unless the log's receipt and its tree exclude each other.

    Args:
        known_http_keys: those that the reader knows to be the log's, raw. now: Unix seconds.
    """
    acceptance = open_receipt(claim["receipt"], claim["http-key"], claim.origin, now)
    if whole_receipt(claim["receipt"]) != claim["receipt"]:
        raise not_evidence("the receipt is not in its one form")
    unsigned: str | None = None
    if claim["http-key"] not in known_http_keys:
        _check_bound(claim, acceptance.created, now)
        unsigned = _OWN_WORD
    checkpoint = open_signed(claim, claim["checkpoint"])
    index = acceptance.leaf_index
    if checkpoint.size <= index:
        raise not_evidence("the tree does not reach to the entry yet: the log may be late, and that convicts nobody")
    if claim["leaf-hash"] is not None:
        if claim["leaf-hash"] == acceptance.leaf_hash:
            raise not_evidence("the tree has the entry that the receipt promises")
        verify_inclusion(claim["leaf-hash"], index, checkpoint.size, claim["proof"], checkpoint.root)
        return Judgement(
            (checkpoint,), f"it promised an entry {index}, and its tree has another one there", unsigned
        )
    _check_other_root(decode_root(acceptance.root), index + 1, checkpoint, claim["proof"])
    return Judgement(
        (checkpoint,), f"it promised a tree of {index + 1} entries, and its tree does not begin with that one",
        unsigned,
    )


def _check_other_root(promised: bytes, size: int, checkpoint: Checkpoint, proof: Sequence[bytes]) -> None:
    """The newer tree's own prefix of *size* has another root than the promised one."""
    if checkpoint.size == size:
        if proof or checkpoint.root == promised:
            raise not_evidence("the tree is the one that the receipt promises")
        return
    start, rest = promised, tuple(proof)
    if size.bit_count() == 1:
        # There the plain proof starts from the promised root itself, so the newer tree's own hash stands before it.
        if not rest:
            raise not_evidence("the newer tree's own hash of the prefix is missing")
        start, rest = rest[0], rest[1:]
    prefix, root = consistency_roots(size, checkpoint.size, rest, start)
    if root != checkpoint.root:
        raise Invalid("BadConsistencyProof", "the proof does not compute the root that the log signed")
    if prefix == promised:
        raise not_evidence("the tree begins with the one that the receipt promises")


def _check_bound(claim: Claim, created: int, now: int) -> None:
    """The accused key signed a line of the log's history of keys that names the key of the receipt, at its time.

    That time is the receipt's own word. Whoever stole a key after it was given up dates what he signs back, so such a
    key convicts nobody: the reader has to know it.
    """
    changes: Sequence[KeyChange] = parse_changes(claim["key-changes"]) if claim["key-changes"] else ()
    text, previous = encode_public_key(claim["http-key"]), FIRST
    given_up: list[int] = []
    for number, change in enumerate(changes):
        # Each line names the one before it, so none can be left out but the last ones.
        if (change.origin, change.number, change.previous) != (claim.origin, number, previous):
            raise Invalid("BadKeyChange", f"line {number} about the keys is not the next one of this log's")
        previous = hash_change(change)
        given_up += [change.until for key in change.keys if key.purpose == "http-mldsa44" and key.old == text]
    until = min(given_up, default=None)
    for change in changes if until is None or created <= now < until else ():
        named = [key for key in change.keys if key.purpose == "http-mldsa44" and text in (key.old, key.new)]
        if not named or change.origin != claim.origin or change.log_key != str(claim.vkey):
            continue
        if claim.vkey.algorithm != COSIGNATURE_MLDSA44:
            continue
        verify_mldsa44(claim.vkey.public_key, change.log_signature, change_message(change))
        if named[0].old == text or created >= change.time:
            return
    raise Invalid(
        "UnboundKey", "nothing here shows that the key which signed the receipt is the log's",
        hint="If you know the log's key for answers (public-key in its /api/info), name it with --http-key.",
    )


def promise_claim(
    vkey: Vkey, head: bytes, checkpoint: Checkpoint, read: HashReader, receipt: bytes, http_key: bytes,
    acceptance: Acceptance, key_changes: bytes = b"",
) -> Claim | None:
    """The claim that the tree of *checkpoint* does not keep *acceptance*; None where it keeps it or is too small.

    Args:
        head: the checkpoint as signed. read: hashes of its tree.
    """
    index, size = acceptance.leaf_index, acceptance.leaf_index + 1
    if checkpoint.size < size:
        return None
    leaf_hash: bytes | None = read([(0, index)])[0]
    if leaf_hash != acceptance.leaf_hash:
        proof = tuple(prove_inclusion(index, checkpoint.size, read))
    else:
        leaf_hash = None
        prefix = root_hash(size, read)
        if prefix == decode_root(acceptance.root):
            return None
        proof = () if checkpoint.size == size else tuple(prove_consistency(size, checkpoint.size, read))
        if checkpoint.size != size and size.bit_count() == 1:
            proof = (prefix, *proof)
    return Claim("broken-promise", checkpoint.origin, vkey, {
        "receipt": whole_receipt(receipt), "http-key": http_key, "key-changes": key_changes,
        "checkpoint": signed_by(vkey, head), "leaf-hash": leaf_hash, "proof": proof,
    })
