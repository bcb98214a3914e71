"""How a log tells that a key of its own was replaced: a file of lines, each signed by the old key and by the new.

A line is canonical JSON. It names the log, its own number and the hash of the line before it, when the change was
made and at which tree of the log, until when the old key is still in use beside the new one, and for each key its old
and new public half. Keys that can sign do sign it, the old one and the new one; and the log's ML-DSA-44 checkpoint
key that was in force before the line signs each, so that also a key that cannot sign (``hpke``) is replaced by nobody
else.

What is signed is ``ktlog/v1/key-change``, a newline, and the line without its signatures. No checkpoint begins so, no
entry's hash is that long, and no HTTP signature base has such a first line.

Whoever has pinned a checkpoint key takes its successor from such a line and from nowhere else (:func:`successors`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from typing import Any

from ktlog.errors import EncodingError, Invalid
from ktlog.pkd.canonical import canonical, parse_json
from ktlog.pkd.keys import decode_public_key, verify_mldsa44
from ktlog.tlog.ed25519 import load_ed25519_public_key, verify_ed25519
from ktlog.tlog.encoding import decode_base64, decode_base64url, encode_base64, parse_decimal
from ktlog.tlog.note import COSIGNATURE_MLDSA44, ED25519, Vkey, parse_vkey

FORMAT = "ktlog-key-change/v1"
LABEL = b"ktlog/v1/key-change\n"
FIRST = bytes(32)
MOST_BYTES = 1 << 22
MOST_REASON = 200
MAP_SUFFIX = "/map"

KINDS: Mapping[str, tuple[str, ...]] = {
    "hpke": ("hpke",), "leaf": ("leaf",), "checkpoint": ("checkpoint-ed25519", "checkpoint-mldsa44"),
    "map": ("map-ed25519", "map-mldsa44"), "http": ("http-ed25519", "http-mldsa44"), "fetch": ("fetch-rsa",),
}
"""What is replaced together, and the keys of each."""

ED25519_PREFIX = "ed25519:"
_SIGN_NOTHING = ("hpke", "fetch-rsa")


@dataclass(frozen=True)
class Replaced:
    """One key's old and new public half, as text: a vkey for checkpoints, else as the log publishes that key.

    The signatures, each over the whole change, are empty for a key that signs nothing.
    """

    purpose: str
    old: str
    new: str
    old_signature: bytes = b""
    new_signature: bytes = b""


@dataclass(frozen=True)
class KeyChange:
    """One line.

    number: from 0. previous: SHA-256 of the line before, FIRST for the first. time: Unix seconds. tree_size, root: of
    the log when it was made. until: Unix time from which the old key is of no use; *time*, when at once.
    log_key: the vkey of the ML-DSA-44 checkpoint key in force before this line, which made log_signature.
    """

    origin: str
    number: int
    previous: bytes
    time: int
    tree_size: int
    root: bytes
    kind: str
    until: int
    reason: str
    keys: tuple[Replaced, ...]
    log_key: str
    log_signature: bytes = b""


def change_message(change: KeyChange) -> bytes:
    """What every key that takes part signs."""
    bare = tuple(replace(key, old_signature=b"", new_signature=b"") for key in change.keys)
    return LABEL + canonical(_members(replace(change, keys=bare, log_signature=b"")))


def format_change(change: KeyChange) -> bytes:
    """The line, without its newline."""
    return canonical(_members(change))


def _members(change: KeyChange) -> dict[str, Any]:
    return {
        "format": FORMAT, "origin": change.origin, "number": str(change.number),
        "previous": encode_base64(change.previous), "time": str(change.time), "tree-size": str(change.tree_size),
        "root": encode_base64(change.root), "kind": change.kind, "until": str(change.until), "reason": change.reason,
        "keys": [
            {
                "purpose": key.purpose, "old": key.old, "new": key.new,
                "old-signature": encode_base64(key.old_signature), "new-signature": encode_base64(key.new_signature),
            }
            for key in change.keys
        ],
        "log-key": change.log_key, "log-signature": encode_base64(change.log_signature),
    }


def parse_change(line: bytes) -> KeyChange:
    """The inverse of :func:`format_change`. Nothing is verified.

    Raises:
        EncodingError: ``BadKeyChange``.
    """
    try:
        found = parse_json(line)
        change = KeyChange(
            found["origin"], parse_decimal(found["number"]), decode_base64(found["previous"], 32),
            parse_decimal(found["time"]), parse_decimal(found["tree-size"]), decode_base64(found["root"], 32),
            found["kind"], parse_decimal(found["until"]), found["reason"],
            tuple(
                Replaced(
                    key["purpose"], key["old"], key["new"], decode_base64(key["old-signature"]),
                    decode_base64(key["new-signature"]),
                )
                for key in found["keys"]
            ),
            found["log-key"], decode_base64(found["log-signature"]),
        )
        texts = [change.origin, change.kind, change.reason, change.log_key]
        texts += [text for key in change.keys for text in (key.purpose, key.old, key.new)]
        if not all(isinstance(text, str) for text in texts) or format_change(change) != line:
            raise EncodingError("BadKeyChange", "not in its canonical form")
        if tuple(key.purpose for key in change.keys) != KINDS.get(change.kind) or len(change.reason) > MOST_REASON:
            raise EncodingError("BadKeyChange", "the keys are not those of its kind")
    except (EncodingError, KeyError, TypeError, AttributeError) as error:
        raise EncodingError("BadKeyChange", f"not a line about a key's change: {error}") from None
    return change


def parse_changes(data: bytes) -> tuple[KeyChange, ...]:
    """Read a file of them. A last line without its end was never written.

    Raises:
        EncodingError: ``BadKeyChange``.
    """
    if len(data) > MOST_BYTES:
        raise EncodingError("BadKeyChange", f"longer than {MOST_BYTES} bytes")
    return tuple(map(parse_change, data.split(b"\n")[:-1]))


def hash_change(change: KeyChange) -> bytes:
    """What the next line names as the one before it."""
    return sha256(format_change(change)).digest()


def verify_changes(changes: Sequence[KeyChange], origin: str) -> None:
    """Check that *changes* are one unbroken history of the keys of *origin*, and every signature in it.

    It says nothing about whose first keys they are: that is what a pin is for.

    Raises:
        Invalid: ``BadKeyChange``.
    """
    previous, last = FIRST, None
    newest: dict[str, str] = {}
    for number, change in enumerate(changes):
        _require((change.origin, change.number, change.previous) == (origin, number, previous), number, "out of order")
        _require(
            last is None or (last.time <= change.time and last.tree_size <= change.tree_size), number, "goes back"
        )
        _require(change.until >= change.time, number, "ends the old key before it is replaced")
        for key in change.keys:
            _require(newest.get(key.purpose, key.old) == key.old != key.new, number, "replaces another key")
        _require(
            newest.get("checkpoint-mldsa44", change.log_key) == change.log_key, number, "by another log key"
        )
        if change.kind == "checkpoint":
            _require(change.keys[1].old == change.log_key, number, "by another log key")
        newest |= {key.purpose: key.new for key in change.keys} | (
            {} if change.kind == "checkpoint" else {"checkpoint-mldsa44": change.log_key}
        )
        _verify_signatures(change, number)
        previous, last = hash_change(change), change


def _verify_signatures(change: KeyChange, number: int) -> None:
    message = change_message(change)
    try:
        _verify("checkpoint-mldsa44", change.origin, change.log_key, change.log_signature, message)
        for key in change.keys:
            _verify(key.purpose, change.origin, key.old, key.old_signature, message)
            _verify(key.purpose, change.origin, key.new, key.new_signature, message)
    except (EncodingError, Invalid) as error:
        raise Invalid("BadKeyChange", f"line {number} about the keys: {error.message}") from None


def _verify(purpose: str, origin: str, public: str, signature: bytes, message: bytes) -> None:
    if purpose in _SIGN_NOTHING:
        if signature:
            raise Invalid("BadKeyChange", f"a signature by {purpose}")
        return
    algorithm, raw = parse_public(purpose, origin, public)
    if algorithm == ED25519:
        verify_ed25519(raw, signature, message)
    else:
        verify_mldsa44(raw, signature, message)


def parse_public(purpose: str, origin: str, public: str) -> tuple[int, bytes]:
    """Algorithm (of notes: 1 or 6) and raw bytes of a key that signs.

    Raises:
        EncodingError: it is none of that purpose, or of another log.
    """
    wanted = ED25519 if purpose.endswith("ed25519") else COSIGNATURE_MLDSA44
    if purpose.startswith(("checkpoint", "map")):
        vkey = parse_vkey(public)
        name = origin + MAP_SUFFIX if purpose.startswith("map") else origin
        if (vkey.name, vkey.algorithm) != (name, wanted):
            raise EncodingError("BadKeyChange", f"{vkey.name!a} is the key of another log, or of another kind")
        return wanted, vkey.public_key
    if wanted == COSIGNATURE_MLDSA44:
        return wanted, decode_public_key(public)
    if not public.startswith(ED25519_PREFIX):
        raise EncodingError("BadKeyChange", f"does not start with {ED25519_PREFIX}")
    raw = decode_base64url(public.removeprefix(ED25519_PREFIX), 32)
    load_ed25519_public_key(raw)
    return wanted, raw


@dataclass(frozen=True)
class Successor:
    """A checkpoint key that takes the place of another one. until: when that one is of no use any more."""

    old: Vkey
    new: Vkey
    until: int


def successors(changes: Sequence[KeyChange], pinned: Sequence[Vkey]) -> tuple[Successor, ...]:
    """Which keys take the place of *pinned* ones, one after the other; *changes* are verified.

    Only what one of them, or a successor of it, signed counts: lines before the pin and about other logs say nothing.
    """
    known, found = set(pinned), []
    for change in changes:
        if change.kind not in ("checkpoint", "map"):
            continue
        for key in change.keys:
            old, new = parse_vkey(key.old), parse_vkey(key.new)
            if old in known:
                known.add(new)
                found.append(Successor(old, new, change.until))
    return tuple(found)


def _require(holds: bool, number: int, what: str) -> None:
    if not holds:
        raise Invalid("BadKeyChange", f"line {number} about the keys: {what}")
