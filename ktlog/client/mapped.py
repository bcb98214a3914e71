"""Lookups in a log with a map: three proven answers, held against everything that was proven before.

The order is the specification's: head, newest leaf, the leaf against the remembered one, the actor's proof, the actor
against the remembered one, and only then what costs more than hashing. Whatever contradicts what is remembered
convicts the log by its own signatures, so the last answer is kept in the very form that convicts.

Spec: directory map v1 §9.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from urllib.parse import quote

from ktlog.client.answer import Answer, serving
from ktlog.client.heads import Heads, Trusted
from ktlog.client.logonly import MAX_LEAF_KEYS_BYTES
from ktlog.client.page import parse_leaf_keys
from ktlog.client.proof import Found, complete, find_in_map, read_bundle
from ktlog.client.terms import bad_status, fetch_body
from ktlog.client.trust import MapMemory
from ktlog.client.verify import Log
from ktlog.errors import EncodingError, Forked, Invalid, NotLogged, Stale, StoreError, Unreachable
from ktlog.keymap.bundle import MAX_BUNDLE_BYTES, Bundle
from ktlog.keymap.check import Mapped, newest_leaf
from ktlog.keymap.evidence import (
    ACTOR_ROLLED_BACK,
    HISTORY_REWRITTEN,
    MAP_CONTRADICTION,
    MapEvidence,
    actor_statement,
    actors_contradict,
    counters,
    format_map_evidence,
    histories_contradict,
    history_grew,
    keep_lines,
    leaf_statement,
    leaves_contradict,
    open_actor_statement,
    open_leaf_statement,
    verify_map_evidence,
)
from ktlog.keymap.output import MAP_SUFFIX, MapConfig, parse_config
from ktlog.keymap.pages import join, next_start
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import Vkey
from ktlog.tlog.tiles import TILE_WIDTH, entry_bundle_path, parse_bundle
from ktlog.tlog.tree import hash_leaf
from ktlog.wire.fetch import Response
from ktlog.words import count_entries

MAX_ENTRY_BUNDLE_BYTES = TILE_WIDTH * 1024
MAX_PAGES = 2048
ATTEMPTS = 3
_HINT = (
    "The log signed two statements that cannot both be true. Keep the evidence and give it to others: it needs no"
    " more than the log's public key to convict. Do not use keys from this log."
)


# What is remembered is read again by every lookup, and mostly says what it said a moment ago.
_open_leaf = lru_cache(maxsize=16)(open_leaf_statement)
_open_actor = lru_cache(maxsize=64)(open_actor_statement)


@dataclass(frozen=True)
class _Before:
    """An actor as it is remembered. mapped: None when it is not; who never enrolled is not remembered."""

    mapped: Mapped | None

    @property
    def commitment(self) -> bytes | None:
        return None if self.mapped is None else self.mapped.commitment


@dataclass(frozen=True)
class Proven:
    """An answer, and what makes it the one that is remembered.

    remember: asks nobody. False when the actor is not any more as the answer was compared with, because of a lookup
        that overlapped: then the answer is no good. So whoever is shown a reset, or that there is none, is shown it
        against what was really remembered.
    """

    answer: Answer
    remember: Callable[[], bool]


def busy(origin: str, actor_id: str) -> Unreachable:
    """The error for a log that changes, or is remembered otherwise, faster than it can be compared."""
    return Unreachable(
        "BusyMap", f"{origin} shows no messages with which to compare what is remembered of {actor_id}",
        hint="Trying again is safe.",
    )


class MapLookups:
    """Looks actors up in the maps of logs. A *log* here is the output log: its origin ends in ``/map``."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._trust = heads.trust
        self._fetcher = heads.fetcher

    def prove(
        self, log: Log, handle: str | None, actor_id: str, keep: Callable[[], None], *, full: bool = False
    ) -> Proven:
        """The proven answer about an actor, of whom nothing is remembered yet.

        Args:
            keep: called before a head is remembered; it may raise.

        Raises:
            Everything that :meth:`ktlog.client.Directory.lookup` lists, but for NotLogged.
        """
        history = "full" if full else ""
        for _ in range(ATTEMPTS):
            trusted, bundle = self._fetch(log, actor_id, history, keep)
            config = self._config(log, trusted)
            newest_leaf(bundle, config, trusted.head.size, trusted.head.root)
            said = _leaf_said(bundle, trusted.head.note, log.vkeys)
            self._check_leaf(log, trusted.head.size, said)
            found = find_in_map(
                log, trusted.head, trusted.cosigned, bundle, actor_id, config, int(self._heads.now()),
                self._heads.max_age,
            )
            compared = self._compare(found)
            if compared is not None:
                answer = self._complete(found, trusted, handle, compared.mapped, full)
                return Proven(answer, partial(self._remember, found, config, handle, compared, said))
            # Only the leaves of the new history show that it begins with the remembered one.
            history = history or "leaves"
        raise busy(log.origin, actor_id)

    # From the log

    def _fetch(
        self, log: Log, actor_id: str, history: str, keep: Callable[[], None]
    ) -> tuple[Trusted, Bundle]:
        """A trusted head and the bundle that goes with it.

        Raises:
            Stale: ``BundleBehindCheckpoint`` when the two do not come to fit.
        """
        sizes: list[str] = []
        for _ in range(ATTEMPTS):
            trusted = self._heads.trusted(log, keep)
            pages = self._pages(log, actor_id, history, trusted.head.size)
            if pages[0].origin != log.origin or all(page.output_size == trusted.head.size for page in pages):
                try:
                    return trusted, join(pages)
                except EncodingError as error:
                    raise Invalid("MalformedBundle", error.message) from None
            sizes.append(f"{pages[-1].output_size} with {trusted.head.size}")
        raise Stale(
            "BundleBehindCheckpoint", f"the map of {log.origin} and its checkpoint do not fit: {', '.join(sizes)}",
            hint="The log may be busy, or shows an old answer. Trying again is safe.",
        )

    def _pages(self, log: Log, actor_id: str, history: str, size: int) -> list[Bundle]:
        """All pages of a bundle, or up to the first one that is not of *size*: the map moved on.

        Raises:
            Invalid: ``HistoryTooLong``; ``MalformedBundle``: one is not the page that was asked for.
        """
        target = f"{log.url}/bundle/{quote(actor_id, safe='')}?aux=true" + (f"&{history}=true" if history else "")
        pages: list[Bundle] = []
        start: int | None = 0
        left = MAX_BUNDLE_BYTES
        while start is not None:
            if left <= 0 or len(pages) == MAX_PAGES:
                raise Invalid(
                    "HistoryTooLong", f"the log has more about {actor_id} than {MAX_PAGES} pages or {MAX_BUNDLE_BYTES}"
                    " bytes", hint="It may be honest. A lookup that is not full needs less of it.",
                )
            response = self._fetcher.get(target + (f"&from={start}" if start else ""), max_bytes=left)
            if response.status != 200:
                raise _no_bundle(response)
            page = read_bundle(response.body)
            pages.append(page)
            left -= len(response.body)
            if page.output_size != size:
                break
            if start != (0 if page.page is None else page.page.start):
                raise Invalid("MalformedBundle", f"the page from item {start} on was asked for, and is another")
            start = next_start(page)
        return pages

    def _config(self, log: Log, trusted: Trusted) -> MapConfig:
        """The map's configuration: remembered, or leaf 0 of the output log, shown to be in its tree."""
        memory = self._trust.map(log.origin)
        if memory is not None:
            return _parse_config(memory.config, log)
        head = trusted.head
        if head.size < 2:
            raise Invalid("NotNewestLeaf", "the output log has no map yet")
        entries = self._first_entries(log, min(TILE_WIDTH, head.size))
        if self._heads.reader(log, head)([(0, 0)]) != [hash_leaf(entries[0])]:
            raise Invalid("BadOutputProof", "the configuration that the log serves is not in its tree")
        config = _parse_config(entries[0], log)
        with self._trust.locked():
            stored = self._trust.map(log.origin)
            if stored is None:
                self._trust.save_map(log.origin, MapMemory(entries[0], None))
        return config

    def _first_entries(self, log: Log, width: int) -> list[bytes]:
        try:
            data = fetch_body(self._fetcher, log.url, f"/{entry_bundle_path(0, width)}", MAX_ENTRY_BUNDLE_BYTES)
        except (Unreachable, NotLogged):
            # A log may drop a partial bundle once it has the full one. Spec: C2SP tlog-tiles.
            if width == TILE_WIDTH:
                raise
            width = TILE_WIDTH
            data = fetch_body(self._fetcher, log.url, f"/{entry_bundle_path(0, width)}", MAX_ENTRY_BUNDLE_BYTES)
        try:
            return parse_bundle(data, width)
        except EncodingError as error:
            raise Invalid("BadOutputLeaf", f"the first leaves of {log.origin} do not parse: {error.message}") from error

    def _complete(
        self, found: Found, trusted: Trusted, handle: str | None, before: Mapped | None, full: bool
    ) -> Answer:
        log = found.log
        leaf_keys: Mapping[bytes, bytes] | None = None
        if found.bundle.pending or (full and found.mapped.value is not None):
            url = log.url.removesuffix(MAP_SUFFIX)
            leaf_keys = parse_leaf_keys(fetch_body(self._fetcher, url, "/leaf-keys", MAX_LEAF_KEYS_BYTES))
        if full and found.mapped.value is not None and found.history is None:
            raise Invalid("HistoryMismatch", "the full check was asked for, and the bundle has no messages")
        if trusted.remembered is None:
            linked = "this is the first head of this map's log that was seen here; from now on each must extend it"
        else:
            linked = f"its log contains the one of {count_entries(trusted.remembered.size)} that was trusted last time"
        with ThreadPoolExecutor(2, "ktlog-verify") as pool:
            answer = complete(
                found, self._heads.policy, handle, before, leaf_keys, full=full, linked=linked, map_rows=pool.map
            )
        return replace(answer, checks=(serving(answer.origin), *answer.checks))

    # Against what is remembered

    def _check_leaf(self, log: Log, size: int, statement: bytes) -> bool:
        """Hold a leaf against the remembered one; return whether it is to be remembered in its place.

        Raises:
            Forked: ``MapContradiction``, with evidence.
        """
        memory = self._trust.map(log.origin)
        if memory is None or memory.newest is None:
            return True
        try:
            _, checkpoint, remembered, _ = _open_leaf(memory.newest)
        except (EncodingError, Invalid) as error:
            raise _damaged(f"the remembered leaf of {log.origin}", error) from None
        leaf = _open_leaf(statement)[2]
        items, leaves = (memory.newest, statement), (remembered, leaf)
        if checkpoint.size > size:
            items, leaves = items[::-1], leaves[::-1]
        if (reason := leaves_contradict(*leaves)) is not None:
            raise Forked(
                "MapContradiction", f"{log.origin} signed two maps that contradict each other: {reason}", hint=_HINT,
                evidence=_evidence(log, MAP_CONTRADICTION, None, items),
            )
        return checkpoint.size < size

    def _compare(self, found: Found) -> _Before | None:
        """Hold an actor against the remembered one, and return that; None when it takes a newer or a full bundle.

        Raises:
            Forked: ``ActorRolledBack``, ``HistoryRewritten``, with evidence.
        """
        log, actor_id = found.log, found.mapped.actor_id
        stored = self._trust.mapped_actor(log.origin, actor_id)
        if stored is None:
            return _Before(None)
        try:
            _, checkpoint, remembered, leaves = _open_actor(stored, actor_id)
        except (EncodingError, Invalid, Stale) as error:
            raise _damaged(f"what is remembered of {actor_id}", error) from None
        pair, history = (remembered, found.mapped), found.history
        newer = checkpoint.size <= found.head.size
        if not newer:
            pair, history = pair[::-1], leaves
        if (reason := actors_contradict(*pair)) is not None:
            raise Forked(
                "ActorRolledBack", f"{log.origin} took back what it proved about {actor_id}: {reason}", hint=_HINT,
                evidence=_against(found, ACTOR_ROLLED_BACK, stored, newer),
            )
        if not newer or (history is None and history_grew(*pair)):
            return None
        if (reason := histories_contradict(*pair, history)) is not None:
            raise Forked(
                "HistoryRewritten", f"{log.origin} changed the past of {actor_id}: {reason}", hint=_HINT,
                evidence=_against(found, HISTORY_REWRITTEN, stored, newer),
            )
        return _Before(remembered)

    def _remember(
        self, found: Found, config: MapConfig, handle: str | None, before: _Before, statement: bytes
    ) -> bool:
        """As :attr:`Proven.remember`: leaf, actor and handle, in one hold of the lock."""
        try:
            return self._remember_found(found, config, handle, before, statement)
        except Forked as error:
            self._heads.remember_conviction(found.log, error)
            raise

    def _remember_found(
        self, found: Found, config: MapConfig, handle: str | None, before: _Before, statement: bytes
    ) -> bool:
        log, mapped = found.log, found.mapped
        if self._is_remembered(found, config, handle, before, statement):
            return True
        with self._trust.locked():
            # By a lookup that overlapped with this one.
            self._trust.check_not_convicted(log.origin)
            memory = self._trust.map(log.origin)
            if memory is None or _parse_config(memory.config, log) != config:
                raise StoreError("BadState", f"the remembered configuration of {log.origin} changed during a lookup")
            is_newest = self._check_leaf(log, found.head.size, statement)
            compared = self._compare(found)
            if compared is None or compared.commitment != before.commitment:
                return False
            if handle is not None:
                self._trust.pin(handle, mapped.actor_id)
            if is_newest:
                self._trust.save_map(log.origin, replace(memory, newest=statement))
            # Of strangers nothing is kept: to have been absent contradicts nothing. What says the same is not
            # written again: the older statement binds the log as well.
            if mapped.commitment is not None and mapped.commitment != before.commitment:
                self._trust.save_mapped_actor(
                    log.origin, mapped.actor_id, _statement(found, with_history=False), _shown(mapped)
                )
            return True

    def _is_remembered(
        self, found: Found, config: MapConfig, handle: str | None, before: _Before, statement: bytes
    ) -> bool:
        """Whether every check against what is remembered passes, and nothing is left to write: nobody need be kept out.

        Raises:
            Forked: as :meth:`_check_leaf` and :meth:`_compare`; ``Convicted``.
        """
        log, mapped = found.log, found.mapped
        self._trust.check_not_convicted(log.origin)
        memory = self._trust.map(log.origin)
        if memory is None or _parse_config(memory.config, log) != config or before.commitment != mapped.commitment:
            return False
        if handle is not None and self._trust.pinned(handle) != mapped.actor_id:
            return False
        compared = self._compare(found)
        return (
            not self._check_leaf(log, found.head.size, statement)
            and compared is not None and compared.commitment == before.commitment
        )


