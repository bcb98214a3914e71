"""One actor as the list of what happened to it, and the map built from such lists: the verifier's second way.

The operator keeps a row for each actor and replaces it. Here nothing is replaced: a :class:`Strand` holds the events
since the actor's last erasure, and every number of the map's value follows from them (the version is how many there
are, the history a tree over them). The root is computed in one pass over the sorted leaves, not by splitting them.
Pure.

Spec: directory map §1 (labels, prefix tree), §2 (value, history), §3 (transitions).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ktlog.keymap.prefix import MISSING, PrefixLeaf, bit, hash_parent
from ktlog.keymap.value import commit_value, derive_opening, tombstone
from ktlog.pkd.erasure import CarriedMove
from ktlog.tlog.encoding import decode_base64url
from ktlog.tlog.tree import Frontier, hash_leaf

ERASED, ACTIVE, BURNED, REVOKED, MOVED_AWAY = range(5)
"""Of a value's status; ERASED stands for a tombstone."""
FIRST, AFTER_BURN, AFTER_TOKEN, AFTER_MOVING, AFTER_ERASURE, MOVED_IN = range(1, 7)
"""Of a value's cause."""
_RETURN = {BURNED: AFTER_BURN, REVOKED: AFTER_TOKEN, MOVED_AWAY: AFTER_MOVING}


class Key(NamedTuple):
    """An active key by its hash; leaf_index is its AddKey's."""

    leaf_index: int
    created: int
    key_hash: bytes


class Datum(NamedTuple):
    """Active auxiliary data; aux_id as PKD writes it."""

    leaf_index: int
    created: int
    aux_type: str
    aux_id: str


# -- what can happen to an actor; leaf_index is the entry's


@dataclass(frozen=True, slots=True)
class Added:
    leaf_index: int
    item: Key | Datum


@dataclass(frozen=True, slots=True)
class Withdrawn:
    """By the actor: a key, by its hash, or data, by their id."""

    leaf_index: int
    item: bytes | str


@dataclass(frozen=True, slots=True)
class Disclosed:
    """By a revocation token."""

    leaf_index: int
    key_hash: bytes


@dataclass(frozen=True, slots=True)
class Left:
    """Moved away, to an index in its life after so many erasures; None when that name is withheld."""

    leaf_index: int
    target: tuple[bytes, int] | None
    carried: CarriedMove


@dataclass(frozen=True, slots=True)
class Came:
    """Moved in. before: size and root of the old actor's history until then."""

    leaf_index: int
    keys: tuple[Key, ...]
    data: tuple[Datum, ...]
    fireproof: bool
    barred: frozenset[bytes]
    before: tuple[int, bytes]


@dataclass(frozen=True, slots=True)
class BurnedDown:
    leaf_index: int


@dataclass(frozen=True, slots=True)
class Guarded:
    """Fireproof from now on, or no more."""

    leaf_index: int
    on: bool


Event = Added | Withdrawn | Disclosed | Left | Came | BurnedDown | Guarded


