"""The log's side of a verifier that is not done yet: asked again soon, and never with another leaf."""

from __future__ import annotations

import pytest

from ktlog.operator.mappending import load_pending
from ktlog.operator.mapping import LONGEST_PAUSE_SECONDS, SOON
from ktlog.pkd.messages import AddKey
from ktlog.store.documents import FileDocument
from tests.map_world import MapPress
from tests.operator_world import NOW, respond
from tests.pkd_samples import ALICE, public, quick_argon2  # noqa: F401

NOT_YET = b"NotChecked: it is being checked: try again\n"


@pytest.fixture
def press(tmp_path):
    made = MapPress(tmp_path / "log", verified=True)
    made.cycle()
    made.desk.send(AddKey(ALICE, public("a"), NOW))
    yield made
    made.close()


def answers(press: MapPress, body: bytes, status: int) -> list[int]:
    """Let the verifier say this; returns a list that grows by one each time that it is asked."""
    asked: list[int] = []

    def answer(_: bytes):
        asked.append(press.clock.now)
        return respond(status, body, "text/plain; charset=utf-8")

    press.network.answers[f"{press.verifier.url}/add-checkpoint"] = answer
    return asked


def test_not_yet_is_asked_again_every_second_and_the_leaf_stays(press, caplog):
    asked = answers(press, NOT_YET, 503)
    press.cycle()
    pending = load_pending(FileDocument(press.settings.map_pending))
    for _ in range(9):
        press.cycle(1)
    assert len(asked) == 10
    assert load_pending(FileDocument(press.settings.map_pending)) == pending and press.checkpoint().size == 2
    assert f"no cosignature for the map from {press.verifier.url}" in caplog.text
    assert "answered 503: NotChecked: it is being checked" in caplog.text and "TooFewVerifiers" in caplog.text
    press.network.answers[f"{press.verifier.url}/add-checkpoint"] = press.verifier
    press.cycle(1)
    assert press.map.output_leaves(2, 3) == (pending.leaf,) and press.checkpoint().size == 3


def test_not_yet_for_ever_is_asked_less_often(press):
    asked = answers(press, NOT_YET, 503)
    press.cycle()
    for _ in range(SOON + 100):
        press.cycle(1)
    assert SOON <= len(asked) <= SOON + 100 / LONGEST_PAUSE_SECONDS + 6


def test_no_is_asked_ever_less_often_from_the_start(press, caplog):
    asked = answers(press, b"WrongMap: MapMismatch: leaf 2: its map is another\n", 422)
    press.cycle()
    for _ in range(60):
        press.cycle(1)
    assert len(asked) <= 8 and "answered 422: WrongMap: MapMismatch" in caplog.text
