"""What one map may not say after another, and portable evidence of a log that said both.

A leaf of the output log under a signed checkpoint is the log's word for ever. Two such words
that cannot both be true convict whoever holds the checkpoints' key, offline, without any verifier's help:

``map-contradiction``
    Two leaves: time, input size or erasures fell; or the same size with another root; or the same entries and
    erasures with another map. Each item is a .tlog-proof with the leaf for its ``extra``, the earlier leaf first.
``actor-rolled-back``
    Two bundles about one actor: a counter of the actor fell, or one version says two things.
``history-rewritten``
    Two bundles: without an erasure between them the actor's later history does not begin with the earlier one.

The file is JSON in one canonical form: format, kind, origin, vkey, actor-id (or null), items (base64). Whoever hands
on evidence about an actor hands on the actor's id and keys with it.

Spec: directory map v1 §9, steps 6 and 11; design decision 11.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ktlog.errors import EncodingError, Invalid, MessageRejected
from ktlog.keymap.bundle import Bundle, Tombstone, encode_bundle, parse_bundle
from ktlog.keymap.check import Mapped, check_bundle
from ktlog.keymap.output import MAP_SUFFIX, OutputLeaf, parse_leaf
from ktlog.keymap.value import Value
from ktlog.pkd.identity import check_actor_id
from ktlog.tlog.checkpoint import Checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64, naming
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Note, Vkey, format_note, open_note, parse_note, parse_vkey
from ktlog.tlog.proof import TlogProof, format_proof, parse_proof
from ktlog.tlog.tree import hash_leaf, leaf_reader, root_hash, verify_inclusion

FORMAT = "ktlog-map-evidence/v1"
MAP_CONTRADICTION, ACTOR_ROLLED_BACK, HISTORY_REWRITTEN = KINDS = (
    "map-contradiction", "actor-rolled-back", "history-rewritten",
)
MAX_EVIDENCE_BYTES = 96 << 20
_FIELDS = ["format", "kind", "origin", "vkey", "actor-id", "items"]


# -- what cannot both be true


def leaves_contradict(older: OutputLeaf, newer: OutputLeaf) -> str | None:
    """Why *newer*, at the same or a later place of the output log, cannot follow *older*; None if it can."""
    for name, before, after in (
        ("time", older.time, newer.time), ("the number of entries", older.input_size, newer.input_size),
        ("the number of erasures", older.erasures, newer.erasures),
    ):
        if after < before:
            return f"{name} fell from {before} to {after}"
    if newer.config != older.config:
        return "its configuration changed"
    same_entries, same_erasures = older.input_size == newer.input_size, older.erasures == newer.erasures
    if same_entries and older.input_root != newer.input_root:
        return f"{older.input_size} entries have two roots"
    if same_erasures and older.erasures_root != newer.erasures_root:
        return f"{older.erasures} erasures have two roots"
    if same_entries and same_erasures and older.map_root != newer.map_root:
        return f"{older.input_size} entries and {older.erasures} erasures lead to two maps"
    return None


def counters(mapped: Mapped) -> tuple[int, int]:
    """(version, generation) of an actor; (0, 0) of one that never enrolled."""
    if mapped.value is not None:
        return mapped.value.version, mapped.value.generation
    if isinstance(mapped.outcome, Tombstone):
        return mapped.outcome.version, mapped.outcome.generation
    return 0, 0


def actors_contradict(older: Mapped, newer: Mapped) -> str | None:
    """Why an actor that was *older* cannot be *newer* in the same or a later map; None if it can."""
    (version, generation), (new_version, new_generation) = counters(older), counters(newer)
    if new_version < version:
        return f"the version fell from {version} to {new_version}"
    if new_version == version and newer.commitment != older.commitment:
        return f"version {version} says two things"
    if new_generation < generation:
        return f"the generation fell from {generation} to {new_generation}"
    if older.value is not None and newer.value is not None and newer.value.erasures < older.value.erasures:
        return f"the erasures fell from {older.value.erasures} to {newer.value.erasures}"
    if isinstance(older.outcome, Tombstone) and newer.value is not None and new_generation == generation:
        return "an erased actor came back without a new beginning"
    # Else a beginning could hide behind the number of the one before, and nobody would be told of a reset.
    if older.value is not None and newer.value is not None and new_generation == generation and (
        _beginning(older.value) != _beginning(newer.value)
    ):
        return f"generation {generation} began in two ways"
    return None


def _beginning(value: Value) -> tuple[int, int, int]:
    """What stays the same for as long as a generation lasts."""
    return value.erasures, value.cause, value.generation_leaf


def history_grew(older: Mapped, newer: Mapped) -> bool:
    """Whether only the leaves of the newer history show that it begins with the older one."""
    return _comparable(older, newer) and newer.value.history_size > older.value.history_size


def histories_contradict(older: Mapped, newer: Mapped, leaves: Sequence[bytes] | None) -> str | None:
    """Why the history of *newer* does not begin with that of *older*; None if it does, or cannot be told.

    Args:
        leaves: of the newer history tree, already found to make up its root; needed where it grew.
    """
    if not _comparable(older, newer):
        return None
    size, root = older.value.history_size, older.value.history_root
    if newer.value.history_size < size:
        return f"the history shrank from {size} to {newer.value.history_size} entries"
    if newer.value.history_size == size:
        return None if newer.value.history_root == root else f"{size} entries of the history have two roots"
    if leaves is None or history_root(leaves[:size]) == root:
        return None
    return f"the first {size} entries of the history are not those of before"


def _comparable(older: Mapped, newer: Mapped) -> bool:
    return older.value is not None and newer.value is not None and older.value.erasures == newer.value.erasures


def history_root(leaves: Sequence[bytes]) -> bytes:
    """The RFC 9162 root over history leaves."""
    return root_hash(len(leaves), leaf_reader([hash_leaf(leaf) for leaf in leaves]))


# -- the log's word, made portable


def keep_lines(note_bytes: bytes, vkeys: Collection[Vkey]) -> bytes:
    """A signed checkpoint with no lines but those of *vkeys*: a log answers for its own, nobody else's."""
    note = parse_note(note_bytes)
    known = {(vkey.name, vkey.key_id) for vkey in vkeys}
    kept = tuple(line for line in note.signatures if (line.name, line.key_id) in known)
    return format_note(Note(note.text, kept))


