"""The watch over one log: a look compares heads, a reading judges what is new; both end in findings.

Everything that a round found is durable, in one transaction, before anybody is told of it, and told before it counts as
told. So a watch that is killed at any point tells what it was about to tell when it runs again.

A look takes seconds whatever the log does, a reading may take minutes; so the daemon runs them in threads of their own,
and this class is used by one of each.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from auditor.audit import parse_selection
from auditor.compare import NAMES as COMPARED
from auditor.compare import SILENT, Comparison, Looked, compare
from auditor.debounce import Condition, Graces, Standing, absent, holds, is_finding, is_over
from auditor.events import Event
from auditor.findings_store import MORE_KEY, FindingStore, Row
from auditor.follow import Follower
from auditor.heads import for_entries
from auditor.history import AuditHistory
from auditor.kept import DEFAULT_DELAY_SECONDS, Receipts
from auditor.kept import NAMES as KEPT
from auditor.live import KeysOf, keys_in
from auditor.peers import NAMES as PEERS
from auditor.peers import Peers
from auditor.position import SEMANTIC
from auditor.promises import NAMES as PROMISED
from auditor.promises import MapReader, check_map
from auditor.report import Finding, Report
from auditor.state import AuditDirectory
from auditor.views import THE_LOG, Budget, Source, look
from auditor.watchfile import Watched
from auditor.watchside import Gate, Reader, Side
from ktlog.client.publicfiles import FileGetter, PublicFiles
from ktlog.client.verify import Head
from ktlog.errors import KtlogError, StoreError
from ktlog.keymap.output import MapConfig
from ktlog.tlog.checkpoint import parse_signed_checkpoint
from ktlog.tlog.evidence import parse_evidence
from ktlog.tlog.tiles import TileHashReader

LOOK_SECONDS = 45.0
LOOK_BYTES = 64 << 20
READ_SECONDS = 600.0
READ_BYTES = 8 << 30
LOOKERS = 4
"""Sources of one log that are asked at once."""
MAX_EVIDENCE = 50
"""Files kept against one log: a log that forks at each look must not fill the disk."""

LOOKING = COMPARED | PROMISED | KEPT
"""What a look says. All else is said by a reading."""

_LOG = logging.getLogger("ktlog.watch")


class Announcer(Protocol):
    """Who is told. Each returns when the news is durable with it, and raises StoreError when it could not be."""

    def finding(self, row: Row) -> object: ...

    def take(self, origin: str, events: Sequence[Event], head: Head | None, files: PublicFiles, now: int) -> object: ...

    def look_live(self, origin: str, keys_of: KeysOf, now: int) -> object:
        """Begin to compare what actors' own servers publish with the keys that the entries give them."""


@dataclass(frozen=True)
class Settings:
    """What all logs of a watch share. skew: seconds by which clocks may differ. Budgets are of one round."""

    skew: int = 300
    graces: Graces = field(default_factory=Graces)
    look_seconds: float = LOOK_SECONDS
    read_seconds: float = READ_SECONDS
    workers: int = 2
    steady: Callable[[], float] = time.monotonic
    stopped: Callable[[], bool] = lambda: False
    pause: Callable[[float], None] = time.sleep


@dataclass
class Round:
    """What one look or one reading did. size: of the log's head. entries: up to which all was judged."""

    origin: str
    kind: str
    began: int
    opened: list[Row] = field(default_factory=list)
    closed: list[Row] = field(default_factory=list)
    size: int | None = None
    map_size: int | None = None
    first: int | None = None
    entries: int | None = None
    seconds: float = 0.0
    blind: list[str] = field(default_factory=list)
    complete: bool = True
    """Whether it could do all that it was to do."""

    def as_dict(self) -> dict[str, Any]:
        out: dict[str, Any] = {
            "event": self.kind, "origin": self.origin, "time": self.began, "seconds": round(self.seconds, 3),
            "complete": self.complete, "opened": len(self.opened), "closed": len(self.closed),
        }
        named = {"size": self.size, "map_size": self.map_size, "first": self.first, "entries": self.entries}
        return out | {name: value for name, value in named.items() if value is not None} | (
            {"silent": self.blind} if self.blind else {}
        )


class LogDirectory(AuditDirectory):
    """Where one log's position is, below a watch's directory; its evidence is with all the other evidence."""

    def __init__(self, path: Path, main: AuditDirectory) -> None:
        super().__init__(path)
        self._main = main

    def save_evidence(self, evidence: bytes, kind: str, origin: str) -> Path:
        return self._main.save_evidence(evidence, kind, origin)


