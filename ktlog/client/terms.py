"""What a client must ask a log before it can build a message, and the receipt's keys.

Nothing of it needs to be verified to be used: a false root, dialect or leaf key only makes the log
refuse the message, or its receipt fail. The encryption key hides a message from the instance that
carries it, and is as good as the TLS certificate it came under.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ktlog.client.page import parse_encapsulation_key, parse_leaf_keys, parse_recent, parse_text
from ktlog.errors import Invalid, Unreachable
from ktlog.pkd.dialects import DIALECTS, Dialect
from ktlog.wire.fetch import Response


class Getter(Protocol):
    """What a client needs of a fetcher; :class:`ktlog.wire.fetch.Fetcher` is one."""

    def get(
        self, url: str, *, accept: str = "*/*", headers: Mapping[str, str] | None = None,
        max_bytes: int | None = None,
    ) -> Response: ...


@dataclass(frozen=True)
class Terms:
    """What a message to one log is built with, right now.

    Attributes:
        dialect: how the log reads bytes.
        recent_root: its newest root; a message that names it is fresh for a while.
        encapsulation_key: 1216 bytes to encrypt to.
        leaf_keys: its leaf keys by SHA-256 of the raw key, to check the receipt with.
    """

    dialect: Dialect
    recent_root: str
    encapsulation_key: bytes
    leaf_keys: Mapping[bytes, bytes]


def fetch_terms(fetcher: Getter, log_url: str) -> Terms:
    """Ask the log at *log_url* (``https://`` and its host).

    Raises:
        Unreachable: no answer.
        Invalid: ``MalformedAnswer``, ``UnknownDialect``.
    """
    name = parse_text(fetch_body(fetcher, log_url, "/api/info"), "dialect")
    dialect = DIALECTS.get(name)
    if dialect is None:
        raise Invalid("UnknownDialect", f"the log speaks the dialect {name[:64]!r}, which is not known here")
    return Terms(
        dialect=dialect,
        recent_root=parse_recent(fetch_body(fetcher, log_url, "/api/history")).root,
        encapsulation_key=parse_encapsulation_key(fetch_body(fetcher, log_url, "/api/server-public-key")),
        leaf_keys=parse_leaf_keys(fetch_body(fetcher, log_url, "/leaf-keys")),
    )


def fetch_body(fetcher: Getter, log_url: str, target: str, max_bytes: int = 1 << 20) -> bytes:
    """The body of a log's answer with status 200. Raises Unreachable."""
    url = log_url.rstrip("/") + target
    response = fetcher.get(url, max_bytes=max_bytes)
    if response.status != 200:
        raise bad_status(response)
    return response.body


def bad_status(response: Response) -> Unreachable:
    """The error for an answer that is no answer."""
    return Unreachable(
        "BadStatus", f"{response.url} answers {response.status}",
        hint="Try again later; if it lasts, ask the log's operator.",
    )
