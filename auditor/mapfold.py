"""The auditor's own derivation of the map: root after root by the published updates, and leaf by leaf from the entries.

Three ways, each by itself:

- :class:`MapFold` goes from one output leaf's map to the next by an update. That needs no text: it shows that exactly
  the listed leaves changed, and none went (the structural tier).
- :class:`MapLeaves` says which leaves must have changed, and to what, by what the entries, their records and the
  erasures between made of everybody (the semantic tier).
- :func:`fold_leaves` makes a root of all leaves, one after the other, where there is no update any more.

Nothing here searches or inserts: the operator keeps pages of nodes, the verifier joins open nodes, and this shifts
places from left to right and reduces the neighbours among them. Only the two hash functions and the coding of a value
are shared. Pure.

Spec: directory map §1, §2, §4; docs/protocol.md, section 6.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

from ktlog.errors import Invalid
from ktlog.keymap.updates import Change, MapUpdate
from ktlog.keymap.value import commit_value, derive_opening, encode_value, tombstone, value_of
from ktlog.pkd.erasure import ErasureRecord, map_index
from ktlog.pkd.replay import Directory

BITS = 256
PART_BITS = 12
NONE = bytes(32)
"""The hash of a place where there is nothing, and the root of the empty map."""


# -- roots of updates


@dataclass(frozen=True, slots=True)
class _Node:
    """A subtree before and after. place: the first *depth* bits of whatever lies in it, as a number."""

    depth: int
    place: int
    before: bytes
    after: bytes


class MapFold:
    """The map's root, followed from output leaf to output leaf.

    Args:
        leaf_index, root: of the output leaf from which to go on, and of its map; of nothing when left out.
    """

    def __init__(self, leaf_index: int = 0, root: bytes = NONE) -> None:
        self.leaf_index = leaf_index
        self.root = root

    @staticmethod
    def roots(update: MapUpdate) -> tuple[bytes, bytes]:
        """The map's root before and after *update*. Raises Invalid(``BadMapUpdate``): it is of no map."""
        supply = iter(update.hashes)
        stack: list[_Node] = []
        for depth, place, found in _outline(update.changes):
            if found is None:
                value = next(supply, None)
                if value is None:
                    raise _bad("it has too few hashes")
                found = value, value
            _shift(stack, _Node(depth, place, *found))
        if next(supply, None) is not None or len(stack) != 1 or stack[0].depth:
            raise _bad("its parts are not one tree")
        return stack[0].before, stack[0].after

    def apply(self, update: MapUpdate) -> bytes:
        """Go on by *update*; returns the new root.

        Raises:
            Invalid: ``BadMapUpdate``: it is of no map, of another leaf or not of the map as it was. The fold stays
                where it was.
        """
        if update.leaf_index != self.leaf_index + 1:
            raise _bad(f"it is of leaf {update.leaf_index}, and {self.leaf_index + 1} comes next")
        before, after = self.roots(update)
        if before != self.root:
            raise _bad("it is not of the map that the leaf before commits to")
        self.leaf_index, self.root = update.leaf_index, after
        return after

    def jump(self, leaf_index: int, root: bytes) -> None:
        """Go on from a leaf of which there is no update, and whose map was derived in another way, or not at all."""
        self.leaf_index, self.root = leaf_index, root


def _outline(changes: Sequence[Change]) -> Iterator[tuple[int, int, tuple[bytes, bytes] | None]]:
    """From left to right, (depth, place, hashes before and after) of every part; without hashes where nothing changed.

    Between two places that changes lead to lie the right-hand neighbours of the first one's way up to where the two
    ways part, and the left-hand ones of the second one's way down from there.
    """
    if not changes:
        yield 0, 0, None
        return
    last: tuple[int, int] | None = None
    for depth, place, group in _places(changes):
        parted = -1 if last is None else _common(last, (depth, place))
        if last is not None:
            yield from _neighbours(last, range(last[0], parted + 1, -1), right=True)
        yield from _neighbours((depth, place), range(parted + 2, depth + 1), right=False)
        yield depth, place, _contents(group, depth)
        last = depth, place
    if last is not None:
        yield from _neighbours(last, range(last[0], 0, -1), right=True)


