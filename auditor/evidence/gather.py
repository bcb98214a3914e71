"""Evidence for the findings of an audit, wherever it can be had: what the log serves is read once more, and judged.

It is asked for after the audit, about the first few findings of each name, so that the audit itself need not keep
what evidence takes. A log that answers otherwise now, or not at all, gives no evidence; the findings stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from auditor.convict import parse_any
from auditor.evidence import build
from auditor.evidence.claims import Logged, accused_key
from auditor.evidence.forked import KeptEdge, evidence_for_first_difference
from auditor.evidence.limits import MAX_ENTRIES
from auditor.evidence.source import Source
from auditor.report import Finding, Report
from ktlog.client.publicfiles import PublicFiles, parse_public_record
from ktlog.client.verify import Head, Log, open_head
from ktlog.errors import KtlogError
from ktlog.keymap.bundle import MAX_BUNDLE_BYTES, parse_bundle
from ktlog.keymap.evidence import actor_statement, keep_lines
from ktlog.keymap.output import OutputLeaf, parse_leaf
from ktlog.pkd.entry import parse_entry
from ktlog.pkd.messages import parse_wire
from ktlog.tlog.evidence import Evidence
from ktlog.tlog.note import Vkey
from ktlog.tlog.tiles import TILE_WIDTH
from ktlog.tlog.tree import HashReader

MOST_OF_A_NAME = 3
_FORKS = frozenset({"TwoRoots", "Inconsistent"})
_RULES = frozenset({"BadTransition", "StaleRoot", "BadMessageSignature", "DuplicateMessage"})


@dataclass(frozen=True)
class Gathered:
    """An evidence file about a finding."""

    finding: Finding
    kind: str
    data: bytes


class Gatherer:
    """Makes evidence about one log from what it serves now.

    Args:
        files: of the log; map_files: of its map. map_vkeys: the map's keys, where they are known.
        kept: of the log's tree as it was at the last clean audit.
    """

    def __init__(
        self, log: Log, head: Head, files: PublicFiles, map_files: PublicFiles | None = None,
        map_vkeys: tuple[Vkey, ...] = (), workers: int = 2, kept: KeptEdge | None = None,
    ) -> None:
        self._log = log
        self._head = head
        self._files = files
        self._map_files = map_files
        self._map_vkeys = map_vkeys
        self._workers = workers
        self._kept = kept
        self._read: HashReader = files.hashes(head.size, head.root)

    def about(self, finding: Finding) -> tuple[str, bytes] | None:
        """The kind and the file; None where this finding cannot be shown to others, or not any more."""
        makers: dict[str, Callable[[Finding, int], tuple[str, bytes | None]]] = {
            "BadLeafSignature": self._leaf_signature, "NotCanonical": self._message, "BadMessage": self._message,
            "PlaintextMismatch": self._record, "PreimageMismatch": self._record,
            "DuplicateMessage": self._duplicate, **dict.fromkeys(_RULES - {"DuplicateMessage"}, self._rule),
        }
        make = makers.get(finding.name)
        if make is None or finding.leaf_index is None or finding.leaf_index >= self._head.size:
            return None
        try:
            kind, data = make(finding, finding.leaf_index)
        except KtlogError:
            return None
        return None if data is None else (kind, data)

    def about_fork(self, fork: bytes) -> tuple[str, bytes] | None:
        """Which entry was rewritten, by the evidence file *fork*, if hashes of both trees are to be had."""
        try:
            evidence = parse_any(fork)
            if not isinstance(evidence, Evidence):
                return None
            if evidence.origin == self._log.origin:
                vkeys, files, kept = self._log.vkeys, self._files, self._kept
            elif self._map_files is not None:
                vkeys, files, kept = self._map_vkeys, self._map_files, None
            else:
                return None
            data = evidence_for_first_difference(vkeys, evidence.notes, files, kept)
        except KtlogError:
            return None
        return None if data is None else ("two-leaves", data)

    def about_value(self, actor_id: str) -> tuple[str, bytes] | None:
        """What the map still says of somebody of whom it said what does not follow from the entries."""
        if self._map_files is None or not self._map_vkeys:
            return None
        try:
            answer = self._map_files.file(f"bundle/{quote(actor_id, safe='')}", "MissingAnswer", MAX_BUNDLE_BYTES)
            bundle = parse_bundle(answer)
            leaf = parse_leaf(bundle.output_leaf)
            if leaf.erasures or leaf.input_size > MAX_ENTRIES:
                return None
            note = self._map_files.file(f"checkpoint/{bundle.output_size}", "NoCheckpoint")
            said = actor_statement(bundle, keep_lines(note, [accused_key(self._map_vkeys, note)]))
            entries = list(Source(self._files, True).logged(leaf.input_size))
            data = build.evidence_for_value(self._map_vkeys, actor_id, said, note, entries, self._workers)
        except KtlogError:
            return None
        return None if data is None else ("wrong-value", data)

    def _logged(self, leaf_index: int) -> Logged:
        number, offset = divmod(leaf_index, TILE_WIDTH)
        width = min(TILE_WIDTH, self._head.size - number * TILE_WIDTH)
        record = parse_public_record(self._files.records(number, width)[offset], leaf_index)
        return Logged(self._entry(leaf_index), record.preimage, record.plain)

    def _entry(self, leaf_index: int) -> bytes:
        number, offset = divmod(leaf_index, TILE_WIDTH)
        return self._files.entries(number, min(TILE_WIDTH, self._head.size - number * TILE_WIDTH))[offset]

    def _leaf_signature(self, _: Finding, leaf_index: int) -> tuple[str, bytes | None]:
        return "bad-leaf-signature", build.evidence_for_leaf_signature(
            self._log.vkeys, self._head.note, self._read, leaf_index, self._entry(leaf_index), self._files.leaf_keys()
        )

    def _message(self, _: Finding, leaf_index: int) -> tuple[str, bytes | None]:
        logged = self._logged(leaf_index)
        return "bad-message", build.evidence_for_message(
            self._log.vkeys, self._head.note, self._read, leaf_index, logged.entry, logged.message
        )

    def _record(self, finding: Finding, leaf_index: int) -> tuple[str, bytes | None]:
        return "wrong-record", build.evidence_for_record(
            self._log.vkeys, self._head.note, self._read, leaf_index, self._entry(leaf_index), finding.name
        )

    def _duplicate(self, _: Finding, leaf_index: int) -> tuple[str, bytes | None]:
        second = self._logged(leaf_index)
        wanted = _unique(second)
        for at, logged in enumerate(Source(self._files, True).logged(leaf_index)):
            if _unique(logged) == wanted is not None:
                return "duplicate-message", build.evidence_for_duplicate(
                    self._log.vkeys, self._head.note, self._read, (at, logged), (leaf_index, second)
                )
        return "duplicate-message", None

    def _rule(self, finding: Finding, leaf_index: int) -> tuple[str, bytes | None]:
        """Under the first leaf of the map's log that covers the entry, where nobody was erased."""
        if leaf_index >= MAX_ENTRIES or self._map_files is None or not self._map_vkeys:
            return "broken-rule", None
        found = self._covering(leaf_index)
        if found is None:
            return "broken-rule", None
        head, index, data, leaf = found
        entries = list(Source(self._files, True).logged(leaf_index + 1))
        hashes = list(self._read([(0, at) for at in range(min(leaf.input_size, self._head.size))]))
        return "broken-rule", build.evidence_for_rule(
            self._map_vkeys, head.note, self._map_files.hashes(head.size, head.root), index, data, finding.name,
            entries, hashes, self._workers,
        )

    def _covering(self, leaf_index: int) -> tuple[Head, int, bytes, OutputLeaf] | None:
        files = self._map_files
        if files is None:
            return None
        log = Log(f"{self._log.origin}/map", self._map_vkeys, files.url)
        head = open_head(files.checkpoint(), log)
        for index, data in _leaves(files, head.size):
            leaf = parse_leaf(data)
            if leaf.input_size > leaf_index:
                return None if leaf.erasures else (head, index, data, leaf)
        return None


