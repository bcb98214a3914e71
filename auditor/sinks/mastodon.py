"""Alarms as direct messages of the Fediverse, posted through an account of the auditor's on an ordinary instance.

By Mastodon's client API, which GoToSocial, Akkoma and Pleroma answer too: ``POST /api/v1/statuses`` with
``visibility=direct``, by a token that may do ``write:statuses`` and nothing else. An auditor with an actor and an inbox
of its own would need a server; an account is easily had.

On such a server "direct" means: to whoever is mentioned. So no ``@`` of an alarm's text may stay one, or a stranger
could choose who reads it. The Idempotency-Key is the alarm's id: the same alarm within the hour is one post.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from auditor.alarm import printable_line
from auditor.outbox import Delivered
from auditor.sinks.posting import Poster, check_status
from auditor.sinks.settings import Settings
from ktlog.errors import EncodingError
from ktlog.wire.actor_id import parse_handle
from ktlog.wire.fetch import Fetcher

_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{8,512}")
_AT_SIGNS = str.maketrans({"@": "(at)", "\uff20": "(at)", "\ufe6b": "(at)", "#": "(#)"})


class Mastodon:
    """Args: receiver: (user, domain). length: the most characters that the instance takes in a post."""

    rewrites = False

    def __init__(
        self, name: str, findings: bool, poster: Poster, token: str, receiver: tuple[str, str], length: int
    ) -> None:
        self.name = name
        self.findings = findings
        self._poster = poster
        self._token = token
        self._receiver = receiver
        self._length = length

    def send(
        self, document: Mapping[str, Any], reasons: Sequence[str], recent: Callable[[int], list[Delivered]]
    ) -> None:
        """Raises Unreachable unless the instance has taken the post."""
        body = json.dumps({
            "status": status_text(document, reasons, self._receiver, self._length), "visibility": "direct",
        }).encode("ascii")
        check_status(self._poster.post(body, {
            "Authorization": f"Bearer {self._token}", "Content-Type": "application/json",
            "Idempotency-Key": document["id"],
        }), "the instance")


def status_text(document: Mapping[str, Any], reasons: Sequence[str], receiver: tuple[str, str], length: int) -> str:
    """The post: one mention, the receiver's, and plain words."""
    words = [document["sentence"], f"Log: {document['origin']}"]
    words += [f"Because of: {', '.join(reasons)}"] if reasons else []
    words.append(f"Alarm {document['id']}")
    rest = "\n".join(printable_line(word).translate(_AT_SIGNS) for word in words)
    text = f"@{receiver[0]}@{receiver[1]} {rest}"
    return text if len(text) <= length else text[: length - 3] + "..."


def make(settings: Settings, fetcher: Callable[[], Fetcher]) -> Mastodon:
    try:
        receiver = parse_handle(settings.text("to"))
        token = settings.secret("token_file").decode("ascii")
    except EncodingError as error:
        raise settings.bad(f"to: {error.message}") from None
    except UnicodeDecodeError:
        token = ""
    if not _TOKEN.fullmatch(token):
        raise settings.bad("the file of token_file holds no access token")
    url = settings.url("instance").rstrip("/") + "/api/v1/statuses"
    length = settings.number("length", 500, 200, 100_000)
    return Mastodon(settings.name, settings.findings, Poster(url, fetcher), token, receiver, length)
