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
from ktlog.web.api import api
from ktlog.web.context import Context
from ktlog.web.cosign import cosign
from ktlog.web.errors import error_response, register_errors
from ktlog.web.files import files
from ktlog.web.guarding import register_waits
from ktlog.web.history import history
from ktlog.web.map import directory_map
from ktlog.web.nodeinfo import nodeinfo
from ktlog.web.replicas import replica, replicas
from ktlog.web.signing import register_signing
from ktlog.web.status import status
from ktlog.web.submissions import submissions
from ktlog.web.totp import totp
from ktlog.wire.httpd import raw_target

Wsgi = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]
PATH_LIMIT = 8_192


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
        """Ready means: the store can be read and the sequencer takes messages."""
        context.store.state()
        context.link.ping()
        return Response("ok\n", content_type="text/plain; charset=utf-8")

    app.wsgi_app = _RawPath(app.wsgi_app)  # type: ignore[method-assign]
    return app


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
            path = "/"
        # The router would read //tile/0 as /tile/0, and a proxy in front perhaps as a host name.
        if len(path) > PATH_LIMIT or not path.isascii() or path.startswith("//"):
            path = "/"
        return self._inner(environ | {"PATH_INFO": path}, start_response)
