"""Three derivations of one map: the operator's rows, the verifier's rebuild, the auditor's updates and parts.

The histories are those of ``test_map_derivations``: random, and against the rules too. After some entries there is an
output leaf; then all three must have come to one root, and the auditor must find exactly the changed leaves in the
update that the operator's rows give. One who comes late, after erasures, must find no fault with what was published.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.mapfold import LeafTree, MapFold, MapLeaves, check_changes, fold_leaves
from ktlog.errors import Invalid, MessageRejected
from ktlog.keymap.prefix import MISSING, PrefixLeaf
from ktlog.keymap.updates import MapUpdate, build_update, format_update, parse_update, update_roots
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.messages import message_from_plain
from ktlog.pkd.replay import Directory
from ktlog.pkd.withheld import read_fragment
from ktlog.store.mapbatch import prove_all
from ktlog.store.maptree import grow, grown_depth, write_leaves
from tests.erasure_log import ORIGIN
from tests.mapped_log import MappedLog
from tests.naive_map import root as naive_root
from tests.pkd_samples import quick_argon2  # noqa: F401 - the fixture works by being here
from tests.property.test_map_derivations import Step, dialects, stories, take_step
from tests.unit.test_store_maptree import Rows
from witness.derivation import Derivation
from witness.maptree import rebuild_root


class OperatorRows(Rows):
    """The operator's tree in rows, which grows down by itself every few leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.size, self.depth, self.root = 0, 0, MISSING
        self.now: dict[bytes, bytes] = {}

    def bucket(self, number: int) -> bytes:
        return self.kept["buckets"].get(number, b"")

    def some_bucket(self, start: int, end: int) -> bytes:
        return next((row for number, row in sorted(self.kept["buckets"].items()) if start <= number < end), b"")

    def publish(self, number: int, leaves: Iterable[PrefixLeaf]) -> bytes:
        """The update of output leaf *number*, after which the tree has these leaves."""
        changed = {leaf.index: leaf.commitment for leaf in leaves if self.now.get(leaf.index) != leaf.commitment}
        update = build_update(number, changed, prove_all(self, self.depth, sorted(changed)))
        changes = [PrefixLeaf(*item) for item in changed.items()]
        self.size, self.root = write_leaves(self, self.size, self.depth, self.root, changes)
        self.now |= changed
        wanted = max(grown_depth(self.size, self.depth), 3 if self.size > 2 else 0)
        grow(self, self.depth, wanted)
        self.depth = wanted
        return format_update(update)


class Followed(MappedLog):
    """Tells an auditor of every entry as it is taken."""

    leaves: MapLeaves

    def _follow(self, at: int, message: Any, change: Any, page: Any) -> None:
        super()._follow(at, message, change, page)
        self.leaves.touch(
            (leaf.actor_id for leaf in change.history), {name: self.salts[name] for name in change.needs_salt}
        )


def publish_all(
    story: list[Step], dialect: str, every: int, *, refused_too: bool = True
) -> tuple[Followed, list[tuple[int, int, bytes, bytes]]]:
    """The log after *story*, and of each output leaf its input size, erasures, root and update."""
    log = Followed(DIALECTS[dialect], refused_too=refused_too)
    derivation = Derivation(ORIGIN, commitments=False)
    log.leaves, fold, rows = MapLeaves(log.live), MapFold(), OperatorRows()
    published: list[tuple[int, int, bytes, bytes]] = []
    erased = 0
    for number, step in enumerate(story):
        take_step(log, derivation, step)
        erasing = len(log.records) > erased
        # An erasure is committed to by a leaf of exactly its input size.
        if not erasing and number % every:
            continue
        for record in log.records[erased:]:
            log.leaves.erase(record)
        erased = len(log.records)
        data = rows.publish(len(published) + 1, log.map_leaves())
        update = parse_update(data)
        check_changes(update, log.leaves.settle())
        assert fold.apply(update) == derivation.map_root() == rows.root == log.leaves.root() == update_roots(update)[1]
        published.append((log.live.size, erased, rows.root, data))
    return log, published


@settings(max_examples=20, deadline=None)
@given(stories, dialects, st.integers(1, 6))
def test_all_three_come_to_one_root(story: list[Step], dialect: str, every: int) -> None:
    publish_all(story, dialect, every)


