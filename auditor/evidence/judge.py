"""Does a claim convict? One entry point for every kind."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from hashlib import sha256

from auditor.evidence.claims import Claim, Judgement, check_accused, not_evidence
from auditor.evidence.plain import (
    judge_duplicate,
    judge_leaf_signature,
    judge_message,
    judge_two_leaves,
    open_statement,
)
from auditor.evidence.promises import judge_promise
from auditor.evidence.rederive import judge_rule, judge_value
from auditor.evidence.source import Source
from ktlog.client.publicfiles import PublicRecord
from ktlog.errors import Invalid
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.messages import message_from_plain
from ktlog.tlog.note import Vkey


@dataclass(frozen=True)
class Known:
    """What the reader knows and the file does not say.

    vkeys: keys known to be those of the logs that they are named after; empty to learn which key is convicted.
    bound: (origin, key) for keys that are named otherwise. http_keys: keys for answers known to be
    the log's, raw. source: the log's files, for what a claim names and does not hold. now: Unix seconds.
    """

    vkeys: tuple[Vkey, ...] = ()
    http_keys: Collection[bytes] = ()
    source: Source | None = None
    now: int = 0
    workers: int = 2
    bound: tuple[tuple[str, Vkey], ...] = ()

    @property
    def keys(self) -> tuple[Vkey, ...]:
        return (*self.vkeys, *(vkey for _, vkey in self.bound))


def judge_claim(claim: Claim, known: Known) -> Judgement:
    """What convicts the holder of the claim's key.

    Raises:
        EncodingError: a part does not parse.
        Invalid: ``WrongLog``, ``BadLogSignature``, ``NotEvidence``, ``NeedsLog``, ``UnboundKey``, and what a proof
            that proves nothing raises.
        Unreachable: the source did not answer.
    """
    if known.keys and claim.vkey not in known.keys:
        named = ", ".join(f"{vkey.name}+{vkey.key_id.hex()}" for vkey in known.keys)
        raise Invalid(
            "WrongLog",
            f"the evidence is about the key {claim.vkey.name}+{claim.vkey.key_id.hex()}, and you named {named}",
            hint="A log may have several keys: if you know that this one is the log's too, name it as well.",
        )
    check_accused(claim)
    source = None if known.source is None else known.source.logged
    if claim.kind == "two-leaves":
        return judge_two_leaves(claim)
    if claim.kind == "bad-leaf-signature":
        return judge_leaf_signature(claim)
    if claim.kind == "bad-message":
        return judge_message(claim)
    if claim.kind == "duplicate-message":
        return judge_duplicate(claim)
    if claim.kind == "broken-promise":
        return judge_promise(claim, known.http_keys, known.now)
    if claim.kind == "broken-rule":
        return judge_rule(claim, source, known.workers)
    if claim.kind == "wrong-value":
        return judge_value(claim, source, known.workers)
    if claim.kind == "wrong-record":
        return judge_record(claim, known.source)
    raise AssertionError(f"no judge for {claim.kind}")


def judge_record(claim: Claim, source: Source | None) -> Judgement:
    """What the log's own address publishes beside an entry is not what the entry commits to.

    Nobody signs records, so the file cannot show it: it is looked at where the log publishes it, now.
    """
    checkpoint, proof, entry = open_statement(claim, claim["statement"])
    if "/" in claim.origin:
        raise not_evidence("this is not the log of a directory's entries")
    if source is None or not source.genuine:
        raise Invalid(
            "NeedsLog", "nobody signs what is published beside an entry: only the log itself can show it",
            hint=f"Look there: --log https://{claim.origin}. A copy of its files proves nothing about records.",
        )
    if not source.has(claim.vkey, proof.leaf_index, entry):
        raise not_evidence(f"what answers at {source.files.url} is not the log of this key, or has another entry")
    record = source.record(proof.leaf_index)
    if record.withheld:
        raise not_evidence("a text of that entry is withheld, as an erasure does")
    name = _wrong(entry, record)
    if name is None or name != claim["name"]:
        raise not_evidence(f"nothing by the name {claim['name']} is wrong with that record now")
    return Judgement(
        (checkpoint,), f"what it publishes beside entry {proof.leaf_index} is not what the entry commits to ({name})",
        unsigned=f"what {source.files.url} answered just now, which nobody signs",
    )


def _wrong(entry: bytes, record: PublicRecord) -> str | None:
    """What is wrong with the record of an entry: PreimageMismatch, PlaintextMismatch; None if nothing is."""
    dialect, parsed = parse_entry(entry)
    if sha256(record.preimage).digest() != parsed.message_hash:
        return "PreimageMismatch"
    try:
        message_from_plain(dialect, record.preimage, record.plain, commitments=True)
    except Invalid as error:
        return "PlaintextMismatch" if error.name == "PlaintextMismatch" else None
    return None
