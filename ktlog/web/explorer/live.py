"""What differs between the log and what an actor's own server publishes, looked up when somebody asks for it.

A stranger's click makes us fetch from somebody's server. So it is done for actors of this log alone, one at a time in
a worker, within the budgets of ``ActorKeys``, and what was found is kept for some minutes, and never of who is erased.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from ktlog.errors import KtlogError, MessageRejected
from ktlog.operator.actor_keys import ActorKeys
from ktlog.operator.reader import Held
from ktlog.operator.request import Source
from ktlog.pkd.actors import Aux, Key
from ktlog.pkd.keys import key_hash
from ktlog.web.explorer.standing import BAD, NONE, OK
from ktlog.wire.actor import ML_DSA_44, ActorDocument
from ktlog.wire.fetch import Fetcher
from ktlog.wire.mls import KeyPackage, fetch_key_packages

KEEP_SECONDS = 300
KEEP_LIMIT = 200
SHOWN = 64


@dataclass(frozen=True)
class Live:
    """What an actor's server publishes now. failure: why its key packages are not there, if they should be."""

    document: ActorDocument
    packages: tuple[KeyPackage, ...]
    failure: str
    fetched: int


class LiveDesk:
    """Looks actors up. Safe to use from many threads."""

    def __init__(self, keys: ActorKeys, fetcher: Fetcher, erasures: Callable[[], int], now: Callable[[], int]) -> None:
        self._keys = keys
        self._fetcher = fetcher
        self._erasures = erasures
        self._now = now
        self._one = threading.Semaphore()
        self._kept: dict[str, Live] = {}
        self._as_of = 0

    def look(self, actor_id: str, source: Source) -> Live:
        """What *actor_id*'s server publishes, now or some minutes ago.

        Raises:
            MessageRejected: ``actor_unreachable``, ``actor_gone``, ``overloaded``.
        """
        erasures = self._erasures()
        kept = self._recent(actor_id, erasures)
        if kept is not None:
            return kept
        if not self._one.acquire(blocking=False):
            raise MessageRejected("overloaded", "another comparison is under way; try again in a few seconds")
        try:
            if erasures != self._as_of or len(self._kept) >= KEEP_LIMIT:
                self._kept.clear()
                self._as_of = erasures
            found = self._fetch(actor_id, source)
            if self._erasures() == erasures:
                self._kept[actor_id] = found
            return found
        finally:
            self._one.release()

    def _recent(self, actor_id: str, erasures: int) -> Live | None:
        """What is kept, whoever else is being asked. What is of before an erasure is cleared before _as_of moves on."""
        if erasures != self._as_of:
            return None
        kept = self._kept.get(actor_id)
        return kept if kept is not None and 0 <= self._now() - kept.fetched < KEEP_SECONDS else None

    def _fetch(self, actor_id: str, source: Source) -> Live:
        document = self._keys.document(actor_id, source=source)
        packages: tuple[KeyPackage, ...] = ()
        failure = ""
        if document.key_packages is not None:
            try:
                packages = fetch_key_packages(self._fetcher, document.key_packages)
            except KtlogError:  # why, is nobody's to know: it tells of our network
                failure = "its key packages could not be had, or could not be read"
        return Live(document, packages, failure, self._now())


def differences(
    live: Live, held: Held, taken: Held, named: Mapping[str, int] = MappingProxyType({})
) -> list[dict[str, object]]:
    """A row for each key that the server publishes or the log lists, those that differ first.

    held: as of the published tree. taken: with what the log has accepted and not published yet. named: the newest entry
    that named a key, by fingerprint: of a key that is neither, it is what took it away, or came before that.
    A document may list one key under two ids. An Ed25519 key only signs requests between
    servers, and no log has it: nobody encrypts to it.
    """
    logged = {key_hash(key.public_key): key for key in held.keys}
    pending = {key_hash(key.public_key): key for key in taken.keys}
    listed_prints = set()
    rows = []
    for listed in live.document.assertion_method:
        if listed.algorithm != ML_DSA_44:
            rows.append(_row(NONE, "signs requests between servers", f"{listed.algorithm} key", listed.id))
            continue
        print_ = key_hash(listed.public_key)
        listed_prints.add(print_)
        state, words, at = _compared(print_, logged, pending)
        leaf_index = named.get(print_.hex()) if at is None else at.leaf_index
        if at is None and leaf_index is not None:
            words = "withdrawn in the log, still published"
        rows.append(_row(state, words, "ML-DSA-44 key", listed.id, print_.hex(), leaf_index))
    rows += [
        _row(
            NONE, "logged, not in the actor document", "ML-DSA-44 key", key.key_id, key_hash(key.public_key).hex(),
            key.leaf_index,
        )
        for print_, key in logged.items() if print_ not in listed_prints
    ]
    texts, later = ({aux.aux_data: aux for aux in part.aux if aux.aux_data is not None} for part in (held, taken))
    for package in live.packages[:SHOWN]:
        known = next((text for text in (package.content, package.digest) if text in texts or text in later), None)
        state, words, at = _compared(known, texts, later)
        rows.append(
            _row(state, words, "key package", package.id, package.digest, None if at is None else at.leaf_index)
        )
    order = {BAD: 0, OK: 1, NONE: 2}
    return sorted(rows, key=lambda row: order[str(row["state"])])


def _compared(
    name: Hashable, logged: Mapping[Any, Key | Aux], pending: Mapping[Any, Key | Aux]
) -> tuple[str, str, Key | Aux | None]:
    """What to say of something that a server publishes: state, words, and what the log has."""
    if name in logged:
        return OK, "published and logged", logged[name]
    if name in pending:
        return NONE, "logged, not published yet", pending[name]
    return BAD, "published but not logged", None


def _row(
    state: str, words: str, kind: str, name: str, print_: str | None = None, leaf_index: int | None = None
) -> dict[str, object]:
    return {"state": state, "words": words, "kind": kind, "id": name, "fingerprint": print_, "leaf-index": leaf_index}

