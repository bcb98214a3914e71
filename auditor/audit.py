"""One audit of one log, from entry 0 or from where the last one stood: what is read, in which order, what is judged.

::

    known heads ─ two of one size?                    ─┐ evidence: stop, there is no one tree to audit
    checkpoint ─ signature ─ two roots? ─ quorum ─ age ─┤
               ─ behind a known head?                  ─┘ stop: a newer tree was signed already
    the erasure log ─ does it begin with what it was?
    bundles of 256 ─ form, leaf signatures, tiles                  structural tier (auditor/structural.py)
                   ─ records, signatures, commitments, state       semantic tier (auditor/replay.py)
    root ─ consistency with every known head
    is every withheld text accounted for?
    the API's answers

Bundles are read and judged ahead, by threads or processes, and dropped once they are folded in. The log is hostile
until shown otherwise: every failure to read or check is a finding, and what could not be checked is said.

With a ledger the audit is resumable: every so often, and at the end, the position is saved with the directory's rows in
one transaction. That happens only if nothing was found so far, and only for entries that are proven to be the first of
the signed tree. So whenever it is killed, it goes on from there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

from auditor.erasurelog import Erasures, erased_since, read_erasure_log
from auditor.events import Event
from auditor.fetch import LogReader
from auditor.heads import (
    KnownHead,
    SaveEvidence,
    check_forks,
    check_quorum,
    check_rolled_back,
    check_signed,
    for_entries,
    open_noted_head,
)
from auditor.ledger import Ledger
from auditor.mapaudit import MapAudit, map_log
from auditor.mapposition import parse_map_position
from auditor.position import SEMANTIC, STRUCTURAL, Position, all_opened
from auditor.reading import TreePass
from auditor.report import Coverage, Finding, Report, finding_from
from auditor.request import NEW, AuditRequest, Progress, Selection, parse_selection
from auditor.tilecheck import FETCHERS
from auditor.tools import Tools
from ktlog.client.verify import Head
from ktlog.errors import KtlogError, StoreError, Unreachable
from ktlog.pkd.erasure import map_index
from ktlog.tlog.tree import root_hash

__all__ = [
    "NEVER_CHECKED", "NEW", "AuditRequest", "Progress", "Selection", "audit", "parse_selection",
]

# An erasure during an audit takes text away between two pages. That is no fault of the log, so the audit begins again.
_ATTEMPTS = 3

NEVER_CHECKED = (
    "That the log answers others as it answered this audit: clients check each answer against the map.",
    "What only the operator could see when it took a message: HTTP signatures, one-time passwords, its clock and"
    " its allow-lists.",
    "That the first key of an actor came from the person: the instance says so.",
    "That the published leaf keys are the log's: no signature binds them to the key you named.",
    "That nobody was shown another head, beyond the heads compared here.",
)

_TOO_OFTEN = 3
"""After that many audits in a row in which something was erased in every attempt, that is a fault of its own."""

# What an erasure between two requests can look like. Pages and lists:
_OF_PAGES = frozenset({"BadErasures", "MissingErasures", "BadRecord", "BadRecords", "MissingRecords", "RecordWithheld"})
# Of an entry whose text is withheld, and of none that is all there.
_OF_ENTRIES = frozenset({"BadTransition", "BadMessageSignature", "NotErased", "BadErasure", "MissingSalt"})
# About whom a new record names.
_OF_ANSWERS = frozenset({"AnswerContradictsLog", "BadAnswerProof", "MalformedAnswer"})
# Of no entry: what follows where one is withheld.
_FOLLOWING = frozenset({"NotErased", "BadErasure", "MapNotDerived", "MissingSalt", "MapAhead"})

_NOT_STRUCTURAL = (
    "Messages, who signed them, their plaintext, what they did to the directory, and the API's answers: --tier was"
    " structural."
)


def audit(
    request: AuditRequest, reader: LogReader, now: int, save_evidence: SaveEvidence, *,
    progress: Progress = lambda stage, done, total: None, chance: random.Random | None = None,
    ledger: Ledger | None = None, from_start: bool = False,
    on_events: Callable[[Sequence[Event]], None] | None = None, clock: Callable[[], float] = time.monotonic,
) -> Report:
    """Audit a log.

    Args:
        now: Unix seconds.
        save_evidence: called as soon as there is evidence.
        chance: draws the samples; the log must not be able to foresee it.
        ledger: where the position is; without one the audit begins at entry 0, and nothing is saved.
        from_start: begin at entry 0 all the same.
        on_events: stores durably what the entries did, before the position beyond them is saved. None: nobody asks.
        clock: seconds, for when to save.

    Raises:
        KtlogError: from *save_evidence*, *on_events* and *ledger* only; whatever the log does is a finding.
    """
    chance = chance or random.SystemRandom()
    before, began = reader.read_bytes, clock()
    for attempt in range(1, _ATTEMPTS + 1):
        report = Report(
            request.log.origin, Coverage(request.commitments.mode), Coverage(request.answers.mode),
            url=request.log.url, tier=request.tier,
        )
        # An attempt after a long one judges ages by its own time.
        run = _Audit(
            request, reader, now + int(clock() - began), save_evidence, report, ledger, from_start
        )
        with ExitStack() as stack:
            network, cores = (
                stack.enter_context(ThreadPoolExecutor(count, name))
                for count, name in ((FETCHERS, "fetch"), (request.workers, "verify"))
            )
            # What nobody waits for any more must not be begun, on Ctrl-C above all.
            stack.callback(network.shutdown, wait=False, cancel_futures=True)
            stack.callback(cores.shutdown, wait=False, cancel_futures=True)
            # The map's head comes first: what it speaks of must then be there.
            run.begin_map(network)
            head = run.judge_head()
            if head is not None:
                run.read_tree(head, Tools(
                    reader, network, cores, save_evidence, progress, chance, clock, on_events, ledger
                ))
        if report.ok or not run.erased_meanwhile():
            break
        if ledger is not None:
            ledger.forget()
        if attempt == _ATTEMPTS:
            run.excuse()
    if ledger is not None:
        _count_erased(report, ledger)
    report.bytes_read += reader.read_bytes - before + (0 if ledger is None else ledger.read_bytes)
    if request.tier == STRUCTURAL:
        report.skip(_NOT_STRUCTURAL)
    for sentence in NEVER_CHECKED:
        report.skip(sentence)
    return report


def _count_erased(report: Report, ledger: Ledger) -> None:
    """That an audit cannot be finished is no fault once, and one when it never can."""
    if "ErasedMeanwhile" in report.findings:
        count = ledger.erased_again(True)
        if count >= _TOO_OFTEN:
            report.findings.add(Finding(
                "ErasuresNeverRest", "Invalid", f"in {count} audits, one after another, the log erased something during"
                " every attempt, and what it served did not fit together",
            ))
    elif report.ok:
        ledger.erased_again(False)


class _Audit:
    """The state of one attempt of :func:`audit`."""

    def __init__(
        self, request: AuditRequest, reader: LogReader, now: int, save: SaveEvidence, report: Report,
        ledger: Ledger | None, from_start: bool,
    ) -> None:
        self._request, self._log, self._reader, self._now = request, request.log, reader, now
        self._save, self._report = save, report
        self._position = None if ledger is None else ledger.position()
        self._known = request.known
        # Whatever is read again, what the log has shown stays so.
        self._shown = None if self._position is None else self._position.shown
        if self._position is not None:
            try:
                noted = KnownHead(open_noted_head(self._position.note, request.log), "the last audit")
            except StoreError:
                if not from_start:
                    raise
                self._shown = None
            else:
                known = {(item.head.size, item.head.root) for item in request.known}
                if (noted.head.size, noted.head.root) not in known:
                    self._known = (*request.known, noted)
        if from_start:
            self._position = None
        self._erasures: Erasures | None = None
        self._mapped: MapAudit | None = None
        self._pass: TreePass | None = None

    def erased_meanwhile(self) -> bool:
        """Whether the erasure log is not any more what it was when this attempt read it."""
        try:
            return self._erasures is not None and self._reader.erasure_head() != self._erasures.head
        except Unreachable:
            return True  # nobody can tell: another attempt may
        except KtlogError:
            return False

    def excuse(self) -> None:
        """Put one finding in the place of those that an erasure during this attempt explains.

        That it cannot be told whether there was one explains nothing, and no erasure explains what is wrong with an
        entry whose text is all there, unless it rests on somebody who was erased.
        """
        findings = self._report.findings
        try:
            erased = frozenset() if self._erasures is None else erased_since(self._reader, self._erasures)
        except KtlogError:
            return
        if not erased:
            return
        hidden = "RecordWithheld" in findings
        entries, actors = (frozenset[int](), erased) if self._pass is None else self._pass.shaken(erased)

        def explained(found: Finding) -> bool:
            if found.name in _OF_ANSWERS:
                return bool(found.about) and map_index(self._log.origin, found.about) in actors
            if found.leaf_index is None:
                return found.name in _OF_PAGES or (hidden and found.name in _FOLLOWING) or found.name == "MapAhead"
            return found.name in _OF_PAGES or (found.name in _OF_ENTRIES and found.leaf_index in entries)

        if findings.remove(explained, _OF_PAGES):
            findings.add(Finding(
                "ErasedMeanwhile", "Unreachable",
                "something was erased during every attempt, so what did not fit together is no fault yet; audit again",
            ))

    def begin_map(self, network: Executor, *, anew: bool = False) -> MapAudit | None:
        """Begin with the log of maps, where the saved position is in it; *anew*: at its first leaf."""
        log = self._request.map_log or map_log(self._log, self._request.policy)
        if log is None:
            self._report.skip("The map: the policy names no key of its log.")
            return None
        saved = None
        if self._position is not None and self._position.output_fold and not anew:
            saved = parse_map_position(self._position.output_fold)
        self._mapped = MapAudit(
            log, self._reader.beside(log.url), self._report, self._now, saved=saved, save=self._save,
            policy=self._request.policy, max_age=self._request.max_age, network=network,
        )
        self._mapped.begin()
        return self._mapped

    def judge_head(self) -> Head | None:
        """Read and judge the checkpoint; None when there is no tree to audit."""
        report, known = self._report, self._known
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
        policy = self._request.policy
        check_quorum(head, None if policy is None else for_entries(policy), self._now, self._request.max_age, report)
        if forked:
            report.skip("Entries, records, tiles and answers: the log has signed two trees, so there is no one tree.")
            return None
        if check_rolled_back(known, head, report):
            report.skip("Entries, records, tiles and answers: the tree shown is older than one already signed.")
            return None
        if not known:
            report.skip("Consistency with an earlier head: none is known yet; a clean audit remembers this one.")
        return head

    def read_tree(self, head: Head, tools: Tools) -> None:
        """Read what is new in *head*'s tree, or all of it, and judge all that hangs on it."""
        report, position = self._report, self._position
        if position is not None and not self._begins_with(position, head):
            position = None
        erasures = self._erasures = read_erasure_log(
            self._reader, position, report, whole=self._mapped is not None or tools.on_events is not None
        )
        opened_to = None
        why = None
        if position is not None and self._request.tier == SEMANTIC:
            if not erasures.followable(position.size):
                why = "text was erased since, from entries after them too"
            elif self._mapped is not None and not position.output_fold:
                # What the map says of somebody rests on all that was logged of them.
                why = "the audits before this one did not follow the map"
        if position is not None and why is not None:
            # Commitments that were opened stay so: it is the same tree.
            if all_opened(position):
                opened_to = (position.size, position.root)
            else:
                opened_to = (position.opened_to, position.opened_root)
            first = "first entry was" if position.size == 1 else f"first {position.size} entries were"
            report.skip(f"The {first} read again, because {why}.")
            position = None
        if position is None and tools.ledger is not None:
            tools.ledger.clear()
        mapped, ordered = self._mapped, True
        if mapped is not None and position is None and self._position is not None:
            mapped, ordered = self.begin_map(tools.network, anew=True), False
        self._pass = TreePass(
            replace(self._request, known=self._known), tools, report, head, self._now, erasures, position, opened_to,
            mapped, ordered, self._shown,
        )
        self._pass.read()

    def _begins_with(self, position: Position, head: Head) -> bool:
        """False when *head*'s tree is known to begin otherwise: then all of it is read, and the known heads convict."""
        try:
            return root_hash(position.size, self._reader.hashes(head.size, head.root)) == position.root
        except KtlogError:
            return True  # the tiles are judged later, and the root over all entries is
