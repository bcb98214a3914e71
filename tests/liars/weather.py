"""Honest runs under bad weather: a log that keeps every rule, whatever happens to it, its network and its auditor.

A run is some tens of steps drawn from a seed: messages of all kinds, erasures, a rotation of the leaf key, restarts and
kills of the auditor, growth and erasures in the middle of an audit, partial tiles that are gone once the full one is
there, requests that fail, witnesses that lag, clocks that differ. After each step the auditor may look. What it says of
the log may be that it is unreachable; anything else is a false alarm, and evidence of any kind a false conviction.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from auditor.audit import parse_selection
from auditor.debounce import Graces
from ktlog.errors import Unreachable
from ktlog.pkd import attributes
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    Message,
    MoveIdentity,
    RevokeKey,
    RevokeKeyThirdParty,
    UndoFireproof,
)
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.wire.fetch import Response
from tests.liars.judges import Auditor, Watcher, in_turn
from tests.liars.log import SimLog
from tests.liars.names import STEP, WITNESSES, cosigner, person
from tests.pkd_samples import public, token

NAMES = ("ann", "ben", "cleo", "dan", "eve", "fay")
LETTERS = "klmnopqrstuvwxyz"
SKEW_SECONDS = 240
"""By how much the auditor's clock may differ from the log's and the witnesses'."""


MEANWHILE_SECONDS = 30
"""What an audit takes at most while something happens: with the skew, less than cosigners' clocks may be ahead."""


_MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Nothing here rests on what a disk does, and memory is quicker."""


class Killed(BaseException):
    """The auditor's process ends, wherever it is."""


@dataclass
class Outcome:
    seed: int
    faults: list[str] = field(default_factory=list)
    steps: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


class Run:
    """One honest log, and one auditor of it."""

    def __init__(self, seed: int, directory: Path) -> None:
        self.draw = random.Random(f"honest {seed}")
        self.log = (_wide if self.draw.random() < 0.25 else _narrow)(attributes.argon2id).clone()
        self.log.refused_too = False
        self.log.quick = True
        self.directory = directory
        self.auditor = Auditor(directory / "audits", quick=True)
        self.watched = self.draw.random() < 0.4
        self.outcome = Outcome(seed)
        self.leaf_keys = 1

    def play(self) -> Outcome:
        steps = self.draw.randint(6, 10)
        for _ in range(steps):
            step = self.draw.choices(list(STEPS), list(STEPS.values()))[0]
            self.note(step.__name__)
            step(self)
        self.note("at last")
        self.look("", calm=True)
        self.watched = not self.watched
        self.look("", calm=True)
        return self.outcome

    def note(self, step: str) -> None:
        self.outcome.steps.append(step)
        self.outcome.counts[step] += 1

    # -- the auditor

    def look(self, why: str, *, calm: bool = False) -> None:
        """An audit, in whatever weather the log has; *calm*: in none, and then nothing at all may be found."""
        if calm:
            self.log.weather = _calm
        skew = self.draw.randint(-SKEW_SECONDS, SKEW_SECONDS)
        if self.watched:
            self.watch(why, self.log.now + skew)
            return
        self.auditor.answers = parse_selection("all" if calm or self.draw.random() < 0.3 else "sample:2")
        try:
            advance = self.auditor.look(self.log, now=self.log.now + skew)
        except Killed:
            self.outcome.counts["killed"] += 1
            return
        finally:
            self.log.weather = _calm
        self.outcome.counts["looks"] += 1
        for finding in advance.report.findings:
            if calm or finding.kind != "Unreachable":
                self.outcome.faults.append(f"{why or 'in the end'}: {finding.kind} {finding.name}: {finding.what}")
            self.outcome.counts[finding.kind] += 1
        self.outcome.faults += [f"{why}: evidence {path.name}" for path in self.auditor.evidence]

    def watch(self, why: str, now: int) -> None:
        """One look of a watch, or one reading."""
        watcher = Watcher(self.directory / "watch", self.log, read="all", quick=True, graces=Graces())
        try:
            with watcher:
                (watcher.read if self.draw.random() < 0.4 else watcher.look)(now)
        except Killed:
            self.outcome.counts["killed"] += 1
            return
        finally:
            self.log.weather = _calm
        self.outcome.counts["watched"] += 1
        self.outcome.faults += [f"{why or 'in the end'}: {name}: {what}" for name, what in watcher.opened]
        self.outcome.faults += [f"{why}: evidence {path.name}" for path in watcher.evidence]

    # -- the log

    def grow(self, seconds: int | None = None) -> None:
        for _ in range(self.draw.choice((0, 1, 1, 2, 3))):
            self.one()
        self.show(seconds)

    def one(self) -> None:
        """One message that the rules take, if the first that are drawn are such."""
        for _ in range(4):
            message, letter = self.message()
            if self.log.log(message, letter):
                self.outcome.counts[type(message).__name__] += 1
                return

    def message(self) -> tuple[Message, str]:
        draw, log = self.draw, self.log
        name, other = (person(draw.choice(NAMES)) for _ in range(2))
        actor, operator = log.live.actors.get(name), log.live.actors.get(other)
        fresh = draw.choice(LETTERS)
        if actor is None or not actor.keys:
            return AddKey(name, public(fresh), log.tick()), fresh
        mine = {key.public_key: letter for letter in LETTERS for key in actor.keys if key.public_key == public(letter)}
        signer = draw.choice(sorted(mine.values()))
        others = [letter for letter in sorted(mine.values()) if letter != signer]
        match draw.randrange(8):
            case 0:
                return AddKey(name, public(fresh), log.tick()), signer
            case 1 | 2 if others:
                return RevokeKey(name, public(draw.choice(others)), log.tick()), signer
            case 3:
                return (UndoFireproof if actor.fireproof else Fireproof)(name, log.tick()), signer
            case 4:
                empty = [one for one in map(person, NAMES) if one not in log.live.actors or not log.live.actors[one].keys]
                return MoveIdentity(name, draw.choice(empty or [other]), log.tick()), signer
            case 5 if operator is not None and operator.keys and other != name:
                theirs = [letter for letter in LETTERS if public(letter) == operator.keys[0].public_key]
                return BurnDown(name, other, log.tick()), theirs[0]
            case 6 if draw.random() < 0.3:
                return RevokeKeyThirdParty(token(signer)), signer
        return AddAuxData(name, "test-v1", f"note {draw.randrange(100)}", None, log.tick()), signer

    def erase(self) -> None:
        if self.log.live.actors:
            self.log.erase(self.draw.choice(sorted(self.log.live.actors)))
            self.outcome.counts["erased"] += 1

    def show(self, seconds: int | None = None) -> None:
        """Publish, some time later; one witness may lag, and its cosignature be missing."""
        names = list(WITNESSES)
        if self.draw.random() < 0.3:
            names.remove(self.draw.choice(names))
        log = self.log
        log.tick(self.draw.choice((60, STEP, 2 * STEP)) if seconds is None else seconds)
        log.publish(cosigners=[cosigner(name) for name in names]).add_leaf()
        log.pruned_below = log.size if self.draw.random() < 0.5 else log.pruned_below

    # -- the weather

    def later(self, happens: Callable[[], None]) -> Callable[[str], Response | None]:
        """Weather in which something happens once, in the middle of an audit."""
        left = [self.draw.randint(1, 12)]

        def weather(path: str) -> Response | None:
            left[0] -= 1
            if left[0] == 0:
                happens()
            return None

        return weather

    def flaky(self) -> Callable[[str], Response | None]:
        """Weather in which requests fail, sometimes all attempts at one."""
        share = self.draw.choice((0.05, 0.2, 0.5))

        def weather(path: str) -> Response | None:
            if self.draw.random() >= share:
                return None
            if self.draw.random() < 0.5:
                raise Unreachable(self.draw.choice(("Timeout", "Refused", "BrokenAnswer")), f"no answer about {path}")
            return Response(self.draw.choice((429, 500, 502, 503, 504)), {}, b"later", path)

        return weather


