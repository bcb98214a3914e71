"""The life of one serving process: what it counts, logs, and tells supervisors; and how it ends.

====== ====================================================================================================
livez  the process answers. 200 until its end, also while it drains and after a failed write
readyz a submission that arrives now would be judged: the record can be read, no write has failed, and the
       process was not told to end. Else 503, and the name of what is wrong
====== ====================================================================================================

SIGTERM begins the drain: no connection is accepted any more, /readyz says ``Draining`` on the metrics listener, and
what is under way is answered, for httpd.GRACEFUL_SECONDS at most. SIGUSR1 has more logged, and once again less.
"""

from __future__ import annotations

import ipaddress
import logging
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from ktlog.errors import StoreError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.wire.logs import RequestIds, fields, toggle_debug
from ktlog.wire.notify import Notifier
from ktlog.wire.prometheus import MetricsServer
from witness.about import About, Said, describe
from witness.metrics import ORIGINS_LIMIT, LevelCounter, Tally, format_metrics
from witness.pulling import Puller
from witness.reading import Reader
from witness.witness import Witness

if TYPE_CHECKING:
    from witness.bastion import BastionState

ADDRESSES = ("none", "network", "full")
ABOUT_SECONDS = 5.0
"""For how long the page about this witness is kept: anybody may ask for it, as often as he likes."""

#: What supervisors and monitors ask all day long.
_QUIET = frozenset({"livez", "readyz"})
_NETWORK_BITS = {4: 24, 6: 48}

_LOG = logging.getLogger("ktlog.witness.requests")
_LIFE = logging.getLogger("ktlog.witness")


@dataclass(frozen=True)
class Operating:
    """What the operator wants of a serving process, beside witnessing.

    Attributes:
        metrics: a socket that listens, for the metrics; None: none are served.
        addresses: of those who ask, in the log: one of ADDRESSES.
        level: of the log, to which SIGUSR1 returns.
    """

    metrics: socket.socket | None = None
    addresses: str = "none"
    level: str = "info"
    said: Said = field(default_factory=Said)
    notifier: Notifier = field(default_factory=Notifier)
    puller: Puller | None = None


