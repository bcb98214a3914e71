"""Base64 and decimal numbers, each in its one canonical form.

Python's own parsers are generous: ``int`` takes ``+5``, ``1_000`` and Arabic digits, and
``b64decode`` takes stray trailing bits. Two encodings of one value are two names for one thing,
so nothing but the canonical text is read here. All failures are :class:`~ktlog.errors.EncodingError`.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager

from ktlog.errors import EncodingError

MAXIMUM_INTEGER = 2**63 - 1
"""Tree sizes, indexes and times never exceed this."""


def encode_base64(data: bytes) -> str:
    """Standard alphabet, padded. Spec: RFC 4648 §4."""
    return b64encode(data).decode("ascii")


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
        data = b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise EncodingError("BadBase64", f"not base64: {error}") from None
    if b64encode(data).decode("ascii") != text:
        raise EncodingError("BadBase64", "base64 is not in its canonical form")
    _check_size(data, size)
    return data


def encode_base64url(data: bytes) -> str:
    """URL-safe alphabet, no padding. Spec: RFC 4648 §5."""
    return urlsafe_b64encode(data).decode("ascii").rstrip("=")


def decode_base64url(text: str, size: int | None = None) -> bytes:
    """Inverse of :func:`encode_base64url`, for exactly *size* bytes when given.

    Raises:
        EncodingError: ``BadBase64`` for anything that does not encode back to *text*.
    """
    if not text.isascii():
        raise EncodingError("BadBase64", "base64url holds a character outside ASCII")
    try:
        data = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (binascii.Error, ValueError) as error:
        raise EncodingError("BadBase64", f"not base64url: {error}") from None
    if encode_base64url(data) != text:
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


@contextmanager
def naming(name: str, what: str) -> Iterator[None]:
    """Give an EncodingError from within the *name* of the format being read, and say *what* failed."""
    try:
        yield
    except EncodingError as error:
        raise EncodingError(name, f"{what}: {error.message}") from error
