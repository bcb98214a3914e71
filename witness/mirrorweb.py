"""The mirror over HTTP, a process beside the witness's: its uploads are long and read as they come.

======  ====================================  ===================================================================
POST    /add-checkpoint                       set the pending checkpoint; answers are drawn in decide.py
POST    /add-entries                          upload entries; answers are drawn in mirrorwire.py
POST    /sign-subtree                         as of a witness, with the mirror's own keys
GET     /<sha256 of origin>/checkpoint        the mirror checkpoint
GET     /<sha256 of origin>/tile/...          its tiles and entry bundles (C2SP tlog-tiles)
GET     /                                     who this is, and its vkeys
GET     /livez /readyz                        the process runs / would take an upload
======  ====================================  ===================================================================
"""

from __future__ import annotations

import contextlib
import io
import logging
import socket
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from ktlog import durable
from ktlog.errors import EncodingError, StoreError
from ktlog.wire import httpd
from ktlog.wire.logs import adopt
from witness.config import MAX_BODY_BYTES, WORKERS, WitnessDir
from witness.decide import refuse
from witness.mirror import UPLOADS_AT_ONCE, Mirror
from witness.mirrordir import MirrorDir, check_apart, load_mirror_signers, load_ticket_key
from witness.mirrorrunning import MirrorOperating, MirrorRunning
from witness.mirrorstore import MirrorStore
from witness.mirrorwire import OCTETS
from witness.store import WitnessStore
from witness.witness import Answer, answer_of

IMMUTABLE = "public, max-age=31536000, immutable"
THREADS = 2 * UPLOADS_AT_ONCE
#: Read at a time; as much is lost of a body that breaks off.
_CHUNK = 8 * 1024

#: As sent. A compressed body is inflated as it is read, so what it would be inflated counts against the mirror's own
#: limits; this one is for bodies that inflate to nothing.
MAX_SENT_BYTES = 128 * 1024 * 1024

_LOG = logging.getLogger("ktlog.witness.mirror")


def open_mirror(directory: WitnessDir, mark: Path | None = None) -> Mirror:
    """The mirror that ``init-mirror`` made in a witness directory.

    Args:
        mark: where its high-water mark is, if not in the directory.

    Raises:
        StoreError: something is missing, damaged, an older copy, or does not belong together.
        UsageError: "SameCosigner".
    """
    directory.check()
    paths = MirrorDir(directory)
    paths.check()
    witness_store = WitnessStore.open(directory.database, beside_daemon=True)
    store = None
    try:
        store = MirrorStore.open(paths.database)
        signers = load_mirror_signers(paths, store.name)
        if {str(signer.vkey) for signer in signers} != set(store.vkeys):
            raise StoreError(
                "KeyMismatch", f"the key files in {paths.path} are not those of {store.name}",
                hint="Put back the files that init-mirror made: clients know this mirror by its vkeys.",
            )
        check_apart(store.name, set(store.vkeys), witness_store.name, set(witness_store.vkeys))
        store.keep_mark(paths.mark if mark is None else mark)
        mirror = Mirror(store, paths.logs, signers, load_ticket_key(paths), witness_store)
        mirror.check()
    except BaseException:
        witness_store.close()
        if store is not None:
            store.close()
        raise
    return mirror


def serve(
    directory: WitnessDir, listen: str, on_ready: Callable[[str, str], None], *, mark: Path | None = None,
    operating: MirrorOperating | None = None,
) -> None:
    """Serve the mirror until SIGTERM or SIGINT, alone on its directory.

    Args:
        on_ready: called with the mirror's name and ``ADDRESS:PORT`` when connections are accepted.

    Raises:
        StoreError: the directory is not ready to be served, or is being served ("Locked").
        UsageError: cannot listen there; or see open_mirror.
    """
    paths = MirrorDir(directory)
    paths.check()
    with durable.FileLock(paths.lock):
        # Opened here only so that what is wrong ends the command; SQLite must not cross a fork.
        mirror = open_mirror(directory, mark)
        name = mirror.store.name
        mirror.close()

        def in_worker() -> Flask:
            mirror = open_mirror(directory, mark)
            running = MirrorRunning(mirror, operating)
            app = create_app(mirror, running)
            running.start()
            return app

        httpd.serve(
            in_worker, listen, workers=WORKERS, threads=THREADS, name=f"ktlog-mirror {name}",
            on_ready=lambda address: on_ready(name, address), on_starting=lambda: adopt("gunicorn.error"),
        )


