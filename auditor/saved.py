"""A directory whose state is rows of a ledger: :class:`ktlog.pkd.replay.Directory` over them in place of dictionaries.

Every row is written through, into the one transaction that ends when the position beyond it is saved; so memory does
not grow with the log, and a position and its rows are never apart. :mod:`auditor.ledger` lists the kinds of rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from auditor.ledger import Ledger, Rows
from auditor.position import Position
from auditor.rowcodec import (
    NUMBER_BYTES,
    decode_actor,
    decode_held,
    decode_move,
    decode_tomb,
    encode_actor,
    encode_held,
    encode_move,
    encode_tomb,
    integer,
    name_hash,
    number,
)
from ktlog.errors import Invalid
from ktlog.pkd.actors import Actor, Role
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.keys import ZERO_ROOT_BYTES
from ktlog.pkd.replay import Directory
from ktlog.tlog.tree import Frontier


class Actors(Rows[str, Actor]):
    """Actors by their ids. Counts them, and remembers who was written."""

    def __init__(self, ledger: Ledger, count: int) -> None:
        super().__init__(ledger, "actor", name_hash, lambda _: "", encode_actor, decode_actor)
        self.count = count

    def __setitem__(self, key: str, value: Actor) -> None:
        if key not in self:
            self.count += 1
        self._ledger.put("ask", name_hash(key), key.encode())
        super().__setitem__(key, value)

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)
        self.count -= 1
        self._ledger.delete("ask", name_hash(key))

    def __iter__(self) -> Iterator[str]:
        return (self._read(value).actor_id for _, value in self._ledger.scan("actor"))

    def __len__(self) -> int:
        return self.count

    def unasked(self) -> list[str]:
        """Those who were touched since :meth:`asked`."""
        return [value.decode() for _, value in self._ledger.scan("ask")]

    def asked(self) -> None:
        """Nobody is left to ask about."""
        self._ledger.drop("ask", b"")


class _Set:
    """The rows of one kind, as a set of keys under *prefix*."""

    def __init__(self, ledger: Ledger, kind: str, prefix: bytes = b"") -> None:
        self._ledger, self._kind, self._prefix = ledger, kind, prefix

    def add(self, item: bytes) -> None:
        self._ledger.put(self._kind, self._prefix + item, b"")

    def __contains__(self, item: object) -> bool:
        return isinstance(item, bytes) and self._ledger.get(self._kind, self._prefix + item) is not None


class _HolderSet:
    """The actors that have one key."""

    def __init__(self, ledger: Ledger, hashed: bytes) -> None:
        self._ledger, self._hashed = ledger, hashed

    def add(self, actor_id: str) -> None:
        self._ledger.put("holder", self._hashed + actor_id.encode(), b"")

    def discard(self, actor_id: str) -> None:
        self._ledger.delete("holder", self._hashed + actor_id.encode())

    def __iter__(self) -> Iterator[str]:
        return (key[len(self._hashed):].decode() for key, _ in self._ledger.scan("holder", self._hashed))

    def __bool__(self) -> bool:
        return self._ledger.last("holder", self._hashed) is not None


class _Holders:
    """Sets of actors by a key's hash; an empty one takes no row."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getitem__(self, hashed: bytes) -> _HolderSet:
        return _HolderSet(self._ledger, hashed)

    def get(self, hashed: bytes, default: object = ()) -> _HolderSet:
        return self[hashed]

    def setdefault(self, hashed: bytes, default: object = ()) -> _HolderSet:
        return self[hashed]

    def __delitem__(self, hashed: bytes) -> None:
        """An empty set has no rows to delete."""


class _History(Sequence[tuple[int, Role]]):
    """The entries that touched one actor, oldest first."""

    def __init__(self, ledger: Ledger, prefix: bytes) -> None:
        self._ledger, self._prefix = ledger, prefix

    def append(self, row: tuple[int, Role]) -> None:
        leaf_index, role = row
        value = number(leaf_index) + bytes([role])
        self._ledger.put("hist", self._prefix + number(len(self)), value)

    def __len__(self) -> int:
        last = self._ledger.last("hist", self._prefix)
        return 0 if last is None else int.from_bytes(last[-NUMBER_BYTES:], "big") + 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice) and index.stop is None and index.step is None:
            return list(self._from(index.start or 0))
        return list(self._from(0))[index]

    def __iter__(self) -> Iterator[tuple[int, Role]]:
        return self._from(0)

    def _from(self, start: int) -> Iterator[tuple[int, Role]]:
        for _, value in self._ledger.scan("hist", self._prefix, number(start)):
            yield int.from_bytes(value[:NUMBER_BYTES], "big"), Role(value[NUMBER_BYTES])


