"""The semantic tier: entries one after the other, what each commits to, who signed it, and what it may do.

The cheap and serial part runs here: parsing, the preimage, the message signature and the fold of
the directory's rules. The Argon2id commitments, which are nearly all of the work, run on every core
beside it. An entry that breaks a rule is a finding and has no effect. What an entry is in itself,
the structural tier checks (:mod:`auditor.structural`).

What an erasure withheld is replayed from what is left (:mod:`ktlog.pkd.withheld`). An entry that
changes somebody on the strength of withheld text is no finding: it is reported as taken.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Container, Iterable, Mapping, MutableMapping, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from functools import partial

from auditor.events import Event, events_of
from auditor.report import Finding, Report, finding_from
from auditor.resting import Resting
from ktlog.client.publicfiles import PublicRecord, parse_public_record
from ktlog.errors import EncodingError, Invalid, KtlogError, MessageRejected
from ktlog.pkd.actors import Actor, Change
from ktlog.pkd.attributes import check_commitment
from ktlog.pkd.dialects import DIALECTS, Dialect
from ktlog.pkd.entry import LogEntry, parse_entry
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
from ktlog.pkd.state import touched_by
from ktlog.pkd.withheld import Fragment, read_fragment
from ktlog.tlog.tree import hash_leaf

# What a directory's refusal of a logged message is called; anything else broke a rule of the state.
_REFUSALS = {
    "duplicate_message": "DuplicateMessage",
    "merkle_root_stale": "StaleRoot",
    "bad_signature": "BadMessageSignature",
}

# Attributes that name actors.
_NAMES = ("actor", "new-actor", "old-actor", "operator")


@dataclass(frozen=True)
class _Task:
    """Work under way for entries up to *leaf_index*; *settle* is told how many findings it made."""

    leaf_index: int
    future: Future[list[Finding]]
    settle: Callable[[int], None]


_NOTHING: Future[list[Finding]] = Future()
_NOTHING.set_result([])


class Replay:
    """The state of the directory after the entries so far, and the work still under way.

    Args:
        directory: where the replay stands; it goes on from there.
        erasures_known: False when the erasure log could not be read.
        chosen: leaf indexes whose commitments to check; None for every one.
        pool: runs the work that releases the interpreter's lock.
        progress: called with the number of entries done.
        enrolments: leaf hash of every AddKey by leaf index: what the proof beside a key in an answer is about.
        dialect: name of the log's, where an earlier audit read entries of it.
        opened_to: entries below this had their commitments opened before.
        on_event: is given what each entry did that held. on_change: the same as the rules have it, and the record.
    """

    def __init__(
        self, directory: Directory, erasures_known: bool, chosen: Container[int] | None, pool: Executor,
        report: Report, progress: Callable[[int], None], *, enrolments: MutableMapping[int, bytes] | None = None,
        dialect: str = "", opened_to: int = 0, on_event: Callable[[Event], None] | None = None,
        on_change: Callable[[Change, PublicRecord], None] | None = None,
    ) -> None:
        self.directory = directory
        self.stopped = False
        self._erasures_known = erasures_known
        self.dialect: Dialect | None = DIALECTS[dialect] if dialect else None
        self.enrolments: MutableMapping[int, bytes] = {} if enrolments is None else enrolments
        self._chosen = chosen
        self._opened_to = opened_to
        self._on_event = on_event
        self._on_change = on_change
        self._pool = pool
        self._report = report
        self._progress = progress
        self._tasks: deque[_Task] = deque()
        self._done = 0
        self.resting = Resting()

    def stop(self, leaf_index: int) -> None:
        """Give up following the directory from *leaf_index* on: what was published there cannot be read."""
        self.stopped = True
        self._report.skip(
            f"Messages, commitments and state from entry {leaf_index} on: their records could not be read."
        )

    def page(
        self, first: int, entries: Sequence[bytes], lines: Sequence[bytes] | None
    ) -> None:
        """Check entries with their records; *lines* is None when there are none to be had."""
        for offset, entry in enumerate(entries):
            leaf_index = first + offset
            parsed = self._parse_entry(entry)
            if self.stopped or lines is None:
                continue
            self._entry(leaf_index, entry, parsed, lines[offset])
            self._report.entries_audited += 1
        self._tasks.append(_Task(first + len(entries) - 1, _NOTHING, lambda _: None))

    @property
    def under_way(self) -> int:
        """How many pieces of work nobody has waited for yet."""
        return len(self._tasks)

    def wait(self, count: int) -> None:
        """Wait for that many, the oldest: so that no more than two pages are ever in memory."""
        self._drain(count)

    def settle(self) -> None:
        """Wait for all the work under way."""
        self._drain(len(self._tasks))

    def finish(self) -> None:
        """Wait for all the work under way, and judge the erasure log by what was read."""
        self.settle()
        self._report.taken = dict(self.directory.taken)
        if not self.stopped and self._erasures_known:
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

    def _parse_entry(self, entry: bytes) -> LogEntry | None:
        """None for one that the structural tier finds fault with."""
        try:
            dialect, parsed = parse_entry(entry)
        except EncodingError:
            return None
        if self.dialect not in (None, dialect):
            return None
        self.dialect = dialect
        return parsed

    def _entry(self, leaf_index: int, entry: bytes, parsed: LogEntry | None, line: bytes) -> None:
        """Check what is published beside one entry, and let it take effect if it holds."""
        record, names, anybody = None, tuple[str, ...](), False
        try:
            record = parse_public_record(line, leaf_index)
            if parsed is not None:
                wire, message = self._read_message(parsed, record)
                if isinstance(message, Fragment) and not self._erasures_known:
                    self.stop(leaf_index)
                    return
                names, anybody = self._names(message), isinstance(message, RevokeKeyThirdParty)
                before = self._before(names)
                change = self._transition(leaf_index, wire, message, entry)
                self._note(leaf_index, record, names, failed=False)
                self._tell(leaf_index, wire, message, before, change)
                if self._on_change is not None:
                    self._on_change(change, record)
                return
        except KtlogError as error:
            self._report.findings.add(finding_from(error, leaf_index=leaf_index))
            self._note(leaf_index, record, names, failed=True, by_anybody=anybody)
        self.directory.append_void(leaf_index, entry)

    def _note(
        self, leaf_index: int, record: PublicRecord | None, names: Sequence[str], *, failed: bool,
        by_anybody: bool = False,
    ) -> None:
        hidden = record is not None and None in record.plain.values()
        if hidden and not names and record is not None:
            names = [text for name in _NAMES if (text := record.plain.get(name)) is not None]
        self.resting.note(leaf_index, names, failed=failed, hidden=hidden, by_anybody=by_anybody)

    def _names(self, message: Message | Fragment) -> tuple[str, ...]:
        """The actors that a message is about, as far as they can be read."""
        if isinstance(message, Fragment):
            return tuple(name for name in message.names.values() if name is not None)
        return tuple(touched_by(message, self.directory.holders))

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

    def _transition(
        self, leaf_index: int, wire: WireMessage, message: Message | Fragment, entry: bytes
    ) -> Change:
        """What the entry did."""
        directory = self.directory
        try:
            if isinstance(message, Fragment):
                result = directory.replay_fragment(wire, message, entry)
                if result.signer is not None:
                    self._report.message_signatures += 1
                if message.public_key is not None:
                    self.enrolments[leaf_index] = hash_leaf(entry)
                return result.change
            if isinstance(message, BurnDown) and directory.hidden_names(message):
                return directory.replay(wire, message, entry)
            signer = directory.check(wire, message)
            if not isinstance(message, RevokeKeyThirdParty):
                self._report.message_signatures += 1
            change = directory.accept(leaf_index, wire, message, signer, entry)
            if isinstance(message, AddKey):
                self.enrolments[leaf_index] = hash_leaf(entry)
            return change
        except MessageRejected as error:
            name = _REFUSALS.get(error.code, "BadTransition")
            detail = f"; {error.hint}" if error.hint else ""
            raise Invalid(name, f"{wire.action}: {error.message} ({error.code}{detail})") from error

    def _before(self, names: Iterable[str]) -> dict[str, Actor | None]:
        """The actors that an entry may touch, as they are; nothing when nobody asks for events."""
        return {} if self._on_event is None else {name: self.directory.actor(name) for name in names}

    def _tell(
        self, leaf_index: int, wire: WireMessage, message: Message | Fragment, before: Mapping[str, Actor | None],
        change: Change,
    ) -> None:
        if self._on_event is None:
            return
        after = {actor.actor_id: actor for actor in change.actors}
        for event in events_of(leaf_index, wire, message, before, after, origin=self.directory.origin):
            self._on_event(event)

    def _submit_commitments(self, record: PublicRecord, wire: WireMessage) -> None:
        dialect, root = self.dialect, wire.recent_root
        if dialect is None or root is None:
            return
        for name in wire.encrypted:
            text = record.plain[name]
            if text is None:
                continue
            self._report.commitments.total += 1
            if record.leaf_index < self._opened_to:
                self._report.commitments_before += 1
                continue
            if self._chosen is not None and record.leaf_index not in self._chosen:
                continue
            work = partial(_open_commitment, record.leaf_index, dialect, name, wire.body[name], text, root)
            self._tasks.append(_Task(record.leaf_index, self._pool.submit(work), self._count_commitment))

    def _count_commitment(self, _failed: int) -> None:
        self._report.commitments.checked += 1


def _open_commitment(
    leaf_index: int, dialect: Dialect, name: str, committed: str, text: str, root: str
) -> list[Finding]:
    try:
        check_commitment(dialect, name, committed, text, root)
    except KtlogError as error:
        return [finding_from(error, "PlaintextMismatch", leaf_index)]
    return []


def _name_bad_message(dialect: Dialect, preimage: bytes) -> str:
    """Which check a published message failed that could not be read."""
    try:
        wire = parse_wire(dialect, preimage)
    except MessageRejected as error:
        return "BadMessageSignature" if error.code == "bad_token_signature" else "BadMessage"
    return "BadMessage" if wire.preimage == preimage else "NotCanonical"