class Followed(Protocol):
    """A :class:`auditor.follow.Follower`, as far as it is needed here."""

    def advance(self, now: int) -> Any: ...


class LogWatch:
    """One log, its map's log, and all that is asked about them.

    Args:
        store: of the findings, shared by all logs. main: holds evidence. state: of this log alone, open.
        fetcher, reading: for looks, and for readings, which may wait longer for an answer.
    """

    def __init__(
        self, watched: Watched, store: FindingStore, main: AuditDirectory, state: AuditDirectory, fetcher: FileGetter,
        reading: FileGetter, settings: Settings, announcer: Announcer,
    ) -> None:
        self.watched = watched
        self.origin = watched.log.origin
        self._store = store
        self._main = main
        self._state = state
        self._receipts = (
            None if watched.receipts is None else Receipts(
                store, watched.log, watched.receipts, watched.http_keys
            )
        )
        self._peers = Peers(store, self.origin, watched.peers)
        self._fetcher = fetcher
        self._reading = reading
        self._settings = settings
        self._announcer = announcer
        self._state = state
        self._sides = [Side(watched.log, watched.policy and for_entries(watched.policy), store, watched)]
        if watched.map is not None:
            self._sides.append(Side(watched.map, watched.map_policy or watched.policy, store, watched, "/map"))
        self._map_config: MapConfig | None = None
        self._reader = Reader(Gate(), watched.log, settings.pause)
        self._history: AuditHistory | None = None
        self._history_lock, self._history_is_bad = threading.Lock(), False
        self._follower: Followed | None = None
        if watched.read == "all":
            self._follower = Follower(
                watched.log, self._reader, state, policy=watched.policy,
                commitments=parse_selection(watched.commitments), answers=parse_selection(watched.answers),
                max_age=10 * 365 * 86_400,  # a reading judges entries; how old a head is, the looks judge
                workers=settings.workers, on_events=self._take, map_log=watched.map,
            )
        self.overran = False
        """Whether the last reading was cut off by its budget."""
        self._now = 0

    # Looking

    def look(self, now: int) -> Round:
        """Compare what everybody shows. *now*: Unix seconds.

        Raises StoreError; then nothing is remembered, or all but what the report is made of.
        """
        began = self._settings.steady()
        done = Round(self.origin, "look", now)
        budget = Budget(
            self._fetcher, self._settings.look_seconds, LOOK_BYTES, self._settings.steady, self._settings.stopped
        )
        with ThreadPoolExecutor(LOOKERS, "look") as pool:
            looked = [self._look_at(side, budget, pool, now) for side in self._sides]
        promised = self._promises(looked, budget, now)
        kept = self._receipts_kept(looked[0].head, budget, now)
        if self._settings.stopped():
            done.complete = False
            return done
        with self._store.transaction():
            for side, one in zip(self._sides, looked, strict=True):
                found, is_input = list(one.conditions), side is self._sides[0]
                if is_input:
                    found += [*(promised or []), *(kept or [])]
                else:  # who says nothing of the entries is said once
                    found = [item for item in found if item.name not in SILENT or item.key not in looked[0].blind]
                self._settle(
                    side.log.origin, found, LOOKING, now, done,
                    lambda name, key, one=one, is_input=is_input: (
                        is_input and promised is not None if name in PROMISED
                        else is_input and kept is not None if name in KEPT
                        else one.was_checked(name, key)
                    ),
                )
                side.memory.flush()
        done.size = looked[0].head.size if looked[0].head else None
        if len(looked) > 1 and looked[1].head:
            done.map_size = looked[1].head.size
        self._remember_look(looked, now)
        done.blind = sorted({key or "the log" for one in looked for key in one.blind})
        done.complete = not done.blind
        done.seconds = self._settings.steady() - began
        return done

    def _remember_look(self, looked: Sequence[Looked], now: int) -> None:
        history = self._for_report()
        if history is not None:
            asked = {one.key for side in self._sides for one in side.sources if one.kind != THE_LOG}
            silent = {key for one in looked for key in one.blind} & asked
            why = ("No reading of this log came to its end yet." if self.reads else
                   'The watch of this log has read = "none": it compares heads, and nothing was audited.')
            history.add_look(looked[0].head, now, self._sides[0].policy, asked, silent, why)

    def _look_at(self, side: Side, budget: Budget, pool: ThreadPoolExecutor, now: int) -> Looked:
        views = look(side.log, side.sources, budget, pool)
        readers: dict[tuple[str, int, bytes], TileHashReader] = {}

        def tiles(source: Source, head: Head) -> TileHashReader:
            wanted = source.url, head.size, head.root
            if wanted not in readers:
                readers[wanted] = PublicFiles(budget, source.url).hashes(head.size, head.root)
            return readers[wanted]

        of = Comparison(
            side.log, side.policy, side.memory, tiles,
            lambda name, key, data, kind: self._keep(side.log.origin, name, key, data, kind),
            self._settings.skew, self.watched.max_age,
        )
        return compare(of, views, now)

    def _promises(self, looked: Sequence[Looked], budget: Budget, now: int) -> list[Condition] | None:
        """What the map's newest leaf says; None when that could not be told."""
        if len(looked) < 2 or looked[1].head is None or looked[0].head is None:
            return None
        of_map = self._sides[1]
        reader = MapReader(PublicFiles(budget, of_map.log.url), self.origin, self._map_config)
        found = check_map(reader, looked[1].head, self._sides[0].memory, self._settings.skew, now)
        self._map_config = reader.config
        return found

    def _receipts_kept(self, head: Head | None, budget: Budget, now: int) -> list[Condition] | None:
        """What the log's receipts say under *head*; None when that could not be told."""
        if self._receipts is None:
            return []
        if head is None:
            return None
        files = PublicFiles(budget, self.watched.log.url)
        return self._receipts.check(
            head, files, lambda: files.hashes(head.size, head.root),
            lambda name, key, data, kind: self._keep(self.origin, name, key, data, kind),
            DEFAULT_DELAY_SECONDS if self._map_config is None else self._map_config.mmd, self._settings.skew, now,
        )

    def _keep(self, origin: str, name: str, key: str, data: bytes, kind: str) -> tuple[str, Path | None]:
        """Evidence goes to the disk once for each thing it proves, and only so often."""
        row = self._store.get(origin, name, key)
        if row is not None and row.evidence is not None:
            return key, Path(row.evidence)
        (kept,), = self._store.execute(
            "SELECT count(*) FROM findings WHERE origin = ? AND evidence IS NOT NULL", (origin,)
        )
        if kept >= MAX_EVIDENCE:
            return MORE_KEY, None
        return key, self._main.save_evidence(data, kind, origin)

    # Reading

    @property
    def reads(self) -> bool:
        return self._follower is not None

    def read(self, now: int) -> Round:
        """Read and judge what is new, as far as the budget goes. Raises StoreError; the position then stays."""
        if self._follower is None:
            raise AssertionError("this log's entries are not read")
        began = self._settings.steady()
        done = Round(self.origin, "reading", now)
        budget = Budget(
            self._reading, self._settings.read_seconds, READ_BYTES, self._settings.steady, self._settings.stopped
        )
        self._reader.gate.open(budget)
        self._now = now
        advance = self._follower.advance(now + self._settings.skew)  # cosigners' clocks may be ahead of ours
        self._announcer.look_live(self.origin, keys_in(self._state, self.origin), now)
        self.overran = budget.spent
        done.first, done.entries = advance.first, advance.size
        done.seconds = advance.report.seconds = self._settings.steady() - began
        if self._settings.stopped():
            done.complete = False
            return done
        found, done.complete = self._judged(advance.report)
        of_peers, blind = self._ask_peers(now)
        done.blind = sorted(blind)
        with self._store.transaction():
            self._settle(
                self.origin, [*found, *of_peers], None, now, done,
                lambda name, key: (
                    name != "PeerSawOtherRoot" or not any(key.startswith(one) for one in blind)
                    if name in PEERS else done.complete or name == "Late"
                ),
            )
        history = self._for_report()
        if history is not None:
            history.add_reading(advance.report, now, advance.size, self._sides[0].policy, complete=done.complete)
        return done

    def _for_report(self) -> AuditHistory | None:
        """What `report` reads. A file that is none costs the report, and not the watch."""
        with self._history_lock:
            if self._history is None:
                try:
                    self._history = AuditHistory(self._main.path, self.origin)
                except StoreError as error:
                    if error.name != "BadHistory":
                        raise
                    if not self._history_is_bad:  # said once, not at each look
                        _LOG.warning("nothing is written for the report: %s", error)
                    self._history_is_bad = True
            return self._history

    def _ask_peers(self, now: int) -> tuple[list[Condition], set[str]]:
        if not self.watched.peers:
            return [], set()
        settings = self._settings
        budget = Budget(self._reading, settings.look_seconds, READ_BYTES, settings.steady, settings.stopped)
        with self._state.ledger(self.origin, SEMANTIC) as ledger:
            return self._peers.compare(
                budget, self.watched.log.url, lambda root: ledger.get("root", root) is not None, now
            )

    def _judged(self, report: Report) -> tuple[list[Condition], bool]:
        """What a reading found, and whether it could read all that it wanted to."""
        found: list[Condition] = []
        files = iter(report.evidence)
        complete = True
        for finding in report.findings:
            if finding.kind == "Unreachable":
                if complete:
                    what = f"the new entries could not be read to the end: {finding.what}"
                    found.append(Condition(Finding("Late", "Unreachable", what)))
                complete = False
            elif finding.kind == "Forked":
                path = next(files, None)
                found.append(Condition(finding, "" if path is None else _sizes_in(Path(path)),
                                       evidence=None if path is None else Path(path)))
            elif finding.name not in LOOKING:
                found.append(Condition(finding, "" if finding.leaf_index is None else str(finding.leaf_index)))
        return found, complete

    def _take(self, events: Sequence[Event]) -> None:
        self._announcer.take(self.origin, events, self._reader.head, self._reader, self._now)
        history = self._for_report()
        if history is not None:
            history.take(events)

    # Findings

    def _settle(
        self, origin: str, found: Iterable[Condition], names: Collection[str] | None, now: int, done: Round,
        was_checked: Callable[[str, str], bool],
    ) -> None:
        """Turn conditions into findings that open, go on, or close.

        Args:
            names: those that are this round's to judge; None: all that no look judges.
        """
        def is_ours(name: str) -> bool:
            return name not in LOOKING if names is None else name in names

        standings = {at: one for at, one in self._standings(origin).items() if is_ours(at[0])}
        held: set[tuple[str, str]] = set()
        for condition in {(one.name, one.key): one for one in found}.values():
            at = condition.name, condition.key
            standing = holds(standings.pop(at, None), condition.since, now)
            self._stand(origin, at, standing)
            if is_finding(condition.name, standing, self._settings.graces, now):
                row, opened = self._store.note(origin, condition.finding, now, condition.evidence, key=condition.key)
                held.add((row.name, row.key))
                if opened:
                    done.opened.append(row)
        for at, before in standings.items():
            if not was_checked(*at):
                held.add(at)
                continue
            standing = absent(before)
            row = self._store.get(origin, *at)
            if is_over(at[0], standing, opened=row is not None and row.is_open):
                self._store.execute("DELETE FROM conditions WHERE origin = ? AND name = ? AND key = ?", (origin, *at))
            else:
                self._stand(origin, at, standing)
                held.add(at)
        done.closed += self._store.close_absent(
            origin, held, now, lambda row: is_ours(row.name) and was_checked(row.name, row.key)
        )

    def _standings(self, origin: str) -> dict[tuple[str, str], Standing]:
        rows = self._store.execute(
            "SELECT name, key, since, last_seen, rounds, calm FROM conditions WHERE origin = ?", (origin,)
        )
        return {(name, key): Standing(*rest) for name, key, *rest in rows}

    def _stand(self, origin: str, at: tuple[str, str], standing: Standing) -> None:
        self._store.execute(
            "INSERT OR REPLACE INTO conditions VALUES (?, ?, ?, ?, ?, ?, ?)",
            (origin, *at, standing.since, standing.last_seen, standing.rounds, standing.calm),
        )

    def open(self) -> list[Row]:
        """The open findings about the log and its map."""
        return [row for side in self._sides for row in self._store.open(side.log.origin)]

    def announce(self) -> None:
        """Tell what was not told yet, of all logs. Raises StoreError: then it is told next time."""
        with self._store.telling:
            self._store.tell_all(self._announcer.finding, [side.log.origin for side in self._sides])


def _sizes_in(path: Path) -> str:
    """The key of evidence that a reading kept: the same as that of a look for the same thing."""
    try:
        evidence = parse_evidence(path.read_bytes())
        return "-".join(map(str, sorted({parse_signed_checkpoint(note)[1].size for note in evidence.notes})))
    except (KtlogError, OSError):
        return path.name.rpartition("-")[2].removesuffix(".json")