class _Histories:
    """Histories by actor id."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def __getitem__(self, actor_id: str) -> _History:
        return _History(self._ledger, name_hash(actor_id))

    def get(self, actor_id: str, default: object = ()) -> _History:
        return self[actor_id]

    def setdefault(self, actor_id: str, default: object = ()) -> _History:
        return self[actor_id]

    def pop(self, actor_id: str, default: object = None) -> None:
        self._ledger.drop("hist", name_hash(actor_id))


class _Withheld:
    """How many attributes are withheld, by entry."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def append(self, item: tuple[int, int]) -> None:
        """Erasures add to what an entry stands for."""
        key, before = number(item[0]), self._ledger.get("held", number(item[0]))
        self._ledger.put("held", key, number(item[1] + (0 if before is None else integer(before))))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        for key, value in self._ledger.scan("held"):
            yield int.from_bytes(key, "big"), int.from_bytes(value, "big")


class _Newest(list[bytes]):
    """A list of which nobody asks for more than the last item."""

    def append(self, item: bytes) -> None:
        self[:] = [item]


class SavedDirectory(Directory):
    """A directory whose state is in *ledger*, as of *position*; from the start where that is None.

    Args:
        erasures: the erasure log; left out when no record of it can matter any more, and it is *settled*.
    """

    def __init__(
        self, ledger: Ledger, position: Position | None, frontier: Frontier, erasures: Sequence[ErasureRecord] = (),
        settled: bool = False,
    ) -> None:
        super().__init__(ledger.origin, erasures)
        numbers = {} if position is None else position.directory
        self._ledger = ledger
        self.frontier = frontier
        self.roots = _Newest([frontier.root()] if frontier.size else [])
        self.actors: Actors = Actors(ledger, numbers.get("actors", 0))  # type: ignore[assignment]
        self.token_revoked = _Set(ledger, "token")  # type: ignore[assignment]
        self.seen = Rows(ledger, "seen", bytes, bytes, number, integer)  # type: ignore[assignment]
        self.histories = _Histories(ledger)  # type: ignore[assignment]
        self.moves = Rows(ledger, "move", number, integer, encode_move, decode_move)  # type: ignore[assignment]
        self._trees = Rows(  # type: ignore[assignment]
            ledger, "tree", name_hash, lambda _: "", Frontier.encode, Frontier.decode
        )
        self._holders = _Holders(ledger)  # type: ignore[assignment]
        self._size_of_root = Rows(ledger, "root", bytes, bytes, number, integer)  # type: ignore[assignment]
        if not frontier.size:
            self._size_of_root[ZERO_ROOT_BYTES] = 0
        self.tombstones = Rows(ledger, "tomb", bytes, bytes, encode_tomb, decode_tomb)  # type: ignore[assignment]
        self._limbo = Rows(ledger, "limbo", number, integer, encode_held, decode_held)  # type: ignore[assignment]
        self._ids = Rows(ledger, "id", bytes, bytes, str.encode, bytes.decode)  # type: ignore[assignment]
        self._withheld = _Withheld(ledger)  # type: ignore[assignment]
        self.enrolments: Rows[int, bytes] = Rows(ledger, "enrol", number, integer, bytes, bytes)
        self.greatest_time = numbers.get("greatest_time", 0)
        self._hidden_keys = numbers.get("hidden_keys", 0)
        self._settled = settled
        self._erased_before = numbers.get("erased", 0)
        self._erased = 0 if settled else self._erased_before

    def map_rows(self) -> tuple[Rows[bytes, bytes], Rows[bytes, bytes]]:
        """Salts and leaves of the map, by map index."""
        salts, leaves = (Rows(self._ledger, kind, bytes, bytes, bytes, bytes) for kind in ("salt", "leaf"))
        return salts, leaves

    def numbers(self) -> dict[str, int]:
        """What is to be saved beside the rows."""
        return {
            "actors": self.actors.count, "greatest_time": self.greatest_time, "hidden_keys": self._hidden_keys,
            "erased": self._erased_before if self._settled else self._erased,
        }

    def erasure_faults(self) -> tuple[Invalid, ...]:
        """As the directory's; a settled erasure log was judged before, and explains nothing new."""
        return () if self._settled else super().erasure_faults()

    def follow_erasure(self, record: ErasureRecord) -> None:
        """Apply the next record, which takes effect just now: everything before it was read while it could be.

        What it says of the actor's counters is checked. How many attributes it took is taken on its word here: to see
        that they are gone, the records of its entries would have to be read again.
        """
        actor = self.actor_at(record.index)
        if actor is None:
            self._faults.append(Invalid("BadErasure", f"erasure {self._erased} is about nobody who can be erased"))
        elif (record.version, record.generation) != (actor.version + 1, actor.generation):
            self._faults.append(Invalid("BadErasure", f"erasure {self._erased} misstates an actor's counters"))
        if record.newly_withheld:
            self._withheld.append((record.input_size - 1, record.newly_withheld))
        self._erase(record)
