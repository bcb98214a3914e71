"""Strict JSON in, canonical JSON out.

PKD signs and hashes JSON text, so there must be exactly one text for one value. The form is
compact, object keys in ascending byte order, ``/`` and non-ASCII characters as they are, and
U+2028 and U+2029 escaped (PHP escapes these two even when it leaves Unicode alone, and the
reference implementation is PHP). Floats have no place in it: no two languages print them alike.

Reading is stricter than :mod:`json`, whose parser keeps the last of two equal keys, takes
``NaN``, and passes lone surrogates on to whoever encodes the text next.

>>> canonical({"b": "/", "a": ["\\u00e9", 1]})
b'{"a":["\\xc3\\xa9",1],"b":"/"}'
>>> canonical(parse_json('{ "b": "2", "a": "1" }'))
b'{"a":"1","b":"2"}'

"""

from __future__ import annotations

import json
import re
from typing import Any

from ktlog.errors import EncodingError

MAX_DEPTH = 32
"""Greatest number of containers inside one another; the outermost counts as one."""

MAX_INTEGER = 2**53 - 1
"""Greatest magnitude of an integer: what every JSON reader keeps exact (RFC 7493 §2.2)."""

_NOT_ASCII = re.compile(r"[^\x00-\x7f]")


def _refuse_constant(text: str) -> Any:
    raise EncodingError("BadJson", f"{text} is not JSON")


def _refuse_float(text: str) -> Any:
    raise EncodingError("BadJson", "a number with a fraction or an exponent has no canonical form")


def _bounded_integer(text: str) -> int:
    # The length comes first: converting a million digits takes quadratic time.
    if len(text) > 17 or not text.isascii() or text == "-0":
        raise EncodingError("BadJson", "an integer is outside the exact range, or is -0")
    value = int(text)
    if abs(value) > MAX_INTEGER:
        raise EncodingError("BadJson", "an integer is outside the exact range")
    return value


def _unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise EncodingError("DuplicateKey", "a JSON object names a key twice")
    return value


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique_pairs,
    parse_constant=_refuse_constant,
    parse_float=_refuse_float,
    parse_int=_bounded_integer,
)

# What holds itself is refused by its depth, before it is written.
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"), sort_keys=True)


def _check_text(text: str) -> None:
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise EncodingError("BadJson", "a string holds half of a surrogate pair") from None


def _check_value(value: Any, depth: int = 1) -> None:
    """Refuse everything that has no canonical form, and nesting beyond MAX_DEPTH."""
    kind = type(value)
    if kind is str:
        _check_text(value)
    elif kind is dict or kind is list:
        if depth > MAX_DEPTH:
            raise EncodingError("BadJson", f"nested deeper than {MAX_DEPTH}")
        if kind is dict:
            for name in value:
                if type(name) is not str:
                    raise EncodingError("BadJson", "an object key is not a string")
                _check_text(name)
        for item in value.values() if kind is dict else value:
            if type(item) is not str or not item.isascii():  # most are plain text, and need no call
                _check_value(item, depth + 1)
    elif kind is int:
        if abs(value) > MAX_INTEGER:
            raise EncodingError("BadJson", "an integer is outside the exact range")
    elif value is not None and kind is not bool:
        raise EncodingError("BadJson", f"{kind.__name__} has no canonical form")


def parse_json(data: bytes | str) -> Any:
    """Read one JSON document, strictly.

    Args:
        data: the whole document; bytes are UTF-8 without a byte order mark. White space around
            and between tokens is allowed.

    Returns:
        dict, list, str, int, bool or None, at most MAX_DEPTH containers deep.

    Raises:
        EncodingError: ``DuplicateKey`` for an object that names a key twice (also when one of the
            two is spelt with escapes); ``BadJson`` for anything else: bytes that are not UTF-8,
            trailing data, floats, ``NaN``, ``-0``, integers beyond MAX_INTEGER, half of a
            surrogate pair, nesting beyond MAX_DEPTH.

    Spec: RFC 8259; PKD "Protocol Messages" (keys unique within the same level).
    """
    try:
        text = data if isinstance(data, str) else bytes(data).decode("utf-8")
        value = _DECODER.decode(text)
    except RecursionError:
        raise EncodingError("BadJson", f"nested deeper than {MAX_DEPTH}") from None
    except ValueError as error:
        raise EncodingError("BadJson", f"not a JSON document: {error}") from None
    # The decoder makes nothing else that has no canonical form; and neither can be in a text without these.
    if "\\u" in text or not text.isascii() or text.count("{") + text.count("[") > MAX_DEPTH:
        _check_value(value)
    return value


def _escape(match: re.Match[str]) -> str:
    units = match.group().encode("utf-16-be")
    return "".join(f"\\u{units[i:i + 2].hex()}" for i in range(0, len(units), 2))


def canonical(obj: Any, *, escape_unicode: bool = False) -> bytes:
    """The one JSON text of *obj*, as UTF-8 bytes.

    Args:
        obj: what :func:`parse_json` can return.
        escape_unicode: write every character beyond ASCII as ``\\uXXXX``, lower-case hex, pairs for
            astral characters: the published vectors' generator does that, the specification does not.

    Raises:
        EncodingError: ``BadJson`` when *obj* holds a value without canonical form.

    Spec: PKD "Protocol Signatures" (keys sorted in ASCII byte order, no duplicates). The order
    of code points used here is the byte order of UTF-8.
    """
    _check_value(obj)
    text = _ENCODER.encode(obj)
    if escape_unicode:
        text = _NOT_ASCII.sub(_escape, text)
    else:
        # Both characters can only stand inside strings, where nothing else needs escaping.
        text = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return text.encode("utf-8")