def _places(changes: Sequence[Change]) -> Iterator[tuple[int, int, list[Change]]]:
    """The places that searches ended at, and the changes there."""
    group: list[Change] = []
    for change in changes:
        if group and _place(group[0], group[0].found.depth) != _place(change, group[0].found.depth):
            yield group[0].found.depth, _place(group[0], group[0].found.depth), group
            group = []
        group.append(change)
        if change.found.depth != group[0].found.depth or change.found.leaf != group[0].found.leaf:
            raise _bad("changes at one place do not agree what was there")
    yield group[0].found.depth, _place(group[0], group[0].found.depth), group


def _place(change: Change, depth: int) -> int:
    if not 0 <= depth <= BITS:
        raise _bad("a depth is out of range")
    return int.from_bytes(change.index, "big") >> (BITS - depth)


def _common(one: tuple[int, int], other: tuple[int, int]) -> int:
    """How many leading bits two places share; both are deeper."""
    depth = min(one[0], other[0])
    differ = (one[1] >> (one[0] - depth)) ^ (other[1] >> (other[0] - depth))
    if not differ or one[1] >> (one[0] - depth) > other[1] >> (other[0] - depth):
        raise _bad("one place lies in another, or before it")
    return depth - differ.bit_length()


def _neighbours(
    way: tuple[int, int], depths: Iterable[int], *, right: bool
) -> Iterator[tuple[int, int, tuple[bytes, bytes] | None]]:
    depth, place = way
    for level in depths:
        here = place >> (depth - level)
        if here & 1 != right:
            yield level, here ^ 1, None


def _contents(group: Sequence[Change], depth: int) -> tuple[bytes, bytes]:
    """What lies at a place before and after."""
    before = group[0].found.leaf
    after = {change.index: change.commitment for change in group}
    if before is None:
        return NONE, fold_leaves(sorted(after.items()), depth)
    after.setdefault(*before)
    return _leaf_hash(*before), fold_leaves(sorted(after.items()), depth)


def _shift(stack: list[_Node], node: _Node) -> None:
    """Put *node* beside those to its left, and join it with its neighbour as often as there is one."""
    while node.place & 1 and stack and (stack[-1].depth, stack[-1].place) == (node.depth, node.place ^ 1):
        left = stack.pop()
        before, after = _parent_hash(left.before, node.before), _parent_hash(left.after, node.after)
        node = _Node(node.depth - 1, node.place >> 1, before, after)
    stack.append(node)


# -- roots of leaves


def fold_leaves(leaves: Iterable[tuple[bytes, bytes]], depth: int = 0) -> bytes:
    """The hash of the subtree at *depth* that holds exactly *leaves*: index and commitment, by rising index.

    Memory is one hash for a level, however many leaves there are.
    """
    finished: dict[int, bytes] = {}  # by depth, left-hand subtrees that wait for what lies to their right
    last, number, parted = None, 0, depth - 1
    for leaf in leaves:
        here = int.from_bytes(leaf[0], "big")
        if last is not None:
            shared = BITS - (number ^ here).bit_length()
            if here <= number or shared < depth:
                raise AssertionError("leaves rise, and lie in one subtree")
            start = max(parted, shared) + 1
            finished[shared + 1] = _climb(number, _leaf_hash(*last), start, shared + 1, finished)
            parted = shared
        last, number = leaf, here
    if last is None:
        return NONE
    return _climb(number, _leaf_hash(*last), parted + 1, depth, finished)


