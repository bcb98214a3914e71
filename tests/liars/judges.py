"""The auditor, asked in process: an audit from a saved position, as ``ktlog-auditor audit`` makes one."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

from auditor import audit, logwatch
from auditor.audit import Selection
from auditor.commands.audit import _add_evidence as add_evidence
from auditor.debounce import Graces
from auditor.fetch import LogReader
from auditor.findings_store import FindingStore
from auditor.follow import Advance, Follower
from auditor.heads import open_given_head
from auditor.logwatch import LogDirectory, LogWatch, Round, Settings
from auditor.report import Report
from auditor.state import AuditDirectory
from auditor.watchfile import Watched
from tests.liars.log import SimLog
from tests.liars.names import MAP, ORIGIN, URL, WITNESSES, audited_log, policy
from tests.liars.zoo import Lie, story

ATTEMPTS = 3


class InTurn(Executor):
    """Does all at once and in turn: so what a seed draws happens in the same order each time."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, work: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def in_turn() -> AbstractContextManager[Any]:
    """Audits and looks without threads of their own."""
    stack = ExitStack()
    for module in (audit, logwatch):
        stack.enter_context(patch.object(module, "ThreadPoolExecutor", InTurn))
    return stack


@dataclass
class Auditor:
    """One auditor of one log, with what it remembers in *directory*. ``report`` is of the last look.

    mapped: whether it knows the key of the map's log, and so audits the map, too.
    """

    directory: Path
    commitments: Selection = Selection("all")
    answers: Selection = Selection("all")
    mapped: bool = True
    quick: bool = False
    report: Report | None = None
    evidence: set[Path] = field(default_factory=set)

    def look(self, log: SimLog, *given: bytes, now: int | None = None) -> Advance:
        """One audit, from the saved position on. given: heads known from elsewhere."""
        subject = audited_log(quick=self.quick)
        heads = [open_given_head(note, subject, Path(f"head-{number}")) for number, note in enumerate(given)]
        with AuditDirectory(self.directory) as state:
            follower = Follower(
                subject, LogReader(log, URL, attempts=ATTEMPTS, pause=lambda seconds: None), state,
                policy=policy(ORIGIN, self.quick, self.mapped), given=heads, commitments=self.commitments, answers=self.answers,
            )
            advance = follower.advance(log.now if now is None else now)
            add_evidence(advance.report, subject, policy(quick=self.quick), log, state, 1)
        self.report = advance.report
        self.evidence |= set((self.directory / "evidence").iterdir())
        return advance

    def names(self) -> set[str]:
        assert self.report is not None
        return {finding.name for finding in self.report.findings}


GRACES = Graces(lag=100, cosigner=100, slow=100)
"""Short ones, so that a lie need not be told for hours."""


class Told:
    """Who is told what a watch finds, and tells nobody."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **options: None


class Watcher:
    """A watch over one log and its map, its three witnesses asked. A context manager."""

    def __init__(self, directory: Path, net: Any, **options: Any) -> None:
        self.directory = directory
        self.opened: list[tuple[str, str]] = []
        """(name, what) of every finding that ever opened."""
        self._net = net
        self._options = options

    def __enter__(self) -> Watcher:
        self.store = FindingStore(self.directory)
        self._main = AuditDirectory(self.directory).__enter__()
        self._state = LogDirectory(self.directory / "logs" / "one", self._main).__enter__()
        options = dict(self._options)
        graces, quick = options.pop("graces", GRACES), options.pop("quick", False)
        watched = Watched(**{
            "log": audited_log(ORIGIN, quick), "policy": policy(ORIGIN, quick), "map": audited_log(MAP, quick),
            "map_policy": policy(MAP, quick),
            "read": "none", "witnesses": tuple(f"https://{name}" for name in WITNESSES), **options,
        })
        self._log = LogWatch(
            watched, self.store, self._main, self._state, self._net, self._net,
            Settings(graces=graces, pause=lambda seconds: None), Told(),
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._state.__exit__()
        self._main.__exit__()
        self.store.close()

    def look(self, now: int) -> None:
        self._note(self._log.look(now))

    def read(self, now: int) -> None:
        self._note(self._log.read(now))

    def _note(self, done: Round) -> None:
        self.opened += [(row.name, row.what) for row in done.opened]

    def names(self) -> set[str]:
        """Of what is open."""
        return {row.name for row in self.store.open()}

    @property
    def evidence(self) -> set[Path]:
        return set((self.directory / "evidence").iterdir())


def judged(lie: Lie, log: SimLog, directory: Path) -> tuple[set[str], set[str]]:
    """Have *log*, which tells *lie*, looked at by who should find it: names of findings, and kinds of evidence."""
    if lie.by == "watch":
        net, receipts = Showing(story()), directory.with_name("receipts")
        receipts.mkdir()
        for name, data in log.receipts.items():
            (receipts / name).write_bytes(data)
        with Watcher(directory, net, receipts=receipts) as one:
            one.look(net.log.now)
            net.log = log
            for _ in range(3):
                one.look(log.tick(60))
                log.then()
            return one.names(), kinds(one.evidence)
    auditor = Auditor(directory, mapped=lie.by == "map")
    auditor.look(log, *log.known)
    return auditor.names(), kinds(auditor.evidence)


@dataclass
class Showing:
    """A network that shows what *log* shows."""

    log: SimLog

    def get(self, url: str, **options: Any) -> Any:
        return self.log.get(url, **options)


def kinds(files: set[Path]) -> set[str]:
    return {path.name.partition("-keys")[0].partition(".json")[0] for path in files}