@settings(max_examples=12, deadline=None)
@given(stories, dialects, st.integers(1, 6))
def test_who_comes_late_finds_no_fault(story: list[Step], dialect: str, every: int) -> None:
    """With every update, and with none: then whatever is not hidden by an erasure must be derived from all leaves."""
    log, published = publish_all(story, dialect, every, refused_too=False)
    directory = Directory(ORIGIN, log.records)
    with_updates, without = (MapLeaves(directory, log.records) for _ in range(2))
    fold, waiting = MapFold(), list(published)

    def judge() -> None:
        while waiting and waiting[0][0] == directory.size:
            _size, erasures, root, data = waiting.pop(0)
            for leaves in (with_updates, without):
                for record in log.records[leaves.erasures : erasures]:
                    leaves.erase(record)
            update = parse_update(data)
            check_changes(update, with_updates.settle(), with_updates.hidden)
            assert fold.apply(update) == root
            without.settle()
            assert not without.complete or without.root() == root

    judge()
    for at, (preimage, plain) in enumerate(zip(log.preimages, log.plains, strict=True)):
        wire, message = message_from_plain(log.dialect, preimage, plain, commitments=False)
        try:
            if message is None:
                change = directory.replay_fragment(wire, read_fragment(wire, plain), log.entries[at]).change
            else:
                change = directory.replay(wire, message, log.entries[at])
        except MessageRejected:
            directory.append_void(at, log.entries[at])
        else:
            salts = {plain[name]: salt for name, salt in log.pages[at].salts.items() if plain[name] is not None}
            for leaves in (with_updates, without):
                leaves.touch((leaf.actor_id for leaf in change.history), salts)
        judge()
    assert not waiting and without.complete


def some_leaves(chance: random.Random, count: int) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    while len(found) < count:
        index = chance.randbytes(32)
        if found and chance.random() < 0.5:
            near = int.from_bytes(chance.choice(list(found)), "big")
            index = (near ^ 1 << chance.choice([0, 1, 100, 200, 243, 244, 245, 255])).to_bytes(32, "big")
        found[index] = chance.randbytes(32)
    return found


@pytest.mark.parametrize("seed", range(60))
def test_every_way_to_a_root_of_leaves_is_the_definition(seed: int) -> None:
    chance = random.Random(seed)
    leaves = some_leaves(chance, seed // 3)
    items = sorted(leaves.items())
    tree = LeafTree(items[: seed // 6])
    tree.root()
    for item in items[seed // 6 :]:
        tree.put(*item)
    wanted = naive_root(leaves)
    assert fold_leaves(items) == tree.root() == rebuild_root([PrefixLeaf(*item) for item in items]) == wanted


def test_leaves_out_of_order_have_no_root() -> None:
    one, two = (bytes(32), bytes(32)), (b"\x01" * 32, bytes(32))
    for leaves in ([two, one], [one, one]):
        with pytest.raises(AssertionError, match="rise"):
            fold_leaves(leaves)


# --- that these comparisons can fail


def an_update() -> MapUpdate:
    rows = OperatorRows()
    leaves = [PrefixLeaf(bytes([n]) * 32, bytes([n]) * 32) for n in range(9)]
    rows.publish(1, leaves)
    return parse_update(rows.publish(2, [PrefixLeaf(leaves[3].index, b"x" * 32), PrefixLeaf(b"y" * 32, b"y" * 32)]))


@pytest.mark.parametrize(("expected", "fault"), [
    ({}, "nothing that was logged"), ({b"\x03" * 32: b"x" * 32}, "nothing that was logged"),
    ({b"\x03" * 32: b"z" * 32, b"y" * 32: b"y" * 32}, "not what the entries"),
    ({b"\x03" * 32: b"x" * 32, b"y" * 32: b"y" * 32, bytes(32): b"w" * 32}, "not what the entries"),
])
def test_other_changes_than_expected_are_named(expected: dict[bytes, bytes], fault: str) -> None:
    update = an_update()
    check_changes(update, {b"\x03" * 32: b"x" * 32, b"y" * 32: b"y" * 32})
    with pytest.raises(Invalid, match=fault) as caught:
        check_changes(update, expected)
    assert caught.value.name == "MapNotDerived"
    check_changes(update, expected, lambda index: True)


def test_a_fold_takes_only_the_next_update_of_its_own_map() -> None:
    update, fold = an_update(), MapFold()
    before, after = update_roots(update)
    for leaf_index, root in ((0, before), (2, before), (1, after)):
        fold.jump(leaf_index, root)
        with pytest.raises(Invalid, match="BadMapUpdate"):
            fold.apply(update)
        assert (fold.leaf_index, fold.root) == (leaf_index, root)
    fold.jump(1, before)
    assert fold.apply(update) == after == fold.root and fold.leaf_index == 2


def test_an_actor_without_a_salt_is_named_once() -> None:
    actor = SimpleNamespace(actor_id="https://example.com/users/ann")
    leaves = MapLeaves(SimpleNamespace(origin=ORIGIN, actor_at=lambda index: actor))  # type: ignore[arg-type]
    leaves.touch([actor.actor_id])
    with pytest.raises(Invalid, match="MissingSalt"):
        leaves.settle()
    assert leaves.settle() == {} and leaves.unsettled == b""
