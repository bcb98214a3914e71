"""One search box: what somebody may have put into it, by its form alone."""

from __future__ import annotations

import binascii
import re
from dataclasses import dataclass
from urllib.parse import unquote

from ktlog.errors import EncodingError
from ktlog.pkd.keys import KEY_PREFIX, ROOT_PREFIX, decode_public_key, decode_root, key_hash
from ktlog.tlog.encoding import decode_base64, decode_base64url, encode_base64url, parse_decimal
from ktlog.wire.actor_id import canonical_actor_id, parse_handle, parse_host

LIMIT = 4_096
"""Characters of a question; a public key has 1,758."""

_HEX = re.compile(r"[0-9a-fA-F]{64}")
_INDEX = re.compile(r"#?([0-9]{1,3}(?:[ ,.'’_]?[0-9]{3})*|[0-9]+)")


@dataclass(frozen=True)
class Asked:
    """What a text is. words: for whoever typed it. Of the other members those are set that such a text has.

    actor_id, handle, domain, leaf_index: as their names say. item_id: a key id or an aux id. roots, fingerprints: 32
    bytes each, that may be one.
    """

    words: str
    actor_id: str | None = None
    handle: tuple[str, str] | None = None
    domain: str | None = None
    leaf_index: int | None = None
    item_id: str | None = None
    roots: tuple[bytes, ...] = ()
    fingerprints: tuple[bytes, ...] = ()


def understand(text: str) -> Asked | None:
    """What *text* is, or None for what is nothing that a log knows of."""
    text = text.strip()
    if not text or len(text) > LIMIT:
        return None
    for read in (_prefixed, _number, _name, _hash):
        try:
            found = read(text)
        except EncodingError:
            continue
        if found is not None:
            return found
    return None


def likely_actor_ids(user: str, domain: str) -> tuple[str, ...]:
    """Where servers of the Fediverse keep an actor of that name. Only its own server knows which it is."""
    base = f"https://{domain}"
    return tuple(f"{base}{path}{user}" for path in (
        "/users/", "/@", "/ap/users/", "/actor/", "/actors/", "/profile/", "/u/", "/author/", "/accounts/", "/",
    ))


def _prefixed(text: str) -> Asked | None:
    if text.startswith(KEY_PREFIX):
        return Asked("a public key", fingerprints=(key_hash(decode_public_key("".join(text.split()))),))
    if text.startswith(ROOT_PREFIX):
        return Asked("a Merkle root", roots=(decode_root(text),))
    return None


def _number(text: str) -> Asked | None:
    found = _INDEX.fullmatch(text)
    if found is None:
        return None
    digits = re.sub(r"[^0-9]", "", found[1])
    if len(digits) == 64:
        return None
    return Asked("the index of an entry", leaf_index=parse_decimal(digits.lstrip("0") or "0"))


def _name(text: str) -> Asked | None:
    if text.startswith(("https://", "http://")):
        try:
            return Asked("the URL of an actor", actor_id=canonical_actor_id(text))
        except EncodingError:
            return Asked("the URL of an actor", actor_id=canonical_actor_id(text.partition("#")[0].rstrip("/")))
    host, slash, _ = text.partition("/")
    if slash and "." in host:
        parse_host(host.lower())
        return _name(f"https://{text}")
    name = unquote(text.removeprefix("acct:"))
    if "@" in name:
        return Asked("a handle", handle=parse_handle(name))
    try:
        return Asked("a domain", domain=parse_host(name.lower()))
    except EncodingError:
        return None


def _hash(text: str) -> Asked | None:
    packed = re.sub(r"[\s:·.-]", "", text)
    if _HEX.fullmatch(packed):
        data = binascii.unhexlify(packed)
        return Asked("32 bytes in hexadecimal: a fingerprint, or a root", roots=(data,), fingerprints=(data,))
    if text.endswith("="):
        return Asked("32 bytes in base64: the root of a checkpoint", roots=(decode_base64(text, 32),))
    data = decode_base64url(text, 32)
    return Asked(
        "32 bytes in base64url: the id of a key or of auxiliary data, or a hash", item_id=encode_base64url(data),
        roots=(data,), fingerprints=(data,),
    )
