"""Who watches whom: rows in ``watch.db``, and which of them an event is for.

A subscription watches an actor, a key, or every actor of a domain, in one log, and names a sink. An actor is kept by
the index that stands for it in the log's map, beside its id as it was given; an erasure takes the id, and the index
still tells when somebody enrols under that name again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from auditor.events import ERASED_PREFIX, Event, index_of
from auditor.outbox import Outbox
from ktlog.errors import EncodingError, UsageError
from ktlog.pkd.erasure import map_index
from ktlog.pkd.identity import actor_domain
from ktlog.pkd.keys import decode_public_key, key_hash
from ktlog.tlog.encoding import decode_base64url
from ktlog.wire.actor_id import canonical_actor_id, parse_host

ACTOR, KEY, DOMAIN = "actor", "key", "domain"
MAX_SUBSCRIPTIONS = 10_000
MAX_LABEL = 200
_KEY_ID_CHARACTERS = 43


@dataclass(frozen=True)
class Subscription:
    """One row. ``subject``: as it was given; None once an erasure took it. ``label``: its owner's own words.

    ``first``: entries before this one raise no alarm.
    """

    id: int
    origin: str
    kind: str
    subject: str | None
    digest: bytes
    sink: str
    label: str
    first: int
    created: int

    def as_dict(self) -> dict[str, Any]:
        return {
            "id": self.id, "log": self.origin, "kind": self.kind, "subject": self.subject, "label": self.label,
            "sink": self.sink, "first": self.first, "created": self.created, "erased": self.subject is None,
        }


def parse_subject(kind: str, text: str, origin: str) -> tuple[str, bytes]:
    """A subject in its one form, and the digest by which it is found.

    Raises:
        UsageError: ``BadSubject``.
    """
    try:
        if kind == ACTOR:
            actor_id = canonical_actor_id(text)
            return actor_id, map_index(origin, actor_id)
        if kind == DOMAIN:
            host = parse_host(text.removeprefix("@").rstrip(".").lower())
            return host, _domain_digest(host)
        if text.startswith("mldsa44:"):
            return text, key_hash(decode_public_key(text))
        if len(text) == _KEY_ID_CHARACTERS:
            return text, decode_base64url(text, 32)
    except EncodingError as error:
        raise UsageError("BadSubject", f"{text[:80]!a} is no {kind}: {error.message}") from None
    raise UsageError("BadSubject", f"{text[:80]!a} is neither a public key (mldsa44:...) nor a key id")


class Subscriptions:
    """The rows in ``watch.db``. Raises StoreError everywhere."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox

    def add(
        self, origin: str, kind: str, text: str, sink: str, label: str, now: int, first: int = 0
    ) -> Subscription:
        """Watch from now on; the same again changes *label* and *first* alone.

        Raises:
            UsageError: ``BadSubject``, ``TooManySubscriptions``.
        """
        subject, digest = parse_subject(kind, text, origin)
        if len(label) > MAX_LABEL or not label.isprintable():
            raise UsageError("BadLabel", f"a label has at most {MAX_LABEL} printable characters")
        with self._outbox.transaction() as database:
            if database.execute("SELECT count(*) FROM subscriptions").fetchone()[0] >= MAX_SUBSCRIPTIONS:
                raise UsageError("TooManySubscriptions", f"there are {MAX_SUBSCRIPTIONS} subscriptions already")
            database.execute(
                "INSERT INTO subscriptions (origin, kind, subject, digest, sink, label, first, created)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (origin, kind, digest, sink)"
                " DO UPDATE SET subject = excluded.subject, label = excluded.label, first = excluded.first",
                (origin, kind, subject, digest, sink, label, first, now),
            )
        return next(
            row for row in self.all() if (row.origin, row.kind, row.digest, row.sink) == (origin, kind, digest, sink)
        )

    def remove(self, number: int) -> bool:
        """Stop. What was raised already is still delivered."""
        with self._outbox.transaction() as database:
            return database.execute("DELETE FROM subscriptions WHERE id = ?", (number,)).rowcount > 0

    def all(self, origin: str | None = None) -> list[Subscription]:
        return [Subscription(*row) for row in self._outbox.read(
            "SELECT id, origin, kind, subject, digest, sink, label, first, created FROM subscriptions"
            " WHERE ?1 IS NULL OR origin = ?1 ORDER BY id", (origin,),
        )]


class Watched:
    """The subscriptions to one log, so that an event is matched without looking at each of them."""

    def __init__(self, subscriptions: Sequence[Subscription]) -> None:
        self._by: dict[tuple[str, bytes], list[Subscription]] = {}
        for row in subscriptions:
            self._by.setdefault((row.kind, row.digest), []).append(row)

    def __bool__(self) -> bool:
        return bool(self._by)

    def sinks_for(self, event: Event, was: Mapping[bytes, str] | None = None) -> dict[str, list[str]]:
        """Whom to tell, and why: sink -> reasons. Empty for an event that nobody wants.

        was: of actors who are being erased, the ids that they had, by index.
        """
        rows = self._rows(self._digests(event, was or {})) if event.alarming else []
        return _by_sink([row for row in rows if event.leaf_index >= row.first])

    def sinks_of(self, origin: str, actor_id: str) -> dict[str, list[str]]:
        """Whom to tell of something about an actor that is no entry."""
        return _by_sink(self._rows(self._digests(Event(origin, 0, "", (actor_id,)), {})))

    def _rows(self, digests: Sequence[tuple[str, bytes]]) -> list[Subscription]:
        found = {row.id: row for digest in digests for row in self._by.get(digest, ())}
        return [found[number] for number in sorted(found)]

    def _digests(self, event: Event, was: Mapping[bytes, str]) -> list[tuple[str, bytes]]:
        out = []
        for name in event.subjects:
            index = index_of(event.origin, name)
            out.append((ACTOR, index))
            name = was.get(index, "") if name.startswith(ERASED_PREFIX) else name
            if name:
                out.append((DOMAIN, _domain_digest(actor_domain(name))))
        out += [(KEY, key_hash(key)) for key in (*event.added, *event.removed)]
        out += [(KEY, decode_base64url(key_id, 32)) for key_id in event.key_ids]
        return out

    def domain_members(self, event: Event) -> list[str]:
        """The subjects that belong to a domain that somebody watches as a whole."""
        names = [name for name in event.subjects if not name.startswith(ERASED_PREFIX)]
        return [name for name in names if self.has_domain(actor_domain(name))]

    def has_domain(self, host: str) -> bool:
        return (DOMAIN, _domain_digest(host)) in self._by

    def has_actor(self, index: bytes) -> bool:
        return (ACTOR, index) in self._by

    def named_actors(self) -> dict[bytes, str]:
        """The actors that are watched one by one and not erased: id by map index."""
        return {
            digest: row.subject for (kind, digest), rows in self._by.items() if kind == ACTOR
            for row in rows if row.subject is not None
        }


def _by_sink(rows: Sequence[Subscription]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for row in rows:
        out.setdefault(row.sink, []).append(row.label or f"subscription {row.id}")
    return out


def _domain_digest(host: str) -> bytes:
    return hashlib.sha256(host.encode("ascii")).digest()
