"""Telling systemd that a daemon is ready, is stopping, and is alive. Without systemd nothing happens.

A service of ``Type=notify`` is started when it says READY=1, and with ``WatchdogSec=`` it is ended and started again
when it no longer says WATCHDOG=1. A worker process speaks for its parent: set ``NotifyAccess=all``.

Spec: sd_notify(3), sd_watchdog_enabled(3).
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable, MutableMapping

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import parse_decimal


class Notifier:
    """Args:
        address: of the socket, as in NOTIFY_SOCKET; empty for none.
        watchdog_seconds: after how many without WATCHDOG=1 the service is ended; None: never.
    """

    def __init__(self, address: str = "", watchdog_seconds: float | None = None) -> None:
        self.address = address
        self.watchdog_seconds = watchdog_seconds

    @classmethod
    def from_environment(cls, environment: MutableMapping[str, str] = os.environ) -> Notifier:
        """Takes the variables away: no library and no child process may speak in our place."""
        address = environment.pop("NOTIFY_SOCKET", "")
        of, microseconds = environment.pop("WATCHDOG_PID", ""), environment.pop("WATCHDOG_USEC", "")
        if not microseconds or of not in ("", str(os.getpid())):
            return cls(address)
        try:
            return cls(address, parse_decimal(microseconds) / 1e6 or None)
        except EncodingError:
            return cls(address)

    def send(self, *states: str) -> None:
        """Never waits and never fails: who does not listen is not told."""
        if not self.address.startswith(("/", "@")):
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as speaker:
            speaker.setblocking(False)
            speaker.sendto("\n".join(states).encode("utf-8"), address)

    def keep_alive(self, alive: Callable[[], object]) -> None:
        """Say WATCHDOG=1 at twice the pace that is asked for, each time after *alive* has returned.

        It is to hang where the daemon's work would hang. That it fails does not count: such a daemon answers, and says
        why.
        """
        if self.watchdog_seconds is not None and self.address:
            every = self.watchdog_seconds / 2
            threading.Thread(target=self._keep, args=(alive, every), daemon=True, name="watchdog").start()

    def _keep(self, alive: Callable[[], object], every: float) -> None:
        while True:
            with contextlib.suppress(Exception):
                alive()
            self.send("WATCHDOG=1")
            threading.Event().wait(every)
