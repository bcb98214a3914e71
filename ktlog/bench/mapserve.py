"""Lookups over HTTP from a log that ``ktlog serve`` runs, how soon it answers, and what memory it takes."""

from __future__ import annotations

import contextlib
import http.client
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

from ktlog.bench.mapped import trust_policy
from ktlog.bench.names import actor_name
from ktlog.bench.row import Row
from ktlog.bench.usage import Server
from ktlog.client.directory import Directory
from ktlog.client.proof import verify_bundle
from ktlog.config import Settings
from ktlog.durable import write_atomic
from ktlog.errors import Unreachable
from ktlog.keymap.bundle import parse_bundle
from ktlog.keymap.check import check_bundle
from ktlog.operator.stores import map_config
from ktlog.pkd.canonical import canonical
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.policy import Policy
from ktlog.wire.actor_id import parse_https_url
from ktlog.wire.fetch import Response

CONNECTIONS = 4
VERIFIED_SHARE = 100
"""One answer in so many is verified."""
WARM_UP = 300
CLIENT_LOOKUPS = 60
START_SECONDS = 120.0
IDLE_SECONDS = 5.0
"""After which a connection is not used again: the server may be closing it."""
_READY = "listens on http://"
_LOADED = "NotCompared"
"""Said by the sequencer once the log and its map passed their checks and the witnesses are asked, who do not exist."""


def measure_server(settings: Settings, actors: int, requests: int, chance: random.Random) -> list[Row]:
    """Start the log, ask it for *requests* light bundles of uniformly drawn actors, and stop it.

    Raises:
        Unreachable: ``NoWorker``, ``BadStatus``.
        Invalid, Stale, PolicyUnmet: an answer that does not verify.
    """
    policy = trust_policy(settings)
    started = time.perf_counter()
    with running(settings) as (server, address):
        site = Site(settings, address)
        _, newest = parse_signed_checkpoint(site.get(f"{settings.url}/map/checkpoint").body)
        site.ask(actor_name(0))
        restart, used = time.perf_counter() - started, server.cpu_seconds()
        rows = [
            Row("restart until a lookup is answered, map checked", restart, "s", 3.0, cpu_ms=used * 1000),
            *measure_lookups(site, server, policy, actors, requests, chance),
            *measure_client(site, policy, actors, min(CLIENT_LOOKUPS, requests), chance),
        ]
        peaks = server.peaks()
    rows.append(Row("memory of the largest process of the server", max(peaks) / 2**20, "MiB", 150))
    return rows


# The server


@contextlib.contextmanager
def running(settings: Settings) -> Iterator[tuple[Server, str]]:
    """The log under ``ktlog serve``, and its address, once it answers and the sequencer has checked its map."""
    with tempfile.TemporaryDirectory() as scratch:
        # The witnesses' names lead nowhere, and no resolver is asked for them.
        hosts = {parse_https_url(f"{item.url}/").host for item in trust_policy(settings).witnesses.values()}
        dial = Path(scratch) / "dial.json"
        write_atomic(dial, canonical({"hosts": dict.fromkeys(hosts, "127.0.0.1:9")}))
        words = [sys.executable, "-m", "ktlog", "serve", "--dir", str(settings.directory), "--listen", "127.0.0.1:0"]
        environment = os.environ | {"KTLOG_DIAL": str(dial)}
        with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment) as process:
            try:
                yield Server(process.pid), _started(process)
            finally:
                process.terminate()
                process.wait()


def _started(process: subprocess.Popen[str]) -> str:
    if process.stderr is None:
        raise AssertionError("the server was started without a pipe")
    late = threading.Timer(START_SECONDS, process.kill)
    late.start()
    address, loaded = "", False
    try:
        for line in process.stderr:
            if _READY in line:
                address = line.partition(_READY)[2].strip()
            elif _LOADED in line:
                loaded = True
            else:
                sys.stderr.write(line)
            if address and loaded:
                # Nobody reads on otherwise, and a full pipe would stop the server.
                threading.Thread(target=_drain, args=(process,), daemon=True).start()
                return address
    finally:
        late.cancel()
    raise Unreachable("NoWorker", "the server did not start; its reason is above")


def _drain(process: subprocess.Popen[str]) -> None:
    with contextlib.suppress(ValueError):  # closed at the end
        for _line in process.stderr or ():
            pass


