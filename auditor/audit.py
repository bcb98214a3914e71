"""One audit of one log, from entry 0, in one pass: what is read, in which order, and what is judged.

::

    known heads ─ two of one size?                    ─┐ evidence: stop, there is no one tree to audit
    checkpoint ─ signature ─ two roots? ─ quorum ─ age ─┤
               ─ behind a known head?                  ─┘ stop: a newer tree was signed already
    pages of 256 ─ tree, tiles ─ records, signatures, commitments, state
    root ─ consistency with every known head
    the erasure log ─ is every withheld text accounted for?
    the API's answers

Pages are fetched ahead by a few threads and dropped once checked. The log is hostile until shown
otherwise: every failure to read or check is a finding, and what could not be checked is said.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass

from auditor.answers import Replayed, check_answer
from auditor.fetch import ActorAnswer, LogReader, Page
from auditor.fold import TreeFold, nodes_for_consistency
from auditor.heads import (
    KnownHead,
    SaveEvidence,
    check_forks,
    check_prefix,
    check_quorum,
    check_rolled_back,
    check_signed,
)
from auditor.replay import Replay
from auditor.report import Coverage, Finding, Report, finding_from
from ktlog.client.erasures import ErasureHead
from ktlog.client.page import MAX_ANSWER_BYTES, MAX_HISTORY_PAGES
from ktlog.client.verify import DEFAULT_MAX_AGE_SECONDS, Head, Log
from ktlog.errors import EncodingError, Invalid, KtlogError, Unreachable, UsageError
from ktlog.pkd.erasure import ErasureRecord
from ktlog.tlog.encoding import parse_decimal
from ktlog.tlog.policy import Policy
from ktlog.tlog.tiles import tile_path
from ktlog.tlog.tree import hash_leaf

FETCHERS = 4
"""Requests under way at once: enough to hide a round trip, too few to hurt a small log."""

MAXIMUM_SAMPLE = 10_000_000

_SHOWN_ACTORS = 10

# An erasure during an audit takes text away between two pages. That is no fault of the log, so the audit begins again.
_ATTEMPTS = 3

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""

NEVER_CHECKED = (
    "The directory map, and so that the log answers others as it answered this audit: verifiers replay the map, and"
    " clients check each answer against it.",
    "What only the operator could see when it took a message: HTTP signatures, one-time passwords, its clock and"
    " its allow-lists.",
    "That the first key of an actor came from the person: the instance says so.",
    "That the published leaf keys are the log's: no signature binds them to the key you named.",
    "That nobody was shown another head, beyond the heads compared here.",
)


ERASURES_NEVER_CHECKED = (
    "What an erasure withholds: who signed such an entry and what it said is taken on the word of those who read"
    " it in time. What rests on it is listed as taken.",
    "That an erasure was lawful, that the log told its right number and told it to all, and that no copies are left.",
)


@dataclass(frozen=True)
class Selection:
    """How much of something to check: all of it, none, or *count* chosen at random."""

    mode: str
    count: int | None = None
    """None for all."""


def parse_selection(text: str) -> Selection:
    """Read ``all``, ``none`` or ``sample:N``.

    Raises:
        UsageError: ``BadSelection``.
    """
    if text == "all":
        return Selection(text)
    if text == "none":
        return Selection(text, 0)
    kind, colon, number = text.partition(":")
    try:
        if kind == "sample" and colon:
            return Selection(text, parse_decimal(number, MAXIMUM_SAMPLE))
    except EncodingError:
        pass
    raise UsageError("BadSelection", f"{text!r} is none of all, none and sample:N", hint="For example sample:100.")


@dataclass(frozen=True)
class AuditRequest:
    """What to audit, whom to trust, how much to check.

    ``known`` are heads signed before, that of the last clean audit among them. ``workers`` is the
    number of threads that verify. ``max_age`` is in seconds.
    """

    log: Log
    policy: Policy | None = None
    known: tuple[KnownHead, ...] = ()
    commitments: Selection = Selection("all")
    answers: Selection = Selection("all")
    max_age: int = DEFAULT_MAX_AGE_SECONDS
    workers: int = 2


def audit(
    request: AuditRequest, reader: LogReader, now: int, save_evidence: SaveEvidence, *,
    progress: Progress = lambda stage, done, total: None, chance: random.Random | None = None,
) -> Report:
    """Audit a log.

    Args:
        now: Unix seconds.
        save_evidence: called as soon as there is evidence.
        chance: draws the samples; the log must not be able to foresee it.

    Raises:
        KtlogError: from *save_evidence* only; whatever the log does is a finding.
    """
    chance = chance or random.SystemRandom()
    for attempt in range(1, _ATTEMPTS + 1):
        report = Report(
            request.log.origin, Coverage(request.commitments.mode), Coverage(request.answers.mode), url=request.log.url
        )
        run = _Audit(request, reader, now, save_evidence, progress, chance, report)
        _run(run, request)
        if report.ok or not run.erased_meanwhile():
            break
        if attempt == _ATTEMPTS:
            report.skip(
                "Which findings come from erasures during the audit: there was one in every attempt. Audit again."
            )
    for sentence in NEVER_CHECKED:
        report.skip(sentence)
    return report


def _run(run: _Audit, request: AuditRequest) -> None:
    head = run.judge_head()
    if head is not None:
        with ExitStack() as stack:
            network, cores = (
                stack.enter_context(ThreadPoolExecutor(count, name))
                for count, name in ((FETCHERS, "fetch"), (request.workers, "verify"))
            )
            # What nobody waits for any more must not be begun, on Ctrl-C above all.
            stack.callback(network.shutdown, wait=False, cancel_futures=True)
            stack.callback(cores.shutdown, wait=False, cancel_futures=True)
            run.read_tree(head, network, cores)


class _Audit:
    """The state of one run of :func:`audit`."""

    def __init__(
        self, request: AuditRequest, reader: LogReader, now: int, save: SaveEvidence, progress: Progress,
        chance: random.Random, report: Report,
    ) -> None:
        self._request = request
        self._log = request.log
        self._reader = reader
        self._now = now
        self._save = save
        self._progress = progress
        self._chance = chance
        self._report = report
        self._erasure_head: ErasureHead | None = None
        self._erasures_read = False

    def erased_meanwhile(self) -> bool:
        """Whether the erasure log is not any more what it was when this run read it."""
        try:
            return self._erasures_read and self._reader.erasure_head() != self._erasure_head
        except KtlogError:
            return False

    def judge_head(self) -> Head | None:
        """Read and judge the checkpoint; None when there is no tree to audit."""
        report, known = self._report, self._request.known
        forked = check_forks(self._log, known, report, self._save)
        head = None
        try:
            report.signed_head = self._reader.checkpoint()
            head = check_signed(report.signed_head, self._log, report)
        except KtlogError as error:
            report.findings.add(finding_from(error))
        if head is None:
            report.skip("Entries, records, tiles and answers: there is no head to check them against.")
            return None
        report.tree_size, report.root = head.size, head.root
        current = KnownHead(head, "the one the log serves now")
        for item in known:
            forked = check_forks(self._log, (item, current), report, self._save) or forked
        check_quorum(head, self._request.policy, self._now, self._request.max_age, report)
        if forked:
            report.skip("Entries, records, tiles and answers: the log has signed two trees, so there is no one tree.")
            return None
        if check_rolled_back(known, head, report):
            report.skip("Entries, records, tiles and answers: the tree shown is older than one already signed.")
            return None
        if not known:
            report.skip("Consistency with an earlier head: none is known yet; a clean audit remembers this one.")
        return head

    def read_tree(self, head: Head, network: Executor, cores: Executor) -> None:
        """Read every entry of *head*'s tree and judge all that hangs on them."""
        report, size = self._report, head.size
        older = [item for item in self._request.known if 0 < item.head.size < size]
        fold = TreeFold([node for item in older for node in nodes_for_consistency(item.head.size, size)])
        replay = Replay(
            self._log.origin, self._erasures(), self._leaf_keys(), self._chosen_entries(size), cores, report,
            lambda done: self._progress("entries", done, size),
        )
        tiles = TileCheck(self._reader, network, report)
        for page in self._reader.pages(size, network):
            if not self._read_page(page, fold, tiles, replay):
                break
        complete = fold.size == size
        if complete:
            tiles.check(fold.partial_tiles())
        replay.finish()
        tiles.finish()
        report.actors = len(replay.directory.actors)
        self._tell_commitments()
        if not complete:
            report.skip(
                f"Entries from {fold.size} on, the root, consistency with earlier heads, and the API's answers:"
                " the entries could not be read."
            )
            return
        self._judge_root(head, fold, older)
        self._judge_answers(head, replay, network)

    def _read_page(self, page: Page, fold: TreeFold, tiles: TileCheck, replay: Replay) -> bool:
        """Take one page into the tree and the directory; False when its entries cannot be had."""
        findings = self._report.findings
        if isinstance(page.entries, KtlogError):
            findings.add(finding_from(page.entries, leaf_index=page.first))
            return False
        for entry in page.entries:
            fold.append(hash_leaf(entry))
        tiles.check(fold.full_tiles())
        lines: Sequence[bytes] | None = None
        if isinstance(page.records, KtlogError):
            findings.add(finding_from(page.records, leaf_index=page.first))
            if not replay.stopped:
                replay.stop(page.first)
        else:
            lines = page.records
        replay.page(page.first, page.entries, lines)
        return True

    def _erasures(self) -> Sequence[ErasureRecord] | None:
        """The erasure log; None when it cannot be read, and then no withheld text is judged."""
        report = self._report
        self._erasures_read = True
        try:
            self._erasure_head = self._reader.erasure_head()
            if self._erasure_head is None:
                report.skip("Erasures: the log serves no list of them. Text withheld all the same is a finding.")
                return ()
            records = self._reader.erasures(self._erasure_head)
        except KtlogError as error:
            report.findings.add(finding_from(error))
            report.skip("Erasures: their list could not be read, so nothing is judged from the first withheld text on.")
            return None
        report.erasures = len(records)
        if records:
            for sentence in ERASURES_NEVER_CHECKED:
                report.skip(sentence)
        return records

    def _leaf_keys(self) -> Mapping[bytes, bytes] | None:
        try:
            return self._reader.leaf_keys()
        except KtlogError as error:
            self._report.findings.add(finding_from(error))
            self._report.skip("Leaf signatures: the log's leaf keys could not be read.")
            return None

    def _chosen_entries(self, size: int) -> Container[int] | None:
        selection = self._request.commitments
        if selection.count is None:
            return None
        return frozenset(self._chance.sample(range(size), min(selection.count, size)))

    def _tell_commitments(self) -> None:
        done, selection = self._report.commitments, self._request.commitments
        if selection.count is None or done.checked == done.total:
            return
        why = "none was asked for" if selection.count == 0 else f"only those of {selection.count} random entries were"
        self._report.skip(
            f"{done.total - done.checked} of {done.total} plaintext commitments: {why}. Their plaintext is taken"
            " on the log's word."
        )

    def _judge_root(self, head: Head, fold: TreeFold, older: Sequence[KnownHead]) -> None:
        if fold.root() != head.root:
            self._report.findings.add(Finding(
                "TreeMismatch", "Invalid",
                f"the {head.size} entries the log serves do not hash to the root it signed",
            ))
            if older:
                self._report.skip("Consistency with earlier heads: the entries served are not those of the new head.")
            return
        for item in older:
            check_prefix(self._log, item, head, fold.read, self._report, self._save)

    def _judge_answers(self, head: Head, replay: Replay, network: Executor) -> None:
        report, selection = self._report, self._request.answers
        actor_ids = sorted(replay.directory.actors)
        report.answers.total = len(actor_ids)
        if replay.stopped:
            report.skip("The API's answers: without every record there is nothing to compare them with.")
            return
        if selection.count is not None:
            actor_ids = sorted(self._chance.sample(actor_ids, min(selection.count, len(actor_ids))))
        asked: deque[tuple[str, Future[ActorAnswer | Invalid | Unreachable]]] = deque()
        upcoming = iter(actor_ids)
        unreachable = False
        too_large: list[str] = []
        for number in range(len(actor_ids)):
            while len(asked) < 2 * FETCHERS and (actor_id := next(upcoming, None)) is not None:
                asked.append((actor_id, network.submit(self._ask, actor_id, head.size)))
            actor_id, future = asked.popleft()
            answer = future.result()
            if isinstance(answer, Invalid) and answer.name in ("TooLarge", "HistoryTooLong"):
                # A long history is no lie. What was not read is said, and the rest of the audit counts.
                too_large.append(actor_id)
                continue
            if isinstance(answer, Unreachable):
                report.findings.add(finding_from(answer))
                unreachable = True
                break
            replayed = Replayed(
                replay.directory.actors[actor_id], replay.directory.histories.get(actor_id, ()), head.size, head.root,
                replay.enrolments,
            )
            for finding in check_answer(answer, replayed):
                report.findings.add(finding)
            report.answers.checked += 1
            self._progress("answers", number + 1, len(actor_ids))
        if report.answers.checked:
            report.skip(
                "The plaintext that the API shows beside an actor's history: it is checked where the log publishes it"
                " in its records."
            )
        if too_large:
            shown = ", ".join(too_large[:_SHOWN_ACTORS])
            more = len(too_large) - _SHOWN_ACTORS
            report.skip(
                f"The API's answers about {len(too_large)} of {report.answers.total} actors: each is larger than the"
                f" {MAX_ANSWER_BYTES} bytes or {MAX_HISTORY_PAGES} pages that are read. They are"
                f" {shown}{f' and {more} more' if more > 0 else ''}."
            )
        left = report.answers.total - report.answers.checked - len(too_large)
        if left:
            why = "the API stopped answering" if unreachable else f"--answers was {selection.mode}"
            report.skip(
                f"The API's answers about {left} of {report.answers.total} actors: {why}."
            )

    def _ask(self, actor_id: str, tree_size: int) -> ActorAnswer | Invalid | Unreachable:
        try:
            return self._reader.actor_keys(actor_id, tree_size)
        except (Invalid, Unreachable) as error:
            return error


