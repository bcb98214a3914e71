"""What the map must hold for everybody, derived from a replayed directory and nothing that is stored of the map.

Spec: directory map §1, §2, §5.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from ktlog.errors import Invalid
from ktlog.keymap.value import commit_value, derive_opening, encode_value, tombstone, value_of
from ktlog.pkd.actors import Actor, Role
from ktlog.pkd.erasure import map_index
from ktlog.pkd.history import history_leaf
from ktlog.pkd.replay import Directory
from ktlog.store.mapcontract import Dead, Live
from ktlog.tlog.tree import Frontier, hash_leaf


class MapDerivation:
    """The map of *directory*, as it stands.

    Args:
        salts: by actor id.
        numbers: number of the newest erasure, by map index.
    """

    def __init__(self, directory: Directory, salts: Mapping[str, bytes], numbers: Mapping[bytes, int]) -> None:
        self._directory = directory
        self._salts = salts
        self._numbers = numbers

    def change(self, index: bytes) -> Live | Dead | None:
        """What is at *index*, in the form of a change that begins anew; None for nobody.

        Raises:
            Invalid: ``MissingSalt``.
        """
        actor = self._directory.actor_at(index)
        return self._dead(index) if actor is None else self._live(index, actor)

    def indexes(self) -> Iterator[bytes]:
        """Every index that has a leaf, in no order."""
        seen = set()
        for actor_id in self._directory.actors:
            index = map_index(self._directory.origin, actor_id)
            if index in self._directory.tombstones:
                seen.add(index)
            yield index
        yield from self._directory.tombstones.keys() - seen

    def _dead(self, index: bytes) -> Dead | None:
        left = self._directory.tombstones.get(index)
        if left is None:
            return None
        numbers = left.version, left.generation, self._numbers[index]
        return Dead(index, tombstone(self._directory.origin, index, *numbers), *numbers)

    def _live(self, index: bytes, actor: Actor) -> Live:
        salt = self._salts.get(actor.actor_id)
        if salt is None:
            raise Invalid("MissingSalt", "an actor has a value, and no record has a salt for it")
        leaves = tuple(
            history_leaf(role, at, self._directory.moves[at].before if role == Role.MOVED_IN else None)
            for at, role in self._directory.histories.get(actor.actor_id, ())
        )
        tree = Frontier().extend(map(hash_leaf, leaves))
        value = encode_value(value_of(actor, tree.size, tree.root()))
        opening = derive_opening(salt, actor.version)
        commitment = commit_value(index, actor.version, value, opening)
        return Live(index, commitment, value, opening, tree.encode(), leaves, True)

