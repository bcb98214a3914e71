"""Answers about actors and entries, with the proofs that let somebody else check them.

An answer about an actor is given as of a published tree size, because only that size has a cosigned
checkpoint. Entries beyond it are shown as pending, without proof. An erased actor is nobody here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ktlog.errors import StoreError
from ktlog.operator.proofs import Proofs
from ktlog.operator.timeline import ADDING, Spell, Timeline
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.state import Aux, Key
from ktlog.store.contracts import LogStore, Record
from ktlog.tlog.tree import EMPTY_ROOT

HISTORY_PAGE_ROWS = 100
HISTORY_PAGE_BYTES = 2 << 20
"""Of the records behind one page of a history; the one that exceeds it still belongs to the page."""


@dataclass(frozen=True)
class Tree:
    """The tree that an answer is about, and how far the published tiles reach (never less)."""

    size: int
    published_size: int


@dataclass(frozen=True)
class Held:
    """What an actor holds at some tree size, by leaf index; both may be empty."""

    keys: tuple[Key, ...]
    aux: tuple[Aux, ...]


@dataclass(frozen=True)
class HistoryRow:
    """One message that touched an actor. ``proof`` is None while it is not in the tree asked about."""

    record: Record
    role: int
    proof: list[bytes] | None


@dataclass(frozen=True)
class History:
    """One page of a history. ``more_after`` is the leaf index after which it goes on; None at its end."""

    rows: tuple[HistoryRow, ...]
    more_after: int | None


@dataclass(frozen=True)
class ActorAnswer:
    """An actor as of ``tree_size``, whose root is ``root``; every proof is against that root."""

    held: Held
    tree_size: int
    root: bytes
    key_proofs: dict[int, list[bytes]]
    history: History | None
    """Its first page, if it was asked for."""


@dataclass(frozen=True)
class ItemAnswer:
    """One key or piece of auxiliary data, active or not any more, as of ``tree_size``.

    ``proof`` is for the entry that brought it, ``end_proof`` for the one that took it away, if any.
    """

    spell: Spell
    tree_size: int
    root: bytes
    proof: list[bytes]
    end_proof: list[bytes] | None


class ActorReader:
    """Reads one log's directory. Give it a reader's store; it writes nothing. Safe to use from many threads."""

    def __init__(
        self, store: LogStore, read_tile: Callable[[str], bytes | None], dialect: Dialect
    ) -> None:
        self._store = store
        self._timeline = Timeline(store, dialect)
        self._proofs = Proofs(store, read_tile)
        self._root = 0, EMPTY_ROOT

    def answer(
        self, actor_id: str, tree_size: int, published_size: int, *, with_history: bool
    ) -> ActorAnswer | None:
        """The actor as of *tree_size* (at most *published_size*), or None when it was unknown then."""
        if not with_history:
            standing = self._store.standing(actor_id)
            if standing is None or standing.first >= tree_size:
                return None
            if standing.last < tree_size:
                # As nearly always. What else is in the answer never changes: it needs no snapshot.
                prove = self._prover(Tree(tree_size, published_size))
                proofs = {key.leaf_index: prove(key.leaf_index) for key in standing.keys}
                held = Held(standing.keys, standing.aux)
                return ActorAnswer(held, tree_size, self._root_after(tree_size), proofs, None)
        with self._store.snapshot():
            held = self._held(actor_id, tree_size)
            if held is None:
                return None
            tree = Tree(tree_size, published_size)
            prove = self._prover(tree)
            history = self.history(actor_id, tree) if with_history else None
            proofs = {key.leaf_index: prove(key.leaf_index) for key in held.keys}
            return ActorAnswer(held, tree_size, self._root_after(tree_size), proofs, history)

    def history(self, actor_id: str, tree: Tree, after: int = -1) -> History | None:
        """A page of the messages that touched the actor, from beyond entry *after*; None for who was unknown.

        Pages of one tree fit together whenever they are asked for: rows are only ever added, at the end.
        """
        with self._store.snapshot():
            span = self._span(actor_id, tree.size)
            if span is None:
                return None
            prove, rows, size = self._prover(tree), [], 0
            for leaf_index, role, _action in self._store.touches(actor_id, after, HISTORY_PAGE_ROWS):
                record = self._record(leaf_index)
                rows.append(HistoryRow(record, role, prove(leaf_index) if leaf_index < tree.size else None))
                size += len(record.entry) + len(record.preimage) + sum(map(len, filter(None, record.plain.values())))
                if size > HISTORY_PAGE_BYTES:
                    break
            is_last = not rows or rows[-1].record.leaf_index >= span[1]
            return History(tuple(rows), None if is_last else rows[-1].record.leaf_index)

    def held_at(self, actor_id: str, tree_size: int) -> Held | None:
        """What the actor held after the first *tree_size* entries; None when none of them touched it."""
        with self._store.snapshot():
            return self._held(actor_id, tree_size)

    def key(self, actor_id: str, key_id: str, tree: Tree) -> ItemAnswer | None:
        """A key that the actor holds or held, or None."""
        def active(held: Held) -> Key | None:
            return next((key for key in held.keys if key.key_id == key_id), None)

        def past() -> Spell | None:
            if not self._timeline.may_have_key(actor_id, tree.size, key_id):
                return None
            return self._timeline.ledger(actor_id, tree.size, with_aux=False).keys.get(key_id)

        return self._item(actor_id, tree, active, past)

    def aux(self, actor_id: str, aux_id: str, tree: Tree) -> ItemAnswer | None:
        """Auxiliary data that the actor holds or held, or None."""
        def active(held: Held) -> Aux | None:
            return next((aux for aux in held.aux if aux.aux_id == aux_id), None)

        def past() -> Spell | None:
            if not self._timeline.may_have_aux(actor_id, tree.size, aux_id):
                return None
            return self._timeline.ledger(actor_id, tree.size).aux.get(aux_id)

        return self._item(actor_id, tree, active, past)

    def entry(self, leaf_index: int, tree: Tree) -> tuple[Record, list[bytes]]:
        """An entry's record, and the proof that it is in *tree*, which may reach beyond the published one."""
        with self._store.snapshot():
            return self._record(leaf_index), self._prover(tree)(leaf_index)

    def _root_after(self, size: int) -> bytes:
        """A root never changes, and nearly all are asked about one."""
        known = self._root
        if known[0] != size:
            known = self._root = size, self._store.root_after(size)
        return known[1]

    def _span(self, actor_id: str, tree_size: int) -> tuple[int, int] | None:
        """First and last entry that touched the actor; None when none did within *tree_size*."""
        span = self._store.history_span(actor_id)
        return None if span is None or span[0] >= tree_size else span

    def _held(self, actor_id: str, tree_size: int) -> Held | None:
        """Usually what is stored. Only when a later entry took something away are the earlier ones read."""
        span = self._span(actor_id, tree_size)
        if span is None:
            return None
        held = self._held_as_stored(actor_id, tree_size, span[1])
        if held is None:
            ledger = self._timeline.ledger(actor_id, tree_size)
            held = Held(ledger.active_keys(), ledger.active_aux())
        return held

    def _held_as_stored(self, actor_id: str, tree_size: int, last: int) -> Held | None:
        """What the actor held, if what is stored now tells; *last* is the newest entry that touched it."""
        if last >= tree_size and any(
            touch.action not in ADDING for touch in self._store.touches(actor_id, tree_size - 1)
        ):
            return None
        actor = self._store.actor(actor_id)
        if actor is None:
            raise StoreError("CorruptHistory", "an actor that is not in the directory has a history")
        return Held(
            tuple(key for key in actor.keys if key.leaf_index < tree_size),
            tuple(aux for aux in actor.aux if aux.leaf_index < tree_size),
        )

    def _item(
        self, actor_id: str, tree: Tree, active: Callable[[Held], Key | Aux | None],
        past: Callable[[], Spell | None],
    ) -> ItemAnswer | None:
        with self._store.snapshot():
            span = self._span(actor_id, tree.size)
            if span is None:
                return None
            held = self._held_as_stored(actor_id, tree.size, span[1])
            item = active(held) if held is not None else None
            # What is not active any more is in no table; only the messages tell of it.
            spell = Spell(item) if item else past()
            if spell is None:
                return None
            prove = self._prover(tree)
            end_proof = None if spell.end is None else prove(spell.end.leaf_index)
            root = self._store.root_after(tree.size)
            return ItemAnswer(spell, tree.size, root, prove(spell.item.leaf_index), end_proof)

    def _record(self, leaf_index: int) -> Record:
        return self._store.records(leaf_index, leaf_index + 1)[0]

    def _prover(self, tree: Tree) -> Callable[[int], list[bytes]]:
        return lambda leaf_index: self._proofs.inclusion(leaf_index, tree.size, tree.published_size)
