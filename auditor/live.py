"""Compares what an actor's own server publishes now with what the log says: published but not logged, and the reverse.

What is read of the actor document, and nothing else of it:

* ``id`` and ``inbox``: whether it is this actor's document at all.
* ``assertionMethod``: embedded ``Multikey`` objects with an ML-DSA-44 key, the only kind that a log holds. References
  to keys elsewhere, and keys of other kinds, cannot be compared and are passed over.
* ``keyPackages``: a collection on the actor's own host, its first page. Of a KeyPackage only
  ``contentSignatureKeyId`` is read (swicg/activitypub-e2ee #35: which of the actor's keys signed it). One without it
  cannot be compared.

A document without a single key that can be compared differs from nothing: most servers have no place for such keys.
Neither does one that cannot be had, or does not parse: that a server is down says nothing about keys.

A difference becomes an alarm once two looks at least ten minutes apart have seen it, because a server and a log are
never changed in the same moment.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from auditor.alarm import DIFFERENCE, Alarm, alarm_id
from auditor.outbox import Outbox
from auditor.position import SEMANTIC
from auditor.saved import Actors
from auditor.state import AuditDirectory
from auditor.subscriptions import Subscriptions, Watched
from ktlog.errors import EncodingError, Invalid, KtlogError, Unreachable
from ktlog.pkd.erasure import map_index
from ktlog.pkd.keys import decode_public_key, encode_public_key, key_hash
from ktlog.tlog.encoding import encode_base64url
from ktlog.wire.actor import ACCEPT, MAX_ACTOR_BYTES, ML_DSA_44, parse_actor
from ktlog.wire.actor_id import actor_domain, parse_actor_id, parse_https_url
from ktlog.wire.fetch import Response
from ktlog.wire.media import parse_foreign_json
from ktlog.wire.webfinger import is_activity_type

PUBLISHED_NOT_LOGGED, LOGGED_NOT_PUBLISHED = "PublishedNotLogged", "LoggedNotPublished"
PACKAGE_NOT_LOGGED = "KeyPackageNotLogged"
MAX_PACKAGES = 64
MAX_PACKAGE_FETCHES = 8
MAX_COLLECTION_BYTES = 1 << 20
MAX_ACTORS = 10_000
"""Actors of one log that are looked at in turn."""
EVERY_SECONDS = 6 * 3600
CONFIRM_SECONDS = 600
CHOOSE_SECONDS = 300
"""How often it is looked up who is to be looked at."""
PER_ROUND = 5
PAUSE_SECONDS = 1.0


class Getter(Protocol):
    """What is needed of a :class:`ktlog.wire.fetch.Fetcher`."""

    def get(self, url: str, *, accept: str = ..., max_bytes: int | None = ...) -> Response: ...


@dataclass(frozen=True)
class Published:
    """keys: raw ML-DSA-44 keys of the actor document. package_keys: those that KeyPackages say signed them.

    uncompared: how many keys or KeyPackages were passed over.
    """

    keys: tuple[bytes, ...]
    package_keys: tuple[bytes, ...] = ()
    uncompared: int = 0


@dataclass(frozen=True)
class Difference:
    """One key that is in one place and not in the other."""

    name: str
    public_key: bytes

    @property
    def digest(self) -> str:
        return f"{self.name} {encode_base64url(key_hash(self.public_key))}"

    def sentence(self, actor_id: str) -> str:
        return {
            PUBLISHED_NOT_LOGGED: f"The server of {actor_id} publishes a key that the log does not have.",
            LOGGED_NOT_PUBLISHED: f"The log has a key of {actor_id} that their server does not publish.",
            PACKAGE_NOT_LOGGED: f"The server of {actor_id} offers a KeyPackage signed by a key that the log does not"
                                " have.",
        }[self.name]


def read_published(fetcher: Getter, actor_id: str) -> Published:
    """What the actor's server shows now.

    Raises:
        Unreachable: it cannot be had.
        Invalid, EncodingError: it is no document of this actor, or does not parse.
    """
    document = _get(fetcher, parse_actor_id(actor_id), MAX_ACTOR_BYTES)
    actor = parse_actor(document, actor_id)
    keys = {key.id: key.public_key for key in actor.assertion_method if key.algorithm == ML_DSA_44}
    listed = document.get("assertionMethod", [])
    passed = (len(listed) if isinstance(listed, list) else 1) - len(keys)
    signed: list[bytes] = []
    for package in _packages(fetcher, document.get("keyPackages"), actor_id):
        public_key = _signed_by(package, keys)
        passed += public_key is None
        signed += [] if public_key is None else [public_key]
    return Published(tuple(keys.values()), tuple(dict.fromkeys(signed)), passed)


def compare(logged: Sequence[bytes], published: Published) -> list[Difference]:
    """How the two differ. Empty where nothing can be compared."""
    in_log, shown = dict.fromkeys(logged), dict.fromkeys(published.keys)
    out = [Difference(PUBLISHED_NOT_LOGGED, key) for key in shown if key not in in_log]
    if shown:
        out += [Difference(LOGGED_NOT_PUBLISHED, key) for key in in_log if key not in shown]
    return out + [Difference(PACKAGE_NOT_LOGGED, key) for key in published.package_keys if key not in in_log]


def _get(fetcher: Getter, url: str, max_bytes: int) -> dict[str, Any]:
    response = fetcher.get(url, accept=ACCEPT, max_bytes=max_bytes)
    if response.status != 200:
        raise Unreachable("BadStatus", f"{url} answers {response.status}")
    if not is_activity_type(response.headers.get("content-type", "")):
        raise Unreachable("BadContent", f"{url} is no ActivityStreams document")
    found = parse_foreign_json(response.body)
    if not isinstance(found, dict):
        raise Invalid("BadActor", f"{url} is no object")
    return found


def _packages(fetcher: Getter, found: Any, actor_id: str) -> list[dict[str, Any]]:
    """The KeyPackages of the collection's first page; what is on another host is not asked for."""
    host = actor_domain(actor_id)
    collection = _follow(fetcher, found, host)
    if "items" not in collection and "orderedItems" not in collection:
        collection = _follow(fetcher, collection.get("first"), host)
    items = collection.get("items", collection.get("orderedItems", []))
    out, asked = [], 0
    for item in (items if isinstance(items, list) else [items])[:MAX_PACKAGES]:
        if isinstance(item, str):
            asked += 1
            if asked > MAX_PACKAGE_FETCHES:
                continue
        package = _follow(fetcher, item, host)
        kind = package.get("type")
        if "KeyPackage" in (kind if isinstance(kind, list) else [kind]):
            out.append(package)
    return out


