"""Put the explorer into a log's application."""

from __future__ import annotations

from flask import Flask, Response, request
from werkzeug.exceptions import NotFound

from ktlog.web.asked import note_refusal
from ktlog.web.context import Context
from ktlog.web.errors import NOTHING_HERE, nothing_here
from ktlog.web.explorer.answer import environment, stylesheet
from ktlog.web.explorer.explorer import Explorer
from ktlog.web.explorer.feeds import feeds
from ktlog.web.explorer.finding import finding
from ktlog.web.explorer.pages import pages
from ktlog.web.explorer.sorry import message


def register_explorer(app: Flask, context: Context) -> None:
    """Serve the pages of the log of *context*."""
    app.extensions["ktlog_explorer"] = Explorer(context)
    environment()
    stylesheet()
    for blueprint in (pages, feeds, finding):
        app.register_blueprint(blueprint)

    @app.errorhandler(NotFound)
    def nowhere(_error: NotFound) -> Response:
        """A page for whoever would rather have HTML, and for others what a log without an explorer says."""
        accepted = request.accept_mimetypes
        if accepted.quality("text/html") <= accepted.quality("application/json"):
            response = nothing_here()
            response.headers["Vary"] = "Accept"
            return response
        note_refusal(request.environ, "not_found", request.endpoint)
        return message(404, "Nothing here", f"{NOTHING_HERE[:1].upper()}{NOTHING_HERE[1:]}.", "not_found")
