"""Checks entries one after the other: what each commits to, who signed it, and what it may do.

The cheap and serial part runs here: parsing, the preimage, the message signature and the fold of
the directory's rules. Leaf signatures and the Argon2id commitments, which are nearly all of the
work, run on every core beside it. An entry that breaks a rule is a finding and has no effect.

What an erasure withheld is replayed from what is left (:mod:`ktlog.pkd.withheld`). An entry that
changes somebody on the strength of withheld text is no finding: it is reported as taken.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass

from auditor.report import Finding, Report, finding_from
from ktlog.client.publicfiles import PublicRecord, parse_public_record
from ktlog.errors import EncodingError, Invalid, KtlogError, MessageRejected
from ktlog.pkd.attributes import check_commitment
from ktlog.pkd.dialects import Dialect
from ktlog.pkd.entry import LogEntry, parse_entry
from ktlog.pkd.erasure import ErasureRecord
from ktlog.pkd.keys import verify_mldsa44
from ktlog.pkd.messages import (
    AddKey,
    BurnDown,
    Message,
    RevokeKeyThirdParty,
    WireMessage,
    message_from_plain,
    parse_wire,
)
from ktlog.pkd.replay import Directory
from ktlog.pkd.withheld import Fragment, read_fragment
from ktlog.tlog.tree import hash_leaf

# How many leaf signatures one task verifies: enough that the task itself costs nothing.
_SIGNATURES_PER_TASK = 64

# What a directory's refusal of a logged message is called; anything else broke a rule of the state.
_REFUSALS = {
    "duplicate_message": "DuplicateMessage",
    "merkle_root_stale": "StaleRoot",
    "bad_signature": "BadMessageSignature",
}


@dataclass(frozen=True)
class _Task:
    """Work under way for entries up to *leaf_index*; *settle* is told how many findings it made."""

    leaf_index: int
    future: Future[list[Finding]]
    settle: Callable[[int], None]


class Replay:
    """The state of the directory after the entries so far, and the work still under way.

    Args:
        origin: of the log.
        erasures: the erasure log; None when it could not be read.
        leaf_keys: published leaf keys by hash; None when they could not be read.
        chosen: leaf indexes whose commitments to check; None for every one.
        pool: runs the work that releases the interpreter's lock.
        progress: called with the number of entries done.
    """

    def __init__(
        self, origin: str, erasures: Sequence[ErasureRecord] | None, leaf_keys: Mapping[bytes, bytes] | None,
        chosen: Container[int] | None, pool: Executor, report: Report, progress: Callable[[int], None],
    ) -> None:
        self.directory = Directory(origin, erasures or ())
        self.stopped = False
        self._erasures_known = erasures is not None
        self.dialect: Dialect | None = None
        self.enrolments: dict[int, bytes] = {}
        """Leaf hash of every AddKey by leaf index: what the proof beside a key in an answer is about."""
        self._leaf_keys = leaf_keys
        self._chosen = chosen
        self._pool = pool
        self._report = report
        self._progress = progress
        self._tasks: deque[_Task] = deque()
        self._done = 0

    def stop(self, leaf_index: int) -> None:
        """Give up following the directory from *leaf_index* on: what was published there cannot be read."""
        self.stopped = True
        self._report.skip(
            f"Messages, commitments and state from entry {leaf_index} on: their records could not be read."
        )

    def page(self, first: int, entries: Sequence[bytes], lines: Sequence[bytes] | None) -> None:
        """Check a page of entries with their records; *lines* is None when there are none to be had.

        Waits for the work of earlier pages, so that no more than two pages are ever in memory.
        """
        waiting = len(self._tasks)
        signatures = []
        for offset, entry in enumerate(entries):
            leaf_index = first + offset
            parsed = self._parse_entry(leaf_index, entry)
            if parsed is not None:
                signatures.append((leaf_index, parsed))
            if self.stopped or lines is None:
                continue
            self._entry(leaf_index, entry, parsed, lines[offset])
            self._report.entries_audited += 1
        if self._leaf_keys is not None:
            for at in range(0, len(signatures), _SIGNATURES_PER_TASK):
                self._submit_signatures(signatures[at : at + _SIGNATURES_PER_TASK])
        self._drain(waiting)

    def finish(self) -> None:
        """Wait for all the work under way, and judge the erasure log by what was read."""
        self._drain(len(self._tasks))
        self._report.taken = dict(self.directory.taken)
        if not self.stopped:
            for fault in self.directory.erasure_faults():
                self._report.findings.add(finding_from(fault))

    def _drain(self, count: int) -> None:
        for _ in range(count):
            task = self._tasks.popleft()
            findings = task.future.result()
            for finding in findings:
                self._report.findings.add(finding)
            task.settle(len(findings))
            self._done = max(self._done, task.leaf_index + 1)
            self._progress(self._done)

    def _parse_entry(self, leaf_index: int, entry: bytes) -> LogEntry | None:
        try:
            dialect, parsed = parse_entry(entry)
            if self.dialect not in (None, dialect):
                raise EncodingError(
                    "BadEntry", f"written in dialect {dialect.name}, the log's is {self.dialect.name}"
                )
        except EncodingError as error:
            self._report.findings.add(finding_from(error, "BadEntry", leaf_index))
            return None
        self.dialect = dialect
        return parsed

    def _entry(self, leaf_index: int, entry: bytes, parsed: LogEntry | None, line: bytes) -> None:
        """Check what is published beside one entry, and let it take effect if it holds."""
        try:
            record = parse_public_record(line, leaf_index)
            if parsed is not None:
                wire, message = self._read_message(parsed, record)
                if isinstance(message, Fragment) and not self._erasures_known:
                    self.stop(leaf_index)
                    return
                self._transition(leaf_index, wire, message, entry)
                return
        except KtlogError as error:
            self._report.findings.add(finding_from(error, leaf_index=leaf_index))
        self.directory.append_void(leaf_index, entry)

    def _read_message(self, parsed: LogEntry, record: PublicRecord) -> tuple[WireMessage, Message | Fragment]:
        if self.dialect is None:
            raise AssertionError("an entry that parsed has a dialect")
        if hashlib.sha256(record.preimage).digest() != parsed.message_hash:
            raise Invalid("PreimageMismatch", "the published message is not the one the entry commits to")
        try:
            wire, message = message_from_plain(self.dialect, record.preimage, record.plain, commitments=False)
        except Invalid as error:
            if error.name != "BadEntry":
                raise
            raise Invalid(_name_bad_message(self.dialect, record.preimage), error.message) from error
        self._submit_commitments(record, wire)
        if message is not None:
            return wire, message
        if self._erasures_known and not self.directory.may_be_withheld(record.leaf_index):
            raise Invalid("RecordWithheld", "the plaintext of this entry is withheld, and no erasure explains it")
        self.directory.note_withheld(record.leaf_index, sum(text is None for text in record.plain.values()))
        self._report.entries_withheld += 1
        return wire, read_fragment(wire, record.plain)

    def _transition(self, leaf_index: int, wire: WireMessage, message: Message | Fragment, entry: bytes) -> None:
        try:
            if isinstance(message, Fragment):
                if self.directory.replay_fragment(wire, message, entry).signer is not None:
                    self._report.message_signatures += 1
                if message.public_key is not None:
                    self.enrolments[leaf_index] = hash_leaf(entry)
                return
            if isinstance(message, BurnDown) and self.directory.hidden_names(message):
                self.directory.replay(wire, message, entry)
                return
            signer = self.directory.check(wire, message)
            if not isinstance(message, RevokeKeyThirdParty):
                self._report.message_signatures += 1
            self.directory.accept(leaf_index, wire, message, signer, entry)
            if isinstance(message, AddKey):
                self.enrolments[leaf_index] = hash_leaf(entry)
        except MessageRejected as error:
            name = _REFUSALS.get(error.code, "BadTransition")
            detail = f"; {error.hint}" if error.hint else ""
            raise Invalid(name, f"{wire.action}: {error.message} ({error.code}{detail})") from error

    def _submit_signatures(self, batch: Sequence[tuple[int, LogEntry]]) -> None:
        leaf_keys = self._leaf_keys
        if leaf_keys is None:
            raise AssertionError("no leaf signature can be checked without leaf keys")

        def work() -> list[Finding]:
            return [finding for index, entry in batch for finding in _check_leaf_signature(index, entry, leaf_keys)]

        def settle(failed: int) -> None:
            self._report.leaf_signatures += len(batch) - failed

        self._tasks.append(_Task(batch[-1][0], self._pool.submit(work), settle))

    def _submit_commitments(self, record: PublicRecord, wire: WireMessage) -> None:
        dialect, root = self.dialect, wire.recent_root
        if dialect is None or root is None:
            return
        for name in wire.encrypted:
            text = record.plain[name]
            if text is None:
                continue
            self._report.commitments.total += 1
            if self._chosen is not None and record.leaf_index not in self._chosen:
                continue

            def work(name: str = name, text: str = text) -> list[Finding]:
                try:
                    check_commitment(dialect, name, wire.body[name], text, root)
                except KtlogError as error:
                    return [finding_from(error, "PlaintextMismatch", record.leaf_index)]
                return []

            self._tasks.append(_Task(record.leaf_index, self._pool.submit(work), self._count_commitment))

    def _count_commitment(self, _failed: int) -> None:
        self._report.commitments.checked += 1


def _check_leaf_signature(leaf_index: int, entry: LogEntry, leaf_keys: Mapping[bytes, bytes]) -> list[Finding]:
    public_key = leaf_keys.get(entry.key_hash)
    if public_key is None:
        what = "the entry names a leaf key that the log does not publish"
    else:
        try:
            verify_mldsa44(public_key, entry.signature, entry.message_hash)
            return []
        except KtlogError:
            what = "the leaf key that the entry names did not sign it"
    return [Finding("BadLeafSignature", "Invalid", what, leaf_index)]


def _name_bad_message(dialect: Dialect, preimage: bytes) -> str:
    """Which check a published message failed that could not be read."""
    try:
        wire = parse_wire(dialect, preimage)
    except MessageRejected as error:
        return "BadMessageSignature" if error.code == "bad_token_signature" else "BadMessage"
    return "BadMessage" if wire.preimage == preimage else "NotCanonical"
