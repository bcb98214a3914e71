"""A request as the operator's side sees it, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Source:
    """Who sent a request, as far as is known by now.

    ip: the client's address in text, past the proxies that are trusted. domain: the sender's server, and
    None until an HTTP signature was verified: what a request merely claims never stands here.
    lookups: how many actor documents were waited for on its behalf.
    """

    ip: str
    domain: str | None = None
    lookups: int = field(default=0, compare=False)


@dataclass(frozen=True)
class Request:
    """An HTTP request as it came.

    target_url: what was asked for, with a host of the configuration, never an unchecked Host header.
    headers: every line, repeated ones apart. source: filled in as more of the sender becomes known.
    """

    method: str
    target_url: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    source: Source