def leaf_statement(output_size: int, output_path: tuple[bytes, ...], output_leaf: bytes, note: bytes) -> bytes:
    """A .tlog-proof of a bundle's output leaf, which it holds as ``extra``: its sections 2 to 4 and 9."""
    return format_proof(TlogProof(output_size - 1, output_path, note, output_leaf))


def actor_statement(bundle: Bundle, note: bytes) -> bytes:
    """A bundle complete with its checkpoint, without auxiliary data, messages and pending entries.

    The leaves of a history stay: they may be what a later history is compared with.
    """
    history = None
    if bundle.history is not None:
        history = tuple(replace(item, entry=b"", preimage=b"", plain={}, path=()) for item in bundle.history)
    return encode_bundle(replace(
        bundle, aux=None, checkpoint=note, history=history, old_histories=(), pending=()
    ))


def open_leaf_statement(data: bytes) -> tuple[Note, Checkpoint, OutputLeaf, int]:
    """The leaf that a statement proves to be in the output log, and its index; signatures are not looked at.

    Raises:
        EncodingError, Invalid: it does not.
    """
    proof = parse_proof(data)
    note, checkpoint = parse_signed_checkpoint(proof.checkpoint_bytes)
    if proof.extra is None or proof.leaf_index == 0:
        raise Invalid("NotEvidence", "the proof is not of a leaf that states a map")
    verify_inclusion(hash_leaf(proof.extra), proof.leaf_index, checkpoint.size, proof.hashes, checkpoint.root)
    return note, checkpoint, parse_leaf(proof.extra), proof.leaf_index


def open_actor_statement(data: bytes, actor_id: str) -> tuple[Note, Checkpoint, Mapped, tuple[bytes, ...] | None]:
    """What a statement proves of an actor, and its history's leaves if it holds them; signatures are not looked at.

    Raises:
        EncodingError, Invalid: it proves nothing of the actor.
    """
    bundle = parse_bundle(data)
    if bundle.checkpoint is None or not bundle.origin.endswith(MAP_SUFFIX):
        raise EncodingError("MalformedBundle", "a statement has a checkpoint of a map's log")
    note, checkpoint = parse_signed_checkpoint(bundle.checkpoint)
    # The actor's place in the map follows from the origin: under another name anybody is absent from any map.
    if bundle.origin != checkpoint.origin:
        raise Invalid("WrongLog", f"the bundle is of {bundle.origin!a}, and its checkpoint of {checkpoint.origin!a}")
    if bundle.output_size != checkpoint.size:
        raise Invalid("NotNewestLeaf", "the checkpoint is not of the bundle's size")
    time = parse_leaf(bundle.output_leaf).time
    mapped = check_bundle(
        bundle, actor_id, bundle.origin.removesuffix(MAP_SUFFIX), checkpoint.size, checkpoint.root,
        now=time, as_of=time, max_age=0,
    )
    if bundle.history is None or mapped.value is None:
        return note, checkpoint, mapped, None
    leaves = tuple(item.leaf for item in bundle.history)
    if (len(leaves), history_root(leaves)) != (mapped.value.history_size, mapped.value.history_root):
        raise Invalid("HistoryMismatch", "the history is not the one that the value commits to")
    return note, checkpoint, mapped, leaves


# -- evidence


@dataclass(frozen=True)
class MapEvidence:
    """A claim that the holder of ``vkey`` made two statements that cannot both be true.

    actor_id: None for ``map-contradiction``. items: the two statements, in the order of the output log.
    """

    kind: str
    vkey: Vkey
    actor_id: str | None
    items: tuple[bytes, bytes]

    @property
    def origin(self) -> str:
        return self.vkey.name


def verify_map_evidence(evidence: MapEvidence, vkey: Vkey | None = None) -> None:
    """Raise unless *evidence* convicts the holder of its key, which must be *vkey* when that is given.

    Raises:
        EncodingError, Invalid: as :func:`judge_map_evidence`.
    """
    judge_map_evidence(evidence, vkey)


