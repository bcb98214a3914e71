"""Which address a host name may lead to.

In production every address of a name must be a public one: a fetcher that follows names given by strangers
is otherwise a door into the operator's own network. In the demo and in tests a dial table replaces name
resolution, and nothing else, by fixed loopback addresses (design decision 16).
"""

from __future__ import annotations

import ipaddress
import os
import queue
import re
import socket
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ktlog.errors import EncodingError, Unreachable, UsageError
from ktlog.pkd.canonical import parse_json
from ktlog.tlog.encoding import parse_decimal
from ktlog.wire.actor_id import parse_host

#: Environment variable: path of a dial table.
DIAL_VARIABLE = "KTLOG_DIAL"

BLOCKED = "BadAddress"
"""The name of the Unreachable for an address that no connection is made to."""

_TARGET = re.compile(r"(?:([0-9.]+)|\[([0-9a-f:]+)\]):([0-9]+)")
_IPv6Network = ipaddress.IPv6Network
_NAT64 = _IPv6Network("64:ff9b::/96")
_SIX_TO_FOUR = _IPv6Network("2002::/16")
_UNICAST = _IPv6Network("2000::/3")
# Inside 2000::/3, yet not the public network. Spec: IANA IPv6 special-purpose address registry.
_SPECIAL_V6 = tuple(map(_IPv6Network, ("2001::/23", "2001:db8::/32", "3fff::/20")))
# ipaddress calls some of these global, depending on the version of Python.
_SPECIAL_V4 = tuple(map(ipaddress.IPv4Network, ("192.0.0.0/24", "192.88.99.0/24", "100.64.0.0/10")))
# A resolver that hangs holds a thread; this many at most.
_lookups = threading.BoundedSemaphore(32)


@dataclass(frozen=True)
class Address:
    """Where to connect: a socket family and the address that goes with it."""

    family: int
    sockaddr: tuple[Any, ...]


@dataclass(frozen=True)
class Dial:
    """A dial table. hosts: host name to (loopback address, port). ca_file: all that TLS trusts for them."""

    hosts: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    ca_file: str | None = None

    def __post_init__(self) -> None:
        for host, (address, port) in self.hosts.items():
            _check_loopback(f"{address}:{port} for {host}", address)


def parse_loopback(text: str) -> tuple[str, int]:
    """``127.0.0.1:4433`` or ``[::1]:4433`` as (address, port).

    Raises:
        UsageError: ``BadDial`` (no such form), ``UnsafeDial`` (not on loopback).
    """
    match = _TARGET.fullmatch(text)
    if match is None:
        raise UsageError("BadDial", f"{text!r} is not ADDRESS:PORT")
    address = match[1] or match[2]
    try:
        port = parse_decimal(match[3], 65535)
    except EncodingError:
        raise UsageError("BadDial", f"{text!r} has no valid port") from None
    _check_loopback(text, address)
    return address, port


def _check_loopback(text: str, address: str) -> None:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise UsageError("BadDial", f"{text} does not begin with an address") from None
    # Exactly 127.0.0.0/8 and ::1. A mapped ::ffff:127.0.0.1 is loopback too, but nobody needs it.
    if not parsed.is_loopback or getattr(parsed, "ipv4_mapped", None) is not None:
        raise UsageError(
            "UnsafeDial", f"{text} is not on loopback", hint="A dial table is for tests and the demo only."
        )


def parse_dial(data: bytes, base: Path) -> Dial:
    """A dial table from JSON: ``{"ca_file": "ca.pem", "hosts": {"keys.example": "127.0.0.1:4433"}}``.

    base: directory that a relative ca_file is relative to.

    Raises:
        UsageError: ``BadDial``, ``UnsafeDial``.
    """
    try:
        table = parse_json(data)
    except EncodingError as error:
        raise UsageError("BadDial", f"the dial table does not parse: {error}") from None
    if not isinstance(table, dict) or not table.keys() <= {"ca_file", "hosts"}:
        raise UsageError("BadDial", "a dial table is an object with ca_file and hosts")
    hosts, ca_file = table.get("hosts", {}), table.get("ca_file")
    if not isinstance(hosts, dict) or not all(isinstance(target, str) for target in hosts.values()):
        raise UsageError("BadDial", "hosts of a dial table is an object of strings")
    if ca_file is not None and not isinstance(ca_file, str):
        raise UsageError("BadDial", "ca_file of a dial table is a path")
    try:
        targets = {parse_host(host): parse_loopback(target) for host, target in hosts.items()}
    except EncodingError as error:
        raise UsageError("BadDial", error.message) from None
    return Dial(targets, str(base / ca_file) if ca_file is not None else None)


