"""Answers about actors, with the proofs that let somebody else check them.

An answer is given as of a published tree size, because only that size has a cosigned checkpoint.
Entries beyond it are shown as pending, without proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid, MessageRejected, StoreError
from ktlog.operator.nodes import LogNodes
from ktlog.operator.views import view_for
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.keys import derive_key_id, key_hash
from ktlog.pkd.messages import Message, WireMessage, message_from_plain
from ktlog.pkd.state import Actor, Change, Role, apply, find_signer, touched_by
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


@dataclass(frozen=True)
class _Entry:
    """One entry, read as a replayer reads it."""

    record: Record
    wire: WireMessage
    message: Message


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

        Usually the stored one. Only when an entry beyond them touched the actor are its entries
        replayed, with those of the actors whose state they rest on.
        """
        rows = self._store.history(actor_id)
        if not rows or rows[0][0] >= tree_size:
            return None
        if rows[-1][0] < tree_size:
            return self._store.actor(actor_id)
        actor = self._replay(actor_id, tree_size).get(actor_id)
        if actor is None:
            raise StoreError("CorruptHistory", f"the entries in the history of {actor_id} do not touch it")
        return actor

    def _replay(self, actor_id: str, tree_size: int) -> dict[str, Actor]:
        """Every needed entry once, in order: the cost follows the entries, however often identities moved."""
        entries, until = self._entries_behind(actor_id, tree_size)
        actors: dict[str, Actor] = {}
        for leaf_index in sorted(entries):
            # Who does not matter from here on is not kept up to date, and must not be looked at.
            known = {name: actor for name, actor in actors.items() if until[name] >= leaf_index}
            try:
                change = self._step(entries[leaf_index], known)
            except (EncodingError, Invalid, MessageRejected) as error:
                raise StoreError("CorruptHistory", f"entry {leaf_index} does not follow: {error}") from None
            actors |= {actor.actor_id: actor for actor in change.actors if until.get(actor.actor_id, 0) > leaf_index}
        return actors

    def _entries_behind(self, actor_id: str, tree_size: int) -> tuple[dict[int, _Entry], dict[str, int]]:
        """The entries that the actor's state rests on, and for every actor in them before which entry it matters."""
        entries: dict[int, _Entry] = {}
        until: dict[str, int] = {}
        waiting = [(actor_id, tree_size)]
        while waiting:
            name, limit = waiting.pop()
            start = until.get(name, 0)
            if limit <= start:
                continue
            until[name] = limit
            for leaf_index, role in self._store.history(name):
                if not start <= leaf_index < limit:
                    continue
                entry = entries[leaf_index] = entries.get(leaf_index) or self._entry(leaf_index)
                # An actor that moves away leaves nothing behind, whoever the new one is.
                if role != Role.MOVED_OUT:
                    others = touched_by(entry.message, lambda hashed: ())
                    waiting += [(other, leaf_index) for other in others if other != name]
        return entries, until

    def _entry(self, leaf_index: int) -> _Entry:
        record = self._store.records(leaf_index, leaf_index + 1)[0]
        wire, message = message_from_plain(self._dialect, record.preimage, record.plain, commitments=False)
        if message is None:
            raise StoreError("Withheld", f"entry {leaf_index} was erased in part and cannot be replayed")
        return _Entry(record, wire, message)

    def _step(self, entry: _Entry, actors: Mapping[str, Actor]) -> Change:
        def holders(hashed: bytes) -> tuple[str, ...]:
            return tuple(
                name for name, actor in actors.items() if any(key_hash(k.public_key) == hashed for k in actor.keys)
            )

        view = view_for(entry.message, actors.get, lambda hashed: False, holders)
        signer = find_signer(view, entry.message, entry.wire)
        leaf_index = entry.record.leaf_index
        key_id = derive_key_id(self._store.origin, leaf_index)
        return apply(view, entry.message, leaf_index, key_id, signer, entry.record.created)
