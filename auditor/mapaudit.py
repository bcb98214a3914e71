"""Audits the log of maps (origin ``O/map``): leaf by leaf what it promised to be, and that each map follows.

::

    head ─ signature, quorum, known heads ─ leaf 0: the configuration
    leaf k ─ parses, its configuration ─ nothing fell, nothing has two roots (evidence)
           ─ its entries and erasures are those that were audited
           ─ its update: the map before and after are those of leaves k - 1 and k, and no other leaf changed
           ─ semantic: what changed is what the entries and erasures between lead to, by the auditor's own code
    newest ─ is it late?

The caller reads the entries, and says of each input size that a leaf speaks of when it has come there:

    audit = MapAudit(log, reader, report, now, ...)
    audit.begin()                          # before the input log's head and the erasures are read
    audit.reached(size, root)              # where the audit of the entries begins
    while entries are left:                # of these no more at a time than up to audit.next_size()
        audit.reached(size, root)
    position = audit.finish()

Spec: directory map §6; docs/protocol.md, section 6.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from itertools import islice

from auditor.evidence.build import evidence_for_output_leaves
from auditor.heads import (
    KnownHead,
    SaveEvidence,
    check_forks,
    check_prefix,
    check_quorum,
    check_rolled_back,
    check_signed,
)
from auditor.mapfold import NONE, MapFold, MapLeaves, check_changes, wrong_changes
from auditor.mapposition import MapClaim, MapPosition, MapSummary
from auditor.report import Finding, Report, finding_from
from ktlog.client.publicfiles import PublicFiles, PublicRecord
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS, Head, Log, open_head
from ktlog.errors import EncodingError, Invalid, KtlogError, StoreError
from ktlog.keymap.evidence import MAP_CONTRADICTION, leaves_contradict, parse_map_evidence
from ktlog.keymap.output import MAP_SUFFIX, MapConfig, OutputLeaf, hash_config, parse_config, parse_leaf
from ktlog.keymap.updates import (
    KEPT_SECONDS,
    MAX_CHANGES,
    MAX_UPDATE_BYTES,
    MapUpdate,
    parse_update,
    update_path,
)
from ktlog.pkd.erasure import ErasureRecord, encode_erasure_record
from ktlog.tlog.policy import Policy
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import Frontier, HashReader, hash_leaf

TOLERANCE_SECONDS = 300
"""How far clocks may be apart, and how long a leaf may wait for its cosigners."""
AHEAD = 8
"""Updates that are read in advance."""
MOST_NAMED = 3
"""Actors whose values a map has wrong that are told of, and maps of which they are: evidence is sought about each."""


def map_log(log: Log, policy: Policy | None) -> Log | None:
    """The map's log beside *log*, under the keys that *policy* names for it; None if it names none."""
    origin = log.origin + MAP_SUFFIX
    vkeys = () if policy is None else tuple(dict.fromkeys(one.vkey for one in policy.logs if one.vkey.name == origin))
    return Log(origin, vkeys, log.url + MAP_SUFFIX) if vkeys else None


def salts_of(record: PublicRecord) -> dict[str, bytes]:
    """The salts that a record shows, by actor id, for :meth:`MapLeaves.touch`."""
    return {actor_id: salt for name, salt in record.salts.items() if (actor_id := record.plain.get(name)) is not None}