def _leaves(files: PublicFiles, size: int) -> Iterator[tuple[int, bytes]]:
    """The leaves of the output log but the first, which is no map's."""
    for number in range(-(-size // TILE_WIDTH)):
        for offset, data in enumerate(files.entries(number, min(TILE_WIDTH, size - number * TILE_WIDTH))):
            if number or offset:
                yield number * TILE_WIDTH + offset, data


def _unique(logged: Logged) -> bytes | None:
    try:
        return parse_wire(parse_entry(logged.entry)[0], logged.message).unique_hash
    except KtlogError:
        return None


def gather(report: Report, gatherer: Gatherer, forks: Sequence[bytes] = ()) -> list[Gathered]:
    """Evidence for the first findings of each name. forks: the evidence files that the audit itself made."""
    found: list[Gathered] = []
    tried: dict[str, int] = {}
    for finding in report.findings:
        tried[finding.name] = tried.get(finding.name, 0) + 1
        if tried[finding.name] > MOST_OF_A_NAME:
            continue
        made = [gatherer.about(finding), *map(gatherer.about_value, report.wrong_values.get(finding, ()))]
        found += [Gathered(finding, *one) for one in made if one is not None]
    forked = next((finding for finding in report.findings if finding.name in _FORKS), None)
    if forked is not None:
        made = map(gatherer.about_fork, forks[:MOST_OF_A_NAME])
        found += [Gathered(forked, *one) for one in made if one is not None]
    return found