def load_dial(path: str | os.PathLike[str]) -> Dial:
    """The dial table in a file. Raises UsageError: ``BadDial``, ``UnsafeDial``."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise UsageError("BadDial", f"the dial table cannot be read: {error}") from None
    return parse_dial(data, Path(path).resolve().parent)


def check_global(address: str) -> None:
    """Refuse an address that is not on the public Internet.

    Refused are private, loopback, link-local, shared (CGNAT), multicast, reserved and documentation ranges,
    and IPv6 forms that carry such an IPv4 address (mapped, NAT64, 6to4).

    Raises:
        Unreachable: ``BadAddress``.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        raise Unreachable(BLOCKED, f"{address!r} is not an address") from None
    if not (_is_global_v4(parsed) if parsed.version == 4 else _is_global_v6(parsed)):
        raise Unreachable(BLOCKED, f"{address} is not a public address")


def _is_global_v4(address: ipaddress.IPv4Address) -> bool:
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not any(address in network for network in _SPECIAL_V4)
    )


def _is_global_v6(address: ipaddress.IPv6Address) -> bool:
    if address.ipv4_mapped is not None:
        return _is_global_v4(address.ipv4_mapped)
    if address in _NAT64:
        return _is_global_v4(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    if address in _SIX_TO_FOUR:
        return _is_global_v4(ipaddress.IPv4Address(int(address) >> 80 & 0xFFFFFFFF))
    return (
        address in _UNICAST
        and address.is_global
        and not any(address in network for network in _SPECIAL_V6)
    )


def addresses_of(host: str, dial: Dial | None, remaining: Callable[[], float]) -> tuple[Address, ...]:
    """Where *host* (port 443) may be reached, after every check. Resolved once; the caller connects to these.

    remaining: seconds left for the whole request.

    Raises:
        Unreachable: ``BadAddress`` (one address is not public), ``Refused`` (no such name), ``Timeout``.
    """
    if dial is not None and host in dial.hosts:
        address, port = dial.hosts[host]
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        return (Address(family, (address, port)),)
    found = []
    for family, _, _, _, sockaddr in _look_up(host, remaining()):
        if family not in (socket.AF_INET, socket.AF_INET6):
            raise Unreachable(BLOCKED, f"{host} has an address of an unknown family")
        check_global(str(sockaddr[0]))
        found.append(Address(family, sockaddr))
    if not found:
        raise Unreachable("Refused", f"{host} has no address")
    return tuple(found)


def _look_up(host: str, seconds: float) -> list[tuple[Any, ...]]:
    """getaddrinfo with a time limit, which the C library does not have."""
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    slots = _lookups

    def ask() -> None:
        try:
            answers.put(socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP))
        except BaseException as error:  # handed to the thread that waits
            answers.put(error)
        finally:
            slots.release()

    if not slots.acquire(timeout=max(seconds, 0)):
        raise Unreachable("Timeout", "too many name look-ups are waiting")
    threading.Thread(target=ask, name="ktlog-resolve", daemon=True).start()
    try:
        answer = answers.get(timeout=max(seconds, 0.001))
    except queue.Empty:
        raise Unreachable("Timeout", f"{host} was not resolved in time") from None
    if isinstance(answer, OSError):
        raise Unreachable("Refused", f"{host} does not resolve: {answer.strerror or answer}")
    if isinstance(answer, BaseException):
        raise answer
    return answer
