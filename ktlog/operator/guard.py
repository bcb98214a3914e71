"""Rate limits and replayed HTTP signatures: ``guard.db``, shared by all web workers, lost without harm.

A refused request is counted against the address that sent it, and against its server when an HTTP signature
proved which one that is. With a count of n, requests must be ``base * 2^(n-1)`` apart, up to a maximum; after
twice that time without another refusal the count falls by one. Nobody without a count is ever slowed down.

What a stranger claims never hurts the one they claim to be: a claimed server that has to wait is refused, but
only its own authenticated requests start its waiting time again.

Spec: PKD v0.8, "Rate-Limiting Bad Requests".
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ktlog.errors import RateLimited, UsageError
from ktlog.operator.request import Source
from ktlog.operator.scratch import ScratchFile

if TYPE_CHECKING:
    import sqlite3

SOURCES_LIMIT = 100_000
IPV6_PREFIX = 64  # what one customer gets: a single address there costs nothing to change
_IPV6_HOST_BITS = 128 - IPV6_PREFIX
LONGEST_ADDRESS = len("0000:0000:0000:0000:0000:ffff:255.255.255.255")
REMEMBERED = 512
"""Addresses whose text is not read again: a request asks for its own some ten times."""

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS bad_sources ("
    " name TEXT PRIMARY KEY, count INTEGER NOT NULL, decayed_ms INTEGER NOT NULL,"
    " last_ms INTEGER NOT NULL, gone_ms INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS bad_sources_gone ON bad_sources (gone_ms)",
    "CREATE TABLE IF NOT EXISTS signatures ("
    " digest BLOB PRIMARY KEY, until INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS signatures_until ON signatures (until)",
)


@dataclass(frozen=True)
class Wait:
    """How long a source must wait. reset_ms: Unix milliseconds. limit: requests until then."""

    reset_ms: int
    now_ms: int
    limit: int = 1

    @property
    def retry_after_ms(self) -> int:
        return self.reset_ms - self.now_ms

    @property
    def reset(self) -> int:
        """Unix seconds, rounded up."""
        return -(-self.reset_ms // 1000)


@dataclass(frozen=True)
class _Bad:
    """One source's row. last_ms: its last request; decayed_ms: when its count last rose or fell."""

    count: int
    decayed_ms: int
    last_ms: int


def parse_networks(text: str) -> tuple[Network, ...]:
    """Networks in CIDR form, separated by spaces, as the settings hold them.

    Raises:
        UsageError: ``BadNetwork``.
    """
    try:
        return tuple(ipaddress.ip_network(word) for word in text.split())
    except ValueError as error:
        raise UsageError("BadNetwork", f"{text!a} names no networks: {error}") from None


