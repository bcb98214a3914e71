"""An actor's history: a tree with one leaf for every entry that touched the actor since its last erasure. Pure.

Whoever moved in has the old name's history in one leaf, by the size and root that it had until then. So a root says
all that an actor's keys go back to, and no leaf names anybody.

Spec: directory map §2, history.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from ktlog.pkd.actors import Role
from ktlog.tlog.binary import u8, u64
from ktlog.tlog.tree import Frontier, hash_leaf

Before = tuple[int, bytes]
"""Size and root (32 bytes) of a history as it was."""


def history_leaf(role: int, leaf_index: int, moved_from: Before | None = None) -> bytes:
    """A leaf of an actor's history tree.

    Args:
        role: :class:`ktlog.pkd.actors.Role`. leaf_index: of the entry, in the input log.
        moved_from: for MOVED_IN the old actor's (history size, history root) before the move.
    """
    if (role == Role.MOVED_IN) != (moved_from is not None):
        raise AssertionError("a history that moved in, and no other, carries the one before")
    tail = b"" if moved_from is None else u64(moved_from[0]) + moved_from[1]
    return u8(role) + u64(leaf_index) + tail


def extend_history(
    tree: Frontier, rows: Iterable[tuple[int, int]], moved_from: Callable[[int], Before]
) -> Frontier:
    """*tree* with the leaves of *rows*: leaf index and role, ascending.

    Args:
        moved_from: by the leaf index of a MoveIdentity, what its old actor's history was before it.
    """
    return tree.extend(
        hash_leaf(history_leaf(role, leaf_index, moved_from(leaf_index) if role == Role.MOVED_IN else None))
        for leaf_index, role in rows
    )
