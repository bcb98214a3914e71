"""Lookups in a log without a map: what it shows is proven to be in it, and that it shows all is not.

Such an answer rests on the actor's whole history, replayed here. A log with a map gives better ones:
see :mod:`ktlog.client.mapped`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from ktlog.client.answer import CAUSE, NOT_PROVEN, STATUS, TAKEN_NOT_PROVEN, Present, serving
from ktlog.client.carried import fetch_erasures, fetch_rows
from ktlog.client.erasures import ErasureLog
from ktlog.client.heads import Heads, Trusted
from ktlog.client.page import ActorPage, actor_page_path, parse_leaf_keys, read_all_pages
from ktlog.client.replay import (
    History,
    Replayed,
    check_carried,
    check_listed,
    check_rows,
    judge_pending,
    needed_histories,
    needed_leaves,
    replay,
)
from ktlog.client.terms import bad_status, fetch_body
from ktlog.client.trust import ActorMemory, check_history
from ktlog.client.verify import Log
from ktlog.errors import Invalid, KtlogError, NotLogged, Stale
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.state import Actor
from ktlog.wire.fetch import Response
from ktlog.words import count_entries

MAX_LEAF_KEYS_BYTES = 4 << 20
MAX_HISTORIES = 16
"""Of other actors in one lookup: a chain of moves, or operators that burned the actor down."""


class LogOnly:
    """Looks actors up in logs without maps."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads
        self._trust = heads.trust
        self._fetcher = heads.fetcher
        # What was read is read again only where it grew: erasure records never change.
        self._erasures: dict[str, tuple[ErasureRecord, ...]] = {}

    def lookup(self, log: Log, handle: str | None, actor_id: str, keep: Callable[[], None]) -> Present:
        """The answer about an actor. keep: called before anything is remembered; it may raise."""
        trusted = self._heads.trusted(log, keep)
        page = self._page(log, actor_id, trusted.head.size)
        with ThreadPoolExecutor(2, "ktlog-verify") as pool:
            erasures = self._erasures_of(log)
            _check_not_erased(page, erasures)
            replayed, histories, leaf_keys = self._replay(trusted, page, erasures, pool)
            actor = replayed.actor
            check_listed(actor, page.keys)
            pending = check_rows(page, page.unpublished, trusted.head, leaf_keys, pool.map)
        usable, shown = judge_pending(actor_id, actor.keys, pending)
        memory = _memory_of(trusted.head.size, actor, histories[actor_id])
        before = self._remember_actor(log, handle, actor_id, memory, erasures.erased_at(actor_id))
        return _answer(handle, trusted, replayed, histories, usable, shown, before)

    # The actor

    def _page(self, log: Log, actor_id: str, tree_size: int) -> ActorPage:
        """The log's answer about an actor, with a history that is not empty.

        Raises:
            NotLogged: the log says that there is none; ``Erased`` when it says that there was one.
            Stale: ``ActorRolledBack``: it says so, and has shown one before.
        """
        if tree_size:  # nothing is in an empty tree, so there is nothing to ask
            page = self._all_pages(log, actor_id, tree_size)
            if page is not None and page.published:
                return page
        erased_at = self._erasures_of(log).erased_at(actor_id) if tree_size else 0
        before = self._trust.actor(log.origin, actor_id)
        if before is not None:
            before = _since(before, erased_at)
            check_history(actor_id, before, ActorMemory(tree_size, 0, (), ()))
        if erased_at:
            raise NotLogged(
                "Erased", f"{log.origin} says that it erased {actor_id}, and shows nothing since",
                hint="The log says so; without its map and a policy with verifiers it cannot be proven.",
            )
        raise NotLogged(
            "NotLogged", f"{log.origin} shows no published message about {actor_id}",
            hint="The log says so; without its map and a policy with verifiers it cannot be proven.",
        )

    def _all_pages(self, log: Log, actor_id: str, tree_size: int) -> ActorPage | None:
        """What the log shows about an actor; None when it says that there is nothing.

        Raises:
            Stale: ``ErasedMeanwhile``: there was something a moment ago.
        """
        def read(after: int | None, max_bytes: int) -> bytes:
            response = self._fetcher.get(log.url + actor_page_path(actor_id, tree_size, after), max_bytes=max_bytes)
            if response.status == 200:
                return response.body
            if not _is_not_found(response):
                raise bad_status(response)
            if after is None:
                raise NotLogged("NotLogged", f"{log.origin} has no answer about {actor_id}")
            raise Stale(
                "ErasedMeanwhile", f"the log showed a part of what it has about {actor_id}, then says it has nothing",
                hint="It may have erased it just now. Trying again is safe.",
            )

        try:
            return read_all_pages(read, actor_id, tree_size)
        except NotLogged:
            return None

    def _erasures_of(self, log: Log) -> ErasureLog:
        erasures = fetch_erasures(self._fetcher, log, self._erasures.get(log.origin, ()))
        self._erasures[log.origin] = erasures.records
        return erasures

    def _replay(
        self, trusted: Trusted, page: ActorPage, erasures: ErasureLog, pool: ThreadPoolExecutor
    ) -> tuple[Replayed, dict[str, History], Mapping[bytes, bytes]]:
        """Check the actor's messages, and those of the actors they depend on, and replay them."""
        log, head = trusted.log, trusted.head
        leaf_keys = parse_leaf_keys(fetch_body(self._fetcher, log.url, "/leaf-keys", MAX_LEAF_KEYS_BYTES))
        checked = {page.actor_id: check_rows(page, page.published, head, leaf_keys, pool.map)}
        histories = {page.actor_id: History(checked[page.actor_id], head.size - 1)}
        missing: set[str] = set()
        while needs := {
            name: until for name, until in needed_histories(histories).items() if name not in missing
        }:
            for name, until in needs.items():
                if name not in checked:
                    if len(checked) > MAX_HISTORIES:
                        raise Invalid(
                            "BadTransition",
                            f"{page.actor_id} depends on more than {MAX_HISTORIES} other actors: too many to check",
                        )
                    try:
                        other = self._page(log, name, head.size)
                    except NotLogged:
                        missing.add(name)
                        continue
                    checked[name] = check_rows(other, other.published, head, leaf_keys, pool.map)
                rows = tuple(item for item in checked[name] if item.row.leaf_index <= until)
                histories[name] = History(rows, until)
        leaves = needed_leaves(histories, erasures)
        rows = fetch_rows(self._fetcher, log, head, self._heads.reader(log, head), leaves) if leaves else []
        carried = check_carried(log.origin, rows, leaf_keys, pool.map)
        return replay(log.origin, page.actor_id, histories, erasures, carried), histories, leaf_keys

    # Memory

    def _remember_actor(
        self, log: Log, handle: str | None, actor_id: str, memory: ActorMemory, erased_at: int
    ) -> ActorMemory | None:
        """Remember actor and handle, in one hold of the lock; return what was remembered of the actor.

        What was remembered from before entry *erased_at* is not expected any more.
        """
        with self._trust.locked():
            self._trust.check_not_convicted(log.origin)  # by a lookup that overlapped with this one
            before = self._trust.actor(log.origin, actor_id)
            if before is not None:
                check_history(actor_id, _since(before, erased_at), memory)
            if handle is not None:
                self._trust.pin(handle, actor_id)
            if before is None or before.tree_size <= memory.tree_size:
                self._trust.save_actor(log.origin, actor_id, memory)
            return before


