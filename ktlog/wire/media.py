"""What other people's servers send: media types, and JSON of vocabularies that are not ours."""

from __future__ import annotations

import json
import re
from typing import Any

from ktlog.errors import EncodingError

# The pattern takes quadratic time on text made for it.
_MAX_LENGTH = 512
_PARAMETER = re.compile(r"""\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+)=(?:"([^"\\]*)"|([^\s;"]+))\s*(?:;|$)""")


def media_type(value: str) -> tuple[str, dict[str, str]]:
    """A Content-Type as (media type, parameters), names in lower case, quotes removed.

    Spec: RFC 9110 §8.3.1. What is no media type, or is longer than one ever is, gives an empty type.
    """
    if len(value) > _MAX_LENGTH:
        return "", {}
    kind, _, rest = value.partition(";")
    parameters = {}
    for match in _PARAMETER.finditer(rest):
        parameters[match[1].lower()] = match[2] if match[2] is not None else match[3]
    return kind.strip().lower(), parameters


def parse_foreign_json(data: bytes) -> Any:
    """JSON of other people's vocabularies: strict as parse_json, except that any number may occur.

    Raises:
        EncodingError: ``BadJson``, ``DuplicateKey``.
    """
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
        if b"\\u" in data:
            # A lone surrogate can be read from an escape, and can never be written again.
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise EncodingError("BadJson", f"not JSON: {type(error).__name__}") from None
    return value


def _no_constant(name: str) -> Any:
    raise EncodingError("BadJson", f"{name} is not JSON")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise EncodingError("DuplicateKey", "an object has one key twice")
    return found
