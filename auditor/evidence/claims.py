"""The file: ``ktlog-claim/v1``, JSON in one canonical form, read strictly and believed in nothing.

The members are ``format``, ``kind``, ``origin``, ``vkey`` and then those of the kind, in the order of :data:`KINDS`.
Whatever is not text is in standard base64. One comparison with what would be written refuses members that occur
twice or in another order, other spacing and other spellings.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from auditor.evidence.limits import (
    MAX_ATTRIBUTES,
    MAX_BLOB_BYTES,
    MAX_CLAIM_BYTES,
    MAX_ENTRIES,
    MAX_HASHES,
    MAX_INDEX,
)
from ktlog.errors import EncodingError, Invalid
from ktlog.tlog.checkpoint import MAXIMUM_ORIGIN_BYTES, Checkpoint, parse_signed_checkpoint
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Note, Vkey, format_note, parse_vkey, verify_line

FORMAT = "ktlog-claim/v1"


@dataclass(frozen=True)
class Logged:
    """An entry as the log hashed it, the message that it commits to, and the message's texts."""

    entry: bytes
    message: bytes
    plain: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What is said of the holder of *vkey*. ``members`` are the kind's own: bytes, text, numbers and tuples of them."""

    kind: str
    origin: str
    vkey: Vkey
    members: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.members[name]


@dataclass(frozen=True)
class Judgement:
    """What a claim that convicts shows: the heads that were signed, and why they cannot be an honest log's.

    unsigned: what the conviction rests on besides signatures and hashes; None where it rests on nothing else.
    """

    heads: tuple[Checkpoint, ...]
    reason: str
    unsigned: str | None = None


# -- members


def _fail(what: str) -> EncodingError:
    return EncodingError("BadEvidence", what)


def _text(value: Any) -> str:
    if not isinstance(value, str) or any("\ud800" <= char <= "\udfff" for char in value):
        raise _fail("a member is not Unicode text")
    return value


def _note(value: Any) -> bytes:
    """Text that is a signed note, or ends with one, kept as its bytes."""
    return _text(value).encode("utf-8")


def _blob(value: Any) -> bytes:
    data = decode_base64(_text(value))
    if len(data) > MAX_BLOB_BYTES:
        raise _fail(f"a member has more than {MAX_BLOB_BYTES} bytes")
    return data


def _hash(value: Any) -> bytes:
    return decode_base64(_text(value), 32)


def _maybe_hash(value: Any) -> bytes | None:
    return None if value is None else _hash(value)


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < MAX_INDEX:
        raise _fail("a member is no index")
    return value


def _logged(value: Any) -> Logged:
    if not isinstance(value, dict) or list(value) != ["entry", "message", "plain"] or not isinstance(
        value["plain"], dict
    ):
        raise _fail("an entry has not exactly entry, message and plain")
    plain = {_text(name): None if text is None else _text(text) for name, text in value["plain"].items()}
    if len(plain) > MAX_ATTRIBUTES or list(plain) != sorted(plain):
        raise _fail("an entry's texts are too many, or out of order")
    return Logged(_blob(value["entry"]), _blob(value["message"]), plain)


def _many(read: Callable[[Any], Any], most: int, exactly: int | None = None) -> Callable[[Any], tuple[Any, ...]]:
    def parse(value: Any) -> tuple[Any, ...]:
        if not isinstance(value, list) or len(value) > most or (exactly is not None and len(value) != exactly):
            raise _fail("a list is too long, or not as long as its kind asks")
        return tuple(read(item) for item in value)

    return parse


_HASHES, _TWO_NOTES = _many(_hash, MAX_HASHES), _many(_note, 2, 2)
_ENTRIES = _many(_logged, MAX_ENTRIES)

KINDS: Mapping[str, Mapping[str, Callable[[Any], Any]]] = {
    "two-leaves": {"leaf-index": _number, "leaf-hashes": _many(_hash, 2, 2), "statements": _TWO_NOTES},
    "bad-leaf-signature": {"statement": _note, "leaf-key": _blob},
    "bad-message": {"statement": _note, "message": _blob},
    "duplicate-message": {"statements": _TWO_NOTES, "messages": _many(_blob, 2, 2)},
    "broken-promise": {
        "receipt": _blob, "http-key": _blob, "key-changes": _blob, "checkpoint": _note, "leaf-hash": _maybe_hash,
        "proof": _HASHES,
    },
    "broken-rule": {
        "name": _text, "leaf-index": _number, "statement": _note, "proof": _HASHES, "entries": _ENTRIES,
    },
    "wrong-value": {"actor-id": _text, "bundle": _blob, "entries": _ENTRIES},
    "wrong-record": {"name": _text, "statement": _note},
}
_HEAD = ["format", "kind", "origin", "vkey"]