def _follow(fetcher: Getter, found: Any, host: str) -> dict[str, Any]:
    """The object that is there, or that a URL on *host* names; else an empty one."""
    if isinstance(found, dict):
        return found
    if not isinstance(found, str):
        return {}
    try:
        if parse_https_url(found).host != host:
            return {}
        return _get(fetcher, found, MAX_COLLECTION_BYTES)
    except EncodingError:
        return {}


def _signed_by(package: Mapping[str, Any], keys: Mapping[str, bytes]) -> bytes | None:
    """The key that a KeyPackage says signed it, if it is one that can be compared."""
    named = package.get("contentSignatureKeyId")
    if not isinstance(named, str):
        return None
    if named in keys:
        return keys[named]
    try:
        return decode_public_key(named)
    except EncodingError:
        return None


@dataclass(frozen=True)
class Due:
    """Somebody to look at now: their keys in the log, and what was seen before."""

    digest: bytes
    actor_id: str
    logged: tuple[bytes, ...]
    seen: dict[str, list[int]]
    """By difference, when it was seen first and whether somebody was told."""


KeysOf = Callable[[Sequence[str]], Mapping[str, Sequence[bytes]]]
"""The keys that actors have by the log's entries; who was never enrolled, or was erased, is left out."""


def keys_in(state: AuditDirectory, origin: str) -> KeysOf:
    """Reads them from what the audits in *state* saved. Call it between two of them, in their thread."""

    def read(names: Sequence[str]) -> dict[str, Sequence[bytes]]:
        with state.ledger(origin, SEMANTIC) as ledger:
            found = Actors(ledger, 0)
            actors = {name: found.get(name) for name in names}
        return {
            name: tuple(key.public_key for key in actor.keys) for name, actor in actors.items() if actor is not None
        }

    return read


