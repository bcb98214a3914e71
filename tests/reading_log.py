"""A published log with something of everything in it, for the tests of what can be read over HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from ktlog.config import Settings, write_settings
from ktlog.operator.create import create_log
from ktlog.operator.keys import load_checkpoint_signers, load_map_signers
from ktlog.operator.mapping import MapCycle
from ktlog.operator.publisher import Publisher
from ktlog.pkd.dialects import SPEC
from ktlog.pkd.keys import derive_key_id
from ktlog.pkd.messages import (
    AddAuxData,
    AddKey,
    BurnDown,
    MoveIdentity,
    RevokeAuxData,
    RevokeKey,
    aux_data_id,
    parse_wire,
)
from ktlog.store.sqlite import SqliteStore
from ktlog.store.tilefiles import TileFiles
from ktlog.tlog.policy import Policy
from tests.operator_world import NOW, ORIGIN, Desk, Network, Submission
from tests.pkd_samples import ALICE, BOB, CAROL, public, revoke_by_token, text_of

AGE = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
DAVE = "https://example.com/users/dave"
AGE_ID, OTHER_ID = aux_data_id("age-v1", AGE), aux_data_id("test", "other")


def key_id(leaf_index: int) -> str:
    return derive_key_id(ORIGIN, leaf_index)


@dataclass
class ReadingLog:
    """``desk`` sequences into the log; ``publish`` shows what it has. Alice has keys 2 and not 0, and aux data."""

    settings: Settings
    desk: Desk
    publisher: Publisher
    mapping: MapCycle

    def publish(self) -> None:
        self.publisher.publish(self.desk.size)

    def publish_map(self) -> None:
        """Of what is published."""
        self.mapping.hurry.set()
        self.mapping.tend(self.mapping.draft_if_due())


@contextmanager
def reading_log(directory: Path) -> Iterator[ReadingLog]:
    settings = replace(
        create_log(directory, ORIGIN, "spec", bytes(32)), aux_types="age-v1", rate_limit_exempt="127.0.0.0/8"
    )
    write_settings(settings)
    with SqliteStore.open(settings.database, origin=ORIGIN) as store:
        publisher = Publisher(
            settings=settings, store=store, tiles=TileFiles(settings.tiles),
            signers=load_checkpoint_signers(settings.keys, ORIGIN), policy=Policy(), fetcher=Network({}),
            now=lambda: NOW,
        )
        mapping = MapCycle(
            settings=settings, store=store, signers=load_map_signers(settings.keys, ORIGIN), policy=Policy(),
            fetcher=Network({}), now=lambda: NOW,
        )
        yield ReadingLog(settings, Desk(store), publisher, mapping)
        mapping.close()


def fill(desk: Desk) -> None:
    """Ten entries: every way in which keys and auxiliary data come and go."""
    desk.send(AddKey(ALICE, public("a"), NOW))
    desk.send(AddKey(BOB, public("b"), NOW + 1), "b")
    desk.send(AddKey(ALICE, public("c"), NOW + 2))
    desk.send(AddAuxData(ALICE, "age-v1", AGE, None, NOW + 3))
    desk.send(AddAuxData(ALICE, "test", "other", None, NOW + 4))
    desk.send(RevokeKey(ALICE, public("a"), NOW + 5), "c")
    desk.send(RevokeAuxData(ALICE, "test", OTHER_ID, None, NOW + 6), "c")
    desk.send(MoveIdentity(BOB, CAROL, NOW + 7), "b")
    desk.batch(Submission(parse_wire(SPEC, text_of(SPEC, revoke_by_token("b"))).preimage, {}, {}))
    desk.send(AddKey(DAVE, public("d"), NOW + 8), "d")
    desk.send(BurnDown(DAVE, ALICE, NOW + 9), "c")