class Guard:
    """One process's hold on ``guard.db``. Safe to use from many threads.

    Args:
        base_ms: what a source waits after its first refusal. maximum_seconds: the longest wait.
        exempt_networks: addresses that are never counted, and neither are the servers they speak for.
        now_ms: the clock, Unix milliseconds.

    Raises:
        StoreError: the file can neither be used nor replaced.
    """

    def __init__(
        self, path: Path, base_ms: int, maximum_seconds: int, exempt_networks: Sequence[Network],
        now_ms: Callable[[], int],
    ) -> None:
        self._file = ScratchFile(path, _SCHEMA)
        self._base_ms = base_ms
        self._maximum_ms = maximum_seconds * 1000
        self._exempt = tuple(exempt_networks)
        self._now_ms = now_ms
        self._cleared = 0

    def close(self) -> None:
        self._file.close()

    # Rate limits

    def check(self, source: Source, claimed_domain: str | None) -> None:
        """Refuse a source that has to wait. To be called first of all, once for each request.

        A request that passes starts the waiting time of its address again, so that of many at once only one
        passes. The server it claims to come from is looked at, and left as it is.

        Raises:
            RateLimited: as MessageRejected, ``rate_limited``.
        """
        if not self.is_exempt(source.ip):
            self._enter(address_name(source.ip), None if claimed_domain is None else domain_name(claimed_domain))

    def check_domain(self, source: Source) -> None:
        """The same for the server that signed the request: to be called once, when that is known.

        Raises:
            RateLimited
        """
        if source.domain is not None and not self.is_exempt(source.ip):
            self._enter(domain_name(source.domain), None)

    def penalize(self, source: Source, weight: int = 1) -> Wait | None:
        """Count *weight* refusals against the address, and against the server if it is known.

        Returns how long the source now has to wait; None for one that is exempt.
        """
        if self.is_exempt(source.ip):
            return None
        names = [address_name(source.ip)] + ([] if source.domain is None else [domain_name(source.domain)])
        now = self._now_ms()
        with self._file.transaction() as connection:
            self._forget(connection, now)
            waits = [self._raise_count(connection, name, weight, now) for name in names]
        return Wait(max(waits), now)

    # Replayed signatures

    def remember_signature(self, digest32: bytes, until: int) -> bool:
        """Remember a signature until *until*, Unix seconds. False if it was remembered before."""
        with self._file.transaction() as connection:
            return self._remember(connection, (digest32,), until)

    def take(self, source: Source, domain: str, digests: Sequence[bytes], until: int) -> bool:
        """:meth:`remember_signature` for the signatures of a request by *domain*, all of them, and
        :meth:`check_domain` for it: one look at the file instead of three. False if one was remembered before.

        Raises:
            RateLimited
        """
        with self._file.transaction() as connection:
            fresh = self._remember(connection, digests, until)
            known = fresh and _row(connection, domain_name(domain)) is not None
        if fresh:
            source.domain = domain
            if known:
                self.check_domain(source)
        return fresh

    def _remember(self, connection: sqlite3.Connection, digests: Sequence[bytes], until: int) -> bool:
        now = self._now_ms() // 1000
        if now != self._cleared:  # what is kept for a second longer refuses what is too old anyway
            connection.execute("DELETE FROM signatures WHERE until < ?", (now,))
            self._cleared = now
        rows = [(digest, until) for digest in digests]
        return connection.executemany("INSERT OR IGNORE INTO signatures VALUES (?, ?)", rows).rowcount == len(rows)

    # The rows

    def penalty_ms(self, count: int) -> int:
        """The wait that belongs to *count* refusals."""
        return min(self._maximum_ms, self._base_ms << min(count - 1, 40)) if count > 0 else 0

    def _highest_count(self) -> int:
        """Where the wait is the longest: to count further would only make forgetting slower."""
        count = 1
        while self.penalty_ms(count) < self._maximum_ms:
            count += 1
        return count

    def _enter(self, name: str, claimed: str | None) -> None:
        names = [name] if claimed is None else [name, claimed]
        with self._file.reading() as connection:
            # One query, for each one asks for the file's lock.
            asked = (name, names[-1])
            if connection.execute("SELECT 1 FROM bad_sources WHERE name IN (?, ?) LIMIT 1", asked).fetchone() is None:
                return
        now = self._now_ms()
        with self._file.transaction() as connection:
            for one in names:
                self._refuse_early(connection, one, now)
            connection.execute("UPDATE bad_sources SET last_ms = ? WHERE name = ?", (now, name))

    def _refuse_early(self, connection: sqlite3.Connection, name: str, now: int) -> None:
        row = _row(connection, name)
        if row is None:
            return
        reset_ms = row.last_ms + self.penalty_ms(self._decay(row, now).count)
        # A clock that was set back must not lock anybody out for longer than the longest wait.
        if now < reset_ms <= now + self._maximum_ms:
            wait = Wait(reset_ms, now)
            raise RateLimited(
                f"too many refused requests; wait {wait.retry_after_ms} ms", retry_after_ms=wait.retry_after_ms,
                limit=wait.limit, reset=wait.reset,
            )

    def _decay(self, row: _Bad, now: int) -> _Bad:
        count, decayed_ms = row.count, row.decayed_ms
        while count > 0 and now - decayed_ms >= 2 * self.penalty_ms(count):
            decayed_ms += 2 * self.penalty_ms(count)
            count -= 1
        return _Bad(count, decayed_ms, row.last_ms)

    def _raise_count(self, connection: sqlite3.Connection, name: str, weight: int, now: int) -> int:
        """Returns when the source may come again, in Unix milliseconds."""
        row = _row(connection, name) or _Bad(0, now, now)
        count = min(self._decay(row, now).count + weight, self._highest_count())
        gone_ms = now + 2 * sum(self.penalty_ms(n) for n in range(1, count + 1))
        connection.execute(
            "INSERT OR REPLACE INTO bad_sources VALUES (?, ?, ?, ?, ?)", (name, count, now, now, gone_ms)
        )
        return now + self.penalty_ms(count)

    def _forget(self, connection: sqlite3.Connection, now: int) -> None:
        """Remove who has paid; and when there are too many, whoever would be gone first."""
        connection.execute("DELETE FROM bad_sources WHERE gone_ms <= ?", (now,))
        (count,) = connection.execute("SELECT count(*) FROM bad_sources").fetchone()
        if count >= SOURCES_LIMIT:
            connection.execute(
                "DELETE FROM bad_sources WHERE name IN"
                " (SELECT name FROM bad_sources ORDER BY gone_ms LIMIT ?)", (SOURCES_LIMIT // 10,),
            )

    def is_exempt(self, ip: str) -> bool:
        """Whether the operator has said that no limit counts for this address."""
        if not self._exempt:
            return False
        address = parse_address(ip)
        return address is not None and any(address in network for network in self._exempt)


def address_name(ip: str) -> str:
    """The row of an address: itself, or the network of an IPv6 address."""
    return _name_of(parse_address(ip))


@lru_cache(REMEMBERED)
def _name_of(address: ipaddress.IPv4Address | ipaddress.IPv6Address | None) -> str:
    if address is None:
        return "address of nobody"
    if address.version == 4:
        return f"ip {address}"
    network = int(address) >> _IPV6_HOST_BITS << _IPV6_HOST_BITS
    return f"ip {ipaddress.IPv6Address(network)}/{IPV6_PREFIX}"


def domain_name(domain: str) -> str:
    return f"domain {domain}"


def parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """An address without its zone; an IPv4 address that is mapped into IPv6 is the IPv4 address."""
    text = text.partition("%")[0]
    return None if len(text) > LONGEST_ADDRESS else _parse_address(text)


@lru_cache(REMEMBERED)
def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        # What ipaddress.ip_address says, without trying the wrong one first.
        address = ipaddress.IPv6Address(text) if ":" in text else ipaddress.IPv4Address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return address if mapped is None else mapped


def _row(connection: sqlite3.Connection, name: str) -> _Bad | None:
    found = connection.execute(
        "SELECT count, decayed_ms, last_ms FROM bad_sources WHERE name = ?", (name,)
    ).fetchone()
    return None if found is None else _Bad(*found)
