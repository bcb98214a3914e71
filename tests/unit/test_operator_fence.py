"""A sequencer that was overtaken lets no signature out, and no checkpoint."""

from __future__ import annotations

import pytest

from ktlog.errors import Conflict
from ktlog.operator.fence import FencedHeads, FencedTiles, epoch_fence
from ktlog.store.memory import MemoryStore


class Outside:
    """A signer and a tile store, of which only what matters here is remembered."""

    def __init__(self) -> None:
        self.signed: list[bytes] = []
        self.published: list[bytes] = []

    def sign(self, text: bytes, proof: object) -> tuple:
        self.signed.append(text)
        return ("line",)

    def publish_checkpoint(self, note: bytes) -> None:
        self.published.append(note)

    def checkpoint(self) -> bytes | None:
        return self.published[-1] if self.published else None

    def read(self, path: str) -> bytes:
        return path.encode()


@pytest.fixture
def world():
    store, outside = MemoryStore("keys.example.com", "spec"), Outside()
    fence = epoch_fence(store.reader(), store.claim_epoch())
    return store, outside, FencedHeads(outside, fence), FencedTiles(outside, fence)


def test_the_one_that_has_the_log_signs_and_publishes(world):
    _store, outside, heads, tiles = world
    assert heads.sign(b"head", ()) == ("line",)
    tiles.publish_checkpoint(b"note")
    assert outside.published == [b"note"] and tiles.read("checkpoint") == b"checkpoint"


def test_the_one_that_was_overtaken_does_not(world):
    store, outside, heads, tiles = world
    store.claim_epoch()
    for work in (lambda: heads.sign(b"head", ()), lambda: tiles.publish_checkpoint(b"note")):
        with pytest.raises(Conflict) as refusal:
            work()
        assert refusal.value.name == "Fenced"
    assert outside.published == []


def test_nor_the_one_that_is_overtaken_while_it_signs(world):
    store, outside, heads, _tiles = world
    sign = outside.sign

    def slow(text: bytes, proof: object) -> tuple:
        store.claim_epoch()
        return sign(text, proof)

    outside.sign = slow
    with pytest.raises(Conflict):
        heads.sign(b"head", ())
    assert outside.signed == [b"head"]


def test_what_somebody_overtaken_put_there_is_replaced(world, caplog):
    store, outside, _heads, fixed = world
    tiles = FencedTiles(outside, epoch_fence(store.reader(), store.state().epoch), replaceable=True)
    tiles.keep_shown()
    assert tiles.checkpoint() is None and outside.published == []
    tiles.publish_checkpoint(b"newer")
    fixed.publish_checkpoint(b"newer")
    outside.publish_checkpoint(b"older")
    fixed.keep_shown()
    assert outside.checkpoint() == b"older", "a store that compares before it replaces has no such moment"
    tiles.keep_shown()
    tiles.keep_shown()
    assert outside.published == [b"newer", b"newer", b"older", b"newer"]
    assert caplog.text.count("is shown again") == 1
    outside.publish_checkpoint(b"its successor's")
    store.claim_epoch()
    with pytest.raises(Conflict):
        tiles.keep_shown()
    assert outside.checkpoint() == b"its successor's"
