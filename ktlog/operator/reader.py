"""Answers about actors, with the proofs that let somebody else check them.

An answer is given as of a published tree size, because only that size has a cosigned checkpoint.
Entries beyond it are shown as pending, without proof.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ktlog.errors import StoreError
from ktlog.operator.nodes import LogNodes
from ktlog.operator.views import view_for
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.keys import derive_key_id
from ktlog.pkd.messages import message_from_plain
from ktlog.pkd.state import Actor, apply, find_signer
from ktlog.store.contracts import LogStore, Record
from ktlog.tlog.tree import prove_inclusion


@dataclass(frozen=True)
class HistoryRow:
    """One message that touched an actor. ``proof`` is None while it is not in the tree asked about."""

    record: Record
    role: int
    proof: list[bytes] | None


@dataclass(frozen=True)
class ActorAnswer:
    """An actor as of ``tree_size``, whose root is ``root``; every proof is against that root."""

    actor: Actor
    tree_size: int
    root: bytes
    key_proofs: dict[int, list[bytes]]
    history: tuple[HistoryRow, ...]


class ActorReader:
    """Reads one log's directory. Give it a reader's store; it writes nothing."""

    def __init__(
        self, store: LogStore, read_tile: Callable[[str], bytes | None], dialect: Dialect
    ) -> None:
        self._store = store
        self._read_tile = read_tile
        self._dialect = dialect

    def answer(
        self, actor_id: str, tree_size: int, published_size: int, *, with_history: bool
    ) -> ActorAnswer | None:
        """The actor as of *tree_size* (at most *published_size*), or None when it was unknown then."""
        with self._store.snapshot():
            actor = self.actor_at(actor_id, tree_size)
            rows = self._store.history(actor_id)
            if actor is None and not rows:
                return None
            nodes = LogNodes(self._store, self._read_tile, published_size)
            proofs = {
                key.leaf_index: prove_inclusion(key.leaf_index, tree_size, nodes)
                for key in (actor.keys if actor else ())
            }
            history = tuple(
                HistoryRow(
                    self._store.records(leaf_index, leaf_index + 1)[0], role,
                    prove_inclusion(leaf_index, tree_size, nodes) if leaf_index < tree_size else None,
                )
                for leaf_index, role in (rows if with_history else ())
            )
            root = self._store.root_after(tree_size)
        if actor is None:
            return None
        return ActorAnswer(actor, tree_size, root, proofs, history)

    def actor_at(self, actor_id: str, tree_size: int) -> Actor | None:
        """The actor after the first *tree_size* entries.

        Usually the stored one; only while a message of the actor waits for its checkpoint is its
        history replayed. A MoveIdentity needs the other actor too, strictly further back.
        """
        rows = self._store.history(actor_id)
        if not rows or rows[0][0] >= tree_size:
            return None
        if rows[-1][0] < tree_size:
            return self._store.actor(actor_id)
        actor: Actor | None = None
        for leaf_index, _ in rows:
            if leaf_index >= tree_size:
                break
            actor = self._step(actor_id, actor, leaf_index)
        return actor

    def _step(self, actor_id: str, actor: Actor | None, leaf_index: int) -> Actor:
        record = self._store.records(leaf_index, leaf_index + 1)[0]
        wire, message = message_from_plain(self._dialect, record.preimage, record.plain, commitments=False)
        if message is None:
            raise StoreError("Withheld", f"entry {leaf_index} was erased in part and cannot be replayed")
        view = view_for(
            message, lambda a: actor if a == actor_id else self.actor_at(a, leaf_index), lambda hashed: False,
            # Only this actor's transition is wanted, so it is the only holder that a token needs to find.
            lambda hashed: (actor_id,),
        )
        signer = find_signer(view, message, wire)
        key_id = derive_key_id(self._store.origin, leaf_index)
        change = apply(view, message, leaf_index, key_id, signer, record.created)
        for changed in change.actors:
            if changed.actor_id == actor_id:
                return changed
        raise StoreError("CorruptHistory", f"entry {leaf_index} is in the history of {actor_id} and does not touch it")
