"""Derives one log's map up to any output leaf, from what the log publishes now, and says how sure that is.

Who was there when an entry was logged knows what it said, also after an erasure. Who reads later knows what the
erasure records leave, so whoever begins anew knows less than before. Therefore nothing is read again that could turn
an accusation into a doubt: only what nobody signed, while no erasure came between.

Spec: directory map §3 and §5.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

from ktlog.errors import Invalid
from ktlog.keymap.output import MapConfig, OutputLeaf
from ktlog.pkd.dialects import DIALECTS
from ktlog.pkd.erasure import ErasureRecord
from witness.derivation import Derivation
from witness.inputlog import Entry, InputLog
from witness.leaves import WrongLeaf, check_erasures
from witness.replays import Replay, ReplayStore

AHEAD = 1024
"""Entries checked and kept in memory before a leaf covers them."""
AHEAD_BYTES = 32 << 20
"""Of their messages: a log may hold many long ones, and there may be more logs."""

_LOG = logging.getLogger("ktlog.verifier")


class ReadAgain(Invalid):
    """What was derived is worth nothing, and everything has to be read again."""


class Deriver:
    """The derivation of *replay*'s map as far as it was needed. One thread.

    Args:
        progress: called with the number of entries derived, every page or so.
    """

    def __init__(
        self, replay: Replay, store: ReplayStore, entries: InputLog, clock: Callable[[], int],
        progress: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._replay = replay
        self._store = store
        self._input = entries
        self._clock = clock
        self._progress = progress
        self._notice = 0
        self._suspect: tuple[bytes, int] | None = None
        self.forget()

    def forget(self) -> None:
        """Read everything again, beginning with the erasures."""
        self.derivation: Derivation | None = None
        self._records: tuple[ErasureRecord, ...] = ()
        self._foretold = 0
        self._counted = False
        self._ready: deque[Entry] = deque()

    # -- one leaf

    def reaches(self, index: int, leaf: OutputLeaf, config: MapConfig, erasures_before: int) -> bool:
        """Derive until after the entries and erasures of *leaf*, whose roots must be ours.

        Args:
            erasures_before: those that the leaf before it counts.

        Returns:
            Whether its map can be derived: False when an erasure that was not seen here hides what it was.

        Raises:
            WrongLeaf: ``InputMismatch``, ``BadErasure``.
            ReadAgain: what was read cannot be gone on with.
            Invalid, Unreachable: not yet.
        """
        if leaf.input_size > self._input.size:
            raise Invalid("InputBehind", f"leaf {index} covers {leaf.input_size} entries; {self._input.size} are shown")
        derivation = self.derivation or self._begin(config)
        if leaf.input_size < derivation.size or leaf.erasures < derivation.erasures:
            raise ReadAgain("LeafReplaced", f"leaf {index} is not the one that was shown before")
        if leaf.erasures > len(self._records):
            self._records = self._read_records(derivation)
            if leaf.erasures > len(self._records):
                raise Invalid("ErasuresBehind", f"leaf {index} counts {leaf.erasures} erasures; the log shows fewer")
        try:
            check_erasures(index, erasures_before, leaf, self._records)
        except WrongLeaf:
            raise
        except Invalid:
            self._doubt_records(derivation)
            raise
        while derivation.size < leaf.input_size:
            self._bury(derivation, leaf.erasures, index)
            self._take(derivation)
        if derivation.input_root() != leaf.input_root:
            raise WrongLeaf("InputMismatch", f"its {leaf.input_size} entries are not those of the log", index)
        self._bury(derivation, leaf.erasures, index)
        if derivation.erasures != leaf.erasures:
            raise WrongLeaf("BadErasure", f"it counts {leaf.erasures} erasures, of which not all have happened", index)
        return derivation.erasures >= self._foretold

    def has_map(self, leaf: OutputLeaf) -> bool:
        """Whether the map reached is the leaf's.

        Raises:
            Invalid: ``RecordWithheld``, ``NotErased``: text is missing, or left, that the erasures do not explain.
        """
        derivation = self.derivation
        if derivation is None:
            raise AssertionError("a map is compared before it was derived")
        self._count(derivation)
        return derivation.map_root() == leaf.map_root

    def _count(self, derivation: Derivation) -> None:
        """Whether the erasures foretold, which have all happened, explain what was withheld.

        Raises:
            Invalid: ``RecordWithheld``, ``NotErased``. Everything is forgotten, for reading on puts nothing right.
        """
        if self._counted:
            return
        try:
            derivation.check_withheld()
        except Invalid:
            self.forget()
            raise
        self._counted = True

    def may_doubt(self, data: bytes) -> bool:
        """Whether the first accusation of the leaf *data* may come from something that was misread.

        Salts are signed by nobody, so whoever was served a wrong one derives another map. That is read again, once;
        but not when an erasure was followed meanwhile, for who reads again has not seen what it took away.
        """
        if self._suspect is not None or len(self._records) != self._foretold:
            return False
        self._suspect = data, self._foretold
        return True

    def settle(self, index: int, data: bytes) -> None:
        """The leaf *data* holds, or nobody can tell.

        Raises:
            WrongLeaf: ``MapMismatch``: it was accused before the erasures that are known now.
        """
        if self._suspect is not None and self._suspect[0] == data:
            if self._suspect[1] != self._foretold:
                raise WrongLeaf("MapMismatch", "its map was another than derived; then somebody was erased", index)
            self._suspect = None

    # -- entries and erasures

    def _begin(self, config: MapConfig) -> Derivation:
        self._notice = config.notice
        self._records = self._input.erasures(())
        self._foretold = len(self._records)
        self._counted = not self._records
        self.derivation = Derivation(
            self._replay.origin, dialect=DIALECTS[config.dialect], commitments=False, records=self._records
        )
        return self.derivation

    def _read_records(self, derivation: Derivation) -> tuple[ErasureRecord, ...]:
        """The erasures as the log shows them now, going on from those that count."""
        try:
            return self._input.erasures(self._records[: max(derivation.erasures, self._foretold)])
        except Invalid:
            self._doubt_records(derivation)
            raise

    def _doubt_records(self, derivation: Derivation) -> None:
        """Nobody signs the records but a leaf that commits to them: before it was checked, they may be misread."""
        if derivation.erasures < self._foretold:
            self.forget()  # what was derived rests on them
        else:
            self._records = self._records[: derivation.erasures]

    def _take(self, derivation: Derivation) -> None:
        """Give the next entry."""
        if not self._ready:
            self._progress(derivation.size)
            self._ready.extend(self._input.read(derivation.size))
        entry = self._ready[0]
        record = entry.record
        if record.withheld:
            self._check_notice(record.leaf_index)
        try:
            violation = derivation.entry(
                record.leaf_index, entry.data, record.preimage, record.plain, record.salts, record.withheld
            )
        except Invalid as error:
            self._ready.clear()
            if len(self._read_records(derivation)) > len(self._records):
                raise ReadAgain(error.name, f"{error.message}; and somebody was erased since") from None
            raise
        self._ready.popleft()
        if violation is not None:
            # Its name alone: what is said of it may quote what an erasure has to take away.
            _LOG.warning("%s: entry %d breaks a rule: %s", self._replay.origin, violation.leaf_index, violation.name)

    def _check_notice(self, leaf_index: int) -> None:
        """Text may go only after it was public for a while; else an erasure could hide anybody's revocation.

        Raises:
            Invalid: ``WithheldTooSoon``: the entry was seen when it was new, and its text is gone already.
        """
        new_from = self._input.new_from
        if new_from is None or leaf_index < new_from:
            return
        seen = self._store.first_seen(self._replay.origin, leaf_index)
        if seen is not None and self._clock() - seen < self._notice:
            self._ready.clear()
            raise Invalid(
                "WithheldTooSoon", f"entry {leaf_index} came {self._clock() - seen} seconds ago, and its text is gone"
            )

    def _bury(self, derivation: Derivation, count: int, index: int) -> None:
        """Erase what is erased at this size, up to *count* erasures in all."""
        while derivation.erasures < min(count, len(self._records)):
            record = self._records[derivation.erasures]
            if record.input_size != derivation.size:
                return
            foretold = derivation.erasures < self._foretold
            if not foretold:
                # What it took from an entry read meanwhile would be counted among what those foretold took.
                self._count(derivation)
            strand = next((one for one in derivation.strands() if one.index == record.index), None)
            leaves = [] if strand is None else [event.leaf_index for event in strand.events]
            try:
                derivation.erase(record)
            except Invalid as error:
                if foretold:
                    raise
                raise WrongLeaf(error.name, error.message, index) from None
            self._store.forget_digests(self._replay.origin, leaves)

    def read_ahead(self) -> None:
        """Check what the log published and no leaf covers yet, so that a leaf finds it checked."""
        start = (0 if self.derivation is None else self.derivation.size) + len(self._ready)
        kept = sum(len(entry.record.preimage) for entry in self._ready)
        while start < self._input.size and len(self._ready) < AHEAD and kept < AHEAD_BYTES:
            page = self._input.read(start)
            self._ready.extend(page)
            kept += sum(len(entry.record.preimage) for entry in page)
            start += len(page)
