"""The Flask application of a log."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask, Response, request

from ktlog.config import Settings
from ktlog.errors import MessageRejected
from ktlog.operator.create import load_public_keys
from ktlog.web.activitypub import activitypub
from ktlog.web.actors import actors
from ktlog.web.answers import KeptAnswers, Wsgi
from ktlog.web.api import api
from ktlog.web.asked import Named
from ktlog.web.context import Context
from ktlog.web.cosign import cosign
from ktlog.web.errors import UNREAD, error_response, register_errors
from ktlog.web.explorer.mount import register_explorer
from ktlog.web.files import FOR_ANY_PAGE, files
from ktlog.web.guarding import register_waits
from ktlog.web.history import history
from ktlog.web.inbox import QuickInbox
from ktlog.web.map import directory_map
from ktlog.web.nodeinfo import nodeinfo
from ktlog.web.quick import QuickBundles, QuickKeys
from ktlog.web.replicas import replica, replicas
from ktlog.web.signing import register_signing
from ktlog.web.status import status
from ktlog.web.submissions import submissions
from ktlog.web.totp import totp
from ktlog.web.verifypage import verifypage
from ktlog.wire.environ import raw_target

PATH_LIMIT = 8_192
NOWHERE = "/.nowhere"
"""What is routed in place of a path that is none: there is nothing at it."""


def create_app(settings: Settings) -> Flask:
    """Make the application for the log in *settings*; opens its store, read-only."""
    app = Flask("ktlog", static_folder=None)
    # One byte more than is taken: a body in chunks is cut off here without a word, and read_body must notice.
    app.config["MAX_CONTENT_LENGTH"] = settings.body_limit_bytes + 1
    app.url_map.merge_slashes = False
    app.extensions["ktlog"] = Context(settings, load_public_keys(settings))
    context: Context = app.extensions["ktlog"]
    hosts = settings.host_names()
    register_signing(app, context.signer, hosts)
    register_waits(app)
    register_errors(app)
    for blueprint in (
        files, directory_map, api, actors, history, activitypub, nodeinfo, status, submissions, totp, cosign,
        replicas, replica,
    ):
        app.register_blueprint(blueprint)
    if settings.explorer:
        register_explorer(app, context)
        app.register_blueprint(verifypage)
    register_readers(app)

    @app.before_request
    def check_host() -> Response | None:
        """PKD, "DNS Rebinding Attacks": the Host header must be on the allow-list, which names no addresses."""
        if request.path in ("/livez", "/readyz"):
            return None
        if request.headers.get("Host", "") not in hosts:
            return error_response("wrong_host", f"this server is {settings.origin}")
        return None

    @app.get("/livez")
    def livez() -> Response:
        return Response("ok\n", content_type="text/plain; charset=utf-8")

    @app.get("/readyz")
    def readyz() -> Response:
        """Ready means: the store can be read and the sequencer answers. Whoever reads is not sent away by a pause."""
        context.store.state()
        context.link.ping()
        paused = context.rules.rules().paused
        said = "ok\n" if paused is None else f"ok, paused: {paused.reason}\n"
        return Response(said, content_type="text/plain; charset=utf-8")

    views = _RawPath(app.wsgi_app)
    quick = QuickKeys(QuickBundles(QuickInbox(views, context, hosts), context, hosts), context, hosts)
    kept = KeptAnswers(quick, context.version, hosts, context.now)
    app.wsgi_app = Named(kept)  # type: ignore[method-assign]
    app.unread = UNREAD  # type: ignore[attr-defined]  # see ktlog.wire.whole
    return app


def register_readers(app: Flask) -> None:
    """Let pages from anywhere read what is public anyway: a proof is worth most to code that is not the log's own.

    There is no cookie and no login, so a GET says to everybody the same.
    """

    @app.after_request
    def allow(response: Response) -> Response:
        if request.method in ("GET", "HEAD"):
            response.headers.update(FOR_ANY_PAGE)
        return response


class _RawPath:
    """Route on the request target as it was sent.

    WSGI decodes the path before anybody can look, and an actor id in a path is a URL whose
    slashes are ``%2F``. Decoded, it could not be told from path segments.
    """

    def __init__(self, inner: Wsgi) -> None:
        self._inner = inner

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        try:
            path = raw_target(environ).partition("?")[0]
        except MessageRejected:
            path = NOWHERE
        # The router would read //tile/0 as /tile/0, and a proxy in front perhaps as a host name.
        if len(path) > PATH_LIMIT or not path.isascii() or path.startswith("//"):
            path = NOWHERE
        return self._inner(environ | {"PATH_INFO": path}, start_response)
