"""Alarms as an Atom feed: one file, written anew as a whole each time, for a web server or a reader on this machine.

The same alarms give the same bytes. Ids come from those of the alarms, so a reader shows each once. It holds the newest
alarms only; who wants each without fail takes another sink. An erasure takes the actor's name out of the file.

Spec: RFC 4287.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from auditor.alarm import plain_lines, printable_line
from auditor.outbox import Delivered
from auditor.sinks.settings import Settings
from ktlog.durable import write_atomic
from ktlog.wire.fetch import Fetcher

MAX_ENTRIES = 500


class Atom:
    """Args: entries: the length of the feed. title: of the feed."""

    rewrites = True

    def __init__(self, name: str, findings: bool, path: Path, entries: int, title: str) -> None:
        self.name = name
        self.findings = findings
        self._path = path
        self._entries = entries
        self._title = title

    def send(
        self, document: Mapping[str, Any], reasons: Sequence[str], recent: Callable[[int], list[Delivered]]
    ) -> None:
        """Raises StoreError when the file cannot be written."""
        shown = recent(self._entries)
        if all(item.document["id"] != document["id"] for item in shown):
            shown = [Delivered(document, tuple(reasons)), *shown]
        write_atomic(self._path, format_feed(self.name, self._title, shown))


def format_feed(name: str, title: str, items: Sequence[Delivered]) -> bytes:
    """The feed of *items*, newest first."""
    updated = max((item.document["time"] for item in items), default=0)
    lines = [
        '<?xml version="1.0" encoding="utf-8"?>', '<feed xmlns="http://www.w3.org/2005/Atom">',
        f"<title>{_text(title)}</title>", f"<id>{_id('feed', name, title)}</id>",
        f"<updated>{_moment(updated)}</updated>", "<author><name>ktlog-auditor</name></author>",
    ]
    for item in items:
        document = item.document
        body = "\n".join(plain_lines(document, item.reasons))
        lines += [
            "<entry>", f"<id>{_id('alarm', document['id'])}</id>",
            f"<title>{_text(document['name'])} at {_text(document['origin'])}</title>",
            f"<updated>{_moment(document['time'])}</updated>",
            f'<content type="text">{escape(body)}</content>', "</entry>",
        ]
    return ("\n".join([*lines, "</feed>"]) + "\n").encode("utf-8", "replace")


def _text(value: str) -> str:
    """Printable characters are all allowed in XML; the three that mean something are escaped."""
    return escape(printable_line(value))


def _id(*parts: str) -> str:
    return uuid.uuid5(uuid.NAMESPACE_URL, "\0".join(("ktlog", *parts))).urn


def _moment(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def make(settings: Settings, fetcher: Callable[[], Fetcher]) -> Atom:
    return Atom(
        settings.name, settings.findings, settings.path("file"), settings.number("entries", 100, 1, MAX_ENTRIES),
        settings.text("title", "Alarms of ktlog-auditor"),
    )