@dataclass(frozen=True)
class Judgement:
    """What evidence that convicts shows: the two heads that were signed, and why both cannot be true."""

    heads: tuple[Checkpoint, Checkpoint]
    reason: str


def judge_map_evidence(evidence: MapEvidence, vkey: Vkey | None = None) -> Judgement:
    """What convicts the holder of the key of *evidence*, which must be *vkey* when that is given.

    Raises:
        EncodingError: an item does not parse.
        Invalid: ``WrongLog``, ``BadLogSignature``, ``NotEvidence``, and what an item that proves nothing raises.
    """
    if vkey is not None and evidence.vkey != vkey:
        raise Invalid(
            "WrongLog", f"the evidence is about the key {evidence.vkey.name}+{evidence.vkey.key_id.hex()}, and not the"
            f" one that you named, {vkey.name}+{vkey.key_id.hex()}",
            hint="A log may have several keys: if you know that this one is the log's too, name it instead.",
        )
    if evidence.vkey.algorithm not in (ED25519, COSIGNATURE_MLDSA44) or not evidence.origin.endswith(MAP_SUFFIX):
        raise Invalid("NotEvidence", "the key is not that of a map's log")
    if evidence.actor_id is None:
        opened = [open_leaf_statement(item) for item in evidence.items]
        notes = [one[:2] for one in opened]
        _check_signed(evidence.vkey, notes, opened[0][3], opened[1][3])
        reason = leaves_contradict(opened[0][2], opened[1][2])
    else:
        statements = [open_actor_statement(item, evidence.actor_id) for item in evidence.items]
        notes = [one[:2] for one in statements]
        _check_signed(evidence.vkey, notes, *(checkpoint.size for _, checkpoint in notes))
        older, newer = (one[2] for one in statements)
        if evidence.kind == ACTOR_ROLLED_BACK:
            reason = actors_contradict(older, newer)
        else:
            reason = histories_contradict(older, newer, statements[1][3])
    if (evidence.kind == MAP_CONTRADICTION) != (evidence.actor_id is None) or reason is None:
        raise Invalid("NotEvidence", "the two statements do not contradict each other")
    return Judgement((notes[0][1], notes[1][1]), reason)


def _check_signed(vkey: Vkey, opened: Sequence[tuple[Note, Checkpoint]], older: int, newer: int) -> None:
    if older > newer:
        raise Invalid("NotEvidence", "the statements are not in order")
    for note, checkpoint in opened:
        if checkpoint.origin != vkey.name:
            raise Invalid("WrongLog", "a checkpoint is of another log")
        try:
            signed = open_note(note, [vkey])
        except Invalid as error:
            raise Invalid("BadLogSignature", error.message) from None
        if not signed:
            raise Invalid("BadLogSignature", "the accused key did not sign a checkpoint")


def format_map_evidence(evidence: MapEvidence) -> bytes:
    """The evidence as a file; inverse of :func:`parse_map_evidence`."""
    return (json.dumps({
        "format": FORMAT, "kind": evidence.kind, "origin": evidence.origin, "vkey": str(evidence.vkey),
        "actor-id": evidence.actor_id, "items": [encode_base64(item) for item in evidence.items],
    }, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def parse_map_evidence(data: bytes) -> MapEvidence:
    """Read an evidence file, in its canonical form only; believe nothing.

    Raises:
        EncodingError: ``BadEvidence``.
    """
    if len(data) > MAX_EVIDENCE_BYTES:
        raise EncodingError("BadEvidence", f"longer than {MAX_EVIDENCE_BYTES} bytes")
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise EncodingError("BadEvidence", "not JSON in UTF-8") from None
    try:
        evidence = _from_json(document)
        canonical = format_map_evidence(evidence)
    except (EncodingError, MessageRejected, UnicodeError) as error:
        raise EncodingError("BadEvidence", str(error)) from None
    # One comparison refuses duplicate keys, other spacing, other escapes and another origin than the key's.
    if canonical != data:
        raise EncodingError("BadEvidence", "not in the canonical form")
    return evidence


def _from_json(document: Any) -> MapEvidence:
    if not isinstance(document, dict) or list(document) != _FIELDS or document["format"] != FORMAT:
        raise EncodingError("BadEvidence", f"not an object of the format {FORMAT}")
    items, actor_id = document["items"], document["actor-id"]
    texts = [document["kind"], document["vkey"], *(items if isinstance(items, list) else [None])]
    if not all(isinstance(text, str) for text in texts) or document["kind"] not in KINDS or len(items) != 2:
        raise EncodingError("BadEvidence", "a field is not what it must be")
    if not isinstance(actor_id, str | None):
        raise EncodingError("BadEvidence", "the actor id is no text")
    with naming("BadEvidence", "items"):
        first, second = (decode_base64(text) for text in items)
    return MapEvidence(
        document["kind"], parse_vkey(document["vkey"]), None if actor_id is None else check_actor_id(actor_id),
        (first, second),
    )
