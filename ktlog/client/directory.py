"""Looks up an actor's keys and believes none of them before every check has passed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from os import PathLike
from pathlib import Path
from typing import TypeVar

from ktlog.client import verify
from ktlog.client.answer import Answer
from ktlog.client.heads import Heads
from ktlog.client.logonly import LogOnly
from ktlog.client.mapped import ATTEMPTS, MapLookups, Proven, busy
from ktlog.client.rotation import Learnt, LogKeys
from ktlog.client.terms import Getter
from ktlog.client.trust import TrustStore, parse_domains
from ktlog.durable import read_file
from ktlog.errors import Conflict, EncodingError, Forked, Invalid, StoreError, Unreachable, UsageError
from ktlog.keymap.output import MAP_SUFFIX, map_origin
from ktlog.tlog.policy import Policy, parse_policy
from ktlog.wire.actor_id import actor_domain, canonical_actor_id, parse_handle
from ktlog.wire.fetch import Fetcher
from ktlog.wire.webfinger import resolve_handle

T = TypeVar("T")

DEFAULT_STATE = "~/.local/share/ktlog"


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
        max_age_seconds: how long ago the quorum may at most have seen a head, and the map been made.
        pq: count ML-DSA signatures and cosignatures alone.

    Raises:
        UsageError: ``NoPolicy``, *policy* is no Policy; ``BadDomains``.
        PolicyUnmet: ``UnsafePolicy``: no quorum; one that two disjoint sets of cosigners can make; or a map is
            trusted, and the quorum can be made without verifiers, or without witnesses.
        StoreError: the state directory cannot be used.
    """

    def __init__(
        self, policy: Policy, *, state: str | PathLike[str] = DEFAULT_STATE,
        domains: Mapping[str, str] | None = None, fetcher: Getter | None = None,
        now: Callable[[], float] = time.time, max_age_seconds: int = verify.DEFAULT_MAX_AGE_SECONDS,
        pq: bool = False,
    ) -> None:
        if not isinstance(policy, Policy):
            raise UsageError(
                "NoPolicy", f"a Directory needs a Policy, not {type(policy).__name__}",
                hint="For a file, use Directory.from_policy_file(path); for its content, parse_policy(data).",
            )
        # Where a policy trusts a map, nothing counts without verifiers.
        policy.check_safe(require_verifiers=any(line.vkey.name.endswith(MAP_SUFFIX) for line in policy.logs))
        self._policy = policy
        self._domains = parse_domains(domains or {}, "domains")
        self._trust = TrustStore(state)
        self._fetcher = Fetcher.from_environment() if fetcher is None else fetcher
        self._heads = Heads(policy, self._trust, self._fetcher, now, max_age_seconds, pq)
        self._keys = LogKeys(self._trust, self._fetcher, policy)
        self._maps = MapLookups(self._heads)
        self._log_only = LogOnly(self._heads)

    @classmethod
    def from_policy_file(
        cls, path: str | PathLike[str], *, state: str | PathLike[str] = DEFAULT_STATE,
        domains: Mapping[str, str] | None = None, fetcher: Getter | None = None,
        now: Callable[[], float] = time.time, max_age_seconds: int = verify.DEFAULT_MAX_AGE_SECONDS,
        pq: bool = False,
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
            policy, state=state, domains=domains, fetcher=fetcher, now=now, max_age_seconds=max_age_seconds, pq=pq
        )

    def lookup(self, name: str, *, full: bool = False) -> Answer:
        """The keys of a handle (``@alice@example.social``) or an actor id (``https://…``).

        Where the policy has a ``log`` line for the map of the actor's log (its name ends in ``/map``), the answer
        is one of three, each proven: :class:`Present`, with every key and nothing but the actor's keys;
        :class:`Erased`; :class:`NeverEnrolled`. Otherwise it is Present or NotLogged on the word of the log, which
        can leave out a newer message. ``checks`` and ``not_proven`` of the answer say what it is worth.

        Treat the person as a stranger when ``answer.reset`` is not None, and encrypt to ``usable_keys`` only.

        Args:
            full: check every message behind the keys, too. Some 40 ms for each attribute of each message.

        Raises:
            NotLogged: ``UnknownHandle``: the handle's server knows no such account. Otherwise without a map only: the
                log says that it knows nothing of the actor, or (``Erased``) that it erased them.
            Invalid, PolicyUnmet, Stale: a check failed; the name says which (``BadWebFinger``: of the handle's server).
            Forked: the log is caught, and ``evidence`` convicts it. It is remembered, and every later lookup
                in that log raises ``Convicted`` until a person removes the file that the hint names.
            Unreachable: nothing was learnt.
            Conflict: ``HandleChanged``, the handle now means another actor.
            UsageError, EncodingError: the name, or the configuration, is wrong.
            StoreError: the state directory cannot be used.
        """
        handle, actor_id = self._resolve(name)
        return self._lookup_in(self._origin_for(actor_id), handle, actor_id, full)

    def lookup_across(self, name: str, origins: Iterable[str], *, full: bool = False) -> dict[str, Answer]:
        """The same actor in several logs, each with a map: the answers by origin, if they agree.

        Raises:
            Conflict: ``LogsDisagree``: the actor is present in one and not in another, or with other keys.
                ``stored`` holds the answers, none of which is remembered.
            UsageError: ``NoMap``, the policy does not trust the map of one of them.
            Everything that :meth:`lookup` raises, for any of the logs.
        """
        handle, actor_id = self._resolve(name)
        origins = list(dict.fromkeys(origins))
        for origin in origins:
            if not self._has_map(origin):
                raise UsageError(
                    "NoMap", f"the policy has no log line for {map_origin(origin)}: what {origin} leaves out cannot"
                    " be noticed",
                )
        proven: dict[str, Proven] = {}
        late = origins
        for _ in range(ATTEMPTS):
            proven |= {origin: self._prove(origin, handle, actor_id, full) for origin in late}
            answers = {origin: proven[origin].answer for origin in origins}
            _check_agree(actor_id, answers)
            # A reset is told once. So nothing is remembered before every log has answered: an error would swallow it.
            late = [origin for origin in late if not proven[origin].remember()]
            if not late:
                return answers
        raise busy(" and ".join(late), actor_id)

    def _lookup_in(self, origin: str, handle: str | None, actor_id: str, full: bool) -> Answer:
        if not self._has_map(origin):
            return self._ask(origin, lambda log, keep: self._log_only.lookup(log, handle, actor_id, keep))
        for _ in range(ATTEMPTS):
            proven = self._prove(origin, handle, actor_id, full)
            if proven.remember():
                return proven.answer
        raise busy(map_origin(origin), actor_id)

    def _prove(self, origin: str, handle: str | None, actor_id: str, full: bool) -> Proven:
        return self._ask(origin, lambda log, keep: self._maps.prove(log, handle, actor_id, keep, full=full))

    def _ask(self, origin: str, ask: Callable[[verify.Log, Callable[[], None]], T]) -> T:
        """What *ask* returns for a log, under its keys in the policy or what took their place.

        Args:
            ask: is given the log, and what it calls before it remembers a head under these keys.
        """
        self._check_not_convicted(origin)
        log = verify.find_log(self._policy, map_origin(origin) if self._has_map(origin) else origin)

        def convicting(log: verify.Log, keep: Callable[[], None]) -> T:
            try:
                return ask(log, keep)
            except Forked as error:
                self._heads.remember_conviction(log, error)
                raise

        try:
            return convicting(self._keys.known(log, int(self._heads.now())), lambda: None)
        except Invalid as error:
            if error.name != "BadLogSignature":
                raise
            # No key that is known here signed it. Was one of them replaced?
            learnt = self._learn(log, error)
        return convicting(learnt.log, lambda: self._keys.remember(log, learnt))

    def _learn(self, log: verify.Log, error: Invalid) -> Learnt:
        try:
            learnt = self._keys.learn(log, int(self._heads.now()))
        except Unreachable:
            learnt = None
        if learnt is None:
            raise error
        return learnt

    def _has_map(self, origin: str) -> bool:
        return any(line.vkey.name == map_origin(origin) for line in self._policy.logs)

    def _check_not_convicted(self, origin: str) -> None:
        for name in (origin, map_origin(origin)):
            self._trust.check_not_convicted(name)

    # Who, and which log

    def _resolve(self, name: str) -> tuple[str | None, str]:
        """(handle or None, actor id); the handle's pin is checked, and set only after the lookup."""
        if "://" in name:
            return None, canonical_actor_id(name)
        handle = "@{}@{}".format(*parse_handle(name))
        pinned = self._trust.pinned(handle)
        if pinned is not None and (origin := self._origin_of(pinned)) is not None:
            self._check_not_convicted(origin)  # before anybody is asked
        try:
            actor_id = resolve_handle(self._fetcher, handle)
        except Unreachable:
            # The pin would refuse any other id anyway, so an instance that is down need not stop us.
            if pinned is None:
                raise
            return handle, pinned
        except EncodingError as error:
            # The handle is one: it is the answer that is none.
            raise Invalid("BadWebFinger", f"the answer about {handle} does not parse: {error.message}") from None
        self._trust.check_pin(handle, actor_id)
        return handle, actor_id

    def _origin_of(self, actor_id: str) -> str | None:
        domain = actor_domain(actor_id)
        return self._domains.get(domain) or self._trust.domains().get(domain)

    def _origin_for(self, actor_id: str) -> str:
        origin = self._origin_of(actor_id)
        if origin is None:
            domain = actor_domain(actor_id)
            raise UsageError(
                "UnknownDomain", f"no log is configured for {domain}",
                hint=f'Say which log serves it: domains={{"{domain}": "ORIGIN"}} in Python, --domain {domain}=ORIGIN on'
                     f' the command line, or in domains.toml of the state directory:\n'
                     f'[domains]\n"{domain}" = "ORIGIN"',
            )
        return origin


def _check_agree(actor_id: str, answers: Mapping[str, Answer]) -> None:
    """Raises Conflict(``LogsDisagree``)."""
    said = {
        origin: (type(answer), frozenset(key.public_key for key in answer.keys))
        for origin, answer in answers.items()
    }
    if len(set(said.values())) > 1:
        texts = [f"{origin}: {kind.__name__}, {len(keys)} keys" for origin, (kind, keys) in said.items()]
        raise Conflict(
            "LogsDisagree", f"the logs do not say the same of {actor_id}: {'; '.join(texts)}",
            hint="Each proved what it says. Somebody enrolled, revoked or erased in one of them alone: ask the"
                 " person through another channel which one is right.",
            stored=dict(answers),
        )
