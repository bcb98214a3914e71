"""A scripted network for the watch: hosts with what they answer, a clock that a test moves, one log behind it all.

``Net`` answers like a fetcher: ``net.hosts[host]`` is a function of the path, or an exception. A witness of this world
shows whatever head a test gives it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from auditor.debounce import Graces
from auditor.findings_store import FindingStore
from auditor.logwatch import LogDirectory, LogWatch, Round, Settings
from auditor.state import AuditDirectory
from auditor.watchfile import Watched
from ktlog.client.verify import Log
from ktlog.errors import Unreachable
from ktlog.tlog.note import COSIGNATURE_MLDSA44, signer_from_seed
from tests.auditor_world import NOW, ORIGIN, Answer, World, checkpoint_message, log_under_audit, policy

WITNESS_HOST = "w1.witness.example"
MIRROR_HOST = "m1.mirror.example"
OTHER_HOST = "other.alpha.example"
HASH = hashlib.sha256(ORIGIN.encode()).hexdigest()

Files = dict[str, bytes | Answer | Exception]


@cache
def cheap_world() -> World:
    """Ten entries without a commitment to compute. Never changed."""
    world = World()
    for _ in range(10):
        world.say(checkpoint_message(world), "beta")
    return world.publish()


class Net:
    """Answers GETs by host and path. ``down`` are hosts that do not answer."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.files: dict[str, Files] = {WITNESS_HOST: {}, MIRROR_HOST: {}, OTHER_HOST: {}}
        self.down: set[str] = set()
        self.before: Callable[[str], object] = lambda url: None
        self.asked: list[str] = []

    def get(self, url: str, *, max_bytes: int | None = None) -> Answer:
        self.asked.append(url)
        self.before(url)
        parts = urlsplit(url)
        if parts.netloc in self.down:
            raise Unreachable("Timeout", f"{url} does not answer")
        if parts.netloc == ORIGIN:
            return self.world.get(url, max_bytes=max_bytes)
        found = self.files[parts.netloc].get(parts.path.removeprefix("/"))
        if isinstance(found, Exception):
            raise found
        if isinstance(found, Answer):
            return found
        return Answer(404, b"") if found is None else Answer(200, found)

    def witness_shows(self, note: bytes, evidence: bytes | None = None) -> None:
        self.files[WITNESS_HOST][f"{HASH}/checkpoint"] = note
        if evidence is not None:
            self.files[WITNESS_HOST][f"{HASH}/evidence"] = evidence

    def mirror_shows(self, world: World) -> None:
        """All of *world* as it is published."""
        self.files[MIRROR_HOST] = {f"{HASH}/{path}": data for path, data in world.serve.items()}

    def other_shows(self, world: World) -> None:
        self.files[OTHER_HOST] = dict(world.serve)


class Told:
    """An announcer that remembers."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, bool]] = []
        self.events: list[object] = []
        self.fail: Exception | None = None

    def finding(self, row) -> None:
        if self.fail is not None:
            raise self.fail
        self.rows.append((row.name, row.key, row.is_open))

    def take(self, origin, events, head, files, now) -> None:
        self.events.extend(events)

    def look_live(self, origin, keys_of, now) -> None:
        pass


class WatchedWorld:
    """One log watched in *directory*; ``look`` moves the clock on and looks."""

    def __init__(self, directory: Path, world: World | None = None, **options) -> None:
        self.directory = directory
        self.net = Net(world or cheap_world().clone())
        self.now = NOW
        self.told = Told()
        self.graces = options.pop("graces", Graces())
        self.every = 60
        self.watched = Watched(**{
            "log": log_under_audit(), "policy": policy(), "read": "none", "commitments": "none", **options
        })
        self._open()

    def _open(self) -> None:
        self.store = FindingStore(self.directory)
        self.main = AuditDirectory(self.directory)
        self.main.__enter__()
        self.state = LogDirectory(self.directory / "logs" / "one", self.main)
        self.state.__enter__()
        settings = Settings(graces=self.graces, pause=lambda seconds: None)
        self.log = LogWatch(
            self.watched, self.store, self.main, self.state, self.net, self.net, settings, self.told
        )

    def close(self) -> None:
        self.state.__exit__()
        self.main.__exit__()
        self.store.close()

    def restart(self) -> None:
        self.close()
        self._open()

    def look(self, times: int = 1, every: int | None = None) -> list[Round]:
        done = []
        for _ in range(times):
            self.now += self.every if every is None else every
            done.append(self.log.look(self.now))
            self.log.announce()
        return done

    def names(self) -> set[str]:
        return {row.name for row in self.store.open()}

    def __enter__(self) -> WatchedWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@cache
def second_log(origin: str) -> Log:
    """A log of its own key, of which nothing is published here."""
    return Log(origin, (signer_from_seed(origin, COSIGNATURE_MLDSA44, b"\x0c" * 32).vkey,), f"https://{origin}")
