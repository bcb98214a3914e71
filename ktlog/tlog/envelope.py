"""The frame of a signed note: a text, an empty line, signature lines. No key is used here.

:mod:`ktlog.tlog.note` holds the keys and is what other packages import.
Spec: c2sp.org/signed-note, "Format".
"""

from __future__ import annotations

from binascii import b2a_base64
from dataclasses import dataclass
from functools import lru_cache

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import decode_base64, naming

MAXIMUM_NOTE_BYTES = 1 << 20
MAXIMUM_SIGNATURES = 100
KEY_ID_BYTES = 4

_DASH = "\N{EM DASH} "
# Unicode's White_Space, written out so that its meaning does not follow the interpreter's tables.
_SPACES = frozenset(
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\u2028\u2029\u202f\u205f\u3000"
)
_UNFIT = _SPACES | {"+"} | {chr(code) for code in range(0x20)}


@dataclass(frozen=True)
class SignatureLine:
    """One signature line. ``key_id`` is 4 bytes; ``blob`` is what follows it, never empty."""

    name: str
    key_id: bytes
    blob: bytes


@dataclass(frozen=True)
class Note:
    """A parsed note: nothing in it is believed until :func:`ktlog.tlog.note.open_note` says so.

    ``text`` ends in a newline and excludes the empty line before the signatures.
    """

    text: bytes
    signatures: tuple[SignatureLine, ...]


def check_key_name(name: str) -> None:
    """Refuse (``BadKeyName``) a key name that is empty, or holds a space, a plus or a control character."""
    if not name:
        raise EncodingError("BadKeyName", "a key name is empty")
    if not _UNFIT.isdisjoint(name):
        raise EncodingError("BadKeyName", "a key name holds a space, a plus or a control character")


def parse_note(data: bytes) -> Note:
    """Split a note at its last empty line.

    At most 1 MiB and 100 signatures are read; an ML-DSA-44 line is about 3.3 kB.

    Raises:
        EncodingError: ``BadNote``, or ``DuplicateSignature`` when two lines share name and key id.
    """
    _check_text(data)
    split = data.rfind(b"\n\n")
    if split < 0:
        raise EncodingError("BadNote", "a note has no empty line before its signatures")
    lines = data[split + 2 :]
    if not lines:
        raise EncodingError("BadNote", "a note has no signature line")
    return Note(data[: split + 1], _parse_lines(lines))  # which is as long, and of such bytes, as all of it may be


def format_note(note: Note) -> bytes:
    """Inverse of :func:`parse_note`; raises its errors for a note that could not be read back."""
    data = note.text + b"\n" + b"".join(format_signature_line(line) for line in note.signatures)
    if parse_note(data) != note:
        raise EncodingError("BadNote", "a note's text does not end in a newline")
    return data


def parse_signature_lines(data: bytes) -> tuple[SignatureLine, ...]:
    """Read 1 to 100 signature lines, as they end a note or make up a witness's answer.

    Raises:
        EncodingError: ``BadNote``, or ``DuplicateSignature``.
    """
    _check_text(data)
    return _parse_lines(data)


def _parse_lines(data: bytes) -> tuple[SignatureLine, ...]:
    lines = data.decode("utf-8").split("\n")[:-1]
    if len(lines) > MAXIMUM_SIGNATURES:
        raise EncodingError("BadNote", f"more than {MAXIMUM_SIGNATURES} signatures")
    signatures = tuple(_parse_line(line) for line in lines)
    if len({(line.name, line.key_id) for line in signatures}) != len(signatures):
        raise EncodingError("DuplicateSignature", "two signature lines bear one key name and key id")
    return signatures


def format_signature_line(line: SignatureLine) -> bytes:
    """The line with its newline. Raises EncodingError ``BadNote`` for a line that cannot be written."""
    head = _head(line.name)
    if len(line.key_id) != KEY_ID_BYTES or not line.blob:
        raise EncodingError("BadNote", "a signature line needs a 4-byte key id and a signature")
    # The dash makes any text that it is in a wide one, so the long part is joined as bytes.
    return head + b2a_base64(line.key_id + line.blob)


@lru_cache(256)  # most lines written are under a few names
def _head(name: str) -> bytes:
    with naming("BadNote", "signature line"):
        check_key_name(name)
    try:
        return f"{_DASH}{name} ".encode()
    except UnicodeEncodeError:
        raise EncodingError("BadNote", "a key name is not Unicode text") from None


def _parse_line(line: str) -> SignatureLine:
    name, space, text = line.removeprefix(_DASH).partition(" ")
    if not line.startswith(_DASH) or not space:
        raise EncodingError("BadNote", "a signature line has another form")
    with naming("BadNote", "signature line"):
        check_key_name(name)
        data = decode_base64(text)
    if len(data) <= KEY_ID_BYTES:
        raise EncodingError("BadNote", "a signature line holds no signature")
    return SignatureLine(name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])


def _check_text(data: bytes) -> None:
    if len(data) > MAXIMUM_NOTE_BYTES:
        raise EncodingError("BadNote", f"longer than {MAXIMUM_NOTE_BYTES} bytes")
    if not data.endswith(b"\n"):
        raise EncodingError("BadNote", "the last line does not end in a newline")
    # Every byte below 0x20 stands for itself in UTF-8, so the bytes can be searched directly.
    if data.translate(None, _CONTROLS) != data:
        raise EncodingError("BadNote", "a control character")
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        raise EncodingError("BadNote", "not UTF-8") from None


_CONTROLS = bytes(code for code in range(0x20) if code != 0x0A)
