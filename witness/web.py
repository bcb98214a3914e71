"""The witness over HTTP: judge, sign, record, and only then answer.

======  ==============================  ====================================================
POST    /add-checkpoint                 C2SP tlog-witness v1.1; answers are drawn in decide.py
GET     /<sha256 of origin>/checkpoint  the latest cosigned checkpoint, for monitors
GET     /                               who this is, and its vkeys
GET     /replays                        of a verifier: how far it followed each log, as JSON
GET     /livez /readyz                  the process runs / would answer a submission
======  ==============================  ====================================================
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from ktlog import durable
from ktlog.errors import Conflict, EncodingError, StoreError, UsageError
from ktlog.tlog.checkpoint import Checkpoint
from ktlog.tlog.evidence import format_evidence
from ktlog.tlog.note import Note, Signer, format_note, format_signature_line
from ktlog.wire import httpd
from ktlog.wire.fetch import Fetcher
from witness.config import MAX_BODY_BYTES, THREADS, WORKERS, WitnessDir
from witness.decide import TEXT, Accept, Cosigned, Refuse, decide, parse_request, refuse
from witness.keys import load_signers
from witness.replays import ReplayStore
from witness.store import AFTER_COMMIT, BEFORE_COMMIT, WitnessStore
from witness.verifier import Verifier

CHECKED = "witness.checked"
#: Every named point of an accepted request, in order, for tests that stall or kill there:
#: judged and signed / written but not committed / committed but not answered.
HOOKS = (CHECKED, BEFORE_COMMIT, AFTER_COMMIT)

#: How often a request is judged anew because others of the same origin were faster.
MAX_ATTEMPTS = 8

#: Of a request for a log's pages: a full page of records may have some megabytes.
FETCH_SECONDS = 60.0

_LOG = logging.getLogger("ktlog.witness")


@dataclass(frozen=True)
class Answer:
    """What goes back over HTTP. ``reason`` is the stable name of a refusal, else empty."""

    status: int
    body: bytes
    content_type: str = TEXT
    reason: str = ""


class Witness:
    """One witness: its record, its keys, its clock. Safe to use from many threads.

    Args:
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
    ) -> None:
        self.store = store
        self.signers = tuple(signers)
        self._clock = clock
        self._reach = reach
        self.verifier = verifier

    def add_checkpoint(self, body: bytes) -> Answer:
        """Judge one submission; what it answers is on the disk by the time it returns."""
        try:
            answer = self._add_checkpoint(body)
        except EncodingError as error:
            answer = _answer(refuse(400, error.name, error.message))
        except StoreError as error:
            _LOG.error("no answer to a submission: %s", error)
            answer = _answer(refuse(503, error.name, "this witness cannot write its record: try later"))
        return answer

    def _add_checkpoint(self, body: bytes) -> Answer:
        self.store.check()
        submission = parse_request(body)
        origin = submission.checkpoint.origin
        for _ in range(MAX_ATTEMPTS):
            log = self.store.log(origin) if self._may_sign_for(origin) else None
            latest, log_vkeys = (None, ()) if log is None else (log.latest, log.vkeys)
            now = self._clock()
            judgement = decide(submission, latest, log_vkeys, now)
            if isinstance(judgement, Refuse):
                self._keep_evidence(judgement, submission.checkpoint, now)
                return _answer(judgement)
            if self.verifier is not None:
                refusal = self.verifier.review(judgement, 0 if latest is None else latest.checkpoint.size)
                if refusal is not None:
                    return _answer(refusal)
                # The check took its time, and a cosignature says what is true when it is made.
                judgement = replace(judgement, time=max(judgement.time, self._clock()))
            cosigned, cosignatures = self._cosign(judgement)
            self._reach(CHECKED)
            try:
                self.store.record_checkpoint(cosigned)
            except Conflict:
                continue  # the judgement rested on a record that is no longer the latest
            _LOG.info("cosigned %s at size %d", origin, cosigned.checkpoint.size)
            return Answer(200, cosignatures)
        return _answer(refuse(503, "Busy", f"too many submissions for {origin} at once: try again"))

    def _may_sign_for(self, origin: str) -> bool:
        return self.verifier is None or self.verifier.signs_for(origin)

    def _cosign(self, judgement: Accept) -> tuple[Cosigned, bytes]:
        """The record to keep, and our own signature lines. Nothing may leave before it is kept."""
        ours = tuple(signer.sign(judgement.text, judgement.time) for signer in self.signers)
        lines = tuple(verified.line for verified in judgement.log_signatures) + ours
        cosigned = Cosigned(
            revision=judgement.expected_revision + 1,
            checkpoint=judgement.checkpoint,
            time=judgement.time,
            note=format_note(Note(judgement.text, lines)),
        )
        return cosigned, b"".join(format_signature_line(line) for line in ours)

    def _keep_evidence(self, judgement: Refuse, checkpoint: Checkpoint, now: int) -> None:
        if judgement.evidence is None:
            return
        if self.store.record_evidence(judgement.evidence, checkpoint.size, now):
            _LOG.error("FORK: %s signed two roots at size %d; kept as evidence",
                       checkpoint.origin, checkpoint.size)
        if self.verifier is not None:
            document = format_evidence(judgement.evidence)
            self.verifier.caught(checkpoint.origin, "TwoRoots", f"two roots for {checkpoint.size} leaves", document)

    def about(self) -> str:
        """The page for people: who this is, how to trust it, where to send what."""
        vkeys = "".join(f"  {signer.vkey}\n" for signer in self.signers)
        kind, does = _WITNESS if self.verifier is None else _VERIFIER
        more = "" if self.verifier is None else f"{'GET  /replays':44}how far each log was followed\n"
        return (
            f"{self.store.name}: {kind}\n\n{does}\n"
            f"Verifier keys (Ed25519, type 04; ML-DSA-44, type 06):\n{vkeys}\n"
            "POST /add-checkpoint                        submit a checkpoint\n"
            "GET  /<hex SHA-256 of origin>/checkpoint    the latest one cosigned\n"
            f"{more}\n"
            f"Logs followed: {self.store.count_logs()}\n"
        )


