"""Keep a test and every process it starts on loopback.

This directory stands first in ``PYTHONPATH`` while the tests run, so Python imports this file at start-up
in every child process; ``tests/conftest.py`` installs the same guard in the test process itself. An audit
hook cannot be removed again and runs before the system call it announces: a connection off loopback is
refused without one packet sent.

Whatever other ``sitecustomize`` the path holds (coverage's, a distribution's) still runs, after this one.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import ipaddress
import os
import socket
import sys
from typing import Any

#: Environment variable: a file to which every refused attempt is appended, one line each.
LOG_VARIABLE = "KTLOG_GUARD_LOG"

#: Names that may be resolved. They never leave the machine.
ALLOWED_NAMES = frozenset({"", "localhost", "localhost.localdomain"})

#: Attempts refused in this process: (audit event, host).
refused: list[tuple[str, str]] = []


class LoopbackOnly(RuntimeError):
    """A test reached for the network.

    Not an OSError on purpose: code that forgives network errors must not be able to forgive this.
    """


def _refuse(event: str, host: str) -> None:
    refused.append((event, host))
    log = os.environ.get(LOG_VARIABLE)
    if log:
        with open(log, "a", encoding="utf-8") as stream:
            stream.write(f"{event} {host}\n")
    raise LoopbackOnly(f"{event}: {host!r} is not on loopback; tests never leave this machine")


def _text(host: Any) -> str:
    if host is None:
        return ""
    if isinstance(host, (bytes, bytearray)):
        return bytes(host).decode("latin-1")
    return str(host)


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def check_address(event: str, address: Any) -> None:
    """Refuse an address off loopback. Unix sockets (str, bytes) and families without hosts pass."""
    if not isinstance(address, tuple) or not address or not isinstance(address[0], (str, bytes, bytearray)):
        return
    host = _text(address[0])
    literal = _literal(host)
    if literal is None:
        # A name here would be resolved by the C library inside the call itself.
        if host != "localhost":
            _refuse(event, host)
        return
    mapped = getattr(literal, "ipv4_mapped", None)
    if not (mapped or literal).is_loopback:
        _refuse(event, host)


def check_name(event: str, host: Any) -> None:
    """Refuse to resolve a name. Address literals pass: resolving them asks nobody."""
    name = _text(host)
    if name.lower() not in ALLOWED_NAMES and _literal(name) is None:
        _refuse(event, name)


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if not event.startswith("socket."):
        return
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        check_address(event, arguments[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        check_name(event, arguments[0])
    elif event == "socket.gethostbyaddr":
        check_address(event, (arguments[0],))
    elif event == "socket.getnameinfo":
        check_address(event, arguments[0])


def _check_first(method: str) -> None:
    """Check the address in *method* of socket.socket before the interpreter turns a name into one.

    For connect(("example.com", 80)) CPython resolves the name before it raises the audit event.
    """
    original = getattr(socket.socket, method)

    def checked(self: socket.socket, *arguments: Any) -> Any:
        if arguments:
            check_address(f"socket.{method}", arguments[-1])
        return original(self, *arguments)

    setattr(socket.socket, method, checked)


def install() -> None:
    """Guard this process. Doing it twice changes nothing."""
    if getattr(sys, "_ktlog_loopback_guard", False):
        return
    sys._ktlog_loopback_guard = True  # type: ignore[attr-defined]
    for method in ("connect", "connect_ex", "sendto"):
        _check_first(method)
    sys.addaudithook(_audit)


def _run_next_sitecustomize() -> None:
    """Run the sitecustomize that this one hides, if there is one."""
    here = os.path.dirname(os.path.abspath(__file__))
    rest = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != here]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", rest)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


if __name__ == "sitecustomize":
    install()
    _run_next_sitecustomize()
