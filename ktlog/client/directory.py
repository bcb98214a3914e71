"""Looks up an actor's keys and believes none of them before every check has passed."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from urllib.parse import quote

from ktlog.client import verify
from ktlog.client.answer import CAUSE, NOT_PROVEN, STATUS, TAKEN_NOT_PROVEN, Present
from ktlog.client.carried import fetch_erasures, fetch_rows
from ktlog.client.erasures import ErasureLog
from ktlog.client.page import ActorPage, parse_actor_page, parse_leaf_keys
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
from ktlog.client.terms import Getter, bad_status, fetch_body
from ktlog.client.trust import ActorMemory, TrustStore, check_history, parse_domains
from ktlog.client.verify import Cosigned, Head, Log, count_entries
from ktlog.durable import read_file
from ktlog.errors import (
    EncodingError,
    Forked,
    Invalid,
    KtlogError,
    NotLogged,
    Stale,
    StoreError,
    Unreachable,
    UsageError,
)
from ktlog.pkd.canonical import parse_json
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.state import Actor
from ktlog.tlog.policy import Policy, parse_policy
from ktlog.tlog.tiles import TileHashReader
from ktlog.wire.actor_id import actor_domain, canonical_actor_id, parse_handle
from ktlog.wire.fetch import Fetcher, Response
from ktlog.wire.webfinger import resolve_handle

DEFAULT_STATE = "~/.local/share/ktlog"
MAX_CHECKPOINT_BYTES = 1 << 20
MAX_TILE_BYTES = 256 * 32
MAX_LEAF_KEYS_BYTES = 4 << 20
MAX_ANSWER_BYTES = 32 << 20
MAX_HISTORIES = 16
"""Of other actors in one lookup: a chain of moves, or operators that burned the actor down."""
_SAVE_ATTEMPTS = 8


@dataclass(frozen=True)
class _Trusted:
    """A head that passed every check, and the remembered one it was compared with."""

    log: Log
    head: Head
    cosigned: Cosigned
    remembered: Head | None


class Directory:
    """Looks handles and actor ids up in the logs that a policy trusts. Usable from many threads.

    >>> directory = Directory.from_policy_file("trust.policy")             # doctest: +SKIP
    >>> answer = directory.lookup("@alice@example.social")                 # doctest: +SKIP
    >>> [key.key_id for key in answer.usable_keys]                         # doctest: +SKIP

    Args:
        policy: the only root of trust: the logs' keys, the witnesses, and the quorum.
        state: a directory for what must be remembered. Two programs may share one.
        domains: which log serves which domain, by origin, before what domains.toml in the state
            directory says: ``{"example.social": "keys.example.social"}``. A server has no say in it.
        fetcher: makes the requests; by default one that obeys KTLOG_DIAL.
        now: the clock, in Unix seconds.
        max_age_seconds: how long ago the quorum may at most have seen a head.

    Raises:
        UsageError: ``NoPolicy``, *policy* is no Policy; ``BadDomains``.
        PolicyUnmet: ``UnsafePolicy``: no quorum, or one that two disjoint sets of witnesses can make.
        StoreError: the state directory cannot be used.
    """

    def __init__(
        self, policy: Policy, *, state: str | PathLike[str] = DEFAULT_STATE,
        domains: Mapping[str, str] | None = None, fetcher: Getter | None = None,
        now: Callable[[], float] = time.time, max_age_seconds: int = verify.DEFAULT_MAX_AGE_SECONDS,
    ) -> None:
        if not isinstance(policy, Policy):
            raise UsageError(
                "NoPolicy", f"a Directory needs a Policy, not {type(policy).__name__}",
                hint="For a file, use Directory.from_policy_file(path); for its content, parse_policy(data).",
            )
        policy.check_safe()
        self._policy = policy
        self._domains = parse_domains(domains or {}, "domains")
        self._trust = TrustStore(state)
        self._fetcher = Fetcher.from_environment() if fetcher is None else fetcher
        self._now = now
        self._max_age = max_age_seconds
        # What was read is read again only where it grew: erasure records never change.
        self._erasures: dict[str, tuple[ErasureRecord, ...]] = {}

    @classmethod
    def from_policy_file(
        cls, path: str | PathLike[str], *, state: str | PathLike[str] = DEFAULT_STATE,
        domains: Mapping[str, str] | None = None, fetcher: Getter | None = None,
        now: Callable[[], float] = time.time, max_age_seconds: int = verify.DEFAULT_MAX_AGE_SECONDS,
    ) -> Directory:
        """A Directory with the policy in a tlog-policy file.

        Raises:
            UsageError: ``NoPolicy``, the file is not there or cannot be read; ``BadPolicy``, it does not parse.
        """
        try:
            data = read_file(Path(path).expanduser())
        except StoreError as error:
            raise UsageError(
                "NoPolicy", f"the policy cannot be read: {error.message}",
                hint="Give the file that names the logs and witnesses that you trust.",
            ) from error
        if data is None:
            raise UsageError(
                "NoPolicy", f"{path} does not exist",
                hint="The policy names the logs and witnesses that you trust; nothing can be verified without it.",
            )
        try:
            policy = parse_policy(data)
        except EncodingError as error:
            raise UsageError("BadPolicy", f"{path}: {error.message}") from error
        return cls(
            policy, state=state, domains=domains, fetcher=fetcher, now=now, max_age_seconds=max_age_seconds
        )

    def lookup(self, name: str) -> Present:
        """The keys of a handle (``@alice@example.social``) or an actor id (``https://…``).

        Every key in the answer is proven to be in the log, and its whole chain of messages back to
        the first key of its generation was checked. The answer is not proven to be complete: a
        dishonest log can still leave out a newer message, for instance a revocation. ``checks`` and
        ``not_proven`` of the answer say so in words.

        Raises:
            NotLogged: the log says that it knows nothing of the actor, or (``Erased``) that it erased them. This
                is not proven either.
            Invalid, PolicyUnmet, Stale: a check failed; the name says which.
            Forked: the log is caught, and ``evidence`` convicts it. It is remembered, and every later lookup
                in that log raises ``Convicted`` until a person removes the file that the hint names.
            Unreachable: nothing was learnt.
            Conflict: ``HandleChanged``, the handle now means another actor.
            UsageError, EncodingError: the name, or the configuration, is wrong.
            StoreError: the state directory cannot be used.
        """
        handle, actor_id = self._resolve(name)
        log = self._log_of(actor_id)
        try:
            return self._lookup_in(log, handle, actor_id)
        except Forked as error:
            self._remember_conviction(log, error)
            raise

    def _lookup_in(self, log: Log, handle: str | None, actor_id: str) -> Present:
        trusted = self._trusted_head(log)
        page = self._page(log, actor_id, trusted.head.size)
        with ThreadPoolExecutor(2, "ktlog-verify") as pool:
            erasures = self._erasures_of(log)
            _check_not_erased(page, erasures)
            replayed, histories, leaf_keys = self._replay(trusted, page, erasures, pool)
            actor = replayed.actor
            check_listed(actor, page.keys)
            pending = check_rows(page, page.unpublished, trusted.head, leaf_keys, pool.map)
        usable, shown = judge_pending(actor, pending)
        memory = _memory_of(trusted.head.size, actor, histories[actor_id])
        before = self._remember_actor(log, handle, actor_id, memory, erasures.erased_at(actor_id))
        return _answer(handle, trusted, replayed, histories, usable, shown, before)

    # Who, and which log

    def _resolve(self, name: str) -> tuple[str | None, str]:
        """(handle or None, actor id); the handle's pin is checked, and set only after the lookup."""
        if "://" in name:
            return None, canonical_actor_id(name)
        handle = "@{}@{}".format(*parse_handle(name))
        pinned = self._trust.pinned(handle)
        if pinned is not None and (origin := self._origin_of(pinned)) is not None:
            self._trust.check_not_convicted(origin)  # before anybody is asked
        try:
            actor_id = resolve_handle(self._fetcher, handle)
        except Unreachable:
            # The pin would refuse any other id anyway, so an instance that is down need not stop us.
            if pinned is None:
                raise
            return handle, pinned
        self._trust.check_pin(handle, actor_id)
        return handle, actor_id

    def _origin_of(self, actor_id: str) -> str | None:
        domain = actor_domain(actor_id)
        return self._domains.get(domain) or self._trust.domains().get(domain)

    def _log_of(self, actor_id: str) -> Log:
        origin = self._origin_of(actor_id)
        if origin is None:
            domain = actor_domain(actor_id)
            raise UsageError(
                "UnknownDomain", f"no log is configured for {domain}",
                hint=f'Say which log serves it: domains={{"{domain}": "ORIGIN"}} in Python, --domain {domain}=ORIGIN on'
                     f' the command line, or in domains.toml of the state directory:\n'
                     f'[domains]\n"{domain}" = "ORIGIN"',
            )
        self._trust.check_not_convicted(origin)
        return verify.find_log(self._policy, origin)

    # The head

    def _trusted_head(self, log: Log) -> _Trusted:
        """A head that passed every check. It is remembered at once, whatever the log says about the actor."""
        # Before the request: another thread may remember a larger head while it is under way.
        remembered = self._remembered(log)
        head = verify.open_head(fetch_body(self._fetcher, log.url, "/checkpoint", MAX_CHECKPOINT_BYTES), log)
        if remembered is not None:
            verify.check_two_roots(log, remembered, head)
        cosigned = verify.check_cosigned(head, self._policy, int(self._now()), self._max_age)
        if remembered is not None:
            verify.check_not_smaller(remembered, head)
            verify.check_extends(log, remembered, head, self._reader(log, head))
        self._remember_head(log, head, remembered)
        return _Trusted(log, head, cosigned, remembered)

    def _remembered(self, log: Log) -> Head | None:
        note = self._trust.head(log.origin)
        return None if note is None else verify.open_remembered(note, log)

    def _reader(self, log: Log, head: Head) -> TileHashReader:
        return TileHashReader(
            lambda path: fetch_body(self._fetcher, log.url, f"/{path}", MAX_TILE_BYTES), head.size, head.root
        )

    # The actor

    def _page(self, log: Log, actor_id: str, tree_size: int) -> ActorPage:
        """The log's answer about an actor, with a history that is not empty.

        Raises:
            NotLogged: the log says that there is none; ``Erased`` when it says that there was one.
            Stale: ``ActorRolledBack``: it says so, and has shown one before.
        """
        if tree_size:  # nothing is in an empty tree, so there is nothing to ask
            target = f"/api/actor/{quote(actor_id, safe='')}/keys?include-proofs=true&tree-size={tree_size}"
            response = self._fetcher.get(log.url + target, max_bytes=MAX_ANSWER_BYTES)
            if response.status == 200:
                page = parse_actor_page(response.body, actor_id, tree_size)
                if page.published:
                    return page
            elif not _is_not_found(response):
                raise bad_status(response)
        erased_at = self._erasures_of(log).erased_at(actor_id) if tree_size else 0
        before = self._trust.actor(log.origin, actor_id)
        if before is not None:
            before = _since(before, erased_at)
            check_history(actor_id, before, ActorMemory(tree_size, 0, (), ()))
        if erased_at:
            raise NotLogged(
                "Erased", f"{log.origin} says that it erased {actor_id}, and shows nothing since",
                hint="The log says so; it cannot prove it in this version.",
            )
        raise NotLogged(
            "NotLogged", f"{log.origin} shows no published message about {actor_id}",
            hint="The log says so; it cannot prove it in this version.",
        )

    def _erasures_of(self, log: Log) -> ErasureLog:
        erasures = fetch_erasures(self._fetcher, log, self._erasures.get(log.origin, ()))
        self._erasures[log.origin] = erasures.records
        return erasures

    def _replay(
        self, trusted: _Trusted, page: ActorPage, erasures: ErasureLog, pool: ThreadPoolExecutor
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
        rows = fetch_rows(self._fetcher, log, head, self._reader(log, head), leaves) if leaves else []
        carried = check_carried(log.origin, rows, leaf_keys, pool.map)
        return replay(log.origin, page.actor_id, histories, erasures, carried), histories, leaf_keys

    # Memory

    def _remember_conviction(self, log: Log, error: Forked) -> None:
        """Store what convicts *log*, before anybody is told. What cannot be stored is told all the same."""
        if error.evidence is None:
            return
        try:
            path = self._trust.convict(log.origin, error.evidence)
        except StoreError as failure:
            error.hint += f" This could not be remembered, so the next lookup may trust the log: {failure.message}"
        else:
            error.hint += f" Every later lookup in this log is refused while {path} is there."

    def _remember_head(self, log: Log, head: Head, compared: Head | None) -> None:
        """Remember *head*, which was compared with the remembered head *compared*.

        Another thread or process may have saved a head meanwhile. Then the two are compared like any
        two heads, so that a log cannot show one tree to each of two lookups that overlap.
        """
        for _ in range(_SAVE_ATTEMPTS):
            with self._trust.locked():
                stored = self._remembered(log)
                if stored == compared:
                    if stored is None or stored.size < head.size:
                        self._trust.save_head(log.origin, head.note)
                    return
            if stored is None:
                raise StoreError("BadState", f"the remembered head of {log.origin} vanished during a lookup")
            older, newer = sorted((stored, head), key=lambda one: one.size)
            verify.check_extends(log, older, newer, self._reader(log, newer))
            compared = stored
        raise StoreError(
            "Locked", "other lookups keep changing the remembered head", hint="Trying again is safe."
        )

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
    handle: str | None, trusted: _Trusted, replayed: Replayed, histories: Mapping[str, History],
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
        f"which log serves the domain: {head.origin}, by your own configuration",
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
