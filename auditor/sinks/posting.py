"""One POST, to the Internet by the rules of :mod:`ktlog.wire.fetch`, or to a loopback address that was allowed."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from auditor.outbox import ALARM_REFUSED, TOO_LARGE
from ktlog.errors import Unreachable
from ktlog.wire.dial import parse_loopback
from ktlog.wire.fetch import Fetcher

TIMEOUT_SECONDS = 20.0
MAX_ANSWER_BYTES = 1 << 16


class Poster:
    """Posts to one URL, as :meth:`auditor.sinks.settings.Settings.url` gave it."""

    def __init__(self, url: str, fetcher: Callable[[], Fetcher]) -> None:
        self._url = url
        self._make = fetcher
        self._fetcher: Fetcher | None = None

    def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer.

        Raises:
            Unreachable
        """
        if self._url.startswith("http://"):
            return self._post_here(body, headers)
        if self._fetcher is None:
            self._fetcher = self._make()
        return self._fetcher.post(self._url, body, headers, max_bytes=MAX_ANSWER_BYTES).status

    def _post_here(self, body: bytes, headers: Mapping[str, str]) -> int:
        parts = urlsplit(self._url)
        connection = http.client.HTTPConnection(*parse_loopback(parts.netloc), timeout=TIMEOUT_SECONDS)
        try:
            connection.request("POST", parts.path or "/", body, dict(headers))
            answer = connection.getresponse()
            answer.read(MAX_ANSWER_BYTES)
            return answer.status
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable("Refused", f"{parts.netloc}: {type(error).__name__}") from None
        finally:
            connection.close()


# What a receiver says of itself, of who asks, or of the hour, and not of what it was sent.
_NOT_OF_THE_ALARM = frozenset({401, 402, 403, 404, 405, 407, 408, 410, 421, 423, 425, 426, 429, 451})


def check_status(status: int, who: str) -> None:
    """Raises Unreachable unless the receiver has taken it: ``TooLarge``, ``AlarmRefused``, or ``BadStatus``."""
    if not 200 <= status < 300:
        own = 400 <= status < 500 and status not in _NOT_OF_THE_ALARM
        name = TOO_LARGE if status == 413 else ALARM_REFUSED if own else "BadStatus"
        raise Unreachable(name, f"{who} answers {status}")
