"""A whole directory in memory: the fold of :func:`ktlog.pkd.state.apply` over a log.

Auditors, conformance runs and tests replay with it; an operator's store keeps the same facts on
disk. No clock, no randomness, no I/O. The order of checks is a replayer's: was it logged before,
is its root recent, who signed it, does the state allow it.

>>> directory = Directory("keys.example.com")
>>> directory.size, directory.root_text[:12]
(0, 'pkd-mr-v1:AA')

"""

from __future__ import annotations

from ktlog.pkd.actions import Message, RevokeKeyThirdParty
from ktlog.pkd.actors import Actor, Change, Role, View
from ktlog.pkd.keys import ZERO_ROOT_BYTES, decode_root, derive_key_id, key_hash, pkd_root
from ktlog.pkd.messages import WireMessage
from ktlog.pkd.rejections import reject
from ktlog.pkd.state import apply, created_time, find_signer, recent_root_ok, touched_by
from ktlog.tlog.tree import Frontier, hash_leaf


class Directory:
    """Actors, keys and roots after the entries so far."""

    def __init__(self, origin: str) -> None:
        self.origin = origin
        self.frontier = Frontier()
        self.roots: list[bytes] = []
        """roots[i] is the tree's root after entry i."""
        self.actors: dict[str, Actor] = {}
        self.token_revoked: set[bytes] = set()
        self.seen: dict[bytes, int] = {}
        """Leaf index by WireMessage.unique_hash."""
        self.histories: dict[str, list[tuple[int, Role]]] = {}
        """Leaf index and role of every entry that touched an actor."""
        self.greatest_time = 0
        self._holders: dict[bytes, set[str]] = {}
        self._size_of_root: dict[bytes, int] = {ZERO_ROOT_BYTES: 0}

    @property
    def size(self) -> int:
        """Entries so far, those without effect included."""
        return self.frontier.size

    @property
    def root_text(self) -> str:
        """The current root as PKD writes it."""
        return pkd_root(self.size, self.roots[-1] if self.roots else ZERO_ROOT_BYTES)

    def holders(self, hashed_key: bytes) -> tuple[str, ...]:
        """The actors where a key, named by its hash, is active, sorted."""
        return tuple(sorted(self._holders.get(hashed_key, ())))

    def view_for(self, message: Message) -> View:
        """What the transition of *message* looks at, as of now."""
        names = touched_by(message, self.holders)
        holders = {}
        if isinstance(message, RevokeKeyThirdParty):
            hashed = key_hash(message.token.public_key)
            holders[hashed] = self.holders(hashed)
        return View({name: self.actors.get(name) for name in names}, self.token_revoked, holders)

    def check_unique(self, wire: WireMessage) -> None:
        """Raises MessageRejected(``duplicate_message``)."""
        if wire.unique_hash in self.seen:
            raise reject("duplicate_message", f"entry {self.seen[wire.unique_hash]}")

    def check_recent_root(self, wire: WireMessage) -> None:
        """A message is based on an earlier root of this log, not too old.

        Raises:
            MessageRejected: ``merkle_root_stale``.

        Spec: directory map §3.
        """
        if wire.recent_root is None:
            return
        size = self._size_of_root.get(decode_root(wire.recent_root))
        if size is None or not recent_root_ok(self.size - size, self.size):
            raise reject("merkle_root_stale")

    def check(self, wire: WireMessage, message: Message, *, use_key_id: bool = False) -> bytes | None:
        """Every rule but the state's own; returns the signer for :meth:`accept`.

        Raises:
            MessageRejected: ``duplicate_message``, ``merkle_root_stale``, and what
                :func:`~ktlog.pkd.state.find_signer` raises.
        """
        self.check_unique(wire)
        self.check_recent_root(wire)
        return find_signer(self.view_for(message), message, wire, use_key_id=use_key_id)

    def accept(
        self, leaf_index: int, wire: WireMessage, message: Message, signer: bytes | None, entry: bytes,
        key_id: str | None = None,
    ) -> Change:
        """Apply a checked message and append its entry. A refusal leaves everything as it was.

        Args:
            leaf_index: must be the next one.
            entry: the log entry's bytes, before hashing.
            key_id: in place of the derived one.

        Raises:
            MessageRejected: from :func:`~ktlog.pkd.state.apply`.
        """
        if leaf_index != self.size:
            raise AssertionError("entries are accepted in order")
        key_id = key_id or derive_key_id(self.origin, leaf_index)
        created = created_time(message, self.greatest_time)
        change = apply(self.view_for(message), message, leaf_index, key_id, signer, created)
        self._append(entry)
        self._record(leaf_index, change)
        self.seen[wire.unique_hash] = leaf_index
        self.greatest_time = max(self.greatest_time, created)
        return change

    def replay(self, wire: WireMessage, message: Message, entry: bytes) -> Change:
        """:meth:`check` and :meth:`accept` of the next entry."""
        return self.accept(self.size, wire, message, self.check(wire, message), entry)

    def append_void(self, leaf_index: int, entry: bytes) -> None:
        """Append an entry that breaks a rule: it is in the tree, and has no other effect."""
        if leaf_index != self.size:
            raise AssertionError("entries are appended in order")
        self._append(entry)

    def _append(self, entry: bytes) -> None:
        self.frontier = self.frontier.append(hash_leaf(entry))
        root = self.frontier.root()
        self.roots.append(root)
        self._size_of_root[root] = self.size

    def _record(self, leaf_index: int, change: Change) -> None:
        for actor in change.actors:
            old = self.actors.get(actor.actor_id)
            before = {key_hash(key.public_key) for key in (old.keys if old else ())}
            after = {key_hash(key.public_key) for key in actor.keys}
            for hashed in before - after:
                self._holders[hashed].discard(actor.actor_id)
                if not self._holders[hashed]:
                    del self._holders[hashed]
            for hashed in after - before:
                self._holders.setdefault(hashed, set()).add(actor.actor_id)
            self.actors[actor.actor_id] = actor
        for leaf in change.history:
            self.histories.setdefault(leaf.actor_id, []).append((leaf_index, Role(leaf.role)))
        if change.token_revoked is not None:
            self.token_revoked.add(change.token_revoked)
