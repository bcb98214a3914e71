"""Base64 and decimal numbers, each in its one canonical form.

Python's own parsers are generous: ``int`` takes ``+5``, ``1_000`` and Arabic digits, and
``b64decode`` takes stray trailing bits. Two encodings of one value are two names for one thing,
so nothing but the canonical text is read here. All failures are :class:`~ktlog.errors.EncodingError`.
"""

from __future__ import annotations

import binascii

from ktlog.errors import EncodingError

# The URL-safe alphabet to the standard one, whose own two characters, and the padding, are none here.
_TO_STANDARD = bytes.maketrans(b"-_+/=", b"+/!!!")
_TO_URL = bytes.maketrans(b"+/", b"-_")

MAXIMUM_INTEGER = 2**63 - 1
"""Tree sizes, indexes and times never exceed this."""


def encode_base64(data: bytes) -> str:
    """Standard alphabet, padded. Spec: RFC 4648 §4."""
    return binascii.b2a_base64(data, newline=False).decode("ascii")


def decode_base64(text: str, size: int | None = None) -> bytes:
    """Inverse of :func:`encode_base64`, for exactly *size* bytes when given.

    Raises:
        EncodingError: ``BadBase64`` for anything that does not encode back to *text*.

    >>> decode_base64("AAE=")
    b'\\x00\\x01'
    """
    if not text.isascii():
        raise EncodingError("BadBase64", "base64 holds a character outside ASCII")
    try:
        data = binascii.a2b_base64(text, strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise EncodingError("BadBase64", f"not base64: {error}") from None
    if encode_base64(data) != text:
        raise EncodingError("BadBase64", "base64 is not in its canonical form")
    _check_size(data, size)
    return data


def encode_base64url(data: bytes) -> str:
    """URL-safe alphabet, no padding. Spec: RFC 4648 §5."""
    return binascii.b2a_base64(data, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")


def decode_base64url(text: str, size: int | None = None) -> bytes:
    """Inverse of :func:`encode_base64url`, for exactly *size* bytes when given.

    Raises:
        EncodingError: ``BadBase64`` for anything that does not encode back to *text*.
    """
    if not text.isascii():
        raise EncodingError("BadBase64", "base64url holds a character outside ASCII")
    raw, left = text.encode("ascii").translate(_TO_STANDARD), len(text) % 4
    try:
        data = binascii.a2b_base64(raw + b"=" * (-left % 4), strict_mode=True)
    except (binascii.Error, ValueError) as error:
        raise EncodingError("BadBase64", f"not base64url: {error}") from None
    # Only the last characters can have bits to spare.
    if left and binascii.b2a_base64(data[-(left - 1):], newline=False)[:left] != raw[-left:]:
        raise EncodingError("BadBase64", "base64url is not in its canonical form")
    _check_size(data, size)
    return data


def _check_size(data: bytes, size: int | None) -> None:
    if size is not None and len(data) != size:
        raise EncodingError("BadBase64", f"base64 holds {len(data)} bytes where {size} belong")


def parse_decimal(text: str, maximum: int = MAXIMUM_INTEGER) -> int:
    """Read a non-negative ASCII decimal: no sign, no leading zero, at most *maximum*.

    Raises:
        EncodingError: ``BadDecimal``.

    >>> parse_decimal("20852163")
    20852163
    """
    # The length is checked before int() so that a megabyte of digits costs nothing.
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(maximum)):
        raise EncodingError("BadDecimal", "not a decimal number in range")
    if text[0] == "0" and text != "0":
        raise EncodingError("BadDecimal", "a decimal number has a leading zero")
    value = int(text)
    if value > maximum:
        raise EncodingError("BadDecimal", f"a number exceeds {maximum}")
    return value


class naming:  # noqa: N801  (a verb, as the with statement reads it)
    """Give an EncodingError from within the *name* of the format being read, and say *what* failed.

    A class, because a generator costs as much as what it is mostly put around.
    """

    __slots__ = ("_name", "_what")

    def __init__(self, name: str, what: str) -> None:
        self._name, self._what = name, what

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, EncodingError):
            raise EncodingError(self._name, f"{self._what}: {error.message}") from error
