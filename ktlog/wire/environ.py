"""What a WSGI environ says of a request as it was sent: HTTP signatures are over that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ktlog.errors import MessageRejected, UsageError

LINES = "ktlog.header_lines"
"""Where our servers say them: pairs of name and value, in the order in which they came."""


def raw_target(environ: dict[str, Any]) -> str:
    """The request target as it was sent: path and query, nothing decoded.

    Raises:
        MessageRejected: ``bad_request``: absolute form (it would smuggle in another host), or a fragment.
        UsageError: ``NoRawTarget``: this server does not hand it on.

    Spec: RFC 9112 §3.2.1.
    """
    target = environ.get("RAW_URI")
    if not isinstance(target, str):
        raise UsageError("NoRawTarget", "the HTTP server does not pass RAW_URI on", hint="Use gunicorn.")
    if not target.startswith("/") or "#" in target:
        raise MessageRejected("bad_request", "the request target is not a path")
    return target


def header_lines(environ: dict[str, Any]) -> Sequence[tuple[str, str]]:
    """Every header line of the request, repeated ones apart.

    Under a server that is not ours (a test client) the joined form is all there is.
    """
    lines = environ.get(LINES)
    if lines is not None:
        return lines
    names = {key: key.removeprefix("HTTP_") for key in environ if key.startswith("HTTP_")}
    names.update({key: key for key in ("CONTENT_TYPE", "CONTENT_LENGTH") if environ.get(key)})
    return tuple((name.replace("_", "-"), environ[key]) for key, name in names.items())