def _statement(found: Found, *, with_history: bool = True) -> bytes:
    bundle = found.bundle if with_history else replace(found.bundle, history=None, old_histories=())
    return actor_statement(bundle, keep_lines(found.head.note, found.log.vkeys))


def _against(found: Found, kind: str, stored: bytes, newer: bool) -> bytes | None:
    """Evidence from the remembered statement and the one found, the older one first."""
    items = (stored, _statement(found)) if newer else (_statement(found), stored)
    return _evidence(found.log, kind, found.mapped.actor_id, items)


def _shown(mapped: Mapped) -> dict[str, str | None]:
    """What is remembered of an actor, for a person who looks into the file."""
    version, generation = counters(mapped)
    shown: dict[str, str | None] = {
        "version": str(version), "generation": str(generation),
        "commitment": None if mapped.commitment is None else encode_base64(mapped.commitment),
    }
    if mapped.value is not None:
        shown |= {
            "erasures": str(mapped.value.erasures), "history-size": str(mapped.value.history_size),
            "history-root": encode_base64(mapped.value.history_root),
        }
    return shown


def _leaf_said(bundle: Bundle, note: bytes, vkeys: tuple[Vkey, ...]) -> bytes:
    return _format_leaf(bundle.output_size, bundle.output_path, bundle.output_leaf, note, vkeys)


