"""The key packages that an actor publishes: what others encrypt to who write to them by MLS over ActivityPub.

Only what is needed to say which there are. A package is not opened: whether it is well formed is its receivers' affair.

Source: SWICG "Messaging Layer Security over ActivityPub", ``keyPackages`` and ``KeyPackage`` (draft).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ktlog.errors import Invalid, Unreachable
from ktlog.wire.actor import ACCEPT
from ktlog.wire.fetch import Fetcher
from ktlog.wire.media import parse_foreign_json
from ktlog.wire.webfinger import is_activity_type

MAX_COLLECTION_BYTES = 1 << 18
MAX_PACKAGES = 64


@dataclass(frozen=True)
class KeyPackage:
    """One package. id: its URL, or "". content: as published, in base64; None when only its URL was listed."""

    id: str
    content: str | None

    @property
    def digest(self) -> str | None:
        """SHA-256 of the content as published, in hexadecimal."""
        return None if self.content is None else hashlib.sha256(self.content.encode()).hexdigest()


def fetch_key_packages(fetcher: Fetcher, url: str) -> tuple[KeyPackage, ...]:
    """What the collection at *url* lists itself; pages of it, and objects elsewhere, are not fetched.

    Raises:
        EncodingError, Unreachable: as every fetch. Invalid: ``BadKeyPackages``: it is no such collection.
    """
    response = fetcher.get(url, accept=ACCEPT, max_bytes=MAX_COLLECTION_BYTES)
    if response.status != 200:
        raise Unreachable("BadStatus", f"{url} answers {response.status}")
    if not is_activity_type(response.headers.get("content-type", "")):
        raise Unreachable("BadContent", f"{url} is {response.content_type or 'of no type'}, no collection")
    return parse_key_packages(parse_foreign_json(response.body))


def parse_key_packages(document: Any) -> tuple[KeyPackage, ...]:
    """The packages that a collection lists. Raises Invalid: ``BadKeyPackages``."""
    if not isinstance(document, dict):
        raise Invalid("BadKeyPackages", "a collection is an object")
    items = document.get("items", document.get("orderedItems", []))
    items = items if isinstance(items, list) else [items]
    if len(items) > MAX_PACKAGES:
        raise Invalid("BadKeyPackages", f"more than {MAX_PACKAGES} key packages")
    found = [_parse(item) for item in items]
    return tuple(item for item in found if item is not None)


def _parse(item: Any) -> KeyPackage | None:
    if isinstance(item, str):
        return KeyPackage(item, None)
    if not isinstance(item, dict):
        return None
    identity, content = item.get("id"), item.get("content")
    return KeyPackage(identity if isinstance(identity, str) else "", content if isinstance(content, str) else None)