def _climb(number: int, value: bytes, depth: int, to: int, finished: dict[int, bytes]) -> bytes:
    """From a node at *depth* up to *to*; nothing lies to the right of the way any more."""
    for level in range(depth, to, -1):
        if number >> (BITS - level) & 1:
            value = _parent_hash(finished.pop(level, NONE), value)
        else:
            value = _parent_hash(value, NONE)
    return value


class LeafTree:
    """All leaves, in 4,096 parts: a root is asked for again and again, and only parts that changed are folded again."""

    def __init__(self, leaves: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self._parts: dict[int, dict[bytes, bytes]] = {}
        self._tops: dict[int, tuple[int, bytes]] = {}
        self._changed: set[int] = set()
        for index, commitment in leaves:
            self.put(index, commitment)

    def put(self, index: bytes, commitment: bytes) -> None:
        part = index[0] << 4 | index[1] >> 4
        self._parts.setdefault(part, {})[index] = commitment
        self._changed.add(part)

    def root(self) -> bytes:
        for part in self._changed:
            leaves = self._parts[part]
            self._tops[part] = len(leaves), fold_leaves(sorted(leaves.items()), PART_BITS)
        self._changed.clear()
        level = self._tops
        for _ in range(PART_BITS):
            level = {
                place: _join(level.get(2 * place, (0, NONE)), level.get(2 * place + 1, (0, NONE)))
                for place in {part >> 1 for part in level}
            }
        return level[0][1] if level else NONE


def _join(left: tuple[int, bytes], right: tuple[int, bytes]) -> tuple[int, bytes]:
    """The number of leaves, and the hash; that of a single leaf is the same at every depth."""
    count = left[0] + right[0]
    if count == 1:
        return left if left[0] else right
    return count, _parent_hash(left[1], right[1])


def _leaf_hash(index: bytes, commitment: bytes) -> bytes:
    return sha256(b"\x02" + index + commitment).digest()


def _parent_hash(left: bytes, right: bytes) -> bytes:
    return sha256(b"\x03" + left + right).digest()


# -- leaves from what was replayed


class MapLeaves:
    """The leaves that the map must have, by what the replayed entries made of everybody.

    Whoever replays says after each entry whom it touched, and of each erasure when it comes. At the input size and
    the erasures of an output leaf, :meth:`settle` gives what must have changed since the one before.

    Args:
        directory: the replay, which goes on meanwhile.
        records: the erasure log as far as it is known. Of whom a later record takes, a late reader cannot know what
            the leaf was; it is left out until then.
        salts: by map index, 32 bytes each. leaves: by map index, commitments. Both are kept here; a caller who goes
            on some day gives rows.
    """

    def __init__(
        self, directory: Directory, records: Sequence[ErasureRecord] = (), *,
        salts: MutableMapping[bytes, bytes] | None = None, leaves: MutableMapping[bytes, bytes] | None = None,
    ) -> None:
        self._directory = directory
        self._salts: MutableMapping[bytes, bytes] = {} if salts is None else salts
        self._leaves: MutableMapping[bytes, bytes] = {} if leaves is None else leaves
        self._tree: LeafTree | None = None
        self._hidden_until = {record.index: number for number, record in enumerate(records)}
        self._touched: set[bytes] = set()
        self._dead: dict[bytes, bytes] = {}
        self.erasures = 0

    def resume(self, unsettled: bytes, erasures: int) -> None:
        """Go on where an earlier one stopped: with what :attr:`unsettled` was then, after so many erasures."""
        self._touched |= {unsettled[at : at + 32] for at in range(0, len(unsettled), 32)}
        self.erasures = erasures

    @property
    def unsettled(self) -> bytes:
        """The indexes, 32 bytes each, that were touched since the last :meth:`settle`."""
        return b"".join(sorted(self._touched))

    def touch(self, actor_ids: Iterable[str], salts: Mapping[str, bytes] | None = None) -> None:
        """An entry changed these actors. salts: by actor id, as the entry's record shows them."""
        for actor_id in actor_ids:
            index = self._index(actor_id)
            self._touched.add(index)
            self._dead.pop(index, None)
        for actor_id, salt in (salts or {}).items():
            self._salts[self._index(actor_id)] = salt

    def erase(self, record: ErasureRecord) -> None:
        """The next erasure took effect."""
        said = tombstone(self._directory.origin, record.index, record.version, record.generation, self.erasures)
        self._dead[record.index] = said
        self._touched.add(record.index)
        self._salts.pop(record.index, None)
        self.erasures += 1

    def hidden(self, index: bytes) -> bool:
        """Whether an erasure that comes later hides what the leaf at *index* is now."""
        return self._hidden_until.get(index, -1) >= self.erasures

    @property
    def complete(self) -> bool:
        """Whether no erasure that is known of is still to come: only then all leaves can be derived."""
        return self.erasures > max(self._hidden_until.values(), default=-1)

    def settle(self) -> dict[bytes, bytes | None]:
        """What changed since the last time: by index the new commitment, or None where it is hidden.

        Raises:
            Invalid: ``MissingSalt``: nobody could derive a value's commitment.
        """
        touched, dead = sorted(self._touched), dict(self._dead)
        self._touched.clear()
        self._dead.clear()
        found = {index: dead.get(index) or self._commitment(index) for index in touched}
        for index, commitment in found.items():
            if commitment is not None:
                self._leaves[index] = commitment
                if self._tree is not None:
                    self._tree.put(index, commitment)
        return found

    def root(self) -> bytes:
        """The map's root as of the last :meth:`settle`, of all leaves. Only when :attr:`complete`.

        From the first call on all leaves are in memory, about 300 bytes each.
        """
        if self._tree is None:
            self._tree = LeafTree(self._leaves.items())
        return self._tree.root()

    def name_at(self, index: bytes) -> str:
        """Who is there by the entries so far; "" where nobody is, or who it is cannot be read."""
        actor = self._directory.actor_at(index)
        return "" if actor is None else actor.actor_id

    def _index(self, actor_id: str) -> bytes:
        return map_index(self._directory.origin, actor_id)

    def _commitment(self, index: bytes) -> bytes | None:
        if self.hidden(index):
            return None
        actor, salt = self._directory.actor_at(index), self._salts.get(index)
        if actor is None or salt is None:
            raise Invalid("MissingSalt", "an entry gave an actor a value, and no record has a salt for it")
        value = encode_value(value_of(actor, *self._directory.history(actor.actor_id)))
        return commit_value(index, actor.version, value, derive_opening(salt, actor.version))


def check_changes(
    update: MapUpdate, expected: Mapping[bytes, bytes | None], hidden: Callable[[bytes], bool] = lambda index: False
) -> None:
    """Exactly what :meth:`MapLeaves.settle` says changed, and to what it says; *hidden* is :meth:`MapLeaves.hidden`.

    Raises:
        Invalid: ``MapNotDerived``.
    """
    for index in wrong_changes(update, expected, hidden):
        if index not in expected:
            raise Invalid("MapNotDerived", f"the leaf at {index.hex()} changed, and nothing that was logged touched it")
        raise Invalid("MapNotDerived", f"the leaf at {index.hex()} is not what the entries lead to")


def wrong_changes(
    update: MapUpdate, expected: Mapping[bytes, bytes | None], hidden: Callable[[bytes], bool]
) -> Iterator[bytes]:
    """Where *update* does otherwise: indexes, in order. What somebody erased since did cannot be told."""
    listed = {change.index: change.commitment for change in update.changes}
    for index in sorted(listed.keys() | expected.keys()):
        if not hidden(index) and (index not in expected or listed.get(index) != expected[index]):
            yield index


def _bad(what: str) -> Invalid:
    return Invalid("BadMapUpdate", f"the map's update does not hold: {what}")
