"""A small log with everything in it (map, erasure, journal, tiles, published files), made once and copied for each test.

Its keys are real and its messages of all kinds. ``World`` has the cosigners that know how far it got.
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from ktlog.config import Settings, load_settings
from ktlog.operator.create import load_public_keys, write_public_keys
from ktlog.operator.journal import journal_erasures
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    Fireproof,
    MoveIdentity,
    RevokeKey,
    parse_wire,
)
from ktlog.store.sqlite import SqliteStore
from ktlog.tlog.policy import format_policy
from tests.map_world import Cosigner, MapPress
from tests.operator_world import NOW, ORIGIN, Clock, Desk, Network, Submission
from tests.pkd_samples import ALICE, BOB, CAROL, bytes_of, public, revoke_by_token, text_of

DAVE, ERIN, FRED, GINA, HUGO = (f"https://example.com/users/{name}" for name in ("dave", "erin", "fred", "gina", "hugo"))


class WholeLog(MapPress):
    """A :class:`MapPress` whose leaf key is the one that its desk signs with, and whose policy is in its place."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        (directory / "keys" / "leaf").write_bytes(bytes_of("signing key leaf"))
        public_keys = load_public_keys(self.settings)
        write_public_keys(self.settings, replace(public_keys, leaf_keys=(public("leaf"),)))
        self.settings.publish_policy.write_bytes(format_policy(self.policy))

    def fill(self) -> WholeLog:
        send, time = self.desk.send, iter(range(NOW, NOW + 1000))
        self.cycle()
        send(AddKey(ALICE, public("a"), next(time)))
        send(AddKey(ALICE, public("a2"), next(time)))
        send(AddKey(BOB, public("b"), next(time)), "b")
        send(AddAuxData(BOB, "test", "bob's", None, next(time)), "b")
        send(Fireproof(BOB, next(time)), "b")
        self.cycle()
        send(MoveIdentity(BOB, CAROL, next(time)), "b")
        send(AddKey(DAVE, public("d"), next(time)), "d")
        send(AddKey(FRED, public("f"), next(time)), "f")
        send(BurnDown(DAVE, FRED, next(time)), "f")
        send(AddKey(ERIN, public("e"), next(time)), "e")
        self.desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("e"))).preimage, {}, {}))
        send(RevokeKey(ALICE, public("a"), next(time)), "a2")
        send(AddKey(GINA, public("g"), next(time)), "g")
        self.cycle()
        self.forget(GINA)
        self.cycle()
        send(AddKey(HUGO, public("h"), next(time)), "h")
        self.cycle()
        return self

    def forget(self, actor_id: str) -> None:
        """Erase an actor, and write it down."""
        self.erase(actor_id)
        self.desk.restart()
        self.desk.sequencer._now = self.clock
        journal_erasures(self.settings.journal, self.store, self.clock)

    def enrol_many(self, count: int, first: int = 0) -> None:
        for number in range(first, first + count):
            name = f"https://example.com/users/n{number:03}"
            self.desk.send(AddKey(name, public(f"n{number}"), NOW + number), f"n{number}")


def resume(old: WholeLog, directory: Path) -> WholeLog:
    """The log in *directory*, which is a copy of *old*'s or a backup of it, with cosigners that know what they knew."""
    log = object.__new__(WholeLog)
    log.clock, log.ticks, log.config = Clock(old.clock.now), old.ticks, old.config
    log.witnesses, log.verifier = [_twin(one, log.clock) for one in old.witnesses], _twin(old.verifier, log.clock)
    log.network = Network({f"{one.url}/add-checkpoint": one for one in (*log.witnesses, log.verifier)})
    log.policy = old.policy
    log.settings = load_settings(directory)
    log.store = SqliteStore.open(log.settings.database, origin=ORIGIN)
    log.desk = Desk(log.store, clock=log.clock)
    log.restart()
    return log


def _twin(cosigner: Cosigner, clock: Clock) -> Cosigner:
    twin = copy.copy(cosigner)
    twin.heads, twin.clock = dict(cosigner.heads), clock
    return twin


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Iterator[WholeLog]:
    """The log as it was made; its directory must not be changed."""
    log = WholeLog(tmp_path_factory.mktemp("whole") / "log")
    log.fill()
    yield log
    log.close()


def copy_of(log: WholeLog, target: Path) -> Settings:
    """A copy of its directory that nobody has open, checkpointed as after a clean end."""
    shutil.copytree(log.settings.directory, target, ignore=shutil.ignore_patterns("*.lock", "*-shm"))
    for path in (target / "tiles").rglob("*"):
        if path.is_file():
            os.chmod(path, 0o644)
    return replace(load_settings(target), directory=target)
