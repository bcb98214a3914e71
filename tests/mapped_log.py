"""A log whose operator keeps the map, for tests of the verifier's derivation: pages as published, leaves as derived.

Unlike an operator it can log what the rules refuse, so that whoever reads it has to refuse it too.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from ktlog.errors import MessageRejected
from ktlog.keymap.prefix import PrefixLeaf, subtree_hash
from ktlog.keymap.value import (
    commit_value,
    derive_opening,
    encode_value,
    tombstone,
    value_of,
)
from ktlog.pkd.actors import Actor, Role
from ktlog.pkd.dialects import SPEC, Dialect
from ktlog.pkd.entry import LogEntry, encode_entry
from ktlog.pkd.erasure import ErasureRecord, map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.keys import key_hash
from ktlog.pkd.messages import (
    Message,
    MoveIdentity,
    RevokeKeyThirdParty,
    WireMessage,
    format_wire,
    message_from_plain,
    open_message_attributes,
    parse_wire,
    plain_attributes,
)
from ktlog.tlog.tree import Frontier, hash_leaf
from tests.erasure_log import ORIGIN, ErasingLog
from tests.pkd_samples import build, bytes_of, public
from witness.derivation import Derivation
from witness.maptree import Strand

HOME = "https://example.com/users/"
PEOPLE = (HOME + "ann", HOME + "ben", HOME + "cleo", "https://example.com:443/users/dan", "https://example.net/users/eve")
KEYS = "pqrstu"
LETTER = {public(letter): letter for letter in KEYS}


def tree(leaves: list[bytes]) -> tuple[int, bytes]:
    return len(leaves), Frontier().extend(map(hash_leaf, leaves)).root()


@dataclass
class Page:
    """What the operator publishes beside an entry."""

    entry: bytes
    salts: dict[str, bytes] = field(default_factory=dict)


class MappedLog(ErasingLog):
    """An operator who keeps the map by :class:`ktlog.pkd.replay.Directory`, and logs even what the rules refuse."""

    def __init__(self, dialect: Dialect = SPEC, *, refused_too: bool = True) -> None:
        super().__init__(dialect)
        self.refused_too = refused_too
        self.pages: list[Page] = []
        self.void: set[int] = set()
        self.histories: dict[str, list[bytes]] = {}
        self.salts: dict[str, bytes] = {}
        self.numbers: dict[bytes, int] = {}

    def log(self, message: Message, signer: str, root: str | None = None) -> bool:
        """Log *message*; True when the rules take it."""
        return self.log_text(format_wire(build(self.dialect, message, signer, root or self.live.root_text)))

    def log_text(self, text: str) -> bool:
        wire = parse_wire(self.dialect, text)
        return self._log(wire, open_message_attributes(self.dialect, wire, commitments=False))

    def repeat(self, at: int) -> bool:
        """Log the message of entry *at* once more, in an entry of its own."""
        return self._log(*message_from_plain(self.dialect, self.preimages[at], self.plains[at], commitments=False))

    def make_entry(self, preimage: bytes) -> bytes:
        """With a leaf signature that is none: the derivation does not look at it."""
        signature = self.live.size.to_bytes(2420, "big")
        return encode_entry(self.dialect, LogEntry(sha256(preimage).digest(), signature, bytes(32)))

    def _log(self, wire: WireMessage, message: Any) -> bool:
        at = self.live.size
        entry = self.make_entry(wire.preimage)
        change = None
        try:
            change = self.live.accept(at, wire, message, self.live.check(wire, message), entry)
        except MessageRejected:
            if not self.refused_too:
                return False
            self.live.append_void(at, entry)
            self.void.add(at)
        self.pages.append(Page(entry))
        self.entries.append(entry)
        self.preimages.append(wire.preimage)
        self.plains.append({} if isinstance(message, RevokeKeyThirdParty) else dict(plain_attributes(wire, message)))
        self.actions.append(wire.action)
        if change is not None:
            self._follow(at, message, change, self.pages[-1])
        return change is not None

    def _follow(self, at: int, message: Any, change: Any, page: Page) -> None:
        left = tree(self.histories[message.old_actor]) if isinstance(message, MoveIdentity) else None
        for leaf in change.history:
            before = left if leaf.role == Role.MOVED_IN else None
            self.histories.setdefault(leaf.actor_id, []).append(history_leaf(leaf.role, at, before))
        for name in change.needs_salt:
            self.salts[name] = bytes_of(f"salt {at} {name}")
            page.salts["new-actor" if isinstance(message, MoveIdentity) else "actor"] = self.salts[name]

    def erase(self, actor_id: str) -> ErasureRecord:
        record = super().erase(actor_id)
        self.histories.pop(actor_id)
        self.salts.pop(actor_id)
        self.numbers[record.index] = len(self.records) - 1
        return record

    def map_leaves(self) -> list[PrefixLeaf]:
        leaves = {}
        for index, left in self.live.tombstones.items():
            number = self.numbers[index]
            leaves[index] = tombstone(ORIGIN, index, left.version, left.generation, number)
        for name, actor in self.live.actors.items():
            value, opening = self.map_value(actor)
            index = map_index(ORIGIN, name)
            leaves[index] = commit_value(index, actor.version, value, opening)
        return [PrefixLeaf(*item) for item in sorted(leaves.items())]

    def map_value(self, actor: Actor) -> tuple[bytes, bytes]:
        """What the map says of an actor, and the opening of the commitment to it."""
        value = encode_value(value_of(actor, *tree(self.histories[actor.actor_id])))
        return value, derive_opening(self.salts[actor.actor_id], actor.version)

    def give(self, derivation: Derivation, at: int) -> Any:
        """What a reader finds of entry *at* now."""
        page, plain = self.pages[at], self.plains[at]
        salts = {name: salt for name, salt in page.salts.items() if plain[name] is not None}
        hidden = any(text is None for text in plain.values())
        return derivation.entry(at, page.entry, self.preimages[at], dict(plain), salts, hidden)


def told(strand: Strand) -> tuple[Any, ...]:
    """A strand the way :func:`row` tells an actor."""
    return (
        strand.name, strand.version, strand.generation, strand.erasures, strand.cause, strand.generation_leaf,
        strand.status, strand.status_leaf, strand.fireproof, sorted(strand.keys.values()), sorted(strand.data.values()),
    )


def row(actor: Any) -> tuple[Any, ...]:
    return (
        actor.actor_id, actor.version, actor.generation, actor.erasures, actor.cause, actor.generation_leaf,
        actor.status, actor.status_leaf, actor.fireproof,
        [(key.leaf_index, key.created, key_hash(key.public_key)) for key in actor.keys],
        [(aux.leaf_index, aux.created, aux.aux_type, aux.aux_id) for aux in actor.aux],
    )


def check_same(log: MappedLog, derivation: Derivation, *, barred: bool = True) -> None:
    """The same live actors, the same erased ones, the same map."""
    alive = {strand.name: strand for strand in derivation.strands() if strand.has_value}
    assert {name: told(strand) for name, strand in alive.items()} == {
        name: row(actor) for name, actor in log.live.actors.items()
    }
    if barred:
        assert {name: strand.barred for name, strand in alive.items()} == {
            name: actor.revoked for name, actor in log.live.actors.items()
        }
    buried = {strand.index: strand for strand in derivation.strands() if strand.buried is not None}
    assert {index: (s.version, s.generation, s.erasures) for index, s in buried.items()} == {
        index: (left.version, left.generation, left.erasures)
        for index, left in log.live.tombstones.items() if log.live._ids.get(index) is None
    }
    leaves = log.map_leaves()
    assert derivation.map_leaves() == leaves
    assert derivation.map_root() == subtree_hash(leaves)
    assert derivation.input_root() == log.live.frontier.root()