class Strand:
    """Everything that happened at one index since its last erasure, and what that makes of it now."""

    __slots__ = (
        "_born", "_leaf", "_past", "barred", "buried", "cause", "data", "events", "fireproof", "generation_leaf",
        "history", "index", "keys", "name", "salt", "status", "status_leaf",
    )

    def __init__(self, index: bytes) -> None:
        self.index = index
        self._past = (0, 0, 0)
        self._clear()
        self.buried: int | None = None
        """Number of the erasure whose tombstone lies here now."""

    def _clear(self) -> None:
        self.name = ""
        self.salt = b""
        self.events: list[Event] = []
        self.keys: dict[bytes, Key] = {}
        self.data: dict[str, Datum] = {}
        self.barred: frozenset[bytes] = frozenset()
        """Hashes of keys that may not be added again."""
        self.fireproof = False
        self.cause = self.generation_leaf = self.status_leaf = 0
        self.status = ERASED
        self.history = Frontier()
        self._born = 0
        self._leaf: PrefixLeaf | None = None

    @property
    def version(self) -> int:
        return self._past[0] + len(self.events)

    @property
    def generation(self) -> int:
        return self._past[1] + self._born

    @property
    def erasures(self) -> int:
        return self._past[2]

    @property
    def has_value(self) -> bool:
        return bool(self.events)

    def enter(self, name: str, salt: bytes) -> None:
        """The index gets a value: the first, or the first after an erasure."""
        self.name, self.salt, self.buried = name, salt, None

    def bury(self, number: int, version: int, generation: int) -> None:
        """Erasure *number* puts a tombstone here and leaves nothing of the actor but these numbers."""
        self._past = (version, generation, self.erasures + 1)
        self._clear()
        self.buried = number

    def add(self, event: Event) -> None:
        """One more event, which keeps the rules."""
        self._fold(event)
        self.events.append(event)
        self._remember(event)
        self._leaf = None

    def _fold(self, event: Event) -> None:
        match event:
            case Added(_, Key() as key):
                if not self.keys:
                    self._begin(event.leaf_index, self._why_anew())
                self.keys[key.key_hash] = key
            case Added(_, datum):
                self.data[datum.aux_id] = datum
            case Withdrawn(_, bytes() as key_hash):
                del self.keys[key_hash]
                self.barred |= {key_hash}
            case Withdrawn(_, aux_id):
                del self.data[aux_id]
            case Disclosed(_, key_hash):
                del self.keys[key_hash]
                if not self.keys:
                    self._end(event.leaf_index, REVOKED)
            case Left():
                self._end(event.leaf_index, MOVED_AWAY)
                self.fireproof = False
            case Came():
                self._begin(event.leaf_index, MOVED_IN)
                self.keys = {key.key_hash: key for key in event.keys}
                self.data = {datum.aux_id: datum for datum in event.data}
                self.fireproof = event.fireproof
                self.barred |= event.barred
            case BurnedDown():
                self._end(event.leaf_index, BURNED)
            case Guarded(_, on):
                self.fireproof = on

    def _why_anew(self) -> int:
        if self.events:
            return _RETURN[self.status]
        return AFTER_ERASURE if self.erasures else FIRST

    def _begin(self, leaf_index: int, cause: int) -> None:
        self._born += 1
        self.cause, self.status = cause, ACTIVE
        self.generation_leaf = self.status_leaf = leaf_index

    def _end(self, leaf_index: int, status: int) -> None:
        self.keys, self.data = {}, {}
        self.status, self.status_leaf = status, leaf_index

    def _remember(self, event: Event) -> None:
        match event:
            case Left():
                leaf = struct.pack(">BQ", 2, event.leaf_index)
            case Came(before=(size, root)):
                leaf = struct.pack(">BQQ32s", 3, event.leaf_index, size, root)
            case _:
                leaf = struct.pack(">BQ", 1, event.leaf_index)
        self.history = self.history.append(hash_leaf(leaf))

    # -- the map

    def value(self) -> bytes:
        """The encoded value. Spec: directory map §2."""
        name = self.name.encode("ascii")
        keys, data = sorted(self.keys.values()), sorted(self.data.values())
        return b"".join((
            struct.pack(">BH", 1, len(name)), name,
            struct.pack(
                ">IIIBQBQB", self.version, self.generation, self.erasures, self.cause, self.generation_leaf,
                self.status, self.status_leaf, self.fireproof,
            ),
            struct.pack(">H", len(keys)),
            *(struct.pack(">QB32s", key.leaf_index, 1, key.key_hash) for key in keys),
            struct.pack(">H", len(data)),
            *(
                struct.pack(">QB", datum.leaf_index, len(datum.aux_type)) + datum.aux_type.encode("ascii")
                + decode_base64url(datum.aux_id, 32)
                for datum in data
            ),
            struct.pack(">Q", self.history.size), self.history.root(),
        ))

    def leaf(self, origin: str) -> PrefixLeaf:
        """The map's leaf, computed again whenever something happened."""
        if self._leaf is None:
            if self.buried is not None:
                said = tombstone(origin, self.index, self.version, self.generation, self.buried)
            else:
                said = commit_value(
                    self.index, self.version, self.value(), derive_opening(self.salt, self.version)
                )
            self._leaf = PrefixLeaf(self.index, said)
        return self._leaf


# -- the tree


class _Node(NamedTuple):
    hash: bytes
    depth: int | None
    """None for a single leaf, whose hash is the same at every depth."""
    index: bytes


def rebuild_root(leaves: Sequence[PrefixLeaf]) -> bytes:
    """The root of the prefix tree that holds exactly *leaves*, sorted by distinct indexes.

    Two neighbours part at the first bit in which they differ; a node is closed as soon as a later leaf parts
    from it further up.

    >>> rebuild_root([]) == bytes(32)
    True

    Spec: directory map §1, prefix tree.
    """
    if not leaves:
        return MISSING
    nodes = (_Node(leaf.hash, None, leaf.index) for leaf in leaves)
    current = next(nodes)
    open_nodes: list[tuple[_Node, int]] = []
    for node, parting in zip(nodes, _partings(leaves), strict=True):
        while open_nodes and open_nodes[-1][1] > parting:
            current = _join(*open_nodes.pop(), current)
        open_nodes.append((current, parting))
        current = node
    while open_nodes:
        current = _join(*open_nodes.pop(), current)
    return _lift(current, 0)


def _partings(leaves: Sequence[PrefixLeaf]) -> Iterable[int]:
    """How many leading bits each leaf shares with the one before it."""
    before = int.from_bytes(leaves[0].index, "big")
    for leaf in leaves[1:]:
        number = int.from_bytes(leaf.index, "big")
        if number <= before:
            raise AssertionError("the leaves are not sorted by distinct indexes")
        yield 256 - (before ^ number).bit_length()
        before = number


def _join(left: _Node, depth: int, right: _Node) -> _Node:
    return _Node(hash_parent(_lift(left, depth + 1), _lift(right, depth + 1)), depth, left.index)


def _lift(node: _Node, depth: int) -> bytes:
    """The hash of the subtree at *depth* in which *node* is alone: empty neighbours all the way up."""
    value = node.hash
    if node.depth is not None:
        for level in range(node.depth - 1, depth - 1, -1):
            value = hash_parent(MISSING, value) if bit(node.index, level) else hash_parent(value, MISSING)
    return value