@lru_cache(maxsize=16)
def _format_leaf(
    size: int, path: tuple[bytes, ...], leaf: bytes, note: bytes, vkeys: tuple[Vkey, ...]
) -> bytes:
    return leaf_statement(size, path, leaf, keep_lines(note, vkeys))


def _parse_config(data: bytes, log: Log) -> MapConfig:
    try:
        config = parse_config(data)
    except EncodingError as error:
        raise Invalid("WrongConfig", f"the configuration of {log.origin} is not known here: {error.message}") from None
    if config.origin != log.origin.removesuffix(MAP_SUFFIX):
        raise Invalid("WrongConfig", f"the configuration in {log.origin} is of {config.origin}")
    return config


def _evidence(log: Log, kind: str, actor_id: str | None, items: tuple[bytes, bytes]) -> bytes | None:
    """Evidence under whichever of the log's keys signed both statements; None when each has another."""
    for vkey in (*log.vkeys, *log.retired):
        evidence = MapEvidence(kind, vkey, actor_id, items)
        try:
            verify_map_evidence(evidence)
        except (EncodingError, Invalid):
            continue
        return format_map_evidence(evidence)
    return None


def _damaged(what: str, error: Exception) -> StoreError:
    return StoreError(
        "BadState", f"{what} is damaged: {error}",
        hint="Restore the state directory from a backup. Without it, a roll-back since then cannot be noticed.",
    )


def _no_bundle(response: Response) -> Unreachable:
    if response.status == 404:
        return Unreachable("NotPublished", f"{response.url}: this log has not published a map yet")
    return bad_status(response)
