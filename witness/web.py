"""The witness over HTTP: judge, sign, record, and only then answer.

======  ==============================  ====================================================
POST    /add-checkpoint                 C2SP tlog-witness v1.1; answers are drawn in decide.py
POST    /sign-subtree                   the same for a part of a tree; answers are drawn in subtree.py
GET     /<sha256 of origin>/checkpoint  the latest cosigned checkpoint, for monitors
GET     /<sha256 of origin>/evidence    of the log's forks, as JSON, for whoever wants to check it
GET     /                               who this is, and its vkeys: text, or HTML for browsers
GET     /replays                        of a verifier: how far it followed each log, as JSON
GET     /livez /readyz                  the process runs / would judge a submission; see running.py
======  ==============================  ====================================================
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from flask import Flask, Response, g, jsonify, request
from werkzeug.exceptions import HTTPException

from ktlog import durable
from ktlog.ending import ENDING, LOOK_SECONDS
from ktlog.errors import StoreError, UsageError
from ktlog.wire import httpd
from ktlog.wire.fetch import Fetcher
from ktlog.wire.logs import adopt
from witness.about import POLICY, format_html, format_text
from witness.config import MAX_BODY_BYTES, THREADS, VERIFIER_THREADS, WORKERS, WitnessDir
from witness.decide import refuse
from witness.hot import Ahead
from witness.keys import FILES, KeySources, load_signers
from witness.replays import ReplayStore
from witness.running import Operating, Running
from witness.store import WitnessStore
from witness.verifier import Verifier
from witness.witness import Answer, Witness, answer_of

if TYPE_CHECKING:
    from witness.bastion import BastionOptions, Bastions

#: Of a request for a log's pages: a full page of records may have some megabytes.
FETCH_SECONDS = 60.0

_LOG = logging.getLogger("ktlog.witness")


def open_witness(
    directory: WitnessDir, *, replaying: bool = False, mark: Path | None = None, keys: KeySources = FILES
) -> Witness:
    """Open what ``init`` made, and refuse keys that are not this witness's.

    Args:
        replaying: as a verifier. Its threads run once its ``verifier`` is started.
        mark: where the high-water mark is, if not in the directory.
        keys: where keys are, if not in the directory.

    Raises:
        StoreError: something is missing, damaged or does not belong together.
        UsageError: ``VerifierDirectory``, ``WitnessDirectory``: the directory is for the other of the two.
    """
    directory.check()
    store = WitnessStore.open(directory.database)
    try:
        signers = load_signers(directory, store.name, keys, store.vkeys)
        if {str(signer.vkey) for signer in signers} != set(store.vkeys):
            raise StoreError(
                "KeyMismatch", f"the keys of {directory.path} are not those of {store.name}",
                hint="Put back the files that init made, or name the right credentials: clients know this witness by"
                " its vkeys.",
            )
        store.keep_mark(directory.mark if mark is None else mark)
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
    directory: WitnessDir, listen: str | None, on_ready: Callable[[str, str | None], None], *,
    replaying: bool = False, mark: Path | None = None, operating: Operating | None = None, keys: KeySources = FILES,
    bastions: BastionOptions | None = None,
) -> None:
    """Serve one witness, or verifier, until SIGTERM or SIGINT, alone on its directory.

    Args:
        listen: see httpd.parse_listen; None: nowhere, only through bastions.
        on_ready: called with the witness's name and ``ADDRESS:PORT`` when connections are accepted.
        operating: what the process does beside witnessing.
        keys: where keys are, if not in the directory. bastions: through which it is served too.

    Raises:
        StoreError: the directory is not ready to be served, or is being served ("Locked").
        UsageError: cannot listen there; or see open_witness.
    """
    directory.check()
    open_again = partial(open_witness, directory, replaying=replaying, mark=mark, keys=keys)
    with durable.FileLock(directory.lock):
        # Opened here only so that what is wrong ends the command; the worker opens its own, because
        # SQLite must not cross a fork.
        witness = open_again()
        name = witness.store.name
        witness.store.close()
        if keys.agent is not None:
            keys.agent.close()  # of a connection that crossed a fork, two would read the answers
        served = _Served(open_again, directory.database, operating, bastions)
        if listen is None:
            _serve_through_bastions(served, partial(on_ready, name, None))
        kind = "verifier" if replaying else "witness"
        httpd.serve(
            served, listen, workers=WORKERS, threads=VERIFIER_THREADS if replaying else THREADS,
            name=f"ktlog-{kind} {name}",
            on_ready=lambda address: on_ready(name, address), on_starting=lambda: adopt("gunicorn.error"),
            on_worker_exit=served.leave, whole=MAX_BODY_BYTES,
        )


class _Served:
    """Makes the application in the process that serves it, and what runs beside it there."""

    def __init__(
        self, open_again: Callable[[], Witness], database: Path, operating: Operating | None,
        bastions: BastionOptions | None,
    ) -> None:
        self._open_again, self._database = open_again, database
        self._operating, self._options = operating, bastions
        self._bastions: Bastions | None = None

    def __call__(self) -> Flask:
        """Once, in the main thread."""
        opened = self._open_again()
        if opened.verifier is not None:
            opened.verifier.start()
        running = Running(opened, self._operating, WitnessStore.open(self._database, read_only=True))
        app = create_app(opened, running)
        running.start()
        if self._options is not None:
            from witness.bastion import dial_until_sigterm  # late: only here h2 must be installed

            self._bastions = dial_until_sigterm(app, self._options)
            running.bastions = self._bastions.states
        return app

    def leave(self) -> None:
        """Answer what is in hand through bastions."""
        if self._bastions is not None:
            self._bastions.close()


def _serve_through_bastions(served: _Served, on_ready: Callable[[], None]) -> NoReturn:
    """Until SIGTERM or SIGINT, without an address of its own."""
    wait = wait_for_signal()
    served()
    on_ready()
    wait()
    served.leave()
    # As a worker ends: a request that still runs does not hold it up.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def wait_for_signal() -> Callable[[], None]:
    """Take SIGTERM and SIGINT from here on; the function returned waits for one. In the main thread."""
    # A list, not an Event: its lock could be held by the very code that a signal interrupts.
    told: list[int] = []
    for number in ENDING:
        signal.signal(number, lambda number, _frame: told.append(number))

    def wait() -> None:
        # In turns: a signal that does not interrupt system calls is handled between two of them.
        while not told:
            time.sleep(LOOK_SECONDS)

    return wait


def create_app(witness: Witness, running: Running | None = None) -> Flask:
    """The WSGI application of one witness."""
    running = Running(witness) if running is None else running
    app = Flask("witness", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.strict_slashes = True

    def taken(take: Callable[[bytes], Answer]) -> Response:
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            return _respond(answer_of(refuse(415, "EncodedBody", "send the body without Content-Encoding")))
        return _respond(take(request.get_data(cache=False)))

    @app.post("/add-checkpoint")
    def add_checkpoint() -> Response:
        return taken(witness.add_checkpoint)

    @app.post("/sign-subtree")
    def sign_subtree() -> Response:
        return taken(witness.sign_subtree)

    @app.get("/")
    def about() -> Response:
        wanted = request.accept_mimetypes
        if wanted["text/html"] <= wanted["text/plain"]:  # curl takes anything, and gets the plain one
            response = _respond(Answer(200, format_text(running.about()).encode()))
        else:
            response = _respond(Answer(200, format_html(running.about()).encode(), "text/html; charset=utf-8"))
            response.headers["Content-Security-Policy"] = POLICY
        response.headers["Vary"] = "Accept"
        return response

    @app.get("/livez")
    def livez() -> Response:
        return _respond(Answer(200, b"ok\n"))

    @app.get("/readyz")
    def readyz() -> Response:
        why = running.unready()
        if why is not None:
            return _respond(answer_of(refuse(503, why, "a submission would not be judged now")))
        return _respond(Answer(200, b"ok\n"))

    _register_monitoring(app, witness)
    _register_endings(app, witness, running)
    ahead = Ahead(app.wsgi_app, witness, running)
    app.wsgi_app = ahead  # type: ignore[method-assign]
    app.at_once = ahead.at_once  # type: ignore[attr-defined]  # see ktlog.wire.whole
    return app


def _register_monitoring(app: Flask, witness: Witness) -> None:
    """What monitors read: the record of a log, and of a verifier how far it came."""

    @app.get("/<origin_hash>/checkpoint")
    def checkpoint(origin_hash: str) -> Response:
        note = witness.store.cosigned_note(origin_hash)
        if note is None:
            return _respond(answer_of(refuse(404, "NeverCosigned", "no checkpoint of such a log was cosigned")))
        response = _respond(Answer(200, note))
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/<origin_hash>/evidence")
    def evidence(origin_hash: str) -> Response:
        found = witness.store.convictions(origin_hash)
        if not found:
            return _respond(answer_of(refuse(404, "NoEvidence", "no fork of such a log is on record here")))
        response = jsonify({
            "origin": found[0].origin, "frozen": any(one.freezes for one in found),
            # As text: each is a file whose bytes count.
            "evidence": [one.document.decode("utf-8") for one in found],
        })
        response.headers["Cache-Control"] = "no-cache"
        return response

    @app.get("/replays")
    def replays() -> Response:
        if witness.verifier is None:
            return _respond(answer_of(refuse(404, "NoVerifier", "this is a witness; it replays no log")))
        response = jsonify({"name": witness.store.name, "logs": witness.verifier.status()})
        response.headers["Cache-Control"] = "no-cache"
        return response


def _register_endings(app: Flask, witness: Witness, running: Running) -> None:
    """What becomes of failures, and what every answer says of itself."""

    @app.before_request
    def begin() -> None:
        g.began = running.begin(request.environ)

    @app.errorhandler(StoreError)
    def unavailable(error: StoreError) -> Response:
        _LOG.error("%s", error)
        return _respond(answer_of(refuse(503, error.name, "this witness cannot use its record: try later")))

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        plain = error.get_response()
        reason = error.name.replace(" ", "")
        response = _respond(answer_of(refuse(error.code or 500, reason, error.description or "")))
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
        began, answer = g.pop("began", None), g.pop("answer", None)
        if began is not None:
            response.headers["X-Request-Id"] = began[1]
            running.end(
                began, request.environ, (request.endpoint or "none").replace("_", "-"), response.status_code,
                "" if answer is None else answer.reason, None if answer is None else answer.about,
            )
        return response


def _respond(answer: Answer) -> Response:
    g.answer = answer  # what is counted and logged of it
    # content_type, not mimetype: Werkzeug would add a charset, and clients compare exactly.
    response = Response(answer.body, status=answer.status, content_type=answer.content_type)
    if answer.retry_after:
        response.headers["Retry-After"] = str(answer.retry_after)
    return response
