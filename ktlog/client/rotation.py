"""Which keys a log may sign its heads with by now: those that the policy names, and what took their place.

A policy names a log's key. When the log replaces it, the policy stays as it is: the new key is taken from a line that
the old one signed (:mod:`ktlog.pkd.keychanges`), which the log shows at ``/keys``, and from nothing else. The line is
remembered only once a head under the new key passed every check, the quorum of the witnesses among them; and another
successor of the same key is refused from then on, whoever signed it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

from ktlog.client.terms import Getter, fetch_body
from ktlog.client.trust import TrustStore
from ktlog.client.verify import Log
from ktlog.errors import EncodingError, Invalid, StoreError
from ktlog.keymap.output import MAP_SUFFIX
from ktlog.pkd.keychanges import MOST_BYTES, KeyChange, parse_changes, successors, verify_changes
from ktlog.tlog.note import Vkey
from ktlog.tlog.policy import Policy


@dataclass(frozen=True)
class Learnt:
    """A log with the keys it has by now, and the file that says so."""

    log: Log
    changes: bytes


@lru_cache(maxsize=16)
def _verified(data: bytes, origin: str) -> tuple[KeyChange, ...]:
    changes = parse_changes(data)
    verify_changes(changes, origin)
    return changes


def follow(log: Log, data: bytes, now: int) -> Log:
    """*log* with every successor of its keys in *data*; a key whose time is over is good for what is remembered only.

    Raises:
        EncodingError, Invalid: ``BadKeyChange``, ``TwoSuccessors``.
    """
    found = successors(_verified(data, log.origin.removesuffix(MAP_SUFFIX)), log.vkeys)
    if len({one.old for one in found}) != len(found):
        raise Invalid("TwoSuccessors", f"a key of {log.origin} has two successors")
    over = {one.old for one in found if one.until <= now}
    vkeys = tuple(dict.fromkeys((*log.vkeys, *(one.new for one in found))))
    return replace(
        log, vkeys=tuple(vkey for vkey in vkeys if vkey not in over),
        retired=tuple(vkey for vkey in vkeys if vkey in over),
    )


class LogKeys:
    """What is known of the logs' keys beside the policy. Usable from many threads."""

    def __init__(self, trust: TrustStore, fetcher: Getter, policy: Policy) -> None:
        self._trust = trust
        self._fetcher = fetcher
        self._cosigners = {witness.vkey.public_key for witness in policy.witnesses.values()}

    def known(self, log: Log, now: int) -> Log:
        """*log*, which is as the policy has it, with what was remembered.

        Raises:
            StoreError: ``BadState``.
        """
        data = self._trust.key_changes(log.origin)
        if data is None:
            return log
        try:
            return follow(log, data, now)
        except (EncodingError, Invalid) as error:
            raise StoreError(
                "BadState", f"what is remembered of the keys of {log.origin} is damaged: {error.message}",
                hint="Restore the state directory from a backup.",
            ) from None

    def learn(self, log: Log, now: int) -> Learnt | None:
        """Ask the log whether its keys were replaced. None: not that a key of the policy would say so.

        Raises:
            Invalid: ``BadKeyChange``; ``TwoSuccessors``: the log showed another successor before.
            Unreachable
        """
        data = fetch_body(self._fetcher, log.url, "/keys", MOST_BYTES)
        try:
            found = follow(log, data, now)
        except EncodingError as error:
            raise Invalid(error.name, f"{log.url}/keys: {error.message}") from None
        known = self.known(log, now)
        if _all(found) <= _all(known):
            return None
        if not _all(known) <= _all(found):
            raise Invalid(
                "TwoSuccessors", f"{log.origin} says that its keys were replaced by other ones than it said before",
                hint="Whoever holds an old key of the log can sign such a line. Ask its operator and its auditors.",
            )
        if self._cosigners & {vkey.public_key for vkey in found.vkeys}:
            raise Invalid("BadKeyChange", f"{log.origin} says that a cosigner's key is its own")
        return Learnt(found, data)

    def remember(self, log: Log, learnt: Learnt) -> None:
        """Keep what was learnt of *log*, after a head under it passed every check.

        Raises:
            Invalid: ``TwoSuccessors``: something else was learnt meanwhile.
        """
        with self._trust.locked():
            before = self._trust.key_changes(log.origin)
            # Lines are only ever added: the longer file begins with the shorter one.
            if before is None or learnt.changes.startswith(before):
                self._trust.save_key_changes(log.origin, learnt.changes)
            elif not before.startswith(learnt.changes):
                raise Invalid("TwoSuccessors", f"two lookups were shown other successors of the keys of {log.origin}")


def _all(log: Log) -> set[Vkey]:
    return {*log.vkeys, *log.retired}
