"""What an erasure may take away, as every database stores it: tables of texts, and of bytes, in JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from ktlog.errors import EncodingError, StoreError
from ktlog.tlog.encoding import decode_base64, encode_base64


def dump_plain(value: Mapping[str, str | None]) -> str:
    """JSON in ASCII, so that it fits into any text column."""
    return json.dumps(dict(value), separators=(",", ":"), sort_keys=True)


def dump_bytes(value: Mapping[str, bytes]) -> str:
    return dump_plain({name: encode_base64(data) for name, data in value.items()})


def load_plain(text: str | None) -> dict[str, str | None]:
    """Inverse of :func:`dump_plain`; None, a row that is gone, is the empty table.

    Raises:
        StoreError: "Corrupt".
    """
    if text is None:
        return {}
    try:
        value = json.loads(text)
    except ValueError as error:
        raise StoreError("Corrupt", f"a stored record: {error}") from error
    if not isinstance(value, dict) or not all(isinstance(item, str | None) for item in value.values()):
        raise StoreError("Corrupt", "a stored record is no table of texts")
    return value


def load_bytes(text: str | None) -> dict[str, bytes]:
    """Inverse of :func:`dump_bytes`.

    Raises:
        StoreError: "Corrupt".
    """
    try:
        return {name: decode_base64(item or "") for name, item in load_plain(text).items()}
    except EncodingError as error:
        raise StoreError("Corrupt", f"a stored record: {error}") from error


def common_prefix(stored: Sequence[object], wanted: Sequence[object]) -> int:
    """How many items at the beginning are the same."""
    count = 0
    for one, other in zip(stored, wanted, strict=False):
        if one != other:
            break
        count += 1
    return count
