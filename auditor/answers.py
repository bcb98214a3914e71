"""Compares what the log's API answers about actors with what its entries say.

The API is what people's software asks, so a log that is honest in its entries and lies in its
answers has lied. It is not convicted by that: an answer carries no signature that others could check.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from auditor.fetch import ActorAnswer
from auditor.report import Finding, finding_from
from ktlog.client.page import ActorPage, HistoryRow
from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.actors import Actor
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.keys import encode_public_key, pkd_root
from ktlog.tlog.encoding import decode_base64url
from ktlog.tlog.tree import hash_leaf, verify_inclusion

_CONTRADICTS = "AnswerContradictsLog"
_BAD_PROOF = "BadAnswerProof"


@dataclass(frozen=True)
class Replayed:
    """What all *tree_size* entries say about one actor."""

    actor: Actor
    history: Sequence[tuple[int, int]]
    tree_size: int
    root_hash: bytes
    enrolments: Mapping[int, bytes]
    """Leaf hash by leaf index, at least for every entry that enrolled a key the actor has."""


def check_answer(answer: ActorAnswer | Invalid, replayed: Replayed) -> list[Finding]:
    """Every way in which the *answer* (or the lack of one) contradicts the replayed state."""
    actor_id = replayed.actor.actor_id
    if isinstance(answer, Invalid):
        if answer.name == "MissingAnswer":
            return [_contradiction(actor_id, "the API knows no such actor; the entries enrol them")]
        name = _CONTRADICTS if answer.name == "WrongActor" else "MalformedAnswer"
        return [finding_from(answer, name, subject=f"the answer about {actor_id}")]
    page, document = answer.page, parse_json(answer.body)
    found = [*_compare_keys(page, replayed), *_compare_history(page, replayed)]
    # A proof for a key that is not there says nothing more.
    return found or [*_check_key_proofs(document, replayed), *_check_history_proofs(page, replayed)]


def _contradiction(actor_id: str, what: str, leaf_index: int | None = None) -> Finding:
    return Finding(_CONTRADICTS, "Invalid", f"{actor_id}: {what}", leaf_index)


def _bad_proof(actor_id: str, what: str, leaf_index: int | None = None) -> Finding:
    return Finding(_BAD_PROOF, "Invalid", f"{actor_id}: {what}", leaf_index)


def _name(public_key: bytes) -> str:
    """A key in a report: long enough to tell keys apart, short enough to read."""
    return encode_public_key(public_key)[:28] + "..."


def _compare_keys(page: ActorPage, replayed: Replayed) -> Iterator[Finding]:
    actor_id = replayed.actor.actor_id
    expected = {key.leaf_index: key for key in replayed.actor.keys}
    seen: set[int] = set()
    for listed in page.keys:
        key = expected.get(listed.leaf_index)
        if key is None or listed.leaf_index in seen:
            yield _contradiction(
                actor_id, f"the API lists the key {_name(listed.public_key)}, which the entries do not give them",
                listed.leaf_index,
            )
            continue
        seen.add(listed.leaf_index)
        if listed.public_key != key.public_key:
            yield _contradiction(
                actor_id, f"the API swapped a key: it lists {_name(listed.public_key)}, the entry enrols "
                f"{_name(key.public_key)}", listed.leaf_index,
            )
        elif (listed.key_id, listed.created) != (key.key_id, key.created):
            yield _contradiction(
                actor_id, f"the API gives the key {_name(key.public_key)} key-id {listed.key_id[:60]!r} and created "
                f"{listed.created}; the entries give it {key.key_id!r} and {key.created}", listed.leaf_index,
            )
    for leaf_index in sorted(expected.keys() - seen):
        key_name = _name(expected[leaf_index].public_key)
        yield _contradiction(actor_id, f"the API omits the key {key_name}, which is active", leaf_index)


def _compare_history(page: ActorPage, replayed: Replayed) -> Iterator[Finding]:
    actor_id = replayed.actor.actor_id
    expected = {index: int(role) for index, role in replayed.history}
    listed = {row.leaf_index: row.role for row in page.published}
    for leaf_index in sorted(expected.keys() | listed.keys()):
        if leaf_index not in listed:
            yield _contradiction(actor_id, "the API omits this message from the actor's history", leaf_index)
        elif leaf_index not in expected:
            yield _contradiction(
                actor_id, "the API lists this message in the actor's history; it did not touch them", leaf_index
            )
        elif listed[leaf_index] != expected[leaf_index]:
            yield _contradiction(
                actor_id, f"the API gives this message role {listed[leaf_index]}, the entries {expected[leaf_index]}",
                leaf_index,
            )


def _check_history_proofs(page: ActorPage, replayed: Replayed) -> Iterator[Finding]:
    actor_id = replayed.actor.actor_id
    for row in page.published:
        try:
            if row.proof is None:
                raise Invalid("BadInclusionProof", "there is none")
            verify_inclusion(
                hash_leaf(row.entry), row.leaf_index, replayed.tree_size, row.proof, replayed.root_hash
            )
        except Invalid as error:
            yield _bad_proof(
                actor_id, f"the inclusion proof in the actor's history fails: {error.message}", row.leaf_index
            )
            continue
        if not _is_about(row):
            yield _contradiction(actor_id, "the API shows another message than the entry commits to", row.leaf_index)


def _is_about(row: HistoryRow) -> bool:
    try:
        _, entry = parse_entry(row.entry)
    except EncodingError:
        return False
    return entry.message_hash == hashlib.sha256(row.preimage).digest()


def _check_key_proofs(document: Mapping[str, Any], replayed: Replayed) -> Iterator[Finding]:
    """The proof beside each key, and the roots: other software than ours relies on them."""
    actor_id = replayed.actor.actor_id
    root = pkd_root(replayed.tree_size, replayed.root_hash)
    if document.get("merkle-root") != root:
        yield _bad_proof(actor_id, f"the API's merkle-root is not {root}, that of {replayed.tree_size} entries")
    for key in document["public-keys"]:
        leaf_index = key["leaf-index"]
        try:
            if (key.get("merkle-root"), key.get("tree-size")) != (root, replayed.tree_size):
                raise Invalid("BadInclusionProof", "it is for another tree than the one asked for")
            hashes = key.get("inclusion-proof")
            if not isinstance(hashes, list) or not all(isinstance(text, str) for text in hashes):
                raise Invalid("BadInclusionProof", "it is no list of strings")
            proof = [decode_base64url(text, 32) for text in hashes]
            verify_inclusion(
                replayed.enrolments[leaf_index], leaf_index, replayed.tree_size, proof, replayed.root_hash
            )
        except (Invalid, EncodingError) as error:
            yield _bad_proof(actor_id, f"the inclusion proof of a key fails: {error.message}", leaf_index)
