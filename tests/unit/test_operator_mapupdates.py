"""The operator's updates: one beside every leaf, the same after every crash, gone after 30 days."""

from __future__ import annotations

import random
import shutil

import pytest

import ktlog.operator.mapupdates as product
from auditor.mapfold import MapFold
from ktlog.errors import StoreError
from ktlog.keymap.output import MapConfig, format_config
from ktlog.keymap.updates import KEPT_SECONDS, parse_update, update_path, update_roots
from ktlog.operator.mapping import HOOKS
from ktlog.operator.mapupdates import MapUpdates, encode_changes
from ktlog.pkd.messages import AddKey
from ktlog.store.documents import FileDocument
from ktlog.store.mapcontract import Live
from ktlog.store.mapdb import SqliteMapStore
from tests.map_world import MapPress
from tests.operator_world import NOW
from tests.pkd_samples import ALICE, BOB, public, quick_argon2  # noqa: F401


@pytest.fixture
def press(tmp_path):
    made = MapPress(tmp_path / "log")
    yield made
    made.close()


def updates(press: MapPress) -> list[bytes | None]:
    return [press.map_tiles.read(update_path(k)) for k in range(1, press.map.state().output.size)]


def test_one_beside_every_leaf_that_leads_from_map_to_map(press):
    press.cycle()
    for name in "ac":
        press.desk.send(AddKey(ALICE, public(name), NOW))
        press.desk.send(AddKey(BOB, public(name), NOW), "a" if name == "c" else name)
        press.cycle()
    press.cycle(press.settings.heartbeat_seconds)
    fold = MapFold()
    for leaf, data in zip(press.leaves(), updates(press), strict=True):
        assert fold.apply(parse_update(data)) == leaf.map_root
    assert [len(parse_update(data).changes) for data in updates(press)] == [0, 2, 2, 0]
    press.clock.now += 10
    press.erase(BOB)
    press.cycle()
    (change,) = parse_update(updates(press)[-1]).changes
    assert change.before is not None and fold.apply(parse_update(updates(press)[-1])) == press.leaves()[-1].map_root


def test_a_file_that_cannot_be_written_holds_the_leaf_back(press, monkeypatch):
    press.cycle()
    press.desk.send(AddKey(ALICE, public("a"), NOW))

    def full(self, files):
        raise StoreError("DiskFull", "no room")

    with monkeypatch.context() as patch:
        # The tiles go elsewhere: the updates alone find no room.
        tiles = press.mapping._updates._tiles
        press.mapping._updates._tiles = type("Full", (), {"write_tiles": full, "read": tiles.read})()
        with pytest.raises(StoreError, match="DiskFull"):
            press.cycle()
        assert press.map.state().output.size == 2 and press.checkpoint().size == 2
        patch.undo()
    press.restart()
    press.cycle()
    assert press.checkpoint().size == 3 and len(parse_update(updates(press)[-1]).changes) == 1


class Killed(BaseException):
    pass


@pytest.mark.parametrize("hook", HOOKS)
def test_whoever_dies_on_the_way_publishes_the_same_update(press, monkeypatch, hook):
    press.cycle()
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    written = []
    honest = type(press.map_tiles).write_tiles

    def write(self, files):
        written.append({path: data for path, data in files.items() if path.startswith("updates/")})
        honest(self, files)

    def die(name: str) -> None:
        if name == hook:
            raise Killed

    monkeypatch.setattr(type(press.map_tiles), "write_tiles", write)
    with monkeypatch.context() as patch:
        patch.setattr("ktlog.operator.mapping.reach", die)
        with pytest.raises(Killed):
            press.cycle()
    press.mapping.close()
    press.restart()
    press.cycle()
    press.cycle()
    assert press.checkpoint().size == 3
    made = [files[update_path(2)] for files in written if update_path(2) in files]
    assert made and set(made) == {updates(press)[1]}
    before, after = (leaf.map_root for leaf in press.leaves())
    assert update_roots(parse_update(made[0])) == (before, after)


def test_after_thirty_days_they_go(press, monkeypatch):
    monkeypatch.setattr(product, "STEP", 3)
    for _ in range(8):
        press.cycle(press.settings.heartbeat_seconds)
    assert None not in updates(press)
    press.clock.now = press.leaves()[4].time + KEPT_SECONDS
    sweep = press.mapping._updates
    for gone in (3, 4, 4):
        sweep.sweep(9)
        assert [data is None for data in updates(press)] == [True] * gone + [False] * (8 - gone)
    press.clock.now += 1
    sweep.sweep(9)
    assert updates(press)[4] is None and updates(press)[5] is not None
    mark = FileDocument(press.settings.map_updates_swept)
    assert mark.read() == b"6\n"
    # A lost or damaged mark only costs going over it again.
    for content in (None, b"six\n", b"2\n"):
        mark.remove() if content is None else mark.write(content)
        again = MapUpdates(press.map, press.map_tiles, mark, press.clock)
        for _ in range(3):
            again.sweep(9)
        assert updates(press)[4] is None and updates(press)[5] is not None
        again.close()
    shutil.rmtree(press.settings.map_tiles / "updates")
    sweep.sweep(9)


def test_what_changes_too_much_is_not_published(press, monkeypatch, caplog):
    monkeypatch.setattr(product, "MAX_CHANGES", 1)
    press.cycle()
    press.desk.send(AddKey(ALICE, public("a"), NOW))
    press.desk.send(AddKey(BOB, public("b"), NOW), "b")
    press.cycle()
    assert updates(press)[1] is None and press.checkpoint().size == 3 and "too much at once" in caplog.text
    press.desk.send(AddKey(BOB, public("c"), NOW), "b")
    press.cycle()
    assert update_roots(parse_update(updates(press)[2]))[1] == press.leaves()[-1].map_root


def test_changes_of_another_map_are_refused_and_those_that_are_none_left_out(tmp_path):
    config = format_config(MapConfig("k", "spec"))
    SqliteMapStore.create(tmp_path / "map.db", "k", config)
    store = SqliteMapStore.open(tmp_path / "map.db", origin="k", config=config)
    chance = random.Random(5)
    first = [Live(chance.randbytes(32), chance.randbytes(32), b"v", bytes(16), b"h") for _ in range(40)]
    before = store.state()
    after = store.update(first, expected=before, input_size=1, erasures=0, make_leaf=lambda root: root)
    with pytest.raises(StoreError, match="MapMoved"):
        encode_changes(store, before, first)
    again = [first[3], Live(first[4].index, bytes(32), b"v", bytes(16), b"h")]
    (change,) = parse_update(encode_changes(store, after, again)).changes
    assert change.index == first[4].index
    assert encode_changes(store, after, first[:9]) == encode_changes(store, after, [])
    store.close()
