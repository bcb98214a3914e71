"""What every store checks and works out about an erasure, before it takes anything away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ktlog.errors import StoreError
from ktlog.pkd.actors import Actor, Status
from ktlog.pkd.erasure import NAMING, ErasurePlan, Mention, erased_actor, map_index, moves_away
from ktlog.store.contracts import LogState, Record

Plain = Mapping[str, str | None]


def check_erasure(
    plan: ErasurePlan, origin: str, expected: LogState, actor: Actor | None, mentions: Sequence[Mention],
    plain_of: Callable[[int], Plain],
) -> None:
    """Check that *plan* erases *actor* as it is stored, completely, and says what it does.

    Raises:
        StoreError: "BadErasure".
    """
    record, erased = plan.record, plan.erased
    _require(actor is not None and actor.status != Status.ERASED, "there is no such actor to erase")
    if actor is None:  # said above; for type checkers
        return
    wanted = erased_actor(actor.actor_id, actor.version + 1, actor.generation, actor.erasures + 1)
    _require(erased == wanted, "it leaves something else than a tombstone of the actor as stored")
    _require(record.index == map_index(origin, actor.actor_id), "its record is about another index")
    _require(
        (record.version, record.generation) == (erased.version, erased.generation),
        "its record has other numbers than its tombstone",
    )
    _require(record.input_size == expected.size, "its record is for another size of the log")
    _require(record.carried == moves_away(actor.actor_id, mentions), "its record has other moves than the log")
    for mention in mentions:
        names = {name for name in NAMING if mention.plain.get(name) == actor.actor_id}
        _require(
            names <= plan.withhold.get(mention.leaf_index, frozenset()),
            f"it leaves the actor's name in entry {mention.leaf_index}",
        )
    withheld = 0
    for leaf_index, names in plan.withhold.items():
        _require(0 <= leaf_index < expected.size, f"entry {leaf_index} is not in the log")
        plain = plain_of(leaf_index)
        _require(
            bool(names) and all(plain.get(name) is not None for name in names),
            f"entry {leaf_index} has not all that it withholds",
        )
        withheld += len(names)
    _require(withheld == record.newly_withheld, "its record counts other attributes than it withholds")


def without(record: Record, names: frozenset[str]) -> Record:
    """*record* with the attributes *names* withheld: their text, their keys and their salts."""
    return replace(
        record, withheld=True,
        plain={name: None if name in names else text for name, text in record.plain.items()},
        keys={name: key for name, key in record.keys.items() if name not in names},
        salts={name: salt for name, salt in record.salts.items() if name not in names},
    )


def names_actor(plain: Plain, actor_id: str) -> bool:
    """Whether an attribute that holds actor ids holds this one."""
    return any(plain.get(name) == actor_id for name in NAMING)


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise StoreError("BadErasure", f"refused: {what}")
