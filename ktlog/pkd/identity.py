"""Actor ids as the log's rules see them: opaque canonical HTTPS URLs, compared byte for byte.

Only the form is checked, and it is the form that the wire layer is willing to fetch: a lower-case
host name of two labels or more (never an address), no port but 443, a path without dot segments,
no fragment. Every replayer has to give the same answer for ever, so nothing is repaired.

Spec: PKD "Actor ID Canonicalization"; directory map §1 (ASCII, 1..2048 bytes).
"""

from __future__ import annotations

import re

from ktlog.pkd.rejections import reject

MAX_URL_BYTES = 2048

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
# A last label that begins with a letter keeps every spelling of an IPv4 address out.
_HOST = rf"(?:{_LABEL}\.)+[a-z](?:[a-z0-9-]{{0,61}}[a-z0-9])"
_PATH = r"/(?:[A-Za-z0-9._~!$&'()*+,;=:@/-]|%[0-9A-Fa-f]{2})*"
_QUERY = r"\?(?:[A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-Fa-f]{2})*"
_URL = re.compile(rf"https://(?P<host>{_HOST})(?::443)?(?P<path>{_PATH})?(?(path)(?:{_QUERY})?)")
_DOT_SEGMENT = re.compile(r"/(?:\.|%2[Ee]){1,2}(?:/|\Z)")


def _match(text: str, code: str, *, path: bool) -> re.Match[str]:
    found = _URL.fullmatch(text) if len(text) <= MAX_URL_BYTES else None
    if (
        found is None or len(found["host"]) > 253 or (path and found["path"] is None)
        or _DOT_SEGMENT.search(found["path"] or "")
    ):
        raise reject(code, "want https://HOST/PATH in ASCII, at most 2048 bytes, host in lower case")
    return found


def check_actor_id(text: str) -> str:
    """Return *text* when it is a canonical actor id.

    Raises:
        MessageRejected: ``bad_actor_id``.
    """
    _match(text, "bad_actor_id", path=True)
    return text


def check_directory_url(text: str) -> str:
    """Return *text* when it is the URL of a directory, whose path may be missing.

    Raises:
        MessageRejected: ``bad_request``.
    """
    _match(text, "bad_request", path=False)
    return text


def actor_domain(actor_id: str) -> str:
    """The host of a canonical actor id, without a port: what BurnDown compares.

    Raises:
        MessageRejected: ``bad_actor_id``.
    """
    return _match(actor_id, "bad_actor_id", path=True)["host"]
