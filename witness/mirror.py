"""One mirror: take a log's checkpoints and entries from whoever has them, and cosign what is held. No HTTP in here.

A checkpoint that extends the pending one takes its place; nothing is signed. Entries are verified package by package
against a pending checkpoint, and are on the disk before they count. When all of a checkpoint's are, its tiles are
completed, read back, and only then it is signed, recorded, and answered. Whatever is cut short goes on from there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ktlog import durable
from ktlog.errors import Conflict, EncodingError, Invalid, StoreError
from ktlog.tlog.checkpoint import format_checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.note import Note, Signer, format_note, format_signature_line, open_note, parse_note
from ktlog.words import some
from witness.decide import RETIRED_KEY, Accept, Cosigned, Refuse, decide, parse_request, refuse
from witness.limits import Limits
from witness.mirrorfiles import MirrorFiles, Verified, served
from witness.mirrorstore import AFTER_COMMIT, BEFORE_COMMIT, PENDING_COMMITTED, MirrorStore
from witness.mirrorwire import (
    CLIENT_PACKAGES,
    MIRROR_INFO,
    Mirrored,
    Pending,
    ReadBytes,
    Upload,
    conflict,
    decide_upload,
    describe,
    open_ticket,
    parse_upload,
    read_package,
    spans,
    verify_package,
)
from witness.reading import Log, hash_origin
from witness.store import WitnessStore
from witness.subtree import decide_subtree, parse_subtree_request
from witness.uploads import Uploads
from witness.witness import Answer, answer_of

SAVED = "mirror.saved"
HELD = "mirror.held"
COMPLETED = "mirror.completed"
SIGNED = "mirror.signed"
#: Every named point of an upload, in order, for tests that stall or kill there: its checkpoint is pending / entries
#: are on the disk / and recorded / the partial tiles are too / signed / written but not committed / not answered.
HOOKS = (PENDING_COMMITTED, SAVED, HELD, COMPLETED, SIGNED, BEFORE_COMMIT, AFTER_COMMIT)

MAX_ATTEMPTS = 8

#: Uploads in hand. Each holds a thread.
UPLOADS_AT_ONCE = 8
#: What is read of one request before it is answered with 202, so that none holds its thread for long.
MAX_PACKAGES = 2 * CLIENT_PACKAGES
MAX_BYTES = 64 * 1024 * 1024
MAX_SECONDS = 15.0
#: Verified packages are written when they have so many bytes together: each write is some syncs.
BATCH_BYTES = 4 * 1024 * 1024

#: The same checkpoint is signed again, at a later time, when its cosignatures are so old; else they are sent again.
FRESH_SECONDS = 60

_LOG = logging.getLogger("ktlog.witness.mirror")


class Mirror:
    """One mirror: its record, its files, its keys. Safe to use from many threads.

    Args:
        witness_store: the record of the witness beside it: it knows the logs' keys, and which are frozen.
        ticket_key: 32 bytes.
        clock: Unix seconds. now: seconds that only grow.
    """

    def __init__(
        self, store: MirrorStore, logs: Path, signers: Sequence[Signer], ticket_key: bytes, witness_store: WitnessStore,
        *, clock: Callable[[], int] = lambda: int(time.time()), now: Callable[[], float] = time.monotonic,
        reach: Callable[[str], None] = durable.reach,
    ) -> None:
        self.store = store
        self.signers = tuple(signers)
        self._logs = logs
        self._ticket_key = ticket_key
        self._witness_store = witness_store
        self._clock, self._now, self._reach = clock, now, reach
        self._limits = Limits()
        self.uploads = Uploads(UPLOADS_AT_ONCE)
        self._lock = threading.Lock()
        self._opened: dict[str, tuple[MirrorFiles, threading.Lock]] = {}

    def close(self) -> None:
        """Close both records."""
        self.store.close()
        self._witness_store.close()

    def check(self) -> None:
        """Hold the files against the record: of each log the right edge of the mirror checkpoint's tree.

        Raises:
            StoreError: "Corrupt".
        """
        for log in self.store.logs():
            if log.latest is not None:
                self._files(log.origin)[0].check(log.latest.checkpoint)

    # --- checkpoints

    def add_checkpoint(self, body: bytes) -> Answer:
        """Judge a checkpoint as a witness would, and make it the pending one; the mirror signs nothing here."""
        return self._answered(lambda: self._add_checkpoint(body))

    def _add_checkpoint(self, body: bytes) -> Answer:
        self.store.refuse_poisoned()
        submission = parse_request(body)
        origin = submission.checkpoint.origin
        for _ in range(MAX_ATTEMPTS):
            log, followed = self._log(origin)
            if log is None or followed is None:
                return answer_of(decide(submission, None, (), self._clock()))
            if followed.frozen is not None:
                return _frozen(origin)
            judgement = decide(submission, log.pending, followed.vkeys, self._clock(), followed.retired)
            if isinstance(judgement, Refuse):
                self._keep_evidence(judgement, origin, submission.checkpoint.size)
                return answer_of(judgement)
            grows = log.pending is None or log.pending.checkpoint.size < judgement.checkpoint.size
            wait = self._limits.take(origin, followed.per_day, growth=grows)
            if wait:
                what = f"{origin} may submit {some(followed.per_day, 'time')} a day"
                return _too_many("TooManySubmissions", what, wait)
            with suppress(Conflict):  # another came first: judge anew
                self.store.record_pending(_pending(judgement))
                return Answer(200, b"")
        return _busy(f"too many submissions for {origin} at once")

    def _keep_evidence(self, judgement: Refuse, origin: str, size: int) -> None:
        if judgement.evidence is None:
            return
        if self._witness_store.record_evidence(judgement.evidence, size, self._clock(), freeze=True):
            _LOG.error("FORK: %s signed two roots at size %d; kept as evidence", origin, size)

    # --- entries

    def add_entries(self, read: ReadBytes, hang_up: Callable[[], None] = lambda: None) -> Answer:
        """Take an upload, reading its body as it comes. What it answers is on the disk by the time it returns.

        hang_up: has *read* end soon; called when it is slow, and others want its place (uploads.py).
        """
        upload = self.uploads.begin(read, hang_up)
        if upload is None:
            return _busy("too many uploads at once")
        try:
            return self._answered(lambda: self._add_entries(upload.read))
        finally:
            self.uploads.end(upload)

    def _add_entries(self, read: ReadBytes) -> Answer:
        self.store.refuse_poisoned()
        upload = parse_upload(read)
        log, followed = self._log(upload.origin)
        base = None if log is None else self._base(log, upload)
        refusal = decide_upload(upload, log, base, self._ticket_key)
        if refusal is not None:
            return answer_of(refusal)
        if log is None or followed is None or base is None:
            raise AssertionError("an upload was accepted for nothing")
        if followed.frozen is not None:
            return _frozen(log.origin)
        if not _is_signed(base, followed):
            return _retired(log.origin)
        if not self._limits.admit(log.origin, growth=True):
            return _too_many("TooManyAtOnce", f"too many uploads for {log.origin} are in hand", 1)
        try:
            return self._receive(upload, log, base, read)
        finally:
            self._limits.release(log.origin, growth=True)

    def _base(self, log: Mirrored, upload: Upload) -> Pending | None:
        """The checkpoint that an upload is up to, from the record or from its ticket."""
        known = self.store.earlier(log.origin, upload.end)
        if known is not None:
            return known
        for one in (log.pending, log.latest):
            if one is not None and one.checkpoint.size == upload.end:
                return Pending(one.checkpoint, one.note)
        return open_ticket(self._ticket_key, upload.ticket, log.origin, upload.end)

    def _receive(self, upload: Upload, log: Mirrored, base: Pending, read: ReadBytes) -> Answer:
        """Verify and save package by package, until all are there, or the body ends, or it is enough for once."""
        deadline = self._now() + MAX_SECONDS
        batch: list[Verified] = []
        waiting = taken = packages = 0
        whole, refusal = True, refuse(400, "NothingToKeep", "the body ends before its first package does")
        for span in spans(upload.start, upload.end):
            if packages >= MAX_PACKAGES or taken > MAX_BYTES or (packages and self._now() > deadline):
                whole = False
                break
            if log.stored_bytes + taken > log.max_bytes and span.end > log.next_entry:
                whole, refusal = False, refuse(507, "LogTooLarge", f"{log.origin} has all the room that it may have")
                break
            try:
                package = read_package(read, span.end - span.start)
            except EncodingError as error:  # also where the client went away: what is verified stays
                whole, refusal = False, refuse(400, error.name, error.message)
                break
            before = self._files(log.origin)[0].entries(span.first, span.start, log.next_entry)
            try:
                leaves = verify_package(span, before, package, base.checkpoint)
            except Invalid as error:
                self._save(log.origin, batch)
                return answer_of(refuse(422, error.name, f"entries {span.start} to {span.end}: {error.message}"))
            batch.append(Verified(span, (*before, *package.entries), leaves))
            packages += 1
            size = sum(map(len, batch[-1].entries))
            waiting, taken = waiting + size, taken + size
            if waiting > BATCH_BYTES:
                self._save(log.origin, batch)
                batch, waiting = [], 0
        self._save(log.origin, batch)
        if whole:
            return self._commit(log.origin, base)
        if not packages:
            return answer_of(refusal)
        now_held = self.store.log(log.origin)
        return Answer(202, describe(base, (now_held or log).next_entry, self._ticket_key), MIRROR_INFO)

    def _save(self, origin: str, batch: Sequence[Verified]) -> None:
        """Write what is not there yet. Another upload may have been faster, with the same entries."""
        files, turn = self._files(origin)
        with turn:
            log = self.store.log(origin)
            new = [] if log is None else [package for package in batch if package.span.end > log.next_entry]
            if log is None or not new:
                return
            with self._writing_files():
                written = files.save(new, log.next_entry)
            self._reach(SAVED)
            self.store.record_held(origin, new[-1].span.end, written)
            self._reach(HELD)

    def _commit(self, origin: str, base: Pending) -> Answer:
        """Make *base*, all of whose entries are held, the mirror checkpoint, unless that is a later one."""
        files, turn = self._files(origin)
        with turn:
            log, followed = self._log(origin)
            if log is None or followed is None or followed.frozen is not None:  # since the upload began
                return _frozen(origin)
            if not _is_signed(base, followed):
                return _retired(origin)
            latest, checkpoint, now = log.latest, base.checkpoint, self._clock()
            if latest is not None and checkpoint.size < latest.checkpoint.size:
                newest = base if log.pending is None else Pending(log.pending.checkpoint, log.pending.note)
                return answer_of(conflict("SizeBehind", newest, log, self._ticket_key))
            if latest is not None and checkpoint == latest.checkpoint and now - latest.time < FRESH_SECONDS:
                return Answer(200, self._own_lines(latest.note))
            if now < (1 if latest is None else latest.time):
                return answer_of(refuse(503, "ClockBehind", "this mirror's clock is behind its own last cosignature"))
            old_size = 0 if latest is None else latest.checkpoint.size
            with self._writing_files():
                written = files.complete(old_size, checkpoint, log.next_entry)
            self._reach(COMPLETED)
            ours = b"".join(
                format_signature_line(signer.sign(format_checkpoint(checkpoint), now, checkpoint))
                for signer in self.signers
            )
            self._reach(SIGNED)
            note = self._log_note(base.note) + ours
            revision = 1 if latest is None else latest.revision + 1
            self.store.record_checkpoint(Cosigned(revision, checkpoint, now, note), written)
            freed = self._tidy(files, old_size, checkpoint.size)
            if freed:
                self.store.record_held(origin, checkpoint.size, -freed)
        return Answer(200, ours)

    def _tidy(self, files: MirrorFiles, old_size: int, new_size: int) -> int:
        try:
            return files.tidy(old_size, new_size)
        except StoreError as error:  # the disk holds more than it must, and all that it must
            _LOG.warning("partial tiles stay: %s", error)
            return 0

    # --- reading

    def note(self, origin_hash: str) -> bytes | None:
        """The mirror checkpoint, with the log's signatures and the mirror's own."""
        log = self.store.log_by_hash(origin_hash)
        return None if log is None or log.latest is None else log.latest.note

    def tile(self, origin_hash: str, path: str) -> bytes | None:
        """A tile or entry bundle within the mirror checkpoint.

        Raises:
            EncodingError: "BadTilePath".
        """
        log = self.store.log_by_hash(origin_hash)
        if log is None or log.latest is None or not served(path, log.latest.checkpoint.size):
            return None
        return self._files(log.origin)[0].read(path)

    def sign_subtree(self, body: bytes) -> Answer:
        """Cosign a part of a tree that this mirror cosigned before."""
        return self._answered(lambda: self._sign_subtree(body))

    def _sign_subtree(self, body: bytes) -> Answer:
        self.store.refuse_poisoned()
        asked = parse_subtree_request(body)
        log, followed = self._log(asked.checkpoint.origin)
        if followed is not None and followed.frozen is not None:
            return _frozen(asked.checkpoint.origin)
        judgement = decide_subtree(asked, log is not None, [signer.vkey for signer in self.signers])
        if isinstance(judgement, Refuse):
            return answer_of(judgement)
        wait = self._limits.take_subtree(asked.checkpoint.origin)
        if wait:
            return _too_many("TooManySubtrees", f"too many subtrees of {asked.checkpoint.origin} are asked for", wait)
        (key,) = (signer.private_key for signer in self.signers if signer.vkey == judgement.vkey)
        return Answer(200, f"{encode_base64(key.sign(judgement.message))}\n".encode("ascii"))

    def about(self) -> str:
        """The page for people: who this is, how to trust it, where to send what."""
        vkeys = "".join(f"  {signer.vkey}\n" for signer in self.signers)
        logs = "".join(f"  {hash_origin(log.origin)}  {log.origin}\n" for log in self.store.logs())
        return (
            f"{self.store.name}: a transparency-log mirror (C2SP tlog-mirror)\n\n"
            "It cosigns a checkpoint when it holds every entry of it, and shows them below. Submission prefix and\n"
            "monitoring prefix are the address of this page.\n\n"
            f"Verifier keys (Ed25519, type 04; ML-DSA-44, type 06):\n{vkeys}\nLogs mirrored:\n{logs}"
        )

    # --- inside

    def _answered(self, work: Callable[[], Answer]) -> Answer:
        try:
            answer = work()
        except EncodingError as error:
            answer = answer_of(refuse(400, error.name, error.message))
        except StoreError as error:
            _LOG.error("no answer to an upload: %s", error)
            answer = answer_of(refuse(503, error.name, "this mirror cannot write its record: try later"))
        if answer.status in (400, 403, 404):
            wait = self._limits.take_unknown()
            if wait:
                return _too_many("TooManyFailures", "too many requests fail here, by whomever", wait)
        return answer

    def _log(self, origin: str) -> tuple[Mirrored | None, Log | None]:
        log = self.store.log(origin)
        return log, None if log is None else self._witness_store.log(origin)

    def _files(self, origin: str) -> tuple[MirrorFiles, threading.Lock]:
        """The files of a log, and whose turn it is to write them."""
        with self._lock:
            if origin not in self._opened:
                self._opened[origin] = MirrorFiles(self._logs, hash_origin(origin)), threading.Lock()
            return self._opened[origin]

    @contextmanager
    def _writing_files(self) -> Iterator[None]:
        """After a failure in here nobody knows what is on the disk, and a second sync may lie: write no more."""
        self.store.refuse_poisoned()
        try:
            yield
        except BaseException as error:
            raise self.store.poison(error) from error

    def _own_lines(self, note: bytes) -> bytes:
        opened = open_note(parse_note(note), [signer.vkey for signer in self.signers])
        return b"".join(format_signature_line(one.line) for one in opened)

    def _log_note(self, note: bytes) -> bytes:
        """*note* without lines of our own, which the checkpoint has if it is signed again."""
        parsed, own = parse_note(note), {(signer.vkey.name, signer.vkey.key_id) for signer in self.signers}
        lines = tuple(line for line in parsed.signatures if (line.name, line.key_id) not in own)
        return format_note(Note(parsed.text, lines))


def _pending(judgement: Accept) -> Cosigned:
    theirs = tuple(verified.line for verified in judgement.log_signatures)
    note = format_note(Note(judgement.text, theirs))
    return Cosigned(judgement.expected_revision + 1, judgement.checkpoint, judgement.time, note)


def _is_signed(base: Pending, log: Log) -> bool:
    """Whether a key that is still trusted for the log signed it: some may be retired since it became pending."""
    return bool(open_note(parse_note(base.note), log.vkeys))


def _retired(origin: str) -> Answer:
    message = f"signed by no key that is still trusted for {origin}: send a newer checkpoint"
    return answer_of(refuse(403, RETIRED_KEY, message))


def _frozen(origin: str) -> Answer:
    return answer_of(refuse(403, "LogFrozen", f"{origin} signed two trees of one size; nothing more is taken here"))


def _busy(message: str) -> Answer:
    return answer_of(refuse(503, "Busy", f"{message}: try again"))


def _too_many(reason: str, message: str, wait: int) -> Answer:
    refused = refuse(429, reason, f"{message}: try again in {wait} s")
    return Answer(429, refused.body, refused.content_type, reason, wait)
