"""What a verifier asks of one output leaf, beside the map that it derives: no I/O, no clock.

A leaf that a checkpoint of the log commits to is the log's word. :class:`WrongLeaf` says that the word cannot be true:
it convicts. Anything else that keeps a verifier from signing is an ``Invalid`` of :mod:`witness.follow`, and may heal.

Spec: directory map §6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ktlog.errors import EncodingError, Invalid
from ktlog.keymap.evidence import leaves_contradict
from ktlog.keymap.output import MapConfig, OutputLeaf, hash_config, parse_config, parse_leaf
from ktlog.pkd.erasure import ErasureRecord, encode_erasure_record
from ktlog.tlog.tree import EMPTY_ROOT, Frontier, hash_leaf

CLOCK_SECONDS = 300
"""How far the time of a leaf seen when new may be from ours."""


class WrongLeaf(Invalid):
    """A leaf that cannot be true: nothing is signed for this map any more. leaf_index: of the output log."""

    def __init__(self, name: str, message: str, leaf_index: int) -> None:
        super().__init__(name, f"leaf {leaf_index}: {message}")
        self.leaf_index = leaf_index


@dataclass(frozen=True)
class Place:
    """The newest leaf that was checked, as bytes and, unless it is the configuration, parsed."""

    index: int
    data: bytes
    config: MapConfig
    leaf: OutputLeaf | None


def check_config(data: bytes, origin: str) -> MapConfig:
    """Leaf 0 of the map's log of *origin*.

    Raises:
        WrongLeaf: ``WrongConfig``: another log's. Invalid: ``BadMapConfig``: none that is known here, which a later
            version may: it convicts nobody.
    """
    try:
        config = parse_config(data)
    except EncodingError as error:
        raise Invalid(error.name, error.message) from None
    if config.origin != origin:
        raise WrongLeaf("WrongConfig", f"it is the configuration of the map of {config.origin}", 0)
    return config


def check_next(place: Place, data: bytes) -> OutputLeaf:
    """The leaf after *place*, as far as the leaves alone tell.

    Raises:
        WrongLeaf: ``BadOutputLeaf``, ``WrongConfig``, ``MapContradiction``.
    """
    index = place.index + 1
    try:
        leaf = parse_leaf(data)
    except EncodingError as error:
        raise WrongLeaf(error.name, error.message, index) from None
    if leaf.config != hash_config(place.config):
        raise WrongLeaf("WrongConfig", "it names another configuration than leaf 0", index)
    reason = None if place.leaf is None else leaves_contradict(place.leaf, leaf)
    if reason is not None:
        raise WrongLeaf("MapContradiction", reason, index)
    if leaf.input_size == 0 and leaf.input_root != EMPTY_ROOT:
        raise WrongLeaf("InputMismatch", "a log without entries has one root, and this is another", index)
    return leaf


def check_erasures(index: int, before: int, leaf: OutputLeaf, records: Sequence[ErasureRecord]) -> None:
    """Compare the erasures that *leaf* commits to with those published, of which the first *before* were checked.

    Raises:
        WrongLeaf: ``BadErasure``: one first appears with another input size than its own.
        Invalid: ``ErasuresMismatch``. That is no verdict: the records are signed by nobody but a leaf that commits to
            them, so that these may be somebody else's.
    """
    told = records[: leaf.erasures]
    root = Frontier().extend(hash_leaf(encode_erasure_record(record)) for record in told).root()
    if root != leaf.erasures_root:
        raise Invalid("ErasuresMismatch", f"the {leaf.erasures} erasures of leaf {index} are not those that are shown")
    # The very first map stands for all that was erased while the log had none.
    for number, record in enumerate(() if index == 1 else told[before:], before):
        if record.input_size != leaf.input_size:
            raise WrongLeaf(
                "BadErasure", f"erasure {number} is after {record.input_size} entries, and the leaf covers"
                f" {leaf.input_size}", index,
            )


def latest_to_cover(leaf: OutputLeaf, config: MapConfig, shown: int) -> int:
    """Until when an input checkpoint must have been seen for *leaf* to have to cover it: ``mmd`` before its time.

    Args:
        shown: when the leaf was first shown here. It counts where it is earlier than the leaf's own time: a clock at
            the log that runs ahead must not make a liar of it.
    """
    return min(leaf.time, shown) - config.mmd


def check_held_back(index: int, leaf: OutputLeaf, config: MapConfig, size: int) -> None:
    """Whether *leaf* covers *size* entries, of which a checkpoint was seen in time.

    Raises:
        WrongLeaf: ``InputHeldBack``.
    """
    if leaf.input_size < size:
        raise WrongLeaf(
            "InputHeldBack", f"it covers {leaf.input_size} entries, and a checkpoint of {size} was out for more than"
            f" {config.mmd} seconds", index,
        )


def is_timely(leaf: OutputLeaf, shown: int) -> bool:
    """Whether *leaf* was seen when it was new."""
    return abs(leaf.time - shown) <= CLOCK_SECONDS
