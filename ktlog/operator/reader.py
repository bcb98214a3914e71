"""Answers about actors and entries, with the proofs that let somebody else check them.

An answer about an actor is given as of a published tree size, because only that size has a cosigned
checkpoint. Entries beyond it are shown as pending, without proof. An erased actor is nobody here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ktlog.operator.proofs import Proofs
from ktlog.operator.timeline import Ledger, Spell, Timeline
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.state import Aux, Key, Status
from ktlog.store.contracts import LogStore, Record


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
class ActorAnswer:
    """An actor as of ``tree_size``, whose root is ``root``; every proof is against that root."""

    held: Held
    tree_size: int
    root: bytes
    key_proofs: dict[int, list[bytes]]
    history: tuple[HistoryRow, ...]


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

    def answer(
        self, actor_id: str, tree_size: int, published_size: int, *, with_history: bool
    ) -> ActorAnswer | None:
        """The actor as of *tree_size* (at most *published_size*), or None when it was unknown then."""
        with self._store.snapshot():
            rows = self._store.history(actor_id)
            held = self._held(actor_id, tree_size, rows)
            if held is None:
                return None
            prove = self._prover(Tree(tree_size, published_size))
            history = tuple(
                HistoryRow(self._record(index), role, prove(index) if index < tree_size else None)
                for index, role in (rows if with_history else ())
            )
            proofs = {key.leaf_index: prove(key.leaf_index) for key in held.keys}
            return ActorAnswer(held, tree_size, self._store.root_after(tree_size), proofs, history)

    def held_at(self, actor_id: str, tree_size: int) -> Held | None:
        """What the actor held after the first *tree_size* entries; None when none of them touched it."""
        with self._store.snapshot():
            return self._held(actor_id, tree_size, self._store.history(actor_id))

    def key(self, actor_id: str, key_id: str, tree: Tree) -> ItemAnswer | None:
        """A key that the actor holds or held, or None."""
        def active(held: Held) -> Key | None:
            return next((key for key in held.keys if key.key_id == key_id), None)

        return self._item(actor_id, tree, active, lambda ledger: ledger.keys.get(key_id))

    def aux(self, actor_id: str, aux_id: str, tree: Tree) -> ItemAnswer | None:
        """Auxiliary data that the actor holds or held, or None."""
        def active(held: Held) -> Aux | None:
            return next((aux for aux in held.aux if aux.aux_id == aux_id), None)

        return self._item(actor_id, tree, active, lambda ledger: ledger.aux.get(aux_id))

    def entry(self, leaf_index: int, tree: Tree) -> tuple[Record, list[bytes]]:
        """An entry's record, and the proof that it is in *tree*, which may reach beyond the published one."""
        with self._store.snapshot():
            return self._record(leaf_index), self._prover(tree)(leaf_index)

    def _held(self, actor_id: str, tree_size: int, rows: tuple[tuple[int, int], ...]) -> Held | None:
        """Usually what is stored. Only when a later entry touched the actor are the earlier ones read."""
        if not rows or rows[0][0] >= tree_size:
            return None
        if rows[-1][0] >= tree_size:
            ledger = self._timeline.ledger(actor_id, tree_size)
            return Held(ledger.active_keys(), ledger.active_aux())
        actor = self._store.actor(actor_id)
        if actor is None or actor.status == Status.ERASED:
            return None
        return Held(actor.keys, actor.aux)

    def _item(
        self, actor_id: str, tree: Tree, active: Callable[[Held], Key | Aux | None],
        past: Callable[[Ledger], Spell | None],
    ) -> ItemAnswer | None:
        with self._store.snapshot():
            held = self._held(actor_id, tree.size, self._store.history(actor_id))
            if held is None:
                return None
            item = active(held)
            # What is not active any more is in no table; only the messages tell of it.
            spell = Spell(item) if item else past(self._timeline.ledger(actor_id, tree.size))
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
