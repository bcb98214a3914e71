"""The short way through HTTP signatures of the plainest form, as nearly all have; the library's takes a millisecond.

What is read here the library reads alike, and spells alike again; whatever could be read in two ways is left to it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import http_sf

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import decode_base64

_PLAIN_PARAMETERS = frozenset({"created", "expires", "keyid", "alg"})  # whose types were checked
PLAIN_URL = re.compile(r"https://[a-z0-9.-]+(?::[0-9]+)?/[A-Za-z0-9/._~-]*")
_PLAIN_VALUE = re.compile(r"[!-~](?:[ -~]*[!-~])?")
PLAIN_METHOD = re.compile(r"[A-Z]+")
_LABELLED = r"([a-z*][a-z0-9_.*-]*)="
# One member, spelt as RFC 8941 would spell it again: nothing in it is escaped, and no integer has a zero too many.
_PLAIN_INPUT = re.compile(
    _LABELLED + r'(\(("[a-z0-9@-]+"(?: "[a-z0-9@-]+")*)\)((?:;[a-z]+=(?:"[!#-\[\]-~]*"|0|[1-9][0-9]{0,14}))+))'
)
_PLAIN_PARAMETER = re.compile(r';([a-z]+)=(?:"([^"]*)"|([0-9]+))')
_PLAIN_SIGNATURE = re.compile(_LABELLED + r":([A-Za-z0-9+/]+={0,2}):")


class PlainMember(tuple):
    """(components, parameters), as the library gives them, and the text that they were read from."""

    text: str


def parse_plain(inputs: str, signatures: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The two fields where each has one member of the plainest form, as nearly all have; None leaves it to the library.

    What is read here the library reads alike, and spells alike again.
    """
    found, signed = _PLAIN_INPUT.fullmatch(inputs), _PLAIN_SIGNATURE.fullmatch(signatures)
    if found is None or signed is None:
        return None
    label, text, names, rest = found.groups()
    pairs = [(name, quoted if number is None else int(number))
             for name, quoted, number in map(re.Match.groups, _PLAIN_PARAMETER.finditer(rest))]
    parameters = dict(pairs)
    if len(parameters) != len(pairs):
        return None
    try:
        signature = decode_base64(signed[2])
    except EncodingError:
        return None
    member = PlainMember(([(name, {}) for name in names[1:-1].split('" "')], parameters))
    member.text = text
    return {label: member}, {signed[1]: (signature, {})}


def plain_base(method: str, url: str, headers: Sequence[tuple[str, str]], member: Any) -> bytes | None:
    """What a signature over ``@method``, ``@target-uri`` and whole headers signs; None where it is not that plain.

    Nearly every signature is, and the library takes a millisecond longer to see it. Everything with parameters, another
    derived component, or a character that could be read in two ways is left to the library.

    member: components and parameters, the former as ``ktlog.wire.httpsig`` checked them. Source: RFC 9421 §2.5.
    """
    components, parameters = member
    if not (PLAIN_URL.fullmatch(url) and parameters.keys() <= _PLAIN_PARAMETERS and PLAIN_METHOD.fullmatch(method)):
        return None
    derived = {"@method": method, "@target-uri": url}
    # A covered header that is there twice was refused before.
    values = {name.lower(): value for name, value in headers}
    lines: dict[str, str] = {}
    for name, options in components:
        if type(name) is not str or name in lines or name == "set-cookie" or options:
            return None
        value = derived.get(name) if name.startswith("@") else values.get(name)
        if value is None or not _PLAIN_VALUE.fullmatch(value):
            return None
        lines[name] = value
    shown = member.text if isinstance(member, PlainMember) else http_sf.ser({"a": member}).removeprefix("a=")
    lines["@signature-params"] = shown
    return "\n".join(f'"{name}": {value}' for name, value in lines.items()).encode()
