"""Put the explorer into a log's application."""

from __future__ import annotations

from flask import Flask

from ktlog.web.context import Context
from ktlog.web.explorer.answer import environment, stylesheet
from ktlog.web.explorer.explorer import Explorer
from ktlog.web.explorer.feeds import feeds
from ktlog.web.explorer.finding import finding
from ktlog.web.explorer.pages import pages


def register_explorer(app: Flask, context: Context) -> None:
    """Serve the pages of the log of *context*."""
    app.extensions["ktlog_explorer"] = Explorer(context)
    environment()
    stylesheet()
    for blueprint in (pages, feeds, finding):
        app.register_blueprint(blueprint)