class TileCheck:
    """Compares the tiles a log serves with those recomputed from its entries.

    After the first tile that cannot be had for want of an answer it stops asking.
    """

    def __init__(self, reader: LogReader, network: Executor, report: Report) -> None:
        self._reader = reader
        self._network = network
        self._report = report
        self._pending: deque[Future[Finding | None]] = deque()
        self._stopped = False

    def check(self, tiles: Sequence[tuple[int, int, bytes]]) -> None:
        """Begin to compare (level, number, expected bytes)."""
        for level, number, expected in tiles:
            if not self._stopped:
                self._pending.append(self._network.submit(self._compare, level, number, expected))
        while len(self._pending) > 2 * FETCHERS:
            self._settle()

    def finish(self) -> None:
        """Wait for every comparison under way."""
        while self._pending:
            self._settle()
        if self._stopped:
            self._report.skip("Tiles: the log stopped answering for them.")

    def _settle(self) -> None:
        finding = self._pending.popleft().result()
        if finding is None:
            self._report.tiles += 1
        elif not (self._stopped and finding.kind == "Unreachable"):
            self._report.findings.add(finding)
            self._stopped = self._stopped or finding.kind == "Unreachable"

    def _compare(self, level: int, number: int, expected: bytes) -> Finding | None:
        width = len(expected) // 32
        try:
            served = self._reader.tile(level, number, width)
        except KtlogError as error:
            return finding_from(error)
        if served == expected:
            return None
        return Finding(
            "TileMismatch", "Invalid",
            f"{tile_path(level, number, width)} is not the tile that the entries make up",
        )
