"""What a store of the directory map promises, whatever it is made of.

It holds the map as it was published last, what an answer discloses of each value, and every leaf and checkpoint of the
output log that commits to the map. Each output leaf is stored together with the signed checkpoint that it completes,
so that what is in here was published, or is about to be. One test suite (``tests/contract/test_map_contract.py``)
holds every implementation to this.

Whole
    An :meth:`MapStore.update` is stored with everything in it, durably, or nothing of it is. A reader sees one or the
    other, also while an update takes its time.
Compare and set
    An update takes effect only if the stored state is the one that it was derived from. Two writers therefore cost a
    ``Conflict("MapAdvanced")``, never two leaves for one index. Where several processes share a store, a handle that
    was opened with an older epoch of the log than the newest gets ``Conflict("Fenced")``.
Append-only
    An output leaf and a checkpoint never change and never go away.
Erasable
    What an update takes away is in no answer from then on, and after :meth:`MapStore.scrub` in no byte of the files.

Errors are those of ``ktlog.store.contracts``: after ``StoreError(AMBIGUOUS)`` nobody knows whether the update is
stored, and what is in memory is discarded; after any other one nothing of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from ktlog.keymap.prefix import PrefixLeaf, PrefixProof
from ktlog.tlog.tree import Frontier


@dataclass(frozen=True)
class MapState:
    """leaves: indexes in the map, tombstones too. root: of the map. input_size, erasures: what it is derived from.

    output: the output log's frontier, whose size is the number of its leaves. depth: levels kept as node pages.
    """

    leaves: int
    depth: int
    root: bytes
    input_size: int
    erasures: int
    output: Frontier


@dataclass(frozen=True)
class Live:
    """An index with a value. value: encoded. history: frontier of its history tree, encoded.

    news: what a change appends to the history, the leaves before hashing; empty when read.
    afresh: a change that begins a new history, for whatever there was before was erased.
    """

    index: bytes
    commitment: bytes
    value: bytes
    opening: bytes
    history: bytes
    news: tuple[bytes, ...] = ()
    afresh: bool = False


@dataclass(frozen=True)
class Dead:
    """An erased index: its commitment is the tombstone of these numbers."""

    index: bytes
    commitment: bytes
    version: int
    generation: int
    erasure_number: int


class MapStore(Protocol):
    """One map. The module says what every method guarantees. Reads come from any thread, updates from one."""

    def close(self) -> None:
        """Give back files and connections. Closing twice does nothing."""

    def snapshot(self) -> AbstractContextManager[object]:
        """Within this context all reads of this thread see one update, the newest at its start."""

    # Reading

    def version(self) -> Hashable:
        """As ``LogStore.version``."""

    def state(self) -> MapState:
        """Where the map stands."""

    def live(self, index: bytes) -> Live | None:
        """The value at *index*, or None: no leaf, or an erased one."""

    def presented(self, index: bytes) -> tuple[bytes, bytes] | None:
        """Of :meth:`live` the value and the opening alone, which is all that a lookup shows."""

    def dead(self, index: bytes) -> Dead | None:
        """The tombstone at *index*, or None."""

    def prove(self, index: bytes) -> PrefixProof:
        """Proof of the search for *index* in the map as it is now."""

    def prove_all(self, indexes: Sequence[bytes]) -> PrefixProof:
        """Proof of the searches for *indexes*, sorted and distinct, in the map as it is now."""

    def history(self, index: bytes, end: int) -> tuple[bytes, ...]:
        """The first *end* leaves of the history at *index*, before hashing; fewer if there are no more."""

    def checkpoint(self, size: int | None = None) -> bytes | None:
        """The signed checkpoint of the output log at *size*, or its newest; None if there is none."""

    def scrub_due(self) -> bool:
        """Whether a value was erased since the last :meth:`scrub` that succeeded."""

    def output_leaves(self, start: int, end: int) -> tuple[bytes, ...]:
        """Leaves *start* up to *end* of the output log, before hashing; "OutOfRange" where there are not as many."""

    def output_hashes(self, start: int, end: int) -> tuple[bytes, ...]:
        """Their leaf hashes."""

    def leaves(self) -> Iterator[PrefixLeaf]:
        """Every leaf of the map, in order; for checks and rebuilds."""

    def damaged_rows(self) -> Iterator[str]:
        """The rows of the tree, by their names, that are not what was written; for checks."""

    def leaf_near(self, index: bytes) -> PrefixLeaf | None:
        """Some leaf at or after *index*, or else any; None in an empty map. For samples."""

    # Writing

    def update(
        self, changes: Sequence[Live | Dead], *, expected: MapState, input_size: int, erasures: int,
        make_leaf: Callable[[bytes], bytes], seal: Callable[[MapState, bytes], bytes] | None = None,
    ) -> MapState:
        """Change leaves and append the output leaf that commits to them, all or nothing.

        Args:
            changes: of distinct indexes. expected: the state that they were derived from.
            make_leaf: gives the output leaf for the new map root.
            seal: gives the signed checkpoint for the state after it, which ends with that leaf. It may take its
                time: readers go on seeing the state before.

        What *make_leaf* or *seal* raises goes through, and nothing is changed.

        Raises:
            Conflict: ``MapAdvanced``: the stored state is not *expected*; ``Fenced``. Nothing is changed.
        """

    def settle(self) -> None:
        """Tidy up after updates. They are durable before; nobody needs to wait for this."""

    def scrub(self) -> bool:
        """Leave no erased byte in the store's files, and return whether that succeeded. See ``LogStore.scrub``."""