class MapAudit:
    """One audit of a map's log, from *saved* on.

    Args:
        log: of the origin ``O/map``. reader: of the files under ``/map``. now: Unix seconds.
        saved: where the last clean audit ended. save: keeps evidence.
        policy: whose quorum must stand behind the head; None judges no cosignatures.
        records: the erasure log, in full; None where it could not be read. leaves: the semantic tier's; None without.
            Both may also be set later, before the first :meth:`reached`.
        root_at: the input log's root at a size before the first one that is reached; None where nobody can say.
        network: reads updates ahead; None reads each when it is needed.
    """

    def __init__(
        self, log: Log, reader: PublicFiles, report: Report, now: int, *, saved: MapPosition | None = None,
        save: SaveEvidence | None = None, policy: Policy | None = None, max_age: int = DEFAULT_MAX_AGE_SECONDS,
        records: Sequence[ErasureRecord] | None = (), leaves: MapLeaves | None = None,
        root_at: Callable[[int], bytes] | None = None, network: Executor | None = None,
    ) -> None:
        self._log = log
        self._reader = reader
        self._report = report
        self._now = now
        self._saved = saved
        self._save = save
        self._policy = policy
        self._max_age = max_age
        self.records = records
        self.leaves = leaves
        self._root_at = root_at
        self._network = network
        self._head: Head | None = None
        self._note = b""
        self._hashes: HashReader | None = None
        self._size = 0 if saved is None else saved.size
        self._config: MapConfig | None = None
        self._raw_config = b"" if saved is None else saved.config
        self._raw_leaf = b"" if saved is None else saved.leaf
        self._last: OutputLeaf | None = None
        self._next: tuple[bytes, OutputLeaf] | None = None
        self._page: tuple[int, list[bytes]] = (-1, [])
        self._updates: deque[tuple[int, Future[bytes]]] = deque()
        self._erasures = Frontier()
        self._erasures_read = 0
        self._stopped = self._blocked = self._began = False
        self._behind = False
        """Whether leaves were passed whose sizes were not stopped at: what changed since is not one leaf's alone."""
        self._no_roots = 0
        self.summary = MapSummary()

    # -- the head

    def begin(self) -> bool:
        """Read and judge the head and leaf 0; False where there is nothing to go on with.

        Raises:
            StoreError: ``HeadOfAnotherKey``, the saved head is not of a key in use now; what *save* raises.
        """
        try:
            self._begin()
        except StoreError:
            raise
        except KtlogError as error:
            self._fail(finding_from(error, subject="the map's log"))
        return not self._stopped

    def _begin(self) -> None:
        self._note = self._reader.checkpoint()
        head = check_signed(self._note, self._log, self._report)
        if head is None:
            self._stop("there is no head to check it against")
            return
        known = []
        if self._saved is not None:
            known.append(KnownHead(self._open_saved(self._saved.note), "the last clean audit"))
        check_quorum(head, self._policy, self._now, self._max_age, self._report)
        forked = self._save is not None and check_forks(
            self._log, [*known, KnownHead(head, "the one the log serves now")], self._report, self._save
        )
        if forked or check_rolled_back(known, head, self._report):
            self._stop("the head is not one to go on from")
            return
        self._head, self._hashes = head, self._reader.hashes(head.size, head.root)
        for one in known:
            if self._save is not None and 0 < one.head.size < head.size:
                before = len(self._report.findings)
                check_prefix(self._log, one, head, self._hashes, self._report, self._save)
                if len(self._report.findings) > before:
                    self._stop("it does not begin with the tree of the last audit")
                    return
        self._read_config()

    def _open_saved(self, note: bytes) -> Head:
        try:
            return open_head(note, self._log)
        except Invalid as error:
            raise StoreError(
                "HeadOfAnotherKey", f"the saved head of {self._log.origin} is not one under the keys you named:"
                f" {error.message}", hint="If you know that the key changed honestly, audit from the start.",
            ) from error

    def _read_config(self) -> None:
        if not self._raw_config:
            self._raw_config = self._leaf(0)
            self._size = 1
        self._config = parse_config(self._raw_config)
        if self._config.origin + MAP_SUFFIX != self._log.origin:
            raise Invalid("WrongConfig", f"its leaf 0 is the configuration of the map of {self._config.origin!a}")
        self._last = parse_leaf(self._raw_leaf) if self._raw_leaf else None

    def _leaf(self, index: int) -> bytes:
        """One leaf, which the head vouches for. Raises Invalid, Unreachable."""
        if self._head is None or self._hashes is None:
            raise AssertionError("no leaf is read without a head")
        number = index // TILE_WIDTH
        if self._page[0] != number:
            width = min(TILE_WIDTH, self._head.size - number * TILE_WIDTH)
            leaves = self._reader.entries(number, width)
            first = number * TILE_WIDTH
            wanted = self._hashes([(0, first + place) for place in range(width)])
            if [hash_leaf(leaf) for leaf in leaves] != wanted:
                raise Invalid("TreeMismatch", f"leaves {first} to {first + width - 1} are not those of the signed tree")
            self._page = number, leaves
        return self._page[1][index % TILE_WIDTH]

    # -- leaf by leaf

    @property
    def newest(self) -> OutputLeaf | None:
        """The last leaf that was judged, by this audit or before."""
        return self._last

    def next_size(self) -> int | None:
        """The input size that the next leaf speaks of; None when there is none, or none that can be judged."""
        return None if self._blocked else self._peek()

    def _peek(self) -> int | None:
        if self._stopped or self._head is None or self._size >= self._head.size:
            return None
        if self._next is None:
            try:
                raw = self._leaf(self._size)
                leaf = parse_leaf(raw)
                if self._config is not None and leaf.config != hash_config(self._config):
                    raise Invalid("WrongConfig", "it names another configuration than leaf 0")
            except KtlogError as error:
                self._fail(finding_from(error, subject=f"leaf {self._size} of the map's log"))
                return None
            self._next = raw, leaf
            if not self._check_order(raw, leaf):
                return None
        return self._next[1].input_size

    def reached(self, size: int, root: bytes) -> None:
        """All entries below *size* were audited; their tree has *root*. Judges the leaves that speak of no more."""
        if not self._began and self.leaves is not None and self._saved is not None:
            self.leaves.resume(self._saved.unsettled, 0 if self._last is None else self._last.erasures)
        self._began = True
        while (wanted := self.next_size()) is not None and wanted <= size and self._next is not None:
            raw, leaf = self._next
            if self.records is not None and leaf.erasures > len(self.records):
                self._blocked = True  # an erasure that was not read yet: it waits for the next audit
                return
            self._behind |= wanted < size
            self._judge(leaf, root if wanted == size else None, at_its_size=wanted == size)
            self._last, self._raw_leaf, self._next = leaf, raw, None
            self._size += 1
            self.summary.leaves += 1

    def _judge(self, leaf: OutputLeaf, root: bytes | None, *, at_its_size: bool) -> None:
        index = self._size
        if root is None and self._root_at is not None:
            root = self._root_at(leaf.input_size)
        self._no_roots += root is None
        if root is not None and root != leaf.input_root:
            self._find("InputMismatch", f"it speaks of {leaf.input_size} entries that are not those of the log", index)
        self._check_erasures(leaf, index)
        update = self._check_update(leaf, index)
        self._check_derived(leaf, index, update, at_its_size=at_its_size)

    def _check_order(self, raw: bytes, leaf: OutputLeaf) -> bool:
        reason = None if self._last is None else leaves_contradict(self._last, leaf)
        if reason is None:
            return True
        evidence = self._convict(raw)
        self._report.findings.add(Finding(
            "MapContradiction", "Forked" if evidence else "Invalid",
            f"leaf {self._size} of the map's log cannot follow the one before: {reason}",
        ))
        self._stop(f"leaf {self._size} contradicts the one before")
        return False

    def _convict(self, raw: bytes) -> bool:
        """Make evidence of the two leaves: under a signed head each is the log's word."""
        if self._hashes is None or self._save is None:
            return False
        evidence = evidence_for_output_leaves(
            self._log.vkeys, (self._size - 1, self._raw_leaf), (self._size, raw), self._note, self._hashes
        )
        if evidence is None:
            return False
        self._report.evidence.append(str(self._save(evidence, MAP_CONTRADICTION)))
        self._report.convicted = parse_map_evidence(evidence).vkey
        return True

    def _check_erasures(self, leaf: OutputLeaf, index: int) -> None:
        if self.records is None:
            return
        news = self.records[self._erasures_read : leaf.erasures]
        self._erasures = self._erasures.extend(hash_leaf(encode_erasure_record(record)) for record in news)
        self._erasures_read = leaf.erasures
        if self._erasures.root() != leaf.erasures_root:
            self._find("BadErasure", f"it counts {leaf.erasures} erasures that are not those of the log", index)
        # The first leaf of all stands for what was erased before there was a map.
        news = () if self._last is None else self.records[self._last.erasures : leaf.erasures]
        if any(record.input_size != leaf.input_size for record in news):
            self._find("BadErasure", "an erasure in it took effect at another size than the leaf's", index)

    # -- updates

    def _check_update(self, leaf: OutputLeaf, index: int) -> MapUpdate | None:
        """The update that leads from the map before to this one; None if there is none, or none that holds."""
        try:
            update = parse_update(self._fetch_update(index))
            fold = MapFold(index - 1, NONE if self._last is None else self._last.map_root)
            if fold.apply(update) != leaf.map_root:
                raise Invalid("BadMapUpdate", "it does not lead to the map of its leaf")
        except KtlogError as error:
            if error.name == "MissingMapUpdate" and self._may_be_gone(leaf):
                return None
            name = "BadMapUpdate" if isinstance(error, EncodingError) else None
            self._report.findings.add(finding_from(error, name, subject=f"the update of leaf {index} of the map's log"))
            return None
        self.summary.followed += 1
        return update

    def _may_be_gone(self, leaf: OutputLeaf) -> bool:
        """After its time, or where so much happened that it may change more leaves than an update has."""
        entries = leaf.input_size - (0 if self._last is None else self._last.input_size)
        erased = leaf.erasures - (0 if self._last is None else self._last.erasures)
        return self._now - leaf.time > KEPT_SECONDS - TOLERANCE_SECONDS or 2 * entries + erased > MAX_CHANGES

    def _fetch_update(self, index: int) -> bytes:
        if self._network is None or self._head is None:
            return self._read_update(index)
        while len(self._updates) < AHEAD and (following := index + len(self._updates)) < self._head.size:
            self._updates.append((following, self._network.submit(self._read_update, following)))
        return self._updates.popleft()[1].result()

    def _read_update(self, index: int) -> bytes:
        return self._reader.file(update_path(index), "MissingMapUpdate", MAX_UPDATE_BYTES)

    # -- the semantic tier

    def _check_derived(
        self, leaf: OutputLeaf, index: int, update: MapUpdate | None, *, at_its_size: bool
    ) -> None:
        if self.leaves is None or self.records is None or not at_its_size:
            self.summary.unchecked += update is None
            return
        if self._behind:
            update, self._behind = None, False
        expected: Mapping[bytes, bytes | None] = {}
        try:
            for record in self.records[self.leaves.erasures : leaf.erasures]:
                self.leaves.erase(record)
            expected = self.leaves.settle()
            if update is not None:
                check_changes(update, expected, self.leaves.hidden)
            elif not self.leaves.complete:
                self.summary.unchecked += 1
                return
            elif self.leaves.root() != leaf.map_root:
                raise Invalid("MapNotDerived", "its map is not what the entries lead to")
        except Invalid as error:
            self.summary.claims.append(MapClaim(index, leaf))
            found = self._find(error.name, error.message, index)
            if update is not None and error.name == "MapNotDerived" and len(self._report.wrong_values) < MOST_NAMED:
                wrong = islice(wrong_changes(update, expected, self.leaves.hidden), MOST_NAMED)
                self._report.wrong_values[found] = tuple(filter(None, map(self.leaves.name_at, wrong)))
            return
        self.summary.derived += 1

    # -- at the end

    def finish(self, seen: tuple[int, int] | None = None, *, ordered: bool = False) -> MapPosition | None:
        """Judge what can only be told at the end; where the next audit goes on, or None if nothing was judged.

        Args:
            seen: the smallest input size beyond the newest leaf that is known to have been published, and since when.
            ordered: whether the input log's head and the erasures were read after :meth:`begin`, so that both must
                contain all that this head commits to.
        """
        for _, future in self._updates:
            future.cancel()
        waiting = self._peek()
        if waiting is not None and ordered:
            what = f"it speaks of {waiting} entries, or of erasures, that the log does not show"
            self._find("MapAhead", what, self._size)
        if self._config is not None and not self._stopped and waiting is None:
            self._check_late(self._last, self._config, seen)
        if self.summary.unchecked:
            self._report.skip(
                f"The maps of {self.summary.unchecked} of {self.summary.leaves} leaves of the map's log: their updates"
                " are not served any more, and what somebody erased since did before cannot be derived."
                if self.leaves is not None else
                f"That only the listed leaves changed in {self.summary.unchecked} of {self.summary.leaves} maps: their"
                " updates are not served any more."
            )
        if self._no_roots:
            self._report.skip(f"The entries that {self._no_roots} leaves of the map's log speak of: audited before.")
        return self.position()

    def position(self) -> MapPosition | None:
        """Where the next audit can go on, beside the entries reached now; None before leaf 0 was read."""
        if self._head is None or not self._raw_config:
            return None
        unsettled = b"" if self.leaves is None else self.leaves.unsettled
        return MapPosition(self._size, self._note, self._raw_config, self._raw_leaf, unsettled)

    def _check_late(self, newest: OutputLeaf | None, config: MapConfig, seen: tuple[int, int] | None) -> None:
        silent = 0 if newest is None else self._now - newest.time
        if silent > config.heartbeat + TOLERANCE_SECONDS:
            self._late("StaleMap", f"its newest leaf is {silent} s old, and it promised one every {config.heartbeat} s")
        covered = 0 if newest is None else newest.input_size
        if seen is None or covered >= seen[0]:
            return
        due = seen[1] + config.mmd + TOLERANCE_SECONDS
        what = f"its newest leaf speaks of {covered} entries; {seen[0]} were published {self._now - seen[1]} s ago"
        if newest is not None and newest.time > due:
            self._late("InputHeldBack", f"{what}, and the leaf is of {newest.time - seen[1]} s after that")
        elif self._now > due:
            self._late("LateMap", f"{what}, and it promised to follow within {config.mmd} s")

    def _late(self, name: str, what: str) -> None:
        self._report.findings.add(Finding(name, "Stale", f"the map's log: {what}"))

    def _find(self, name: str, what: str, index: int) -> Finding:
        found = Finding(name, "Invalid", f"leaf {index} of the map's log: {what}")
        self._report.findings.add(found)
        return found

    def _fail(self, finding: Finding) -> None:
        self._report.findings.add(finding)
        self._stop(f"leaf {self._size} could not be read or judged")

    def _stop(self, why: str) -> None:
        self._stopped = True
        self._report.skip(f"The map's log from leaf {self._size} on: {why}.")
