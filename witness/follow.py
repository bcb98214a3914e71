"""Follows one log and its map: derives what every output leaf must say, and says up to where that was so.

One thread for each log. It polls the log, checks new entries ahead of need, and when it is shown a checkpoint of the
map's log (by who asks for a cosignature, or by the log's own /map/checkpoint) it checks every new leaf of it::

    input head ─ signed, contains the one before ─┐
    leaf k ─ in the tree of the checkpoint        ─┤ its own word, and that of leaf k - 1
           ─ entries < N ─ root at N              ─┤ checked and derived, in order
           ─ erasures ─ root at E                 ─┤
           ─ the map derived at (N, E)            ─┘ and at the end the clock

Whatever the log signed and cannot be true is a verdict, for good. Whatever else goes wrong keeps the verifier silent
for as long as it lasts, and no longer. What a stranger sends decides nothing: a checkpoint counts by the log's own
signature, and a leaf by the tree it is in.

A restart derives everything again, from the first entry, but computes no commitment that held before
(:mod:`witness.inputlog`): nothing of what people wrote is kept on the disk.

Spec: directory map §4 to §6.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace

from ktlog.client.publicfiles import FileGetter, PublicFiles
from ktlog.client.verify import Head, check_extends, open_head
from ktlog.errors import Forked, Invalid, KtlogError, Unreachable
from ktlog.keymap.output import OutputLeaf
from ktlog.tlog.tiles import TILE_WIDTH, TileHashReader
from ktlog.tlog.tree import hash_leaf
from witness.accuse import accuse_fork, accuse_leaf
from witness.deriver import Deriver, ReadAgain
from witness.inputlog import InputLog
from witness.leaves import (
    CLOCK_SECONDS,
    Place,
    WrongLeaf,
    check_config,
    check_held_back,
    check_next,
    is_timely,
    latest_to_cover,
)
from witness.replays import Checked, Replay, ReplayStore, Verdict

POLL_SECONDS = 2.0
LONGEST_PAUSE_SECONDS = 60.0
KICK_PAUSE_SECONDS = 0.5
"""After a failure, before somebody who asks makes it try again."""
ATTEMPTS = 3
"""How often in one round everything may be read again."""

_LOG = logging.getLogger("ktlog.verifier")


@dataclass(frozen=True)
class Progress:
    """How far a log was followed, for other threads to read.

    target: the largest head of the map's log that was shown, and at what time. failure: what keeps it from being
    checked, None while nothing does. tried: the size of the target that the last round looked at. violations, taken:
    entries without effect, and with an effect on the word of the verifiers of their time.
    """

    target: Head | None = None
    shown: int = 0
    checked: Checked | None = None
    verdict: Verdict | None = None
    failure: KtlogError | None = None
    round: int = 0
    tried: int = 0
    input_size: int = 0
    derived_size: int = 0
    erasures: int = 0
    violations: int = 0
    taken: int = 0


class Follower:
    """Follows *replay*. ``start`` begins a thread; ``offer`` and ``wait`` are for others.

    Args:
        fetcher: reads the log. pool: of all followers. clock: Unix seconds.
    """

    def __init__(
        self, replay: Replay, store: ReplayStore, fetcher: FileGetter, pool: Executor, clock: Callable[[], int]
    ) -> None:
        self.replay = replay
        self._store = store
        self._clock = clock
        self._map_log = replay.map_log
        self._map_files = PublicFiles(fetcher, self._map_log.url)
        self._stop = threading.Event()
        self._kick = threading.Event()
        self._changed = threading.Condition()
        self._input = InputLog(replay, store, PublicFiles(fetcher, replay.url), pool, clock, self._stop.is_set)
        self._deriver = Deriver(replay, store, self._input, clock, lambda size: self._tell(derived_size=size))
        self._place: Place | None = None
        self._place_in: Head | None = None
        self._place_derived = False
        self._vetted: Head | None = None
        self._timely_from = self._derived_from = 1
        self._pause = 0.0
        seen, checked = store.head(replay.map_log), store.checked(replay.map_log)
        self._progress = Progress(*(seen or (None, 0)), checked, store.verdict(replay.map_origin))

    # -- for other threads

    @property
    def progress(self) -> Progress:
        with self._changed:
            return self._progress

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"follow-{self.replay.origin}", daemon=True).start()

    def stop(self) -> None:
        self._stop.set()
        self._kick.set()

    def offer(self, head: Head) -> Progress:
        """Take a head of the map's log, whose signature holds, for one to be checked.

        Returns:
            How things stand before it was looked at.
        """
        with self._changed:
            before = self._progress
            larger = before.target is None or before.target.size < head.size
        if larger:
            now = self._clock()
            self._store.note_head(head, now)
            with self._changed:
                if self._progress.target is None or self._progress.target.size < head.size:
                    self._progress = replace(self._progress, target=head, shown=now)
        self._kick.set()
        return before

    def wait(self, ready: Callable[[Progress], bool], seconds: float) -> Progress:
        """Wait until *ready*, at most *seconds*."""
        with self._changed:
            self._changed.wait_for(lambda: ready(self._progress), seconds)
            return self._progress

    def convict(self, name: str, message: str, document: bytes) -> None:
        """Sign nothing for this map any more."""
        verdict = Verdict(name, message, self._clock(), document)
        self._store.record_verdict(self.replay.map_origin, verdict)
        _LOG.error("WRONG: %s: %s: %s", self.replay.map_origin, name, message)
        self._tell(verdict=self._store.verdict(self.replay.map_origin))

    def _tell(self, **changes: object) -> None:
        with self._changed:
            self._progress = replace(self._progress, **changes)
            self._changed.notify_all()

    # -- the thread

    def _run(self) -> None:
        while not self._stop.is_set():
            self.attempt()
            kicked = self._kick.wait(max(POLL_SECONDS, self._pause))
            if kicked and self._pause:
                self._stop.wait(KICK_PAUSE_SECONDS)
            self._kick.clear()

    def attempt(self) -> None:
        """One round: look, read, check. Whatever goes wrong is in ``progress`` afterwards."""
        failure: KtlogError | None = None
        at_start = self.progress
        try:
            if at_start.verdict is None:
                self._rounds()
        except Forked as error:
            self.convict(error.name, error.message, error.evidence or accuse_fork(self.replay.origin, error))
        except KtlogError as error:
            failure = error
            if self.progress.failure is None or self.progress.failure.name != error.name:
                _LOG.warning("%s is not checked: %s", self.replay.map_origin, error)
        except Exception as error:  # noqa: BLE001 - silent is safe, gone is not
            _LOG.exception("following %s failed", self.replay.origin)
            failure = Invalid("InternalError", type(error).__name__)
            self._forget()
        self._pause = 0.0 if failure is None else min(max(1.0, 2 * self._pause), LONGEST_PAUSE_SECONDS)
        derivation = self._deriver.derivation
        self._tell(
            failure=failure, round=at_start.round + 1, tried=at_start.target.size if at_start.target else 0,
            input_size=self._input.size,
            **({} if derivation is None else {
                "derived_size": derivation.size, "erasures": derivation.erasures,
                "violations": len(derivation.violations), "taken": len(derivation.taken),
            }),
        )

    def _rounds(self) -> None:
        for _ in range(ATTEMPTS - 1):
            try:
                self._round()
                return
            except ReadAgain as error:
                _LOG.warning("%s is read again from its first entry: %s", self.replay.origin, error)
                self._forget()
        self._round()

    def _round(self) -> None:
        self._input.poll()
        self._tell(input_size=self._input.size)
        target = self._newest_target()
        checked = self.progress.checked
        if target is not None and (checked is None or checked.head.size < target.size):
            self._check_map(target, checked)
        elif self._place is None and checked is not None:
            self._derive_again(checked)
        self._deriver.read_ahead()

    def _newest_target(self) -> Head | None:
        """The largest head shown; without an unchecked one, what the log publishes itself."""
        progress = self.progress
        target, checked = progress.target, progress.checked
        if target is not None and (checked is None or checked.head.size < target.size):
            return target
        try:
            head = open_head(self._map_files.checkpoint(), self._map_log)
        except Unreachable as error:
            if error.name != "NoCheckpoint":
                raise
            return target
        if target is None or head.size > target.size:
            self.offer(head)
            return head
        return target

    # -- the map's log

    def _check_map(self, target: Head, checked: Checked | None) -> None:
        hashes = self._map_files.hashes(target.size, target.root)
        if self._place is None and checked is not None:
            self._derive_again(checked)
        # Every head that was ever looked at stays in the log, checked to its end or not.
        if self._vetted is not None:
            check_extends(self._map_log, self._vetted, target, hashes)
        self._vetted = target
        start = 0 if self._place is None else self._place.index + 1
        for number in range(start // TILE_WIDTH, -(-target.size // TILE_WIDTH)):
            for index, data in self._read_leaves(hashes, target, number, start):
                try:
                    self._check_leaf(index, data, target)
                except WrongLeaf as wrong:
                    before = None if self._place is None else (self._place_in, self._place.data)
                    derivation = self._deriver.derivation
                    accused = accuse_leaf(wrong, before, target, hashes, data, self._input.head, derivation)
                    self.convict(wrong.name, wrong.message, accused)
                    return
                self._place_in = target
        done = Checked(target, self._timely_from, self._derived_from)
        self._store.note_checked(done)
        self._tell(checked=done)

    def _read_leaves(
        self, hashes: TileHashReader, target: Head, number: int, start: int
    ) -> list[tuple[int, bytes]]:
        """The leaves of one bundle from *start* on, which are in the target's tree."""
        first = number * TILE_WIDTH
        width = min(TILE_WIDTH, target.size - first)
        leaves = self._map_files.entries(number, width)
        if hashes([(0, first + place) for place in range(width)]) != [hash_leaf(leaf) for leaf in leaves]:
            raise Invalid("BadOutputProof", f"the leaves of bundle {number} are not those of the map's log")
        return [(first + place, leaf) for place, leaf in enumerate(leaves) if first + place >= start]

    def _check_leaf(self, index: int, data: bytes, target: Head) -> None:
        """Check the leaf after the newest one that was checked.

        Raises:
            WrongLeaf: it cannot be true. Invalid, Unreachable: it is not checked yet.
        """
        place = self._place
        if place is None:
            self._place = Place(0, data, check_config(data, self.replay.origin), None)
            return
        leaf = check_next(place, data)
        newest, shown = index == target.size - 1, self.progress.shown
        if newest and leaf.time > self._clock() + CLOCK_SECONDS:
            raise Invalid("LeafInFuture", f"leaf {index} says {leaf.time}, and here it is {self._clock()}")
        limit = latest_to_cover(leaf, place.config, shown)
        check_held_back(index, leaf, place.config, self._store.size_seen(self.replay.origin, limit))
        derived = self._check_derived(index, data, leaf, place)
        if newest and not derived:
            raise Invalid("MapNotDerivable", f"leaf {index} is older than an erasure that was not seen here")
        self._place, self._place_derived = Place(index, data, place.config, leaf), derived
        if not is_timely(leaf, shown):
            self._timely_from = index + 1
        if not derived:
            self._derived_from = index + 1

    def _check_derived(self, index: int, data: bytes, leaf: OutputLeaf, place: Place) -> bool:
        """Whether the map of the leaf after *place* was derived, and is the leaf's."""
        before = place.leaf
        derivable = self._deriver.reaches(index, leaf, place.config, 0 if before is None else before.erasures)
        if before is not None and (before.input_size, before.erasures) == (leaf.input_size, leaf.erasures):
            return self._place_derived  # the same map as before: check_next compared the two
        if derivable and not self._deriver.has_map(leaf):
            wrong = WrongLeaf("MapMismatch", "its map is not the one that the log's entries lead to", index)
            if self._deriver.may_doubt(data):
                raise ReadAgain(wrong.name, wrong.message)
            raise wrong
        self._deriver.settle(index, data)
        return derivable

    def _derive_again(self, checked: Checked) -> None:
        """Derive up to the newest leaf that was checked, before this process or before something was read again."""
        head = checked.head
        hashes = self._map_files.hashes(head.size, head.root)
        leaves = {number: self._read_leaves(hashes, head, number, 0) for number in {0, (head.size - 1) // TILE_WIDTH}}
        _, first = leaves[0][0]
        index, data = leaves[max(leaves)][-1]
        place = Place(0, first, check_config(first, self.replay.origin), None)
        if index:
            place = Place(index, data, place.config, check_next(replace(place, index=index - 1), data))
        try:
            leaf = place.leaf
            derivable = leaf is not None and self._deriver.reaches(index, leaf, place.config, leaf.erasures)
            if leaf is not None and derivable and not self._deriver.has_map(leaf):
                raise Invalid("MapMismatch", f"leaf {index} was derived before, and now leads to another map")
        except WrongLeaf as error:
            # It was found right before, so what was read now is not what was read then.
            self._forget()
            raise Invalid(error.name, error.message) from None
        except KtlogError:
            self._forget()
            raise
        self._place, self._place_in = place, head
        self._vetted = self._vetted or head
        self._place_derived = checked.derived_from <= index
        self._timely_from, self._derived_from = checked.timely_from, checked.derived_from

    def _forget(self) -> None:
        """Read everything again."""
        self._place = self._place_in = None
        self._place_derived = False
        self._timely_from = self._derived_from = 1
        self._deriver.forget()