def format_claim(claim: Claim) -> bytes:
    """The claim as a file; inverse of :func:`parse_claim`."""
    document: dict[str, Any] = {
        "format": FORMAT, "kind": claim.kind, "origin": claim.origin, "vkey": str(claim.vkey),
    }
    for name, read in KINDS[claim.kind].items():
        document[name] = _plain(claim.members[name], read in (_note, _TWO_NOTES))
    try:
        return (json.dumps(document, ensure_ascii=False, indent=2) + "\n").encode("utf-8")
    except UnicodeError:
        raise _fail("not Unicode text") from None


def _plain(value: Any, is_text: bool) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8") if is_text else encode_base64(value)
    if isinstance(value, tuple):
        return [_plain(item, is_text) for item in value]
    if isinstance(value, Logged):
        return {
            "entry": encode_base64(value.entry), "message": encode_base64(value.message),
            "plain": dict(sorted(value.plain.items())),
        }
    return value


def parse_claim(data: bytes) -> Claim:
    """Read a claim, in its canonical form only; believe nothing.

    Raises:
        EncodingError: ``BadEvidence``.
    """
    if len(data) > MAX_CLAIM_BYTES:
        raise _fail(f"longer than {MAX_CLAIM_BYTES} bytes")
    try:
        document = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError):
        raise _fail("not JSON in UTF-8") from None
    try:
        claim = _from_json(document)
        canonical = format_claim(claim)
    except EncodingError as error:
        raise _fail(error.message) from error
    if canonical != data:
        raise _fail("not in the canonical form")
    return claim


def _from_json(document: Any) -> Claim:
    if not isinstance(document, dict) or document.get("format") != FORMAT or document.get("kind") not in KINDS:
        raise _fail(f"not an object of the format {FORMAT}, or of an unknown kind")
    kind = document["kind"]
    if list(document) != [*_HEAD, *KINDS[kind]]:
        raise _fail(f"evidence of the kind {kind} has the members {', '.join([*_HEAD, *KINDS[kind]])}, in this order")
    origin = _text(document["origin"])
    if not 1 <= len(origin.encode("utf-8")) <= MAXIMUM_ORIGIN_BYTES:
        raise _fail("the origin does not have 1 to 255 bytes")
    members = {name: read(document[name]) for name, read in KINDS[kind].items()}
    return Claim(kind, origin, parse_vkey(_text(document["vkey"])), members)


# -- what a claim's notes say


def not_evidence(what: str) -> Invalid:
    return Invalid("NotEvidence", what)


def check_accused(claim: Claim) -> None:
    """Raises Invalid: ``NotEvidence``, ``WrongLog`` unless the key can be one of the log that the claim is about."""
    if claim.vkey.algorithm not in (ED25519, COSIGNATURE_MLDSA44):
        raise not_evidence("the key is a cosigner's, not a log's")
    if claim.vkey.name != claim.origin:
        raise Invalid("WrongLog", "the key is not named after the log's origin")


def open_signed(claim: Claim, note_bytes: bytes) -> Checkpoint:
    """The checkpoint in a note that bears one line, the accused key's.

    Raises:
        EncodingError: it is no signed checkpoint.
        Invalid: ``WrongLog``, ``BadLogSignature``, ``NotEvidence``.
    """
    note, checkpoint = parse_signed_checkpoint(note_bytes)
    if checkpoint.origin != claim.origin:
        raise Invalid("WrongLog", "a note is of another log")
    if len(note.signatures) != 1:
        raise not_evidence("a note bears other lines than the accused key's")
    try:
        verify_line(claim.vkey, note.text, note.signatures[0])
    except Invalid as error:
        raise Invalid("BadLogSignature", error.message) from None
    return checkpoint


def signed_by(vkey: Vkey, note_bytes: bytes) -> bytes:
    """The note with no line but the key's own: cosigners are not accused.

    Raises:
        Invalid: ``BadLogSignature`` when the key did not sign it.
    """
    note, _ = parse_signed_checkpoint(note_bytes)
    lines = tuple(line for line in note.signatures if (line.name, line.key_id) == (vkey.name, vkey.key_id))
    if not lines:
        raise Invalid("BadLogSignature", "the accused key did not sign the head")
    return format_note(Note(note.text, lines))


def accused_key(vkeys: Sequence[Vkey], *notes: bytes) -> Vkey:
    """The one of a log's keys that signed all of *notes*, the post-quantum one first.

    Raises:
        Invalid: ``BadLogSignature`` when no single key did: then nobody is convicted by them.
    """
    signed = [{(line.name, line.key_id) for line in parse_signed_checkpoint(note)[0].signatures} for note in notes]
    for vkey in sorted(vkeys, key=lambda one: -one.algorithm):
        if all((vkey.name, vkey.key_id) in lines for lines in signed):
            return vkey
    raise Invalid("BadLogSignature", "no single key of the log signed all of it")
