"""Checkpoints: the text of a signed note that states a log's size and root.

::

    keys.example.com
    20852163
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=

The origin is free text (Go's checksum database calls itself ``go.sum database tree``), so the
rules for key names do not apply to it. Spec: c2sp.org/tlog-checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import MAXIMUM_INTEGER, decode_base64, encode_base64, naming, parse_decimal
from ktlog.tlog.envelope import MAXIMUM_NOTE_BYTES, Note, parse_note

MAXIMUM_ORIGIN_BYTES = 255


@dataclass(frozen=True)
class Checkpoint:
    """``size`` leaves of the log ``origin`` have the root hash ``root`` (32 bytes).

    A size of 0 with another root than SHA-256("") parses: it is untrue, not malformed.
    Extension lines are discouraged, and an ML-DSA-44 signature does not cover them.
    """

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()


_CONTROLS = bytes(set(range(0x20)) - {0x0A})


def parse_checkpoint(text: bytes) -> Checkpoint:
    """Read a note's text as a checkpoint.

    Raises:
        EncodingError: ``BadCheckpoint``.
    """
    if len(text) > MAXIMUM_NOTE_BYTES or not text.endswith(b"\n"):
        raise EncodingError("BadCheckpoint", "too long, or the last line does not end in a newline")
    try:
        lines = text.decode("utf-8").split("\n")[:-1]
    except UnicodeDecodeError:
        raise EncodingError("BadCheckpoint", "not UTF-8") from None
    if len(lines) < 3:
        raise EncodingError("BadCheckpoint", "fewer than three lines")
    if not all(lines):
        raise EncodingError("BadCheckpoint", "an empty line")
    if text.translate(None, _CONTROLS) != text:  # in UTF-8 each such byte stands for itself
        raise EncodingError("BadCheckpoint", "a control character")
    if len(lines[0].encode("utf-8")) > MAXIMUM_ORIGIN_BYTES:
        raise EncodingError("BadCheckpoint", f"the origin exceeds {MAXIMUM_ORIGIN_BYTES} bytes")
    with naming("BadCheckpoint", "tree size"):
        size = parse_decimal(lines[1])
    with naming("BadCheckpoint", "root hash"):
        root = decode_base64(lines[2], 32)
    return Checkpoint(lines[0], size, root, tuple(lines[3:]))


def format_checkpoint(checkpoint: Checkpoint) -> bytes:
    """Inverse of :func:`parse_checkpoint`; raises its error for a value that could not be read back."""
    text = encode_checkpoint(checkpoint)
    if parse_checkpoint(text) != checkpoint:
        raise EncodingError("BadCheckpoint", "a line holds a newline")
    return text


def encode_checkpoint(checkpoint: Checkpoint) -> bytes:
    """As :func:`format_checkpoint`, for who holds it against what *checkpoint* was parsed from: it is not read back."""
    if not 0 <= checkpoint.size <= MAXIMUM_INTEGER:
        raise EncodingError("BadCheckpoint", "the tree size is out of range")
    lines = (checkpoint.origin, str(checkpoint.size), encode_base64(checkpoint.root), *checkpoint.extensions)
    try:
        return "".join(f"{line}\n" for line in lines).encode("utf-8")
    except UnicodeEncodeError:
        raise EncodingError("BadCheckpoint", "not Unicode text") from None


def parse_signed_checkpoint(data: bytes) -> tuple[Note, Checkpoint]:
    """Read a note whose text is a checkpoint. No signature is looked at.

    Raises:
        EncodingError: ``BadNote``, ``DuplicateSignature`` or ``BadCheckpoint``.
    """
    note = parse_note(data)
    return note, parse_checkpoint(note.text)
