"""What one reading of a log works with: network, cores, clock, and where what it learns is kept."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from auditor.events import Event
from auditor.fetch import LogReader
from auditor.heads import SaveEvidence
from auditor.ledger import Ledger
from auditor.request import Progress


@dataclass
class Tools:
    """What a pass works with.

    Attributes:
        network, cores: threads that fetch, and that verify.
        clock: seconds, for when to save.
        on_events: stores events durably; None when nobody asks for them.
    """

    reader: LogReader
    network: Executor
    cores: Executor
    save_evidence: SaveEvidence
    progress: Progress
    chance: random.Random
    clock: Callable[[], float]
    on_events: Callable[[Sequence[Event]], None] | None = None
    ledger: Ledger | None = None