class Running:
    """One serving process. Made for each; ``start`` only where it is a process of its own.

    Args:
        record: the witness's record, for whoever looks on; a connection of its own, so that they wait for no write,
            and no submission for them.
    """

    def __init__(self, witness: Witness, operating: Operating | None = None, record: Reader | None = None) -> None:
        self.witness = witness
        self._record: Reader = witness.store if record is None else record
        self.operating = Operating() if operating is None else operating
        self.tally = Tally()
        self.draining = False
        self.bastions: tuple[BastionState, ...] = ()
        self._ids = RequestIds()
        self._logged = LevelCounter()
        self._about: tuple[float, About] | None = None

    def start(self) -> None:
        """In the main thread, when the witness can be asked."""
        logging.getLogger().addHandler(self._logged)
        with self._record.reading() as database:
            rows = database.execute(
                "SELECT origin, size, time FROM checkpoints ORDER BY time DESC LIMIT ?", (ORIGINS_LIMIT,)
            ).fetchall()
        for row in rows:
            self.tally.seed(*row)
        operating = self.operating
        if operating.metrics is not None:
            address, port = MetricsServer(operating.metrics, self.metrics, self.unready).address
            _LIFE.info("metrics are served", extra=fields(address=address, port=port))
        if operating.puller is not None:
            operating.puller.start()
        self._listen_to_signals()
        operating.notifier.keep_alive(self.witness.store.check)
        operating.notifier.send("READY=1", f"STATUS={self.witness.store.name} is ready")
        _LIFE.info("ready", extra=fields(name=self.witness.store.name))

    def _listen_to_signals(self) -> None:
        previous = signal.getsignal(signal.SIGTERM)

        def end(number: int, frame: FrameType | None) -> None:
            self.drain()
            if callable(previous):
                previous(number, frame)

        signal.signal(signal.SIGTERM, end)
        signal.siginterrupt(signal.SIGTERM, False)
        signal.signal(signal.SIGUSR1, lambda *_: toggle_debug(self.operating.level))
        signal.siginterrupt(signal.SIGUSR1, False)

    def drain(self) -> None:
        """Say that the end has begun. Called by a signal, so it takes no lock."""
        if not self.draining:
            self.draining = True
            self.operating.notifier.send("STOPPING=1", "STATUS=answering what is under way")

    # -- how it does

    def unready(self) -> str | None:
        """Why a submission would not be judged, by its name; None when it would."""
        if self.draining:
            return "Draining"
        try:
            self.witness.store.refuse_poisoned()
            self._record.check()
        except StoreError as error:
            return error.name
        return None

    def metrics(self) -> bytes:
        """For Prometheus. Raises StoreError."""
        puller = self.operating.puller
        return format_metrics(
            self.witness, self._record, self.tally.counted(), unready=self.unready(), draining=self.draining,
            logged=self._logged.counts, pulls=() if puller is None else puller.states(), bastions=self.bastions,
        )

    def about(self) -> About:
        """What the page says. Raises StoreError."""
        now = time.monotonic()
        kept = self._about
        if kept is None or now - kept[0] > ABOUT_SECONDS:
            verifier = self.witness.verifier is not None
            about = describe(
                self._record, self.operating.said, verifier=verifier, newest=self.tally.newest
            )
            self._about = kept = (now, about)
        return kept[1]

    # -- requests

    def begin(self, environ: Mapping[str, Any]) -> tuple[float, str]:
        """A request has come: when, and its name from here on. ``end`` must follow."""
        return begin_request(self.tally, self._ids, environ)

    def end(
        self, began: tuple[float, str], environ: Mapping[str, Any], endpoint: str, status: int, reason: str = "",
        about: Checkpoint | None = None,
    ) -> None:
        """It was answered: count it, and log a line.

        Args:
            endpoint, reason: names of ours. about: the checkpoint that it brought, if any.
        """
        log_request(self.tally, self.operating.addresses, began, environ, endpoint, status, reason, about)


def begin_request(tally: Tally, ids: RequestIds, environ: Mapping[str, Any]) -> tuple[float, str]:
    """Count a request that has come; returns when, and its name."""
    tally.begin()
    return time.perf_counter(), ids.take(environ.get("HTTP_X_REQUEST_ID"))


def log_request(
    tally: Tally, addresses: str, began: tuple[float, str], environ: Mapping[str, Any], endpoint: str, status: int,
    reason: str = "", about: Checkpoint | None = None,
) -> None:
    """Count a request that was answered, and log a line. See ``Running.end``; addresses: one of ADDRESSES."""
    seconds = time.perf_counter() - began[0]
    tally.end(endpoint, status, reason, seconds, about)
    level = logging.WARNING if status >= 500 else logging.DEBUG if endpoint in _QUIET else logging.INFO
    if _LOG.isEnabledFor(level):
        _LOG.log(level, "request", extra=fields(
            id=began[1], endpoint=endpoint, status=status, reason=reason or None,
            origin=None if about is None else about.origin, size=None if about is None else about.size,
            seconds=seconds, peer=peer_of(environ, addresses),
        ))


def peer_of(environ: Mapping[str, Any], addresses: str) -> str | None:
    """Who asks, as far as the operator wants it logged.

    The last address that a proxy on this machine has added is as good as the proxy. From anybody else it is a claim.
    """
    if addresses == "none":
        return None
    peer = _address(environ.get("REMOTE_ADDR", ""))
    if peer is None or peer.is_loopback:
        peer = _address(environ.get("HTTP_X_FORWARDED_FOR", "").rpartition(",")[2].strip()) or peer
    if peer is None:
        return None
    if addresses == "full":
        return str(peer)
    return str(ipaddress.ip_network((peer, _NETWORK_BITS[peer.version]), strict=False))


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