_WITNESS = (
    "a transparency-log witness (C2SP tlog-witness v1.1)",
    "It cosigns a checkpoint when it extends the one it cosigned before, and never two\n"
    "checkpoints that contradict each other. It does not read what a log says.\n",
)
_VERIFIER = (
    "a verifier of key directories (C2SP tlog-witness v1.1)",
    "It cosigns a checkpoint of a log's directory map when it extends the one it cosigned before,\n"
    "and when it has read every entry of the log and derived the same map by itself.\n",
)


def open_witness(directory: WitnessDir, *, replaying: bool = False) -> Witness:
    """Open what ``init`` made, and refuse keys that are not this witness's.

    Args:
        replaying: as a verifier. Its threads run once its ``verifier`` is started.

    Raises:
        StoreError: something is missing, damaged or does not belong together.
        UsageError: ``VerifierDirectory``, ``WitnessDirectory``: the directory is for the other of the two.
    """
    directory.check()
    store = WitnessStore.open(directory.database)
    try:
        signers = load_signers(directory, store.name)
        if {str(signer.vkey) for signer in signers} != set(store.vkeys):
            raise StoreError(
                "KeyMismatch", f"the key files in {directory.path} are not those of {store.name}",
                hint="Put back the files that init made: clients know this witness by its vkeys.",
            )
        replays = ReplayStore(store)
        check_kind(directory, replays, replaying=replaying)
        clock = lambda: int(time.time())  # noqa: E731
        fetcher = Fetcher.from_environment(timeout=FETCH_SECONDS)
        verifier = Verifier(replays, fetcher, clock, directory.evidence) if replaying else None
    except BaseException:
        store.close()
        raise
    return Witness(store, signers, verifier=verifier)


def check_kind(directory: WitnessDir, replays: ReplayStore, *, replaying: bool) -> None:
    """A verifier's keys must sign nothing that was not derived, and a witness's nothing that seems to be.

    Raises:
        UsageError: ``VerifierDirectory``, ``WitnessDirectory``.
    """
    is_verifier = bool(replays.replays())
    if is_verifier and not replaying:
        raise UsageError(
            "VerifierDirectory", f"{directory.path} holds a verifier, whose cosignature says more than a witness's",
            hint="Serve it with --replay.",
        )
    if replaying and not is_verifier:
        raise UsageError(
            "WitnessDirectory", f"{directory.path} holds no log to be replayed",
            hint="Serve a witness without --replay. To make a verifier: init another directory, then add-log --replay.",
        )


