"""What a log promised to do in time, and whether it did: the map follows the entries, and says so again and again.

The newest leaf of the map's log is enough for both, with the times at which the watch itself saw the log's sizes. A
promise that was broken is a finding and convicts nobody: when somebody saw something, only he can say.

Spec: directory map §6 (`mmd`, `heartbeat`).
"""

from __future__ import annotations

from dataclasses import dataclass

from auditor.debounce import Condition
from auditor.memory import LOG, Memory
from auditor.report import Finding, finding_from
from ktlog.client.publicfiles import PublicFiles
from ktlog.client.verify import Head
from ktlog.errors import EncodingError, Invalid, Unreachable
from ktlog.keymap.output import MapConfig, OutputLeaf, hash_config, parse_config, parse_leaf
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import hash_leaf
from ktlog.words import count_entries

BAD, MISSING = "BadMapLeaf", "MissingMapLeaf"
NAMES = frozenset({"InputHeldBack", "LateMap", "StaleMap", BAD, MISSING})


@dataclass(frozen=True)
class Newest:
    """The newest leaf of a map's log. leaf: None while there is only the configuration."""

    head: Head
    config: MapConfig
    leaf: OutputLeaf | None


class MapReader:
    """Reads the newest leaf of the map's log of *origin*, as far as its signed head vouches for it."""

    def __init__(self, files: PublicFiles, origin: str, config: MapConfig | None = None) -> None:
        self._files = files
        self._origin = origin
        self.config = config
        """Leaf 0, once it was read; it never changes."""

    def newest(self, head: Head) -> Newest | None:
        """None for a map's log without any leaf.

        Raises:
            Invalid: ``TreeMismatch``, ``BadTile``, ``BadEntryBundle``, ``MissingEntries``, ``WrongConfig``,
                ``BadMapConfig``, ``BadOutputLeaf``.
            Unreachable
        """
        if not head.size:
            return None
        read = self._files.hashes(head.size, head.root)
        config = self.config
        try:
            if config is None:
                config = parse_config(self._leaf(head, 0, read))
                if config.origin != self._origin:
                    raise Invalid("WrongConfig", f"leaf 0 is the configuration of the map of {config.origin!a}")
                self.config = config
            if head.size == 1:
                return Newest(head, config, None)
            leaf = parse_leaf(self._leaf(head, head.size - 1, read))
        except EncodingError as error:
            raise Invalid(error.name, error.message) from None
        if leaf.config != hash_config(config):
            raise Invalid("WrongConfig", f"leaf {head.size - 1} names another configuration than leaf 0")
        return Newest(head, config, leaf)

    def _leaf(self, head: Head, index: int, read) -> bytes:  # noqa: ANN001 - a HashReader
        number = index // TILE_WIDTH
        width = min(TILE_WIDTH, head.size - number * TILE_WIDTH)
        data = self._files.entries(number, width)[index - number * TILE_WIDTH]
        if hash_leaf(data) != read([(0, index)])[0]:
            raise Invalid("TreeMismatch", f"leaf {index} that {head.origin} serves is not the one of its signed tree")
        return data


def check_map(reader: MapReader, head: Head, memory: Memory, skew: int, now: int) -> list[Condition] | None:
    """What the newest leaf says of the log's promises; None when it could not be read.

    Args:
        head: of the map's log. memory: of the log of entries. skew: seconds by which clocks may differ.
    """
    try:
        newest = reader.newest(head)
    except Unreachable:
        return None
    except Invalid as error:
        rule = MISSING if error.name.startswith("Missing") else BAD
        return [Condition(finding_from(error, rule, subject=head.origin))]
    return [] if newest is None or newest.leaf is None else _late(newest.config, newest.leaf, head, memory, skew, now)


def _late(
    config: MapConfig, leaf: OutputLeaf, head: Head, memory: Memory, skew: int, now: int
) -> list[Condition]:
    found = []
    missed = memory.first_beyond(LOG, leaf.input_size)
    if missed is not None:
        size, seen = missed
        due = seen + config.mmd + skew
        if now > due and leaf.time > due:
            found.append(Condition(Finding(
                "InputHeldBack", "Stale",
                f"leaf {head.size - 1} of {head.origin}, of {leaf.time}, covers {count_entries(leaf.input_size)}; the"
                f" log had shown {size:,} at {seen}, and promises to cover them within {config.mmd} seconds",
            ), since=due))
        elif now > due:
            found.append(Condition(Finding(
                "LateMap", "Stale",
                f"the map covers {count_entries(leaf.input_size)}; the log showed {size:,} at {seen}, and promises to"
                f" cover them within {config.mmd} seconds",
            ), since=due))
    due = leaf.time + config.heartbeat + skew
    if now > due:
        found.append(Condition(Finding(
            "StaleMap", "Stale",
            f"the newest leaf of {head.origin} is {now - leaf.time} seconds old; the log promises one every"
            f" {config.heartbeat} seconds",
        ), since=due))
    return found