def _calm(path: str) -> Response | None:
    return None


def _grows(run: Run) -> None:
    run.grow()


def _looks(run: Run) -> None:
    run.look("an audit")


def _erases(run: Run) -> None:
    run.erase()
    run.show()


def _rotates_leaf_key(run: Run) -> None:
    run.log.leaf_key = f"leaf-{run.leaf_keys}"
    run.log.leaf_keys.append(run.log.leaf_key)
    run.leaf_keys += 1
    run.grow()


def _grows_meanwhile(run: Run) -> None:
    run.log.weather = run.later(lambda: run.grow(MEANWHILE_SECONDS))
    run.look("growth during an audit")


def _erases_meanwhile(run: Run) -> None:
    def happens() -> None:
        run.erase()
        run.show(MEANWHILE_SECONDS)

    run.log.weather = run.later(happens)
    run.look("an erasure during an audit")


def _erases_all_along(run: Run) -> None:
    """An audit so slow that there is an erasure in every attempt."""
    left = [run.draw.randint(2, 4)]

    def weather(path: str) -> Response | None:
        if path.startswith("records/") and left[0]:
            left[0] -= 1
            run.erase()
            run.show(MEANWHILE_SECONDS)
        return None

    run.log.weather = weather
    run.look("erasures all along an audit")


def _beats(run: Run) -> None:
    """Nothing new: the same heads, cosigned again, and a new output leaf of the same map."""
    run.log.idle(STEP).add_leaf()


def _shows_little(run: Run) -> None:
    run.log.weather = run.flaky()
    run.look("an audit over a bad network")


def _is_killed(run: Run) -> None:
    def happens() -> None:
        raise Killed

    run.log.weather = run.later(happens)
    run.look("an audit that is killed")


def _starts_anew(run: Run) -> None:
    """Another auditor, who knows nothing yet."""
    run.auditor = Auditor(run.auditor.directory.with_name(f"{run.auditor.directory.name}x"), quick=True)
    run.look("a first audit")


STEPS: dict[Callable[[Run], None], int] = {
    _grows: 8, _looks: 3, _erases: 1, _rotates_leaf_key: 1, _grows_meanwhile: 2, _erases_meanwhile: 1, _shows_little: 2,
    _is_killed: 1, _starts_anew: 1,
    _erases_all_along: 1, _beats: 1,
}


@cache
def _narrow(_argon2id: object) -> SimLog:
    return SimLog().enrol("ann", "k").enrol("ben", "l").grow()


@cache
def _wide(_argon2id: object) -> SimLog:
    """Ten entries before the first whole tile."""
    return SimLog().enrol("ann", "k").enrol("ben", "l").chat(TILE_WIDTH - 12).grow()


def play(seed: int) -> Outcome:
    """The run that *seed* draws."""
    with tempfile.TemporaryDirectory(prefix="ktlog-weather-", dir=_MEMORY) as directory, in_turn():
        return Run(seed, Path(directory)).play()

