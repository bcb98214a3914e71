"""Pre-authentication encoding: several byte strings as one, with no two ways to read it.

>>> pae([b"test"]).hex()
'0100000000000000040000000000000074657374'

"""

from __future__ import annotations

from collections.abc import Sequence

from ktlog.errors import EncodingError


def le64(number: int) -> bytes:
    """*number* as 8 bytes, little-endian; the top bit is always clear.

    Raises:
        AssertionError: negative, or 2**63 and more. Lengths are never either.
    """
    if not 0 <= number < 2**63:
        raise AssertionError("le64 takes 0 <= number < 2**63")
    return number.to_bytes(8, "little")


def utf8(text: str | bytes) -> bytes:
    """*text* as UTF-8; bytes pass unchanged.

    Raises:
        EncodingError: ``BadText`` when *text* holds half of a surrogate pair.
    """
    if not isinstance(text, str):
        return bytes(text)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:
        raise EncodingError("BadText", "a string holds half of a surrogate pair") from None


def prefixed(piece: str | bytes) -> bytes:
    """``len(x) || x``, the building block of :func:`pae` and of attribute encryption."""
    data = piece if type(piece) is bytes else utf8(piece)
    return len(data).to_bytes(8, "little") + data


def pae(pieces: Sequence[str | bytes]) -> bytes:
    """Encode *pieces* (bytes, or text as UTF-8) so that different lists give different bytes.

    Raises:
        EncodingError: ``BadText`` for text that is not encodable.

    Spec: PKD "PreAuthEncode"; PASETO, Common Implementation Details, "PAE Definition".
    """
    return le64(len(pieces)) + b"".join(map(prefixed, pieces))