def create_app(mirror: Mirror, running: MirrorRunning | None = None) -> Flask:
    """The WSGI application of one mirror."""
    running = MirrorRunning(mirror) if running is None else running
    app = Flask("mirror", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
    app.url_map.strict_slashes = True
    register_mirror(app, mirror)

    @app.get("/livez")
    def livez() -> Response:
        return _respond(Answer(200, b"ok\n"))

    @app.get("/readyz")
    def readyz() -> Response:
        mirror.store.refuse_poisoned()
        mirror.store.count_writes()
        return _respond(Answer(200, b"ok\n"))

    @app.before_request
    def begin() -> None:
        g.began = running.begin(request.environ)

    @app.errorhandler(StoreError)
    def unavailable(error: StoreError) -> Response:
        _LOG.error("%s", error)
        return _respond(answer_of(refuse(503, error.name, "this mirror cannot use its record: try later")))

    @app.errorhandler(HTTPException)
    def http_error(error: HTTPException) -> Response:
        plain = error.get_response()
        response = _respond(
            answer_of(refuse(error.code or 500, error.name.replace(" ", ""), error.description or ""))
        )
        if "Allow" in plain.headers:
            response.headers["Allow"] = plain.headers["Allow"]
        return response

    @app.after_request
    def finish(response: Response) -> Response:
        response.headers["X-Content-Type-Options"] = "nosniff"
        if request.method in ("GET", "HEAD", "OPTIONS"):
            response.headers["Access-Control-Allow-Origin"] = "*"  # monitors also live in browsers
        if response.status_code == 503:
            response.headers["Retry-After"] = "5"
        began, answer = g.pop("began", None), g.pop("answer", None)
        if began is not None:
            response.headers["X-Request-Id"] = began[1]
            running.end(
                began, request.environ, (request.endpoint or "none").replace("_", "-"), response.status_code,
                "" if answer is None else answer.reason,
            )
        return response

    return app


def register_mirror(app: Flask, mirror: Mirror) -> None:
    """Mount *mirror* in an application, whose error handling and headers it shares."""

    @app.post("/add-checkpoint")
    def add_checkpoint() -> Response:
        return _plain(mirror.add_checkpoint)

    @app.post("/sign-subtree")
    def sign_subtree() -> Response:
        return _plain(mirror.sign_subtree)

    @app.post("/add-entries")
    def add_entries() -> Response:
        response = _respond(_add_entries(mirror))
        response.headers["Accept-Encoding"] = "gzip"
        return response

    @app.get("/<origin_hash>/checkpoint")
    def checkpoint(origin_hash: str) -> Response:
        note = mirror.note(origin_hash)
        if note is None:
            return _respond(answer_of(refuse(404, "NotMirrored", "no checkpoint of such a log is mirrored")))
        return _cached(Answer(200, note), "no-cache")

    @app.get("/<origin_hash>/tile/<path:rest>")
    def tile(origin_hash: str, rest: str) -> Response:
        try:
            data = mirror.tile(origin_hash, f"tile/{rest}")
        except EncodingError:
            data = None
        if data is None:
            return _respond(answer_of(refuse(404, "NoTile", "no such tile is mirrored")))
        return _cached(Answer(200, data, OCTETS), IMMUTABLE)

    @app.get("/")
    def about() -> Response:
        return _respond(Answer(200, mirror.about().encode()))


def _plain(take: Any) -> Response:
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        return _respond(answer_of(refuse(415, "EncodedBody", "send the body without Content-Encoding")))
    return _respond(take(request.get_data(cache=False)))


def _add_entries(mirror: Mirror) -> Answer:
    if request.mimetype != OCTETS:
        return answer_of(refuse(415, "BadContentType", f"entries come as {OCTETS}"))
    body: io.RawIOBase = SentBody(request.environ)
    encoding = request.headers.get("Content-Encoding", "identity").lower()
    if encoding in ("gzip", "x-gzip"):
        body = Inflated(body)
    elif encoding != "identity":
        return answer_of(refuse(415, "UnknownEncoding", "of the encodings only gzip is taken"))
    return mirror.add_entries(io.BufferedReader(body, _CHUNK).read, partial(_hang_up, request.environ))


def _hang_up(environ: dict[str, Any]) -> None:
    """No more is read of that request, which is answered all the same."""
    connection = environ.get("gunicorn.socket")
    if connection is not None:
        with contextlib.suppress(OSError):
            connection.shutdown(socket.SHUT_RD)


class SentBody(io.RawIOBase):
    """A request's body, which ends where the client went away, or sent more than anybody needs.

    Read past the framework, which has a limit for whole bodies in memory, and an error for those that are cut short.
    """

    def __init__(self, environ: dict[str, Any]) -> None:
        super().__init__()
        self._input = environ["wsgi.input"]
        length = environ.get("CONTENT_LENGTH") or ""
        stated = int(length) if length.isascii() and length.isdigit() else None
        self._left = min(MAX_SENT_BYTES if stated is None and environ.get("wsgi.input_terminated") else stated or 0,
                         MAX_SENT_BYTES)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._input.read(min(len(buffer), self._left))
        except OSError:  # the client went away, or broke HTTP's rules
            data = b""
        self._left = self._left - len(data) if data else 0
        buffer[: len(data)] = data
        return len(data)


class Inflated(io.RawIOBase):
    """The inside of a gzip stream, never more of it than is asked for; it ends where it is damaged."""

    def __init__(self, source: io.RawIOBase) -> None:
        super().__init__()
        self._source = source
        self._inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        self._has_more = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._inflater.eof and len(buffer):
            sent = self._inflater.unconsumed_tail
            if not sent and not self._has_more:
                sent = self._source.read(_CHUNK) or b""
                if not sent:
                    break
            try:
                data = self._inflater.decompress(sent, len(buffer))
            except zlib.error:
                break
            self._has_more = len(data) == len(buffer)
            if data:
                buffer[: len(data)] = data
                return len(data)
        return 0


def _cached(answer: Answer, cache: str) -> Response:
    response = _respond(answer)
    response.headers["Cache-Control"] = cache
    return response


def _respond(answer: Answer) -> Response:
    g.answer = answer  # what is counted and logged of it
    # content_type, not mimetype: Werkzeug would add a charset, and clients compare exactly.
    response = Response(answer.body, status=answer.status, content_type=answer.content_type)
    if answer.retry_after:
        response.headers["Retry-After"] = str(answer.retry_after)
    return response
