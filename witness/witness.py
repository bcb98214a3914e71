"""One witness: judge, sign, record, and only then answer. No HTTP in here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from ktlog import durable
from ktlog.errors import Conflict, EncodingError, KtlogError, StoreError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.encoding import encode_base64
from ktlog.tlog.evidence import format_evidence
from ktlog.tlog.note import Signer, format_signature_line
from ktlog.words import some
from witness.decide import RETIRED_KEY, TEXT, Accept, Cosigned, Refuse, Request, decide, parse_request, refuse
from witness.limits import Limits
from witness.mark import MARK_SYNCED, MARK_WRITTEN
from witness.store import AFTER_COMMIT, BEFORE_COMMIT, Log, WitnessStore
from witness.subtree import decide_subtree, parse_subtree_request
from witness.verifier import Verifier

CHECKED = "witness.checked"
#: Every named point of an accepted request, in order, for tests that stall or kill there:
#: judged and signed / written but not committed / committed and not counted by the mark (two) / not answered.
HOOKS = (CHECKED, BEFORE_COMMIT, MARK_WRITTEN, MARK_SYNCED, AFTER_COMMIT)

#: How often a request is judged anew because others of the same origin were faster.
MAX_ATTEMPTS = 8

_LOG = logging.getLogger("ktlog.witness")


@dataclass(frozen=True)
class Answer:
    """What goes back over HTTP. ``reason`` is the stable name of a refusal, else empty.

    about: the checkpoint that was submitted, once it parsed; for counting and logging, and never believed.
    """

    status: int
    body: bytes
    content_type: str = TEXT
    reason: str = ""
    retry_after: int = 0
    """Seconds, for a header; 0: none."""
    about: Checkpoint | None = None


class Later(Protocol):
    """Someone who is answered when it is time."""

    def answer(self, answer: Answer, /) -> None: ...

    def run(self, work: Callable[[], None], /) -> None:
        """Have *work* done in a thread that may wait."""


class Witness:
    """One witness: its record, its keys, its clock. Safe to use from many threads.

    Args:
        limits: how often logs may submit.
        verifier: stands between judgement and signature, and signs for no other log than those that it replays.
    """

    def __init__(
        self,
        store: WitnessStore,
        signers: Sequence[Signer],
        *,
        clock: Callable[[], int] = lambda: int(time.time()),
        reach: Callable[[str], None] = durable.reach,
        verifier: Verifier | None = None,
        limits: Limits | None = None,
    ) -> None:
        self.store = store
        self.signers = tuple(signers)
        self._clock = clock
        self._reach = reach
        self.verifier = verifier
        self._limits = Limits() if limits is None else limits

    def add_checkpoint(self, body: bytes, *, counted: bool = False) -> Answer:
        """Judge one submission; what it answers is on the disk by the time it returns.

        counted: it was, against its log's allowance.
        """
        try:
            begun = self._begin(body, self._parse(body), counted=counted)
            if isinstance(begun, Answer):
                return self._for_strangers(begun)
            try:
                # A verifier takes its time, and nobody is to wait for it.
                with nullcontext() if self.verifier is not None else self.store.recording():
                    answer = self._sign(begun)
            finally:
                self._release(begun)
        except (EncodingError, StoreError) as error:
            answer = _failed(error)
        return self._for_strangers(answer)

    def add_checkpoints(self, submissions: Sequence[tuple[bytes, Later]]) -> None:
        """As ``add_checkpoint`` of each, without waiting for the disk: each is answered when it is time.

        Not for a verifier. It raises nothing.
        """
        begun: list[tuple[_Begun, Later]] = []
        # All are read, then all are judged, for the reason that they are signed key by key.
        parsed = _each(self._parse, [body for body, _ in submissions])
        for (body, later), submission in zip(submissions, parsed, strict=True):
            try:
                if isinstance(submission, Exception):
                    raise submission
                found = self._begin(body, submission, counted=False)
            except Exception as error:
                found = _failed(error)
            if isinstance(found, Answer):
                self._give(later, found)
            else:
                begun.append((found, later))
        if begun:
            with self.store.recording():
                self._sign_all(begun)

    def _sign_all(self, begun: Sequence[tuple[_Begun, Later]]) -> None:
        """Sign what was begun and leave it to be recorded, and answered."""
        ready = []
        made = self._signatures([one.judgement for one, _ in begun])
        for (one, later), lines in zip(begun, made, strict=True):
            try:
                if isinstance(lines, Exception):
                    raise lines
                cosigned, cosignatures = _compose(one.judgement, lines)
                self._reach(CHECKED)
            except Exception as error:
                self._release(one)
                self._give(later, _failed(error))
                continue
            ready.append((one, later, cosigned, Answer(200, cosignatures, about=cosigned.checkpoint)))
        if not ready:
            return
        try:
            self.store.record_later([
                (cosigned, one.log.key_changes, partial(self._recorded, one, answer, later))
                for one, later, cosigned, answer in ready
            ])
        except Exception as error:  # there is no thread to do so, and none of them was taken
            for one, later, _, _ in ready:
                self._release(one)
                self._give(later, _failed(error))

    def _signatures(self, judgements: Sequence[Accept]) -> list[list[bytes] | Exception]:
        """Our signature lines for each, or why there are none. Key by key, because that is faster (together.py)."""
        made: list[list[bytes] | Exception] = [[] for _ in judgements]
        for signer in self.signers:
            # Between two signatures as little as can be: what is to be signed comes before, and the lines after.
            messages = _each(lambda one, by=signer: by.message(one.text, one.time, one.checkpoint), judgements)
            signatures = _each(signer.private_key.sign, messages)
            for number, (judgement, signature) in enumerate(zip(judgements, signatures, strict=True)):
                lines = made[number]
                if isinstance(lines, list):
                    if isinstance(signature, Exception):
                        made[number] = signature
                    else:
                        lines.append(format_signature_line(signer.line(signature, judgement.time)))
        return made

    def _give(self, later: Later, answer: Answer) -> None:
        """Answer at once."""
        try:
            later.answer(self._for_strangers(answer))
        except Exception:
            _LOG.exception("an answer could not be given")

    def _for_strangers(self, answer: Answer) -> Answer:
        """*answer*, or another if it is a failure and there were too many of them."""
        if answer.status in _STRANGERS:
            wait = self._limits.take_unknown()
            if wait:
                return _too_many("TooManyFailures", "too many requests fail here, by whomever", wait)
        return answer

    def _parse(self, body: bytes) -> Request:
        self.store.refuse_poisoned()
        return parse_request(body)

    def _begin(self, body: bytes, submission: Request, *, counted: bool) -> Answer | _Begun:
        """Judge one submission. What is to be signed is in hand, until ``_release``.

        Raises:
            StoreError.
        """
        origin = submission.checkpoint.origin
        log, judgement = self._judge(submission)
        if log is None or isinstance(judgement, Refuse):
            return self._refused(judgement, submission.checkpoint)
        latest = log.latest
        grows = latest is None or latest.checkpoint.size < judgement.checkpoint.size
        wait = 0 if counted else self._limits.take(origin, log.per_day, growth=grows)
        if wait:
            what = f"{origin} may submit {some(log.per_day, 'time')} a day"
            return _too_many("TooManySubmissions", what, wait, submission.checkpoint)
        if not self._limits.admit(origin, growth=grows):
            what = f"too many submissions for {origin} are being worked on"
            return _too_many("TooManyAtOnce", what, 1, submission.checkpoint)
        return _Begun(body, submission, log, judgement, grows)

    def _release(self, begun: _Begun) -> None:
        self._limits.release(begun.log.origin, growth=begun.grows)

    def _recorded(self, begun: _Begun, answer: Answer, later: Later, error: KtlogError | None) -> None:
        """It is on the disk, if there is no *error*; then, and not before, it may be answered."""
        self._release(begun)
        if error is None:
            later.answer(answer)
        elif isinstance(error, Conflict):  # another was faster: from the beginning, in a thread that may wait
            later.run(lambda: later.answer(self.add_checkpoint(begun.body, counted=True)))
        else:
            later.answer(_failed(error))

    def _sign(self, begun: _Begun) -> Answer:
        """Sign and record, judging anew as often as others of the same origin are faster."""
        submission, log, judgement = begun.submission, begun.log, begun.judgement
        origin = log.origin
        for _ in range(MAX_ATTEMPTS):
            if self.verifier is not None:
                refusal = self.verifier.review(judgement, 0 if log.latest is None else log.latest.checkpoint.size)
                if refusal is not None:
                    return answer_of(refusal, judgement.checkpoint)
                # The check took its time, and a cosignature says what is true when it is made.
                judgement = replace(judgement, time=max(judgement.time, self._clock()))
            cosigned, cosignatures = _compose(judgement, [_signature(signer, judgement) for signer in self.signers])
            self._reach(CHECKED)
            try:
                self.store.record_checkpoint(cosigned, log.key_changes)
            except Conflict:  # the judgement rested on a record that is no longer the latest
                again, judged = self._judge(submission)
                if again is None or isinstance(judged, Refuse):
                    return self._refused(judged, submission.checkpoint)
                log, judgement = again, judged
                continue
            return Answer(200, cosignatures, about=cosigned.checkpoint)
        busy = refuse(503, "Busy", f"too many submissions for {origin} at once: try again")
        return answer_of(busy, submission.checkpoint)

    def _judge(self, submission: Request) -> tuple[Log | None, Accept | Refuse]:
        """The judgement, and what it rests on.

        Memory will do to accept, because recording compares; a refusal rests on the record itself.
        """
        origin = submission.checkpoint.origin
        if not self._may_sign_for(origin):
            return None, decide(submission, None, (), self._clock())
        recalled = self.store.recall(origin)
        if recalled is not None:
            judgement = self._judge_by(submission, recalled)
            if isinstance(judgement, Accept):
                return recalled, judgement
        log = self.store.log(origin)
        if log is None:
            return None, decide(submission, None, (), self._clock())
        if (
            recalled is not None and judgement.status == 403 and judgement.reason != RETIRED_KEY
            and self.store.recall(origin) == recalled
        ):
            return log, judgement  # a forgery is not worth verifying twice
        return log, self._judge_by(submission, log)

    def _judge_by(self, submission: Request, log: Log) -> Accept | Refuse:
        if log.frozen is not None:
            return _frozen(log.origin)
        return decide(submission, log.latest, log.vkeys, self._clock(), log.retired)

    def _refused(self, judgement: Refuse, checkpoint: Checkpoint) -> Answer:
        self._keep_evidence(judgement, checkpoint, self._clock())
        return answer_of(judgement, checkpoint)

    def sign_subtree(self, body: bytes) -> Answer:
        """Cosign a part of a tree that was cosigned before; nothing is recorded."""
        return self._for_strangers(self._sign_subtree(body))

    def _sign_subtree(self, body: bytes) -> Answer:
        try:
            self.store.refuse_poisoned()
            asked = parse_subtree_request(body)
            origin = asked.checkpoint.origin
            log = self.store.log(origin) if self._may_sign_for(origin) else None
            if log is not None and log.frozen is not None:
                return answer_of(_frozen(origin), asked.checkpoint)
            judgement = decide_subtree(asked, log is not None, [signer.vkey for signer in self.signers])
        except EncodingError as error:
            return answer_of(refuse(400, error.name, error.message))
        if isinstance(judgement, Refuse):
            return answer_of(judgement, asked.checkpoint)
        wait = self._limits.take_subtree(origin)
        if wait:
            return _too_many("TooManySubtrees", f"too many subtrees of {origin} are asked for", wait, asked.checkpoint)
        (key,) = (signer.private_key for signer in self.signers if signer.vkey == judgement.vkey)
        signature = encode_base64(key.sign(judgement.message))
        return Answer(200, f"{signature}\n".encode("ascii"), about=asked.checkpoint)

    def _may_sign_for(self, origin: str) -> bool:
        return self.verifier is None or self.verifier.signs_for(origin)

    def _keep_evidence(self, judgement: Refuse, checkpoint: Checkpoint, now: int) -> None:
        if judgement.evidence is None:
            return
        # What a verifier caught, it refuses for good by its own record, and says why.
        freeze = self.verifier is None
        if self.store.record_evidence(judgement.evidence, checkpoint.size, now, freeze=freeze):
            _LOG.error("FORK: %s signed two roots at size %d; kept as evidence",
                       checkpoint.origin, checkpoint.size)
        if self.verifier is not None:
            document = format_evidence(judgement.evidence)
            self.verifier.caught(checkpoint.origin, "TwoRoots", f"two roots for {checkpoint.size} leaves", document)


@dataclass(frozen=True, slots=True)
class _Begun:
    """A submission that may be signed. log: what the judgement rests on. grows: it is of a new size."""

    body: bytes
    submission: Request
    log: Log
    judgement: Accept
    grows: bool


def _each(work: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
    """What *work* makes of each, or why it makes nothing; an exception among *items* stays as it is."""
    found = []
    for item in items:
        try:
            found.append(item if isinstance(item, Exception) else work(item))
        except Exception as error:
            found.append(error)
    return found


def _signature(signer: Signer, judgement: Accept) -> bytes:
    """Its line. Nothing may leave before it is kept."""
    return format_signature_line(signer.sign(judgement.text, judgement.time, judgement.checkpoint))


def _compose(judgement: Accept, lines: Sequence[bytes]) -> tuple[Cosigned, bytes]:
    """The record to keep, and our own signature lines together. Nothing may leave before it is kept."""
    ours = b"".join(lines)
    theirs = b"".join(format_signature_line(verified.line) for verified in judgement.log_signatures)
    cosigned = Cosigned(
        revision=judgement.expected_revision + 1,
        checkpoint=judgement.checkpoint,
        time=judgement.time,
        # What format_note would make of them, which reads it all back; here every line was read or just made.
        note=judgement.text + b"\n" + theirs + ours,
    )
    return cosigned, ours


def _failed(error: Exception) -> Answer:
    """The answer to a submission that came to nothing."""
    if isinstance(error, EncodingError):
        return answer_of(refuse(400, error.name, error.message))
    if isinstance(error, StoreError):
        _LOG.error("no answer to a submission: %s", error)
        return answer_of(refuse(503, error.name, "this witness cannot sign, or cannot write its record: try later"))
    _LOG.error("no answer to a submission", exc_info=error)
    return answer_of(refuse(500, "Failed", "this witness failed: try later"))


def _frozen(origin: str) -> Refuse:
    return refuse(403, "LogFrozen", f"{origin} signed two trees of one size; nothing more is signed for it here")


#: Answers to those who have not shown that they speak for a log that is followed.
_STRANGERS = (400, 403, 404)


def _too_many(reason: str, message: str, wait: int, about: Checkpoint | None = None) -> Answer:
    refusal = refuse(429, reason, f"{message}: try again in {wait} s")
    return replace(answer_of(refusal, about), retry_after=wait)


def answer_of(refusal: Refuse, about: Checkpoint | None = None) -> Answer:
    return Answer(refusal.status, refusal.body, refusal.content_type, refusal.reason, about=about)
