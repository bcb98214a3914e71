"""Reads every entry of a signed tree, from the position of an earlier audit on, and judges all that hangs on them."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Container, Iterator, MutableMapping, Sequence
from concurrent.futures import Future
from dataclasses import replace

from auditor.asking import Asker
from auditor.erasurelog import Erasures
from auditor.events import Event, erasure_event
from auditor.fetch import Page
from auditor.fold import TreeFold, nodes_for_consistency
from auditor.heads import KnownHead, check_prefix
from auditor.mapaudit import MapAudit, salts_of
from auditor.mapfold import MapLeaves
from auditor.position import SEMANTIC, Counts, Position, note_shown
from auditor.replay import Replay
from auditor.report import Finding, Report, finding_from
from auditor.request import AuditRequest
from auditor.saved import SavedDirectory
from auditor.structural import Job, Judged, JudgePool
from auditor.tilecheck import TileCheck
from auditor.tools import Tools
from ktlog.client.publicfiles import PublicRecord
from ktlog.client.verify import Head
from ktlog.errors import KtlogError, Unreachable
from ktlog.pkd.actors import Change
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.replay import Directory
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import Node, root_hash

_PAGES_AHEAD = 3
_EVENTS_AT_ONCE = 1024
# What a head lacks in witnesses or freshness is no reason to read the same entries again.
_OF_THE_HEAD = frozenset({"PolicyUnmet", "Stale"})


class TreePass:
    """One reading of the tree of *head*.

    Args:
        position: where to go on; None for entry 0.
        mapped: the audit of the map's log, begun; ordered: before the head was read.
        opened_to: (size, root) of a tree whose commitments earlier audits have all opened.
        shown: sizes that earlier audits saw, see :class:`Position`; None when there was none.
    """

    def __init__(
        self, request: AuditRequest, tools: Tools, report: Report, head: Head, now: int, erasures: Erasures,
        position: Position | None, opened_to: tuple[int, bytes] | None, mapped: MapAudit | None = None,
        ordered: bool = True, shown: tuple[tuple[int, int], ...] | None = None,
    ) -> None:
        self._request, self._tools, self._report, self._head, self._now = request, tools, report, head, now
        self._erasures, self._position = erasures, position
        if opened_to is None:
            opened_to = (0, b"") if position is None else (position.opened_to, position.opened_root)
        self._opened = opened_to
        self._first = report.first = 0 if position is None else position.size
        self._base = Counts() if position is None else position.counts
        self._older = [item for item in request.known if 0 < item.head.size < head.size]
        wanted = [node for item in self._older for node in nodes_for_consistency(item.head.size, head.size)]
        self._fold = TreeFold(wanted) if position is None else TreeFold.decode(position.fold, wanted)
        self._vouched = tools.reader.hashes(head.size, head.root)
        self._events: list[Event] = []
        self._dialect = "" if position is None else position.dialect
        self._saved_at = tools.clock()
        self._leaf_keys = self._read_leaf_keys() if head.size > self._first else None
        self._tiles = TileCheck(tools.reader, tools.network, report)
        self._mapped, self._ordered = mapped, ordered
        if mapped is not None and shown is None:
            report.skip("That the map follows the entries in time: no audit before this one saw what the log showed.")
        self._shown = note_shown(shown or (), head.size, now)
        self._leaves: MapLeaves | None = None
        self._told = self._erasures.size - len(self._erasures.new) if position else 0
        self._replay = self._begin_replay() if request.tier == SEMANTIC else None
        if mapped is not None:
            mapped.records = erasures.whole if erasures.known else None
            mapped.leaves = self._leaves
            mapped.reached(self._first, self._fold.root())

    def shaken(self, erased: Collection[bytes]) -> tuple[frozenset[int], frozenset[bytes]]:
        """Entries at fault, and map indexes of actors, that rest on text that went with those *erased*."""
        if self._replay is None:
            return frozenset(), frozenset(erased)
        return self._replay.resting.shaken(self._request.log.origin, erased)

    # Setting up

    def _read_leaf_keys(self) -> dict[bytes, bytes] | None:
        if not self._request.leaf_signatures:
            self._report.skip("Leaf signatures: --leaf-signatures was none.")
            return None
        try:
            return dict(self._tools.reader.leaf_keys())
        except KtlogError as error:
            self._report.findings.add(finding_from(error))
            self._report.skip("Leaf signatures: the log's leaf keys could not be read.")
            return None

    def _begin_replay(self) -> Replay:
        tools, erasures, size = self._tools, self._erasures, self._head.size
        enrolments: MutableMapping[int, bytes] | None = None
        directory: Directory
        if tools.ledger is None:
            directory = Directory(self._request.log.origin, erasures.records)
        else:
            directory = SavedDirectory(
                tools.ledger, self._position, self._fold.frontier, erasures.records, erasures.settled
            )
            enrolments = directory.enrolments
            if self._position is not None:
                self._follow(directory, erasures.new)
        if self._mapped is not None:
            salts, leaves = directory.map_rows() if isinstance(directory, SavedDirectory) else ({}, {})
            self._leaves = MapLeaves(directory, erasures.whole, salts=salts, leaves=leaves)
        return Replay(
            directory, erasures.known, self._chosen_entries(), tools.cores, self._report,
            lambda done: tools.progress("entries", max(done, self._first), size), enrolments=enrolments,
            dialect=self._dialect, opened_to=self._opened[0],
            on_event=None if tools.on_events is None else self._note,
            on_change=None if self._leaves is None else self._touch,
        )

    def _touch(self, change: Change, record: PublicRecord) -> None:
        if self._leaves is not None:
            self._leaves.touch((leaf.actor_id for leaf in change.history), salts_of(record))

    def _follow(self, directory: SavedDirectory, records: Sequence[ErasureRecord]) -> None:
        """Apply erasures of the time since the position, when no entry came before them."""
        for record in records:
            directory.follow_erasure(record)
        self._tell_erasures(self._first)
        if records:
            self._report.skip(
                "That the text which the newest erasures took from entries audited before is gone: only an audit"
                " --from-start reads it again."
            )

    def _tell_erasures(self, size: int) -> None:
        """Events of the erasures that took effect up to there, and were not told of before."""
        records = self._erasures.whole
        while self._told < len(records) and records[self._told].input_size <= size:
            if self._tools.on_events is not None:
                self._note(erasure_event(self._request.log.origin, records[self._told]))
            self._told += 1

    def _chosen_entries(self) -> Container[int] | None:
        selection = self._request.commitments
        if selection.count is None:
            return None
        span = range(self._first, self._head.size)
        return frozenset(self._tools.chance.sample(span, min(selection.count, len(span))))

    # Reading

    def read(self) -> None:
        """Read, judge, and save what holds."""
        report, size = self._report, self._head.size
        complete = self._read_entries()
        if complete:
            self._tiles.check(self._fold.partial_tiles())
        if self._replay is not None:
            self._replay.finish()
            report.actors = len(self._replay.directory.actors)
            report.partial = report.partial or self._replay.stopped
            self._tell_commitments()
        self._tiles.finish()
        self._count()
        if not complete:
            report.skip(
                f"Entries from {self._fold.size} on, the root, consistency with earlier heads, and the API's answers:"
                " the entries could not be read."
            )
        else:
            report.read_to = size
            self._judge_root()
            self._finish_map()
            if self._replay is not None:
                self._judge_answers(self._replay)
        self._hand_over_events()
        if complete and self._may_save():
            self._save(whole=True)

    def _read_entries(self) -> bool:
        """Whether all of them could be had."""
        request, size = self._request, self._head.size
        if size == self._first:
            return True
        bundles = -(-size // TILE_WIDTH) - self._first // TILE_WIDTH
        pool = JudgePool(
            self._tools.cores, request.workers, bundles, self._leaf_keys,
            None if request.tiles is None else (request.tiles, request.log.url),
        )
        try:
            # A worker reads a local copy by itself, unless the plaintext's reader needs the entries too.
            alone = self._replay is None and request.tiles is not None
            ahead = 2 * request.workers + 2 if self._replay is None else 2
            for page, judged in self._judged(self._jobs(size) if alone else self._pages(size), pool, ahead):
                if not self._take(page, judged, pool):
                    return False
                self._save_now_and_then()
        finally:
            pool.close()
        return self._fold.size == size

    def _jobs(self, size: int) -> Iterator[tuple[Page | None, Job | None]]:
        for number in range(self._first // TILE_WIDTH, -(-size // TILE_WIDTH)):
            yield None, self._job(number, min(TILE_WIDTH, size - number * TILE_WIDTH), None)

    def _pages(self, size: int) -> Iterator[tuple[Page | None, Job | None]]:
        pages = self._tools.reader.pages(
            size, self._tools.network, _PAGES_AHEAD, start=self._first, records=self._replay is not None
        )
        try:
            for page in pages:
                entries = page.entries
                yield page, None if isinstance(entries, KtlogError) else self._job(page.number, page.width, entries)
        finally:
            pages.close()  # type: ignore[attr-defined]

    def _job(self, number: int, width: int, entries: Sequence[bytes] | None) -> Job:
        skip = max(0, self._first - number * TILE_WIDTH)
        leaves = skip > 0 or self._request.tiles is None or self._fold.wants(number)
        return Job(number, width, skip, entries, leaves)

    def _judged(
        self, jobs: Iterator[tuple[Page | None, Job | None]], pool: JudgePool, ahead: int
    ) -> Iterator[tuple[Page | None, Future[Judged] | None]]:
        """Every job with its outcome, in order, judged *ahead* in advance."""
        pending: deque[tuple[Page | None, Future[Judged] | None]] = deque()
        try:
            for page, job in jobs:
                pending.append((page, None if job is None else pool.submit(job)))
                if len(pending) > ahead:
                    yield pending.popleft()
            while pending:
                yield pending.popleft()
        finally:
            for _, future in pending:
                if future is not None:
                    future.cancel()

    def _take(self, page: Page | None, future: Future[Judged] | None, pool: JudgePool) -> bool:
        """Take a bundle into the tree and the directory; False when its entries cannot be had."""
        report = self._report
        if page is not None and any(isinstance(part, Unreachable) for part in (page.entries, page.records)):
            self._save_here()  # the log does not answer for now; the next audit goes on from before this page
        judged = None if future is None else future.result()
        if judged is not None and judged.unread:
            # It is not in the local copy, or not as it should be: what the log says of it counts.
            page = self._tools.reader.page(judged.job.number, judged.job.width, records=False)
            judged = None
            if not isinstance(page.entries, KtlogError):
                judged = pool.submit(self._job(page.number, page.width, page.entries)).result()
        if judged is None:
            if page is None or not isinstance(page.entries, KtlogError):
                raise AssertionError("a bundle that was read is judged")
            report.findings.add(finding_from(page.entries, leaf_index=page.first))
            return False
        self._take_tree(judged)
        for finding in judged.findings:
            report.findings.add(finding)
        report.leaf_signatures += judged.signatures
        report.bytes_read += judged.read_bytes
        if self._replay is None and self._mapped is not None:
            while (wanted := self._mapped.next_size()) is not None and wanted <= self._fold.size:
                self._mapped.reached(wanted, self._root_at(wanted))
        if self._replay is None or page is None:
            report.entries_audited += judged.job.width - judged.job.skip
            self._tools.progress("entries", self._fold.size, self._head.size)
        else:
            self._take_records(self._replay, page, judged.job.skip)
        return True

    def _root_at(self, size: int) -> bytes:
        """The root of the first *size* entries, from tiles that the head vouches for."""
        try:
            return root_hash(size, self._vouched)
        except KtlogError as error:
            self._report.findings.add(finding_from(error))
            return b""

    def _take_tree(self, judged: Judged) -> None:
        job, fold = judged.job, self._fold
        hashes = [judged.leaf_hashes[at : at + 32] for at in range(0, len(judged.leaf_hashes), 32)]
        self._note_dialects(judged)
        if job.skip and b"".join(hashes[: job.skip]) != fold.last_leaves:
            self._report.findings.add(Finding(
                "TreeMismatch", "Invalid", "entries audited before are not served any more as they were", job.first
            ))
        if job.width == TILE_WIDTH and not job.skip and not fold.wants(job.number):
            fold.append_tile(judged.tile_hash, judged.leaf_hashes)
        else:
            for leaf_hash in hashes[job.skip :]:
                fold.append(leaf_hash)
        self._report.tiles += judged.tile_checked and all(found.name != "TileMismatch" for found in judged.findings)
        self._tiles.check(fold.full_tiles())

    def _note_dialects(self, judged: Judged) -> None:
        """A log keeps to the dialect of its first entry."""
        for start, end, name in judged.runs:
            self._dialect = self._dialect or name
            if name != self._dialect:
                for leaf_index in range(start, end):
                    self._report.findings.add(Finding(
                        "BadEntry", "Invalid", f"written in dialect {name}, the log's is {self._dialect}", leaf_index
                    ))

    def _take_records(self, replay: Replay, page: Page, skip: int) -> None:
        if isinstance(page.entries, KtlogError) or page.records is None:
            raise AssertionError("the semantic tier reads entries and records")
        waiting = replay.under_way
        lines: Sequence[bytes] | None = None
        if isinstance(page.records, KtlogError):
            self._report.findings.add(finding_from(page.records, leaf_index=page.first))
            if not replay.stopped:
                replay.stop(page.first)
        else:
            lines = page.records
        start = skip
        while start < page.width:
            # The map is judged at every size that a leaf of it speaks of.
            stop = self._next_stop(page.first + start, page.first + page.width) - page.first
            replay.page(page.first + start, page.entries[start:stop], None if lines is None else lines[start:stop])
            if self._mapped is not None and not replay.stopped:
                self._mapped.reached(page.first + stop, replay.directory.roots[-1])
            start = stop
        self._tell_erasures(page.first + page.width)
        replay.wait(waiting)

    def _next_stop(self, start: int, end: int) -> int:
        wanted = None if self._mapped is None else self._mapped.next_size()
        return wanted if wanted is not None and start < wanted < end else end

    def _finish_map(self) -> None:
        """Judge the rest of the map's log, and whether it is late."""
        mapped, report = self._mapped, self._report
        if mapped is None:
            return
        if report.partial:
            report.skip("The map from there on.")
            return
        covered = 0 if mapped.newest is None else mapped.newest.input_size
        self._shown = note_shown(self._shown, self._head.size, self._now, covered)
        mapped.finish(self._shown[0] if self._shown else None, ordered=self._ordered)
        report.map_leaves, report.map_followed = mapped.summary.leaves, mapped.summary.followed
        report.map_derived = mapped.summary.derived

    # Judging what was read

    def _judge_root(self) -> None:
        report, head = self._report, self._head
        if self._fold.root() != head.root:
            report.findings.add(Finding(
                "TreeMismatch", "Invalid", f"the {head.size} entries the log serves do not hash to the root it signed",
            ))
            if self._older:
                report.skip("Consistency with earlier heads: the entries served are not those of the new head.")
            return
        for item in self._older:
            self._check_prefix(item)
        opened_to, opened_root = self._opened
        if opened_to and root_hash(opened_to, self._read_nodes) != opened_root:
            report.findings.add(Finding(
                "TreeMismatch", "Invalid",
                f"the first {opened_to} entries are not those whose commitments an earlier audit opened"
            ))

    def _check_prefix(self, item: KnownHead) -> None:
        try:
            check_prefix(self._request.log, item, self._head, self._read_nodes, self._report, self._tools.save_evidence)
        except KtlogError as error:
            self._report.findings.add(finding_from(error))
            self._report.skip(f"Consistency with {item.source}: the tiles for it could not be read.")

    def _read_nodes(self, nodes: Sequence[Node]) -> list[bytes]:
        """Nodes of the head's tree: those folded here, and the others from tiles that its root vouches for."""
        missing = [node for node in nodes if node not in self._fold.nodes]
        read = dict(zip(missing, self._vouched(missing), strict=True)) if missing else {}
        return [read[node] if node in read else self._fold.nodes[node] for node in nodes]

    def _judge_answers(self, replay: Replay) -> None:
        report, tools = self._report, self._tools
        why = ""
        if replay.stopped:
            why = "without every record there is nothing to compare them with"
        elif not self._erasures.known:
            why = "without the list of erasures nobody can tell whom the log has to know"
        if why:
            report.answers.total = len(replay.directory.actors)
            report.skip(f"The API's answers: {why}.")
            return
        asker = Asker(
            tools.reader, tools.network, tools.chance, lambda done, total: tools.progress("answers", done, total)
        )
        asker.ask(self._request.answers, report, replay.directory, replay.enrolments, self._head)

    def _tell_commitments(self) -> None:
        done, selection, base = self._report.commitments, self._request.commitments, self._base
        if done.checked + self._report.commitments_before < done.total:
            only = f"only those of {selection.count} random entries were"
            why = "none was asked for" if selection.count == 0 else only
            self._report.skip(
                f"{done.total - done.checked} of {done.total} plaintext commitments: {why}. Their plaintext is taken"
                " on the log's word."
            )
        if base.commitments_checked < base.commitments:
            self._report.skip(
                f"{base.commitments - base.commitments_checked} of {base.commitments} plaintext commitments of entries"
                f" before {self._first}: the audits that read them did not open them; --from-start reads all again."
            )

    # Saving

    def _note(self, event: Event) -> None:
        self._events.append(event)
        if len(self._events) >= _EVENTS_AT_ONCE:
            self._hand_over_events()

    def _hand_over_events(self) -> None:
        if self._tools.on_events is not None and self._events:
            events, self._events = self._events, []
            self._tools.on_events(events)

    def _count(self) -> None:
        """Add what this pass checked to what earlier ones did."""
        report, base = self._report, self._base
        report.covered = Counts(
            base.leaf_signatures + report.leaf_signatures, base.message_signatures + report.message_signatures,
            base.commitments + report.commitments.total,
            base.commitments_checked + report.commitments.checked + report.commitments_before,
            base.withheld + report.entries_withheld,
            base.taken + (0 if self._replay is None else len(self._replay.directory.taken)),
        )

    def _may_save(self) -> bool:
        replay = self._replay
        return (
            self._tools.ledger is not None and self._report.findings.kinds <= _OF_THE_HEAD
            and (replay is None or not replay.stopped)
        )

    def _save_now_and_then(self) -> None:
        """Save in the midst of a long audit, at the end of a bundle."""
        if self._tools.clock() - self._saved_at < self._request.save_seconds or self._fold.size % TILE_WIDTH:
            return
        self._save_here()

    def _save_here(self) -> None:
        if self._fold.size % TILE_WIDTH or self._fold.size <= self._first or self._tools.ledger is None:
            return
        self._saved_at = self._tools.clock()
        if self._replay is not None:
            self._replay.settle()
        self._tiles.settle()
        if not self._may_save():
            return
        try:
            if root_hash(self._fold.size, self._vouched) != self._fold.root():
                return
        except KtlogError:
            return  # what is wrong with the tiles is found at the end; until then nothing is saved
        self._count()
        self._hand_over_events()
        self._save()

    def _save(self, *, whole: bool = False) -> None:
        ledger, fold = self._tools.ledger, self._fold
        if ledger is None:
            raise AssertionError("without a ledger nothing is saved")
        replay, base = self._replay, self._position
        directory = {} if replay is None or not isinstance(replay.directory, SavedDirectory) else (
            replay.directory.numbers()
        )
        directory["last_erasure"] = max((record.input_size for record in self._erasures.records), default=0)
        opened_to, opened_root = self._opened
        mapped = None if self._mapped is None else self._mapped.position()
        newest = None if self._mapped is None else self._mapped.newest
        before = base or Position(self._request.log.origin, self._request.tier)
        ledger.save(replace(
            before, size=fold.size, root=fold.root(), fold=fold.encode(), note=self._report.signed_head or b"",
            dialect=self._dialect, erasures=self._erasures.size, erasure_root=self._erasures.root, directory=directory,
            counts=self._report.covered, opened_to=0 if whole else opened_to, opened_root=b"" if whole else opened_root,
            saved=self._now, shown=self._shown,
            output_fold=b"" if mapped is None else mapped.encode(), output_size=0 if mapped is None else mapped.size,
            map_root=b"" if newest is None else newest.map_root,
        ))
