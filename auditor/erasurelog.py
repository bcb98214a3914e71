"""The erasure log as an audit meets it: is it what it was, and what does it mean for where the audit may begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from auditor.fetch import LogReader
from auditor.position import Position
from auditor.report import Finding, Report, finding_from
from ktlog.client.erasures import ErasureHead
from ktlog.errors import KtlogError
from ktlog.pkd.erasure import ErasureRecord, encode_erasure_record
from ktlog.tlog.tree import EMPTY_ROOT, Frontier, hash_leaf

NEVER_CHECKED = (
    "What an erasure withholds: who signed such an entry and what it said is taken on the word of those who read"
    " it in time. What rests on it is listed as taken.",
    "That an erasure was lawful, that the log told its right number and told it to all, and that no copies are left.",
)


@dataclass(frozen=True)
class Erasures:
    """The erasure log as read.

    Attributes:
        known: False when it could not be read; then no withheld text is judged.
        records: all of them; none when it is *settled*.
        settled: it is what it was at the position, and every record's time had come then: no record matters any more.
        new: records that were not there at the position.
        whole: all records, also when settled; for the map.
    """

    known: bool
    head: ErasureHead | None = None
    records: tuple[ErasureRecord, ...] = ()
    settled: bool = False
    new: tuple[ErasureRecord, ...] = ()
    whole: tuple[ErasureRecord, ...] = ()

    @property
    def size(self) -> int:
        return 0 if self.head is None else self.head.size

    @property
    def root(self) -> bytes:
        return EMPTY_ROOT if self.head is None else self.head.root

    def followable(self, size: int) -> bool:
        """Whether the replay can go on from *size* entries: nothing was erased since but just then.

        Text that an erasure took away from entries further on was never read, and so the names behind it have to be
        withheld from the start.
        """
        return all(record.input_size == size for record in self.new)


def read_erasure_log(
    reader: LogReader, position: Position | None, report: Report, *, whole: bool = False
) -> Erasures:
    """Read it, and compare it with what it was at the *position*. *whole*: all of it, even when it is settled."""
    head = None
    try:
        head = reader.erasure_head()
        if position is not None and (0 if head is None else head.size) < position.erasures:
            raise_rewritten(report, "it has fewer records than it had")
            return Erasures(False, head)
        if head is None:
            report.skip("Erasures: the log serves no list of them. Text withheld all the same is a finding.")
            return Erasures(True, None, settled=position is not None)
        report.erasures = head.size
        if head.size:
            for sentence in NEVER_CHECKED:
                report.skip(sentence)
        if position is not None and _settled(head, position):
            return Erasures(True, head, settled=True, whole=reader.erasures(head) if whole and head.size else ())
        records = reader.erasures(head)
    except KtlogError as error:
        report.findings.add(finding_from(error))
        report.skip("Erasures: their list could not be read, so nothing is judged from the first withheld text on.")
        return Erasures(False, head)
    if position is None:
        return Erasures(True, head, records, whole=records)
    if _root(records[: position.erasures]) != position.erasure_root:
        raise_rewritten(report, "the records that were there have changed")
        return Erasures(False, head)
    return Erasures(True, head, records, new=records[position.erasures :], whole=records)


def erased_since(reader: LogReader, before: Erasures) -> frozenset[bytes]:
    """Map indexes of whom the log erased since *before* was read; empty when it does not go on from there.

    Raises:
        Invalid, Unreachable: what is served now is no erasure log, or nobody answers.
    """
    head = reader.erasure_head()
    records = () if head is None else reader.erasures(head)
    if len(records) < before.size or _root(records[: before.size]) != before.root:
        return frozenset()
    return frozenset(record.index for record in records[before.size :])


def raise_rewritten(report: Report, what: str) -> None:
    report.findings.add(Finding(
        "ErasuresRewritten", "Invalid", f"the erasure log is not what it was at the last audit: {what}"
    ))
    report.skip("Erasures: nothing is judged from the first withheld text on.")


def _settled(head: ErasureHead, position: Position) -> bool:
    same = (head.size, head.root) == (position.erasures, position.erasure_root)
    return same and position.directory.get("last_erasure", 0) <= position.size


def _root(records: Sequence[ErasureRecord]) -> bytes:
    return Frontier().extend(hash_leaf(encode_erasure_record(record)) for record in records).root()
