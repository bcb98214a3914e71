"""Heads that can be relied on: fetched, checked against the policy and against what is remembered, and remembered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

from ktlog.client import verify
from ktlog.client.publicfiles import PublicFiles
from ktlog.client.terms import Getter, fetch_body
from ktlog.client.trust import TrustStore
from ktlog.client.verify import Cosigned, Head, Log
from ktlog.errors import Forked, StoreError
from ktlog.tlog.note import Verified
from ktlog.tlog.policy import Policy
from ktlog.tlog.tiles import TileHashReader

MAX_CHECKPOINT_BYTES = 1 << 20
_SAVE_ATTEMPTS = 8
_KEPT_NOTES = 16


# A head is read again and again while it is the newest, and only bytes that verified are kept.
_open_head = lru_cache(maxsize=_KEPT_NOTES)(verify.open_head)
_open_remembered = lru_cache(maxsize=_KEPT_NOTES)(verify.open_remembered)


@dataclass(frozen=True)
class Trusted:
    """A head that passed every check, and the remembered one it was compared with."""

    log: Log
    head: Head
    cosigned: Cosigned
    remembered: Head | None


@dataclass(frozen=True)
class Heads:
    """Where heads come from, and what they are measured by.

    now: the clock, in Unix seconds. max_age: how many seconds ago the quorum may at most have seen a head.
    pq: count ML-DSA signatures and cosignatures alone.
    """

    policy: Policy
    trust: TrustStore
    fetcher: Getter
    now: Callable[[], float]
    max_age: int
    pq: bool = False
    _lines: dict[bytes, tuple[Verified, ...]] = field(default_factory=dict, repr=False, compare=False)

    def trusted(self, log: Log, keep: Callable[[], None]) -> Trusted:
        """A head that passed every check. It is remembered at once, whatever the log says about an actor.

        Args:
            keep: called before; it may raise. A head under a key that is not known again would shut everybody out.
        """
        # Before the request: another thread may remember a larger head while it is under way.
        remembered = self.remembered(log)
        head = _open_head(fetch_body(self.fetcher, log.url, "/checkpoint", MAX_CHECKPOINT_BYTES), log)
        if remembered is not None:
            verify.check_two_roots(log, remembered, head)
        cosigned = verify.check_cosigned(
            head, self.policy, int(self.now()), self.max_age, pq=self.pq, open_lines=self._open_lines
        )
        if remembered is not None:
            verify.check_not_smaller(remembered, head)
            verify.check_extends(log, remembered, head, self.reader(log, head))
        keep()
        self._remember(log, head, remembered)
        return Trusted(log, head, cosigned, remembered)

    def _open_lines(self, head: Head, policy: Policy) -> tuple[Verified, ...]:
        """Signatures of one note are verified once; how old they are is counted every time."""
        lines = self._lines.get(head.note)
        if lines is None:
            lines = policy.open_cosignatures(head.opened)
            if len(self._lines) >= _KEPT_NOTES:
                self._lines.clear()
            self._lines[head.note] = lines
        return lines

    def remembered(self, log: Log) -> Head | None:
        note = self.trust.head(log.origin)
        return None if note is None else _open_remembered(note, log)

    def reader(self, log: Log, head: Head) -> TileHashReader:
        """Hashes of the head's tree, which its root vouches for."""
        return PublicFiles(self.fetcher, log.url).hashes(head.size, head.root)

    def _remember(self, log: Log, head: Head, compared: Head | None) -> None:
        """Remember *head*, which was compared with the remembered head *compared*.

        Another thread or process may have saved a head meanwhile. Then the two are compared like any
        two heads, so that a log cannot show one tree to each of two lookups that overlap.
        """
        if compared is not None and head.size == compared.size:
            return  # it is the remembered tree, from which whatever was remembered meanwhile was reached
        for _ in range(_SAVE_ATTEMPTS):
            with self.trust.locked():
                stored = self.remembered(log)
                if stored == compared:
                    if stored is None or stored.size < head.size:
                        self.trust.save_head(log.origin, head.note)
                    return
            if stored is None:
                raise StoreError("BadState", f"the remembered head of {log.origin} vanished during a lookup")
            older, newer = sorted((stored, head), key=lambda one: one.size)
            verify.check_extends(log, older, newer, self.reader(log, newer))
            compared = stored
        raise StoreError(
            "Locked", "other lookups keep changing the remembered head", hint="Trying again is safe."
        )

    def remember_conviction(self, log: Log, error: Forked) -> None:
        """Store what convicts *log*, before anybody is told. What cannot be stored is told all the same."""
        if error.evidence is None:
            return
        try:
            path = self.trust.convict(log.origin, error.evidence)
        except StoreError as failure:
            error.hint += f" This could not be remembered, so the next lookup may trust the log: {failure.message}"
        else:
            error.hint += f" Every later lookup in this log is refused while {path} is there."
