"""Every request has a name, which its answer carries; and every refusal is a line in the log.

    time=… level=info logger=ktlog.web msg=refused id=5d1c0a2b-1f method=POST endpoint=activitypub.inbox status=403 …

The line says under which code, by whose instance (``claimed`` where nothing is proven of it), and never what was asked
for: an actor's id may be in that, and what is logged no erasure reaches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

from ktlog.operator.request import Source
from ktlog.web.answers import Wsgi
from ktlog.wire.logs import RequestIds, fields

ASKED = "ktlog.asked"
HEADER = "X-Request-Id"

log = logging.getLogger("ktlog.web")


@dataclass(slots=True)
class Asked:
    """A request under way. Whoever copies its environment copies the way to this."""

    name: str
    source: Source | None = None
    code: str | None = None
    endpoint: str | None = None


class Named:
    """WSGI middleware outside of all others. Safe to use from many threads."""

    def __init__(self, inner: Wsgi) -> None:
        self._inner = inner
        self._ids = RequestIds()

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        asked = environ[ASKED] = Asked(self._ids.take(environ.get("HTTP_X_REQUEST_ID")))

        def start(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            if status[0] in "45":
                _log(asked, environ["REQUEST_METHOD"], int(status[:3]))
            return start_response(status, [*headers, (HEADER, asked.name)], *more)

        return self._inner(environ, start)


def note_source(environ: MutableMapping[str, Any], source: Source) -> Source:
    """Whose request it is; *source*, which may come to know more of that later."""
    asked = environ.get(ASKED)
    if asked is not None:
        asked.source = source
    return source


def note_refusal(environ: MutableMapping[str, Any], code: str, endpoint: str | None) -> None:
    """Under which code it is refused, and by which view."""
    asked = environ.get(ASKED)
    if asked is not None:
        asked.code, asked.endpoint = code, endpoint


def _log(asked: Asked, method: str, status: int) -> None:
    level = logging.WARNING if status >= 500 else logging.INFO
    if log.isEnabledFor(level):
        source = asked.source
        log.log(level, "refused", extra=fields(
            id=asked.name, method=method if method.isalpha() else "other", endpoint=asked.endpoint, status=status,
            code=asked.code, instance=None if source is None else source.domain,
            claimed=None if source is None or source.domain is not None else source.claimed,
        ))