def serve(
    directory: WitnessDir, listen: str, on_ready: Callable[[str, str], None], *, replaying: bool = False
) -> None:
    """Serve one witness, or verifier, until SIGTERM or SIGINT, alone on its directory.

    Args:
        on_ready: called with the witness's name and ``ADDRESS:PORT`` when connections are accepted.

    Raises:
        StoreError: the directory is not ready to be served, or is being served ("Locked").
        UsageError: cannot listen there; or see open_witness.
    """
    directory.check()
    with durable.FileLock(directory.lock):
        # Opened here only so that what is wrong ends the command; the worker opens its own, because
        # SQLite must not cross a fork.
        witness = open_witness(directory, replaying=replaying)
        name = witness.store.name
        witness.store.close()

        def in_worker() -> Flask:
            opened = open_witness(directory, replaying=replaying)
            if opened.verifier is not None:
                opened.verifier.start()
            return create_app(opened)

        kind = "verifier" if replaying else "witness"
        httpd.serve(
            in_worker, listen, workers=WORKERS, threads=THREADS, name=f"ktlog-{kind} {name}",
            on_ready=lambda address: on_ready(name, address),
        )


def create_app(witness: Witness) -> Flask:
    """The WSGI application of one witness."""
    app = Flask("witness", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.strict_slashes = True

    @app.post("/add-checkpoint")
    def add_checkpoint() -> Response:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            return _respond(_answer(refuse(415, "EncodedBody", "send the body without Content-Encoding")))
        return _respond(witness.add_checkpoint(request.get_data(cache=False)))

    @app.get("/<origin_hash>/checkpoint")
    def checkpoint(origin_hash: str) -> Response:
        note = witness.store.cosigned_note(origin_hash)
        if note is None:
            return _respond(_answer(refuse(404, "NeverCosigned", "no checkpoint of such a log was cosigned")))
        response = _respond(Answer(200, note))
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/")
    def about() -> Response:
        return _respond(Answer(200, witness.about().encode()))

    @app.get("/replays")
    def replays() -> Response:
        if witness.verifier is None:
            return _respond(_answer(refuse(404, "NoVerifier", "this is a witness; it replays no log")))
        response = jsonify({"name": witness.store.name, "logs": witness.verifier.status()})
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/livez")
    def livez() -> Response:
        return _respond(Answer(200, b"ok\n"))

    @app.get("/readyz")
    def readyz() -> Response:
        witness.store.check()
        return _respond(Answer(200, b"ok\n"))

    _register_endings(app, witness)
    return app


def _register_endings(app: Flask, witness: Witness) -> None:
    """What becomes of failures, and what every answer says of itself."""

    @app.errorhandler(StoreError)
    def unavailable(error: StoreError) -> Response:
        _LOG.error("%s", error)
        return _respond(_answer(refuse(503, error.name, "this witness cannot use its record: try later")))

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        plain = error.get_response()
        reason = error.name.replace(" ", "")
        response = _respond(_answer(refuse(error.code or 500, reason, error.description or "")))
        if "Allow" in plain.headers:
            response.headers["Allow"] = plain.headers["Allow"]
        return response

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        if request.method in ("GET", "HEAD", "OPTIONS"):
            response.headers["Access-Control-Allow-Origin"] = "*"  # monitors also live in browsers
        if response.status_code == 503:
            response.headers["Retry-After"] = "5" if witness.verifier is None else "1"
        return response


def _answer(refusal: Refuse) -> Answer:
    return Answer(refusal.status, refusal.body, refusal.content_type, refusal.reason)


def _respond(answer: Answer) -> Response:
    # content_type, not mimetype: Werkzeug would add a charset, and clients compare exactly.
    return Response(answer.body, status=answer.status, content_type=answer.content_type)