def _is_not_found(response: Response) -> bool:
    """Whether a log says "not found", rather than a proxy before it or another server."""
    if response.status != 404:
        return False
    try:
        body = parse_json(response.body)
    except KtlogError:
        return False
    # "not_published" has the specification's code "not_found" too, and says nothing about the actor.
    return isinstance(body, dict) and body.get("code", body.get("error")) == "not_found"


def _since(memory: ActorMemory, erased_at: int) -> ActorMemory:
    """What is remembered of the actor from entry *erased_at* on, where a history begins anew."""
    return replace(memory, history=tuple(row for row in memory.history if row[0] >= erased_at))


def _check_not_erased(page: ActorPage, erasures: ErasureLog) -> None:
    if page.rows[0].leaf_index < erasures.erased_at(page.actor_id):
        raise Stale(
            "ErasedMeanwhile", f"the log shows messages of {page.actor_id} that it says it erased",
            hint="It may have erased them just now. Trying again is safe.",
        )


def _memory_of(tree_size: int, actor: Actor, history: History) -> ActorMemory:
    return ActorMemory(
        tree_size=tree_size,
        generation=actor.generation,
        history=tuple((item.row.leaf_index, item.leaf_hash) for item in history.rows),
        key_ids=tuple(key.key_id for key in actor.keys),
    )


def _answer(
    handle: str | None, trusted: Trusted, replayed: Replayed, histories: Mapping[str, History],
    usable: tuple, pending: tuple, before: ActorMemory | None,
) -> Present:
    head, cosigned, actor = trusted.head, trusted.cosigned, replayed.actor
    messages = len({item.row.leaf_index for history in histories.values() for item in history.rows})
    if trusted.remembered is None:
        linked = "this is the first head of this log that was seen here; from now on each must extend it"
    else:
        linked = f"the tree contains the one of {count_entries(trusted.remembered.size)} that was trusted last time"
    moment = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(cosigned.as_of))
    checks = (
        serving(head.origin),
        f"the head of {count_entries(head.size)} is signed by the log",
        f"the witnesses' quorum cosigned it: {', '.join(cosigned.names)}, as of {moment}",
        linked,
        f"every message that the answer rests on ({messages}) is in the tree, and the log's leaf key signed it",
        "the plaintext of every attribute is what its message committed to (Argon2id)",
        "every message is signed by a key that was valid then, and allowed by the rules"
        + (", but for what is taken" if replayed.taken else ""),
        "the listed keys are exactly those that the messages lead to",
    )
    known = () if before is None else before.key_ids
    return Present(
        actor_id=actor.actor_id, handle=handle, origin=head.origin, keys=actor.keys, usable_keys=usable,
        aux=actor.aux, fireproof=actor.fireproof, status=STATUS[actor.status], cause=CAUSE[actor.cause],
        version=actor.version, generation=actor.generation,
        new_keys=tuple(key for key in actor.keys if before is not None and key.key_id not in known),
        gone_keys=tuple(key_id for key_id in known if key_id not in {key.key_id for key in actor.keys}),
        reset=CAUSE[actor.cause] if before is not None and actor.generation > before.generation else None,
        tree_size=head.size, root_hash=head.root, as_of=cosigned.as_of, cosigners=cosigned.names,
        checks=checks, pending=pending, taken=replayed.taken,
        not_proven=(TAKEN_NOT_PROVEN, *NOT_PROVEN) if replayed.taken else NOT_PROVEN,
    )
