"""Where an audit stands: what it leaves behind, so that the next one reads only what is new.

A position is saved in one transaction with the directory's rows (:mod:`auditor.ledger`), and only when everything up
to it held. So whatever kills an audit, the next one goes on from the last position as if nothing had been.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from ktlog.errors import EncodingError
from ktlog.tlog.encoding import decode_base64, encode_base64
from ktlog.tlog.tree import EMPTY_ROOT

STRUCTURAL, SEMANTIC = "structural", "semantic"
TIERS = (STRUCTURAL, SEMANTIC)
KEPT_SIZES = 256


@dataclass(frozen=True)
class Counts:
    """What was checked of all entries from the first one to the position, by this audit and those before it."""

    leaf_signatures: int = 0
    message_signatures: int = 0
    commitments: int = 0
    commitments_checked: int = 0
    withheld: int = 0
    taken: int = 0


@dataclass(frozen=True)
class Position:
    """The first *size* entries of a log were read and judged, and no fault was found in them.

    Attributes:
        tier: "structural" or "semantic": what "judged" means.
        size, root: of the input tree. fold: what :meth:`auditor.fold.TreeFold.encode` gives.
        note: a signed checkpoint of this tree, or, in the midst of a long audit, of a larger one that begins with it.
        erasures, erasure_root: of the erasure log that explained what is withheld.
        output_size: leaves of the map's log that were audited; map_root: the map of the last one. output_fold: where
            its audit goes on, see :class:`auditor.mapposition.MapPosition`.
        directory: the counters of the replay, by name. dialect: of the entries, once one was read.
        opened_to: entries below this had all their commitments opened, by an audit of a tree with root opened_root.
    """

    origin: str
    tier: str
    size: int = 0
    root: bytes = EMPTY_ROOT
    fold: bytes = b""
    note: bytes = b""
    erasures: int = 0
    erasure_root: bytes = EMPTY_ROOT
    output_size: int = 0
    output_fold: bytes = b""
    map_root: bytes = b""
    dialect: str = ""
    directory: dict[str, int] = field(default_factory=dict)
    counts: Counts = Counts()
    opened_to: int = 0
    opened_root: bytes = b""
    saved: int = 0
    """Unix seconds."""
    shown: tuple[tuple[int, int], ...] = ()
    """(size, Unix seconds): sizes that the log has shown and the map did not cover yet, and when the first audit saw
    each; both ascend. The oldest is never dropped before it is covered."""

    def encode(self) -> str:
        """As text: JSON. Inverse of :func:`decode_position`."""
        found = {**asdict(self), "counts": asdict(self.counts)}
        return json.dumps(
            {name: {"b64": encode_base64(value)} if isinstance(value, bytes) else value
             for name, value in found.items()}
        )


def note_shown(
    shown: tuple[tuple[int, int], ...], size: int, now: int, covered: int = 0
) -> tuple[tuple[int, int], ...]:
    """*shown* with *size*, seen now, and without what the map covers. At most KEPT_SIZES, the oldest among them."""
    if not shown or shown[-1][0] < size:
        shown = (*shown, (size, now))
    shown = tuple(one for one in shown if one[0] > covered)
    return shown if len(shown) <= KEPT_SIZES else shown[::2]


def decode_position(text: str) -> Position:
    """Inverse of :meth:`Position.encode`.

    Raises:
        EncodingError: ``BadPosition``.
    """
    try:
        found: dict[str, Any] = {
            name: decode_base64(value["b64"]) if isinstance(value, dict) and "b64" in value else value
            for name, value in json.loads(text).items()
        }
        # One that was saved before there were sightings goes on without any.
        found = {"shown": [], **found}
        if found.keys() != {one.name for one in fields(Position)}:
            raise EncodingError("BadPosition", "it has not exactly the members of a position")
        shown = tuple((int(size), int(time)) for size, time in found["shown"])
        return Position(**{**found, "counts": Counts(**found["counts"]), "shown": shown})
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EncodingError("BadPosition", f"the saved position does not parse: {error}") from None


def all_opened(position: Position) -> bool:
    """Whether no commitment before the position was left unopened."""
    return position.counts.commitments_checked == position.counts.commitments