class Site:
    """Asks the server over plain HTTP, one connection for each thread, and counts the seconds that it waits."""

    def __init__(self, settings: Settings, address: str) -> None:
        self.settings = settings
        self.waited = 0.0
        self._address = address
        self._local = threading.local()

    def get(
        self, url: str, *, accept: str = "*/*", headers: Mapping[str, str] | None = None, max_bytes: int | None = None
    ) -> Response:
        """As ``ktlog.wire.fetch.Fetcher.get``, but for TLS and limits."""
        started = time.perf_counter()
        connection, used = getattr(self._local, "connection", (None, 0.0))
        if connection is None or started - used > IDLE_SECONDS:
            connection = http.client.HTTPConnection(self._address, timeout=START_SECONDS)
        self._local.connection = connection, started
        try:
            connection.request(
                "GET", url.removeprefix(self.settings.url), headers={"Host": self.settings.origin, "Accept": accept}
            )
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise Unreachable("NoWorker", f"the server does not answer: {error}") from None
        self.waited += time.perf_counter() - started
        found = {name.lower(): value for name, value in response.getheaders()}
        return Response(response.status, found, body, url)

    def ask(self, actor_id: str) -> bytes:
        """A light bundle. Raises Unreachable: ``BadStatus``."""
        response = self.get(f"{self.settings.url}/map/bundle/{quote(actor_id, safe='')}?aux=true")
        if response.status != 200:
            raise Unreachable("BadStatus", f"status {response.status}: {response.body[:200]!r}")
        return response.body


# Lookups


def measure_lookups(
    site: Site, server: Server, policy: Policy, actors: int, requests: int, chance: random.Random
) -> list[Row]:
    """Light lookups over a few connections at once: how many the server answers in a second of its CPU time."""
    warm(site.settings)
    checkpoint = site.get(f"{site.settings.url}/map/checkpoint").body
    now = int(time.time())

    def one(number: int, name: str) -> int:
        body = site.ask(name)
        if number % VERIFIED_SHARE == 0:
            verify_bundle(body, checkpoint, policy, name, now, config=map_config(site.settings))
        return len(body)

    with ThreadPoolExecutor(CONNECTIONS) as pool:
        def run(count: int) -> list[int]:
            return list(pool.map(one, range(count), [actor_name(chance.randrange(actors)) for _ in range(count)]))

        run(min(WARM_UP, requests))
        started, cpu = time.perf_counter(), server.cpu_seconds()
        sizes = run(requests)
        seconds, cpu = time.perf_counter() - started, server.cpu_seconds() - cpu
    return [
        Row("light lookups a second of the server's CPU time", requests / max(cpu, 1e-9), "/s", 300, at_least=True),
        Row("light lookups a second, clients on the same machine", requests / seconds, "/s", None),
        Row("bytes of a light bundle, largest", max(sizes), "bytes", 4096),
    ]


def warm(settings: Settings) -> None:
    """Read the stores once, so that the system's cache has what lookups read and the disk is not measured."""
    for path in (settings.database, settings.map_database):
        with path.open("rb") as file:
            while file.read(1 << 20):
                pass


def measure_client(site: Site, policy: Policy, actors: int, count: int, chance: random.Random) -> list[Row]:
    """What a lookup costs whoever asks, less the waiting for answers; and what of a bundle's check is hashing."""
    settings = site.settings
    names = [actor_name(chance.randrange(actors)) for _ in range(count)]
    checkpoint = site.get(f"{settings.url}/map/checkpoint").body
    head = parse_signed_checkpoint(checkpoint)[1]
    now = int(time.time())
    own, cpu, whole, hashing = [], [], [], []
    with tempfile.TemporaryDirectory() as state:
        directory = Directory(policy, state=state, domains={settings.origin: settings.origin}, fetcher=site)
        directory.lookup(names[0])
        for name in names:
            site.waited = 0.0
            started, used = time.perf_counter(), time.thread_time()
            directory.lookup(name)
            own.append(time.perf_counter() - started - site.waited)
            cpu.append(time.thread_time() - used)
    for name in names:
        data, config = site.ask(name), map_config(settings)
        started = time.thread_time()
        verify_bundle(data, checkpoint, policy, name, now, config=config)
        whole.append(time.thread_time() - started)
        started = time.thread_time()
        check_bundle(parse_bundle(data), name, config, head.size, head.root, now=now, as_of=now, max_age=3600)
        hashing.append(time.thread_time() - started)
    return [
        Row("a client's lookup beyond the network", _ms(own), "ms", 10, cpu_ms=_ms(cpu)),
        Row("a bundle verified with all its signatures, CPU", _ms(whole), "ms", None),
        Row("a bundle checked beyond its signatures, CPU", _ms(hashing), "ms", 2),
    ]


def _ms(values: Sequence[float]) -> float:
    return statistics.median(values) * 1000