class LiveCheck:
    """Whose live documents are looked at when, for one log: those who are watched, a few each round.

    Of a whole domain they are those who had keys when somebody subscribed to it (:mod:`auditor.present`), and the
    actors that any entry was about since.

    Args:
        tell: keeps an alarm durably. pause: sleeps between two servers. chance: in [0, 1).
    """

    def __init__(
        self, outbox: Outbox, subscriptions: Subscriptions, origin: str, tell: Callable[[Alarm, str], bool], *,
        pause: Callable[[float], None] = time.sleep, chance: Callable[[], float] = lambda: 0.5,
    ) -> None:
        self._outbox = outbox
        self._subscriptions = subscriptions
        self._origin = origin
        self._put = tell
        self._pause = pause
        self._chance = chance
        self._chosen: int | None = None

    def note(self, actor_ids: Sequence[str], now: int) -> None:
        """Look at these in turn. The first looks are spread: a server must not be asked about everybody at once."""
        with self._outbox.transaction() as database:
            for actor_id in actor_ids:
                database.execute(
                    "INSERT INTO live_checks SELECT ?1, ?2, ?3, ?4, '{}' WHERE"
                    " (SELECT count(*) FROM live_checks WHERE origin = ?1) < ?5 ON CONFLICT DO NOTHING",
                    (self._origin, map_index(self._origin, actor_id), actor_id,
                     now + int(self._chance() * EVERY_SECONDS), MAX_ACTORS),
                )

    def due(self, now: int, keys_of: KeysOf) -> list[Due]:
        """Who is to be looked at, PER_ROUND at most; who is not in the log any more is forgotten."""
        if self._chosen is None or now >= self._chosen + CHOOSE_SECONDS:
            self._choose(now)
            self._chosen = now
        rows = self._outbox.read(
            "SELECT digest, actor_id, seen FROM live_checks WHERE origin = ? AND next_check <= ?"
            " ORDER BY next_check, digest LIMIT ?", (self._origin, now, PER_ROUND),
        )
        logged = keys_of([actor_id for _, actor_id, _ in rows]) if rows else {}
        self._forget([digest for digest, actor_id, _ in rows if actor_id not in logged])
        return [
            Due(digest, actor_id, tuple(logged[actor_id]), json.loads(seen)) for digest, actor_id, seen in rows
            if actor_id in logged
        ]

    def look(self, fetcher: Getter, due: Sequence[Due], now: int) -> int:
        """Look at them. Returns how many alarms were new. Raises StoreError only."""
        new = 0
        for number, one in enumerate(due):
            if number:
                self._pause(PAUSE_SECONDS * (1 + self._chance()))
            new += self._look(fetcher, one.digest, one.actor_id, one.logged, one.seen, now)
        return new

    def _choose(self, now: int) -> None:
        """Have a row for each actor who is watched by name, and none for who is not watched any more."""
        watched = Watched(self._subscriptions.all(self._origin))
        rows = dict(self._outbox.read("SELECT digest, actor_id FROM live_checks WHERE origin = ?", (self._origin,)))
        named = watched.named_actors()
        self._forget([
            digest for digest, actor_id in rows.items()
            if digest not in named and not watched.has_domain(actor_domain(actor_id))
        ])
        with self._outbox.transaction() as database:
            database.executemany("INSERT INTO live_checks VALUES (?, ?, ?, ?, '{}')", [
                (self._origin, digest, name, now) for digest, name in named.items() if digest not in rows
            ])

    def _forget(self, digests: Sequence[bytes]) -> None:
        with self._outbox.transaction() as database:
            database.executemany(
                "DELETE FROM live_checks WHERE origin = ? AND digest = ?",
                [(self._origin, digest) for digest in digests],
            )

    def _look(
        self, fetcher: Getter, digest: bytes, actor_id: str, logged: Sequence[bytes], seen: dict[str, list[int]],
        now: int,
    ) -> int:
        pause = int(EVERY_SECONDS * (0.8 + 0.4 * self._chance()))
        new = 0
        try:
            found = {one.digest: one for one in compare(logged, read_published(fetcher, actor_id))}
        except KtlogError:
            found = None  # nothing was learnt: what was seen before stays as it was
        if found is not None:
            for key, one in found.items():
                first, told = seen.setdefault(key, [now, 0])
                if not told and now - first >= CONFIRM_SECONDS:
                    new += self._tell(actor_id, one.name, one.sentence(actor_id), key, one.public_key, first, now)
                    seen[key] = [first, 1]
                elif not told:
                    pause = CONFIRM_SECONDS
            for key in [key for key in seen if key not in found]:
                first, told = seen.pop(key)
                if told:
                    what = f"A difference between the log and the server of {actor_id} is gone."
                    new += self._tell(actor_id, key.split(" ")[0], what, key, None, first, now)
        with self._outbox.transaction() as database:
            database.execute(
                "UPDATE live_checks SET next_check = ?, seen = ? WHERE origin = ? AND digest = ?",
                (now + pause, json.dumps(seen), self._origin, digest),
            )
        return new

    def _tell(
        self, actor_id: str, name: str, sentence: str, key: str, public_key: bytes | None, first: int, now: int
    ) -> int:
        state = "closed" if public_key is None else "opened"
        index = encode_base64url(map_index(self._origin, actor_id))
        alarm = Alarm(
            alarm_id(self._origin, DIFFERENCE, name, index, key, state, str(first)), now, self._origin, DIFFERENCE,
            name, sentence, (actor_id,),
            {"state": state, "first_seen": first,
             "public_key": None if public_key is None else encode_public_key(public_key)},
        )
        return int(self._put(alarm, actor_id))
