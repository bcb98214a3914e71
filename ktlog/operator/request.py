"""A request as the operator's side sees it, and where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ktlog.pkd.canonical import parse_json

UNREAD: Any = object()


@dataclass
class Place:
    """A request that was let in by ``ktlog.operator.gate``, and the names under which it is counted.

    share: how many of each name there may be, with it.
    """

    share: int
    names: list[str] = field(default_factory=list)


@dataclass
class Source:
    """Who sent a request, as far as is known by now.

    ip: the client's address in text, past the proxies that are trusted. domain: the sender's server, and
    None until an HTTP signature was verified: what a request merely claims never stands here.
    algorithms: of the signatures that were verified.
    lookups: how many actor documents were waited for on its behalf. place: how the gate counts it, if it does.
    claimed: the server that the request says it is from, for whoever reads about refusals.
    """

    ip: str
    domain: str | None = None
    algorithms: tuple[str, ...] = field(default=(), compare=False)
    lookups: int = field(default=0, compare=False)
    place: Place | None = field(default=None, compare=False)
    claimed: str | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Request:
    """An HTTP request as it came.

    target_url: what was asked for, with a host of the configuration, never an unchecked Host header.
    headers: every line, repeated ones apart. source: filled in as more of the sender becomes known.
    value: what ``parse_json`` made of the body, where somebody has read it before.
    """

    method: str
    target_url: str
    headers: Sequence[tuple[str, str]]
    body: bytes
    source: Source
    value: Any = field(default=UNREAD, repr=False, compare=False)

    def parsed(self) -> Any:
        """The body's JSON; raises as ``parse_json``."""
        return parse_json(self.body) if self.value is UNREAD else self.value
